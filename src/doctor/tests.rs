use super::checks::{Facts, Finding, Level, PoolFacts, findings, start_error};
use crate::settings::Settings;

/// A machine on which nothing is wrong.
fn healthy() -> Facts {
    Facts {
        nofile: Some((1024, 1 << 20)),
        somaxconn: Some(4096),
        syn_backlog: Some(4096),
        heartbeat_dir: Some(("/dev/shm".into(), true)),
        memory_limit: None,
        pids_limit: Some(1000),
        is_root: false,
        ptrace_scope: Some(1),
        core_pattern: Some("|/lib/systemd/systemd-coredump".into()),
        overcommit: Some(0),
        huge_pages: Some("madvise".into()),
        clock_source: Some("tsc".into()),
        conntrack: Some((10, 1000)),
        log_dirs: vec![("/var/log".into(), 1 << 40)],
        unit: Some(("shop.service".into(), "mixed".into())),
        lease_store: vec![Ok(None)],
    }
}

fn settings(yaml: &str) -> Settings {
    Settings::from_yaml(yaml, "x.yaml".as_ref()).expect("valid settings")
}

fn found(facts: &Facts, yaml: &str) -> Vec<Finding> {
    findings(facts, &[PoolFacts { name: "default", settings: &settings(yaml) }])
}

/// Asserts that one check finds something, of this level and with these words, and no other does.
#[track_caller]
fn assert_only(facts: &Facts, yaml: &str, check: &str, level: Level, words: &str) {
    let mut bad = found(facts, yaml);
    bad.retain(|finding| finding.level != Level::Ok);
    let [finding] = &bad[..] else { panic!("{bad:?}") };
    assert_eq!((finding.check, finding.level), (check, level), "{finding:?}");
    assert!(finding.text.contains(words), "{finding:?}");
    assert!(!finding.advice.is_empty(), "{finding:?}");
}

#[test]
fn healthy_machine_has_no_finding() {
    let all = found(&healthy(), "workers: 4\n");
    assert!(all.iter().all(|finding| finding.level == Level::Ok), "{all:?}");
    assert!(all.len() >= 12, "{all:?}");
    let nofile = all.iter().find(|finding| finding.check == "nofile").expect("a finding");
    assert!(nofile.text.contains("raise their soft limit from 1024"), "{nofile:?}");
    assert!(found(&Facts::default(), "workers: 4\n").is_empty(), "nothing is known");
}

#[test]
fn descriptors_are_compared_with_connections() {
    use Level::{Error, Warning};
    let low = Facts { nofile: Some((1024, 4096)), ..healthy() };
    assert_only(&low, "workers: 1\n", "nofile", Warning, "needs 10128 descriptors");
    assert_only(&low, "worker_connections: 5000\n", "nofile", Error, "the hard limit is 4096");
    assert_only(
        &low,
        "rlimit_nofile: 500\nworker_connections: 500\n",
        "nofile",
        Error,
        "rlimit_nofile is 500",
    );
    assert_only(&low, "rlimit_nofile: 20000\n", "nofile", Error, "exceeds the hard limit");
    let root = Facts { is_root: true, ..low };
    assert!(found(&root, "rlimit_nofile: 20000\n").iter().all(|it| it.level == Level::Ok));
    let program = found(&root, "worker_class: exec\ncommand: [a]\nbind: none\n");
    assert!(program.iter().all(|it| it.check != "nofile"));
    let job = found(&root, "worker_class: job\nbind: none\n");
    assert!(job.iter().all(|it| it.check != "nofile"));
}

#[test]
fn lease_store_of_which_a_part_answers_is_a_warning() {
    let away = || Err("http://10.0.0.1:2379: timeout".to_owned());
    let holder = Ok(Some("a/17".to_owned()));
    let some = Facts { lease_store: vec![holder, away()], ..healthy() };
    assert_only(&some, "", "leader", Level::Warning, "10.0.0.1:2379: timeout");
    let none = Facts { lease_store: vec![away(), away()], ..healthy() };
    let errors = found(&none, "").into_iter().filter(|it| it.level == Level::Error);
    assert_eq!(errors.count(), 2);
}

