//! A worker class without clients: its workers take items from a queue, which is a directory.
//!
//! ```text
//! mkdir /tmp/queue
//! QUEUE=/tmp/queue cargo run --example queue_consumer -- --workers 2
//! echo 'sleep 500' > /tmp/queue/one && mv /tmp/queue/one /tmp/queue/one.job
//! ```
//!
//! An item is a file `NAME.job`, moved there with one rename. A worker holds a lock on its item's
//! file, and removes the file when the item is done. If the worker dies, the kernel releases the
//! lock, and another worker takes the item. So no item is lost, and an item whose worker died is
//! started again.

use std::env;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use ostler::Runtime;
use ostler::app::ConfigError;
use ostler::settings::Settings;
use ostler::worker::{StopRequest, WorkerClass, WorkerContext, WorkerError};
use slog::info;

struct Queue;

impl WorkerClass for Queue {
    fn name(&self) -> &'static str {
        "queue"
    }

    fn check(&self, _: &Settings) -> Result<(), ConfigError> {
        let readable = folder().and_then(fs::read_dir);
        let refused =
            |error| ConfigError::new(format!("QUEUE must name a folder to read: {error}"));
        readable.map(drop).map_err(refused)
    }

    fn listens(&self) -> bool {
        false
    }

    fn needs_app(&self) -> bool {
        false
    }

    fn run(&self, ctx: &WorkerContext<'_>) -> Result<(), WorkerError> {
        let (lifecycle, folder) = (ctx.lifecycle(), folder()?);
        // The watch is set before the directory is read, so that no item is missed in between.
        let news = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
        news.add_watch(&folder, AddWatchFlags::IN_MOVED_TO)?;
        let (mut poll, mut events) = (Poll::new()?, Events::with_capacity(4));
        for fd in [news.as_fd(), lifecycle.wake_fd()] {
            let mut source = SourceFd(&fd.as_raw_fd());
            poll.registry().register(&mut source, Token(0), Interest::READABLE)?;
        }
        lifecycle.ready();
        while lifecycle.poll_stop() == StopRequest::None {
            lifecycle.notify();
            if let Some((path, _lock)) = next_item(&folder)? {
                let name = path.file_stem().unwrap_or_default().to_string_lossy();
                // The worker is busy from here: the item is limited by `timeout`, and counted.
                let _work = lifecycle.begin_work(&name);
                work_on(&fs::read_to_string(&path)?);
                fs::remove_file(&path)?;
                info!(ctx.log(), "item processed"; "item" => &*name, "slot" => ctx.worker().slot);
                continue;
            }
            // The events are edge-triggered: the watch is drained before the next sleep.
            match poll.poll(&mut events, lifecycle.heartbeat_interval()) {
                Err(error) if error.kind() != io::ErrorKind::Interrupted => {
                    return Err(error.into());
                }
                _ => while news.read_events().is_ok() {},
            }
        }
        Ok(())
    }
}

fn folder() -> io::Result<PathBuf> {
    let name = env::var_os("QUEUE").ok_or_else(|| io::Error::other("it is not set"))?;
    Ok(name.into())
}

/// Returns the first item that no worker has locked, and the lock that this worker now holds on it.
fn next_item(folder: &Path) -> io::Result<Option<(PathBuf, File)>> {
    let paths = fs::read_dir(folder)?.map(|entry| Ok(entry?.path()));
    let mut paths = paths.collect::<io::Result<Vec<_>>>()?;
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "job"));
    paths.sort_unstable();
    for path in paths {
        let Ok(file) = File::open(&path) else { continue }; // done meanwhile
        // A file without a link was done by the last holder of the lock.
        if file.try_lock().is_ok() && file.metadata()?.nlink() > 0 {
            return Ok(Some((path, file)));
        }
    }
    Ok(None)
}

/// Does the work: here, sleeps.
fn work_on(item: &str) {
    match item.trim().split_once(' ') {
        Some(("sleep", ms)) => thread::sleep(Duration::from_millis(ms.parse().unwrap_or(0))),
        _ if item.trim() == "hang" => thread::sleep(Duration::MAX),
        _ => (),
    }
}

fn main() -> ExitCode {
    Runtime::new().class(Queue).default_class("queue").main()
}
