//! Commands over the control interface: each is answered when it has come true or failed, and no
//! request to the service is lost.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, Uid};
use serde_json::{Value, json};

use crate::client::Client;
use crate::control::Controlled;
use crate::launch::Launch;
use crate::load::Load;
use crate::proc::{is_gone, wait_until};
use crate::support::Exit;

on_every_class!(
    reload_command_loses_nothing,
    scale_and_recycle_commands_lose_nothing,
    upgrade_command_is_answered_by_the_old_master,
    stop_command_is_answered_before_the_exit,
    failing_commands_change_nothing,
);

on_every_class_slowly!(
    commands_during_a_reload_come_true,
    stop_during_an_upgrade_waits_for_the_new_master,
    lost_new_master_cancels_the_stop_of_the_old_one,
);

impl Controlled {
    /// Begins a command, and returns the client that waits for its answer.
    #[track_caller]
    fn send(&self, target: &str) -> Client {
        let mut client = self.connect();
        client.send(format!("POST {target} HTTP/1.1\r\nHost: ostler\r\n\r\n"));
        client
    }

    /// Returns the status and the body of the answer to a command.
    #[track_caller]
    pub(crate) fn post(&self, target: &str) -> (u16, Value) {
        answer(&mut self.send(target))
    }

    /// Returns the result of a command that comes true.
    #[track_caller]
    fn command(&self, target: &str) -> Value {
        let (status, operation) = self.post(target);
        assert_eq!((status, &operation["state"]), (200, &json!("done")), "{operation}");
        operation["result"].clone()
    }

    /// Returns the reason why a command fails or is refused.
    #[track_caller]
    pub(crate) fn refusal(&self, target: &str, expected: u16) -> String {
        let (status, body) = self.post(target);
        assert_eq!(status, expected, "{target}: {body}");
        body["error"].as_str().unwrap().to_owned()
    }

    fn operation(&self, id: &Value) -> Value {
        let answer = self.connect().get(&format!("/v1/operations/{id}"));
        serde_json::from_slice(&answer.body).unwrap()
    }
}

#[track_caller]
fn answer(client: &mut Client) -> (u16, Value) {
    let answer = client.answer();
    (answer.status(), serde_json::from_slice(&answer.body).unwrap())
}

fn pids(it: &Controlled) -> Vec<i64> {
    let pool = it.pool();
    let workers = pool["workers"].as_array().unwrap();
    workers.iter().map(|worker| worker["pid"].as_i64().unwrap()).collect()
}

fn reload_command_loses_nothing(class: &str) {
    let it = Controlled::start(&["-k", class, "-w", "2"]);
    let load = Load::on(it.server.address());
    for generation in 2..5 {
        let old = pids(&it);
        assert_eq!(it.command("/v1/reload"), json!({ "generation": generation }));
        let pool = it.pool();
        assert_eq!((&pool["ready"], &pool["generation"]), (&2.into(), &generation.into()));
        // What is left of the old workers has been told to go.
        let left = pool["workers"].as_array().unwrap().iter();
        let mut left = left.filter(|it| old.contains(&it["pid"].as_i64().unwrap()));
        assert!(left.all(|worker| worker["state"] == "draining"), "{pool}");
        load.wait_answers(10);
    }
    load.finish();
    it.server.finish();
}

fn scale_and_recycle_commands_lose_nothing(class: &str) {
    let it = Controlled::start(&["-k", class, "-w", "1"]);
    let load = Load::on(it.server.address());
    assert_eq!(it.command("/v1/scale?workers=3"), json!({ "from": 1, "to": 3 }));
    let old = pids(&it);
    assert_eq!(old.len(), 3);
    let result = it.command("/v1/recycle");
    let replaced = result["replaced"].as_array().unwrap();
    let new: Vec<i64> = replaced.iter().map(|it| it["new_pid"].as_i64().unwrap()).collect();
    assert_eq!(replaced.iter().map(|it| &it["old_pid"]).collect::<Vec<_>>(), old);
    assert_eq!(pids(&it), new);
    assert!(old.iter().all(|&pid| is_gone(Pid::from_raw(pid as i32))));
    let result = it.command("/v1/recycle?pool=default&slot=1");
    assert_eq!(result["replaced"].as_array().unwrap().len(), 1);
    let after = pids(&it);
    assert_eq!((after[0], after[2]), (new[0], new[2]));
    assert_ne!(after[1], new[1]);
    assert_eq!(it.command("/v1/scale?workers=-2"), json!({ "from": 3, "to": 1 }));
    assert_eq!(pids(&it), [after[0]]);
    assert_eq!(it.pool()["exits_total"]["recycled"], 4);
    load.wait_answers(10);
    load.finish();
    it.server.finish();
}

