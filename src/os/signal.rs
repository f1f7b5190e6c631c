//! Signals as bytes in a pipe. A handler makes one write(2); all thinking happens in a loop.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, Ordering};

use nix::errno::Errno;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, SigmaskHow, Signal as Number};
use nix::sys::signal::{raise, sigaction, sigprocmask};

use super::{file, process};

/// The signals that a master or a worker acts upon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Signal {
    /// HUP: reload.
    Hup,
    /// INT: stop at once.
    Int,
    /// QUIT: stop at once.
    Quit,
    /// TERM: drain, then stop.
    Term,
    /// CHLD: a child has ended.
    Chld,
    /// USR1: reopen the logs.
    Usr1,
    /// USR2: upgrade.
    Usr2,
    /// TTIN: one worker more.
    Ttin,
    /// TTOU: one worker fewer.
    Ttou,
    /// WINCH: let the workers go.
    Winch,
    /// URG: look again which queues are this worker's.
    Urg,
    /// CONT: this process may have been stopped, and goes on.
    Cont,
    /// The parent has died (PWR, by which a worker asks to be told).
    ParentDeath,
}

impl Signal {
    const ALL: [(Signal, Number); 13] = [
        (Signal::Hup, Number::SIGHUP),
        (Signal::Int, Number::SIGINT),
        (Signal::Quit, Number::SIGQUIT),
        (Signal::Term, Number::SIGTERM),
        (Signal::Chld, Number::SIGCHLD),
        (Signal::Usr1, Number::SIGUSR1),
        (Signal::Usr2, Number::SIGUSR2),
        (Signal::Ttin, Number::SIGTTIN),
        (Signal::Ttou, Number::SIGTTOU),
        (Signal::Winch, Number::SIGWINCH),
        (Signal::Urg, Number::SIGURG),
        (Signal::Cont, Number::SIGCONT),
        (Signal::ParentDeath, Number::SIGPWR),
    ];

    /// The kernel's number for it.
    pub(super) fn number(self) -> Number {
        let known = Self::ALL.iter().find(|(signal, _)| *signal == self);
        known.map(|(_, number)| *number).expect("the table holds every variant")
    }

    /// What a shell calls it, such as `TERM`.
    pub(crate) fn name(self) -> &'static str {
        self.number().as_str().trim_start_matches("SIG")
    }

    fn from_byte(byte: u8) -> Option<Self> {
        let number = Number::try_from(i32::from(byte)).ok()?;
        Self::ALL.iter().find(|(_, known)| *known == number).map(|(signal, _)| *signal)
    }
}

/// The name of a signal by number, such as `SIGKILL`; its number if it has no name.
pub(crate) fn name_of(number: i32) -> String {
    match Number::try_from(number) {
        Ok(signal) => signal.as_str().to_owned(),
        Err(_) => format!("signal {number}"),
    }
}

/// The write end of this process's signal pipe; -1 while there is none.
static PIPE_WRITE_FD: AtomicI32 = AtomicI32::new(-1);

/// How long an orphan may live, in whole seconds.
static ORPHAN_TIMEOUT_SECONDS: AtomicU32 = AtomicU32::new(0);

/// The caught signals of a process, in the order of their arrival.
#[derive(Debug)]
pub(crate) struct SignalPipe {
    read: OwnedFd,
    /// Open for the handlers, which write by its number.
    _write: OwnedFd,
}

impl SignalPipe {
    /// Opens the pipe of this process, in place of any that it had or inherited. Signals go to it
    /// once [`catch`] has named them.
    ///
    /// # Errors
    /// `EMFILE` or `ENFILE`, from pipe2(2).
    pub(crate) fn open() -> io::Result<Self> {
        let (read, write) = file::pipe()?;
        PIPE_WRITE_FD.store(write.as_raw_fd(), Ordering::Relaxed);
        Ok(Self { read, _write: write })
    }

    /// The signals that have come since the last call. Never blocks.
    pub(crate) fn take(&self) -> Vec<Signal> {
        let mut signals = Vec::new();
        let mut bytes = [0; 64];
        loop {
            match nix::unistd::read(&self.read, &mut bytes) {
                Ok(0) => return signals,
                Ok(n) => signals.extend(bytes.iter().take(n).filter_map(|b| Signal::from_byte(*b))),
                Err(Errno::EINTR) => (),
                Err(_) => return signals, // EAGAIN: empty
            }
        }
    }
}

