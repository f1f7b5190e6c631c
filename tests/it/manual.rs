//! What packages install beside the program: man pages, completions and the JSON Schema of the settings.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::{Value, json};

use crate::launch::Launch;
use crate::support::Exit;

fn source(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// Runs a program with this input, if it is installed; otherwise prints that the test is skipped.
#[expect(clippy::print_stderr, reason = "a test that does not run says so")]
fn run(program: &str, args: &[&str], input: &str) -> Option<Output> {
    let command = Command::new(program)
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let mut child = match command {
        Ok(child) => child,
        Err(error) => {
            eprintln!("skipped: {program} does not run: {error}");
            return None;
        }
    };
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    child.wait_with_output().ok()
}

#[test]
fn man_pages_have_no_errors_and_name_each_option() {
    for page in ["ostler.1", "ostlerctl.1", "ostler.yaml.5", "ostler.7"] {
        let path = source("docs/man").join(page);
        let args = ["-man", "-ww", "-Tutf8", "-rLL=200n", path.to_str().unwrap()];
        let Some(output) = run("groff", &args, "") else { return };
        let messages = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && messages.is_empty(), "{page}: {messages}");
        assert!(output.stdout.len() > 3000, "{page}");
    }
    let help = Launch::new(&["--help"]).unbound().plain().run().stdout;
    let page = fs::read_to_string(source("docs/man/ostler.1")).unwrap().replace("\\-", "-");
    // The lines of a description are indented more.
    let is_option = |line: &&str| line.trim_start().starts_with('-') && line.find('-') <= Some(6);
    let options = help.lines().filter(is_option);
    let options = options.map(|line| line.split("[aliases").next().unwrap());
    let mut count = 0;
    for flag in options.flat_map(str::split_whitespace).filter(|word| word.starts_with("--")) {
        let flag = flag.split(['[', '=', ',']).next().unwrap();
        assert!(page.contains(flag), "{flag}");
        count += 1;
    }
    assert!(count > 70, "{count}");
}

#[test]
fn bash_completes_flags_and_commands() {
    for (program, word, expected) in [
        ("ostler", "--worker-cl", "--worker-class"),
        ("ostler", "--print-s", "--print-schema"),
        ("ostlerctl", "rel", "reload"),
    ] {
        let file = source(&format!("config/completions/{program}.bash"));
        let script = format!(
            "set -u; source {}; COMP_WORDS=({program} {word}); COMP_CWORD=1; \
             _{program} {program} {word} {program}; printf '%s\\n' \"${{COMPREPLY[@]}}\"",
            file.display()
        );
        let Some(output) = run("bash", &["--norc", "-c", &script], "") else { return };
        let found = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(found.lines().any(|line| line == expected), "{program} {word}: {output:?}");
    }
}

/// Types words and a tab into an interactive shell, whose commands print their arguments.
const ZSH: &str = r#"
zmodload zsh/zpty
zpty shell zsh -f -i
zpty -w shell "fpath=($1 \$fpath); PS1=; autoload -U compinit; compinit -D -u"
zpty -w shell 'ostler() { print -r -- "arguments: $*" }; ostlerctl() { ostler "$@" }'
for words in 'ostler --print-sch' 'ostlerctl relo'; do
    zpty -w shell "$words"$'\t'
done
zpty -r -m shell found "*arguments: --print-schema*arguments: reload*"
print found
"#;

#[test]
fn zsh_completes_flags_and_commands() {
    let dir = source("config/completions");
    let args = ["30", "zsh", "-f", "-c", ZSH, "zsh", dir.to_str().unwrap()];
    if run("zsh", &["--version"], "").is_some() {
        let output = run("timeout", &args, "").unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stdout), "found\n", "{output:?}");
    }
}

#[test]
fn fish_completes_flags_and_commands() {
    for (program, word, expected) in
        [("ostler", "--print-s", "--print-schema"), ("ostlerctl", "rel", "reload")]
    {
        let file = source(&format!("config/completions/{program}.fish"));
        let script =
            format!("source {}; complete --do-complete '{program} {word}'", file.display());
        let Some(output) = run("fish", &["--no-config", "-c", &script], "") else { return };
        let found = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(found.starts_with(expected), "{program} {word}: {output:?}");
    }
}

