//! Well-behaved clients get correct answers.

use nix::sys::signal::{Signal, kill};

use crate::launch::Launch;
use crate::proc::{children, threads_stand_still, wait_until};
use crate::support::Server;

on_every_class_and_tokio!(
    each_worker_serves_with_its_own_slot,
    demo_answers_each_path,
    body_is_echoed,
    chunked_body_is_echoed,
    body_waits_for_100_continue,
    head_request_gets_no_body,
    large_answer_is_complete,
    panic_costs_one_answer,
    echo_returns_every_byte,
    ; except tokio:
    http_1_0_client_is_answered,
);

fn each_worker_serves_with_its_own_slot(class: &str) {
    let server = Server::start(&["-k", class, "-w", "3"]);
    let workers = server.wait_workers(3);
    assert_eq!(workers.iter().map(|worker| worker.slot).collect::<Vec<_>>(), [0, 1, 2]);
    let mut pids: Vec<_> = children(server.pid).iter().map(|child| child.pid).collect();
    pids.sort();
    let mut expected: Vec<_> = workers.iter().map(|worker| worker.pid).collect();
    expected.sort();
    assert_eq!(pids, expected);
    for worker in &workers {
        // With the others stopped, this worker must answer.
        let others = workers.iter().filter(|other| other != &worker);
        for other in others.clone() {
            kill(other.pid, Signal::SIGSTOP).unwrap();
            wait_until("all its threads stop", || threads_stand_still(other.pid));
        }
        let info = server.get("/info").json();
        assert_eq!(info["pid"], worker.pid.as_raw(), "{info}");
        assert_eq!(info["slot"], worker.slot, "{info}");
        assert_eq!(info["pool"], "default", "{info}");
        assert_eq!(info["class"], class, "{info}");
        assert_eq!(info["generation"], 1, "{info}");
        for other in others {
            kill(other.pid, Signal::SIGCONT).unwrap();
        }
    }
    server.finish();
}

fn demo_answers_each_path(class: &str) {
    let server = Launch::new(&["-k", class]).env("COLOUR", "blue").start();
    let hello = server.get("/");
    assert_eq!(hello.text(), "Hello, world!\n");
    assert_eq!(hello.head.get("content-length"), Some("14"));
    assert!(hello.head.get("date").is_some());
    assert_eq!(server.answering_pid(), server.workers()[0].pid);
    assert_eq!(server.get("/env?name=COLOUR").text().trim(), "blue");
    assert_eq!(server.get("/sleep?ms=1").status(), 200);
    assert_eq!(server.get("/bytes?n=0").text(), "");
    assert_eq!(server.get("/bytes?n=70000").body.len(), 70_000);
    assert_eq!(server.get("/nothing/here").status(), 404);
    let before = server.get("/info").json()["requests"].as_u64().unwrap();
    let after = server.get("/info").json()["requests"].as_u64().unwrap();
    assert_eq!(after, before + 1);
    server.finish();
}

fn body_is_echoed(class: &str) {
    let server = Server::start(&["-k", class]);
    let body = vec![b'x'; 1 << 20];
    let mut client = server.connect();
    client.send(format!(
        "POST /echo HTTP/1.1\r\nHost: test\r\nContent-Length: {}\r\n\r\n",
        body.len()
    ));
    client.send(&body);
    assert!(client.answer().body == body);
    server.finish();
}

fn chunked_body_is_echoed(class: &str) {
    let server = Server::start(&["-k", class]);
    let mut client = server.connect();
    client.send("POST /echo HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n");
    server.wait_taken(&client);
    client.send("5\r\nhello\r\n");
    server.wait_taken(&client);
    client.send("00A\r\n, chunked ");
    server.wait_taken(&client);
    client.send("\r\n5\r\nworld\r\n0\r\nTrailer: value\r\n\r\n");
    assert_eq!(client.answer().text(), "hello, chunked world");
    server.finish();
}

fn body_waits_for_100_continue(class: &str) {
    let server = Server::start(&["-k", class]);
    let mut client = server.connect();
    client.send(
        "POST /echo HTTP/1.1\r\nHost: test\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n",
    );
    assert_eq!(client.try_head().unwrap().status, 100);
    client.send("hello");
    assert_eq!(client.answer().text(), "hello");
    // A client that does not wait for `100 Continue` is answered as well.
    let mut client = server.connect();
    client.send(concat!(
        "POST /echo HTTP/1.1\r\nHost: test\r\nContent-Length: 5\r\n",
        "Expect: 100-continue\r\n\r\nhello"
    ));
    let mut head = client.try_head().unwrap();
    if head.status == 100 {
        head = client.try_head().unwrap();
    }
    assert_eq!(head.status, 200);
    server.finish();
}

