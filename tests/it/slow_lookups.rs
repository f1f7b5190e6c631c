//! Reloads whose look-ups take long: a host whose name server does not answer.

use std::fs;
use std::io::ErrorKind;
use std::net::{SocketAddr, UdpSocket};
use std::process::id;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::client::Client;
use crate::launch::{Launch, free_address};
use crate::support::{DEADLINE, Server};

on_every_class!(silent_name_server_holds_no_master, name_is_looked_up_before_the_reload);

const PROGRAM: &str = env!("CARGO_BIN_EXE_ostler");

/// A server whose settings name a host, and its only name server: this test.
pub(crate) struct NamedHost {
    pub(crate) server: Server,
    names: UdpSocket,
    settings: String,
    first_line: String,
}

impl NamedHost {
    /// Returns `None` and prints the reason if the machine does not allow it.
    fn start(class: &str) -> Option<Self> {
        Self::start_with(class, "")
    }

    /// Starts it with further lines of settings.
    pub(crate) fn start_with(class: &str, lines: &str) -> Option<Self> {
        static NEXT: AtomicU8 = AtomicU8::new(1);
        let [high, low] = ((id() % 0xffff) as u16).to_be_bytes();
        let address = format!("127.{high}.{low}.{}", NEXT.fetch_add(1, Ordering::Relaxed));
        let names = match UdpSocket::bind((address.as_str(), 53)) {
            Ok(names) => names,
            Err(error) => {
                eprintln!("skipped: no name server of our own: {error}");
                return None;
            }
        };
        names.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        let script = "mount --bind resolv.conf /etc/resolv.conf && exec \"$0\" \"$@\"";
        let words = ["unshare", "--mount", "sh", "-c", script, PROGRAM];
        let launch = Launch::by(&words, &[]).unbound();
        let resolver = format!("nameserver {address}\noptions timeout:30 attempts:1\n");
        fs::write(launch.path("resolv.conf"), resolver).unwrap();
        let settings = launch.path("settings.yaml");
        let first_line =
            format!("{lines}worker_class: {class}\nbind:\n- 127.0.0.1:{}\n", launch.port());
        fs::write(&settings, &first_line).unwrap();
        let server = launch.arg("--config").arg(&settings).start();
        Some(Self { server, names, settings, first_line })
    }

    /// Reloads with another address.
    fn reload_with(&self, address: &str) {
        fs::write(&self.settings, format!("{}- {address}\n", self.first_line)).unwrap();
        self.server.signal(Signal::SIGHUP);
    }

    /// Waits until the name of a host is asked for. Returns the question, and who asks.
    #[track_caller]
    fn question(&self) -> (Vec<u8>, SocketAddr) {
        let end = Instant::now() + DEADLINE;
        loop {
            assert!(Instant::now() < end, "no name is looked up");
            let mut question = [0; 512];
            match self.names.recv_from(&mut question) {
                Ok((length, from)) => return (question[..length].to_vec(), from),
                Err(error) if error.kind() == ErrorKind::WouldBlock => (),
                Err(error) => panic!("{error}"),
            }
        }
    }

    /// Answers questions until there is such a record: the host is 127.0.0.1, or unknown.
    #[track_caller]
    pub(crate) fn answer_until(&self, message: &str, is_known: bool) {
        self.answer_while(is_known, || self.server.records_of(message).is_empty());
    }

    /// Answers questions as long as a condition holds: the host is 127.0.0.1, or unknown.
    #[track_caller]
    pub(crate) fn answer_while(&self, is_known: bool, condition: impl Fn() -> bool) {
        let end = Instant::now() + DEADLINE;
        while condition() {
            assert!(Instant::now() < end, "the answers have no effect");
            let mut question = [0; 512];
            let Ok((length, from)) = self.names.recv_from(&mut question) else { continue };
            let answer = answer(&question[..length], is_known);
            self.names.send_to(&answer, from).unwrap();
        }
    }
}

/// Makes an answer out of a question: see RFC 1035, 4.
fn answer(question: &[u8], is_known: bool) -> Vec<u8> {
    let name_end = 12 + question[12..].iter().position(|byte| *byte == 0).unwrap();
    let asks_for_ipv4 = question[name_end + 1..name_end + 3] == [0, 1];
    let mut answer = question[..name_end + 5].to_vec();
    answer[2] |= 0x80;
    answer[3] = if is_known { 0x80 } else { 0x83 };
    let answers = u8::from(is_known && asks_for_ipv4);
    answer[6..12].copy_from_slice(&[0, answers, 0, 0, 0, 0]);
    if answers == 1 {
        answer.extend_from_slice(&[0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 127, 0, 0, 1]);
    }
    answer
}

fn silent_name_server_holds_no_master(class: &str) {
    let Some(mut host) = NamedHost::start(class) else { return };
    host.reload_with("silent.test:1");
    host.question();
    // The resolver would wait for 30 s, which is longer than any wait here.
    host.server.signal(Signal::SIGTTIN);
    host.server.wait_for("a turn", |record| record.message() == "worker count changed");
    assert_eq!(host.server.get("/").text(), "Hello, world!\n");
    assert!(host.server.records_of("reload rejected").is_empty());
    host.server.signal(Signal::SIGTERM);
    host.server.expect_clean_exit();
}

fn name_is_looked_up_before_the_reload(class: &str) {
    let Some(host) = NamedHost::start(class) else { return };
    host.reload_with("unknown.test:1");
    host.answer_until("reload rejected", false);
    let rejected = &host.server.records_of("reload rejected")[0];
    let reason = rejected.text("error").unwrap();
    assert!(reason.contains("failed to resolve the host of unknown.test:1"), "{reason}");
    assert_eq!(host.server.get("/").text(), "Hello, world!\n");

    let address = free_address();
    host.reload_with(&format!("known.test:{}", address.port()));
    host.answer_until("reload complete", true);
    let mut client = Client::tcp(address).unwrap();
    client.ask("/");
    assert_eq!(client.answer().text(), "Hello, world!\n");
    drop(client);
    host.server.finish();
}
