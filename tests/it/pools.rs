//! Several pools under one master: each serves on its own, and master-wide events are one for all.

use std::collections::BTreeSet;
use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::client::{Answer, Client, is_refused};
use crate::launch::{Launch, free_address, wait_free};
use crate::load::Load;
use crate::log_capture::Record;
use crate::proc::{children, descriptors, title, wait_until};
use crate::reloading::is_reload_failure;
use crate::support::{Exit, Server};

on_every_class!(reload_failing_in_one_pool_fails_in_all, pools_change_under_load_without_loss);

/// A configuration file of pools, which a test changes key by key.
#[derive(Clone, Default)]
pub struct PoolsConfig {
    pub path: String,
    top: Vec<(String, String)>,
    pools: Vec<(String, Vec<(String, String)>)>,
}

impl PoolsConfig {
    /// Prepares a server that is configured by a file, which is not written yet.
    pub fn launch() -> (Launch, Self) {
        let launch = Launch::new(&[]).unbound();
        let path = launch.path("pools.yaml");
        let config = Self { path, ..Self::default() };
        (launch.arg("--config").arg(&config.path), config)
    }

    /// Sets a key of a pool, in YAML, and adds the pool if it is missing.
    pub fn set(&mut self, pool: &str, key: &str, value: impl ToString) -> &mut Self {
        self.unset(pool, key);
        let known = self.pools.iter().position(|(name, _)| name == pool);
        let index = known.unwrap_or_else(|| {
            self.pools.push((pool.to_owned(), Vec::new()));
            self.pools.len() - 1
        });
        self.pools[index].1.push((key.to_owned(), value.to_string()));
        self
    }

    pub fn unset(&mut self, pool: &str, key: &str) -> &mut Self {
        let own = self.pools.iter_mut().filter(|(name, _)| name == pool);
        own.for_each(|(_, keys)| keys.retain(|(known, _)| known != key));
        self
    }

    pub fn bind(&mut self, pool: &str, address: SocketAddr) -> &mut Self {
        self.set(pool, "bind", format!("[\"{address}\"]"))
    }

    pub fn remove(&mut self, pool: &str) -> &mut Self {
        self.pools.retain(|(name, _)| name != pool);
        self
    }

    pub fn rename(&mut self, pool: &str, to: &str) -> &mut Self {
        let named = self.pools.iter_mut().filter(|(name, _)| name == pool);
        named.for_each(|(name, _)| to.clone_into(name));
        self
    }

    pub fn top(&mut self, key: &str, value: impl ToString) -> &mut Self {
        self.top.push((key.to_owned(), value.to_string()));
        self
    }

    pub fn write(&self) {
        let lines = |keys: &[(String, String)], indent: &str| -> String {
            keys.iter().map(|(key, value)| format!("{indent}{key}: {value}\n")).collect()
        };
        let mut text = lines(&self.top, "");
        if !self.pools.is_empty() {
            text.push_str("pools:\n");
        }
        for (name, keys) in &self.pools {
            text.push_str(&format!("  {name}:\n{}", lines(keys, "    ")));
        }
        fs::write(&self.path, text).unwrap();
    }

    /// Writes the file, and reloads it.
    #[track_caller]
    pub fn reload(&self, server: &Server) -> Record {
        self.write();
        reload(server)
    }

    /// Writes and reloads the file, and waits until the old workers have exited. A worker accepts
    /// clients until it has received its stop request.
    #[track_caller]
    fn replace(&self, server: &Server) {
        let old = server.workers();
        self.reload(server);
        for worker in old {
            server.wait_exited(worker.pid);
        }
    }
}

/// Reloads, and waits until that is complete.
#[track_caller]
fn reload(server: &Server) -> Record {
    let mark = server.mark();
    server.signal(Signal::SIGHUP);
    let done = server.wait_for_new_record(mark, "the end of a reload", is_reload_end);
    assert_eq!(done.message(), "reload complete", "{done:?}");
    done
}

fn is_reload_end(record: &Record) -> bool {
    record.message() == "reload complete" || is_reload_failure(record)
}

fn is_error(record: &Record) -> bool {
    record.text("level").is_some_and(|level| level.eq_ignore_ascii_case("error"))
}

/// Starts two pools, each with an address of its own.
#[track_caller]
pub fn two(class: &str) -> (Server, PoolsConfig, [SocketAddr; 2]) {
    let (launch, mut config) = PoolsConfig::launch();
    let addresses = [free_address(), free_address()];
    config.top("worker_class", class);
    config.bind("web", addresses[0]).set("web", "workers", 2).bind("api", addresses[1]);
    config.write();
    (launch.start(), config, addresses)
}

