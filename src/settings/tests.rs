//! Tests of the settings: every source, every option, every type of error. `pools` tests files with
//! several pools and with variables.

mod leader;
mod pools;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use proptest::collection::{btree_map, vec};
use proptest::prelude::{Just, Strategy, any, prop_oneof, proptest};

use super::*;
use crate::os::lookups::Lookups;

fn parse_yaml(text: &str) -> Result<Settings, SettingsError> {
    Settings::from_yaml(text, Path::new("x.yaml"))
}

fn parse_file(text: &str) -> ConfigFile {
    ConfigFile::parse(text, Path::new("x.yaml"), &[]).expect(text)
}

/// Merges the layers over the defaults, in ascending precedence.
fn resolve_layers(layers: &[ConfigLayer]) -> Result<Settings, SettingsError> {
    let resolved =
        Configuration::resolve(&Settings::default(), &ConfigFile::default(), layers, &[]);
    resolved.map(|configuration| configuration.master)
}

fn variables(list: &[(&str, &str)]) -> Vec<(OsString, OsString)> {
    list.iter().map(|(name, value)| (name.into(), value.into())).collect()
}

/// Returns a layer with one flag.
fn flag_layer(name: &str, texts: &[&str]) -> Result<ConfigLayer, SettingsError> {
    let option = OPTIONS.iter().find(|option| option.name == name).expect("a known key");
    let mut layer = ConfigLayer::default();
    let texts: Vec<_> = texts.iter().map(|text| (*text).to_owned()).collect();
    layer.set_option(option, &texts, Source::Flag { flag: format!("--{}", option.flag()) })?;
    Ok(layer)
}

#[track_caller]
fn assert_rejected(text: &str, expected: &str) {
    let error = parse_yaml(text).expect_err(text);
    assert_eq!(error.to_string(), expected, "{text}");
    assert_eq!(error.exit_code(), 1);
}

/// For each key, a text other than its default, and the text that `format` returns.
const SAMPLES: &[(&str, &str, &str)] = &[
    ("worker_class", "mio", "mio"),
    ("workers", "auto", "auto"),
    ("scale_up_busy", "60", "60"),
    ("scale_down_after", "2m", "120s"),
    ("threads", "8", "8"),
    ("worker_connections", "9", "9"),
    ("max_requests", "1000", "1000"),
    ("max_requests_jitter", "0", "0"),
    ("max_lifetime", "1h", "3600s"),
    ("max_lifetime_jitter", "0", "0s"),
    ("max_memory", "1G", "1G"),
    ("max_surge", "2", "2"),
    ("max_unavailable", "1", "1"),
    ("boot_retries", "0", "0"),
    ("restart_limit", "5", "5"),
    ("restart_interval", "2m", "120s"),
    ("command", "true", "true"),
    ("stop_signal", "SIGQUIT", "QUIT"),
    ("ready_after", "250ms", "250ms"),
    ("inherit_output", "yes", "true"),
    ("bind", "unix:@here", "unix:@here"),
    ("backlog", "1", "1"),
    ("reuse_port", "1", "true"),
    ("socket_mode", "0600", "600"),
    ("socket_user", "nobody", "nobody"),
    ("socket_group", "0", "0"),
    ("timeout", "1.5", "1500ms"),
    ("boot_timeout", "2m", "120s"),
    ("graceful_timeout", "0", "0s"),
    ("pre_stop", "5", "5s"),
    ("abort_timeout", "250ms", "250ms"),
    ("keepalive", "0", "0s"),
    ("rpc_idle_timeout", "0", "0s"),
    ("header_timeout", "1", "1s"),
    ("body_timeout", "1", "1s"),
    ("request_timeout", "1", "1s"),
    ("write_timeout", "1", "1s"),
    ("lingering_timeout", "1", "1s"),
    ("limit_request_head", "8192", "8K"),
    ("limit_request_fields", "10", "10"),
    ("limit_request_body", "1G", "1G"),
    ("limit_bodies", "1G", "1G"),
    ("lingering_bytes", "1024", "1K"),
    ("pidfile", "a.pid", "a.pid"),
    ("daemon", "yes", "true"),
    ("single_instance", "1", "true"),
    ("reload", "yes", "true"),
    ("reload_extra_files", "a.txt", "a.txt"),
    ("fd_store", "yes", "true"),
    ("user", "nobody", "nobody"),
    ("group", "0", "0"),
    ("umask", "27", "027"),
    ("no_new_privs", "true", "true"),
    ("rlimit_nofile", "4096", "4096"),
    ("rlimit_core", "unlimited", "unlimited"),
    ("nice", "-5", "-5"),
    ("cpu_affinity", "auto", "auto"),
    ("oom_score_adj", "500", "500"),
    ("chdir", "/", "/"),
    ("env", "A=1", "A=1"),
    ("proc_name", "web", "web"),
    ("worker_tmp_dir", "/", "/"),
    ("control_socket", "a.sock", "a.sock"),
    ("control_users", "root", "root"),
    ("metrics_bind", ":9100", "0.0.0.0:9100"),
    ("metrics_hosts", "box", "box"),
    ("statsd_host", "localhost:8125", "localhost:8125"),
    ("leader_etcd", "http://a:2379", "http://a:2379"),
    ("leader_key", "web", "web"),
    ("leader_kubernetes_lease", "web", "web"),
    ("leader_kubernetes_namespace", "shop", "shop"),
    ("leader_kubernetes_api", "https://a:6443", "https://a:6443"),
    ("leader_kubernetes_token_file", "/a/token", "/a/token"),
    ("leader_ttl", "5s", "5s"),
    ("leader_ca_file", "/a/ca.pem", "/a/ca.pem"),
    ("leader_client_cert", "/a/own.pem", "/a/own.pem"),
    ("leader_client_key", "/a/own.key", "/a/own.key"),
    ("leader_user", "web", "web"),
    ("leader_password_file", "/a/password", "/a/password"),
    ("led", "false", "false"),
    ("log_file", "a.log", "a.log"),
    ("log_level", "warn", "warning"),
    ("log_format", "json", "json"),
    ("flight_recorder_file", "a.events", "a.events"),
    ("access_log", "a.access", "a.access"),
    ("access_log_format", "json", "json"),
    ("access_log_sample", "0.010", "0.01"),
    ("access_log_buffer", "true", "true"),
    ("request_id_header", "X-Request-Id", "X-Request-Id"),
];

