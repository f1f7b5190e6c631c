//! `ostler new NAME`: creates a starter crate from the files in `templates/`. It belongs to the program
//! `ostler`, not to the library. It must never overwrite a file or leave a partly created crate behind.

use std::ffi::OsString;
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use self::template::Template;

mod template;

/// The text about it in `--help` of the program. clap wraps it.
pub(crate) const HELP_NOTE: &str = "\
ostler new NAME creates a starter crate: an app, a worker class, settings and tests. As the first \
argument, new is never an app. See ostler new --help.";

const HELP: &str = "\
Creates a starter crate in a new directory of that name: an app, a worker class,
settings and tests that start the program.

Usage: ostler new NAME [--template NAME] [--path PATH]

Arguments:
  NAME             Name of the crate and its directory: lower-case letters,
                   digits, - and _

Options:
      --template NAME
                   service, or axum: an axum router instead [default: service]
      --path PATH  Directory of the ostler checkout to depend on [default: the
                   checkout that this program was built from, if it is still
                   there; otherwise the version of this program, from the
                   registry]
  -h, --help       Print help and exit
";

const DIRS: [&str; 3] = ["config", "src", "tests"];

const NAME_BYTES_LIMIT: usize = 64;

/// Names that a crate with a program cannot have: keywords, crates of the toolchain, directories of
/// cargo, and the dependencies of the new crate.
const RESERVED_NAMES: [&str; 5] = [
    "abstract as async await become box break const continue crate do dyn else enum extern false",
    "final fn for gen if impl in let loop macro match mod move mut override priv pub ref return self",
    "static struct super trait true try type typeof unsafe unsized use virtual where while yield",
    "alloc core proc_macro std test build deps examples incremental",
    "axum ostler slog",
];

/// Runs `ostler new …`. `args` is the command line without the name of the program. Returns `None` if
/// it is another command.
pub(crate) fn run(args: &[OsString]) -> Option<ExitCode> {
    let (first, rest) = args.split_first()?;
    if first != "new" {
        return None;
    }
    let result = parse_args(rest).and_then(|command| match command {
        NewCommand::Help => Ok(HELP.to_owned()),
        NewCommand::Crate { name, template, path } => {
            create_crate(Path::new(""), &name, template, path.as_deref())
        }
    });
    let (code, result) = match result {
        Ok(text) => (0, io::stdout().write_all(text.as_bytes())),
        Err(Failure { code, reason }) => (code, writeln!(io::stderr(), "ostler new: {reason}")),
    };
    // A closed pipe does not change the exit code.
    let _ = result;
    Some(ExitCode::from(code))
}

#[derive(Debug, PartialEq, Eq)]
enum NewCommand {
    Help,
    Crate { name: String, template: Template, path: Option<PathBuf> },
}

#[derive(Debug, PartialEq, Eq)]
struct Failure {
    /// 2 for an invalid command line, 1 for a system error.
    code: u8,
    reason: String,
}

fn usage_error(reason: impl Into<String>) -> Failure {
    Failure { code: 2, reason: reason.into() }
}

fn system_error(reason: impl Into<String>) -> Failure {
    Failure { code: 1, reason: reason.into() }
}

fn parse_args(args: &[OsString]) -> Result<NewCommand, Failure> {
    let (mut names, mut path, mut template) = (Vec::new(), None, None);
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        let word = arg.to_str().ok_or_else(|| usage_error(format!("{arg:?} is not UTF-8")))?;
        if word == "--help" || word == "-h" {
            return Ok(NewCommand::Help);
        }
        if let Some(value) = option_value("--template", word, &mut args)? {
            let found = Template::find(&value.to_string_lossy()).ok_or_else(|| {
                usage_error(format!("unknown template {value:?}; available: service, axum"))
            })?;
            if template.replace(found).is_some() {
                return Err(usage_error("--template is given more than once"));
            }
            continue;
        }
        let value = option_value("--path", word, &mut args)?.map(PathBuf::from);
        match value {
            Some(value) if path.is_none() => path = Some(value),
            Some(_) => return Err(usage_error("--path is given more than once")),
            None if word.starts_with('-') => {
                return Err(usage_error(format!("unknown option {word:?}; see ostler new --help")));
            }
            None => names.push(word),
        }
    }
    match names[..] {
        [name] => {
            let template = template.unwrap_or_default();
            check_crate_name(name)?;
            Ok(NewCommand::Crate { name: name.to_owned(), template, path })
        }
        [] => Err(usage_error("give a name: ostler new NAME")),
        _ => Err(usage_error(format!("expected one name, got {}", names.len()))),
    }
}

