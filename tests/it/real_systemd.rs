//! The units of `config/systemd/`, checked by systemd's own tools and run by a systemd that is booted
//! as PID 1 of a container. `debian_package` boots one too.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use nix::unistd::Uid;
use tempfile::TempDir;

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

/// A container whose systemd runs the parts of a script.
pub struct Container {
    dir: TempDir,
}

impl Container {
    /// Returns nothing, and says why, if this machine does not permit containers.
    pub fn new() -> Option<Self> {
        if !Uid::effective().is_root() || run("systemd-nspawn", &["--version"]).is_none() {
            eprintln!("skipped: requires root and systemd-nspawn");
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        let container = Self { dir };
        fs::create_dir_all(container.units()).unwrap();
        fs::create_dir_all(container.out()).unwrap();
        for name in ["test.target", "test.service"] {
            fs::copy(source("tests/it/real_systemd").join(name), container.units().join(name))
                .unwrap();
        }
        let functions = container.out().join("functions.sh");
        fs::copy(source("tests/it/real_systemd/functions.sh"), functions).unwrap();
        Some(container)
    }

    /// The directory that is `/etc/systemd/system` in the container.
    pub fn units(&self) -> PathBuf {
        self.dir.path().join("units")
    }

    /// The directory that is `/out` in the container.
    pub fn out(&self) -> PathBuf {
        self.dir.path().join("out")
    }

    /// Boots the container, in which each file appears at a path, and asserts that every part of the
    /// script passes.
    pub fn run_parts(&self, script: &str, files: &[(&Path, &str)]) {
        let test = self.out().join("test.sh");
        fs::copy(source(script), &test).unwrap();
        fs::set_permissions(&test, fs::Permissions::from_mode(0o755)).unwrap();
        let text = |path: &Path| path.to_str().unwrap().to_owned();
        let mut args = vec!["--kill-after=10".to_owned(), "400".to_owned()];
        args.push(text(&source("tests/it/real_systemd/boot.sh")));
        args.extend([text(&self.units()), text(&self.out())]);
        args.extend(files.iter().map(|(file, path)| format!("{}:{path}", text(file))));
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let Some(booted) = run("timeout", &args) else { return };
        let Ok(results) = fs::read_to_string(self.out().join("results")) else {
            // Say a container without the right to make another one.
            eprintln!("skipped: systemd did not boot: {booted:?}");
            return;
        };
        let log = fs::read_to_string(self.out().join("log")).unwrap_or_default();
        let passed = results.lines().filter(|line| line.starts_with("passed ")).count();
        let script = fs::read_to_string(test).unwrap();
        let parts = script.lines().filter(|line| line.starts_with("part ")).count();
        assert_eq!((passed, results.lines().count()), (parts, parts), "{results}\n{log}");
    }
}

#[test]
#[ignore = "slow"]
fn service_runs_under_a_real_systemd() {
    let Some(container) = Container::new() else { return };
    let drop_ins = container.units().join("ostler.service.d");
    fs::create_dir_all(&drop_ins).unwrap();
    copy_units(&container.units());
    let drop_in = "[Service]\nWatchdogSec=3s\n";
    fs::write(drop_ins.join("watchdog.conf"), drop_in).unwrap();
    let reload = "[Service]\nExecReload=/bin/kill -HUP $MAINPID\n"; // also for versions before 253
    fs::write(drop_ins.join("reload.conf"), reload).unwrap();
    let sysusers = source("config/systemd/ostler.sysusers");
    container.run_parts(
        "tests/it/real_systemd/test.sh",
        &[
            (Path::new(env!("CARGO_BIN_EXE_ostler")), "/usr/bin/ostler"),
            (&sysusers, "/usr/lib/sysusers.d/ostler.conf"),
        ],
    );
}
