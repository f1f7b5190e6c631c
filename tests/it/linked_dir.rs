//! A working directory that is reached by a symbolic link: when the link is changed, a reload and an upgrade
//! follow it to the next release.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::launch::Launch;
use crate::proc::wait_until;
use crate::support::Server;

on_every_class!(reload_follows_the_link);

const PROGRAM: &str = env!("CARGO_BIN_EXE_ostler");

/// Makes two releases with settings of their own, and a link to the first.
fn make_releases(dir: &Path) {
    for name in ["one", "two"] {
        let release = dir.join(name);
        fs::create_dir(&release).unwrap();
        fs::write(release.join("shop.yaml"), format!("env: [RELEASE={name}]\nworkers: 1\n"))
            .unwrap();
        fs::copy(PROGRAM, release.join("ostler")).unwrap();
    }
    symlink("one", dir.join("current")).unwrap();
}

/// Leads the link to the second release, at once.
fn switch(server: &Server) {
    symlink("two", server.path("next")).unwrap();
    fs::rename(server.path("next"), server.path("current")).unwrap();
}

/// Starts `program` as a shell does that has changed to the link.
fn start(program: &str, flags: &[&str]) -> Server {
    let words = ["sh", "-c", "cd current && exec \"$0\" \"$@\"", program];
    let launch = Launch::by(&words, &[flags, &["-c", "shop.yaml"]].concat());
    make_releases(launch.dir());
    launch.start()
}

fn release(server: &Server) -> String {
    server.get("/env?name=RELEASE").text().trim().to_owned()
}

fn cwd(pid: Pid) -> PathBuf {
    fs::read_link(format!("/proc/{pid}/cwd")).unwrap()
}

fn reload_follows_the_link(class: &str) {
    let server = start(PROGRAM, &["-k", class]);
    assert_eq!(release(&server), "one");
    switch(&server);
    // Nothing has asked for the new release yet.
    let worker = server.wait_workers(1)[0];
    kill(worker.pid, Signal::SIGKILL).unwrap();
    let worker = server.wait_replaced(worker);
    assert_eq!(release(&server), "one");
    assert!(cwd(worker.pid).ends_with("one"), "{:?}", cwd(worker.pid));
    server.signal(Signal::SIGHUP);
    server.wait_for("the reload", |record| record.message() == "reload complete");
    // A thread of the old worker may have been about to accept.
    wait_until("the new release answers", || release(&server) == "two");
    let worker = server.answering_pid();
    assert!(cwd(worker).ends_with("two"), "{:?}", cwd(worker));
    // A link that leads nowhere changes nothing.
    fs::remove_file(server.path("current")).unwrap();
    server.signal(Signal::SIGHUP);
    let rejected = server.wait_for("its end", |record| record.message() == "reload rejected");
    assert!(rejected.text("error").unwrap().contains("cannot be followed"), "{rejected:?}");
    assert_eq!(release(&server), "two");
    server.finish();
}

#[test]
fn upgrade_follows_the_link() {
    let server = start("./ostler", &["-k", "mio"]);
    switch(&server);
    server.signal(Signal::SIGUSR2);
    let ready = server.wait_for("the new master", |record| record.message() == "new master ready");
    let new = Pid::from_raw(i32::try_from(ready.number("pid").unwrap()).unwrap());
    let program = fs::read_link(format!("/proc/{new}/exe")).unwrap();
    assert!(program.ends_with("two/ostler"), "{program:?}");
    server.signal(Signal::SIGTERM);
    server.wait_for("the end", |record| record.message() == "upgrade complete");
    assert_eq!(release(&server), "two");
    kill(new, Signal::SIGTERM).unwrap();
    server.wait_no_survivors();
}

/// Any program can set the variable; it is believed only if it leads to the working directory.
#[test]
fn other_value_of_pwd_is_ignored() {
    let launch = Launch::by(&["env", "PWD=/tmp", PROGRAM], &["-k", "mio", "-c", "shop.yaml"]);
    fs::write(launch.path("shop.yaml"), "workers: 1\n").unwrap();
    let server = launch.start();
    fs::write(server.path("shop.yaml"), "workers: 2\n").unwrap();
    server.signal(Signal::SIGHUP);
    server.wait_workers(2);
    server.finish();
}
