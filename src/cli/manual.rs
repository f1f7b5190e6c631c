//! The files that packages install and that are made from the command line and the table of options: man
//! pages, completions and the JSON Schema. They are committed, so that nobody needs a tool to make them.

use std::fs;
use std::path::PathBuf;

use clap_complete::{Shell, generate};
use clap_mangen::Man;
use clap_mangen::roff::{Roff, bold, roman};

use super::ProgramInfo;
use super::command::{AFTER_HELP, command};
use crate::settings::{OPTIONS, Settings, json_schema};

mod markdown;

const SIGNALS: &str = include_str!("../../docs/src/signals.md");
const SETTINGS: &str = include_str!("../../docs/src/settings.md");
const FAILURE_MODES: &str = include_str!("../../docs/src/failure-modes.md");
const EXAMPLE: &str = include_str!("../../config/minimal.yaml");

const SYNOPSIS: &str = "\
`ostler` [*OPTIONS*] [*APP* [*KEY=VALUE*]...] [`--` *COMMAND*...]

`ostler doctor` [`--json`] [*OPTIONS*]

`ostler new` *NAME*
";

const DESCRIPTION: &str = "\
Ostler starts worker processes that serve an app or run a program, and keeps them alive. It replaces a \
worker that crashes or hangs, reloads its settings on SIGHUP and upgrades its program on SIGUSR2 \
without losing a request. **ostlerctl**(1) shows and changes a running master.

`ostler doctor` looks for what breaks a service with these settings on this machine, says what to do, and \
changes nothing; it exits with 1 if something will break. `ostler new` *NAME* creates a starter crate.
";

const SEE_ALSO: &str = "**ostlerctl**(1), **ostler.yaml**(5), **ostler**(7)";

/// Begins a page.
fn page(title: &str, section: &str, summary: &str) -> Roff {
    let mut roff = Roff::new();
    let version = concat!("ostler ", env!("CARGO_PKG_VERSION"));
    roff.control("TH", [title, section, "", version, "Ostler"]);
    roff.control("SH", ["NAME"]).text([roman(format!("{title} - {summary}"))]);
    roff
}

fn section(roff: &mut Roff, title: &str, text: &str) {
    roff.control("SH", [title]);
    markdown::add(roff, text);
}

/// Returns the part of a page of the guide from one heading to another, without them.
fn part<'p>(page: &'p str, from: &str, to: &str) -> &'p str {
    let (_, rest) = page.split_once(&format!("{from}\n")).expect(from);
    rest.split_once(&format!("\n{to}\n")).map_or(rest, |(part, _)| part)
}

/// ostler(1).
fn program_page() -> String {
    let info = ProgramInfo::default();
    let mut roff = page("ostler", "1", "run an app or a program in supervised worker processes");
    section(&mut roff, "SYNOPSIS", SYNOPSIS);
    section(&mut roff, "DESCRIPTION", DESCRIPTION);
    let mut options = Vec::new();
    let written = Man::new(command("ostler", &info)).render_options_section(&mut options);
    written.expect("a vector takes it");
    let mut text = roff.render();
    // Each part begins with a preamble, which counts once.
    let options = String::from_utf8(options).expect("text");
    text += options.strip_prefix(&Roff::new().render()).unwrap_or(&options);
    let mut roff = Roff::new();
    section(&mut roff, "NOTES", AFTER_HELP);
    section(&mut roff, "SEE ALSO", SEE_ALSO);
    text + &roff.to_roff()
}

/// ostler.yaml(5).
fn settings_page() -> String {
    let mut roff = page("ostler.yaml", "5", "settings of Ostler");
    section(&mut roff, "DESCRIPTION", part(SETTINGS, "# Settings", "## Every setting"));
    let defaults = Settings::default();
    let mut group = "";
    for option in OPTIONS {
        if option.group != group {
            group = option.group;
            roff.control("SH", [format!("SETTINGS: {group}").to_uppercase().as_str()]);
        }
        let default = option.format(&defaults).join(",");
        let default = if default.is_empty() { "none".to_owned() } else { default };
        roff.control("TP", []);
        roff.text([bold(option.name), roman(format!(": {}", option.value_name))]);
        roff.text(markdown::inlines(&option.doc()));
        roff.text([roman("Default: "), bold(default), roman(".")]);
    }
    roff.control("SH", ["EXAMPLE"]).control("EX", []);
    EXAMPLE.lines().for_each(|line| {
        roff.text([roman(line)]);
    });
    roff.control("EE", []);
    section(&mut roff, "SEE ALSO", "**ostler**(1), **ostler**(7)");
    roff.render()
}

/// ostler(7).
fn signals_page() -> String {
    let mut roff = page("ostler", "7", "signals and exit codes of Ostler");
    section(&mut roff, "DESCRIPTION", part(SIGNALS, "# Signals", "## To the master"));
    markdown::add(&mut roff, &SIGNALS[SIGNALS.find("## To the master").expect("a heading")..]);
    let codes = part(FAILURE_MODES, "## Exit codes of the master", "## ");
    section(&mut roff, "EXIT STATUS", codes.split("\n## ").next().expect("a part"));
    section(&mut roff, "SEE ALSO", "**ostler**(1), **ostlerctl**(1), **ostler.yaml**(5)");
    roff.render()
}

/// Writes a page without the characters that not every troff can read.
fn ascii(page: &str) -> String {
    let page = page.replace('…', "...").replace('×', "x");
    assert!(page.is_ascii(), "{:?}", page.lines().find(|line| !line.is_ascii()));
    page
}

fn completion(shell: Shell) -> String {
    let mut text = Vec::new();
    generate(shell, &mut command("ostler", &ProgramInfo::default()), "ostler", &mut text);
    String::from_utf8(text).expect("text")
}

/// `OSTLER_WRITE_DOCS=1 cargo test generated` writes the files.
#[test]
fn generated_files_are_up_to_date() {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    for (path, expected) in [
        ("docs/man/ostler.1", ascii(&program_page())),
        ("docs/man/ostler.yaml.5", ascii(&settings_page())),
        ("docs/man/ostler.7", ascii(&signals_page())),
        ("config/completions/ostler.bash", completion(Shell::Bash)),
        ("config/completions/_ostler", completion(Shell::Zsh)),
        ("config/completions/ostler.fish", completion(Shell::Fish)),
        ("config/ostler.schema.json", format!("{:#}\n", json_schema())),
    ] {
        let file = root.join(path);
        if std::env::var_os("OSTLER_WRITE_DOCS").is_some() {
            fs::write(&file, &expected).expect("written");
        }
        let found = fs::read_to_string(&file).unwrap_or_default();
        assert!(found == expected, "{path} is outdated: OSTLER_WRITE_DOCS=1 cargo test generated");
    }
}
