//! Several settings files: of the command line, and included ones. And `--check-config`, which tries what
//! a start would.

use std::fs;
use std::net::TcpListener;
use std::path::Path;

use nix::sys::signal::Signal;
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;

use crate::launch::Launch;
use crate::support::{Exit, Outcome, Server};

/// Writes files below the working directory of a server that is to be started.
fn write(launch: &Launch, files: &[(&str, &str)]) {
    for (name, text) in files {
        let path = launch.dir().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
}

/// Runs a program that exits by itself, beside these files.
fn run(flags: &[&str], files: &[(&str, &str)]) -> Outcome {
    let launch = Launch::new(flags).unbound().plain();
    write(&launch, files);
    launch.run()
}

/// Returns the output of a program that succeeds.
#[track_caller]
fn print(flags: &[&str], files: &[(&str, &str)]) -> String {
    let outcome = run(flags, files);
    assert_eq!((outcome.exit, outcome.stderr.as_str()), (Exit::Code(0), ""), "{outcome:?}");
    outcome.stdout
}

#[track_caller]
fn assert_lines(text: &str, lines: &[&str]) {
    for line in lines {
        assert!(text.lines().any(|it| it == *line), "{line:?} is not in:\n{text}");
    }
}

#[test]
fn later_file_wins_key_by_key() {
    let files = [
        ("base.yaml", "workers: 2\nthreads: 3\nbind: [':1', ':2']\napp: {name: tick, every: 1s}\n"),
        ("prod.yaml", "workers: 5\nbind: ':3'\napp: demo\n"),
    ];
    let text = print(&["-c", "base.yaml", "-c", "prod.yaml", "--print-config"], &files);
    assert_lines(
        &text,
        &[
            "workers: 5  # prod.yaml:1",
            "threads: 3  # base.yaml:2",
            "bind:  # prod.yaml:2",
            "  - 0.0.0.0:3",
            "app: demo  # prod.yaml:3",
        ],
    );
    assert!(!text.contains("0.0.0.0:1\n") && !text.contains("every"), "{text}");
    let text =
        print(&["-c", "prod.yaml", "-c", "base.yaml", "--print-config", "-w", "9", "demo"], &files);
    assert_lines(&text, &["workers: 9  # --workers", "threads: 3  # base.yaml:2"]);
}

#[test]
fn included_files_are_laid_over_the_including_one() {
    let files = [
        ("etc/ostler.yaml", "include: [conf.d, more.yaml]\nworkers: 1\nthreads: 1\nbacklog: 1\n"),
        ("etc/conf.d/20-b.yaml", "threads: 20\n"),
        ("etc/conf.d/10-a.yaml", "threads: 10\nworkers: 10\ninclude: ../deep/x.yaml\n"),
        ("etc/conf.d/.30.yaml", "nonsense: 1\n"),
        ("etc/conf.d/30.yml", "nonsense: 1\n"),
        ("etc/conf.d/30.yaml~", "nonsense: 1\n"),
        ("etc/deep/x.yaml", "workers: 11\n"),
        ("etc/more.yaml", "backlog: 7\n"),
    ];
    let text = print(&["-c", "etc/ostler.yaml", "--print-config"], &files);
    assert_lines(
        &text,
        &[
            "workers: 11  # etc/conf.d/../deep/x.yaml:1",
            "threads: 20  # etc/conf.d/20-b.yaml:1",
            "backlog: 7  # etc/more.yaml:1",
        ],
    );
    let empty = [("a.yaml", "include: none.d\nworkers: 4\n"), ("none.d/README", "no settings\n")];
    assert_lines(&print(&["-c", "a.yaml", "--print-config"], &empty), &["workers: 4  # a.yaml:2"]);
}

#[test]
fn variables_and_pools_are_merged_over_all_files() {
    let files = [
        (
            "base.yaml",
            "vars: {root: /srv, port: 1, log: '${root}/log'}\n\
            log_file: ${log}\npools:\n  web: {bind: ':${port}', workers: 2, threads: 2}\n",
        ),
        (
            "prod.yaml",
            "vars: {root: /opt, port: 2}\n\
            pools:\n  web: {workers: 3}\n  api: {bind: ':3'}\n",
        ),
    ];
    let text = print(&["-c", "base.yaml", "-c", "prod.yaml", "--print-config"], &files);
    assert_lines(
        &text,
        &[
            "log_file: /opt/log  # base.yaml:2",
            "  web:  # base.yaml:4",
            "    workers: 3  # prod.yaml:3",
            "    threads: 2  # base.yaml:4",
            "      - 0.0.0.0:2",
            "  api:  # prod.yaml:4",
        ],
    );
}

#[test]
fn errors_name_the_file_and_the_line() {
    let long: String = (0..300).map(|n| format!("  - f{n}.yaml\n")).collect();
    let many: Vec<(String, String)> =
        (0..300).map(|n| (format!("f{n}.yaml"), String::new())).collect();
    for (files, expected) in [
        (
            &[("a.yaml", "include: b.yaml\n"), ("b.yaml", "\nthreads: x\n")][..],
            "b.yaml:2: threads: \"x\" is not a number of threads",
        ),
        (
            &[("a.yaml", "workers: 1\ninclude: b.yaml\n")],
            "a.yaml:2: include: \"b.yaml\" cannot be read: No such",
        ),
        (
            &[("a.yaml", "include:\n  - c.d\n"), ("c.d/1.yaml", "wokers: 2\n")],
            "c.d/1.yaml:1: unknown key \"wokers\" (did you mean \"workers\"?)",
        ),
        (
            &[("a.yaml", "include: b.yaml\n"), ("b.yaml", "include: a.yaml\n")],
            "b.yaml:1: include: \"a.yaml\" includes itself",
        ),
        (&[("a.yaml", "include: .\n")], "includes itself"),
        (&[("a.yaml", "include: {b: 1}\n")], "a.yaml:1: include: give a file or a directory"),
        (&[("a.yaml", "include: ['']\n")], "a.yaml:1: include: \"\" is not a path"),
        (
            &[("a.yaml", "include: '${env:HOME}/x'\n")],
            "a.yaml:1: include: \"${env:HOME}/x\" has a variable",
        ),
        (
            &[("a.yaml", "include: b.yaml\ninclude: b.yaml\n"), ("b.yaml", "")],
            "a.yaml:2: duplicate key \"include\"",
        ),
        (
            &[("a.yaml", "pools:\n  web: {include: b.yaml}\n")],
            "a.yaml:2: include: is a setting of the master, not of pool \"web\"",
        ),
        (
            &[("a.yaml", "include: b.yaml\n"), ("b.yaml", "vars: {x: '${y}'}\n")],
            "b.yaml:1: x: \"${y}\" uses ${y}, which is not defined in vars",
        ),
        (
            &[
                ("a.yaml", "include: b.yaml\nvars: {x: 1, y: '${x}'}\n"),
                ("b.yaml", "vars: {x: '${y}'}\n"),
            ],
            "b.yaml:1: x: \"${y}\" uses ${y}, which is defined below it",
        ),
    ] {
        let outcome = run(&["-c", "a.yaml", "--check-config"], files);
        assert_eq!(outcome.exit, Exit::Code(1), "{expected}: {outcome:?}");
        assert!(outcome.stderr.contains(expected), "{expected}: {}", outcome.stderr);
    }
    let launch = Launch::new(&["-c", "0.yaml", "--check-config"]).plain();
    for n in 0..9 {
        write(&launch, &[(&format!("{n}.yaml"), &format!("include: {}.yaml\n", n + 1))]);
    }
    let outcome = launch.run();
    let expected = "7.yaml:1: include: \"8.yaml\" is more than 8 files deep";
    assert!(outcome.stderr.contains(expected), "{outcome:?}");
    let launch = Launch::new(&["-c", "a.yaml", "--check-config"]).plain();
    write(&launch, &[("a.yaml", &format!("include:\n{long}"))]);
    many.iter().for_each(|(name, text)| write(&launch, &[(name, text)]));
    let outcome = launch.run();
    assert!(outcome.stderr.contains("is one of more than 256 files"), "{outcome:?}");
}

/// A pipe would block, and a name that is not UTF-8 has no text.
#[test]
fn odd_files_in_an_included_directory_are_errors() {
    let launch = Launch::new(&["-c", "a.yaml", "--check-config"]).plain();
    write(&launch, &[("a.yaml", "include: conf.d\n"), ("conf.d/b.yaml", "")]);
    mkfifo(&launch.dir().join("conf.d/c.yaml"), Mode::from_bits_truncate(0o600)).unwrap();
    let outcome = launch.run();
    assert_eq!(outcome.exit, Exit::Code(1));
    let expected = "a.yaml:1: include: \"conf.d/c.yaml\" cannot be read: it is not a regular file";
    assert!(outcome.stderr.contains(expected), "{outcome:?}");
}

/// Sends SIGHUP, and waits for this record.
#[track_caller]
fn reload(server: &Server, message: &str) -> String {
    let mark = server.mark();
    server.signal(Signal::SIGHUP);
    let record = server.wait_for_new_record(mark, message, |record| record.message() == message);
    record.text("error").unwrap_or_default().to_owned()
}

#[test]
fn reload_reads_all_files_again() {
    let launch = Launch::new(&["-k", "mio", "-c", "base.yaml", "-c", "prod.yaml"]);
    write(
        &launch,
        &[
            ("base.yaml", "include: conf.d\nworkers: 1\n"),
            ("prod.yaml", "timeout: 20s\n"),
            ("conf.d/none", ""),
        ],
    );
    let server = launch.start();
    fs::write(server.path("conf.d/1.yaml"), "workers: 3\n").unwrap();
    reload(&server, "reload complete");
    server.wait_workers(3);
    fs::write(server.path("prod.yaml"), "workers: 2\n").unwrap();
    reload(&server, "reload complete");
    server.wait_workers(2);
    // What looks cut off is refused in each of them; a file that is removed has no settings any more.
    for name in ["conf.d/1.yaml", "prod.yaml"] {
        let text = fs::read_to_string(server.path(name)).unwrap();
        fs::write(server.path(name), "").unwrap();
        let error = reload(&server, "reload rejected");
        assert!(error.contains(name) && error.contains("looks emptied"), "{error}");
        fs::write(server.path(name), text).unwrap();
    }
    fs::write(server.path("prod.yaml"), "timeout: 25s\n").unwrap();
    reload(&server, "reload complete");
    server.wait_workers(3);
    fs::remove_file(server.path("conf.d/1.yaml")).unwrap();
    reload(&server, "reload complete");
    server.wait_workers(1);
    fs::write(server.path("conf.d/2.yaml"), "workers: many\n").unwrap();
    let error = reload(&server, "reload rejected");
    assert!(error.starts_with("conf.d/2.yaml:1: workers: \"many\""), "{error}");
    server.finish();
}

#[test]
fn file_of_the_command_line_without_keys_is_a_warning() {
    let base = ("a.yaml", "workers: 1\n");
    // Something else may listen on the default address.
    let flags = ["-c", "a.yaml", "-c", "b.yaml", "-b", "unix:socket", "--check-config"];
    let outcome = run(&flags, &[base, ("b.yaml", "# nothing\n")]);
    assert_eq!(
        (outcome.exit, outcome.stderr.trim()),
        (Exit::Code(0), "ostler: b.yaml sets no key")
    );
    print(&flags, &[base, ("b.yaml", "vars: {x: 1}\n")]);
    print(
        &flags[..2].iter().chain(&flags[4..]).copied().collect::<Vec<_>>(),
        &[("a.yaml", "include: b.yaml\n"), ("b.yaml", "")],
    );
}

#[test]
fn changed_settings_are_printed_alone() {
    let files = [("a.yaml", "workers: 1\nthreads: 9\nenv: [A=1]\n")];
    let flags = ["-c", "a.yaml", "--print-config", "--diff-default", "--timeout", "7"];
    let expected = "threads: 9  # a.yaml:2\ntimeout: 7s  # --timeout\nenv:  # a.yaml:3\n  - A=1\n";
    assert_eq!(print(&flags, &files), expected);
    let text = print(&["--print-config", "--diff-default"], &[]);
    assert_eq!(text, "{}  # every setting has its default\n");
    let pools =
        "threads: 9\npools:\n  web: {threads: 4, bind: ':1'}\n  api: {threads: 9, bind: ':2'}\n";
    let text = print(&["-c", "a.yaml", "--print-config", "--diff-default"], &[("a.yaml", pools)]);
    assert!(text.contains("    threads: 4  # a.yaml:3\n"), "{text}");
    assert_eq!(text.matches("threads").count(), 2, "{text}");
    let outcome = run(&["--diff-default"], &[]);
    assert_eq!(outcome.exit, Exit::Code(2), "{outcome:?}");
}

/// Whatever runs already goes on, and does not notice.
#[test]
fn check_tries_what_a_start_would_beside_a_running_master() {
    let launch = Launch::new(&["-k", "mio", "-w", "2"]);
    let (pid, control) = (launch.path("pid"), launch.path("control"));
    let metrics = crate::launch::free_address().to_string();
    let flags = |launch: Launch| {
        launch
            .arg("--pid")
            .arg(&pid)
            .arg("--control-socket")
            .arg(&control)
            .arg("--metrics-bind")
            .arg(&metrics)
    };
    let server = flags(launch).start();
    let (mark, workers) = (server.mark(), server.workers().len());
    let bind = server.address().to_string();
    let check = |flags_first: &[&str]| {
        let args = [&["--check-config", "-b", &bind][..], flags_first].concat();
        flags(Launch::new(&args).unbound().plain()).run()
    };
    let outcome = check(&[]);
    assert_eq!(
        (outcome.exit, outcome.stdout.as_str()),
        (Exit::Code(0), "configuration OK\n"),
        "{outcome:?}"
    );
    assert_eq!(server.get("/").text(), "Hello, world!\n");
    assert_eq!((server.records().len(), server.workers().len()), (mark, workers));
    assert!(Path::new(&pid).exists() && Path::new(&control).exists());
    let outcome = check(&["--worker-tmp-dir", "/proc"]);
    assert_eq!(outcome.exit, Exit::Code(1), "{outcome:?}");
    server.finish();
}

/// The pid file tells that no master runs, so that the address has another owner.
#[test]
fn check_finds_addresses_that_others_have() {
    let other = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = other.local_addr().unwrap().to_string();
    for flags in [&["--bind"][..], &["--bind", "127.0.0.1:0", "--metrics-bind"]] {
        let args = [&["--check-config"][..], flags, &[&address]].concat();
        let launch = Launch::new(&args).unbound().plain();
        let pid = launch.path("pid");
        let outcome = launch.arg("--pid").arg(&pid).run();
        assert_eq!(outcome.exit, Exit::Code(0), "{outcome:?}");
        let expected = format!("{address} is in use, and no running master has the pid file {pid}");
        assert!(outcome.stderr.contains(&expected), "{outcome:?}");
        assert!(!Path::new(&pid).exists());
        let outcome = Launch::new(&args).unbound().plain().run();
        assert!(outcome.stderr.contains(&format!("{address} is in use: a start")), "{outcome:?}");
    }
    for (flag, value) in [("--metrics-bind", "192.0.2.1:9"), ("--control-socket", "/dev/null")] {
        let outcome = Launch::new(&["--check-config", flag, value]).plain().run();
        assert_eq!(outcome.exit, Exit::Code(1), "{outcome:?}");
        assert!(outcome.stderr.contains(value), "{outcome:?}");
    }
}