#[test]
fn every_option_can_be_set_by_every_source() {
    let names: Vec<&str> = SAMPLES.iter().map(|(name, ..)| *name).collect();
    assert_eq!(names, OPTIONS.iter().map(|option| option.name).collect::<Vec<_>>());
    for (option, (name, text, shown)) in OPTIONS.iter().zip(SAMPLES) {
        // What an option demands besides.
        let demanded = if *name == "leader_etcd" { "leader_key: web" } else { "" };
        let demanded_layer = || parse_file(demanded).top_level;
        let from_file = parse_yaml(&format!("{demanded}\n{name}: {text}\n")).expect(name);
        let variable = option.variable();
        let (layer, warnings) =
            ConfigLayer::from_env(&variables(&[(&variable, text)])).expect(name);
        assert_eq!(warnings, Vec::<String>::new());
        let from_env = resolve_layers(&[demanded_layer(), layer]).expect(name);
        let layer = flag_layer(name, &[text]).expect(name);
        let from_flag = resolve_layers(&[demanded_layer(), layer]).expect(name);
        for settings in [&from_file, &from_env, &from_flag] {
            assert_eq!(option.format(settings), [*shown], "{name}");
            assert_eq!(*settings, from_file);
        }
        assert_eq!(from_file.source(name).to_string(), "x.yaml:2");
        assert_eq!(from_env.source(name).to_string(), variable);
        assert_eq!(from_flag.source(name).to_string(), format!("--{}", option.flag()));
        assert_eq!(*Settings::default().source(name), Source::Default);
    }
}

#[test]
fn option_names_are_distinct_and_documented() {
    let (mut flags, mut shorts) = (BTreeMap::new(), BTreeMap::new());
    for option in OPTIONS {
        let all = option.aliases.iter().map(|alias| (*alias).to_owned()).chain([option.flag()]);
        for flag in all {
            assert_eq!(flags.insert(flag.clone(), option.name), None, "--{flag}");
        }
        if let Some(short) = option.short {
            assert_eq!(shorts.insert(short, option.name), None, "-{short}");
        }
        assert!(option.doc().ends_with('.'), "{}", option.name);
    }
}

