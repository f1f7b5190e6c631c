//! The settings as a whole: every source, every key, every kind of mistake. `pools` has what a file
//! says of several pools, and its variables.

mod pools;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use proptest::collection::{btree_map, vec};
use proptest::prelude::{Just, Strategy, any, prop_oneof, proptest};

use super::*;

fn yaml(text: &str) -> Result<Settings, SettingsError> {
    Settings::from_yaml(text, Path::new("x.yaml"))
}

fn sheet(text: &str) -> ConfigFile {
    ConfigFile::parse(text, Path::new("x.yaml"), &[]).expect(text)
}

/// The defaults with these overlays over them, the strongest last.
fn resolve(overlays: &[ConfigLayer]) -> Result<Settings, SettingsError> {
    let all = Configuration::resolve(&Settings::default(), ConfigFile::default(), overlays, &[]);
    all.map(|all| all.master)
}

fn variables(list: &[(&str, &str)]) -> Vec<(OsString, OsString)> {
    list.iter().map(|(name, value)| (name.into(), value.into())).collect()
}

/// The key as a flag.
fn flag(name: &str, texts: &[&str]) -> Result<ConfigLayer, SettingsError> {
    let key = OPTIONS.iter().find(|key| key.name == name).expect("a known key");
    let mut overlay = ConfigLayer::default();
    let texts = texts.iter().map(|text| (*text).to_owned()).collect();
    overlay.set_option(key, texts, Source::Flag { flag: format!("--{}", key.flag()) })?;
    Ok(overlay)
}

#[track_caller]
fn bad(text: &str, expected: &str) {
    let error = yaml(text).expect_err(text);
    assert_eq!(error.to_string(), expected, "{text}");
    assert_eq!(error.exit_code(), 1);
}

/// A text for each key that is not its default, and the text that shows it.
const SAMPLES: &[(&str, &str, &str)] = &[
    ("worker_class", "mio", "mio"),
    ("workers", "auto", "auto"),
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
    ("command", "true", "true"),
    ("stop_signal", "SIGQUIT", "QUIT"),
    ("ready_after", "250ms", "250ms"),
    ("bind", "unix:@here", "unix:@here"),
    ("backlog", "1", "1"),
    ("reuse_port", "1", "true"),
    ("socket_mode", "0600", "600"),
    ("socket_user", "nobody", "nobody"),
    ("socket_group", "0", "0"),
    ("timeout", "1.5", "1500ms"),
    ("boot_timeout", "2m", "120s"),
    ("graceful_timeout", "0", "0s"),
    ("abort_grace", "250ms", "250ms"),
    ("keepalive", "0", "0s"),
    ("header_timeout", "1", "1s"),
    ("body_timeout", "1", "1s"),
    ("write_timeout", "1", "1s"),
    ("limit_request_head", "8192", "8K"),
    ("limit_request_fields", "10", "10"),
    ("limit_request_body", "1G", "1G"),
    ("pidfile", "a.pid", "a.pid"),
    ("daemon", "yes", "true"),
    ("single_instance", "1", "true"),
    ("fd_store", "yes", "true"),
    ("user", "nobody", "nobody"),
    ("group", "0", "0"),
    ("umask", "27", "027"),
    ("no_new_privs", "true", "true"),
    ("nofile", "4096", "4096"),
    ("core", "unlimited", "unlimited"),
    ("nice", "-5", "-5"),
    ("cpu_affinity", "auto", "auto"),
    ("oom_score_adj", "500", "500"),
    ("chdir", "/", "/"),
    ("env", "A=1", "A=1"),
    ("proc_name", "web", "web"),
    ("worker_tmp_dir", "/", "/"),
    ("log_file", "a.log", "a.log"),
    ("log_level", "warn", "warning"),
    ("log_format", "json", "json"),
    ("events_file", "a.events", "a.events"),
];

