//! Expands variables in the values of a file: `${name}` and `${env:NAME}`. `$${` means a literal
//! `${`. Pure text: it must never know the purpose of a value.

use std::cell::Cell;
use std::ffi::OsString;

use super::suggest::{closest_match, suggestion_text};

/// The variables of an environment.
pub(crate) type Environment = [(OsString, OsString)];

/// Maximum total size of the expanded values of a file.
const EXPANDED_BYTES_LIMIT: usize = 8 << 20;

const NAME_BYTES_LIMIT: usize = 64;

/// The prefix of an environment variable.
const ENV_PREFIX: &str = "env:";

/// Stands for a value that must not be shown and that no text in a file yields.
const HIDDEN: &str = "***";

/// A text after the expansion of its variables.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Expanded {
    /// The text itself.
    pub(super) value: String,
    /// A text that yields the value and that has `${env:NAME}` in place of environment variables. `None`
    /// if there are none.
    pub(super) reference: Option<String>,
}

impl Expanded {
    /// Returns a text for a file that yields the value, without the values of environment variables.
    pub(super) fn source_text(&self) -> String {
        self.reference.clone().unwrap_or_else(|| escape(&self.value))
    }

    fn push_literal(&mut self, text: &str) {
        self.value.push_str(text);
        if let Some(reference) = &mut self.reference {
            reference.push_str(&escape(text));
        }
    }

    fn push(&mut self, part: &Self) {
        if self.reference.is_some() || part.reference.is_some() {
            self.reference = Some(self.source_text() + &part.source_text());
        }
        self.value.push_str(&part.value);
    }

    fn len(&self) -> usize {
        self.value.len() + self.reference.as_ref().map_or(0, String::len)
    }
}

/// The variables that the values of a file may use.
pub(super) struct Variables<'e> {
    defined: Vec<(String, Expanded)>,
    environment: &'e Environment,
    /// How many more bytes expanded values may take.
    remaining_bytes: Cell<usize>,
}

impl<'e> Variables<'e> {
    /// Creates a set with the environment variables only.
    pub(super) fn new(environment: &'e Environment) -> Self {
        Self { defined: Vec::new(), environment, remaining_bytes: Cell::new(EXPANDED_BYTES_LIMIT) }
    }

    /// Adds a variable, whose value may use those before it. `not_yet_defined` are the names from this
    /// one on.
    ///
    /// # Errors
    /// The reason, in words that can follow the quoted value.
    pub(super) fn define(
        &mut self,
        name: &str,
        value: &str,
        not_yet_defined: &[&str],
    ) -> Result<(), String> {
        let value = self.expand_before(value, not_yet_defined)?;
        self.defined.push((name.to_owned(), value));
        Ok(())
    }

    /// Expands all variables in a value.
    ///
    /// # Errors
    /// The reason, in words that can follow the quoted value.
    pub(super) fn expand(&self, text: &str) -> Result<Expanded, String> {
        let mut expanded = self.expand_before(text, &[])?;
        if let Some(reference) = &mut expanded.reference {
            // A $ at the end of a variable can change the meaning of what follows it.
            let again = Self::new(self.environment).expand_before(reference, &[]);
            if again.map(|again| again.value).as_ref() != Ok(&expanded.value) {
                HIDDEN.clone_into(reference);
            }
        }
        Ok(expanded)
    }

    fn expand_before(&self, text: &str, not_yet_defined: &[&str]) -> Result<Expanded, String> {
        let mut out = Expanded::default();
        let mut rest = text;
        while let Some(at) = rest.find("${") {
            let (before, from) = rest.split_at(at);
            if let Some(literal) = before.strip_suffix('$') {
                out.push_literal(literal);
                out.push_literal("${");
                rest = &from[2..];
                continue;
            }
            let Some(end) = from.find('}') else {
                return Err("has a ${ without its }: write $${ for a literal ${".into());
            };
            out.push_literal(before);
            out.push(&self.lookup(&from[2..end], not_yet_defined)?);
            rest = &from[end + 1..];
            if out.len() > self.remaining_bytes.get() {
                return Err("makes the file too large once variables are expanded".into());
            }
        }
        out.push_literal(rest);
        if out.len() > text.len() {
            let remaining = self.remaining_bytes.get().checked_sub(out.len());
            self.remaining_bytes
                .set(remaining.ok_or("makes the file too large once variables are expanded")?);
        }
        Ok(out)
    }

