//! The scoreboard and its free rows: each worker process has a row for as long as it lives.

use std::cell::RefCell;
use std::io;
use std::sync::Arc;

use super::roster::WORKERS_MAX;
use crate::scoreboard::Scoreboard;

/// Rows beyond the largest number of workers: successors that boot, predecessors that drain.
const SPARE_ROWS: usize = 1024;

/// A scoreboard, and which of its rows are free.
#[derive(Debug)]
pub(super) struct Board {
    scores: Arc<Scoreboard>,
    /// The lowest last, so that few pages are touched.
    free: RefCell<Vec<usize>>,
}

impl Board {
    /// A board for workers of so many threads.
    ///
    /// # Errors
    /// `ENOMEM`, from mmap(2).
    pub(super) fn new(seats: usize) -> io::Result<Self> {
        let scores = Arc::new(Scoreboard::new(WORKERS_MAX + SPARE_ROWS, seats)?);
        let free = RefCell::new((0..scores.rows()).rev().collect());
        Ok(Self { scores, free })
    }

    /// The scores.
    pub(super) fn scores(&self) -> &Arc<Scoreboard> {
        &self.scores
    }

    /// How many threads a row has room for.
    pub(super) fn seats(&self) -> usize {
        self.scores.threads_per_row()
    }

    /// Takes a row, cleared; `None` if there is none left.
    pub(super) fn take_row(&self) -> Option<usize> {
        let row = self.free.borrow_mut().pop()?;
        self.scores.row(row).reset();
        self.scores.mark_row_used(row);
        Some(row)
    }

    /// Gives a row back.
    pub(super) fn give_back(&self, row: usize) {
        self.scores.row(row).reset(); // the dead have no clients
        self.free.borrow_mut().push(row);
    }
}
