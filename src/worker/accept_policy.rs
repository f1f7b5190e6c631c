//! When a worker accepts clients, from which listener, and when its drain is over: the same for every
//! class and every way to sleep. Pure: time and what the kernel and the master say are arguments.
//!
//! [`Acceptor`](super::Acceptor), [`EpollAcceptor`](super::EpollAcceptor) and the forced drain call
//! accept(2), watch listeners and close them as this says.

mod drain;
#[cfg(test)]
mod tests;

use std::time::Duration;

use super::lifecycle::StopRequest;
use crate::listen::ListenerState;
use crate::scoreboard::ClientShare;
use crate::time::MonotonicTime;
pub(super) use drain::{BacklogDuty, Drain, handshakes_end};

/// How long accepting pauses when the kernel has no resources for another connection.
pub(crate) const ACCEPT_PAUSE: Duration = Duration::from_millis(500);
/// How often a worker that is awake looks at all listeners anew. A wake-up is lost with a worker that
/// is killed: the kernel has woken no other for that client. The master then sends SIGURG to others.
/// They look once more this much later: until the kernel has removed the watches of the killed
/// worker, it may wake that one instead of others.
const RECHECK_INTERVAL: Duration = Duration::from_secs(1);
/// How many clients more than its share a worker may have, besides an eighth of the share. A worker
/// that is awake is faster than one that must be woken, and would accept all of a burst.
const FAIR_SHARE_SLACK: usize = 2;
/// How long a worker that has its share leaves clients to other workers, which may be stuck.
const YIELD_MAX: Duration = Duration::from_millis(20);
/// What is known of the worker in one turn of its loop.
#[derive(Clone, Copy, Debug)]
pub(super) struct Turn {
    pub(super) now: MonotonicTime,
    /// How many clients it has.
    pub(super) client_count: usize,
    pub(super) stop: StopRequest,
    /// When it was asked to stop.
    pub(super) stopping_since: Option<MonotonicTime>,
    pub(super) orphaned: bool,
    /// How often the master has asked to look at all listeners anew: queues are assigned anew, or the
    /// kernel may have woken a worker that was killed.
    pub(super) rechecks_requested: u64,
    /// Whether the master has asked it to accept no clients, without a stop.
    pub(super) is_in_drain_mode: bool,
}

impl Turn {
    fn drain(&self) -> Option<Drain> {
        let since = self.stopping_since.filter(|_| self.stop == StopRequest::Graceful)?;
        Some(Drain { elapsed: self.now.duration_since(since), orphaned: self.orphaned })
    }
}

/// What is known of a listener.
#[derive(Clone, Copy, Debug)]
pub(super) struct ListenerFacts {
    pub(super) state: ListenerState,
    /// Whether this worker serves it.
    pub(super) is_assigned: bool,
    /// Whether it has a queue of its own beside others at the same address (`reuse_port`).
    pub(super) is_sharded: bool,
}

/// What a call of accept(2) has found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Found {
    Client,
    Nothing,
    /// `EINVAL`: the socket has ended listening.
    ShutDown,
    /// `EMFILE` and the like: accepting pauses until then.
    NoResources {
        resume_at: MonotonicTime,
    },
}

/// What is known of a listener's queue.
#[derive(Clone, Debug, Default)]
struct Queue {
    /// The kernel has reported a client, perhaps to this worker alone: one accept(2) is owed.
    owes_accept: bool,
    /// It has not been seen empty since the last client.
    may_have_more: bool,
    /// It was seen empty after the last client of the worker was served, as a drain demands, while
    /// its listener was in this state.
    proven_empty: Option<ListenerState>,
    /// Nothing more is owed to it while its listener is in this state.
    done_in: Option<ListenerState>,
    /// How many clients must still be accepted from it under [`BacklogDuty::EmptyOnce`].
    clients_left: Option<usize>,
    /// It has ended listening.
    is_shut_down: bool,
}

impl Queue {
    fn is_done(&self, facts: ListenerFacts) -> bool {
        self.done_in == Some(facts.state)
    }
}

/// When all listeners were looked at.
#[derive(Debug)]
struct Recheck {
    at: MonotonicTime,
    /// Whether that was for SIGURG, and one more look is due.
    is_due_again: bool,
    /// The changes that were seen then.
    rechecks_requested: u64,
}

