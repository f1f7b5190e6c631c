//! Settings on the command line, in the environment and in YAML, and the messages for invalid ones.

use std::fs::{self, File};
use std::net::TcpListener;
use std::os::unix::fs::MetadataExt;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::unistd::Uid;

use crate::launch::Launch;
use crate::proc::wait_until;
use crate::support::{Exit, Outcome, Server};

on_every_class!(
    every_source_can_choose_the_class,
    good_settings_pass_the_check,
    check_passes_beside_the_running_master,
);

const PROGRAM: &str = env!("CARGO_BIN_EXE_ostler");

/// Asserts one clear message, exit code 1 or 2, and no file made.
#[track_caller]
fn expect_rejection(launch: Launch, words: &[&str]) -> Outcome {
    let dir = launch.dir().to_owned();
    let files = || -> Vec<_> {
        let mut names: Vec<_> =
            fs::read_dir(&dir).into_iter().flatten().flatten().map(|f| f.file_name()).collect();
        names.sort();
        names
    };
    let before = files();
    let server = launch.spawn();
    let outcome = server.into_outcome(files);
    let (outcome, after) = outcome;
    assert!(matches!(outcome.exit, Exit::Code(1 | 2)), "{outcome:?}");
    assert!(!outcome.stderr.trim().is_empty(), "{outcome:?}");
    assert!(outcome.stderr.lines().count() <= 10, "more than a message: {outcome:?}");
    for forbidden in ["panicked", "RUST_BACKTRACE", "stack backtrace", "worker started", "Err("] {
        assert!(!outcome.stderr.contains(forbidden), "{outcome:?}");
    }
    for word in words {
        assert!(outcome.stderr.contains(word), "no word of {word}: {outcome:?}");
    }
    assert_eq!(outcome.stdout, "");
    assert_eq!(after, before, "{outcome:?}");
    outcome
}

/// Prepares a server that would make a pidfile and a socket, if its other flags were valid.
fn would_make_files(flags: &[&str]) -> Launch {
    let launch = Launch::new(&[]).plain();
    let (pidfile, bind) = (launch.path("pid"), format!("unix:{}", launch.path("sock")));
    let launch = launch.arg("--pid").arg(pidfile).arg("--bind").arg(bind);
    flags.iter().fold(launch, |launch, flag| launch.arg(flag))
}

#[test]
fn bad_flags_are_rejected() {
    for (flags, words) in [
        (&["--nonsense"] as &[&str], &["--nonsense"] as &[&str]),
        (&["--worker-clas", "mio"], &["--worker-clas"]),
        (&["-w"], &["--workers"]),
        (&["-w", "many"], &["many"]),
        (&["-w", "0"], &["0"]),
        (&["-w", "-1"], &["-1"]),
        (&["-w", "99999999999999999999"], &["99999999999999999999"]),
        (&["--threads", "0"], &["threads", "0"]),
        (&["-t", "soon"], &["soon"]),
        (&["-t", "-1"], &["-1"]),
        (&["--graceful-timeout", "5 parsecs"], &["5 parsecs"]),
        (&["--backlog", "x"], &["backlog", "x"]),
        (&["--umask", "999"], &["umask", "999"]),
        (&["--log-level", "loud"], &["loud"]),
        (&["--log-format", "xml"], &["xml"]),
        (&["-e", "NOVALUE"], &["NOVALUE"]),
        (&["-k", "gevent"], &["gevent", "sync", "threads", "mio"]),
        (&["no-such-app"], &["no-such-app", "demo", "echo"]),
        (&["demo", "colour=blue"], &["colour"]),
    ] {
        expect_rejection(would_make_files(flags), words);
    }
}

#[test]
fn bad_addresses_are_rejected() {
    for bind in [
        "nonsense",
        "127.0.0.1",
        "127.0.0.1:",
        "127.0.0.1:http",
        "127.0.0.1:65536",
        "127.0.0.1:-1",
        "1.2.3.4.5:80",
        "[::1",
        "[::1]",
        "[::g]:80",
        "unix:",
        "unix:@",
        "fd://",
        "fd://x",
        "fd://-1",
        "ftp://localhost:21",
        // Valid addresses that fail to bind: not of this host, no descriptor, no socket, too long.
        "192.0.2.1:8000",
        "fd://987",
        "fd://0",
        "unix:/no/such/directory/sock",
        &format!("unix:/tmp/{}", "x".repeat(120)),
    ] {
        let launch = would_make_files(&["--bind", bind]);
        let word: String = bind.chars().take(60).collect();
        expect_rejection(launch, &[word.trim_start_matches("unix:")]);
    }
}

