//! A service manager played by the test: it receives the server's notifications, passes it sockets,
//! and keeps those of its fd store for the next master.

use std::fs;
use std::io::IoSliceMut;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr as UnixAddr, UnixDatagram};
use std::process::id;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use nix::cmsg_space;
use nix::fcntl::{FcntlArg, fcntl};
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
use tempfile::TempDir;

use crate::client::Client;
use crate::launch::Launch;
use crate::load::Load;
use crate::log_capture::Watched;
use crate::os::own;
use crate::proc::{children, is_gone, wait_until};
use crate::support::{DEADLINE, Exit, Server};

on_every_class_and_tokio!(
    service_lifecycle_is_notified,
    ; except tokio:
    activated_socket_is_served,
    killed_master_restarts_on_stored_socket,
);

const PROGRAM: &str = env!("CARGO_BIN_EXE_ostler");

/// A notification of a server.
#[derive(Clone, Debug)]
pub struct Notification {
    pub seen: Instant,
    pub text: String,
    pub fds: Vec<Arc<OwnedFd>>,
}

impl Notification {
    pub fn has(&self, line: &str) -> bool {
        self.text.lines().any(|said| said == line)
    }

    pub fn value(&self, key: &str) -> Option<&str> {
        self.text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='))
    }
}

/// Listens as a service manager does.
pub struct FakeManager {
    pub name: String,
    words: Arc<Watched<Vec<Notification>>>,
    _dir: TempDir,
}

impl FakeManager {
    /// Binds to a path.
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        Self::listen(path.into_os_string().into_string().unwrap(), socket, dir)
    }

    /// Binds to a name in the abstract namespace.
    fn abstract_socket() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let name = format!("ostler-test-{}-{:?}", id(), thread::current().id());
        let address = UnixAddr::from_abstract_name(&name).unwrap();
        Self::listen(format!("@{name}"), UnixDatagram::bind_addr(&address).unwrap(), dir)
    }

    fn listen(name: String, socket: UnixDatagram, dir: TempDir) -> Self {
        let words: Arc<Watched<Vec<Notification>>> = Arc::default();
        let received = Arc::clone(&words);
        // The thread ends with the test.
        thread::spawn(move || {
            while let Some(word) = receive(&socket) {
                received.change(|words| words.push(word));
            }
        });
        Self { name, words, _dir: dir }
    }

    /// Forgets all notifications, and closes what came with them.
    pub fn forget(&self) {
        self.words.change(Vec::clear);
    }

    pub fn mark(&self) -> usize {
        self.words.lock().len()
    }

    pub fn notifications(&self) -> Vec<Notification> {
        self.words.lock().clone()
    }

    /// Waits for a notification behind a mark that has this line.
    #[track_caller]
    pub fn wait_for(&self, mark: usize, line: &str) -> Notification {
        self.wait(mark, line, |word| word.has(line))
    }

    #[track_caller]
    pub fn wait(
        &self,
        mark: usize,
        what: &str,
        wanted: impl Fn(&Notification) -> bool,
    ) -> Notification {
        let found =
            self.words.wait(DEADLINE, |words| words[mark..].iter().find(|w| wanted(w)).cloned());
        found.unwrap_or_else(|| panic!("never {what}: {:#?}", self.notifications()))
    }
}

fn receive(socket: &UnixDatagram) -> Option<Notification> {
    let mut bytes = [0; 4096];
    let mut space = cmsg_space!([RawFd; 4]);
    let mut pieces = [IoSliceMut::new(&mut bytes)];
    let fd = socket.as_raw_fd();
    let (size, fds) = {
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        let message = recvmsg::<()>(fd, &mut pieces, Some(&mut space), flags).ok()?;
        let mut fds = Vec::new();
        for control in message.cmsgs().ok()? {
            if let ControlMessageOwned::ScmRights(numbers) = control {
                fds.extend(numbers.into_iter().map(own).map(Arc::new));
            }
        }
        (message.bytes, fds)
    };
    let text = String::from_utf8_lossy(&bytes[..size]).into_owned();
    Some(Notification { seen: Instant::now(), text, fds })
}

