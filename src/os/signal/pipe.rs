//! Caught signals as bytes in a pipe.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicI32, Ordering};

use nix::errno::Errno;
use nix::sys::signal::{SigHandler, Signal as NixSignal};

use super::{MasterDisposition, Signal, block_until_sleep, set_action};
use crate::os::file;

/// The write end of this process's signal pipe; -1 while there is none.
static PIPE_WRITE_FD: AtomicI32 = AtomicI32::new(-1);

/// How many signals [`SignalPipe::take`] returns at most.
pub(crate) const SIGNALS_MAX: usize = 1024;

/// The caught signals of a process, in the order of their arrival.
#[derive(Debug)]
pub(crate) struct SignalPipe {
    read: OwnedFd,
    /// Open for the handlers, which write by its number.
    _write: OwnedFd,
}

impl SignalPipe {
    /// Opens the pipe of this process, in place of any that it had or inherited. [`catch`] then
    /// selects the signals that go to it.
    ///
    /// # Errors
    /// `EMFILE` or `ENFILE`, from pipe2(2).
    pub(crate) fn open() -> io::Result<Self> {
        let (read, write) = file::pipe()?;
        PIPE_WRITE_FD.store(write.as_raw_fd(), Ordering::Relaxed);
        Ok(Self { read, _write: write })
    }

    /// Takes the signals that have arrived since the last call, at most [`SIGNALS_MAX`]. Never blocks.
    pub(crate) fn take(&self) -> Vec<Signal> {
        let mut signals = Vec::new();
        let mut bytes = [0; 64];
        for _ in 0..SIGNALS_MAX / bytes.len() {
            match nix::unistd::read(&self.read, &mut bytes) {
                Ok(n) => {
                    signals.extend(bytes.iter().take(n).filter_map(|b| Signal::from_byte(*b)));
                    if n < bytes.len() {
                        break;
                    }
                }
                Err(Errno::EINTR) => (),
                Err(_) => break, // EAGAIN: empty
            }
        }
        signals
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

/// Sends these signals to this process's [`SignalPipe`] from now on.
pub(crate) fn catch(signals: impl IntoIterator<Item = Signal>) {
    for signal in signals {
        set_action(signal.number(), SigHandler::Handler(on_signal));
    }
}

/// Sends the signals that the master handles to its [`SignalPipe`] from now on, and unblocks them:
/// some of them only where the master sleeps. Ignores SIGXFSZ, which workers inherit: a write beyond
/// the file size limit then fails with `EFBIG`.
pub(crate) fn catch_in_master() {
    catch(Signal::in_master(MasterDisposition::Caught));
    for signal in Signal::in_master(MasterDisposition::CaughtFromProcess) {
        set_action(signal.number(), SigHandler::SigAction(on_signal_from_process));
    }
    set_action(NixSignal::SIGXFSZ, SigHandler::SigIgn);
    block_until_sleep();
}

/// Does what [`on_signal`] does, unless the kernel has sent the signal: a terminal whose size has
/// changed, or which a background process group uses.
extern "C" fn on_signal_from_process(
    number: libc::c_int,
    info: *mut libc::siginfo_t,
    _: *mut libc::c_void,
) {
    // SAFETY: the kernel passes a valid siginfo_t to a handler that SA_SIGINFO has installed.
    let code = unsafe { (*info).si_code };
    if code != libc::SI_KERNEL {
        on_signal(number);
    }
}

/// Writes the signal's number into the pipe. May run between any two instructions of this process.
pub(super) extern "C" fn on_signal(number: libc::c_int) {
    let errno = Errno::last();
    let byte = number as u8; // the numbers caught here stay below 128
    // SAFETY: `byte` is one readable byte, and PIPE_WRITE_FD is -1 or an open, nonblocking pipe
    // end: `SignalPipe` clears it before it closes. A full pipe holds thousands of signals
    // that no loop has read: one more would be lost, and change nothing.
    unsafe { libc::write(PIPE_WRITE_FD.load(Ordering::Relaxed), (&raw const byte).cast(), 1) };
    errno.set();
}
