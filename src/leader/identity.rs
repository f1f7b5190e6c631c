//! How a master is called in the store.

/// How many digits at the end of an identity are random.
const RANDOM_DIGITS: usize = 16;

/// Returns the identity of a master. No other has it, nor does a later one with the same process id.
pub(crate) fn identity(host: &str, pid: i32, random: u64) -> String {
    format!("{host}/{pid}/{random:0RANDOM_DIGITS$x}")
}

/// Returns the part of an identity that people read: host and process id. A name that is no identity is
/// returned whole.
pub(crate) fn readable(identity: &str) -> &str {
    let is_random =
        |it: &str| it.len() == RANDOM_DIGITS && it.bytes().all(|byte| byte.is_ascii_hexdigit());
    match identity.rsplit_once('/') {
        Some((name, random)) if name.contains('/') && is_random(random) => name,
        _ => identity,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identity_is_unique_and_its_name_is_read() {
        let it = identity("db-1", 42, 0xff);
        assert_eq!(it, "db-1/42/00000000000000ff");
        assert_eq!(readable(&it), "db-1/42");
        for name in ["", "db-1/42", "pod_0b5e", "a/00000000000000ff", "a/1/0000000000000xff"] {
            assert_eq!(readable(name), name);
        }
    }
}
