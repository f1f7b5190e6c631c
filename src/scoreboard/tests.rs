use super::text::little_endian;
use super::*;

const NOW: MonotonicTime = MonotonicTime::from_nanos(1_000_000_000_000_000);
const TIMEOUT: Duration = Duration::from_secs(30);

#[test]
fn little_endian_of_any_length_matches_bytes() {
    let bytes = [1, 0x82, 3, 0x84, 5, 0x86, 7, 0x88];
    for length in 0..=8 {
        let expected = bytes[..length].iter().rev().fold(0, |sum, &b| sum << 8 | u64::from(b));
        assert_eq!(little_endian(&bytes[..length]), expected, "{length}");
    }
}

#[test]
fn rows_and_threads_are_independent() {
    let board = Scoreboard::new(3, 2).unwrap();
    board.row(1).thread(1).set_busy(MonotonicTime::from_nanos(9));
    board.row(1).thread(1).set_label(b"GET /hang");
    board.row(1).set_status(WorkerStatus::Ready);
    board.row(1).set_exit_note("a note");
    board.row(1).set_status(WorkerStatus::Draining);
    assert!(board.row(1).was_ready() && !board.row(0).was_ready());
    assert_eq!(board.row(0).most_overdue_unit(NOW, TIMEOUT), None);
    assert_eq!(board.row(2).most_overdue_unit(NOW, TIMEOUT), None);
    assert_eq!(board.row(0).status(), WorkerStatus::Booting);
    let unit = WorkUnit {
        started_at: MonotonicTime::from_nanos(9),
        label: "GET /hang".into(),
        thread_index: 1,
        thread_id: 0,
    };
    assert_eq!(board.row(1).most_overdue_unit(NOW, TIMEOUT), Some(unit));
    assert_eq!(board.row(1).exit_note(), "a note");
}

#[test]
fn row_finds_most_overdue_unit_and_sums_units() {
    let board = Scoreboard::new(1, 3).unwrap();
    let row = board.row(0);
    row.thread(0).set_busy(MonotonicTime::from_nanos(30));
    row.thread(2).set_busy(MonotonicTime::from_nanos(20));
    row.thread(0).end_unit(NOW, NOW, UnitTimeout::new(TIMEOUT));
    row.thread(2).end_unit(NOW, NOW, UnitTimeout::new(TIMEOUT));
    assert_eq!(row.units(), 2);
    assert_eq!(row.thread(0).busy_since(), Some(NOW), "the thread goes on with something else");
    assert_eq!(row.thread(1).busy_since(), None);
    row.reset();
    assert_eq!((row.most_overdue_unit(NOW, TIMEOUT), row.units()), (None, 0));
}

#[test]
fn extension_of_deadline_applies_to_one_unit() {
    let board = Scoreboard::new(1, 2).unwrap();
    let row = board.row(0);
    let second = Duration::from_secs(1);
    let old = NOW - 40 * second;
    let young = NOW - 10 * second;
    row.thread(0).set_busy(old);
    row.thread(1).set_busy(young);
    assert_eq!(row.busy_interval(NOW, TIMEOUT), Some((old, young)));
    row.thread(0).extend_deadline(NOW + 5 * second);
    assert_eq!(row.busy_interval(NOW, TIMEOUT), Some((NOW - 25 * second, young)));
    row.thread(0).extend_deadline(NOW + second); // earlier than the present one
    assert_eq!(row.busy_interval(NOW, TIMEOUT), Some((NOW - 25 * second, young)));
    row.thread(0).extend_deadline(NOW + EXTENSION_MAX);
    let unit = row.most_overdue_unit(NOW, TIMEOUT).unwrap();
    assert_eq!((unit.thread_index, unit.started_at), (1, young));
    row.thread(0).set_busy(old);
    assert_eq!(row.busy_interval(NOW, TIMEOUT), Some((old, young)));
}

#[test]
fn extension_beyond_maximum_is_ignored() {
    let board = Scoreboard::new(1, 1).unwrap();
    let since = NOW - TIMEOUT;
    board.row(0).thread(0).set_busy(since);
    board.row(0).thread(0).extend_deadline(NOW + EXTENSION_MAX + Duration::from_nanos(1));
    assert_eq!(board.row(0).busy_interval(NOW, TIMEOUT), Some((since, since)));
    board.row(0).thread(0).set_busy(NOW + TIMEOUT);
    assert_eq!(board.row(0).busy_interval(NOW, TIMEOUT), None);
}

#[test]
fn exit_note_is_truncated_and_printable() {
    let board = Scoreboard::new(1, 1).unwrap();
    board.row(0).set_exit_note(&"x".repeat(500));
    assert_eq!(board.row(0).exit_note().len(), EXIT_NOTE_WORDS * 8);
    board.row(0).set_exit_note("one\ntwo");
    assert_eq!(board.row(0).exit_note(), "one?two");
    board.row(0).set_status_text(&"é".repeat(500));
    assert_eq!(board.row(0).status_text(), "é".repeat(STATUS_TEXT_WORDS * 4));
    assert_eq!(board.row(0).exit_note(), "one?two");
    assert!(board.row(0).most_overdue_unit(NOW, TIMEOUT).is_none());
}