fn upgrade_command_is_answered_by_the_old_master(class: &str) {
    let it = Controlled::start(&["-k", class, "-w", "2"]);
    let load = Load::on(it.server.address());
    let old_workers = pids(&it);
    // The master finds both requests at once, and may read either first.
    kill(it.server.pid, Signal::SIGSTOP).unwrap();
    let mut clients = [it.send("/v1/upgrade"), it.send("/v1/upgrade")];
    kill(it.server.pid, Signal::SIGCONT).unwrap();
    let mut answers = clients.each_mut().map(answer);
    answers.sort_by_key(|(status, _)| *status);
    let [(200, operation), (409, _)] = answers else { panic!("{answers:?}") };
    assert_eq!(operation["result"]["old_pid"], it.server.pid.as_raw());
    let new = Pid::from_raw(operation["result"]["new_pid"].as_i64().unwrap() as i32);
    assert!(old_workers.iter().all(|&pid| is_gone(Pid::from_raw(pid as i32))));
    wait_until("the old master exits", || is_gone(it.server.pid));
    wait_until("the new master answers", || {
        let Ok(mut client) = Client::unix(&it.socket) else { return false };
        client.ask("/v1/status");
        client.try_answer().is_ok_and(|answer| answer.json()["pid"] == new.as_raw())
    });
    load.wait_answers(10);
    load.finish();
    kill(new, Signal::SIGTERM).unwrap();
    it.server.wait_no_survivors();
}

/// Starts a server, whose new masters boot for `boot_ms`.
fn with_booting_new_masters(class: &str, boot_ms: u32) -> Controlled {
    let launch = Launch::new(&["-k", class, "-w", "2"]);
    let path = launch.path("settings.yaml");
    fs::write(&path, "").unwrap();
    let it = Controlled::of(launch.arg("--config").arg(&path));
    fs::write(&path, format!("env: [DEMO_BOOT_SLEEP_MS={boot_ms}]\n")).unwrap();
    it
}

/// A scaling, a recycling and another reload, while a reload replaces one worker after the other.
fn commands_during_a_reload_come_true(class: &str) {
    let launch = Launch::new(&["-k", class, "-w", "3"]);
    let path = launch.path("settings.yaml");
    fs::write(&path, "timeout: 20\n").unwrap();
    let it = Controlled::of(launch.arg("--config").arg(&path));
    let load = Load::on(it.server.address());
    fs::write(&path, "timeout: 20\nenv: [DEMO_BOOT_SLEEP_MS=500]\n").unwrap();
    let first = pids(&it);
    let mut reload = it.send("/v1/reload");
    wait_until("the reload is under way", || it.pool()["reloading"] == true);
    let mut recycle = it.send("/v1/recycle");
    let mut scale = it.send("/v1/scale?workers=5");
    let mut second_reload = it.send("/v1/reload");
    for client in [&mut reload, &mut recycle, &mut scale, &mut second_reload] {
        let (status, operation) = answer(client);
        assert_eq!((status, &operation["state"]), (200, &json!("done")), "{operation}");
    }
    let pool = it.pool();
    assert_eq!((&pool["target"], &pool["ready"]), (&5.into(), &5.into()), "{pool}");
    assert_eq!(pool["generation"], 3);
    assert!(pids(&it).iter().all(|pid| !first.contains(pid)));
    load.wait_answers(10);
    load.finish();
    it.server.finish();
}

