//! The privileges and limits of workers: resource limits, user and groups, and the access to socket
//! paths.

use std::collections::BTreeSet;
use std::ffi::CString;
use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, lchown, symlink};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Gid, Pid, Uid, User, getgrouplist};

use crate::client::Client;
use crate::launch::Launch;
use crate::proc::{status, wait_until, working_directory};
use crate::support::{Exit, Server};

on_every_class_and_tokio!(
    workers_run_with_their_resource_limits,
    socket_path_has_configured_mode_and_owner,
    unprivileged_workers_serve_heartbeat_and_reopen_the_log,
    log_dir_of_workers_user_gives_no_file_away,
);

/// Returns the user that workers run as in these tests, or `None` without root.
fn unprivileged_user() -> Option<User> {
    let user = User::from_name("nobody").ok().flatten().filter(|_| Uid::effective().is_root());
    if user.is_none() {
        eprintln!("skipped in part: needs root, and a user called nobody");
    }
    user
}

/// Returns the soft and the hard limit.
fn limit(pid: Pid, name: &str) -> [String; 2] {
    let text = fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    let mut words = line.split_whitespace().map(str::to_owned);
    [words.next().unwrap(), words.next().unwrap()]
}

fn nice(pid: Pid) -> i32 {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = text[text.rfind(')').unwrap() + 2..].split(' ').collect();
    fields[16].parse().unwrap()
}

fn oom_score_adj(pid: Pid) -> i32 {
    fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).unwrap().trim().parse().unwrap()
}

/// Returns the CPUs that a process may use, lowest first.
fn cpus(pid: Pid) -> Vec<u16> {
    let list = status(pid, "Cpus_allowed_list").concat();
    let range = |part: &str| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        first.parse().unwrap()..=last.parse().unwrap()
    };
    list.split(',').flat_map(range).collect()
}

fn groups(pid: Pid) -> BTreeSet<u32> {
    status(pid, "Groups").iter().map(|group| group.parse().unwrap()).collect()
}

/// Returns a process's nice value, OOM adjustment, CPUs, limit of open files, and no_new_privs.
fn limits_of(pid: Pid) -> (i32, i32, Vec<u16>, [String; 2], Vec<String>) {
    let files = limit(pid, "Max open files");
    (nice(pid), oom_score_adj(pid), cpus(pid), files, status(pid, "NoNewPrivs"))
}

fn workers_run_with_their_resource_limits(class: &str) {
    let mine = cpus(Pid::this());
    let flags =
        ["--rlimit-nofile", "512", "--nice", "5", "--oom-score-adj", "300", "--umask", "027"];
    let launch = Launch::new(&["-k", class, "-w", "3", "--cpu-affinity", "auto"]);
    let mut launch = flags.iter().fold(launch, |launch, flag| launch.arg(flag));
    launch = launch.arg("--no-new-privs").arg("--chdir").arg("/usr").arg("-e").arg("COLOUR=blue");
    if unprivileged_user().is_some() {
        launch = launch.arg("--user").arg("nobody");
    }
    let server = launch.start();
    for (index, worker) in server.wait_workers(3).into_iter().enumerate() {
        let pid = worker.pid;
        let files = ["512", "512"].map(str::to_owned);
        let cpu = vec![mine[index % mine.len()]];
        assert_eq!(limits_of(pid), (5, 300, cpu, files, vec!["1".to_owned()]));
        assert_eq!(status(pid, "Umask"), ["0027"]);
        assert_eq!(working_directory(pid).to_str(), Some("/usr"));
    }
    assert_eq!(server.get("/env?name=COLOUR").text().trim(), "blue");
    // The master keeps its own.
    assert_eq!(limits_of(server.pid), limits_of(Pid::this()));
    server.finish();
}

#[test]
fn negative_nice_is_set_before_privileges_drop() {
    if unprivileged_user().is_none() {
        return;
    }
    let server = Server::start(&["--user", "nobody", "--nice", "-5"]);
    assert_eq!(nice(server.workers()[0].pid), -5);
    server.finish();
}