#[test]
fn flag_overrides_variable_overrides_file() {
    let file = parse_file("workers: 2\nthreads: 2\nbacklog: 2\n").top_level;
    let list = variables(&[("OSTLER_WORKERS", "3"), ("OSTLER_THREADS", "3")]);
    let (env, _) = ConfigLayer::from_env(&list).unwrap();
    let flags = flag_layer("workers", &["4"]).unwrap();
    let settings = resolve_layers(&[file, env, flags]).unwrap();
    assert_eq!(settings.workers, Workers::Fixed(4));
    assert_eq!((settings.threads, settings.backlog), (3, 2));
    let sources =
        ["workers", "threads", "backlog", "bind"].map(|key| settings.source(key).to_string());
    assert_eq!(sources, ["--workers", "OSTLER_THREADS", "x.yaml:3", "default"]);
}

#[test]
fn list_from_flag_replaces_list_from_file() {
    let file = parse_file("bind: [':1', ':2']\nenv: {A: 1}").top_level;
    let flags = flag_layer("bind", &[":3"]).unwrap();
    let settings = resolve_layers(&[file, flags]).unwrap();
    assert_eq!(settings.bind, [Address::Tcp { host: "0.0.0.0".into(), port: 3 }]);
    assert_eq!(settings.env, [("A".to_owned(), "1".to_owned())]);
}

#[test]
fn cpu_affinity_accepts_list_word_or_none() {
    let list = Some(CpuAffinity::List(vec![0, 2, 0]));
    for text in ["[0, 2, 0]", "0,2,0", "\n  - 0\n  - 2, 0"] {
        assert_eq!(
            parse_yaml(&format!("cpu_affinity: {text}")).unwrap().cpu_affinity,
            list,
            "{text}"
        );
    }
    let (env, _) = ConfigLayer::from_env(&variables(&[("OSTLER_CPU_AFFINITY", "0,2,0")])).unwrap();
    let settings = resolve_layers(&[env]).unwrap();
    assert_eq!(
        (settings.cpu_affinity.clone(), parse_yaml(&settings.to_yaml())),
        (list, Ok(settings))
    );
    for text in ["none", "[]", "''", "[none]"] {
        assert_eq!(
            parse_yaml(&format!("cpu_affinity: {text}")).unwrap().cpu_affinity,
            None,
            "{text}"
        );
    }
    let reason = "is not a CPU number: give none, auto, or numbers from 0 to 1023";
    assert_rejected(
        "cpu_affinity:\n- 0\n- auto",
        &format!("x.yaml:3: cpu_affinity: \"auto\" {reason}"),
    );
}

#[test]
fn flag_option_takes_one_value() {
    assert_rejected("daemon: 2", "x.yaml:1: daemon: \"2\" is not a boolean: give true or false");
    assert_rejected("daemon: [true]", "x.yaml:1: daemon: a list is given, not one value");
    assert_rejected(
        "daemon:",
        "x.yaml:1: daemon: no value is given: give one, or leave out the key",
    );
}

#[test]
fn app_and_its_options_come_from_one_source() {
    let settings = parse_yaml("app: {name: demo, version: 1.10, on: true, n: 0x10}").unwrap();
    let options = [("n", "0x10"), ("on", "true"), ("version", "1.10")];
    let options = options.map(|(name, value)| (name.to_owned(), value.to_owned()));
    assert_eq!((settings.app.as_str(), settings.app_options), ("demo", options.into()));
    let file = parse_file("app: {name: demo, a: 1}").top_level;
    let (env, _) = ConfigLayer::from_env(&variables(&[("OSTLER_APP", "echo")])).unwrap();
    let settings = resolve_layers(&[file, env]).unwrap();
    assert_eq!((settings.app.as_str(), settings.app_options.len()), ("echo", 0));
    assert_eq!(settings.source("app").to_string(), "OSTLER_APP");
}