fn stop_during_an_upgrade_waits_for_the_new_master(class: &str) {
    let it = with_booting_new_masters(class, 2000);
    let load = Load::on(it.server.address());
    let mut upgrade = it.send("/v1/upgrade");
    it.server.wait_for("the upgrade", |record| record.message() == "upgrade started");
    it.server.signal(Signal::SIGUSR2);
    it.server.wait_for("the second", |record| record.message().starts_with("upgrade rejected"));
    let mut stop = it.send("/v1/stop");
    it.server.wait_for("the stop", |record| record.message().starts_with("stop deferred"));
    let (status, upgrade) = answer(&mut upgrade);
    assert_eq!((status, &upgrade["state"]), (200, &json!("done")), "{upgrade}");
    let new = &upgrade["result"]["new_pid"];
    let (status, stop) = answer(&mut stop);
    assert_eq!((status, &stop["result"]), (200, &json!({ "serving_pid": new })), "{stop}");
    let new = Pid::from_raw(new.as_i64().unwrap() as i32);
    it.server.wait_for("the promotion", |record| record.is("upgrade complete", new));
    load.wait_answers(10);
    load.finish();
    kill(new, Signal::SIGTERM).unwrap();
    it.server.wait_no_survivors();
}

fn lost_new_master_cancels_the_stop_of_the_old_one(class: &str) {
    let it = Controlled::start(&["-k", class, "-w", "2"]);
    let mut busy = it.server.begin("/sleep?ms=5000");
    it.wait_status("the request is in progress", |pool| pool["in_flight"] == 1);
    let mut upgrade = it.send("/v1/upgrade");
    let started = it.server.wait_for("the upgrade", |record| record.message() == "upgrade started");
    it.server.wait_for("the stop", |record| record.message() == "stopping");
    kill(started.pid().unwrap(), Signal::SIGKILL).unwrap();
    it.server.wait_for("the end", |record| record.message().starts_with("stop cancelled"));
    let (status, operation) = answer(&mut upgrade);
    assert_eq!(status, 422, "{operation}");
    assert!(operation["error"].as_str().unwrap().contains("has exited"), "{operation}");
    it.wait_status("workers again", |pool| pool["ready"] == 2);
    assert_eq!(it.server.get("/").status(), 200);
    assert_eq!(busy.answer().status(), 200);
    assert_eq!(it.command("/v1/scale?workers=3"), json!({ "from": 2, "to": 3 }));
    it.server.signal(Signal::SIGTERM);
    it.server.wait_no_survivors();
}

fn stop_command_is_answered_before_the_exit(class: &str) {
    let mut it = Controlled::start(&["-k", class, "-w", "2"]);
    let mut busy = it.server.begin("/sleep?ms=700");
    it.wait_status("the request is in progress", |pool| pool["in_flight"] == 1);
    let mut client = it.send("/v1/stop");
    it.server.wait_for("the stop", |record| record.message() == "stopping");
    for target in ["/v1/reload", "/v1/scale?workers=3", "/v1/recycle", "/v1/upgrade"] {
        assert!(it.refusal(target, 409).contains("stopping"), "{target}");
    }
    let mut second = it.send("/v1/stop");
    assert_eq!(busy.answer().status(), 200);
    let (first, second) = (answer(&mut client), answer(&mut second));
    assert_eq!((first.0, &first.1["state"]), (200, &json!("done")), "{}", first.1);
    assert_eq!((second.0, &second.1["id"]), (200, &first.1["id"]), "both are one");
    it.server.expect_clean_exit();
    assert!(!it.socket.exists());
}

fn failing_commands_change_nothing(class: &str) {
    let launch = Launch::new(&["-k", class, "-w", "2"]);
    let path = launch.path("settings.yaml");
    fs::write(&path, "timeout: 20\n").unwrap();
    let it = Controlled::of(launch.arg("--config").arg(&path));
    let load = Load::on(it.server.address());
    let before = pids(&it);
    fs::write(&path, "timeout: 20\ntimeuot: 3\n").unwrap();
    for target in ["/v1/reload", "/v1/reload?dry_run=1"] {
        let reason = it.refusal(target, 422);
        assert!(reason.contains("timeuot") && reason.contains("timeout"), "{reason}");
    }
    fs::write(&path, "timeout: 20\nenv: [DEMO_FAIL_BOOT=1]\n").unwrap();
    let reason = it.refusal("/v1/reload", 422);
    assert!(reason.contains("rolled back") && reason.contains("DEMO_FAIL_BOOT"), "{reason}");
    for (target, status) in [
        ("/v1/scale?workers=0", 400),
        ("/v1/scale?workers=-2", 409),
        ("/v1/scale?workers=2&pool=web", 404),
        ("/v1/recycle?slot=2", 404),
        ("/v1/recycle?pool=web", 404),
        ("/v1/recycle?slot=x", 400),
        ("/v1/stop?later=1", 400),
    ] {
        it.refusal(target, status);
    }
    assert_eq!(pids(&it), before);
    assert_eq!(it.pool()["target"], 2);
    load.wait_answers(10);
    load.finish();
    it.server.finish();
}

