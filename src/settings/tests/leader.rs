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
        (
            format!("{key}leader_kubernetes_lease: web"),
            "x.yaml:3: leader_kubernetes_lease: leader_etcd (x.yaml:1) is another store: set one of them",
        ),
    ] {
        assert_eq!(parse_yaml(&text).unwrap_err().to_string(), expected, "{text}");
    }
}

#[test]
fn map_of_leader_has_its_options() {
    let flat = "leader_etcd: ['http://a:2379']\nleader_key: web\nleader_ttl: 5s\n";
    let map = "leader: {etcd: ['http://a:2379'], key: web, ttl: 5s}\n";
    let leader = |text| {
        let settings = parse_yaml(text).unwrap();
        (settings.leader_etcd, settings.leader_key, settings.leader_ttl)
    };
    assert_eq!(leader(map), leader(flat));
    assert_eq!(parse_yaml("leader: {kubernetes_lease: web}").err(), None);
    for (text, expected) in [
        (
            "leader: web",
            "x.yaml:1: leader: one value is given, not a map with etcd or kubernetes_lease",
        ),
        (
            "leader:\n  tll: 5s",
            "x.yaml:2: unknown key \"leader_tll\" (did you mean \"leader_ttl\"?)",
        ),
        ("leader: {ttl: 5s}\nleader_ttl: 5s", "x.yaml:2: duplicate key \"leader_ttl\""),
        ("pools:\n  a:\n    leader: {ttl: 5s}", "x.yaml:3: leader: is a setting of the master"),
    ] {
        let error = parse_yaml(text).unwrap_err().to_string();
        assert!(error.starts_with(expected), "{text}: {error}");
    }
}

#[test]
fn impossible_lease_of_kubernetes_is_rejected() {
    let lease = "leader_kubernetes_lease: web\n";
    let proxy = format!("{lease}leader_kubernetes_api: 'http://127.0.0.1:8001'\n");
    assert_eq!(parse_yaml(lease).err(), None);
    assert_eq!(parse_yaml(&proxy).err(), None);
    for (text, expected) in [
        (
            "leader_kubernetes_lease: Web/1".to_owned(),
            "x.yaml:1: leader_kubernetes_lease: \"Web/1\" is no name of Kubernetes: use lower-case letters, \
             digits, - and . between them",
        ),
        (
            format!("{lease}leader_kubernetes_namespace: a-"),
            "x.yaml:2: leader_kubernetes_namespace: \"a-\" is no name of Kubernetes: use lower-case letters, \
             digits, - and . between them",
        ),
        (
            format!("{lease}leader_key: web"),
            "x.yaml:2: leader_key: is for etcd, not for Kubernetes: leader_kubernetes_lease is the name",
        ),
        (
            format!("{lease}leader_user: a\nleader_password_file: /b"),
            "x.yaml:2: leader_user: is for etcd, not for Kubernetes: set leader_kubernetes_token_file",
        ),
        (
            format!("{lease}leader_ttl: 2h"),
            "x.yaml:2: leader_ttl: is at most 1h with leader_kubernetes_lease",
        ),
        (
            format!("{lease}leader_kubernetes_api: 10.0.0.1"),
            "x.yaml:2: leader_kubernetes_api: \"10.0.0.1\" is no URL such as https://HOST:6443",
        ),
        (
            format!("{lease}leader_kubernetes_api: 'https://a'"),
            "x.yaml:2: leader_kubernetes_api: \"https://a\" is certified by an authority: set leader_ca_file",
        ),
        (
            format!("{proxy}leader_kubernetes_token_file: /a"),
            "x.yaml:2: leader_kubernetes_api: a login over \"http://127.0.0.1:8001\" can be read on the way: \
             use https://",
        ),
        (
            format!("{lease}reload: true"),
            "x.yaml:1: leader_kubernetes_lease: a changed program is not upgraded to (x.yaml:2): set reload \
             to false",
        ),
    ] {
        assert_eq!(parse_yaml(&text).unwrap_err().to_string(), expected, "{text}");
    }
}