#[test]
fn empty_file_yields_defaults() {
    for text in ["", "\n", "# nothing\n", "---\n", "~", "{}", "\u{feff}# mark\n"] {
        assert_eq!(parse_yaml(text).as_ref(), Ok(&Settings::default()), "{text:?}");
    }
}

#[test]
fn null_is_accepted_for_optional_keys_only() {
    let settings = parse_yaml("pidfile: null\nuser: ~\ngroup:\nchdir: ''\n").unwrap();
    assert_eq!(settings, Settings::default());
    assert_eq!(settings.source("group").to_string(), "x.yaml:3");
    assert_rejected(
        "\nworkers:\n",
        "x.yaml:2: workers: no value is given: give one, or leave out the key",
    );
    assert_rejected(
        "bind: null",
        "x.yaml:1: bind: no value is given: give one, or leave out the key",
    );
}

#[test]
fn bind_accepts_an_empty_list() {
    let settings = parse_yaml("app: {name: tick,\n  every: 1s}\nbind: []\n").unwrap();
    assert_eq!((settings.bind.len(), settings.source("bind").to_string()), (0, "x.yaml:3".into()));
    assert_eq!(parse_yaml(&settings.to_yaml()), Ok(settings));
}

#[test]
fn app_option_source_has_its_line() {
    let mut settings = parse_yaml("app:\n  name: tick\n\n  every: 1s\n  cron: x\n").unwrap();
    let sources =
        ["every", "cron", "none"].map(|option| settings.option_source(option).to_string());
    assert_eq!(sources, ["x.yaml:4", "x.yaml:5", "x.yaml:1"]);
    let flag = Source::Flag { flag: "APP".into() };
    let mut app = ConfigLayer::default();
    app.set_app("tick".into(), [("cron".into(), "y".into())].into(), flag).unwrap();
    app.apply(&mut settings);
    assert_eq!(
        settings.option_source("cron").to_string(),
        "APP",
        "the source of the earlier layer is gone"
    );
}

#[test]
fn invalid_value_is_reported_with_line() {
    let workers =
        "is not a number of workers: give a number from 1 to 4096, a range such as 2-8, or auto";
    assert_rejected("\n\nworkers: two\n", &format!("x.yaml:3: workers: \"two\" {workers}"));
    assert_rejected("# c\r\nworkers: 0\r\n", &format!("x.yaml:2: workers: \"0\" {workers}"));
    assert_rejected(
        "{threads: 1,\n\n  workers: -1}",
        &format!("x.yaml:3: workers: \"-1\" {workers}"),
    );
    assert_rejected("bind:\n  - ':1'\n  - ':1'", "x.yaml:3: bind: \":1\" repeats \":1\"");
    assert_rejected(
        "bind: [\n ':1',\n []]",
        "x.yaml:3: bind: the list contains a list, not a value",
    );
    assert_eq!(parse_yaml("bind: []").expect("none").bind, []);
    assert_eq!(parse_yaml("bind: none").expect("none").bind, []);
    assert_rejected(
        "bind: [':1', none]",
        "x.yaml:1: bind: \"none\" lacks a port: give none:PORT, such as none:8000",
    );
    assert_rejected(
        "env:\n  A: 1\n  B: [1]\n",
        "x.yaml:3: env: \"B\" has a list: give it one value",
    );
    assert_rejected("env: [A=1,\n A=2]", "x.yaml:2: env: \"A=2\" repeats \"A=1\"");
    assert_rejected("env:\n A: 1\n A: 2\n", "x.yaml:3: env: \"A=2\" repeats \"A=1\"");
    assert_rejected("workers: [1]", "x.yaml:1: workers: a list is given, not one value");
    assert_rejected("pidfile: {a: 1}", "x.yaml:1: pidfile: a map is given, not one value");
    assert_rejected("bind: {a: 1}", "x.yaml:1: bind: a map is given, not a list");
    assert_rejected("app: []", "x.yaml:1: app: give a name, or a map with a name and options");
    assert_rejected("app:\n  a: 1", "x.yaml:1: app: the map needs a name: give name: APP in it");
    assert_rejected(
        "app:\n  name: a\n  b:\n",
        "x.yaml:3: app: \"b\" has nothing: give it one value",
    );
    assert_rejected("timeout: !x 3", "x.yaml:1: the tag !x is not supported: leave it out");
    assert_rejected("timeout: !!x 3", "x.yaml:1: the tag !!x is not supported: leave it out");
    assert_eq!(parse_yaml("user: !!str null").unwrap().user.as_deref(), Some("null"));
    let long = parse_yaml(&format!("workers: {}", "9".repeat(5000))).unwrap_err().to_string();
    assert!(long.len() < 300, "{long}");
}