#[test]
fn failing_upgrade_is_answered_and_this_master_stays() {
    let launch = Launch::new(&["-w", "1"]);
    let path = launch.path("settings.yaml");
    fs::write(&path, "timeout: 20\n").unwrap();
    let it = Controlled::of(launch.arg("--config").arg(&path));
    fs::write(&path, "timeuot: 3\n").unwrap();
    let reason = it.refusal("/v1/upgrade", 422);
    assert!(reason.contains("timeuot"), "{reason}");
    fs::write(&path, "env: [DEMO_FAIL_BOOT=1]\n").unwrap();
    let reason = it.refusal("/v1/upgrade", 422);
    assert!(reason.contains("exited during startup (code 3)"), "{reason}");
    let operations = it.connect().get("/v1/operations").json();
    let commands: Vec<_> =
        operations["operations"].as_array().unwrap().iter().map(|it| &it["command"]).collect();
    assert_eq!(commands, ["upgrade", "upgrade"]);
    assert_eq!(it.server.get("/").status(), 200);
    it.server.signal(Signal::SIGTERM);
    it.server.wait_no_survivors();
}

#[test]
fn dry_run_says_what_a_reload_changes_and_changes_nothing() {
    let launch = Launch::new(&["-w", "2"]).unbound();
    let (path, port) = (launch.path("settings.yaml"), launch.port());
    fs::write(&path, format!("bind: ['127.0.0.1:{port}']\n")).unwrap();
    let it = Controlled::of(launch.arg("--config").arg(&path));
    let before = pids(&it);
    let nothing = it.command("/v1/reload?dry_run=1");
    assert_eq!(nothing["changes"], json!([]));
    assert_eq!((&nothing["opens"], &nothing["closes"]), (&json!([]), &json!([])));
    assert_eq!(nothing["replaces"], json!(before));
    let new = it.server.path("new.sock");
    let text = format!("bind: ['unix:{}']\ntimeout: 7\nproc_name: x\n", new.display());
    fs::write(&path, text).unwrap();
    let result = it.command("/v1/reload?dry_run=1");
    let changes = result["changes"].as_array().unwrap();
    let keys: Vec<_> = changes.iter().map(|change| change["key"].as_str().unwrap()).collect();
    assert_eq!(keys, ["proc_name", "bind", "timeout"]);
    let timeout = json!({ "pool": null, "key": "timeout", "from": "30s", "to": "7s" });
    assert_eq!(changes[2], timeout);
    assert_eq!(result["opens"], json!([format!("unix:{}", new.display())]));
    assert_eq!(result["closes"], json!([format!("127.0.0.1:{port}")]));
    assert!(!new.exists());
    assert_eq!((pids(&it), &it.pool()["generation"]), (before, &1.into()));
    it.command("/v1/reload");
    assert!(new.exists());
    it.server.finish();
}

#[test]
fn progress_is_told_as_events() {
    let it = Controlled::of(Launch::new(&["-w", "2"]).env("DEMO_BOOT_SLEEP_MS", "300"));
    let mut client = it.connect();
    client.send(
        "POST /v1/reload HTTP/1.1\r\nHost: x\r\nAccept: text/event-stream\r\n\
         Connection: close\r\n\r\n",
    );
    let text = String::from_utf8(client.rest()).unwrap();
    assert!(text.starts_with("HTTP/1.1 200 ") && text.contains("text/event-stream"), "{text}");
    let kinds: Vec<_> = text.lines().filter_map(|line| line.strip_prefix("event: ")).collect();
    assert_eq!((kinds.first(), kinds.last()), (Some(&"progress"), Some(&"done")), "{text}");
    assert!(kinds[..kinds.len() - 1].iter().all(|kind| *kind == "progress"), "{kinds:?}");
    it.server.finish();
}

