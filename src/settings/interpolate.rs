//! Variables in the values of a file: `${name}`, `${env:NAME}`, and `$${` for a `${` that is meant
//! as it is. Pure text; it must never know what a value is for.

use std::cell::Cell;
use std::ffi::OsString;

use super::suggest::closest_match;

/// The variables of an environment.
pub(crate) type Environment = [(OsString, OsString)];

/// Most bytes that the values of a file may have grown to in all.
const EXPANDED_BYTES_MAX: usize = 8 << 20;

const NAME_BYTES_MAX: usize = 64;

/// What marks a variable of the environment.
const ENV: &str = "env:";

/// What a file may use in its values.
pub(super) struct Vars<'e> {
    known: Vec<(String, String)>,
    environment: &'e Environment,
    /// How many bytes values may still grow to.
    left: Cell<usize>,
}

impl<'e> Vars<'e> {
    /// None but those of the environment.
    pub(super) fn new(environment: &'e Environment) -> Self {
        Self { known: Vec::new(), environment, left: Cell::new(EXPANDED_BYTES_MAX) }
    }

    /// Adds one, whose value may use those before it. `later` are the names from this one on.
    ///
    /// # Errors
    /// What is wrong with the value, in words that can follow the quoted value.
    pub(super) fn define(&mut self, name: &str, value: &str, later: &[&str]) -> Result<(), String> {
        let value = self.expand_with(value, later)?;
        self.known.push((name.to_owned(), value));
        Ok(())
    }

    /// A value with all variables replaced.
    ///
    /// # Errors
    /// What is wrong with it, in words that can follow the quoted value.
    pub(super) fn expand(&self, text: &str) -> Result<String, String> {
        self.expand_with(text, &[])
    }

    fn expand_with(&self, text: &str, later: &[&str]) -> Result<String, String> {
        let mut out = String::new();
        let mut rest = text;
        while let Some(at) = rest.find("${") {
            let (before, from) = rest.split_at(at);
            if let Some(plain) = before.strip_suffix('$') {
                out.push_str(plain);
                out.push_str("${");
                rest = &from[2..];
                continue;
            }
            let Some(end) = from.find('}') else {
                return Err("has a ${ without its }: write $${ if none is meant".into());
            };
            out.push_str(before);
            out.push_str(&self.value_of(&from[2..end], later)?);
            rest = &from[end + 1..];
            if out.len() > self.left.get() {
                return Err("makes the file too large once its variables are replaced".into());
            }
        }
        out.push_str(rest);
        if out.len() > text.len() {
            let left = self.left.get().checked_sub(out.len());
            self.left.set(left.ok_or("makes the file too large once its variables are replaced")?);
        }
        Ok(out)
    }

    fn value_of(&self, name: &str, later: &[&str]) -> Result<String, String> {
        if let Some(variable) = name.strip_prefix(ENV) {
            return self.environment_value(variable);
        }
        if let Some((_, value)) = self.known.iter().find(|(known, _)| known == name) {
            return Ok(value.clone());
        }
        if let Some(at) = later.iter().position(|known| *known == name) {
            let where_ = if at == 0 { "is this one itself" } else { "stands below it" };
            return Err(format!(
                "uses ${{{name}}}, which {where_}: a variable can only use those above it, so \
                 that none goes round in a circle"
            ));
        }
        let known = self.known.iter().map(|(known, _)| known.as_str());
        let hint = hint(closest_match(name, known), "");
        Err(format!("uses ${{{}}}, which is not among the vars{hint}", name.escape_debug()))
    }

    fn environment_value(&self, name: &str) -> Result<String, String> {
        let shown = name.escape_debug();
        match self.environment.iter().find(|(known, _)| known == name) {
            Some((_, value)) => match value.to_str() {
                Some(value) => Ok(value.to_owned()),
                None => Err(format!("uses ${{env:{shown}}}, which is not UTF-8")),
            },
            None => {
                let known = self.environment.iter().filter_map(|(known, _)| known.to_str());
                let hint = hint(closest_match(name, known), ENV);
                Err(format!("uses ${{env:{shown}}}, which the environment does not have{hint}"))
            }
        }
    }
}

