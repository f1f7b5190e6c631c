//! `doctor`: looks for what breaks a service in production, before it does, and says what to do. It must
//! never change anything.

mod checks;
mod facts;
#[cfg(test)]
mod tests;

use serde_json::json;

use crate::runtime::Runtime;
use crate::settings::{Configuration, SettingsError};
use checks::{Finding, Level, PoolFacts};

/// What has been found.
pub(crate) struct Report {
    findings: Vec<Finding>,
}

impl Report {
    /// Examines this machine for a program with these settings.
    pub(crate) fn new(
        runtime: &Runtime,
        loaded: Result<(Configuration, Vec<String>), SettingsError>,
    ) -> Self {
        let (configuration, warnings) = match loaded {
            Ok(loaded) => loaded,
            Err(error) => return Self { findings: vec![checks::settings_error(&error)] },
        };
        let mut findings: Vec<Finding> =
            warnings.iter().map(|warning| checks::start_warning(warning)).collect();
        match runtime.check_start(&configuration) {
            Ok(warnings) => {
                findings.extend(warnings.iter().map(|warning| checks::start_warning(warning)));
                findings.push(checks::can_start());
            }
            Err(error) => findings.push(checks::start_error(&error.to_string())),
        }
        let pools = configuration.pools.iter();
        let pools: Vec<PoolFacts<'_>> =
            pools.map(|pool| PoolFacts { name: &pool.name, settings: &pool.settings }).collect();
        findings.extend(checks::findings(&facts::gather(&configuration), &pools));
        findings.sort_by_key(|finding| std::cmp::Reverse(finding.level));
        Self { findings }
    }

    /// Returns 1 if something will break, or else 0.
    pub(crate) fn exit_code(&self) -> u8 {
        u8::from(self.count(Level::Error) > 0)
    }

    fn count(&self, level: Level) -> usize {
        self.findings.iter().filter(|finding| finding.level == level).count()
    }

    /// Returns the findings as lines, the worst first.
    pub(crate) fn to_text(&self) -> String {
        let mut text = String::new();
        for Finding { level, check, text: found, advice } in &self.findings {
            text += &format!("{:<8} {check:<11} {found}\n", level.as_str());
            if !advice.is_empty() {
                text += &format!("{:<20} -> {advice}\n", "");
            }
        }
        let (errors, warnings) = (self.count(Level::Error), self.count(Level::Warning));
        text + &format!("{}, {}\n", counted(errors, "error"), counted(warnings, "warning"))
    }

    /// Returns the findings as JSON.
    pub(crate) fn to_json(&self) -> String {
        let findings = self.findings.iter().map(|finding| {
            json!({
                "level": finding.level.as_str(),
                "check": finding.check,
                "text": finding.text,
                "advice": (!finding.advice.is_empty()).then_some(&finding.advice),
            })
        });
        let report = json!({
            "errors": self.count(Level::Error),
            "warnings": self.count(Level::Warning),
            "findings": findings.collect::<Vec<_>>(),
        });
        format!("{report:#}\n")
    }
}

/// Returns a number and its noun, as in `1 error` and `2 errors`.
fn counted(count: usize, noun: &str) -> String {
    let ending = if count == 1 { "" } else { "s" };
    format!("{count} {noun}{ending}")
}