#[test]
fn every_key_can_be_set_by_every_source() {
    let names: Vec<&str> = SAMPLES.iter().map(|(name, ..)| *name).collect();
    assert_eq!(names, OPTIONS.iter().map(|key| key.name).collect::<Vec<_>>());
    for (key, (name, text, shown)) in OPTIONS.iter().zip(SAMPLES) {
        let from_file = yaml(&format!("\n{name}: {text}\n")).expect(name);
        let variable = key.variable();
        let (overlay, warnings) = ConfigLayer::from_env(&variables(&[(&variable, text)])).expect(name);
        assert_eq!(warnings, Vec::<String>::new());
        let from_env = resolve(&[overlay]).expect(name);
        let overlay = flag(name, &[text]).expect(name);
        let from_flag = resolve(&[overlay]).expect(name);
        for settings in [&from_file, &from_env, &from_flag] {
            assert_eq!(key.format(settings), [*shown], "{name}");
            assert_eq!(*settings, from_file);
        }
        assert_eq!(from_file.source(name).to_string(), "x.yaml:2");
        assert_eq!(from_env.source(name).to_string(), variable);
        assert_eq!(from_flag.source(name).to_string(), format!("--{}", key.flag()));
        assert_eq!(*Settings::default().source(name), Source::Default);
    }
}

#[test]
fn names_and_flags_are_distinct_and_every_key_is_documented() {
    let (mut flags, mut shorts) = (BTreeMap::new(), BTreeMap::new());
    for key in OPTIONS {
        let all = key.aliases.iter().map(|alias| (*alias).to_owned()).chain([key.flag()]);
        for flag in all {
            assert_eq!(flags.insert(flag.clone(), key.name), None, "--{flag}");
        }
        if let Some(short) = key.short {
            assert_eq!(shorts.insert(short, key.name), None, "-{short}");
        }
        assert!(key.doc().ends_with('.'), "{}", key.name);
    }
}

#[test]
fn a_flag_wins_over_a_variable_and_that_over_the_file() {
    let file = sheet("workers: 2\nthreads: 2\nbacklog: 2\n").top_level;
    let list = variables(&[("OSTLER_WORKERS", "3"), ("OSTLER_THREADS", "3")]);
    let (env, _) = ConfigLayer::from_env(&list).unwrap();
    let flags = flag("workers", &["4"]).unwrap();
    let settings = resolve(&[file, env, flags]).unwrap();
    assert_eq!(settings.workers, Workers::Fixed(4));
    assert_eq!((settings.threads, settings.backlog), (3, 2));
    let sources =
        ["workers", "threads", "backlog", "bind"].map(|key| settings.source(key).to_string());
    assert_eq!(sources, ["--workers", "OSTLER_THREADS", "x.yaml:3", "default"]);
}

#[test]
fn lists_are_replaced_not_joined() {
    let file = sheet("bind: [':1', ':2']\nenv: {A: 1}").top_level;
    let flags = flag("bind", &[":3"]).unwrap();
    let settings = resolve(&[file, flags]).unwrap();
    assert_eq!(settings.bind, [Address::Tcp { host: "0.0.0.0".into(), port: 3 }]);
    assert_eq!(settings.env, [("A".to_owned(), "1".to_owned())]);
}

#[test]
fn processors_are_given_as_a_list_a_word_or_not_at_all() {
    let list = Some(CpuAffinity::List(vec![0, 2, 0]));
    for text in ["[0, 2, 0]", "0,2,0", "\n  - 0\n  - 2, 0"] {
        assert_eq!(yaml(&format!("cpu_affinity: {text}")).unwrap().cpu_affinity, list, "{text}");
    }
    let (env, _) = ConfigLayer::from_env(&variables(&[("OSTLER_CPU_AFFINITY", "0,2,0")])).unwrap();
    let settings = resolve(&[env]).unwrap();
    assert_eq!((settings.cpu_affinity.clone(), yaml(&settings.to_yaml())), (list, Ok(settings)));
    for text in ["none", "[]", "''", "[none]"] {
        assert_eq!(yaml(&format!("cpu_affinity: {text}")).unwrap().cpu_affinity, None, "{text}");
    }
    let why = "is not a processor: give none, auto, or numbers from 0 to 1023";
    bad("cpu_affinity:\n- 0\n- auto", &format!("x.yaml:3: cpu_affinity: \"auto\" {why}"));
}