#[track_caller]
pub fn get(address: SocketAddr, path: &str) -> Answer {
    Client::tcp(address).unwrap().try_get_last(path).unwrap()
}

#[track_caller]
pub fn info(address: SocketAddr) -> Value {
    get(address, "/info").json()
}

/// Returns the ready workers of a pool.
pub fn pids(server: &Server, pool: &str) -> BTreeSet<Pid> {
    let mut ready = BTreeSet::new();
    for record in server.records() {
        match (record.message(), record.pid()) {
            ("worker ready", Some(pid)) if record.text("pool") == Some(pool) => {
                _ = ready.insert(pid);
            }
            ("worker exited", Some(pid)) => _ = ready.remove(&pid),
            _ => (),
        }
    }
    ready
}

/// Waits until the master's children are these, and no others.
#[track_caller]
fn wait_alone(server: &Server, expected: &BTreeSet<Pid>) {
    wait_until("these workers alone", || {
        &children(server.pid).iter().map(|child| child.pid).collect::<BTreeSet<_>>() == expected
    });
}

#[test]
fn each_pool_has_its_own_settings() {
    let (launch, mut config) = PoolsConfig::launch();
    let [web, pages, lines] = [(); 3].map(|()| free_address());
    config.top("worker_class", "mio").top("proc_name", "trio");
    config.bind("web", web).set("web", "workers", 2);
    config.bind("pages", pages).set("pages", "worker_class", "threads");
    config.bind("lines", lines).set("lines", "worker_class", "sync").set("lines", "app", "echo");
    config.write();
    let server = launch.start();
    for (address, pool, class) in [(web, "web", "mio"), (pages, "pages", "threads")] {
        let info = info(address);
        assert_eq!((&info["pool"], &info["class"]), (&pool.into(), &class.into()));
    }
    let mut client = Client::tcp(lines).unwrap();
    client.send("hello\n");
    client.finish_sending();
    assert_eq!(client.rest(), b"hello\n");
    assert_eq!(title(server.pid), "ostler: master [trio]");
    let mut titles: Vec<String> =
        children(server.pid).iter().map(|child| title(child.pid)).collect();
    titles.sort();
    let expected = ["lines/0", "pages/0", "web/0", "web/1"];
    assert_eq!(titles, expected.map(|place| format!("ostler: worker [trio] {place}")));
    let records = server.records();
    let of_workers = records.iter().filter(|record| record.message().starts_with("worker "));
    assert!(of_workers.clone().count() >= 8);
    for record in of_workers {
        let pool = record.text("pool").unwrap_or_default();
        assert!(["web", "pages", "lines"].contains(&pool), "{record:?}");
    }
    let ready = records.iter().position(|record| record.message() == "all workers ready").unwrap();
    assert_eq!(records[ready].number("workers"), Some(4));
    let last = records.iter().rposition(|record| record.message() == "worker ready").unwrap();
    assert!(last < ready, "ready is said when all are");
    server.finish();
}

#[test]
fn single_pool_is_not_named_in_the_log() {
    let server = Server::start(&["-k", "mio"]);
    assert_eq!(server.get("/info").json()["pool"], "default");
    assert!(server.records().iter().all(|record| record.text("pool").is_none()));
    server.finish();
}

#[test]
fn killed_worker_is_replaced_in_its_pool() {
    let (server, _house, [_, api]) = two("mio");
    let (web, old) = (pids(&server, "web"), pids(&server, "api"));
    kill(*old.first().unwrap(), Signal::SIGKILL).unwrap();
    wait_until("a successor", || {
        let now = pids(&server, "api");
        now.len() == 1 && now != old
    });
    assert_eq!(info(api)["pool"], "api");
    assert_eq!(pids(&server, "web"), web, "the other pool is not affected");
    let ended = server.wait_exited(*old.first().unwrap());
    assert_eq!((ended.text("pool"), ended.text("reason")), (Some("api"), Some("crashed")));
    server.finish();
}