fn hint(nearest: Option<&str>, prefix: &str) -> String {
    nearest.map_or(String::new(), |name| format!(" (did you mean ${{{prefix}{name}}}?)"))
}

/// Why a name cannot be that of a variable, if it cannot.
pub(super) fn bad_name(name: &str) -> Option<&'static str> {
    let usual = |b: u8| b.is_ascii_alphanumeric() || b == b'_' || b == b'-';
    let begins_well = |b: &u8| b.is_ascii_alphabetic() || *b == b'_';
    let is_good = name.len() <= NAME_BYTES_MAX
        && name.as_bytes().first().is_some_and(begins_well)
        && name.bytes().all(usual);
    (!is_good).then_some(
        "is not the name of a variable: give at most 64 letters, digits, _ and -, and a letter or \
         _ first",
    )
}

/// The text as it must stand in a file to mean itself.
pub(super) fn escape(text: &str) -> String {
    text.replace("${", "$${")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::{any, proptest};

    const HOME: &str = "HOME";

    #[track_caller]
    fn check(text: &str, expected: Result<&str, &str>) {
        let environment = [(HOME.into(), "/root".into())];
        let mut vars = Vars::new(&environment);
        vars.define("base", "/srv", &["base", "logs"]).expect("a value");
        vars.define("logs", "${base}/log", &["logs"]).expect("an earlier one");
        let expected = expected.map(str::to_owned).map_err(str::to_owned);
        assert_eq!(vars.expand(text), expected);
    }

    #[test]
    fn variables_are_replaced_wherever_they_stand() {
        check("", Ok(""));
        check("as it is: $5, {}, $", Ok("as it is: $5, {}, $"));
        check("${base}", Ok("/srv"));
        check("a${logs}b${env:HOME}c", Ok("a/srv/logb/rootc"));
        check("$${base} $$${base} $$ ${base}$", Ok("${base} $${base} $$ /srv$"));
    }

    #[test]
    fn what_cannot_be_replaced_is_named() {
        check("${bse}", Err("uses ${bse}, which is not among the vars (did you mean ${base}?)"));
        check("${}", Err("uses ${}, which is not among the vars"));
        check("x${base", Err("has a ${ without its }: write $${ if none is meant"));
        check(
            "${env:HOMEE}",
            Err("uses ${env:HOMEE}, which the environment does not have (did you mean \
                 ${env:HOME}?)"),
        );
    }

    #[test]
    fn nothing_goes_in_a_circle() {
        let mut vars = Vars::new(&[]);
        let error = vars.define("a", "${a}", &["a", "b"]).expect_err("itself");
        assert!(error.starts_with("uses ${a}, which is this one itself"), "{error}");
        let error = vars.define("a", "${b}", &["a", "b"]).expect_err("a later one");
        assert!(error.starts_with("uses ${b}, which stands below it"), "{error}");
    }

    #[test]
    fn what_grows_without_end_is_stopped() {
        let mut vars = Vars::new(&[]);
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
    fn names_are_plain() {
        for name in ["a", "_", "base_path", "A-1"] {
            assert_eq!(bad_name(name), None);
        }
        for name in ["", "1a", "env:x", "a b", "é", &"x".repeat(65)] {
            assert!(bad_name(name).is_some(), "{name}");
        }
    }

    proptest! {
        #[test]
        fn an_escaped_text_means_itself(text in any::<String>()) {
            for text in [text.clone(), text.replace('a', "${"), text.replace('.', "$$")] {
                assert_eq!(Vars::new(&[]).expand(&escape(&text)), Ok(text));
            }
        }
    }
}
