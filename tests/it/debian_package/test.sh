#!/bin/bash
# Runs inside the container, as root. Writes `passed NAME` to /out/results for each part, or `failed NAME`.
. /out/functions.sh
export DEBIAN_FRONTEND=noninteractive
kept=1 # the service runs on from part to part

package_is_installed() {
    dpkg --install /out/1.deb
    [[ $(dpkg-query --show --showformat '${Status}' ostler) == 'install ok installed' ]]
    id ostler
    if systemctl is-enabled ostler.service; then return 1; fi
    systemctl enable --now ostler.service
    [[ $(get /) == 'Hello, world!' ]]
    [[ $(systemctl show --property User --value ostler.service) == ostler ]]
    ostlerctl --socket /run/ostler/control.sock status
    ostler --config /etc/ostler/ostler.yaml --check-config
    ostlerctl status # finds it by its name
}

manual_and_completions_are_found() {
    man --where ostler.yaml ostlerctl
    man 7 ostler | grep SIGUSR2
    (
        set +u
        . /usr/share/bash-completion/bash_completion
        _completion_loader ostlerctl || true
        complete -p ostlerctl
    ) || [[ ! -e /usr/share/bash-completion/bash_completion ]]
    if command -v zsh; then
        [[ $(zsh -fc 'autoload -U compinit; compinit -D; print $_comps[ostler]') == _ostler ]]
    fi
    if command -v fish; then
        fish -c 'complete --do-complete "ostlerctl rel"' | grep reload
    fi
}

log_is_rotated() {
    echo 'log_file: /var/log/ostler/ostler.log' >> /etc/ostler/ostler.yaml
    systemctl restart ostler.service
    eventually grep 'all workers ready' /var/log/ostler/ostler.log
    logrotate --force /etc/logrotate.d/ostler
    eventually grep 'logs reopened' /var/log/ostler/ostler.log
}

runs_installed_program() {
    [[ $(readlink "/proc/$(property MainPID)/exe") == /usr/bin/ostler ]]
}

update_loses_no_request() {
    echo '# edited' >> /etc/ostler/ostler.yaml
    echo 'bind: 127.0.0.1:8001' > /etc/ostler/shop.yaml # without control_socket
    systemctl start ostler@shop.service
    local pid shop
    pid=$(property MainPID)
    shop=$(systemctl show --property MainPID --value ostler@shop.service)
    under_load dpkg --install /out/2.deb 2>&1 | tee /tmp/messages
    [[ ${PIPESTATUS[0]} == 0 && $(dpkg-query --show --showformat '${Version}' ostler) == *-2 ]]
    grep 'ostler@shop.service: not upgraded' /tmp/messages
    if grep 'ostler.service: not upgraded' /tmp/messages; then return 1; fi
    [[ $(property MainPID) != "$pid" && $(property NRestarts) == 0 ]]
    eventually runs_installed_program
    grep edited /etc/ostler/ostler.yaml # dpkg does not ask: both versions have the same settings
    curl --fail http://127.0.0.1:8001/
    [[ $(systemctl show --property MainPID --value ostler@shop.service) == "$shop" ]]
}

administrator_can_forbid_upgrades() {
    printf '#!/bin/sh\nexit 101\n' > /usr/sbin/policy-rc.d
    chmod +x /usr/sbin/policy-rc.d
    local pid
    pid=$(property MainPID)
    dpkg --install /out/1.deb # an older version is no problem either
    [[ $(property MainPID) == "$pid" ]]
    rm /usr/sbin/policy-rc.d
}

# The workers of a service can have another master answer for theirs.
impostor_is_not_believed() {
    setpriv --reuid ostler --regid ostler --clear-groups ln -s ../control.sock /run/ostler/shop/control.sock
    dpkg --install /out/2.deb 2>&1 | tee /tmp/messages
    grep 'ostler@shop.service: not upgraded' /tmp/messages
    if grep 'ostler.service: not upgraded' /tmp/messages; then return 1; fi
    get /
}

removal_stops_the_services() {
    dpkg --remove ostler
    for port in 8000 8001; do
        if curl --silent "http://127.0.0.1:$port/"; then return 1; fi
    done
    if pgrep --uid ostler; then return 1; fi
    [[ ! -e /usr/bin/ostler && -e /etc/ostler/ostler.yaml && -d /var/lib/ostler ]]
    id ostler
}

purge_leaves_nothing() {
    rm /etc/ostler/shop.yaml
    dpkg --purge ostler
    id ostler # what it owns elsewhere stays its own
    diff /tmp/before <(traces)
}

# Prints the paths that have the name.
traces() {
    find /etc /usr /var /run -name '*ostler*' -not -path '/run/host/*' -not -path '/var/cache/man/*' | sort
}

traces > /tmp/before
rm -f /usr/sbin/policy-rc.d # images of containers have one
part package_is_installed
part manual_and_completions_are_found
part log_is_rotated
part update_loses_no_request
part administrator_can_forbid_upgrades
part impostor_is_not_believed
part removal_stops_the_services
part purge_leaves_nothing
