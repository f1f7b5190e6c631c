//! The output of responses: how far a client has taken it.

use std::time::Duration;

use ostler::time::MonotonicTime;
use slab::Slab;

/// How many bytes a client must take within `write_timeout`.
pub(super) const WRITE_STEP: u64 = 4 << 10;

/// The outputs of the responses of one connection, over HTTP/2 or for the access log. Each has a key
/// until its request has ended and its pieces are dropped.
#[derive(Default)]
pub(super) struct Outputs(Slab<ResponseOutput>);

/// The key of an output among those of its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct OutputKey(u32); // small: it moves with a request

/// How far a client has taken one response.
struct ResponseOutput {
    /// How many bytes the app has produced.
    produced: u64,
    /// How many of them wait.
    waiting: u64,
    /// How many bytes were taken since `moved_at`.
    step: u64,
    /// When the client has last taken [`WRITE_STEP`], or the output has begun to wait.
    moved_at: MonotonicTime,
    /// How many pieces there are.
    pieces: usize,
    /// Whether the request is in progress.
    has_request: bool,
    /// The guard of the request, once its body has ended, if pieces wait.
    guard: Option<KeptGuard>,
}

/// A guard that ends a request when it is dropped, for which it locks the outputs.
pub(super) type KeptGuard = Box<dyn Send>;

impl OutputKey {
    fn index(self) -> usize {
        self.0 as usize
    }
}

impl ResponseOutput {
    /// Returns since when the client has not taken what waits; `None` if nothing waits.
    fn waits_since(&self) -> Option<MonotonicTime> {
        (self.has_request && self.waiting > 0).then_some(self.moved_at)
    }
}

impl Outputs {
    /// Adds the output of a request, with its first piece, of `length` bytes. Returns its key.
    pub(super) fn add(&mut self, length: usize, now: MonotonicTime) -> OutputKey {
        let length = length as u64;
        let key = self.0.insert(ResponseOutput {
            produced: length,
            waiting: length,
            step: 0,
            moved_at: now,
            pieces: 1,
            has_request: true,
            guard: None,
        });
        OutputKey(key as u32) // a connection has far fewer
    }

    /// Takes in another piece.
    pub(super) fn on_piece(&mut self, key: OutputKey, length: usize, now: MonotonicTime) {
        let Some(output) = self.0.get_mut(key.index()) else { return };
        if output.waiting == 0 {
            (output.step, output.moved_at) = (0, now);
        }
        output.pieces += 1;
        output.produced += length as u64;
        output.waiting += length as u64;
    }

    /// Takes in that the kernel has taken bytes of a piece.
    pub(super) fn on_taken(
        &mut self,
        key: OutputKey,
        length: usize,
        now: impl FnOnce() -> MonotonicTime,
    ) {
        let Some(output) = self.0.get_mut(key.index()) else { return };
        output.waiting = output.waiting.saturating_sub(length as u64);
        output.step += length as u64;
        if output.step >= WRITE_STEP && output.waiting > 0 {
            (output.step, output.moved_at) = (0, now());
        }
    }

    /// Takes in that a piece is dropped. Returns what is to be dropped after the lock is released.
    pub(super) fn end_piece(&mut self, key: OutputKey) -> Option<KeptGuard> {
        let output = self.0.get_mut(key.index())?;
        output.pieces -= 1;
        let guard = if output.pieces == 0 { output.guard.take() } else { None };
        self.remove_ended(key);
        guard
    }

