//! What is shown of the leadership.

use std::time::Duration;

use serde_json::{Value, json};

use crate::duration::as_millis;

/// The leadership of the master.
#[derive(Clone, Debug, Default)]
pub(in crate::arbiter) struct LeaderSnapshot {
    pub(in crate::arbiter) is_leading: bool,
    /// How often it has begun or ceased to lead.
    pub(in crate::arbiter) transitions: u64,
    pub(in crate::arbiter) key: String,
    /// Who leads, as the store has it.
    pub(in crate::arbiter) holder: Option<String>,
    /// When the term of this master ends, unless it is renewed.
    pub(in crate::arbiter) ends_in: Option<Duration>,
    /// Why the store has not answered the last time.
    pub(in crate::arbiter) store_error: Option<String>,
}

impl LeaderSnapshot {
    /// Returns it as JSON.
    pub(in crate::arbiter) fn to_json(&self) -> Value {
        json!({
            "leading": self.is_leading,
            "transitions": self.transitions,
            "key": self.key,
            "holder": self.holder,
            "ends_in_ms": self.ends_in.map(as_millis),
            "store_error": self.store_error,
        })
    }
}
