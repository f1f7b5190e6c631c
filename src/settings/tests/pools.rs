//! Tests of files with several pools, and with variables.

use super::*;

const TWO_POOLS: &str = "\
workers: 2
timeout: 20
pools:
  web:
    worker_class: mio
    bind: ':1'
  jobs:
    app: {name: tick, every: 1s}
    bind: ':2'
    workers: 1
";

fn resolve_file(
    text: &str,
    flags: &[ConfigLayer],
    selected: &[&str],
) -> Result<Configuration, SettingsError> {
    let selected: Vec<String> = selected.iter().map(|name| (*name).to_owned()).collect();
    Configuration::resolve(&Settings::default(), &parse_file(text), flags, &selected)
}

fn parse_config(text: &str) -> Result<Configuration, SettingsError> {
    Configuration::from_yaml(text, Path::new("x.yaml"))
}

#[track_caller]
fn assert_config_rejected(text: &str, expected: &str) {
    let error = parse_config(text).expect_err(text);
    assert_eq!((error.to_string().as_str(), error.exit_code()), (expected, 1), "{text}");
}

fn pool_names(configuration: &Configuration) -> Vec<&str> {
    configuration.pools.iter().map(|pool| pool.name.as_str()).collect()
}

#[test]
fn file_without_pools_yields_one_pool() {
    let only = parse_config("workers: 3").unwrap();
    assert_eq!((pool_names(&only), only.has_named_pools), (vec!["default"], false));
    assert_eq!(only.pools[0].settings, only.master);
    assert_eq!(resolve_file("", &[], &["default"]).unwrap().pools.len(), 1);
}

#[test]
fn pool_keys_override_top_level_keys() {
    let two = parse_config(TWO_POOLS).unwrap();
    assert_eq!((pool_names(&two), two.has_named_pools), (vec!["web", "jobs"], true));
    let [web, jobs] = &two.pools[..] else { panic!("{two:?}") };
    assert_eq!((web.settings.worker_class.as_str(), web.settings.app.as_str()), ("mio", "demo"));
    assert_eq!((jobs.settings.worker_class.as_str(), jobs.settings.app.as_str()), ("sync", "tick"));
    assert_eq!(jobs.settings.app_options["every"], "1s");
    assert_eq!([web, jobs].map(|pool| pool.settings.workers.count()), [2, 1]);
    assert_eq!([web, jobs].map(|pool| pool.settings.timeout.as_secs()), [20, 20]);
    let source = |pool: &Pool, key| pool.settings.source(key).to_string();
    assert_eq!(
        (web.source.to_string(), jobs.source.to_string()),
        ("x.yaml:4".into(), "x.yaml:7".into())
    );
    assert_eq!(
        (source(web, "workers"), source(jobs, "workers")),
        ("x.yaml:1".into(), "x.yaml:10".into())
    );
    assert_eq!((source(web, "bind"), source(jobs, "bind")), ("x.yaml:6".into(), "x.yaml:9".into()));
    assert_eq!((source(web, "app"), source(jobs, "app")), ("default".into(), "x.yaml:8".into()));
}

#[test]
fn flags_override_pool_keys() {
    let two = resolve_file(TWO_POOLS, &[flag_layer("workers", &["4"]).unwrap()], &[]).unwrap();
    assert_eq!(two.pools.iter().map(|pool| pool.settings.workers.count()).sum::<usize>(), 8);
    let one =
        resolve_file(TWO_POOLS, &[flag_layer("workers", &["4"]).unwrap()], &["jobs"]).unwrap();
    assert_eq!((pool_names(&one), one.has_named_pools), (vec!["jobs"], true));
    assert_eq!(one.pools[0].settings.source("workers").to_string(), "--workers");
}

