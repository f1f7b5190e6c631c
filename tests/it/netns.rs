//! Hosts of their own for tests: network namespaces on one bridge, between which packets can be lost.
//! They need root and `ip` (iproute2).

use std::cell::Cell;
use std::fs::{self, File};
use std::io::{self, Error};
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::{Command, id};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;

use nix::sched::{CloneFlags, setns};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::proc::wait_until;

/// What the names of all namespaces of tests begin with. The number of the test process follows.
const PREFIX: &str = "ostler-test-";
const DIRECTORY: &str = "/run/netns";
/// No host has this address on the bridge: what is sent to it is lost.
const LOST: &str = "02:00:00:00:00:01";

/// Hosts on one bridge, which is in a namespace too. Dropping it kills every process in them.
pub struct Network {
    prefix: String,
    hosts: Cell<u8>,
}

/// A network namespace with one address.
#[derive(Clone, PartialEq, Eq)]
pub struct Host {
    namespace: String,
    address: Ipv4Addr,
}

impl Network {
    /// Makes a network without hosts; `None` where that is not permitted, which is printed. Removes what
    /// killed test processes have left behind.
    pub fn new() -> Option<Self> {
        static NETWORKS: AtomicU32 = AtomicU32::new(0);
        remove_leftovers();
        let number = NETWORKS.fetch_add(1, Ordering::Relaxed);
        let network = Self { prefix: format!("{PREFIX}{}-{number}-", id()), hosts: Cell::new(0) };
        match network.make_bridge() {
            Ok(()) => Some(network),
            Err(error) => {
                eprintln!("skipped: network namespaces: {error}");
                None
            }
        }
    }

    fn make_bridge(&self) -> io::Result<()> {
        let bridge = self.name("bridge");
        ip(&["netns", "add", &bridge])?;
        ip(&["-n", &bridge, "link", "add", "br0", "type", "bridge"])?;
        ip(&["-n", &bridge, "link", "set", "br0", "up"])?;
        // Whether there are pairs.
        ip(&["-n", &bridge, "link", "add", "probe", "type", "veth"])?;
        ip(&["-n", &bridge, "link", "delete", "probe"])?;
        // Whether a thread of this process may enter it.
        in_namespace(&bridge, || ())
    }

    fn name(&self, part: &str) -> String {
        format!("{}{part}", self.prefix)
    }

    /// Makes a host.
    pub fn host(&self) -> Host {
        self.hosts.set(self.hosts.get() + 1);
        let (number, bridge) = (self.hosts.get(), self.name("bridge"));
        let (own, port) = (self.name(&number.to_string()), format!("port{number}"));
        let address = Ipv4Addr::new(10, 77, 0, number);
        let with_mask = format!("{address}/24");
        let pair = ["type", "veth", "peer", "name", "eth0", "netns", &own];
        for words in [
            &["netns", "add", &own][..],
            &[&["-n", &bridge, "link", "add", &port], &pair[..]].concat(),
            &["-n", &bridge, "link", "set", &port, "master", "br0", "up"],
            &["-n", &own, "address", "add", &with_mask, "dev", "eth0"],
            &["-n", &own, "link", "set", "eth0", "up"],
            &["-n", &own, "link", "set", "lo", "up"],
        ] {
            ip(words).unwrap();
        }
        Host { namespace: own, address }
    }

    /// Removes a host at once, with the packets that are on the way. No process runs there.
    pub fn remove(&self, host: &Host) {
        remove(&host.namespace);
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        namespaces().filter(|it| it.starts_with(&self.prefix)).for_each(|it| remove(&it));
    }
}

impl Host {
    pub fn address(&self) -> Ipv4Addr {
        self.address
    }

    /// Returns the words before those of a program that is to run there, with its own process number.
    pub fn words(&self) -> Vec<String> {
        let place = format!("--net={DIRECTORY}/{}", self.namespace);
        ["nsenter", &place, "--"].map(str::to_owned).into()
    }

