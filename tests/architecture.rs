//! The house rules that the compiler does not check: who may import whom, what is pure, and in
//! which room each dependency lives. It reads the source text.

#![allow(clippy::unwrap_used)]

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Who may import a neighbour on the same floor: the kernel's face speaks in pure values, and the
/// doors share a corridor.
const SAME_LAYER_IMPORTS: [(&str, &str); 8] = [
    ("app", "stamp"),
    ("os", "stamp"),
    ("os", "diagnosis"),
    ("diagnosis", "stamp"),
    ("program", "cli"),
    ("main", "program"),
    ("main", "scaffold"),
    ("bin", "program"),
];

/// What the crate's root offers besides modules, and the module that it comes from.
const ROOT_ITEMS: [(&str, &str); 3] =
    [("Runtime", "runtime"), ("RuntimeError", "runtime"), ("main", "program")];

/// Files and folders, by the beginning of their paths, that decide and do nothing else.
const PURE_MODULES: [&str; 15] = [
    "src/arbiter/cgroup/orphans.rs",
    "src/arbiter/oom/counters.rs",
    "src/arbiter/reload_barrier.rs",
    "src/app.rs",
    "src/app/",
    "src/job/",
    "src/duration.rs",
    "src/diagnosis.rs",
    "src/time.rs",
    "src/address.rs",
    "src/session.rs",
    "src/http/",
    "src/rpc/",
    "src/arbiter/pool/supervisor/",
    "src/worker/timer_wheel.rs",
];

/// What no pure file may mention outside its tests.
const IMPURE_NAMES: [&str; 16] = [
    "crate::os",
    "TcpListener",
    "TcpStream",
    "UdpSocket",
    "UnixListener",
    "UnixStream",
    "OwnedFd",
    "RawFd",
    "std::fs",
    "std::thread",
    "thread::",
    "Instant",
    "SystemTime",
    "env::var",
    "libc::",
    "nix::",
];

/// Words that only these files and folders may mention.
const DEPENDENCY_MODULES: [(&str, &[&str]); 13] = [
    ("libc::", &["src/os/"]),
    ("nix::", &["src/os/"]),
    ("serde_yaml::", &["src/settings/"]),
    ("clap::", &["src/cli.rs"]),
    ("slog_term::", &["src/log/"]),
    ("mio::", &["workers/"]),
    ("crossbeam_channel::", &["workers/"]),
    ("httparse::", &["src/http/"]),
    ("rmp::", &["src/rpc/"]),
    ("rmp_serde::", &["src/rpc/"]),
    ("slab::", &["workers/"]),
    ("croner::", &["src/job/cron.rs"]),
    ("chrono::", &["src/job/"]),
];

/// The examples that may do what the compiler cannot check, each with the fact that makes it sound:
/// a ring of the kernel's works on memory behind its back, and tokio watches descriptors by number.
const UNSAFE_EXAMPLES: [&str; 2] = ["examples/tokio_axum.rs", "examples/uring.rs"];

/// One file of the library or of the classes.
struct Source {
    /// Relative to the package, such as `src/http/mod.rs`.
    path: String,
    /// Its lines with their numbers, without comments and the contents of string literals.
    lines: Vec<(usize, String)>,
    /// The number of the line at which its tests begin.
    tests_at: usize,
}

impl Source {
    fn new(path: String, text: &str) -> Self {
        let lines: Vec<_> =
            text.lines().enumerate().map(|(index, line)| (index + 1, code_of(line))).collect();
        let tests_at = if is_test_file(&path) { Some(0) } else { tests_begin(&lines) };
        Self { path, lines, tests_at: tests_at.unwrap_or(usize::MAX) }
    }

    /// The lines before the tests.
    fn code(&self) -> impl Iterator<Item = (usize, &str)> {
        let lines = self.lines.iter().filter(|(number, _)| *number < self.tests_at);
        lines.map(|(number, line)| (*number, line.as_str()))
    }

