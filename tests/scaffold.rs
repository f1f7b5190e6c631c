//! `ostler new`: the crate that it creates builds, passes its own test, and has clean code.

#![allow(clippy::unwrap_used, clippy::print_stderr)]

use std::env;
use std::ffi::OsStr;
use std::fs;
use std::path::Path;
use std::process::{Command, Output};
use std::sync::{Mutex, PoisonError};

const NAME: &str = "first-steps";

fn ostler(folder: &Path, words: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ostler"));
    command.args(words).current_dir(folder).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Runs cargo in the new crate, offline, with what this package's build has fetched.
fn cargo(folder: &Path, words: &[&str]) -> Output {
    let program = env::var_os("CARGO").unwrap_or_else(|| OsStr::new("cargo").to_owned());
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap();
    let mut command = Command::new(program);
    command.args(words).current_dir(folder).env("CARGO_TARGET_DIR", target);
    command.env("CARGO_NET_OFFLINE", "true");
    command.output().unwrap()
}

/// Returns whether this part of cargo is installed.
fn has(subcommand: &str) -> bool {
    let there = cargo(Path::new("/"), &[subcommand, "--version"]).status.success();
    if !there {
        eprintln!("skipped: there is no cargo {subcommand}");
    }
    there
}

#[track_caller]
fn must_succeed(folder: &Path, words: &[&str]) -> String {
    let output = cargo(folder, words);
    let all = text(&output.stdout) + &text(&output.stderr);
    assert!(output.status.success(), "cargo {words:?}:\n{all}");
    all
}

#[test]
#[ignore = "slow"]
fn new_crate_passes_its_tests_and_all_lints() {
    let tests = ["program_every_class_serves_and_stops", "solo_fulfils_its_contract"];
    expect_crate_passes(&[], &tests);
}

#[test]
#[ignore = "slow"]
fn new_axum_crate_passes_its_tests_and_all_lints() {
    expect_crate_passes(&["--template", "axum"], &["service_recovers_from_a_hang_and_stops"]);
}

/// Creates a crate, and checks it with these tests and all lints.
#[track_caller]
fn expect_crate_passes(args: &[&str], tests: &[&str]) {
    // The crates have one name and one directory for what cargo builds.
    static TURN: Mutex<()> = Mutex::new(());
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    // The same directory each time, so that cargo's output does not accumulate.
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("scaffold{}", args.concat()));
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder).unwrap();
    let root = env!("CARGO_MANIFEST_DIR");
    let output = ostler(&folder, &[&["new", NAME, "--path", root], args].concat());
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(text(&output.stdout).starts_with("created first-steps: "), "{}", text(&output.stdout));
    let home = folder.join(NAME);
    // The versions that are already fetched.
    fs::copy(Path::new(root).join("Cargo.lock"), home.join("Cargo.lock")).unwrap();
    let resolved = cargo(&home, &["metadata", "--offline", "--format-version", "1"]);
    if !resolved.status.success() {
        eprintln!("skipped: cargo cannot resolve offline:\n{}", text(&resolved.stderr));
        return;
    }
    let said = must_succeed(&home, &["test", "--offline"]);
    for test in tests {
        assert!(said.contains(&format!("test {test} ... ok")), "{said}");
    }
    must_succeed(
        &home,
        &["run", "--offline", "--", "-c", "config/first-steps.yaml", "--check-config"],
    );
    if has("fmt") {
        // Formatted as a crate elsewhere: this package's own rustfmt.toml does not apply there.
        let usual = "max_width=100,use_small_heuristics=Default";
        must_succeed(&home, &["fmt", "--check", "--", "--config", usual]);
    }
    if has("clippy") {
        must_succeed(&home, &["clippy", "--offline", "--all-targets", "--", "-D", "warnings"]);
    }
}

#[test]
fn new_crate_without_path_depends_on_the_checkout() {
    let folder = tempfile::tempdir().unwrap();
    let created = ostler(folder.path(), &["new", NAME]);
    assert!(created.status.success());
    let home = folder.path().join(NAME);
    let manifest = fs::read_to_string(home.join("Cargo.toml")).unwrap();
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let (dependency, note) = match root.join(".git").exists() {
        true => (format!("path = {root:?}"), "It depends on the checkout"),
        false => (format!("version = {:?}", env!("CARGO_PKG_VERSION")), "If that is not published"),
    };
    assert!(manifest.contains(&format!("\nostler = {{ {dependency}, ")), "{manifest}");
    assert!(manifest.contains("[profile.release]"), "{manifest}");
    assert!(manifest.contains("\ndebug = \"line-tables-only\"\n"), "{manifest}");
    assert!(text(&created.stdout).contains(note), "{}", text(&created.stdout));
    let mut left = Vec::new();
    collect(&home, &mut left);
    assert!(left.iter().all(|text| !text.contains('@')), "{left:#?}");
    assert_eq!(left.len(), 9);
    let again = ostler(folder.path(), &["new", NAME]);
    assert_eq!(again.status.code(), Some(1));
    let expected = "ostler new: \"first-steps\" already exists: choose another name\n";
    assert_eq!(text(&again.stderr), expected);
}

/// Collects the contents of all files below a directory.
fn collect(folder: &Path, texts: &mut Vec<String>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => collect(&path, texts),
            false => texts.push(fs::read_to_string(path).unwrap()),
        }
    }
}

#[test]
fn bad_names_and_directories_are_rejected() {
    let folder = tempfile::tempdir().unwrap();
    let bad = ostler(folder.path(), &["new", "1st"]);
    assert_eq!((bad.status.code(), text(&bad.stdout)), (Some(2), String::new()));
    assert!(text(&bad.stderr).starts_with("ostler new: \"1st\" is not"), "{}", text(&bad.stderr));
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    // In /proc not even root can create a directory.
    let worker = ostler(Path::new("/proc"), &["new", NAME]);
    assert_eq!(worker.status.code(), Some(1));
    assert!(text(&worker.stderr).starts_with("ostler new: failed to create \"first-steps\": "));
}

#[test]
fn new_is_a_command_only_as_first_word() {
    let folder = tempfile::tempdir().unwrap();
    let app = ostler(folder.path(), &["--check-config", "new"]);
    assert_eq!(app.status.code(), Some(1));
    assert!(text(&app.stderr).contains("unknown app \"new\""), "{}", text(&app.stderr));
    let help = ostler(folder.path(), &["new", "--help"]);
    assert!(help.status.success() && text(&help.stdout).contains("Usage: ostler new NAME"));
    let help = ostler(folder.path(), &["--help"]);
    assert!(text(&help.stdout).contains("\nostler new NAME creates a starter crate"));
}
