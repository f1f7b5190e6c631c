use super::*;
use crate::duration::DURATION_MAX;
use crate::settings::types::CoreSize;
use proptest::prelude::{any, proptest};

const ANY_DURATION: DurationValue = DurationValue { min: Duration::ZERO };
const SIZE: SizeValue = SizeValue { min: 0, max: u64::MAX };
const MASK: OctalValue = OctalValue { noun: "a mask", example: "022" };

#[track_caller]
fn assert_parses<F: ValueParser>(parser: &F, text: &str, value: F::Out, shown: &str)
where
    F::Out: fmt::Debug,
{
    assert_eq!(parser.parse(text).as_ref(), Ok(&value));
    assert_eq!(parser.format(&value), shown);
    assert_eq!(parser.parse(shown), Ok(value));
}

#[track_caller]
fn assert_rejected<F: ValueParser>(parser: &F, text: &str, reason: &str)
where
    F::Out: fmt::Debug,
{
    let error = parser.parse(text).expect_err(text);
    assert!(error.contains(reason), "{text:?}: {error}");
}

#[test]
fn duration_with_unit_is_parsed() {
    assert_parses(&ANY_DURATION, "30", Duration::from_secs(30), "30s");
    assert_parses(&ANY_DURATION, "30s", Duration::from_secs(30), "30s");
    assert_parses(&ANY_DURATION, "1.5", Duration::from_millis(1500), "1500ms");
    assert_parses(&ANY_DURATION, "500ms", Duration::from_millis(500), "500ms");
    assert_parses(&ANY_DURATION, "0.25ms", Duration::from_micros(250), "0.00025s");
    assert_parses(&ANY_DURATION, "2m", Duration::from_secs(120), "120s");
    assert_parses(&ANY_DURATION, "1.5h", Duration::from_secs(5400), "5400s");
    assert_parses(&ANY_DURATION, "0", Duration::ZERO, "0s");
    assert_parses(&ANY_DURATION, "87600h", DURATION_MAX, "315360000s");
}

#[test]
fn duration_malformed_is_rejected() {
    for text in ["", " ", "abc", "-1", "+1", "1 s", "1d", "1e3", "nan", "inf", ".5", "1.", "s"] {
        assert_rejected(&ANY_DURATION, text, "is not a duration");
    }
    assert_rejected(&ANY_DURATION, "0.1234567891", "is not a duration");
    assert_rejected(&ANY_DURATION, &"9".repeat(40), "is not a duration");
    assert_rejected(&ANY_DURATION, "999999999999999999h", "too long");
    assert_rejected(&ANY_DURATION, "87600.001h", "too long");
    assert_rejected(&DurationValue { min: Duration::from_millis(1) }, "0", "the minimum is 1ms");
}

#[test]
fn size_with_unit_is_parsed() {
    assert_parses(&SIZE, "65536", 65536, "64K");
    assert_parses(&SIZE, "64k", 65536, "64K");
    assert_parses(&SIZE, "64M", 64 << 20, "64M");
    assert_parses(&SIZE, "1G", 1 << 30, "1G");
    assert_parses(&SIZE, "1023", 1023, "1023");
    assert_parses(&SIZE, "0", 0, "0");
    for text in ["", "K", "-1", "1.5M", "64KB", "1 M", "M1", "é"] {
        assert_rejected(&SIZE, text, "is not a size");
    }
    assert_rejected(&SIZE, "99999999999G", "out of bounds");
    assert_rejected(&SizeValue { min: 1024, max: 1 << 20 }, "1", "from 1K to 1M");
}

#[test]
fn worker_count_accepts_number_range_or_auto() {
    assert_parses(&WorkerCountValue, "4096", Workers::Fixed(4096), "4096");
    assert_parses(&WorkerCountValue, "auto", Workers::Auto, "auto");
    for text in ["0", "4097", "two", "-1", "1.5", "", "Auto", "4-", "-4", "1-2-3", "1 - 2"] {
        let expected = "give a number from 1 to 4096, a range such as 2-8, or auto";
        assert_rejected(&WorkerCountValue, text, expected);
    }
    assert_parses(&WorkerCountValue, "1-4096", Workers::Range { min: 1, max: 4096 }, "1-4096");
    assert_parses(&WorkerCountValue, "3-3", Workers::Range { min: 3, max: 3 }, "3-3");
    for text in ["0-3", "4-2", "1-4097", "0-0"] {
        assert_rejected(&WorkerCountValue, text, "give MIN-MAX with 1 <= MIN <= MAX <= 4096");
    }
}

#[test]
fn octal_accepts_octal_digits_only() {
    assert_parses(&MASK, "022", 0o22, "022");
    assert_parses(&MASK, "0o77", 0o77, "077");
    assert_parses(&MASK, "0", 0, "000");
    for text in ["8", "1000", "-1", "", "0x1"] {
        assert_rejected(&MASK, text, "octal");
    }
}

#[test]
fn signed_integer_is_bounded_on_both_sides() {
    let nice = SignedIntegerValue { noun: "a nice value", min: -20, max: 19 };
    for (text, value) in [("-20", -20), ("0", 0), ("19", 19)] {
        assert_parses(&nice, text, value, text);
    }
    for text in ["-21", "20", "", "-", "--1", "+1", "1.5", " 1", "99999999999"] {
        assert_rejected(&nice, text, "is not a nice value: give a number from -20 to 19");
    }
}

#[test]
fn bool_accepts_yaml_words_and_digits() {
    for text in ["true", "True", "yes", "on", "1"] {
        assert_parses(&BoolValue, text, true, "true");
    }
    for text in ["false", "FALSE", "no", "off", "0"] {
        assert_parses(&BoolValue, text, false, "false");
    }
    for text in ["", "2", "y", "tru", "maybe"] {
        assert_rejected(&BoolValue, text, "give true or false");
    }
}

#[test]
fn core_size_accepts_unlimited() {
    assert_parses(&CoreSizeValue, "0", CoreSize::Bytes(0), "0");
    assert_parses(&CoreSizeValue, "64M", CoreSize::Bytes(64 << 20), "64M");
    assert_parses(&CoreSizeValue, "unlimited", CoreSize::Unlimited, "unlimited");
    assert_rejected(&CoreSizeValue, "infinity", "such as 64K, or unlimited");
}

#[test]
fn cpu_list_accepts_numbers_only() {
    assert_parses(&CpuListValue, "0, 2,2", vec![0, 2, 2], "0,2,2");
    for text in ["", ",", "0,", "-1", "1024", "0-3", "auto"] {
        assert_rejected(&CpuListValue, text, "is not a CPU number");
    }
}

proptest! {
    #[test]
    fn duration_format_round_trips(nanos in 0..=DURATION_MAX.as_nanos() as u64) {
        let duration = Duration::from_nanos(nanos);
        assert_eq!(ANY_DURATION.parse(&ANY_DURATION.format(&duration)), Ok(duration));
    }

    #[test]
    fn size_format_round_trips(size in any::<u64>(), shift in 0..40_u32) {
        for size in [size, size >> shift << shift] {
            assert_eq!(SIZE.parse(&SIZE.format(&size)), Ok(size));
        }
    }

    #[test]
    fn parse_any_text_never_panics(text in any::<String>()) {
        let _ = (ANY_DURATION.parse(&text), SIZE.parse(&text), WorkerCountValue.parse(&text));
        let _ = (MASK.parse(&text), PairValue.parse(&text), AddressValue.parse(&text));
        let _ = (BoolValue.parse(&text), CoreSizeValue.parse(&text), CpuListValue.parse(&text));
    }
}
