//! What the child reports to its master, as messages of one size.

use crate::time::MonotonicTime;

/// The size of a message in bytes. A pipe passes it whole.
pub(crate) const MESSAGE_BYTES: usize = 128;

const TEXT_AT: usize = 16;
#[cfg(any(test, feature = "leader"))]
const TEXT_MAX: usize = MESSAGE_BYTES - TEXT_AT;

/// What the child knows of the lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Report {
    /// This master leads until then.
    Leading { until: MonotonicTime },
    /// Another holds the lease, or nobody does and this master could not get it.
    Standby { holder: String },
    /// The store did not answer, or not as it should: nothing new is known.
    Unreachable { reason: String },
}

impl Report {
    /// Writes it as a message. A longer text is cut off.
    #[cfg(any(test, feature = "leader"))]
    pub(crate) fn encode(&self) -> [u8; MESSAGE_BYTES] {
        let mut message = [0; MESSAGE_BYTES];
        let (kind, until, text) = match self {
            Self::Leading { until } => (b'L', until.as_nanos(), ""),
            Self::Standby { holder } => (b'S', 0, holder.as_str()),
            Self::Unreachable { reason } => (b'U', 0, reason.as_str()),
        };
        message[0] = kind;
        message[8..TEXT_AT].copy_from_slice(&until.to_le_bytes());
        let text = &text.as_bytes()[..text.floor_char_boundary(TEXT_MAX)];
        message[TEXT_AT..TEXT_AT + text.len()].copy_from_slice(text);
        message
    }

    /// Reads a message. Returns `None` if it is none.
    pub(crate) fn decode(message: &[u8; MESSAGE_BYTES]) -> Option<Self> {
        let mut until = [0; 8];
        until.copy_from_slice(&message[8..TEXT_AT]);
        let text = &message[TEXT_AT..];
        let length = text.iter().position(|byte| *byte == 0).unwrap_or(text.len());
        let text = String::from_utf8_lossy(&text[..length]).into_owned();
        match message[0] {
            b'L' => {
                let until = MonotonicTime::from_nanos(u64::from_le_bytes(until));
                Some(Self::Leading { until })
            }
            b'S' => Some(Self::Standby { holder: text }),
            b'U' => Some(Self::Unreachable { reason: text }),
            _ => None,
        }
    }
}
