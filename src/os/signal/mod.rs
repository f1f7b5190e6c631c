//! Signals: the table of those that Ostler handles, their dispositions and masks. A handler writes
//! one byte into a pipe; a loop does everything else.
//!
//! [`pipe`] passes caught signals to a loop, [`parent_death`] bounds a worker's life after its
//! master has died, [`abort`] runs a hook before SIGABRT ends the process, and [`forced_drain`]
//! drains a worker whose class polls no signals, and [`fence`] ends a led worker. Each has its own statics.

mod abort;
mod alarm;
mod fence;
mod forced_drain;
mod parent_death;
mod pipe;

use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, SigmaskHow, Signal as NixSignal};
use nix::sys::signal::{raise, sigaction, sigprocmask};

pub(crate) use abort::{forward_aborts_to, install_abort_hook, is_aborting};
pub(crate) use fence::install_fence;
pub(crate) use forced_drain::{SignalDrain, catch_stop_signals, is_polled, mark_polled};
pub(crate) use parent_death::{catch_parent_death, request_parent_death_signal};
pub(crate) use pipe::{SIGNALS_MAX, SignalPipe, catch, catch_in_master};

/// What the master does with a signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MasterDisposition {
    /// It passes the signal to its loop.
    Caught,
    /// It passes the signal to its loop if a process has sent it. A terminal sends it too, to a whole
    /// process group.
    CaughtFromProcess,
    /// It keeps the disposition that it has inherited.
    Unchanged,
}

/// What a worker does with a signal before its class runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WorkerDisposition {
    /// The kernel's default action.
    Default,
    /// The kernel's default action until the class runs; then the signal goes to the class's loop.
    CaughtByClass,
    /// It passes the signal to its loop, which may not exist yet: the pipe keeps the signal.
    Caught,
    /// It ignores the signal: a signal to all processes of this name is for the master alone.
    Ignored,
}

/// Defines [`Signal`] and its table, a row a signal. To add a signal, add a row, and an arm to the
/// `match` in the master's loop and to that in the worker's, which the compiler demands. A signal that stops
/// also needs `os/signal/forced_drain.rs` and `arbiter/shutdown.rs`.
macro_rules! signals {
    ($($(#[$doc:meta])* $variant:ident $number:ident $master:ident $worker:ident;)*) => {
        /// The signals that a master or a worker handles.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(crate) enum Signal {
            $($(#[$doc])* $variant,)*
        }

        impl Signal {
            const ALL: &[Signal] = &[$(Signal::$variant),*];

            /// Returns the kernel's number.
            pub(super) const fn number(self) -> NixSignal {
                match self {
                    $(Signal::$variant => NixSignal::$number,)*
                }
            }

            const fn master_disposition(self) -> MasterDisposition {
                match self {
                    $(Signal::$variant => MasterDisposition::$master,)*
                }
            }

            const fn worker_disposition(self) -> WorkerDisposition {
                match self {
                    $(Signal::$variant => WorkerDisposition::$worker,)*
                }
            }
        }
    };
}

signals! {
    // Variant, number, disposition in the master, disposition in a worker before its class runs.
    /// SIGHUP: reload.
    Hup SIGHUP Caught Ignored;
    /// SIGINT: stop at once.
    Int SIGINT Caught CaughtByClass;
    /// SIGQUIT: stop at once.
    Quit SIGQUIT Caught CaughtByClass;
    /// SIGTERM: drain, then stop.
    Term SIGTERM Caught CaughtByClass;
    /// SIGCHLD: a child has exited.
    Chld SIGCHLD Caught Default;
    /// SIGUSR1: reopen the log files.
    Usr1 SIGUSR1 Caught Caught;
    /// SIGUSR2: upgrade the binary.
    Usr2 SIGUSR2 Caught Ignored;
    /// SIGTTIN: one worker more.
    Ttin SIGTTIN CaughtFromProcess Ignored;
    /// SIGTTOU: one worker fewer.
    Ttou SIGTTOU CaughtFromProcess Ignored;
    /// SIGWINCH: suspend the workers of a daemon.
    Winch SIGWINCH CaughtFromProcess Ignored;
    /// SIGURG: look at all listeners anew. The `SO_REUSEPORT` shards of a worker have changed, or the kernel
    /// may have woken a worker that was killed.
    Urg SIGURG Unchanged Caught;
    /// SIGCONT: this process continues, and may have been stopped before.
    Cont SIGCONT Caught Default;
    /// SIGPWR: the parent has died. A worker requests it by `PR_SET_PDEATHSIG`.
    ParentDeath SIGPWR Unchanged CaughtByClass;
}

impl Signal {
    /// Returns a shell's name for it, such as `TERM`.
    pub(crate) fn name(self) -> &'static str {
        self.number().as_str().trim_start_matches("SIG")
    }

    /// Returns the signals with this disposition in the master.
    pub(crate) fn in_master(disposition: MasterDisposition) -> impl Iterator<Item = Signal> {
        Self::ALL.iter().copied().filter(move |signal| signal.master_disposition() == disposition)
    }

    /// Returns the signals with this disposition in a worker before its class runs.
    pub(crate) fn in_worker(disposition: WorkerDisposition) -> impl Iterator<Item = Signal> {
        Self::ALL.iter().copied().filter(move |signal| signal.worker_disposition() == disposition)
    }

    fn from_byte(byte: u8) -> Option<Self> {
        Self::ALL.iter().copied().find(|signal| signal.number() as i32 == i32::from(byte))
    }
}

/// Returns the name of a signal by number, such as `SIGKILL`; its number if it has no name.
pub(crate) fn name_of(number: i32) -> String {
    match NixSignal::try_from(number) {
        Ok(signal) => signal.as_str().to_owned(),
        Err(_) => format!("signal {number}"),
    }
}

/// Ignores these signals from now on.
pub(crate) fn ignore(signals: impl IntoIterator<Item = Signal>) {
    for signal in signals {
        set_action(signal.number(), SigHandler::SigIgn);
    }
}

/// Gives these signals their default action from now on.
pub(crate) fn restore_default(signals: impl IntoIterator<Item = Signal>) {
    for signal in signals {
        set_action(signal.number(), SigHandler::SigDfl);
    }
}

/// Gives SIGABRT and SIGALRM, by which stuck processes are ended, their default action.
pub(crate) fn restore_abrt_and_alrm() {
    set_action(NixSignal::SIGABRT, SigHandler::SigDfl);
    set_action(NixSignal::SIGALRM, SigHandler::SigDfl);
}

/// Gives every signal that may have been caught its default action.
pub(crate) fn reset_caught_signals() {
    restore_default(Signal::ALL.iter().copied());
}

/// Gives every signal there is its default action, for a program that inherits none of Ostler's
/// dispositions.
pub(super) fn reset_all_signals() {
    for number in NixSignal::iterator().filter(|number| can_be_caught(*number)) {
        set_action(number, SigHandler::SigDfl);
    }
}

/// Ends this process by a signal, if the signal's default action is to end a process.
pub(super) fn raise_with_default_action(number: NixSignal) {
    if can_be_caught(number) {
        set_action(number, SigHandler::SigDfl);
    }
    unblock_all();
    let _ = raise(number);
}

fn can_be_caught(number: NixSignal) -> bool {
    ![NixSignal::SIGKILL, NixSignal::SIGSTOP].contains(&number)
}

fn set_action(number: NixSignal, handler: SigHandler) {
    // SA_RESTART: a handler writes a byte, and code that is not Ostler's need not notice.
    // SA_NOCLDSTOP: no SIGCHLD when a child is stopped or continued, which a child can do at will.
    let flags = SaFlags::SA_RESTART | SaFlags::SA_NOCLDSTOP;
    let action = SigAction::new(handler, flags, SigSet::empty());
    // SAFETY: the handlers make async-signal-safe calls only, and keep errno.
    let set = unsafe { sigaction(number, &action) };
    debug_assert!(set.is_ok(), "{number} may be caught");
}

/// Blocks every signal. Returns the earlier mask.
pub(super) fn block_all() -> SigSet {
    let mut earlier = SigSet::empty();
    let blocked = sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::all()), Some(&mut earlier));
    debug_assert!(blocked.is_ok(), "the arguments are valid");
    earlier
}

