//! Primary and standby over an etcd of several members, behind a link that is cut, and over TLS.

use std::fs;
use std::thread::sleep;
use std::time::Duration;

use crate::etcd::{Certificates, Link};
use crate::leader::{Group, TTL, is};
use crate::log_capture::Record;
use crate::proc::wait_until;

#[test]
#[ignore = "slow"]
fn one_of_three_members_may_be_away() {
    let Some(mut group) = Group::of(3) else { return };
    let first = group.master("a");
    group.wait_runs("a");
    let mark = first.mark();
    group.etcd.stop(0);
    sleep(TTL * 2);
    let before = group.entries().len();
    wait_until("it runs", || group.entries().len() > before);
    assert!(!first.records()[mark..].iter().any(is("standby")), "it leads on");
    group.etcd.stop(1);
    first.wait_for_new_record(mark, "it does not lead without a majority", is("standby"));
    let mark = first.mark();
    group.etcd.restart(1);
    first.wait_for_new_record(mark, "it leads again", is("leading"));
    group.expect_names(&["a"]);
}

#[test]
#[ignore = "slow"]
fn master_behind_a_cut_link_ends_before_another_leads() {
    let Some(group) = Group::of(1) else { return };
    let link = Link::to(group.etcd.address(0));
    let first = group.launch("a", std::slice::from_ref(&link.url)).start();
    group.wait_runs("a");
    let second = group.master("b");
    second.wait_for("it is a standby", is("standby"));
    let mark = first.mark();
    link.cut(true);
    group.wait_runs("b");
    first.wait_for_new_record(mark, "it knows", is("lease store not available"));
    link.cut(false);
    let knows = |record: &Record| {
        is("standby")(record) && record.text("holder").is_some_and(|it| it != "-")
    };
    first.wait_for_new_record(mark, "it learns of the leader", knows);
    sleep(TTL);
    group.expect_names(&["a", "b"]);
}

#[test]
#[ignore = "slow"]
fn expired_certificate_is_said_and_its_successor_used() {
    let Some(mut group) = Group::of(1) else { return };
    let Some(certificates) = Certificates::new(group.dir()) else { return };
    certificates.issue("own", 2);
    certificates.issue("etcd", 0);
    let files = ["ca.pem", "own.pem", "own.key", "password"].map(|it| certificates.path(it));
    fs::write(&files[3], "secret\n").unwrap();
    sleep(Duration::from_millis(1100)); // a certificate is valid in the second that it expires in
    group.etcd.secure("secret", certificates);
    let flags = ["--leader-ca-file", "--leader-client-cert", "--leader-client-key"];
    let flags = flags.into_iter().chain(["--leader-password-file"]);
    let launch = group.launch("a", &group.etcd.urls()).arg("--leader-user").arg("root");
    let launch =
        flags.zip(&files).fold(launch, |it, (flag, file)| it.arg(flag).arg(file.to_str().unwrap()));
    let first = launch.start();
    // Etcd may not answer at first.
    let says_why = |record: &Record| {
        is("lease store not available")(record)
            && record.text("error").is_some_and(|error| error.contains("certificate expired"))
    };
    first.wait_for("it is said", says_why);
    Certificates::of(group.dir()).issue("etcd", 2);
    group.wait_runs("a");

    let mark = first.mark();
    fs::write(&files[3], "wrong").unwrap();
    group.etcd.stop(0);
    first.wait_for_new_record(mark, "the store is away", is("lease store not available"));
    group.etcd.restart(0);
    sleep(TTL);
    let before = group.entries().len();
    fs::write(&files[3], "secret").unwrap();
    wait_until("it runs again", || group.entries().len() > before);
    group.expect_names(&["a"]);
}
