#!/bin/bash
# Runs inside the container. Writes `passed NAME` to /out/results for each part, or `failed NAME`.
. /out/functions.sh

settings() {
    cat > /etc/ostler/ostler.yaml
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
