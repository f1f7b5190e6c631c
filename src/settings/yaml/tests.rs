//! The tree against another reader and writer of YAML, `serde_yaml`.

use proptest::collection::vec;
use proptest::prelude::{Just, Strategy, any, prop_oneof, proptest};
use serde_yaml::Value as Yaml;

use super::{Node, Value, read};

/// Texts that a writer must quote, and others. None has a character that ends a line in YAML 1.1 but not
/// in 1.2, such as U+2028.
fn text() -> impl Strategy<Value = String> {
    let tricky =
        ["null", "~", "true", "1.10", "- a", "a: b", "a #b", "", " a ", "*a", "&a", "!a", "%"];
    prop_oneof![
        "[ -~\\n\\tà-ɏ一-龥]{0,20}",
        (0..tricky.len()).prop_map(move |index| tricky[index].to_owned())
    ]
}

fn yaml() -> impl Strategy<Value = Yaml> {
    let leaf = prop_oneof![
        Just(Yaml::Null),
        any::<bool>().prop_map(Yaml::from),
        any::<i64>().prop_map(Yaml::from),
        text().prop_map(Yaml::from),
    ];
    leaf.prop_recursive(4, 40, 5, |inner| {
        let map = vec((text(), inner.clone()), 0..5).prop_map(|entries| {
            Yaml::Mapping(entries.into_iter().map(|(k, v)| (k.into(), v)).collect())
        });
        prop_oneof![vec(inner, 0..5).prop_map(Yaml::Sequence), map]
    })
}

/// Asserts that a node is what `serde_yaml` has written.
fn assert_same(node: &Node, yaml: &Yaml) {
    match (&node.value, yaml) {
        (Value::Null, Yaml::Null) => (),
        (Value::Scalar(text), Yaml::Bool(value)) => assert_eq!(text, &value.to_string()),
        (Value::Scalar(text), Yaml::Number(value)) => assert_eq!(text, &value.to_string()),
        (Value::Scalar(text), Yaml::String(value)) => assert_eq!(text, value),
        (Value::List(items), Yaml::Sequence(expected)) => {
            assert_eq!(items.len(), expected.len());
            items.iter().zip(expected).for_each(|(item, expected)| assert_same(item, expected));
        }
        (Value::Map(entries), Yaml::Mapping(expected)) => {
            assert_eq!(entries.len(), expected.len());
            for ((key, value), (expected_key, expected_value)) in entries.iter().zip(expected) {
                assert_same(key, expected_key);
                assert_same(value, expected_value);
            }
        }
        other => panic!("{other:?}"),
    }
}

proptest! {
    #[test]
    fn read_returns_what_another_library_has_written(yaml in yaml()) {
        let text = serde_yaml::to_string(&yaml).unwrap();
        match read(&text) {
            Ok(node) => assert_same(&node, &yaml),
            Err(error) => panic!("{error:?} in {text:?}"),
        }
    }
}