    fn lookup(&self, name: &str, not_yet_defined: &[&str]) -> Result<Expanded, String> {
        if let Some(variable) = name.strip_prefix(ENV_PREFIX) {
            return self.lookup_env(variable);
        }
        if let Some((_, value)) = self.defined.iter().find(|(known, _)| known == name) {
            return Ok(value.clone());
        }
        if let Some(at) = not_yet_defined.iter().position(|known| *known == name) {
            let position = if at == 0 { "is the variable itself" } else { "is defined below it" };
            return Err(format!(
                "uses ${{{name}}}, which {position}: a variable can only use variables defined above it"
            ));
        }
        let known = self.defined.iter().map(|(known, _)| known.as_str());
        let suggestion = suggestion(closest_match(name, known), "");
        Err(format!("uses ${{{}}}, which is not defined in vars{suggestion}", name.escape_debug()))
    }

    fn lookup_env(&self, name: &str) -> Result<Expanded, String> {
        let escaped_name = name.escape_debug();
        match self.environment.iter().find(|(known, _)| known == name) {
            Some((_, value)) => match value.to_str() {
                Some(value) => Ok(Expanded {
                    value: value.to_owned(),
                    reference: Some(format!("${{{ENV_PREFIX}{name}}}")),
                }),
                None => Err(format!("uses ${{env:{escaped_name}}}, which is not UTF-8")),
            },
            None => {
                let known = self.environment.iter().filter_map(|(known, _)| known.to_str());
                let suggestion = suggestion(closest_match(name, known), ENV_PREFIX);
                Err(format!(
                    "uses ${{env:{escaped_name}}}, which is not set in the environment{suggestion}"
                ))
            }
        }
    }
}

fn suggestion(closest: Option<&str>, prefix: &str) -> String {
    suggestion_text(closest.map(|name| format!("${{{prefix}{name}}}")).as_deref())
}

/// Returns why a name is not a valid variable name; `None` if it is valid.
pub(super) fn variable_name_error(name: &str) -> Option<&'static str> {
    let is_allowed = |b: u8| b.is_ascii_alphanumeric() || b == b'_' || b == b'-';
    let is_allowed_first = |b: &u8| b.is_ascii_alphabetic() || *b == b'_';
    let is_valid = name.len() <= NAME_BYTES_LIMIT
        && name.as_bytes().first().is_some_and(is_allowed_first)
        && name.bytes().all(is_allowed);
    (!is_valid).then_some(
        "is not the name of a variable: give at most 64 letters, digits, _ and -, and a letter or \
         _ first",
    )
}

