//! Worker classes that break the contract, each in one way, as test cases of the contract kit. The
//! other examples have correct classes.
//!
//! ```text
//! cargo run --example broken_class -- --worker-class never-beats --timeout 2
//! ```

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::process::{Command, ExitCode, Stdio};
use std::thread;
use std::time::Duration;

use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use ostler::Runtime;
use ostler::app::ConfigError;
use ostler::apps::Demo;
use ostler::settings::Settings;
use ostler::worker::{Buffers, Client, StopRequest, WorkerClass, WorkerContext, WorkerError};

/// How long [`Violation::AcceptsAfterStop`] lasts.
const LATE_ACCEPTS: Duration = Duration::from_millis(1500);

#[derive(Clone, Copy, PartialEq, Eq)]
enum Violation {
    /// Starts a thread in the master.
    StartsEarly,
    NeverReady,
    /// Reports that it is ready before it can accept.
    ReadyTooEarly,
    BlocksTerm,
    /// Installs its own handler of SIGTERM.
    TakesTerm,
    NeverBeats,
    NeverSleeps,
    IgnoresStop,
    /// Exits while a client is being served.
    DropsWork,
    /// Exits while clients are queued that no other worker accepts.
    ForgetsTheQueue,
    /// Goes on accepting for a while after a stop is requested.
    AcceptsAfterStop,
    LeaksDescriptors,
    /// Leaves a process in a session of its own behind.
    LeavesAProcess,
    /// Returns an error after a requested stop.
    FailsAtTheEnd,
    Panics,
    /// Panics after it has reported that it is ready.
    PanicsLater,
}

const VIOLATIONS: [(&str, Violation); 16] = [
    ("starts-early", Violation::StartsEarly),
    ("never-ready", Violation::NeverReady),
    ("ready-too-early", Violation::ReadyTooEarly),
    ("blocks-term", Violation::BlocksTerm),
    ("takes-term", Violation::TakesTerm),
    ("never-beats", Violation::NeverBeats),
    ("never-sleeps", Violation::NeverSleeps),
    ("ignores-stop", Violation::IgnoresStop),
    ("drops-work", Violation::DropsWork),
    ("forgets-the-queue", Violation::ForgetsTheQueue),
    ("accepts-after-stop", Violation::AcceptsAfterStop),
    ("leaves-a-process", Violation::LeavesAProcess),
    ("leaks-descriptors", Violation::LeaksDescriptors),
    ("fails-at-the-end", Violation::FailsAtTheEnd),
    ("panics", Violation::Panics),
    ("panics-later", Violation::PanicsLater),
];