#[test]
fn bad_users_and_paths_are_rejected() {
    for (flags, word) in [
        (["--chdir", "/no/such/directory"], "/no/such/directory"),
        (["--chdir", "/etc/passwd"], "/etc/passwd"),
        (["--worker-tmp-dir", "/no/such/directory"], "/no/such/directory"),
        (["--worker-tmp-dir", "/etc/passwd"], "/etc/passwd"),
        // A directory in which nothing can be created.
        (["--worker-tmp-dir", "/proc"], "/proc"),
        (["--log-file", "/no/such/directory/log"], "/no/such/directory/log"),
        (["--log-file", "/etc"], "/etc"),
        (["--user", "nobody-of-this-name"], "nobody-of-this-name"),
        (["--group", "nobody-of-this-name"], "nobody-of-this-name"),
        (["--config", "/no/such/file.yaml"], "/no/such/file.yaml"),
        (["--config", "/etc"], "/etc"),
    ] {
        expect_rejection(would_make_files(&flags), &[word]);
    }
    let launch = Launch::new(&["--pid", "/no/such/directory/pid"]).plain();
    expect_rejection(launch, &["/no/such/directory/pid"]);
}

#[test]
fn only_root_may_change_user() {
    if Uid::effective().is_root() {
        eprintln!("skipped: root may");
        return;
    }
    expect_rejection(would_make_files(&["--user", "root"]), &["root"]);
}

#[test]
fn port_in_use_is_rejected() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let launch = would_make_files(&["--bind", &address]);
    let outcome = expect_rejection(launch, &[&address]);
    assert_eq!(outcome.exit, Exit::Code(1));
}

/// Prepares a server with this YAML file.
fn with_yaml(yaml: &str, flags: &[&str]) -> Launch {
    let launch = Launch::new(flags);
    let path = launch.path("ostler.yaml");
    fs::write(&path, yaml).unwrap();
    launch.arg("--config").arg(path)
}

#[test]
fn bad_files_are_rejected_with_file_and_line() {
    for (yaml, line, words) in [
        ("workers: 2\nworker_clas: mio\n", 2, &["worker_clas", "worker_class"] as &[&str]),
        ("workers: two\n", 1, &["workers", "two"]),
        ("threads: 2\nworkers: [1, 2]\n", 2, &["workers"]),
        ("threads: 2\n\n# more\ntimeout: soon\n", 4, &["timeout", "soon"]),
        ("bind: nonsense\n", 1, &["bind", "nonsense"]),
        ("bind:\n  - 127.0.0.1:8000\n  - nonsense\n", 3, &["nonsense"]),
        ("log_level: loud\n", 1, &["loud"]),
        ("workers: 2\nworkers: 3\n", 2, &["workers"]),
        ("- workers\n", 1, &[]),
        ("workers: 2\n  threads: 3\n", 2, &[]),
        ("workers: [\n", 2, &[]),
    ] {
        let launch = with_yaml(yaml, &[]).plain();
        let outcome = expect_rejection(launch, words);
        assert_eq!(outcome.exit, Exit::Code(1), "{outcome:?}");
        let places: Vec<String> =
            [line, 1].iter().map(|line| format!("ostler.yaml:{line}")).collect();
        // For a file that is no YAML, the error may name its beginning.
        let allowed = if words.is_empty() { &places[..] } else { &places[..1] };
        assert!(allowed.iter().any(|place| outcome.stderr.contains(place)), "{outcome:?}");
    }
}

