//! Two or more masters over a store with delays, lost and late requests, freezes, clocks of different rates,
//! and lease processes and masters that are killed.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use proptest::prelude::*;
use proptest::test_runner::TestCaseError;

use super::{TTL, at};
use crate::leader::keeper::{Keeper, Lease, StoreError};
use crate::leader::term::Term;

/// How much faster or slower the clock of a machine may be, in thousandths. The margin of a term is 100,
/// which two machines share.
const RATE_MAX: i64 = 50;

/// What a request does in the store, at a time.
type Effect<S> = Box<dyn FnOnce(&mut S, u64)>;

pub(super) trait SimulatedStore: Default + 'static {
    /// Does what happens by itself until `now`.
    fn advance(&mut self, _now: u64) {}

    /// Does what another client might.
    fn disturb(&mut self) {}
}

#[derive(Default)]
struct Shared<S> {
    store: S,
    /// Requests that are carried out after the client has given them up, and when.
    late: Vec<(u64, Effect<S>)>,
}

/// What happens to one request: the times on the way there and back, and whether either is lost.
#[derive(Clone, Copy, Debug)]
pub(super) struct Fate {
    pub(super) there: u64,
    pub(super) back: u64,
    pub(super) is_lost: bool,
    pub(super) answer_is_lost: bool,
    /// The client gives up at once, and the store carries it out this much later.
    pub(super) late: Option<u64>,
}

impl Fate {
    pub(super) const WELL: Self =
        Self { there: 1, back: 1, is_lost: false, answer_is_lost: false, late: None };
}

/// A store, and the clock that all share.
pub(super) struct World<S> {
    shared: Rc<RefCell<Shared<S>>>,
    pub(super) clock: Rc<Cell<u64>>,
}

impl<S: SimulatedStore> World<S> {
    pub(super) fn new() -> Self {
        Self { shared: Rc::default(), clock: Rc::default() }
    }

    pub(super) fn connect(&self, fates: Vec<Fate>) -> Connection<S> {
        Connection {
            shared: Rc::clone(&self.shared),
            clock: Rc::clone(&self.clock),
            fates: fates.into(),
            next: Rc::default(),
        }
    }

    pub(super) fn with_store<T>(&self, call: impl FnOnce(&mut S) -> T) -> T {
        call(&mut self.shared.borrow_mut().store)
    }
}

/// One machine's connection to the store. Each request takes time.
pub(super) struct Connection<S> {
    shared: Rc<RefCell<Shared<S>>>,
    clock: Rc<Cell<u64>>,
    fates: Rc<[Fate]>,
    next: Rc<Cell<usize>>,
}

impl<S> Clone for Connection<S> {
    fn clone(&self) -> Self {
        Self {
            shared: Rc::clone(&self.shared),
            clock: Rc::clone(&self.clock),
            fates: Rc::clone(&self.fates),
            next: Rc::clone(&self.next),
        }
    }
}

impl<S: SimulatedStore> Connection<S> {
    pub(super) fn request<T>(
        &mut self,
        call: impl FnOnce(&mut S, u64) -> T + 'static,
    ) -> Result<T, StoreError> {
        let fate = self.fates[self.next.replace(self.next.get() + 1) % self.fates.len()];
        self.clock.set(self.clock.get() + fate.there);
        if fate.is_lost {
            return Err("lost".to_owned());
        }
        let now = self.clock.get();
        let shared = &mut *self.shared.borrow_mut();
        while let Some(index) = shared.late.iter().position(|(at, _)| *at <= now) {
            let (at, effect) = shared.late.swap_remove(index);
            effect(&mut shared.store, at);
        }
        shared.store.advance(now);
        if let Some(late) = fate.late {
            let effect = move |store: &mut S, at| {
                store.advance(at);
                call(store, at);
            };
            shared.late.push((now + late, Box::new(effect)));
            return Err("timed out".to_owned());
        }
        let answer = call(&mut shared.store, now);
        self.clock.set(now + fate.back);
        if fate.answer_is_lost { Err("answer lost".to_owned()) } else { Ok(answer) }
    }
}