impl AsFd for SignalPipe {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.read.as_fd()
    }
}

impl Drop for SignalPipe {
    fn drop(&mut self) {
        PIPE_WRITE_FD.store(-1, Ordering::Relaxed);
    }
}

/// May run between any two instructions of this process.
extern "C" fn on_signal(number: libc::c_int) {
    let errno = Errno::last();
    let byte = number as u8; // the numbers caught here stay below 128
    // SAFETY: `byte` is one readable byte, and PIPE is -1 or an open, nonblocking pipe end:
    // `SignalPipe` clears it before it closes. A full pipe is harmless: a wake-up is queued.
    unsafe { libc::write(PIPE_WRITE_FD.load(Ordering::Relaxed), (&raw const byte).cast(), 1) };
    errno.set();
}

/// As [`on_signal`], and winds the alarm that bounds the life of an orphan: nobody is left to end
/// it from outside, and its loop may be stuck.
extern "C" fn on_parent_death(number: libc::c_int) {
    PARENT_DIED.store(true, Ordering::Relaxed);
    arm_alarm(ORPHAN_TIMEOUT_SECONDS.load(Ordering::Relaxed));
    on_stop_signal(number);
}

fn arm_alarm(seconds: u32) {
    // SAFETY: alarm(2) is async-signal-safe and touches no memory.
    unsafe { libc::alarm(seconds) };
}

/// As [`on_signal`], and if nobody asks for signals here, the guardian begins to look.
extern "C" fn on_stop_signal(number: libc::c_int) {
    on_signal(number);
    let (Some(drain), false) = (SIGNAL_DRAIN.get(), is_polled() || is_aborting()) else { return };
    let errno = Errno::last();
    if let Some(signal) = Signal::from_byte(number as u8) {
        drain.on_stop_requested(signal);
    }
    set_action(Number::SIGALRM, SigHandler::Handler(on_drain_tick));
    set_drain_tick(DRAIN_TICK_MICROS);
    errno.set();
}

/// The guardian looks again, unless somebody has begun to ask for signals.
extern "C" fn on_drain_tick(_: libc::c_int) {
    let errno = Errno::last();
    if is_aborting() {
        return;
    }
    if is_polled() {
        set_drain_tick(0);
        set_action(Number::SIGALRM, SigHandler::SigDfl);
        if PARENT_DIED.load(Ordering::Relaxed) {
            arm_alarm(ORPHAN_TIMEOUT_SECONDS.load(Ordering::Relaxed));
        }
    } else if SIGNAL_DRAIN.get().is_some_and(|drain| drain.may_exit()) {
        process::exit_immediately(0);
    }
    errno.set();
}

/// Sends ALRM every so often; 0 is never. It takes the place of an alarm.
fn set_drain_tick(micros: libc::suseconds_t) {
    let span = libc::timeval { tv_sec: 0, tv_usec: micros };
    let timer = libc::itimerval { it_interval: span, it_value: span };
    // SAFETY: a plain system call on Linux; `timer` outlives it, and nothing is written back.
    unsafe { libc::setitimer(libc::ITIMER_REAL, &raw const timer, std::ptr::null_mut()) };
}

/// How often the guardian looks, in microseconds.
const DRAIN_TICK_MICROS: libc::suseconds_t = 20_000;

/// Looks after the end of a process in which nobody asks for signals. All that it does is done in a
/// handler, between any two instructions: it must take no lock and no memory.
pub(crate) trait SignalDrain: Send + Sync {
    /// The process has been told to leave, in this way.
    fn on_stop_requested(&self, signal: Signal);

    /// Whether the process may end now.
    fn may_exit(&self) -> bool;
}

static SIGNAL_DRAIN: OnceLock<Box<dyn SignalDrain>> = OnceLock::new();

/// Whether somebody in this process asks for its signals.
static SIGNALS_POLLED: AtomicBool = AtomicBool::new(false);

/// Whether the parent has died.
static PARENT_DIED: AtomicBool = AtomicBool::new(false);