#[test]
fn unknown_pool_is_reported_with_names() {
    let error = resolve_file(TWO_POOLS, &[], &["web", "wbe"]).unwrap_err();
    assert_eq!(error.to_string(), "--pool: \"wbe\" is not a configured pool; available: web, jobs");
    assert_eq!(error.exit_code(), 2);
    let error = resolve_file("", &[], &["web"]).unwrap_err();
    assert_eq!(error.to_string(), "--pool: \"web\" is not a configured pool; available: default");
}

#[test]
fn settings_from_yaml_rejects_multiple_pools() {
    let error = parse_yaml(TWO_POOLS).unwrap_err().to_string();
    assert_eq!(error, "x.yaml:4: there are several pools: load them as a Configuration");
    assert_eq!(parse_yaml("pools: {a: {workers: 3}}").unwrap().workers, Workers::Fixed(3));
}

#[test]
fn master_keys_are_rejected_in_pools() {
    let master_keys = [
        "pidfile",
        "daemon",
        "single_instance",
        "reload",
        "reload_extra_files",
        "fd_store",
        "pre_stop",
        "proc_name",
        "pre_stop",
        "control_socket",
        "control_users",
        "metrics_bind",
        "metrics_hosts",
        "statsd_host",
        "leader_etcd",
        "leader_key",
        "leader_kubernetes_lease",
        "leader_kubernetes_namespace",
        "leader_kubernetes_api",
        "leader_kubernetes_token_file",
        "leader_ttl",
        "leader_ca_file",
        "leader_client_cert",
        "leader_client_key",
        "leader_user",
        "leader_password_file",
        "log_file",
        "log_level",
        "log_format",
        "flight_recorder_file",
        "vars",
        "pools",
        "include",
    ];
    for key in master_keys {
        assert_config_rejected(
            &format!("pools:\n  web:\n    workers: 1\n    {key}: a\n"),
            &format!(
                "x.yaml:4: {key}: is a setting of the master, not of pool \"web\": give it at the top level of the file"
            ),
        );
    }
    for key in OPTIONS.iter().filter(|key| !master_keys.contains(&key.name)) {
        let (_, sample, _) = SAMPLES.iter().find(|(name, ..)| *name == key.name).unwrap();
        let text = format!("pools: {{a: {{{}: '{sample}'}}}}", key.name);
        assert_eq!(parse_config(&text).err(), None, "{text}");
    }
}

#[test]
fn malformed_pool_is_reported_with_line() {
    let empty = "is empty: give at least one pool, or leave out the key";
    assert_config_rejected("pools:\n", &format!("x.yaml:1: pools: {empty}"));
    assert_config_rejected("\npools: {}\n", &format!("x.yaml:2: pools: {empty}"));
    assert_config_rejected("pools: web", "x.yaml:1: pools: one value is given, not a map of pools");
    assert_config_rejected("pools: [web]", "x.yaml:1: pools: a list is given, not a map of pools");
    assert_config_rejected(
        "pools:\n  a: 1",
        "x.yaml:2: pools: \"a\" has one value: give it a map of its own keys",
    );
    assert_config_rejected("pools:\n  [a]: {}", "x.yaml:2: a key must be a string");
    assert_config_rejected("pools:\n  a:\n  b:\n  a:\n", "x.yaml:4: duplicate key \"a\"");
    assert_config_rejected(
        "pools:\n  a:\n    threads: 1\n    threads: 2\n",
        "x.yaml:4: duplicate key \"threads\"",
    );
    let reason = "is not the name of a pool: give at most 32 of a-z, 0-9, _ and -, and a letter or digit first";
    for name in ["Web", "a/b", "_a", "a b", "ä", &"a".repeat(33)] {
        assert_config_rejected(
            &format!("pools:\n  ok:\n  {name}:\n"),
            &format!("x.yaml:3: pools: {name:?} {reason}"),
        );
    }
    assert_config_rejected(
        "pools:\n  a:\n    wokers: 1\n",
        "x.yaml:3: unknown key \"wokers\" (did you mean \"workers\"?)",
    );
    assert_config_rejected(
        "pools:\n  a: {bind: ':1'}\n  b:\n    bind:\n      - ':2'\n      - nonsense\n",
        "x.yaml:6: bind: \"nonsense\" lacks a port: give nonsense:PORT, such as nonsense:8000",
    );
    let many: String = (0..65).map(|n| format!("  p{n}:\n")).collect();
    assert_config_rejected(&format!("pools:\n{many}"), "x.yaml:2: pools: has more than 64 items");
}