fn fates() -> impl Strategy<Value = Vec<Fate>> {
    let time = || prop_oneof![8 => 0..50u64, 2 => 0..3000u64, 1 => 0..15_000u64];
    let fate = (time(), time(), time(), 0..12u8).prop_map(|(there, back, late, luck)| Fate {
        there,
        back,
        is_lost: luck == 0,
        answer_is_lost: luck == 1,
        late: (luck == 2).then_some(late),
    });
    prop::collection::vec(fate, 5..60)
}

/// How three machines are, and what happens by turns: on which, how much later, and what.
#[derive(Debug)]
pub(super) struct Plan {
    machines: Vec<(Vec<Fate>, i64)>,
    turns: Vec<(usize, u64, u8)>,
}

pub(super) fn plans() -> impl Strategy<Value = Plan> {
    let machines = prop::collection::vec((fates(), -RATE_MAX..=RATE_MAX), 3);
    let turns = prop::collection::vec((0..3usize, 0..3000u64, 0..24u8), 50..300);
    (machines, turns).prop_map(|(machines, turns)| Plan { machines, turns })
}

struct Machine<L> {
    keeper: Keeper<L>,
    term: Term,
    /// How many masters have ended here.
    masters: usize,
}

/// Checks that of what the masters were told no two terms overlap. A term is what a fence in the workers
/// enforces, also after their master was killed.
pub(super) fn check_never_two_lead<S: SimulatedStore, L: Lease>(
    plan: Plan,
    lease: impl Fn(Connection<S>, &str) -> L,
) -> Result<(), TestCaseError> {
    let world = World::<S>::new();
    let rates: Vec<i64> = plan.machines.iter().map(|(_, rate)| *rate).collect();
    let clock = Rc::clone(&world.clock);
    let local = |machine: usize| {
        let now = clock.get();
        at(now.saturating_add_signed(now as i64 * rates[machine] / 1000))
    };
    let connections: Vec<_> =
        plan.machines.into_iter().map(|(fates, _)| world.connect(fates)).collect();
    let keeper = |machine: usize, masters: usize| {
        let identity = format!("host-{machine}/{masters}");
        Keeper::new(lease(connections[machine].clone(), &identity), TTL)
    };
    let mut machines: Vec<_> = (0..connections.len())
        .map(|number| Machine { keeper: keeper(number, 0), term: Term::new(TTL), masters: 0 })
        .collect();
    // Of masters that were killed, and on which machine.
    let mut remains: Vec<(usize, Term)> = Vec::new();
    for (who, pause, what) in plan.turns {
        clock.set(clock.get() + if what == 0 { pause * 10 } else { pause });
        let machine = &mut machines[who];
        match what {
            1 if machine.term.until().is_some() => {
                // A stop: no worker is left, and the lease is given back.
                machine.term = Term::new(TTL);
                let _ = machine.keeper.release();
                machine.masters += 1;
                machine.keeper = keeper(who, machine.masters);
            }
            2 => machine.keeper = keeper(who, machine.masters),
            3 => {
                machine.masters += 1;
                machine.keeper = keeper(who, machine.masters);
                remains.push((who, std::mem::replace(&mut machine.term, Term::new(TTL))));
            }
            4 => world.with_store(SimulatedStore::disturb),
            _ => {
                let report = machine.keeper.step(|| local(who));
                machine.term.on_report(report, local(who));
            }
        }
        let present = machines.iter().enumerate().map(|(number, it)| (number, &it.term));
        let all = present.chain(remains.iter().map(|(number, term)| (*number, term)));
        let lives = |number: usize, term: &Term| term.until().is_some_and(|it| local(number) < it);
        prop_assert!(all.filter(|(number, term)| lives(*number, term)).count() <= 1);
    }
    Ok(())
}