fn reload_failing_in_one_pool_fails_in_all(class: &str) {
    let (server, config, addresses) = two(class);
    let load = addresses.map(Load::on);
    let old: BTreeSet<Pid> = pids(&server, "web").union(&pids(&server, "api")).copied().collect();
    let mut bad = config.clone();
    bad.set("web", "workers", 3).set("api", "env", "[DEMO_FAIL_BOOT=1]").write();
    let mark = server.mark();
    server.signal(Signal::SIGHUP);
    let failure = server.wait_for_new_record(mark, "a failure", is_reload_end);
    assert!(failure.message().starts_with("reload failed"), "{failure:?}");
    assert_eq!(failure.text("pool"), Some("api"));
    assert!(failure.text("error").unwrap().contains("DEMO_FAIL_BOOT"), "{failure:?}");
    wait_alone(&server, &old);
    // An invalid setting changes nothing either.
    bad.set("api", "worker_class", "gevent").write();
    server.signal(Signal::SIGHUP);
    let refused = server
        .wait_for_new_record(mark, "a refusal", |record| record.message() == "reload rejected");
    assert!(refused.text("error").unwrap().contains("gevent"), "{refused:?}");
    wait_alone(&server, &old);
    let news = server.records().split_off(mark);
    let errors: Vec<_> = news.iter().filter(|record| is_error(record)).collect();
    assert_eq!(errors.len(), 2, "{errors:#?}");
    assert!(!news.iter().any(|record| {
        record.message() == "worker draining" && record.pid().is_some_and(|pid| old.contains(&pid))
    }));
    config.reload(&server);
    load.into_iter().for_each(Load::finish);
    server.finish();
}

#[test]
fn late_failure_rolls_back_the_completed_pool() {
    let (server, config, [web, api]) = two("mio");
    let mut bad = config.clone();
    bad.set("web", "env", "[COLOUR=new]");
    // The first worker is ready, and exits before the second is ready.
    bad.set("api", "workers", 2);
    bad.set("api", "env", "[DEMO_BOOT_SLEEP_MS=1500, DEMO_EXIT_AFTER_MS=100]").write();
    let load = Load::on(web);
    let mark = server.mark();
    server.signal(Signal::SIGHUP);
    let failure = server.wait_for_new_record(mark, "a failure", is_reload_end);
    assert!(failure.message().starts_with("reload failed"), "{failure:?}");
    assert_eq!(failure.text("pool"), Some("api"));
    assert!(failure.text("error").unwrap().contains("code 7"), "{failure:?}");
    wait_until("the old settings", || {
        children(server.pid).len() == 3
            && (0..4).all(|_| get(web, "/env?name=COLOUR").status() == 404)
            && get(api, "/env?name=DEMO_EXIT_AFTER_MS").status() == 404
    });
    let rolled = server.records().split_off(mark);
    assert!(rolled.iter().any(|record| {
        record.text("pool") == Some("web") && record.message() == "worker draining"
    }));
    assert_eq!(rolled.iter().filter(|record| is_error(record)).count(), 1);
    load.finish();
    config.reload(&server);
    server.finish();
}

#[test]
fn old_workers_stay_until_every_pool_canary_is_ready() {
    let (server, mut config, _) = two("mio");
    config.set("api", "env", "[DEMO_BOOT_SLEEP_MS=1000]");
    let mark = server.mark();
    config.reload(&server);
    let news = server.records().split_off(mark);
    let first = |what: &str, pool: &str| {
        let is_it = |r: &Record| r.message() == what && r.text("pool") == Some(pool);
        news.iter().position(is_it).unwrap()
    };
    let drain_at = first("worker draining", "web");
    assert!(first("worker ready", "web") < first("worker ready", "api"), "api boots slowly");
    assert!(first("worker ready", "api") < drain_at, "{news:#?}");
    server.finish();
}

fn pools_change_under_load_without_loss(class: &str) {
    let (server, mut config, [first, second]) = two(class);
    reload(&server);
    wait_until("three workers", || children(server.pid).len() == 3);
    let fds = descriptors(server.pid).len();
    let load = [first, second].map(Load::on);
    let third = free_address();
    for _ in 0..3 {
        // The pools exchange their addresses.
        config.bind("web", second).bind("api", first).replace(&server);
        assert_eq!((&info(first)["pool"], &info(second)["pool"]), (&"api".into(), &"web".into()));
        // A pool is added, and removed.
        config.bind("extra", third).replace(&server);
        assert_eq!(info(third)["pool"], "extra");
        let leaving = Load::until_refused(third);
        leaving.wait_answers(5);
        config.remove("extra").replace(&server);
        leaving.wait_refused();
        assert!(is_refused(third));
        // A pool is renamed, and another gets a different class.
        config.rename("api", "rpc").set("web", "worker_class", "threads").replace(&server);
        assert_eq!((&info(first)["pool"], &info(second)["pool"]), (&"rpc".into(), &"web".into()));
        config.rename("rpc", "api").unset("web", "worker_class");
        config.bind("web", first).bind("api", second).replace(&server);
        assert_eq!((&info(first)["pool"], &info(second)["pool"]), (&"web".into(), &"api".into()));
        load.iter().for_each(|load| load.wait_answers(10));
    }
    load.into_iter().for_each(Load::finish);
    wait_until("three workers", || children(server.pid).len() == 3);
    wait_until("the master's descriptors", || descriptors(server.pid).len() == fds);
    server.finish();
}

