#!/bin/bash
# Runs inside the container. Writes `passed NAME` to /out/results for each part, or `failed NAME`.
set -u
export SYSTEMD_PAGER= SYSTEMD_COLORS=0

# Runs a part, and notes its result.
part() {
    echo "=== $1"
    (set -ex; "$1") # bash ignores -e in the condition of an if
    if [[ $? == 0 ]]; then
        echo "passed $1" >> /out/results
    else
        echo "failed $1" >> /out/results
        systemctl status --no-pager --lines=50 ostler.service || true
        journalctl --no-pager --lines=80 || true
    fi
    systemctl stop ostler.socket ostler.service 2> /dev/null
    systemctl reset-failed
}

property() {
    systemctl show --property "$1" --value ostler.service
}

# Waits until a command succeeds, up to 60 s.
eventually() {
    local _
    for _ in {1..600}; do
        "$@" > /dev/null 2>&1 && return 0
        sleep 0.1
    done
    echo "never: $*"
    return 1
}

get() {
    curl --silent --show-error --fail --max-time 20 "http://127.0.0.1:8000$1"
}

settings() {
    cat > /etc/ostler/ostler.yaml
}

has_status() {
    [[ $(property StatusText) == "$1"* ]]
}

has_other_pid() {
    local pid
    pid=$(property MainPID)
    [[ $pid != "$1" && $pid != 0 && $(get /) == 'Hello, world!' ]]
}

# Asks until the file $1 exists. Notes each request that fails.
ask_until() {
    set +x
    while [[ ! -e $1 ]]; do get / > /dev/null || date >> "$1.failed"; done
}

# Runs a command while clients ask. Fails if a request fails.
under_load() {
    local end asker askers=()
    end=$(mktemp -u)
    for _ in 1 2 3; do
        ask_until "$end" &
        askers+=($!)
    done
    "$@"
    get /
    touch "$end"
    wait "${askers[@]}"
    [[ ! -s $end.failed ]] || { head "$end.failed"; return 1; }
}

service_starts_reloads_and_stops() {
    settings <<< 'workers: 2'
    systemctl start ostler.service
    [[ $(get /) == 'Hello, world!' ]]
    eventually has_status '2/2 workers ready'
    settings <<< 'workers: 3'
    under_load systemctl reload ostler.service
    eventually has_status '3/3 workers ready'
    ls -d /sys/fs/cgroup/system.slice/ostler.service/ostler-worker-*
    systemctl stop ostler.service
    [[ $(property Result) == success && $(property ActiveState) == inactive ]]
}

instance_of_the_template_starts() {
    echo 'bind: 127.0.0.1:8001' > /etc/ostler/shop.yaml
    systemctl start ostler@shop.service
    curl --silent --fail --max-time 20 http://127.0.0.1:8001/
    [[ -d /run/ostler/shop && -d /var/lib/ostler/shop ]]
    systemctl stop ostler@shop.service
}

invalid_settings_fail_the_start() {
    settings <<< 'workers: none'
    if systemctl start ostler.service; then return 1; fi
    journalctl --no-pager --unit ostler.service | grep 'ostler.yaml:1: workers'
}

restart_behind_a_socket_unit_loses_nothing() {
    settings <<< 'workers: 2'
    systemctl start ostler.socket
    get /
    under_load systemctl restart ostler.service
    under_load systemctl restart ostler.service
}

kept_sockets_survive_restarts_and_kills() {
    settings <<< 'fd_store: true'
    systemctl start ostler.service
    for _ in 1 2 3; do
        systemctl restart ostler.service
        get /
    done
    local pid
    for _ in 1 2; do
        systemctl reset-failed ostler.service # the limit of starts
        pid=$(property MainPID)
        kill -KILL "$pid"
        eventually has_other_pid "$pid"
    done
}

stopped_master_is_replaced_by_the_watchdog() {
    settings <<< 'workers: 2'
    systemctl start ostler.service
    local pid
    pid=$(property MainPID)
    kill -STOP "$pid"
    eventually has_other_pid "$pid"
    [[ $(property NRestarts) == 1 ]]
}

upgrade_moves_the_main_pid() {
    settings <<< 'workers: 2'
    systemctl start ostler.service
    local pid
    pid=$(property MainPID)
    kill -USR2 "$pid"
    eventually pgrep --parent "$pid" --full 'ostler: master'
    sleep 0.2
    under_load kill -TERM "$pid"
    eventually has_other_pid "$pid"
    [[ $(property ActiveState) == active && $(property NRestarts) == 0 ]]
}

mkdir -p /etc/ostler
systemctl daemon-reload
part service_starts_reloads_and_stops
part instance_of_the_template_starts
part invalid_settings_fail_the_start
part restart_behind_a_socket_unit_loses_nothing
part kept_sockets_survive_restarts_and_kills
part stopped_master_is_replaced_by_the_watchdog
part upgrade_moves_the_main_pid
