//! Primary and standby over a Lease of Kubernetes: never two at once, whatever is killed, frozen or away, and
//! whatever the API server answers.

use std::fs;
use std::ops::Deref;
use std::path::Path;
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use serde_json::{Value, json};

use crate::control::Controlled;
use crate::etcd::{Certificates, Link};
use crate::journal::{Journal, LONG_TTL, TTL, expect_learns_of_leader, is, lease_process};
use crate::kubernetes_api::{ApiServer, Fault, failure};
use crate::launch::Launch;
use crate::log_capture::Record;
use crate::proc::wait_until;
use crate::support::Server;

/// A group of masters over one API server.
struct Cluster {
    api: ApiServer,
    journal: Journal,
}

impl Deref for Cluster {
    type Target = Journal;

    fn deref(&self) -> &Journal {
        &self.journal
    }
}

impl Cluster {
    fn start() -> Self {
        Self { api: ApiServer::start(), journal: Journal::new() }
    }

    fn launch(&self, name: &str, url: &str) -> Launch {
        self.launch_with_ttl(name, url, TTL)
    }

    fn launch_with_ttl(&self, name: &str, url: &str, ttl: Duration) -> Launch {
        let flags = ["--leader-kubernetes-lease", "job", "--leader-kubernetes-namespace", "shop"];
        let flags = flags.into_iter().chain(["--leader-kubernetes-api", url]);
        flags.fold(self.journal.launch(name, ttl), Launch::arg)
    }

    fn master(&self, name: &str) -> Server {
        self.launch(name, &self.api.url).start()
    }

    /// Waits until the lease was written so many times more.
    fn wait_renewals(&self, count: u64) {
        let version = || {
            let lease = self.api.lease().unwrap();
            lease["metadata"]["resourceVersion"].as_str().unwrap().parse::<u64>().unwrap()
        };
        let before = version();
        wait_until("it is renewed", || version() >= before + count);
    }

    fn spec(&self, key: &str) -> Value {
        self.api.lease().unwrap()["spec"][key].clone()
    }
}

/// A failure of the store with this in its reason.
fn fails_by(reason: &str) -> impl Fn(&Record) -> bool {
    move |record| {
        is("lease store not available")(record)
            && record.text("error").is_some_and(|error| error.contains(reason))
    }
}

#[test]
fn standby_takes_over_at_once_after_a_stop() {
    let cluster = Cluster::start();
    let mut first = cluster.master("a");
    cluster.wait_runs("a");
    let holder = cluster.spec("holderIdentity");
    assert!(holder.as_str().unwrap().contains(&format!("/{}/", first.pid)), "{holder}");
    assert_eq!(
        (cluster.spec("leaseDurationSeconds"), cluster.spec("leaseTransitions")),
        (2.into(), 1.into())
    );
    let second = Controlled::of(cluster.launch("b", &cluster.api.url));
    second.server.wait_for("it is a standby", is("standby"));
    let readable = holder.as_str().unwrap().rsplit_once('/').unwrap().0;
    wait_until("it knows the leader", || second.status()["leader"]["holder"] == readable);
    assert_eq!(second.status()["leader"]["key"], "job");
    // What others write into the object stays.
    cluster.api.edit(|lease| lease.as_mut().unwrap()["metadata"]["labels"] = json!({ "a": "b" }));
    first.signal(Signal::SIGTERM);
    first.expect_clean_exit();
    let stopped = Instant::now();
    cluster.wait_runs("b");
    assert!(stopped.elapsed() < TTL, "the lease was given back");
    assert_eq!(cluster.spec("leaseTransitions"), 2);
    assert_eq!(cluster.api.lease().unwrap()["metadata"]["labels"]["a"], "b");
    cluster.expect_names(&["a", "b"]);
}

#[test]
fn standby_takes_over_from_a_killed_master() {
    let cluster = Cluster::start();
    let first = cluster.master("a");
    cluster.wait_runs("a");
    let _second = cluster.master("b");
    first.signal(Signal::SIGKILL);
    cluster.wait_runs("b");
    sleep(TTL);
    cluster.expect_names(&["a", "b"]);
}

