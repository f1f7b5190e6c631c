//! What a program says by its NOTIFY_SOCKET, in the words of sd_notify(3). Pure.

use std::time::Duration;

/// What can be said; other words mean nothing here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Word<'a> {
    /// It can serve.
    Ready,
    /// It leaves by itself.
    Stopping,
    /// It lives, and will say so again.
    Alive,
    /// It has found out that it must be aborted.
    Trigger,
    /// It needs so much more time to get ready.
    Extend(Duration),
    /// What it is at.
    Status(&'a str),
}

/// The words of one message, a line each.
pub(super) fn words(message: &str) -> impl Iterator<Item = Word<'_>> {
    message.lines().filter_map(|line| {
        let (name, value) = line.split_once('=')?;
        match (name, value) {
            ("READY", "1") => Some(Word::Ready),
            ("STOPPING", "1") => Some(Word::Stopping),
            ("WATCHDOG", "1") => Some(Word::Alive),
            ("WATCHDOG", "trigger") => Some(Word::Trigger),
            ("EXTEND_TIMEOUT_USEC", micros) => {
                micros.parse().ok().map(|micros| Word::Extend(Duration::from_micros(micros)))
            }
            ("STATUS", text) => Some(Word::Status(text)),
            _ => None,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_has_several_words_and_strange_ones_are_passed_over() {
        let message =
            "READY=1\nSTATUS=a=b\nMAINPID=7\n\nEXTEND_TIMEOUT_USEC=1500000\nREADY\nREADY=2";
        let second = Duration::from_millis(1500);
        let expected = [Word::Ready, Word::Status("a=b"), Word::Extend(second)];
        assert_eq!(words(message).collect::<Vec<_>>(), expected);
        let message = "WATCHDOG=1\nWATCHDOG=trigger\nSTOPPING=1\nEXTEND_TIMEOUT_USEC=-1";
        let expected = [Word::Alive, Word::Trigger, Word::Stopping];
        assert_eq!(words(message).collect::<Vec<_>>(), expected);
    }
}
