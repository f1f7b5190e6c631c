//! What the master believes of numbers that workers write.

/// The largest count that is believed of one worker: exact in JSON, and beyond any use.
pub(crate) const COUNT_MAX: u64 = 1 << 53;
