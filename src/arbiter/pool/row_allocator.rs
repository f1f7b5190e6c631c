//! The scoreboard and its free rows: each worker process has a row for as long as it lives.

use std::cell::RefCell;
use std::io;
use std::sync::Arc;

use super::supervisor::WORKERS_MAX;
use crate::scoreboard::Scoreboard;

/// Rows beyond the largest number of workers: successors that boot, predecessors that drain.
const SPARE_ROWS: usize = 1024;

/// A scoreboard, and which of its rows are free.
#[derive(Debug)]
pub(in crate::arbiter) struct RowAllocator {
    scoreboard: Arc<Scoreboard>,
    /// The lowest last, so that few pages are touched.
    free: RefCell<Vec<usize>>,
}

impl RowAllocator {
    /// A board for workers of so many threads.
    ///
    /// # Errors
    /// `ENOMEM`, from mmap(2).
    pub(in crate::arbiter) fn new(threads: usize) -> io::Result<Self> {
        let scoreboard = Arc::new(Scoreboard::new(WORKERS_MAX + SPARE_ROWS, threads)?);
        let free = RefCell::new((0..scoreboard.rows()).rev().collect());
        Ok(Self { scoreboard, free })
    }

    /// The scores.
    pub(in crate::arbiter) fn scoreboard(&self) -> &Arc<Scoreboard> {
        &self.scoreboard
    }

    /// How many threads a row has room for.
    pub(in crate::arbiter) fn threads(&self) -> usize {
        self.scoreboard.threads_per_row()
    }

    /// Takes a row, cleared; `None` if there is none left.
    pub(in crate::arbiter) fn take_row(&self) -> Option<usize> {
        let row = self.free.borrow_mut().pop()?;
        self.scoreboard.row(row).reset();
        self.scoreboard.mark_row_used(row);
        Some(row)
    }

    /// Gives a row back.
    pub(in crate::arbiter) fn release_row(&self, row: usize) {
        self.scoreboard.row(row).reset(); // the dead have no clients
        self.free.borrow_mut().push(row);
    }
}
