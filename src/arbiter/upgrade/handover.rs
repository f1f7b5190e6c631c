//! What a master hands to the other one. When it exits: the totals of each pool, so that no counter goes
//! back. Before it executes a new master: how many workers each pool has, and whether it is in drain mode.
//!
//! Pure: messages about one pool, in JSON. A master of another version ignores keys and messages that it
//! does not know.

use std::time::Duration;

use serde_json::{Map, Value, json};

use crate::arbiter::operations::{Ended, OperationCounts};
use crate::arbiter::pool::supervisor::ExitReason;
use crate::arbiter::snapshot::PoolTotals;
use crate::scoreboard::{AcceptWaits, COUNT_MAX, Histogram, WorkCounts, WorkTotals};
use crate::settings::Workers;

/// The first byte of such a message.
pub(super) const TAG: u8 = b'{';

/// Encodes the totals of a pool.
pub(super) fn encode(pool: &str, totals: &PoolTotals) -> Vec<u8> {
    let WorkTotals { counts, durations } = &totals.work;
    let nanos = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
    let buckets = durations.buckets().map(|(bound, count)| json!([bound.map(nanos), count]));
    let exits = totals.exits.iter().filter(|(_, count)| *count > 0);
    let exits: Map<_, _> = exits.map(|(name, count)| ((*name).to_owned(), json!(count))).collect();
    let mut message = json!({
        "pool": pool,
        "unit_ns": nanos(counts.unit_time),
        "busy_ns": nanos(counts.busy),
        "accept_waits": counts.accept_waits.counts,
        "accept_wait_ns": nanos(counts.accept_waits.time),
        "durations": buckets.collect::<Vec<_>>(),
        "started": totals.workers_started,
        "boots": totals.boots,
        "boot_ns": nanos(totals.boot_time),
        "exits": exits,
    });
    for (name, count) in counts.by_name() {
        message[name] = json!(count);
    }
    message.to_string().into_bytes()
}

/// Decodes the name of a pool and its totals. Each count is capped, and one that is missing or no
/// number is zero. `None` if the message is not of this kind.
pub(super) fn decode(message: &[u8]) -> Option<(String, PoolTotals)> {
    let message: Value = serde_json::from_slice(message).ok()?;
    let count = |key: &str| count_of(&message[key]);
    let time = |key: &str| Duration::from_nanos(message[key].as_u64().unwrap_or(0));
    let mut durations = Histogram::default();
    for bucket in message["durations"].as_array().into_iter().flatten() {
        durations.add(bucket[0].as_u64().map(Duration::from_nanos), count_of(&bucket[1]));
    }
    let mut accept_waits = AcceptWaits { time: time("accept_wait_ns"), ..AcceptWaits::default() };
    let waits = message["accept_waits"].as_array().into_iter().flatten();
    for (total, value) in accept_waits.counts.iter_mut().zip(waits) {
        *total = count_of(value);
    }
    let (unit_time, busy) = (time("unit_ns"), time("busy_ns"));
    let mut counts = WorkCounts { unit_time, busy, accept_waits, ..WorkCounts::default() };
    for (name, total) in counts.by_name_mut() {
        *total = count(name);
    }
    let exits = ExitReason::ALL.map(|it| (it.as_str(), count_of(&message["exits"][it.as_str()])));
    let totals = PoolTotals {
        work: WorkTotals { counts, durations },
        workers_started: count("started"),
        boots: count("boots"),
        boot_time: time("boot_ns"),
        exits: exits.to_vec(),
    };
    Some((message["pool"].as_str()?.to_owned(), totals))
}

/// Encodes how many operations have ended.
pub(super) fn encode_operations(counts: &OperationCounts) -> Vec<u8> {
    let nanos = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
    let ended = counts
        .iter()
        .map(|(command, result, it)| json!([command, result, it.count, nanos(it.time)]));
    json!({ "operations": ended.collect::<Vec<_>>() }).to_string().into_bytes()
}

/// Decodes how many operations have ended. `None` if the message is not of this kind.
pub(super) fn decode_operations(message: &[u8]) -> Option<OperationCounts> {
    let message: Value = serde_json::from_slice(message).ok()?;
    let mut counts = OperationCounts::default();
    for ended in message["operations"].as_array()? {
        let text = |index: usize| ended[index].as_str().unwrap_or_default();
        let time = Duration::from_nanos(ended[3].as_u64().unwrap_or(0));
        counts.add(text(0), text(1), Ended { count: count_of(&ended[2]), time });
    }
    Some(counts)
}

/// Encodes how many workers a pool has, and its setting `workers`.
pub(super) fn encode_target(pool: &str, target: usize, workers: Workers) -> Vec<u8> {
    let message = json!({ "target_of": pool, "target": target, "workers": workers.to_string() });
    message.to_string().into_bytes()
}

/// Decodes the name of a pool, how many workers it has, and its setting `workers`. `None` if the message
/// is not of this kind.
pub(super) fn decode_target(message: &[u8]) -> Option<(String, usize, String)> {
    let message: Value = serde_json::from_slice(message).ok()?;
    let text = |key: &str| message[key].as_str().map(str::to_owned);
    let target = usize::try_from(message["target"].as_u64()?).ok()?;
    Some((text("target_of")?, target, text("workers")?))
}

