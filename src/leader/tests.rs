//! Two or more masters over a store with delays, lost answers, freezes and machines that are suspended.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use proptest::prelude::*;

use super::keeper::{Holder, Keeper, LeaseId, LeaseStore, StoreError};
use super::report::{MESSAGE_BYTES, Report};
use super::term::{Duty, Term};
use crate::time::MonotonicTime;

const TTL: Duration = Duration::from_secs(10);

const fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

fn at(millis: u64) -> MonotonicTime {
    MonotonicTime::default() + ms(millis)
}

#[test]
fn report_survives_the_message_and_a_long_text_is_cut() {
    for report in [
        Report::Leading { until: at(7) },
        Report::Standby { holder: "db-1".to_owned() },
        Report::Unreachable { reason: "connection refused".to_owned() },
    ] {
        assert_eq!(Report::decode(&report.encode()), Some(report));
    }
    let long = Report::Standby { holder: "é".repeat(100) };
    assert_eq!(
        Report::decode(&long.encode()),
        Some(Report::Standby { holder: "é".repeat(56) }),
        "cut between characters"
    );
    assert_eq!(Report::decode(&[0; MESSAGE_BYTES]), None);
}

proptest! {
    #[test]
    fn any_message_is_read(message in any::<[u8; MESSAGE_BYTES]>()) {
        let _ = Report::decode(&message);
    }

    #[test]
    fn no_report_makes_a_term_longer_than_ttl(
        reports in prop::collection::vec((any::<u64>(), 0..20_000u64), 1..20),
    ) {
        let (mut term, mut now) = (Term::new(TTL), at(0));
        for (until, pause) in reports {
            now += ms(pause);
            term.on_report(Report::Leading { until: MonotonicTime::from_nanos(until) }, now);
            prop_assert!(term.until().is_none_or(|until| until <= now + TTL));
        }
    }
}

#[test]
fn term_without_renewal_drains_then_kills() {
    let mut term = Term::new(TTL);
    assert_eq!(term.duty(at(0)), Duty::Stand);
    term.on_report(Report::Leading { until: at(9000) }, at(0));
    assert_eq!((term.duty(at(6499)), term.next_change(at(6499))), (Duty::Serve, Some(at(6500))));
    assert_eq!((term.duty(at(6500)), term.next_change(at(6500))), (Duty::Drain, Some(at(8500))));
    assert_eq!((term.duty(at(8500)), term.next_change(at(8500))), (Duty::Stand, Some(at(9000))));
    term.on_report(Report::Unreachable { reason: "timed out".to_owned() }, at(8600));
    assert_eq!(term.duty(at(9000)), Duty::Stand);
    assert_eq!((term.until(), term.store_error()), (None, Some("timed out")));
    term.on_report(Report::Leading { until: at(20_000) }, at(11_000));
    assert_eq!(term.duty(at(11_000)), Duty::Serve, "losing and regaining is normal");
    term.on_report(Report::Standby { holder: "b".to_owned() }, at(11_001));
    assert_eq!((term.duty(at(11_001)), term.holder()), (Duty::Stand, Some("b")));
}

#[test]
fn report_that_was_read_too_late_does_not_lead() {
    let mut term = Term::new(TTL);
    term.on_report(Report::Leading { until: at(9000) }, at(9000));
    assert_eq!(term.duty(at(9000)), Duty::Stand);
    assert_eq!(term.until(), None);
}

/// What a request does in the store, at a time.
type Effect = Box<dyn FnOnce(&mut Store, u64)>;

/// A store with its own view of time, which all masters share.
#[derive(Default)]
struct Store {
    leases: Vec<(LeaseId, u64, u64)>,
    key: Option<Holder>,
    last: LeaseId,
    /// Requests that are carried out after the client has given them up, and when.
    late: Vec<(u64, Effect)>,
}

impl Store {
    /// Carries out the late requests, and lets leases end.
    fn advance(&mut self, now: u64) {
        while let Some(index) = self.late.iter().position(|(at, _)| *at <= now) {
            let (at, effect) = self.late.swap_remove(index);
            effect(self, at);
        }
        self.expire(now);
    }

    fn expire(&mut self, now: u64) {
        self.leases.retain(|(_, _, ends)| now < *ends);
        let leases = &self.leases;
        self.key.take_if(|key| !leases.iter().any(|(id, ..)| *id == key.lease));
    }
}

