//! Finds the control socket of a running master.
//!
//! A master is found by its title. Its control socket is the listening socket that it does not share
//! with its workers and that no other user can open: the kernel tells who has which socket. Only root
//! and the master's own user can see that, and no other user may use the socket.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use super::text::printable;

/// How often the list of sockets is read. The kernel hands it out in parts and finds its place again by
/// a count, so a reading lacks a socket now and then if other processes close theirs meanwhile.
const SOCKET_LIST_READINGS: usize = 3;

/// A running master with the wanted name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Master {
    pub(crate) pid: u32,
    pub(crate) parent: u32,
    pub(crate) uid: u32,
    /// `None` if its sockets cannot be seen.
    pub(crate) sockets: Option<Vec<PathBuf>>,
}

/// Returns the path of the control socket of the only master with this name, and the master's user.
///
/// # Errors
/// There is none, or more than one, with advice.
pub(crate) fn find(name: &str) -> Result<(PathBuf, u32), String> {
    let own_uid = fs::metadata("/proc/self").map_or(0, |info| info.uid());
    select(name, trusted(masters(name), own_uid))
}

/// Leaves out the masters of other users, if root or this user has one: any user can give a process a
/// master's title.
fn trusted(mut masters: Vec<Master>, own_uid: u32) -> Vec<Master> {
    let is_trusted = |master: &Master| master.uid == own_uid || master.uid == 0;
    if masters.iter().any(is_trusted) {
        masters.retain(is_trusted);
    }
    masters
}

/// Chooses the only control socket. The two masters of an upgrade count as one: only one of them has
/// the socket.
fn select(name: &str, mut masters: Vec<Master>) -> Result<(PathBuf, u32), String> {
    let name = printable(name);
    let known = masters.clone();
    // A child has its master's title and sockets for a moment after the fork.
    let is_child_of =
        |it: &Master, other: &Master| it.parent == other.pid && it.sockets == other.sockets;
    masters.retain(|it| it.sockets.is_none() || !known.iter().any(|other| is_child_of(it, other)));
    let has_socket = |master: &&Master| master.sockets.as_ref().is_some_and(|it| !it.is_empty());
    let is_peer = |one: &Master, other: &Master| one.parent == other.pid || other.parent == one.pid;
    let with_socket: Vec<&Master> = masters.iter().filter(has_socket).collect();
    let others = masters.iter().filter(|master| !has_socket(master));
    let others: Vec<&Master> =
        others.filter(|other| !with_socket.iter().any(|master| is_peer(master, other))).collect();
    let paths = |master: &Master| master.sockets.clone().unwrap_or_default();
    if let ([master], []) = (&with_socket[..], &others[..])
        && let [path] = &paths(master)[..]
    {
        return Ok((path.clone(), master.uid));
    }
    if masters.is_empty() {
        return Err(format!(
            "found no running master with the name {name}: give --name NAME, its proc_name, or \
             --socket PATH"
        ));
    }
    if let ([], [master]) = (&with_socket[..], &others[..]) {
        let Master { pid, uid, .. } = master;
        return Err(match master.sockets {
            None => format!(
                "the sockets of master {pid}, of user {uid}, are not visible to this user: run this as \
                 that user or as root, or give --socket PATH"
            ),
            Some(_) => format!(
                "master {pid} has no control socket that only its user can open: start it with \
                 --control-socket PATH, or, if it has control_users, give --socket PATH"
            ),
        });
    }
    let mut message = match with_socket[..] {
        [] if others.iter().all(|master| master.sockets.is_some()) => format!(
            "no master with the name {name} has a control socket that only its user can open: start one \
             with --control-socket PATH"
        ),
        _ => format!("found more than one master for the name {name}: give --socket PATH"),
    };
    for master in with_socket.iter().chain(&others) {
        let found = paths(master);
        let what = match (&master.sockets, found.is_empty()) {
            (None, _) => "its sockets are not visible to this user".to_owned(),
            (Some(_), true) => "no control socket".to_owned(),
            _ => {
                let paths: Vec<_> =
                    found.iter().map(|it| printable(&it.to_string_lossy())).collect();
                paths.join(", ")
            }
        };
        message.push_str(&format!("\n  master {} of user {}: {what}", master.pid, master.uid));
    }
    Err(message)
}

