//! Server-sent events out of a stream of bytes. Pure.
//!
//! The format is that of the HTML standard, section 9.2.6, without byte order mark and `retry`.

/// How many bytes one event may have.
const EVENT_BYTES_MAX: usize = 1 << 20;

/// One event.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Event {
    pub(crate) id: String,
    pub(crate) kind: String,
    pub(crate) data: String,
}

/// Splits a stream into events.
#[derive(Default)]
pub(crate) struct Decoder {
    /// The bytes of the line that has no end yet.
    line: Vec<u8>,
    event: Event,
    /// Whether the event has data.
    has_data: bool,
    /// Whether the last byte was a carriage return, which a line feed may follow.
    is_after_cr: bool,
}

/// An event was too large.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TooLarge;

impl Decoder {
    /// Takes the next bytes, and passes each event that they complete to `each`.
    ///
    /// # Errors
    /// An event is larger than 1 MiB.
    pub(crate) fn feed(
        &mut self,
        bytes: &[u8],
        mut each: impl FnMut(Event),
    ) -> Result<(), TooLarge> {
        for &byte in bytes {
            let is_after_cr = std::mem::replace(&mut self.is_after_cr, byte == b'\r');
            match byte {
                b'\n' if is_after_cr => (),
                b'\n' | b'\r' => self.end_line(&mut each),
                _ => self.line.push(byte),
            }
            let Event { id, kind, data } = &self.event;
            if self.line.len() + id.len() + kind.len() + data.len() > EVENT_BYTES_MAX {
                return Err(TooLarge);
            }
        }
        Ok(())
    }

    fn end_line(&mut self, each: &mut impl FnMut(Event)) {
        let line = String::from_utf8_lossy(&std::mem::take(&mut self.line)).into_owned();
        if line.is_empty() {
            let mut event = std::mem::take(&mut self.event);
            if std::mem::take(&mut self.has_data) {
                event.data.pop();
                each(event);
            }
            return;
        }
        let (name, value) = line.split_once(':').unwrap_or((&line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match name {
            "event" => value.clone_into(&mut self.event.kind),
            "id" => value.clone_into(&mut self.event.id),
            "data" => {
                self.event.data.push_str(value);
                self.event.data.push('\n');
                self.has_data = true;
            }
            // Among others the empty name of a comment.
            _ => (),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decode(bytes: &[u8], piece: usize) -> Vec<Event> {
        let (mut decoder, mut events) = (Decoder::default(), Vec::new());
        for piece in bytes.chunks(piece) {
            decoder.feed(piece, |event| events.push(event)).expect("small");
        }
        events
    }

    #[test]
    fn events_are_the_same_in_pieces_of_any_size() {
        let stream = ": hello\nid: 7\r\nevent: progress\rdata: {\"a\":\ndata:1}\n\n\n\
                      data\n\nevent: x\n\ndata: last without end";
        let whole = decode(stream.as_bytes(), usize::MAX);
        let first = Event { id: "7".into(), kind: "progress".into(), data: "{\"a\":\n1}".into() };
        assert_eq!(whole, [first, Event::default()]);
        for size in 1..20 {
            assert_eq!(decode(stream.as_bytes(), size), whole, "{size}");
        }
    }

    #[test]
    fn event_without_end_is_refused() {
        for stream in [&b"x"[..], b"data: x\n", b"event: \xff\xff\n"] {
            let mut decoder = Decoder::default();
            let mut fed = Ok(());
            for _ in 0..=EVENT_BYTES_MAX {
                fed = fed.and_then(|()| decoder.feed(stream, |_| ()));
            }
            // A name replaces the one before it.
            let is_replaced = stream.starts_with(b"event");
            assert_eq!(fed.is_ok(), is_replaced);
        }
    }
}
