//! Jumps of the clock that can be set, and masters that count the time since the boot differently:
//! nobody loses the lease, and never two lead at once.
//!
//! A library shifts the clock in masters and their children. Etcd is linked statically, and its system
//! calls cannot be shifted so: its own clock never jumps here.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, SystemTime};

use nix::sys::signal::Signal;

use crate::journal::{TTL, is};
use crate::leader::Group;
use crate::log_capture::Record;
use crate::support::Server;

/// Adds the seconds in a file to the clock that can be set.
const SHIFTED_CLOCK: &str = r#"
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static const volatile int64_t *shift;

__attribute__((constructor)) static void map_shift(void) {
    const char *path = getenv("TEST_CLOCK_SHIFT");
    int fd = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    void *page = fd < 0 ? MAP_FAILED : mmap(0, 8, PROT_READ, MAP_SHARED, fd, 0);
    if (page != MAP_FAILED)
        shift = page;
    if (fd >= 0)
        close(fd);
}

int clock_gettime(clockid_t clock, struct timespec *now) {
    int result = syscall(SYS_clock_gettime, clock, now);
    if (!result && shift && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE))
        now->tv_sec += *shift;
    return result;
}

int gettimeofday(struct timeval *now, void *zone) {
    struct timespec time;
    int result = clock_gettime(CLOCK_REALTIME, &time);
    now->tv_sec = time.tv_sec;
    now->tv_usec = time.tv_nsec / 1000;
    return result;
}

time_t time(time_t *now) {
    struct timespec time;
    clock_gettime(CLOCK_REALTIME, &time);
    if (now)
        *now = time.tv_sec;
    return time.tv_sec;
}
"#;

/// The library, and where it reads the shifts.
struct ShiftedClocks {
    library: PathBuf,
}

impl ShiftedClocks {
    /// Returns `None` without a C compiler, which is printed.
    fn compile(group: &Group) -> Option<Self> {
        let (source, library) = (group.dir().join("shift.c"), group.dir().join("shift.so"));
        fs::write(&source, SHIFTED_CLOCK).unwrap();
        let mut compiler = Command::new("cc");
        compiler.args(["-shared", "-fPIC", "-o"]).args([&library, &source]);
        if !compiler.status().is_ok_and(|status| status.success()) {
            eprintln!("skipped: no C compiler");
            return None;
        }
        Some(Self { library })
    }

    /// Starts a master whose clock the returned file shifts.
    fn master(&self, group: &Group, name: &str) -> (Server, File) {
        let path = group.dir().join(name);
        fs::write(&path, [0; 8]).unwrap();
        let launch = group.launch(name, &group.etcd.urls());
        let launch = launch.env("LD_PRELOAD", self.library.to_str().unwrap());
        let server = launch.env("TEST_CLOCK_SHIFT", path.to_str().unwrap()).start();
        (server, File::options().write(true).open(path).unwrap())
    }
}

/// Shifts the clock of a master, and checks that its log has the new time.
#[track_caller]
fn jump((server, shift): &(Server, File), seconds: i64) {
    shift.write_all_at(&seconds.to_ne_bytes(), 0).unwrap();
    let mark = server.mark();
    server.signal(Signal::SIGUSR1);
    let record = server.wait_for_new_record(mark, "its time", is("logs reopened"));
    let time = humantime::parse_rfc3339(record.text("ts").unwrap()).unwrap();
    let seconds_since = |it: SystemTime| it.duration_since(SystemTime::UNIX_EPOCH).unwrap();
    let difference =
        seconds_since(time).as_secs_f64() - seconds_since(SystemTime::now()).as_secs_f64();
    assert!((difference - seconds as f64).abs() < 60.0, "{difference} instead of {seconds}");
}

/// What the log says when the leader changes, or may.
const CHANGES: [&str; 3] = ["standby", "leading", "lease not renewed, draining"];

