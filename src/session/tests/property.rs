//! Property: for any connection and any client, the client gets exactly the output of the connection, in
//! order, and the connection is never called while output waits.

use std::sync::atomic::{AtomicU32, Ordering};

use proptest::collection::vec;
use proptest::prelude::{Just, ProptestConfig, Strategy, any, prop_oneof, proptest};
use proptest::sample::select;

use super::*;

/// The length of a reply's output, and the next action.
type PlannedReply = (usize, Next);

/// Numbers its output bytes, so that lost, duplicated and reordered bytes are detected.
struct Counter {
    replies: VecDeque<PlannedReply>,
    timeout: ReadTimeout,
    emitted: Arc<AtomicU32>,
    input: Arc<Mutex<Vec<u8>>>,
}

impl Counter {
    fn emit(&mut self, ctx: &mut ConnectionContext<'_>) -> Next {
        let (length, next) = self.replies.pop_front().unwrap_or((0, Next::Read));
        for _ in 0..length {
            ctx.out.push(self.emitted.fetch_add(1, Ordering::Relaxed) as u8);
        }
        next
    }
}

impl Connection for Counter {
    fn receive(&mut self, input: &[u8], ctx: &mut ConnectionContext<'_>) -> Next {
        assert!(ctx.out.is_empty(), "called while output waits");
        self.input.lock().unwrap().extend_from_slice(input);
        self.emit(ctx)
    }

    fn resume(&mut self, ctx: &mut ConnectionContext<'_>) -> Next {
        assert!(ctx.out.is_empty(), "called while output waits");
        self.emit(ctx)
    }

    fn on_timeout(&mut self, ctx: &mut ConnectionContext<'_>) -> Next {
        assert!(ctx.out.is_empty(), "called while output waits");
        self.emit(ctx)
    }

    fn drain(&mut self, ctx: &mut ConnectionContext<'_>) -> Next {
        self.emit(ctx)
    }

    fn timeout(&self) -> ReadTimeout {
        self.timeout
    }
}

/// An event of the client, the worker or the clock.
#[derive(Clone, Debug)]
enum Event {
    Input(Vec<u8>),
    HalfClose,
    Writable(usize),
    /// As `Writable`, and then others have their turn.
    WritableAndPause(usize),
    Elapsed(Duration),
    Drain,
}

fn any_reply() -> impl Strategy<Value = PlannedReply> {
    let next = prop_oneof![
        8 => Just(Next::Read),
        8 => Just(Next::Continue),
        1 => Just(Next::Close),
        1 => Just(Next::LingeringClose),
    ];
    (select(&[0, 0, 1, 3, 300][..]), next)
}

fn any_event() -> impl Strategy<Value = Event> {
    prop_oneof![
        8 => vec(any::<u8>(), 1..5).prop_map(Event::Input),
        1 => Just(Event::HalfClose),
        16 => (0..200_usize).prop_map(Event::Writable),
        4 => (0..200_usize).prop_map(Event::WritableAndPause),
        4 => (0..3000_u64).prop_map(|millis| Event::Elapsed(Duration::from_millis(millis))),
        1 => Just(Event::Drain),
    ]
}

fn any_timeout() -> impl Strategy<Value = ReadTimeout> {
    let limits = select(vec![Duration::ZERO, SECOND, 5 * SECOND]);
    prop_oneof![
        Just(ReadTimeout::None),
        limits.clone().prop_map(ReadTimeout::Idle),
        (0..2_u32, limits).prop_map(|(number, limit)| ReadTimeout::Total { phase: number, limit }),
    ]
}

/// Applies the events that the session waits for, as a worker class does.
fn run_events(
    replies: Vec<PlannedReply>,
    timeout: ReadTimeout,
    write_timeout: Duration,
    events: Vec<Event>,
) {
    let (emitted, received) = (Arc::new(AtomicU32::new(0)), Arc::new(Mutex::new(Vec::new())));
    let connection = Counter {
        replies: replies.into(),
        timeout,
        emitted: Arc::clone(&emitted),
        input: Arc::clone(&received),
    };
    let mut now = MonotonicTime::from_nanos(1_000_000_000_000);
    let mut session = Session::new(Box::new(connection), write_timeout, now);
    let (mut spare, mut reporter) = (Vec::new(), RecordingReporter::default());
    let mut got = Vec::<u8>::new();
    let mut given = Vec::new();
    for event in events {
        let wants = session.wants();
        match event {
            Event::Input(bytes) if matches!(wants, Wants::Read | Wants::Linger) => {
                if wants == Wants::Read {
                    given.extend_from_slice(&bytes);
                }
                session.on_received(&bytes, &mut spare, &mut reporter, now);
            }
            Event::HalfClose if matches!(wants, Wants::Read | Wants::Linger) => {
                session.on_received(&[], &mut spare, &mut reporter, now);
                assert_ne!(session.wants(), Wants::Linger);
            }
            Event::Writable(n) if wants == Wants::Write => {
                let n = (n + 1).min(session.unsent().len());
                got.extend_from_slice(&session.unsent()[..n]);
                session.on_sent(n, &mut spare, &mut reporter, now);
            }
            Event::WritableAndPause(n) if wants == Wants::Write => {
                let n = (n + 1).min(session.unsent().len());
                got.extend_from_slice(&session.unsent()[..n]);
                if !session.pause_after(n) {
                    session.on_sent(n, &mut spare, &mut reporter, now);
                }
            }
            Event::Elapsed(time) => {
                now = now.saturating_add(time);
                if session.deadline().is_some_and(|deadline| deadline <= now) {
                    session.on_timeout(&mut spare, &mut reporter, now);
                    assert!(
                        session.deadline().is_none_or(|deadline| deadline > now),
                        "the caller would spin"
                    );
                }
            }
            Event::Drain => session.drain(&mut spare, &mut reporter, now),
            Event::Input(_)
            | Event::HalfClose
            | Event::Writable(_)
            | Event::WritableAndPause(_) => (),
        }
        let total = emitted.load(Ordering::Relaxed) as usize;
        if wants == Wants::Closed {
            assert_eq!(session.wants(), Wants::Closed);
        }
        if session.wants() != Wants::Closed {
            assert_eq!(got.len() + session.unsent().len(), total, "bytes are lost or duplicated");
            assert!(!session.is_paused() || session.unsent().is_empty());
            let waits = session.is_paused() || !session.unsent().is_empty();
            assert_eq!(session.wants() == Wants::Write, waits);
            assert!(
                session.deadline().is_none_or(|deadline| deadline > now)
                    || is_total_timeout(timeout)
            );
        } else {
            assert_eq!((session.deadline(), session.unsent().len()), (None, 0));
        }
        assert!(spare.is_empty());
        let idle = matches!(session.wants(), Wants::Read | Wants::Linger);
        assert!(!idle || session.output.capacity() == 0, "an idle session keeps a buffer");
        assert_eq!(*received.lock().unwrap(), given);
    }
    let all: Vec<u8> = (0..got.len()).map(|number| number as u8).collect();
    assert_eq!(got, all, "bytes are reordered");
}

/// Returns whether the deadline may be in the past: the phase may end while other calls continue it.
fn is_total_timeout(timeout: ReadTimeout) -> bool {
    matches!(timeout, ReadTimeout::Total { .. })
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 12 * ProptestConfig::default().cases,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn client_receives_exactly_the_output_in_order(
        replies in vec(any_reply(), 0..40),
        timeout in any_timeout(),
        write_timeout in select(vec![Duration::ZERO, SECOND]),
        events in vec(any_event(), 0..80),
    ) {
        run_events(replies, timeout, write_timeout, events);
    }
}