#[test]
fn rlimit_core_lets_another_user_dump_core() {
    // Not started by the harness, which limits its servers' cores to 0.
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("sock");
    let mut command = Command::new(env!("CARGO_BIN_EXE_ostler"));
    command.args(["--rlimit-core", "1M", "--bind"]).arg(format!("unix:{}", path.display()));
    if unprivileged_user().is_some() {
        command.args(["--user", "nobody"]);
    }
    if limit(Pid::this(), "Max core file size")[1] != "unlimited" {
        eprintln!("skipped: the hard limit of this process is too low");
        return;
    }
    let mut master = command.stderr(Stdio::null()).spawn().unwrap();
    wait_until("it listens", || Client::unix(&path).is_ok());
    let answer = Client::unix(&path).unwrap().try_get_last("/pid").unwrap();
    let pid = Pid::from_raw(answer.text().trim().parse().unwrap());
    let core = limit(pid, "Max core file size");
    // In /proc, a process that cannot dump core belongs to root.
    let owner = fs::metadata(format!("/proc/{pid}/environ")).unwrap().uid();
    let uid = status(pid, "Uid");
    kill(Pid::from_raw(master.id().try_into().unwrap()), Signal::SIGTERM).unwrap();
    assert!(master.wait().unwrap().success());
    assert_eq!(core, ["1048576", "1048576"].map(str::to_owned));
    assert_eq!(owner.to_string(), uid[0]);
}

#[test]
fn cpu_affinity_pins_each_slot_to_a_cpu() {
    let mine = cpus(Pid::this());
    let (first, last) = (mine[0], mine[mine.len() - 1]);
    let list = format!("{last},{first},{first}");
    let server = Server::start(&["-w", "4", "--cpu-affinity", &list]);
    let workers = server.wait_workers(4);
    let found: Vec<_> = workers.iter().map(|worker| cpus(worker.pid)).collect();
    assert_eq!(found, [last, first, first, last].map(|cpu| vec![cpu]));
    // The replacement runs on the same CPU.
    kill(workers[3].pid, Signal::SIGKILL).unwrap();
    assert_eq!(cpus(server.wait_replaced(workers[3]).pid), [last]);
    server.finish();
}

#[test]
fn failing_limits_are_reported_with_remedy() {
    let impossible: [(&[&str], &str); 3] = [
        (&["--cpu-affinity", "1023"], "failed to set cpu_affinity to CPU 1023: "),
        (&["--rlimit-nofile", "1073741824"], "failed to set rlimit_nofile to 1073741824: "),
        (&["--chdir", "/proc/1/map_files", "--user", "nobody"], "failed to change directory to "),
    ];
    for (flags, words) in impossible {
        if flags.contains(&"--user") && unprivileged_user().is_none() {
            continue;
        }
        let outcome = Launch::new(flags).arg("--boot-retries").arg("0").run();
        assert_eq!(outcome.exit, Exit::Code(3), "{outcome:?}");
        assert!(outcome.stderr.contains(words), "{outcome:?}");
    }
}

#[test]
fn workers_have_only_their_users_groups() {
    if unprivileged_user().is_none() {
        return;
    }
    // A user with more groups than one, if there is one.
    let database = fs::read_to_string("/etc/group").unwrap();
    let members = database.lines().filter_map(|line| line.rsplit(':').next());
    let member = members.flat_map(|list| list.split(',')).find(|name| {
        let user = User::from_name(name).ok().flatten();
        user.is_some_and(|user| !user.uid.is_root())
    });
    let user = User::from_name(member.unwrap_or("nobody")).unwrap().unwrap();
    let name = CString::new(user.name.as_str()).unwrap();
    for group in [user.gid, Gid::from_raw(54_321)] {
        let server = Server::start(&["-u", &user.name, "-g", &group.to_string()]);
        let pid = server.workers()[0].pid;
        let expected = getgrouplist(&name, group).unwrap().into_iter().map(Gid::as_raw).collect();
        assert_eq!(groups(pid), expected);
        assert_eq!(status(pid, "Uid"), vec![user.uid.to_string(); 4]);
        assert_eq!(status(pid, "Gid"), vec![group.to_string(); 4]);
        server.finish();
    }
}

#[test]
fn unknown_uid_has_only_its_group() {
    if unprivileged_user().is_none() {
        return;
    }
    let server = Server::start(&["--user", "54321", "--group", "54322"]);
    let pid = server.workers()[0].pid;
    assert_eq!(status(pid, "Uid"), ["54321"; 4]);
    assert_eq!(status(pid, "Gid"), ["54322"; 4]);
    assert_eq!(groups(pid), BTreeSet::from([54_322]));
    assert_eq!(status(pid, "CapEff"), ["0000000000000000"]);
    server.finish();
    let outcome = Launch::new(&["--user", "54321"]).plain().run();
    assert_eq!(outcome.exit, Exit::Code(1), "{outcome:?}");
    assert!(outcome.stderr.contains("give the group too"), "{outcome:?}");
}