#[test]
fn workers_of_a_frozen_master_end_before_another_leads() {
    let cluster = Cluster::start();
    let first = cluster.master("a");
    cluster.wait_runs("a");
    let second = cluster.master("b");
    let child = lease_process(&first);
    let mark = first.mark();
    first.signal(Signal::SIGSTOP);
    kill(child, Signal::SIGSTOP).unwrap();
    cluster.wait_runs("b");
    first.signal(Signal::SIGCONT);
    kill(child, Signal::SIGCONT).unwrap();
    first.wait_for_new_record(mark, "it is a standby", is("standby"));
    sleep(TTL);
    cluster.expect_names(&["a", "b"]);
    drop(second);
    cluster.wait_runs("a");
}

#[test]
fn master_without_the_server_stops_and_leads_again() {
    let cluster = Cluster::start();
    let first = cluster.master("a");
    cluster.wait_runs("a");
    let mark = first.mark();
    cluster.api.fault(|_| Some(Fault::Close));
    first.wait_for_new_record(mark, "the store is away", is("lease store not available"));
    first.wait_for_new_record(mark, "it does not lead", is("standby"));
    let entries = cluster.entries().len();
    sleep(TTL);
    assert_eq!(cluster.entries().len(), entries, "nothing runs");
    let mark = first.mark();
    cluster.api.heal();
    first.wait_for_new_record(mark, "it leads again", is("leading"));
    wait_until("it runs again", || cluster.entries().len() > entries);
}

#[test]
fn writes_without_an_answer_are_recognised() {
    let cluster = Cluster::start();
    let mut is_lost = false;
    cluster.api.fault(move |request| {
        is_lost ^= request.method != "GET";
        (is_lost && request.method != "GET").then_some(Fault::CloseAfter)
    });
    let launch = |name| cluster.launch_with_ttl(name, &cluster.api.url, LONG_TTL);
    let _first = launch("a").start();
    cluster.wait_runs("a");
    let second = launch("b").start();
    cluster.wait_renewals(4);
    assert_eq!(cluster.spec("leaseTransitions"), 1);
    assert!(!second.records().iter().any(is("leading")));
    cluster.expect_names(&["a"]);
}

#[test]
fn master_behind_a_cut_link_ends_before_another_leads() {
    let cluster = Cluster::start();
    let link = Link::to(cluster.api.address());
    let first = cluster.launch("a", &link.url).start();
    cluster.wait_runs("a");
    let second = cluster.master("b");
    second.wait_for("it is a standby", is("standby"));
    let mark = first.mark();
    link.cut(true);
    cluster.wait_runs("b");
    first.wait_for_new_record(mark, "it knows", is("lease store not available"));
    link.cut(false);
    expect_learns_of_leader(&first, mark);
    sleep(TTL);
    cluster.expect_names(&["a", "b"]);
}

#[test]
fn slow_server_costs_the_leadership_and_no_more() {
    let cluster = Cluster::start();
    let first = cluster.master("a");
    cluster.wait_runs("a");
    let mark = first.mark();
    // Each request times out, and is carried out late.
    cluster.api.fault(|_| {
        sleep(TTL / 2);
        None
    });
    first.wait_for_new_record(mark, "it times out", fails_by("timeout"));
    first.wait_for_new_record(mark, "it does not lead", is("standby"));
    cluster.api.heal();
    first.wait_for_new_record(mark, "it leads again", is("leading"));
    cluster.expect_names(&["a"]);
}

/// With a standby whose server answers so, the leader leads on, and the standby logs why it does not know.
#[track_caller]
fn expect_logged(reason: &str, answer: (u16, Value)) {
    let cluster = Cluster::start();
    let (status, body) = answer;
    cluster.api.fault(move |_| Some(Fault::Answer(status, body.clone())));
    let first = cluster.launch("a", &cluster.api.url).spawn();
    first.wait_for("the reason", fails_by(reason));
    assert_eq!(cluster.entries(), []);
    let mark = first.mark();
    cluster.api.heal();
    first.wait_for_new_record(mark, "it leads", is("leading"));
}