    /// Runs a closure in a thread whose sockets, and those of threads that it starts, are of this host.
    pub fn within<R: Send>(&self, run: impl FnOnce() -> R + Send) -> R {
        in_namespace(&self.namespace, run).unwrap()
    }

    /// Loses each packet from this host to another, until [`Host::send_again`]. Those of the other way
    /// arrive.
    pub fn lose_packets_to(&self, other: &Self) {
        self.neighbour(&[
            "replace",
            &other.address.to_string(),
            "lladdr",
            LOST,
            "nud",
            "permanent",
        ]);
    }

    /// Ends what [`Host::lose_packets_to`] began.
    pub fn send_again(&self, other: &Self) {
        self.neighbour(&["delete", &other.address.to_string()]);
    }

    fn neighbour(&self, words: &[&str]) {
        let words = [&["-n", &self.namespace, "neighbour"], words, &["dev", "eth0"]].concat();
        ip(&words).unwrap();
    }
}

fn in_namespace<R: Send>(name: &str, run: impl FnOnce() -> R + Send) -> io::Result<R> {
    let namespace = File::open(Path::new(DIRECTORY).join(name))?;
    thread::scope(|scope| {
        let enter_and_run = || {
            setns(&namespace, CloneFlags::CLONE_NEWNET)?;
            Ok(run())
        };
        let thread = scope.spawn(enter_and_run);
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Runs `ip`.
fn ip(words: &[&str]) -> io::Result<String> {
    let output = Command::new("ip").args(words).output()?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(Error::other(format!("ip {}: {said}", words.join(" "))))
}

/// Returns the names of all namespaces of tests.
fn namespaces() -> impl Iterator<Item = String> {
    let entries = fs::read_dir(DIRECTORY).into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    names.filter(|name| name.starts_with(PREFIX))
}

fn remove_leftovers() {
    let is_left = |name: &String| {
        let owner = name[PREFIX.len()..].split('-').next().and_then(|pid| pid.parse().ok());
        owner.is_some_and(|pid| kill(Pid::from_raw(pid), None).is_err())
    };
    namespaces().filter(is_left).for_each(|name| remove(&name));
}

/// Kills the processes in a namespace, and removes it. Another test process may do the same.
fn remove(name: &str) {
    let pids = ip(&["netns", "pids", name]).unwrap_or_default();
    for pid in pids.split_whitespace().filter_map(|pid| pid.parse().ok()) {
        let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
    }
    let _ = ip(&["netns", "delete", name]);
}

#[test]
fn packets_are_lost_one_way_and_all_is_removed() {
    use std::net::UdpSocket;
    use std::time::Duration;

    let Some(network) = Network::new() else { return };
    let hosts = [network.host(), network.host()];
    let socket = |host: &Host| {
        let socket = host.within(|| UdpSocket::bind((host.address(), 7)).unwrap());
        socket.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        socket
    };
    let sockets = [socket(&hosts[0]), socket(&hosts[1])];
    let arrives = |from: usize| {
        let to = &hosts[1 - from];
        sockets[from].send_to(b"x", (to.address(), 7)).unwrap();
        sockets[1 - from].recv(&mut [0; 8]).is_ok()
    };
    wait_until("packets arrive", || arrives(0));
    wait_until("packets arrive", || arrives(1));
    hosts[0].lose_packets_to(&hosts[1]);
    while sockets[1].recv(&mut [0; 8]).is_ok() {}
    assert!(!arrives(0));
    wait_until("packets of the other way arrive", || arrives(1));
    hosts[0].send_again(&hosts[1]);
    wait_until("packets arrive again", || arrives(0));

    let words = hosts[0].words();
    let mut left =
        Command::new(&words[0]).args(&words[1..]).args(["sleep", "1000"]).spawn().unwrap();
    let enters = |pids: String| pids.contains(&left.id().to_string());
    wait_until("it is there", || ip(&["netns", "pids", &hosts[0].namespace]).is_ok_and(enters));
    let prefix = network.prefix.clone();
    drop(network);
    assert!(!left.wait().unwrap().success(), "it was killed");
    assert!(!namespaces().any(|name| name.starts_with(&prefix)));
}