/// What happens to one request: the times on the way there and back, and whether either is lost.
#[derive(Clone, Copy, Debug)]
struct Fate {
    there: u64,
    back: u64,
    is_lost: bool,
    answer_is_lost: bool,
    /// The client gives up at once, and the store carries it out this much later.
    is_late: Option<u64>,
}

/// One master's connection to the store. Each request takes time, of the clock that all share.
struct Connection {
    store: Rc<RefCell<Store>>,
    clock: Rc<Cell<u64>>,
    name: &'static str,
    fates: Vec<Fate>,
    next: usize,
}

impl Connection {
    fn request<T>(
        &mut self,
        call: impl FnOnce(&mut Store, u64, &str) -> T + 'static,
    ) -> Result<T, StoreError> {
        let fate = self.fates[self.next % self.fates.len()];
        self.next += 1;
        self.clock.set(self.clock.get() + fate.there);
        if fate.is_lost {
            return Err("lost".to_owned());
        }
        let now = self.clock.get();
        self.store.borrow_mut().advance(now);
        if let Some(late) = fate.is_late {
            let name = self.name;
            let effect = move |store: &mut Store, at| {
                store.expire(at);
                call(store, at, name);
            };
            self.store.borrow_mut().late.push((now + late, Box::new(effect)));
            return Err("timed out".to_owned());
        }
        let answer = call(&mut self.store.borrow_mut(), now, self.name);
        self.clock.set(now + fate.back);
        if fate.answer_is_lost { Err("answer lost".to_owned()) } else { Ok(answer) }
    }
}

impl LeaseStore for Connection {
    fn grant(&mut self, ttl: Duration) -> Result<(LeaseId, Duration), StoreError> {
        self.request(move |store, now, _| {
            store.last += 1;
            let life = ttl.as_millis() as u64;
            store.leases.push((store.last, life, now + life));
            (store.last, ttl)
        })
    }

    fn keep_alive(&mut self, lease: LeaseId) -> Result<Duration, StoreError> {
        self.request(move |store, now, _| {
            let found = store.leases.iter_mut().find(|(id, ..)| *id == lease);
            found.map_or(Duration::ZERO, |(_, life, ends)| {
                *ends = now + *life;
                ms(*life)
            })
        })
    }

    fn holder(&mut self) -> Result<Option<Holder>, StoreError> {
        self.request(move |store, _, _| store.key.clone())
    }

    fn acquire(&mut self, lease: LeaseId) -> Result<Holder, StoreError> {
        let own = self.request(move |store, _, name| {
            if !store.leases.iter().any(|(id, ..)| *id == lease) {
                return None;
            }
            let own = || Holder { name: name.to_owned(), lease };
            Some(store.key.get_or_insert_with(own).clone())
        })?;
        own.ok_or_else(|| "requested lease not found".to_owned())
    }

    fn revoke(&mut self, lease: LeaseId) -> Result<(), StoreError> {
        self.request(move |store, now, _| {
            store.leases.retain(|(id, ..)| *id != lease);
            store.expire(now);
        })
    }
}

#[test]
fn second_master_leads_once_the_first_has_released() {
    let (store, clock) = (Rc::new(RefCell::new(Store::default())), Rc::new(Cell::new(0)));
    let fate = Fate { there: 1, back: 1, is_lost: false, answer_is_lost: false, is_late: None };
    let connect = |name| Connection {
        store: Rc::clone(&store),
        clock: Rc::clone(&clock),
        name,
        fates: vec![fate],
        next: 0,
    };
    let now = || at(clock.get());
    let (mut a, mut b) = (connect("a"), connect("b"));
    let (mut first, mut second) = (Keeper::new(TTL, "a"), Keeper::new(TTL, "b"));
    // The grant was sent after 2 ms: a look at the key came before.
    assert_eq!(first.step(&mut a, now), Report::Leading { until: at(9002) });
    assert_eq!(first.pause(), ms(2000));
    assert_eq!(second.step(&mut b, now), Report::Standby { holder: "a".to_owned() });
    assert_eq!(second.pause(), ms(500));
    first.release(&mut a).unwrap();
    assert!(matches!(second.step(&mut b, now), Report::Leading { .. }));
    assert_eq!(first.step(&mut a, now), Report::Standby { holder: "b".to_owned() });
}