#[test]
fn address_moved_to_another_pool_keeps_its_socket() {
    let (launch, mut config) = PoolsConfig::launch();
    let sock = launch.path("sock");
    let [web, api] = [free_address(), free_address()];
    config.set("web", "bind", format!("[\"{web}\", \"unix:{sock}\"]")).bind("api", api).write();
    let server = launch.start();
    let inode = || fs::metadata(&sock).unwrap().ino();
    let before = inode();
    config.bind("web", web).set("api", "bind", format!("[\"{api}\", \"unix:{sock}\"]"));
    config.reload(&server);
    assert_eq!(inode(), before);
    wait_until("the new pool alone", || {
        Client::unix(sock.as_ref()).unwrap().get("/info").json()["pool"] == "api"
    });
    let closed = server.records_of("stopped listening");
    assert!(closed.is_empty(), "{closed:?}");
    // A failed reload leaves the socket in its pool.
    config.bind("api", api).set("new", "bind", format!("[\"unix:{sock}\"]"));
    config.set("new", "env", "[DEMO_FAIL_BOOT=1]").write();
    let mark = server.mark();
    server.signal(Signal::SIGHUP);
    let failure = server.wait_for_new_record(mark, "a failure", is_reload_end);
    assert_eq!(failure.text("pool"), Some("new"), "{failure:?}");
    assert_eq!(inode(), before);
    assert_eq!(Client::unix(sock.as_ref()).unwrap().get("/info").json()["pool"], "api");
    server.finish();
}

#[test]
fn reload_changes_one_pool_to_several_and_back() {
    let (launch, mut config) = PoolsConfig::launch();
    let [first, second] = [free_address(), free_address()];
    config.top("worker_class", "mio").top("bind", format!("\"{first}\"")).write();
    let server = launch.start();
    let load = Load::on(first);
    let (alone, mut several) = (config.clone(), config.clone());
    several.set("web", "workers", 2).bind("api", second);
    for _ in 0..2 {
        several.reload(&server);
        // A worker that drains may still owe an accept of a client that the kernel reported to it alone.
        wait_until("pool web has the address", || info(first)["pool"] == "web");
        assert_eq!(info(second)["pool"], "api");
        alone.reload(&server);
        wait_until("the pool of before has it", || info(first)["pool"] == "default");
        wait_free(second);
    }
    load.finish();
    server.finish();
}

#[test]
fn pool_flag_selects_pools_and_flags_override() {
    let (_, mut config) = PoolsConfig::launch();
    let [web, api] = [free_address(), free_address()];
    config.bind("web", web).set("web", "workers", 3).bind("api", api);
    let start = |flags: &[&str]| {
        let launch = Launch::new(flags).unbound();
        let path = launch.path("pools.yaml");
        PoolsConfig { path: path.clone(), ..config.clone() }.write();
        launch.arg("-c").arg(path)
    };
    let server = start(&["--pool", "web", "-w", "2"]).start();
    assert_eq!(server.wait_workers(2).len(), 2);
    assert_eq!(info(web)["pool"], "web");
    assert!(is_refused(api));
    assert_eq!(pids(&server, "web").len(), 2);
    server.finish();
    let server = start(&["--pool", "web", "--pool=api"]).start();
    assert_eq!(server.wait_workers(4).len(), 4);
    server.finish();
    let outcome = start(&["--pool", "wbe"]).plain().run();
    assert_eq!(outcome.exit, Exit::Code(2));
    assert!(
        outcome.stderr.contains("\"wbe\" is not a configured pool; available: web, api"),
        "{outcome:?}"
    );
}