/// Says for each document whether the schema accepts it, one line each.
const VALIDATOR: &str = "
import json, sys
import jsonschema
documents = json.load(sys.stdin)
schema = documents.pop(0)
jsonschema.Draft202012Validator.check_schema(schema)
validator = jsonschema.Draft202012Validator(schema)
for document in documents:
    print(next((str(error.message) for error in validator.iter_errors(document)), 'valid'))
";

/// Returns what the schema finds in each document: `valid`, or an error.
fn validate(documents: &[Value]) -> Option<Vec<String>> {
    let outcome = Launch::new(&["--print-schema"]).unbound().plain().run();
    assert_eq!((outcome.exit, outcome.stderr.as_str()), (Exit::Code(0), ""));
    let schema: Value = serde_json::from_str(&outcome.stdout).unwrap();
    let input = Value::from([&[schema][..], documents].concat()).to_string();
    let output = run("python3", &["-c", VALIDATOR], &input)?;
    let messages = String::from_utf8_lossy(&output.stderr);
    if messages.contains("No module named") {
        return None;
    }
    assert!(output.status.success(), "{messages}");
    let found = String::from_utf8_lossy(&output.stdout);
    Some(found.lines().map(str::to_owned).collect())
}

/// What the parsers accept, the schema accepts: every file of `config/`, and odd ways to write values.
#[test]
fn schema_accepts_what_the_program_accepts() {
    let names = fs::read_dir(source("config")).unwrap().map(|it| it.unwrap().path());
    let is_yaml = |path: &PathBuf| path.extension().is_some_and(|it| it == "yaml");
    let mut texts: Vec<String> =
        names.filter(is_yaml).map(|path| fs::read_to_string(path).unwrap()).collect();
    assert!(texts.len() >= 4);
    texts.extend(
        [
            "~",
            "workers: auto\nuser: 0\nbind: none\nenv: {A: 1, B: yes}\npidfile: null\n",
            "workers: 2-8\nbind: [':1', 'unix:@x']\nenv: [A=1]\ntimeout: 1.5\nsocket_mode: 0660\n",
            "app: {name: tick, every: 1s}\nkeepalive: 75s\nlog_level: warn\ndaemon: off\n",
            "vars: {n: 2}\nworkers: ${n}\nmax_memory: 64M\ncpu_affinity: [0, '1,2']\n",
            "include: conf.d\npools:\n  web: {workers: 2, app: demo}\n  jobs:\n",
            "access_log_sample: 0.01\nrlimit_core: unlimited\nnice: -5\ncontrol_users: [root, 0]\n",
        ]
        .map(str::to_owned),
    );
    let documents: Vec<Value> =
        texts.iter().map(|text| serde_yaml::from_str(text).unwrap()).collect();
    let Some(found) = validate(&documents) else { return };
    for (text, found) in texts.iter().zip(found) {
        assert_eq!(found, "valid", "{text}");
    }
}

#[test]
fn schema_rejects_what_the_program_rejects() {
    let documents = [
        json!({ "wokers": 2 }),
        json!({ "workers": 0 }),
        json!({ "workers": "many" }),
        json!({ "timeout": "soon" }),
        json!({ "timeout": -1 }),
        json!({ "log_level": "loud" }),
        json!({ "max_memory": "64KB" }),
        json!({ "daemon": "perhaps" }),
        json!({ "bind": 8000 }),
        json!({ "pidfile": ["a"] }),
        json!({ "env": ["A"] }),
        json!({ "app": { "every": "1s" } }),
        json!({ "pools": {} }),
        json!({ "pools": { "web": { "pidfile": "a" } } }),
        json!({ "pools": { "Web": {} } }),
        json!({ "include": { "a": 1 } }),
        json!([1]),
    ];
    let Some(found) = validate(&documents) else { return };
    for (document, found) in documents.iter().zip(found) {
        assert_ne!(found, "valid", "{document}");
    }
    for document in documents {
        let launch = Launch::new(&["-c", "a.yaml", "--check-config"]).unbound().plain();
        fs::write(launch.path("a.yaml"), document.to_string()).unwrap();
        assert_eq!(launch.run().exit, Exit::Code(1), "{document}");
    }
}
