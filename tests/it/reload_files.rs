//! `reload: true`: a change of files that has settled leads to a reload.

use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::time::SystemTime;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::launch::Launch;
use crate::log_capture::Record;
use crate::proc::{children, is_gone, title, wait_until};
use crate::reloading::is_reload_failure;
use crate::support::{Exit, Server};

on_every_class!(edited_settings_file_reloads);

/// Starts a server that watches `c.yaml`, which includes `conf.d`, and `extra` and `extras`.
fn start(class: &str, settings: &str) -> Server {
    start_with(launch(class, settings))
}

fn launch(class: &str, settings: &str) -> Launch {
    // Without a parent of the master, as under a service manager.
    let launch = Launch::new(&["--reload", "-k", class]).env("LISTEN_FDS", "0");
    fs::create_dir(launch.dir().join("conf.d")).unwrap();
    fs::create_dir(launch.dir().join("extras")).unwrap();
    fs::write(launch.dir().join("extra"), "").unwrap();
    fs::write(launch.dir().join("c.yaml"), format!("include: conf.d\n{settings}\n")).unwrap();
    let flags = ["-c", "c.yaml", "--reload-extra-file", "extra", "--reload-extra-file", "extras"];
    flags.into_iter().fold(launch, Launch::arg)
}

fn start_with(launch: Launch) -> Server {
    let server = launch.start();
    wait_watched(&server);
    server
}

/// Waits until the files are watched: the states of the files are known when the watches are made.
#[track_caller]
fn wait_watched(server: &Server) {
    wait_until("the files are watched", || {
        watcher(server).is_some_and(|pid| !is_gone(pid) && has_inotify(pid))
    });
}

fn watcher(server: &Server) -> Option<Pid> {
    let mut children = children(server.pid).into_iter().map(|child| child.pid);
    children.rfind(|pid| title(*pid).starts_with("ostler: file watcher"))
}

fn has_inotify(pid: Pid) -> bool {
    let fds = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    fds.filter_map(|fd| fs::read_link(fd.path()).ok())
        .any(|target| target.to_string_lossy().contains("inotify"))
}

fn edit(server: &Server, text: &str) {
    fs::write(server.path("c.yaml"), format!("include: conf.d\n{text}\n")).unwrap();
}

/// Waits until a reload has ended, and the files are watched again.
#[track_caller]
fn wait_reloaded(server: &Server, mark: usize) -> Record {
    let is_end =
        |record: &Record| record.message() == "reload complete" || is_reload_failure(record);
    let end = server.wait_for_new_record(mark, "the end of a reload", is_end);
    wait_watched(server);
    end
}

#[track_caller]
fn expect_reload(server: &Server, change: impl FnOnce()) {
    let mark = server.mark();
    change();
    let end = wait_reloaded(server, mark);
    assert_eq!(end.message(), "reload complete", "{end:?}");
}

fn edited_settings_file_reloads(class: &str) {
    let server = start(class, "workers: 1");
    let old = server.wait_workers(1);
    expect_reload(&server, || edit(&server, "workers: 2"));
    server.wait_exited(old[0].pid);
    assert_eq!(server.wait_workers(2).len(), 2);
    let changed = server.records_of("files changed");
    assert_eq!(changed.len(), 1);
    assert_eq!(changed[0].text("files"), Some("c.yaml"));
    server.finish();
}

#[test]
fn burst_of_changes_is_one_reload() {
    let server = start("mio", "workers: 1");
    expect_reload(&server, || {
        for text in ["workers: 3", "", "workers: 4", "nonsense: 1"].iter().cycle().take(99) {
            edit(&server, text);
        }
        // As an editor saves: another file gets the name.
        fs::write(server.path("new"), "include: conf.d\nworkers: 2\n").unwrap();
        fs::rename(server.path("new"), server.path("c.yaml")).unwrap();
    });
    assert_eq!(server.wait_workers(2).len(), 2);
    // A reload too many would have begun before this one.
    expect_reload(&server, || edit(&server, "workers: 1"));
    assert_eq!(server.records_of("reload started").len(), 2);
    assert!(!server.records().iter().any(is_reload_failure));
    server.finish();
}