fn service_lifecycle_is_notified(class: &str) {
    for manager in [FakeManager::new(), FakeManager::abstract_socket()] {
        let launch = Launch::new(&["-k", class, "-w", "2"]).unbound();
        let (port, settings) = (launch.port(), launch.path("settings.yaml"));
        let good = format!("bind: \"127.0.0.1:{port}\"\n");
        fs::write(&settings, &good).unwrap();
        let launch = launch.arg("--config").arg(&settings);
        let begun = Instant::now();
        let boot = Duration::from_millis(400);
        let mut server = launch
            .env("NOTIFY_SOCKET", &manager.name)
            .env("DEMO_BOOT_SLEEP_MS", boot.as_millis().to_string())
            .spawn();
        let ready = manager.wait_for(0, "READY=1");
        assert!(ready.seen - begun >= boot, "{ready:?}");
        assert_eq!(ready.value("STATUS"), Some("2/2 workers ready, generation 1"));
        let first = manager.notifications()[0].clone();
        assert!(first.value("EXTEND_TIMEOUT_USEC").is_some_and(|us| us.parse::<u64>().is_ok()));
        assert_eq!(server.get("/env?name=NOTIFY_SOCKET").status(), 404);

        let mark = manager.mark();
        server.signal(Signal::SIGHUP);
        let reloading = manager.wait_for(mark, "RELOADING=1");
        let stamp: u64 = reloading.value("MONOTONIC_USEC").unwrap().parse().unwrap();
        assert!(stamp.abs_diff(monotonic_usec()) < 60_000_000, "{reloading:?}");
        let ready = manager.wait_for(mark, "READY=1");
        assert!(ready.seen - reloading.seen >= boot, "{ready:?}");
        let generation_2 =
            |word: &Notification| word.value("STATUS") == Some("2/2 workers ready, generation 2");
        manager.wait(mark, "the status of generation 2", generation_2);

        // A rejected reload is over as well.
        fs::write(&settings, "nonsense: 1\n").unwrap();
        let mark = manager.mark();
        server.signal(Signal::SIGHUP);
        manager.wait_for(mark, "RELOADING=1");
        let ready = manager.wait_for(mark, "READY=1");
        assert!(ready.value("STATUS").unwrap().contains("rejected"), "{ready:?}");
        // So is a failed one.
        fs::write(&settings, good.clone() + "env: [\"DEMO_FAIL_BOOT=1\"]\n").unwrap();
        let mark = manager.mark();
        server.signal(Signal::SIGHUP);
        manager.wait_for(mark, "RELOADING=1");
        let ready = manager.wait_for(mark, "READY=1");
        assert!(ready.value("STATUS").unwrap().contains("failed"), "{ready:?}");

        let mark = manager.mark();
        server.signal(Signal::SIGTERM);
        manager.wait_for(mark, "STOPPING=1");
        server.expect_clean_exit();
        let words = manager.notifications();
        assert!(
            words.iter().all(|word| !word.has("WATCHDOG=1")),
            "WATCHDOG=1 without WATCHDOG_USEC"
        );
        assert_eq!(words.iter().filter(|word| word.has("READY=1")).count(), 4, "{words:#?}");
    }
}

/// Returns microseconds of the clock that MONOTONIC_USEC means.
fn monotonic_usec() -> u64 {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC).unwrap();
    u64::try_from(now.tv_sec() * 1_000_000 + now.tv_nsec() / 1000).unwrap()
}

#[test]
fn status_reports_crash_and_recovery() {
    let manager = FakeManager::new();
    let server = Launch::new(&["-w", "2"]).env("NOTIFY_SOCKET", &manager.name).start();
    manager.wait_for(0, "READY=1");
    let mark = manager.mark();
    let victim = server.wait_workers(2)[0];
    kill(victim.pid, Signal::SIGKILL).unwrap();
    manager.wait_for(mark, "STATUS=1/2 workers ready, generation 1");
    manager.wait_for(mark, "STATUS=2/2 workers ready, generation 1");
    server.finish();
}

/// Asserts that WATCHDOG=1 comes behind a mark at about this interval.
#[track_caller]
fn expect_rhythm(manager: &FakeManager, mark: usize, every: Duration) {
    let signs = |words: &[Notification]| -> Vec<Instant> {
        let behind = words.get(mark..).unwrap_or_default().iter();
        behind.filter(|word| word.has("WATCHDOG=1")).map(|word| word.seen).collect()
    };
    let seen = manager.words.wait(DEADLINE, |words| Some(signs(words)).filter(|s| s.len() >= 5));
    let seen = seen.unwrap_or_else(|| panic!("no WATCHDOG=1: {:#?}", manager.notifications()));
    let whole = seen[4] - seen[0];
    assert!(whole >= every * 4 - every / 2, "too often: {whole:?}");
    assert!(whole <= every * 4 + Duration::from_secs(8), "too rarely: {whole:?}");
}

