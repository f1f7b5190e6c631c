//! The path of the control socket: taken by one master, bound again if it is lost, and found by name
//! whatever other users call their processes.

use std::fs;
use std::os::unix::net::{UnixListener, UnixStream};

use crate::client::Client;
use crate::control::Controlled;
use crate::launch::Launch;
use crate::proc::wait_until;
use crate::support::{Exit, Server};

fn answers(it: &Controlled) -> bool {
    let Ok(mut client) = Client::unix(it.socket()) else { return false };
    client.ask("/healthz");
    client.try_answer().is_ok_and(|answer| answer.status() == 200)
}

#[test]
fn lost_path_is_bound_again() {
    let it = Controlled::start(&["-w", "1"]);
    let mut earlier = it.connect();
    fs::remove_file(it.socket()).unwrap();
    wait_until("the path is bound again", || answers(&it));
    assert_eq!(earlier.get("/healthz").status(), 200);
    // Another file is at the path: it stays, and the path is bound once it has gone.
    let other = it.socket().with_extension("other");
    fs::write(&other, "precious").unwrap();
    fs::rename(&other, it.socket()).unwrap();
    let unavailable = "control interface not available yet";
    it.server.wait_for("the failure", |record| record.message() == unavailable);
    assert_eq!(fs::read_to_string(it.socket()).unwrap(), "precious");
    fs::remove_file(it.socket()).unwrap();
    wait_until("the path is bound again", || answers(&it));
    // So is one that was moved away, and one that leads to the socket of another server.
    fs::rename(it.socket(), &other).unwrap();
    wait_until("the path is bound again", || answers(&it));
    let lost = it.server.records_of("control interface path removed or replaced");
    assert_eq!(lost.len(), 3, "{lost:?}");
    assert_eq!(it.server.records_of(unavailable).len(), 1);
    let path = it.socket().to_owned();
    it.server.finish();
    assert!(!path.exists());
}

#[test]
fn unwatched_changes_beside_the_path_are_ignored() {
    let it = Controlled::start(&["-w", "1"]);
    let beside = it.socket().with_extension("other");
    fs::write(&beside, "").unwrap();
    fs::remove_file(&beside).unwrap();
    // A change of the file itself that leaves it at its path.
    fs::set_permissions(it.socket(), fs::metadata(it.socket()).unwrap().permissions()).unwrap();
    assert!(answers(&it));
    assert!(it.server.records_of("control interface path removed or replaced").is_empty());
    it.server.finish();
}

/// Of two masters that start over the socket of one that has crashed, one has the path, and the other
/// exits.
#[test]
#[ignore = "slow"]
fn stale_path_is_taken_by_one_of_two() {
    for _ in 0..20 {
        let launches = [0, 1].map(|_| Launch::new(&["-w", "1"]));
        let path = launches[0].path("control");
        drop(UnixListener::bind(&path).unwrap());
        let mut servers: Vec<Server> =
            launches.map(|it| it.arg("--control-socket").arg(&path).spawn()).into();
        let loser = || servers.iter().position(|server| server.exit().is_some());
        wait_until("one of them has given up", || loser().is_some());
        let loser = servers.remove(loser().unwrap());
        assert_eq!(loser.exit(), Some(Exit::Code(1)));
        let winner = servers.remove(0);
        winner.wait_for("the start", |record| record.message() == "all workers ready");
        assert!(UnixStream::connect(&path).is_ok());
        let mut client = Client::unix(path.as_ref()).unwrap();
        assert_eq!(client.get("/v1/status").json()["pid"], winner.pid.as_raw());
        assert!(!fs::exists(format!("{path}.ostler-lock")).unwrap());
        winner.finish();
    }
}

/// A process of another user has the title of a master.
#[cfg(feature = "ctl")]
#[test]
fn title_of_another_users_process_confuses_nothing() {
    use std::os::unix::process::CommandExt;
    use std::process::{Command, Stdio};

    if !nix::unistd::Uid::effective().is_root() {
        return; // only root can start a process as another user
    }
    let name = format!("titled-{}", std::process::id());
    let mut impostor = Command::new("sleep");
    impostor.arg("1000").arg0(format!("ostler: master [{name}]")).uid(65_534).gid(65_534);
    let mut impostor = impostor.stdin(Stdio::null()).spawn().unwrap();
    let pid = nix::unistd::Pid::from_raw(impostor.id() as i32);
    wait_until("it has its title", || crate::proc::title(pid).starts_with("ostler: master"));
    let it = Controlled::start(&["-w", "1", "-n", &name]);
    let shown = crate::ctl::ostlerctl(&["status", "-n", &name]).output().unwrap();
    impostor.kill().unwrap();
    impostor.wait().unwrap();
    assert!(shown.status.success(), "{}", String::from_utf8_lossy(&shown.stderr));
    it.server.finish();
}

/// Other users have sockets whose names are not text, and one whose name adds a line to the list of
/// sockets: another path of the control socket.
#[cfg(feature = "ctl")]
#[test]
fn names_of_other_sockets_confuse_nothing() {
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::fs::MetadataExt;
    use std::os::unix::net::SocketAddr;

    let name = format!("named-{}", std::process::id());
    let it = Controlled::start(&["-w", "1", "-n", &name]);
    let bind = |name: &[u8]| {
        UnixListener::bind_addr(&SocketAddr::from_abstract_name(name).unwrap()).unwrap()
    };
    let _other = bind(&[name.as_bytes(), b"\xff\xfe"].concat());
    let list = fs::read("/proc/net/unix").unwrap();
    let list = String::from_utf8_lossy(&list).into_owned();
    let path = it.socket().to_str().unwrap();
    let line = list.lines().find(|line| line.ends_with(path)).expect("the control socket");
    let inode = line.split_whitespace().nth(6).unwrap();
    let dir = it.socket().parent().unwrap();
    let other = format!("{}/./control", dir.display());
    assert_eq!(fs::metadata(&other).unwrap().ino(), fs::metadata(path).unwrap().ino());
    let forged = format!("\n0: 2 0 10000 0001 01 {inode} {other}");
    assert!(forged.len() < 107, "{forged} is too long for a name");
    let _forged = bind(forged.as_bytes());
    let shown = crate::ctl::ostlerctl(&["status", "-n", &name]).output().unwrap();
    assert!(shown.status.success(), "{}", String::from_utf8_lossy(&shown.stderr));
    it.server.finish();
}