#[test]
fn extra_files_and_included_directories_reload() {
    let server = start("mio", "workers: 1");
    expect_reload(&server, || {
        File::options()
            .write(true)
            .open(server.path("extra"))
            .unwrap()
            .set_modified(SystemTime::UNIX_EPOCH)
            .unwrap();
    });
    expect_reload(&server, || fs::write(server.path("extras/a"), "1").unwrap());
    expect_reload(&server, || fs::write(server.path("extras/a"), "22").unwrap());
    expect_reload(&server, || fs::remove_file(server.path("extras/a")).unwrap());
    expect_reload(&server, || fs::write(server.path("conf.d/a.yaml"), "workers: 2\n").unwrap());
    assert_eq!(server.wait_workers(2).len(), 2);
    // The file was not known when the server started.
    expect_reload(&server, || fs::write(server.path("conf.d/a.yaml"), "workers: 3\n").unwrap());
    assert_eq!(server.wait_workers(3).len(), 3);
    server.finish();
}

#[test]
fn neighbour_of_a_file_does_not_reload() {
    let server = start("mio", "workers: 1");
    for _ in 0..50 {
        fs::write(server.path("neighbour"), "").unwrap();
        fs::remove_file(server.path("neighbour")).unwrap();
    }
    expect_reload(&server, || edit(&server, "workers: 2"));
    assert_eq!(server.records_of("files changed").len(), 1);
    server.finish();
}

#[test]
fn bad_settings_change_nothing_until_mended() {
    let server = start("mio", "workers: 1");
    let (mark, old) = (server.mark(), server.wait_workers(1));
    edit(&server, "nonsense: 1");
    assert_eq!(wait_reloaded(&server, mark).message(), "reload rejected");
    assert_eq!(server.workers(), old);
    expect_reload(&server, || edit(&server, "workers: 2"));
    assert_eq!(server.wait_workers(2).len(), 2);
    assert_eq!(server.records_of("reload rejected").len(), 1);
    server.finish();
}

#[test]
fn change_during_a_reload_leads_to_another() {
    let server = start_with(launch("mio", "workers: 1").env("DEMO_BOOT_SLEEP_MS", "1000"));
    let mark = server.mark();
    edit(&server, "workers: 2");
    server.wait_for_new_record(mark, "a reload", |it| it.message() == "reload started");
    edit(&server, "workers: 3");
    let is_second = |it: &Record| {
        it.message() == "reload complete" && it.number("generation").is_some_and(|it| it > 2)
    };
    server.wait_for_new_record(mark, "the second reload", is_second);
    assert_eq!(server.wait_workers(3).len(), 3);
    server.finish();
}

#[test]
fn changed_links_are_followed() {
    let launch = launch("mio", "workers: 1");
    let dir = launch.dir().to_path_buf();
    for (release, workers) in [("one", 1), ("two", 2)] {
        fs::create_dir(dir.join(release)).unwrap();
        let text = format!("workers: {workers}\n");
        fs::write(dir.join(release).join("x.yaml"), text).unwrap();
    }
    symlink("one", dir.join("current")).unwrap();
    fs::write(dir.join("c.yaml"), "include: [conf.d, current/x.yaml]\n").unwrap();
    let server = start_with(launch);
    expect_reload(&server, || {
        symlink("two", server.path("next")).unwrap();
        fs::rename(server.path("next"), server.path("current")).unwrap();
    });
    assert_eq!(server.wait_workers(2).len(), 2);
    expect_reload(&server, || fs::write(server.path("two/x.yaml"), "workers: 3\n").unwrap());
    assert_eq!(server.wait_workers(3).len(), 3);
    server.finish();
}

/// The master waits for no watcher, and starts another one.
#[test]
#[ignore = "slow"]
fn killed_watcher_is_replaced() {
    let server = start("mio", "workers: 1");
    let watcher = watcher(&server).unwrap();
    let mark = server.mark();
    kill(watcher, Signal::SIGKILL).unwrap();
    server.wait_for_new_record(mark, "a warning", |it| it.message() == "failed to watch files");
    wait_watched(&server);
    expect_reload(&server, || edit(&server, "workers: 2"));
    server.finish();
}

#[test]
fn nothing_is_watched_without_the_option() {
    let server = Server::start(&["-k", "mio", "--reload-extra-file", "x"]);
    assert_eq!(children(server.pid).len(), 1);
    server.finish();
}

#[test]
fn watcher_exits_with_its_master() {
    let server = start("mio", "workers: 1");
    server.signal(Signal::SIGKILL);
    assert!(matches!(server.wait_exit(), Exit::Signal(_)));
    server.wait_no_survivors();
}

#[test]
fn daemon_is_refused() {
    let outcome = Launch::new(&["--reload", "--daemon"]).run();
    assert_eq!(outcome.exit, Exit::Code(2));
    assert!(outcome.stderr.contains("is for development"), "{}", outcome.stderr);
}
