//! What `doctor` makes of a machine and of settings. Pure: it is told facts, and returns findings.

use std::path::PathBuf;

use crate::log::escape;
use crate::settings::Settings;

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Level {
    Ok,
    /// It will bite under load, or makes a diagnosis worse.
    Warning,
    /// A start fails, or the service breaks.
    Error,
}

/// What one check has found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Finding {
    pub(super) level: Level,
    pub(super) check: &'static str,
    pub(super) text: String,
    /// What to do, with the command; empty if nothing.
    pub(super) advice: String,
}

/// What the machine is like. `None` means that it cannot be found out, which is no finding.
#[derive(Clone, Debug, Default)]
// Fields: one for each thing that is looked at.
pub(super) struct Facts {
    /// The soft and the hard limit of open descriptors; `u64::MAX` means none.
    pub(super) nofile: Option<(u64, u64)>,
    pub(super) somaxconn: Option<u64>,
    pub(super) syn_backlog: Option<u64>,
    /// Where heartbeat files are made, and whether that is in memory.
    pub(super) heartbeat_dir: Option<(PathBuf, bool)>,
    /// `memory.max` and `pids.max` of the control group or those around it.
    pub(super) memory_limit: Option<u64>,
    pub(super) pids_limit: Option<u64>,
    pub(super) is_root: bool,
    pub(super) ptrace_scope: Option<u64>,
    pub(super) core_pattern: Option<String>,
    pub(super) overcommit: Option<u64>,
    pub(super) huge_pages: Option<String>,
    pub(super) clock_source: Option<String>,
    /// Tracked connections, and how many there may be.
    pub(super) conntrack: Option<(u64, u64)>,
    /// Directories of log files, and how many bytes are free there.
    pub(super) log_dirs: Vec<(PathBuf, u64)>,
    /// The unit in which the master of the pid file runs, and its `KillMode=`.
    pub(super) unit: Option<(String, String)>,
    /// Who leads, as each member of the lease store says, or why it does not answer.
    pub(super) lease_store: Vec<Result<Option<String>, String>>,
}

/// One pool.
pub(super) struct PoolFacts<'s> {
    pub(super) name: &'s str,
    pub(super) settings: &'s Settings,
}

impl Level {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::Error => "error",
        }
    }
}

impl PoolFacts<'_> {
    fn max_workers(&self) -> u64 {
        self.settings.workers.max_count() as u64
    }
}

/// How few free bytes at a log are a warning.
const LOG_BYTES_MIN: u64 = 256 << 20;

