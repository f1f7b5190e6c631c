//! The Debian package: its contents, and its life in a container under systemd.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::real_systemd::Container;

/// Builds a package of the programs under test, if dpkg is installed; otherwise prints that the test
/// is skipped.
fn build(revision: &str, out: &Path) -> Option<PathBuf> {
    if Command::new("dpkg-deb").arg("--version").output().is_err() {
        eprintln!("skipped: requires dpkg");
        return None;
    }
    let programs = Path::new(env!("CARGO_BIN_EXE_ostler")).parent().unwrap();
    let output = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging/deb"))
        .args(["--compression", "none", "--revision", revision])
        .args([programs, out])
        .env("SOURCE_DATE_EPOCH", "1700000000")
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    Some(String::from_utf8(output.stdout).unwrap().trim().into())
}

#[test]
#[ignore = "slow"]
fn package_has_each_file_once_and_for_root() {
    let dir = tempfile::tempdir().unwrap();
    let Some(package) = build("1", dir.path()) else { return };
    let output = Command::new("dpkg-deb").arg("--contents").arg(&package).output().unwrap();
    let lines = String::from_utf8(output.stdout).unwrap();
    let mut files = BTreeSet::new();
    for line in lines.lines() {
        let (mode, path) = (&line[..10], line.split_whitespace().next_back().unwrap());
        let expected = match path {
            path if path.ends_with('/') => "drwxr-xr-x",
            path if path.contains("/bin/") => "-rwxr-xr-x",
            _ => "-rw-r--r--",
        };
        assert!(mode == expected && line[11..].starts_with("root/root "), "{line}");
        files.insert(path.trim_start_matches('.').to_owned());
    }
    for path in [
        "/etc/ostler/ostler.yaml",
        "/etc/logrotate.d/ostler",
        "/usr/bin/ostlerctl",
        "/usr/lib/systemd/system/ostler@.service",
        "/usr/lib/sysusers.d/ostler.conf",
        "/usr/share/man/man5/ostler.yaml.5.gz",
        "/usr/share/doc/ostler/copyright",
    ] {
        assert!(files.contains(path), "{path}: {files:#?}");
    }
    let before = fs::read(&package).unwrap();
    build("1", dir.path()).unwrap();
    assert!(before == fs::read(&package).unwrap(), "two builds differ");
}

#[test]
#[ignore = "slow"]
fn package_is_installed_updated_and_purged() {
    let Some(container) = Container::new() else { return };
    for revision in ["1", "2"] {
        let Some(package) = build(revision, &container.out()) else { return };
        fs::rename(package, container.out().join(format!("{revision}.deb"))).unwrap();
    }
    container.run_parts("tests/it/debian_package/test.sh", &[]);
}
