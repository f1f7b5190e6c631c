//! What the kernel knows about the server's end of a test's connection (sock_diag(7)).

use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket,
};

/// The state of the server's end of a TCP connection over 127.0.0.1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Remote {
    /// Not accepted yet, or bytes have arrived that are not read yet.
    Waiting,
    /// Accepted, and all that arrived has been read.
    Taken,
    /// Closed by the server.
    Closed,
}

/// Returns the state of the server's end of a connection between two ports.
///
/// `/proc/net/tcp` has the same data, but lists every connection of the last minute.
pub fn remote(server_port: u16, client_port: u16) -> Remote {
    let kernel: OwnedFd = socket(
        AddressFamily::Netlink,
        SockType::Datagram,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::NetlinkSockDiag,
    )
    .expect("the kernel answers questions about sockets");
    let question = diag_request(server_port, client_port);
    let sent = send(kernel.as_raw_fd(), &question, MsgFlags::empty());
    assert_eq!(sent, Ok(question.len()));
    let mut answer = [0; 1024];
    let size = recv(kernel.as_raw_fd(), &mut answer, MsgFlags::empty()).expect("it answers");
    parse_reply(&answer[..size])
}

/// `SOCK_DIAG_BY_FAMILY` of `linux/sock_diag.h`, in the form of `linux/inet_diag.h`.
const BY_FAMILY: u16 = 20;
/// The size of a `nlmsghdr`.
const HEADER: usize = 16;

/// Builds a `nlmsghdr` and an `inet_diag_req_v2` about one socket.
fn diag_request(server_port: u16, client_port: u16) -> Vec<u8> {
    const SIZE: u32 = 72;
    let local = {
        let mut address = [0; 16];
        address[..4].copy_from_slice(&Ipv4Addr::LOCALHOST.octets());
        address
    };
    let mut question = Vec::new();
    question.extend(SIZE.to_ne_bytes());
    question.extend(BY_FAMILY.to_ne_bytes());
    question.extend((libc::NLM_F_REQUEST as u16).to_ne_bytes());
    question.extend([0; 8]); // sequence number, sender
    question.extend([libc::AF_INET as u8, libc::IPPROTO_TCP as u8, 0, 0]);
    question.extend(u32::MAX.to_ne_bytes()); // any state
    question.extend(server_port.to_be_bytes());
    question.extend(client_port.to_be_bytes());
    question.extend(local);
    question.extend(local);
    question.extend([0; 4]); // any device
    question.extend([u8::MAX; 8]); // no cookie
    assert_eq!(question.len(), SIZE as usize);
    question
}

/// Parses a `nlmsghdr` and an `inet_diag_msg`.
fn parse_reply(answer: &[u8]) -> Remote {
    let word = |at: usize| {
        let bytes = answer.get(at..at + 4).expect("an answer has its full length");
        u32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
    };
    let kind = u16::from_ne_bytes([answer[4], answer[5]]);
    if kind != BY_FAMILY {
        let errno = word(HEADER).cast_signed();
        assert_eq!(errno, -libc::ENOENT, "the kernel cannot tell (CONFIG_INET_TCP_DIAG)");
        return Remote::Closed;
    }
    let (state, unread, inode) = (answer[HEADER + 1], word(HEADER + 56), word(HEADER + 68));
    // The numbers are those of tcp_states.h.
    match state {
        // Established, or closed by the client only.
        1 | 8 if inode != 0 && unread == 0 => Remote::Taken,
        1 | 3 | 8 | 12 => Remote::Waiting,
        // Closed or unknown. If it is unknown, the kernel reports the listener.
        _ => Remote::Closed,
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};

    use super::*;
    use crate::proc::wait_until;

    #[test]
    fn kernel_distinguishes_waiting_from_taken() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let server = listener.local_addr().unwrap();
        let mut client = TcpStream::connect(server).unwrap();
        let port = client.local_addr().unwrap().port();
        let state = || remote(server.port(), port);
        assert_eq!(state(), Remote::Waiting, "it is not accepted");
        let (mut accepted, _) = listener.accept().unwrap();
        assert_eq!(state(), Remote::Taken);
        client.write_all(b"x").unwrap();
        assert_eq!(state(), Remote::Waiting, "it is not read");
        accepted.read_exact(&mut [0]).unwrap();
        assert_eq!(state(), Remote::Taken);
        drop(accepted);
        // A child that another test forks at this moment has a copy until it executes its program.
        wait_until("it is closed", || state() == Remote::Closed);
        drop(listener);
        assert_eq!(state(), Remote::Closed);
    }
}