#[test]
fn watchdog_is_pinged() {
    let manager = FakeManager::new();
    let server = Launch::new(&["-w", "2"])
        .env("NOTIFY_SOCKET", &manager.name)
        .env("WATCHDOG_USEC", "600000")
        .start();
    expect_rhythm(&manager, manager.mark(), Duration::from_millis(300));
    server.finish();
}

#[test]
fn tiny_watchdog_interval_does_not_spin() {
    let manager = FakeManager::new();
    let server =
        Launch::new(&[]).env("NOTIFY_SOCKET", &manager.name).env("WATCHDOG_USEC", "1").start();
    let begun = Instant::now();
    let mark = manager.mark();
    let pings = || manager.notifications().split_off(mark);
    wait_until("some pings", || pings().iter().filter(|it| it.has("WATCHDOG=1")).count() >= 50);
    let most = begun.elapsed().as_millis() as usize / 10 + 5;
    assert!(pings().len() <= most, "{} messages, not {most}", pings().len());
    server.finish();
}

#[test]
fn workers_inherit_no_service_manager_variables() {
    let manager = FakeManager::new();
    let words = watchdog_env("export WATCHDOG_PID=$$ WATCHDOG_USEC=60000000;");
    let server = launch_by(&words, &[]).env("NOTIFY_SOCKET", &manager.name).start();
    for name in ["NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"] {
        assert_eq!(server.get(&format!("/env?name={name}")).status(), 404, "{name}");
    }
    server.finish();
}

/// Returns the words of a program that gets its own pid in variables, as systemd sets them.
fn watchdog_env(script: &str) -> [String; 4] {
    let script = format!("{script} exec \"$0\" \"$@\"");
    ["bash".to_owned(), "-c".to_owned(), script, PROGRAM.to_owned()]
}

fn launch_by(words: &[String], flags: &[&str]) -> Launch {
    Launch::by(&words.iter().map(String::as_str).collect::<Vec<_>>(), flags)
}

#[test]
fn watchdog_of_another_process_is_not_pinged() {
    let manager = FakeManager::new();
    let server = Launch::new(&[])
        .env("NOTIFY_SOCKET", &manager.name)
        .env("WATCHDOG_USEC", "20000")
        .env("WATCHDOG_PID", "1")
        .start();
    manager.wait_for(0, "READY=1");
    server.finish();
    assert!(manager.notifications().iter().all(|word| !word.has("WATCHDOG=1")));
}

#[test]
fn service_manager_follows_upgrade() {
    let manager = FakeManager::new();
    let server = Launch::new(&["-w", "2"]).env("NOTIFY_SOCKET", &manager.name).start();
    let mut master = server.pid;
    for _ in 0..2 {
        let mark = manager.mark();
        let news = server.mark();
        kill(master, Signal::SIGUSR2).unwrap();
        let ready = server.wait_for_new_record(news, "successor", |record| {
            record.message() == "new master ready"
        });
        let new = ready.pid().unwrap();
        kill(master, Signal::SIGTERM).unwrap();
        manager.wait_for(mark, &format!("MAINPID={new}"));
        wait_until("the old master exits", || is_gone(master));
        server.wait_for("promotion", |record| record.is("upgrade complete", new));
        let words = manager.notifications();
        let stopping = words[mark..].iter().find(|word| word.has("STOPPING=1"));
        assert!(stopping.is_none(), "the service keeps running: {stopping:?}");
        master = new;
    }
    let mark = manager.mark();
    kill(master, Signal::SIGTERM).unwrap();
    manager.wait_for(mark, "STOPPING=1");
    server.wait_no_survivors();
}

#[test]
fn watchdog_is_pinged_by_the_main_process() {
    let manager = FakeManager::new();
    let words = watchdog_env("export WATCHDOG_PID=$$ WATCHDOG_USEC=600000;");
    let server = launch_by(&words, &["-w", "2"]).env("NOTIFY_SOCKET", &manager.name).start();
    expect_rhythm(&manager, manager.mark(), Duration::from_millis(300));
    server.signal(Signal::SIGUSR2);
    server.wait_for("successor", |record| record.message() == "new master ready");
    server.signal(Signal::SIGTERM);
    let new = server
        .wait_for("promotion", |record| record.message() == "upgrade complete")
        .pid()
        .unwrap();
    assert_eq!(server.wait_exit(), Exit::Code(0));
    expect_rhythm(&manager, manager.mark(), Duration::from_millis(300));
    kill(new, Signal::SIGTERM).unwrap();
    server.wait_no_survivors();
}