#[test]
fn group_alone_can_be_changed() {
    if unprivileged_user().is_none() {
        return;
    }
    let server = Server::start(&["--group", "54322"]);
    let pid = server.workers()[0].pid;
    assert_eq!(status(pid, "Uid"), ["0"; 4]);
    assert_eq!(status(pid, "Gid"), ["54322"; 4]);
    assert_eq!(groups(pid), BTreeSet::from([54_322]));
    server.finish();
}

#[test]
fn unknown_user_or_group_is_rejected() {
    let strange: [(&[&str], &str); 4] = [
        (&["--user", "no-such-user"], "unknown user \"no-such-user\""),
        (&["--group", "no-such-group"], "unknown group \"no-such-group\""),
        (&["--socket-user", "no-such-user"], "--socket-user: unknown user \"no-such-user\""),
        (&["--socket-group", "no-such-group"], "--socket-group: unknown group"),
    ];
    for (flags, words) in strange {
        for launch in [Launch::new(flags), Launch::new(flags).arg("--check-config")] {
            let outcome = launch.plain().run();
            assert_eq!(outcome.exit, Exit::Code(1), "{outcome:?}");
            assert!(outcome.stderr.contains(words), "{outcome:?}");
        }
    }
}

/// Lets other users search the directory.
fn open(dir: &Path) {
    fs::set_permissions(dir, Permissions::from_mode(0o755)).unwrap();
}

/// Returns the mode, user and group of a path.
fn access(path: &Path) -> (u32, u32, u32) {
    let metadata = fs::symlink_metadata(path).unwrap();
    (metadata.mode() & 0o7777, metadata.uid(), metadata.gid())
}

fn socket_path_has_configured_mode_and_owner(class: &str) {
    let own = (Uid::effective().as_raw(), Gid::effective().as_raw());
    let unprivileged_user = unprivileged_user().map(|user| (user.uid.as_raw(), user.gid.as_raw()));
    let (user, group) = unprivileged_user.unwrap_or(own);
    let cases = [
        (vec![], (0o660, own.0, own.1)),
        (vec!["--socket-mode=666".to_owned()], (0o666, own.0, own.1)),
        (
            vec!["--socket-mode=600".to_owned(), format!("--socket-user={user}")],
            (0o600, user, own.1),
        ),
        (
            vec!["--socket-mode=0777".to_owned(), format!("--socket-group={group}")],
            (0o777, own.0, group),
        ),
    ];
    for (flags, expected) in cases {
        let mut launch = Launch::new(&["-k", class, "--umask", "077"]).unbound();
        launch = flags.iter().fold(launch, |launch, flag| launch.arg(flag));
        let bind = format!("unix:{}", launch.path("sock"));
        let mut server = launch.arg("--bind").arg(bind).start();
        let path = server.path("sock");
        assert_eq!(access(&path), expected);
        let answer = Client::unix(&path).unwrap().try_get_last("/").unwrap();
        assert_eq!(answer.text(), "Hello, world!\n");
        server.signal(Signal::SIGTERM);
        server.expect_clean_exit();
        assert!(!path.exists());
    }
}