#[test]
fn unknown_key_is_reported_with_suggestion() {
    assert_rejected(
        "\nwokers: 2\n",
        "x.yaml:2: unknown key \"wokers\" (did you mean \"workers\"?)",
    );
    assert_rejected(
        "worker-class: a",
        "x.yaml:1: unknown key \"worker-class\" (did you mean \"worker_class\"?)",
    );
    assert_rejected("pid: a", "x.yaml:1: unknown key \"pid\" (did you mean \"pidfile\"?)");
    assert_rejected(
        "keep_alive: 3",
        "x.yaml:1: unknown key \"keep_alive\" (did you mean \"keepalive\"?)",
    );
    assert_rejected("ap: 3", "x.yaml:1: unknown key \"ap\" (did you mean \"app\"?)");
    assert_rejected("colour: 3", "x.yaml:1: unknown key \"colour\"");
    assert_rejected("raw_env: [A=1]", "x.yaml:1: unknown key \"raw_env\" (did you mean \"env\"?)");
    assert_rejected(
        "errorlog: '-'",
        "x.yaml:1: unknown key \"errorlog\" (did you mean \"log_file\"?)",
    );
}

#[test]
fn file_without_one_map_is_rejected() {
    assert_rejected("\n- a\n", "x.yaml:2: is not a map: give lines of KEY: VALUE");
    assert_rejected("workers", "x.yaml:1: is not a map: give lines of KEY: VALUE");
    assert_rejected("workers: 2\nthreads: 2\nworkers: 3\n", "x.yaml:3: duplicate key \"workers\"");
    assert_rejected(
        "workers: 2\n---\nworkers: 3\n",
        "x.yaml:2: a second document starts here: give only one",
    );
    assert_rejected("? [a]\n: b\n", "x.yaml:1: a key must be a string");
    assert_rejected("a: b: c", "x.yaml:1: mapping values are not allowed in this context");
    assert_rejected("a: &a [*a]", "x.yaml:1: an alias is inside of what it names");
    assert_rejected("workers: *a", "x.yaml:1: while parsing node, found unknown anchor");
}

#[test]
fn file_with_alias_expansion_bomb_is_rejected() {
    let mut laughs = String::from("a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n");
    for level in 1..12 {
        let aliases = vec![format!("*a{}", level - 1); 10].join(",");
        laughs.push_str(&format!("a{level}: &a{level} [{aliases}]\n"));
    }
    assert!(parse_yaml(&laughs).is_err());
    let wide = format!("a: &a [{}]\nb: [{}]", "x,".repeat(5000), "*a,".repeat(5000));
    assert!(parse_yaml(&wide).unwrap_err().to_string().contains("too large once expanded"));
    let long = format!("a: &a {}\nb: [{}]", "x".repeat(100_000), "*a,".repeat(5000));
    assert!(parse_yaml(&long).unwrap_err().to_string().contains("too large once expanded"));
    assert_rejected(&format!("\n{}", "[".repeat(500_000)), "x.yaml:2: recursion limit exceeded");
    assert!(parse_yaml(&"- ".repeat(100_000)).is_err());
}

#[test]
fn file_of_many_keys_is_read_in_one_pass() {
    let options = |n: usize| (0..n).map(|at| format!("  option{at}: value\n")).collect::<String>();
    let start = Instant::now();
    let text = format!("app:\n  name: demo\n{}", options(25_000));
    let settings = parse_yaml(&text).unwrap();
    assert_eq!(settings.option_source("option24999").to_string(), "x.yaml:25002");
    let unknown = parse_yaml(&options(25_000).replace(' ', "").replace(':', ": ")).unwrap_err();
    assert!(unknown.to_string().starts_with("x.yaml:1: unknown key"), "{unknown}");
    // One pass a key would take many minutes.
    assert!(start.elapsed() < Duration::from_secs(60), "{:?}", start.elapsed());
}

