//! Descriptors that clients of the control interface send: to close one may wait, and the master must not.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use nix::unistd::Uid;

use crate::control::Controlled;
use crate::exec_programs::{LINGERING, python_is_installed};
use crate::launch::Launch;
use crate::proc::{descriptors_to, wait_until};

/// A user that `control_users` does not name.
const STRANGER: u32 = 2;

/// How long a freeze of the master would last, in seconds.
const LINGER: &str = "20";

/// Connects ten times to a socket and sends a descriptor whose close(2) waits: with a request and without,
/// out of band, and before and after other bytes. Prints how many messages were sent.
const SENDER: &str = r#"
import array, sys, threading
path, linger = sys.argv[1], int(sys.argv[2])
sent = 0
request = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
for turn in range(10):
    descriptor = lingering(linger)
    client = socket.socket(socket.AF_UNIX)
    client.connect(path)
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [descriptor.fileno()]))]
    try:
        if turn % 3 == 1:
            client.send(b"GET")
        client.sendmsg([request], rights, socket.MSG_OOB if turn % 3 == 2 else 0)
        sent += 1
    except (PermissionError, BrokenPipeError, ConnectionResetError):
        off = struct.pack("ii", 0, 0) # it was not sent, so this process would wait
        descriptor.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, off)
    # The last copy may be this one, if the other was freed by now.
    threading.Thread(target=descriptor.close, daemon=True).start()
    try:
        if turn % 2:
            client.send(request)
    except OSError:
        pass
    kept.append(client)
print(sent, flush=True)
sys.stdin.read()
"#;

/// A process that has sent. Its connections end with it, and so does what waits for them.
struct Sender {
    process: Child,
    sent: u32,
}

impl Sender {
    fn start(user: u32, socket: &Path) -> Self {
        let mut command = Command::new("python3");
        command
            .args(["-c", &format!("{LINGERING}{SENDER}")])
            .arg(socket)
            .arg(LINGER)
            .current_dir("/");
        if Uid::effective().is_root() {
            command.uid(user).gid(user);
        }
        let mut process =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("python3");
        let mut line = String::new();
        BufReader::new(process.stdout.take().unwrap()).read_line(&mut line).unwrap();
        Self { process, sent: line.trim().parse().expect("a number") }
    }
}

impl Drop for Sender {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn expect_quick_answer(it: &Controlled) {
    let began = Instant::now();
    assert_eq!(it.ask_metrics("/healthz", &[]).status(), 200);
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
}

fn expect_no_wait(kernel: impl FnOnce(Launch) -> Launch) -> u32 {
    let launch = kernel(Launch::new(&["--control-user", "65534"]));
    fs::set_permissions(launch.dir(), fs::Permissions::from_mode(0o755)).unwrap();
    let it = Controlled::of(launch);
    let before = descriptors_to(it.server.pid, "socket:").len();
    let mut sent = 0;
    for user in [STRANGER, 65_534] {
        let sender = Sender::start(user, it.socket());
        (0..10).for_each(|_| expect_quick_answer(&it));
        sent += sender.sent;
    }
    let is_closed = || descriptors_to(it.server.pid, "socket:").len() <= before;
    wait_until("the sockets are closed", is_closed);
    assert_eq!(it.status()["ready"], true);
    assert_eq!(it.server.get("/").status(), 200);
    // What waits in the kernel when the listener is closed: at the end, and when its path is lost.
    it.server.signal(Signal::SIGSTOP);
    let socket = it.socket().to_owned();
    let _sender = Sender::start(STRANGER, &socket);
    fs::remove_file(&socket).unwrap();
    it.server.signal(Signal::SIGCONT);
    wait_until("the path is bound again", || socket.exists());
    expect_quick_answer(&it);
    let began = Instant::now();
    it.server.finish();
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    sent
}

#[test]
fn descriptors_from_clients_never_block_the_master() {
    if python_is_installed() {
        expect_no_wait(|launch| launch);
    }
}

#[test]
fn descriptors_never_block_the_master_where_the_kernel_takes_them() {
    if python_is_installed() {
        let sent = expect_no_wait(Launch::without_passrights);
        assert!(sent > 0, "the kernel has refused them all");
    }
}