#[test]
fn reload_changes_limits_and_access_of_new_paths() {
    let launch = Launch::new(&["-c"]).unbound();
    let (file, dir) = (launch.path("x.yaml"), launch.dir().to_owned());
    let paths = ["old", "new"].map(|name| dir.join(name));
    let bind = |count: usize| {
        let lines = paths[..count].iter().map(|path| format!("  - unix:{}\n", path.display()));
        lines.collect::<String>()
    };
    fs::write(&file, format!("nice: 3\nsocket_mode: 600\nbind:\n{}", bind(1))).unwrap();
    let server = launch.arg(&file).start();
    assert_eq!(nice(server.workers()[0].pid), 3);
    let text = format!(
        "nice: 4\nrlimit_nofile: 400\noom_score_adj: 7\nno_new_privs: yes\nsocket_mode: 666\nbind:\n{}",
        bind(2)
    );
    fs::write(&file, text).unwrap();
    server.signal(Signal::SIGHUP);
    server.wait_for("the reload is done", |record| record.message() == "reload complete");
    let pid = server.workers().last().unwrap().pid;
    assert_eq!((nice(pid), oom_score_adj(pid)), (4, 7));
    assert_eq!(
        (limit(pid, "Max open files")[0].as_str(), status(pid, "NoNewPrivs")[0].as_str()),
        ("400", "1")
    );
    assert_eq!(paths.each_ref().map(|path| access(path).0), [0o600, 0o666]);
    let kept = server.records_of("socket path keeps its mode and owner");
    let kept: Vec<_> = kept.iter().map(|record| record.text("address").unwrap()).collect();
    assert_eq!(kept, [format!("unix:{}", paths[0].display())]);
    // A setting that fails leaves everything as it is.
    fs::write(&file, format!("cpu_affinity: 1023\nbind:\n{}", bind(2))).unwrap();
    let mark = server.mark();
    server.signal(Signal::SIGHUP);
    let failed = server.wait_for_new_record(mark, "the reload fails", |record| {
        record.message().starts_with("reload failed")
    });
    assert!(failed.text("error").unwrap().contains("CPU 1023"), "{failed:?}");
    assert_eq!(nice(server.workers()[0].pid), 4);
    server.finish();
}

fn unprivileged_workers_serve_heartbeat_and_reopen_the_log(class: &str) {
    if unprivileged_user().is_none() {
        return;
    }
    let launch =
        Launch::new(&["-k", class, "--user", "nobody", "--timeout", "1", "--abort-timeout=100ms"]);
    open(launch.dir());
    let log = launch.path("log");
    // The worker opens the file, although its directory is another.
    let server = launch.arg("--log-file=log").arg("--chdir=/usr").spawn();
    let count = |path: &str, words: &str| {
        fs::read_to_string(path).unwrap_or_default().matches(words).count()
    };
    wait_until("it serves", || server.try_get("/").is_ok_and(|answer| answer.status() == 200));
    // A worker that could not write its heartbeat would be found hung.
    server.serve_for(Duration::from_millis(1500));
    assert_eq!(count(&log, "\"worker exited\""), 0);
    assert_eq!(count(&log, "\"worker ready\""), 1);
    let moved = format!("{log}.1");
    fs::rename(&log, &moved).unwrap();
    server.signal(Signal::SIGUSR1);
    wait_until("the worker writes to the new file", || {
        assert_eq!(server.get("/panic").status(), 500);
        count(&log, "\"worker panicked\"") > 0
    });
    let uid = User::from_name("nobody").unwrap().unwrap().uid;
    assert_eq!(fs::metadata(&log).unwrap().uid(), uid.as_raw());
    assert_eq!(fs::metadata(&log).unwrap().mode() & 0o777, 0o640);
    let mut stuck = server.connect();
    stuck.ask("/hang");
    wait_until("the hung worker is found", || count(&log, "\"worker hung\"") > 0);
    wait_until("it serves", || server.try_get("/").is_ok_and(|answer| answer.status() == 200));
    server.signal(Signal::SIGTERM);
    assert_eq!(server.wait_exit(), Exit::Code(0));
}