/// Returns the value of an option, in the same word or the next one; `None` if the word is not the
/// option.
fn option_value<'a>(
    option: &str,
    word: &'a str,
    rest: &mut impl Iterator<Item = &'a OsString>,
) -> Result<Option<OsString>, Failure> {
    if word == option {
        let noun = if option == "--path" { "a directory" } else { "a name" };
        let value = rest.next().ok_or_else(|| usage_error(format!("{option} requires {noun}")))?;
        return Ok(Some(value.clone()));
    }
    let value = word.strip_prefix(option).and_then(|rest| rest.strip_prefix('='));
    Ok(value.map(OsString::from))
}

/// Checks whether a crate with a program can have this name.
fn check_crate_name(name: &str) -> Result<(), Failure> {
    let is_allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-_".contains(c);
    let reason = if !name.starts_with(|c: char| c.is_ascii_lowercase()) {
        "does not start with a lower-case letter"
    } else if !name.chars().all(is_allowed) {
        "contains characters other than lower-case letters, digits, - and _"
    } else if name.len() > NAME_BYTES_LIMIT {
        "is longer than 64 characters"
    } else if is_reserved(&name.replace('-', "_")) {
        "is reserved by Rust, by cargo, or by a dependency of the new crate"
    } else {
        return Ok(());
    };
    Err(usage_error(format!("{name:?} is not a valid crate name: it {reason}")))
}

fn is_reserved(name: &str) -> bool {
    RESERVED_NAMES.iter().flat_map(|words| words.split(' ')).any(|word| word == name)
}

/// Where this program was built. A build that is to be the same in every directory, and that is run on
/// other machines, sets the variable.
const SOURCES: &str = match option_env!("OSTLER_SOURCES") {
    Some(path) => path,
    None => env!("CARGO_MANIFEST_DIR"),
};

/// Creates the crate in the directory `parent`, and returns the text to print.
fn create_crate(
    parent: &Path,
    name: &str,
    template: Template,
    path: Option<&Path>,
) -> Result<String, Failure> {
    let (ostler, note) = match path {
        Some(path) => (path_dependency(path)?, String::new()),
        None => default_dependency(Path::new(SOURCES)),
    };
    let fill = |text: &str| text.replace("@NAME@", name).replace("@OSTLER@", &ostler);
    let root = parent.join(name);
    let mut created = CreatedFiles::default();
    let creation_error = |path: &Path, error: &io::Error| match error.kind() {
        io::ErrorKind::AlreadyExists if *path == root => {
            system_error(format!("{path:?} already exists: choose another name"))
        }
        _ => system_error(format!(
            "failed to create {path:?}: {error}; the partly created crate was removed"
        )),
    };
    for dir in [""].iter().chain(&DIRS) {
        let path = if dir.is_empty() { root.clone() } else { root.join(dir) };
        created.create_dir(&path).map_err(|error| creation_error(&path, &error))?;
    }
    for (file, text) in template.files() {
        let path = root.join(fill(file));
        created.create_file(&path, &fill(text)).map_err(|error| creation_error(&path, &error))?;
    }
    created.commit();
    let contents = template.contents();
    Ok(format!(
        "created {name}: {contents}. Next:\n\n    \
        cd {name}\n    cargo test\n    cargo run -- --config config/{name}.yaml\n{note}"
    ))
}

/// Returns the dependency of a crate without `--path`, and a note about it. `sources` is where this
/// program was built: if that is a checkout, the crate builds with it, published or not. Sources that
/// cargo fetched from the registry are none.
fn default_dependency(sources: &Path) -> (String, String) {
    let is_checkout = sources.join(".git").exists();
    match path_dependency(sources) {
        Ok(ostler) if is_checkout => {
            let note = format!("\nIt depends on the checkout {sources:?}; --path sets another.\n");
            (ostler, note)
        }
        _ => {
            let version = env!("CARGO_PKG_VERSION");
            let note = format!(
                "\nIt depends on ostler {version} from the registry. If that is not published, remove the \
                 crate and give\nthe directory of a checkout: --path PATH.\n"
            );
            (format!("version = {version:?}"), note)
        }
    }
}

