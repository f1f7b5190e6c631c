use std::thread;

use super::*;

fn other_thread() -> ThreadId {
    thread::spawn(|| thread::current().id()).join().unwrap()
}

#[test]
fn thread_keeps_its_entry() {
    let (owners, me, other) = (EntryOwners::new(2), thread::current().id(), other_thread());
    assert_eq!(owners.take_any(me), Ok((0, true)));
    assert_eq!(owners.take_any(me), Ok((0, false)));
    assert_eq!(owners.take_any(other), Ok((1, true)));
    owners.give_back(0);
    owners.give_back(0);
    assert_eq!(owners.take_any(me), Ok((0, false)), "it has it still");
}

#[test]
fn entry_in_use_is_given_to_no_other_thread() {
    let (owners, me, other) = (EntryOwners::new(1), thread::current().id(), other_thread());
    assert_eq!(owners.take_any(me), Ok((0, true)));
    assert_eq!(owners.take_any(other), Err(NoEntry));
    assert_eq!(owners.take_one(0, other), Err(NoEntry));
    owners.give_back(0);
    assert_eq!(owners.take_any(other), Ok((0, true)));
    assert_eq!(owners.take_any(me), Err(NoEntry));
}

#[test]
fn numbered_entry_is_taken_if_it_exists() {
    let (owners, me) = (EntryOwners::new(2), thread::current().id());
    assert_eq!(owners.take_one(1, me), Ok(true));
    assert_eq!(owners.take_one(1, me), Ok(false));
    assert_eq!(owners.take_one(2, me), Err(NoEntry));
    assert_eq!(owners.take_any(other_thread()), Ok((0, true)));
}
