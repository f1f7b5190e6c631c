//! A lease with a key, as in etcd.

use std::time::Duration;

use proptest::prelude::*;

use super::simulation::{Connection, Fate, SimulatedStore, World, check_never_two_lead, plans};
use super::{TTL, at, ms};
use crate::leader::keeper::{Keeper, StoreError};
use crate::leader::key_lease::{Holder, KeyLease, LeaseId, LeaseStore};
use crate::leader::report::Report;

/// Its view of time is its own: leases end by it.
#[derive(Default)]
struct Store {
    leases: Vec<(LeaseId, u64, u64)>,
    key: Option<Holder>,
    last: LeaseId,
}

impl SimulatedStore for Store {
    fn advance(&mut self, now: u64) {
        self.leases.retain(|(_, _, ends)| now < *ends);
        let leases = &self.leases;
        self.key.take_if(|key| !leases.iter().any(|(id, ..)| *id == key.lease));
    }
}

/// A connection, and the name that it puts into the key.
struct Named {
    connection: Connection<Store>,
    name: String,
}

impl LeaseStore for Named {
    fn grant(&mut self, ttl: Duration) -> Result<(LeaseId, Duration), StoreError> {
        self.connection.request(move |store, now| {
            store.last += 1;
            let life = ttl.as_millis() as u64;
            store.leases.push((store.last, life, now + life));
            (store.last, ttl)
        })
    }

    fn keep_alive(&mut self, lease: LeaseId) -> Result<Duration, StoreError> {
        self.connection.request(move |store, now| {
            let found = store.leases.iter_mut().find(|(id, ..)| *id == lease);
            found.map_or(Duration::ZERO, |(_, life, ends)| {
                *ends = now + *life;
                ms(*life)
            })
        })
    }

    fn holder(&mut self) -> Result<Option<Holder>, StoreError> {
        self.connection.request(|store, _| store.key.clone())
    }

    fn acquire(&mut self, lease: LeaseId) -> Result<Holder, StoreError> {
        let name = self.name.clone();
        let own = self.connection.request(move |store, _| {
            if !store.leases.iter().any(|(id, ..)| *id == lease) {
                return None;
            }
            Some(store.key.get_or_insert(Holder { name, lease }).clone())
        })?;
        own.ok_or_else(|| "requested lease not found".to_owned())
    }

    fn revoke(&mut self, lease: LeaseId) -> Result<(), StoreError> {
        self.connection.request(move |store, now| {
            store.leases.retain(|(id, ..)| *id != lease);
            store.advance(now);
        })
    }
}

fn lease(connection: Connection<Store>, name: &str) -> KeyLease<Named> {
    KeyLease::new(Named { connection, name: name.to_owned() }, TTL, name)
}

fn keeper(world: &World<Store>, fates: Vec<Fate>, name: &str) -> Keeper<KeyLease<Named>> {
    Keeper::new(lease(world.connect(fates), name), TTL)
}

#[test]
fn second_master_leads_once_the_first_has_released() {
    let world = World::new();
    let now = || at(world.clock.get());
    let mut first = keeper(&world, vec![Fate::WELL], "a");
    let mut second = keeper(&world, vec![Fate::WELL], "b");
    // The grant was sent after 2 ms: a look at the key came before.
    assert_eq!(first.step(now), Report::Leading { until: at(9002) });
    assert_eq!(first.pause(), ms(2000));
    assert_eq!(second.step(now), Report::Standby { holder: "a".to_owned() });
    assert_eq!(second.pause(), ms(500));
    first.release().unwrap();
    assert!(matches!(second.step(now), Report::Leading { .. }));
    assert_eq!(first.step(now), Report::Standby { holder: "b".to_owned() });
}

#[test]
fn lost_answer_of_acquire_is_resolved_by_the_next_step() {
    let world = World::new();
    let now = || at(world.clock.get());
    let well = Fate::WELL;
    let fates = vec![well, well, Fate { answer_is_lost: true, ..well }, well, well];
    let mut keeper = keeper(&world, fates, "a");
    assert_eq!(keeper.step(now), Report::Unreachable { reason: "answer lost".to_owned() });
    assert_eq!(keeper.pause(), ms(200));
    assert_eq!(keeper.step(now), Report::Leading { until: at(9006) });
}

#[test]
fn successor_of_a_dead_keeper_goes_on_with_its_lease() {
    let world = World::new();
    let now = || at(world.clock.get());
    let a = || keeper(&world, vec![Fate::WELL], "a");
    assert_eq!(a().step(now), Report::Leading { until: at(9002) });
    world.clock.set(9000);
    let mut successor = a();
    assert_eq!(successor.step(now), Report::Leading { until: at(18_002) });
    assert_eq!(world.with_store(|store| store.last), 1, "no other lease");
    assert_eq!(successor.pause(), ms(2000));
    let other = keeper(&world, vec![Fate::WELL], "b").step(now);
    assert_eq!(other, Report::Standby { holder: "a".to_owned() });
    // The lease has ended, and with it the key.
    world.clock.set(100_000);
    assert!(matches!(a().step(now), Report::Leading { .. }));
    assert_eq!(world.with_store(|store| store.last), 2);
}

proptest! {
    #[test]
    fn never_two_lead(plan in plans()) {
        check_never_two_lead(plan, lease)?;
    }
}

/// An attempt to get the key may be carried out late. A late end of its lease would then take the key from
/// a master that leads by it.
#[test]
fn lease_without_the_key_is_not_revoked() {
    let world = World::new();
    let now = || at(world.clock.get());
    let well = Fate::WELL;
    let late = Fate { late: Some(3000), ..well };
    let fates = [vec![well, well, late], vec![well; 9]].concat();
    let mut first = keeper(&world, fates, "a");
    let mut second = keeper(&world, vec![well], "b");
    assert!(matches!(first.step(now), Report::Unreachable { .. }), "the key is asked for, late");
    assert!(matches!(second.step(now), Report::Leading { .. }));
    assert_eq!(first.step(now), Report::Standby { holder: "b".to_owned() });
    second.release().unwrap();
    world.clock.set(4000);
    assert!(matches!(first.step(now), Report::Leading { .. }), "by the late attempt");
    assert_eq!(world.with_store(|it: &mut Store| it.leases.len()), 1);
}
