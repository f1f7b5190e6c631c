//! The rules of the architecture that the compiler does not check: which module may import which,
//! which modules are pure, where each dependency is used, and how large a file may be. The tests
//! read the source text.
//!
//! To see which file depends on which:
//! `cargo test --test architecture -- --ignored --nocapture diagram`.

#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use graph::Graph;
use tokens::{is_word_char, strip_comments_and_literals, structs, tokenize, without_tests};

#[path = "architecture/graph.rs"]
mod graph;
#[path = "architecture/tokens.rs"]
mod tokens;

/// The longest file that is neither a test nor a table, in lines.
const FILE_LINES_MAX: usize = 450;

/// Files of which most is a table. They may be longer.
const TABLES: [&str; 1] = ["src/settings/schema.rs"];

/// The most fields of a struct without a comment beside it that begins with `// Fields:` and gives
/// the reason.
const STRUCT_FIELDS_MAX: usize = 12;

/// Imports within a layer: `os` returns pure values, and the entry points use each other.
const SAME_LAYER_IMPORTS: [(&str, &str); 9] = [
    ("app", "time"),
    ("os", "time"),
    ("os", "diagnosis"),
    ("diagnosis", "time"),
    ("program", "cli"),
    ("program", "doctor"),
    ("main", "program"),
    ("main", "scaffold"),
    ("bin", "program"),
];

/// The items of the crate's root that are no modules, and the module that each comes from.
const ROOT_ITEMS: [(&str, &str); 3] =
    [("Runtime", "runtime"), ("RuntimeError", "runtime"), ("main", "program")];

/// Files and directories, by the beginning of their paths, that decide and have no effects.
const PURE_MODULES: [&str; 22] = [
    "src/arbiter/cgroup/orphans.rs",
    "src/arbiter/oom/counters.rs",
    "src/arbiter/operations",
    "src/arbiter/pre_stop.rs",
    "src/arbiter/reload_barrier.rs",
    "src/doctor/checks.rs",
    "src/app.rs",
    "src/app/",
    "src/job/",
    "src/duration.rs",
    "src/diagnosis.rs",
    "src/rng.rs",
    "src/time.rs",
    "src/address.rs",
    "src/session.rs",
    "src/http/",
    "src/rpc/",
    "src/scaling/",
    "src/leader/",
    "src/arbiter/pool/supervisor/",
    "src/worker/accept_policy",
    "src/worker/timer_wheel.rs",
];

/// The names that a pure file may not mention outside its tests.
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

/// The dependencies, and the only files and directories that may mention each.
const DEPENDENCY_MODULES: [(&str, &[&str]); 24] = [
    ("libc::", &["src/os/"]),
    ("nix::", &["src/os/"]),
    ("saphyr_parser::", &["src/settings/"]),
    ("clap::", &["src/cli.rs", "src/cli/", "src/bin/ostlerctl/args.rs"]),
    ("ratatui::", &["src/bin/ostlerctl/top/"]),
    ("signal_hook::", &["src/bin/ostlerctl/"]),
    ("slog_term::", &["src/log/"]),
    ("mio::", &["workers/"]),
    ("crossbeam_channel::", &["workers/"]),
    ("httparse::", &["src/http/", "src/bin/ostlerctl/http.rs"]),
    ("memchr::", &["src/http/"]),
    ("rmp::", &["src/rpc/"]),
    ("rmp_serde::", &["src/rpc/"]),
    ("slab::", &["workers/"]),
    ("tokio::", &["workers/", "src/program.rs", "src/lib.rs"]),
    ("hyper::", &["workers/tokio/"]),
    ("hyper_util::", &["workers/tokio/"]),
    ("pin_project_lite::", &["workers/tokio/"]),
    ("io_uring::", &["src/os/uring/"]),
    ("tracing_core::", &["workers/tokio/events.rs"]),
    ("croner::", &["src/job/cron.rs"]),
    ("chrono::", &["src/job/"]),
    ("ureq::", &["src/arbiter/leader/http_client.rs"]),
    ("base64::", &["src/arbiter/leader/etcd.rs"]),
];

/// The example that may use `unsafe`: a broken class takes a signal.
const UNSAFE_EXAMPLES: [&str; 1] = ["examples/broken_class.rs"];

/// The file of a class that may use `unsafe`: tokio watches descriptors by number.
const UNSAFE_CLASS_FILE: &str = "workers/tokio/watched_fd.rs";

