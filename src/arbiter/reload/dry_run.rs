//! What a reload would change. A child plans it as for a reload, and compares; the master changes nothing.

use std::io::Write;

use serde_json::{Value, json};

use super::planning::Planning;
use super::transaction::{ConfigLoader, check_reloadable};
use crate::arbiter::address_changes;
use crate::arbiter::generation::ResolvedConfig;
use crate::arbiter::pool::Pool;
use crate::arbiter::state::MasterState;
use crate::log::error_chain;
use crate::os::lookups::Lookups;
use crate::settings::ShownChange;
use crate::time::MonotonicTime;

/// The dry runs of a master: at most one at a time.
#[derive(Default)]
pub(super) struct DryRun {
    planning: Option<Planning>,
    /// A child that was given up, and has not exited.
    abandoned: Option<Planning>,
}

impl DryRun {
    /// Starts the child.
    ///
    /// # Errors
    /// Another one runs, or there is a shortage of descriptors, processes or memory.
    pub(super) fn start<'a>(
        &mut self,
        load_config: &ConfigLoader<'a>,
        state: &MasterState<'a>,
    ) -> Result<(), String> {
        if self.planning.is_some() {
            return Err("another dry run is under way".to_owned());
        }
        if self.abandoned.as_mut().is_some_and(|it| !it.has_ended()) {
            return Err("a file system does not answer to an earlier dry run".to_owned());
        }
        self.abandoned = None;
        let planning = Planning::start_with(|answer| {
            let plan = match compare(load_config, state) {
                Ok(result) => json!({ "answers": result }),
                Err(reason) => json!({ "error": reason }),
            };
            // A write fails only if the master has exited.
            let _ = answer.write_all(plan.to_string().as_bytes());
        });
        self.planning = Some(planning.map_err(|error| format!("failed to fork: {error}"))?);
        Ok(())
    }

    /// Returns what it has found, once.
    pub(super) fn poll(&mut self, now: MonotonicTime) -> Option<Result<Value, String>> {
        let found = self.planning.as_mut()?.poll(now)?;
        if let Some(mut planning) = self.planning.take() {
            planning.abandon();
            self.abandoned = (!planning.has_ended()).then_some(planning);
        }
        Some(found)
    }

    /// Returns what runs.
    pub(super) fn planning(&self) -> Option<&Planning> {
        self.planning.as_ref()
    }
}

/// Compares what is configured with what runs, in the child.
fn compare<'a>(load_config: &ConfigLoader<'a>, state: &MasterState<'a>) -> Result<Value, String> {
    let lookups = Lookups::Live;
    let config = load_config(&lookups)?;
    check_reloadable(&state.context, &config)?;
    let current = || state.pools.generations();
    address_changes::look_up_hosts(&config, current(), &lookups)
        .map_err(|error| error_chain(&error))?;
    let (opens, closes) = address_changes::address_changes(&config, current());
    let replaces: Vec<i32> = state.pools.present().flat_map(Pool::active_pids).collect();
    Ok(json!({
        "changes": changes(&config, state),
        "opens": opens,
        "closes": closes,
        "replaces": replaces,
    }))
}

fn changes(config: &ResolvedConfig<'_>, state: &MasterState<'_>) -> Vec<Value> {
    let to_json = |pool: Option<&str>, change: ShownChange| {
        let ShownChange { key, from, to } = change;
        json!({ "pool": pool, "key": key, "from": from, "to": to })
    };
    let of_master = state.context.settings.master_changes(&config.master).into_iter();
    let mut changes: Vec<_> = of_master.map(|change| to_json(None, change)).collect();
    let shown_name = |name| config.has_named_pools.then_some(name);
    for spec in &config.pool_specs {
        match state.pools.present().find(|pool| pool.name() == spec.name) {
            Some(pool) => {
                let of_pool = pool.settings().pool_changes(&spec.settings).into_iter();
                let name = shown_name(spec.name.as_str());
                changes.extend(of_pool.map(|change| to_json(name, change)));
            }
            None => changes.push(json!({
                "pool": spec.name, "key": "pools", "from": null, "to": spec.name,
            })),
        }
    }
    for pool in state.pools.present() {
        if !config.pool_specs.iter().any(|spec| spec.name == pool.name()) {
            changes.push(json!({
                "pool": pool.name(), "key": "pools", "from": pool.name(), "to": null,
            }));
        }
    }
    changes
}
