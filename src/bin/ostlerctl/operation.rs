//! What a master carries out, and how it is shown. Pure.

use serde_json::Value;

use super::text::{duration, printable};

/// One operation of the master, such as a reload.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Operation {
    pub(crate) id: u64,
    pub(crate) command: String,
    pub(crate) state: State,
    pub(crate) pool: Option<String>,
    pub(crate) by: String,
    pub(crate) started_ms_ago: Option<u64>,
    pub(crate) duration_ms: Option<u64>,
    pub(crate) progress: Progress,
    pub(crate) error: Option<String>,
    pub(crate) result: Value,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum State {
    #[default]
    Running,
    Done,
    Failed,
}

/// How far an operation has come.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Progress {
    pub(crate) phase: String,
    pub(crate) done: u64,
    pub(crate) total: u64,
}

impl Operation {
    /// Reads what the master says of an operation. A state that is unknown counts as running.
    pub(crate) fn parse(json: &Value) -> Self {
        let text = |json: &Value| json.as_str().map(printable);
        let progress = &json["progress"];
        Self {
            id: json["id"].as_u64().unwrap_or(0),
            command: text(&json["command"]).unwrap_or_default(),
            state: match json["state"].as_str() {
                Some("done") => State::Done,
                Some("failed") => State::Failed,
                _ => State::Running,
            },
            pool: text(&json["pool"]),
            by: text(&json["by"]).unwrap_or_default(),
            started_ms_ago: json["started_ms_ago"].as_u64(),
            duration_ms: json["duration_ms"].as_u64(),
            progress: Progress {
                phase: text(&progress["phase"]).unwrap_or_default(),
                done: progress["done"].as_u64().unwrap_or(0),
                total: progress["total"].as_u64().unwrap_or(0),
            },
            error: text(&json["error"]),
            result: json["result"].clone(),
        }
    }

    /// Returns what the operation is and how far it has come, such as `reload: rolling, 2 of 4`.
    pub(crate) fn describe(&self) -> String {
        let pool = self.pool.as_ref().map(|pool| format!(" {pool}")).unwrap_or_default();
        let progress = self.progress.describe();
        let colon = if progress.is_empty() { "" } else { ": " };
        format!("{}{pool}{colon}{progress}", self.command)
    }

    /// Returns how the operation has ended, with its result, in lines.
    pub(crate) fn outcome(&self) -> String {
        let time = self.duration_ms.map(|time| format!(" in {}", duration(time)));
        let time = time.unwrap_or_default();
        match self.state {
            State::Running => format!("{}\n", self.describe()),
            State::Failed => {
                let reason = self.error.as_deref().unwrap_or("no reason is given");
                format!("{} failed{time}: {reason}\n", self.command)
            }
            // Only a dry run says what would be replaced.
            State::Done if self.command == "reload" && self.result["replaces"].is_array() => {
                format!("dry run done{time}: a reload would do this\n{}", self.result_lines())
            }
            State::Done => format!("{} done{time}\n{}", self.command, self.result_lines()),
        }
    }

    fn result_lines(&self) -> String {
        let value = |json: &Value| match json {
            Value::String(text) => printable(text),
            Value::Null => "-".to_owned(),
            other => printable(&other.to_string()),
        };
        let list = |key: &str| self.result[key].as_array().cloned().unwrap_or_default();
        let mut lines = String::new();
        match self.command.as_str() {
            "scale" => {
                let (from, to) = (value(&self.result["from"]), value(&self.result["to"]));
                lines.push_str(&format!("workers: {from} -> {to}\n"));
            }
            "upgrade" => {
                let (old, new) = (value(&self.result["old_pid"]), value(&self.result["new_pid"]));
                lines.push_str(&format!("master: {old} -> {new}\n"));
            }
            "stop" => {
                if let pid @ Value::Number(_) = &self.result["serving_pid"] {
                    lines.push_str(&format!("master {} serves on\n", value(pid)));
                }
            }
            "recycle" => {
                for it in list("replaced") {
                    let (pool, slot) = (value(&it["pool"]), value(&it["slot"]));
                    let (old, new) = (value(&it["old_pid"]), value(&it["new_pid"]));
                    lines.push_str(&format!("{pool}/{slot}: {old} -> {new}\n"));
                }
            }
            "drain" | "undrain" => {
                let is_on = self.result["drain_mode"] == true;
                let state = if is_on { "in drain mode" } else { "not in drain mode" };
                if let slot @ Value::Number(_) = &self.result["slot"] {
                    let (pool, pid) = (value(&self.result["pool"]), value(&self.result["pid"]));
                    let what = if is_on { "drained" } else { state };
                    lines.push_str(&format!("{pool}/{}: worker {pid} is {what}\n", value(slot)));
                }
                for pool in list("pools") {
                    lines.push_str(&format!("{}: {state}\n", value(&pool)));
                }
            }
            "reload" if self.result.is_object() => {
                for it in list("changes") {
                    let pool = it["pool"].as_str().map(|name| format!("{}: ", printable(name)));
                    let (pool, key) = (pool.unwrap_or_default(), value(&it["key"]));
                    let (from, to) = (value(&it["from"]), value(&it["to"]));
                    lines.push_str(&format!("changes {pool}{key}: {from} -> {to}\n"));
                }
                for key in ["opens", "closes"] {
                    for address in list(key) {
                        lines.push_str(&format!("{key} {}\n", value(&address)));
                    }
                }
                let pids: Vec<String> = list("replaces").iter().map(value).collect();
                if let generation @ Value::Number(_) = &self.result["generation"] {
                    lines.push_str(&format!("generation: {}\n", value(generation)));
                }
                if !pids.is_empty() {
                    lines.push_str(&format!("replaces {}\n", pids.join(" ")));
                }
            }
            _ => (),
        }
        lines
    }
}