#[test]
fn file_must_be_regular_and_small() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.yaml");
    let error = |path: &Path| {
        ConfigFile::read(&[path.to_owned()], &[], &Lookups::Live).unwrap_err().to_string()
    };
    assert!(error(&path).contains("x.yaml: No such file"));
    assert!(error(dir.path()).contains("it is a directory"));
    assert!(error(Path::new("/dev/zero")).contains("it is not a regular file"));
    fs::write(&path, b"workers: 2\nuser: \xff\n").unwrap();
    assert!(error(&path).ends_with("x.yaml:2: is not UTF-8"));
    fs::write(&path, "#".repeat(1 << 20)).unwrap();
    assert!(ConfigFile::read(std::slice::from_ref(&path), &[], &Lookups::Live).is_ok());
    fs::write(&path, "#".repeat((1 << 20) + 1)).unwrap();
    assert!(error(&path).contains("larger than 1 MiB"));
}

#[test]
fn environment_variables_are_checked() {
    let error = |name, value| ConfigLayer::from_env(&variables(&[(name, value)])).unwrap_err();
    let timeout = error("OSTLER_TIMEOUT", "abc").to_string();
    assert!(timeout.starts_with("OSTLER_TIMEOUT: \"abc\" is not a duration: "), "{timeout}");
    assert_eq!(error("OSTLER_TIMEOUT", "abc").exit_code(), 1);
    let repeated = error("OSTLER_BIND", ":1,:1").to_string();
    assert_eq!(repeated, "OSTLER_BIND: \":1\" repeats \":1\"");
    let list = variables(&[
        ("OSTLER_WOKERS", "3"),
        ("OSTLER_SLOT", "3"),
        ("OSTLER_CONFIG", "x"),
        ("OSTLER_BIND", ":1, :2"),
        ("HOME", "/"),
    ]);
    let (layer, warnings) = ConfigLayer::from_env(&list).unwrap();
    let warning = "OSTLER_WOKERS is not a setting and is ignored (did you mean OSTLER_WORKERS?)";
    assert_eq!(warnings, [warning]);
    assert_eq!(resolve_layers(&[layer]).unwrap().bind.len(), 2);
}

#[test]
fn conflicting_options_are_rejected() {
    assert_rejected(
        "max_requests_jitter: 5",
        "x.yaml:1: max_requests_jitter: a jitter requires max_requests, which is 0 (default): \
         give both, or neither",
    );
    assert_rejected(
        "max_lifetime_jitter: 5",
        "x.yaml:1: max_lifetime_jitter: a jitter requires max_lifetime, which is 0 (default): \
         give both, or neither",
    );
    assert_rejected(
        "pidfile: a\nlog_file: a",
        "x.yaml:1: pidfile: \"a\" is also the log file (x.yaml:2): use two files",
    );
    assert_rejected(
        "max_surge: 0",
        "x.yaml:1: max_surge: no worker could be replaced, since max_unavailable is also 0 \
         (default): raise one of them",
    );
    assert_eq!(parse_yaml("max_surge: 0\nmax_unavailable: 1").unwrap().max_surge, 0);
    assert_rejected("chdir: /nowhere", "x.yaml:1: chdir: \"/nowhere\" does not exist");
    assert_rejected(
        "worker_tmp_dir: /dev/null",
        "x.yaml:1: worker_tmp_dir: \"/dev/null\" is not a directory",
    );
    assert_rejected("pidfile: /", "x.yaml:1: pidfile: \"/\" is a directory: give a file");
    assert_rejected(
        "pidfile: /nowhere/a",
        "x.yaml:1: pidfile: \"/nowhere/a\" has no parent directory: \"/nowhere\" does not exist",
    );
    let conflict = flag_layer("max_requests_jitter", &["5"]).unwrap();
    assert_eq!(resolve_layers(&[conflict]).unwrap_err().exit_code(), 2);
    let chdir = flag_layer("chdir", &["/nowhere"]).unwrap();
    assert_eq!(resolve_layers(&[chdir]).unwrap_err().exit_code(), 1);
}