#[test]
fn a_switch_is_one_word() {
    bad("daemon: 2", "x.yaml:1: daemon: \"2\" is neither yes nor no: give true or false");
    bad("daemon: [true]", "x.yaml:1: daemon: a list is given, not one value");
    bad("daemon:", "x.yaml:1: daemon: no value is given: give one, or leave out the key");
}

#[test]
fn an_app_and_its_options_come_from_one_source() {
    let settings = yaml("app: {name: demo, version: 1.10, on: true, n: 0x10}").unwrap();
    let options = [("n", "0x10"), ("on", "true"), ("version", "1.10")];
    let options = options.map(|(name, value)| (name.to_owned(), value.to_owned()));
    assert_eq!((settings.app.as_str(), settings.app_options), ("demo", options.into()));
    let file = sheet("app: {name: demo, a: 1}").top_level;
    let (env, _) = ConfigLayer::from_env(&variables(&[("OSTLER_APP", "echo")])).unwrap();
    let settings = resolve(&[file, env]).unwrap();
    assert_eq!((settings.app.as_str(), settings.app_options.len()), ("echo", 0));
    assert_eq!(settings.source("app").to_string(), "OSTLER_APP");
}

#[test]
fn an_empty_file_means_the_defaults() {
    for text in ["", "\n", "# nothing\n", "---\n", "~", "{}", "\u{feff}# mark\n"] {
        assert_eq!(yaml(text).as_ref(), Ok(&Settings::default()), "{text:?}");
    }
}

#[test]
fn null_means_none_where_there_is_a_none() {
    let settings = yaml("pidfile: null\nuser: ~\ngroup:\nchdir: ''\n").unwrap();
    assert_eq!(settings, Settings::default());
    assert_eq!(settings.source("group").to_string(), "x.yaml:3");
    bad("\nworkers:\n", "x.yaml:2: workers: no value is given: give one, or leave out the key");
    bad("bind: null", "x.yaml:1: bind: no value is given: give one, or leave out the key");
}

#[test]
fn a_job_can_be_told_in_writing_that_it_listens_nowhere() {
    let settings = yaml("app: {name: tick,\n  every: 1s}\nbind: []\n").unwrap();
    assert_eq!((settings.bind.len(), settings.source("bind").to_string()), (0, "x.yaml:3".into()));
    assert_eq!(yaml(&settings.to_yaml()), Ok(settings));
}

#[test]
fn each_option_of_an_app_has_its_place() {
    let settings = yaml("app:\n  name: tick\n\n  every: 1s\n  cron: x\n").unwrap();
    let places = ["every", "cron", "none"].map(|option| settings.option_source(option).to_string());
    assert_eq!(places, ["x.yaml:4", "x.yaml:5", "x.yaml:1"]);
    let flag = Source::Flag { flag: "APP".into() };
    let mut app = ConfigLayer::default();
    app.set_app("tick".into(), [("cron".into(), "y".into())].into(), flag).unwrap();
    let settings = Settings::apply_layers(settings, [app].iter()).unwrap();
    assert_eq!(settings.option_source("cron").to_string(), "APP", "not where an earlier one stood");
}

