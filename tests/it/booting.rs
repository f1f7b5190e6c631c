//! Workers that fail to boot, boot slowly, or exit soon after.

use std::time::{Duration, Instant};

use crate::launch::Launch;
use crate::support::Exit;

on_every_class!(
    pool_never_ready_stops_the_master,
    worker_slow_boot_within_timeout_is_left_alone,
    crash_loop_backs_off,
);

fn pool_never_ready_stops_the_master(class: &str) {
    let launch = Launch::new(&["-k", class, "-w", "2"]).env("DEMO_FAIL_BOOT", "1");
    let (pidfile, sock) = (launch.path("pid"), launch.path("sock"));
    let bind = format!("unix:{sock}");
    let begun = Instant::now();
    let server = launch.arg("-p").arg(pidfile).arg("-b").arg(bind).spawn();
    assert_eq!(server.wait_exit_within(Duration::from_secs(15)), Some(Exit::Code(3)));
    let took = begun.elapsed();
    assert!(took < Duration::from_secs(15), "{took:?}");
    server.wait_silence();
    let exited = server.records_of("worker exited");
    assert!(!exited.is_empty());
    for record in exited {
        assert_eq!(record.text("reason"), Some("boot_failed"), "{record:?}");
    }
    assert!(server.records_of("worker ready").is_empty());
    assert!(server.records_of("all workers ready").is_empty());
    assert!(!server.path("pid").exists());
    assert!(!server.path("sock").exists());
    server.wait_no_survivors();
}

fn worker_slow_boot_within_timeout_is_left_alone(class: &str) {
    let flags = ["-k", class, "-t", "1s", "--boot-timeout", "15s"];
    let server = Launch::new(&flags).env("DEMO_BOOT_SLEEP_MS", "2000").start();
    assert_eq!(server.get("/").text(), "Hello, world!\n");
    assert!(server.records_of("worker hung").is_empty());
    assert!(server.records_of("worker exited").is_empty());
    server.finish();
}

fn crash_loop_backs_off(class: &str) {
    let server = Launch::new(&["-k", class]).env("DEMO_EXIT_AFTER_MS", "100").start();
    let end = server.wait_exit_within(Duration::from_secs(4));
    assert_eq!(end, None, "a server that was ready once never gives up");
    let started = server.records_of("worker started").len();
    assert!((2..=20).contains(&started), "{started} workers in four seconds");
    for exited in server.records_of("worker exited") {
        assert_eq!(exited.text("reason"), Some("crashed"), "{exited:?}");
        assert_eq!(exited.number("code"), Some(7), "{exited:?}");
    }
    server.finish();
}
