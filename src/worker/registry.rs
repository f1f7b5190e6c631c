//! Maps names to worker classes. A name is resolved once, at start-up or reload.

use std::error::Error;
use std::fmt;

use super::WorkerClass;

/// The registered worker classes.
#[derive(Default)]
pub struct Registry {
    classes: Vec<Box<dyn WorkerClass>>,
}

/// The error of a second class with the same name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DuplicateClass(&'static str);

impl fmt::Display for DuplicateClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "worker class {:?} is already registered", self.0)
    }
}

impl Error for DuplicateClass {}

/// The error of a name that no class has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnknownClass {
    name: String,
    available: Vec<&'static str>,
}

impl fmt::Display for UnknownClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let known = self.available.join(", ");
        write!(f, "unknown worker class {:?}; available: {known}", self.name)?;
        match counterpart(&self.name) {
            Some(ours) => write!(f, " (for gunicorn's {}, take {ours})", self.name),
            None => Ok(()),
        }
    }
}

impl Error for UnknownClass {}

/// Returns what does the work of a class of gunicorn.
fn counterpart(name: &str) -> Option<&'static str> {
    Some(match name {
        "gthread" => "threads",
        "gevent" | "eventlet" | "tornado" => "mio, or threads if a handler blocks",
        "asgi" | "uvicorn.workers.UvicornWorker" | "uvicorn_worker.UvicornWorker" => {
            "exec, with the server as its command"
        }
        _ => return None,
    })
}

impl Registry {
    /// Registers a class.
    ///
    /// # Errors
    /// Its name is taken.
    pub fn register(&mut self, class: impl WorkerClass + 'static) -> Result<(), DuplicateClass> {
        if self.names().any(|name| name == class.name()) {
            return Err(DuplicateClass(class.name()));
        }
        self.classes.push(Box::new(class));
        self.classes.sort_by_key(|class| class.name());
        Ok(())
    }

    /// Returns the class with this name.
    ///
    /// # Errors
    /// No class has that name; the error lists the names that exist.
    pub fn get(&self, name: &str) -> Result<&dyn WorkerClass, UnknownClass> {
        let found = self.classes.iter().find(|class| class.name() == name);
        found.map(AsRef::as_ref).ok_or_else(|| UnknownClass {
            name: name.to_owned(),
            available: self.names().collect(),
        })
    }

    /// Returns the names, in alphabetical order.
    pub fn names(&self) -> impl Iterator<Item = &'static str> + '_ {
        self.names_of(|_| true)
    }

    /// Returns the names of the classes for which `wanted` is true, in alphabetical order.
    pub(crate) fn names_of(
        &self,
        wanted: impl Fn(&dyn WorkerClass) -> bool,
    ) -> impl Iterator<Item = &'static str> {
        let classes = self.classes.iter().map(AsRef::as_ref);
        classes.filter(move |class| wanted(*class)).map(WorkerClass::name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::worker::{WorkerContext, WorkerError};

    struct Named(&'static str);

    impl WorkerClass for Named {
        fn name(&self) -> &'static str {
            self.0
        }

        fn run(&self, _: &WorkerContext<'_>) -> Result<(), WorkerError> {
            Ok(())
        }
    }

    #[test]
    fn names_are_unique_sorted_and_listed_in_unknown_class_error() {
        let mut registry = Registry::default();
        registry.register(Named("b")).unwrap();
        registry.register(Named("a")).unwrap();
        assert!(registry.register(Named("b")).is_err());
        assert_eq!(registry.names().collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!(registry.get("b").unwrap().name(), "b");
        let Err(error) = registry.get("c") else { panic!("there is no c") };
        assert!(error.to_string().ends_with("available: a, b"), "{error}");
        let Err(error) = registry.get("gthread") else { panic!("there is no gthread") };
        let hint = "available: a, b (for gunicorn's gthread, take threads)";
        assert!(error.to_string().ends_with(hint), "{error}");
    }
}