/// Escapes a text, so that a file that contains it yields the same text.
pub(super) fn escape(text: &str) -> String {
    text.replace("${", "$${")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::{any, proptest};

    const HOME_VARIABLE: &str = "HOME";

    #[track_caller]
    fn assert_expands(text: &str, expected: Result<&str, &str>) {
        let environment = [(HOME_VARIABLE.into(), "/root".into())];
        let mut vars = Variables::new(&environment);
        vars.define("base", "/srv", &["base", "logs"]).expect("a value");
        vars.define("logs", "${base}/log", &["logs"]).expect("an earlier one");
        let expected = expected.map(str::to_owned).map_err(str::to_owned);
        assert_eq!(vars.expand(text).map(|expanded| expanded.value), expected);
    }

    #[test]
    fn expand_replaces_variables_anywhere() {
        assert_expands("", Ok(""));
        assert_expands("as it is: $5, {}, $", Ok("as it is: $5, {}, $"));
        assert_expands("${base}", Ok("/srv"));
        assert_expands("a${logs}b${env:HOME}c", Ok("a/srv/logb/rootc"));
        assert_expands("$${base} $$${base} $$ ${base}$", Ok("${base} $${base} $$ /srv$"));
    }

    #[test]
    fn expand_unknown_variable_is_named() {
        assert_expands(
            "${bse}",
            Err("uses ${bse}, which is not defined in vars (did you mean ${base}?)"),
        );
        assert_expands("${}", Err("uses ${}, which is not defined in vars"));
        assert_expands("x${base", Err("has a ${ without its }: write $${ for a literal ${"));
        assert_expands(
            "${env:HOMEE}",
            Err("uses ${env:HOMEE}, which is not set in the environment (did you mean \
                 ${env:HOME}?)"),
        );
    }

    #[test]
    fn reference_has_names_of_environment_variables_only() {
        let environment = [("PW".into(), "s3cret".into()), ("EMPTY".into(), "".into())];
        let mut vars = Variables::new(&environment);
        for (name, value) in [("host", "db"), ("dollar", "$"), ("pw", "${host}:${env:PW}")] {
            vars.define(name, value, &[]).expect("a value");
        }
        for (text, expected) in [
            ("${host}", None),
            ("${env:PW}", Some("${env:PW}")),
            ("a ${pw}@$${host} ${host}$", Some("a db:${env:PW}@$${host} db$")),
            ("${env:EMPTY}", Some("${env:EMPTY}")),
            // No text of a file has this value.
            ("${dollar}${env:PW}", Some(HIDDEN)),
            ("${env:PW}${dollar}{host}", Some(HIDDEN)),
        ] {
            let expanded = vars.expand(text).expect("a value");
            assert_eq!(expanded.reference.as_deref(), expected, "{text}");
        }
        let many = "${env:EMPTY}".repeat(1 << 16);
        vars.define("v0", &many, &[]).expect("a value");
        let twice = |n: u32| vars_twice(&mut vars, n);
        assert!((1..64).find_map(twice).expect("a limit").contains("too large"));
    }

    fn vars_twice(vars: &mut Variables<'_>, n: u32) -> Option<String> {
        let before = n - 1;
        vars.define(&format!("v{n}"), &format!("${{v{before}}}${{v{before}}}"), &[]).err()
    }

    #[test]
    fn define_circular_reference_is_rejected() {
        let mut vars = Variables::new(&[]);
        let error = vars.define("a", "${a}", &["a", "b"]).expect_err("itself");
        assert!(error.starts_with("uses ${a}, which is the variable itself"), "{error}");
        let error = vars.define("a", "${b}", &["a", "b"]).expect_err("a later one");
        assert!(error.starts_with("uses ${b}, which is defined below it"), "{error}");
    }

    #[test]
    fn define_exponential_growth_is_rejected() {
        let mut vars = Variables::new(&[]);
        let names: Vec<String> = (0..64).map(|n| format!("v{n}")).collect();
        vars.define("v0", "0123456789", &[]).expect("a value");
        let twice = |name: &String| format!("${{{name}}}${{{name}}}");
        let failed = names[1..]
            .iter()
            .zip(&names)
            .find_map(|(name, before)| vars.define(name, &twice(before), &[]).err());
        assert!(failed.expect("a limit").contains("too large"));
    }

    #[test]
    fn variable_name_error_checks_characters() {
        for name in ["a", "_", "base_path", "A-1"] {
            assert_eq!(variable_name_error(name), None);
        }
        for name in ["", "1a", "env:x", "a b", "é", &"x".repeat(65)] {
            assert!(variable_name_error(name).is_some(), "{name}");
        }
    }

    proptest! {
        #[test]
        fn escape_then_expand_round_trips(text in any::<String>()) {
            for text in [text.clone(), text.replace('a', "${"), text.replace('.', "$$")] {
                let expected = Expanded { value: text.clone(), reference: None };
                assert_eq!(Variables::new(&[]).expand(&escape(&text)), Ok(expected));
            }
        }
    }
}
