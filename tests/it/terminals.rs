//! A master on a terminal. The kernel signals whole process groups for a terminal, which is no
//! command of an operator.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use crate::example::example;
use crate::proc::{children, is_gone, session_members, stat, wait_until};

const PROGRAM: &str = env!("CARGO_BIN_EXE_ostler");

/// A shell script that runs on a terminal of its own.
struct Session {
    shell: Child,
    slave: PathBuf,
    heard: Arc<Mutex<Vec<u8>>>,
    keyboard: File,
    dir: TempDir,
}

impl Session {
    fn start(script: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let terminal = nix::pty::openpty(None, None).unwrap();
        let slave = nix::unistd::ttyname(&terminal.slave).unwrap();
        let stdio = || Stdio::from(terminal.slave.try_clone().unwrap());
        let mut shell = Command::new("setsid");
        shell.args(["--ctty", "--wait", "sh", "-c", script]).current_dir(dir.path());
        let shell = shell.stdin(stdio()).stdout(stdio()).stderr(stdio()).spawn().unwrap();
        let heard = Arc::new(Mutex::new(Vec::new()));
        let mut reader = File::from(terminal.master);
        let keyboard = reader.try_clone().unwrap();
        let writer = Arc::clone(&heard);
        thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(n @ 1..) = reader.read(&mut bytes) {
                writer.lock().unwrap().extend_from_slice(&bytes[..n]);
            }
        });
        Self { shell, slave, heard, keyboard, dir }
    }

    fn count(&self, words: &str) -> usize {
        String::from_utf8_lossy(&self.heard.lock().unwrap()).matches(words).count()
    }

    #[track_caller]
    fn wait_said(&self, words: &str) {
        wait_until(words, || self.count(words) > 0);
    }

    /// Returns the process that a pid file names.
    #[track_caller]
    fn pid(&self, name: &str) -> Pid {
        let path = self.dir.path().join(name);
        let read = || fs::read_to_string(&path).ok()?.trim().parse().ok();
        wait_until("a pid file", || read().is_some());
        Pid::from_raw(read().unwrap())
    }

    /// Waits until the master has handled all signals that were sent before.
    #[track_caller]
    fn synchronize(&self, master: Pid) {
        for _ in 0..2 {
            let before = self.count("logs reopened");
            kill(master, Signal::SIGUSR1).unwrap();
            wait_until("the master reopens its log", || self.count("logs reopened") > before);
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("{}", String::from_utf8_lossy(&self.heard.lock().unwrap()));
        }
        // setsid(1) has made itself the leader of the session.
        for process in session_members(Pid::from_raw(self.shell.id().cast_signed())) {
            let _ = kill(process.pid, Signal::SIGKILL);
        }
        let _ = self.shell.kill();
        let _ = self.shell.wait();
    }
}

/// The terminal stops background jobs that write. The log and the workers go on.
#[test]
fn background_job_writes_to_terminal_with_tostop() {
    let session = Session::start(&format!(
        "stty tostop; set -m; {PROGRAM} -k mio -w 2 -b unix:sock -p pid & wait"
    ));
    session.wait_said("all workers ready");
    let master = session.pid("pid");
    session.synchronize(master);
    assert_eq!(children(master).len(), 2, "the terminal has changed the number of workers");
    assert_eq!(session.count("worker count changed"), 0);
    kill(master, Signal::SIGTERM).unwrap();
    session.wait_said("stopped, ");
}

/// A background job that uses the terminal has the kernel signal the job, of which the master is.
#[test]
fn job_control_does_not_change_the_worker_count() {
    let session = Session::start(&format!(
        "stty tostop; mkfifo go; set -m; (sh -c 'echo $$ > writer; read x < go; echo > /dev/tty' & \
         sh -c 'echo $$ > reader; read x < go; read x < /dev/tty' & \
         exec {PROGRAM} -k mio -w 2 -b unix:sock -p pid) & wait"
    ));
    session.wait_said("all workers ready");
    let (master, mates) = (session.pid("pid"), [session.pid("writer"), session.pid("reader")]);
    let is_stopped = |pid: &Pid| stat(*pid).unwrap().state == 'T';
    let go = session.dir.path().join("go");
    wait_until("the job is signalled", || {
        if !mates.iter().all(is_stopped) {
            // Without a reader, which has read by then, it fails instead of waiting for one.
            let mut options = fs::OpenOptions::new();
            let _ = options.write(true).custom_flags(libc::O_NONBLOCK).open(&go).map(drop);
        }
        mates.iter().all(is_stopped)
    });
    session.synchronize(master);
    assert_eq!(session.count("worker count changed"), 0);
    assert_eq!(session.count("worker count at limit"), 0);
    kill(master, Signal::SIGTTIN).unwrap();
    session.wait_said("worker count changed");
    kill(master, Signal::SIGTERM).unwrap();
    session.wait_said("stopped, ");
}

