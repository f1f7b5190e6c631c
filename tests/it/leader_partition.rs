//! Masters and members of etcd on hosts of their own, between which packets are lost: never two lead at
//! once, and one leads again once all packets arrive.

use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::etcd::Etcd;
use crate::journal::{TTL, expect_learns_of_leader, is};
use crate::leader::Group;
use crate::netns::{Host, Network};
use crate::proc::wait_until;
use crate::support::Server;

/// Which packets between two hosts are lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Loss {
    All,
    FromMaster,
    ToMaster,
}

/// Masters and members of etcd, each on its own host.
struct Cluster {
    group: Group,
    stores: Vec<Host>,
    masters: Vec<Host>,
    /// The last: what runs on the hosts is killed before.
    _network: Network,
}

impl Cluster {
    fn of(members: usize, masters: usize) -> Option<Self> {
        let network = Network::new()?;
        let hosts = |count| (0..count).map(|_| network.host()).collect::<Vec<_>>();
        let (stores, masters) = (hosts(members), hosts(masters));
        let group = Group::over(Etcd::start_on(stores.iter().cloned().map(Some).collect())?);
        Some(Self { group, stores, masters, _network: network })
    }

    /// Starts a master called `name` on a host.
    fn master(&self, name: &str, number: usize) -> Server {
        let launch = self.group.launch(name, &self.group.etcd.urls());
        launch.by_way_of(&self.masters[number].words()).start()
    }

    /// Starts one master that leads, and another on standby.
    fn leader_and_standby(&self) -> (Server, Server) {
        let leader = self.master("a", 0);
        self.group.wait_runs("a");
        let standby = self.master("b", 1);
        standby.wait_for("it is a standby", is("standby"));
        (leader, standby)
    }
}

/// Loses all packets between the hosts of two sides.
fn separate(side: &[&Host], other: &[&Host]) {
    for (one, two) in side.iter().flat_map(|one| other.iter().map(move |two| (one, two))) {
        one.lose_packets_to(two);
        two.lose_packets_to(one);
    }
}

fn join(side: &[&Host], other: &[&Host]) {
    for (one, two) in side.iter().flat_map(|one| other.iter().map(move |two| (one, two))) {
        one.send_again(two);
        two.send_again(one);
    }
}

/// Cuts the leader off from each of so many members.
fn cut_leader_off(members: usize, loss: Loss) {
    let Some(cluster) = Cluster::of(members, 2) else { return };
    let (first, second) = cluster.leader_and_standby();
    let (host, mark) = (&cluster.masters[0], first.mark());
    for store in &cluster.stores {
        if loss != Loss::ToMaster {
            host.lose_packets_to(store);
        }
        if loss != Loss::FromMaster {
            store.lose_packets_to(host);
        }
    }
    let begun = Instant::now();
    cluster.group.wait_runs("b");
    eprintln!("{loss:?}: another leads after {:.2?}", begun.elapsed());
    first.wait_for_new_record(mark, "it knows", is("lease store not available"));
    let mark = first.mark();
    for store in &cluster.stores {
        if loss != Loss::ToMaster {
            host.send_again(store);
        }
        if loss != Loss::FromMaster {
            store.send_again(host);
        }
    }
    expect_learns_of_leader(&first, mark);
    sleep(TTL);
    cluster.group.expect_exclusive();
    drop(second);
    cluster.group.wait_runs("a");
}

#[test]
fn leader_without_packets_to_and_from_the_store_ends_first() {
    cut_leader_off(1, Loss::All);
}

#[test]
#[ignore = "slow"]
fn leader_whose_requests_are_lost_ends_first() {
    cut_leader_off(1, Loss::FromMaster);
}

/// The store may still renew the lease, by requests whose answers are lost.
#[test]
#[ignore = "slow"]
fn leader_that_gets_no_answers_ends_first() {
    cut_leader_off(1, Loss::ToMaster);
}

#[test]
#[ignore = "slow"]
fn leader_cut_off_from_three_members_ends_first() {
    for loss in [Loss::All, Loss::FromMaster, Loss::ToMaster] {
        cut_leader_off(3, loss);
    }
}

/// The leader stays beside the member that was leader of the store, and may still believe that it is.
#[test]
#[ignore = "slow"]
fn leader_beside_a_minority_of_the_store_ends_first() {
    let Some(cluster) = Cluster::of(3, 2) else { return };
    let (first, second) = cluster.leader_and_standby();
    let minority = cluster.group.etcd.leader();
    let mark = first.mark();
    let (beside, others): (Vec<_>, Vec<_>) =
        cluster.stores.iter().enumerate().partition(|(number, _)| *number == minority);
    let side = [beside[0].1, &cluster.masters[0]];
    let other = [others[0].1, others[1].1, &cluster.masters[1]];
    separate(&side, &other);
    let begun = Instant::now();
    cluster.group.wait_runs("b");
    eprintln!("another leads after {:.2?}", begun.elapsed());
    first.wait_for_new_record(mark, "it knows", is("lease store not available"));
    sleep(TTL);
    let mark = first.mark();
    join(&side, &other);
    expect_learns_of_leader(&first, mark);
    sleep(TTL);
    cluster.group.expect_exclusive();
    drop(second);
    cluster.group.wait_runs("a");
}

/// The packets of one member to the others are lost, and it hears them. No master is cut off.
#[test]
#[ignore = "slow"]
fn one_way_loss_between_members_never_lets_two_lead() {
    let Some(cluster) = Cluster::of(3, 2) else { return };
    let _masters = cluster.leader_and_standby();
    let number = cluster.group.etcd.leader();
    let muted = &cluster.stores[number];
    let others = cluster.stores.iter().filter(|it| *it != muted);
    let others: Vec<&Host> = others.collect();
    others.iter().for_each(|other| muted.lose_packets_to(other));
    sleep(TTL * 4);
    others.iter().for_each(|other| muted.send_again(other));
    let before = cluster.group.entries().len();
    wait_until("one leads", || cluster.group.entries().len() > before + 10);
    cluster.group.expect_exclusive();
}

/// Returns the next number of a row that begins with `state`.
fn random(state: &mut u64) -> u64 {
    // Xorshift.
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}

#[test]
#[ignore = "slow"]
fn random_losses_never_let_two_lead() {
    let Some(cluster) = Cluster::of(3, 3) else { return };
    let names = ["a", "b", "c"].into_iter().enumerate();
    let _servers: Vec<Server> = names.map(|(number, name)| cluster.master(name, number)).collect();
    let mut state = u64::from(std::process::id()) | 1;
    eprintln!("seed: {state}");
    let hosts: Vec<&Host> = cluster.stores.iter().chain(&cluster.masters).collect();
    for _ in 0..10 {
        let mut lost = Vec::new();
        for from in &hosts {
            for to in hosts.iter().filter(|to| *to != from) {
                // Half of the ways.
                if random(&mut state).is_multiple_of(2) {
                    from.lose_packets_to(to);
                    lost.push((from, to));
                }
            }
        }
        sleep(Duration::from_millis(500 + random(&mut state) % 5000));
        lost.iter().for_each(|(from, to)| from.send_again(to));
        let before = cluster.group.entries().len();
        wait_until("one leads", || cluster.group.entries().len() > before + 10);
    }
    cluster.group.expect_exclusive();
}