#[test]
fn byte_order_mark_and_crlf_are_read_as_nothing() {
    let plain = "workers: 2\nthreads: 3\nenv:\n  A: b\n  C: |\n    d\n    e\n";
    let print = |text: &str| {
        let outcome = with_yaml(text, &["--print-config"]).unbound().plain().run();
        assert_eq!(outcome.exit, Exit::Code(0), "{text:?}: {outcome:?}");
        assert!(outcome.stderr.is_empty(), "{outcome:?}");
        let lines = outcome.stdout.lines().map(|line| {
            let (value, source) = line.split_once("  # ").unwrap_or((line, ""));
            format!("{value} {}", source.rsplit('/').next().unwrap_or_default())
        });
        lines.collect::<Vec<_>>()
    };
    let expected = print(plain);
    for text in [
        format!("\u{feff}{plain}"),
        plain.replace('\n', "\r\n"),
        format!("\u{feff}{}", plain.replace('\n', "\r\n")),
    ] {
        assert_eq!(print(&text), expected, "{text:?}");
    }
}

#[test]
fn invisible_characters_are_named() {
    for (yaml, line, word) in [
        ("workers: 2\nenv:\n\tA: b\n", 3, "tab"),
        ("env:\n  - A=b\n\t- C=d\n", 3, "tab"),
        ("env:\n  - A=b\n  \t- C: [\n", 3, "tab"),
        ("env:\n  A: |\n    x\n\ty\n", 4, "tab"),
        ("threads: 3\nworkers:\t2\n", 2, "tab"),
    ] {
        let outcome = expect_rejection(with_yaml(yaml, &[]).plain(), &[word]);
        assert!(outcome.stderr.contains(&format!("ostler.yaml:{line}: ")), "{outcome:?}");
    }
    let launch = Launch::new(&[]).plain();
    let path = launch.path("ostler.yaml");
    fs::write(&path, b"\xff\xfew\0o\0").unwrap();
    expect_rejection(launch.arg("--config").arg(path), &["ostler.yaml:1", "UTF-16"]);
}

#[test]
fn unknown_names_in_files_are_reported_with_line() {
    for (yaml, words) in [
        ("workers: 2\nworker_class: gevent\n", ["gevent", "sync", "threads", "mio"]),
        ("workers: 2\napp: no-such-app\n", ["no-such-app", "demo", "echo", "app"]),
    ] {
        expect_rejection(with_yaml(yaml, &[]).plain(), &words);
        expect_rejection(with_yaml(yaml, &[]).plain(), &["ostler.yaml:2"]);
    }
}

#[test]
fn bad_variables_are_rejected_by_name() {
    let launch = Launch::new(&[]).plain().env("OSTLER_WORKERS", "many");
    expect_rejection(launch, &["OSTLER_WORKERS", "many"]);
    let launch = Launch::new(&[]).plain().env("OSTLER_TIMEOUT", "soon");
    expect_rejection(launch, &["OSTLER_TIMEOUT", "soon"]);
}

fn every_source_can_choose_the_class(class: &str) {
    let server = Server::start(&["--worker-class", class]);
    assert_eq!(server.get("/info").json()["class"], class);
    server.finish();
    let server = Launch::new(&[]).env("OSTLER_WORKER_CLASS", class).start();
    assert_eq!(server.get("/info").json()["class"], class);
    server.finish();
    let server = with_yaml(&format!("worker_class: {class}\n"), &[]).start();
    assert_eq!(server.get("/info").json()["class"], class);
    server.finish();
}

#[test]
fn flags_override_variables_override_file() {
    let yaml = "proc_name: file\nworkers: 3\nthreads: 5\n";
    let server = with_yaml(yaml, &["--name", "flag"])
        .env("OSTLER_PROC_NAME", "variable")
        .env("OSTLER_WORKERS", "2")
        .start();
    assert_eq!(crate::proc::title(server.pid), "ostler: master [flag]");
    assert_eq!(server.wait_workers(2).len(), 2);
    server.finish();
    let printed = with_yaml(yaml, &["--name", "flag", "--print-config"])
        .env("OSTLER_PROC_NAME", "variable")
        .env("OSTLER_WORKERS", "2")
        .plain()
        .run();
    assert_eq!(printed.exit, Exit::Code(0), "{printed:?}");
    let line = |key: &str| {
        let found = printed.stdout.lines().find(|line| line.starts_with(&format!("{key}:")));
        found.unwrap_or_else(|| panic!("no {key} in {printed:?}")).to_owned()
    };
    for (key, value, source) in [
        ("proc_name", "flag", "--name"),
        ("workers", "2", "OSTLER_WORKERS"),
        ("threads", "5", "ostler.yaml:3"),
        ("backlog", "2048", "default"),
    ] {
        let line = line(key);
        assert!(line.contains(value) && line.contains(source), "{line}");
    }
}

