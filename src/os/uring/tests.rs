//! Rings on socket pairs. If the kernel permits no ring, each test is skipped.

#![allow(clippy::print_stderr)]

use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use super::*;
use crate::os::credentials::Credentials;

/// Opens a ring and a socket pair, or tells why not.
fn open() -> Option<(Ring, UnixStream, UnixStream)> {
    if let Err(missing) = probe(&Credentials::default()) {
        eprintln!("skipped: {missing}");
        return None;
    }
    let (ours, theirs) = UnixStream::pair().unwrap();
    ours.set_nonblocking(true).unwrap();
    Some((Ring::new().unwrap(), ours, theirs))
}

/// Takes turns until there is a result.
#[track_caller]
fn next(ring: &mut Ring) -> Completion {
    let (mut results, begun) = (Vec::new(), Instant::now());
    loop {
        ring.turn().unwrap();
        ring.take_completions(&mut results);
        assert!(results.len() < 2, "{results:?}");
        if let Some(result) = results.pop() {
            return result;
        }
        assert!(begun.elapsed() < Duration::from_secs(20), "no result");
    }
}

/// Returns the bytes of a received result, and whether it is the last.
#[track_caller]
fn received(ring: &mut Ring) -> (Vec<u8>, bool) {
    match next(ring) {
        Completion::Received { token: 7, received: Received::Bytes(input), is_last } => {
            let bytes = ring.bytes(&input).to_vec();
            ring.release(input);
            (bytes, is_last)
        }
        Completion::Received { token: 7, received: Received::End, is_last } => (vec![], is_last),
        other => panic!("{other:?}"),
    }
}

#[test]
fn receive_once_receives_once() {
    let Some((mut ring, ours, mut theirs)) = open() else { return };
    ring.receive_once(ours.as_fd(), 7).unwrap();
    theirs.write_all(b"one").unwrap();
    assert_eq!(received(&mut ring), (b"one".to_vec(), true));
    assert!(ring.turn().unwrap() && !ring.has_work());
}

#[test]
fn receive_all_goes_on_through_all_buffers() {
    let Some((mut ring, ours, mut theirs)) = open() else { return };
    ring.receive_all(ours.as_fd(), 7).unwrap();
    for round in 0..1200u32 {
        theirs.write_all(&round.to_ne_bytes()).unwrap();
        assert_eq!(received(&mut ring), (round.to_ne_bytes().to_vec(), false));
    }
    drop(theirs);
    assert_eq!(received(&mut ring), (vec![], true));
}

#[test]
fn receive_without_free_buffer_is_told() {
    let Some((mut ring, ours, mut theirs)) = open() else { return };
    ring.receive_all(ours.as_fd(), 7).unwrap();
    let (mut kept, mut results) = (Vec::new(), Vec::new());
    'all: loop {
        theirs.write_all(b"x").unwrap();
        results.push(next(&mut ring));
        for result in results.drain(..) {
            match result {
                Completion::Received { received: Received::Bytes(input), .. } => kept.push(input),
                Completion::Received { received: Received::Nothing, is_last: true, .. } => {
                    break 'all;
                }
                other => panic!("{other:?}"),
            }
        }
    }
    assert_eq!(kept.len(), 512);
    kept.into_iter().for_each(|input| ring.release(input));
    ring.receive_all(ours.as_fd(), 7).unwrap();
    assert_eq!(received(&mut ring), (b"x".to_vec(), false));
}

#[test]
fn cancelled_receive_has_a_last_result() {
    let Some((mut ring, ours, _theirs)) = open() else { return };
    ring.receive_all(ours.as_fd(), 7).unwrap();
    ring.turn().unwrap();
    ring.cancel_receive(7).unwrap();
    let result = next(&mut ring);
    let Completion::Received { token: 7, received: Received::Nothing, is_last: true } = result
    else {
        panic!("{result:?}");
    };
    ring.cancel_receive(7).unwrap();
    assert!(matches!(next(&mut ring), Completion::NotCancelled { token: 7 }));
}

#[test]
fn sends_are_complete_after_a_turn() {
    let Some((mut ring, ours, mut theirs)) = open() else { return };
    for text in [&b"one "[..], b"two ", b"three"] {
        assert!(ring.send(ours.as_fd(), text, 7).unwrap());
    }
    assert!(ring.turn().unwrap());
    assert_eq!(ring.failed_sends().count(), 0);
    let mut bytes = [0; 13];
    theirs.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"one two three");
    assert!(!ring.send(ours.as_fd(), &[0; 17 << 10], 7).unwrap());
}