/// Encodes whether a pool is in drain mode.
pub(super) fn encode_drain_mode(pool: &str, is_on: bool) -> Vec<u8> {
    json!({ "drain_mode_of": pool, "is_on": is_on }).to_string().into_bytes()
}

/// Decodes the name of a pool, and whether it is in drain mode. `None` if the message is not of this
/// kind.
pub(super) fn decode_drain_mode(message: &[u8]) -> Option<(String, bool)> {
    let message: Value = serde_json::from_slice(message).ok()?;
    Some((message["drain_mode_of"].as_str()?.to_owned(), message["is_on"].as_bool()?))
}

fn count_of(value: &Value) -> u64 {
    value.as_u64().unwrap_or(0).min(COUNT_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn totals() -> PoolTotals {
        let mut durations = Histogram::default();
        for millis in 1..=60_000 {
            durations.add(Some(Duration::from_millis(millis)), millis);
        }
        durations.add(None, 7);
        let counts = WorkCounts {
            units: 1,
            unit_time: Duration::from_nanos(2),
            busy: Duration::from_secs(86_400 * 365),
            near_misses: 4,
            bytes_in: COUNT_MAX,
            bytes_out: 6,
            accepted: 7,
            refused: 8,
            records_dropped: 9,
            access_records_dropped: 10,
            accept_waits: AcceptWaits {
                counts: [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, COUNT_MAX],
                time: Duration::from_millis(11),
            },
        };
        let exits = ExitReason::ALL.map(|reason| (reason.as_str(), reason as u64));
        PoolTotals {
            work: WorkTotals { counts, durations },
            workers_started: 9,
            boots: 10,
            boot_time: Duration::from_millis(11),
            exits: exits.to_vec(),
        }
    }

    #[test]
    fn totals_survive_the_message() {
        let message = encode("it's \"web\"", &totals());
        assert_eq!(message[0], TAG);
        let (name, decoded) = decode(&message).unwrap();
        assert_eq!((name.as_str(), &decoded), ("it's \"web\"", &totals()));
    }

    #[test]
    fn operations_survive_the_message() {
        let mut counts = OperationCounts::default();
        counts.add("reload", "failed", Ended { count: 3, time: Duration::from_millis(7) });
        counts.add("other", "done", Ended { count: 9, time: Duration::ZERO });
        let message = encode_operations(&counts);
        assert_eq!(decode_operations(&message), Some(counts));
        assert_eq!(decode(&message), None);
        assert_eq!(decode_operations(&encode("web", &totals())), None);
        let odd = b"{\"operations\":[3,[],[\"reload\",\"done\",-1,null],[\"later\",\"done\",1,1]]}";
        assert_eq!(decode_operations(odd), Some(OperationCounts::default()));
    }

    #[test]
    fn target_survives_the_message() {
        let message = encode_target("it's \"web\"", 7, Workers::Range { min: 2, max: 8 });
        let expected = ("it's \"web\"".to_owned(), 7, "2-8".to_owned());
        assert_eq!((message[0], decode_target(&message)), (TAG, Some(expected)));
        assert_eq!((decode(&message), decode_operations(&message)), (None, None));
        assert_eq!(decode_target(&encode("web", &totals())), None);
        for odd in ["{\"target_of\":\"a\",\"target\":-1,\"workers\":\"1\"}", "{\"target\":1}", "["]
        {
            assert_eq!(decode_target(odd.as_bytes()), None, "{odd}");
        }
    }

    #[test]
    fn drain_mode_survives_the_message() {
        let message = encode_drain_mode("it's \"web\"", true);
        let expected = ("it's \"web\"".to_owned(), true);
        assert_eq!((message[0], decode_drain_mode(&message)), (TAG, Some(expected)));
        assert_eq!((decode(&message), decode_target(&message)), (None, None));
        assert_eq!(decode_drain_mode(&encode("web", &totals())), None);
        for odd in ["{\"drain_mode_of\":\"a\",\"is_on\":1}", "{\"is_on\":true}", "["] {
            assert_eq!(decode_drain_mode(odd.as_bytes()), None, "{odd}");
        }
    }

    #[test]
    fn message_of_any_contents_is_harmless() {
        for message in ["{", "[]", "{}", "{\"pool\": 3}", "\u{1}"] {
            assert_eq!(decode(message.as_bytes()), None, "{message}");
        }
        let odd = "{\"pool\":\"a\",\"units\":-3,\"bytes_in\":18446744073709551615,\"exits\":7,\
            \"durations\":[1,[null],[\"x\",2],[[],3],[5,1e300]],\"later\":[{}]}";
        let (_, totals) = decode(odd.as_bytes()).unwrap();
        assert_eq!((totals.work.counts.units, totals.work.counts.bytes_in), (0, COUNT_MAX));
        assert_eq!(totals.work.durations.count(), 5, "an unknown bound is the last bucket");
        assert!(totals.exits.iter().all(|(_, count)| *count == 0));
    }
}