impl Progress {
    /// Returns how far it has come, such as `rolling, 2 of 4`.
    pub(crate) fn describe(&self) -> String {
        match (self.phase.as_str(), self.total) {
            (phase, 0) => phase.to_owned(),
            ("", total) => format!("{} of {total}", self.done),
            (phase, total) => format!("{phase}, {} of {total}", self.done),
        }
    }

    /// Returns a bar of this width, such as `[####----]`.
    pub(crate) fn bar(&self, width: usize) -> String {
        let inner = width.saturating_sub(2);
        let share = self.done.min(self.total) as f64 / self.total.max(1) as f64;
        let filled = (share * inner as f64) as usize;
        format!("[{}{}]", "#".repeat(filled), "-".repeat(inner - filled))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn outcome_lists_the_result_of_each_command() {
        let outcome = |command: &str, result: Value| {
            let json = json!({"id": 1, "command": command, "state": "done", "duration_ms": 1500,
                "result": result});
            Operation::parse(&json).outcome()
        };
        assert_eq!(
            outcome("scale", json!({"from": 2, "to": 4})),
            "scale done in 1.5s\nworkers: 2 -> 4\n"
        );
        assert_eq!(
            outcome("upgrade", json!({"old_pid": 5, "new_pid": 6})),
            "upgrade done in 1.5s\nmaster: 5 -> 6\n"
        );
        assert_eq!(outcome("stop", json!({})), "stop done in 1.5s\n");
        assert_eq!(
            outcome("stop", json!({"serving_pid": 6})),
            "stop done in 1.5s\nmaster 6 serves on\n"
        );
        let replaced =
            json!({"replaced": [{"pool": "a\u{1b}", "slot": 0, "old_pid": 1, "new_pid": 2}]});
        assert_eq!(outcome("recycle", replaced), "recycle done in 1.5s\na\\u{1b}/0: 1 -> 2\n");
        let pools = json!({"drain_mode": true, "pools": ["a\u{1b}", "b"]});
        assert_eq!(
            outcome("drain", pools),
            "drain done in 1.5s\na\\u{1b}: in drain mode\nb: in drain mode\n"
        );
        let pools = json!({"drain_mode": false, "pools": ["a"]});
        assert_eq!(outcome("undrain", pools), "undrain done in 1.5s\na: not in drain mode\n");
        let worker = json!({"drain_mode": true, "pool": "a\u{1b}", "slot": 3, "pid": 7});
        assert_eq!(
            outcome("drain", worker),
            "drain done in 1.5s\na\\u{1b}/3: worker 7 is drained\n"
        );
        let worker = json!({"drain_mode": false, "pool": "a", "slot": 3, "pid": 7});
        assert_eq!(
            outcome("undrain", worker),
            "undrain done in 1.5s\na/3: worker 7 is not in drain mode\n"
        );
        let plan = json!({"changes": [{"pool": "a", "key": "timeout", "from": "30s", "to": "5s"},
            {"pool": null, "key": "log_level", "from": null, "to": 7}],
            "opens": [":81"], "closes": [":80"], "replaces": [5, 6]});
        assert_eq!(
            outcome("reload", plan),
            "dry run done in 1.5s: a reload would do this\nchanges a: timeout: 30s -> 5s\nchanges log_level: - -> 7\n\
             opens :81\ncloses :80\nreplaces 5 6\n"
        );
        assert_eq!(
            outcome("reload", json!({"generation": 3})),
            "reload done in 1.5s\ngeneration: 3\n"
        );
        assert_eq!(outcome("reopen", Value::Null), "reopen done in 1.5s\n");
    }

    #[test]
    fn failure_and_progress_are_described() {
        let json = json!({"command": "reload", "state": "failed", "error": "worker \u{7} failed"});
        assert_eq!(Operation::parse(&json).outcome(), "reload failed: worker \\u{7} failed\n");
        let json = json!({"command": "scale", "pool": "web", "state": "running",
            "progress": {"phase": "booting", "done": 1, "total": 4}});
        let scale = Operation::parse(&json);
        assert_eq!(scale.describe(), "scale web: booting, 1 of 4");
        assert_eq!(scale.progress.bar(10), "[##------]");
        assert_eq!(Progress { done: 9, total: 4, ..Progress::default() }.bar(10), "[########]");
        assert_eq!(Progress::default().bar(10), "[--------]");
        assert_eq!(Operation::parse(&json!([])).describe(), "");
    }
}