/// Whatever workers put in the place of their log, or of its folder, root's files stay root's.
fn log_dir_of_workers_user_gives_no_file_away(class: &str) {
    let Some(user) = unprivileged_user() else { return };
    let owner = |path: &Path| lchown(path, Some(user.uid.as_raw()), None).unwrap();
    let launch = Launch::new(&["-k", class, "--user", "nobody", "--pid", "pid"]);
    open(launch.dir());
    let (home, private) = (launch.dir().join("home"), launch.dir().join("private"));
    let logs = home.join("logs");
    for dir in [&home, &logs, &private] {
        fs::create_dir(dir).unwrap();
        open(dir);
    }
    owner(&home);
    owner(&logs);
    let secrets = ["log", "moved"].map(|name| private.join(name));
    for secret in &secrets {
        fs::write(secret, "secret\n").unwrap();
        fs::set_permissions(secret, Permissions::from_mode(0o600)).unwrap();
    }
    let (log, old, lost) = (logs.join("log"), logs.join("old"), home.join("lost"));
    let server = launch.arg("--log-file").arg(log.to_str().unwrap()).spawn();
    let count = |path: &Path, words: &str| {
        fs::read_to_string(path).unwrap_or_default().matches(words).count()
    };
    wait_until("it is ready", || count(&log, "all workers ready") > 0);
    assert_eq!(access(&log).1, user.uid.as_raw());
    fs::rename(&log, &old).unwrap();
    let expect_refusal = |what: &str, old: &Path| {
        for (signal, message) in
            [(Signal::SIGUSR1, "failed to reopen log"), (Signal::SIGHUP, "reload rejected")]
        {
            let before = count(old, message);
            kill(server.pid, signal).unwrap();
            wait_until(what, || count(old, message) > before);
        }
        for secret in &secrets {
            assert_eq!(access(secret), (0o600, 0, 0), "{what}");
            assert_eq!(fs::read_to_string(secret).unwrap(), "secret\n", "{what}");
        }
    };
    symlink(&secrets[0], &log).unwrap();
    owner(&log);
    expect_refusal("a link", &old);
    fs::remove_file(&log).unwrap();
    fs::hard_link(&secrets[0], &log).unwrap();
    expect_refusal("a hard link", &old);
    fs::remove_file(&log).unwrap();
    let target = private.join("new");
    symlink(&target, &log).unwrap();
    owner(&log);
    expect_refusal("a link to nothing", &old);
    assert!(!target.exists());
    fs::remove_file(&log).unwrap();
    // A file of root that workers may rename, since its folder is theirs.
    fs::write(&log, "root's\n").unwrap();
    expect_refusal("a file from elsewhere", &old);
    assert_eq!((access(&log).1, count(&log, "root's")), (0, 1));
    fs::remove_file(&log).unwrap();
    fs::rename(&logs, &lost).unwrap();
    symlink(&private, &logs).unwrap();
    owner(&logs);
    expect_refusal("a link in the place of the folder", &lost.join("old"));
    fs::remove_file(&logs).unwrap();
    fs::rename(&lost, &logs).unwrap();
    // An empty file of root, as logrotate makes it, is given to the workers, and so is a new one.
    fs::write(&log, "").unwrap();
    server.signal(Signal::SIGUSR1);
    wait_until("the log is reopened", || count(&log, "logs reopened") > 0);
    assert_eq!(access(&log).1, user.uid.as_raw());
    server.signal(Signal::SIGTERM);
    assert_eq!(server.wait_exit(), Exit::Code(0));
}

#[test]
fn log_that_is_not_a_file_keeps_its_owner() {
    if unprivileged_user().is_none() {
        return;
    }
    let launch = Launch::new(&["--user", "nobody"]);
    open(launch.dir());
    let fifo = launch.dir().join("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::from_bits_truncate(0o622)).unwrap();
    let reader = fs::OpenOptions::new().read(true).write(true).open(&fifo).unwrap();
    let before = access(&fifo);
    let server = launch.arg("--log-file").arg(fifo.to_str().unwrap()).spawn();
    wait_until("it serves", || server.try_get("/").is_ok_and(|answer| answer.status() == 200));
    assert_eq!(access(&fifo), before);
    server.signal(Signal::SIGTERM);
    assert_eq!(server.wait_exit(), Exit::Code(0));
    drop(reader);

    // Root's own link to the pipe that the harness reads.
    let (reader, writer) = std::io::pipe().unwrap();
    let pipe = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&reader));
    let server =
        Launch::new(&["--user", "nobody", "--log-file", "/dev/stderr"]).stderr_to(writer).spawn();
    wait_until("it serves", || server.try_get("/").is_ok_and(|answer| answer.status() == 200));
    assert_eq!(fs::metadata(pipe).unwrap().uid(), 0);
    server.signal(Signal::SIGTERM);
    assert_eq!(server.wait_exit(), Exit::Code(0));
    let text = std::io::read_to_string(reader).unwrap();
    assert!(text.contains("worker started") && text.contains("stopped"), "{text}");
}

#[test]
fn log_file_of_another_user_keeps_its_owner() {
    if unprivileged_user().is_none() {
        return;
    }
    let launch = Launch::new(&["--user", "nobody"]);
    open(launch.dir());
    let log = launch.dir().join("log");
    fs::write(&log, "").unwrap();
    chown(&log, Some(1), None).unwrap();
    let server = launch.arg("--log-file=log").spawn();
    wait_until("it serves", || server.try_get("/").is_ok_and(|answer| answer.status() == 200));
    assert_eq!(access(&log).1, 1);
    server.signal(Signal::SIGTERM);
    assert_eq!(server.wait_exit(), Exit::Code(0));
}
