//! What the screen shows, and what each key does to it. Pure.

use super::super::status::{Status, Worker};
use super::super::why::Target;
use super::history::History;

/// A key, whatever the terminal calls it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Key {
    Char(char),
    Up,
    Down,
    PageUp,
    PageDown,
    Home,
    End,
    Enter,
    Escape,
    Backspace,
}

/// What a key asks of the program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Action {
    None,
    Quit,
    Change(Change),
}

/// A change of the master.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Change {
    Recycle { pool: String, slot: u64 },
    Scale { pool: String, more: bool },
}

/// What the lower part of the screen shows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) enum Mode {
    #[default]
    List,
    /// The user types the filter.
    Filter,
    Detail,
    Help,
    /// The user is asked whether to do it.
    Confirm(Change),
}

/// The order of the workers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Sort {
    #[default]
    Slot,
    Age,
    Rate,
    Cpu,
    Memory,
}

impl Sort {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Slot => "slot",
            Self::Age => "age of the work",
            Self::Rate => "rate",
            Self::Cpu => "CPU",
            Self::Memory => "memory",
        }
    }

    fn next(self) -> Self {
        match self {
            Self::Slot => Self::Age,
            Self::Age => Self::Rate,
            Self::Rate => Self::Cpu,
            Self::Cpu => Self::Memory,
            Self::Memory => Self::Slot,
        }
    }
}

/// Everything that is drawn.
#[derive(Clone, Debug, Default)]
pub(super) struct Top {
    pub(super) status: Status,
    pub(super) history: History,
    /// Whether there has been a status at all.
    pub(super) is_connected: bool,
    /// Why there is no answer, and for how many seconds.
    pub(super) trouble: Option<(String, u64)>,
    /// What the last change has come to.
    pub(super) message: String,
    pub(super) mode: Mode,
    pub(super) sort: Sort,
    pub(super) filter: String,
    /// The pool and the slot of the selected worker.
    selected: Option<(String, u64)>,
    /// How many workers a page has.
    pub(super) page_rows: usize,
}

impl Top {
    /// Takes a new status.
    pub(super) fn on_status(&mut self, status: Status) {
        if self.is_connected && self.status.pid != status.pid {
            self.message = format!("master {} has taken over from {}", status.pid, self.status.pid);
        }
        self.history.add(&status);
        self.status = status;
        self.is_connected = true;
        self.trouble = None;
    }

    /// Notes that the master has not answered for so many seconds.
    pub(super) fn on_trouble(&mut self, reason: String, seconds: u64) {
        self.trouble = Some((reason, seconds));
    }

    /// Returns the workers to show, in their order.
    pub(super) fn workers(&self) -> Vec<&Worker> {
        let filter = self.filter.to_lowercase();
        let matches = |worker: &&Worker| {
            let label = worker.oldest_unit().map_or("", |unit| unit.label.as_str());
            let text = format!("{} {} {} {label}", worker.place(), worker.pid, worker.state);
            text.to_lowercase().contains(&filter)
        };
        let mut workers: Vec<&Worker> = self.status.workers().filter(matches).collect();
        let rates = |worker: &Worker| self.history.worker(worker.pid);
        let key = |worker: &Worker| match self.sort {
            Sort::Slot => None,
            Sort::Age => worker.oldest_unit().map(|unit| unit.age_ms as f64),
            Sort::Rate => rates(worker).rate,
            Sort::Cpu => rates(worker).cpu,
            Sort::Memory => worker.usage.memory_bytes.map(|bytes| bytes as f64),
        };
        // The sort is stable: equal ones stay in the order of their slots.
        workers.sort_by(|one, other| {
            let (one, other) = (key(one).unwrap_or(-1.0), key(other).unwrap_or(-1.0));
            other.total_cmp(&one)
        });
        workers
    }

    /// Returns the index of the selected worker among those that are shown.
    pub(super) fn selected_index(&self) -> usize {
        let is_selected = |worker: &&Worker| {
            self.selected
                .as_ref()
                .is_some_and(|(pool, slot)| worker.pool == *pool && worker.slot == *slot)
        };
        self.workers().iter().position(is_selected).unwrap_or(0)
    }