fn head_request_gets_no_body(class: &str) {
    let server = Server::start(&["-k", class]);
    let mut client = server.connect();
    client.send("HEAD / HTTP/1.1\r\nHost: test\r\n\r\n");
    let head = client.try_head().unwrap();
    assert_eq!((head.status, head.get("content-length")), (200, Some("14")));
    if head.closes() {
        client.expect_end();
    } else {
        assert_eq!(client.get("/").text(), "Hello, world!\n");
    }
    server.finish();
}

fn http_1_0_client_is_answered(class: &str) {
    let server = Server::start(&["-k", class]);
    let mut client = server.connect();
    client.send("GET / HTTP/1.0\r\n\r\n");
    assert_eq!(client.answer().text(), "Hello, world!\n");
    client.expect_end();
    // HTTP/1.0 has no chunks: the answer has a length, or ends with the connection.
    let mut client = server.connect();
    client.send("GET /bytes?n=300000 HTTP/1.0\r\n\r\n");
    let answer = client.answer();
    assert_eq!(answer.head.get("transfer-encoding"), None);
    assert_eq!(answer.body.len(), 300_000);
    client.expect_end();
    server.finish();
}

fn large_answer_is_complete(class: &str) {
    let server = Server::start(&["-k", class]);
    let mut client = server.connect();
    client.ask("/bytes?n=67108864");
    let head = client.try_head().unwrap();
    let mut length = 0;
    client.try_body(&head, |piece| length += piece.len()).unwrap();
    assert_eq!(length, 64 << 20);
    server.finish();
}

fn panic_costs_one_answer(class: &str) {
    let server = Server::start(&["-k", class]);
    let pid = server.answering_pid();
    for _ in 0..3 {
        assert_eq!(server.get("/panic").status(), 500);
    }
    assert_eq!(server.answering_pid(), pid);
    server.finish();
}

fn echo_returns_every_byte(class: &str) {
    let server = Server::start(&["-k", class, "echo"]);
    let mut client = server.connect();
    let text: Vec<u8> = (0..1 << 20).map(|at: u32| at.to_le_bytes()[1]).collect();
    let (piece, more) = text.split_at(100_000);
    client.send(piece);
    client.send(more);
    client.finish_sending();
    assert!(client.rest() == text);
    server.finish();
}

#[test]
fn sync_connection_serves_one_request() {
    let server = Server::start(&["-k", "sync"]);
    let mut client = server.connect();
    assert!(client.get("/").head.closes());
    client.expect_end();
    server.finish();
}

on_concurrent_classes!(
    load_spreads_over_workers,
    connection_serves_many_requests,
    pipelined_requests_are_answered_in_order,
    finished_response_does_not_wait_for_the_next_request,
);

fn connection_serves_many_requests(class: &str) {
    let server = Server::start(&["-k", class]);
    let mut client = server.connect();
    for _ in 0..500 {
        let answer = client.get("/");
        assert_eq!(answer.text(), "Hello, world!\n");
        assert!(!answer.head.closes());
    }
    client.send("GET / HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n");
    assert!(client.answer().head.closes());
    client.expect_end();
    server.finish();
}

fn pipelined_requests_are_answered_in_order(class: &str) {
    let server = Server::start(&["-k", class]);
    let mut client = server.connect();
    let mut requests = String::new();
    for n in 0..200 {
        requests += &format!("GET /bytes?n={n} HTTP/1.1\r\nHost: test\r\n\r\n");
        requests += "POST /echo HTTP/1.1\r\nHost: test\r\nContent-Length: 3\r\n\r\nabc";
    }
    client.send(requests);
    for n in 0..200 {
        assert_eq!(client.answer().body.len(), n);
        assert_eq!(client.answer().text(), "abc");
    }
    server.finish();
}

fn finished_response_does_not_wait_for_the_next_request(class: &str) {
    let server = Server::start(&["-k", class, "--timeout", "3s"]);
    let worker = server.workers()[0];
    let mut client = server.connect();
    client.send(
        "GET /sleep?ms=20 HTTP/1.1\r\nHost: test\r\n\r\nGET /hang HTTP/1.1\r\nHost: test\r\n\r\n",
    );
    // It would be lost with the worker.
    assert_eq!(client.answer().status(), 200);
    server.wait_replaced(worker);
    client.expect_end();
}

fn load_spreads_over_workers(class: &str) {
    let server = Server::start(&["-k", class, "-w", "2"]);
    let workers = server.wait_workers(2);
    // The connections stay open, so each stays with the worker that accepted it.
    let mut clients = Vec::new();
    let mut pids = Vec::new();
    for _ in 0..200 {
        let mut client = server.connect();
        pids.push(client.get("/pid").text().trim().to_owned());
        clients.push(client);
    }
    for worker in workers {
        let share = pids.iter().filter(|pid| **pid == worker.pid.to_string()).count();
        assert!(share >= 20, "{worker:?} has {share} of 200 clients");
    }
    drop(clients);
    server.finish();
}