#[test]
fn upgrade_passes_sockets_of_all_pools() {
    let (server, _house, addresses) = two("mio");
    let load = addresses.map(Load::on);
    let old = server.pid;
    server.signal(Signal::SIGUSR2);
    let new = server.wait_for("upgrade", |r| r.message() == "upgrade started").pid().unwrap();
    server.wait_for("the successor is ready", |r| r.is("new master ready", new));
    assert_eq!(children(new).len(), 3);
    load.iter().for_each(|load| load.wait_answers(20));
    kill(old, Signal::SIGTERM).unwrap();
    server.wait_for("promotion", |record| record.is("upgrade complete", new));
    assert_eq!(server.wait_exit(), Exit::Code(0));
    for (address, pool) in addresses.into_iter().zip(["web", "api"]) {
        assert_eq!(info(address)["pool"], pool);
    }
    load.iter().for_each(|load| load.wait_answers(20));
    load.into_iter().for_each(Load::finish);
    let mark = server.mark();
    kill(new, Signal::SIGHUP).unwrap();
    server.wait_for_new_record(mark, "reload complete", |record| {
        record.message() == "reload complete"
    });
    kill(new, Signal::SIGTERM).unwrap();
    server.wait_no_survivors();
    assert!(addresses.into_iter().all(is_refused));
}

#[test]
fn activated_socket_goes_to_pool_with_its_address() {
    let given = TcpListener::bind("127.0.0.1:0").unwrap();
    let (first, second) = (given.local_addr().unwrap(), free_address());
    let (launch, mut config) = PoolsConfig::launch();
    config.set("a", "bind", format!("\"fd://{}\"", given.as_raw_fd())).bind("b", second).write();
    let server = launch.keep(given.as_raw_fd()).start();
    for (address, pool) in [(first, "a"), (second, "b")] {
        assert_eq!(info(address)["pool"], pool);
    }
    server.finish();
}

#[test]
fn pool_never_ready_stops_the_master() {
    let (launch, mut config) = PoolsConfig::launch();
    let [web, api] = [free_address(), free_address()];
    config.bind("web", web).bind("api", api).set("api", "boot_retries", 0);
    config.set("api", "env", "[DEMO_FAIL_BOOT=1]").write();
    let server = launch.spawn();
    assert_eq!(server.wait_exit(), Exit::Code(3));
    let end = server.wait_for("the reason", |record| record.message().starts_with("giving up"));
    assert_eq!(end.text("pool"), Some("api"));
    let error = end.text("error").unwrap();
    assert!(error.contains("\"api\"") && error.contains("DEMO_FAIL_BOOT"), "{error}");
    server.wait_no_survivors();
    assert!(is_refused(web) && is_refused(api));
    assert!(server.records_of("all workers ready").is_empty());
}

#[test]
fn scaling_signal_is_ignored_with_several_pools() {
    let (server, mut config, _) = two("mio");
    for signal in [Signal::SIGTTIN, Signal::SIGTTOU] {
        let mark = server.mark();
        server.signal(signal);
        let told = server.wait_for_new_record(mark, "a warning", |record| {
            record.message() == "signal ignored: multiple pools configured"
        });
        assert!(signal.as_str().ends_with(told.text("signal").unwrap()), "{told:?}");
    }
    assert_eq!(children(server.pid).len(), 3);
    config.set("api", "workers", 2).reload(&server);
    wait_until("four workers", || children(server.pid).len() == 4);
    server.finish();
}

#[test]
fn every_stop_signal_stops_all_pools() {
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGQUIT] {
        let (mut server, _house, addresses) = two("mio");
        server.signal(signal);
        server.expect_clean_exit();
        assert!(addresses.into_iter().all(is_refused));
    }
}

/// Prepares a server with this YAML file.
fn with_yaml(yaml: &str, flags: &[&str]) -> Launch {
    let launch = Launch::new(flags).unbound().plain();
    let path = launch.path("ostler.yaml");
    fs::write(&path, yaml).unwrap();
    launch.arg("--config").arg(path)
}

