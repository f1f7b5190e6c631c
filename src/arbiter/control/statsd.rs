//! Sends what the master shows to a statsd server, by datagrams. Never waits: a datagram that cannot be
//! sent at once is lost.

mod server;

use std::collections::HashMap;
use std::fmt::{Display, Write};
use std::time::Duration;

use slog::Logger;

use crate::address::Address;
use crate::arbiter::snapshot::{PoolSnapshot, PoolTotals, Snapshot};
use crate::time::MonotonicTime;
use server::StatsdServer;

/// The time between two bursts: what statsd servers expect by default.
const INTERVAL: Duration = Duration::from_secs(10);
/// The longest datagram: it fits into an Ethernet frame.
const DATAGRAM_MAX: usize = 1400;

/// Sends a burst every ten seconds, and a last one. While the server is not known, what is counted stays
/// for a later burst.
pub(super) struct StatsdSender {
    server: StatsdServer,
    /// When the next burst is due.
    due: MonotonicTime,
    /// The totals that were sent, by pool.
    sent: HashMap<String, PoolTotals>,
}

impl StatsdSender {
    /// Returns a sender that looks its server up later; `None` if the address has no port.
    pub(super) fn new(address: &Address, now: MonotonicTime) -> Option<Self> {
        let server = StatsdServer::new(address, now)?;
        Some(Self { server, due: now + INTERVAL, sent: HashMap::new() })
    }

    /// Returns when there is something to do.
    pub(super) fn next_deadline(&self) -> MonotonicTime {
        self.server.due().map_or(self.due, |at| at.min(self.due))
    }

    /// Looks for the server, if it is not known. Returns whether a burst is due.
    pub(super) fn begin_turn(&mut self, now: MonotonicTime, log: &Logger) -> bool {
        self.server.find(now, log);
        self.is_due(now)
    }

    /// Returns whether a burst is due.
    pub(super) fn is_due(&self, now: MonotonicTime) -> bool {
        self.due <= now
    }

    /// Sends a burst.
    pub(super) fn send(&mut self, snapshot: &Snapshot, now: MonotonicTime) {
        self.due = now + INTERVAL;
        self.send_lines(snapshot, |_| true);
    }

    /// Sends what is new before something that was counted is forgotten: the master exits, or drops a
    /// pool. If another master goes on (`has_successor`), gauges are left to it.
    pub(super) fn send_last(
        &mut self,
        snapshot: &Snapshot,
        has_successor: bool,
        (now, log): (MonotonicTime, &Logger),
    ) {
        self.server.find_now(now, log);
        self.send_lines(snapshot, |line| !has_successor || line.ends_with("|c"));
    }

    fn send_lines(&mut self, snapshot: &Snapshot, is_wanted: impl Fn(&str) -> bool) {
        let Some(socket) = self.server.socket() else { return };
        let lines = snapshot.pools.iter().flat_map(|pool| {
            // The other master has sent what it had counted.
            let own = pool.totals.since(&pool.earlier_totals);
            let before = self.sent.insert(pool.name.clone(), own.clone());
            let new = own.since(&before.unwrap_or_default());
            lines_of_pool(&snapshot.proc_name, pool, &new)
        });
        for datagram in pack(lines.filter(|line| is_wanted(line))) {
            // A refused or full socket loses the datagram, as the network may.
            let _ = socket.send(datagram.as_bytes());
        }
        self.sent.retain(|name, _| snapshot.pools.iter().any(|pool| pool.name == *name));
    }
}

/// Puts lines into datagrams.
fn pack(lines: impl Iterator<Item = String>) -> Vec<String> {
    let mut datagrams = vec![String::new()];
    for line in lines {
        match datagrams.last_mut() {
            Some(last) if last.len() + line.len() < DATAGRAM_MAX => {
                if !last.is_empty() {
                    last.push('\n');
                }
                last.push_str(&line);
            }
            _ => datagrams.push(line),
        }
    }
    datagrams.retain(|datagram| !datagram.is_empty());
    datagrams
}

