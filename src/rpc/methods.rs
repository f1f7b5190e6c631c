//! The table of methods, and how a method is found by its name.

use std::collections::HashMap;
use std::fmt;
use std::hash::{BuildHasherDefault, Hasher};

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::call::{Call, ResultWriter};
use super::error::Error;
use super::limits::Limits;
use super::scan::{Scan, Scanner};

/// A method: reads the arguments of a call, and writes its result.
pub(super) type Method =
    Box<dyn Fn(&Call<'_>, &mut ResultWriter<'_>) -> Result<(), Error> + Send + Sync>;

/// Methods by their names. One table serves all clients of a worker, from all its threads.
///
/// ```
/// use ostler::rpc::{Error, Service};
///
/// let service = Service::new()
///     .method("add", |(a, b): (i64, i64)| Ok::<_, Error>(a.wrapping_add(b)))
///     .method("root", |(x,): (f64,)| if x < 0.0 { Err("no real root") } else { Ok(x.sqrt()) })
///     .method_with("slot", |call, ()| Ok::<_, Error>(call.place().slot));
/// # let _ = service;
/// ```
#[derive(Default)]
pub struct Methods {
    methods: Vec<(Box<[u8]>, Method)>,
    /// Where each of them stands.
    indices: HashMap<Box<[u8]>, usize, BuildHasherDefault<Fnv>>,
}

impl Methods {
    /// A service without methods.
    pub fn new() -> Self {
        Self::default()
    }

    /// A function of the arguments, which are a tuple; `()` if there are none. A later method of
    /// the same name takes its place. A panic in it is caught: the caller is told, and both the
    /// connection and the worker go on.
    #[must_use]
    pub fn method<P, R, E>(
        self,
        name: &str,
        method: impl Fn(P) -> Result<R, E> + Send + Sync + 'static,
    ) -> Self
    where
        P: DeserializeOwned,
        R: Serialize,
        E: Into<Error>,
    {
        self.method_with(name, move |_, arguments| method(arguments))
    }

    /// As [`method`](Self::method), for a function that is also told of the call: of the worker's
    /// place and the caller's address.
    #[must_use]
    pub fn method_with<P, R, E>(
        self,
        name: &str,
        method: impl Fn(&Call<'_>, P) -> Result<R, E> + Send + Sync + 'static,
    ) -> Self
    where
        P: DeserializeOwned,
        R: Serialize,
        E: Into<Error>,
    {
        self.insert(name, move |call, answer| match call.arguments() {
            Ok(arguments) => match method(call, arguments) {
                Ok(result) => answer.value(&result),
                Err(error) => Err(error.into()),
            },
            Err(error) => Err(error),
        })
    }

    /// A function that reads what it wants of the call, borrowed or encoded, and writes its result
    /// itself. If that is not exactly one value, the caller is told of an error.
    #[must_use]
    pub fn raw_method(
        self,
        name: &str,
        method: impl Fn(&Call<'_>, &mut ResultWriter<'_>) -> Result<(), Error> + Send + Sync + 'static,
    ) -> Self {
        self.insert(name, move |call, answer| {
            let begin = answer.out.len();
            method(call, answer)?;
            let result = &answer.out[begin..];
            let limits = Limits { message: usize::MAX, ..Limits::default() };
            match Scanner::default().scan(result, &limits) {
                Ok(Scan::Whole(length)) if length == result.len() => Ok(()),
                _ => Err(Error::unserializable("it is not one value")),
            }
        })
    }

    fn insert(
        mut self,
        name: &str,
        method: impl Fn(&Call<'_>, &mut ResultWriter<'_>) -> Result<(), Error> + Send + Sync + 'static,
    ) -> Self {
        let name: Box<[u8]> = name.as_bytes().into();
        let entry = (name.clone(), Box::new(method) as Method);
        match self.indices.get(&name) {
            Some(&index) => self.methods[index] = entry,
            None => {
                self.indices.insert(name, self.methods.len());
                self.methods.push(entry);
            }
        }
        self
    }

    /// The method of this name, and its place. `guess` is the place to look at first: whoever has
    /// called a method often calls it again.
    #[inline]
    pub(super) fn find(&self, name: &[u8], guess: usize) -> Option<(usize, &Method)> {
        if let Some((known, method)) = self.methods.get(guess)
            && is_same(known, name)
        {
            return Some((guess, method));
        }
        let index = *self.indices.get(name)?;
        Some((index, &self.methods[index].1))
    }
}

/// Whether two names are the same. They are short: a loop is quicker than a call of the library.
#[inline]
fn is_same(one: &[u8], other: &[u8]) -> bool {
    one.len() == other.len() && one.iter().zip(other).all(|(a, b)| a == b)
}

impl fmt::Debug for Methods {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = self.methods.iter().map(|(name, _)| String::from_utf8_lossy(name));
        f.debug_set().entries(names).finish()
    }
}

/// FNV-1a: fast for short names. A hash that can be foreseen harms nobody here, since only the
/// program itself puts names into the table.
struct Fnv(u64);

impl Default for Fnv {
    fn default() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}

impl Fnv {
    fn mix(&mut self, word: u64) {
        self.0 = (self.0 ^ word).wrapping_mul(0x0100_0000_01b3);
    }
}

impl Hasher for Fnv {
    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|&byte| self.mix(byte.into()));
    }

    /// The length, in one step instead of eight.
    fn write_usize(&mut self, length: usize) {
        self.mix(length as u64);
    }

    fn finish(&self) -> u64 {
        self.0
    }
}