#[test]
fn stop_during_promotion_ends_the_service() {
    let manager = FakeManager::new();
    let server = Launch::new(&["-w", "2"]).env("NOTIFY_SOCKET", &manager.name).start();
    server.signal(Signal::SIGUSR2);
    let ready = server.wait_for("successor", |record| record.message() == "new master ready");
    let new = ready.pid().unwrap();
    // The stopped process receives both at once.
    kill(new, Signal::SIGSTOP).unwrap();
    server.signal(Signal::SIGKILL);
    server.wait_exit();
    let mark = manager.mark();
    kill(new, Signal::SIGTERM).unwrap();
    kill(new, Signal::SIGCONT).unwrap();
    server.wait_no_survivors();
    manager.wait_for(mark, "STOPPING=1");
}

#[test]
fn cancelled_upgrade_keeps_the_service_running() {
    let manager = FakeManager::new();
    let server = Launch::new(&["-w", "2"]).env("NOTIFY_SOCKET", &manager.name).start();
    let mark = manager.mark();
    let news = server.mark();
    server.signal(Signal::SIGUSR2);
    let ready = server
        .wait_for_new_record(news, "successor", |record| record.message() == "new master ready");
    let new = ready.pid().unwrap();
    kill(new, Signal::SIGTERM).unwrap();
    wait_until("the new master exits", || children(server.pid).len() == 2);
    let words = manager.notifications();
    for line in ["STOPPING=1".to_owned(), format!("MAINPID={new}")] {
        assert!(!words[mark..].iter().any(|word| word.has(&line)), "{line}: {words:#?}");
    }
    server.finish();
}

#[test]
fn unreachable_notify_socket_is_only_a_warning() {
    for name in ["/no/such/socket", "@no-such-manager-of-ours", "nonsense"] {
        let server = Launch::new(&[]).env("NOTIFY_SOCKET", name).start();
        let warned = |record: &crate::log_capture::Record| {
            record.message() == "startup warning"
                && record.text("error").unwrap_or("").contains(name)
        };
        server.wait_for("a warning", warned);
        server.finish();
    }
}

#[test]
fn unread_notify_socket_does_not_block_the_master() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("notify");
    let _unread = UnixDatagram::bind(&path).unwrap();
    let server = Launch::new(&["-w", "2"])
        .env("NOTIFY_SOCKET", path.to_str().unwrap())
        .env("WATCHDOG_USEC", "2000")
        .start();
    // The manager's queue is full by now, or will be soon.
    server.serve_for(Duration::from_millis(500));
    let mark = server.mark();
    server.signal(Signal::SIGHUP);
    server.wait_for_new_record(mark, "reload complete", |record| {
        record.message() == "reload complete"
    });
    server.finish();
}

/// Prepares a program that gets sockets of the test from descriptor 3 on, under these names.
pub fn launch_with_sockets(sockets: &[(String, Arc<OwnedFd>)], flags: &[&str]) -> Launch {
    // High numbers, so that none is one of the targets.
    let copy = |fd: &OwnedFd| own(fcntl(fd, FcntlArg::F_DUPFD_CLOEXEC(400)).unwrap());
    let copies: Vec<_> = sockets.iter().map(|(_, socket)| copy(socket)).collect();
    let numbers = copies.iter().map(AsRawFd::as_raw_fd);
    let moves = (3..).zip(numbers).map(|(to, from)| format!("exec {to}<&{from} {from}<&-;"));
    let names: Vec<_> = sockets.iter().map(|(name, _)| name.as_str()).collect();
    let (moves, count, names) = (moves.collect::<String>(), sockets.len(), names.join(":"));
    let variables = format!("LISTEN_PID=$$ LISTEN_FDS={count} LISTEN_FDNAMES='{names}'");
    let words = watchdog_env(&format!("{moves} {variables}"));
    copies.into_iter().fold(launch_by(&words, flags), Launch::pass)
}

/// Prepares a program that gets a socket of the test as descriptor 3, with variables that say so.
fn launch_activated(socket: &impl AsRawFd, variables: &str, flags: &[&str]) -> Launch {
    let fd = socket.as_raw_fd();
    let moved = if fd == 3 { String::new() } else { format!("exec 3<&{fd} {fd}<&-;") };
    let words = watchdog_env(&format!("{moved} {variables}"));
    launch_by(&words, flags).keep(fd)
}

/// Returns a listening socket, and its address.
fn listener() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

