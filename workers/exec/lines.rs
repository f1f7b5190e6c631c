//! Splits what a program prints into lines for the log, and long lines into pieces. Pure, and of
//! bounded size.

use ostler::log::escaped_len;

/// The longest piece of a line, in bytes of a record: with its fields it fits one log record.
pub(super) const PIECE_BYTES_MAX: usize = 3 << 10;

/// A line that a program has printed, or a piece of a long one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Piece {
    /// Invalid UTF-8 is replaced. Control characters are as they were printed: the log escapes them.
    pub(super) text: String,
    /// Another piece of the same line follows.
    pub(super) is_partial: bool,
}

/// The incomplete line of a stream.
#[derive(Debug, Default)]
pub(super) struct Lines {
    partial: Vec<u8>,
    /// Pieces of the line have been passed on.
    is_split: bool,
}

impl Lines {
    /// Takes a part of the stream, and passes on each line that it completes, and the pieces of a line
    /// that is too long for one record. Empty lines are left out.
    pub(super) fn feed(&mut self, bytes: &[u8], mut show: impl FnMut(Piece)) {
        for part in bytes.split_inclusive(|byte| *byte == b'\n') {
            let (mut text, ended) = match part.strip_suffix(b"\n") {
                Some(text) => (text, true),
                None => (part, false),
            };
            while let Some((now, later)) = text.split_at_checked(self.room())
                && !later.is_empty()
            {
                self.partial.extend_from_slice(now);
                let end = whole_chars_len(&self.partial);
                let line: Vec<u8> = self.partial.drain(..end).collect();
                split_text(&String::from_utf8_lossy(&line), true, &mut show);
                self.is_split = true;
                text = later;
            }
            self.partial.extend_from_slice(text);
            if ended {
                self.finish(&mut show);
            }
        }
    }

    /// Passes on the incomplete line.
    pub(super) fn finish(&mut self, mut show: impl FnMut(Piece)) {
        let line = std::mem::take(&mut self.partial);
        let line = line.strip_suffix(b"\r").unwrap_or(&line);
        if std::mem::take(&mut self.is_split) || !line.is_empty() {
            split_text(&String::from_utf8_lossy(line), false, &mut show);
        }
    }

    fn room(&self) -> usize {
        PIECE_BYTES_MAX - self.partial.len()
    }
}

/// Passes on a text in pieces. `is_partial` tells whether the last one is partial too.
fn split_text(text: &str, is_partial: bool, show: &mut impl FnMut(Piece)) {
    let mut rest = text;
    loop {
        let (piece, later) = rest.split_at(fitting_len(rest));
        let is_partial = is_partial || !later.is_empty();
        show(Piece { text: piece.to_owned(), is_partial });
        if later.is_empty() {
            return;
        }
        rest = later;
    }
}

/// Returns how many bytes of a text fit into one piece.
fn fitting_len(text: &str) -> usize {
    let mut record_bytes = 0;
    let exceeds = |(_, character): &(usize, char)| {
        record_bytes += escaped_len(*character);
        record_bytes > PIECE_BYTES_MAX
    };
    text.char_indices().find(exceeds).map_or(text.len(), |(at, _)| at)
}

/// Returns the length of a text without an incomplete character at its end.
fn whole_chars_len(text: &[u8]) -> usize {
    let is_incomplete = |at: &usize| {
        let end = std::str::from_utf8(&text[*at..]);
        end.is_err_and(|error| error.valid_up_to() == 0 && error.error_len().is_none())
    };
    (text.len().saturating_sub(3)..text.len()).find(is_incomplete).unwrap_or(text.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the pieces of a text that arrives in parts of this size.
    fn pieces(text: &[u8], size: usize) -> Vec<Piece> {
        let (mut lines, mut shown) = (Lines::default(), Vec::new());
        for part in text.chunks(size) {
            lines.feed(part, |piece| shown.push(piece));
        }
        lines.finish(|piece| shown.push(piece));
        shown
    }

    #[track_caller]
    fn check(text: &[u8], expected: &[&str]) {
        for size in 1..=text.len().max(1) {
            let shown = pieces(text, size);
            assert!(shown.iter().all(|piece| !piece.is_partial));
            let shown: Vec<_> = shown.iter().map(|piece| piece.text.as_str()).collect();
            assert_eq!(shown, expected, "in parts of {size}");
        }
    }

    #[test]
    fn lines_do_not_depend_on_chunk_size() {
        check(b"", &[]);
        check(b"one\ntwo\r\n\n\nthree", &["one", "two", "three"]);
        check("a\tb \u{1b}[1mé\u{0}\n".as_bytes(), &["a\tb \u{1b}[1mé\u{0}"]);
        check(b"not \xff UTF-8\n", &["not \u{fffd} UTF-8"]);
    }

    #[test]
    fn long_line_is_split_into_marked_pieces_without_loss() {
        let [plain, wide, escaped] = ["x", "€", "\u{1b}\""];
        for unit in [plain, wide, escaped, "x\u{1b}€\"\\\u{7f}"] {
            for bytes in [PIECE_BYTES_MAX, PIECE_BYTES_MAX + 1, 4 * PIECE_BYTES_MAX] {
                let line = unit.repeat(bytes.div_ceil(unit.len()));
                let text = format!("{line}\r\nnext\n");
                let by_size = [1, 1000, PIECE_BYTES_MAX, text.len()]
                    .map(|size| pieces(text.as_bytes(), size));
                let [shown, others @ ..] = by_size;
                assert!(others.iter().all(|other| *other == shown));
                let [long @ .., next] = &shown[..] else { panic!("two lines") };
                assert_eq!((next.text.as_str(), next.is_partial), ("next", false));
                let [partial @ .., last] = long else { panic!("one line") };
                assert!(partial.iter().all(|piece| piece.is_partial) && !last.is_partial);
                let whole: String = long.iter().map(|piece| piece.text.as_str()).collect();
                assert_eq!(whole, line);
                for Piece { text, .. } in long {
                    let length: usize = text.chars().map(escaped_len).sum();
                    assert!(length <= PIECE_BYTES_MAX, "{length}");
                }
            }
        }
        assert_eq!(pieces(&[b'y'; PIECE_BYTES_MAX], 7).len(), 1);
    }

    #[test]
    fn endless_line_takes_no_memory() {
        let mut endless = Lines::default();
        (0..1000).for_each(|_| endless.feed(&[b'z'; 1000], |_| ()));
        assert!(endless.partial.capacity() <= 2 * PIECE_BYTES_MAX);
    }
}