    fn is_in(&self, modules: &[&str]) -> bool {
        modules.iter().any(|room| self.path.starts_with(room))
    }

    /// The module that the file belongs to, right below the crate's root.
    fn module(&self) -> &str {
        let inner = self.path.strip_prefix("src/").unwrap_or(&self.path);
        inner.split('/').next().unwrap_or(inner).trim_end_matches(".rs")
    }

    /// How many `super::` lead from the file's own module to the crate's root.
    fn depth(&self) -> usize {
        let inner = self.path.strip_prefix("src/").unwrap_or(&self.path);
        let inner = inner.strip_suffix("/mod.rs").unwrap_or(inner);
        inner.split('/').count()
    }

    /// The modules that the code names through the crate's root, and where.
    fn imports(&self) -> Vec<(usize, String)> {
        let text: String = self.code().flat_map(|(_, line)| [line, "\n"]).collect();
        let first = self.lines.first().map_or(1, |(number, _)| *number);
        let up = "super::".repeat(self.depth());
        let mut found = Vec::new();
        for root in ["crate::", "ostler::", up.as_str()] {
            for (at, _) in text.match_indices(root) {
                if text[..at].ends_with(|before: char| is_word(before) || before == ':') {
                    continue;
                }
                let line = first + text[..at].matches('\n').count();
                let names = names_after(&text[at + root.len()..]);
                found.extend(names.into_iter().map(|name| (line, name)));
            }
        }
        found
    }
}

fn is_word(character: char) -> bool {
    character.is_alphanumeric() || character == '_'
}

fn is_test_file(path: &str) -> bool {
    path.ends_with("/tests.rs") || path.contains("/tests/")
}

/// The line at which `#[cfg(test)] mod tests { … }` begins, which by custom ends its file.
fn tests_begin(lines: &[(usize, String)]) -> Option<usize> {
    let pairs = lines.windows(2).filter(|pair| pair[0].1.trim() == "#[cfg(test)]");
    let mut inline = pairs.filter(|pair| {
        let line = pair[1].1.trim();
        line.starts_with("mod ") && line.ends_with('{')
    });
    inline.next().map(|pair| pair[0].0)
}

/// A line without its comment and without what is in its string literals. Enough for this code,
/// which has no block comments; what follows a line break in a literal is read as code.
fn code_of(line: &str) -> String {
    let (mut code, mut in_string, mut escaped) = (String::new(), false, false);
    let mut characters = line.chars().peekable();
    while let Some(character) = characters.next() {
        match character {
            _ if escaped => escaped = false,
            '\\' if in_string => escaped = true,
            '\'' if !in_string && characters.peek() == Some(&'"') => {
                characters.next(); // the character '"'
            }
            '"' => in_string = !in_string,
            '/' if !in_string && characters.peek() == Some(&'/') => break,
            _ if in_string => (),
            _ => code.push(character),
        }
    }
    code
}

/// The first names after a path's root: one, or several in braces.
fn names_after(text: &str) -> Vec<String> {
    let Some(group) = text.strip_prefix('{') else {
        return vec![text.chars().take_while(|c| is_word(*c)).collect()];
    };
    let (mut names, mut depth, mut name) = (Vec::new(), 0, String::new());
    let mut at_name = true;
    for character in group.chars() {
        match character {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                names.push(std::mem::take(&mut name));
                at_name = true;
            }
            c if depth == 0 && at_name && is_word(c) => name.push(c),
            c if depth == 0 && !c.is_whitespace() => at_name = false,
            _ => (),
        }
    }
    names.push(name);
    names.retain(|name| !name.is_empty() && name != "self");
    names
}

/// The floors, as `src/lib.rs` lists its modules: below `// 3: …` stand those of the third. A file
/// imports lower floors and its own module.
struct Layers(HashMap<String, usize>);