/// Returns the running masters with this name.
fn masters(name: &str) -> Vec<Master> {
    let title = format!("ostler: master [{name}]");
    let processes = processes();
    let is_master = |pid: &u32| title_of(*pid).is_some_and(|its| its == title.as_bytes());
    let mut masters = Vec::new();
    for (pid, parent) in processes.iter().filter(|(pid, _)| is_master(pid)) {
        let Ok(info) = fs::metadata(format!("/proc/{pid}")) else { continue };
        let children = processes.iter().filter(|(child, its)| *its == pid && !is_master(child));
        let sockets = control_sockets(*pid, info.uid(), children.map(|(child, _)| *child));
        masters.push(Master { pid: *pid, parent: *parent, uid: info.uid(), sockets });
    }
    masters.sort_by_key(|master| master.pid);
    masters
}

/// Returns the processes, each with its parent.
fn processes() -> HashMap<u32, u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter_map(|pid| Some((pid, parent_of(pid)?))).collect()
}

fn parent_of(pid: u32) -> Option<u32> {
    let stat = fs::read(format!("/proc/{pid}/stat")).ok()?;
    let stat = String::from_utf8_lossy(&stat);
    // The name in parentheses may have any byte.
    stat.rsplit_once(") ")?.1.split(' ').nth(1)?.parse().ok()
}

fn title_of(pid: u32) -> Option<Vec<u8>> {
    let mut title = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let end = title.iter().position(|byte| *byte == 0).unwrap_or(title.len());
    title.truncate(end);
    Some(title)
}

/// Returns the paths of a master's control sockets; `None` if its descriptors cannot be seen.
fn control_sockets(
    pid: u32,
    uid: u32,
    children: impl Iterator<Item = u32>,
) -> Option<Vec<PathBuf>> {
    let mut inodes = socket_inodes(pid)?;
    let shared: HashSet<u64> = children.filter_map(socket_inodes).flatten().collect();
    inodes.retain(|inode| !shared.contains(inode));
    let read = |_| fs::read(format!("/proc/{pid}/net/unix")).unwrap_or_default();
    let paths = listening_paths((0..SOCKET_LIST_READINGS).map(read), &inodes);
    let paths = paths.iter().filter_map(|path| Some(seen_from_here(pid, &absolute(pid, path)?)));
    Some(private_sockets(paths, uid))
}

/// Returns those paths that lead to sockets which only this user can open, one for each socket. Any user
/// can add a line to the list of sockets by a name with a line feed, and so another path of a file.
fn private_sockets(paths: impl Iterator<Item = PathBuf>, uid: u32) -> Vec<PathBuf> {
    let mut known = HashSet::new();
    let is_new = |path: &PathBuf| private_socket(path, uid).is_some_and(|file| known.insert(file));
    paths.filter(is_new).collect()
}

/// Returns the paths of those listening sockets that have one of these inodes. A socket that one of
/// the readings of /proc/net/unix lacks counts too.
fn listening_paths(
    readings: impl Iterator<Item = Vec<u8>>,
    inodes: &HashSet<u64>,
) -> BTreeSet<String> {
    let mut paths = BTreeSet::new();
    for reading in readings {
        // The names of other sockets may have any bytes.
        for line in reading.split(|byte| *byte == b'\n').map(String::from_utf8_lossy) {
            let socket = parse_listening(&line).filter(|(inode, _)| inodes.contains(inode));
            paths.extend(socket.map(|(_, path)| path.to_owned()));
        }
    }
    paths
}

