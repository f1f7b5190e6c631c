//! Checks the name of a pool.

const POOL_NAME_BYTES_LIMIT: usize = 32;

/// Returns why a name is not a valid pool name; `None` if it is valid.
pub(super) fn pool_name_error(name: &str) -> Option<&'static str> {
    let is_allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_' || b == b'-';
    let is_allowed_first = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let is_good = name.len() <= POOL_NAME_BYTES_LIMIT
        && name.as_bytes().first().is_some_and(is_allowed_first)
        && name.bytes().all(is_allowed);
    (!is_good).then_some(
        "is not the name of a pool: give at most 32 of a-z, 0-9, _ and -, and a letter or digit \
         first",
    )
}
