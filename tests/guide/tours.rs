//! The tours of README.md and of the quick start: every command of the page is typed in one shell,
//! and the shown output is compared with the real one.

use std::env;
use std::fs::{self, File, OpenOptions};
use std::net::TcpListener;
use std::os::unix::fs::symlink;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{self, Child, Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use super::{GUIDE, Page, Part, root};

/// The longest time of a tour. The machine may be slow, and shared.
const DEADLINE: Duration = Duration::from_secs(300);

/// A shell that runs a tour. Dropping it ends the processes that the tour has started.
struct Shell(Child);

impl Drop for Shell {
    fn drop(&mut self) {
        // The shell and the masters are one process group; workers exit with their master.
        if let Ok(group) = i32::try_from(self.0.id()) {
            let _ = killpg(Pid::from_raw(group), Signal::SIGKILL);
        }
        let _ = self.0.wait();
    }
}

/// Runs the tour in a directory, on a port of its own, and returns its output.
#[track_caller]
fn run_tour(page: &Page, dir: &Path, prelude: &str) -> String {
    let port = free_port();
    let commands: Vec<_> = page.blocks("sh").collect();
    let script =
        format!("{prelude}\n{}", commands.join("\n")).replace(":8000", &format!(":{port}"));
    let output_path = dir.join("said");
    let output_file = OpenOptions::new().create(true).append(true).open(&output_path).unwrap();
    let mut command = Command::new("bash");
    command.args(["-c", &script]).current_dir(dir).process_group(0);
    // Programs without an explicit address use this one.
    command.env("OSTLER_BIND", format!("127.0.0.1:{port}"));
    command.stdin(Stdio::null()).stdout(output_file.try_clone().unwrap()).stderr(output_file);
    let mut shell = Shell(command.spawn().unwrap());
    let end = Instant::now() + DEADLINE;
    while shell.0.try_wait().unwrap().is_none() {
        assert!(
            Instant::now() < end,
            "the tour does not end: {}",
            fs::read_to_string(&output_path).unwrap()
        );
        thread::sleep(Duration::from_millis(20));
    }
    drop(shell);
    fs::read_to_string(output_path).unwrap()
}

/// Returns a free port outside the kernel's ephemeral range. No two tours get the same.
fn free_port() -> u16 {
    const FIRST: u16 = 30_000;
    const COUNT: u16 = 2_000;
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let begin = (process::id() % u32::from(COUNT)) as u16;
    loop {
        let step = NEXT.fetch_add(1, Ordering::Relaxed);
        let port = FIRST + begin.wrapping_add(step) % COUNT;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

/// Asserts that these lines were printed, where `…` matches anything: log records in this order,
/// and all other lines in this order.
#[track_caller]
fn assert_output(output: &str, expected: &[&str]) {
    let is_record = |line: &&str| [" INFO ", " WARN ", " ERRO "].iter().any(|l| line.contains(l));
    let (records, others): (Vec<&str>, Vec<&str>) = expected.iter().copied().partition(is_record);
    for wanted in [records, others] {
        let mut lines = output.lines();
        for wanted in wanted {
            let found = lines.any(|line| {
                let mut pieces = wanted.split('…');
                pieces.try_fold(line, |rest, piece| Some(rest.split_once(piece)?.1)).is_some()
            });
            assert!(found, "not said, or too early: {wanted}\nin:\n{output}");
        }
    }
}

/// Returns an empty directory of this name, the same each time, so that cargo's output does not
/// accumulate.
fn empty_dir(name: &str) -> PathBuf {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let _ = fs::remove_dir_all(&dir);
    fs::create_dir_all(&dir).unwrap();
    dir
}

#[test]
fn readme_tour_works() {
    let dir = empty_dir("readme");
    fs::create_dir_all(dir.join("target/release")).unwrap();
    symlink(env!("CARGO_BIN_EXE_ostler"), dir.join("target/release/ostler")).unwrap();
    let page = Page::read(Path::new("README.md"));
    let begin =
        page.parts.iter().position(|part| matches!(part, Part::Line(l) if l == "## A tour"));
    let mut parts = page.parts;
    parts.drain(..begin.unwrap());
    let end = parts.iter().skip(1).position(|p| matches!(p, Part::Line(l) if l.starts_with("## ")));
    parts.truncate(1 + end.unwrap());
    let output = run_tour(&Page { path: page.path, parts }, &dir, "cargo() { :; }");
    let expected = [
        r#"{…"class":"mio"…}"#,
        "Hello, world!",
        "slept 1500 ms",
        " INFO all workers ready, …workers: 2",
        " WARN worker exited, …reason: crashed, signal: SIGKILL",
        " WARN worker hung, …work: GET /hang",
        " INFO worker count changed, from: 2, to: 3",
        " INFO stopping, by: signal SIGTERM",
        " INFO stopped, pid: …",
    ];
    assert_output(&output, &expected);
}

#[test]
#[ignore = "slow"]
fn quick_start_tour_works() {
    let dir = empty_dir("quick-start");
    let tools = dir.join("tools");
    fs::create_dir(&tools).unwrap();
    symlink(env!("CARGO_BIN_EXE_ostler"), tools.join("ostler")).unwrap();
    symlink(root(), dir.join("ostler")).unwrap();
    // The program is built already, and the new crate's dependencies are fetched in these versions.
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap();
    let cargo = env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    let prelude = format!(
        "PATH={tools:?}:$PATH; export CARGO_TARGET_DIR={target:?} CARGO_NET_OFFLINE=true\n\
        cargo() {{\n  [ \"$1\" = install ] && return\n  \
        [ -e Cargo.lock ] || cp {:?} .\n  {cargo:?} \"$@\"\n}}\n",
        root().join("Cargo.lock"),
    );
    let page = Page::read(&Path::new(GUIDE).join("quick-start.md"));
    File::create(dir.join("said")).unwrap();
    let output = run_tour(&page, &dir, &prelude);
    if output.contains("no matching package") || output.contains("failed to download") {
        eprintln!("skipped: cargo cannot resolve offline:\n{output}");
        return;
    }
    let expected: Vec<_> = page.blocks("text").flat_map(str::lines).collect();
    assert_output(&output, &expected);
}
