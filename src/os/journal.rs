//! The stream to systemd's journal that a service has as its outputs.

use std::env;
use std::ffi::OsStr;
use std::io::{self, Write};
use std::net::Shutdown;
use std::os::fd::{OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use nix::sys::socket::{UnixAddr, getpeername};

use super::{fd_table, file, process};

/// The variable by which systemd says which socket is the stream: its device and inode.
const VARIABLE: &str = "JOURNAL_STREAM";

const OUTPUTS: [RawFd; 2] = [libc::STDOUT_FILENO, libc::STDERR_FILENO];

/// If the outputs lead to the journal, gives this process a stream of its own there. What it does to a
/// shared one, such as shutdown(2), it does to the parent's. Its records have this identifier; without one,
/// that is the name of the program, as of a unit without `SyslogIdentifier`.
///
/// # Errors
/// From connect(2) and write(2): the stream stays shared.
pub(crate) fn open_own_stream(identifier: Option<&str>) -> io::Result<()> {
    let Some(path) = OUTPUTS.into_iter().find(|fd| is_stream(*fd)).and_then(peer_path) else {
        return Ok(());
    };
    let shared: Vec<RawFd> =
        OUTPUTS.into_iter().filter(|fd| peer_path(*fd).as_ref() == Some(&path)).collect();
    let mut stream = UnixStream::connect(&path)?;
    stream.write_all(&header(identifier))?;
    stream.shutdown(Shutdown::Read)?;
    for output in &shared {
        fd_table::replace(*output, OwnedFd::from(stream.try_clone()?))?;
    }
    // A program that this process starts may write to the journal by the same convention.
    if let Some(id) = shared.last().and_then(|output| stream_id(*output)) {
        process::set_env(VARIABLE, id);
    }
    Ok(())
}

fn is_stream(fd: RawFd) -> bool {
    let id = stream_id(fd);
    id.is_some() && id == env::var(VARIABLE).ok()
}

/// Returns a file as the variable names it.
fn stream_id(fd: RawFd) -> Option<String> {
    file::id(fd).ok().map(|(device, inode)| format!("{device}:{inode}"))
}

fn peer_path(fd: RawFd) -> Option<PathBuf> {
    getpeername::<UnixAddr>(fd).ok()?.path().map(Into::into)
}

/// Returns what sd_journal_stream_fd(3) sends first, a line each: the identifier, no unit, the priority
/// `info`, lines may begin with another priority, and nothing is forwarded.
fn header(identifier: Option<&str>) -> Vec<u8> {
    let program = env::current_exe().ok();
    let program = program.as_deref().and_then(|path| path.file_name());
    let name = identifier.map(OsStr::new).or(program).unwrap_or(OsStr::new("ostler"));
    let name: Vec<u8> = name.as_bytes().iter().copied().filter(|byte| *byte >= b' ').collect();
    [&name[..], b"\n\n6\n1\n0\n0\n0\n"].concat()
}
