//! Reloads of led pools.

use std::net::SocketAddr;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::client::{Client, is_refused};
use crate::journal::is;
use crate::kubernetes_api::{ApiServer, Fault};
use crate::launch::free_address;
use crate::pools::PoolsConfig;
use crate::proc::{children, wait_until};
use crate::reloading::is_reload_failure;
use crate::support::Server;

/// A master with the pool `job`, at the first address, and `web`, which is not led.
fn start(api: &ApiServer) -> (Server, PoolsConfig, [SocketAddr; 2]) {
    let (launch, mut config) = PoolsConfig::launch();
    let [job, web] = [free_address(), free_address()];
    config
        .top("leader_kubernetes_lease", "job")
        .top("leader_kubernetes_namespace", "shop")
        .top("leader_kubernetes_api", &api.url)
        .top("leader_ttl", "2s")
        .bind("job", job)
        .bind("web", web)
        .set("web", "led", "false")
        .write();
    (launch.spawn(), config, [job, web])
}

/// Returns the status that is answered, if any.
fn status(address: SocketAddr, path: &str) -> Option<u16> {
    let answer = Client::tcp(address).and_then(|mut client| client.try_get_last(path));
    answer.ok().map(|it| it.status())
}

/// Waits for the worker of the pool that has been forked and is not ready.
fn booting_worker(server: &Server, pool: &str) -> Pid {
    let mut found = None;
    wait_until("a worker boots", || {
        let ready: Vec<Pid> = server.workers().iter().map(|worker| worker.pid).collect();
        let has_title = |pid: &Pid| {
            let title = std::fs::read_to_string(format!("/proc/{pid}/cmdline"));
            title.is_ok_and(|it| it.starts_with("ostler: worker") && it.contains(pool))
        };
        found = children(server.pid)
            .into_iter()
            .map(|child| child.pid)
            .find(|pid| !ready.contains(pid) && has_title(pid));
        found.is_some()
    });
    found.unwrap()
}

#[test]
fn pool_listens_after_a_roll_back_in_another_term() {
    let api = ApiServer::start();
    let (server, config, [job, _]) = start(&api);
    wait_until("it serves", || !is_refused(job));
    let mut bad = config.clone();
    bad.set("job", "env", "[COLOUR=new]").set("web", "boot_timeout", "90s");
    bad.set("web", "env", "[DEMO_BOOT_SLEEP_MS=80000]").write();
    let mark = server.mark();
    server.signal(Signal::SIGHUP);
    let canary = booting_worker(&server, "web/");
    api.fault(|_| Some(Fault::Close));
    server.wait_for_new_record(mark, "it does not lead", is("standby"));
    wait_until("its address is free", || is_refused(job));
    api.heal();
    server.wait_for_new_record(mark, "it leads", is("leading"));
    wait_until("the new generation serves", || !is_refused(job));
    kill(canary, Signal::SIGKILL).unwrap();
    let failure = server.wait_for_new_record(mark, "a failure", is_reload_failure);
    assert_eq!(failure.text("pool"), Some("web"));
    wait_until("the old generation serves", || status(job, "/env?name=COLOUR") == Some(404));
    config.reload(&server);
    assert_eq!(status(job, "/env?name=COLOUR"), Some(404));
}

#[test]
fn roll_back_of_a_pool_that_would_be_led_restores_it() {
    let api = ApiServer::start();
    api.fault(|_| Some(Fault::Close));
    let (server, config, [job, web]) = start(&api);
    wait_until("it serves", || !is_refused(web));
    let mut bad = config.clone();
    bad.set("web", "led", "true");
    bad.set("third", "led", "false").bind("third", free_address());
    bad.set("third", "env", "[DEMO_BOOT_SLEEP_MS=80000]").set("third", "boot_timeout", "90s");
    bad.write();
    let mark = server.mark();
    server.signal(Signal::SIGHUP);
    let canary = booting_worker(&server, "third/");
    kill(canary, Signal::SIGKILL).unwrap();
    server.wait_for_new_record(mark, "a failure", is_reload_failure);
    wait_until("it serves", || status(web, "/pid") == Some(200));
    assert!(is_refused(job));
}
