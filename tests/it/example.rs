//! Where the examples are, which plain `cargo test` builds beside its tests.

use std::env;
use std::path::PathBuf;

/// Returns the executable of an example, or `None` if it was not built, as under `cargo test --test
/// examples`.
pub fn example(name: &str) -> Option<PathBuf> {
    let test = env::current_exe().unwrap(); // target/debug/deps/examples-…
    let path = test.ancestors().nth(2).unwrap().join("examples").join(name);
    if !path.exists() {
        eprintln!("skipped: {} is not there; plain `cargo test` builds it", path.display());
        return None;
    }
    Some(path)
}
