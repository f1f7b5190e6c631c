//! Schedules with simulated clocks.

use chrono::{DateTime, FixedOffset};
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
            let next = cron.next_in(&|_| Some(0), at(0).wall);
            assert!(next.is_none_or(|next| at(0).wall < next), "{text}");
        }
    }
}

#[test]
fn cron_next_in_returns_the_next_date() {
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
        assert_eq!(seconds(cron.next_in(&|_| Some(0), at(400).wall)), utc, "{text}");
        assert_eq!(seconds(cron.next_in(&|_| Some(2 * 3600), at(400).wall)), east, "{text}");
    }
}

/// Expects these local dates after `start`, in a zone whose offset changes at `change`. Offsets are in
/// minutes.
#[track_caller]
fn check_dates(change: &str, (before, after): (i64, i64), start: &str, text: &str, dates: &[&str]) {
    let seconds = |date: &str| DateTime::parse_from_rfc3339(date).unwrap().timestamp();
    let change = seconds(change);
    let offset_at = |utc| Some(60 * if utc < change { before } else { after });
    let cron = Cron::parse(text).unwrap();
    let mut date = WallTime::from_nanos(seconds(start) as u64 * SECOND);
    let found: Vec<_> = (dates.iter())
        .map(|_| {
            date = cron.next_in(&offset_at, date).unwrap();
            let utc = (date.as_nanos() / SECOND) as i64;
            let zone = FixedOffset::east_opt(offset_at(utc).unwrap() as i32).unwrap();
            let date = DateTime::from_timestamp(utc, 0).unwrap().with_timezone(&zone);
            date.format("%dT%H:%M%:z").to_string()
        })
        .collect();
    assert_eq!(found, dates, "{text} after {start}");
}

#[test]
fn cron_end_of_summer_time_repeats_wildcards_only() {
    let berlin = |start, text, dates: &[&str]| {
        check_dates("2026-10-25T01:00:00Z", (120, 60), start, text, dates);
    };
    berlin(
        "2026-10-25T02:20:00+02:00",
        "*/20 * * * *",
        &["25T02:40+02:00", "25T02:00+01:00", "25T02:20+01:00", "25T02:40+01:00", "25T03:00+01:00"],
    );
    berlin(
        "2026-10-25T02:58:30+02:00",
        "* * * * *",
        &["25T02:59+02:00", "25T02:00+01:00", "25T02:01+01:00"],
    );
    for hourly in ["0 * * * *", "@hourly"] {
        let dates = ["25T02:00+02:00", "25T02:00+01:00", "25T03:00+01:00", "25T04:00+01:00"];
        berlin("2026-10-25T01:30:00+02:00", hourly, &dates);
    }
    berlin(
        "2026-10-24T12:00:00Z",
        "*/30 2 * * *",
        &["25T02:00+02:00", "25T02:30+02:00", "25T02:00+01:00", "25T02:30+01:00", "26T02:00+01:00"],
    );
    for start in ["2026-10-24T12:00:00Z", "2026-10-25T02:10:00+02:00"] {
        berlin(start, "30 2 * * *", &["25T02:30+02:00", "26T02:30+01:00", "27T02:30+01:00"]);
    }
    for start in ["2026-10-25T02:40:00+02:00", "2026-10-25T02:10:00+01:00"] {
        berlin(start, "30 2 * * *", &["26T02:30+01:00"]);
    }
    berlin(
        "2026-10-24T12:00:00Z",
        "0,30 2,3 * * *",
        &["25T02:00+02:00", "25T02:30+02:00", "25T03:00+01:00", "25T03:30+01:00", "26T02:00+01:00"],
    );
    berlin("2026-06-01T00:00:00Z", "0 3 25 oct *", &["25T03:00+01:00"]);

    let new_york = |start, text, dates: &[&str]| {
        check_dates("2026-11-01T06:00:00Z", (-240, -300), start, text, dates);
    };
    new_york("2026-11-01T00:00:00Z", "30 1 * * *", &["01T01:30-04:00", "02T01:30-05:00"]);
    new_york(
        "2026-11-01T00:45:00-04:00",
        "30 * * * *",
        &["01T01:30-04:00", "01T01:30-05:00", "01T02:30-05:00"],
    );

    let sao_paulo = |start, text, dates: &[&str]| {
        check_dates("2018-02-18T02:00:00Z", (-120, -180), start, text, dates);
    };
    sao_paulo("2018-02-17T12:00:00Z", "0 23 * * *", &["17T23:00-02:00", "18T23:00-03:00"]);
    sao_paulo("2018-02-17T12:00:00Z", "0 0 * * *", &["18T00:00-03:00", "19T00:00-03:00"]);
    sao_paulo(
        "2018-02-17T22:30:00-02:00",
        "0 * * * *",
        &["17T23:00-02:00", "17T23:00-03:00", "18T00:00-03:00"],
    );

    let lord_howe = |start, text, dates: &[&str]| {
        check_dates("2026-04-04T15:00:00Z", (660, 630), start, text, dates);
    };
    lord_howe("2026-04-04T12:00:00Z", "45 1 * * *", &["05T01:45+11:00", "06T01:45+10:30"]);
    lord_howe(
        "2026-04-05T01:20:00+11:00",
        "*/15 * * * *",
        &["05T01:30+11:00", "05T01:45+11:00", "05T01:30+10:30", "05T01:45+10:30", "05T02:00+10:30"],
    );
}

