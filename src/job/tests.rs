//! Schedules over invented clocks.

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

/// A schedule whose dates are the same in every time zone of whole quarters of an hour.
fn each_five_seconds() -> Schedule {
    Schedule::cron("*/5 * * * * *").unwrap()
}

#[test]
fn a_period_does_not_drift_and_what_was_missed_is_skipped() {
    let mut schedule = Schedule::every(Duration::from_millis(100));
    assert_eq!(schedule.next(at(0)), NextRun::Now);
    assert_eq!(schedule.next(at(30)), after(70));
    assert_eq!(schedule.next(at(199)), after(1));
    assert_eq!(schedule.next(at(200)), after(100), "the run of this moment has just been");
    assert_eq!(schedule.next(at(1234)), after(66));
}

#[test]
fn the_wall_clock_does_not_move_a_period() {
    let mut schedule = Schedule::every(Duration::from_millis(100));
    schedule.next(at(0));
    let set = ClockReading { monotonic: at(30).monotonic, wall: WallTime::default() };
    assert_eq!(schedule.next(set), after(70));
}

proptest! {
    #[test]
    fn runs_of_a_period_keep_to_its_grid_and_never_pile_up(
        period in 1..500u64,
        takes in prop::collection::vec(0..2_000u64, 1..50),
    ) {
        let mut schedule = Schedule::every(Duration::from_millis(period));
        assert_eq!(schedule.next(at(1000)), NextRun::Now);
        let mut now = 1000;
        for run in takes {
            now += run;
            let NextRun::After(wait) = schedule.next(at(now)) else { panic!("it goes on") };
            let wait = wait.as_millis() as u64;
            assert!(0 < wait && wait <= period, "{wait}");
            now += wait;
            assert_eq!((now - 1000) % period, 0);
        }
    }

    #[test]
    fn no_expression_is_too_odd(text in "[0-9*/,#LWa-z@? -]{0,20}") {
        if let Ok(cron) = Cron::parse(&text) {
            let next = cron.next_in(&Utc, at(0).wall);
            assert!(next.is_none_or(|next| at(0).wall < next), "{text}");
        }
    }
}

#[test]
fn a_cron_expression_tells_the_next_date() {
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
fn dates_are_waited_for_one_after_the_other() {
    let mut schedule = each_five_seconds();
    assert_eq!(schedule.next(at(1000)), on(5));
    assert_eq!(schedule.next(at(2000)), on(5), "asked anew before a run");
    schedule.begin();
    assert_eq!(schedule.next(at(5010)), on(10));
    schedule.begin();
    assert_eq!(schedule.next(at(27_000)), on(30), "what was missed is skipped");
}

#[test]
fn a_small_step_back_makes_no_run_happen_twice_and_a_large_one_is_believed() {
    let hour = 3600;
    let mut schedule = each_five_seconds();
    schedule.next(at(10_000 * 1000));
    schedule.begin(); // for 10,005
    assert_eq!(schedule.next(at(10_004_990)), on(10_010));
    assert_eq!(schedule.next(at((10_005 - hour) * 1000)), on(10_010));
    assert_eq!(schedule.next(at((10_004 - hour) * 1000)), on(10_005 - hour));
    // Set forward by far: the date of its run is long past, and the next is looked for from here.
    assert_eq!(schedule.next(at(90_000_000)), on(90_005));
}

fn config_error(options: &[(&str, &str)]) -> (Option<String>, String) {
    let options = options.iter().map(|(name, value)| ((*name).into(), (*value).into()));
    let refusal = Schedule::from_options(&options.collect::<Options>()).expect_err("a bad one");
    (refusal.option().map(str::to_owned), refusal.to_string())
}

#[test]
fn bad_schedule_is_rejected_by_option_name() {
    for (key, value, why) in [
        ("every", "soon", "\"soon\" is not a duration"),
        ("every", "0", "\"0\" is too short: the minimum is 1ms"),
        ("cron", "61 * * * *", "\"61 * * * *\" is not a cron expression ("),
        ("cron", "* * *", "\"* * *\" is not a cron expression ("),
        ("cron", "", "\"\" is not a cron expression ("),
        ("cron", "0 0 31 2 *", "\"0 0 31 2 *\" matches no date"),
    ] {
        let (option, reason) = config_error(&[(key, value)]);
        assert_eq!(option.as_deref(), Some(key));
        assert!(reason.starts_with(why), "{reason}");
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
