//! The guide and the other pages: links lead to targets, named files exist, and the commands to
//! type work as shown.

#![allow(clippy::unwrap_used, clippy::print_stderr)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Component, Path, PathBuf};

#[path = "guide/tours.rs"]
mod tours;

const GUIDE: &str = "docs/src";

/// Pages outside the guide.
const PAGES: [&str; 5] =
    ["README.md", "ARCHITECTURE.md", "CHANGELOG.md", "CONTRIBUTING.md", "workers/README.md"];

/// The directory of the design decisions.
const DESIGN: &str = "docs/design";

/// Directories of this package: a code span that begins with one of them is the path of a file.
const FOLDERS: [&str; 9] = [
    "benches/",
    "config/",
    "docs/",
    "examples/",
    "packaging/",
    "src/",
    "templates/",
    "tests/",
    "workers/",
];

/// Paths that only a crate made by `ostler new` has.
const SCAFFOLD_FILES: [&str; 6] = [
    "config/shop.yaml",
    "src/app.rs",
    "src/class.rs",
    "src/main.rs",
    "tests/starts.rs",
    "config/NAME.yaml",
];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// A line of a page outside code blocks, or a code block.
enum Part {
    Line(String),
    Code { language: String, text: String },
}

/// A page in Markdown.
struct Page {
    /// Relative to the package.
    path: PathBuf,
    parts: Vec<Part>,
}

impl Page {
    fn read(path: &Path) -> Self {
        let text = fs::read_to_string(root().join(path)).unwrap();
        let (mut parts, mut lines) = (Vec::new(), text.lines());
        while let Some(line) = lines.next() {
            let Some(language) = line.trim_start().strip_prefix("```") else {
                parts.push(Part::Line(line.to_owned()));
                continue;
            };
            let indent = line.len() - line.trim_start().len();
            let inside = lines.by_ref().take_while(|line| line.trim() != "```");
            let text = inside.map(|line| format!("{}\n", line.get(indent..).unwrap_or("")));
            parts.push(Part::Code { language: language.to_owned(), text: text.collect() });
        }
        Self { path: path.to_owned(), parts }
    }

    fn lines(&self) -> impl Iterator<Item = &str> {
        self.parts.iter().filter_map(|part| match part {
            Part::Line(line) => Some(line.as_str()),
            Part::Code { .. } => None,
        })
    }

    /// Returns the code blocks in this language, such as `sh` or `rust`.
    fn blocks<'a>(&'a self, language: &'a str) -> impl Iterator<Item = &'a str> {
        self.parts.iter().filter_map(move |part| match part {
            Part::Code { language: its, text } if its.split(',').next() == Some(language) => {
                Some(text.as_str())
            }
            Part::Code { .. } | Part::Line(_) => None,
        })
    }

    /// Returns the anchors of the page's headings.
    fn anchors(&self) -> BTreeSet<String> {
        let headings = self.lines().filter(|line| line.starts_with('#'));
        let mut seen = BTreeMap::<String, usize>::new();
        let anchor = |line: &str| {
            let text = line.trim_start_matches('#').trim().to_lowercase();
            let kept = text.chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c));
            kept.map(|c| if c == ' ' { '-' } else { c }).collect::<String>()
        };
        headings
            .map(|line| {
                let name = anchor(line);
                let times = seen.entry(name.clone()).or_default();
                *times += 1;
                if *times == 1 { name } else { format!("{name}-{}", *times - 1) }
            })
            .collect()
    }

    /// Returns the code spans outside code blocks.
    fn code_spans(&self) -> impl Iterator<Item = &str> {
        self.lines().flat_map(|line| line.split('`').skip(1).step_by(2))
    }

    /// Returns the targets of the page's links.
    fn links(&self) -> impl Iterator<Item = &str> {
        self.lines().flat_map(|line| {
            line.split("](").skip(1).filter_map(|rest| rest.split_once(')').map(|(to, _)| to))
        })
    }
}

/// Reads all pages of the guide and outside it.
fn pages() -> BTreeMap<PathBuf, Page> {
    let in_directory = |directory: &'static str| {
        let entries = fs::read_dir(root().join(directory)).unwrap();
        let paths = entries.map(move |entry| Path::new(directory).join(entry.unwrap().file_name()));
        paths.filter(|path| path.extension().is_some_and(|extension| extension == "md"))
    };
    let is_page = |path: &PathBuf| path.extension().is_some_and(|it| it == "md");
    let chapters = in_directory(GUIDE).chain(in_directory(DESIGN)).filter(is_page);
    let paths = chapters.chain(PAGES.iter().map(PathBuf::from));
    paths.map(|path| (path.clone(), Page::read(&path))).collect()
}

/// Returns a path without `.` and `..`.
fn normalize(path: &Path) -> PathBuf {
    let mut normalized = PathBuf::new();
    for component in path.components() {
        match component {
            Component::ParentDir => drop(normalized.pop()),
            Component::CurDir => (),
            other => normalized.push(other),
        }
    }
    normalized
}

