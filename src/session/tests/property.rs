//! Any connection and any client: what comes out is what the connection said, whole and in order,
//! and it is never asked while output waits.

use std::sync::atomic::{AtomicU32, Ordering};

use proptest::collection::vec;
use proptest::prelude::{Just, ProptestConfig, Strategy, any, prop_oneof, proptest};
use proptest::sample::select;

use super::*;

/// What the connection answers: how many bytes, and what is next.
type Plan = (usize, Next);

/// Says the numbers of its bytes, so that none can be lost, doubled or moved.
struct Counter {
    plans: VecDeque<Plan>,
    patience: Patience,
    said: Arc<AtomicU32>,
    input: Arc<Mutex<Vec<u8>>>,
}

impl Counter {
    fn say(&mut self, exchange: &mut Exchange<'_>) -> Next {
        let (length, next) = self.plans.pop_front().unwrap_or((0, Next::Read));
        for _ in 0..length {
            exchange.out.push(self.said.fetch_add(1, Ordering::Relaxed) as u8);
        }
        next
    }
}

impl Connection for Counter {
    fn receive(&mut self, input: &[u8], exchange: &mut Exchange<'_>) -> Next {
        assert!(exchange.out.is_empty(), "asked while output waits");
        self.input.lock().unwrap().extend_from_slice(input);
        self.say(exchange)
    }

    fn proceed(&mut self, exchange: &mut Exchange<'_>) -> Next {
        assert!(exchange.out.is_empty(), "asked while output waits");
        self.say(exchange)
    }

    fn expire(&mut self, exchange: &mut Exchange<'_>) -> Next {
        assert!(exchange.out.is_empty(), "asked while output waits");
        self.say(exchange)
    }

    fn drain(&mut self, exchange: &mut Exchange<'_>) -> Next {
        self.say(exchange)
    }

    fn patience(&self) -> Patience {
        self.patience
    }
}

/// What a client, its worker or the time does.
#[derive(Clone, Debug)]
enum Event {
    Arrival(Vec<u8>),
    End,
    Room(usize),
    Time(Duration),
    Drain,
}

fn any_plan() -> impl Strategy<Value = Plan> {
    let next = prop_oneof![
        8 => Just(Next::Read),
        8 => Just(Next::Proceed),
        1 => Just(Next::Close),
        1 => Just(Next::Refuse),
    ];
    (select(&[0, 0, 1, 3, 300][..]), next)
}

fn any_event() -> impl Strategy<Value = Event> {
    prop_oneof![
        8 => vec(any::<u8>(), 1..5).prop_map(Event::Arrival),
        1 => Just(Event::End),
        16 => (0..200_usize).prop_map(Event::Room),
        4 => (0..3000_u64).prop_map(|millis| Event::Time(Duration::from_millis(millis))),
        1 => Just(Event::Drain),
    ]
}

fn any_patience() -> impl Strategy<Value = Patience> {
    let limits = select(vec![Duration::ZERO, SECOND, 5 * SECOND]);
    prop_oneof![
        Just(Patience::Endless),
        limits.clone().prop_map(Patience::Silence),
        (0..2_u32, limits).prop_map(|(number, limit)| Patience::Phase(number, limit)),
    ]
}

/// Plays those events that the session waits for, as a worker class does.
fn play(plans: Vec<Plan>, patience: Patience, write_timeout: Duration, events: Vec<Event>) {
    let (said, heard) = (Arc::new(AtomicU32::new(0)), Arc::new(Mutex::new(Vec::new())));
    let connection = Counter {
        plans: plans.into(),
        patience,
        said: Arc::clone(&said),
        input: Arc::clone(&heard),
    };
    let mut now = MonotonicTime::from_nanos(1_000_000_000_000);
    let mut session = Session::new(Box::new(connection), write_timeout, now);
    let (mut spare, mut desk) = (Vec::new(), Recorder::default());
    let (mut got, mut given) = (Vec::<u8>::new(), Vec::new());
    for event in events {
        let wants = session.wants();
        match event {
            Event::Arrival(bytes) if matches!(wants, Wants::Read | Wants::Linger) => {
                if wants == Wants::Read {
                    given.extend_from_slice(&bytes);
                }
                session.received(&bytes, &mut spare, &mut desk, now);
            }
            Event::End if matches!(wants, Wants::Read | Wants::Linger) => {
                session.received(&[], &mut spare, &mut desk, now);
                assert_ne!(session.wants(), Wants::Linger);
            }
            Event::Room(n) if wants == Wants::Write => {
                let n = (n + 1).min(session.unsent().len());
                got.extend_from_slice(&session.unsent()[..n]);
                session.sent(n, &mut spare, &mut desk, now);
            }
            Event::Time(time) => {
                now = now.saturating_add(time);
                if session.deadline().is_some_and(|deadline| deadline <= now) {
                    session.expired(&mut spare, &mut desk, now);
                    assert!(session.deadline().is_none_or(|deadline| deadline > now), "a spin");
                }
            }
            Event::Drain => session.drain(&mut spare, &mut desk, now),
            Event::Arrival(_) | Event::End | Event::Room(_) => (),
        }
        let total = said.load(Ordering::Relaxed) as usize;
        if wants == Wants::Gone {
            assert_eq!(session.wants(), Wants::Gone);
        }
        if session.wants() != Wants::Gone {
            assert_eq!(got.len() + session.unsent().len(), total, "bytes are lost or doubled");
            assert_eq!(session.wants() == Wants::Write, !session.unsent().is_empty());
            assert!(session.deadline().is_none_or(|deadline| deadline > now) || phased(patience));
        } else {
            assert_eq!((session.deadline(), session.unsent().len()), (None, 0));
        }
        assert!(spare.is_empty());
        let idle = matches!(session.wants(), Wants::Read | Wants::Linger);
        assert!(!idle || session.out.capacity() == 0, "an idle session keeps a buffer");
        assert_eq!(*heard.lock().unwrap(), given);
    }
    let all: Vec<u8> = (0..got.len()).map(|number| number as u8).collect();
    assert_eq!(got, all, "bytes are moved");
}

/// Whether the deadline may lie in the past: the connection has let its phase end, and gone on.
fn phased(patience: Patience) -> bool {
    matches!(patience, Patience::Phase(..))
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 3000,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn the_client_gets_what_was_said_and_the_connection_is_never_asked_while_output_waits(
        plans in vec(any_plan(), 0..40),
        patience in any_patience(),
        write_timeout in select(vec![Duration::ZERO, SECOND]),
        events in vec(any_event(), 0..80),
    ) {
        play(plans, patience, write_timeout, events);
    }
}