#[test]
fn file_sets_every_option() {
    let launch = Launch::new(&[]).unbound();
    let sock = launch.path("sock");
    let yaml = format!(
        "worker_class: mio\nworkers: 2\nbind:\n  - 127.0.0.1:{}\n  - unix:{sock}\ntimeout: 5s\n\
         pidfile: {}\nenv:\n  - COLOUR=blue\napp: demo\n",
        launch.port(),
        launch.path("pid"),
    );
    let path = launch.path("ostler.yaml");
    fs::write(&path, yaml).unwrap();
    let server = launch.arg("-c").arg(path).start();
    assert_eq!(server.wait_workers(2).len(), 2);
    assert_eq!(server.get("/env?name=COLOUR").text().trim(), "blue");
    assert!(server.path("sock").exists());
    assert!(server.path("pid").exists());
    server.finish();
}

#[test]
fn printed_config_names_environment_variables_instead_of_their_values() {
    let yaml = "vars: {pw: 'p:${env:PW}'}\nproc_name: ${env:PW}\nenv: ['A=x', 'DSN=u:${pw}@db']\n\
                worker_class: exec\nbind: []\ncommand: [sleep, '${env:PW}']\npools:\n  one: {nice: 1}\n  \
                two: {env: {TOKEN: '${env:PW}'}, nice: '${env:NICE}'}\n";
    let run = |yaml: &str, flags: &[&str]| {
        with_yaml(yaml, flags).unbound().plain().env("PW", "s3cret").env("NICE", "2").run()
    };
    let printed = run(yaml, &["--print-config"]);
    assert_eq!(printed.exit, Exit::Code(0), "{printed:?}");
    for line in [
        "proc_name: \"${env:PW}\"  # ",
        "  - A=x\n  - \"DSN=u:p:${env:PW}@db\"\n",
        "  - sleep\n  - \"${env:PW}\"\n",
        "    env:  # ",
        "      - \"TOKEN=${env:PW}\"\n",
        "    nice: \"${env:NICE}\"  # ",
    ] {
        assert!(printed.stdout.contains(line), "{line} in {}", printed.stdout);
    }
    assert!(!printed.stdout.contains("s3cret"), "{}", printed.stdout);
    let again = run(&printed.stdout, &["--print-config"]);
    assert_eq!(again.exit, Exit::Code(0), "{again:?}");
    let values = |text: &str| -> Vec<String> {
        text.lines().map(|line| line.split("  #").next().unwrap_or(line).to_owned()).collect()
    };
    assert_eq!(values(&again.stdout), values(&printed.stdout));
    // What a flag overrides is no reference any more, and an app's options have theirs.
    let yaml = "proc_name: ${env:PW}\napp: {name: demo, token: '${env:PW}'}\n";
    let printed = run(yaml, &["--name", "flag", "--print-config", "demo"]);
    assert!(printed.stdout.contains("proc_name: flag  # --name"), "{printed:?}");
    for (yaml, reason) in [
        ("workers: ${env:PW}\n", "workers: \"${env:PW}\" is not"),
        ("env: ['${env:PW}']\n", "env: \"${env:PW}\" is not"),
        ("bind: ['${env:PW}:1', '${env:PW}:1']\n", "\"${env:PW}:1\" repeats \"${env:PW}:1\""),
    ] {
        let outcome = run(yaml, &["--check-config"]);
        assert_eq!(outcome.exit, Exit::Code(1), "{outcome:?}");
        assert!(outcome.stderr.contains(reason), "{outcome:?}");
        assert!(!outcome.stderr.contains("s3cret"), "{outcome:?}");
    }
}

#[test]
fn printed_config_loads_again() {
    let printed = Launch::new(&["-w", "3", "-e", "COLOUR=blue", "--print-config"]).plain().run();
    assert_eq!(printed.exit, Exit::Code(0), "{printed:?}");
    let again = with_yaml(&printed.stdout, &["--print-config"]).unbound().plain().run();
    assert_eq!(again.exit, Exit::Code(0), "{again:?}");
    let values = |text: &str| -> Vec<String> {
        text.lines().map(|line| line.split("  #").next().unwrap_or(line).to_owned()).collect()
    };
    assert_eq!(values(&again.stdout), values(&printed.stdout));
}