/// A hook may write to the terminal of a background job. The signal for that must not restart the
/// write without end.
#[test]
fn hook_of_a_background_job_writes_to_the_terminal() {
    let Some(program) = example("hooks") else { return };
    let session = Session::start(&format!(
        "stty tostop; set -m; DIARY=/dev/tty {} -k mio -b unix:sock -p pid & wait",
        program.display()
    ));
    session.wait_said("all workers ready");
    kill(session.pid("pid"), Signal::SIGTERM).unwrap();
    session.wait_said("stopped, ");
    assert_eq!(session.count("starting"), 1);
}

/// With `--reload`, the shell waits for the parent of the master, which exits with the master's code. The
/// terminal signals both.
#[test]
fn interrupt_ends_the_master_and_its_parent() {
    let session = Session::start(&format!(
        "trap : INT; {PROGRAM} --reload -k mio -w 2 -b unix:sock -p pid; echo code=$?"
    ));
    session.wait_said("all workers ready");
    let master = session.pid("pid");
    (&session.keyboard).write_all(b"\x03").unwrap();
    session.wait_said("code=0");
    assert_eq!(session.count("stopping, "), 1);
    wait_until("the master has exited", || is_gone(master));
}

/// A terminal tells both masters of its new size.
#[test]
fn resized_terminal_during_an_upgrade_suspends_no_worker() {
    let session = Session::start(&format!("exec {PROGRAM} -k mio -w 2 -b unix:sock -p pid"));
    session.wait_said("all workers ready");
    let old = session.pid("pid");
    kill(old, Signal::SIGUSR2).unwrap();
    session.wait_said("new master ready");
    let new = session.pid("pid.2");
    let resized = Command::new("stty").arg("-F").arg(&session.slave).args(["cols", "123"]).status();
    assert!(resized.unwrap().success());
    session.synchronize(old);
    session.synchronize(new);
    assert_eq!(session.count("suspending workers"), 0);
    kill(old, Signal::SIGWINCH).unwrap();
    session.wait_said("suspending workers");
    kill(old, Signal::SIGTERM).unwrap();
    session.wait_said("upgrade complete");
    kill(new, Signal::SIGTERM).unwrap();
    wait_until("both stop", || session.count("stopped, ") == 2);
}

/// A worker may not act on the terminal from which the master was started: it could type into it
/// (TIOCSTI), read what is typed, or take its foreground.
#[test]
fn worker_has_no_terminal() {
    let session = Session::start(&format!("{PROGRAM} -k mio -w 2 -b unix:sock -p pid"));
    session.wait_said("all workers ready");
    let master = session.pid("pid");
    let terminal_of = |pid: Pid| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        let number = stat.rsplit_once(") ").unwrap().1.split(' ').nth(4).unwrap().to_owned();
        number.parse::<i32>().unwrap()
    };
    assert_ne!(terminal_of(master), 0);
    for worker in children(master) {
        assert_eq!(terminal_of(worker.pid), 0);
        let input = fs::read_link(format!("/proc/{}/fd/0", worker.pid)).unwrap();
        assert_eq!(input, Path::new("/dev/null"));
        for output in [1, 2] {
            let info = fs::read_to_string(format!("/proc/{}/fdinfo/{output}", worker.pid)).unwrap();
            let flags = info.lines().find_map(|line| line.strip_prefix("flags:")).unwrap();
            assert!(flags.trim().ends_with('1'), "output {output} is write-only: {flags}");
        }
    }
    kill(master, Signal::SIGTERM).unwrap();
    session.wait_said("stopped, ");
}