impl Layers {
    fn parse(lib_rs: &str) -> Self {
        let (mut layers, mut layer) = (HashMap::new(), None);
        for line in lib_rs.lines() {
            if let Some((number, _)) = line.strip_prefix("// ").and_then(|l| l.split_once(": ")) {
                layer = number.parse().ok().or(layer);
            }
            let item = line.trim_start_matches("pub ").strip_prefix("mod ");
            if let Some(name) = item.and_then(|item| item.strip_suffix(';')) {
                layers.insert(name.to_owned(), layer.expect("a module stands on a floor"));
            }
        }
        // The programs, which are other crates.
        layers.extend(["main", "bin", "scaffold"].map(|name| (name.to_owned(), 7)));
        Self(layers)
    }

    fn layer(&self, module: &str) -> Option<usize> {
        self.0.get(module).copied()
    }

    /// What is wrong with a file's imports.
    fn import_violations(&self, source: &Source) -> Vec<String> {
        let Some(layer) = self.layer(source.module()) else {
            return vec![format!("{} is on no floor of src/lib.rs", source.path)];
        };
        let mut violations = Vec::new();
        for (line, name) in source.imports() {
            let item = ROOT_ITEMS.iter().find(|(item, _)| *item == name);
            let module = item.map_or(name.as_str(), |(_, module)| module);
            match self.layer(module) {
                Some(_) if module == source.module() => (),
                Some(other) if other < layer => (),
                _ if SAME_LAYER_IMPORTS.contains(&(source.module(), module)) => (),
                Some(other) => violations.push(format!(
                    "{}:{line} (floor {layer}) must not import {module} (floor {other})",
                    source.path
                )),
                None => {
                    violations.push(format!("{}:{line} imports {name}, on no floor", source.path))
                }
            }
        }
        violations
    }
}

fn module_list() -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/lib.rs")).unwrap()
}

/// All files of the library and of the built-in classes; not `src/lib.rs`, which is the map.
fn sources() -> Vec<Source> {
    let mut sources = sources_in(&["src", "workers"]);
    sources.retain(|source| source.path != "src/lib.rs");
    assert!(sources.len() > 30, "only {} files are found", sources.len());
    sources
}

fn sources_in(folders: &[&str]) -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = Vec::new();
    for folder in folders {
        collect(&root.join(folder), &mut files);
    }
    files.sort();
    let sources = files.iter().map(|file| {
        let path = file.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
        Source::new(path, &fs::read_to_string(file).unwrap())
    });
    sources.collect()
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            collect(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
}

/// The lines, outside tests, on which a word occurs: `file:line`.
fn occurrences(source: &Source, word: &str) -> Vec<String> {
    let lines = source
        .code()
        .filter(|(_, line)| line.match_indices(word).any(|(at, _)| !line[..at].ends_with(is_word)));
    lines.map(|(number, _)| format!("{}:{number}", source.path)).collect()
}

#[track_caller]
fn assert_none(violations: Vec<String>) {
    assert!(violations.is_empty(), "\n{}\n", violations.join("\n"));
}

#[test]
fn file_imports_own_and_lower_layers() {
    let layers = Layers::parse(&module_list());
    assert!(layers.layer("os") == Some(0) && layers.layer("arbiter") == Some(5));
    assert_none(sources().iter().flat_map(|source| layers.import_violations(source)).collect());
}

#[test]
fn decision_modules_are_pure() {
    let sources = sources();
    for path_prefix in PURE_MODULES {
        assert!(
            sources.iter().any(|source| source.is_in(&[path_prefix])),
            "there is no {path_prefix}"
        );
    }
    let pure = sources.iter().filter(|source| source.is_in(&PURE_MODULES));
    let wrong = pure.flat_map(|source| {
        IMPURE_NAMES.iter().flat_map(move |word| {
            let places = occurrences(source, word).into_iter();
            places.map(move |place| format!("{place} is pure and must not mention {word}"))
        })
    });
    assert_none(wrong.collect());
}