/// One file of the library or of the built-in classes.
struct Source {
    /// Relative to the package, such as `src/http/mod.rs`.
    path: String,
    text: String,
    /// Its lines with their numbers, without comments and the contents of literals.
    lines: Vec<(usize, String)>,
    /// The number of the line at which its tests begin.
    tests_at: usize,
}

impl Source {
    fn new(path: String, text: String) -> Self {
        let code = strip_comments_and_literals(&text);
        let lines: Vec<_> =
            code.lines().enumerate().map(|(index, line)| (index + 1, line.to_owned())).collect();
        let tests_at = if is_test_file(&path) { Some(0) } else { tests_begin(&lines) };
        Self { path, text, lines, tests_at: tests_at.unwrap_or(usize::MAX) }
    }

    /// Returns the lines before the tests.
    fn code(&self) -> impl Iterator<Item = (usize, &str)> {
        let lines = self.lines.iter().filter(|(number, _)| *number < self.tests_at);
        lines.map(|(number, line)| (*number, line.as_str()))
    }

    fn is_in(&self, modules: &[&str]) -> bool {
        modules.iter().any(|module| self.path.starts_with(module))
    }

    /// Returns the file's module right below the crate's root.
    fn module(&self) -> &str {
        let inner = self.path.strip_prefix("src/").unwrap_or(&self.path);
        inner.split('/').next().unwrap_or(inner).trim_end_matches(".rs")
    }

    /// Returns how many `super::` lead from the file's own module to the crate's root.
    fn depth(&self) -> usize {
        let inner = self.path.strip_prefix("src/").unwrap_or(&self.path);
        let inner = inner.strip_suffix("/mod.rs").unwrap_or(inner);
        inner.split('/').count()
    }

    /// Returns the modules that the code names through the crate's root, each with its line.
    fn imports(&self) -> Vec<(usize, String)> {
        let text: String = self.code().flat_map(|(_, line)| [line, "\n"]).collect();
        let first = self.lines.first().map_or(1, |(number, _)| *number);
        let up = "super::".repeat(self.depth());
        let mut found = Vec::new();
        for root in ["crate::", "ostler::", up.as_str()] {
            for (at, _) in text.match_indices(root) {
                if text[..at].ends_with(|before: char| is_word_char(before) || before == ':') {
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

fn is_test_file(path: &str) -> bool {
    path.ends_with("/tests.rs") || path.contains("/tests/")
}

/// Returns the line at which `#[cfg(test)] mod tests { … }` begins, which ends its file by custom.
fn tests_begin(lines: &[(usize, String)]) -> Option<usize> {
    let pairs = lines.windows(2).filter(|pair| pair[0].1.trim() == "#[cfg(test)]");
    let mut inline = pairs.filter(|pair| {
        let line = pair[1].1.trim();
        line.starts_with("mod ") && line.ends_with('{')
    });
    inline.next().map(|pair| pair[0].0)
}

/// Returns the first names after a path's root: a single one, or several in braces.
fn names_after(text: &str) -> Vec<String> {
    let Some(group) = text.strip_prefix('{') else {
        return vec![text.chars().take_while(|c| is_word_char(*c)).collect()];
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
            c if depth == 0 && at_name && is_word_char(c) => name.push(c),
            c if depth == 0 && !c.is_whitespace() => at_name = false,
            _ => (),
        }
    }
    names.push(name);
    names.retain(|name| !name.is_empty() && name != "self");
    names
}

/// The layers, as `src/lib.rs` lists its modules: those of layer 3 follow the line `// 3: …`. A
/// file imports lower layers and its own module.
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
                layers.insert(name.to_owned(), layer.expect("every module has a layer"));
            }
        }
        // The programs are other crates.
        layers.extend(["main", "bin", "scaffold"].map(|name| (name.to_owned(), 7)));
        Self(layers)
    }

    fn layer(&self, module: &str) -> Option<usize> {
        self.0.get(module).copied()
    }

    /// Returns the imports of a file that its layer forbids.
    fn import_violations(&self, source: &Source) -> Vec<String> {
        let Some(layer) = self.layer(source.module()) else {
            return vec![format!("{} has no layer in src/lib.rs", source.path)];
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
                    "{}:{line} (layer {layer}) must not import {module} (layer {other})",
                    source.path
                )),
                None => violations
                    .push(format!("{}:{line} imports {name}, which has no layer", source.path)),
            }
        }
        violations
    }
}

fn module_list() -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/lib.rs")).unwrap()
}

