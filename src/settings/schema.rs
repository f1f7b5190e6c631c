//! The one table of options: YAML keys, flags, variables, defaults, checks and documentation all come
//! from it. This file must never know how a file, an environment or a command line is read.
//!
//! To add an option, add its row. Then the compiler and the tests name what else must follow
//! (`config/default.yaml`, docs/src/settings.md, a sample in tests.rs).
//!
//! The path of a value from the file to the loop of a worker, each step with what it adds:
//! 1. `yaml::Node`: the text and its line;
//! 2. [`ConfigLayer`](super::ConfigLayer): the checked value and its source, for one source;
//!    [`ConfigFile`](super::ConfigFile) has a layer for the top level and one for each pool;
//! 3. [`Configuration`](super::Configuration): all layers merged, for the master and each pool;
//! 4. `arbiter::PoolSpec`, in a `ResolvedConfig`: app, class and user found by name, all checked;
//! 5. `arbiter::PoolGeneration`: sockets and log opened; all workers of the generation share it;
//! 6. [`WorkerContext`](crate::worker::WorkerContext), in the worker: `ctx.settings()`.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::arity::{
    Arity, CpuAffinityList, Flag, ListOf, OptionType, OptionalOf, PairList, Single, ValueError,
    arity_of,
};
use super::provenance::Provenance;
use super::types::{CoreSize, CpuAffinity, LogLevel, StopSignal, Workers};
use super::value::{
    AccessFormatValue, AddressValue, CoreSizeValue, DurationValue, EnumValue, FieldNameValue,
    IntegerValue, LogTargetValue, NameValue, OctalValue, PathCheck, PathValue, SampleValue,
    SignedIntegerValue, SizeValue, WordValue, WorkerCountValue,
};
use crate::address::Address;
use crate::app::Options;
use crate::log::{AccessFormat, Format as LogFormat, SampleShare, Target as LogTarget};

/// One option, from whatever source.
// Fields: the columns of the table, each read by its own name.
pub(crate) struct OptionDef {
    /// The YAML key and the name of the field. The variable is `OSTLER_` and the name in capitals.
    pub(crate) name: &'static str,
    /// Its heading in the help.
    pub(crate) group: &'static str,
    /// The one-letter flag.
    pub(crate) short: Option<char>,
    /// The long flag, if it is not the name with dashes.
    flag: Option<&'static str>,
    /// Other long flags with the same meaning.
    pub(crate) aliases: &'static [&'static str],
    /// The placeholder for the value in the help.
    pub(crate) value_name: &'static str,
    /// The number of texts that it takes.
    pub(crate) arity: Arity,
    /// Whether each pool has its own value.
    pub(super) scope: Scope,
    /// The documentation as written in the table.
    doc: &'static str,
    /// Whether a reload must leave it alone, given the new settings.
    is_fixed: fn(&Settings) -> bool,
    // One function for each access to the field, whose type only the row knows.
    set: fn(&mut Settings, &[String]) -> Result<(), ValueError>,
    format: fn(&Settings) -> Vec<String>,
    copy: fn(&Settings, &mut Settings),
    is_equal: fn(&Settings, &Settings) -> bool,
    make_absolute: fn(&mut Settings, &Path),
    check_path: fn(&Settings) -> Result<(), (PathBuf, String)>,
    json_schema: fn() -> serde_json::Value,
}

/// Whether an option belongs to a pool or to the master.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scope {
    /// Each pool has its own value.
    Pool,
    /// The master has the only value.
    Master,
}

impl OptionDef {
    /// Returns the long flag, without dashes.
    pub(crate) fn flag(&self) -> String {
        self.flag.map_or_else(|| self.name.replace('_', "-"), str::to_owned)
    }

    /// Returns the name of the environment variable.
    pub(crate) fn variable(&self) -> String {
        format!("OSTLER_{}", self.name.to_ascii_uppercase())
    }

