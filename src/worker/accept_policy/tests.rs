use proptest::prelude::*;

use super::drain::LATE_HANDSHAKE_MAX;
use super::*;

const LISTENERS: usize = 3;
const CLIENT_LIMIT: usize = 4;
const BACKLOG: usize = 5;

/// An invented worker: its clock, its listeners and its clients.
struct World {
    policy: AcceptPolicy,
    turn: Turn,
    listeners: Vec<Listener>,
    /// Whether accept(2) fails for lack of descriptors.
    lacks_resources: bool,
    clients: usize,
    /// When the last client was accepted, and when the last one was served.
    accepted_at: u64,
    served_at: u64,
    /// Counts what happens, in order.
    event: u64,
    /// The share of clients that the other workers leave to this one.
    share: usize,
}

#[derive(Clone, Debug)]
struct Listener {
    facts: ListenerFacts,
    waiting: usize,
    /// How many waited when the duty became [`BacklogDuty::EmptyOnce`], and wait still.
    owed: usize,
    is_shut_down: bool,
    /// The last event at which accept(2) found nothing, and the time of the turn.
    seen_empty: Option<(u64, MonotonicTime)>,
}

fn facts(listeners: &[Listener]) -> impl Fn(usize) -> ListenerFacts + Copy {
    |index| listeners[index].facts
}

fn open() -> ListenerFacts {
    ListenerFacts { state: ListenerState::Open, is_assigned: true, is_sharded: false }
}

impl World {
    fn new() -> Self {
        let turn = Turn {
            now: MonotonicTime::from_nanos(5_000_000_000),
            client_count: 0,
            stop: StopRequest::None,
            stopping_since: None,
            orphaned: false,
            rechecks_requested: 0,
            is_in_drain_mode: false,
        };
        let listener =
            Listener { facts: open(), waiting: 0, owed: 0, is_shut_down: false, seen_empty: None };
        Self {
            policy: AcceptPolicy::new(LISTENERS, CLIENT_LIMIT, turn),
            turn,
            listeners: vec![listener; LISTENERS],
            lacks_resources: false,
            clients: 0,
            accepted_at: 0,
            served_at: 0,
            event: 0,
            share: usize::MAX / 2,
        }
    }

    fn sleep(&mut self, time: Duration) {
        self.turn.now = self.turn.now.saturating_add(time);
    }

    fn stop(&mut self, stop: StopRequest) {
        if self.turn.stop < stop {
            self.turn.stop = stop;
            self.turn.stopping_since.get_or_insert(self.turn.now);
        }
    }

    fn set_state(&mut self, index: usize, state: ListenerState) {
        self.listeners[index].facts.state = state;
    }

    fn serve_one(&mut self) {
        if self.clients > 0 {
            self.event += 1;
            (self.clients, self.served_at) = (self.clients - 1, self.event);
        }
    }

    /// Calls accept(2).
    fn accept(&mut self, index: usize) -> Found {
        self.event += 1;
        let now = self.turn.now;
        let listener = &mut self.listeners[index];
        let found = if listener.is_shut_down {
            Found::ShutDown
        } else if listener.waiting == 0 {
            listener.seen_empty = Some((self.event, now));
            Found::Nothing
        } else if self.lacks_resources {
            Found::NoResources { resume_at: now.saturating_add(ACCEPT_PAUSE) }
        } else {
            listener.waiting -= 1;
            listener.owed = listener.owed.saturating_sub(1);
            (self.clients, self.accepted_at) = (self.clients + 1, self.event);
            Found::Client
        };
        let facts = listener.facts;
        self.policy.on_accept(index, found, facts);
        found
    }

    /// One turn of a loop that keeps all clients. Returns whether the drain is over.
    fn turn(&mut self) -> bool {
        let share = ClientShare { clients: self.share, is_whole: false };
        self.turn.client_count = self.clients;
        self.policy.begin_turn(self.turn, facts(&self.listeners), |_| share);
        for (index, listener) in self.listeners.iter_mut().enumerate() {
            if self.policy.lacks_queue_length(index, listener.facts) {
                self.policy.set_queue_length(index, listener.waiting, listener.facts);
                listener.owed = listener.waiting;
            }
        }
        for step in 0.. {
            assert!(step < 1000, "the policy wants to look for ever");
            let Some(index) = self.policy.next_look(facts(&self.listeners)) else { break };
            let is_owed = self.policy.queues[index].owes_accept;
            let found = self.accept(index);
            let has_room = self.clients <= CLIENT_LIMIT;
            assert!(found != Found::Client || has_room || is_owed, "a client too many");
            let is_left = self.turn.is_in_drain_mode && self.turn.stop == StopRequest::None;
            assert!(found != Found::Client || !is_left || is_owed, "it leaves clients to others");
            assert!(!self.policy.queues[index].owes_accept, "one accept(2) is enough");
        }
        self.policy.finish(facts(&self.listeners))
    }