/// Lets the clocks of a leader and a standby jump. Returns what has changed meanwhile.
fn change_at_jumps(leader: &(Server, File), standby: &(Server, File)) -> Option<Record> {
    const HOUR: i64 = 3600;
    const DAY: i64 = 24 * HOUR;
    let marks = [(&leader.0, leader.0.mark()), (&standby.0, standby.0.mark())];
    for (of_leader, of_standby) in
        [(HOUR, 0), (-HOUR, HOUR), (DAY, -HOUR), (-DAY, DAY), (DAY, -DAY), (0, 0)]
    {
        jump(leader, of_leader);
        jump(standby, of_standby);
        sleep(TTL + Duration::from_millis(500));
    }
    let new = marks.into_iter().flat_map(|(server, mark)| server.records().split_off(mark));
    new.into_iter().find(|record| CHANGES.contains(&record.message()))
}

#[test]
#[ignore = "slow"]
fn jumps_of_the_clock_change_no_leader() {
    let mut changes = Vec::new();
    // A machine that stands still for a second loses the lease, whatever the clock says.
    while changes.len() < 3 {
        let Some(group) = Group::of(1) else { return };
        let Some(clocks) = ShiftedClocks::compile(&group) else { return };
        let first = clocks.master(&group, "a");
        group.wait_runs("a");
        let second = clocks.master(&group, "b");
        let knows = |it: &Record| is("standby")(it) && it.text("holder") != Some("-");
        second.0.wait_for("it knows the leader", knows);
        let change = change_at_jumps(&first, &second);
        group.expect_exclusive();
        if change.is_some() {
            changes.extend(change);
            continue;
        }
        // What is begun before a jump ends as it should: the standby takes over from a frozen leader.
        first.0.signal(Signal::SIGSTOP);
        jump(&second, -3600);
        group.wait_runs("b");
        first.0.signal(Signal::SIGCONT);
        sleep(TTL);
        return group.expect_exclusive();
    }
    panic!("each time: {changes:#?}");
}

/// Returns the first number of `/proc/uptime`, less that of this process.
fn uptime(text: &[u8]) -> f64 {
    let first = |text: &str| text.split_whitespace().next().and_then(|it| it.parse().ok());
    let own: f64 = first(&fs::read_to_string("/proc/uptime").unwrap()).unwrap();
    first(&String::from_utf8_lossy(text)).unwrap_or(own) - own
}

/// Each master has its own time since the boot, as on machines of their own.
#[test]
fn masters_with_different_times_since_the_boot_agree() {
    const OFFSET: f64 = 86_400.0;
    let words = ["unshare", "--time", "--boottime", "86400", "--"];
    let output = Command::new(words[0]).args(&words[1..]).args(["cat", "/proc/uptime"]).output();
    match output {
        // Up to Linux 6.2 or so, only the children of a program that is executed have the other time.
        Ok(output) if output.status.success() && uptime(&output.stdout) < OFFSET / 2.0 => {
            eprintln!("skipped: a program that is executed has not the time of its namespace");
            return;
        }
        Ok(output) if output.status.success() => (),
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stderr);
            eprintln!("skipped: time namespaces: {}", said.trim());
            return;
        }
        Err(error) => {
            eprintln!("skipped: unshare: {error}");
            return;
        }
    }
    let Some(group) = Group::of(1) else { return };
    let words = words.map(str::to_owned);
    let first = group.launch("a", &group.etcd.urls()).by_way_of(&words).start();
    group.wait_runs("a");
    let second = group.master("b");
    second.wait_for("it is a standby", is("standby"));
    first.signal(Signal::SIGSTOP); // its workers end by their own clock
    group.wait_runs("b");
    let mark = first.mark();
    first.signal(Signal::SIGCONT);
    first.wait_for_new_record(mark, "it is a standby", is("standby"));
    sleep(TTL * 2);
    second.signal(Signal::SIGSTOP);
    group.wait_runs("a");
    group.expect_exclusive();
    let entries = group.entries();
    let last_of = |name: &str| entries.iter().rfind(|entry| entry.1 == name).unwrap().0;
    assert!(last_of("a") - last_of("b") > OFFSET / 2.0, "the clocks differ: {entries:?}");
}