/// Runs every check.
pub(super) fn findings(facts: &Facts, pools: &[PoolFacts<'_>]) -> Vec<Finding> {
    let mut findings = Vec::new();
    // The others have no clients.
    for pool in pools.iter().filter(|pool| !pool.settings.bind.is_empty()) {
        findings.extend(nofile(facts, pool));
        findings.extend(backlog(facts, pool));
    }
    findings.extend(heartbeat(facts));
    findings.extend(memory(facts, pools));
    findings.extend(processes(facts, pools));
    findings.extend(ptrace(facts));
    findings.extend(cores(facts, pools));
    findings.extend(overcommit(facts));
    findings.extend(huge_pages(facts));
    findings.extend(clock(facts));
    findings.extend(conntrack(facts));
    findings.extend(log_space(facts));
    findings.extend(kill_mode(facts));
    findings.extend(lease_store(facts));
    findings
}

/// Returns what follows from settings that cannot be loaded.
pub(super) fn settings_error(error: &impl ToString) -> Finding {
    bad(Level::Error, "settings", error.to_string(), "")
}

/// Returns what follows from a start that would fail.
pub(super) fn start_error(error: &str) -> Finding {
    let advice = if error.contains("failed to listen") && error.contains("ermission denied") {
        "AmbientCapabilities=CAP_NET_BIND_SERVICE in the unit, or sysctl -w \
         net.ipv4.ip_unprivileged_port_start=80, or a socket unit"
    } else {
        ""
    };
    bad(Level::Error, "start", error.to_owned(), advice)
}

/// Returns what follows from a warning at a start.
pub(super) fn start_warning(warning: &str) -> Finding {
    bad(Level::Warning, "start", warning.to_owned(), "")
}

/// Returns that nothing is known that would make a start fail.
pub(super) fn can_start() -> Finding {
    ok("start", "users, files and addresses are as a start needs them")
}

fn ok(check: &'static str, text: impl Into<String>) -> Finding {
    Finding { level: Level::Ok, check, text: text.into(), advice: String::new() }
}

fn bad(level: Level, check: &'static str, text: String, advice: impl Into<String>) -> Finding {
    Finding { level, check, text, advice: advice.into() }
}

fn nofile(facts: &Facts, pool: &PoolFacts<'_>) -> Option<Finding> {
    let (soft, hard) = facts.nofile?;
    let needed = pool.settings.needed_descriptors()?;
    let (name, connections) = (pool.name, pool.settings.worker_connections);
    let limit = pool.settings.rlimit_nofile.unwrap_or(hard);
    if limit < needed {
        let text = format!(
            "pool {name:?}: worker_connections {connections} needs {needed} descriptors a worker, and \
             {} is {limit}",
            if pool.settings.rlimit_nofile.is_some() { "rlimit_nofile" } else { "the hard limit" }
        );
        let advice = format!(
            "raise it: LimitNOFILE={needed} in the unit, or rlimit_nofile: {needed}; or lower \
             worker_connections"
        );
        // Nobody has asked for as many as the default.
        let is_chosen = !pool.settings.source("worker_connections").is_default();
        let level = if is_chosen { Level::Error } else { Level::Warning };
        return Some(bad(level, "nofile", text, advice));
    }
    if limit > hard && !facts.is_root {
        let text =
            format!("pool {name:?}: rlimit_nofile {limit} exceeds the hard limit, which is {hard}");
        return Some(bad(Level::Error, "nofile", text, format!("LimitNOFILE={limit} in the unit")));
    }
    let raised = if soft < needed && pool.settings.rlimit_nofile.is_none() {
        format!("; workers raise their soft limit from {soft}")
    } else {
        String::new()
    };
    Some(ok("nofile", format!("pool {name:?}: {needed} descriptors a worker are possible{raised}")))
}

fn backlog(facts: &Facts, pool: &PoolFacts<'_>) -> Vec<Finding> {
    let (name, backlog) = (pool.name, u64::from(pool.settings.backlog));
    let limits = [
        ("net.core.somaxconn", facts.somaxconn),
        ("net.ipv4.tcp_max_syn_backlog", facts.syn_backlog),
    ];
    let known = limits.into_iter().filter_map(|(key, limit)| Some((key, limit?)));
    let too_low: Vec<Finding> = known
        .filter(|(_, limit)| *limit < backlog)
        .map(|(key, limit)| {
            let text = format!("pool {name:?}: backlog {backlog} exceeds {key}, which is {limit}");
            bad(Level::Warning, "backlog", text, format!("sysctl -w {key}={backlog}"))
        })
        .collect();
    if too_low.is_empty() && facts.somaxconn.is_some() {
        return vec![ok("backlog", format!("pool {name:?}: backlog {backlog} is possible"))];
    }
    too_low
}

fn heartbeat(facts: &Facts) -> Option<Finding> {
    let (dir, in_memory) = facts.heartbeat_dir.as_ref()?;
    let dir = dir.display();
    if *in_memory {
        return Some(ok("heartbeat", format!("heartbeat files are in memory, at {dir}")));
    }
    let text =
        format!("heartbeat files are on a disk, at {dir}: one that stalls makes workers look hung");
    Some(bad(
        Level::Warning,
        "heartbeat",
        text,
        "mount a tmpfs there, or set worker_tmp_dir: /dev/shm",
    ))
}

fn memory(facts: &Facts, pools: &[PoolFacts<'_>]) -> Option<Finding> {
    let limit = facts.memory_limit?;
    let most = pools.iter().map(|pool| pool.max_workers().saturating_mul(pool.settings.max_memory));
    let most = most.fold(0, u64::saturating_add);
    if pools.iter().any(|pool| pool.settings.max_memory == 0) {
        let text = format!(
            "the control group has {} MiB, and not every pool has max_memory: the kernel kills a worker \
             that grows",
            limit >> 20
        );
        return Some(bad(
            Level::Warning,
            "memory",
            text,
            "set max_memory, so that workers are replaced first",
        ));
    }
    if most > limit {
        let (most, limit) = (most >> 20, limit >> 20);
        let text =
            format!("workers × max_memory is {most} MiB, and the control group has {limit} MiB");
        return Some(bad(
            Level::Warning,
            "memory",
            text,
            "raise MemoryMax=, or lower max_memory or workers",
        ));
    }
    Some(ok(
        "memory",
        format!("workers × max_memory fits into the control group's {} MiB", limit >> 20),
    ))
}

fn processes(facts: &Facts, pools: &[PoolFacts<'_>]) -> Option<Finding> {
    let limit = facts.pids_limit?;
    let of_pool = |pool: &PoolFacts<'_>| {
        let workers = pool.max_workers() + pool.settings.max_surge as u64;
        let threads =
            if pool.settings.worker_class == "threads" { pool.settings.threads } else { 0 };
        let program = u64::from(!pool.settings.command.is_empty());
        workers.saturating_mul(1 + threads as u64 + program)
    };
    let needed = pools.iter().map(of_pool).fold(4, u64::saturating_add);
    if needed > limit {
        let text = format!(
            "the pools need {needed} processes and threads, and the control group allows {limit}"
        );
        return Some(bad(
            Level::Error,
            "processes",
            text,
            format!("TasksMax={needed} or more in the unit"),
        ));
    }
    Some(ok(
        "processes",
        format!("{needed} processes and threads of {limit} that the control group allows"),
    ))
}

fn ptrace(facts: &Facts) -> Option<Finding> {
    let scope = facts.ptrace_scope?;
    if scope >= 2 && !(scope == 2 && facts.is_root) {
        let text = format!(
            "kernel.yama.ptrace_scope is {scope}: the causes of hangs lack the system call"
        );
        return Some(bad(Level::Warning, "ptrace", text, "sysctl -w kernel.yama.ptrace_scope=1"));
    }
    Some(ok("ptrace", "the master can find out in which system call a worker hangs"))
}

fn cores(facts: &Facts, pools: &[PoolFacts<'_>]) -> Option<Finding> {
    let pattern = facts.core_pattern.as_deref()?;
    let no_dump = crate::settings::CoreSize::Bytes(0);
    let wants = pools.iter().any(|pool| pool.settings.rlimit_core.is_some_and(|it| it != no_dump));
    if !wants {
        return Some(ok("cores", "no pool asks for core dumps (rlimit_core)"));
    }
    if pattern.is_empty() {
        let text = "rlimit_core is set, and kernel.core_pattern is empty: there are no core dumps"
            .to_owned();
        let advice = "sysctl -w kernel.core_pattern=/var/crash/core.%e.%p";
        return Some(bad(Level::Warning, "cores", text, advice));
    }
    if !pattern.starts_with(['/', '|']) {
        let text = format!(
            "core dumps go to {pattern:?} in the working directory of each worker, which it must be able to write"
        );
        let advice = "sysctl -w kernel.core_pattern=/var/crash/core.%e.%p";
        return Some(bad(Level::Warning, "cores", text, advice));
    }
    Some(ok("cores", format!("core dumps go to {pattern:?}")))
}

fn overcommit(facts: &Facts) -> Option<Finding> {
    match facts.overcommit? {
        2 => {
            let text = "vm.overcommit_memory is 2: a fork fails if the memory of the master is not free a second time".to_owned();
            Some(bad(Level::Warning, "overcommit", text, "sysctl -w vm.overcommit_memory=0"))
        }
        mode => Some(ok("overcommit", format!("vm.overcommit_memory is {mode}"))),
    }
}

fn huge_pages(facts: &Facts) -> Option<Finding> {
    let mode = facts.huge_pages.as_deref()?;
    if mode == "always" {
        let text =
            "transparent huge pages are always used: workers share less memory with the master"
                .to_owned();
        let advice = "echo madvise > /sys/kernel/mm/transparent_hugepage/enabled";
        return Some(bad(Level::Warning, "huge_pages", text, advice));
    }
    Some(ok("huge_pages", format!("transparent huge pages: {mode}")))
}

fn clock(facts: &Facts) -> Option<Finding> {
    let source = facts.clock_source.as_deref()?;
    if ["hpet", "acpi_pm", "jiffies"].contains(&source) {
        let text = format!("the clock source is {source}: reading the time is a slow system call");
        let advice = "echo tsc > /sys/devices/system/clocksource/clocksource0/current_clocksource";
        return Some(bad(Level::Warning, "clock", text, advice));
    }
    Some(ok("clock", format!("the clock source is {source}")))
}

fn conntrack(facts: &Facts) -> Option<Finding> {
    let (count, max) = facts.conntrack?;
    if count.saturating_mul(10) >= max.saturating_mul(8) {
        let text =
            format!("{count} of {max} connections are tracked: the kernel drops what is beyond");
        let advice = format!("sysctl -w net.netfilter.nf_conntrack_max={}", max.saturating_mul(4));
        return Some(bad(Level::Warning, "conntrack", text, advice));
    }
    Some(ok("conntrack", format!("{count} of {max} connections are tracked")))
}

fn log_space(facts: &Facts) -> Vec<Finding> {
    let findings = facts.log_dirs.iter().map(|(dir, free)| {
        let (dir, mib) = (dir.display(), free >> 20);
        if *free < LOG_BYTES_MIN {
            let text = format!(
                "{mib} MiB are free for the log in {dir}: records are lost when it is full"
            );
            return bad(Level::Warning, "log", text, "rotate the logs (logrotate, then SIGUSR1)");
        }
        ok("log", format!("{mib} MiB are free for the log in {dir}"))
    });
    findings.collect()
}

fn kill_mode(facts: &Facts) -> Option<Finding> {
    let (unit, mode) = facts.unit.as_ref()?;
    if mode == "mixed" {
        return Some(ok("systemd", format!("{unit} has KillMode=mixed")));
    }
    let effect = match mode.as_str() {
        "control-group" => {
            "SIGTERM also goes to each worker, which drains before the master asks it to"
        }
        _ => "what workers have started is left behind when the service stops",
    };
    let advice = format!("systemctl edit {unit}: [Service] KillMode=mixed");
    Some(bad(Level::Warning, "systemd", format!("{unit} has KillMode={mode}: {effect}"), advice))
}

fn lease_store(facts: &Facts) -> Vec<Finding> {
    let any_answers = facts.lease_store.iter().any(Result::is_ok);
    let findings = facts.lease_store.iter().map(|member| match member {
        Ok(Some(holder)) => ok("leader", format!("the lease store answers: {holder:?} leads")),
        Ok(None) => ok("leader", "the lease store answers: nobody leads"),
        Err(reason) => {
            let level = if any_answers { Level::Warning } else { Level::Error };
            let reason = escape(reason); // a part of it is the store's
            let text = format!("the lease store does not answer: {reason}");
            let advice = "start it, or correct the leader_ keys: without it the led pools stand by";
            bad(level, "leader", text, advice)
        }
    });
    findings.collect()
}
