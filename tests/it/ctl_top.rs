//! `ostlerctl top` on a terminal of its own.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Instant;

use nix::pty::{Winsize, openpty};
use nix::sys::signal::{Signal, kill};
use nix::sys::termios::{LocalFlags, tcgetattr};
use nix::unistd::Pid;

use crate::ctl::{Controlled, ostlerctl};
use crate::launch::Launch;
use crate::proc::wait_until;

const SIZE: Winsize = Winsize { ws_row: 24, ws_col: 80, ws_xpixel: 0, ws_ypixel: 0 };

/// A program on a terminal of 80 by 24, and what the terminal shows.
pub(crate) struct Screen {
    child: Child,
    keyboard: File,
    terminal: OwnedFd,
    parser: Arc<Mutex<vt100::Parser>>,
    written: Arc<Mutex<Vec<u8>>>,
}

impl Screen {
    fn start(socket: &str, args: &[&str], variables: &[(&str, &str)]) -> Self {
        Self::run(&[&["top", "--socket", socket], args].concat(), variables)
    }

    /// Runs `ostlerctl` with these arguments and variables.
    pub(crate) fn run(args: &[&str], variables: &[(&str, &str)]) -> Self {
        let pair = openpty(Some(&SIZE), None).unwrap();
        let stdio = || Stdio::from(pair.slave.try_clone().unwrap());
        let ctl = ostlerctl(args);
        // Makes the terminal that of a new session.
        let mut command = Command::new("setsid");
        command.arg("--ctty").arg(ctl.get_program()).args(ctl.get_args());
        command.env_remove("NO_COLOR").env_remove("LC_ALL").env("LANG", "C.UTF-8");
        command.env("TERM", "xterm").envs(variables.iter().copied());
        let child = command.stdin(stdio()).stdout(stdio()).stderr(stdio()).spawn().unwrap();
        let (rows, columns) = (SIZE.ws_row.try_into().unwrap(), SIZE.ws_col.try_into().unwrap());
        let parser = Arc::new(Mutex::new(vt100::Parser::new(rows, columns, 0)));
        let written = Arc::new(Mutex::new(Vec::new()));
        let mut reader = File::from(pair.master.try_clone().unwrap());
        let (its_parser, its_written) = (Arc::clone(&parser), Arc::clone(&written));
        thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(count @ 1..) = reader.read(&mut bytes) {
                its_written.lock().unwrap().extend_from_slice(&bytes[..count]);
                its_parser.lock().unwrap().process(&bytes[..count]);
            }
        });
        Self { child, keyboard: File::from(pair.master), terminal: pair.slave, parser, written }
    }

    pub(crate) fn of(it: &Controlled) -> Self {
        Self::start(it.socket.to_str().unwrap(), &[], &[])
    }

    pub(crate) fn contents(&self) -> String {
        self.parser.lock().unwrap().screen().contents()
    }

    #[track_caller]
    pub(crate) fn wait_shown(&self, words: &str) {
        wait_until(words, || self.contents().contains(words));
    }

    pub(crate) fn press(&mut self, keys: &str) {
        self.keyboard.write_all(keys.as_bytes()).unwrap();
    }

    fn is_raw(&self) -> bool {
        let flags = tcgetattr(&self.terminal).unwrap().local_flags;
        !flags.contains(LocalFlags::ICANON | LocalFlags::ECHO)
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id().cast_signed()), signal).unwrap();
    }

    /// Waits for the end of the program.
    pub(crate) fn wait(&mut self) -> ExitStatus {
        self.child.wait().unwrap()
    }

    /// Waits for the end of the program. The terminal must be as before.
    #[track_caller]
    pub(crate) fn expect_restored(&mut self) -> ExitStatus {
        let status = self.child.wait().unwrap();
        assert!(!self.is_raw());
        wait_until("the main screen is shown again", || {
            let parser = self.parser.lock().unwrap();
            !parser.screen().alternate_screen() && !parser.screen().hide_cursor()
        });
        status
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("{}", self.contents());
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn top_shows_the_workers_and_quits() {
    let it = Controlled::start(&["-k", "mio", "-w", "2", "-n", "shop"]);
    let mut busy = it.server.begin("/sleep?ms=2500");
    let mut screen = Screen::of(&it);
    screen.wait_shown("shop: running, ready");
    screen.wait_shown("GET /sleep");
    for worker in it.server.workers() {
        screen.wait_shown(&worker.pid.to_string());
    }
    assert!(screen.is_raw());
    assert_eq!(busy.answer().status(), 200);
    screen.wait_shown("requests/s         0");
    screen.press("\r");
    screen.wait_shown("last exit: none");
    screen.press("\x1b");
    screen.wait_shown("q quit  Enter detail");
    screen.press("/1\r");
    screen.wait_shown("filter: 1");
    screen.press("q");
    assert_eq!(screen.expect_restored().code(), Some(0));
    it.server.finish();
}

#[test]
fn charts_show_the_load() {
    let it = Controlled::start(&["-k", "mio", "-w", "2"]);
    let mut screen = Screen::start(it.socket.to_str().unwrap(), &["-i", "200ms"], &[]);
    let value = |screen: &Screen, name: &str| {
        let contents = screen.contents();
        let line = contents.lines().find(|line| line.starts_with(name))?.to_owned();
        line.split_whitespace().nth(1).map(str::to_owned)
    };
    wait_until("all values are known", || {
        it.server.get("/sleep?ms=20");
        let rate = value(&screen, "requests/s").and_then(|rate| rate.parse::<u32>().ok());
        let has_unit = |name, unit| value(&screen, name).is_some_and(|it| it.ends_with(unit));
        rate.is_some_and(|rate| rate > 0) && has_unit("busy", "%") && has_unit("p99", "ms")
    });
    screen.press("q");
    screen.expect_restored();
    it.server.finish();
}

#[test]
fn signals_restore_the_terminal() {
    use std::os::unix::process::ExitStatusExt;
    let it = Controlled::start(&["-k", "mio", "-n", "shop"]);
    for signal in [Signal::SIGTERM, Signal::SIGHUP, Signal::SIGINT] {
        let mut screen = Screen::of(&it);
        screen.wait_shown("shop: running");
        screen.signal(signal);
        assert_eq!(screen.expect_restored().signal(), Some(signal as i32));
    }
    let mut screen = Screen::of(&it);
    screen.wait_shown("shop: running");
    screen.press("\x03");
    assert_eq!(screen.expect_restored().code(), Some(0));
    it.server.finish();
}

/// The view waits for a master that is away, and goes on with the next one.
#[test]
fn top_outlives_the_master() {
    let it = Controlled::start(&["-k", "mio", "-n", "shop"]);
    let mut screen = Screen::start(it.socket.to_str().unwrap(), &["-i", "200ms"], &[]);
    screen.wait_shown("shop: running");
    it.server.signal(Signal::SIGKILL);
    screen.wait_shown("NO ANSWER for ");
    let next = Launch::new(&["-k", "mio", "-n", "next"]).arg("--control-socket");
    let next = next.arg(it.socket.to_str().unwrap()).start();
    screen.wait_shown("next: running, ready");
    screen.wait_shown(" has taken over from ");
    screen.press("q");
    assert_eq!(screen.expect_restored().code(), Some(0));
    next.finish();
}

/// Without colors and on an ASCII terminal only ASCII is written, and no color is set. An update writes
/// what has changed.
#[test]
fn plain_terminal_gets_little_and_plain_text() {
    let it = Controlled::start(&["-k", "mio", "-w", "4", "-n", "shop"]);
    let plain = [("NO_COLOR", "1"), ("LANG", "C"), ("LC_CTYPE", "")];
    let mut screen = Screen::start(it.socket.to_str().unwrap(), &["-i", "100ms"], &plain);
    screen.wait_shown("shop: running");
    let first_line = |screen: &Screen| screen.contents().lines().next().map(str::to_owned);
    let (begin, before) = (Instant::now(), screen.written.lock().unwrap().len());
    for _ in 0..5 {
        let line = first_line(&screen);
        wait_until("the uptime goes on", || first_line(&screen) != line);
    }
    let written = screen.written.lock().unwrap().len() - before;
    let updates = begin.elapsed().as_millis() / 100 + 1;
    // Far less than the 1,920 cells of a screen.
    assert!((written as u128) < updates * 1000, "{written} bytes in {updates} updates");
    screen.press("q");
    screen.expect_restored();
    let all = String::from_utf8(screen.written.lock().unwrap().clone()).unwrap();
    assert!(all.is_ascii(), "{all}");
    for code in all.split("\x1b[").skip(1).filter_map(|rest| rest.split_once('m')) {
        let is_color = |part: &str| {
            part.parse::<u32>().is_ok_and(|n| (30..=48).contains(&n) && n != 39 || n >= 90)
        };
        assert!(!code.0.split(';').any(is_color) || code.0.len() > 20, "{:?}", code.0);
    }
    it.server.finish();
}

#[test]
fn top_needs_a_terminal() {
    crate::ctl::run(&["top", "--socket", "/nowhere"]).failure("top needs a terminal");
}