fn good_settings_pass_the_check(class: &str) {
    let launch = Launch::new(&["-k", class, "--check-config"]).plain();
    let (pidfile, bind) = (launch.path("pid"), format!("unix:{}", launch.path("sock")));
    let dir = launch.dir().to_owned();
    let server = launch.arg("--pid").arg(pidfile).arg("--bind").arg(bind).spawn();
    let look = || fs::read_dir(&dir).map(|dir| dir.count()).unwrap_or_default();
    let (outcome, files) = server.into_outcome(look);
    assert_eq!(outcome.exit, Exit::Code(0), "{outcome:?}");
    assert_eq!(files, 0, "a check makes nothing");
    assert!(!outcome.stderr.contains("listening"), "{outcome:?}");
}

#[test]
fn bad_settings_fail_the_check() {
    for flags in [
        &["--check-config", "-k", "gevent"] as &[&str],
        &["--check-config", "no-such-app"],
        &["--check-config", "demo", "colour=blue"],
        &["--check-config", "--chdir", "/no/such/directory"],
        &["--check-config", "--user", "nobody-of-this-name"],
    ] {
        expect_rejection(
            would_make_files(flags),
            &[flags[flags.len() - 1].split('=').next().unwrap()],
        );
    }
}

#[test]
fn check_looks_at_every_path_user_and_address() {
    for (flags, word) in [
        (["--pid", "/no/such/directory/pid"], "/no/such/directory"),
        (["--log-file", "/no/such/directory/log"], "/no/such/directory/log"),
        (["--log-file", "/etc"], "/etc"),
        (["--flight-recorder-file", "/no/such/directory/ring"], "/no/such/directory/ring"),
        (["--worker-tmp-dir", "/proc"], "/proc"),
        (["--chdir", "/etc/passwd"], "/etc/passwd"),
        (["--group", "nobody-of-this-name"], "nobody-of-this-name"),
        (["--socket-user", "nobody-of-this-name"], "nobody-of-this-name"),
        (["--bind", "192.0.2.1:8000"], "192.0.2.1:8000"),
        (["--bind", "[2001:db8::1]:8000"], "[2001:db8::1]:8000"),
        (["--bind", "name.invalid:8000"], "name.invalid:8000"),
        (["--bind", "unix:/no/such/directory/sock"], "/no/such/directory/sock"),
        (["--bind", "unix:/etc/passwd"], "/etc/passwd"),
    ] {
        let launch = Launch::new(&["--check-config"]).plain().arg(flags[0]).arg(flags[1]);
        let outcome = expect_rejection(launch, &[word]);
        assert_eq!(outcome.exit, Exit::Code(1), "{outcome:?}");
    }
}

#[test]
fn check_looks_at_permissions() {
    for (flag, value) in [
        ("--pid", "/etc/pid"),
        ("--log-file", "/etc/log"),
        ("--log-file", "/etc/passwd"),
        ("--flight-recorder-file", "/etc/ring"),
        ("--worker-tmp-dir", "/etc"),
        ("--bind", "unix:/etc/sock"),
    ] {
        let Some(launch) = crate::shortages::as_unprivileged(&["--check-config"]) else { return };
        let outcome = launch.arg(flag).arg(value).plain().run();
        assert_eq!(outcome.exit, Exit::Code(1), "{outcome:?}");
        assert!(outcome.stderr.contains("Permission denied"), "{outcome:?}");
        assert!(outcome.stderr.contains(value), "{outcome:?}");
    }
}