/// Returns what is new in the totals of a pool, and its gauges.
fn lines_of_pool(proc_name: &str, pool: &PoolSnapshot, new: &PoolTotals) -> Vec<String> {
    let prefix = format!("{}.{}", name_part(proc_name), name_part(&pool.name));
    let mut lines = Vec::new();
    let mut add = |name: &str, value: &dyn Display, kind: &str| {
        let mut line = String::new();
        let _ = write!(line, "{prefix}.{name}:{value}|{kind}"); // writing to a string cannot fail
        lines.push(line);
    };
    let counts = &new.work.counts;
    for (name, count) in [
        ("requests", counts.units),
        ("busy_ms", u64::try_from(counts.busy.as_millis()).unwrap_or(u64::MAX)),
        ("near_misses", counts.near_misses),
        ("bytes_in", counts.bytes_in),
        ("bytes_out", counts.bytes_out),
        ("accepted", counts.accepted),
        ("refused", counts.refused),
    ] {
        if !pool.has_program {
            add(name, &count, "c");
        }
    }
    add("workers_started", &new.workers_started, "c");
    for (reason, count) in new.exits.iter().filter(|(_, count)| *count > 0) {
        add(&format!("exits.{reason}"), count, "c");
    }
    for (name, share) in [("p50", 0.5), ("p90", 0.9), ("p99", 0.99)] {
        if let Some(duration) = new.work.durations.quantile(share) {
            add(&format!("duration.{name}_ms"), &(duration.as_secs_f64() * 1e3), "g");
        }
    }
    add("workers_ready", &pool.ready, "g");
    add("workers_target", &pool.target, "g");
    if !pool.has_program {
        let clients = pool.workers.iter().map(|worker| worker.clients);
        add("in_flight", &pool.in_flight(), "g");
        add("connections", &clients.fold(0, u64::saturating_add), "g");
    }
    let queued = pool.listeners.iter().filter_map(|it| it.queue_length).map(u64::from);
    add("accept_queue", &queued.sum::<u64>(), "g");
    lines
}

/// Returns a part of a metric's name: other characters have a meaning for statsd.
fn name_part(text: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    text.chars().map(|c| if is_plain(c) { c } else { '_' }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scoreboard::WorkTotals;

    #[test]
    fn lines_have_what_is_new_and_names_are_plain() {
        let mut pool = PoolSnapshot { name: "a.b|c".into(), target: 3, ..PoolSnapshot::default() };
        let mut before = PoolTotals::default();
        before.work.counts.units = 5;
        pool.totals.work = WorkTotals { counts: before.work.counts, ..WorkTotals::default() };
        pool.totals.work.counts.units = 12;
        pool.totals.work.durations.add(Some(Duration::from_millis(1)), 1);
        pool.totals.exits = vec![("crashed", 2), ("hung", 0)];
        let lines = lines_of_pool("my app", &pool, &pool.totals.since(&before));
        for line in [
            "my_app.a_b_c.requests:7|c",
            "my_app.a_b_c.exits.crashed:2|c",
            "my_app.a_b_c.duration.p50_ms:0.95|g",
            "my_app.a_b_c.workers_target:3|g",
        ] {
            assert!(lines.iter().any(|it| it == line), "{line}: {lines:?}");
        }
        assert!(!lines.iter().any(|it| it.contains("hung")), "{lines:?}");
    }

    #[test]
    fn datagrams_are_short_and_lose_no_line() {
        let lines: Vec<_> = (0..500).map(|number| format!("line.{number}:1|c")).collect();
        let datagrams = pack(lines.iter().cloned());
        assert!(datagrams.iter().all(|it| it.len() <= DATAGRAM_MAX));
        let found: Vec<_> = datagrams.iter().flat_map(|it| it.split('\n')).collect();
        assert_eq!(found, lines);
        assert!(pack([].into_iter()).is_empty());
    }
}