    fn deadline(&self) -> Option<MonotonicTime> {
        self.policy.deadline(facts(&self.listeners))
    }

    fn is_interested(&self, index: usize) -> bool {
        self.policy.is_interested(index, self.listeners[index].facts)
    }

    /// Sleeps until something would wake the worker. Returns false if nothing ever does.
    fn sleep_until_woken(&mut self) -> bool {
        let mut is_woken = false;
        for index in 0..LISTENERS {
            if self.is_interested(index) && self.listeners[index].waiting > 0 {
                self.policy.mark_readable(index);
                is_woken = true;
            }
        }
        if is_woken {
            return true;
        }
        let Some(deadline) = self.deadline() else { return false };
        let wait = deadline.duration_since(self.turn.now);
        assert!(wait > Duration::ZERO, "a deadline that has passed moves nothing");
        self.sleep(wait);
        true
    }

    /// What must hold after each turn.
    fn check(&self, is_over: bool) {
        let (policy, turn) = (&self.policy, &self.turn);
        let is_paused = policy.paused_until.is_some();
        let owes = policy.queues.iter().any(|queue| queue.owes_accept);
        let may_accept = turn.stop != StopRequest::Immediate && !is_paused && !policy.is_finished;
        assert!(!owes || !may_accept, "a wake-up is owed");
        if let Some(until) = policy.paused_until {
            let rest = until.duration_since(turn.now);
            assert!(rest > Duration::ZERO && rest <= ACCEPT_PAUSE, "{rest:?}");
            assert!(is_over || self.deadline().is_some_and(|at| at <= until));
        }
        if let Some(until) = policy.yields_until {
            assert!(until.duration_since(turn.now) <= YIELD_MAX && turn.stop == StopRequest::None);
        }
        if is_over && turn.stop == StopRequest::Graceful {
            self.check_nothing_is_lost();
        }
        assert!(!policy.is_drained() || self.clients == 0 && turn.is_in_drain_mode && !is_over);
        let is_draining_without_clients = turn.stop == StopRequest::Graceful && self.clients == 0;
        assert!(is_over || !is_draining_without_clients || self.deadline().is_some(), "stuck");
        for (index, listener) in self.listeners.iter().enumerate() {
            let is_open = policy.is_open() && !listener.is_shut_down;
            let must = turn.stop == StopRequest::None && listener.facts.is_assigned && is_open;
            assert_eq!(must, turn.stop == StopRequest::None && self.is_interested(index));
        }
    }

    fn check_nothing_is_lost(&self) {
        let drain = self.turn.drain().unwrap();
        assert_eq!(self.clients, 0);
        for (index, listener) in self.listeners.iter().enumerate() {
            match drain.duty(listener.facts.state) {
                _ if self.policy.queues[index].is_shut_down => (),
                BacklogDuty::None => (),
                BacklogDuty::AwaitHandshakes => panic!("late handshakes are possible"),
                BacklogDuty::Empty => {
                    let (event, at) = listener.seen_empty.unwrap();
                    assert!(event > self.accepted_at && event > self.served_at, "{listener:?}");
                    let since = self.turn.stopping_since.unwrap();
                    let is_bounded = listener.facts.state == ListenerState::DrainBounded;
                    assert!(!is_bounded || at.duration_since(since) >= LATE_HANDSHAKE_MAX);
                }
                BacklogDuty::EmptyOnce => {
                    assert!(
                        self.policy.queues[index].is_done(listener.facts) && listener.owed == 0
                    );
                }
            }
        }
    }
}

