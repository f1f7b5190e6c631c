# Functions of the tests inside the container.
set -u
export SYSTEMD_PAGER= SYSTEMD_COLORS=0
touch /out/results # systemd has booted

# Runs a part, and notes its result. Stops the service, unless `kept` is set.
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
    [[ -n ${kept-} ]] || systemctl stop ostler.socket ostler.service 2> /dev/null
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
    trap "touch '$end'" EXIT # of the part's subshell: a failure ends the clients too
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