    /// Returns the selected worker, or the first.
    pub(super) fn selected_worker(&self) -> Option<&Worker> {
        self.workers().get(self.selected_index()).copied()
    }

    /// Returns what the detail view is about.
    pub(super) fn target(&self) -> Option<Target> {
        let (pool, slot) = match &self.selected {
            Some(selected) => selected.clone(),
            None => self.selected_worker().map(|worker| (worker.pool.clone(), worker.slot))?,
        };
        Some(Target::Slot { pool, slot })
    }

    /// Does what a key asks for.
    pub(super) fn on_key(&mut self, key: Key) -> Action {
        match std::mem::take(&mut self.mode) {
            Mode::List | Mode::Detail if matches!(key, Key::Char('q')) => return Action::Quit,
            Mode::List => self.on_list_key(key),
            Mode::Filter => self.on_filter_key(key),
            Mode::Detail => match key {
                Key::Escape | Key::Enter | Key::Backspace => (),
                key => {
                    self.mode = Mode::Detail;
                    self.on_list_key(key);
                }
            },
            Mode::Help => (),
            Mode::Confirm(change) => {
                if key == Key::Char('y') {
                    self.message = format!("{} …", change.describe());
                    return Action::Change(change);
                }
                self.message = "nothing changed".to_owned();
            }
        }
        Action::None
    }

    fn on_list_key(&mut self, key: Key) {
        let page = self.page_rows.max(1);
        match key {
            Key::Up | Key::Char('k') => self.select(|index| index.saturating_sub(1)),
            Key::Down | Key::Char('j') => self.select(|index| index + 1),
            Key::PageUp => self.select(|index| index.saturating_sub(page)),
            Key::PageDown => self.select(|index| index + page),
            Key::Home => self.select(|_| 0),
            Key::End => self.select(|_| usize::MAX),
            Key::Enter => {
                // The view stays with this slot, also while it has no worker.
                self.select(|index| index);
                self.mode = Mode::Detail;
            }
            Key::Escape => self.filter.clear(),
            Key::Char('s') => self.sort = self.sort.next(),
            Key::Char('/') => self.mode = Mode::Filter,
            Key::Char('?' | 'h') => self.mode = Mode::Help,
            Key::Char('r') => self
                .confirm(|worker| Change::Recycle { pool: worker.pool.clone(), slot: worker.slot }),
            Key::Char(sign @ ('+' | '-')) => self
                .confirm(|worker| Change::Scale { pool: worker.pool.clone(), more: sign == '+' }),
            Key::Char(_) | Key::Backspace => (),
        }
    }

    fn on_filter_key(&mut self, key: Key) {
        match key {
            Key::Enter => return,
            Key::Escape => {
                self.filter.clear();
                return;
            }
            Key::Backspace => drop(self.filter.pop()),
            Key::Char(character) if !character.is_control() => self.filter.push(character),
            _ => (),
        }
        self.mode = Mode::Filter;
    }

    fn select(&mut self, step: impl FnOnce(usize) -> usize) {
        let index = step(self.selected_index());
        let workers = self.workers();
        let chosen = workers.get(index.min(workers.len().saturating_sub(1)));
        self.selected = chosen.map(|worker| (worker.pool.clone(), worker.slot));
    }

    fn confirm(&mut self, change: impl FnOnce(&Worker) -> Change) {
        match self.selected_worker().map(change) {
            Some(change) => self.mode = Mode::Confirm(change),
            None => self.message = "there is no worker to choose the pool by".to_owned(),
        }
    }
}

impl Change {
    /// Returns the change in words, such as `recycle web/0`.
    pub(super) fn describe(&self) -> String {
        match self {
            Self::Recycle { pool, slot } => format!("recycle {pool}/{slot}"),
            Self::Scale { pool, more: true } => format!("start one more worker of {pool}"),
            Self::Scale { pool, more: false } => format!("stop one worker of {pool}"),
        }
    }
}