/// Returns the dependency on a checkout, for Cargo.toml.
fn path_dependency(path: &Path) -> Result<String, Failure> {
    let manifest = path.join("Cargo.toml");
    let text = fs::read_to_string(&manifest)
        .map_err(|error| system_error(format!("--path: failed to read {manifest:?}: {error}")))?;
    if !text.lines().any(|line| line.trim() == r#"name = "ostler""#) {
        return Err(system_error(format!("--path: {manifest:?} is not the manifest of ostler")));
    }
    let canonical = path.canonicalize();
    let checkout = canonical.map_err(|error| system_error(format!("--path: {path:?}: {error}")))?;
    match checkout.to_str() {
        Some(checkout_text) if !checkout_text.chars().any(char::is_control) => {
            let escaped = checkout_text.replace('\\', r"\\").replace('"', r#"\""#);
            Ok(format!(r#"path = "{escaped}""#))
        }
        _ => Err(system_error(format!(
            "--path: {checkout:?} cannot be written in Cargo.toml: not UTF-8, or contains control characters"
        ))),
    }
}

/// The files and directories created so far. Removes them when dropped, unless committed.
#[derive(Default)]
struct CreatedFiles {
    dirs: Vec<PathBuf>,
    files: Vec<PathBuf>,
}

impl CreatedFiles {
    fn create_dir(&mut self, path: &Path) -> io::Result<()> {
        fs::create_dir(path)?;
        self.dirs.push(path.to_owned());
        Ok(())
    }

    fn create_file(&mut self, path: &Path, text: &str) -> io::Result<()> {
        let mut file = OpenOptions::new().write(true).create_new(true).open(path)?;
        self.files.push(path.to_owned());
        file.write_all(text.as_bytes())
    }

    fn commit(&mut self) {
        self.dirs.clear();
        self.files.clear();
    }
}

impl Drop for CreatedFiles {
    fn drop(&mut self) {
        for file in &self.files {
            let _ = fs::remove_file(file);
        }
        // A directory that contains other files is kept.
        for dir in self.dirs.iter().rev() {
            let _ = fs::remove_dir(dir);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::ffi::OsStringExt;

    fn parse(args: &[&str]) -> Result<NewCommand, Failure> {
        parse_args(&args.iter().map(OsString::from).collect::<Vec<_>>())
    }

    #[track_caller]
    fn assert_usage_error(args: &[&str], expected: &str) {
        let failure = parse(args).expect_err(expected);
        assert_eq!(failure.code, 2);
        assert!(failure.reason.contains(expected), "{}", failure.reason);
    }

    #[test]
    fn run_ignores_new_after_first_arg() {
        for words in [&[][..], &["echo", "new"], &["-w", "1", "new"], &["--help"]] {
            let words: Vec<_> = words.iter().map(OsString::from).collect();
            assert!(run(&words).is_none(), "{words:?}");
        }
    }

    #[test]
    fn parse_args_accepts_any_order() {
        let shop = |path: Option<&str>| NewCommand::Crate {
            name: "shop".to_owned(),
            template: Template::Service,
            path: path.map(PathBuf::from),
        };
        assert_eq!(parse(&["shop"]), Ok(shop(None)));
        assert_eq!(parse(&["--path", "..", "shop"]), Ok(shop(Some(".."))));
        assert_eq!(parse(&["shop", "--path=a b"]), Ok(shop(Some("a b"))));
        let axum = NewCommand::Crate { name: "shop".into(), template: Template::Axum, path: None };
        assert_eq!(parse(&["--template=axum", "shop"]), Ok(axum));
        assert_eq!(parse(&["shop", "-h"]), Ok(NewCommand::Help));
    }

    #[test]
    fn parse_args_invalid_args_exit_with_2() {
        assert_usage_error(&[], "give a name");
        assert_usage_error(&["a", "b"], "expected one name, got 2");
        assert_usage_error(&["a", "--path"], "--path requires a directory");
        assert_usage_error(&["a", "--path=b", "--path", "c"], "more than once");
        assert_usage_error(&["a", "--template", "b"], "unknown template \"b\"; available: service");
        assert_usage_error(&["a", "--lib"], "unknown option \"--lib\"");
        let odd = OsString::from_vec(b"a\xff".to_vec());
        assert!(parse_args(&[odd]).expect_err("not UTF-8").reason.ends_with("is not UTF-8"));
    }

    #[test]
    fn check_crate_name_matches_cargo_rules() {
        for good in ["a", "shop", "my-shop_2", "a-", "newer", "null"] {
            assert_eq!(check_crate_name(good), Ok(()), "{good}");
        }
        assert_usage_error(&[""], "does not start with");
        assert_usage_error(&["1a"], "does not start with");
        assert_usage_error(&["Shop"], "does not start with");
        assert_usage_error(&["../shop"], "does not start with");
        assert_usage_error(&["a/b"], "characters other");
        assert_usage_error(&["aB"], "characters other");
        assert_usage_error(&["a.b"], "characters other");
        assert_usage_error(&["fn"], "is reserved");
        assert_usage_error(&["proc-macro"], "is reserved");
        assert_usage_error(&["ostler"], "is reserved");
        assert_usage_error(&[&"a".repeat(65)], "longer than 64");
    }

    #[test]
    fn check_crate_name_rejects_template_dependencies() {
        for template in [Template::Service, Template::Axum] {
            let (_, manifest) = template.files()[0];
            let dependencies = manifest.split_once("[dependencies]").expect("a section").1;
            let section = dependencies.lines().take_while(|line| !line.starts_with('['));
            let names = section.filter_map(|line| line.split_once(" = "));
            for (name, _) in names.filter(|(name, _)| !name.starts_with('#')) {
                assert!(is_reserved(name), "{name}");
            }
        }
    }

    #[test]
    fn create_crate_existing_path_is_kept() {
        let parent = tempfile::tempdir().expect("a directory");
        for create in [fs::create_dir as fn(PathBuf) -> io::Result<()>, |p| fs::write(p, "mine")] {
            let path = parent.path().join("shop");
            create(path.clone()).expect("prepared");
            let before = fs::metadata(&path).expect("it is there").modified().expect("a time");
            let failure = create_crate(parent.path(), "shop", Template::Service, None)
                .expect_err("it exists");
            assert!(failure.reason.contains("already exists"), "{}", failure.reason);
            let after = fs::metadata(&path).expect("it is there").modified().expect("a time");
            assert_eq!(after, before);
            let _ = fs::remove_dir(&path).or_else(|_| fs::remove_file(&path));
        }
    }

    #[test]
    fn path_dependency_requires_ostler_manifest() {
        let parent = tempfile::tempdir().expect("a directory");
        let failure = create_crate(parent.path(), "shop", Template::Service, Some(parent.path()))
            .expect_err("no manifest");
        assert!(
            failure.reason.contains("failed to read") && failure.code == 1,
            "{}",
            failure.reason
        );
        fs::write(parent.path().join("Cargo.toml"), "[package]\nname = \"x\"\n").expect("written");
        let failure = create_crate(parent.path(), "shop", Template::Service, Some(parent.path()))
            .expect_err("not ostler");
        assert!(failure.reason.ends_with("is not the manifest of ostler"), "{}", failure.reason);
        assert!(!parent.path().join("shop").exists());
        let odd = parent.path().join("a \"b\" \\c");
        fs::create_dir(&odd).expect("made");
        fs::write(odd.join("Cargo.toml"), "name = \"ostler\"\n").expect("written");
        let dependency = path_dependency(&odd).expect("a checkout");
        assert!(dependency.ends_with(r#"/a \"b\" \\c""#), "{dependency}");
    }

    #[test]
    fn created_files_drop_removes_only_its_own() {
        let parent = tempfile::tempdir().expect("a directory");
        let (a, b) = (parent.path().join("a"), parent.path().join("b"));
        for inner in [&a, &b] {
            let mut created = CreatedFiles::default();
            created.create_dir(inner).expect("made");
            created.create_file(&inner.join("mine"), "").expect("made");
            created.create_file(&inner.join("mine"), "other").expect_err("nothing is overwritten");
            if inner == &b {
                fs::write(inner.join("theirs"), "").expect("written");
            }
        }
        assert!(!a.exists());
        assert!(!b.join("mine").exists() && b.join("theirs").exists());
    }

    #[test]
    fn default_dependency_is_a_checkout_or_the_registry() {
        let sources = tempfile::tempdir().expect("a directory");
        let manifest = sources.path().join("Cargo.toml");
        fs::write(manifest, "[package]\nname = \"ostler\"\n").expect("written");
        let (from_registry, note) = default_dependency(sources.path());
        assert_eq!(from_registry, format!("version = {:?}", env!("CARGO_PKG_VERSION")));
        assert!(
            note.contains("If that is not published") && note.contains("--path PATH"),
            "{note}"
        );
        fs::write(sources.path().join(".git"), "").expect("written");
        let (from_checkout, note) = default_dependency(sources.path());
        assert!(from_checkout.starts_with("path = \""), "{from_checkout}");
        assert!(note.contains("depends on the checkout"), "{note}");
    }
}