/// Decides for one worker. Call [`begin_turn`](Self::begin_turn) in each turn of the loop.
#[derive(Debug)]
pub(super) struct AcceptPolicy {
    queues: Vec<Queue>,
    /// `worker_connections`.
    client_limit: usize,
    turn: Turn,
    /// The queue whose turn it is.
    next: usize,
    /// Until when the kernel has no resources.
    paused_until: Option<MonotonicTime>,
    /// Until when clients are left to other workers.
    yields_until: Option<MonotonicTime>,
    /// The number of clients that the other workers were told of last.
    published_clients: usize,
    /// Whether no other worker served then.
    serves_alone: bool,
    recheck: Recheck,
    is_finished: bool,
}

impl AcceptPolicy {
    pub(super) fn new(listeners: usize, client_limit: usize, turn: Turn) -> Self {
        let Turn { now: at, rechecks_requested, .. } = turn;
        Self {
            queues: vec![Queue::default(); listeners],
            client_limit,
            turn,
            next: 0,
            paused_until: None,
            yields_until: None,
            published_clients: 0,
            serves_alone: false,
            recheck: Recheck { at, is_due_again: false, rechecks_requested },
            is_finished: false,
        }
    }

    /// Takes in what has changed. `publish_clients` tells the other workers how many clients this one
    /// has and returns its fair share; it is called only if that matters. Returns whether all
    /// listeners must be looked at anew.
    pub(super) fn begin_turn(
        &mut self,
        turn: Turn,
        facts: impl Fn(usize) -> ListenerFacts,
        publish_clients: impl FnOnce(usize) -> ClientShare,
    ) -> bool {
        let stop_begins = self.turn.stop == StopRequest::None && turn.stop != StopRequest::None;
        let drain_mode_changes = self.turn.is_in_drain_mode != turn.is_in_drain_mode;
        self.turn = turn;
        self.set_client_count(turn.client_count);
        if self.paused_until.is_some_and(|until| until <= turn.now) {
            self.paused_until = None;
        }
        self.update_yielding(facts, publish_clients);
        let is_told = self.recheck.rechecks_requested != turn.rechecks_requested;
        let is_due = turn.now.duration_since(self.recheck.at) >= RECHECK_INTERVAL;
        if is_told || is_due {
            self.recheck = Recheck {
                at: turn.now,
                is_due_again: is_told,
                rechecks_requested: turn.rechecks_requested,
            };
        }
        let looks_anew = is_told || is_due || stop_begins || drain_mode_changes;
        let may_listen_again = is_told && turn.stop == StopRequest::None;
        if looks_anew {
            for queue in &mut self.queues {
                queue.may_have_more = true;
                queue.is_shut_down &= !may_listen_again;
            }
        }
        looks_anew
    }

    pub(super) fn set_client_count(&mut self, count: usize) {
        self.turn.client_count = count;
        if count > 0 && self.turn.stop != StopRequest::None {
            self.queues.iter_mut().for_each(|queue| queue.proven_empty = None);
        }
    }

    pub(super) fn client_count(&self) -> usize {
        self.turn.client_count
    }

    /// Returns whether no other worker served when the number of clients last changed.
    pub(super) fn serves_alone(&self) -> bool {
        self.serves_alone
    }

    /// Leaves clients to other workers while this one has more than its share.
    fn update_yielding(
        &mut self,
        facts: impl Fn(usize) -> ListenerFacts,
        publish_clients: impl FnOnce(usize) -> ClientShare,
    ) {
        let Turn { now, client_count, stop, .. } = self.turn;
        if client_count == self.published_clients && self.yields_until.is_none() {
            return;
        }
        self.published_clients = client_count;
        let ClientShare { clients: share, is_whole } = publish_clients(client_count);
        self.serves_alone = is_whole;
        let has_too_many = client_count > share.saturating_add(share / 8 + FAIR_SHARE_SLACK)
            && stop == StopRequest::None
            && (0..self.queues.len()).any(|index| !facts(index).is_sharded);
        match self.yields_until {
            Some(until) if !has_too_many || until <= now => self.yields_until = None,
            None if has_too_many && self.is_open() => {
                self.yields_until = Some(now.saturating_add(YIELD_MAX));
            }
            Some(_) | None => (),
        }
    }

