complete -c ostler -s k -l worker-class -d 'Worker class: how connections are served. See --list-classes. [default: sync]' -r
complete -c ostler -s w -l workers -d 'Number of worker processes, 1 to 4096; auto means one per usable CPU. A range MIN-MAX scales with the load. [default: 1]' -r
complete -c ostler -l scale-up-busy -d 'With a range of workers: start more when they are busy for this percentage of the time, 1 to 100. Two thirds of it is the most that a scale-down may lead to. [default: 75]' -r
complete -c ostler -l scale-down-after -d 'With a range of workers: stop one when one fewer has sufficed for this time. It doubles, up to 16 times, while scale-downs turn out to be too early. [default: 30s]' -r
complete -c ostler -l threads -d 'Threads per worker of the threads class, 1 to 1024 [default: 4]' -r
complete -c ostler -l worker-connections -d 'Maximum open connections per worker (all classes but sync and exec) [default: 10000]' -r
complete -c ostler -l max-requests -d 'Replace a worker after this many units of work; 0 means never [default: 0]' -r
complete -c ostler -l max-requests-jitter -d 'Add a random number up to this to max_requests, so that workers are not all replaced at once [default: 0]' -r
complete -c ostler -l max-lifetime -d 'Replace a worker after this uptime; 0 means never [default: 0s]' -r
complete -c ostler -l max-lifetime-jitter -d 'Add a random time up to this to max_lifetime, so that workers are not all replaced at once [default: 0s]' -r
complete -c ostler -l max-memory -d 'Replace a worker that exceeds this memory at three samples in a row, 1 s apart. Measured as PSS where the kernel provides it. 0 means never (Linux). [default: 0]' -r
complete -c ostler -l max-surge -d 'Maximum workers above the configured number during a reload or a replacement, not counting draining ones. If 0, max_unavailable must not be 0. The canary of a reload, and the replacement of its last old worker, are extra even then. [default: 1]' -r
complete -c ostler -l max-unavailable -d 'Maximum workers missing during a reload or a replacement: this many old workers drain before their replacements are ready, but none before the canary of a reload is ready. 0 means that no worker drains before its replacement is ready. [default: 0]' -r
complete -c ostler -l boot-retries -d 'Failed boots in a row before a slot gives up, if no worker of the pool has been ready [default: 5]' -r
complete -c ostler -l restart-limit -d 'Crashed workers of a pool that are restarted at once within restart_interval, or one per worker if that is more; 0 means no limit. Beyond it, a restart waits until this rate allows it, at most 30 s. A worker that crashes before it has served backs off instead. [default: 100]' -r
complete -c ostler -l restart-interval -d 'Time within which restart_limit applies [default: 60s]' -r
complete -c ostler -l command -d 'Program that each worker of the exec class runs, and its arguments, one word each. Same as the words after --. [default: none]' -r
complete -c ostler -l stop-signal -d 'Signal that asks the program to finish and exit: TERM, INT, QUIT, HUP, USR1, USR2 or WINCH [default: TERM]' -r
complete -c ostler -l ready-after -d 'Uptime after which the program counts as ready, unless it has sent READY=1 before. If greater than boot_timeout, the program must send READY=1. [default: 1s]' -r
complete -c ostler -l inherit-output -d 'Let the program write to the master\'s own standard output and standard error, unchanged, instead of to the log. For programs whose logs are read by another program, such as JSON. [default: false]' -r
complete -c ostler -s b -l bind -d 'Address to listen on: HOST:PORT, :PORT, [V6]:PORT, unix:PATH, unix:@NAME or fd://N. May be repeated. A host\'s name stands for all of its addresses. A job listens on none, and the exec class accepts none. [default: 127.0.0.1:8000]' -r
complete -c ostler -l backlog -d 'Maximum connections in the kernel\'s accept queue of each address [default: 2048]' -r
complete -c ostler -l reuse-port -d 'Bind one socket per worker at every TCP address (SO_REUSEPORT): the kernel distributes clients, and workers do not contend for one queue. The master holds all sockets, so no queue is lost when a worker exits. Clients in the queue of a busy worker wait for that worker. [default: false]' -r
complete -c ostler -l socket-mode -d 'Octal mode of a unix socket\'s path, regardless of the umask. A path that is already bound keeps its mode and owner over a reload. [default: 660]' -r
complete -c ostler -l socket-user -d 'Owner of a unix socket\'s path, by name or number. None means the master\'s own user. [default: none]' -r
complete -c ostler -l socket-group -d 'Group of a unix socket\'s path, by name or number. None means the master\'s own group. [default: none]' -r
complete -c ostler -s t -l timeout -d 'Maximum time without a heartbeat, and maximum time for one unit of work, before a worker counts as hung and is replaced; 0 means no limit [default: 30s]' -r
complete -c ostler -l boot-timeout -d 'Maximum time from the start of a worker until it is ready [default: 30s]' -r
complete -c ostler -l graceful-timeout -d 'Maximum time for a draining worker to finish its work; 0 means no wait [default: 30s]' -r
complete -c ostler -l pre-stop -d 'Time from SIGTERM to the drain, in which the server still accepts clients while /readyz fails, so that load balancers stop sending clients first; a second SIGTERM, or SIGINT, ends it [default: 0s]' -r
complete -c ostler -l abort-timeout -d 'Time between the SIGABRT and the SIGKILL that are sent to a hung worker [default: 1s]' -r
complete -c ostler -l keep-alive -l keepalive -d 'Maximum idle time between two requests of a connection; 0 closes the connection after each response [default: 5s] [key: keepalive]' -r
complete -c ostler -l rpc-idle-timeout -d 'Maximum idle time between two calls of an RPC connection; 0 means no limit. With the class sync, keepalive applies instead. [default: 3600s]' -r
complete -c ostler -l header-timeout -d 'Maximum time until the head of a request is complete [default: 10s]' -r
complete -c ostler -l body-timeout -d 'Maximum time for each 4 KiB of a request body, and for its end [default: 10s]' -r
complete -c ostler -l request-timeout -d 'Maximum time from a request to its response (tokio class); the client then gets 504. 0 means no limit. [default: 0s]' -r
complete -c ostler -l write-timeout -d 'Maximum time for a client to read 4 KiB of a response, or its end [default: 30s]' -r
complete -c ostler -l lingering-timeout -d 'Maximum time for which input is read and discarded before a connection is closed [default: 30s]' -r
complete -c ostler -l limit-request-head -d 'Maximum size of a request head, 1K to 1M [default: 16K]' -r
complete -c ostler -l limit-request-fields -d 'Maximum number of header fields in a request, 1 to 100 [default: 100]' -r
complete -c ostler -l limit-request-body -d 'Maximum size of a request body, and of an RPC message [default: 8M]' -r
complete -c ostler -l limit-bodies -d 'Maximum size of all request bodies together that a worker has in memory while they arrive, but at least one of limit_request_body. A request beyond it gets 503. 0 means no limit. [default: 512M]' -r
complete -c ostler -l lingering-bytes -d 'Maximum size of the input that is read and discarded before a connection is closed [default: 1G]' -r
complete -c ostler -s p -l pid -l pidfile -d 'File for the process ID of the master. Its directory must exist. [default: none] [key: pidfile]' -r
complete -c ostler -s D -l daemon -d 'Run in the background, detached from the terminal. The command exits once the workers are ready or have failed. [default: false]' -r
complete -c ostler -l single-instance -d 'Refuse to start if another master with this proc_name is running [default: false]' -r
complete -c ostler -l reload -d 'For development: reload when a settings file, or one of reload_extra_files, has changed, and upgrade when the program has. Not with daemon (Linux). [default: false]' -r
complete -c ostler -l reload-extra-file -l reload-extra-files -d 'With reload: also reload when this file changes, or a file in this directory. May be repeated. [default: none] [key: reload_extra_files]' -r
complete -c ostler -l fd-store -d 'Store the listening sockets in systemd, so that a master restarted after SIGKILL keeps them. Requires FileDescriptorStoreMax in the unit. [default: false]' -r
complete -c ostler -s u -l user -d 'User that workers run as, by name or number; the master keeps its own [default: none]' -r
complete -c ostler -s g -l group -d 'Group that workers run as, by name or number; the master keeps its own [default: none]' -r
complete -c ostler -s m -l umask -d 'File mode creation mask of workers in octal, such as 022 [default: none]' -r
complete -c ostler -l no-new-privs -d 'Prevent workers and their child processes from gaining privileges, for example by a set-user-ID program (Linux) [default: false]' -r
complete -c ostler -l rlimit-nofile -d 'Maximum open file descriptors per worker (RLIMIT_NOFILE), 64 to 1073741824. None means the master\'s own limit. [default: none]' -r
complete -c ostler -l rlimit-core -d 'Maximum size of a worker\'s core dump (RLIMIT_CORE); 0 disables core dumps, unlimited removes the limit. None means the master\'s own limit. [default: none]' -r
complete -c ostler -l nice -d 'Nice value of workers, -20 to 19; a value below the master\'s own requires root. None means the master\'s own. [default: none]' -r
complete -c ostler -l cpu-affinity -d 'CPUs that workers run on, by number: the worker of slot k runs on CPU k of the list, cyclically. auto means all CPUs usable by the master; none means no pinning (Linux). [default: none]' -r
complete -c ostler -l oom-score-adj -d 'OOM score adjustment of workers, -1000 to 1000; a value below the master\'s own requires root (Linux). None means the master\'s own. [default: none]' -r
complete -c ostler -l chdir -d 'Working directory of workers. It must exist. [default: none]' -r
complete -c ostler -s e -l env -d 'Environment variable of workers. May be repeated. [default: none]' -r
complete -c ostler -s n -l name -l proc-name -d 'Name shown in process titles [default: ostler] [key: proc_name]' -r
complete -c ostler -l worker-tmp-dir -d 'Directory for heartbeat files and the notification sockets of programs, preferably in memory. None means /dev/shm if usable, otherwise the system\'s temporary directory. If neither is usable, heartbeats need no directory; programs do. [default: none]' -r
complete -c ostler -l control-socket -d 'Unix socket of the control interface (HTTP and JSON), for root, the master\'s own user and control_users. Its directory must exist. [default: none]' -r
complete -c ostler -l control-user -l control-users -d 'User, by name or number, that may use control_socket besides root and the master\'s own. The socket\'s mode is then 0666, and the master checks the user of each client. May be repeated. [default: none] [key: control_users]' -r
complete -c ostler -l metrics-bind -d 'Address for metrics, probes and a status page, which change nothing: HOST:PORT, :PORT, [V6]:PORT or unix:PATH [default: none]' -r
complete -c ostler -l metrics-host -l metrics-hosts -d 'Host name by which browsers may open the status page, besides IP addresses, localhost and the machine\'s name. May be repeated. [default: none] [key: metrics_hosts]' -r
complete -c ostler -l statsd-host -d 'HOST:PORT of a statsd server, to which totals and gauges are sent by UDP every 10 s [default: none]' -r
complete -c ostler -l leader-etcd -d 'URL of an etcd member, such as https://10.0.0.1:2379. May be repeated. With it, the pools run only in the one master that holds leader_key. Requires a build with the feature leader. [default: none]' -r
complete -c ostler -l leader-key -d 'Key in the store that the leading master holds. Masters with the same key are one group. [default: none]' -r
complete -c ostler -l leader-kubernetes-lease -d 'Name of a Lease of Kubernetes, in place of leader_etcd and leader_key: the pools run only in the one master that holds it. Requires a build with the feature leader. [default: none]' -r
complete -c ostler -l leader-kubernetes-namespace -d 'Namespace of the Lease. By default that of the pod\'s service account. [default: none]' -r
complete -c ostler -l leader-kubernetes-api -d 'URL of the API server of Kubernetes. By default that of the cluster in which the pod is. [default: none]' -r
complete -c ostler -l leader-kubernetes-token-file -d 'File with the token by which the master logs in to the API server. By default that of the pod\'s service account; with leader_kubernetes_api none. [default: none]' -r
complete -c ostler -l leader-ttl -d 'Time after which another master can lead if this one no longer renews its lease; at least 2 s [default: 10s]' -r
complete -c ostler -l leader-ca-file -d 'PEM file with the authorities that certify the store. https:// requires it, except in a pod. [default: none]' -r
complete -c ostler -l leader-client-cert -d 'PEM file with the certificate by which the master proves its identity to the store [default: none]' -r
complete -c ostler -l leader-client-key -d 'PEM file with the key of leader_client_cert [default: none]' -r
complete -c ostler -l leader-user -d 'Name by which the master logs in to etcd [default: none]' -r
complete -c ostler -l leader-password-file -d 'File with the password of leader_user [default: none]' -r
complete -c ostler -l led -d 'With leader_etcd or leader_kubernetes_lease: run this pool only while the master leads [default: true]' -r
complete -c ostler -l log-file -l error-logfile -d 'Log file; - means standard error. The file is owned by the workers\' user, which needs access to its directory to reopen it. [default: -]' -r
complete -c ostler -l log-level -d 'Minimum severity to log: trace, debug, info, warning, error or critical [default: info]' -r
complete -c ostler -l log-format -d 'Format of log records: full, compact or json [default: full]' -r
complete -c ostler -l flight-recorder-file -d 'File that keeps the last 4,096 log records of the master, from INFO on, after any kind of exit. At most 1 MiB; sort puts the records in order. [default: none]' -r
complete -c ostler -l access-logfile -l access-log -d 'Access log file, with a record for each unit of work; - means standard output. None means no access log. The file is owned by the workers\' user, which needs access to its directory to reopen it. [default: none] [key: access_log]' -r
complete -c ostler -l access-logformat -l access-log-format -d 'Format of access log records: combined, json, or a template with atoms such as %(h)s [default: combined] [key: access_log_format]' -r
complete -c ostler -l access-log-sample -d 'Share of units of work that the access log contains, 0 to 1, such as 0.01. Server errors (status 500 and above, failed calls and runs) are always logged. [default: 1]' -r
complete -c ostler -l access-log-buffer -d 'Whether a worker of class mio collects access log records while it serves several clients at once, up to 4 KiB, and writes them together before it waits. A worker that is killed meanwhile loses them. [default: false]' -r
complete -c ostler -l request-id-header -d 'Header field from which a request\'s id is taken, such as X-Request-Id, if its value is valid. None means that every id is made by the worker. Set it only if a proxy sets or removes the field. [default: none]' -r
complete -c ostler -s c -l config -d 'YAML configuration file. May be repeated: a later file wins, key by key [env: OSTLER_CONFIG]' -r
complete -c ostler -l pool -d 'Run only this pool of the configuration file. May be repeated' -r
complete -c ostler -l check-config -d 'Check the configuration and exit'
complete -c ostler -l print-config -d 'Print every setting with its source and exit'
complete -c ostler -l diff-default -d 'With --print-config: print only the settings that differ from their defaults'
complete -c ostler -l print-schema -d 'Print the JSON Schema of the configuration file and exit'
complete -c ostler -l list-classes -d 'List the worker classes and exit'
complete -c ostler -s h -l help -d 'Print help and exit'
complete -c ostler -s V -l version -d 'Print version and exit'