#[test]
fn answers_that_are_no_lease_are_logged() {
    let forbidden =
        "leases.coordination.k8s.io \"job\" is forbidden: User \"x\" cannot get resource";
    let other = json!({ "kind": "Lease", "metadata": { "name": "other", "resourceVersion": "1" } });
    expect_logged(forbidden, failure(403, "Forbidden", forbidden));
    expect_logged("status 401: Unauthorized", failure(401, "Unauthorized", "Unauthorized"));
    expect_logged("status 404: 404 page not found", (404, json!("404 page not found")));
    expect_logged("the answer is no lease \"job\"", (200, other));
    expect_logged("the answer is no JSON object", (200, json!([1])));
    expect_logged("status 429: slow down", failure(429, "TooManyRequests", "slow down"));
}

#[test]
fn storm_of_conflicts_is_said_and_ends_the_leadership() {
    let cluster = Cluster::start();
    let first = cluster.master("a");
    cluster.wait_runs("a");
    let mark = first.mark();
    cluster.api.fault(|request| {
        let (status, body) = failure(409, "Conflict", "the object has been modified");
        (request.method != "GET").then_some(Fault::Answer(status, body))
    });
    first.wait_for_new_record(mark, "it is said", fails_by("has changed before each attempt"));
    first.wait_for_new_record(mark, "it does not lead", is("standby"));
    cluster.api.heal();
    first.wait_for_new_record(mark, "it leads again", is("leading"));
    assert_eq!(cluster.spec("leaseTransitions"), 1);
}

#[test]
fn lease_that_an_operator_has_given_to_another_is_lost_at_once() {
    let cluster = Cluster::start();
    let first = cluster.master("a");
    cluster.wait_runs("a");
    let mark = first.mark();
    cluster.api.edit(|lease| lease.as_mut().unwrap()["spec"]["holderIdentity"] = json!("someone"));
    let lost = |record: &Record| is("standby")(record) && record.text("holder") == Some("someone");
    first.wait_for_new_record(mark, "it is lost", lost);
    // That one never renews it.
    first.wait_for_new_record(mark, "it is taken", is("leading"));
    assert_eq!(cluster.spec("leaseTransitions"), 2);
}

#[test]
fn leader_creates_its_lease_anew_after_that_was_deleted() {
    let cluster = Cluster::start();
    let first = cluster.launch_with_ttl("a", &cluster.api.url, LONG_TTL).start();
    cluster.wait_runs("a");
    let mark = first.mark();
    cluster.api.edit(|lease| *lease = None);
    wait_until("there is a new one", || cluster.api.lease().is_some());
    cluster.wait_renewals(1);
    assert!(!first.records()[mark..].iter().any(is("standby")), "it leads on");
    cluster.expect_names(&["a"]);
}

#[test]
fn leader_leads_on_while_its_lease_process_is_killed() {
    let cluster = Cluster::start();
    let first = cluster.launch_with_ttl("a", &cluster.api.url, LONG_TTL).start();
    cluster.wait_runs("a");
    let worker = first.wait_workers(1)[0].pid;
    let mark = first.mark();
    kill(lease_process(&first), Signal::SIGKILL).unwrap();
    first.wait_for_new_record(mark, "its end", is("lease process exited"));
    cluster.wait_renewals(2);
    assert_eq!(cluster.spec("leaseTransitions"), 1);
    assert_eq!(first.wait_workers(1)[0].pid, worker);
    cluster.expect_names(&["a"]);
}

