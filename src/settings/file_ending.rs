//! How the text of a settings file ends, by which a reload recognizes a file that is emptied or cut
//! off. Pure.

use std::path::PathBuf;

/// What is remembered of a settings file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct FileSummary {
    pub(super) path: PathBuf,
    pub(super) ending: FileEnding,
    /// Whether another file includes it, not the command line.
    pub(super) is_included: bool,
    /// The directories that it includes.
    pub(super) included_dirs: Vec<PathBuf>,
}

/// How a settings file ends. A prefix of a text never compares as greater than the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum FileEnding {
    /// The file sets no key.
    NoKey,
    /// The last line has no line feed.
    NoLineFeed,
    /// The last line has a line feed.
    LineFeed,
    /// The last line is `...`, the end of a YAML document.
    DocumentEnd,
}

impl FileEnding {
    /// Returns the ending of a text that sets keys.
    pub(super) fn of(text: &str) -> Self {
        let last_line = text.lines().rev().find(|line| !line.trim().is_empty());
        if last_line.is_some_and(|line| line.trim_end() == "...") {
            Self::DocumentEnd
        } else if text.ends_with('\n') {
            Self::LineFeed
        } else {
            Self::NoLineFeed
        }
    }
}

/// Returns the reason why `new` cannot replace `current`: it looks emptied or cut off.
pub(super) fn truncation_reason(current: &FileSummary, new: &FileSummary) -> Option<String> {
    if new.ending >= current.ending {
        return None;
    }
    let path = new.path.display();
    Some(match (new.ending, current.ending) {
        (FileEnding::NoKey, _) => format!(
            "{path} sets no key, but it did: it looks emptied; restore it, or restart to return to \
             the defaults"
        ),
        (_, FileEnding::DocumentEnd) => format!(
            "{path} does not end in the line `...`, but it did: it looks cut off; restore the line, \
             or restart"
        ),
        _ => format!(
            "{path} does not end in a line feed, but it did: it looks cut off; end its last line, \
             or restart"
        ),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ending_of_text_is_its_last_line() {
        for (text, ending) in [
            ("workers: 2", FileEnding::NoLineFeed),
            ("workers: 2\n", FileEnding::LineFeed),
            ("workers: 2\r\n", FileEnding::LineFeed),
            ("workers: 2\n...", FileEnding::DocumentEnd),
            ("workers: 2\r\n...\r\n\r\n", FileEnding::DocumentEnd),
            ("app: ...\n", FileEnding::LineFeed),
        ] {
            assert_eq!(FileEnding::of(text), ending, "{text:?}");
        }
    }

    #[test]
    fn truncation_reason_only_if_ending_is_less() {
        use FileEnding::{DocumentEnd, LineFeed, NoKey, NoLineFeed};
        let endings = [NoKey, NoLineFeed, LineFeed, DocumentEnd];
        let summary = |ending| FileSummary {
            path: "x.yaml".into(),
            ending,
            is_included: false,
            included_dirs: Vec::new(),
        };
        for (before, current) in endings.into_iter().enumerate() {
            for (after, new) in endings.into_iter().enumerate() {
                let reason = truncation_reason(&summary(current), &summary(new));
                assert_eq!(reason.is_some(), after < before, "{current:?} {new:?}");
                assert!(reason.is_none_or(|reason| reason.starts_with("x.yaml ")));
            }
        }
    }
}
