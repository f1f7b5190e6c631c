//! A lease that is a record, as in Kubernetes.

use proptest::prelude::*;

use super::simulation::{Connection, Fate, SimulatedStore, World, check_never_two_lead, plans};
use super::{TTL, at, ms};
use crate::leader::keeper::{Keeper, StoreError};
use crate::leader::record_lease::{Record, RecordLease, RecordStore, Terms};
use crate::leader::report::Report;

#[derive(Default)]
struct Store {
    record: Option<Record>,
    writes: u64,
}

impl Store {
    fn put(&mut self, terms: Terms) {
        self.writes += 1;
        // The time says nothing.
        let renewed_at = "2000-01-01T00:00:00.000000Z".to_owned();
        self.record = Some(Record { terms, version: self.writes.to_string(), renewed_at });
    }

    fn terms(&self) -> Terms {
        self.record.clone().unwrap().terms
    }
}

impl SimulatedStore for Store {
    /// Writes the record without a change, as one that puts a label on it.
    fn disturb(&mut self) {
        if let Some(record) = self.record.clone() {
            self.put(record.terms);
        }
    }
}

impl RecordStore for Connection<Store> {
    fn read(&mut self) -> Result<Option<Record>, StoreError> {
        self.request(|store, _| store.record.clone())
    }

    fn write(&mut self, found: Option<&Record>, terms: &Terms) -> Result<bool, StoreError> {
        let (version, terms) = (found.map(|it| it.version.clone()), terms.clone());
        self.request(move |store, _| {
            let is_newest = store.record.as_ref().map(|it| &it.version) == version.as_ref();
            if is_newest {
                store.put(terms);
            }
            is_newest
        })
    }
}

fn lease(connection: Connection<Store>, name: &str) -> RecordLease<Connection<Store>> {
    RecordLease::new(connection, TTL, name)
}

fn keeper(
    world: &World<Store>,
    fates: Vec<Fate>,
    name: &str,
) -> Keeper<RecordLease<Connection<Store>>> {
    Keeper::new(lease(world.connect(fates), name), TTL)
}

fn terms(holder: &str, seconds: u32, transitions: u32) -> Terms {
    Terms { holder: holder.to_owned(), seconds, transitions }
}

fn standby(holder: &str) -> Report {
    Report::Standby { holder: holder.to_owned() }
}

#[test]
fn second_master_leads_once_the_first_has_released() {
    let world = World::new();
    let now = || at(world.clock.get());
    let mut first = keeper(&world, vec![Fate::WELL], "a");
    let mut second = keeper(&world, vec![Fate::WELL], "b");
    // It was written after 2 ms: a look at the record came before.
    assert_eq!(first.step(now), Report::Leading { until: at(9002) });
    assert_eq!(world.with_store(|it| it.terms()), terms("a", 10, 1));
    assert_eq!((first.pause(), second.step(now)), (ms(2000), standby("a")));
    assert_eq!(second.pause(), ms(1000));
    first.release().unwrap();
    assert_eq!(world.with_store(|it| it.terms()), terms("", 1, 1));
    assert!(matches!(second.step(now), Report::Leading { .. }));
    assert_eq!(world.with_store(|it| it.terms()), terms("b", 10, 2));
    assert_eq!(first.step(now), standby("b"));
    first.release().unwrap();
    assert_eq!(world.with_store(|it| it.terms()), terms("b", 10, 2), "it was not its own");
}

#[test]
fn dead_holder_is_replaced_after_the_record_has_rested() {
    let world = World::new();
    let now = || at(world.clock.get());
    let mut first = keeper(&world, vec![Fate::WELL], "a");
    let mut second = keeper(&world, vec![Fate::WELL], "b");
    first.step(now); // until 4 ms
    second.step(now); // has read it at 6 ms
    world.clock.set(5000);
    first.step(now); // the last renewal
    world.clock.set(8000);
    assert_eq!(second.step(now), standby("a")); // has read it at 8002 ms
    world.clock.set(17_999);
    assert_eq!(second.step(now), standby("a")); // has read it at 18001 ms
    assert!(matches!(second.step(now), Report::Leading { .. }));
    assert_eq!(world.with_store(|it| it.terms()), terms("b", 10, 2));
}

