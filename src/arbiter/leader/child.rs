//! The child that keeps the lease. It alone waits for the network.

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::AsFd;
use std::time::Duration;

use super::etcd::Etcd;
use super::kubernetes::Kubernetes;
use super::lease::{ACKNOWLEDGE, LeaseConfig, RELEASE, StoreConfig};
use crate::leader::keeper::{Keeper, Lease};
use crate::leader::key_lease::KeyLease;
use crate::leader::record_lease::RecordLease;
use crate::os::{clock, poll};

/// How many reports the master may leave unread. Then the lease is not renewed: a master that is
/// stopped must not keep others from leading.
const UNREAD_MAX: usize = 2;

/// Keeps the lease until the master says that it ends.
pub(super) fn keep(output: &mut File, input: &mut File, lease: &LeaseConfig) {
    let (ttl, identity) = (lease.ttl, lease.identity.as_str());
    match &lease.store {
        StoreConfig::Etcd(etcd) => {
            keep_in(KeyLease::new(Etcd::new(lease, etcd), ttl, identity), output, input, ttl);
        }
        StoreConfig::Kubernetes(server) => {
            let store = Kubernetes::new(lease, server);
            keep_in(RecordLease::new(store, ttl, identity), output, input, ttl);
        }
    }
}

fn keep_in(lease: impl Lease, output: &mut File, input: &mut File, ttl: Duration) {
    let mut keeper = Keeper::new(lease, ttl);
    let mut unread = 0;
    loop {
        let report = keeper.step(clock::boot_now);
        if output.write_all(&report.encode()).is_err() {
            return; // the master has exited
        }
        unread += 1;
        let next_step = clock::now() + keeper.pause();
        loop {
            let deadline = (unread < UNREAD_MAX).then_some(next_step);
            if deadline.is_some_and(|at| at <= clock::now()) {
                break;
            }
            match poll::wait_readable(&[input.as_fd()], deadline) {
                Ok(ready) if ready == [true] => (),
                Ok(_) => continue,
                Err(_) => return, // the master replaces this process
            }
            let mut commands = [0; 64];
            match input.read(&mut commands) {
                Ok(0) => return,
                Ok(length) if commands[..length].contains(&RELEASE) => {
                    let _ = keeper.release();
                    return;
                }
                Ok(length) => {
                    let read = commands[..length].iter().filter(|it| **it == ACKNOWLEDGE).count();
                    unread = unread.saturating_sub(read);
                }
                Err(error)
                    if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
                Err(_) => return,
            }
        }
    }
}
