use super::*;

fn other_thread() -> ThreadNumber {
    thread::spawn(ThreadNumber::current).join().unwrap()
}

#[test]
fn thread_keeps_its_entry() {
    let (owners, me, other) = (EntryOwners::new(2), ThreadNumber::current(), other_thread());
    assert_eq!(owners.take_any(me), Ok((0, true)));
    assert_eq!(owners.take_any(me), Ok((0, false)));
    assert_eq!(owners.take_any(other), Ok((1, true)));
    owners.give_back(0);
    owners.give_back(0);
    assert_eq!(owners.take_any(me), Ok((0, false)), "it has it still");
}

#[test]
fn entry_in_use_is_given_to_no_other_thread() {
    let (owners, me, other) = (EntryOwners::new(1), ThreadNumber::current(), other_thread());
    assert_eq!(owners.take_any(me), Ok((0, true)));
    assert_eq!(owners.take_any(other), Err(NoEntry));
    assert_eq!(owners.take_one(0, other), Err(NoEntry));
    owners.give_back(0);
    assert_eq!(owners.take_any(other), Ok((0, true)));
    assert_eq!(owners.take_any(me), Err(NoEntry));
}

#[test]
fn numbered_entry_is_taken_if_it_exists() {
    let (owners, me) = (EntryOwners::new(2), ThreadNumber::current());
    assert_eq!(owners.take_one(1, me), Ok(true));
    assert_eq!(owners.take_one(1, me), Ok(false));
    assert_eq!(owners.take_one(2, me), Err(NoEntry));
    assert_eq!(owners.take_any(other_thread()), Ok((0, true)));
}

#[test]
fn concurrent_threads_share_no_entry() {
    const THREADS: usize = 8;
    let (owners, busy) = (EntryOwners::new(THREADS), [const { AtomicU64::new(0) }; THREADS]);
    for _ in 0..3 {
        // As many threads as entries, of which each takes two nested uses.
        thread::scope(|scope| {
            for _ in 0..THREADS {
                scope.spawn(|| {
                    let me = ThreadNumber::current();
                    for _ in 0..2_000 {
                        let (index, _) = owners.take_any(me).unwrap();
                        assert_eq!(busy[index].swap(me.0, Ordering::SeqCst), 0);
                        assert_eq!(owners.take_any(me), Ok((index, false)));
                        owners.give_back(index);
                        assert_eq!(busy[index].swap(0, Ordering::SeqCst), me.0);
                        owners.give_back(index);
                    }
                });
            }
        });
    }
}