    /// Takes in that the kernel has reported a client at a listener: one accept(2) is owed, also if
    /// the worker is full or stops meanwhile.
    pub(super) fn mark_readable(&mut self, index: usize) {
        self.queues[index].owes_accept = true;
    }

    /// Forgets what is owed: all events of the turn have been handled.
    pub(super) fn forget_owed(&mut self) {
        self.queues.iter_mut().for_each(|queue| queue.owes_accept = false);
    }

    /// Returns whether accept(2) may be called at a listener now.
    pub(super) fn may_accept(&self, index: usize, facts: ListenerFacts) -> bool {
        let is_owed = self.queues[index].owes_accept
            && self.turn.stop != StopRequest::Immediate
            && self.paused_until.is_none()
            && !self.is_finished;
        is_owed || self.accepts_from(index, facts)
    }

    /// Returns the listener at which to call accept(2) before sleeping: they take turns, so that none
    /// starves another.
    pub(super) fn next_look(&self, facts: impl Fn(usize) -> ListenerFacts) -> Option<usize> {
        let count = self.queues.len();
        (0..count)
            .map(|offset| (self.next + offset) % count)
            .find(|&index| self.must_look(index, facts(index)))
    }

    fn must_look(&self, index: usize, facts: ListenerFacts) -> bool {
        let Queue { owes_accept, may_have_more, .. } = self.queues[index];
        (owes_accept || may_have_more || self.lacks_proof(index, facts))
            && self.may_accept(index, facts)
    }

    /// Returns whether only a look at a queue can show that nothing more is owed to it.
    pub(super) fn lacks_proof(&self, index: usize, facts: ListenerFacts) -> bool {
        let is_proven_empty = self.queues[index].proven_empty == Some(facts.state);
        self.accepts_from(index, facts)
            && match self.duty(facts) {
                BacklogDuty::None | BacklogDuty::AwaitHandshakes => false,
                BacklogDuty::Empty => self.turn.client_count == 0 && !is_proven_empty,
                BacklogDuty::EmptyOnce => true,
            }
    }

    /// Returns whether [`set_queue_length`](Self::set_queue_length) must be called for a listener.
    pub(super) fn lacks_queue_length(&self, index: usize, facts: ListenerFacts) -> bool {
        let is_unknown = self.queues[index].clients_left.is_none();
        self.duty(facts) == BacklogDuty::EmptyOnce
            && is_unknown
            && !self.queues[index].is_done(facts)
    }

    /// Takes in how many clients wait at a listener. The queue is first in, first out: after that many
    /// nothing more is owed to it, however many have come since.
    pub(super) fn set_queue_length(&mut self, index: usize, length: usize, facts: ListenerFacts) {
        let queue = &mut self.queues[index];
        queue.clients_left = Some(length);
        queue.done_in = (length == 0).then_some(facts.state);
    }

    pub(super) fn on_accept(&mut self, index: usize, found: Found, facts: ListenerFacts) {
        let (duty, has_clients) = (self.duty(facts), self.turn.client_count > 0);
        let queue = &mut self.queues[index];
        queue.owes_accept = false;
        queue.may_have_more = matches!(found, Found::Client | Found::NoResources { .. });
        match found {
            Found::Client => {
                if let (BacklogDuty::EmptyOnce, Some(left)) = (duty, &mut queue.clients_left) {
                    *left = left.saturating_sub(1);
                    queue.done_in = (*left == 0).then_some(facts.state);
                }
                self.next = index + 1;
                self.set_client_count(self.turn.client_count + 1);
            }
            Found::Nothing => match duty {
                BacklogDuty::Empty if !has_clients => queue.proven_empty = Some(facts.state),
                BacklogDuty::EmptyOnce => queue.done_in = Some(facts.state),
                BacklogDuty::None | BacklogDuty::AwaitHandshakes | BacklogDuty::Empty => (),
            },
            Found::ShutDown => queue.is_shut_down = true,
            Found::NoResources { resume_at } => self.paused_until = Some(resume_at),
        }
    }

