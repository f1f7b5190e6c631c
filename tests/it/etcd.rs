//! A real etcd of one or more members, with or without TLS.

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use serde_json::Value;
use tempfile::TempDir;

use crate::client::Client;
use crate::exec_programs::is_installed;
use crate::launch::free_port;
use crate::netns::Host;
use crate::proc::wait_until;

/// A cluster. Dropping it kills its members.
pub struct Etcd {
    members: Vec<Member>,
    cluster: String,
    certificates: Option<Certificates>,
    dir: TempDir,
}

struct Member {
    name: String,
    /// Where it runs, if not beside this process.
    host: Option<Host>,
    client_port: u16,
    peer_port: u16,
    process: Option<Child>,
}

impl Member {
    fn address(&self) -> Ipv4Addr {
        self.host.as_ref().map_or(Ipv4Addr::LOCALHOST, Host::address)
    }

    fn peer_url(&self) -> String {
        format!("http://{}:{}", self.address(), self.peer_port)
    }
}

impl Etcd {
    /// Starts so many members; `None` if etcd is not installed, which is printed.
    pub fn start(count: usize) -> Option<Self> {
        Self::start_on(vec![None; count])
    }

    /// Starts a member on each host, or beside this process.
    pub fn start_on(hosts: Vec<Option<Host>>) -> Option<Self> {
        let count = hosts.len();
        let member = |(number, host)| Member {
            name: format!("m{number}"),
            host,
            client_port: free_port(),
            peer_port: free_port(),
            process: None,
        };
        let members: Vec<_> = hosts.into_iter().enumerate().map(member).collect();
        let peers = members.iter().map(|it| format!("{}={}", it.name, it.peer_url()));
        let cluster = peers.collect::<Vec<_>>().join(",");
        let dir = tempfile::tempdir().unwrap();
        let mut etcd = Self { members, cluster, certificates: None, dir };
        // Within a network namespace another program is spawned, which is there.
        if !is_installed(&["etcd", "--version"]) {
            return None;
        }
        (0..count).for_each(|number| etcd.spawn(number).expect("etcd is installed"));
        (0..count).for_each(|number| etcd.wait_ready(number));
        Some(etcd)
    }

    fn spawn(&mut self, number: usize) -> std::io::Result<()> {
        let member = &self.members[number];
        let (client, peer) = (self.url(number), member.peer_url());
        let words = member.host.as_ref().map_or(Vec::new(), Host::words);
        let words: Vec<&str> = words.iter().map(String::as_str).chain(["etcd"]).collect();
        let mut command = Command::new(words[0]);
        command
            .args(&words[1..])
            .args(["--name", &member.name, "--data-dir"])
            .arg(self.dir.path().join(&member.name))
            .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", &self.cluster])
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        if let Some(certificates) = &self.certificates {
            command
                .arg("--client-cert-auth")
                .arg("--trusted-ca-file")
                .arg(certificates.path("ca.pem"))
                .arg("--cert-file")
                .arg(certificates.path("etcd.pem"))
                .arg("--key-file")
                .arg(certificates.path("etcd.key"));
        }
        self.members[number].process = Some(command.spawn()?);
        Ok(())
    }

    fn wait_ready(&self, number: usize) {
        wait_until("etcd listens", || self.connect(number).is_ok());
    }

    fn connect(&self, number: usize) -> std::io::Result<Client> {
        let connect = || Client::tcp(self.address(number));
        self.members[number].host.as_ref().map_or_else(connect, |host| host.within(connect))
    }

    pub fn address(&self, number: usize) -> SocketAddr {
        let member = &self.members[number];
        (member.address(), member.client_port).into()
    }

    /// Waits until the members have a leader that they agree on, and returns its number.
    pub fn leader(&self) -> usize {
        let ask = |number| {
            let answer = self.post(number, "maintenance/status", "{}")?.try_answer()?;
            let json: Value = serde_json::from_slice(&answer.body)?;
            Ok((json["header"]["member_id"].clone(), json["leader"].clone()))
        };
        let mut found = None;
        wait_until("etcd has a leader", || {
            let answers = (0..self.members.len()).map(ask).collect::<std::io::Result<Vec<_>>>();
            let Ok(answers) = answers else { return false };
            found = answers.iter().position(|(member, _)| *member == answers[0].1);
            answers.iter().all(|(_, leader)| *leader == answers[0].1) && found.is_some()
        });
        found.unwrap()
    }

    /// Asks a member.
    fn post(&self, number: usize, path: &str, body: &str) -> std::io::Result<Client> {
        let mut client = self.connect(number)?;
        let length = body.len();
        client.try_send(format!(
            "POST /v3/{path} HTTP/1.1\r\nHost: etcd\r\nContent-Length: {length}\r\n\r\n{body}"
        ))?;
        Ok(client)
    }