#[test]
fn invalid_pools_are_rejected_with_file_and_line() {
    for (yaml, line, words) in [
        ("pools:\n", 1, &["pools", "empty"] as &[&str]),
        ("pools: {}\n", 1, &["empty"]),
        ("pools:\n  Web: {}\n", 2, &["Web", "a-z"]),
        ("pools:\n  web:\n    wokers: 1\n", 3, &["wokers", "workers"]),
        ("pools:\n  web:\n    pidfile: a\n", 3, &["pidfile", "master", "web"]),
        ("pools:\n  web:\n    vars: {a: 1}\n", 3, &["vars", "master"]),
        ("pools:\n  web:\n    workers: two\n", 3, &["workers", "two"]),
        ("pools:\n  web:\n    worker_class: gevent\n", 3, &["gevent", "sync", "mio"]),
        ("pools:\n  web:\n    app: no-such-app\n", 3, &["no-such-app", "demo"]),
        ("pools:\n  web:\n  api:\n", 3, &["api", "web", "127.0.0.1:8000", "ostler.yaml:2"]),
        (
            "pools:\n  web:\n    bind: ':18000'\n  api:\n    bind: [':18001', ':18000']\n",
            5,
            &["api", "web", "0.0.0.0:18000", "ostler.yaml:3"],
        ),
        ("vars: {a: 1}\nuser: ${b}\n", 2, &["user", "${b}", "${a}"]),
        ("vars: {a: '${a}'}\n", 1, &["${a}", "above it"]),
        ("vars:\n  a: ${b}\n  b: ${a}\n", 2, &["${b}", "above it"]),
        ("\nuser: ${env:NO_SUCH_NAME}\n", 2, &["NO_SUCH_NAME", "environment"]),
        ("vars: {n: two}\nworkers: ${n}\n", 2, &["two", "${n}"]),
    ] {
        for flags in [&[][..], &["--check-config"]] {
            let outcome = with_yaml(yaml, flags).run();
            assert_eq!(outcome.exit, Exit::Code(1), "{outcome:?}");
            let worker = format!("ostler.yaml:{line}:");
            let all = words.iter().copied().chain([worker.as_str()]);
            for word in all {
                assert!(outcome.stderr.contains(word), "{word} is missing: {outcome:?}");
            }
            assert_eq!(outcome.stderr.trim_end().lines().count(), 1, "{outcome:?}");
        }
    }
}

#[test]
fn file_interpolates_variables_and_environment() {
    let launch = Launch::new(&[]).unbound();
    let (dir, port) = (launch.dir().display().to_string(), launch.port());
    let yaml = format!(
        "vars:\n  base: ${{env:HERE}}\n  sock: ${{base}}/sock\n  port: {port}\nproc_name: \
         v${{port}}\npools:\n  web:\n    bind: [\"127.0.0.1:${{port}}\", \"unix:${{sock}}\"]\n    \
         env: {{COLOUR: \"$${{sock}} ${{sock}}\"}}\n    chdir: ${{base}}\n"
    );
    let path = launch.path("ostler.yaml");
    fs::write(&path, yaml).unwrap();
    let server = launch.env("HERE", &dir).arg("--config").arg(path).start();
    assert_eq!(server.get("/env?name=COLOUR").text(), format!("${{sock}} {dir}/sock"));
    assert!(server.path("sock").exists());
    assert_eq!(title(server.pid), format!("ostler: master [v{port}]"));
    reload(&server);
    assert_eq!(server.get("/env?name=COLOUR").text(), format!("${{sock}} {dir}/sock"));
    server.finish();
}

#[test]
fn printed_pools_load_again() {
    let yaml = "vars: {b: /tmp}\nenv: ['A=$${b}${b}']\nworkers: 2\npools:\n  web:\n    bind: ':18000'\n    \
                env: ['B=1']\n  api:\n    app: echo\n    bind: ':18001'\n";
    let printed = with_yaml(yaml, &["--print-config", "-t", "7"]).run();
    assert_eq!(printed.exit, Exit::Code(0), "{printed:?}");
    for line in ["  web:  # ", "    app: echo  # ", "    env:  # ", "workers: 2  # "] {
        assert!(printed.stdout.contains(line), "no {line}: {printed:?}");
    }
    let own = printed.stdout.split_once("pools:").unwrap().1;
    assert!(!own.contains("timeout") && !own.contains("workers"), "{own}");
    let again = with_yaml(&printed.stdout, &["--print-config"]).run();
    let values = |text: &str| -> Vec<String> {
        text.lines().map(|line| line.split("  #").next().unwrap_or(line).to_owned()).collect()
    };
    assert_eq!(values(&again.stdout), values(&printed.stdout));
}

#[test]
fn example_file_of_jobs_passes_check() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/config/jobs.yaml");
    let launch = Launch::new(&["-c", path, "--pool", "ticks", "--check-config"]);
    let outcome = launch.unbound().plain().run();
    assert_eq!(outcome.exit, Exit::Code(0), "{outcome:?}");
}
