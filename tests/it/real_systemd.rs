//! The units of `config/systemd/`, checked by systemd's own tools and run by a systemd that is booted
//! as PID 1 of a container.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use nix::unistd::Uid;

/// Returns a path below the repository.
fn source(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// Runs a program, if it is installed; otherwise prints that the test is skipped.
#[expect(clippy::print_stderr, reason = "a test that does not run says so")]
fn run(program: &str, args: &[&str]) -> Option<Output> {
    let output = Command::new(program).args(args).stdin(Stdio::null()).output();
    if let Err(error) = &output {
        eprintln!("skipped: {program} does not run: {error}");
    }
    output.ok()
}

/// Copies the units into a directory.
fn copy_units(dir: &Path) {
    for entry in fs::read_dir(source("config/systemd")).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, dir.join(path.file_name().unwrap())).unwrap();
    }
}

#[test]
fn units_are_valid_and_confined() {
    let dir = tempfile::tempdir().unwrap();
    copy_units(dir.path());
    for name in ["ostler.service", "ostler@shop.service"] {
        let path = dir.path().join(name);
        if name.contains('@') {
            fs::rename(dir.path().join("ostler@.service"), &path).unwrap();
        }
        // The program and the user of the unit need not exist on this machine.
        let text = fs::read_to_string(&path).unwrap();
        fs::write(&path, text.replace("/usr/bin/ostler", env!("CARGO_BIN_EXE_ostler"))).unwrap();
        let path = path.to_str().unwrap();
        let Some(output) = run("systemd-analyze", &["verify", path]) else { return };
        let messages = String::from_utf8_lossy(&output.stderr).into_owned();
        // Versions before 253 keep the type that stands before this one.
        let is_expected = |line: &&str| line.contains("notify-reload") || line.contains("man ");
        let unexpected: Vec<_> =
            messages.lines().filter(|line| line.contains("ostler") && !is_expected(line)).collect();
        assert_eq!(unexpected, [""; 0]);
        let args = ["security", "--offline=yes", "--threshold=25", "--no-pager", path];
        let Some(output) = run("systemd-analyze", &args) else { return };
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "exposure above 2.5: {text}");
    }
}

#[test]
fn template_differs_from_the_service_by_its_name_only() {
    let read = |name: &str| fs::read_to_string(source("config/systemd").join(name)).unwrap();
    let instance = read("ostler@.service").replace("ostler/%i", "ostler");
    let instance = instance.replace("/etc/ostler/%i", "/etc/ostler/ostler");
    let body = |text: &str| text[text.find("[Service]").unwrap()..].to_owned();
    assert_eq!(body(&instance.replace("/etc/ostler.yaml", "/etc/ostler/ostler.yaml")), {
        body(&read("ostler.service"))
    });
}

#[test]
#[ignore = "slow"]
fn service_runs_under_a_real_systemd() {
    if !Uid::effective().is_root() || run("systemd-nspawn", &["--version"]).is_none() {
        eprintln!("skipped: requires root and systemd-nspawn");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (units, out) = (dir.path().join("units"), dir.path().join("out"));
    let drop_ins = units.join("ostler.service.d");
    fs::create_dir_all(&drop_ins).unwrap();
    fs::create_dir_all(&out).unwrap();
    copy_units(&units);
    for name in ["test.target", "test.service"] {
        fs::copy(source("tests/it/real_systemd").join(name), units.join(name)).unwrap();
    }
    let drop_in = "[Service]\nWatchdogSec=3s\n";
    fs::write(drop_ins.join("watchdog.conf"), drop_in).unwrap();
    let reload = "[Service]\nExecReload=/bin/kill -HUP $MAINPID\n"; // also for versions before 253
    fs::write(drop_ins.join("reload.conf"), reload).unwrap();
    fs::copy(source("tests/it/real_systemd/test.sh"), out.join("test.sh")).unwrap();
    fs::set_permissions(out.join("test.sh"), fs::Permissions::from_mode(0o755)).unwrap();
    let text = |path: &Path| path.to_str().unwrap().to_owned();
    let sysusers = source("config/systemd/ostler.sysusers");
    let booted = run(
        "timeout",
        &[
            "--kill-after=10",
            "400",
            &text(&source("tests/it/real_systemd/boot.sh")),
            &text(&units),
            &text(&out),
            &format!("{}:/usr/bin/ostler", env!("CARGO_BIN_EXE_ostler")),
            &format!("{}:/usr/lib/sysusers.d/ostler.conf", text(&sysusers)),
        ],
    );
    let Some(booted) = booted else { return };
    let Ok(results) = fs::read_to_string(out.join("results")) else {
        // Say a container without the right to make another one.
        eprintln!("skipped: systemd did not boot: {booted:?}");
        return;
    };
    let log = fs::read_to_string(out.join("log")).unwrap_or_default();
    let passed = results.lines().filter(|line| line.starts_with("passed ")).count();
    let script = fs::read_to_string(source("tests/it/real_systemd/test.sh")).unwrap();
    let parts = script.lines().filter(|line| line.starts_with("part ")).count();
    assert_eq!((passed, results.lines().count()), (parts, parts), "{results}\n{log}");
}
