//! Several pools: reports of the master cover all pools, requests to it reach all pools, and the
//! settings of one pool do not affect the others.

use std::fs;
use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};

use crate::client::Client;
use crate::daemons::{self, Daemon, expect_startup_failure};
use crate::launch::{Launch, free_address};
use crate::load::Load;
use crate::log_capture::Record;
use crate::pools::{PoolsConfig, get, info, pids, two};
use crate::proc::{children, wait_until};
use crate::reuse_port::sockets_at;
use crate::support::{Exit, Server};
use crate::systemd::{FakeManager, kill_all};

/// How long the slowest pool takes to boot.
const SLOW: Duration = Duration::from_millis(1500);

fn slow_boot_env() -> String {
    format!("[DEMO_BOOT_SLEEP_MS={}]", SLOW.as_millis())
}

#[test]
fn service_manager_sees_one_status_for_all_pools() {
    let manager = FakeManager::new();
    let (launch, mut config) = PoolsConfig::launch();
    let [web, api] = [free_address(), free_address()];
    config.bind("web", web).set("web", "workers", 2).bind("api", api).set(
        "api",
        "env",
        slow_boot_env(),
    );
    config.write();
    let begun = Instant::now();
    let mut server = launch.env("NOTIFY_SOCKET", &manager.name).spawn();
    server.wait_for("the first pool", |record| record.text("pool") == Some("web"));
    let ready = manager.wait_for(0, "READY=1");
    assert!(ready.seen - begun >= SLOW, "said before all were ready: {ready:?}");
    assert_eq!(ready.value("STATUS"), Some("3/3 workers ready, generation 1"));
    assert_eq!((&info(web)["pool"], &info(api)["pool"]), (&"web".into(), &"api".into()));
    // A reload is complete when it is complete in all pools.
    let mark = manager.mark();
    server.signal(Signal::SIGHUP);
    let reloading = manager.wait_for(mark, "RELOADING=1");
    let ready = manager.wait_for(mark, "READY=1");
    // The log is read a little after it is written.
    assert!(ready.seen - reloading.seen >= SLOW / 2, "{ready:?}");
    let mark = manager.mark();
    server.signal(Signal::SIGTERM);
    manager.wait_for(mark, "STOPPING=1");
    server.expect_clean_exit();
    assert_eq!(manager.notifications().iter().filter(|word| word.has("READY=1")).count(), 2);
}

#[test]
fn service_manager_gets_no_ready_while_one_pool_fails() {
    let manager = FakeManager::new();
    let (launch, mut config) = PoolsConfig::launch();
    config.bind("web", free_address()).bind("api", free_address());
    config.set("api", "env", "[DEMO_FAIL_BOOT=1]").set("api", "boot_retries", 2).write();
    let server = launch.env("NOTIFY_SOCKET", &manager.name).spawn();
    assert_eq!(server.wait_exit(), Exit::Code(3));
    assert_eq!(server.records_of("worker ready").len(), 1, "that of the other pool");
    let words = manager.notifications();
    assert!(!words.iter().any(|word| word.has("READY=1")), "{words:#?}");
}

/// Returns the configuration of a daemon with two pools.
fn daemon_config(web: SocketAddr, api: SocketAddr, env: &str) -> String {
    format!(
        "boot_retries: 1\npools:\n  web:\n    bind: \"{web}\"\n  api:\n    bind: \"{api}\"\n    \
         env: {env}\n"
    )
}

/// Starts a daemon of two pools with two workers each.
#[track_caller]
fn daemon(env: &str) -> (Daemon, [SocketAddr; 2]) {
    let addresses = [free_address(), free_address()];
    let (launch, name) = daemons::launch(&[], &daemon_config(addresses[0], addresses[1], env));
    let daemon = Daemon { launcher: launch.unbound().spawn(), name };
    assert_eq!(daemon.launcher.wait_exit(), Exit::Code(0), "{:?}", daemon.launcher.lines());
    (daemon, addresses)
}

#[test]
fn command_waits_until_all_pools_serve() {
    let (daemon, addresses) = daemon(&slow_boot_env());
    assert_eq!((daemon.count("worker ready"), daemon.count("all workers ready")), (4, 1));
    for (address, pool) in addresses.into_iter().zip(["web", "api"]) {
        assert_eq!(info(address)["pool"], pool);
    }
    daemon.finish();
}

#[test]
fn pool_failing_to_boot_fails_the_daemon() {
    let settings = daemon_config(free_address(), free_address(), "[DEMO_FAIL_BOOT=1]");
    let (launch, name) = daemons::launch(&[], &settings);
    expect_startup_failure(launch.unbound(), &name, 3, &["api", "DEMO_FAIL_BOOT"]);
}

#[test]
fn workers_of_all_pools_are_suspended_and_resumed() {
    let (daemon, addresses) = daemon("[]");
    let (old, master) = (daemon.workers(), daemon.master());
    assert_eq!(old.len(), 4);
    daemon.signal(Signal::SIGWINCH);
    wait_until("the workers go", || daemon.workers().is_empty());
    assert_eq!(daemon.master(), master);
    // Clients that connect while no worker runs wait, at each address.
    let mut clients = addresses.map(|address| Client::tcp(address).unwrap());
    clients.iter_mut().for_each(|client| client.ask("/info"));
    daemon.signal(Signal::SIGHUP);
    for (mut client, pool) in clients.into_iter().zip(["web", "api"]) {
        assert_eq!(client.answer().json()["pool"], pool);
    }
    wait_until("new workers are ready", || daemon.count("worker ready") == 8);
    wait_until("four of them", || daemon.workers().len() == 4);
    assert!(daemon.workers().iter().all(|pid| !old.contains(pid)));
    daemon.finish();
}

