//! The ids of a worker's requests, and its access log.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::app::{RequestId, Unit};
use crate::log::access::{UnitLog, UnitRecord, WorkerAccessLog};
use crate::os::random;
use crate::time::MonotonicTime;

/// What the threads of a worker share to log units of work.
#[derive(Debug)]
pub(crate) struct WorkerAccess {
    /// Differs in each worker.
    seed: u64,
    /// How many ids were made.
    count: AtomicU64,
    /// The header field from which ids are taken.
    id_header: Option<String>,
    log: Option<Arc<WorkerAccessLog>>,
}

impl WorkerAccess {
    /// Creates it in a worker: a fork would copy the seed.
    pub(crate) fn new(id_header: Option<String>, log: Option<Arc<WorkerAccessLog>>) -> Self {
        Self { seed: random::seed(), count: AtomicU64::new(0), id_header, log }
    }

    /// Returns the access log, if there is one.
    pub(super) fn log(&self) -> Option<&WorkerAccessLog> {
        self.log.as_deref()
    }

    /// Returns the access log of a thread, if there is one.
    pub(super) fn unit_log(&self) -> Option<Box<UnitLog>> {
        let log = Arc::clone(self.log.as_ref()?);
        Some(Box::new(UnitLog::new(log, mix(self.seed ^ self.next()))))
    }

    /// Begins a record of its own; `None` if the unit is not logged.
    pub(super) fn begin_record(
        &self,
        unit: &Unit<'_>,
        started_at: MonotonicTime,
    ) -> Option<UnitRecord> {
        let log = self.log.as_ref()?;
        UnitRecord::begin(log, unit, started_at, mix(self.seed ^ self.next()))
    }

    /// Returns the id of a request: that of its client if there is a header for it with a valid value,
    /// otherwise a new one.
    pub(super) fn request_id<'f>(
        &self,
        field: &dyn Fn(&str) -> Option<&'f [u8]>,
    ) -> Option<RequestId> {
        let name = self.id_header.as_deref();
        let given = name.and_then(field).and_then(RequestId::new);
        given.or_else(|| RequestId::new(&self.new_id()))
    }

    /// Returns the first of 2^32 numbers that no other request of this worker has.
    pub(super) fn new_numbers(&self) -> u64 {
        self.next().wrapping_add(1) << 32
    }

    /// Returns the id of the request with this number.
    pub(super) fn id_of(&self, number: u64) -> RequestId {
        RequestId::new(&self.digits_of(number)).expect("hexadecimal digits are valid")
    }

    fn new_id(&self) -> [u8; 32] {
        self.digits_of(self.next())
    }

    /// Returns 32 hexadecimal digits: the worker's seed, and the number, spread.
    fn digits_of(&self, number: u64) -> [u8; 32] {
        // Adding the seed and mixing are one-to-one, so different numbers stay different.
        let number = mix(number.wrapping_add(self.seed));
        let mut id = [0; 32];
        let digits = [self.seed, number].map(u64::to_be_bytes).concat();
        for (pair, byte) in id.chunks_exact_mut(2).zip(digits) {
            pair.copy_from_slice(&[HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]]);
        }
        id
    }

    fn next(&self) -> u64 {
        self.count.fetch_add(1, Ordering::Relaxed)
    }
}

const HEX: &[u8; 16] = b"0123456789abcdef";

/// Spreads a number over 64 bits, one to one (the finalizer of SplitMix64).
fn mix(number: u64) -> u64 {
    let number = (number ^ number >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let number = (number ^ number >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ number >> 31
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn request_ids_differ_and_are_hexadecimal() {
        let workers = [WorkerAccess::new(None, None), WorkerAccess::new(None, None)];
        let mut seen = HashSet::new();
        for worker in &workers {
            for _ in 0..1000 {
                let id = worker.request_id(&|_| Some(b"given")).unwrap();
                let id = id.as_str().to_owned();
                assert!(id.len() == 32 && id.bytes().all(|byte| byte.is_ascii_hexdigit()), "{id}");
                assert!(seen.insert(id));
            }
        }
    }

    #[test]
    fn request_id_of_the_header_must_be_valid() {
        let worker = WorkerAccess::new(Some("X-Request-Id".to_owned()), None);
        let id = |value: Option<&'static [u8]>| {
            let field = move |name: &str| value.filter(|_| name == "X-Request-Id");
            worker.request_id(&field).unwrap().as_str().to_owned()
        };
        assert_eq!(id(Some(b"abc-1")), "abc-1");
        assert_eq!(id(Some(b"a b\" \n")).len(), 32);
        assert_eq!(id(None).len(), 32);
    }
}
