//! The access log: one record for each unit of work, whatever clients send, and no request waits for it.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use nix::sys::signal::{Signal, kill};
use nix::sys::stat::Mode;
use nix::unistd::{User, mkfifo};
use serde_json::Value;

use crate::control::Controlled;
use crate::launch::Launch;
use crate::log_capture::Record;
use crate::proc::{children, wait_until};
use crate::support::{DEADLINE, Exit, Server};

on_every_class_and_tokio!(
    every_request_has_one_record,
    atoms_have_their_values,
    disconnected_client_is_logged_with_sent_bytes,
    reopening_under_load_loses_no_record,
    full_disk_drops_records_and_serves_on,
    pipe_without_reader_delays_no_request,
    unprivileged_workers_reopen_the_access_log,
    reload_changes_the_access_log;
    // hyper answers invalid requests itself, and the program of the tests has no calls.
    except tokio: forged_records_are_impossible, responses_of_the_server_itself_are_logged, calls_are_logged;
    tokio alone: request_without_response_is_logged, id_of_a_request_is_in_its_record,
        bodies_without_a_size_hint_end_as_they_were_sent, head_that_was_not_sent_is_aborted,
);

mod of_jobs {
    use super::runs_of_jobs_are_logged;
    on_job_classes!(runs_of_jobs_are_logged);
}

/// Starts a server with an access log in the file `access`.
fn start(class: &str, format: &str, flags: &[&str]) -> Server {
    launch(class, format, flags).start()
}

fn launch(class: &str, format: &str, flags: &[&str]) -> Launch {
    let own = ["-k", class, "--access-logfile", "access", "--access-logformat", format];
    Launch::new(&[&own, flags].concat())
}

fn text_of(server: &Server, name: &str) -> String {
    fs::read_to_string(server.path(name)).unwrap_or_default()
}

/// Waits until the file has this many records, and returns them.
#[track_caller]
fn wait_records(server: &Server, count: usize) -> Vec<String> {
    wait_until("the records", || text_of(server, "access").lines().count() >= count);
    let text = text_of(server, "access");
    assert!(text.ends_with('\n') && text.lines().count() == count, "not {count}:\n{text}");
    text.lines().map(str::to_owned).collect()
}

#[track_caller]
fn wait_json(server: &Server, count: usize) -> Vec<Value> {
    let records = wait_records(server, count);
    records.iter().map(|line| serde_json::from_str(line).expect(line)).collect()
}

/// Sends bytes, and waits until the server closes the connection.
#[track_caller]
fn exchange(server: &Server, bytes: impl AsRef<[u8]>) -> Vec<u8> {
    let mut client = server.connect();
    client.send(bytes);
    client.rest()
}

/// Sends requests from several clients at once until `is_over` after `count` each, and returns how
/// many were answered. All were.
fn send_requests(server: &Server, count: usize, is_over: impl Fn() -> bool + Sync) -> usize {
    let send = || {
        let (mut client, mut answered) = (None, 0);
        while answered < count || !is_over() {
            if answered % 7 == 6 {
                client = None;
                assert_eq!(server.get("/").status(), 200);
            } else {
                let answer = client.get_or_insert_with(|| server.connect()).get("/");
                assert_eq!(answer.status(), 200);
                if answer.head.closes() {
                    client = None;
                }
            }
            answered += 1;
        }
        answered
    };
    thread::scope(|scope| {
        let clients: Vec<_> = (0..4).map(|_| scope.spawn(send)).collect();
        clients.into_iter().map(|client| client.join().unwrap()).sum()
    })
}