    /// Keeps the guard of a request, whose body has ended, until the last piece is dropped. Returns it if
    /// there is no piece.
    pub(super) fn keep_until_taken<G: Send + 'static>(
        &mut self,
        key: OutputKey,
        guard: G,
    ) -> Option<G> {
        match self.0.get_mut(key.index()) {
            Some(output) if output.pieces > 0 => {
                output.guard = Some(Box::new(guard));
                None
            }
            _ => Some(guard),
        }
    }

    /// Takes in that a request has ended. Returns how many bytes of its response the kernel has taken, and
    /// how many it has not.
    pub(super) fn end_request(&mut self, key: OutputKey) -> (u64, u64) {
        let Some(output) = self.0.get_mut(key.index()) else { return (0, 0) };
        output.has_request = false;
        let amounts = (output.produced - output.waiting, output.waiting);
        self.remove_ended(key);
        amounts
    }

    /// Takes in that a request has ended with a piece of its output, as [`end_request`](Self::end_request).
    pub(super) fn end_request_and_piece(&mut self, key: OutputKey) -> (u64, u64) {
        if let Some(output) = self.0.get_mut(key.index()) {
            output.pieces -= 1;
        }
        self.end_request(key)
    }

    fn remove_ended(&mut self, key: OutputKey) {
        if self.0.get(key.index()).is_some_and(|output| !output.has_request && output.pieces == 0) {
            self.0.remove(key.index());
        }
    }

    /// Returns how many outputs have stalled: their client has not taken [`WRITE_STEP`] within `limit`.
    /// If the output of the connection moves, those that wait share it, and each has `limit` for each of
    /// them. Returns also when to look again.
    pub(super) fn stalled(
        &self,
        now: MonotonicTime,
        limit: Duration,
        is_moving: bool,
    ) -> (usize, MonotonicTime) {
        let waiting = || self.0.iter().filter_map(|(_, output)| output.waits_since());
        let shares = if is_moving { waiting().count() } else { 1 };
        let share_limit = limit.saturating_mul(u32::try_from(shares).unwrap_or(u32::MAX));
        let (mut stalled, mut next) = (0, now.saturating_add(limit));
        for since in waiting() {
            let deadline = since.saturating_add(share_limit);
            if deadline <= now {
                stalled += 1;
            } else {
                next = next.min(deadline);
            }
        }
        (stalled, next)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> MonotonicTime {
        MonotonicTime::from_nanos(seconds * 1_000_000_000)
    }

    fn take(outputs: &mut Outputs, key: OutputKey, length: usize, seconds: u64) {
        outputs.on_taken(key, length, || at(seconds));
    }

    /// How many outputs have stalled at a time, with a limit of ten seconds.
    fn stalled(outputs: &Outputs, seconds: u64) -> usize {
        outputs.stalled(at(seconds), Duration::from_secs(10), false).0
    }

    #[test]
    fn output_stalls_unless_the_client_takes_enough_in_time() {
        let mut outputs = Outputs::default();
        let key = outputs.add(10_000, at(0));
        assert_eq!((stalled(&outputs, 9), stalled(&outputs, 10)), (0, 1));
        take(&mut outputs, key, 4095, 8);
        assert_eq!(stalled(&outputs, 10), 1, "too little");
        take(&mut outputs, key, 1, 8);
        assert_eq!((stalled(&outputs, 17), stalled(&outputs, 18)), (0, 1));
        take(&mut outputs, key, 5904, 9);
        assert_eq!(stalled(&outputs, 1000), 0, "nothing waits");
        outputs.on_piece(key, 1, at(1000));
        assert_eq!((stalled(&outputs, 1009), stalled(&outputs, 1010)), (0, 1));
        outputs.end_request(key);
        assert_eq!(stalled(&outputs, 1010), 0, "nobody waits for it");
    }

    #[test]
    fn key_lasts_until_the_request_and_the_pieces_have_ended() {
        let mut outputs = Outputs::default();
        let reset = outputs.add(5, at(0));
        take(&mut outputs, reset, 2, 0);
        assert_eq!(outputs.end_request(reset), (2, 3));
        let other = outputs.add(7, at(0));
        assert_ne!(other, reset, "a piece has the key");
        assert!(outputs.end_piece(reset).is_none());
        assert_eq!(outputs.add(9, at(0)), reset);
        assert_eq!(outputs.end_request_and_piece(other), (0, 7));
        assert_eq!(outputs.add(9, at(0)), other);
    }

    #[test]
    fn guard_is_kept_until_the_last_piece_is_dropped() {
        let mut outputs = Outputs::default();
        let key = outputs.add(5, at(0));
        outputs.on_piece(key, 5, at(0));
        assert!(outputs.keep_until_taken(key, "guard").is_none());
        assert!(outputs.end_piece(key).is_none());
        assert!(outputs.end_piece(key).is_some());
        assert_eq!(outputs.keep_until_taken(key, "guard"), Some("guard"), "there is no piece");
    }
}
