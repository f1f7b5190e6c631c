//! Primary and standby over an etcd of several members, behind a link that is cut, and over TLS.

use std::fs;
use std::process::Command;
use std::thread::sleep;
use std::time::Duration;

use serde_json::Value;

use crate::doctor::{doctor, findings};
use crate::etcd::{Certificates, Link};
use crate::journal::{LONG_TTL, TTL, expect_learns_of_leader, is};
use crate::launch::Launch;
use crate::leader::Group;
use crate::log_capture::Record;
use crate::proc::wait_until;

#[test]
#[ignore = "slow"]
fn one_of_three_members_may_be_away() {
    let Some(mut group) = Group::of(3) else { return };
    // Longer than etcd needs to elect another leader, since the member that stops may be that.
    let ttl = TTL * 4;
    let first = group.launch_with_ttl("a", &group.etcd.urls(), ttl).start();
    group.wait_runs("a");
    let mark = first.mark();
    group.etcd.stop(0);
    sleep(ttl);
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
    expect_learns_of_leader(&first, mark);
    sleep(TTL);
    group.expect_names(&["a", "b"]);
}

/// A master that logs in to etcd over TLS, with a certificate of its own.
fn launch_with_login(group: &Group, certificates: &Certificates, ttl: Duration) -> Launch {
    let files = ["ca.pem", "own.pem", "own.key", "password"].map(|it| certificates.path(it));
    let flags = ["--leader-ca-file", "--leader-client-cert", "--leader-client-key"];
    let flags = flags.into_iter().chain(["--leader-password-file"]);
    let launch = group.launch_with_ttl("a", &group.etcd.urls(), ttl);
    let launch = launch.arg("--leader-user").arg("root");
    flags.zip(&files).fold(launch, |it, (flag, file)| it.arg(flag).arg(file.to_str().unwrap()))
}

#[test]
#[ignore = "slow"]
fn login_that_etcd_has_forgotten_is_no_outage() {
    let Some(mut group) = Group::of(1) else { return };
    let Some(certificates) = Certificates::new(group.dir()) else { return };
    certificates.issue("own", 2);
    certificates.issue("etcd", 2);
    let password = certificates.path("password");
    fs::write(&password, "secret\n").unwrap();
    group.etcd.secure("secret", certificates);
    let certificates = Certificates::of(group.dir());
    let first = launch_with_login(&group, &certificates, LONG_TTL).start();
    group.wait_runs("a");
    let mark = first.mark();
    let url = &group.etcd.urls()[0];
    let ask = |path: &str, token: &str, body: &str| {
        let files = ["ca.pem", "own.pem", "own.key"].map(|it| certificates.path(it));
        let mut command = Command::new("curl");
        command
            .arg("--silent")
            .arg("--fail")
            .args(["--header", &format!("Authorization: {token}")]);
        for (flag, file) in ["--cacert", "--cert", "--key"].iter().zip(files) {
            command.arg(flag).arg(file);
        }
        let output =
            command.args(["--data", body]).arg(format!("{url}/v3/{path}")).output().unwrap();
        assert!(output.status.success(), "{path}: {}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice::<serde_json::Value>(&output.stdout).unwrap()
    };
    let user = r#"{"name": "root", "password": "secret"}"#;
    let answer = ask("auth/authenticate", "", user);
    // With a new password, even the same one, etcd forgets the logins of the user.
    ask("auth/user/changepw", answer["token"].as_str().unwrap(), user);
    let before = group.entries().len();
    sleep(LONG_TTL / 2); // it is renewed twice
    wait_until("it runs on", || group.entries().len() > before);
    let said = first.records().split_off(mark);
    assert!(said.iter().all(|it| !is("lease store not available")(it)), "{said:?}");
    group.expect_names(&["a"]);
}

#[test]
#[ignore = "slow"]
fn expired_certificate_is_said_and_its_successor_used() {
    let Some(mut group) = Group::of(1) else { return };
    let Some(certificates) = Certificates::new(group.dir()) else { return };
    certificates.issue("own", 2);
    certificates.issue("etcd", 0);
    let password = certificates.path("password");
    fs::write(&password, "secret\n").unwrap();
    sleep(Duration::from_millis(1100)); // a certificate is valid in the second that it expires in
    group.etcd.secure("secret", certificates);
    let first = launch_with_login(&group, &Certificates::of(group.dir()), TTL).start();
    // Etcd may not answer at first.
    let says_why = |record: &Record| {
        is("lease store not available")(record)
            && record.text("error").is_some_and(|error| error.contains("certificate expired"))
    };
    first.wait_for("it is said", says_why);
    Certificates::of(group.dir()).issue("etcd", 2);
    group.wait_runs("a");

    let mark = first.mark();
    fs::write(&password, "wrong").unwrap();
    group.etcd.stop(0);
    first.wait_for_new_record(mark, "the store is away", is("lease store not available"));
    group.etcd.restart(0);
    sleep(TTL);
    let before = group.entries().len();
    fs::write(&password, "secret").unwrap();
    wait_until("it runs again", || group.entries().len() > before);
    group.expect_names(&["a"]);
}

#[test]
#[ignore = "slow"]
fn doctor_asks_each_member_and_changes_nothing() {
    let Some(mut group) = Group::of(3) else { return };
    let examine = |group: &Group| {
        let mut flags = vec!["--json", "-k", "exec", "--bind", "none", "--leader-ttl", "2s"];
        flags.extend(["--leader-key", "ostler-test"]);
        let urls = group.etcd.urls();
        flags.extend(urls.iter().flat_map(|url| ["--leader-etcd", url]));
        flags.extend(["--", "true"]);
        let of_store = findings(&doctor(&flags), "leader").into_iter();
        let text = |key: &str, finding: &Value| finding[key].as_str().unwrap().to_owned();
        let of_store = of_store.map(|it| (text("level", &it), text("text", &it)));
        of_store.collect::<Vec<_>>()
    };
    let is_free =
        |(level, text): &(String, String)| level == "ok" && text.ends_with("nobody leads");
    wait_until("each member answers", || {
        let found = examine(&group);
        assert_eq!(found.len(), 3, "{found:?}");
        found.iter().all(is_free)
    });
    let _first = group.master("a");
    group.wait_runs("a");
    let away = (group.etcd.leader() + 1) % 3; // the others go on without an election
    group.etcd.stop(away);
    let found = examine(&group);
    let levels: Vec<&str> = found.iter().map(|(level, _)| level.as_str()).collect();
    assert_eq!(levels, ["warning", "ok", "ok"], "{found:?}");
    assert!(found[0].1.contains(&group.etcd.urls()[away]), "{found:?}");
    assert!(found[1].1.ends_with(" leads") && !found[1].1.ends_with("nobody leads"), "{found:?}");
    group.expect_names(&["a"]);
}
