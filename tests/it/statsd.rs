//! statsd: what the master sends by datagrams, until it exits.

use std::fs;
use std::net::UdpSocket;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::DEADLINE;
use crate::client::Client;
use crate::launch::{Launch, free_address};
use crate::proc::wait_until;
use crate::slow_lookups::NamedHost;
use crate::support::{Exit, Server};

on_every_class!(stop_sends_what_is_new);

/// A statsd server, and the text that it has received.
struct Statsd {
    socket: UdpSocket,
    received: Vec<String>,
}

impl Statsd {
    fn start() -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.set_nonblocking(true).unwrap();
        Self { socket, received: Vec::new() }
    }

    fn address(&self) -> String {
        self.socket.local_addr().unwrap().to_string()
    }

    /// Returns the datagrams until now.
    fn received(&mut self) -> &[String] {
        let mut datagram = [0; 2000];
        while let Ok(length) = self.socket.recv(&mut datagram) {
            self.received.push(String::from_utf8(datagram[..length].to_vec()).unwrap());
        }
        &self.received
    }

    /// Returns the sum of a counter until now, by its name without the prefix of the process.
    fn sum(&mut self, name: &str) -> u64 {
        let lines = self.received().iter().flat_map(|datagram| datagram.split('\n'));
        let counts = lines.filter_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.ends_with(&format!(".{name}")).then(|| value.strip_suffix("|c"))?
        });
        counts.map(|count| count.parse::<u64>().unwrap()).sum()
    }
}

fn stop_sends_what_is_new(class: &str) {
    let mut statsd = Statsd::start();
    let server = Server::start(&["-k", class, "-w", "2", "--statsd-host", &statsd.address()]);
    (0..7).for_each(|_| assert_eq!(server.get("/").status(), 200));
    server.finish();
    assert_eq!((statsd.sum("default.requests"), statsd.sum("default.accepted")), (7, 7));
    assert_eq!(statsd.sum("default.exits.requested"), 2);
    let last = statsd.received().last().unwrap();
    assert!(last.contains("default.workers_ready:0|g"), "{last}");
}

#[test]
fn counts_of_both_masters_of_an_upgrade_add_up() {
    let mut statsd = Statsd::start();
    let server = Server::start(&["-w", "2", "--statsd-host", &statsd.address()]);
    let send = || (0..10).for_each(|_| assert_eq!(server.get("/").status(), 200));
    send();
    server.signal(Signal::SIGUSR2);
    let ready = server.wait_for("the new master", |it| it.message() == "new master ready");
    send();
    server.signal(Signal::SIGTERM);
    server.wait_for("the take-over", |record| record.message() == "upgrade complete");
    let of_old = statsd.received().last().unwrap();
    assert!(!of_old.contains("|g"), "the gauges are those of the new master: {of_old}");
    send();
    kill(Pid::from_raw(ready.number("pid").unwrap() as i32), Signal::SIGTERM).unwrap();
    server.wait_no_survivors();
    assert_eq!((statsd.sum("requests"), statsd.sum("workers_started")), (30, 4));
}

#[test]
fn counts_of_a_pool_that_is_removed_are_sent() {
    let mut statsd = Statsd::start();
    let (kept, removed) = (free_address(), free_address());
    let launch = Launch::new(&["--statsd-host", &statsd.address()]).unbound();
    let path = launch.path("ostler.yaml");
    let pool = |name: &str, address| format!("  {name}: {{bind: [\"{address}\"]}}\n");
    fs::write(&path, format!("pools:\n{}{}", pool("a", kept), pool("b", removed))).unwrap();
    let server = launch.arg("--config").arg(&path).start();
    for _ in 0..3 {
        assert_eq!(Client::tcp(removed).unwrap().try_get_last("/").unwrap().status(), 200);
    }
    fs::write(&path, format!("pools:\n{}", pool("a", kept))).unwrap();
    server.signal(Signal::SIGHUP);
    wait_until("its counts are sent", || statsd.sum("b.requests") == 3);
    server.finish();
    assert_eq!((statsd.sum("b.requests"), statsd.sum("a.requests")), (3, 0));
}

#[test]
fn silent_name_server_does_not_delay_the_start() {
    let mut statsd = Statsd::start();
    let port = statsd.socket.local_addr().unwrap().port();
    let line = format!("statsd_host: known.test:{port}\n");
    let Some(host) = NamedHost::start_with("mio", &line) else { return };
    assert_eq!(host.server.get("/").status(), 200);
    // The child that looks the name up exits with the answer.
    host.answer_while(true, || host.server.survivors().len() > 2);
    host.server.finish();
    assert_eq!(statsd.sum("requests"), 1);
}

#[test]
fn unknown_host_is_reported_and_the_master_serves() {
    let Some(host) = NamedHost::start_with("mio", "statsd_host: unknown.test:1\n") else { return };
    host.answer_until("statsd server not available yet", false);
    assert_eq!(host.server.get("/").status(), 200);
    host.server.finish();
}

#[test]
#[ignore = "slow"]
fn server_receives_what_is_new() {
    let server = UdpSocket::bind("127.0.0.1:0").unwrap();
    server.set_read_timeout(Some(DEADLINE)).unwrap();
    let address = server.local_addr().unwrap().to_string();
    let it = Server::start(&["-w", "2", "--statsd-host", &address, "-n", "my.app"]);
    (0..7).for_each(|_| assert_eq!(it.get("/").status(), 200));
    let burst = || {
        let mut datagram = [0; 2000];
        let length = server.recv(&mut datagram).unwrap();
        String::from_utf8(datagram[..length].to_vec()).unwrap()
    };
    let first = burst();
    for line in ["requests:7|c", "accepted:7|c", "workers_ready:2|g", "in_flight:0|g"] {
        assert!(first.split('\n').any(|it| it == format!("my_app.default.{line}")), "{first}");
    }
    assert!(burst().contains("\nmy_app.default.workers_ready:2|g\n"));
    drop(server); // a server that has gone is no error
    it.get("/");
    it.finish();
}

#[test]
fn host_must_be_a_udp_address() {
    for address in ["unix:path", "localhost:0", "fd://3"] {
        let outcome = Launch::new(&["--statsd-host", address]).run();
        assert_eq!(outcome.exit, Exit::Code(2), "{outcome:?}");
        assert!(outcome.stderr.contains("HOST:PORT"), "{outcome:?}");
    }
}
