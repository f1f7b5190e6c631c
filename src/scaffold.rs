//! `ostler new NAME`: a crate to begin with, made of the files in `templates/`. A part of the `ostler`
//! program, not of the library. It must never overwrite anything, nor leave half of a crate behind.

use std::ffi::OsString;
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// What `--help` of the whole program says about it.
pub(crate) const NOTE: &str = "\
ostler new NAME makes a crate to begin with: an app, a worker class, settings and tests. As the first
word, new is never an app. See ostler new --help.";

const HELP: &str = "\
Makes a crate to begin with, in a new folder of that name: an app, a worker class of its own, settings
and tests that start it.

Usage: ostler new NAME [--path PATH]

Arguments:
  NAME         Name of the crate and of its folder: lower-case letters, digits, - and _

Options:
      --path PATH  Folder of a checkout of ostler that the crate is to depend on [default: the version
                   of this program, from the registry]
  -h, --help       Print this help, and leave
";

/// Each file, below the folder of the crate, and what it is made from. `@NAME@` and `@OSTLER@` stand
/// for the crate's name and its dependency.
const FILES: [(&str, &str); 9] = [
    ("Cargo.toml", include_str!("../templates/manifest.toml")),
    (".gitignore", include_str!("../templates/gitignore")),
    ("README.md", include_str!("../templates/readme.md")),
    ("config/@NAME@.yaml", include_str!("../templates/settings.yaml")),
    ("src/main.rs", include_str!("../templates/main.rs")),
    ("src/app.rs", include_str!("../templates/app.rs")),
    ("src/class.rs", include_str!("../templates/class.rs")),
    ("tests/starts.rs", include_str!("../templates/starts.rs")),
    ("tests/kit.rs", include_str!("../templates/kit.rs")),
];

const FOLDERS: [&str; 3] = ["config", "src", "tests"];

const NAME_BYTES_MAX: usize = 64;

/// What a crate with a program cannot be called: words of the language, crates that come with it,
/// folders that cargo needs for itself, and what the new crate depends on.
const TAKEN: [&str; 5] = [
    "abstract as async await become box break const continue crate do dyn else enum extern false",
    "final fn for gen if impl in let loop macro match mod move mut override priv pub ref return self",
    "static struct super trait true try type typeof unsafe unsized use virtual where while yield",
    "alloc core proc_macro std test build deps examples incremental",
    "ostler slog",
];

/// Does what `ostler new …` asks for; `None` if the words of the command line, without the program's
/// own, ask for something else.
pub(crate) fn obey(words: &[OsString]) -> Option<ExitCode> {
    let (first, rest) = words.split_first()?;
    if first != "new" {
        return None;
    }
    let outcome = read(rest).and_then(|wish| match wish {
        Wish::Help => Ok(HELP.to_owned()),
        Wish::Crate { name, path } => make(Path::new(""), &name, path.as_deref()),
    });
    let (code, result) = match outcome {
        Ok(text) => (0, io::stdout().write_all(text.as_bytes())),
        Err(Failure { code, why }) => (code, writeln!(io::stderr(), "ostler new: {why}")),
    };
    // A reader that has gone is no reason to fail.
    let _ = result;
    Some(ExitCode::from(code))
}

#[derive(Debug, PartialEq, Eq)]
enum Wish {
    Help,
    Crate { name: String, path: Option<PathBuf> },
}

#[derive(Debug, PartialEq, Eq)]
struct Failure {
    /// 2 for a bad command line, 1 for what the system refuses.
    code: u8,
    why: String,
}

fn bad_line(why: impl Into<String>) -> Failure {
    Failure { code: 2, why: why.into() }
}

fn refused(why: impl Into<String>) -> Failure {
    Failure { code: 1, why: why.into() }
}

fn read(words: &[OsString]) -> Result<Wish, Failure> {
    let (mut names, mut path) = (Vec::new(), None);
    let mut words = words.iter();
    while let Some(word) = words.next() {
        let word = word.to_str().ok_or_else(|| bad_line(format!("{word:?} is not UTF-8")))?;
        if word == "--help" || word == "-h" {
            return Ok(Wish::Help);
        }
        let value = if word == "--path" {
            let value = words.next().ok_or_else(|| bad_line("--path needs a folder behind it"))?;
            Some(PathBuf::from(value))
        } else {
            word.strip_prefix("--path=").map(PathBuf::from)
        };
        match value {
            Some(value) if path.is_none() => path = Some(value),
            Some(_) => return Err(bad_line("--path is given twice")),
            None if word.starts_with('-') => {
                return Err(bad_line(format!(
                    "there is no option {word:?}; see ostler new --help"
                )));
            }
            None => names.push(word),
        }
    }
    match names[..] {
        [name] => judge(name).map(|()| Wish::Crate { name: name.to_owned(), path }),
        [] => Err(bad_line("give a name: ostler new NAME")),
        _ => Err(bad_line(format!("one name is wanted, not {}", names.len()))),
    }
}