/// Returns all files of the library and of the built-in classes; not `src/lib.rs`, which lists
/// them.
fn sources() -> Vec<Source> {
    let mut sources = sources_in(&["src", "workers"]);
    sources.retain(|source| source.path != "src/lib.rs");
    assert!(sources.len() > 30, "only {} files are found", sources.len());
    sources
}

fn sources_in(dirs: &[&str]) -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = Vec::new();
    for dir in dirs {
        collect(&root.join(dir), &mut files);
    }
    files.sort();
    let sources = files.iter().map(|file| {
        let path = file.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
        Source::new(path, fs::read_to_string(file).unwrap())
    });
    sources.collect()
}

fn collect(dir: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            collect(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
}

/// Returns the lines outside tests on which a word occurs, as `file:line`.
fn occurrences(source: &Source, word: &str) -> Vec<String> {
    let lines = source.code().filter(|(_, line)| {
        line.match_indices(word).any(|(at, _)| !line[..at].ends_with(is_word_char))
    });
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
    let outside =
        sources().into_iter().filter(|source| !source.is_in(&["src/os/", UNSAFE_CLASS_FILE]));
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
    // The contract test of a class must not depend on how the runtime works.
    let kit = sources().into_iter().filter(|source| source.module() == "testkit");
    let imports: Vec<_> = kit.flat_map(|source| source.imports()).map(|(_, name)| name).collect();
    assert!(imports.iter().all(|name| ["os", "testkit"].contains(&name.as_str())), "{imports:?}");
}

#[test]
fn each_dependency_stays_in_its_modules() {
    let mut wrong = Vec::new();
    for source in sources() {
        for (word, modules) in
            DEPENDENCY_MODULES.iter().filter(|(_, modules)| !source.is_in(modules))
        {
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
            wrong.extend(places.map(|place| format!("{place} must not mention {word}")));
        }
        // Only workers/mod.rs names the classes; a file in the directory of a class may name that
        // class.
        let is_submodule_of_class =
            class.path.matches('/').count() > 1 && !class.path.ends_with("/mod.rs");
        if class.path != "workers/mod.rs" && !is_submodule_of_class {
            let places = occurrences(&class, "super::").into_iter();
            wrong
                .extend(places.map(|place| format!("{place}: classes must not import each other")));
        }
    }
    assert_none(wrong);
}

/// The files that [`Graph`] reads: those that are no tests.
fn graph_of(sources: &[Source]) -> Graph {
    let files = sources.iter().filter(|source| !is_test_file(&source.path));
    Graph::new(files.map(|source| (source.path.as_str(), source.text.as_str())))
}

#[test]
fn no_files_import_each_other_in_a_circle() {
    let circles = graph_of(&sources_in(&["src", "workers"])).circles();
    let wrong =
        circles.iter().map(|circle| format!("a circle of files:\n  {}", circle.join("\n  ")));
    assert_none(wrong.collect());
}

#[test]
#[ignore = "prints which file depends on which, by layer"]
fn diagram_of_the_files() {
    let layers = Layers::parse(&module_list());
    let sources = sources();
    let graph = graph_of(&sources);
    for layer in (0..=7).rev() {
        println!("\nlayer {layer}");
        let is_here = |path: &str| {
            let source = sources.iter().find(|source| source.path == path);
            source.and_then(|source| layers.layer(source.module())) == Some(layer)
        };
        for (file, used) in graph.dependencies().filter(|(file, _)| is_here(file)) {
            println!("  {file}");
            used.iter().for_each(|other| println!("    -> {other}"));
        }
    }
    for circle in graph.circles() {
        println!("\na circle:\n  {}", circle.join("\n  "));
    }
}

#[test]
fn files_are_not_too_long() {
    let sources = sources();
    let long = sources.iter().filter(|source| {
        source.lines.len() > FILE_LINES_MAX && !is_test_file(&source.path) && !source.is_in(&TABLES)
    });
    let wrong = long.map(|source| {
        format!("{} has {} lines; at most {FILE_LINES_MAX}", source.path, source.lines.len())
    });
    assert_none(wrong.collect());
}

#[test]
fn structs_have_few_fields_or_a_reason() {
    let sources = sources();
    let wrong = sources.iter().filter(|source| !is_test_file(&source.path)).flat_map(|source| {
        let code: String = source.lines.iter().flat_map(|(_, line)| [line, "\n"]).collect();
        let large = structs(&without_tests(tokenize(&code))).into_iter().filter(|found| {
            found.fields > STRUCT_FIELDS_MAX && !has_reason_for_fields(&source.text, found.lines)
        });
        let large = large.map(|found| {
            let (path, line) = (&source.path, found.lines.0);
            format!("{path}:{line} struct {} has {} fields", found.name, found.fields)
        });
        large.collect::<Vec<_>>()
    });
    assert_none(wrong.collect());
}

/// Whether `// Fields:` begins a line inside a struct, or in the comments and attributes above it.
fn has_reason_for_fields(text: &str, (first, last): (usize, usize)) -> bool {
    let lines: Vec<&str> = text.lines().map(str::trim_start).collect();
    let is_above = |line: &&&str| line.starts_with("//") || line.starts_with("#[");
    let above = lines[..first - 1].iter().rev().take_while(is_above);
    above.chain(&lines[first - 1..last]).any(|line| line.starts_with("// Fields: "))
}

#[test]
fn scanner_finds_imports_and_occurrences() {
    let text = "use crate::log;\nuse ostler::{os::{a, b}, app::App};\nfn f() { \"crate::x\"; }\n\
        use super::super::worker; // crate::cli\n#[cfg(test)]\nmod tests {\n  crate::arbiter\n}\n";
    let source = Source::new("src/http/head.rs".to_owned(), text.to_owned());
    let names: Vec<_> = source.imports().into_iter().map(|(line, name)| (name, line)).collect();
    let expected = [("log", 1), ("os", 2), ("app", 2), ("worker", 4)];
    assert_eq!(names, expected.map(|(name, line)| (name.to_owned(), line)));
    let layers = Layers::parse(
        "// 0: a\nmod os;\npub mod app;\n// 1: b\nmod log;\nmod http;\n// 3: c\n#[x]\npub mod worker;\n",
    );
    let wrong = layers.import_violations(&source);
    assert_eq!(
        wrong.last().unwrap(),
        "src/http/head.rs:4 (layer 1) must not import worker (layer 3)"
    );
    assert_eq!(occurrences(&source, "worker"), ["src/http/head.rs:4"]);
}

#[test]
fn graph_leads_to_the_file_that_defines_the_item() {
    let files = [
        ("src/a/mod.rs", "mod one;\nmod two;\npub(crate) use one::One;\nuse crate::b::B;\n"),
        ("src/a/one.rs", "use super::two;\npub struct One;\nfn f() { two::g() }\n"),
        ("src/a/two.rs", "use super::B;\nfn g() {}\n"),
        ("src/b.rs", "#[cfg(test)]\nmod tests { use crate::a::One; }\npub struct B;\n"),
    ];
    let graph = Graph::new(files);
    let found: Vec<_> = graph.dependencies().map(|(_, used)| used).collect();
    assert_eq!(found, [vec!["src/b.rs"], vec!["src/a/two.rs"], vec!["src/b.rs"], vec![]]);
    assert!(graph.circles().is_empty());
}

#[test]
fn graph_finds_circles_by_imports_and_by_methods() {
    let imports = Graph::new([
        ("src/a.rs", "use crate::b::{self, Other as B};\npub struct A(B);\n"),
        ("src/b.rs", "pub struct Other;\nfn f(_: crate::a::A) {}\n"),
    ]);
    assert_eq!(
        imports.circles(),
        [["src/a.rs:1 -> src/b.rs (crate::b::Other)", "src/b.rs:2 -> src/a.rs (crate::a::A)"]]
    );
    let methods = Graph::new([
        ("src/a/mod.rs", "mod b;\npub struct A;\nimpl A {\n fn f(&self) { self.g() }\n}\n"),
        ("src/a/b.rs", "use super::A;\nimpl A {\n pub(super) fn g(&self) {}\n}\n"),
    ]);
    assert_eq!(
        methods.circles(),
        [["src/a/mod.rs:4 -> src/a/b.rs (.g())", "src/a/b.rs:1 -> src/a/mod.rs (super::A)"]]
    );
}

#[test]
fn struct_fields_are_counted() {
    let text = "struct A<T: B> {\n  // Fields: one a column.\n  a: x::Y,\n  pub b: fn(c: u8),\n}\n\
                struct C(u8);\nstruct D;\n";
    let found = structs(&tokenize(&strip_comments_and_literals(text)));
    assert_eq!(found.len(), 1);
    assert_eq!((found[0].name.as_str(), found[0].fields), ("A", 2));
    assert!(has_reason_for_fields(text, found[0].lines));
    assert!(!has_reason_for_fields(text, (6, 6)));
}