fn socket_inodes(pid: u32) -> Option<HashSet<u64>> {
    let entries = fs::read_dir(format!("/proc/{pid}/fd")).ok()?;
    let inode = |path: PathBuf| {
        let target = fs::read_link(path).ok()?;
        target.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
    };
    Some(entries.flatten().filter_map(|entry| inode(entry.path())).collect())
}

/// Parses a line of /proc/net/unix. Returns the inode and the path of a listening stream socket.
fn parse_listening(line: &str) -> Option<(u64, &str)> {
    const ACCEPTS_CONNECTIONS: u32 = 1 << 16;
    let mut rest = line;
    let mut fields = [""; 7];
    for field in &mut fields {
        let text = rest.trim_start();
        let end = text.find(' ').unwrap_or(text.len());
        (*field, rest) = text.split_at(end);
    }
    let path = rest.strip_prefix(' ')?;
    let flags = u32::from_str_radix(fields[3], 16).ok()?;
    let is_listening = flags & ACCEPTS_CONNECTIONS != 0 && fields[4] == "0001";
    let is_path = !path.is_empty() && !path.starts_with('@');
    (is_listening && is_path).then_some((fields[6].parse().ok()?, path))
}

/// Returns the path of a socket, which the kernel shows as the process has given it.
fn absolute(pid: u32, path: &str) -> Option<String> {
    if path.starts_with('/') {
        return Some(path.to_owned());
    }
    let dir = fs::read_link(format!("/proc/{pid}/cwd")).ok()?;
    Some(dir.join(path).to_str()?.to_owned())
}

/// Returns the path by which this process reaches a master's file: the master may be in a container.
fn seen_from_here(pid: u32, path: &str) -> PathBuf {
    let namespace = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/mnt")).ok();
    let root = PathBuf::from(format!("/proc/{pid}/root"));
    let is_own_root = fs::read_link(&root).is_ok_and(|root| root == Path::new("/"))
        && namespace(&pid.to_string()) == namespace("self");
    if is_own_root { path.into() } else { root.join(path.trim_start_matches('/')) }
}