#[test]
fn a_bad_value_is_named_with_its_line() {
    let workers = "is not a number of workers: give a number from 1 to 4096, or auto";
    bad("\n\nworkers: two\n", &format!("x.yaml:3: workers: \"two\" {workers}"));
    bad("# c\r\nworkers: 0\r\n", &format!("x.yaml:2: workers: \"0\" {workers}"));
    bad("{threads: 1,\n\n  workers: -1}", &format!("x.yaml:3: workers: \"-1\" {workers}"));
    bad("bind:\n  - ':1'\n  - ':1'", "x.yaml:3: bind: \":1\" repeats \":1\"");
    bad("bind: [\n':1',\n[]]", "x.yaml:3: bind: a list stands in the list, not a value");
    assert_eq!(yaml("bind: []").expect("none").bind, []);
    assert_eq!(yaml("bind: none").expect("none").bind, []);
    bad(
        "bind: [':1', none]",
        "x.yaml:1: bind: \"none\" lacks a port: give none:PORT, such as none:8000",
    );
    bad("env:\n  A: 1\n  B: [1]\n", "x.yaml:3: env: \"B\" has a list: give it one value");
    bad("env: [A=1,\n A=2]", "x.yaml:2: env: \"A=2\" repeats \"A=1\"");
    bad("env:\n A: 1\n A: 2\n", "x.yaml:3: env: \"A=2\" repeats \"A=1\"");
    bad("workers: [1]", "x.yaml:1: workers: a list is given, not one value");
    bad("pidfile: {a: 1}", "x.yaml:1: pidfile: a map is given, not one value");
    bad("bind: {a: 1}", "x.yaml:1: bind: a map is given, not a list");
    bad("app: []", "x.yaml:1: app: give a name, or a map with a name and options");
    bad("app:\n  a: 1", "x.yaml:1: app: the map needs a name: give name: APP in it");
    bad("app:\n  name: a\n  b:\n", "x.yaml:3: app: \"b\" has nothing: give it one value");
    bad("timeout: !x 3", "x.yaml:1: timeout: tags such as !name mean nothing here");
    let long = yaml(&format!("workers: {}", "9".repeat(5000))).unwrap_err().to_string();
    assert!(long.len() < 300, "{long}");
}

#[test]
fn an_unknown_key_is_named_with_the_nearest_known_one() {
    bad("\nwokers: 2\n", "x.yaml:2: unknown key \"wokers\" (did you mean \"workers\"?)");
    bad(
        "worker-class: a",
        "x.yaml:1: unknown key \"worker-class\" (did you mean \"worker_class\"?)",
    );
    bad("pid: a", "x.yaml:1: unknown key \"pid\" (did you mean \"pidfile\"?)");
    bad("keep_alive: 3", "x.yaml:1: unknown key \"keep_alive\" (did you mean \"keepalive\"?)");
    bad("ap: 3", "x.yaml:1: unknown key \"ap\" (did you mean \"app\"?)");
    bad("colour: 3", "x.yaml:1: unknown key \"colour\"");
}

#[test]
fn what_is_not_one_map_is_refused() {
    bad("\n- a\n", "x.yaml:2: is not a map: give lines of KEY: VALUE");
    bad("workers", "x.yaml:1: is not a map: give lines of KEY: VALUE");
    bad("workers: 2\nthreads: 2\nworkers: 3\n", "x.yaml:3: key \"workers\" is given twice");
    bad("workers: 2\n---\nworkers: 3\n", "x.yaml:3: a second document begins here: give only one");
    bad("? [a]\n: b\n", "x.yaml:1: a key must be a word");
    bad("a: b: c", "x.yaml:1: mapping values are not allowed in this context");
    bad("a: &a [*a]", "x.yaml:1: recursion limit exceeded");
    bad("workers: *a", "x.yaml:1: unknown anchor");
}

#[test]
fn a_file_that_explodes_is_refused_at_once() {
    let mut laughs = String::from("a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n");
    for level in 1..12 {
        let aliases = vec![format!("*a{}", level - 1); 10].join(",");
        laughs.push_str(&format!("a{level}: &a{level} [{aliases}]\n"));
    }
    assert!(yaml(&laughs).is_err());
    let wide = format!("a: &a [{}]\nb: [{}]", "x,".repeat(5000), "*a,".repeat(5000));
    assert!(yaml(&wide).unwrap_err().to_string().contains("too large once expanded"));
    let long = format!("a: &a {}\nb: [{}]", "x".repeat(100_000), "*a,".repeat(5000));
    assert!(yaml(&long).unwrap_err().to_string().contains("too large once expanded"));
    bad(&format!("\n{}", "[".repeat(500_000)), "x.yaml:2: too many brackets are open");
    assert!(yaml(&"- ".repeat(100_000)).is_err());
}

