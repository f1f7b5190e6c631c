//! The resource limits of a worker, applied before the app boots or the class runs. Independent of
//! the user that the worker switches to.

use std::fmt::Display;
use std::io;

use crate::os::resources;
use crate::settings::{CoreSize, CpuAffinity, Settings};

/// The hint where more privileges would have helped.
const HINT: &str = "run the master as root or remove the setting";

/// Applies the limits that may need privileges. Call it before the worker drops them.
///
/// # Errors
/// A text for the operator: which limit cannot be set, and what to do.
pub(super) fn apply(settings: &Settings, slot: usize) -> Result<(), String> {
    if let Some(most) = settings.rlimit_nofile {
        resources::set_nofile_limit(most).map_err(|error| {
            let hint = limit_hint(resources::nofile_hard_limit(), Some(most));
            refused("rlimit_nofile", &most, &error, &hint)
        })?;
    }
    if let Some(wanted) = settings.needed_descriptors().filter(|_| settings.rlimit_nofile.is_none())
    {
        // Without it, the worker pauses accepting when it has no descriptor left.
        let _ = resources::raise_nofile_limit(wanted);
    }
    if let Some(size) = settings.rlimit_core {
        let most = match size {
            CoreSize::Bytes(bytes) => Some(bytes),
            CoreSize::Unlimited => None,
        };
        let shown = most.map_or("unlimited".to_owned(), |bytes| bytes.to_string());
        resources::set_core_limit(most).map_err(|error| {
            refused("rlimit_core", &shown, &error, &limit_hint(resources::core_hard_limit(), most))
        })?;
    }
    if let Some(nice) = settings.nice {
        resources::set_nice(nice).map_err(|error| refused("nice", &nice, &error, HINT))?;
    }
    if let Some(affinity) = &settings.cpu_affinity {
        run_on_own_cpu(affinity, slot)?;
    }
    if let Some(score) = settings.oom_score_adj {
        let hint = "lowering it below the master's own requires CAP_SYS_RESOURCE; raise the score or remove the setting";
        resources::set_oom_score_adj(score)
            .map_err(|error| refused("oom_score_adj", &score, &error, hint))?;
    }
    Ok(())
}

/// Applies what a change of user would undo, and what cannot be undone.
///
/// # Errors
/// A text for the operator, as [`apply`] returns.
pub(super) fn finalize(settings: &Settings) -> Result<(), String> {
    if settings.rlimit_core.is_some_and(|size| size != CoreSize::Bytes(0)) {
        resources::allow_core_dumps()
            .map_err(|error| format!("failed to allow core dumps: {error}"))?;
    }
    if settings.no_new_privs {
        resources::set_no_new_privs()
            .map_err(|error| refused("no_new_privs", &true, &error, "remove the setting"))?;
    }
    Ok(())
}

fn run_on_own_cpu(affinity: &CpuAffinity, slot: usize) -> Result<(), String> {
    let usable = resources::usable_cpus()
        .map_err(|error| format!("failed to read usable CPUs for cpu_affinity: {error}"))?;
    let Some(cpu) = affinity.for_slot(slot, &usable) else { return Ok(()) };
    resources::bind_to_cpu(cpu).map_err(|error| {
        let usable: Vec<String> = usable.iter().map(ToString::to_string).collect();
        format!(
            "failed to set cpu_affinity to CPU {cpu}: {error}; the master may use {}",
            usable.join(", ")
        )
    })
}

/// Returns what to do about a limit that cannot be set. `None` means unlimited.
fn limit_hint(hard: Option<u64>, wanted: Option<u64>) -> String {
    match hard {
        Some(hard) if wanted.is_none_or(|wanted| wanted > hard) => {
            format!("the master's hard limit is {hard}: raise it or lower the setting")
        }
        Some(_) | None => HINT.to_owned(),
    }
}

fn refused(key: &str, value: &impl Display, error: &io::Error, hint: &str) -> String {
    format!("failed to set {key} to {value}: {error}; {hint}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refused_names_key_value_error_and_hint() {
        let error = io::Error::from_raw_os_error(1);
        assert_eq!(
            refused("nice", &-5, &error, HINT),
            "failed to set nice to -5: Operation not permitted (os error 1); run the master as root or remove the setting"
        );
    }

    #[test]
    fn limit_hint_beyond_hard_limit_names_it() {
        let hint = limit_hint(Some(20), None);
        assert_eq!(hint, "the master's hard limit is 20: raise it or lower the setting");
        assert_eq!(limit_hint(Some(20), Some(21)), hint);
        assert_eq!(limit_hint(Some(20), Some(20)), HINT);
        assert_eq!(limit_hint(None, Some(20)), HINT);
    }

    #[test]
    fn apply_default_settings_changes_nothing() {
        let settings = Settings::default();
        assert_eq!(apply(&settings, 0), Ok(()));
        assert_eq!(finalize(&settings), Ok(()));
    }
}