fn check_passes_beside_the_running_master(class: &str) {
    let launch = Launch::new(&["-k", class]);
    let flags = [
        ("--pid", launch.path("pid")),
        ("--log-file", launch.path("log")),
        ("--bind", format!("127.0.0.1:{}", launch.port())),
        ("--bind", format!("unix:{}", launch.path("sock"))),
    ];
    let add = |launch: Launch| {
        flags.iter().fold(launch.unbound(), |launch, (flag, value)| launch.arg(flag).arg(value))
    };
    let server = add(launch).spawn();
    crate::proc::wait_until("it serves", || server.try_get("/").is_ok());
    let outcome = add(Launch::new(&["-k", class, "--check-config"])).plain().run();
    assert_eq!(outcome.exit, Exit::Code(0), "{outcome:?}");
    assert_eq!(server.get("/").text(), "Hello, world!\n");
    assert!(server.path("sock").exists());
    server.finish();
}

#[test]
fn text_that_cannot_be_written_is_an_error() {
    for flag in ["--print-config", "--check-config", "--list-classes", "--help"] {
        let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_ostler"));
        let status = command.arg(flag).stdout(full).stderr(std::process::Stdio::null()).status();
        assert_eq!(status.unwrap().code(), Some(1), "{flag}");
    }
}

#[test]
fn empty_config_path_is_rejected() {
    let outcome = expect_rejection(would_make_files(&["--config", ""]), &["--config", "empty"]);
    assert_eq!(outcome.exit, Exit::Code(2));
}

#[test]
fn sockets_that_were_not_handed_over_are_an_error() {
    for count in ["1000000000", "18446744073709551615", "5000"] {
        let script = r#"LISTEN_PID=$$ LISTEN_FDS=$1 exec "$0" -b fd://3"#;
        let program = env!("CARGO_BIN_EXE_ostler");
        let launch = Launch::by(&["sh", "-c", script, program, count], &[]).unbound().plain();
        let outcome = expect_rejection(launch, &["fd://3", "not a listening stream socket"]);
        assert_eq!(outcome.exit, Exit::Code(1));
    }
}

#[test]
fn classes_are_listed() {
    let outcome = Launch::new(&["--list-classes"]).unbound().plain().run();
    assert_eq!(outcome.exit, Exit::Code(0), "{outcome:?}");
    for class in ["sync", "threads", "mio", "exec"] {
        assert!(outcome.stdout.lines().any(|line| line.starts_with(class)), "{outcome:?}");
    }
    assert_eq!(outcome.stderr, "");
}

#[test]
fn help_and_version_are_printed() {
    let help = Launch::new(&["--help"]).unbound().plain().run();
    assert_eq!(help.exit, Exit::Code(0), "{help:?}");
    for flag in ["--worker-class", "--bind", "--timeout", "--config", "--check-config"] {
        assert!(help.stdout.contains(flag), "no {flag} in {}", help.stdout);
    }
    let version = Launch::new(&["--version"]).unbound().plain().run();
    assert_eq!(version.exit, Exit::Code(0), "{version:?}");
    assert!(version.stdout.starts_with("ostler "), "{version:?}");
}

#[test]
fn locked_pidfile_is_rejected() {
    let launch = Launch::new(&[]);
    let pidfile = launch.path("pid");
    let first = launch.arg("--pid").arg(&pidfile).start();
    let second = Launch::new(&["--pid", &pidfile]).plain();
    let outcome = expect_rejection(second, &[&pidfile, &first.pid.to_string()]);
    assert_eq!(outcome.exit, Exit::Code(1));
    assert_eq!(fs::read_to_string(&pidfile).unwrap().trim(), first.pid.to_string());
    first.finish();
}

#[test]
fn stale_pidfile_is_taken_over() {
    // Pid files without a lock: of no process, garbage, empty, and of a process that is no master.
    for content in ["999999999\n", "garbage\n", "", "1\n"] {
        let launch = Launch::new(&[]);
        let pidfile = launch.path("pid");
        fs::write(&pidfile, content).unwrap();
        let server = launch.arg("--pid").arg(&pidfile).start();
        assert_eq!(fs::read_to_string(&pidfile).unwrap().trim(), server.pid.to_string());
        server.finish();
        assert!(!fs::exists(&pidfile).unwrap());
    }
}