#[test]
fn only_a_small_regular_file_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.yaml");
    let error = |path: &Path| ConfigFile::read(path, &[]).unwrap_err().to_string();
    assert!(error(&path).contains("x.yaml: No such file"));
    assert!(error(folder.path()).contains("it is a directory"));
    assert!(error(Path::new("/dev/zero")).contains("it is not a regular file"));
    fs::write(&path, b"workers: 2\nuser: \xff\n").unwrap();
    assert!(error(&path).ends_with("x.yaml:2: is not UTF-8"));
    fs::write(&path, "#".repeat(1 << 20)).unwrap();
    assert!(ConfigFile::read(&path, &[]).is_ok());
    fs::write(&path, "#".repeat((1 << 20) + 1)).unwrap();
    assert!(error(&path).contains("larger than 1 MiB"));
}

#[test]
fn variables_are_judged_and_unknown_ones_named() {
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
    let (overlay, warnings) = ConfigLayer::from_env(&list).unwrap();
    let warning = "OSTLER_WOKERS is not a setting, so it is ignored (did you mean OSTLER_WORKERS?)";
    assert_eq!(warnings, [warning]);
    assert_eq!(resolve(&[overlay]).unwrap().bind.len(), 2);
}

#[test]
fn impossible_mixes_are_refused() {
    bad(
        "max_requests_jitter: 5",
        "x.yaml:1: max_requests_jitter: a jitter needs max_requests, which is 0 (default): \
         give both, or neither",
    );
    bad(
        "max_lifetime_jitter: 5",
        "x.yaml:1: max_lifetime_jitter: a jitter needs max_lifetime, which is 0 (default): \
         give both, or neither",
    );
    bad(
        "pidfile: a\nlog_file: a",
        "x.yaml:1: pidfile: \"a\" is the log file too (x.yaml:2): give two files",
    );
    bad(
        "max_surge: 0",
        "x.yaml:1: max_surge: no worker could ever be replaced, since max_unavailable is 0 too \
         (default): raise one of them",
    );
    assert_eq!(yaml("max_surge: 0\nmax_unavailable: 1").unwrap().max_surge, 0);
    bad("chdir: /nowhere", "x.yaml:1: chdir: \"/nowhere\" does not exist");
    bad("worker_tmp_dir: /dev/null", "x.yaml:1: worker_tmp_dir: \"/dev/null\" is not a directory");
    bad("pidfile: /", "x.yaml:1: pidfile: \"/\" is a directory: give a file");
    bad(
        "pidfile: /nowhere/a",
        "x.yaml:1: pidfile: \"/nowhere/a\" has no folder: \"/nowhere\" does not exist",
    );
    let mix = flag("max_requests_jitter", &["5"]).unwrap();
    assert_eq!(resolve(&[mix]).unwrap_err().exit_code(), 2);
    let folder = flag("chdir", &["/nowhere"]).unwrap();
    assert_eq!(resolve(&[folder]).unwrap_err().exit_code(), 1);
}

#[test]
fn the_limits_of_the_defaults_are_the_default_limits() {
    assert_eq!(Settings::default().limits(), crate::app::Limits::default());
}

fn config(name: &str) -> String {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("config");
    fs::read_to_string(folder.join(name)).expect(name)
}

#[test]
fn the_annotated_file_says_every_default() {
    let text = config("default.yaml");
    let settings = yaml(&text).unwrap();
    assert_eq!(settings, Settings::default());
    for key in OPTIONS.iter().map(|key| key.name).chain(["app"]) {
        assert!(text.lines().any(|line| line.starts_with(&format!("{key}:"))), "{key}");
        assert_ne!(*settings.source(key), Source::Default, "{key}");
    }
    for key in OPTIONS {
        let comment = key.doc();
        let words = text.replace("\n#", "").replace('\n', " ");
        assert!(
            words.contains(&comment),
            "default.yaml lacks the words of {}: {comment}",
            key.name
        );
    }
}