    /// Returns whether clients are accepted from a listener now, without a reported one.
    pub(super) fn accepts_from(&self, index: usize, facts: ListenerFacts) -> bool {
        let queue = &self.queues[index];
        let is_wanted = match self.turn.stop {
            StopRequest::None => facts.is_assigned,
            StopRequest::Graceful => self.duty(facts) != BacklogDuty::None && !queue.is_done(facts),
            StopRequest::Immediate => false,
        };
        is_wanted && self.is_open() && !queue.is_shut_down && !self.is_finished
    }

    /// Returns whether the loop must watch a listener while it sleeps, if it looks at it before it
    /// sleeps when [`next_look`](Self::next_look) says so.
    pub(super) fn is_interested(&self, index: usize, facts: ListenerFacts) -> bool {
        let Queue { owes_accept, may_have_more, .. } = self.queues[index];
        !owes_accept && !may_have_more && self.accepts_from(index, facts)
    }

    /// Returns whether there is room and are resources for another client, and the worker does not
    /// leave clients to others.
    pub(super) fn is_open(&self) -> bool {
        !self.leaves_all_clients()
            && self.turn.client_count < self.client_limit
            && self.paused_until.is_none()
            && self.yields_until.is_none()
    }

    /// Returns whether the worker leaves all clients to others: it is in drain mode. A graceful stop owes
    /// as much to the queues as that of any worker.
    fn leaves_all_clients(&self) -> bool {
        self.turn.is_in_drain_mode && self.turn.stop == StopRequest::None
    }

    /// Returns whether the worker is drained for its drain mode: it has no client, and none is owed an
    /// accept(2).
    pub(super) fn is_drained(&self) -> bool {
        self.leaves_all_clients()
            && self.turn.client_count == 0
            && !self.queues.iter().any(|queue| queue.owes_accept)
    }

    fn duty(&self, facts: ListenerFacts) -> BacklogDuty {
        self.turn.drain().map_or(BacklogDuty::None, |drain| drain.duty(facts.state))
    }

    /// Returns whether a client may still come that this worker must serve: not before each queue to
    /// which it owes anything was seen empty after its last client was served.
    pub(super) fn may_receive_more(&self, facts: impl Fn(usize) -> ListenerFacts) -> bool {
        let is_met = |(index, queue): (usize, &Queue)| {
            let facts = facts(index);
            let is_empty = queue.proven_empty == Some(facts.state) || queue.is_shut_down;
            let owes_nothing =
                self.duty(facts) == BacklogDuty::None || queue.is_done(facts) || is_empty;
            !queue.owes_accept && owes_nothing
        };
        self.paused_until.is_some() || !self.queues.iter().enumerate().all(is_met)
    }

    /// Returns whether it is time for the class to return. Once true, it stays true.
    pub(super) fn finish(&mut self, facts: impl Fn(usize) -> ListenerFacts) -> bool {
        self.is_finished |= match self.turn.stop {
            StopRequest::None => false,
            StopRequest::Graceful => self.turn.client_count == 0 && !self.may_receive_more(facts),
            StopRequest::Immediate => true,
        };
        self.is_finished
    }

    /// Returns when the next turn is due, if nothing happens before: a pause ends, a look is due, or
    /// a duty changes. Zero is at once.
    pub(super) fn deadline(&self, facts: impl Fn(usize) -> ListenerFacts) -> Option<MonotonicTime> {
        let recheck = &self.recheck;
        let next_look = recheck.is_due_again.then(|| recheck.at.saturating_add(RECHECK_INTERVAL));
        let waits = [self.paused_until, self.yields_until, next_look];
        let deadline = waits.into_iter().flatten().min();
        match (self.turn.drain(), self.turn.stopping_since) {
            (Some(drain), Some(since)) => {
                let queue_deadline = |index| {
                    if self.lacks_proof(index, facts(index)) {
                        return Some(MonotonicTime::default());
                    }
                    let change = drain.next_change(facts(index).state)?;
                    let is_done = self.queues[index].is_done(facts(index));
                    (!is_done).then(|| since.saturating_add(change))
                };
                (0..self.queues.len()).filter_map(queue_deadline).chain(deadline).min()
            }
            _ => deadline,
        }
    }
}