/// Returns the device and the inode of a path, if it is a socket that only this user can open.
fn private_socket(path: &Path, uid: u32) -> Option<(u64, u64)> {
    let info = fs::symlink_metadata(path).ok()?;
    let is_private =
        info.file_type().is_socket() && info.uid() == uid && info.permissions().mode() & 0o077 == 0;
    is_private.then_some((info.dev(), info.ino()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn master(pid: u32, parent: u32, sockets: Option<&[&str]>) -> Master {
        let sockets = sockets.map(|paths| paths.iter().map(PathBuf::from).collect());
        Master { pid, parent, uid: 33, sockets }
    }

    #[test]
    fn only_control_socket_is_selected() {
        let one = master(7, 1, Some(&["/run/a"]));
        assert_eq!(select("x", vec![one.clone()]), Ok(("/run/a".into(), 33)));
        // The masters of an upgrade.
        let upgrade = vec![one.clone(), master(9, 7, Some(&[]))];
        assert_eq!(select("x", upgrade), Ok(("/run/a".into(), 33)));
        let upgrade = vec![master(9, 1, Some(&[])), master(7, 9, Some(&["/b"]))];
        assert_eq!(select("x", upgrade), Ok(("/b".into(), 33)));
        // A child that was just forked.
        let forked = vec![master(9, 7, Some(&["/run/a"])), one];
        assert_eq!(select("x", forked), Ok(("/run/a".into(), 33)));
    }

    #[test]
    fn titles_of_other_users_confuse_nothing() {
        let of = |uid, pid| Master { uid, ..master(pid, 1, Some(&["/run/a"])) };
        let pids = |masters: &[Master]| masters.iter().map(|it| it.pid).collect::<Vec<_>>();
        let all = || vec![of(33, 7), of(34, 8), of(0, 9)];
        assert_eq!(pids(&trusted(all(), 33)), [7, 9]);
        assert_eq!(pids(&trusted(all(), 0)), [9]);
        assert_eq!(pids(&trusted(all(), 35)), [9]);
        // Root controls the masters of other users too.
        assert_eq!(pids(&trusted(vec![of(33, 7), of(34, 8)], 0)), [7, 8]);
    }

    #[test]
    fn several_or_no_sockets_are_errors_with_advice() {
        let one = master(7, 1, Some(&["/run/a"]));
        for (masters, expected) in [
            (vec![], &["name x", "--name"][..]),
            (vec![master(7, 1, Some(&[]))], &["master 7", "--control-socket"]),
            (vec![master(7, 1, None)], &["of user 33, are not visible"]),
            (vec![one.clone(), master(8, 1, Some(&["/run/b"]))], &["/run/a", "/run/b", "user 33"]),
            (vec![one.clone(), master(8, 1, Some(&[]))], &["8 of user 33: no control socket"]),
            (vec![one.clone(), master(8, 1, None)], &["not visible"]),
            (vec![master(7, 1, Some(&["/run/a", "/run/\u{1b}"]))], &["/run/a, /run/\\u{1b}"]),
        ] {
            let message = select("x", masters).expect_err("an error");
            for words in expected {
                assert!(message.contains(words), "{message} lacks {words}");
            }
        }
    }

    #[test]
    fn socket_that_a_reading_lacks_is_found() {
        let line = |inode, path| format!("0: 00000002 00000000 00010000 0001 01 {inode} {path}\n");
        let (one, other) = (line(3, "/run/a"), line(4, "/run/b"));
        let readings = [String::new(), other.clone(), one.clone() + &other, one];
        let readings = readings.into_iter().map(String::into_bytes);
        let paths = listening_paths(readings, &HashSet::from([3]));
        assert_eq!(paths, BTreeSet::from(["/run/a".to_owned()]));
    }

    #[test]
    fn names_with_any_bytes_hide_no_socket() {
        let reading = b"0: 00000002 00000000 00010000 0001 01 4 @\xff\xfe\r\n\
            0: 00000002 00000000 00010000 0001 01 3 /run/a\n";
        let paths = listening_paths([reading.to_vec()].into_iter(), &HashSet::from([3]));
        assert_eq!(paths, BTreeSet::from(["/run/a".to_owned()]));
    }

    #[test]
    fn another_path_of_a_socket_is_left_out() {
        let dir = tempfile::tempdir().unwrap();
        let paths = ["a", "./a", "b"].map(|name| dir.path().join(name));
        for path in [&paths[0], &paths[2]] {
            let _bound = std::os::unix::net::UnixListener::bind(path).unwrap();
            fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
        }
        fs::write(dir.path().join("file"), "").unwrap();
        let uid = fs::metadata(dir.path()).unwrap().uid();
        let found = private_sockets(paths.into_iter().chain([dir.path().join("file")]), uid);
        let names: Vec<_> = found.iter().filter_map(|path| path.file_name()).collect();
        assert_eq!(names, ["a", "b"]);
    }

    #[test]
    fn listening_sockets_are_parsed() {
        let line = "0000000000000000: 00000002 00000000 00010000 0001 01 3149 /run/x y.sock";
        assert_eq!(parse_listening(line), Some((3149, "/run/x y.sock")));
        assert_eq!(parse_listening(&line.replace("/run/", "")), Some((3149, "x y.sock")));
        for other in [
            "Num       RefCount Protocol Flags    Type St Inode Path",
            "0000000000000000: 00000003 00000000 00000000 0001 03 3150 /run/x",
            "0000000000000000: 00000002 00000000 00010000 0001 01 3149",
            "0000000000000000: 00000002 00000000 00010000 0001 01 3149 @abstract",
            "0000000000000000: 00000002 00000000 00010000 0005 01 3149 /run/seqpacket",
            "",
        ] {
            assert_eq!(parse_listening(other), None, "{other}");
        }
    }
}
