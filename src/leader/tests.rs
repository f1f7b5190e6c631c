//! Reports and terms, and masters over a simulated store of each kind.

mod keys;
mod records;
mod simulation;

use std::time::Duration;

use proptest::prelude::*;

use super::report::{MESSAGE_BYTES, Report};
use super::term::{Duty, Term};
use crate::time::MonotonicTime;

const TTL: Duration = Duration::from_secs(10);

const fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

fn at(millis: u64) -> MonotonicTime {
    MonotonicTime::default() + ms(millis)
}

#[test]
fn report_survives_the_message_and_a_long_text_is_cut() {
    for report in [
        Report::Leading { until: at(7) },
        Report::Standby { holder: "db-1".to_owned() },
        Report::Unreachable { reason: "connection refused".to_owned() },
    ] {
        assert_eq!(Report::decode(&report.encode()), Some(report));
    }
    let long = Report::Standby { holder: "é".repeat(100) };
    assert_eq!(
        Report::decode(&long.encode()),
        Some(Report::Standby { holder: "é".repeat(56) }),
        "cut between characters"
    );
    assert_eq!(Report::decode(&[0; MESSAGE_BYTES]), None);
}

proptest! {
    #[test]
    fn any_message_is_read(message in any::<[u8; MESSAGE_BYTES]>()) {
        let _ = Report::decode(&message);
    }

    #[test]
    fn no_report_makes_a_term_longer_than_ttl(
        reports in prop::collection::vec((any::<u64>(), 0..20_000u64), 1..20),
    ) {
        let (mut term, mut now) = (Term::new(TTL), at(0));
        for (until, pause) in reports {
            now += ms(pause);
            term.on_report(Report::Leading { until: MonotonicTime::from_nanos(until) }, now);
            prop_assert!(term.until().is_none_or(|until| until <= now + TTL));
        }
    }
}

#[test]
fn term_without_renewal_drains_then_kills() {
    let mut term = Term::new(TTL);
    assert_eq!(term.duty(at(0)), Duty::Stand);
    term.on_report(Report::Leading { until: at(9000) }, at(0));
    assert_eq!((term.duty(at(6499)), term.next_change(at(6499))), (Duty::Serve, Some(at(6500))));
    assert_eq!((term.duty(at(6500)), term.next_change(at(6500))), (Duty::Drain, Some(at(8500))));
    assert_eq!((term.duty(at(8500)), term.next_change(at(8500))), (Duty::Stand, Some(at(9000))));
    term.on_report(Report::Unreachable { reason: "timed out".to_owned() }, at(8600));
    assert_eq!(term.duty(at(9000)), Duty::Stand);
    assert_eq!((term.until(), term.store_error()), (None, Some("timed out")));
    term.on_report(Report::Leading { until: at(20_000) }, at(11_000));
    assert_eq!(term.duty(at(11_000)), Duty::Serve, "losing and regaining is normal");
    term.on_report(Report::Standby { holder: "b".to_owned() }, at(11_001));
    assert_eq!((term.duty(at(11_001)), term.holder()), (Duty::Stand, Some("b")));
}

#[test]
fn report_that_was_read_too_late_does_not_lead() {
    let mut term = Term::new(TTL);
    term.on_report(Report::Leading { until: at(9000) }, at(9000));
    assert_eq!(term.duty(at(9000)), Duty::Stand);
    assert_eq!(term.until(), None);
}