#[test]
fn unsafe_is_in_the_lowest_layer_only() {
    let outside = sources().into_iter().filter(|source| !source.is_in(&["src/os/"]));
    let wrong = outside.flat_map(|source| {
        ["unsafe", "allow(unsafe_code"].map(|word| occurrences(&source, word)).concat()
    });
    assert_none(wrong.map(|place| format!("{place} has unsafe code outside src/os")).collect());
    let lib_rs = module_list();
    assert_eq!(lib_rs.matches("unsafe_code").count(), 1, "src/lib.rs allows it for `mod os` alone");
    assert!(lib_rs.contains("#[allow(unsafe_code)]\nmod os;"));
}

#[test]
fn unsafe_examples_are_listed() {
    let mut found: Vec<String> = sources_in(&["examples"])
        .into_iter()
        .filter(|source| !occurrences(source, "unsafe").is_empty())
        .map(|source| source.path)
        .collect();
    found.sort();
    assert_eq!(found, UNSAFE_EXAMPLES);
}

#[test]
fn testkit_is_in_the_top_layer() {
    assert_eq!(Layers::parse(&module_list()).layer("testkit"), Some(7));
    // What a class is tested by must not know how anything of the runtime is done.
    let kit = sources().into_iter().filter(|source| source.module() == "testkit");
    let imports: Vec<_> = kit.flat_map(|source| source.imports()).map(|(_, name)| name).collect();
    assert!(imports.iter().all(|name| ["os", "testkit"].contains(&name.as_str())), "{imports:?}");
}

#[test]
fn each_dependency_stays_in_its_modules() {
    let mut wrong = Vec::new();
    for source in sources() {
        for (word, modules) in DEPENDENCY_MODULES.iter().filter(|(_, rooms)| !source.is_in(rooms)) {
            let places = occurrences(&source, word).into_iter();
            wrong.extend(places.map(|place| format!("{place}: {word} belongs to {modules:?}")));
        }
    }
    assert_none(wrong);
}

#[test]
fn worker_classes_use_the_public_api_only() {
    let classes = sources().into_iter().filter(|source| source.is_in(&["workers/"]));
    let mut wrong = Vec::new();
    for class in classes {
        for word in ["crate::", "super::super", "self::super"] {
            let places = occurrences(&class, word).into_iter();
            wrong.extend(places.map(|place| format!("{place} must not say {word}")));
        }
        // Only the list of classes knows them; what is in the folder of a class may know that class.
        let is_submodule_of_class =
            class.path.matches('/').count() > 1 && !class.path.ends_with("/mod.rs");
        if class.path != "workers/mod.rs" && !is_submodule_of_class {
            let places = occurrences(&class, "super::").into_iter();
            wrong.extend(places.map(|place| format!("{place}: classes do not know each other")));
        }
    }
    assert_none(wrong);
}

#[test]
fn scanner_finds_imports_and_occurrences() {
    let text = "use crate::log;\nuse ostler::{os::{a, b}, app::App};\nfn f() { \"crate::x\"; }\n\
        use super::super::worker; // crate::cli\n#[cfg(test)]\nmod tests {\n  crate::arbiter\n}\n";
    let source = Source::new("src/http/head.rs".to_owned(), text);
    let names: Vec<_> = source.imports().into_iter().map(|(line, name)| (name, line)).collect();
    let expected = [("log", 1), ("os", 2), ("app", 2), ("worker", 4)];
    assert_eq!(names, expected.map(|(name, line)| (name.to_owned(), line)));
    let layers = Layers::parse(
        "// 0: a\nmod os;\npub mod app;\n// 1: b\nmod log;\nmod http;\n// 3: c\n#[x]\npub mod worker;\n",
    );
    let wrong = layers.import_violations(&source);
    assert_eq!(
        wrong.last().unwrap(),
        "src/http/head.rs:4 (floor 1) must not import worker (floor 3)"
    );
    assert_eq!(occurrences(&source, "worker"), ["src/http/head.rs:4"]);
}