#[derive(Clone, Debug)]
enum Step {
    Arrive(usize, usize),
    Readable(usize),
    Serve(usize),
    Sleep(u64),
    SetState(usize, ListenerState),
    Assign(usize, bool),
    ShutDown(usize),
    Resources(bool),
    Share(usize),
    Signal,
    DrainMode(bool),
    Orphan,
    Stop(StopRequest),
}

fn step() -> impl Strategy<Value = Step> {
    let states = prop_oneof![
        Just(ListenerState::Open),
        Just(ListenerState::DrainBounded),
        Just(ListenerState::DrainUnbounded),
        Just(ListenerState::NotListening),
    ];
    prop_oneof![
        6 => (0..LISTENERS, 1..5usize).prop_map(|(index, count)| Step::Arrive(index, count)),
        2 => (0..LISTENERS).prop_map(Step::Readable),
        6 => (1..5usize).prop_map(Step::Serve),
        6 => (0..700u64).prop_map(Step::Sleep),
        2 => (0..LISTENERS, states).prop_map(|(index, state)| Step::SetState(index, state)),
        1 => (0..LISTENERS, any::<bool>()).prop_map(|(index, is)| Step::Assign(index, is)),
        1 => (0..LISTENERS).prop_map(Step::ShutDown),
        2 => any::<bool>().prop_map(Step::Resources),
        2 => prop_oneof![Just(0), Just(usize::MAX / 2)].prop_map(Step::Share),
        1 => Just(Step::Signal),
        2 => any::<bool>().prop_map(Step::DrainMode),
        1 => Just(Step::Orphan),
        2 => Just(Step::Stop(StopRequest::Graceful)),
        1 => Just(Step::Stop(StopRequest::Immediate)),
    ]
}

fn apply(world: &mut World, step: Step) {
    match step {
        Step::Arrive(index, count) => world.listeners[index].waiting += count,
        Step::Readable(index) => world.policy.mark_readable(index),
        Step::Serve(count) => (0..count).for_each(|_| world.serve_one()),
        Step::Sleep(millis) => world.sleep(Duration::from_millis(millis)),
        Step::SetState(index, state) => world.set_state(index, state),
        Step::Assign(index, is_assigned) => {
            world.listeners[index].facts.is_assigned = is_assigned;
        }
        Step::ShutDown(index) if world.turn.stop != StopRequest::None => {
            (world.listeners[index].is_shut_down, world.listeners[index].waiting) = (true, 0);
            world.listeners[index].owed = 0;
        }
        Step::ShutDown(_) => (),
        Step::Resources(there) => world.lacks_resources = !there,
        Step::Share(share) => world.share = share,
        Step::Signal => world.turn.rechecks_requested += 1,
        Step::DrainMode(is_on) => world.turn.is_in_drain_mode = is_on,
        Step::Orphan => world.turn.orphaned = world.turn.stop != StopRequest::None,
        Step::Stop(stop) => world.stop(stop),
    }
}

proptest! {
    #[test]
    fn policy_in_any_world_keeps_its_invariants(steps in prop::collection::vec(step(), 1..80)) {
        let mut world = World::new();
        for step in steps {
            apply(&mut world, step);
            let was_over = world.policy.is_finished;
            let is_over = world.turn();
            prop_assert!(is_over || !was_over, "finished is final");
            if was_over {
                continue; // the class has returned
            }
            world.check(is_over);
        }
    }

    #[test]
    fn drain_ends_after_last_client(
        steps in prop::collection::vec(step(), 1..40),
        arrivals in 0..12usize,
    ) {
        let mut world = World::new();
        for step in steps {
            apply(&mut world, step);
            world.turn();
        }
        world.stop(StopRequest::Graceful);
        world.lacks_resources = false;
        // Unbounded queues are filled as fast as they are emptied.
        for turns in 0.. {
            prop_assert!(turns < 1000, "the drain never ends");
            for listener in &mut world.listeners {
                let is_bounded = listener.facts.state == ListenerState::DrainBounded;
                let is_refilled = turns < arrivals || !is_bounded && !listener.is_shut_down;
                if is_refilled && listener.waiting < BACKLOG {
                    listener.waiting += 1;
                }
            }
            (0..CLIENT_LIMIT + LISTENERS).for_each(|_| world.serve_one());
            let was_over = world.policy.is_finished;
            let is_over = world.turn();
            if was_over {
                return Ok(());
            }
            world.check(is_over);
            if !is_over && world.clients == 0 {
                prop_assert!(world.sleep_until_woken(), "nothing wakes the worker");
            } else {
                world.sleep(Duration::from_millis(20));
            }
        }
    }
}