#[test]
fn cron_begin_of_summer_time_delays_fixed_times_only() {
    let berlin = |start, text, dates: &[&str]| {
        check_dates("2026-03-29T01:00:00Z", (60, 120), start, text, dates);
    };
    let start = "2026-03-29T00:30:00+01:00";
    let dates = ["29T01:00+01:00", "29T01:30+01:00", "29T03:00+02:00", "29T03:30+02:00"];
    berlin(start, "*/30 * * * *", &dates);
    berlin(start, "0 * * * *", &["29T01:00+01:00", "29T03:00+02:00", "29T04:00+02:00"]);
    berlin(start, "*/30 2 * * *", &["30T02:00+02:00"]);
    berlin(start, "30 2 * * *", &["29T03:00+02:00", "30T02:30+02:00"]);
    berlin(start, "0,30 2 * * *", &["29T03:00+02:00", "30T02:00+02:00", "30T02:30+02:00"]);
    berlin(start, "0 2,3 * * *", &["29T03:00+02:00", "30T02:00+02:00"]);
    berlin(start, "0 3 * * *", &["29T03:00+02:00", "30T03:00+02:00"]);
    berlin("2026-03-29T01:59:59+01:00", "30 2 * * *", &["29T03:00+02:00"]);
    berlin("2026-03-29T03:00:00+02:00", "30 2 * * *", &["30T02:30+02:00"]);
    berlin("2025-12-01T00:00:00Z", "30 2 29 3 *", &["29T03:00+02:00"]);

    let new_york = |start, text, dates: &[&str]| {
        check_dates("2026-03-08T07:00:00Z", (-300, -240), start, text, dates);
    };
    new_york("2026-03-08T00:00:00Z", "0 2 * * *", &["08T03:00-04:00", "09T02:00-04:00"]);

    let sao_paulo = |start, text, dates: &[&str]| {
        check_dates("2018-11-04T03:00:00Z", (-180, -120), start, text, dates);
    };
    sao_paulo("2018-11-03T12:00:00Z", "0 0 * * *", &["04T01:00-02:00", "05T00:00-02:00"]);

    let lord_howe = |start, text, dates: &[&str]| {
        check_dates("2026-10-03T15:30:00Z", (630, 660), start, text, dates);
    };
    lord_howe("2026-10-03T12:00:00Z", "15 2 * * *", &["04T02:30+11:00", "05T02:15+11:00"]);
    lord_howe(
        "2026-10-04T01:30:00+10:30",
        "*/15 * * * *",
        &["04T01:45+10:30", "04T02:30+11:00", "04T02:45+11:00"],
    );

    // Samoa skipped 30 December 2011.
    let apia = |text, dates: &[&str]| {
        let start = "2011-12-29T10:00:00-10:00";
        check_dates("2011-12-30T10:00:00Z", (-600, 840), start, text, dates);
    };
    apia("0 12 * * *", &["29T12:00-10:00", "31T00:00+14:00", "31T12:00+14:00"]);
    apia("0 */12 * * *", &["29T12:00-10:00", "31T00:00+14:00", "31T12:00+14:00"]);
    apia("0 0 * * *", &["31T00:00+14:00", "01T00:00+14:00"]);
    apia("0 12 30 12 *", &["31T00:00+14:00", "30T12:00+14:00"]);
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
