//! Schedules with simulated clocks.

use chrono::{FixedOffset, Utc};
use proptest::prelude::{prop, proptest};

use super::cron::Cron;
use super::*;
use crate::app::Options;

const SECOND: u64 = 1_000_000_000;
/// The first second of 2030, a Tuesday.
const NEW_YEAR: u64 = 1_893_456_000 * SECOND;

fn at(millis: u64) -> ClockReading {
    let nanos = millis * 1_000_000;
    ClockReading {
        monotonic: MonotonicTime::from_nanos(7 + nanos),
        wall: WallTime::from_nanos(NEW_YEAR + nanos),
    }
}

fn on(seconds: u64) -> NextRun {
    NextRun::At(WallTime::from_nanos(NEW_YEAR + seconds * SECOND))
}

fn after(millis: u64) -> NextRun {
    NextRun::After(Duration::from_millis(millis))
}

/// A schedule whose dates are the same in every time zone with an offset of whole quarter hours.
fn every_five_seconds() -> Schedule {
    Schedule::cron("*/5 * * * * *").unwrap()
}

#[test]
fn every_does_not_drift_and_skips_missed_runs() {
    let mut schedule = Schedule::every(Duration::from_millis(100));
    assert_eq!(schedule.next(at(0)), NextRun::Now);
    assert_eq!(schedule.next(at(30)), after(70));
    assert_eq!(schedule.next(at(199)), after(1));
    assert_eq!(schedule.next(at(200)), after(100), "the run of this time has just ended");
    assert_eq!(schedule.next(at(1234)), after(66));
}

#[test]
fn every_ignores_the_wall_clock() {
    let mut schedule = Schedule::every(Duration::from_millis(100));
    schedule.next(at(0));
    let set = ClockReading { monotonic: at(30).monotonic, wall: WallTime::default() };
    assert_eq!(schedule.next(set), after(70));
}

proptest! {
    #[test]
    fn every_stays_on_its_grid_and_never_piles_up(
        period in 1..500u64,
        takes in prop::collection::vec(0..2_000u64, 1..50),
    ) {
        let mut schedule = Schedule::every(Duration::from_millis(period));
        assert_eq!(schedule.next(at(1000)), NextRun::Now);
        let mut now = 1000;
        for run in takes {
            now += run;
            let NextRun::After(wait) = schedule.next(at(now)) else { panic!("no next run") };
            let wait = wait.as_millis() as u64;
            assert!(0 < wait && wait <= period, "{wait}");
            now += wait;
            assert_eq!((now - 1000) % period, 0);
        }
    }

    #[test]
    fn cron_arbitrary_text_never_panics(text in "[0-9*/,#LWa-z@? -]{0,20}") {
        if let Ok(cron) = Cron::parse(&text) {
            let next = cron.next_in(&Utc, at(0).wall);
            assert!(next.is_none_or(|next| at(0).wall < next), "{text}");
        }
    }
}

#[test]
fn cron_next_in_returns_the_next_date() {
    let zone = FixedOffset::east_opt(2 * 3600).unwrap();
    for (text, utc, east) in [
        ("* * * * *", 60, 60),
        ("*/5 * * * * *", 5, 5),
        ("0 3 * * *", 3 * 3600, 3600),
        ("0 0 1 2 *", 31 * 86_400, 31 * 86_400 - 7200),
        ("0 12 * * fri", 3 * 86_400 + 43_200, 3 * 86_400 + 36_000),
        ("@hourly", 3600, 3600),
        ("0 0 29 2 *", 789 * 86_400, 789 * 86_400 - 7200),
    ] {
        let cron = Cron::parse(text).unwrap();
        let seconds =
            |next: Option<WallTime>| next.unwrap().as_nanos() / SECOND - NEW_YEAR / SECOND;
        assert_eq!(seconds(cron.next_in(&Utc, at(400).wall)), utc, "{text}");
        assert_eq!(seconds(cron.next_in(&zone, at(400).wall)), east, "{text}");
    }
}

#[test]
fn cron_dates_follow_each_other() {
    let mut schedule = every_five_seconds();
    assert_eq!(schedule.next(at(1000)), on(5));
    assert_eq!(schedule.next(at(2000)), on(5), "called again before a run");
    schedule.begin();
    assert_eq!(schedule.next(at(5010)), on(10));
    schedule.begin();
    assert_eq!(schedule.next(at(27_000)), on(30), "missed dates are skipped");
}

#[test]
fn cron_repeats_runs_only_after_a_large_step_back() {
    let hour = 3600;
    let mut schedule = every_five_seconds();
    schedule.next(at(10_000 * 1000));
    schedule.begin(); // for 10,005
    assert_eq!(schedule.next(at(10_004_990)), on(10_010));
    assert_eq!(schedule.next(at((10_005 - hour) * 1000)), on(10_010));
    assert_eq!(schedule.next(at((10_004 - hour) * 1000)), on(10_005 - hour));
    // Set forward by a day: the date of the last run is long past, and the next one counts from now.
    assert_eq!(schedule.next(at(90_000_000)), on(90_005));
}

fn config_error(options: &[(&str, &str)]) -> (Option<String>, String) {
    let options = options.iter().map(|(name, value)| ((*name).into(), (*value).into()));
    let error = Schedule::from_options(&options.collect::<Options>()).expect_err("it is invalid");
    (error.option().map(str::to_owned), error.to_string())
}

#[test]
fn from_options_invalid_names_the_option() {
    for (key, value, expected) in [
        ("every", "soon", "\"soon\" is not a duration"),
        ("every", "0", "\"0\" is too short: the minimum is 1ms"),
        ("cron", "61 * * * *", "\"61 * * * *\" is not a cron expression ("),
        ("cron", "* * *", "\"* * *\" is not a cron expression ("),
        ("cron", "", "\"\" is not a cron expression ("),
        ("cron", "0 0 31 2 *", "\"0 0 31 2 *\" matches no date"),
    ] {
        let (option, reason) = config_error(&[(key, value)]);
        assert_eq!(option.as_deref(), Some(key));
        assert!(reason.starts_with(expected), "{reason}");
    }
    let (option, reason) = config_error(&[("cron", "* * * * *"), ("every", "1s")]);
    assert_eq!(option.as_deref(), Some("cron"));
    assert!(reason.contains("give either every or cron"), "{reason}");
    assert!(Schedule::from_options(&Options::new()).unwrap().is_none());
    assert!(config_error(&[("cron", &"*".repeat(300))]).1.starts_with("is longer than"));
}

#[test]
fn disabled_job_never_runs() {
    let mut job = every(Duration::from_secs(1), |_| ()).enabled_if(true);
    assert_eq!(job.next_run(at(0)), NextRun::Now);
    let mut job = every(Duration::from_secs(1), |_| ()).enabled_if(false);
    assert_eq!(job.next_run(at(0)), NextRun::Never);
}
