//! The graph of the crate's files: which file uses an item that another file defines.
//!
//! An edge leads to the file in which the item is DEFINED. So a `mod.rs` that only passes on the
//! items of its children (`pub use`) depends on none of them, and a child that names a sibling's
//! item by way of `super::` depends on the sibling and not on `mod.rs`.
//! Methods count too: if the inherent `impl` blocks of a type are in several files, a file with one
//! of them that calls a method of another depends on the other's file. Calls are matched by name.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use crate::tokens::{Token, item_end, strip_comments_and_literals, tokenize, without_tests};

/// A name that a `use` brings into a file.
#[derive(Debug)]
struct Import {
    path: Vec<String>,
    /// `*` for all names of a module.
    name: String,
    is_reexport: bool,
    line: usize,
}

/// An inherent `impl` block: the type's path, and the functions in it.
#[derive(Debug)]
struct ImplBlock {
    type_path: Vec<String>,
    functions: HashSet<String>,
}

#[derive(Debug, Default)]
struct File {
    path: String,
    module: Vec<String>,
    items: HashSet<String>,
    imports: Vec<Import>,
    /// The paths of two and more segments in the code, beside `use`.
    paths: Vec<(Vec<String>, usize)>,
    /// The first line of each name in the code, and of each name after a dot or `::`.
    words: HashMap<String, usize>,
    members: HashMap<String, usize>,
    impls: Vec<ImplBlock>,
}

/// The target of a path.
enum Target {
    Module,
    Item(usize),
}

/// All files of a crate, and what they use of each other.
pub(crate) struct Graph {
    files: Vec<File>,
    by_module: HashMap<Vec<String>, usize>,
    /// For each file, the files that it depends on, with the line and the name of the first use.
    edges: Vec<BTreeMap<usize, (usize, String)>>,
}

