//! Property: our deserializer and rmp-serde read the same values, or both fail.

use std::any::type_name;
use std::collections::BTreeMap;
use std::fmt::Debug;

use proptest::collection::vec;
use proptest::prelude::{ProptestConfig, Strategy, any, prop_oneof, proptest};
use proptest::sample::select;
use serde::de::{self, Visitor};

use super::*;
use crate::rpc::arguments::Params;

#[derive(Debug, PartialEq, Deserialize)]
struct Pair {
    first: i64,
    second: Option<u16>,
}

#[derive(Debug, PartialEq, Deserialize)]
struct Meters(f64);

#[derive(Debug, PartialEq, Deserialize)]
struct Unit;

#[derive(Debug, PartialEq, Deserialize)]
enum Colour {
    Red,
    Green,
    Mixed(u8),
}

/// Accepts any value, and describes it.
#[derive(Debug, PartialEq)]
struct Anything(String);

impl<'de> Deserialize<'de> for Anything {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(DescribingVisitor).map(Self)
    }
}

struct DescribingVisitor;

macro_rules! describe {
    ($($visit:ident: $type:ty),*) => {
        $(fn $visit<E: de::Error>(self, value: $type) -> Result<String, E> {
            Ok(format!("{} {value:?}", stringify!($visit)))
        })*
    };
}

impl<'de> Visitor<'de> for DescribingVisitor {
    type Value = String;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("anything")
    }

    describe!(visit_bool: bool, visit_u8: u8, visit_u16: u16, visit_u32: u32, visit_u64: u64,
        visit_i8: i8, visit_i16: i16, visit_i32: i32, visit_i64: i64, visit_f32: f32,
        visit_f64: f64, visit_borrowed_str: &'de str, visit_borrowed_bytes: &'de [u8]);

    fn visit_unit<E>(self) -> Result<String, E> {
        Ok("unit".into())
    }

    fn visit_newtype_struct<D: Deserializer<'de>>(self, inner: D) -> Result<String, D::Error> {
        <(i8, Anything)>::deserialize(inner).map(|parts| format!("{parts:?}"))
    }
}

/// A value that a flat array may contain.
fn short_value() -> impl Strategy<Value = Vec<u8>> {
    let special = select(vec![&[0xc0][..], &[0xc2], &[0xc3], b"\xa3Red", b"\xa5Green", b"\xa1a"]);
    let extension =
        (any::<i8>(), any::<u8>()).prop_map(|(kind, data)| vec![0xd4, kind.cast_unsigned(), data]);
    prop_oneof![
        special.prop_map(<[u8]>::to_vec),
        extension,
        any::<i64>().prop_map(|number| rmp_serde::to_vec(&number).unwrap()),
        (-40..200_i64).prop_map(|number| rmp_serde::to_vec(&number).unwrap()),
        any::<f32>().prop_map(|number| rmp_serde::to_vec(&number).unwrap()),
        any::<f64>().prop_map(|number| rmp_serde::to_vec(&number).unwrap()),
        any::<char>().prop_map(|letter| rmp_serde::to_vec(&letter).unwrap()),
    ]
}

/// Expects the same value with the flag `flat`, without it, and from rmp-serde.
fn expect_same<'p, P: Deserialize<'p> + Debug>(bytes: &'p [u8]) {
    let ours = |flat| P::deserialize(Params { bytes, flat }).map(|value| format!("{value:?}"));
    let library = rmp_serde::from_slice::<P>(bytes).map(|value| format!("{value:?}"));
    for flat in [false, true] {
        assert_eq!(ours(flat).ok(), library.as_ref().ok().cloned(), "{}", type_name::<P>());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn flat_arguments_equal_those_of_rmp_serde(values in vec(short_value(), 0..5)) {
        let head = 0x90 | u8::try_from(values.len()).unwrap();
        let bytes = [vec![head], values.concat()].concat();
        expect_same::<(i64, i64)>(&bytes);
        expect_same::<(u8,)>(&bytes);
        expect_same::<(i8, u16, i32)>(&bytes);
        expect_same::<(i128, u128)>(&bytes);
        expect_same::<(f64, f32)>(&bytes);
        expect_same::<(bool, char)>(&bytes);
        expect_same::<(&str, String)>(&bytes);
        expect_same::<(Option<i64>, Option<Option<u8>>)>(&bytes);
        expect_same::<((), Unit)>(&bytes);
        expect_same::<(Meters, Colour)>(&bytes);
        expect_same::<(Vec<u8>, BTreeMap<u8, u8>)>(&bytes);
        expect_same::<Vec<i64>>(&bytes);
        expect_same::<Vec<Option<u64>>>(&bytes);
        expect_same::<Vec<Anything>>(&bytes);
        expect_same::<[u32; 3]>(&bytes);
        expect_same::<Pair>(&bytes);
    }
}
