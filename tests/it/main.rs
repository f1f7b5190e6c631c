//! Black-box tests of the real binary: a table of behaviours, run under every worker class.
//!
//! The quick half, plain `cargo test`, runs each behaviour under one class; the other rows and the
//! slowest tests are ignored as `slow`. `cargo test -- --include-ignored` runs all, as `.ci/run` does.
//!
//! A test starts its own server, sends it requests and signals, and reads its log and `/proc`. It
//! has no other source of information.

// A test binary exports nothing, and a failed step is a failed test.
#![allow(unreachable_pub, clippy::unwrap_used, clippy::print_stderr)]

/// Makes a `#[test]` of each named behaviour under each built-in class that serves sockets:
/// `liveness::mio::killed_worker_is_replaced`. `mio` is in the quick half.
macro_rules! on_every_class {
    ($($behaviour:ident),+ $(,)?) => {
        on_slow_class!(sync: $($behaviour),+);
        on_slow_class!(threads: $($behaviour),+);
        on_class!(mio: $($behaviour),+);
        on_uring!($($behaviour),+);
    };
}

/// Makes a `#[test]` of each behaviour under each of these classes, outside the quick half: it takes
/// seconds, and quicker tests try most of it.
macro_rules! on_every_class_slowly {
    ($($behaviour:ident),+ $(,)?) => {
        mod slow {
            use super::{$($behaviour),+};
            on_slow_class!(sync: $($behaviour),+);
            on_slow_class!(threads: $($behaviour),+);
            on_slow_class!(mio: $($behaviour),+);
            on_uring!($($behaviour),+);
        }
    };
}

/// Makes a `#[test]` of each behaviour under the class `uring`, if the kernel permits io_uring.
macro_rules! on_uring {
    ($($behaviour:ident),+ $(,)?) => {
        mod uring {
            $(
                #[test]
                #[ignore = "slow"]
                fn $behaviour() {
                    if crate::launch::uring_runs() {
                        super::$behaviour("uring");
                    }
                }
            )+
        }
    };
}

/// Makes a `#[test]` of each behaviour under the class `tokio`, served by `tests/programs/tokio_demo.rs`.
macro_rules! on_tokio {
    ($($behaviour:ident),+ $(,)?) => {
        mod tokio {
            $(
                #[test]
                #[ignore = "slow"]
                fn $behaviour() {
                    if crate::example::example("tokio_demo").is_some() {
                        super::$behaviour("tokio");
                    }
                }
            )+
        }
    };
}

/// Makes a `#[test]` of each behaviour under every class that serves, and under `tokio`. What holds for
/// only one of the two follows in a list of its own.
macro_rules! on_every_class_and_tokio {
    (
        $($both:ident),+ $(,)?
        $(; except tokio: $($other:ident),+ $(,)?)?
        $(; tokio alone: $($alone:ident),+ $(,)?)?
    ) => {
        on_every_class!($($both,)+ $($($other),+)?);
        on_tokio!($($both,)+ $($($alone),+)?);
    };
}

/// Makes a `#[test]` of each behaviour under the classes that serve many clients at once. `threads` is in
/// the quick half.
macro_rules! on_concurrent_classes {
    ($($behaviour:ident),+ $(,)?) => {
        mod concurrent {
            use super::{$($behaviour),+};
            on_class!(threads: $($behaviour),+);
            on_slow_class!(mio: $($behaviour),+);
            on_uring!($($behaviour),+);
        }
    };
}

/// Makes a `#[test]` of each behaviour under the classes that run jobs. `sync` is in the quick half.
macro_rules! on_job_classes {
    ($($behaviour:ident),+ $(,)?) => {
        on_class!(sync: $($behaviour),+);
        on_slow_class!(threads: $($behaviour),+);
    };
}

/// Makes a `#[test]` of each behaviour under one class, outside the quick half.
macro_rules! on_slow_class {
    ($class:ident: $($behaviour:ident),+) => {
        mod $class {
            $(
                #[test]
                #[ignore = "slow"]
                fn $behaviour() {
                    super::$behaviour(stringify!($class));
                }
            )+
        }
    };
}

/// Makes a `#[test]` of each behaviour under one class.
macro_rules! on_class {
    ($class:ident: $($behaviour:ident),+) => {
        mod $class {
            $(
                #[test]
                fn $behaviour() {
                    super::$behaviour(stringify!($class));
                }
            )+
        }
    };
}

// Shared with the contract kit: these files take `DEADLINE` and `Pid` from here.
#[path = "../../src/testkit/log_capture.rs"]
mod log_capture;
#[path = "../../src/testkit/proc.rs"]
mod processes;
#[path = "../../src/testkit/client.rs"]
mod wire;
use nix::unistd::Pid;
use support::DEADLINE;

mod access_log;
mod blocked_look;
mod booting;
mod cgroup;
mod client;
mod clients;
mod clocks;
mod closing;
mod commands;
mod config_files;
mod connection;
mod container;
mod control;
mod control_bounds;
mod control_descriptors;
mod control_path;
mod cores;
mod counters;
#[cfg(feature = "ctl")]
mod ctl;
#[cfg(feature = "ctl")]
mod ctl_changes;
#[cfg(feature = "ctl")]
mod ctl_operations;
#[cfg(feature = "ctl")]
mod ctl_top;
mod daemons;
mod debian_package;
mod doctor;
mod drain_mode;
mod draining_queue;
mod etcd;
mod events;
mod example;
mod exec;
mod exec_hang_causes;
mod exec_notify;
mod exec_programs;
mod fd_store;
mod floods;
mod fn_class;
mod framing;
mod hang_causes;
mod identity;
mod jobs;
mod journal;
mod kubernetes;
mod kubernetes_api;
mod launch;
mod leader;
mod leader_clocks;
mod leader_kubernetes;
mod leader_partition;
mod leader_reload;
mod leader_store;
mod linked_dir;
mod liveness;
mod load;
mod logs;
mod manual;
mod metrics;
mod netns;
mod os;
mod pools;
mod pools_whole;
mod pre_stop;
mod privileges;
mod proc;
mod procfs;
mod real_systemd;
mod recycling;
mod reload_files;
mod reloading;
mod resources;
mod reuse_port;
mod rollout;
mod rpc;
mod saturation;
mod scaling;
mod schemathesis;
mod serving;
mod settings;
mod shared_memory;
mod shortages;
mod signals;
mod slow_lookups;
mod sockets;
mod spoiled_listeners;
mod statsd;
mod stopping;
mod stopping_under_load;
mod stuck_flush;
mod stuck_fs;
mod support;
mod systemd;
mod terminals;
mod tokio_bodies;
mod tokio_class;
mod tokio_http2;
mod tokio_load;
mod upgrading;
mod uring_class;
mod watching;
mod worker_cgroups;
mod worker_drain_mode;
mod worker_fds;