    /// Returns the documentation on one line, without the marks that only rustdoc needs.
    pub(crate) fn doc(&self) -> String {
        self.doc.replace('`', "").split_whitespace().collect::<Vec<_>>().join(" ")
    }

    /// Parses the texts and sets the field. On error, the field keeps its value.
    pub(super) fn set(&self, settings: &mut Settings, texts: &[String]) -> Result<(), ValueError> {
        (self.set)(settings, texts)
    }

    /// Returns the texts that are parsed into the field's value.
    pub(crate) fn format(&self, settings: &Settings) -> Vec<String> {
        (self.format)(settings)
    }

    /// Copies the field.
    pub(super) fn copy(&self, from: &Settings, to: &mut Settings) {
        (self.copy)(from, to);
    }

    /// Returns whether the field has the same value in both.
    pub(super) fn is_equal(&self, a: &Settings, b: &Settings) -> bool {
        (self.is_equal)(a, b)
    }

    /// Returns the JSON Schema of the values in a file.
    pub(super) fn json_schema(&self) -> serde_json::Value {
        (self.json_schema)()
    }

    /// Checks the paths in the field against the file system.
    pub(super) fn check_path(&self, settings: &Settings) -> Result<(), (PathBuf, String)> {
        (self.check_path)(settings)
    }
}

impl Settings {
    /// Makes all paths absolute, for a process whose working directory is not `base_dir`.
    pub(crate) fn make_paths_absolute(&mut self, base_dir: &Path) {
        OPTIONS.iter().for_each(|option| (option.make_absolute)(self, base_dir));
    }

    /// Returns the first option that differs in `new` and that a reload cannot change.
    pub(crate) fn find_unreloadable(&self, new: &Settings) -> Option<&'static str> {
        let is_changed =
            |option: &&OptionDef| (option.is_fixed)(new) && !option.is_equal(self, new);
        OPTIONS.iter().find(is_changed).map(|option| option.name)
    }
}

macro_rules! optional_literal {
    () => {
        None
    };
    ($value:literal) => {
        Some($value)
    };
}

macro_rules! scope {
    () => {
        Scope::Pool
    };
    (master) => {
        Scope::Master
    };
}

macro_rules! is_fixed {
    () => {
        |_| false
    };
    (always) => {
        |_| true
    };
    ($condition:ident) => {
        |new| new.$condition
    };
}