/// Serves one client after another, with one violation.
struct Broken(&'static str, Violation);

impl WorkerClass for Broken {
    fn name(&self) -> &'static str {
        self.0
    }

    fn check(&self, _: &Settings) -> Result<(), ConfigError> {
        if self.1 == Violation::StartsEarly {
            thread::spawn(|| thread::sleep(Duration::MAX));
        }
        Ok(())
    }

    fn run(&self, ctx: &WorkerContext<'_>) -> Result<(), WorkerError> {
        let (lifecycle, violation) = (ctx.lifecycle(), self.1);
        let (mut poll, mut events) = (Poll::new()?, Events::with_capacity(8));
        let wake = lifecycle.wake_fd().as_raw_fd();
        poll.registry().register(&mut SourceFd(&wake), Token(usize::MAX), Interest::READABLE)?;
        for (token, listener) in ctx.listeners().iter().enumerate() {
            listener.watch(&poll, token)?;
        }
        match violation {
            Violation::BlocksTerm => SigSet::from(Signal::SIGTERM).thread_block()?,
            Violation::TakesTerm => take_sigterm()?,
            Violation::LeavesAProcess => leave_a_process()?,
            Violation::Panics => panic!("the class panics"),
            _ => (),
        }
        if violation != Violation::NeverReady {
            lifecycle.ready();
        }
        assert!(violation != Violation::PanicsLater, "the class panics later");
        if violation == Violation::ReadyTooEarly {
            thread::sleep(Duration::from_millis(700));
        }
        let mut leaked = Vec::new();
        loop {
            if violation != Violation::NeverBeats {
                lifecycle.notify();
            }
            let stop = match lifecycle.poll_stop() {
                _ if violation == Violation::IgnoresStop => StopRequest::None,
                stop => stop,
            };
            let forgets = stop == StopRequest::Graceful && violation == Violation::ForgetsTheQueue;
            if stop == StopRequest::Immediate || forgets {
                return Ok(());
            }
            let expects = ctx.backlog_deadline();
            let accepts_late =
                violation == Violation::AcceptsAfterStop && lifecycle.stopping_for() < LATE_ACCEPTS;
            let mut listeners = ctx.listeners().iter();
            let client = listeners.find_map(|listener| {
                let wanted =
                    stop == StopRequest::None || accepts_late || ctx.must_drain_backlog(listener);
                if wanted { listener.accept().ok().flatten() } else { None }
            });
            if let Some((stream, address)) = client {
                if violation == Violation::LeaksDescriptors {
                    leaked.push(File::open("/dev/null")?);
                }
                let client = ctx.new_client(stream, address, false);
                if violation == Violation::DropsWork {
                    drop_at_stop(ctx, client)
                } else {
                    serve(ctx, client)
                }
            } else if stop == StopRequest::Graceful && expects.is_none() && !accepts_late {
                let failure =
                    (violation == Violation::FailsAtTheEnd).then(|| "it was asked to stop".into());
                return failure.map_or(Ok(()), Err);
            } else if violation != Violation::NeverSleeps
                && let Err(error) = poll.poll(&mut events, poll_timeout(ctx, violation))
                && error.kind() != io::ErrorKind::Interrupted
            {
                return Err(error.into());
            }
        }
    }
}

#[expect(unsafe_code)]
fn take_sigterm() -> io::Result<()> {
    extern "C" fn handle(_: i32) {}
    let action = SigAction::new(SigHandler::Handler(handle), SaFlags::empty(), SigSet::empty());
    // SAFETY: the handler does nothing.
    unsafe { sigaction(Signal::SIGTERM, &action) }?;
    Ok(())
}

fn leave_a_process() -> io::Result<()> {
    let mut command = Command::new("setsid");
    command.args(["sleep", "60"]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().map(drop)
}

fn poll_timeout(ctx: &WorkerContext<'_>, violation: Violation) -> Option<Duration> {
    let expectation =
        ctx.backlog_deadline().map(|until| until.duration_since(ctx.lifecycle().now()));
    let late = (violation == Violation::AcceptsAfterStop).then_some(LATE_ACCEPTS / 50);
    let beat = ctx.lifecycle().heartbeat_interval().filter(|_| violation != Violation::NeverBeats);
    [expectation, beat, late].into_iter().flatten().min()
}

fn serve(ctx: &WorkerContext<'_>, mut client: Client<'_>) {
    client.serve(ctx);
}

fn drop_at_stop(ctx: &WorkerContext<'_>, mut client: Client<'_>) {
    let lifecycle = ctx.lifecycle();
    thread::scope(|scope| {
        let serving = scope.spawn(move || {
            client.serve_with(lifecycle, &mut Buffers::default(), &mut lifecycle.tracker());
        });
        while !serving.is_finished() {
            lifecycle.notify();
            if lifecycle.poll_stop() != StopRequest::None {
                lifecycle.exit_now();
            }
            thread::sleep(Duration::from_millis(1));
        }
    });
}

fn main() -> ExitCode {
    let runtime = Runtime::new().app(Demo);
    let classes = VIOLATIONS.into_iter().map(|(name, breach)| Broken(name, breach));
    classes.fold(runtime, Runtime::class).main()
}
