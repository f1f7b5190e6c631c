//! What a master logs when it starts.

use slog::{info, warn};

use crate::arbiter::{MasterContext, PoolGeneration, PoolSpec};
use crate::listen;
use crate::log::Fields;
use crate::os::process::Pid;
use crate::os::resources;

/// Logs the start of the master, its pools, warnings and addresses.
pub(super) fn log_startup(
    context: &MasterContext,
    generations: &[PoolGeneration<'_>],
    warnings: &[String],
) {
    let log = context.log.logger();
    let pid = Pid::this().as_raw();
    let version = env!("CARGO_PKG_VERSION");
    match generations {
        [PoolGeneration { spec, .. }] if !context.has_named_pools => {
            info!(log, "master started"; "pid" => pid, "version" => version,
                "app" => spec.app.name(), "class" => spec.class.name(),
                "workers" => spec.settings.workers.count(), pool_fields(spec));
        }
        pools => {
            info!(log, "master started"; "pid" => pid, "version" => version,
                "pools" => pools.len());
            for PoolGeneration { spec, log, .. } in pools {
                info!(log.logger(), "pool prepared"; "app" => spec.app.name(),
                    "class" => spec.class.name(), "workers" => spec.settings.workers.count(),
                    pool_fields(spec));
            }
        }
    }
    for generation in generations {
        log_nofile_limit(generation);
    }
    for warning in warnings {
        warn!(log, "startup warning"; "error" => warning);
    }
    for generation in generations {
        for listener in listen::one_per_address(generation.listeners.iter().map(AsRef::as_ref)) {
            info!(generation.log.logger(), "listening"; "address" => listener.name());
        }
    }
}

/// Logs that workers raise their soft limit of descriptors for `worker_connections`, or that the hard limit
/// does not suffice for what was asked.
fn log_nofile_limit(generation: &PoolGeneration<'_>) {
    let (settings, log) = (&generation.spec.settings, generation.log.logger());
    let Some(wanted) = settings.needed_descriptors().filter(|_| settings.rlimit_nofile.is_none())
    else {
        return;
    };
    let Some((soft, hard)) = resources::nofile_limits().filter(|(soft, _)| *soft < wanted) else {
        return;
    };
    let to = wanted.min(hard);
    if soft < to {
        info!(log, "workers raise their limit of open files"; "from" => soft, "to" => to);
    }
    if hard < wanted && !settings.source("worker_connections").is_default() {
        warn!(log, "limit of open files too low"; "worker_connections" => settings.worker_connections,
            "limit" => hard, "error" => "raise the hard limit, or lower worker_connections");
    }
}

fn pool_fields(spec: &PoolSpec<'_>) -> Fields {
    let max = spec.settings.workers.range().map(|range| *range.end());
    let fields = Fields::new().optional(max, |fields, max| fields.number("workers_max", max));
    let command = spec.class.runs_command().then(|| spec.settings.shown_texts("command").join(" "));
    fields.optional(command, |fields, command| fields.text("command", command))
}
