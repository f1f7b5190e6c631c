//! Finds the known word that is closest to a misspelt one. Pure text: it must never know the meaning
//! of a word.

/// Returns the closest candidate, if at most a third of the letters of `word` are wrong, missing,
/// superfluous or swapped with their neighbour.
pub(super) fn closest_match<'a>(
    word: &str,
    candidates: impl Iterator<Item = &'a str>,
) -> Option<&'a str> {
    let word: Vec<char> = word.chars().take(CHARS_MAX + 1).collect();
    if word.len() > CHARS_MAX {
        return None;
    }
    let allowed = (word.len() / 3).max(1);
    candidates
        .map(|candidate| (edit_distance(&word, &candidate.chars().collect::<Vec<_>>()), candidate))
        .filter(|(steps, _)| *steps <= allowed)
        .min_by_key(|(steps, _)| *steps)
        .map(|(_, candidate)| candidate)
}

/// Exceeds any known word. Limits the cost, which is quadratic.
const CHARS_MAX: usize = 64;

/// Returns the number of letters to add, remove, change or swap with their neighbour.
fn edit_distance(a: &[char], b: &[char]) -> usize {
    let mut row_before_last: Vec<usize> = Vec::new();
    let mut last_row: Vec<usize> = (0..=b.len()).collect();
    for i in 1..=a.len() {
        let mut row = vec![i];
        for j in 1..=b.len() {
            let changed = last_row[j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut best = changed.min(last_row[j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                best = best.min(row_before_last[j - 2] + 1);
            }
            row.push(best);
        }
        row_before_last = std::mem::replace(&mut last_row, row);
    }
    last_row[b.len()]
}

/// Returns ` (did you mean …?)`, or nothing.
pub(super) fn suggestion_text(closest: Option<&str>) -> String {
    closest.map_or(String::new(), |word| format!(" (did you mean {word}?)"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn assert_closest(word: &str, expected: Option<&str>) {
        let known = ["workers", "worker_class", "timeout", "bind", "user", "umask"];
        assert_eq!(closest_match(word, known.into_iter()), expected);
    }

    #[test]
    fn closest_match_small_typo_is_found() {
        assert_closest("wokers", Some("workers"));
        assert_closest("worker", Some("workers"));
        assert_closest("wrokers", Some("workers"));
        assert_closest("timeuot", Some("timeout"));
        assert_closest("bnid", Some("bind"));
        assert_closest("worker-class", Some("worker_class"));
    }

    #[test]
    fn closest_match_unrelated_word_is_none() {
        assert_closest("colour", None);
        assert_closest("", None);
        assert_closest(&"workers".repeat(20), None);
    }
}