/// Whether a crate with a program can be called so.
fn judge(name: &str) -> Result<(), Failure> {
    let usual = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-_".contains(c);
    let why = if !name.starts_with(|c: char| c.is_ascii_lowercase()) {
        "does not begin with a lower-case letter"
    } else if !name.chars().all(usual) {
        "has other characters than lower-case letters, digits, - and _"
    } else if name.len() > NAME_BYTES_MAX {
        "is longer than 64 characters"
    } else if is_taken(&name.replace('-', "_")) {
        "is taken: by the language, by cargo, or by a crate that the new one needs"
    } else {
        return Ok(());
    };
    Err(bad_line(format!("{name:?} cannot be the name of a crate: it {why}")))
}

fn is_taken(name: &str) -> bool {
    TAKEN.iter().flat_map(|words| words.split(' ')).any(|word| word == name)
}

/// Makes the crate below a folder, and gives the words that say so.
fn make(below: &Path, name: &str, path: Option<&Path>) -> Result<String, Failure> {
    let ostler = match path {
        Some(path) => local(path)?,
        None => format!("{:?}", env!("CARGO_PKG_VERSION")),
    };
    let fill = |text: &str| text.replace("@NAME@", name).replace("@OSTLER@", &ostler);
    let root = below.join(name);
    let mut made = Made::default();
    let say = |path: &Path, error: &io::Error| match error.kind() {
        io::ErrorKind::AlreadyExists if *path == root => {
            refused(format!("{path:?} exists already, and is left as it is: give another name"))
        }
        _ => refused(format!("cannot make {path:?}: {error}; nothing is left of the new crate")),
    };
    for folder in [""].iter().chain(&FOLDERS) {
        let path = if folder.is_empty() { root.clone() } else { root.join(folder) };
        made.folder(&path).map_err(|error| say(&path, &error))?;
    }
    for (file, text) in FILES {
        let path = root.join(fill(file));
        made.file(&path, &fill(text)).map_err(|error| say(&path, &error))?;
    }
    made.keep();
    Ok(format!(
        "made {name}: an app, a worker class of its own, settings and tests. Next:\n\n    \
        cd {name}\n    cargo test\n    cargo run -- --config config/{name}.yaml\n"
    ))
}