#[test]
fn lost_answer_of_acquire_is_resolved_by_the_next_step() {
    let (store, clock) = (Rc::new(RefCell::new(Store::default())), Rc::new(Cell::new(0)));
    let well = Fate { there: 1, back: 1, is_lost: false, answer_is_lost: false, is_late: None };
    let fates = vec![well, well, Fate { answer_is_lost: true, ..well }, well, well];
    let mut a = Connection { store, clock: Rc::clone(&clock), name: "a", fates, next: 0 };
    let mut keeper = Keeper::new(TTL, "a");
    let now = || at(clock.get());
    assert_eq!(keeper.step(&mut a, now), Report::Unreachable { reason: "answer lost".to_owned() });
    assert_eq!(keeper.pause(), ms(200));
    assert_eq!(keeper.step(&mut a, now), Report::Leading { until: at(9006) });
}

#[test]
fn successor_of_a_dead_keeper_goes_on_with_its_lease() {
    let (store, clock) = (Rc::new(RefCell::new(Store::default())), Rc::new(Cell::new(0)));
    let fates =
        vec![Fate { there: 1, back: 1, is_lost: false, answer_is_lost: false, is_late: None }];
    let mut a = Connection {
        store: Rc::clone(&store),
        clock: Rc::clone(&clock),
        name: "a",
        fates,
        next: 0,
    };
    let now = || at(clock.get());
    let first = Keeper::new(TTL, "a").step(&mut a, now);
    assert_eq!(first, Report::Leading { until: at(9002) });
    clock.set(9000);
    let mut successor = Keeper::new(TTL, "a");
    assert_eq!(successor.step(&mut a, now), Report::Leading { until: at(18_002) });
    assert_eq!(store.borrow().last, 1, "no other lease");
    assert_eq!(successor.pause(), ms(2000));
    let other = Keeper::new(TTL, "b").step(&mut a, now);
    assert_eq!(other, Report::Standby { holder: "a".to_owned() });
    // The lease has ended, and with it the key.
    clock.set(100_000);
    assert!(matches!(Keeper::new(TTL, "a").step(&mut a, now), Report::Leading { .. }));
    assert_eq!(store.borrow().last, 2);
}

fn fates() -> impl Strategy<Value = Vec<Fate>> {
    let time = prop_oneof![8 => 0..50u64, 2 => 0..3000u64, 1 => 0..15_000u64];
    let fate =
        (time.clone(), time.clone(), time, 0..12u8).prop_map(|(there, back, late, luck)| Fate {
            there,
            back,
            is_lost: luck == 0,
            answer_is_lost: luck == 1,
            is_late: (luck == 2).then_some(late),
        });
    prop::collection::vec(fate, 5..60)
}

proptest! {
    /// Of what the masters were told, no two terms overlap, whatever is delayed or lost, however long a
    /// master is frozen between two steps, and whenever its lease process is replaced. A term is what a fence in the workers enforces.
    #[test]
    fn never_two_lead(
        fates in prop::collection::vec(fates(), 3),
        turns in prop::collection::vec((0..3usize, 0..3000u64, 0..20u8), 50..300),
    ) {
        let (store, clock) = (Rc::new(RefCell::new(Store::default())), Rc::new(Cell::new(0)));
        let mut masters: Vec<_> = fates
            .into_iter()
            .zip(["a", "b", "c"])
            .map(|(fates, name)| {
                let (store, clock) = (Rc::clone(&store), Rc::clone(&clock));
                let connection = Connection { store, clock, name, fates, next: 0 };
                (connection, Keeper::new(TTL, name), Term::new(TTL))
            })
            .collect();
        for (who, pause, what) in turns {
            clock.set(clock.get() + if what == 0 { pause * 10 } else { pause });
            let (connection, keeper, term) = &mut masters[who];
            if what == 2 {
                *keeper = Keeper::new(TTL, connection.name);
            }
            if what == 1 && term.until().is_some() {
                // A stop: no worker is left, and the lease is given back.
                *term = Term::new(TTL);
                let _ = keeper.release(connection);
            } else {
                let now = Rc::clone(&clock);
                let report = keeper.step(connection, || at(now.get()));
                term.on_report(report, at(clock.get()));
            }
            let now = at(clock.get());
            let leading = masters.iter().filter(|(.., term)| term.until().is_some_and(|it| now < it));
            prop_assert!(leading.count() <= 1);
        }
    }
}
