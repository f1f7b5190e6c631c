# Print an optspec for argparse to handle cmd's options that are independent of any subcommand.
function __fish_ostlerctl_global_optspecs
    string join \n s/socket= n/name= t/timeout= h/help V/version
end

function __fish_ostlerctl_needs_command
    # Figure out if the current invocation already has a command.
    set -l cmd (commandline -opc)
    set -e cmd[1]
    argparse -s (__fish_ostlerctl_global_optspecs) -- $cmd 2>/dev/null
    or return
    if set -q argv[1]
        # Also print the command, so this can be used to figure out what it is.
        echo $argv[1]
        return 1
    end
    return 0
end

function __fish_ostlerctl_using_subcommand
    set -l cmd (__fish_ostlerctl_needs_command)
    test -z "$cmd"
    and return 1
    contains -- $cmd[1] $argv
end

complete -c ostlerctl -n "__fish_ostlerctl_needs_command" -s s -l socket -d 'Path of the control socket' -r -F
complete -c ostlerctl -n "__fish_ostlerctl_needs_command" -s n -l name -d 'Name of the master (proc_name) [default: ostler]' -r
complete -c ostlerctl -n "__fish_ostlerctl_needs_command" -s t -l timeout -d 'How long to wait [default: 10s for an answer]' -r
complete -c ostlerctl -n "__fish_ostlerctl_needs_command" -s h -l help -d 'Print help'
complete -c ostlerctl -n "__fish_ostlerctl_needs_command" -s V -l version -d 'Print version'
complete -c ostlerctl -n "__fish_ostlerctl_needs_command" -f -a "status" -d 'Show the master, its pools and their workers'
complete -c ostlerctl -n "__fish_ostlerctl_needs_command" -f -a "workers" -d 'Show every worker'
complete -c ostlerctl -n "__fish_ostlerctl_needs_command" -f -a "why" -d 'Show what is known of a worker and of its last exit'
complete -c ostlerctl -n "__fish_ostlerctl_needs_command" -f -a "config" -d 'Show each setting with its source'
complete -c ostlerctl -n "__fish_ostlerctl_needs_command" -f -a "events" -d 'Show the latest log records of the master'
complete -c ostlerctl -n "__fish_ostlerctl_needs_command" -f -a "operations" -d 'Show the latest changes and their outcome'
complete -c ostlerctl -n "__fish_ostlerctl_needs_command" -f -a "top" -d 'Show load and workers, full-screen'
complete -c ostlerctl -n "__fish_ostlerctl_needs_command" -f -a "reload" -d 'Read the settings again and replace all workers'
complete -c ostlerctl -n "__fish_ostlerctl_needs_command" -f -a "upgrade" -d 'Replace the master by a new one of its binary'
complete -c ostlerctl -n "__fish_ostlerctl_needs_command" -f -a "scale" -d 'Change the number of workers of a pool'
complete -c ostlerctl -n "__fish_ostlerctl_needs_command" -f -a "recycle" -d 'Replace a worker, those of a pool, or all'
complete -c ostlerctl -n "__fish_ostlerctl_needs_command" -f -a "drain" -d 'Have a worker accept no clients, or report pools as not ready, while they serve'
complete -c ostlerctl -n "__fish_ostlerctl_needs_command" -f -a "undrain" -d 'End the drain mode of one worker, or that of pools, but not of their workers'
complete -c ostlerctl -n "__fish_ostlerctl_needs_command" -f -a "stop" -d 'Stop the master and its workers'
complete -c ostlerctl -n "__fish_ostlerctl_needs_command" -f -a "reopen" -d 'Reopen the log files'
complete -c ostlerctl -n "__fish_ostlerctl_using_subcommand status" -s s -l socket -d 'Path of the control socket' -r -F
complete -c ostlerctl -n "__fish_ostlerctl_using_subcommand status" -s n -l name -d 'Name of the master (proc_name) [default: ostler]' -r
complete -c ostlerctl -n "__fish_ostlerctl_using_subcommand status" -s t -l timeout -d 'How long to wait [default: 10s for an answer]' -r
complete -c ostlerctl -n "__fish_ostlerctl_using_subcommand status" -l json -d 'Print JSON, as the master has sent it'
complete -c ostlerctl -n "__fish_ostlerctl_using_subcommand status" -s h -l help -d 'Print help'
complete -c ostlerctl -n "__fish_ostlerctl_using_subcommand workers" -s s -l socket -d 'Path of the control socket' -r -F
complete -c ostlerctl -n "__fish_ostlerctl_using_subcommand workers" -s n -l name -d 'Name of the master (proc_name) [default: ostler]' -r
complete -c ostlerctl -n "__fish_ostlerctl_using_subcommand workers" -s t -l timeout -d 'How long to wait [default: 10s for an answer]' -r
complete -c ostlerctl -n "__fish_ostlerctl_using_subcommand workers" -s h -l help -d 'Print help'
complete -c ostlerctl -n "__fish_ostlerctl_using_subcommand why" -s s -l socket -d 'Path of the control socket' -r -F
complete -c ostlerctl -n "__fish_ostlerctl_using_subcommand why" -s n -l name -d 'Name of the master (proc_name) [default: ostler]' -r
complete -c ostlerctl -n "__fish_ostlerctl_using_subcommand why" -s t -l timeout -d 'How long to wait [default: 10s for an answer]' -r
complete -c ostlerctl -n "__fish_ostlerctl_using_subcommand why" -s h -l help -d 'Print help'
complete -c ostlerctl -n "__fish_ostlerctl_using_subcommand config" -s s -l socket -d 'Path of the control socket' -r -F
complete -c ostlerctl -n "__fish_ostlerctl_using_subcommand config" -s n -l name -d 'Name of the master (proc_name) [default: ostler]' -r
complete -c ostlerctl -n "__fish_ostlerctl_using_subcommand config" -s t -l timeout -d 'How long to wait [default: 10s for an answer]' -r
complete -c ostlerctl -n "__fish_ostlerctl_using_subcommand config" -l json -d 'Print JSON, as the master has sent it'
complete -c ostlerctl -n "__fish_ostlerctl_using_subcommand config" -s h -l help -d 'Print help'
complete -c ostlerctl -n "__fish_ostlerctl_using_subcommand events" -l last -d 'How many of those there are [default: 100]' -r
complete -c ostlerctl -n "__fish_ostlerctl_using_subcommand events" -s s -l socket -d 'Path of the control socket' -r -F
complete -c ostlerctl -n "__fish_ostlerctl_using_subcommand events" -s n -l name -d 'Name of the master (proc_name) [default: ostler]' -r
complete -c ostlerctl -n "__fish_ostlerctl_using_subcommand events" -s t -l timeout -d 'How long to wait [default: 10s for an answer]' -r
complete -c ostlerctl -n "__fish_ostlerctl_using_subcommand events" -s f -l follow -d 'Go on with each new one'
complete -c ostlerctl -n "__fish_ostlerctl_using_subcommand events" -l json -d 'Print a line of JSON an event'
complete -c ostlerctl -n "__fish_ostlerctl_using_subcommand events" -s h -l help -d 'Print help'
complete -c ostlerctl -n "__fish_ostlerctl_using_subcommand operations" -s s -l socket -d 'Path of the control socket' -r -F
complete -c ostlerctl -n "__fish_ostlerctl_using_subcommand operations" -s n -l name -d 'Name of the master (proc_name) [default: ostler]' -r
complete -c ostlerctl -n "__fish_ostlerctl_using_subcommand operations" -s t -l timeout -d 'How long to wait [default: 10s for an answer]' -r
complete -c ostlerctl -n "__fish_ostlerctl_using_subcommand operations" -l json -d 'Print JSON, as the master has sent it'
complete -c ostlerctl -n "__fish_ostlerctl_using_subcommand operations" -s h -l help -d 'Print help'
complete -c ostlerctl -n "__fish_ostlerctl_using_subcommand top" -s i -l interval -d 'Time between two updates [default: 1s]' -r
complete -c ostlerctl -n "__fish_ostlerctl_using_subcommand top" -s s -l socket -d 'Path of the control socket' -r -F
complete -c ostlerctl -n "__fish_ostlerctl_using_subcommand top" -s n -l name -d 'Name of the master (proc_name) [default: ostler]' -r
complete -c ostlerctl -n "__fish_ostlerctl_using_subcommand top" -s t -l timeout -d 'How long to wait [default: 10s for an answer]' -r
complete -c ostlerctl -n "__fish_ostlerctl_using_subcommand top" -s h -l help -d 'Print help'
complete -c ostlerctl -n "__fish_ostlerctl_using_subcommand reload" -s s -l socket -d 'Path of the control socket' -r -F
complete -c ostlerctl -n "__fish_ostlerctl_using_subcommand reload" -s n -l name -d 'Name of the master (proc_name) [default: ostler]' -r
complete -c ostlerctl -n "__fish_ostlerctl_using_subcommand reload" -s t -l timeout -d 'How long to wait [default: 10s for an answer]' -r
complete -c ostlerctl -n "__fish_ostlerctl_using_subcommand reload" -l dry-run -d 'Only show what would change'
complete -c ostlerctl -n "__fish_ostlerctl_using_subcommand reload" -s h -l help -d 'Print help'
complete -c ostlerctl -n "__fish_ostlerctl_using_subcommand upgrade" -s s -l socket -d 'Path of the control socket' -r -F
complete -c ostlerctl -n "__fish_ostlerctl_using_subcommand upgrade" -s n -l name -d 'Name of the master (proc_name) [default: ostler]' -r
complete -c ostlerctl -n "__fish_ostlerctl_using_subcommand upgrade" -s t -l timeout -d 'How long to wait [default: 10s for an answer]' -r
complete -c ostlerctl -n "__fish_ostlerctl_using_subcommand upgrade" -s h -l help -d 'Print help'
complete -c ostlerctl -n "__fish_ostlerctl_using_subcommand scale" -s s -l socket -d 'Path of the control socket' -r -F
complete -c ostlerctl -n "__fish_ostlerctl_using_subcommand scale" -s n -l name -d 'Name of the master (proc_name) [default: ostler]' -r
complete -c ostlerctl -n "__fish_ostlerctl_using_subcommand scale" -s t -l timeout -d 'How long to wait [default: 10s for an answer]' -r
complete -c ostlerctl -n "__fish_ostlerctl_using_subcommand scale" -s h -l help -d 'Print help'
complete -c ostlerctl -n "__fish_ostlerctl_using_subcommand recycle" -s s -l socket -d 'Path of the control socket' -r -F
complete -c ostlerctl -n "__fish_ostlerctl_using_subcommand recycle" -s n -l name -d 'Name of the master (proc_name) [default: ostler]' -r
complete -c ostlerctl -n "__fish_ostlerctl_using_subcommand recycle" -s t -l timeout -d 'How long to wait [default: 10s for an answer]' -r
complete -c ostlerctl -n "__fish_ostlerctl_using_subcommand recycle" -s h -l help -d 'Print help'
complete -c ostlerctl -n "__fish_ostlerctl_using_subcommand drain" -s s -l socket -d 'Path of the control socket' -r -F
complete -c ostlerctl -n "__fish_ostlerctl_using_subcommand drain" -s n -l name -d 'Name of the master (proc_name) [default: ostler]' -r
complete -c ostlerctl -n "__fish_ostlerctl_using_subcommand drain" -s t -l timeout -d 'How long to wait [default: 10s for an answer]' -r
complete -c ostlerctl -n "__fish_ostlerctl_using_subcommand drain" -s h -l help -d 'Print help'
complete -c ostlerctl -n "__fish_ostlerctl_using_subcommand undrain" -s s -l socket -d 'Path of the control socket' -r -F
complete -c ostlerctl -n "__fish_ostlerctl_using_subcommand undrain" -s n -l name -d 'Name of the master (proc_name) [default: ostler]' -r
complete -c ostlerctl -n "__fish_ostlerctl_using_subcommand undrain" -s t -l timeout -d 'How long to wait [default: 10s for an answer]' -r
complete -c ostlerctl -n "__fish_ostlerctl_using_subcommand undrain" -s h -l help -d 'Print help'
complete -c ostlerctl -n "__fish_ostlerctl_using_subcommand stop" -s s -l socket -d 'Path of the control socket' -r -F
complete -c ostlerctl -n "__fish_ostlerctl_using_subcommand stop" -s n -l name -d 'Name of the master (proc_name) [default: ostler]' -r
complete -c ostlerctl -n "__fish_ostlerctl_using_subcommand stop" -s t -l timeout -d 'How long to wait [default: 10s for an answer]' -r
complete -c ostlerctl -n "__fish_ostlerctl_using_subcommand stop" -l now -d 'Do not wait for requests in progress'
complete -c ostlerctl -n "__fish_ostlerctl_using_subcommand stop" -s h -l help -d 'Print help'
complete -c ostlerctl -n "__fish_ostlerctl_using_subcommand reopen" -s s -l socket -d 'Path of the control socket' -r -F
complete -c ostlerctl -n "__fish_ostlerctl_using_subcommand reopen" -s n -l name -d 'Name of the master (proc_name) [default: ostler]' -r
complete -c ostlerctl -n "__fish_ostlerctl_using_subcommand reopen" -s t -l timeout -d 'How long to wait [default: 10s for an answer]' -r
complete -c ostlerctl -n "__fish_ostlerctl_using_subcommand reopen" -s h -l help -d 'Print help'