/// The tables of the guide's page on settings, between its marks.
fn reference() -> String {
    let (defaults, mut text, mut group) = (Settings::default(), String::new(), "");
    for key in OPTIONS {
        if key.group != group {
            group = key.group;
            text += &format!("\n### {group}\n\n| key | flag | variable | default | meaning |\n");
            text += "|---|---|---|---|---|\n";
        }
        let short = key.short.map_or(String::new(), |short| format!("`-{short}`, "));
        let aliases: String = key.aliases.iter().map(|alias| format!(", `--{alias}`")).collect();
        let value = match key.arity {
            Arity::Flag => format!("[={}]", key.value_name),
            Arity::Single | Arity::Optional | Arity::List | Arity::PairList => format!(" {}", key.value_name),
        };
        let shown = key.format(&defaults).join(", ");
        let cells = [
            format!("`{}`", key.name),
            format!("{short}`--{}{value}`{aliases}", key.flag()),
            format!("`{}`", key.variable()),
            if shown.is_empty() { "none".to_owned() } else { format!("`{shown}`") },
            key.doc(),
        ];
        text += &format!("| {} |\n", cells.map(|cell| cell.replace('|', "\\|")).join(" | "));
    }
    text
}

/// `OSTLER_WRITE_DOCS=1 cargo test --lib settings` writes the page.
#[test]
fn the_guide_lists_every_setting() {
    const BEGIN: &str = "<!-- From the table in src/settings/table.rs. -->\n";
    const END: &str = "\n<!-- So far. -->\n";
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("docs/src/settings.md");
    let page = fs::read_to_string(&path).expect("the page");
    let (before, rest) = page.split_once(BEGIN).expect("where the table begins");
    let (_, after) = rest.split_once(END).expect("where the table ends");
    let due = format!("{before}{BEGIN}{}{END}{after}", reference());
    if std::env::var_os("OSTLER_WRITE_DOCS").is_some() {
        fs::write(&path, &due).expect("written");
    }
    let page = fs::read_to_string(&path).expect("the page");
    assert!(
        page == due,
        "docs/src/settings.md is old: OSTLER_WRITE_DOCS=1 cargo test --lib settings"
    );
}

#[test]
fn the_example_files_load() {
    for name in ["minimal.yaml", "production.yaml", "jobs.yaml"] {
        assert_ne!(yaml(&config(name)), Ok(Settings::default()), "{name}");
    }
}

fn text() -> impl Strategy<Value = String> {
    prop_oneof![
        "[^\\x00-\\x1f\\x7f-\\x9f]{1,12}",
        "[-a-z0-9:#=,.~'\"\\[\\]{}&*!|>%@` \\\\]{1,12}",
        Just("null".to_owned()),
        Just("~".to_owned()),
        Just("--- # x".to_owned()),
    ]
}

fn settings() -> impl Strategy<Value = Settings> {
    let numbers = (1..=4096_usize, 1..=1024_usize, any::<u32>(), 0..=0o777_u32, -20..=19_i32);
    let pairs = btree_map("[A-Z]{1,3}", prop_oneof![text(), "[\\x01-\\x7f\\n]{0,9}"], 0..4);
    let options = btree_map("[a-m:# -]{1,9}", prop_oneof![text(), Just(String::new())], 0..4);
    let texts = (text(), text(), text(), vec(1..u16::MAX, 1..4));
    (numbers, pairs, options, texts).prop_map(|(numbers, pairs, options, texts)| {
        let (workers, threads, nanos, umask, nice) = numbers;
        let (user, proc_name, log_file, mut ports) = texts;
        ports.sort_unstable();
        ports.dedup();
        let host = || "::1".to_owned();
        Settings {
            app_options: options,
            workers: Workers::Fixed(workers),
            threads,
            timeout: Duration::from_nanos(nanos.into()),
            limit_request_body: nanos.into(),
            umask: Some(umask),
            socket_mode: umask,
            daemon: nice > 0,
            nice: Some(nice),
            core: Some(CoreSize::Bytes(nanos.into())),
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
    fn what_is_described_loads_back(settings in settings()) {
        let described = settings.to_yaml();
        assert_eq!(yaml(&described).as_ref(), Ok(&settings), "{described}");
    }

    #[test]
    fn no_text_is_too_odd_for_a_file(
        text in "([a-z_]{0,9}[:\\[\\]{},&*!\\n\\t #'\"|>?-]{0,3}){0,20}"
    ) {
        if let Ok(settings) = yaml(&text) {
            assert_eq!(yaml(&settings.to_yaml()), Ok(settings));
        }
    }
}