#[test]
fn counts_are_summed_over_threads_and_cleared() {
    for threads in [1, 2, 8, 9, 64] {
        let board = Scoreboard::new(3, threads).unwrap();
        let row = board.row(1);
        for index in 0..threads {
            let thread = row.thread(index);
            thread.begin_unit(NOW);
            thread.set_idle();
            thread.end_unit(
                thread.unit_started(),
                NOW + Duration::from_millis(3),
                UnitTimeout::new(TIMEOUT),
            );
            thread.count_received(10);
            thread.count_sent(20);
        }
        row.worker_counters().add_accepted();
        row.worker_counters().add_refused();
        row.worker_counters().set_records_dropped(5);
        row.worker_counters().add_dropped_access_record();
        let totals = row.totals(NOW);
        let each = threads as u64;
        let expected = WorkCounts {
            units: each,
            unit_time: Duration::from_millis(3 * each),
            busy: Duration::from_millis(3 * each),
            near_misses: 0,
            bytes_in: 10 * each,
            bytes_out: 20 * each,
            accepted: 1,
            refused: 1,
            records_dropped: 5,
            access_records_dropped: 1,
            accept_waits: AcceptWaits::default(),
        };
        assert_eq!(totals.counts, expected, "{threads} threads");
        assert_eq!(
            totals.durations.buckets().collect::<Vec<_>>(),
            [(Some(Duration::from_millis(3)), each)]
        );
        assert_eq!(board.row(0).totals(NOW), WorkTotals::default());
        assert_eq!(board.row(2).totals(NOW), WorkTotals::default());
        row.reset();
        assert_eq!(row.totals(NOW), WorkTotals::default());
    }
}

#[test]
fn unit_past_half_of_its_limit_is_a_near_miss() {
    let board = Scoreboard::new(1, 1).unwrap();
    let thread = board.row(0).thread(0);
    let ends_after = |seconds: u64, extended_to: u64, timeout: Duration| {
        let before = board.row(0).counts(NOW).near_misses;
        thread.begin_unit(NOW);
        thread.extend_deadline(NOW + Duration::from_secs(extended_to));
        thread.end_unit(NOW, NOW + Duration::from_secs(seconds), UnitTimeout::new(timeout));
        board.row(0).counts(NOW).near_misses > before
    };
    assert!(!ends_after(15, 0, TIMEOUT));
    assert!(ends_after(16, 0, TIMEOUT));
    assert!(!ends_after(16, 60, TIMEOUT), "its limit was extended to 60 s");
    assert!(ends_after(31, 60, TIMEOUT));
    assert!(!ends_after(1 << 30, 0, Duration::ZERO), "zero is no limit");
    assert_eq!(board.row(0).counts(NOW).near_misses, 2);
}

#[test]
fn counts_of_any_contents_are_capped() {
    let board = Scoreboard::new(1, 2).unwrap();
    let row = board.row(0);
    for word in row.words.iter().chain(row.counters) {
        word.store(u64::MAX, Ordering::Relaxed);
    }
    let WorkTotals { counts, durations } = row.totals(NOW);
    assert_eq!((counts.units, counts.accepted), (COUNT_MAX, COUNT_MAX));
    assert_eq!(counts.bytes_in, 2 * COUNT_MAX);
    assert!(counts.busy.as_secs() < 201 * 366 * 86_400);
    assert_eq!(durations.count(), 2 * COUNT_MAX * 165);
    let mut shown = WorkTotals::default();
    shown.raise_to(&WorkTotals { counts, durations: durations.clone() });
    shown.raise_to(&WorkTotals::default());
    assert_eq!(shown, WorkTotals { counts, durations });
}

#[test]
fn drain_modes_of_rows_are_independent_and_alternate() {
    let board = Scoreboard::new(40, 1).unwrap();
    let mut mode = DrainMode::default();
    for change in 1..100 {
        mode = mode.next();
        assert_eq!(mode.is_on(), change % 2 == 1);
        board.set_drain_mode(17, mode);
        assert_eq!(board.drain_mode(17), mode);
        assert!((0..40).all(|row| row == 17 || !board.drain_mode(row).is_on()));
    }
    (0..40).for_each(|row| board.set_drain_mode(row, mode));
    board.set_drain_mode(16, DrainMode::default());
    assert!((0..40).all(|row| (row == 16) != board.drain_mode(row).is_on()));
}

#[test]
fn workers_in_drain_mode_have_no_share_of_the_clients() {
    let board = Scoreboard::new(3, 1).unwrap();
    for row in 0..3 {
        board.mark_row_used(row);
        board.row(row).set_status(WorkerStatus::Ready);
        board.row(row).set_clients(6);
    }
    assert_eq!(board.fair_client_share(), ClientShare { clients: 6, is_whole: false });
    let mode = DrainMode::default().next();
    board.set_drain_mode(1, mode);
    board.row(1).set_clients(0);
    board.row(0).set_clients(12);
    assert_eq!(board.fair_client_share(), ClientShare { clients: 9, is_whole: false });
    assert_eq!((board.drain_mode(1), board.drain_mode(0)), (mode, DrainMode::default()));
    board.set_drain_mode(2, mode);
    assert_eq!(board.fair_client_share(), ClientShare { clients: 12, is_whole: true });
    board.row(1).set_drained_for(mode);
    assert_eq!(board.row(1).drained_for(), mode);
    board.row(1).reset();
    assert_ne!(board.row(1).drained_for(), mode);
}