/// Restores an earlier mask.
pub(super) fn set_mask(mask: &SigSet) {
    let set = sigprocmask(SigmaskHow::SIG_SETMASK, Some(mask), None);
    debug_assert!(set.is_ok(), "the arguments are valid");
}

/// Returns a set of signals.
pub(super) fn set_of(signals: impl IntoIterator<Item = Signal>) -> SigSet {
    signals.into_iter().map(Signal::number).collect()
}

/// Blocks the signals that the master handles only where it sleeps, and unblocks every other one.
///
/// While a process of a background group blocks SIGTTIN and SIGTTOU, it can write to its terminal
/// whatever `TOSTOP` says, and reading fails. If it caught them instead, the call would start again
/// without end. Of SIGCONT any process of the session can send many.
pub(super) fn block_until_sleep() {
    set_mask(&set_of([Signal::Ttin, Signal::Ttou, Signal::Cont]));
}

/// Unblocks every signal: the mask inherited from a parent does not apply.
pub(crate) fn unblock_all() {
    set_mask(&SigSet::empty());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signal_from_byte_of_its_number_round_trips() {
        for signal in Signal::ALL.iter().copied() {
            assert_eq!(Signal::from_byte(signal.number() as u8), Some(signal));
        }
        assert_eq!(Signal::from_byte(NixSignal::SIGSEGV as u8), None);
        assert_eq!((Signal::Usr2.name(), name_of(9).as_str()), ("USR2", "SIGKILL"));
    }

    #[test]
    fn worker_ignores_the_commands_of_the_master() {
        let ignored: Vec<Signal> = Signal::in_worker(WorkerDisposition::Ignored).collect();
        let commands = [Signal::Hup, Signal::Usr2, Signal::Ttin, Signal::Ttou, Signal::Winch];
        assert_eq!(ignored, commands);
        let unchanged: Vec<Signal> = Signal::in_master(MasterDisposition::Unchanged).collect();
        assert_eq!(unchanged, [Signal::Urg, Signal::ParentDeath]);
        let from_process: Vec<Signal> =
            Signal::in_master(MasterDisposition::CaughtFromProcess).collect();
        assert_eq!(from_process, [Signal::Ttin, Signal::Ttou, Signal::Winch]);
    }
}