#[test]
fn renewed_token_is_used_over_tls() {
    let journal = Journal::new();
    let Some(certificates) = Certificates::new(journal.dir()) else { return };
    certificates.issue("api", 2);
    let api = ApiServer::start_tls(journal.dir(), "first");
    let cluster = Cluster { api, journal };
    let token = cluster.dir().join("token");
    fs::write(&token, "first\n").unwrap();
    let (ca, token_path) = (certificates.path("ca.pem"), token.to_str().unwrap());
    let launch = cluster.launch_with_ttl("a", &cluster.api.url, LONG_TTL);
    let launch = launch.arg("--leader-ca-file").arg(ca.to_str().unwrap());
    let first = launch.arg("--leader-kubernetes-token-file").arg(token_path).start();
    cluster.wait_runs("a");
    let mark = first.mark();
    fs::write(&token, "second").unwrap();
    cluster.api.expect_token("second");
    cluster.wait_renewals(1);
    fs::write(&token, "").unwrap();
    first.wait_for_new_record(mark, "it is said", fails_by("token is empty"));
    fs::write(&token, "second").unwrap();
    cluster.wait_renewals(1);
    assert!(!first.records()[mark..].iter().any(is("standby")), "it leads on");
    cluster.expect_names(&["a"]);
}

/// In a mount namespace with the files that a pod has.
#[test]
fn pod_needs_the_name_of_the_lease_alone() {
    let journal = Journal::new();
    let Some(certificates) = Certificates::new(journal.dir()) else { return };
    certificates.issue("api", 2);
    let namespace = ["unshare", "--map-root-user", "--mount"];
    let mut probe = Command::new(namespace[0]);
    let probe = probe.args(&namespace[1..]).args("mount -t tmpfs none /run".split(' ')).output();
    if !probe.as_ref().is_ok_and(|it| it.status.success()) || !Path::new("/var/run").is_symlink() {
        return eprintln!("skipped: no file system can be mounted here: {probe:?}");
    }
    let api = ApiServer::start_tls(journal.dir(), "first");
    let script = format!(
        "dir=/run/secrets/kubernetes.io/serviceaccount; mount -t tmpfs none /run && mkdir -p $dir \
         && cp {} $dir/ca.crt && echo first > $dir/token && printf shop > $dir/namespace && exec \"$@\"",
        certificates.path("ca.pem").display()
    );
    let words =
        [&namespace[..], &["sh", "-c", &script, "sh", env!("CARGO_BIN_EXE_ostler")]].concat();
    let port = api.address().port().to_string();
    let server = Launch::by(&words, &["--leader-kubernetes-lease", "job"])
        .env("KUBERNETES_SERVICE_HOST", "127.0.0.1")
        .env("KUBERNETES_SERVICE_PORT", port)
        .spawn();
    server.wait_for("it leads", is("leading"));
    assert!(api.lease().is_some());
    assert_eq!(api.count(401), 0);
}

#[test]
fn master_that_is_in_no_pod_says_so() {
    let launch = Launch::new(&["--leader-kubernetes-lease", "job"]);
    let launch = launch.env("KUBERNETES_SERVICE_HOST", "").env("KUBERNETES_SERVICE_PORT", "");
    launch.spawn().wait_for("the reason", fails_by("so this is no pod: set leader_kubernetes_api"));
}

/// Hands over `count` times, by turns in each way.
fn hand_over(count: usize) {
    let cluster = Cluster::start();
    let mut names = vec!["m0".to_owned()];
    let mut leader = cluster.master("m0");
    cluster.wait_runs("m0");
    for number in 1..=count {
        let name = format!("m{number}");
        let next = cluster.master(&name);
        next.wait_for("it is a standby", is("standby"));
        leader.signal([Signal::SIGTERM, Signal::SIGKILL, Signal::SIGSTOP][number % 3]);
        cluster.wait_runs(&name);
        names.push(name);
        leader = next; // the old one is killed
    }
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    cluster.expect_names(&names);
}

#[test]
fn three_hand_overs() {
    hand_over(3);
}

#[test]
#[ignore = "slow"]
fn thirty_hand_overs() {
    hand_over(30);
}
