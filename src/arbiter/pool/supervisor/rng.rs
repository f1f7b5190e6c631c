//! Numbers that spread things out, so that workers do not march in step. Pure, and no secret: never
//! use it where somebody gains by guessing.

/// A sequence of numbers that looks random: xorshift64.
#[derive(Debug)]
pub(in crate::arbiter::pool) struct Rng(u64);

impl Rng {
    /// The sequence that this seed begins.
    pub(in crate::arbiter::pool) fn new(seed: u64) -> Self {
        Self(seed | 1) // zero would stay zero
    }

    /// The next number below `bound`, which is not zero.
    pub(in crate::arbiter::pool) fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }
}