#[test]
fn conflict_is_checked_in_each_pool() {
    let top = "max_requests_jitter: 5\npools:\n";
    assert_eq!(parse_config(&format!("{top}  a: {{max_requests: 9}}\n")).err(), None);
    assert_config_rejected(
        &format!("{top}  a: {{max_requests: 9}}\n  b:\n"),
        "x.yaml:1: max_requests_jitter: a jitter requires max_requests, which is 0 (default): give \
         both, or neither, in pool \"b\"",
    );
    assert_config_rejected(
        "pools:\n  a:\n    chdir: /nowhere\n",
        "x.yaml:3: chdir: \"/nowhere\" does not exist, in pool \"a\"",
    );
}

#[test]
fn pools_with_same_address_are_rejected() {
    let error = |text: &str| {
        let configuration = parse_config(text).unwrap();
        check_address_conflicts(configuration.pools.iter()).err().map(|error| error.to_string())
    };
    assert_eq!(error(TWO_POOLS), None);
    assert_eq!(error("pools: {a: {}}"), None);
    let reason = |address, source| {
        format!(
            "pool \"b\" binds {address}, which pool \"a\" already binds ({source}): give each pool its own address"
        )
    };
    assert_eq!(
        error("pools:\n  a:\n    bind: [':1', ':2']\n  b:\n    bind: ':2'\n").unwrap(),
        format!("x.yaml:5: bind: {}", reason("0.0.0.0:2", "x.yaml:3"))
    );
    assert_eq!(
        error("pools:\n  a:\n  b:\n").unwrap(),
        format!("x.yaml:3: bind: {}", reason("127.0.0.1:8000", "x.yaml:2"))
    );
    assert_eq!(
        error("bind: 'unix:/a'\npools:\n  a:\n  b:\n").unwrap(),
        format!("x.yaml:1: bind: {}", reason("unix:/a", "x.yaml:1"))
    );
}

#[test]
fn variables_are_expanded_everywhere() {
    let text = "\
vars: {n: 3, base: /srv, logs: '${base}/log', colour: blue}
workers: ${n}
log_file: ${logs}/a$${b}
env: ['A=${colour}', 'B=x']
app: {name: 'd${env:MO}', '${n}': '${base}/${colour}'}
pools:
  web:
    bind: ['unix:${base}/a', ':80${n}']
    env: {A: '${colour}'}
";
    let environment = variables(&[("MO", "emo")]);
    let file = ConfigFile::parse(text, Path::new("x.yaml"), &environment).unwrap();
    let all = Configuration::resolve(&Settings::default(), &file, &[], &[]).unwrap();
    let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    assert_eq!(all.master.workers, Workers::Fixed(3));
    assert_eq!(all.master.log_file, LogTarget::File("/srv/log/a${b}".into()));
    assert_eq!(all.master.env, [pair("A", "blue"), pair("B", "x")]);
    assert_eq!(
        (all.master.app.as_str(), &all.master.app_options),
        ("demo", &[pair("${n}", "/srv/blue")].into())
    );
    let printed = all.to_yaml();
    assert!(printed.contains("name: \"d${env:MO}\"\n"), "{printed}");
    let again = ConfigFile::parse(&printed, Path::new("x.yaml"), &environment).unwrap();
    assert_eq!(Configuration::resolve(&Settings::default(), &again, &[], &[]).unwrap(), all);
    let mut changed = all.master.clone();
    changed.app = "echo".into();
    assert!(changed.to_yaml().contains("name: echo\n"));
    let web = &all.pools[0].settings;
    assert_eq!(
        web.bind.iter().map(ToString::to_string).collect::<Vec<_>>(),
        ["unix:/srv/a", "0.0.0.0:803"]
    );
    assert_eq!(web.env, [pair("A", "blue")]);
    // vars may follow the keys that use them. The error has the line of the use.
    assert_eq!(
        parse_yaml("\nworkers: ${n}\nvars: {n: 2}").unwrap().source("workers").to_string(),
        "x.yaml:2"
    );
}