/// Somebody in this process asks for its signals.
pub(crate) fn mark_polled() {
    if !is_polled() {
        SIGNALS_POLLED.store(true, Ordering::Relaxed);
    }
}

/// Whether somebody in this process has ever asked for its signals.
pub(crate) fn is_polled() -> bool {
    SIGNALS_POLLED.load(Ordering::Relaxed)
}

/// Sends TERM, INT and QUIT to this process's [`SignalPipe`] from now on; and as long as nobody asks
/// for signals, they and the parent's death are the guardian's. Only the first call in a process's
/// life chooses it.
pub(crate) fn catch_stop_signals(drain: impl SignalDrain + 'static) {
    let _ = SIGNAL_DRAIN.set(Box::new(drain));
    for signal in [Signal::Term, Signal::Int, Signal::Quit] {
        set_action(signal.number(), SigHandler::Handler(on_stop_signal));
    }
}

/// An orphan has had its time: it ends with all that it has started, of which it leads the group.
/// Nobody is left to see to that.
extern "C" fn on_orphan_timeout(_: libc::c_int) {
    // SAFETY: kill(2) is async-signal-safe; 0 is the group of this process, which a worker leads.
    unsafe { libc::kill(0, libc::SIGKILL) };
}

/// What a process does when it is aborted.
static ABORT_HOOK: OnceLock<Box<dyn Fn() + Send + Sync>> = OnceLock::new();

/// Whether they are being said.
static ABORTING: AtomicBool = AtomicBool::new(false);

/// What a process that is aborted may take for its last words, in whole seconds.
const ABORT_HOOK_SECONDS: u32 = 1;

/// Lets the process say its last words, and dies. This is more than a handler may do: the words may
/// wait for a lock that the interrupted code holds, and crash. The process is lost anyway, and
/// whatever the words do, it dies of ABRT: another ABRT, such as that of a crash in here, finds the
/// default action already, and so does the one that the alarm brings.
extern "C" fn on_abort(_: libc::c_int) {
    ABORTING.store(true, Ordering::Relaxed);
    arm_alarm(ABORT_HOOK_SECONDS); // first: an earlier one is not meant for what follows
    set_action(Number::SIGALRM, SigHandler::Handler(on_abort_hook_timeout));
    on_signal(libc::SIGTERM); // the other threads take nobody in any more
    let alarm_only = SigSet::from(Number::SIGALRM);
    let _ = sigprocmask(SigmaskHow::SIG_UNBLOCK, Some(&alarm_only), None);
    if let Some(hook) = ABORT_HOOK.get() {
        hook();
    }
    let _ = raise(Number::SIGABRT);
}

/// Whether this process is being aborted: it says its last words, and nobody must end it before.
pub(crate) fn is_aborting() -> bool {
    ABORTING.load(Ordering::Relaxed)
}

/// The last words have taken too long.
extern "C" fn on_abort_hook_timeout(_: libc::c_int) {
    // To the process: whichever thread runs this may have blocked it, the one that was aborted not.
    let _ = nix::sys::signal::kill(nix::unistd::Pid::this(), Number::SIGABRT);
}

/// Lets this process say its last words when it is aborted; then, or a second later, it dies of that.
/// Only the first call in a process's life chooses the words.
pub(crate) fn install_abort_hook(hook: impl Fn() + Send + Sync + 'static) {
    let _ = ABORT_HOOK.set(Box::new(hook));
    // RESETHAND: the second one kills. NODEFER: and need not wait for the first to be done.
    let flags = SaFlags::SA_RESETHAND | SaFlags::SA_NODEFER;
    let action = SigAction::new(SigHandler::Handler(on_abort), flags, SigSet::empty());
    // SAFETY: `on_abort` never returns to what it has interrupted, so that nothing which it did can
    // confuse that.
    let set = unsafe { sigaction(Number::SIGABRT, &action) };
    debug_assert!(set.is_ok(), "ABRT may be caught");
}

/// Who is aborted in place of this process; 0 if nobody is.
static ABORT_TARGET: AtomicI32 = AtomicI32::new(0);

/// Passes it on. May run between any two instructions of this process.
extern "C" fn forward_abort(number: libc::c_int) {
    let errno = Errno::last();
    let target = ABORT_TARGET.load(Ordering::Relaxed);
    if target > 0 {
        // SAFETY: kill(2) is async-signal-safe and takes any numbers.
        unsafe { libc::kill(target, number) };
    }
    errno.set();
}