#[test]
fn each_limit_of_the_machine_has_its_finding() {
    use Level::{Error, Warning};
    for (facts, yaml, check, level, words) in [
        (
            Facts { somaxconn: Some(128), ..healthy() },
            "",
            "backlog",
            Warning,
            "net.core.somaxconn, which is 128",
        ),
        (
            Facts { syn_backlog: Some(512), ..healthy() },
            "",
            "backlog",
            Warning,
            "tcp_max_syn_backlog",
        ),
        (
            Facts { heartbeat_dir: Some(("/tmp".into(), false)), ..healthy() },
            "",
            "heartbeat",
            Warning,
            "/tmp",
        ),
        (
            Facts { memory_limit: Some(1 << 30), ..healthy() },
            "",
            "memory",
            Warning,
            "1024 MiB, and not every pool",
        ),
        (
            Facts { memory_limit: Some(1 << 30), ..healthy() },
            "workers: 3\nmax_memory: 512M\n",
            "memory",
            Warning,
            "1536 MiB",
        ),
        (
            Facts { pids_limit: Some(10), ..healthy() },
            "workers: 9\n",
            "processes",
            Error,
            "need 14",
        ),
        (
            Facts { pids_limit: Some(20), ..healthy() },
            "workers: 4\nworker_class: threads\n",
            "processes",
            Error,
            "need 29",
        ),
        (Facts { ptrace_scope: Some(2), ..healthy() }, "", "ptrace", Warning, "is 2"),
        (
            Facts { ptrace_scope: Some(3), is_root: true, ..healthy() },
            "",
            "ptrace",
            Warning,
            "is 3",
        ),
        (
            Facts { core_pattern: Some("core".into()), ..healthy() },
            "rlimit_core: unlimited\n",
            "cores",
            Warning,
            "\"core\"",
        ),
        (
            Facts { core_pattern: Some(String::new()), ..healthy() },
            "rlimit_core: 1G\n",
            "cores",
            Warning,
            "empty",
        ),
        (Facts { overcommit: Some(2), ..healthy() }, "", "overcommit", Warning, "is 2"),
        (
            Facts { huge_pages: Some("always".into()), ..healthy() },
            "",
            "huge_pages",
            Warning,
            "always",
        ),
        (Facts { clock_source: Some("hpet".into()), ..healthy() }, "", "clock", Warning, "hpet"),
        (
            Facts { conntrack: Some((800, 1000)), ..healthy() },
            "",
            "conntrack",
            Warning,
            "800 of 1000",
        ),
        (
            Facts { log_dirs: vec![("/var/log".into(), 1 << 20)], ..healthy() },
            "",
            "log",
            Warning,
            "1 MiB are free",
        ),
        (
            Facts { unit: Some(("a.service".into(), "process".into())), ..healthy() },
            "",
            "systemd",
            Warning,
            "left behind",
        ),
        (
            Facts { unit: Some(("a.service".into(), "control-group".into())), ..healthy() },
            "",
            "systemd",
            Warning,
            "each worker",
        ),
    ] {
        assert_only(&facts, yaml, check, level, words);
    }
    let healthy_limits = Facts { memory_limit: Some(4 << 30), ..healthy() };
    let all = found(&healthy_limits, "workers: 3\nmax_memory: 512M\n");
    assert!(all.iter().all(|finding| finding.level == Level::Ok), "{all:?}");
}

#[test]
fn port_without_the_right_to_it_has_advice() {
    let finding = start_error("failed to listen on 0.0.0.0:80: Permission denied (os error 13)");
    assert!(finding.advice.contains("CAP_NET_BIND_SERVICE"));
    assert_eq!(start_error("unknown user").advice, "");
}