    fn url(&self, number: usize) -> String {
        let scheme = if self.certificates.is_some() { "https" } else { "http" };
        format!("{scheme}://{}", self.address(number))
    }

    pub fn urls(&self) -> Vec<String> {
        (0..self.members.len()).map(|number| self.url(number)).collect()
    }

    pub fn stop(&mut self, number: usize) {
        if let Some(mut process) = self.members[number].process.take() {
            process.kill().unwrap();
            process.wait().unwrap();
        }
    }

    pub fn restart(&mut self, number: usize) {
        self.spawn(number).unwrap();
        self.wait_ready(number);
    }

    /// Demands a login, over TLS with certificates on both sides. The only user is `root`.
    pub fn secure(&mut self, password: &str, certificates: Certificates) {
        let user = format!(r#"{{"name": "root", "password": "{password}"}}"#);
        for (path, body) in [
            ("role/add", r#"{"name": "root"}"#),
            ("user/add", user.as_str()),
            ("user/grant", r#"{"user": "root", "role": "root"}"#),
            ("enable", "{}"),
        ] {
            let answer = self.post(0, &format!("auth/{path}"), body).unwrap().answer();
            assert_eq!(answer.status(), 200, "{path}: {}", answer.text());
        }
        self.stop(0);
        self.certificates = Some(certificates);
        self.restart(0);
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        (0..self.members.len()).for_each(|number| self.stop(number));
    }
}

/// An authority and what it has certified, as files that openssl(1) makes.
pub struct Certificates {
    dir: PathBuf,
}

impl Certificates {
    /// Makes an authority; `None` if openssl is not installed, which is printed.
    pub fn new(dir: &Path) -> Option<Self> {
        let dir = dir.to_owned();
        let extensions = "subjectAltName=IP:127.0.0.1\nbasicConstraints=CA:FALSE\n";
        fs::write(dir.join("extensions"), extensions).unwrap();
        let it = Self { dir };
        let authority = "req -x509 -nodes -newkey ec -pkeyopt ec_paramgen_curve:P-256 -days 2 \
                         -subj /CN=authority -keyout ca.key -out ca.pem";
        it.openssl(authority).map_err(|error| eprintln!("skipped: openssl: {error}")).ok()?;
        Some(it)
    }

    /// Returns the authority that was made in this directory.
    pub fn of(dir: &Path) -> Self {
        Self { dir: dir.to_owned() }
    }

    /// Certifies a name for so many days. With 0, the certificate expires at once. It has no common name:
    /// etcd rejects a login by one that has.
    pub fn issue(&self, name: &str, days: u32) {
        self.openssl(&format!(
            "req -nodes -newkey ec -pkeyopt ec_paramgen_curve:P-256 -subj /O={name} \
             -keyout new.key -out new.csr"
        ))
        .unwrap();
        self.openssl(&format!(
            "x509 -req -in new.csr -CA ca.pem -CAkey ca.key -CAcreateserial -extfile extensions \
             -days {days} -out new.pem"
        ))
        .unwrap();
        for ending in ["key", "pem"] {
            fs::rename(self.path(&format!("new.{ending}")), self.path(&format!("{name}.{ending}")))
                .unwrap();
        }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    fn openssl(&self, arguments: &str) -> std::io::Result<()> {
        let arguments = arguments.split_whitespace();
        let output = Command::new("openssl").args(arguments).current_dir(&self.dir).output()?;
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    }
}

/// A way to a member that can be cut: then bytes are dropped in both directions, and nothing is closed.
pub struct Link {
    pub url: String,
    is_cut: Arc<AtomicBool>,
}

impl Link {
    pub fn to(target: SocketAddr) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let is_cut = Arc::new(AtomicBool::new(false));
        let shared = Arc::clone(&is_cut);
        thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let Ok(server) = TcpStream::connect(target) else { continue };
                let ends = (client.try_clone().unwrap(), server.try_clone().unwrap());
                for (from, to) in [(client, server), (ends.1, ends.0)] {
                    let is_cut = Arc::clone(&shared);
                    thread::spawn(move || forward(from, to, &is_cut));
                }
            }
        });
        Self { url, is_cut }
    }

    pub fn cut(&self, is_cut: bool) {
        self.is_cut.store(is_cut, Ordering::SeqCst);
    }
}

fn forward(mut from: TcpStream, mut to: TcpStream, is_cut: &AtomicBool) {
    let mut buffer = [0; 4096];
    while let Ok(length @ 1..) = from.read(&mut buffer) {
        if !is_cut.load(Ordering::SeqCst) && to.write_all(&buffer[..length]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(std::net::Shutdown::Both);
}
