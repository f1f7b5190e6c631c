//! How many clients wait at the unix listeners of a pool. The kernel's first answer may load a kernel
//! module, so a child asks first. If it gets an answer, the master asks: the kernel answers at once then.

use std::fs::File;
use std::io::Write;

use crate::os::helper_process::HelperProcess;
use crate::os::network_stats::SocketDiagnosis;

/// What a child writes if the kernel has told it a queue.
const KNOWN: &[u8] = b"known";

/// The queues of unix listeners, each named by its number in the kernel.
#[derive(Default)]
pub(super) struct UnixQueues(State);

#[derive(Default)]
enum State {
    #[default]
    Unknown,
    /// A child asks.
    Asking(HelperProcess),
    Known(SocketDiagnosis),
    /// The kernel tells nothing of these listeners.
    Untold(Vec<u64>),
}

impl UnixQueues {
    /// Returns how many clients wait at these listeners, without waiting itself; 0 as long as that is not
    /// known.
    pub(super) fn length(&mut self, inodes: &[u64]) -> u64 {
        if inodes.is_empty() {
            return 0;
        }
        match &mut self.0 {
            State::Unknown => self.ask(inodes),
            State::Asking(helper) => {
                if helper.read() {
                    let is_known = helper.answer() == KNOWN;
                    let diagnosis = if is_known { SocketDiagnosis::new().ok() } else { None };
                    self.0 = diagnosis.map_or_else(|| State::Untold(inodes.to_vec()), State::Known);
                }
            }
            State::Untold(others) if others != inodes => self.0 = State::Unknown,
            State::Untold(_) | State::Known(_) => (),
        }
        let State::Known(diagnosis) = &self.0 else { return 0 };
        let lengths = inodes.iter().map(|inode| diagnosis.unix_queue_length(*inode));
        let lengths: Vec<_> = lengths.flatten().collect();
        if lengths.is_empty() {
            self.0 = State::Unknown; // the kernel may have lost the module
        }
        lengths.into_iter().map(u64::from).sum()
    }

    /// Starts a child. A lack of resources is left to the next call.
    fn ask(&mut self, inodes: &[u64]) {
        let ask = |output: &mut File| {
            let Ok(diagnosis) = SocketDiagnosis::new() else { return };
            if inodes.iter().any(|inode| diagnosis.unix_queue_length(*inode).is_some()) {
                let _ = output.write_all(KNOWN); // fails only if the master has exited
            }
        };
        if let Ok(helper) = HelperProcess::start(ask) {
            self.0 = State::Asking(helper);
        }
    }
}