fn every_request_has_one_record(class: &str) {
    let server = start(class, "combined", &["-w", "3"]);
    let mut count = send_requests(&server, 100, || true);
    // Pipelined requests are answered in one piece.
    let close = if class == "sync" { 1 } else { 20 };
    let request = "GET /bytes?n=5 HTTP/1.1\r\nHost: x\r\n\r\n".repeat(close - 1);
    let last = "GET /bytes?n=5 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    let answers = exchange(&server, request + last);
    assert_eq!(String::from_utf8(answers).unwrap().matches("200 OK").count(), close);
    count += close;
    for line in wait_records(&server, count) {
        let plain = line.strip_prefix("127.0.0.1 - - [").expect(&line);
        let (_, plain) = plain.split_once(" +0000] \"").expect(&line);
        let answers =
            ["GET / HTTP/1.1\" 200 14 \"-\" \"-\"", "GET /bytes?n=5 HTTP/1.1\" 200 5 \"-\" \"-\""];
        assert!(answers.contains(&plain), "{line}");
    }
    server.finish();
}

fn forged_records_are_impossible(class: &str) {
    let hostile: [&[u8]; 4] = [
        b"a\" 200 1 \"-\" \"-\"",
        b"\\\" \\x22 \\",
        b"\x80\xff\xc3\xa9\xe2\x80\xa8\xe2\x80\xae",
        &[b'"'; 3000],
    ];
    for format in ["combined", "json", "\"%({x-a}i)s\" \"%(r)s\" \"%(f)s\" \"%(a)s\""] {
        let server = start(class, format, &[]);
        for text in hostile {
            for name in ["User-Agent", "Referer", "X-A", "Authorization", "traceparent"] {
                let head = format!("GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{name}: ");
                let request = [head.as_bytes(), text, b"\r\n\r\n"].concat();
                exchange(&server, request);
            }
            exchange(&server, [text, b"\r\n\r\n"].concat());
            exchange(&server, [b"GET /", text, b" HTTP/1.1\r\nHost: x\r\n\r\n"].concat());
        }
        for line in wait_records(&server, hostile.len() * 7) {
            assert!(line.len() < 4096, "{}", line.len());
            assert!(!line.contains(|c: char| c.is_control() || "\u{2028}\u{202e}".contains(c)));
            if format == "json" {
                let record: Value = serde_json::from_str(&line).expect(&line);
                assert!(record["status"].is_number() && record["kind"] == "http", "{line}");
                continue;
            }
            let quotes = if format == "combined" { 6 } else { 8 };
            assert_eq!(line.matches('"').count(), quotes, "{line}");
            assert!(line.is_ascii() && line.split('"').all(|it| it.len() <= 1100), "{line}");
        }
        server.finish();
    }
}