#[test]
fn clocks_at_the_limits_of_their_rates_leave_no_overlap() {
    let world = World::new();
    let slow = || at(world.clock.get() * 95 / 100);
    let fast = || at(world.clock.get() * 105 / 100);
    let first = keeper(&world, vec![Fate::WELL], "a").step(slow);
    let Report::Leading { until } = first else { panic!("{first:?}") };
    let mut second = keeper(&world, vec![Fate::WELL], "b");
    while second.step(fast) == standby("a") {}
    assert!(until <= slow(), "{until:?}");
    assert!(slow() < until + ms(500), "it leads as soon as it may");
}

#[test]
fn write_whose_answer_was_lost_is_recognised() {
    let world = World::new();
    let now = || at(world.clock.get());
    let well = Fate::WELL;
    let fates = vec![well, Fate { answer_is_lost: true, ..well }, well, well];
    let mut keeper = keeper(&world, fates, "a");
    assert_eq!(keeper.step(now), Report::Unreachable { reason: "answer lost".to_owned() });
    assert_eq!(keeper.step(now), Report::Leading { until: at(9006) });
    assert_eq!(world.with_store(|it| it.terms()), terms("a", 10, 1), "one transition");
}

#[test]
fn successor_of_a_dead_keeper_goes_on_with_its_record() {
    let world = World::new();
    let now = || at(world.clock.get());
    let a = || keeper(&world, vec![Fate::WELL], "a");
    a().step(now);
    world.clock.set(5000);
    assert_eq!(a().step(now), Report::Leading { until: at(14_002) });
    a().release().unwrap();
    assert_eq!(world.with_store(|it| it.terms()), terms("", 1, 1));
}

#[test]
fn time_in_a_record_is_bounded() {
    for (seconds, rests) in [(0, 10), (3, 10), (60, 60), (u32::MAX, 3600)] {
        let world = World::new();
        let now = || at(world.clock.get());
        world.with_store(|it: &mut Store| it.put(terms("x", seconds, 7)));
        let mut keeper = keeper(&world, vec![Fate::WELL], "a");
        keeper.step(now); // has read it at 2 ms
        world.clock.set(rests * 1000 - 1);
        assert_eq!(keeper.step(now), standby("x"), "{seconds}");
        assert!(matches!(keeper.step(now), Report::Leading { .. }), "{seconds}");
        assert_eq!(world.with_store(|it| it.terms()), terms("a", 10, 8));
    }
}

#[test]
fn record_that_changes_all_the_time_is_an_error() {
    struct Conflicting;
    impl RecordStore for Conflicting {
        fn read(&mut self) -> Result<Option<Record>, StoreError> {
            Ok(None)
        }

        fn write(&mut self, _: Option<&Record>, _: &Terms) -> Result<bool, StoreError> {
            Ok(false)
        }
    }
    let mut keeper = Keeper::new(RecordLease::new(Conflicting, TTL, "a"), TTL);
    let reason = "the record has changed before each attempt to write it".to_owned();
    assert_eq!(keeper.step(|| at(0)), Report::Unreachable { reason });
}

proptest! {
    #[test]
    fn never_two_lead(plan in plans()) {
        check_never_two_lead(plan, lease)?;
    }
}

#[test]
fn holder_of_a_deleted_record_has_its_time() {
    let world = World::new();
    let now = || at(world.clock.get());
    let mut first = keeper(&world, vec![Fate::WELL], "a");
    let mut second = keeper(&world, vec![Fate::WELL], "b");
    assert!(matches!(first.step(now), Report::Leading { .. }));
    assert_eq!(second.step(now), standby("a"));
    world.clock.set(5000);
    assert!(matches!(first.step(now), Report::Leading { .. }), "renewed, which the second misses");
    world.with_store(|it: &mut Store| it.record = None);
    assert_eq!(second.step(now), standby("a"));
    world.clock.set(14_900);
    assert_eq!(second.step(now), standby("a"));
    world.clock.set(15_100);
    assert!(matches!(second.step(now), Report::Leading { .. }));
}