#[test]
fn operation_goes_on_without_its_client() {
    let it = Controlled::start(&["-w", "1"]);
    let _busy = it.server.begin("/sleep?ms=1000");
    it.wait_status("the request is in progress", |pool| pool["in_flight"] == 1);
    // More than there are places, one after the other: each frees its own when it has gone.
    for _ in 0..40 {
        drop(it.send("/v1/recycle"));
        assert_eq!(it.connect().get("/healthz").status(), 200);
    }
    let (status, begun) = it.post("/v1/recycle?wait=0");
    assert_eq!(status, 202, "{begun}");
    wait_until("the operation ends", || it.operation(&begun["id"])["state"] == "done");
    let by = begun["by"].as_str().unwrap();
    assert_eq!(by, format!("uid {} pid {}", Uid::effective(), std::process::id()));
    it.server.finish();
}

#[test]
fn client_that_ends_its_input_is_answered() {
    let it = Controlled::start(&["-w", "1"]);
    let mut client = it.send("/v1/reload");
    client.finish_sending();
    assert_eq!(answer(&mut client).0, 200);
    client.expect_end();
    it.server.finish();
}

#[test]
fn signals_are_operations_too() {
    let it = Controlled::start(&["-w", "1"]);
    let newest = |command: &str, by: &str| {
        wait_until(by, || {
            let list = it.connect().get("/v1/operations").json();
            let newest = list["operations"][0].clone();
            newest["command"] == command && newest["by"] == by && newest["state"] == "done"
        });
    };
    it.server.signal(Signal::SIGHUP);
    newest("reload", "signal SIGHUP");
    it.server.signal(Signal::SIGTTIN);
    newest("scale", "signal SIGTTIN");
    it.server.signal(Signal::SIGUSR1);
    newest("reopen", "signal SIGUSR1");
    assert_eq!(it.command("/v1/reopen"), json!({}));
    assert_eq!(it.status()["operation"], Value::Null);
    it.server.finish();
}

#[test]
fn command_is_logged_with_client_and_operation() {
    let mut it = Controlled::start(&["-w", "1"]);
    it.refusal("/v1/scale?workers=0", 400);
    let (_, stop) = it.post("/v1/stop");
    it.server.expect_clean_exit();
    let record = |message: &str| {
        let records = it.server.records_of(message);
        assert_eq!(records.len(), 1, "{records:?}");
        records[0].clone()
    };
    let (received, refused, stopping) =
        (record("command received"), record("command refused"), record("stopping"));
    let by = stop["by"].as_str();
    assert_eq!((received.text("command"), received.text("by")), (Some("stop"), by));
    assert_eq!(received.number("operation"), stop["id"].as_i64());
    assert_eq!((refused.text("command"), refused.number("status")), (Some("scale"), Some(400)));
    assert_eq!(stopping.text("by"), by);
}

#[test]
fn reopen_fails_if_the_access_log_cannot_be_opened() {
    let launch = Launch::new(&["-w", "1"]);
    let dir = launch.path("logs");
    fs::create_dir(&dir).unwrap();
    let it = Controlled::of(launch.arg("--access-logfile").arg(format!("{dir}/access.log")));
    assert_eq!(it.command("/v1/reopen"), json!({}));
    fs::rename(&dir, format!("{dir}.old")).unwrap();
    let reason = it.refusal("/v1/reopen", 422);
    assert!(reason.contains("access.log"), "{reason}");
    it.server.finish();
}

#[test]
#[ignore = "slow"]
fn waiting_clients_keep_their_places() {
    // The replacement boots for 4 s. A recycling that is asked for later waits for it too.
    let it = Controlled::start(&["-w", "1", "--env", "DEMO_BOOT_SLEEP_MS=4000"]);
    let begin = |_| {
        let client = it.send("/v1/recycle");
        it.status();
        it.status(); // the command has been read by now: clients take turns
        client
    };
    let mut waiting: Vec<_> = (0..16).map(begin).collect();
    let full = "a seventeenth is refused";
    wait_until(full, || it.send("/v1/recycle").answer().status() == 503);
    // A crowd of new clients takes the places of the silent ones among themselves.
    let idle: Vec<_> = (0..200).map(|_| UnixStream::connect(&it.socket).unwrap()).collect();
    assert_eq!(it.connect().get("/healthz").status(), 200);
    for client in &mut waiting {
        assert_eq!(answer(client).0, 200);
    }
    drop(idle);
    it.server.finish();
}

