//! Text for people: safe to print, and in columns. Pure.

use std::time::Duration;

/// How many characters of one text are shown.
const TEXT_CHARS_MAX: usize = 4096;

/// Returns whether a terminal may act on a character, or show the text around it in another order.
fn is_unsafe(character: char) -> bool {
    character.is_control()
        || matches!(character, '\u{061c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

/// Returns a text that is safe to print in one line: unsafe characters are escaped, and what is too
/// long is cut.
pub(crate) fn printable(text: &str) -> String {
    let mut safe = String::with_capacity(text.len().min(TEXT_CHARS_MAX));
    for (count, character) in text.chars().enumerate() {
        if count == TEXT_CHARS_MAX {
            safe.push('…');
            break;
        }
        if is_unsafe(character) {
            safe.extend(character.escape_default());
        } else {
            safe.push(character);
        }
    }
    safe
}

/// Returns JSON in which each unsafe character is escaped. In JSON they occur in strings only, where an
/// escape means the same.
pub(crate) fn printable_json(json: &str) -> String {
    let mut safe = String::with_capacity(json.len());
    for character in json.chars() {
        if character != '\n' && is_unsafe(character) {
            let mut units = [0; 2];
            for unit in character.encode_utf16(&mut units) {
                safe.push_str(&format!("\\u{unit:04x}"));
            }
        } else {
            safe.push(character);
        }
    }
    safe
}

/// Returns a time in at most two units, such as `2m 3s`, `1.2s` or `120ms`.
pub(crate) fn duration(millis: u64) -> String {
    let seconds = millis / 1000;
    match seconds {
        0 => format!("{millis}ms"),
        1..=9 => format!("{seconds}.{}s", millis % 1000 / 100),
        10..=59 => format!("{seconds}s"),
        60..=3599 => format!("{}m {}s", seconds / 60, seconds % 60),
        3600..=86_399 => format!("{}h {}m", seconds / 3600, seconds % 3600 / 60),
        _ => format!("{}d {}h", seconds / 86_400, seconds % 86_400 / 3600),
    }
}

/// Returns a count of bytes, such as `12.5M`.
pub(crate) fn bytes(count: u64) -> String {
    let mut value = count as f64;
    for unit in ["B", "K", "M", "G"] {
        if value < 1000.0 {
            let is_small = value < 10.0 && unit != "B";
            return if is_small {
                format!("{value:.1}{unit}")
            } else {
                format!("{value:.0}{unit}")
            };
        }
        value /= 1024.0;
    }
    format!("{value:.1}T")
}

/// Parses a number of seconds, or a number with `ms`, `s`, `m` or `h`.
///
/// # Errors
/// A message that can follow the quoted text.
pub(crate) fn parse_duration(text: &str) -> Result<Duration, String> {
    let cut = text.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(text.len());
    let (number, unit) = text.split_at(cut);
    let factor = match unit {
        "ms" => 0.001,
        "" | "s" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        _ => return Err("the units are ms, s, m and h".to_owned()),
    };
    let is_number = number.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
    let value = number.parse::<f64>().ok().filter(|_| is_number);
    let value = value.ok_or("give a number of seconds, or a number with ms, s, m or h")?;
    Duration::try_from_secs_f64(value * factor)
        .ok()
        .filter(|duration| *duration <= Duration::from_secs(10 * 365 * 24 * 3600))
        .ok_or_else(|| "it is too long".to_owned())
}

/// A table with aligned columns.
pub(crate) struct Table {
    /// Whether each column has numbers, which end at its right side.
    is_number: Vec<bool>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// Creates a table with these headings. One that begins with `>` is that of a column of numbers.
    pub(crate) fn new(headings: &[&str]) -> Self {
        let is_number = headings.iter().map(|heading| heading.starts_with('>')).collect();
        let headings = headings.iter().map(|heading| heading.trim_start_matches('>').to_owned());
        Self { is_number, rows: vec![headings.collect()] }
    }

    pub(crate) fn add(&mut self, row: Vec<String>) {
        self.rows.push(row);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.rows.len() == 1
    }

    /// Returns its lines, each with an end of line and without spaces before it.
    pub(crate) fn render(&self) -> String {
        let width = |column: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(column));
            cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..self.is_number.len()).map(width).collect();
        let mut text = String::new();
        for row in &self.rows {
            let mut line = String::new();
            for ((cell, width), is_number) in row.iter().zip(&widths).zip(&self.is_number) {
                let padding = " ".repeat(width.saturating_sub(cell.chars().count()));
                let (left, right) = if *is_number { (&*padding, "") } else { ("", &*padding) };
                line.extend([left, cell.as_str(), right, "  "]);
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn printable_escapes_what_a_terminal_acts_on() {
        assert_eq!(printable("GET /a\u{1b}[2J\r\n\u{9b}31m"), "GET /a\\u{1b}[2J\\r\\n\\u{9b}31m");
        assert_eq!(printable("a\u{202e}b\u{200b}"), "a\\u{202e}b\\u{200b}");
        assert_eq!(printable("grün 漢"), "grün 漢");
        let long = printable(&"x".repeat(100_000));
        assert_eq!(long.chars().count(), TEXT_CHARS_MAX + 1);
    }

    #[test]
    fn printable_json_stays_the_same_value() {
        let value = serde_json::json!({"a": "\u{1b}\u{9b}\u{7f}\u{61c}\u{202e}\u{feff}\n"});
        let safe = printable_json(&value.to_string());
        assert!(!safe.chars().any(is_unsafe) && !safe.contains('\u{61c}'), "{safe:?}");
        assert_eq!(serde_json::from_str::<serde_json::Value>(&safe).ok(), Some(value));
    }

    #[test]
    fn duration_has_two_units_at_most() {
        let shown = [0, 999, 1234, 59_999, 123_000, 7_380_000, 200_000_000].map(duration);
        assert_eq!(shown, ["0ms", "999ms", "1.2s", "59s", "2m 3s", "2h 3m", "2d 7h"]);
        assert_eq!(
            [0, 999, 2048, 12_345_678, 5 << 30].map(bytes),
            ["0B", "999B", "2.0K", "12M", "5.0G"]
        );
        assert_eq!(bytes(u64::MAX), "16777216.0T");
    }

    #[test]
    fn parse_duration_accepts_units_and_nothing_else() {
        assert_eq!(parse_duration("1.5"), Ok(Duration::from_millis(1500)));
        assert_eq!(parse_duration("20ms"), Ok(Duration::from_millis(20)));
        for wrong in ["", "s", "-1", "1d", "inf", "nan", "1e9", "1.1.1", "99999999999h"] {
            assert!(parse_duration(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn table_aligns_its_columns() {
        let mut table = Table::new(&["NAME", ">PID", "WORKS ON"]);
        assert!(table.is_empty());
        table.add(vec!["a".into(), "12".into(), "GET /".into()]);
        table.add(vec!["longer".into(), "3456".into(), String::new()]);
        assert_eq!(table.render(), "NAME     PID  WORKS ON\na         12  GET /\nlonger  3456\n");
    }
}