#[test]
fn busy_worker_empties_long_queue_before_it_finishes() {
    let mut world = World::new();
    world.listeners[0].waiting = 1;
    world.sleep_until_woken();
    assert!(!world.turn() && world.clients == 1);
    world.listeners[0].waiting = 40;
    world.stop(StopRequest::Graceful);
    (0..LISTENERS).for_each(|index| world.set_state(index, ListenerState::DrainBounded));
    for _ in 0..40 {
        world.sleep(Duration::from_millis(60));
        world.serve_one();
        assert!(!world.turn(), "{} wait", world.listeners[0].waiting);
    }
    while world.clients > 0 {
        world.serve_one();
    }
    assert!(world.turn());
    assert_eq!(world.listeners[0].waiting, 0);
}

#[test]
fn idle_drain_waits_for_handshakes_of_bounded_queues_only() {
    for (state, millis) in [
        (ListenerState::DrainBounded, 100),
        (ListenerState::DrainUnbounded, 0),
        (ListenerState::Open, 0),
    ] {
        let mut world = World::new();
        let begun = world.turn.now;
        world.set_state(0, state);
        world.stop(StopRequest::Graceful);
        while !world.turn() {
            assert!(world.sleep_until_woken());
        }
        assert_eq!(world.turn.now.duration_since(begun), Duration::from_millis(millis));
    }
}

#[test]
fn sigurg_makes_a_worker_look_twice() {
    let mut world = World::new();
    world.turn();
    world.turn.rechecks_requested += 1;
    world.turn();
    world.listeners[0].waiting = 1; // reported to a worker that was killed
    assert_eq!(world.deadline(), Some(world.turn.now.saturating_add(RECHECK_INTERVAL)));
    world.sleep(RECHECK_INTERVAL);
    world.turn();
    assert_eq!((world.clients, world.deadline()), (1, None));
}

#[test]
fn worker_in_drain_mode_accepts_only_what_is_owed() {
    let mut world = World::new();
    world.turn();
    world.turn.is_in_drain_mode = true;
    world.policy.mark_readable(0);
    world.listeners[0].waiting = 2;
    world.turn();
    assert_eq!((world.clients, world.listeners[0].waiting), (1, 1));
    assert!(!world.is_interested(0) && !world.policy.is_drained());
    world.serve_one();
    world.turn();
    assert!(world.policy.is_drained() && !world.is_interested(0));
    world.turn.is_in_drain_mode = false;
    world.turn();
    assert_eq!((world.clients, world.policy.is_drained()), (1, false));
    assert!(world.is_interested(0), "it looks at once, and goes on watching");
}

#[test]
fn worker_in_drain_mode_stops_as_any_worker() {
    let mut world = World::new();
    world.turn.is_in_drain_mode = true;
    world.listeners[0].waiting = 1;
    world.turn();
    assert_eq!(world.clients, 0);
    (0..LISTENERS).for_each(|index| world.set_state(index, ListenerState::DrainBounded));
    world.stop(StopRequest::Graceful);
    world.turn();
    assert_eq!(world.clients, 1, "its queue must be emptied");
    assert!(!world.policy.is_drained());
    world.serve_one();
    world.sleep(LATE_HANDSHAKE_MAX);
    assert!(world.turn());
}

#[test]
fn worker_above_its_share_leaves_clients_to_others_for_20_ms() {
    let mut world = World::new();
    world.share = 0;
    world.listeners[0].waiting = 3;
    world.sleep_until_woken();
    world.turn();
    assert_eq!(world.clients, 3);
    world.turn();
    assert!(!world.policy.is_open() && !world.is_interested(0));
    assert_eq!(world.deadline(), Some(world.turn.now.saturating_add(YIELD_MAX)));
    world.sleep(YIELD_MAX);
    world.turn();
    assert!(world.is_interested(0), "the others may be stuck");
    world.listeners.iter_mut().for_each(|listener| listener.facts.is_sharded = true);
    world.listeners[1].waiting = 1;
    world.turn();
    world.policy.mark_readable(1);
    world.turn();
    world.serve_one();
    world.turn();
    assert!(world.policy.yields_until.is_none(), "no other worker serves these queues");
}