/// From now on this process is not aborted, but a child of it is that has not been reaped: the
/// child is what hangs, and has something to say. `None` ends that, before the child is reaped.
pub(crate) fn forward_aborts_to(child: Option<super::process::Pid>) {
    ABORT_TARGET.store(child.map_or(0, |pid| pid.as_raw()), Ordering::Relaxed);
    if child.is_some() {
        set_action(Number::SIGABRT, SigHandler::Handler(forward_abort));
    }
}

/// Sends these signals to this process's [`SignalPipe`] from now on.
pub(crate) fn catch(signals: &[Signal]) {
    for signal in signals {
        set_action(signal.number(), SigHandler::Handler(on_signal));
    }
}

/// Asks the kernel to tell this process when its parent dies (Linux): [`Signal::ParentDeath`] goes to
/// the pipe, and `limit` later, rounded up to whole seconds, an alarm ends the process and the
/// group that it must lead.
///
/// # Errors
/// From prctl(2).
pub(crate) fn catch_parent_death(limit: std::time::Duration) -> io::Result<()> {
    let seconds = limit.as_secs_f64().ceil().clamp(1.0, 1e9) as u32;
    ORPHAN_TIMEOUT_SECONDS.store(seconds, Ordering::Relaxed);
    set_action(Number::SIGALRM, SigHandler::Handler(on_orphan_timeout));
    set_action(Signal::ParentDeath.number(), SigHandler::Handler(on_parent_death));
    request_parent_death_signal()
}

/// Asks the kernel for [`Signal::ParentDeath`] when the parent dies (Linux). Its default action ends
/// the process. A change of user clears the wish, so it must be repeated after one.
///
/// # Errors
/// From prctl(2).
pub(crate) fn request_parent_death_signal() -> io::Result<()> {
    Ok(nix::sys::prctl::set_pdeathsig(Signal::ParentDeath.number())?)
}

/// Ignores these signals from now on.
pub(crate) fn ignore(signals: &[Signal]) {
    for signal in signals {
        set_action(signal.number(), SigHandler::SigIgn);
    }
}

/// Gives these signals their default action from now on.
pub(crate) fn restore_default(signals: &[Signal]) {
    for signal in signals {
        set_action(signal.number(), SigHandler::SigDfl);
    }
}

/// Gives every signal that may have been caught its default action.
pub(crate) fn reset_caught_signals() {
    for (_, number) in Signal::ALL {
        set_action(number, SigHandler::SigDfl);
    }
}

/// Gives every signal there is its default action, for a program that is to know nothing of ours.
pub(super) fn reset_all_signals() {
    let refused = [Number::SIGKILL, Number::SIGSTOP];
    for number in Number::iterator().filter(|number| !refused.contains(number)) {
        set_action(number, SigHandler::SigDfl);
    }
}

/// Has this process die of a signal, if its default action is to end a process.
pub(super) fn raise_with_default_action(number: Number) {
    if ![Number::SIGKILL, Number::SIGSTOP].contains(&number) {
        set_action(number, SigHandler::SigDfl);
    }
    unblock_all();
    let _ = raise(number);
}

/// Gives ABRT and ALRM, by which stuck processes are ended, their default action.
pub(crate) fn restore_abrt_and_alrm() {
    set_action(Number::SIGABRT, SigHandler::SigDfl);
    set_action(Number::SIGALRM, SigHandler::SigDfl);
}

fn set_action(number: Number, handler: SigHandler) {
    // RESTART: a handler writes a byte, and code that is not ours need not notice.
    let action = SigAction::new(handler, SaFlags::SA_RESTART, SigSet::empty());
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

/// Puts an earlier mask back.
pub(super) fn set_mask(mask: &SigSet) {
    let set = sigprocmask(SigmaskHow::SIG_SETMASK, Some(mask), None);
    debug_assert!(set.is_ok(), "the arguments are valid");
}

/// Unblocks every signal: what a parent had blocked is no wish of ours.
pub(crate) fn unblock_all() {
    set_mask(&SigSet::empty());
}