fn responses_of_the_server_itself_are_logged(class: &str) {
    let flags = ["--limit-request-body", "10", "--header-timeout", "2s"];
    let server = start(class, "json", &flags);
    exchange(&server, "nonsense\r\n\r\n");
    exchange(&server, "POST /e?q HTTP/1.1\r\nHost: x\r\nContent-Length: 99\r\n\r\n");
    exchange(&server, "GET /late HTTP/1.1\r\nHo");
    exchange(&server, "GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    // Without a request there is no unit of work.
    drop(server.connect());
    exchange(&server, "");
    assert_eq!(server.get("/panic").status(), 500);
    // A record follows its response, so another thread may write the next one first.
    let mut records = wait_json(&server, 5);
    records.sort_by_key(|it| it["status"].as_u64());
    let facts: Vec<_> = records
        .iter()
        .map(|it| (it["status"].as_u64().unwrap(), it["method"].as_str(), it["path"].as_str()))
        .collect();
    let expected = [
        (200, Some("GET"), Some("/")),
        (400, None, None),
        (408, Some("GET"), Some("/late")),
        (413, Some("POST"), Some("/e")),
        (500, Some("GET"), Some("/panic")),
    ];
    // The request line of the late one had arrived whole.
    assert_eq!(facts, expected);
    assert_eq!(records[1]["request"], "nonsense");
    assert!(records.iter().all(|it| it["bytes"].as_u64().unwrap() > 0), "{records:#?}");
    server.finish();
}

fn disconnected_client_is_logged_with_sent_bytes(class: &str) {
    let server = start(class, "json", &["--write-timeout", "500ms"]);
    // One that leaves, and one that stays and does not read.
    let mut client = server.connect();
    client.ask("/bytes?n=50000000");
    client.read_some();
    client.reset();
    let left = &wait_json(&server, 1)[0];
    let mut silent = server.connect();
    silent.ask("/bytes?n=50000000");
    let silent_record = &wait_json(&server, 2)[1];
    for record in [left, silent_record] {
        assert_eq!((&record["end"], &record["status"]), (&"aborted".into(), &200.into()));
        let bytes = record["bytes"].as_u64().unwrap();
        assert!(0 < bytes && bytes < 50_000_000, "{record}");
    }
    let waited = silent_record["duration_us"].as_u64().unwrap();
    assert!(waited >= 500_000, "{silent_record}");
    // All that the kernel took is counted.
    let arrived = silent.rest().len() as u64;
    let bytes = silent_record["bytes"].as_u64().unwrap();
    assert!(arrived.abs_diff(bytes) < 1000, "{arrived} arrived, {bytes} are logged");
    // A whole stream, and a chunked one.
    let whole = exchange(&server, "GET /bytes?n=300000 HTTP/1.0\r\n\r\n");
    assert!(whole.len() > 300_000);
    let record = &wait_json(&server, 3)[2];
    assert_eq!((&record["end"], &record["bytes"]), (&"complete".into(), &300_000.into()));
    server.finish();
}

fn reopening_under_load_loses_no_record(class: &str) {
    let server = start(class, "combined", &["-w", "2"]);
    let rotations = 5;
    let is_over = AtomicBool::new(false);
    let answered = thread::scope(|scope| {
        let load = scope.spawn(|| send_requests(&server, 50, || is_over.load(Ordering::Relaxed)));
        for number in 0..rotations {
            wait_until("records", || text_of(&server, "access").lines().count() >= 20);
            fs::rename(server.path("access"), server.path(&format!("access.{number}"))).unwrap();
            server.signal(Signal::SIGUSR1);
        }
        is_over.store(true, Ordering::Relaxed);
        load.join().unwrap()
    });
    let names: Vec<_> = (0..rotations).map(|number| format!("access.{number}")).collect();
    let all = || {
        let texts = names.iter().map(String::as_str).chain(["access"]);
        texts.map(|name| text_of(&server, name)).collect::<String>()
    };
    wait_until("all records", || all().lines().count() >= answered);
    let text = all();
    assert_eq!(text.lines().count(), answered);
    assert!(text.lines().all(|line| line.ends_with("\"GET / HTTP/1.1\" 200 14 \"-\" \"-\"")));
    server.finish();
}

fn full_disk_drops_records_and_serves_on(class: &str) {
    let it = Controlled::start(&["-k", class, "--access-logfile", "/dev/full"]);
    let server = &it.server;
    for _ in 0..50 {
        assert_eq!(server.get("/").status(), 200);
    }
    let is_loss = |record: &Record| record.message() == "access log records dropped";
    let loss = server.wait_for("the loss", is_loss);
    assert_eq!(loss.number("dropped"), Some(1));
    // Once, until the log is opened again.
    server.signal(Signal::SIGUSR1);
    server.wait_for("it is reopened", |record| record.message() == "logs reopened");
    wait_until("the next loss is logged", || {
        assert_eq!(server.get("/").status(), 200);
        server.records().iter().filter(|record| is_loss(record)).count() == 2
    });
    let is_counted =
        |pool: &Value| pool["access_log_dropped_total"].as_u64().is_some_and(|count| count > 50);
    it.wait_status("the losses are counted", is_counted);
    assert!(it.metrics().contains("\nostler_access_log_records_dropped_total{pool=\"default\"} 5"));
    it.server.finish();
}

fn pipe_without_reader_delays_no_request(class: &str) {
    let launch = launch(class, "combined", &[]);
    let path = launch.path("access");
    mkfifo(path.as_str(), Mode::from_bits_truncate(0o600)).unwrap();
    let server = launch.start();
    // More than a pipe holds.
    let long = "x".repeat(1000);
    for _ in 0..150 {
        let request =
            format!("GET / HTTP/1.1\r\nHost: x\r\nUser-Agent: {long}\r\nConnection: close\r\n\r\n");
        assert!(exchange(&server, request).starts_with(b"HTTP/1.1 200 OK"));
    }
    server.wait_for("the loss", |record| record.message() == "access log records dropped");
    let flags = libc::O_NONBLOCK;
    let mut reader = File::options().read(true).custom_flags(flags).open(&path).unwrap();
    let mut bytes = vec![0; 1 << 20];
    let mut text = String::new();
    wait_until("it is read", || {
        if let Ok(length @ 1..) = reader.read(&mut bytes) {
            text.push_str(str::from_utf8(&bytes[..length]).unwrap());
        }
        // There is room again.
        assert_eq!(server.get("/").status(), 200);
        text.lines().any(|line| line.ends_with("\"-\" \"-\""))
    });
    let whole = text.lines().filter(|line| line.ends_with(&format!("{long}\""))).count();
    assert!(whole > 40, "{whole}");
    server.finish();
}

fn unprivileged_workers_reopen_the_access_log(class: &str) {
    if !nix::unistd::Uid::effective().is_root() {
        return eprintln!("skipped: only root can run workers as another user");
    }
    let launch = launch(class, "combined", &["--user", "nobody", "--chdir", "/usr"]);
    let open = fs::Permissions::from_mode(0o777);
    fs::set_permissions(launch.dir(), open).unwrap();
    let server = launch.start();
    let nobody = User::from_name("nobody").unwrap().unwrap().uid.as_raw();
    for round in 0..2 {
        assert_eq!(server.get("/").status(), 200);
        wait_records(&server, 1);
        let status = fs::metadata(server.path("access")).unwrap();
        assert_eq!((status.uid(), status.mode() & 0o777), (nobody, 0o640));
        fs::rename(server.path("access"), server.path(&format!("old.{round}"))).unwrap();
        server.signal(Signal::SIGUSR1);
        let old = format!("old.{round}");
        let worker = children(server.pid)[0].pid;
        wait_until("the worker has the new file", || {
            let links = fs::read_dir(format!("/proc/{worker}/fd")).unwrap().flatten();
            let paths: Vec<_> = links.filter_map(|it| fs::read_link(it.path()).ok()).collect();
            !paths.contains(&server.path(&old)) && paths.contains(&server.path("access"))
        });
    }
    server.finish();
}

fn reload_changes_the_access_log(class: &str) {
    let launch = Launch::new(&["-k", class, "--config", "o.yaml"]);
    let config = launch.path("o.yaml");
    fs::write(&config, "access_log: one\naccess_log_format: '%(s)s %(U)s'\n").unwrap();
    let server = launch.start();
    let reload = |text: &str, message: &str| {
        let mark = server.mark();
        fs::write(&config, text).unwrap();
        server.signal(Signal::SIGHUP);
        let record =
            server.wait_for_new_record(mark, message, |record| record.message() == message);
        // A worker that drains may still serve.
        wait_until("old workers exit", || children(server.pid).len() == 1);
        record
    };
    assert_eq!(server.get("/x").status(), 404);
    reload("access_log: access\naccess_log_format: '%(m)s'\n", "reload complete");
    assert_eq!(server.get("/").status(), 200);
    assert_eq!(wait_records(&server, 1), ["GET"]);
    assert_eq!(text_of(&server, "one"), "404 /x\n");
    let error = reload("access_log: access\naccess_log_format: '%(zz)s'\n", "reload rejected");
    assert!(error.text("error").unwrap().contains("unknown atom %(zz)s"), "{error:?}");
    let error = reload("access_log: missing/access\n", "reload rejected");
    assert!(error.text("error").unwrap().contains("missing/access"), "{error:?}");
    reload("timeout: 30\n", "reload complete");
    assert_eq!(server.get("/").status(), 200);
    server.signal(Signal::SIGTERM);
    assert_eq!(server.wait_exit(), Exit::Code(0));
    assert_eq!(text_of(&server, "access"), "GET\n");
}

#[cfg(feature = "rpc")]
fn calls_are_logged(class: &str) {
    let server = launch(class, "combined", &[]).arg("rpc").start();
    let call = |id: u32, method: &str| rmp_serde::to_vec(&(0, id, method, (1, 2))).unwrap();
    let notification = rmp_serde::to_vec(&(2, "add", (1, 2))).unwrap();
    let calls = [call(1, "add"), call(2, "a\" \u{1b}é"), notification].concat();
    let mut stream = TcpStream::connect(server.address()).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream.write_all(&calls).unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    stream.read_to_end(&mut Vec::new()).unwrap();
    let facts: Vec<_> = wait_records(&server, 3)
        .iter()
        .map(|line| line.split_once("] ").unwrap().1.to_owned())
        .collect();
    assert_eq!(facts[0], "\"CALL add MessagePack-RPC\" 200 5 \"-\" \"-\"");
    let error = r#""CALL a\x22 \x1B\xC3\xA9 MessagePack-RPC" 500 "#;
    assert!(facts[1].starts_with(error), "{facts:#?}");
    assert_eq!(facts[2], "\"NOTIFY add MessagePack-RPC\" 200 - \"-\" \"-\"");
    server.finish();
}

#[cfg(not(feature = "rpc"))]
fn calls_are_logged(_class: &str) {}

fn request_without_response_is_logged(class: &str) {
    let server = start(class, "json", &[]);
    let client = server.begin("/await?q");
    drop(client);
    let record = &wait_json(&server, 1)[0];
    assert_eq!((&record["status"], &record["end"]), (&499.into(), &"aborted".into()), "{record}");
    assert_eq!((&record["path"], &record["query"]), (&"/await".into(), &"q".into()), "{record}");
    let refused = exchange(&server, "GET / HTTP/1.1\r\nConnection: close\r\n\r\n");
    assert!(refused.starts_with(b"HTTP/1.1 400"));
    let record = &wait_json(&server, 2)[1];
    assert_eq!((&record["status"], &record["bytes"]), (&400.into(), &12.into()), "{record}");
    // A body that the app does not read hides no client that has gone.
    for waits in [false, true] {
        let mut client = server.connect();
        client.send("GET /await HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}");
        if waits {
            server.wait_taken(&client);
        }
        drop(client);
        let record = &wait_json(&server, 3 + usize::from(waits))[2 + usize::from(waits)];
        assert_eq!(record["status"], 499, "{record}");
    }
    // The end of the client's output may arrive with its request.
    const CLIENTS: usize = 20;
    for _ in 0..CLIENTS {
        let mut client = TcpStream::connect(server.address()).unwrap();
        client.write_all(b"GET /early HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        let _ = client.read_to_end(&mut Vec::new());
    }
    let records = wait_json(&server, 4 + CLIENTS);
    assert!(records[4..].iter().all(|record| record["path"] == "/early"), "{records:#?}");
    server.finish();
}

fn bodies_without_a_size_hint_end_as_they_were_sent(class: &str) {
    let server = start(class, "json", &[]);
    let cases = [
        ("/sized?pieces=3", 3000),
        ("/sized?pieces=0", 0),
        ("/sized?pieces=3&says=3000", 3000),
        ("/sized?pieces=3&empty=true", 3000),
        ("/sized?pieces=3&says=3000&empty=true", 3000),
        // hyper cuts the rest off.
        ("/sized?pieces=3&says=2500", 2500),
        ("/sized?pieces=3&says=0", 0),
    ];
    for (index, (target, bytes)) in cases.into_iter().enumerate() {
        exchange(&server, format!("GET {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"));
        let record = &wait_json(&server, index + 1)[index];
        let end = (&record["end"], &record["bytes"]);
        assert_eq!(end, (&"complete".into(), &bytes.into()), "{target}");
    }
    let count = cases.len();
    let head = "HEAD /sized?pieces=3&says=3000 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    exchange(&server, head);
    let record = &wait_json(&server, count + 1)[count];
    assert_eq!((&record["end"], &record["bytes"]), (&"complete".into(), &0.into()), "{record}");
    // Less than it says: hyper closes the connection.
    exchange(&server, "GET /sized?pieces=3&says=3500 HTTP/1.1\r\nHost: x\r\n\r\n");
    assert_eq!(wait_json(&server, count + 2)[count + 1]["end"], "failed");
    server.finish();
}

fn head_that_was_not_sent_is_aborted(class: &str) {
    let server = start(class, "json", &["--write-timeout", "500ms"]);
    let mut client = server.connect();
    client.ask("/head_only?n=10");
    assert_eq!(wait_json(&server, 1)[0]["end"], "complete");
    // More than the buffers of the sockets take, while the client reads nothing.
    let request = "GET /head_only?n=200000 HTTP/1.1\r\nHost: x\r\n\r\n";
    client.send(request.repeat(200));
    wait_until("the end of the connection", || text_of(&server, "access").contains("aborted"));
    let text = text_of(&server, "access");
    assert!(text.contains("complete"), "{text}");
    server.finish();
}

fn id_of_a_request_is_in_its_record(class: &str) {
    let server = start(class, "%(id)s", &["--request-id-header", "X-Id"]);
    let mut ids: Vec<_> = (0..20).map(|_| server.get("/id").text()).collect();
    let given = "GET /id HTTP/1.1\r\nHost: x\r\nX-Id: mine\r\nConnection: close\r\n\r\n";
    assert!(exchange(&server, given).ends_with(b"\r\nmine"));
    ids.push("mine".to_owned());
    let mut records = wait_records(&server, 21);
    records.sort();
    ids.sort();
    assert_eq!(records, ids);
    ids.dedup();
    assert_eq!(ids.len(), 21);
    server.finish();
}

fn runs_of_jobs_are_logged(class: &str) {
    let launch = launch(class, "json", &["--threads", "2"]).unbound();
    let server = launch.arg("tick").arg("every=20ms").start();
    wait_until("a few runs", || text_of(&server, "access").lines().count() >= 4);
    server.signal(Signal::SIGTERM);
    assert_eq!(server.wait_exit(), Exit::Code(0));
    server.wait_silence(); // all of the log has been read
    let text = text_of(&server, "access");
    let ticks = server.records_of("tick").len();
    assert_eq!(text.lines().count(), ticks);
    for line in text.lines() {
        let record: Value = serde_json::from_str(line).expect(line);
        assert_eq!((&record["kind"], &record["method"]), (&"job".into(), &"RUN".into()));
        assert!(record["path"].as_str().unwrap().starts_with("tick"), "{line}");
        assert_eq!(record["status"], 200);
    }
}

fn atoms_have_their_values(class: &str) {
    let atoms = "%(h)s|%(l)s|%(u)s|%(t)s|%(r)s|%(s)s|%(b)s|%(f)s|%(a)s|%(m)s|%(U)s|%(q)s|%(H)s|%(B)s|\
        %(D)s|%(M)s|%(T)s|%(L)s|%(p)s|%(pid)s|%(pool)s|%(slot)s|%(id)s|%(traceparent)s|%(kind)s|\
        %(end)s|%({X-Two}i)s|%({content-length}o)s|%({none}o)s|100%%";
    let server = start(class, atoms, &["--request-id-header", "X-Request-Id"]);
    let worker = server.wait_workers(1)[0].pid;
    let trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    exchange(
        &server,
        format!(
            "GET /sleep?ms=20 HTTP/1.1\r\nHost: x\r\nConnection: close\r\nReferer: http://r/\r\n\
             User-Agent: agent/1\r\nAuthorization: Basic Ym9iOnNlY3JldA==\r\nX-Two: 2\r\n\
             X-Request-Id: abc-1\r\ntraceparent: {trace}\r\n\r\n"
        ),
    );
    let line = &wait_records(&server, 1)[0];
    let values: Vec<&str> = line.split('|').collect();
    let number = |at: usize| values[at].parse::<u64>().unwrap();
    assert_eq!(values[..3], ["127.0.0.1", "-", "bob"]);
    assert!(values[3].starts_with('[') && values[3].ends_with(" +0000]"), "{line}");
    assert_eq!(values[3].len(), "[10/Oct/2000:13:55:36 +0000]".len());
    assert_eq!(values[4..6], ["GET /sleep?ms=20 HTTP/1.1", "200"]);
    assert_eq!(values[7..13], ["http://r/", "agent/1", "GET", "/sleep", "ms=20", "HTTP/1.1"]);
    assert_eq!(values[6], values[13]);
    assert!(number(14) >= 20_000 && number(14) / 1000 == number(15), "{line}");
    assert_eq!(number(16), number(14) / 1_000_000);
    let seconds: f64 = values[17].parse().unwrap();
    assert_eq!((seconds * 1e6).round() as u64, number(14));
    assert_eq!(values[18], format!("<{worker}>"));
    assert_eq!(values[19], worker.to_string());
    assert_eq!(values[20..26], ["default", "0", "abc-1", trace, "http", "complete"]);
    assert_eq!(values[26..], ["2", values[13], "-", "100%"]);
    server.finish();
}

#[test]
fn request_ids_differ_in_all_workers() {
    let server = start("sync", "%(id)s", &["-w", "4"]);
    for _ in 0..40 {
        let request =
            "GET / HTTP/1.1\r\nHost: x\r\nX-Request-Id: forged\r\nConnection: close\r\n\r\n";
        exchange(&server, request);
    }
    for worker in server.wait_workers(4) {
        kill(worker.pid, Signal::SIGKILL).unwrap();
        server.wait_replaced(worker);
    }
    for _ in 0..40 {
        assert_eq!(server.get("/").status(), 200);
    }
    let ids: BTreeSet<_> = wait_records(&server, 80).into_iter().collect();
    assert_eq!(ids.len(), 80);
    let is_hex = |id: &String| id.len() == 32 && id.bytes().all(|byte| byte.is_ascii_hexdigit());
    assert!(ids.iter().all(is_hex), "{ids:?}");
    server.finish();
}

#[test]
fn sample_keeps_server_errors() {
    let server = start("mio", "%(s)s", &["--access-log-sample", "0"]);
    for _ in 0..20 {
        assert_eq!(server.get("/").status(), 200);
        assert_eq!(server.get("/nothing").status(), 404);
        assert_eq!(server.get("/bytes?n=100000").status(), 200);
        assert_eq!(server.get("/panic").status(), 500);
    }
    assert!(wait_records(&server, 20).iter().all(|status| status == "500"));
    server.finish();
    let server = start("mio", "%(s)s", &["--access-log-sample", "0.5"]);
    for _ in 0..200 {
        assert_eq!(server.get("/").status(), 200);
    }
    server.signal(Signal::SIGTERM);
    assert_eq!(server.wait_exit(), Exit::Code(0));
    // One of 10^13 runs has fewer or more.
    let count = text_of(&server, "access").lines().count();
    assert!((47..=153).contains(&count), "{count}");
}

#[test]
fn buffered_records_are_written_in_one_turn() {
    const CLIENTS: usize = 20;
    let flags = ["--workers", "1", "--access-log-buffer"];
    let server = start("mio", "%(m)s %(U)s %(s)s", &flags);
    // A worker that is about to wait has written everything.
    for count in 1..=3 {
        assert_eq!(server.get("/").status(), 200);
        wait_records(&server, count);
    }
    // More than a buffer holds, in one turn: pipelined requests, and clients at the same time.
    let mut clients: Vec<_> = (0..CLIENTS).map(|_| server.connect()).collect();
    let requests = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n".repeat(20);
    for client in &mut clients {
        client.send(&requests);
    }
    let records = wait_records(&server, 3 + CLIENTS * 20);
    assert!(records.iter().all(|record| record == "GET / 200"), "{records:?}");
    // A graceful stop loses none.
    assert_eq!(server.get("/").status(), 200);
    server.signal(Signal::SIGTERM);
    assert_eq!(server.wait_exit(), Exit::Code(0));
    assert_eq!(text_of(&server, "access").lines().count(), 4 + CLIENTS * 20);
}

/// Runs a program that reads the log, if it is installed.
fn run_reader(server: &Server, words: &[&str]) -> Option<String> {
    let mut command = Command::new(words[0]);
    let ran = command.args(&words[1..]).arg(server.path("access")).stdin(Stdio::null()).output();
    match ran {
        Ok(output) => Some(String::from_utf8_lossy(&output.stdout).into_owned()),
        Err(error) => {
            eprintln!("skipped: {}: {error}", words[0]);
            None
        }
    }
}

#[test]
fn goaccess_and_fail2ban_read_the_log() {
    let server = start("mio", "combined", &[]);
    for agent in ["agent/1", "evil\" \\ \u{e9}", &"x".repeat(5000)] {
        let head = format!("Host: x\r\nUser-Agent: {agent}\r\nConnection: close\r\n\r\n");
        exchange(&server, format!("GET /?a=\"b HTTP/1.1\r\n{head}"));
        exchange(&server, format!("HEAD /a HTTP/1.0\r\n{head}"));
        exchange(&server, format!("GET /bytes?n=99999 HTTP/1.1\r\n{head}"));
    }
    wait_records(&server, 9);
    let words = ["goaccess", "--no-global-config", "--log-format=COMBINED", "-o", "json", "-f"];
    if let Some(text) = run_reader(&server, &words) {
        let report: Value = serde_json::from_str(&text).expect(&text);
        let general = &report["general"];
        assert_eq!(
            (&general["valid_requests"], &general["failed_requests"]),
            (&9.into(), &0.into())
        );
    }
    // Its filter for such lines. The log comes before the filter.
    let filter = "^<HOST> - \\S+ \\[\\] \"[^\"]*\" 400";
    let path = server.path("access");
    let found = Command::new("fail2ban-regex").arg(&path).arg(filter).output();
    match found {
        Err(error) => eprintln!("skipped: fail2ban-regex: {error}"),
        Ok(output) => {
            let text = String::from_utf8_lossy(&output.stdout);
            assert!(text.contains("Lines: 9 lines, 0 ignored, 3 matched, 6 missed"), "{text}");
        }
    }
    server.finish();
}

#[test]
fn dash_is_standard_output() {
    let server = Launch::new(&["-k", "mio", "--access-logfile", "-"]).start();
    assert_eq!(server.get("/").status(), 200);
    server.signal(Signal::SIGTERM);
    let stdout = server.into_outcome(|| ()).0.stdout;
    assert!(stdout.ends_with("\"GET / HTTP/1.1\" 200 14 \"-\" \"-\"\n"), "{stdout}");
    assert_eq!(stdout.lines().count(), 1);
}

#[test]
fn impossible_access_logs_are_rejected_before_the_start() {
    for (flags, reason) in [
        (&["--access-logfile", "a", "--access-logformat", "%(h)s %(z)s"][..], "unknown atom %(z)s"),
        (&["--access-logfile", "missing/a"], "missing/a"),
        (&["--access-logfile", "/"], "cannot be written"),
        (&["--access-logfile", "a", "--log-file", "a"], "is also the log_file"),
        (&["--access-logfile", "a", "--pid", "a"], "is also the pidfile"),
        (&["--access-log-sample", "2"], "is not a share"),
        (&["--request-id-header", "a b"], "is not the name of a header field"),
    ] {
        let outcome = Launch::new(&[&["--check-config"], flags].concat()).plain().run();
        assert!(outcome.exit != Exit::Code(0), "{flags:?}");
        assert!(outcome.stderr.contains(reason), "{flags:?}: {}", outcome.stderr);
    }
    let exec = Launch::new(&["-k", "exec", "--check-config", "--access-logfile", "a"]);
    let outcome = exec.program(&["sleep", "9"]).plain().run();
    assert!(outcome.stderr.contains("exec cannot log the requests"), "{}", outcome.stderr);
}