impl Graph {
    /// Reads files, given by path (such as `src/os/mod.rs`) and text.
    pub(crate) fn new<'a>(sources: impl IntoIterator<Item = (&'a str, &'a str)>) -> Self {
        let files: Vec<File> =
            sources.into_iter().map(|(path, text)| File::parse(path, text)).collect();
        let by_module =
            files.iter().enumerate().map(|(index, file)| (file.module.clone(), index)).collect();
        let mut graph = Self { files, by_module, edges: Vec::new() };
        graph.edges = (0..graph.files.len()).map(|index| graph.edges_of(index)).collect();
        graph.add_method_edges();
        graph
    }

    /// Returns the groups of files that depend on each other, each with the edges inside it.
    pub(crate) fn circles(&self) -> Vec<Vec<String>> {
        let reachable: Vec<BTreeSet<usize>> =
            (0..self.files.len()).map(|index| self.reachable_from(index)).collect();
        let mut seen = BTreeSet::new();
        let mut circles = Vec::new();
        for (index, others) in reachable.iter().enumerate() {
            if !others.contains(&index) || !seen.insert(index) {
                continue;
            }
            let group: BTreeSet<usize> =
                others.iter().copied().filter(|other| reachable[*other].contains(&index)).collect();
            seen.extend(&group);
            let inside = group.iter().flat_map(|from| {
                let edges = self.edges[*from].iter();
                edges.filter(|(to, _)| group.contains(to)).map(|(to, reason)| (*from, *to, reason))
            });
            circles
                .push(inside.map(|(from, to, reason)| self.describe(from, to, reason)).collect());
        }
        circles
    }

    /// Returns every file with the files that it depends on.
    pub(crate) fn dependencies(&self) -> impl Iterator<Item = (&str, Vec<&str>)> {
        self.files.iter().zip(&self.edges).map(|(file, edges)| {
            (file.path.as_str(), edges.keys().map(|to| self.files[*to].path.as_str()).collect())
        })
    }

    fn describe(&self, from: usize, to: usize, (line, name): &(usize, String)) -> String {
        format!("{}:{line} -> {} ({name})", self.files[from].path, self.files[to].path)
    }

    fn reachable_from(&self, start: usize) -> BTreeSet<usize> {
        let (mut reached, mut pending) = (BTreeSet::new(), vec![start]);
        while let Some(index) = pending.pop() {
            pending.extend(self.edges[index].keys().filter(|to| reached.insert(**to)));
        }
        reached
    }

    fn edges_of(&self, index: usize) -> BTreeMap<usize, (usize, String)> {
        let file = &self.files[index];
        let mut edges = BTreeMap::new();
        let mut add = |path: &[String], line: usize| {
            if let Some(Target::Item(to)) = self.resolve(index, path, 0)
                && to != index
            {
                edges.entry(to).or_insert_with(|| (line, path.join("::")));
            }
        };
        for import in &file.imports {
            if !import.is_reexport && import.name != "*" {
                add(&import.path, import.line);
            } else if let Some(line) = file.words.get(&import.name) {
                add(&import.path, *line);
            }
        }
        for (path, line) in &file.paths {
            add(path, *line);
        }
        edges
    }

    /// Follows a path from a file to the file that defines the item. `None` for other crates.
    fn resolve(&self, from: usize, path: &[String], depth: usize) -> Option<Target> {
        if depth > 8 {
            return None;
        }
        let mut module = self.files[from].module.clone();
        let mut rest = path;
        let mut is_ours = false;
        while let Some((first, tail)) = rest.split_first() {
            match first.as_str() {
                "crate" | "ostler" => module.clear(),
                "super" => drop(module.pop()),
                "self" => (),
                _ => break,
            }
            (rest, is_ours) = (tail, true);
        }
        loop {
            let Some((name, tail)) = rest.split_first() else { return Some(Target::Module) };
            let mut child = module.clone();
            child.push(name.clone());
            if self.by_module.contains_key(&child) {
                (module, rest, is_ours) = (child, tail, true);
                continue;
            }
            let index = *self.by_module.get(&module)?;
            let file = &self.files[index];
            if file.items.contains(name) {
                return Some(Target::Item(index));
            }
            // A glob import may bring in the name, too.
            let is_named = |import: &&Import| import.name == *name || import.name == "*";
            for import in file.imports.iter().filter(is_named) {
                let mut onward = import.path.clone();
                if import.name == "*" {
                    onward.push(name.clone());
                }
                onward.extend_from_slice(tail);
                if onward != path
                    && let Some(target) = self.resolve(index, &onward, depth + 1)
                {
                    return Some(target);
                }
            }
            // A macro may define it: then it counts for the module's file.
            return (is_ours && index != from && depth == 0 && !self.is_foreign(index, name))
                .then_some(Target::Item(index));
        }
    }

    /// Whether a name that a file imports belongs to another crate.
    fn is_foreign(&self, index: usize, name: &str) -> bool {
        self.files[index].imports.iter().any(|import| import.name == name)
    }

    /// Adds the edges between the files over which the inherent `impl` blocks of a type are spread.
    fn add_method_edges(&mut self) {
        // The functions of each type, by the file that defines the type.
        let mut families: BTreeMap<(usize, String), BTreeMap<usize, HashSet<String>>> =
            BTreeMap::new();
        for (index, file) in self.files.iter().enumerate() {
            for block in &file.impls {
                let Some(name) = block.type_path.last() else { continue };
                let home = match self.resolve(index, &block.type_path, 0) {
                    Some(Target::Item(home)) => home,
                    _ => continue,
                };
                let family = families.entry((home, name.clone())).or_default();
                family.entry(home).or_default();
                family.entry(index).or_default().extend(block.functions.iter().cloned());
            }
        }
        for family in families.values().filter(|family| family.len() > 1) {
            for from in family.keys() {
                for (to, functions) in family.iter().filter(|(to, _)| *to != from) {
                    let own = &family[from];
                    let called = self.files[*from].members.iter();
                    let called = called
                        .filter(|(name, _)| functions.contains(*name) && !own.contains(*name));
                    if let Some((name, line)) = called.min_by_key(|(_, line)| **line) {
                        let reason = (*line, format!(".{name}()"));
                        self.edges[*from].entry(*to).or_insert(reason);
                    }
                }
            }
        }
    }
}

/// Returns the path of a file's module.
fn module_of(path: &str) -> Vec<String> {
    let inner = path.strip_prefix("src/").unwrap_or(path);
    let inner = inner.trim_end_matches(".rs").trim_end_matches("/mod");
    if inner == "lib" { Vec::new() } else { inner.split('/').map(str::to_owned).collect() }
}

impl File {
    fn parse(path: &str, text: &str) -> Self {
        let tokens = without_tests(tokenize(&strip_comments_and_literals(text)));
        let mut file = Self { path: path.to_owned(), module: module_of(path), ..Self::default() };
        let (mut at, mut depth) = (0, 0_usize);
        while at < tokens.len() {
            match tokens[at].text.as_str() {
                "{" => depth += 1,
                "}" => depth = depth.saturating_sub(1),
                "use" if !tokens.get(at + 1).is_some_and(|next| next.is("<")) => {
                    at = file.read_use(&tokens, at);
                    continue;
                }
                "impl" if depth == 0 => file.read_impl(&tokens, at),
                "struct" | "enum" | "union" | "trait" | "type" | "const" | "static" | "fn"
                | "mod"
                    if depth == 0 =>
                {
                    file.items.extend(tokens.get(at + 1).map(|name| name.text.clone()));
                }
                "macro_rules" => file.read_macro(&tokens, at),
                _ => (),
            }
            at = file.read_path(&tokens, at);
        }
        file
    }

