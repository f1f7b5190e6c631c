//! Process numbers.

use std::fmt;

use nix::unistd::Pid as RawPid;

/// A process, by number. It says nothing about whether the process exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Pid(i32);

impl Pid {
    /// Names the process with this number.
    pub(crate) const fn from_raw(number: i32) -> Self {
        Self(number)
    }

    /// Returns this process.
    pub(crate) fn this() -> Self {
        Self(RawPid::this().as_raw())
    }

    /// Returns this process's present parent.
    pub(crate) fn parent() -> Self {
        Self(RawPid::parent().as_raw())
    }

    /// Returns the number.
    pub(crate) const fn as_raw(self) -> i32 {
        self.0
    }
}

impl fmt::Display for Pid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