#[test]
fn body_of_a_command_is_limited() {
    let it = Controlled::start(&["-w", "1"]);
    let post = |body: &str| {
        let mut client = it.connect();
        let length = body.len();
        client.send(format!(
            "POST /v1/scale HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n"
        ));
        let _ = client.try_send(body);
        client.answer().status()
    };
    assert_eq!(post(&format!("{{\"workers\":{}2}}", " ".repeat(60_000))), 200);
    assert_eq!(post(&"x".repeat(70_000)), 413);
    assert_eq!(post("\u{0}"), 400);
    assert_eq!(it.pool()["target"], 2);
    it.server.finish();
}

#[test]
fn values_of_env_reach_no_client() {
    let launch = Launch::new(&["-e", "API_KEY=abc987", "-e", "EMPTY="]);
    let it = Controlled::of(launch);
    let config = it.connect().get("/v1/config").text();
    assert!(config.contains("API_KEY=********, EMPTY=********"), "{config}");
    assert!(!config.contains("abc987"), "{config}");
    for path in ["/v1/config", "/v1/operations"] {
        assert_eq!(it.ask_metrics(path, &[]).status(), 403, "{path}");
    }
    it.server.finish();
}

#[test]
fn config_shows_sources_and_hides_secrets() {
    let launch = Launch::new(&["-w", "2"]).env("SECRET", "hunter2").env("OSTLER_TIMEOUT", "9");
    let path = launch.path("settings.yaml");
    fs::write(&path, "backlog: 100\nenv: ['TOKEN=${env:SECRET}']\n").unwrap();
    let it = Controlled::of(launch.arg("--config").arg(&path));
    let config = it.connect().get("/v1/config").text();
    assert!(!config.contains("hunter2"), "{config}");
    let config: Value = serde_json::from_str(&config).unwrap();
    let find = |key: &str| {
        let settings = config["settings"].as_array().unwrap();
        settings.iter().find(|it| it["key"] == key).unwrap().clone()
    };
    let shown = |key: &str, value: &str, source: &str| {
        assert_eq!((&find(key)["value"], &find(key)["source"]), (&json!(value), &json!(source)));
    };
    shown("workers", "2", "flag --workers");
    shown("timeout", "9s", "environment OSTLER_TIMEOUT");
    shown("backlog", "100", &format!("file {path}:1"));
    shown("env", "********", &format!("file {path}:2"));
    shown("graceful_timeout", "30s", "default");
    assert_eq!(find("user")["value"], Value::Null);
    fs::write(&path, "backlog: 200\n").unwrap();
    it.command("/v1/reload");
    let after = it.connect().get("/v1/config").text();
    assert!(after.contains("\"key\":\"backlog\",\"pool\":null,\"source\":"), "{after}");
    assert!(after.contains("\"value\":\"200\""), "{after}");
    it.server.finish();
}

#[test]
fn control_users_may_connect_and_others_not() {
    if !Uid::effective().is_root() {
        return; // only root has other users
    }
    let status_as = |uid: u32, socket: &Path| {
        let mut curl = Command::new("curl");
        curl.args(["-s", "-o", "/dev/null", "-w", "%{http_code}", "--unix-socket"]);
        let output = curl.arg(socket).arg("http://x/v1/status").uid(uid).gid(uid).output();
        String::from_utf8(output.unwrap().stdout).unwrap()
    };
    let launch = Launch::new(&["--control-user", "65534", "--control-user", "daemon"]);
    fs::set_permissions(launch.dir(), fs::Permissions::from_mode(0o755)).unwrap();
    let it = Controlled::of(launch);
    assert_eq!(fs::metadata(&it.socket).unwrap().permissions().mode() & 0o777, 0o666);
    assert_eq!(status_as(65_534, &it.socket), "200");
    assert_eq!(status_as(1, &it.socket), "200");
    assert_eq!(status_as(2, &it.socket), "000");
    it.server.finish();
    let unknown = Launch::new(&["--control-user", "nobody-of-this-name"]).run();
    assert_eq!(unknown.exit, Exit::Code(1), "{unknown:?}");
    assert!(unknown.stderr.contains("control-user"), "{unknown:?}");
}
