//! The man page and the completions of this program, made from its command line. They are committed.

use std::fs;
use std::path::Path;

use clap_complete::{Shell, generate};
use clap_mangen::Man;
use clap_mangen::roff::{Roff, bold, roman};

use super::{AFTER_HELP, command};

/// ostlerctl(1).
fn manual() -> String {
    let mut command = command();
    let mut text = Vec::new();
    let man = Man::new(command.clone()).manual("Ostler").date("");
    let written = man.render_title(&mut text);
    written.expect("a vector takes it");
    let preamble = Roff::new().render();
    let mut add = |render: &dyn Fn(&mut Vec<u8>)| {
        let mut part = Vec::new();
        render(&mut part);
        text.extend_from_slice(part.strip_prefix(preamble.as_bytes()).unwrap_or(&part));
    };
    add(&|part| man.render_name_section(part).expect("a vector takes it"));
    add(&|part| man.render_synopsis_section(part).expect("a vector takes it"));
    add(&|part| man.render_description_section(part).expect("a vector takes it"));
    add(&|part| man.render_options_section(part).expect("a vector takes it"));
    let mut roff = Roff::new();
    roff.control("SH", ["COMMANDS"]);
    command.build();
    for subcommand in command.get_subcommands_mut() {
        let usage = subcommand.render_usage().to_string();
        let usage = usage.trim_start_matches("Usage: ostlerctl ").to_owned();
        roff.control("TP", []).text([bold(usage)]);
        let about = subcommand.get_about().map(ToString::to_string).unwrap_or_default();
        roff.text([roman(format!("{about}."))]);
        let own = subcommand.get_arguments().filter(|arg| !arg.is_global_set());
        for arg in own.filter(|arg| arg.get_id() != "help") {
            let values = arg.get_value_names().unwrap_or_default().join(" ");
            let takes_value = arg.get_action().takes_values();
            let name = match arg.get_long() {
                Some(long) if takes_value => format!("--{long} {values}"),
                Some(long) => format!("--{long}"),
                None => values,
            };
            let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
            roff.control("RS", []).control("TP", []).text([bold(name)]);
            roff.text([roman(format!("{help}."))]).control("RE", []);
        }
    }
    let (socket, status) = AFTER_HELP.split_once("\n\n").expect("two paragraphs");
    roff.control("SH", ["ENVIRONMENT"]).text([roman(socket)]);
    roff.control("SH", ["EXIT STATUS"]).text([roman(status)]);
    roff.control("SH", ["SEE ALSO"]).text([
        bold("ostler"),
        roman("(1), "),
        bold("ostler"),
        roman("(7)"),
    ]);
    String::from_utf8(text).expect("text") + &roff.to_roff()
}

fn completion(shell: Shell) -> String {
    let mut text = Vec::new();
    generate(shell, &mut command(), "ostlerctl", &mut text);
    String::from_utf8(text).expect("text")
}

/// `OSTLER_WRITE_DOCS=1 cargo test generated` writes the files.
#[test]
fn generated_files_are_up_to_date() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for (path, expected) in [
        ("docs/man/ostlerctl.1", manual()),
        ("config/completions/ostlerctl.bash", completion(Shell::Bash)),
        ("config/completions/_ostlerctl", completion(Shell::Zsh)),
        ("config/completions/ostlerctl.fish", completion(Shell::Fish)),
    ] {
        let file = root.join(path);
        if std::env::var_os("OSTLER_WRITE_DOCS").is_some() {
            fs::write(&file, &expected).expect("written");
        }
        let found = fs::read_to_string(&file).unwrap_or_default();
        assert!(found == expected, "{path} is outdated: OSTLER_WRITE_DOCS=1 cargo test generated");
    }
}
