//! Finds floods of HTTP/2 frames that cost the server work and carry no request. Pure: bytes and time
//! are arguments.

use ostler::time::MonotonicTime;

/// How many control frames a client may send at once.
const BURST: u64 = 10_000;
/// How many more it may send each second.
const FRAMES_PER_SECOND: u64 = 100;
/// How many it may send for each request.
const FRAMES_PER_REQUEST: u64 = 8;
/// For how many bytes of bodies, either way, it may send one.
const BYTES_PER_FRAME: u64 = 512;

const PREFACE_LENGTH: u32 = 24;
const HEAD_LENGTH: usize = 9;
const DATA: u8 = 0;
const HEADERS: u8 = 1;

/// Counts the frames of one connection.
pub(super) struct FrameCounter {
    head: [u8; HEAD_LENGTH],
    head_length: usize,
    /// How many bytes of the frame's payload have not arrived.
    payload_left: u32,
    /// How many control frames the client may send now.
    budget: u64,
    /// When the budget was last raised for time.
    raised_at: MonotonicTime,
    /// How many bytes had been sent when the budget was last raised for them.
    raised_sent: u64,
    /// How many bytes have no frame in the budget yet.
    bytes: u64,
}

impl FrameCounter {
    pub(super) fn new(now: MonotonicTime) -> Self {
        Self {
            head: [0; HEAD_LENGTH],
            head_length: 0,
            payload_left: PREFACE_LENGTH,
            budget: BURST,
            raised_at: now,
            raised_sent: 0,
            bytes: 0,
        }
    }

    /// Takes in received bytes, and how many were sent so far. Returns whether the client floods.
    pub(super) fn is_flood(&mut self, mut bytes: &[u8], sent: u64, now: MonotonicTime) -> bool {
        let mut control_frames = 0;
        loop {
            let skipped = bytes.len().min(self.payload_left as usize);
            self.payload_left -= skipped as u32;
            bytes = &bytes[skipped..];
            let missing = bytes.len().min(HEAD_LENGTH - self.head_length);
            self.head[self.head_length..self.head_length + missing]
                .copy_from_slice(&bytes[..missing]);
            self.head_length += missing;
            bytes = &bytes[missing..];
            if self.payload_left > 0 || self.head_length < HEAD_LENGTH {
                break;
            }
            self.head_length = 0;
            let [a, b, c, kind, ..] = self.head;
            self.payload_left = u32::from_be_bytes([0, a, b, c]);
            match kind {
                DATA if self.payload_left > 0 => self.bytes += u64::from(self.payload_left),
                HEADERS => self.budget += FRAMES_PER_REQUEST,
                _ => control_frames += 1,
            }
        }
        self.raise(sent, now);
        match self.budget.checked_sub(control_frames) {
            None => true,
            Some(left) => {
                self.budget = left;
                false
            }
        }
    }

    fn raise(&mut self, sent: u64, now: MonotonicTime) {
        self.bytes += sent - self.raised_sent;
        self.raised_sent = sent;
        self.budget += self.bytes / BYTES_PER_FRAME;
        self.bytes %= BYTES_PER_FRAME;
        let seconds = now.duration_since(self.raised_at).as_secs();
        if seconds > 0 {
            self.raised_at = now;
            self.budget = self.budget.saturating_add(seconds.saturating_mul(FRAMES_PER_SECOND));
        }
        self.budget = self.budget.min(BURST);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    const PING: u8 = 6;
    const WINDOW_UPDATE: u8 = 8;

    fn frame(kind: u8, length: usize) -> Vec<u8> {
        let mut frame = (length as u32).to_be_bytes()[1..].to_vec();
        frame.extend([kind, 0, 0, 0, 0, 1]);
        frame.resize(HEAD_LENGTH + length, 0x55);
        frame
    }

    fn at(seconds: u64) -> MonotonicTime {
        MonotonicTime::from_nanos(seconds * 1_000_000_000)
    }

    fn counter() -> FrameCounter {
        let mut counter = FrameCounter::new(at(1));
        assert!(!counter.is_flood(PREFACE, 0, at(1)));
        counter
    }

    #[test]
    fn control_frames_beyond_the_burst_are_a_flood() {
        for (kind, length) in [(PING, 8), (4, 0), (DATA, 0), (9, 3)] {
            let mut counter = counter();
            let frames = frame(kind, length).repeat(BURST as usize);
            assert!(!counter.is_flood(&frames, 0, at(1)), "{kind}");
            assert!(counter.is_flood(&frame(kind, length), 0, at(1)), "{kind}");
        }
    }

    #[test]
    fn frames_are_counted_however_they_are_cut() {
        for step in 1..30 {
            let mut counter = counter();
            let frames = [frame(PING, 8), frame(DATA, 20), frame(HEADERS, 2)].concat().repeat(10);
            for piece in frames.chunks(step) {
                assert!(!counter.is_flood(piece, 0, at(1)));
            }
            assert_eq!(counter.budget, BURST.min(BURST - 10 + 10 * FRAMES_PER_REQUEST), "{step}");
            assert_eq!((counter.payload_left, counter.head_length), (0, 0), "{step}");
        }
    }

    #[test]
    fn requests_bodies_and_time_allow_more_frames() {
        let mut counter = counter();
        let mut sent = 0;
        for _ in 0..BURST {
            // A download: two updates of windows for 4 KiB.
            sent += 4096;
            assert!(!counter.is_flood(&frame(WINDOW_UPDATE, 4).repeat(2), sent, at(1)));
            // A request that is reset.
            assert!(!counter.is_flood(&[frame(HEADERS, 9), frame(3, 4)].concat(), sent, at(1)));
        }
        for second in 0..BURST {
            let now = at(2 + second);
            assert!(!counter.is_flood(&frame(PING, 8).repeat(100), sent, now), "{second}");
        }
    }
}