#[test]
fn make_paths_absolute_changes_every_path() {
    let text = "pidfile: a/p\nchdir: c\nworker_tmp_dir: w\nlog_file: l\nflight_recorder_file: f\n\
                control_socket: s\nmetrics_bind: unix:m\n\
                bind: [unix:b, 'unix:@b', ':80', unix:/b]";
    let mut settings = Settings::default();
    parse_file(text).top_level.apply(&mut settings);
    settings.make_paths_absolute(Path::new("/base"));
    let format = |name: &str| {
        let option = OPTIONS.iter().find(|option| option.name == name).expect("a known key");
        option.format(&settings).join(" ")
    };
    assert_eq!(format("pidfile"), "/base/a/p");
    assert_eq!(format("chdir"), "/base/c");
    assert_eq!(format("worker_tmp_dir"), "/base/w");
    assert_eq!(format("log_file"), "/base/l");
    assert_eq!(format("flight_recorder_file"), "/base/f");
    assert_eq!(format("control_socket"), "/base/s");
    assert_eq!(format("metrics_bind"), "unix:/base/m");
    assert_eq!(format("bind"), "unix:/base/b unix:@b 0.0.0.0:80 unix:/b");
}

#[test]
fn find_unreloadable_names_the_changed_option() {
    let find = |old: &str, new: &str| {
        parse_yaml(old).unwrap().find_unreloadable(&parse_yaml(new).unwrap())
    };
    assert_eq!(find("workers: 1", "workers: 2\nlog_level: debug"), None);
    assert_eq!(find("pidfile: a", "pidfile: a"), None);
    assert_eq!(find("pidfile: a", "pidfile: b"), Some("pidfile"));
    assert_eq!(find("daemon: true", ""), Some("daemon"));
    assert_eq!(find("", "single_instance: true"), Some("single_instance"));
    assert_eq!(find("proc_name: a", "proc_name: b"), None);
    let single = "single_instance: true\nproc_name: ";
    assert_eq!(find(&format!("{single}a"), &format!("{single}b")), Some("proc_name"));
}

#[test]
fn default_settings_yield_default_limits() {
    assert_eq!(Settings::default().limits(), crate::app::Limits::default());
}

fn config(name: &str) -> String {
    let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("config");
    fs::read_to_string(dir.join(name)).expect(name)
}

#[test]
fn default_yaml_documents_every_option() {
    let text = config("default.yaml");
    let settings = parse_yaml(&text).unwrap();
    assert_eq!(settings, Settings::default());
    for key in OPTIONS.iter().map(|option| option.name).chain(["app"]) {
        assert!(text.lines().any(|line| line.starts_with(&format!("{key}:"))), "{key}");
        assert_ne!(*settings.source(key), Source::Default, "{key}");
    }
    for option in OPTIONS {
        let comment = option.doc();
        let unwrapped = text.replace("\n#", "").replace('\n', " ");
        assert!(
            unwrapped.contains(&comment),
            "default.yaml lacks the documentation of {}: {comment}",
            option.name
        );
    }
}

/// Returns the tables of the page on settings in the guide.
fn settings_tables() -> String {
    let (defaults, mut text, mut group) = (Settings::default(), String::new(), "");
    for option in OPTIONS {
        if option.group != group {
            group = option.group;
            text += &format!("\n### {group}\n\n| key | flag | variable | default | meaning |\n");
            text += "|---|---|---|---|---|\n";
        }
        let short = option.short.map_or(String::new(), |short| format!("`-{short}`, "));
        let aliases: String = option.aliases.iter().map(|alias| format!(", `--{alias}`")).collect();
        let value = match option.arity {
            Arity::Flag => format!("[={}]", option.value_name),
            Arity::Single | Arity::Optional | Arity::List | Arity::PairList => {
                format!(" {}", option.value_name)
            }
        };
        let shown = option.format(&defaults).join(", ");
        let cells = [
            format!("`{}`", option.name),
            format!("{short}`--{}{value}`{aliases}", option.flag()),
            format!("`{}`", option.variable()),
            if shown.is_empty() { "none".to_owned() } else { format!("`{shown}`") },
            option.doc(),
        ];
        text += &format!("| {} |\n", cells.map(|cell| cell.replace('|', "\\|")).join(" | "));
    }
    text
}

