//! The full-screen view: the terminal, and the loop between keys and updates.
//!
//! [`state`] decides, [`render`] draws, [`poller`] asks the master.

mod history;
mod poller;
mod render;
mod state;
#[cfg(test)]
mod tests;

use std::env;
use std::io::{self, IsTerminal};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use ratatui::DefaultTerminal;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers};
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGTSTP};
use signal_hook::{flag, low_level};

use super::failure::Failure;
use super::http::Client;
use poller::{Poller, Update};
use render::Look;
use state::{Action, Key, Top};

/// How often the loop looks for updates and signals.
const TICK: Duration = Duration::from_millis(100);

/// Shows the screen until the user quits.
///
/// # Errors
/// There is no terminal, or it fails.
pub(crate) fn run(client: &Client, interval: Duration) -> Result<(), Failure> {
    if !io::stdout().is_terminal() || !io::stdin().is_terminal() {
        return Err(Failure::new("top needs a terminal; for a script there is status --json"));
    }
    let ended_by = Arc::new(AtomicUsize::new(0));
    for signal in [SIGHUP, SIGINT, SIGQUIT, SIGTERM] {
        let number = usize::try_from(signal).unwrap_or_default();
        flag::register_usize(signal, Arc::clone(&ended_by), number)
            .map_err(|error| Failure::new(format!("failed to handle signals: {error}")))?;
    }
    let terminal = Screen::open();
    let shown = terminal.and_then(|mut screen| screen.run(client, interval, &ended_by));
    match (shown, ended_by.load(Ordering::Relaxed)) {
        // The terminal is as before. The signal has its usual effect now.
        (_, signal @ 1..) => {
            let _ = low_level::emulate_default_handler(i32::try_from(signal).unwrap_or(SIGTERM));
            Err(Failure::new("ended by a signal"))
        }
        (Ok(()), 0) => Ok(()),
        (Err(error), 0) => Err(Failure::new(format!("the terminal failed: {error}"))),
    }
}

/// The terminal while the view has it. Dropping it restores what was there; so does a panic.
struct Screen(DefaultTerminal);

impl Drop for Screen {
    fn drop(&mut self) {
        // The terminal may have gone.
        let _ = ratatui::try_restore();
    }
}

impl Screen {
    fn open() -> io::Result<Self> {
        // Also has a panic restore the terminal.
        ratatui::try_init().map(Self)
    }

    fn run(
        &mut self,
        client: &Client,
        interval: Duration,
        ended_by: &AtomicUsize,
    ) -> io::Result<()> {
        let look = look();
        let mut top = Top::default();
        let (poller, updates) = Poller::start(client, interval);
        let mut is_changed = true;
        while ended_by.load(Ordering::Relaxed) == 0 {
            if std::mem::take(&mut is_changed) {
                self.0.draw(|frame| render::draw(frame, &mut top, look))?;
            }
            if event::poll(TICK)? {
                is_changed = true;
                match event::read()? {
                    Event::Key(key) if key.kind != KeyEventKind::Release => {
                        let has_control = key.modifiers.contains(KeyModifiers::CONTROL);
                        match (key.code, has_control) {
                            (KeyCode::Char('c'), true) => return Ok(()),
                            (KeyCode::Char('z'), true) => self.suspend()?,
                            (KeyCode::Char('l'), true) => self.0.clear()?,
                            (code, _) => match key_of(code).map(|key| top.on_key(key)) {
                                Some(Action::Quit) => return Ok(()),
                                Some(Action::Change(change)) => poller.begin(&change),
                                Some(Action::None) | None => (),
                            },
                        }
                    }
                    _ => (),
                }
            }
            for update in updates.try_iter() {
                is_changed = true;
                match update {
                    Update::Status(status) => top.on_status(*status),
                    Update::Trouble(reason, seconds) => top.on_trouble(reason, seconds),
                    Update::Outcome(outcome) => top.message = outcome,
                }
            }
        }
        Ok(())
    }

    /// Gives the terminal back to the shell until it continues this process.
    fn suspend(&mut self) -> io::Result<()> {
        ratatui::try_restore()?;
        low_level::emulate_default_handler(SIGTSTP)?;
        self.0 = ratatui::try_init()?;
        self.0.clear()
    }
}

/// Returns what the terminal can show, by the variables NO_COLOR, TERM, LC_ALL, LC_CTYPE and LANG.
fn look() -> Look {
    let variable = |name| env::var(name).ok().filter(|value| !value.is_empty());
    let locale = ["LC_ALL", "LC_CTYPE", "LANG"].into_iter().find_map(variable);
    let locale = locale.unwrap_or_default().to_ascii_lowercase();
    Look {
        has_color: variable("NO_COLOR").is_none() && variable("TERM").as_deref() != Some("vt100"),
        has_unicode: locale.contains("utf-8") || locale.contains("utf8"),
    }
}

fn key_of(code: KeyCode) -> Option<Key> {
    Some(match code {
        KeyCode::Char(character) => Key::Char(character),
        KeyCode::Up => Key::Up,
        KeyCode::Down => Key::Down,
        KeyCode::PageUp => Key::PageUp,
        KeyCode::PageDown => Key::PageDown,
        KeyCode::Home => Key::Home,
        KeyCode::End => Key::End,
        KeyCode::Enter => Key::Enter,
        KeyCode::Esc => Key::Escape,
        KeyCode::Backspace => Key::Backspace,
        _ => return None,
    })
}