    /// Reads the name of a macro, and of the types that it defines under a fixed name.
    fn read_macro(&mut self, tokens: &[Token], at: usize) {
        self.items.extend(tokens.get(at + 2).map(|name| name.text.clone()));
        let end = item_end(tokens, at);
        let pairs = tokens[at..end].windows(2);
        let types = pairs.filter(|pair| pair[0].is("struct") || pair[0].is("enum"));
        self.items.extend(types.map(|pair| pair[1].text.clone()).filter(|name| name != "$"));
    }

    /// Reads the word or path that begins here. Returns the index after it.
    fn read_path(&mut self, tokens: &[Token], at: usize) -> usize {
        let is_member = at > 0 && (tokens[at - 1].is(".") || tokens[at - 1].is("::"));
        if !tokens[at].is_word() {
            return at + 1;
        }
        let line = tokens[at].line;
        if is_member {
            self.members.entry(tokens[at].text.clone()).or_insert(line);
            return at + 1;
        }
        let mut path = vec![tokens[at].text.clone()];
        let mut end = at + 1;
        while let [colons, word, ..] = &tokens[end..]
            && colons.is("::")
            && word.is_word()
        {
            self.members.entry(word.text.clone()).or_insert(line);
            path.push(word.text.clone());
            end += 2;
        }
        self.words.entry(path[0].clone()).or_insert(line);
        if path.len() > 1 {
            self.paths.push((path, line));
        }
        end
    }

    /// Reads a `use`. Returns the index after its semicolon.
    fn read_use(&mut self, tokens: &[Token], at: usize) -> usize {
        let is_reexport = at > 0 && (tokens[at - 1].is("pub") || tokens[at - 1].is(")"));
        let mut next = at + 1;
        self.read_use_tree(tokens, &mut next, &[], is_reexport);
        next + 1
    }

    fn read_use_tree(
        &mut self,
        tokens: &[Token],
        at: &mut usize,
        prefix: &[String],
        is_reexport: bool,
    ) {
        let mut path = prefix.to_vec();
        let line = tokens[*at].line;
        loop {
            let token = &tokens[*at];
            *at += 1;
            match token.text.as_str() {
                "::" => (),
                "{" => {
                    while !tokens[*at].is("}") {
                        self.read_use_tree(tokens, at, &path, is_reexport);
                        if tokens[*at].is(",") {
                            *at += 1;
                        }
                    }
                    *at += 1;
                    return;
                }
                "*" => {
                    self.imports.push(Import { path, name: "*".to_owned(), is_reexport, line });
                    return;
                }
                "self" if !path.is_empty() => (),
                word => path.push(word.to_owned()),
            }
            if ["}", ",", ";", "as"].iter().any(|end| tokens[*at].is(end)) {
                break;
            }
        }
        let mut name = path.last().cloned().unwrap_or_default();
        if tokens[*at].is("as") {
            name.clone_from(&tokens[*at + 1].text);
            *at += 2;
        }
        self.imports.push(Import { path, name, is_reexport, line });
    }

    /// Reads the head and the functions of an inherent `impl` block.
    fn read_impl(&mut self, tokens: &[Token], at: usize) {
        let mut angle = 0_usize;
        let mut type_path = Vec::new();
        let mut body = at + 1;
        while body < tokens.len() && !tokens[body].is("{") {
            match tokens[body].text.as_str() {
                "<" => angle += 1,
                ">" if !tokens[body - 1].is("-") => angle = angle.saturating_sub(1),
                "for" if angle == 0 => return, // of a trait
                "where" if angle == 0 => break,
                word if angle == 0 && tokens[body].is_word() => type_path.push(word.to_owned()),
                _ => (),
            }
            body += 1;
        }
        let mut depth = 0_usize;
        let mut functions = HashSet::new();
        for pair in tokens[body..].windows(2) {
            match pair[0].text.as_str() {
                "{" => depth += 1,
                "}" if depth <= 1 => break,
                "}" => depth -= 1,
                "fn" if depth == 1 => drop(functions.insert(pair[1].text.clone())),
                _ => (),
            }
        }
        self.impls.push(ImplBlock { type_path, functions });
    }
}
