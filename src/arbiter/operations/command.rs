//! The commands of the control interface. Pure.

/// What a client has asked the master to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::arbiter) enum Command {
    Reload {
        dry_run: bool,
    },
    /// Replaces this master by a new one of the same program.
    Upgrade,
    /// Changes how many workers a pool has. The pool may be left out if there is one.
    Scale {
        pool: Option<String>,
        workers: ScaleTo,
    },
    /// Replaces the worker of a slot, or all of a pool, or of all pools.
    Recycle {
        pool: Option<String>,
        slot: Option<usize>,
    },
    /// Turns the drain mode of the worker of a slot, of a pool, or of all pools, on or off.
    DrainMode {
        pool: Option<String>,
        slot: Option<usize>,
        is_on: bool,
    },
    /// Stops the master; `now` lets no worker finish its work.
    Stop {
        now: bool,
    },
    Reopen,
}

impl Command {
    /// Returns the command's name.
    pub(in crate::arbiter) fn name(&self) -> &'static str {
        match self {
            Self::Reload { .. } => "reload",
            Self::Upgrade => "upgrade",
            Self::Scale { .. } => "scale",
            Self::Recycle { .. } => "recycle",
            Self::DrainMode { is_on, .. } => drain_command(*is_on),
            Self::Stop { .. } => "stop",
            Self::Reopen => "reopen",
        }
    }
}

/// Returns the name of the command that turns a drain mode on or off.
pub(super) fn drain_command(is_on: bool) -> &'static str {
    if is_on { "drain" } else { "undrain" }
}

/// How many workers a pool shall have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::arbiter) enum ScaleTo {
    Count(usize),
    /// Relative to its target.
    Step(isize),
}

/// Why a command cannot be begun.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::arbiter) struct Refusal {
    /// The HTTP status: 400, 404 or 409.
    pub(in crate::arbiter) status: u16,
    pub(in crate::arbiter) reason: String,
}

impl Refusal {
    /// A parameter is wrong.
    pub(in crate::arbiter) fn bad(reason: impl Into<String>) -> Self {
        Self { status: 400, reason: reason.into() }
    }

    /// There is no such pool or slot.
    pub(in crate::arbiter) fn unknown(reason: impl Into<String>) -> Self {
        Self { status: 404, reason: reason.into() }
    }

    /// It cannot be done now.
    pub(in crate::arbiter) fn conflict(reason: impl Into<String>) -> Self {
        Self { status: 409, reason: reason.into() }
    }
}

impl std::str::FromStr for ScaleTo {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parsed = match text.as_bytes().first() {
            Some(b'+' | b'-') => text.parse().ok().map(Self::Step),
            _ => text.parse().ok().map(Self::Count),
        };
        parsed.ok_or_else(|| format!("{text:?} is not N, +N or -N"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scale_to_is_a_count_or_a_step() {
        assert_eq!("4".parse(), Ok(ScaleTo::Count(4)));
        assert_eq!("+2".parse(), Ok(ScaleTo::Step(2)));
        assert_eq!("-1".parse(), Ok(ScaleTo::Step(-1)));
        for text in ["", "x", "+", "-", "1.5", " 4", "99999999999999999999"] {
            assert!(text.parse::<ScaleTo>().is_err(), "{text}");
        }
    }
}
