//! The rows of a scoreboard: each worker process has one for as long as it lives.

use std::cell::RefCell;
use std::io;
use std::rc::Rc;
use std::sync::Arc;

use super::supervisor::WORKERS_MAX;
use crate::scoreboard::{DrainMode, Row, Scoreboard};

/// Rows beyond the largest number of workers: replacements that boot, old workers that drain.
const SPARE_ROWS: usize = 1024;

/// A scoreboard and the list of its free rows.
#[derive(Debug)]
pub(in crate::arbiter) struct RowAllocator {
    scoreboard: Arc<Scoreboard>,
    /// The lowest last, so that few pages are touched.
    free: RefCell<Vec<usize>>,
}

impl RowAllocator {
    /// Maps a scoreboard for workers with this many threads.
    ///
    /// # Errors
    /// `ENOMEM`, from mmap(2).
    pub(in crate::arbiter) fn new(threads: usize) -> io::Result<Self> {
        let scoreboard = Arc::new(Scoreboard::new(WORKERS_MAX + SPARE_ROWS, threads)?);
        let free = RefCell::new((0..scoreboard.rows()).rev().collect());
        Ok(Self { scoreboard, free })
    }

    /// Returns the scoreboard.
    pub(in crate::arbiter) fn scoreboard(&self) -> &Arc<Scoreboard> {
        &self.scoreboard
    }

    /// Returns how many threads a row has room for.
    pub(in crate::arbiter) fn threads(&self) -> usize {
        self.scoreboard.threads_per_row()
    }

    /// Takes a row and clears it. Returns `None` if no row is free.
    pub(super) fn take_row(self: &Rc<Self>) -> Option<RowLease> {
        let index = self.free.borrow_mut().pop()?;
        self.scoreboard.row(index).reset();
        self.scoreboard.set_drain_mode(index, DrainMode::default());
        self.scoreboard.mark_row_used(index);
        Some(RowLease { allocator: Rc::clone(self), index })
    }
}

/// A row that is in use until this is dropped.
pub(super) struct RowLease {
    allocator: Rc<RowAllocator>,
    index: usize,
}

impl RowLease {
    pub(super) fn index(&self) -> usize {
        self.index
    }

    pub(super) fn row(&self) -> Row<'_> {
        self.allocator.scoreboard.row(self.index)
    }

    /// Returns the scoreboard.
    pub(super) fn scoreboard(&self) -> &Scoreboard {
        &self.allocator.scoreboard
    }
}

impl Drop for RowLease {
    fn drop(&mut self) {
        self.row().reset(); // an exited worker has no clients
        self.allocator.free.borrow_mut().push(self.index);
    }
}
