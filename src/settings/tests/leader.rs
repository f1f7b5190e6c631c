//! What is rejected of the settings of primary and standby.

use super::parse_yaml;

#[test]
fn impossible_leader_is_rejected() {
    let key = "leader_etcd: 'http://a:2379'\nleader_key: web\n";
    assert_eq!(parse_yaml(key).err(), None);
    for (text, expected) in [
        (
            "leader_etcd: 'http://a:2379'".to_owned(),
            "x.yaml:1: leader_etcd: http://a:2379 needs a key to hold: set leader_key",
        ),
        (
            "leader_key: web\nleader_etcd: ['http://a:2379', 'a:2379']".to_owned(),
            "x.yaml:2: leader_etcd: \"a:2379\" is no URL such as https://HOST:2379",
        ),
        (
            format!("{key}reload: true"),
            "x.yaml:1: leader_etcd: a changed program is not upgraded to (x.yaml:3): set reload to false",
        ),
        (
            "leader_key: web\nleader_etcd: 'https://a:2379'".to_owned(),
            "x.yaml:2: leader_etcd: \"https://a:2379\" is certified by an authority: set leader_ca_file",
        ),
        (
            format!("{key}leader_user: a"),
            "x.yaml:3: leader_user: needs leader_password_file, and that needs leader_user: set both",
        ),
        (
            format!("{key}leader_user: a\nleader_password_file: /b"),
            "x.yaml:1: leader_etcd: a login over \"http://a:2379\" can be read on the way: use https://",
        ),
    ] {
        assert_eq!(parse_yaml(&text).unwrap_err().to_string(), expected, "{text}");
    }
}
