//! Parses what a program sends to its `NOTIFY_SOCKET`, as by sd_notify(3). Pure.

use std::time::Duration;

/// A message of sd_notify(3); others are ignored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NotifyMessage<'a> {
    /// The program can serve.
    Ready,
    /// It stops by itself.
    Stopping,
    /// It is alive, and will repeat this.
    Watchdog,
    /// It asks to be aborted.
    WatchdogTrigger,
    /// It needs this much more time to become ready.
    ExtendTimeout(Duration),
    /// What it is doing.
    Status(&'a str),
}

/// Returns the messages of one datagram, one per line.
pub(super) fn parse_messages(message: &str) -> impl Iterator<Item = NotifyMessage<'_>> {
    message.lines().filter_map(|line| {
        let (name, value) = line.split_once('=')?;
        match (name, value) {
            ("READY", "1") => Some(NotifyMessage::Ready),
            ("STOPPING", "1") => Some(NotifyMessage::Stopping),
            ("WATCHDOG", "1") => Some(NotifyMessage::Watchdog),
            ("WATCHDOG", "trigger") => Some(NotifyMessage::WatchdogTrigger),
            ("EXTEND_TIMEOUT_USEC", micros) => micros
                .parse()
                .ok()
                .map(|micros| NotifyMessage::ExtendTimeout(Duration::from_micros(micros))),
            ("STATUS", text) => Some(NotifyMessage::Status(text)),
            _ => None,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn datagram_has_several_messages_and_unknown_are_ignored() {
        let message =
            "READY=1\nSTATUS=a=b\nMAINPID=7\n\nEXTEND_TIMEOUT_USEC=1500000\nREADY\nREADY=2";
        let second = Duration::from_millis(1500);
        let expected = [
            NotifyMessage::Ready,
            NotifyMessage::Status("a=b"),
            NotifyMessage::ExtendTimeout(second),
        ];
        assert_eq!(parse_messages(message).collect::<Vec<_>>(), expected);
        let message = "WATCHDOG=1\nWATCHDOG=trigger\nSTOPPING=1\nEXTEND_TIMEOUT_USEC=-1";
        let expected =
            [NotifyMessage::Watchdog, NotifyMessage::WatchdogTrigger, NotifyMessage::Stopping];
        assert_eq!(parse_messages(message).collect::<Vec<_>>(), expected);
    }
}