#[track_caller]
fn assert_none(problems: Vec<String>) {
    assert!(problems.is_empty(), "\n{}\n", problems.join("\n"));
}

#[test]
fn summary_lists_every_chapter_once() {
    let pages = pages();
    let summary = &pages[&Path::new(GUIDE).join("SUMMARY.md")];
    let mut listed: Vec<PathBuf> = summary.links().map(|to| Path::new(GUIDE).join(to)).collect();
    listed.push(summary.path.clone());
    listed.sort();
    let chapters = pages.keys().filter(|path| path.starts_with(GUIDE)).cloned();
    assert_eq!(listed, chapters.collect::<Vec<_>>());
    for path in &listed {
        let heading = pages[path].lines().next().unwrap_or("");
        assert!(heading.starts_with("# "), "{} begins with {heading:?}", path.display());
    }
}

#[test]
fn design_index_lists_every_page() {
    let pages = pages();
    let index = Path::new(DESIGN).join("README.md");
    let listed: BTreeSet<PathBuf> =
        pages[&index].links().map(|to| normalize(&Path::new(DESIGN).join(to))).collect();
    let pages = pages.keys().filter(|path| path.starts_with(DESIGN) && **path != index);
    let missing = pages.filter(|path| !listed.contains(*path));
    assert_none(missing.map(|path| format!("{} is not in the index", path.display())).collect());
}

#[test]
fn links_have_existing_targets() {
    let pages = pages();
    let mut wrong = Vec::new();
    for (path, page) in &pages {
        for link in page.links().filter(|link| !link.contains("://")) {
            let (file, anchor) = link.split_once('#').unwrap_or((link, ""));
            let to = match file {
                "" => path.clone(),
                file => normalize(&path.parent().unwrap().join(file)),
            };
            let here = path.display();
            if !root().join(&to).exists() {
                wrong.push(format!("{here}: there is no {link}"));
            } else if path.starts_with(GUIDE) && !to.starts_with(GUIDE) {
                wrong.push(format!("{here}: {link} leads out of the book"));
            } else if !anchor.is_empty() && !pages[&to].anchors().contains(anchor) {
                wrong.push(format!("{here}: {link} has no such heading"));
            }
        }
    }
    assert_none(wrong);
}

#[test]
fn named_files_exist() {
    let mut wrong = Vec::new();
    for (path, page) in pages() {
        for word in page.code_spans() {
            let is_path = FOLDERS.iter().any(|folder| word.starts_with(folder));
            let is_scaffold_file = path.starts_with(GUIDE) && SCAFFOLD_FILES.contains(&word);
            if is_path
                && !is_scaffold_file
                && !word.contains(['*', ' ', '…'])
                && !root().join(word).exists()
            {
                wrong.push(format!("{}: there is no {word}", path.display()));
            }
        }
    }
    assert_none(wrong);
}

#[test]
fn code_blocks_name_their_language() {
    let known = [
        "rust",
        "diff",
        "sh",
        "text",
        "yaml",
        "toml",
        "ini",
        "nginx",
        "dockerfile",
        "python",
        "json",
    ];
    let mut wrong = Vec::new();
    for (path, page) in pages() {
        for part in &page.parts {
            if let Part::Code { language, text } = part
                && !known.contains(&language.split(',').next().unwrap())
            {
                wrong.push(format!("{}: {language:?} before {text:?}", path.display()));
            }
        }
    }
    assert_none(wrong);
}

/// Code in the pages is compiled only if `src/doctests.rs` names the page.
#[test]
fn rust_code_blocks_are_compiled() {
    let list = fs::read_to_string(root().join("src/doctests.rs")).unwrap();
    for (path, page) in pages() {
        if page.blocks("rust").next().is_some() {
            let listed = list.contains(&format!("\"{}\"", path.display()));
            assert!(listed, "src/doctests.rs must name {}", path.display());
        }
    }
}

/// The settings in the guide are valid, except those that the text calls invalid.
#[test]
fn yaml_code_blocks_load() {
    for (path, page) in pages() {
        for text in page.blocks("yaml") {
            let loaded = ostler::settings::Configuration::from_yaml(text, &path);
            loaded.unwrap_or_else(|error| panic!("{error}, in:\n{text}"));
        }
    }
}

#[test]
fn guide_class_equals_the_example() {
    let page = Page::read(&Path::new(GUIDE).join("writing-a-worker-class.md"));
    let example = fs::read_to_string(root().join("examples/custom_class.rs")).unwrap();
    let code = example.split_once("\n\n").unwrap().1;
    let code = &code[code.find("use std::io;").unwrap()..];
    assert!(page.blocks("rust").any(|block| block == code), "it differs from the example:\n{code}");
}
