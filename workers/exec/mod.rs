//! `exec`: any program as a worker. The worker itself only watches over it.

mod lines;
mod vigil;
mod words;

use std::time::Duration;

use slog::{Logger, debug, info, warn};

use ostler::app::ConfigError;
use ostler::settings::Settings;
use ostler::time::MonotonicTime;
use ostler::worker::{End, Lifecycle, Output, Program, WorkerClass, WorkerContext, WorkerError};

use self::lines::Lines;
use self::vigil::{Deed, Terms, Vigil};
use self::words::{Word, words};

/// A program in any language, `command`, which finds the listening sockets from descriptor 3 on.
///
/// It is ready when it says so by sd_notify(3), or when it has lived for `ready_after`. It lives as
/// long as it is there; once it has said `WATCHDOG=1`, it must go on saying so. Its output goes to
/// the log. The worker ends as the program does.
pub struct ExecClass;

impl WorkerClass for ExecClass {
    fn name(&self) -> &'static str {
        "exec"
    }

    fn runs_command(&self) -> bool {
        true
    }

    fn check(&self, settings: &Settings) -> Result<(), ConfigError> {
        if settings.max_requests > 0 {
            return Err(ConfigError::new(
                "exec cannot count the requests of a program, so max_requests must be 0: take \
                 max_lifetime or max_memory",
            ));
        }
        if settings.reuse_port {
            return Err(ConfigError::new(
                "exec cannot have reuse_port: a program cannot be told to look after the queue of \
                 another that has died; without it, all programs share one socket an address",
            ));
        }
        Ok(())
    }

    fn run(&self, ctx: &WorkerContext<'_>) -> Result<(), WorkerError> {
        let life = ctx.life();
        let program = Program::start(ctx).map_err(|error| {
            let word = ctx.settings().command.first().map_or("", String::as_str);
            let why = format!("cannot run {word:?}: {error}");
            life.note(&why);
            why
        })?;
        let (pid, slot, log) = (std::process::id(), ctx.worker().slot, ctx.log());
        info!(log, "program started"; "pid" => pid, "slot" => slot, "program" => program.id());
        let settings = ctx.settings();
        let terms = Terms {
            ready_after: settings.ready_after,
            timeout: settings.timeout,
            abort_grace: settings.abort_grace,
        };
        let vigil = Vigil::new(terms, life.now());
        let voice = Voice { log, pid, slot, lines: Default::default(), last: String::new() };
        Watch { settings, life, program, vigil, voice, losses: Losses::default() }.keep()
    }
}

/// So much of an output is read at a time, and so often in a turn.
const READ_BYTES: usize = 8 << 10;
const READS_A_TURN: usize = 8;

/// So often an output is read after the program's end: something that it has started may go on.
const READS_AT_THE_END: usize = 128;

/// So many messages are heard in a turn.
const MESSAGES_A_TURN: usize = 64;

/// One program, and what watches over it.
struct Watch<'a> {
    settings: &'a Settings,
    life: &'a Lifecycle,
    program: Program,
    vigil: Vigil,
    voice: Voice<'a>,
    losses: Losses,
}