#[test]
fn full_socket_and_broken_socket_fail_a_send() {
    let Some((mut ring, ours, mut theirs)) = open() else { return };
    let piece = vec![b'x'; 16 << 10];
    let (mut sent, mut failed) = (0, Vec::new());
    while failed.is_empty() {
        assert!(ring.send(ours.as_fd(), &piece, 7).unwrap());
        assert!(ring.turn().unwrap());
        failed.extend(ring.failed_sends());
        sent += if failed.is_empty() { piece.len() } else { failed[0].sent.unwrap() };
    }
    assert_eq!(failed[0].token, 7);
    ring.poll_writable(ours.as_fd(), 7).unwrap();
    let mut bytes = vec![0; sent];
    theirs.read_exact(&mut bytes).unwrap(); // not a byte more
    assert!(matches!(next(&mut ring), Completion::Writable { token: 7 }));
    drop(theirs);
    assert!(ring.send(ours.as_fd(), b"more", 7).unwrap());
    assert!(ring.turn().unwrap());
    assert_eq!(ring.failed_sends().collect::<Vec<_>>(), [FailedSend { token: 7, sent: None }]);
}

#[test]
fn more_sends_than_fit_are_sent_in_order() {
    let Some((mut ring, ..)) = open() else { return };
    let pairs: Vec<_> = (0..30).map(|_| UnixStream::pair().unwrap()).collect();
    let mut expected = String::new();
    for number in 0..100 {
        let text = format!("{number} ");
        expected += &text;
        for (ours, _) in &pairs {
            assert!(ring.send(ours.as_fd(), text.as_bytes(), 7).unwrap());
        }
    }
    let mut ends = Vec::new();
    for (ours, theirs) in pairs {
        ring.close(ours.into()).unwrap();
        ends.push(theirs);
    }
    assert!(ring.turn().unwrap());
    assert_eq!(ring.failed_sends().count(), 0);
    for mut theirs in ends {
        let mut text = String::new();
        theirs.read_to_string(&mut text).unwrap();
        assert_eq!(text, expected);
    }
}

#[test]
fn dropped_ring_has_closed_what_was_queued() {
    let Some((mut ring, ours, mut theirs)) = open() else { return };
    theirs.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    assert!(ring.send(ours.as_fd(), b"last", 7).unwrap());
    ring.close(ours.into()).unwrap();
    drop(ring);
    let mut text = String::new();
    theirs.read_to_string(&mut text).unwrap();
    assert_eq!(text, "last");
}

#[test]
fn sleeping_thread_is_told_of_results() {
    let Some((mut ring, ours, mut theirs)) = open() else { return };
    let queue = epoll::EventQueue::new().unwrap();
    ring.watch(&queue.as_fd(), 3).unwrap();
    ring.receive_all(ours.as_fd(), 7).unwrap();
    assert!(!ring.begin_sleep(), "the receive is not submitted");
    ring.turn().unwrap();
    for round in 0..3u8 {
        assert!(ring.begin_sleep());
        assert_eq!(queue.take(8), []);
        theirs.write_all(&[round]).unwrap();
        let deadline = crate::os::clock::now().saturating_add(Duration::from_secs(20));
        assert_eq!(queue.wait(8, Some(deadline)).unwrap(), [3]);
        assert!(!ring.begin_sleep(), "there is a result");
        assert_eq!(received(&mut ring), (vec![round], false));
    }
}

#[test]
fn turn_waits_for_results_or_until_its_limit() {
    let Some((mut ring, ours, mut theirs)) = open() else { return };
    ring.receive_all(ours.as_fd(), 7).unwrap();
    let (limit, begun) = (Duration::from_millis(20), Instant::now());
    assert!(ring.turn_with_results(2, limit).unwrap(), "the receive is submitted");
    assert!(begun.elapsed() >= limit);
    theirs.write_all(b"one").unwrap();
    assert!(ring.turn_with_results(2, limit).unwrap());
    assert!(begun.elapsed() >= 2 * limit, "there is only one result");
    // One that was collected before counts.
    let writer = std::thread::spawn(move || {
        theirs.write_all(b"two").unwrap();
        theirs
    });
    assert!(ring.turn_with_results(2, Duration::from_secs(60)).unwrap());
    let mut results = Vec::new();
    ring.take_completions(&mut results);
    assert_eq!(results.len(), 2);
    assert!(begun.elapsed() < Duration::from_secs(60));
    drop(writer.join().unwrap());
}
