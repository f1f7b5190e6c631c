//! Two or more masters over a store with delays, lost and late requests, freezes, clocks of different rates,
//! and lease processes and masters that are killed.

use std::cell::{Cell, OnceCell, RefCell};
use std::rc::Rc;

use proptest::prelude::*;
use proptest::test_runner::TestCaseError;

use super::{TTL, at};
use crate::leader::keeper::{Keeper, Lease, StoreError};
use crate::leader::term::Term;
use crate::time::MonotonicTime;

/// How much faster or slower the clock of a machine may be, in thousandths. The margin of a term is 100,
/// which two machines share.
const RATE_MAX: i64 = 50;

/// For how long a machine is frozen, in milliseconds.
const FREEZE: u64 = 12_000;

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

/// Has the other machines go on until this time, while a request is under way.
type Others = Rc<OnceCell<Box<dyn Fn(u64)>>>;

/// A store, and the clock that all share.
pub(super) struct World<S> {
    shared: Rc<RefCell<Shared<S>>>,
    pub(super) clock: Rc<Cell<u64>>,
    others: Others,
}

impl<S: SimulatedStore> World<S> {
    pub(super) fn new() -> Self {
        Self { shared: Rc::default(), clock: Rc::default(), others: Rc::default() }
    }

    pub(super) fn connect(&self, fates: Vec<Fate>) -> Connection<S> {
        Connection {
            shared: Rc::clone(&self.shared),
            clock: Rc::clone(&self.clock),
            others: Rc::clone(&self.others),
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
    others: Others,
    fates: Rc<[Fate]>,
    next: Rc<Cell<usize>>,
}

impl<S> Clone for Connection<S> {
    fn clone(&self) -> Self {
        Self {
            shared: Rc::clone(&self.shared),
            clock: Rc::clone(&self.clock),
            others: Rc::clone(&self.others),
            fates: Rc::clone(&self.fates),
            next: Rc::clone(&self.next),
        }
    }
}

impl<S: SimulatedStore> Connection<S> {
    /// Lets so much time pass, or more.
    fn travel(&self, time: u64) {
        let arrives = self.clock.get() + time;
        if let Some(go_on) = self.others.get() {
            go_on(arrives);
        }
        self.clock.set(self.clock.get().max(arrives));
    }

    pub(super) fn request<T>(
        &mut self,
        call: impl FnOnce(&mut S, u64) -> T + 'static,
    ) -> Result<T, StoreError> {
        let fate = self.fates[self.next.replace(self.next.get() + 1) % self.fates.len()];
        self.travel(fate.there);
        if fate.is_lost {
            return Err("lost".to_owned());
        }
        let answer = self.carry_out(fate, call)?;
        self.travel(fate.back);
        if fate.answer_is_lost { Err("answer lost".to_owned()) } else { Ok(answer) }
    }

    fn carry_out<T>(
        &self,
        fate: Fate,
        call: impl FnOnce(&mut S, u64) -> T + 'static,
    ) -> Result<T, StoreError> {
        let now = self.clock.get();
        let mut shared = self.shared.borrow_mut();
        let Shared { store, late } = &mut *shared;
        while let Some(index) = late.iter().position(|(at, _)| *at <= now) {
            let (at, effect) = late.swap_remove(index);
            effect(store, at);
        }
        store.advance(now);
        let Some(delay) = fate.late else { return Ok(call(store, now)) };
        let effect = move |store: &mut S, at| {
            store.advance(at);
            call(store, at);
        };
        late.push((now + delay, Box::new(effect)));
        Err("timed out".to_owned())
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

/// What happens on a machine, how much later than what was before.
#[derive(Clone, Debug)]
struct Turn {
    machine: usize,
    pause: u64,
    what: u8,
}

/// How three machines are, and what happens by turns.
#[derive(Debug)]
pub(super) struct Plan {
    machines: Vec<(Vec<Fate>, i64)>,
    turns: Vec<Turn>,
}

pub(super) fn plans() -> impl Strategy<Value = Plan> {
    let rate = prop_oneof![Just(-RATE_MAX), Just(RATE_MAX), -RATE_MAX..=RATE_MAX];
    let machines = prop::collection::vec((fates(), rate), 3);
    let pause = prop_oneof![4 => 0..300u64, 4 => 0..3000u64, 1 => 0..30_000u64];
    let turn = (0..3usize, pause, 0..24u8);
    let turn = turn.prop_map(|(machine, pause, what)| Turn { machine, pause, what });
    let turns = prop::collection::vec(turn, 50..300);
    (machines, turns).prop_map(|(machines, turns)| Plan { machines, turns })
}

struct Machine<L> {
    /// It is borrowed while it waits for an answer.
    keeper: RefCell<Keeper<L>>,
    term: RefCell<Term>,
    /// How many masters have ended here.
    masters: Cell<usize>,
    /// Until when it does nothing.
    frozen_until: Cell<u64>,
}

type MakeLease<S, L> = Box<dyn Fn(Connection<S>, &str) -> L>;

struct Simulation<S, L> {
    world: World<S>,
    connections: Vec<Connection<S>>,
    rates: Vec<i64>,
    lease: MakeLease<S, L>,
    machines: Vec<Machine<L>>,
    /// Terms of masters that were killed, and on which machine.
    remains: RefCell<Vec<(usize, Term)>>,
    turns: RefCell<std::iter::Peekable<std::vec::IntoIter<Turn>>>,
    has_two: Cell<bool>,
}

impl<S: SimulatedStore, L: Lease + 'static> Simulation<S, L> {
    fn new(plan: Plan, lease: MakeLease<S, L>) -> Rc<Self> {
        let world = World::<S>::new();
        let rates = plan.machines.iter().map(|(_, rate)| *rate).collect();
        let connections: Vec<_> =
            plan.machines.into_iter().map(|(fates, _)| world.connect(fates)).collect();
        let mut simulation = Self {
            world,
            connections,
            rates,
            lease,
            machines: Vec::new(),
            remains: RefCell::default(),
            turns: RefCell::new(plan.turns.into_iter().peekable()),
            has_two: Cell::new(false),
        };
        simulation.machines = (0..simulation.connections.len())
            .map(|number| Machine {
                keeper: RefCell::new(simulation.keeper(number, 0)),
                term: RefCell::new(Term::new(TTL)),
                masters: Cell::new(0),
                frozen_until: Cell::new(0),
            })
            .collect();
        let simulation = Rc::new(simulation);
        let weak = Rc::downgrade(&simulation);
        let go_on = move |until| weak.upgrade().into_iter().for_each(|it| it.run(until));
        let _ = simulation.world.others.set(Box::new(go_on));
        simulation
    }

    fn keeper(&self, machine: usize, masters: usize) -> Keeper<L> {
        let identity = format!("host-{machine}/{masters}");
        Keeper::new((self.lease)(self.connections[machine].clone(), &identity), TTL)
    }

    /// Returns what the clock of a machine shows.
    fn local(&self, machine: usize) -> MonotonicTime {
        let now = self.world.clock.get();
        at(now.saturating_add_signed(now as i64 * self.rates[machine] / 1000))
    }

    /// Runs the turns that are due before `until`.
    fn run(&self, until: u64) {
        loop {
            let now = self.world.clock.get();
            let next = self.turns.borrow_mut().next_if(|turn| now + turn.pause < until);
            let Some(turn) = next else { return };
            self.world.clock.set(now + turn.pause);
            self.take(&turn);
            let present = self.machines.iter().enumerate();
            let present =
                present.filter(|(number, it)| self.lasts(*number, &it.term.borrow())).count();
            let remains = self.remains.borrow();
            let remaining =
                remains.iter().filter(|(number, term)| self.lasts(*number, term)).count();
            self.has_two.set(self.has_two.get() || present + remaining > 1);
        }
    }

    fn lasts(&self, machine: usize, term: &Term) -> bool {
        term.until().is_some_and(|until| self.local(machine) < until)
    }

    fn take(&self, turn: &Turn) {
        let who = turn.machine;
        let machine = &self.machines[who];
        if self.world.clock.get() < machine.frozen_until.get() {
            return;
        }
        // A machine that waits for an answer does nothing else.
        let Ok(mut keeper) = machine.keeper.try_borrow_mut() else { return };
        let next_master = || {
            machine.masters.set(machine.masters.get() + 1);
            (machine.term.replace(Term::new(TTL)), self.keeper(who, machine.masters.get()))
        };
        match turn.what {
            1 if machine.term.borrow().until().is_some() => {
                // A stop: no worker is left, and the lease is given back.
                let (_, next) = next_master();
                let _ = keeper.release();
                *keeper = next;
            }
            2 => *keeper = self.keeper(who, machine.masters.get()),
            3 => {
                let (term, next) = next_master();
                *keeper = next;
                self.remains.borrow_mut().push((who, term));
            }
            4 => self.world.with_store(SimulatedStore::disturb),
            5 => machine.frozen_until.set(self.world.clock.get() + FREEZE),
            _ => {
                let report = keeper.step(|| self.local(who));
                machine.term.borrow_mut().on_report(report, self.local(who));
            }
        }
    }
}

/// Checks that of what the masters were told no two terms overlap. A term is what a fence in the workers
/// enforces, also after their master was killed.
pub(super) fn check_never_two_lead<S: SimulatedStore, L: Lease + 'static>(
    plan: Plan,
    lease: impl Fn(Connection<S>, &str) -> L + 'static,
) -> Result<(), TestCaseError> {
    let simulation = Simulation::new(plan, Box::new(lease));
    simulation.run(u64::MAX);
    prop_assert!(!simulation.has_two.get());
    Ok(())
}