impl Watch<'_> {
    /// Watches until the program ends, and ends as it does.
    fn keep(mut self) -> Result<(), WorkerError> {
        loop {
            // In this order: it takes away the sign by which an end wakes this loop.
            let stop = self.life.stop();
            let end = self.program.end();
            self.hear();
            let reads = if end.is_some() { READS_AT_THE_END } else { READS_A_TURN };
            self.read(reads);
            if let Some(end) = end {
                self.mourn(end);
            }
            let now = self.life.now();
            let deed = self.vigil.stop(stop, now);
            for deed in deed.into_iter().chain(self.vigil.due(now)) {
                self.act(deed);
            }
            let beat = self.life.next_beat().filter(|_| self.vigil.beats());
            let deadline = [beat, self.vigil.deadline()].into_iter().flatten().min();
            self.program.wait(self.life, deadline)?;
        }
    }

    /// What the program has to say.
    fn hear(&mut self) {
        for _ in 0..MESSAGES_A_TURN {
            let Some(message) = self.program.hear() else { break };
            for word in words(&message) {
                self.heed(word);
            }
        }
    }

    fn heed(&mut self, word: Word<'_>) {
        let now = self.life.now();
        let deed = match word {
            Word::Ready => self.vigil.ready(),
            Word::Alive => self.vigil.alive(now),
            Word::Stopping => self.vigil.leaving(),
            Word::Trigger => {
                self.life.note("the program has asked to be aborted: WATCHDOG=trigger");
                self.vigil.abort(now)
            }
            Word::Extend(time) => {
                self.vigil.extend(time, now);
                None
            }
            Word::Status(text) => {
                self.voice.status(text);
                None
            }
        };
        if let Some(deed) = deed {
            self.act(deed);
        }
    }

    /// What the program has printed.
    fn read(&mut self, reads: usize) {
        let mut buffer = [0; READ_BYTES];
        for output in Output::ALL {
            for _ in 0..reads {
                let Some(length) = self.program.read(output, &mut buffer) else { break };
                self.voice.repeat(output, &buffer[..length]);
            }
        }
        self.losses.tell(self.life, &self.voice);
    }

    fn act(&mut self, deed: Deed) {
        match deed {
            Deed::Ready => self.life.ready(),
            Deed::Beat => self.life.notify(),
            Deed::Accuse => self.life.note("the program has stopped saying WATCHDOG=1"),
            Deed::Acquit => {
                self.life.note("");
                self.life.notify();
            }
            Deed::Retire => self.life.retire(),
            Deed::Ask => self.program.ask(self.settings.stop_signal),
            Deed::Interrupt => self.program.interrupt(),
            Deed::Abort => self.program.abort(),
            Deed::Kill => self.program.kill(),
        }
    }

    /// Ends as the program has ended.
    fn mourn(&mut self, end: End) -> ! {
        self.voice.fall_silent();
        self.losses.tell(self.life, &self.voice);
        if self.vigil.is_boot_failure() {
            self.life.note(&self.voice.last);
        }
        self.life.end_like(end)
    }
}

/// Repeats in the log what a program prints.
struct Voice<'a> {
    log: &'a Logger,
    pid: u32,
    slot: usize,
    lines: [Lines; 2],
    /// The last line that was printed, which tells most about an end.
    last: String,
}

impl Voice<'_> {
    fn repeat(&mut self, output: Output, bytes: &[u8]) {
        let Self { log, pid, slot, lines, last } = self;
        lines[output as usize].feed(bytes, |line| say(log, *pid, *slot, output, line, last));
    }

    /// Nobody will end the lines that are begun.
    fn fall_silent(&mut self) {
        let Self { log, pid, slot, lines, last } = self;
        for output in Output::ALL {
            lines[output as usize].end(|line| say(log, *pid, *slot, output, line, last));
        }
    }

    fn status(&self, text: &str) {
        debug!(self.log, "status"; "pid" => self.pid, "slot" => self.slot, "status" => text);
    }
}

fn say(log: &Logger, pid: u32, slot: usize, output: Output, line: String, last: &mut String) {
    info!(log, "output"; "pid" => pid, "slot" => slot, "stream" => output.name(), "line" => &line);
    *last = line;
}

/// The log drops what it cannot write at once; that is said, as soon as it can be.
#[derive(Debug, Default)]
struct Losses {
    told: u64,
    /// When it may be told again.
    next: MonotonicTime,
}

impl Losses {
    const BETWEEN: Duration = Duration::from_secs(1);

    fn tell(&mut self, life: &Lifecycle, voice: &Voice<'_>) {
        let (dropped, now) = (life.records_dropped(), life.now());
        if dropped == self.told || now < self.next {
            return;
        }
        self.next = now.saturating_add(Self::BETWEEN);
        warn!(voice.log, "records dropped"; "pid" => voice.pid, "slot" => voice.slot,
            "records" => dropped - self.told);
        if life.records_dropped() == dropped {
            self.told = dropped; // else this one was dropped too
        }
    }
}