fn activated_socket_is_served(class: &str) {
    let is_default_served = || Client::tcp("127.0.0.1:8000".parse().unwrap()).is_ok();
    let is_default_in_use = is_default_served(); // by something else
    for names in ["", "LISTEN_FDNAMES=web"] {
        let (listener, address) = listener();
        let variables = format!("LISTEN_PID=$$ LISTEN_FDS=1 {names}");
        let server =
            launch_activated(&listener, &variables, &["-k", class, "-w", "2"]).unbound().start();
        let mut client = Client::tcp(address).unwrap();
        assert_eq!(client.get("/").text(), "Hello, world!\n");
        for name in ["LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"] {
            let answer = Client::tcp(address).unwrap().get(&format!("/env?name={name}"));
            assert_eq!(answer.status(), 404, "{name}");
        }
        // Instead of the default address, not besides.
        assert_eq!(server.records_of("listening").len(), 1);
        assert!(is_default_in_use || !is_default_served());
        // A reload keeps the socket.
        let load = Load::on(address);
        let mark = server.mark();
        server.signal(Signal::SIGHUP);
        server.wait_for_new_record(mark, "reload complete", |record| {
            record.message() == "reload complete"
        });
        load.wait_answers(10);
        load.finish();
        server.finish();
        drop(listener);
    }
}

#[test]
fn socket_for_another_pid_is_ignored() {
    let (listener, _) = listener();
    let server = launch_activated(&listener, "LISTEN_PID=1 LISTEN_FDS=1", &[]).start();
    server.wait_for("a warning", |record| {
        record.message() == "startup warning"
            && record.text("error").unwrap_or("").contains("LISTEN_PID")
    });
    assert_eq!(server.records_of("listening").len(), 1);
    assert_eq!(server.get("/").text(), "Hello, world!\n");
    assert_eq!(server.get("/env?name=LISTEN_FDS").status(), 404);
    server.finish();
}

#[test]
fn invalid_listen_variables_are_reported() {
    let null = fs::File::open("/dev/null").unwrap();
    let outcome = launch_activated(&null, "LISTEN_PID=$$ LISTEN_FDS=1", &[]).plain().run();
    assert_eq!(outcome.exit, Exit::Code(1), "{outcome:?}");
    assert!(outcome.stderr.contains('3'), "{outcome:?}");
    // More descriptors than there are.
    let (socket, _) = listener();
    let outcome = launch_activated(&socket, "LISTEN_PID=$$ LISTEN_FDS=40", &[]).plain().run();
    assert_eq!(outcome.exit, Exit::Code(1), "{outcome:?}");
    // A socket that does not listen.
    let datagrams = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let outcome = launch_activated(&datagrams, "LISTEN_PID=$$ LISTEN_FDS=1", &[]).plain().run();
    assert_eq!(outcome.exit, Exit::Code(1), "{outcome:?}");
    assert!(outcome.stderr.contains('3'), "{outcome:?}");
    // No number.
    let server = launch_activated(&socket, "LISTEN_PID=$$ LISTEN_FDS=many", &[]).start();
    server.wait_for("a warning", |record| record.message() == "startup warning");
    server.finish();
}

/// Kills a master with SIGKILL, and waits until all its processes have exited.
#[track_caller]
pub fn kill_all(server: &Server) {
    server.signal(Signal::SIGKILL);
    server.wait_exit();
}

fn killed_master_restarts_on_stored_socket(class: &str) {
    let manager = FakeManager::new();
    let flags = ["-k", class, "-w", "2", "--fd-store"];
    let launch = Launch::new(&flags);
    let bind = format!("127.0.0.1:{}", launch.port());
    let mut server = launch.env("NOTIFY_SOCKET", &manager.name).start();
    let address = server.address();
    let mut kept = manager.wait(0, "FDSTORE", |word| word.has("FDSTORE=1"));
    let load = Load::connecting(address);
    for _ in 0..2 {
        let name = kept.value("FDNAME").unwrap().to_owned();
        assert_eq!(kept.fds.len(), 1, "{kept:?}");
        assert!(!name.contains(':') && name.len() <= 255, "{name}");
        let mark = manager.mark();
        kill_all(&server);
        let variables = format!("LISTEN_PID=$$ LISTEN_FDS=1 LISTEN_FDNAMES='{name}'");
        // The flags name the same address, so the server must recognize the socket as its own.
        let next =
            launch_activated(&*kept.fds[0], &variables, &flags).unbound().arg("--bind").arg(&bind);
        server = next.env("NOTIFY_SOCKET", &manager.name).start();
        manager.wait_for(mark, "READY=1");
        assert_eq!(server.records_of("listening").len(), 1);
        kept = manager.wait(mark, "FDSTORE", |word| word.has("FDSTORE=1"));
        load.wait_answers(10);
    }
    load.finish();
    server.finish();
}