/// Defines [`Settings`] and [`OPTIONS`]. A row has the documentation; field, type and default; the
/// parser; the placeholder in the help. Optional parts follow:
/// * `short`, `flag`, `alias`: the flags, if they differ from the usual;
/// * `scope master`: there is one value, not one for each pool;
/// * `fixed always`: a reload cannot change it; `fixed OPTION`: not while that boolean is true.
///
/// The parser also knows which values are paths, and what must exist there.
macro_rules! define_settings {
    ($($group:literal {
        $(
            $(#[doc = $doc:literal])+
            $name:ident: $type:ty = $default:expr, $option_type:expr, $value_name:literal
            $(, short $short:literal)? $(, flag $flag:literal)? $(, alias $alias:literal)*
            $(, scope $scope:ident)? $(, fixed $condition:ident)?;
        )+
    })+) => {
        /// The settings of the master and of one pool, from YAML, environment and flags. Every loader
        /// checks all values. Two settings are equal if their values are, whatever their sources.
        #[derive(Clone, Debug)]
        pub struct Settings {
            /// The name of the app.
            pub app: String,
            /// The app's own options.
            pub app_options: Options,
            $($(
                $(#[doc = $doc])+
                pub $name: $type,
            )+)+
            /// The source of each value.
            pub provenance: Provenance,
        }

        impl Default for Settings {
            fn default() -> Self {
                Self {
                    app: "demo".into(),
                    app_options: Options::new(),
                    $($($name: $default,)+)+
                    provenance: Provenance::default(),
                }
            }
        }

        /// Every option, in the order of the table.
        pub(crate) static OPTIONS: &[OptionDef] = &[$($(
            OptionDef {
                name: stringify!($name),
                group: $group,
                short: optional_literal!($($short)?),
                flag: optional_literal!($($flag)?),
                aliases: &[$($alias),*],
                value_name: $value_name,
                arity: arity_of(&$option_type),
                scope: scope!($($scope)?),
                doc: concat!($($doc, "\n"),+),
                is_fixed: is_fixed!($($condition)?),
                set: |settings, texts| {
                    settings.$name = $option_type.parse(texts)?;
                    Ok(())
                },
                format: |settings| $option_type.format(&settings.$name),
                copy: |from, to| to.$name.clone_from(&from.$name),
                is_equal: |a, b| a.$name == b.$name,
                make_absolute: |settings, base_dir| {
                    $option_type.make_absolute(&mut settings.$name, base_dir);
                },
                check_path: |settings| $option_type.check_path(&settings.$name),
                json_schema: || $option_type.json_schema(),
            },
        )+)+];
    };
}

impl PartialEq for Settings {
    fn eq(&self, other: &Self) -> bool {
        self.app == other.app
            && self.app_options == other.app_options
            && OPTIONS.iter().all(|option| option.is_equal(self, other))
    }
}

const fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

/// A duration that may be zero.
const DURATION: Single<DurationValue> = Single(DurationValue { min: Duration::ZERO });

/// A duration of at least 1 ms: with zero, nothing could ever succeed.
const NONZERO_DURATION: Single<DurationValue> =
    Single(DurationValue { min: Duration::from_millis(1) });

/// A path that need not exist.
const FILE: PathValue = PathValue(PathCheck::Nothing);

/// A file whose directory must exist.
const FILE_IN_DIR: PathValue = PathValue(PathCheck::ParentDir);

/// A directory that must exist.
const DIR: PathValue = PathValue(PathCheck::Dir);

const LOG_LEVELS: Single<EnumValue<LogLevel>> = Single(EnumValue {
    noun: "a log level",
    names: &[
        (LogLevel::Trace, &["trace"]),
        (LogLevel::Debug, &["debug"]),
        (LogLevel::Info, &["info"]),
        (LogLevel::Warning, &["warning", "warn"]),
        (LogLevel::Error, &["error"]),
        (LogLevel::Critical, &["critical"]),
    ],
});

const LOG_FORMATS: Single<EnumValue<LogFormat>> = Single(EnumValue {
    noun: "a log format",
    names: &[
        (LogFormat::Full, &["full"]),
        (LogFormat::Compact, &["compact"]),
        (LogFormat::Json, &["json"]),
    ],
});

const STOP_SIGNALS: Single<EnumValue<StopSignal>> = Single(EnumValue {
    noun: "a stop signal",
    names: &[
        (StopSignal::Term, &["TERM", "SIGTERM"]),
        (StopSignal::Int, &["INT", "SIGINT"]),
        (StopSignal::Quit, &["QUIT", "SIGQUIT"]),
        (StopSignal::Hup, &["HUP", "SIGHUP"]),
        (StopSignal::Usr1, &["USR1", "SIGUSR1"]),
        (StopSignal::Usr2, &["USR2", "SIGUSR2"]),
        (StopSignal::Winch, &["WINCH", "SIGWINCH"]),
    ],
});

/// Exceeds any use, and is exact in every counter.
const REQUESTS_LIMIT: u64 = 1_000_000_000_000;

define_settings! {
    "Workers" {
        /// Worker class: how connections are served. See --list-classes.
        worker_class: String = "sync".into(), Single(NameValue), "NAME", short 'k';

        /// Number of worker processes, 1 to 4096; auto means one per usable CPU. A range MIN-MAX
        /// scales with the load.
        workers: Workers = Workers::Fixed(1), Single(WorkerCountValue), "N|auto|MIN-MAX", short 'w';

        /// With a range of workers: start more when they are busy for this percentage of the time,
        /// 1 to 100. Two thirds of it is the most that a scale-down may lead to.
        scale_up_busy: u64 = 75,
            Single(IntegerValue { noun: "a percentage", min: 1, max: 100 }), "PERCENT";

        /// With a range of workers: stop one when one fewer has sufficed for this time. It doubles,
        /// up to 16 times, while scale-downs turn out to be too early.
        scale_down_after: Duration = secs(30), NONZERO_DURATION, "DUR";

        /// Threads per worker of the threads class, 1 to 1024.
        threads: usize = 4,
            Single(IntegerValue { noun: "a number of threads", min: 1, max: 1024 }), "N";

        /// Maximum open connections per worker (all classes but sync and exec).
        worker_connections: usize = 10_000,
            Single(IntegerValue { noun: "a number of connections", min: 1, max: 1_000_000 }), "N";

        /// Replace a worker after this many units of work; 0 means never.
        max_requests: u64 = 0,
            Single(IntegerValue { noun: "a number of requests", min: 0, max: REQUESTS_LIMIT }), "N";

        /// Add a random number up to this to max_requests, so that workers are not all replaced at
        /// once.
        max_requests_jitter: u64 = 0,
            Single(IntegerValue { noun: "a number of requests", min: 0, max: REQUESTS_LIMIT }), "N";

        /// Replace a worker after this uptime; 0 means never.
        max_lifetime: Duration = Duration::ZERO, DURATION, "DUR";

        /// Add a random time up to this to max_lifetime, so that workers are not all replaced at
        /// once.
        max_lifetime_jitter: Duration = Duration::ZERO, DURATION, "DUR";

        /// Replace a worker that exceeds this memory at three samples in a row, 1 s apart. Measured
        /// as PSS where the kernel provides it. 0 means never (Linux).
        max_memory: u64 = 0, Single(SizeValue { min: 0, max: 1 << 50 }), "SIZE";

        /// Maximum workers above the configured number during a reload or a replacement, not
        /// counting draining ones. If 0, max_unavailable must not be 0. The canary of a reload, and
        /// the replacement of its last old worker, are extra even then.
        max_surge: usize = 1,
            Single(IntegerValue { noun: "a number of workers", min: 0, max: 4096 }), "N";

        /// Maximum workers missing during a reload or a replacement: this many old workers drain
        /// before their replacements are ready, but none before the canary of a reload is ready. 0
        /// means that no worker drains before its replacement is ready.
        max_unavailable: usize = 0,
            Single(IntegerValue { noun: "a number of workers", min: 0, max: 4096 }), "N";

        /// Failed boots in a row before a slot gives up, if no worker of the pool has been ready.
        boot_retries: u32 = 5,
            Single(IntegerValue { noun: "a number of retries", min: 0, max: 1000 }), "N";

        /// Crashed workers of a pool that are restarted at once within restart_interval, or one per
        /// worker if that is more; 0 means no limit. Beyond it, a restart waits until this rate
        /// allows it, at most 30 s. A worker that crashes before it has served backs off instead.
        restart_limit: u32 = 100,
            Single(IntegerValue { noun: "a number of restarts", min: 0, max: 1_000_000 }), "N";

        /// Time within which restart_limit applies.
        restart_interval: Duration = secs(60), NONZERO_DURATION, "DUR";
    }
    "Program" {
        /// Program that each worker of the exec class runs, and its arguments, one word each. Same
        /// as the words after `--`.
        command: Vec<String> = Vec::new(), ListOf { item: WordValue, accepts_none: false }, "WORD";

        /// Signal that asks the program to finish and exit: TERM, INT, QUIT, HUP, USR1, USR2 or
        /// WINCH.
        stop_signal: StopSignal = StopSignal::Term, STOP_SIGNALS, "SIGNAL";

        /// Uptime after which the program counts as ready, unless it has sent READY=1 before. If
        /// greater than boot_timeout, the program must send READY=1.
        ready_after: Duration = secs(1), DURATION, "DUR";

        /// Let the program write to the master's own standard output and standard error, unchanged,
        /// instead of to the log. For programs whose logs are read by another program, such as JSON.
        inherit_output: bool = false, Flag, "BOOL";
    }
    "Sockets" {
        /// Address to listen on: HOST:PORT, :PORT, `[V6]:PORT`, unix:PATH, unix:@NAME or fd://N.
        /// May be repeated. A host's name stands for all of its addresses. A job listens on none, and
        /// the exec class accepts none.
        bind: Vec<Address> = vec![Address::Tcp { host: "127.0.0.1".into(), port: 8000 }],
            ListOf { item: AddressValue, accepts_none: true }, "ADDR", short 'b';

        /// Maximum connections in the kernel's accept queue of each address.
        backlog: u32 = 2048,
            Single(IntegerValue { noun: "a backlog", min: 1, max: 1_000_000 }), "N";

        /// Bind one socket per worker at every TCP address (SO_REUSEPORT): the kernel distributes
        /// clients, and workers do not contend for one queue. The master holds all sockets, so no
        /// queue is lost when a worker exits. Clients in the queue of a busy worker wait for that
        /// worker.
        reuse_port: bool = false, Flag, "BOOL";

        /// Octal mode of a unix socket's path, regardless of the umask. A path that is already
        /// bound keeps its mode and owner over a reload.
        socket_mode: u32 = 0o660, Single(OctalValue { noun: "a mode", example: "660" }), "MODE";

        /// Owner of a unix socket's path, by name or number. None means the master's own user.
        socket_user: Option<String> = None, OptionalOf(NameValue), "USER";

        /// Group of a unix socket's path, by name or number. None means the master's own group.
        socket_group: Option<String> = None, OptionalOf(NameValue), "GROUP";
    }
    "Timeouts" {
        /// Maximum time without a heartbeat, and maximum time for one unit of work, before a worker
        /// counts as hung and is replaced; 0 means no limit.
        timeout: Duration = secs(30), DURATION, "DUR", short 't';

        /// Maximum time from the start of a worker until it is ready.
        boot_timeout: Duration = secs(30), NONZERO_DURATION, "DUR";

        /// Maximum time for a draining worker to finish its work; 0 means no wait.
        graceful_timeout: Duration = secs(30), DURATION, "DUR";

        /// Time from SIGTERM to the drain, in which the server still accepts clients while /readyz fails,
        /// so that load balancers stop sending clients first; a second SIGTERM, or SIGINT, ends it.
        pre_stop: Duration = Duration::ZERO, DURATION, "DUR", scope master;

        /// Time between the SIGABRT and the SIGKILL that are sent to a hung worker.
        abort_timeout: Duration = secs(1), DURATION, "DUR";

        /// Maximum idle time between two requests of a connection; 0 closes the connection after
        /// each response.
        keepalive: Duration = secs(5), DURATION, "DUR", flag "keep-alive", alias "keepalive";

        /// Maximum idle time between two calls of an RPC connection; 0 means no limit. With the class
        /// sync, keepalive applies instead.
        rpc_idle_timeout: Duration = secs(3600), DURATION, "DUR";

        /// Maximum time until the head of a request is complete.
        header_timeout: Duration = secs(10), NONZERO_DURATION, "DUR";

        /// Maximum time for each 4 KiB of a request body, and for its end.
        body_timeout: Duration = secs(10), NONZERO_DURATION, "DUR";

        /// Maximum time from a request to its response (tokio class); the client then gets 504. 0
        /// means no limit.
        request_timeout: Duration = Duration::ZERO, DURATION, "DUR";

        /// Maximum time for a client to read 4 KiB of a response, or its end.
        write_timeout: Duration = secs(30), NONZERO_DURATION, "DUR";

        /// Maximum time for which input is read and discarded before a connection is closed.
        lingering_timeout: Duration = secs(30), NONZERO_DURATION, "DUR";
    }
    "Limits" {
        /// Maximum size of a request head, 1K to 1M.
        limit_request_head: u64 = 16 << 10,
            Single(SizeValue { min: 1 << 10, max: 1 << 20 }), "SIZE";

        /// Maximum number of header fields in a request, 1 to 100.
        limit_request_fields: usize = 100,
            Single(IntegerValue { noun: "a number of fields", min: 1, max: 100 }), "N";

        /// Maximum size of a request body, and of an RPC message.
        limit_request_body: u64 = 8 << 20,
            Single(SizeValue { min: 0, max: 1 << 40 }), "SIZE";

        /// Maximum size of all request bodies together that a worker has in memory while they arrive,
        /// but at least one of limit_request_body. A request beyond it gets 503. 0 means no limit.
        limit_bodies: u64 = 512 << 20, Single(SizeValue { min: 0, max: 1 << 50 }), "SIZE";

        /// Maximum size of the input that is read and discarded before a connection is closed.
        lingering_bytes: u64 = 1 << 30, Single(SizeValue { min: 0, max: 1 << 40 }), "SIZE";
    }
    "Process" {
        /// File for the process ID of the master. Its directory must exist.
        pidfile: Option<PathBuf> = None, OptionalOf(FILE_IN_DIR), "FILE",
            short 'p', flag "pid", alias "pidfile", scope master, fixed always;

        /// Run in the background, detached from the terminal. The command exits once the workers
        /// are ready or have failed.
        daemon: bool = false, Flag, "BOOL", short 'D', scope master, fixed always;

        /// Refuse to start if another master with this proc_name is running.
        single_instance: bool = false, Flag, "BOOL", scope master, fixed always;

        /// For development: reload when a settings file, or one of reload_extra_files, has changed, and
        /// upgrade when the program has. Not with daemon (Linux).
        reload: bool = false, Flag, "BOOL", scope master, fixed always;

        /// With reload: also reload when this file changes, or a file in this directory. May be repeated.
        reload_extra_files: Vec<PathBuf> = Vec::new(), ListOf { item: FILE, accepts_none: true }, "FILE",
            flag "reload-extra-file", alias "reload-extra-files", scope master;

        /// Store the listening sockets in systemd, so that a master restarted after SIGKILL keeps
        /// them. Requires FileDescriptorStoreMax in the unit.
        fd_store: bool = false, Flag, "BOOL", scope master;

        /// User that workers run as, by name or number; the master keeps its own.
        user: Option<String> = None, OptionalOf(NameValue), "USER", short 'u';

        /// Group that workers run as, by name or number; the master keeps its own.
        group: Option<String> = None, OptionalOf(NameValue), "GROUP", short 'g';

        /// File mode creation mask of workers in octal, such as 022.
        umask: Option<u32> = None, OptionalOf(OctalValue { noun: "a mask", example: "022" }), "MASK",
            short 'm';

        /// Prevent workers and their child processes from gaining privileges, for example by a
        /// set-user-ID program (Linux).
        no_new_privs: bool = false, Flag, "BOOL";

        /// Maximum open file descriptors per worker (RLIMIT_NOFILE), 64 to 1073741824. None means
        /// the master's own limit.
        rlimit_nofile: Option<u64> = None,
            OptionalOf(IntegerValue { noun: "a number of descriptors", min: 64, max: 1 << 30 }), "N";

        /// Maximum size of a worker's core dump (RLIMIT_CORE); 0 disables core dumps, unlimited
        /// removes the limit. None means the master's own limit.
        rlimit_core: Option<CoreSize> = None, OptionalOf(CoreSizeValue), "SIZE";

        /// Nice value of workers, -20 to 19; a value below the master's own requires root. None
        /// means the master's own.
        nice: Option<i32> = None,
            OptionalOf(SignedIntegerValue { noun: "a nice value", min: -20, max: 19 }), "N";

        /// CPUs that workers run on, by number: the worker of slot k runs on CPU k of the list,
        /// cyclically. auto means all CPUs usable by the master; none means no pinning (Linux).
        cpu_affinity: Option<CpuAffinity> = None, CpuAffinityList, "none|auto|CPU,...";

        /// OOM score adjustment of workers, -1000 to 1000; a value below the master's own requires
        /// root (Linux). None means the master's own.
        oom_score_adj: Option<i32> = None,
            OptionalOf(SignedIntegerValue { noun: "a score", min: -1000, max: 1000 }), "N";

        /// Working directory of workers. It must exist.
        chdir: Option<PathBuf> = None, OptionalOf(DIR), "DIR";

        /// Environment variable of workers. May be repeated.
        env: Vec<(String, String)> = Vec::new(), PairList, "K=V", short 'e';

        /// Name shown in process titles.
        proc_name: String = "ostler".into(), Single(NameValue), "NAME",
            short 'n', flag "name", alias "proc-name", scope master, fixed single_instance;

        /// Directory for heartbeat files and the notification sockets of programs, preferably in
        /// memory. None means /dev/shm if usable, otherwise the system's temporary directory. If neither
        /// is usable, heartbeats need no directory; programs do.
        worker_tmp_dir: Option<PathBuf> = None, OptionalOf(DIR), "DIR";
    }
    "Control" {
        /// Unix socket of the control interface (HTTP and JSON), for root, the master's own user and
        /// control_users. Its directory must exist.
        control_socket: Option<PathBuf> = None, OptionalOf(FILE_IN_DIR), "FILE",
            scope master, fixed always;

        /// User, by name or number, that may use control_socket besides root and the master's own.
        /// The socket's mode is then 0666, and the master checks the user of each client. May be
        /// repeated.
        control_users: Vec<String> = Vec::new(), ListOf { item: NameValue, accepts_none: true }, "USER",
            flag "control-user", alias "control-users", scope master, fixed always;

        /// Address for metrics, probes and a status page, which change nothing: HOST:PORT, :PORT,
        /// `[V6]:PORT` or unix:PATH.
        metrics_bind: Option<Address> = None, OptionalOf(AddressValue), "ADDR",
            scope master, fixed always;

        /// Host name by which browsers may open the status page, besides IP addresses, localhost
        /// and the machine's name. May be repeated.
        metrics_hosts: Vec<String> = Vec::new(), ListOf { item: NameValue, accepts_none: true }, "NAME",
            flag "metrics-host", alias "metrics-hosts", scope master, fixed always;

        /// HOST:PORT of a statsd server, to which totals and gauges are sent by UDP every 10 s.
        statsd_host: Option<Address> = None, OptionalOf(AddressValue), "ADDR",
            scope master, fixed always;
    }
    "Leader" {
        /// URL of an etcd member, such as https://10.0.0.1:2379. May be repeated. With it, the pools run
        /// only in the one master that holds leader_key. Requires a build with the feature leader.
        leader_etcd: Vec<String> = Vec::new(), ListOf { item: WordValue, accepts_none: true }, "URL",
            scope master, fixed always;

        /// Key in the store that the leading master holds. Masters with the same key are one group.
        leader_key: Option<String> = None, OptionalOf(NameValue), "NAME", scope master, fixed always;

        /// Name of a Lease of Kubernetes, in place of leader_etcd and leader_key: the pools run only in the
        /// one master that holds it. Requires a build with the feature leader.
        leader_kubernetes_lease: Option<String> = None, OptionalOf(NameValue), "NAME",
            scope master, fixed always;

        /// Namespace of the Lease. By default that of the pod's service account.
        leader_kubernetes_namespace: Option<String> = None, OptionalOf(NameValue), "NAME",
            scope master, fixed always;

        /// URL of the API server of Kubernetes. By default that of the cluster in which the pod is.
        leader_kubernetes_api: Option<String> = None, OptionalOf(WordValue), "URL",
            scope master, fixed always;

        /// File with the token by which the master logs in to the API server. By default that of the pod's
        /// service account; with leader_kubernetes_api none.
        leader_kubernetes_token_file: Option<PathBuf> = None, OptionalOf(FILE), "FILE",
            scope master, fixed always;

        /// Time after which another master can lead if this one no longer renews its lease; at least 2 s.
        leader_ttl: Duration = secs(10), Single(DurationValue { min: secs(2) }), "DUR",
            scope master, fixed always;

        /// PEM file with the authorities that certify the store. https:// requires it, except in a pod.
        leader_ca_file: Option<PathBuf> = None, OptionalOf(FILE), "FILE", scope master, fixed always;

        /// PEM file with the certificate by which the master proves its identity to the store.
        leader_client_cert: Option<PathBuf> = None, OptionalOf(FILE), "FILE",
            scope master, fixed always;

        /// PEM file with the key of leader_client_cert.
        leader_client_key: Option<PathBuf> = None, OptionalOf(FILE), "FILE",
            scope master, fixed always;

        /// Name by which the master logs in to etcd.
        leader_user: Option<String> = None, OptionalOf(NameValue), "NAME", scope master, fixed always;

        /// File with the password of leader_user.
        leader_password_file: Option<PathBuf> = None, OptionalOf(FILE), "FILE",
            scope master, fixed always;

        /// With leader_etcd or leader_kubernetes_lease: run this pool only while the master leads.
        led: bool = true, Flag, "BOOL";
    }
    "Logging" {
        /// Log file; - means standard error. The file is owned by the workers' user, which needs
        /// access to its directory to reopen it.
        log_file: LogTarget = LogTarget::Stderr, Single(LogTargetValue { dash: LogTarget::Stderr }), "FILE", alias "error-logfile", scope master;

        /// Minimum severity to log: trace, debug, info, warning, error or critical.
        log_level: LogLevel = LogLevel::Info, LOG_LEVELS, "LEVEL", scope master;

        /// Format of log records: full, compact or json.
        log_format: LogFormat = LogFormat::Full, LOG_FORMATS, "FORMAT", scope master;

        /// File that keeps the last 4,096 log records of the master, from INFO on, after any kind
        /// of exit. At most 1 MiB; `sort` puts the records in order.
        flight_recorder_file: Option<PathBuf> = None, OptionalOf(FILE), "FILE", scope master;

        /// Access log file, with a record for each unit of work; - means standard output. None means no
        /// access log. The file is owned by the workers' user, which needs access to its directory to
        /// reopen it.
        access_log: Option<LogTarget> = None,
            OptionalOf(LogTargetValue { dash: LogTarget::Stdout }), "FILE", flag "access-logfile", alias "access-log";

        /// Format of access log records: combined, json, or a template with atoms such as `%(h)s`.
        access_log_format: AccessFormat = AccessFormat::default(), Single(AccessFormatValue), "FORMAT",
            flag "access-logformat", alias "access-log-format";

        /// Share of units of work that the access log contains, 0 to 1, such as 0.01. Server errors
        /// (status 500 and above, failed calls and runs) are always logged.
        access_log_sample: SampleShare = SampleShare::ALL, Single(SampleValue), "SHARE";

        /// Whether a worker of class mio collects access log records while it serves several clients at
        /// once, up to 4 KiB, and writes them together before it waits. A worker that is killed
        /// meanwhile loses them.
        access_log_buffer: bool = false, Flag, "BOOL";

        /// Header field from which a request's id is taken, such as `X-Request-Id`, if its value is
        /// valid. None means that every id is made by the worker. Set it only if a proxy sets or
        /// removes the field.
        request_id_header: Option<String> = None, OptionalOf(FieldNameValue), "NAME";
    }
}