#[test]
fn invalid_variable_is_reported_with_line() {
    let below_rule = "a variable can only use variables defined above it";
    assert_rejected(
        "vars:\n  a: 1\n  b: ${b}",
        &format!("x.yaml:3: b: \"${{b}}\" uses ${{b}}, which is the variable itself: {below_rule}"),
    );
    assert_rejected(
        "vars:\n  a: ${b}\n  b: ${a}",
        &format!("x.yaml:2: a: \"${{b}}\" uses ${{b}}, which is defined below it: {below_rule}"),
    );
    assert_rejected(
        "vars: {base_path: /srv}\nbind:\n  - ':1'\n  - 'unix:${bse_path}/a'\n",
        "x.yaml:4: bind: \"unix:${bse_path}/a\" uses ${bse_path}, which is not defined in vars (did \
         you mean ${base_path}?)",
    );
    assert_rejected(
        "user: ${env:NO_SUCH_VARIABLE_HERE}",
        "x.yaml:1: user: \"${env:NO_SUCH_VARIABLE_HERE}\" uses ${env:NO_SUCH_VARIABLE_HERE}, which is not set in the environment",
    );
    assert_rejected(
        "vars: {n: two}\nworkers: ${n}",
        "x.yaml:2: workers: \"two\" is not a number of workers: give a number from 1 to 4096, a range such as 2-8, or auto (written \"${n}\")",
    );
    assert_rejected(
        "app:\n  name: a\n  b: ${c}\n",
        "x.yaml:3: app: \"${c}\" uses ${c}, which is not defined in vars",
    );
    assert_rejected(
        "user: ${a",
        "x.yaml:1: user: \"${a\" has a ${ without its }: write $${ for a literal ${",
    );
    assert_rejected("vars: [a]", "x.yaml:1: vars: a list is given, not a map of names and values");
    assert_rejected("vars:\n  a: [b]", "x.yaml:2: vars: \"a\" has a list: give it one value");
    assert_rejected("vars:\n  a:\n", "x.yaml:2: vars: \"a\" has nothing: give it one value");
    assert_rejected("vars:\n  a: 1\n  a: 2\n", "x.yaml:3: vars: \"a\" is a duplicate");
    assert_rejected(
        "vars: {'1': a}",
        "x.yaml:1: vars: \"1\" is not the name of a variable: give at most 64 letters, digits, _ and -, and a letter or _ first",
    );
    assert_rejected("vars: {a: b}\nvars: {c: d}", "x.yaml:2: duplicate key \"vars\"");
}

proptest! {
    #[test]
    fn pools_to_yaml_round_trip(
        top in any_settings(),
        own in btree_map("[a-z0-9][a-z0-9_-]{0,5}", any_settings(), 1..4),
    ) {
        let pools = own.into_iter().map(|(name, settings)| {
            // Options of the master are the same in all pools.
            let settings = Settings {
                daemon: top.daemon,
                proc_name: top.proc_name.clone(),
                log_file: top.log_file.clone(),
                ..settings
            };
            Pool { name, source: Source::Default, settings }
        });
        let configuration = Configuration { master: top.clone(), pools: pools.collect(), has_named_pools: true };
        let described = configuration.to_yaml();
        assert_eq!(parse_config(&described).as_ref(), Ok(&configuration), "{described}");
    }
}