/// `OSTLER_WRITE_DOCS=1 cargo test --lib settings` writes the page.
#[test]
fn guide_page_lists_every_setting() {
    const BEGIN: &str = "<!-- From the table in src/settings/schema.rs. -->\n";
    const END: &str = "\n<!-- End of the table. -->\n";
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("docs/src/settings.md");
    let page = fs::read_to_string(&path).expect("the page");
    let (before, rest) = page.split_once(BEGIN).expect("the start of the table");
    let (_, after) = rest.split_once(END).expect("the end of the table");
    let expected = format!("{before}{BEGIN}{}{END}{after}", settings_tables());
    if std::env::var_os("OSTLER_WRITE_DOCS").is_some() {
        fs::write(&path, &expected).expect("written");
    }
    let page = fs::read_to_string(&path).expect("the page");
    assert!(
        page == expected,
        "docs/src/settings.md is outdated: OSTLER_WRITE_DOCS=1 cargo test --lib settings"
    );
}

#[test]
fn example_files_load() {
    for name in ["minimal.yaml", "production.yaml", "jobs.yaml"] {
        assert_ne!(parse_yaml(&config(name)), Ok(Settings::default()), "{name}");
    }
}

fn any_text() -> impl Strategy<Value = String> {
    prop_oneof![
        "[^\\x00-\\x1f\\x7f-\\x9f]{1,12}",
        "[-a-z0-9:#=,.~'\"\\[\\]{}&*!|>%@` \\\\]{1,12}",
        Just("null".to_owned()),
        Just("~".to_owned()),
        Just("--- # x".to_owned()),
    ]
}

fn any_settings() -> impl Strategy<Value = Settings> {
    let numbers = (1..=4096_usize, 1..=1024_usize, any::<u32>(), 0..=0o777_u32, -20..=19_i32);
    let pairs = btree_map("[A-Z]{1,3}", prop_oneof![any_text(), "[\\x01-\\x7f\\n]{0,9}"], 0..4);
    let options = btree_map("[a-m:# -]{1,9}", prop_oneof![any_text(), Just(String::new())], 0..4);
    let texts = (any_text(), any_text(), any_text(), vec(1..u16::MAX, 1..4));
    (numbers, pairs, options, texts).prop_map(|(numbers, pairs, options, texts)| {
        let (workers, threads, nanos, umask, nice) = numbers;
        let (user, proc_name, log_file, mut ports) = texts;
        ports.sort_unstable();
        ports.dedup();
        let host = || "::1".to_owned();
        Settings {
            app_options: options,
            workers: match nanos % 2 {
                0 => Workers::Fixed(workers),
                _ => Workers::Range { min: workers, max: 4096 },
            },
            threads,
            timeout: Duration::from_nanos(nanos.into()),
            limit_request_body: nanos.into(),
            umask: Some(umask),
            socket_mode: umask,
            daemon: nice > 0,
            nice: Some(nice),
            rlimit_core: Some(CoreSize::Bytes(nanos.into())),
            cpu_affinity: Some(CpuAffinity::List(vec![threads as u16 - 1; threads % 3 + 1])),
            user: Some(user),
            proc_name,
            log_file: if log_file == "-" {
                LogTarget::Stderr
            } else {
                LogTarget::File(log_file.into())
            },
            env: pairs.into_iter().collect(),
            bind: ports.into_iter().map(|port| Address::Tcp { host: host(), port }).collect(),
            ..Settings::default()
        }
    })
}

proptest! {
    #[test]
    fn settings_to_yaml_round_trips(settings in any_settings()) {
        let described = settings.to_yaml();
        assert_eq!(parse_yaml(&described).as_ref(), Ok(&settings), "{described}");
    }

    #[test]
    fn parse_any_text_never_panics(
        text in "([a-z_]{0,9}[:\\[\\]{},&*!\\n\\t #'\"|>?-]{0,3}){0,20}"
    ) {
        if let Ok(settings) = parse_yaml(&text) {
            assert_eq!(parse_yaml(&settings.to_yaml()), Ok(settings));
        }
    }
}