#[test]
fn log_is_reopened_by_workers_of_all_pools() {
    let (daemon, addresses) = daemon("[]");
    fs::rename(daemon.path("log"), daemon.path("log.1")).unwrap();
    daemon.signal(Signal::SIGUSR1);
    // The master opens the new file first.
    wait_until("the master", || daemon.count("logs reopened") == 1);
    for (address, pool) in addresses.into_iter().zip(["web", "api"]) {
        let says_so = || {
            assert_eq!(get(address, "/panic").status(), 500);
            let records = daemon.records();
            let said =
                records.iter().filter(|r| r["msg"] == "worker panicked" && r["pool"] == pool);
            said.map(|record| &record["pid"]).collect::<std::collections::HashSet<_>>().len() == 2
        };
        wait_until("both workers of a pool", says_so);
    }
    let text = fs::read_to_string(daemon.path("log.1")).unwrap();
    daemon.signal(Signal::SIGTERM);
    wait_until("no process is left", || daemon.name.processes().is_empty());
    assert_eq!(fs::read_to_string(daemon.path("log.1")).unwrap(), text, "no process writes there");
}

#[test]
fn killed_master_restarts_on_stored_sockets_of_all_pools() {
    let manager = FakeManager::new();
    let (launch, mut config) = PoolsConfig::launch();
    let addresses = [free_address(), free_address()];
    config.top("fd_store", "true").bind("web", addresses[0]).bind("api", addresses[1]).write();
    let server = launch.env("NOTIFY_SOCKET", &manager.name).start();
    let stored = || {
        let words = manager.notifications().into_iter();
        words.filter(|word| word.has("FDSTORE=1")).collect::<Vec<_>>()
    };
    wait_until("both are kept", || stored().len() == 2);
    let load = addresses.map(Load::connecting);
    kill_all(&server);
    // In reverse order, as a manager may pass them: the names tell which is which.
    let kept: Vec<_> = stored().into_iter().rev().collect();
    let (mut moves, mut names) = (String::new(), Vec::new());
    for (index, word) in kept.iter().enumerate() {
        moves += &format!("exec {}<&{fd} {fd}<&-; ", 200 + index, fd = word.fds[0].as_raw_fd());
        names.push(word.value("FDNAME").unwrap().to_owned());
    }
    let script = format!(
        "{moves} exec 3<&200 200<&- 4<&201 201<&-; export LISTEN_PID=$$ LISTEN_FDS=2 \
         LISTEN_FDNAMES='{}'; exec \"$0\" \"$@\"",
        names.join(":")
    );
    let words = ["bash", "-c", &script, env!("CARGO_BIN_EXE_ostler")];
    let mut next = Launch::by(&words, &["--config", &config.path]).unbound();
    for word in &kept {
        next = next.keep(word.fds[0].as_raw_fd());
    }
    let next = next.start();
    assert_eq!(next.records_of("listening").len(), 2);
    for (address, pool) in addresses.into_iter().zip(["web", "api"]) {
        assert_eq!(info(address)["pool"], pool);
    }
    for load in load {
        load.wait_answers(10);
        load.finish();
    }
    next.finish();
}

/// Waits until the pools `web` and `api` have so many workers, all old workers have exited, and the
/// log says so.
#[track_caller]
fn wait_alone(server: &Server, counts: [usize; 2]) {
    wait_until("these workers alone", || {
        children(server.pid).len() == counts[0] + counts[1]
            && ["web", "api"].map(|pool| pids(server, pool).len()) == counts
    });
}

#[test]
fn reuse_port_can_differ_between_pools() {
    let (server, mut config, [web, api]) = two("mio");
    config.set("web", "workers", 3).set("web", "reuse_port", "true").set("api", "workers", 2);
    config.reload(&server);
    wait_alone(&server, [3, 2]);
    wait_until("their sockets", || (sockets_at(web), sockets_at(api)) == (3, 1));
    for pool in ["web", "api"] {
        let old = pids(&server, pool);
        let victim = *old.first().unwrap();
        kill(victim, Signal::SIGSTOP).unwrap();
        let address = if pool == "web" { web } else { api };
        let mut clients: Vec<_> = (0..20).map(|_| Client::tcp(address).unwrap()).collect();
        clients.iter_mut().for_each(|client| client.ask("/info"));
        kill(victim, Signal::SIGKILL).unwrap();
        for mut client in clients {
            assert_eq!(client.answer().json()["pool"], pool);
        }
        wait_until("a successor", || {
            let now = pids(&server, pool);
            now.len() == old.len() && !now.contains(&victim)
        });
    }
    assert_eq!((sockets_at(web), sockets_at(api)), (3, 1));
    server.finish();
}

#[test]
#[ignore = "slow"]
fn max_memory_can_differ_between_pools() {
    let (server, mut config, [web, api]) = two("mio");
    config.set("web", "workers", 1).set("web", "max_memory", "100M").reload(&server);
    wait_alone(&server, [1, 1]);
    let [small, free] = ["web", "api"].map(|pool| *pids(&server, pool).first().unwrap());
    for address in [api, web] {
        assert_eq!(get(address, "/leak?mb=150").status(), 200);
    }
    let large = server
        .wait_for("the memory warning", |record| record.message() == "worker exceeds max_memory");
    assert_eq!((large.pid(), large.text("pool")), (Some(small), Some("web")), "{large:?}");
    let is_end = |record: &Record| record.is("worker exited", small);
    let exited = server.wait_for("its end", is_end);
    assert_eq!((exited.text("reason"), exited.text("pool")), (Some("recycled"), Some("web")));
    wait_until("a successor", || pids(&server, "web").len() == 1);
    assert_eq!(server.records_of("worker exceeds max_memory").len(), 1);
    assert!(pids(&server, "api").contains(&free));
    server.finish();
}
