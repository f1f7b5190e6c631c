//! The nearest known word to a misspelt one. Pure text; it must never know what the words mean.

/// The candidate that `word` most likely meant, if one is near enough: a third of its letters may
/// be wrong, missing, too many or swapped with their neighbour.
pub(super) fn nearest<'a>(
    word: &str,
    candidates: impl Iterator<Item = &'a str>,
) -> Option<&'a str> {
    let word: Vec<char> = word.chars().take(LETTERS_MAX + 1).collect();
    if word.len() > LETTERS_MAX {
        return None;
    }
    let allowed = (word.len() / 3).max(1);
    candidates
        .map(|candidate| (distance(&word, &candidate.chars().collect::<Vec<_>>()), candidate))
        .filter(|(steps, _)| *steps <= allowed)
        .min_by_key(|(steps, _)| *steps)
        .map(|(_, candidate)| candidate)
}

/// No known word is near this length, and the cost is its square.
const LETTERS_MAX: usize = 64;

/// How many letters must be added, removed, changed or swapped with their neighbour.
fn distance(a: &[char], b: &[char]) -> usize {
    let mut older: Vec<usize> = Vec::new();
    let mut above: Vec<usize> = (0..=b.len()).collect();
    for i in 1..=a.len() {
        let mut row = vec![i];
        for j in 1..=b.len() {
            let changed = above[j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut best = changed.min(above[j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                best = best.min(older[j - 2] + 1);
            }
            row.push(best);
        }
        older = std::mem::replace(&mut above, row);
    }
    above[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(word: &str, expected: Option<&str>) {
        let known = ["workers", "worker_class", "timeout", "bind", "user", "umask"];
        assert_eq!(nearest(word, known.into_iter()), expected);
    }

    #[test]
    fn small_slips_are_recognised() {
        check("wokers", Some("workers"));
        check("worker", Some("workers"));
        check("wrokers", Some("workers"));
        check("timeuot", Some("timeout"));
        check("bnid", Some("bind"));
        check("worker-class", Some("worker_class"));
    }

    #[test]
    fn strange_words_are_not() {
        check("colour", None);
        check("", None);
        check(&"workers".repeat(20), None);
    }
}
