//! A [`ProcessSample`] as JSON, for the pipe between a child that takes it and the master.

use std::time::Duration;

use serde_json::{Value, json};

use crate::diagnosis::{ProcessSample, ThreadSample};
use crate::time::MonotonicTime;

/// Encodes a sample.
pub(super) fn encode(sample: &ProcessSample) -> Value {
    json!({
        "taken_at": sample.taken_at.as_nanos(),
        "is_dumping_core": sample.is_dumping_core,
        "is_frozen": sample.is_frozen,
        "throttled_count": sample.throttled_count,
        "cpu_period": sample.cpu_period.map(nanos),
        "cpu_time": sample.cpu_time.map(nanos),
        "thread": sample.thread.as_ref().map(encode_thread),
        "other_threads": sample.other_threads.iter().map(encode_thread).collect::<Vec<_>>(),
    })
}

/// Decodes a sample. Returns `None` if it is none.
pub(super) fn decode(value: &Value) -> Option<ProcessSample> {
    let thread = &value["thread"];
    Some(ProcessSample {
        taken_at: MonotonicTime::from_nanos(value["taken_at"].as_u64()?),
        is_dumping_core: value["is_dumping_core"].as_bool()?,
        is_frozen: value["is_frozen"].as_bool()?,
        throttled_count: value["throttled_count"].as_u64(),
        cpu_period: value["cpu_period"].as_u64().map(Duration::from_nanos),
        cpu_time: value["cpu_time"].as_u64().map(Duration::from_nanos),
        thread: if thread.is_null() { None } else { Some(decode_thread(thread)?) },
        other_threads: value["other_threads"]
            .as_array()?
            .iter()
            .filter_map(decode_thread)
            .collect(),
    })
}

fn encode_thread(thread: &ThreadSample) -> Value {
    json!({
        "thread_id": thread.thread_id,
        "state": thread.state.to_string(),
        "cpu_time": nanos(thread.cpu_time),
        "syscall": thread.syscall,
        "wchan": thread.wchan,
        "stack": thread.stack,
    })
}

fn decode_thread(value: &Value) -> Option<ThreadSample> {
    let text = |value: &Value| value.as_str().map(str::to_owned);
    Some(ThreadSample {
        thread_id: value["thread_id"].as_u64()?,
        state: value["state"].as_str()?.chars().next()?,
        cpu_time: Duration::from_nanos(value["cpu_time"].as_u64()?),
        syscall: text(&value["syscall"]),
        wchan: text(&value["wchan"]),
        stack: value["stack"].as_array()?.iter().filter_map(text).collect(),
    })
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn encoded_sample_round_trips() {
        let thread = ThreadSample {
            thread_id: 7,
            state: 'D',
            cpu_time: Duration::from_nanos(u64::MAX),
            syscall: Some("openat".into()),
            wchan: None,
            stack: vec!["a".into(), "b".into()],
        };
        let mut sample = ProcessSample {
            taken_at: MonotonicTime::from_nanos(9),
            is_dumping_core: true,
            is_frozen: false,
            throttled_count: Some(3),
            cpu_period: Some(Duration::from_millis(100)),
            cpu_time: Some(Duration::from_millis(30)),
            thread: Some(thread.clone()),
            other_threads: vec![thread.clone(), thread],
        };
        assert_eq!(decode(&encode(&sample)), Some(sample.clone()));
        (sample.thread, sample.throttled_count) = (None, None);
        (sample.cpu_period, sample.cpu_time) = (None, None);
        assert_eq!(decode(&encode(&sample)), Some(sample));
        assert_eq!(decode(&Value::Null), None);
        assert_eq!(decode(&json!({ "taken_at": 1 })), None);
    }
}