/// The dependency on a checkout, as Cargo.toml wants it.
fn local(path: &Path) -> Result<String, Failure> {
    let manifest = path.join("Cargo.toml");
    let text = fs::read_to_string(&manifest)
        .map_err(|error| refused(format!("--path: cannot read {manifest:?}: {error}")))?;
    if !text.lines().any(|line| line.trim() == r#"name = "ostler""#) {
        return Err(refused(format!("--path: {manifest:?} is not that of ostler")));
    }
    let folder = path.canonicalize();
    let folder = folder.map_err(|error| refused(format!("--path: {path:?}: {error}")))?;
    match folder.to_str() {
        Some(folder) if !folder.chars().any(char::is_control) => {
            let folder = folder.replace('\\', r"\\").replace('"', r#"\""#);
            Ok(format!(r#"{{ path = "{folder}" }}"#))
        }
        _ => {
            Err(refused(format!("--path: Cargo.toml cannot name {folder:?}: it is no plain text")))
        }
    }
}

/// What has been made, and is taken back when this is dropped, unless it is to be kept.
#[derive(Default)]
struct Made {
    folders: Vec<PathBuf>,
    files: Vec<PathBuf>,
}

impl Made {
    fn folder(&mut self, path: &Path) -> io::Result<()> {
        fs::create_dir(path)?;
        self.folders.push(path.to_owned());
        Ok(())
    }

    fn file(&mut self, path: &Path, text: &str) -> io::Result<()> {
        let mut file = OpenOptions::new().write(true).create_new(true).open(path)?;
        self.files.push(path.to_owned());
        file.write_all(text.as_bytes())
    }

    fn keep(&mut self) {
        self.folders.clear();
        self.files.clear();
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        for file in &self.files {
            let _ = fs::remove_file(file);
        }
        // One into which somebody else has put something stays.
        for folder in self.folders.iter().rev() {
            let _ = fs::remove_dir(folder);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::ffi::OsStringExt;

    fn order(words: &[&str]) -> Result<Wish, Failure> {
        read(&words.iter().map(OsString::from).collect::<Vec<_>>())
    }

    #[track_caller]
    fn bad(words: &[&str], expected: &str) {
        let failure = order(words).expect_err(expected);
        assert_eq!(failure.code, 2);
        assert!(failure.why.contains(expected), "{}", failure.why);
    }

    #[test]
    fn only_the_first_word_means_it() {
        for words in [&[][..], &["echo", "new"], &["-w", "1", "new"], &["--help"]] {
            let words: Vec<_> = words.iter().map(OsString::from).collect();
            assert!(obey(&words).is_none(), "{words:?}");
        }
    }

    #[test]
    fn a_name_and_a_path_in_any_order() {
        let shop = |path: Option<&str>| Wish::Crate {
            name: "shop".to_owned(),
            path: path.map(PathBuf::from),
        };
        assert_eq!(order(&["shop"]), Ok(shop(None)));
        assert_eq!(order(&["--path", "..", "shop"]), Ok(shop(Some(".."))));
        assert_eq!(order(&["shop", "--path=a b"]), Ok(shop(Some("a b"))));
        assert_eq!(order(&["shop", "-h"]), Ok(Wish::Help));
    }

    #[test]
    fn bad_words_are_errors_of_the_command_line() {
        bad(&[], "give a name");
        bad(&["a", "b"], "one name is wanted, not 2");
        bad(&["a", "--path"], "--path needs a folder");
        bad(&["a", "--path=b", "--path", "c"], "given twice");
        bad(&["a", "--lib"], "no option \"--lib\"");
        let odd = OsString::from_vec(b"a\xff".to_vec());
        assert!(read(&[odd]).expect_err("not UTF-8").why.ends_with("is not UTF-8"));
    }

    #[test]
    fn names_are_those_that_cargo_takes() {
        for good in ["a", "shop", "my-shop_2", "a-", "newer", "null"] {
            assert_eq!(judge(good), Ok(()), "{good}");
        }
        bad(&[""], "does not begin with");
        bad(&["1a"], "does not begin with");
        bad(&["Shop"], "does not begin with");
        bad(&["../shop"], "does not begin with");
        bad(&["a/b"], "other characters");
        bad(&["aB"], "other characters");
        bad(&["a.b"], "other characters");
        bad(&["fn"], "is taken");
        bad(&["proc-macro"], "is taken");
        bad(&["ostler"], "is taken");
        bad(&[&"a".repeat(65)], "longer than 64");
    }

    #[test]
    fn what_exists_is_left_as_it_is() {
        let folder = tempfile::tempdir().expect("a folder");
        for prepare in [fs::create_dir as fn(PathBuf) -> io::Result<()>, |p| fs::write(p, "mine")] {
            let path = folder.path().join("shop");
            prepare(path.clone()).expect("prepared");
            let before = fs::metadata(&path).expect("it is there").modified().expect("a time");
            let failure = make(folder.path(), "shop", None).expect_err("it exists");
            assert!(failure.why.contains("exists already"), "{}", failure.why);
            let after = fs::metadata(&path).expect("it is there").modified().expect("a time");
            assert_eq!(after, before);
            let _ = fs::remove_dir(&path).or_else(|_| fs::remove_file(&path));
        }
    }

    #[test]
    fn a_checkout_is_looked_at() {
        let folder = tempfile::tempdir().expect("a folder");
        let failure = make(folder.path(), "shop", Some(folder.path())).expect_err("no manifest");
        assert!(failure.why.contains("cannot read") && failure.code == 1, "{}", failure.why);
        fs::write(folder.path().join("Cargo.toml"), "[package]\nname = \"x\"\n").expect("written");
        let failure = make(folder.path(), "shop", Some(folder.path())).expect_err("not ostler");
        assert!(failure.why.ends_with("is not that of ostler"), "{}", failure.why);
        assert!(!folder.path().join("shop").exists());
        let odd = folder.path().join("a \"b\" \\c");
        fs::create_dir(&odd).expect("made");
        fs::write(odd.join("Cargo.toml"), "name = \"ostler\"\n").expect("written");
        let dependency = local(&odd).expect("a checkout");
        assert!(dependency.ends_with(r#"/a \"b\" \\c" }"#), "{dependency}");
    }

    #[test]
    fn a_failure_takes_back_what_was_made_and_nothing_else() {
        let folder = tempfile::tempdir().expect("a folder");
        let (a, b) = (folder.path().join("a"), folder.path().join("b"));
        for inner in [&a, &b] {
            let mut made = Made::default();
            made.folder(inner).expect("made");
            made.file(&inner.join("mine"), "").expect("made");
            made.file(&inner.join("mine"), "other").expect_err("nothing is overwritten");
            if inner == &b {
                fs::write(inner.join("theirs"), "").expect("written");
            }
        }
        assert!(!a.exists());
        assert!(!b.join("mine").exists() && b.join("theirs").exists());
    }
}
