//! Core dumps of crashing workers, in a directory of the test.

use std::fs;
use std::path::{Path, PathBuf};

use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit};

use crate::stuck_fs::StuckFs;

/// Returns whether no limit applies to core dumps of child processes.
pub fn may_dump_cores() -> bool {
    getrlimit(Resource::RLIMIT_CORE).is_ok_and(|(_, most)| most == RLIM_INFINITY)
}

/// Blocks core dumps into this directory until the returned value is dropped. Returns `None` and
/// prints the reason if the machine does not allow it.
pub fn hold_cores(dir: &Path) -> Option<StuckFs> {
    let pattern = fs::read_to_string("/proc/sys/kernel/core_pattern").unwrap_or_default();
    if !may_dump_cores() || pattern.contains(['|', '/', '@']) {
        eprintln!("skipped: no core of our own, by the limit or the pattern {pattern:?}");
        return None;
    }
    StuckFs::new(dir)
}

/// Asserts that a directory holds one core file, with all the memory that its header lists.
#[track_caller]
pub fn expect_whole_core(dir: &Path) {
    let paths = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    let is_core = |path: &PathBuf| path.is_file() && !path.ends_with("log");
    let cores: Vec<_> = paths.filter(is_core).collect();
    assert_eq!(cores.len(), 1, "{cores:?}");
    let bytes = fs::read(&cores[0]).unwrap();
    let number = |at: usize, size: usize| {
        let mut word = [0; 8];
        word[..size].copy_from_slice(&bytes[at..at + size]);
        u64::from_le_bytes(word)
    };
    assert_eq!((&bytes[..5], number(16, 2)), (&b"\x7fELF\x02"[..], 4), "not a core of 64 bits");
    let (table, size, count) = (number(32, 8), number(54, 2), number(56, 2));
    let ends = (0..count).map(|index| {
        let entry = usize::try_from(table + index * size).unwrap();
        number(entry + 8, 8) + number(entry + 32, 8)
    });
    let end = ends.max().unwrap_or_default();
    assert!(count > 3 && end > 100_000, "{count} parts up to {end}");
    assert_eq!(bytes.len() as u64, end, "it was cut short");
}