/// Other users can read a pid file, so they can lock it for reading (fcntl(2)) or by flock(2).
#[test]
fn pidfile_that_a_reader_locks_is_taken_over() {
    let launch = Launch::by(&["sh", "-c", "umask 027; exec \"$0\" \"$@\"", PROGRAM], &[]);
    let pidfile = launch.path("pid");
    let first = launch.arg("--pid").arg(&pidfile).start();
    assert_eq!(fs::metadata(&pidfile).unwrap().mode() & 0o7777, 0o640);
    let reader = File::open(&pidfile).unwrap();
    let lock = libc::flock {
        l_type: libc::F_RDLCK as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    assert_eq!(fcntl(&reader, FcntlArg::F_SETLK(&lock)), Err(Errno::EAGAIN), "it is locked");
    first.signal(nix::sys::signal::Signal::SIGKILL);
    first.wait_exit();
    fcntl(&reader, FcntlArg::F_SETLK(&lock)).unwrap();
    reader.lock().unwrap();
    let second = Launch::new(&["--pid", &pidfile]).start();
    assert_eq!(fs::read_to_string(&pidfile).unwrap().trim(), second.pid.to_string());
    let third = Launch::new(&["--pid", &pidfile]).plain();
    expect_rejection(third, &[&pidfile, &second.pid.to_string()]);
    second.finish();
    assert_eq!(fs::read_dir(first.path(".")).unwrap().count(), 0);
}

/// A directory that only one master uses at a time has only one of them start.
#[test]
fn one_of_many_simultaneous_starts_gets_the_pidfile() {
    let launch = Launch::new(&[]);
    let pidfile = launch.path("pid");
    fs::write(&pidfile, "1\n").unwrap();
    let others: Vec<_> = (0..6).map(|_| Launch::new(&["--pid", &pidfile]).spawn()).collect();
    wait_until("all but one exit", || others.iter().filter(|it| it.exit().is_none()).count() == 1);
    for server in others {
        match server.exit() {
            Some(exit) => assert_eq!(exit, Exit::Code(1)),
            None => {
                server.wait_for("ready", |record| record.message() == "all workers ready");
                assert_eq!(fs::read_to_string(&pidfile).unwrap().trim(), server.pid.to_string());
            }
        }
    }
    drop(launch);
}

#[test]
fn pidfile_of_killed_master_is_taken_over() {
    let launch = Launch::new(&["-w", "2"]);
    let pidfile = launch.path("pid");
    let first = launch.arg("--pid").arg(&pidfile).start();
    first.signal(nix::sys::signal::Signal::SIGKILL);
    first.wait_exit();
    let second = Launch::new(&["--pid", &pidfile]).start();
    assert_eq!(fs::read_to_string(&pidfile).unwrap().trim(), second.pid.to_string());
    second.finish();
}

#[test]
fn simultaneous_masters_only_one_starts() {
    let dir = tempfile::tempdir().unwrap();
    let pidfile = dir.path().join("pid").into_os_string().into_string().unwrap();
    let both = [0, 1].map(|_| Launch::new(&["--pid", &pidfile]).spawn());
    crate::proc::wait_until("one has lost", || both.iter().any(|server| server.exit().is_some()));
    let (lost, won): (Vec<_>, Vec<_>) =
        both.into_iter().partition(|server| server.exit().is_some());
    assert_eq!((lost.len(), won.len()), (1, 1));
    assert_eq!(lost[0].exit(), Some(Exit::Code(1)));
    let won = won.into_iter().next().unwrap();
    won.wait_for("ready", |record| record.message() == "all workers ready");
    assert_eq!(fs::read_to_string(&pidfile).unwrap().trim(), won.pid.to_string());
    won.finish();
}

#[test]
fn hosting_platform_sets_the_defaults() {
    let launch = Launch::new(&["-k", "mio"]).unbound();
    let port = launch.port();
    let server = launch.env("PORT", port.to_string()).env("WEB_CONCURRENCY", "2").start();
    assert_eq!(server.get("/").status(), 200);
    server.wait_workers(2);
    let listening = server.wait_for("listening", |record| record.message() == "listening");
    assert_eq!(listening.text("address"), Some(format!("0.0.0.0:{port}").as_str()));
    server.finish();
    // A job listens nowhere, and the platform knows nothing of it.
    let job = Launch::new(&["tick"]).unbound().env("PORT", port.to_string()).start();
    job.wait_for("a run", |record| record.message() == "tick");
    job.finish();
    let launch = Launch::new(&[]).unbound().env("PORT", "none").plain();
    expect_rejection(launch, &["PORT", "none"]);
}
