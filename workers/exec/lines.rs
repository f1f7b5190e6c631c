//! Splits what a program prints into lines for the log. Pure, and of bounded size.

/// The longest line that is logged, in bytes: with its fields it fits one log record.
pub(super) const LINE_BYTES_MAX: usize = 3 << 10;

/// The incomplete line of a stream.
#[derive(Debug, Default)]
pub(super) struct Lines {
    partial: Vec<u8>,
    /// The line was logged up to the limit; its rest is dropped.
    cut: bool,
}

impl Lines {
    /// Takes a piece of the stream, and passes on each line that it completes. Empty lines are left out,
    /// and long ones are cut.
    pub(super) fn feed(&mut self, bytes: &[u8], mut show: impl FnMut(String)) {
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            let (text, ended) = match piece.strip_suffix(b"\n") {
                Some(text) => (text, true),
                None => (piece, false),
            };
            if !self.cut {
                let room = LINE_BYTES_MAX - self.partial.len();
                self.partial.extend_from_slice(&text[..text.len().min(room)]);
                if text.len() > room {
                    self.cut = true;
                    show(readable(&std::mem::take(&mut self.partial)) + "…");
                }
            }
            if ended {
                self.finish(&mut show);
            }
        }
    }

    /// Passes on the incomplete line.
    pub(super) fn finish(&mut self, mut show: impl FnMut(String)) {
        let line = std::mem::take(&mut self.partial);
        let line = line.strip_suffix(b"\r").unwrap_or(&line);
        if !line.is_empty() {
            show(readable(line));
        }
        self.cut = false;
    }
}

/// Returns printable text: invalid UTF-8 is replaced, and control characters are escaped.
fn readable(line: &[u8]) -> String {
    let mut text = String::with_capacity(line.len());
    for character in String::from_utf8_lossy(line).chars() {
        match character {
            '\t' => text.push('\t'),
            _ if character.is_control() => text.extend(character.escape_default()),
            _ => text.push(character),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the lines of a text that arrives in pieces of this size.
    fn lines(text: &[u8], size: usize) -> Vec<String> {
        let (mut lines, mut shown) = (Lines::default(), Vec::new());
        for piece in text.chunks(size) {
            lines.feed(piece, |line| shown.push(line));
        }
        lines.finish(|line| shown.push(line));
        shown
    }

    #[track_caller]
    fn check(text: &[u8], expected: &[&str]) {
        for size in 1..=text.len().max(1) {
            assert_eq!(lines(text, size), expected, "in pieces of {size}");
        }
    }

    #[test]
    fn lines_do_not_depend_on_chunk_size() {
        check(b"", &[]);
        check(b"one\ntwo\r\n\n\nthree", &["one", "two", "three"]);
        check("a\tb \u{1b}[1mé\u{0}\n".as_bytes(), &["a\tb \\u{1b}[1mé\\u{0}"]);
        check(b"not \xff UTF-8\n", &["not \u{fffd} UTF-8"]);
    }

    #[test]
    fn endless_line_is_cut_and_takes_no_memory() {
        let text = [vec![b'x'; 3 * LINE_BYTES_MAX], b"\nnext\n".to_vec()].concat();
        for size in [1, 1000, LINE_BYTES_MAX, text.len()] {
            let shown = lines(&text, size);
            assert_eq!(shown, ["x".repeat(LINE_BYTES_MAX) + "…", "next".into()]);
        }
        assert_eq!(lines(&vec![b'y'; LINE_BYTES_MAX], 7), ["y".repeat(LINE_BYTES_MAX)]);
        let mut endless = Lines::default();
        (0..1000).for_each(|_| endless.feed(&[b'z'; 1000], |_| ()));
        assert!(endless.partial.capacity() <= 2 * LINE_BYTES_MAX);
    }
}
