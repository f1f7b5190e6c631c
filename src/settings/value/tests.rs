use super::*;
use crate::duration::DURATION_MAX;
use proptest::prelude::{any, proptest};

const SPAN: Span = Span { least: Duration::ZERO };
const SIZE: Size = Size { least: 0, most: u64::MAX };
const MASK: Octal = Octal { what: "a mask", example: "022" };

#[track_caller]
fn good<F: Form>(form: &F, text: &str, value: F::Out, shown: &str)
where
    F::Out: fmt::Debug,
{
    assert_eq!(form.parse(text).as_ref(), Ok(&value));
    assert_eq!(form.show(&value), shown);
    assert_eq!(form.parse(shown), Ok(value));
}

#[track_caller]
fn bad<F: Form>(form: &F, text: &str, why: &str)
where
    F::Out: fmt::Debug,
{
    let error = form.parse(text).expect_err(text);
    assert!(error.contains(why), "{text:?}: {error}");
}

#[test]
fn durations_have_units() {
    good(&SPAN, "30", Duration::from_secs(30), "30s");
    good(&SPAN, "30s", Duration::from_secs(30), "30s");
    good(&SPAN, "1.5", Duration::from_millis(1500), "1500ms");
    good(&SPAN, "500ms", Duration::from_millis(500), "500ms");
    good(&SPAN, "0.25ms", Duration::from_micros(250), "0.00025s");
    good(&SPAN, "2m", Duration::from_secs(120), "120s");
    good(&SPAN, "1.5h", Duration::from_secs(5400), "5400s");
    good(&SPAN, "0", Duration::ZERO, "0s");
    good(&SPAN, "87600h", DURATION_MAX, "315360000s");
}

#[test]
fn other_words_are_no_durations() {
    for text in ["", " ", "abc", "-1", "+1", "1 s", "1d", "1e3", "nan", "inf", ".5", "1.", "s"] {
        bad(&SPAN, text, "is not a duration");
    }
    bad(&SPAN, "0.1234567891", "is not a duration");
    bad(&SPAN, &"9".repeat(40), "is not a duration");
    bad(&SPAN, "999999999999999999h", "too long");
    bad(&SPAN, "87600.001h", "too long");
    bad(&Span { least: Duration::from_millis(1) }, "0", "the least is 1ms");
}

#[test]
fn sizes_have_units() {
    good(&SIZE, "65536", 65536, "64K");
    good(&SIZE, "64k", 65536, "64K");
    good(&SIZE, "64M", 64 << 20, "64M");
    good(&SIZE, "1G", 1 << 30, "1G");
    good(&SIZE, "1023", 1023, "1023");
    good(&SIZE, "0", 0, "0");
    for text in ["", "K", "-1", "1.5M", "64KB", "1 M", "M1", "é"] {
        bad(&SIZE, text, "is not a size");
    }
    bad(&SIZE, "99999999999G", "out of bounds");
    bad(&Size { least: 1024, most: 1 << 20 }, "1", "from 1K to 1M");
}

#[test]
fn workers_are_a_number_or_auto() {
    good(&WorkerCount, "4096", Workers::Fixed(4096), "4096");
    good(&WorkerCount, "auto", Workers::Auto, "auto");
    for text in ["0", "4097", "two", "-1", "1.5", "", "Auto", "4-"] {
        bad(&WorkerCount, text, "give a number from 1 to 4096, or auto");
    }
    bad(&WorkerCount, "2-4", "ranges are not supported yet");
}

#[test]
fn masks_are_octal() {
    good(&MASK, "022", 0o22, "022");
    good(&MASK, "0o77", 0o77, "077");
    good(&MASK, "0", 0, "000");
    for text in ["8", "1000", "-1", "", "0x1"] {
        bad(&MASK, text, "octal");
    }
}

#[test]
fn signed_numbers_have_bounds_on_both_sides() {
    let nice = Signed { what: "a nice value", least: -20, most: 19 };
    for (text, value) in [("-20", -20), ("0", 0), ("19", 19)] {
        good(&nice, text, value, text);
    }
    for text in ["-21", "20", "", "-", "--1", "+1", "1.5", " 1", "99999999999"] {
        bad(&nice, text, "is not a nice value: give a number from -20 to 19");
    }
}

#[test]
fn yes_and_no_have_several_words() {
    for text in ["true", "True", "yes", "on", "1"] {
        good(&YesNo, text, true, "true");
    }
    for text in ["false", "FALSE", "no", "off", "0"] {
        good(&YesNo, text, false, "false");
    }
    for text in ["", "2", "y", "tru", "maybe"] {
        bad(&YesNo, text, "give true or false");
    }
}

#[test]
fn core_sizes_may_be_unlimited() {
    good(&Core, "0", CoreSize::Bytes(0), "0");
    good(&Core, "64M", CoreSize::Bytes(64 << 20), "64M");
    good(&Core, "unlimited", CoreSize::Unlimited, "unlimited");
    bad(&Core, "infinity", "such as 64K, or unlimited");
}

#[test]
fn processors_are_numbers() {
    good(&Cpus, "0, 2,2", vec![0, 2, 2], "0,2,2");
    for text in ["", ",", "0,", "-1", "1024", "0-3", "auto"] {
        bad(&Cpus, text, "is not a processor");
    }
}

proptest! {
    #[test]
    fn a_shown_duration_is_the_same_duration(nanos in 0..=DURATION_MAX.as_nanos() as u64) {
        let span = Duration::from_nanos(nanos);
        assert_eq!(SPAN.parse(&SPAN.show(&span)), Ok(span));
    }

    #[test]
    fn a_shown_size_is_the_same_size(size in any::<u64>(), shift in 0..40_u32) {
        for size in [size, size >> shift << shift] {
            assert_eq!(SIZE.parse(&SIZE.show(&size)), Ok(size));
        }
    }

    #[test]
    fn no_text_is_too_odd(text in any::<String>()) {
        let _ = (SPAN.parse(&text), SIZE.parse(&text), WorkerCount.parse(&text));
        let _ = (MASK.parse(&text), Pair.parse(&text), Listen.parse(&text));
        let _ = (YesNo.parse(&text), Core.parse(&text), Cpus.parse(&text));
    }
}
