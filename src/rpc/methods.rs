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

/// A table of methods by name. One table serves all clients of a worker, from all its threads.
///
/// ```
/// use ostler::rpc::{Error, Methods};
///
/// let methods = Methods::new()
///     .method("add", |(a, b): (i64, i64)| Ok::<_, Error>(a.wrapping_add(b)))
///     .method("root", |(x,): (f64,)| if x < 0.0 { Err("no real root") } else { Ok(x.sqrt()) })
///     .method_with("slot", |call, ()| Ok::<_, Error>(call.worker().slot));
/// # let _ = methods;
/// ```
#[derive(Default)]
pub struct Methods {
    methods: Vec<(Box<[u8]>, Method)>,
    /// The index of each method in `methods`.
    indices: HashMap<Box<[u8]>, usize, BuildHasherDefault<Fnv>>,
}

impl Methods {
    /// Creates an empty table.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a function of the arguments, which are a tuple; `()` if there are none. It replaces an
    /// earlier method of the same name. A panic in it is caught: the caller gets an error, and the
    /// connection and the worker continue.
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

    /// Adds a function like [`method`](Self::method) that also gets the call: the worker's slot, the
    /// caller's address, and so on.
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
        self.insert(name, move |call, writer| match call.arguments() {
            Ok(arguments) => match method(call, arguments) {
                Ok(result) => writer.value(&result),
                Err(error) => Err(error.into()),
            },
            Err(error) => Err(error),
        })
    }

    /// Adds a function that reads the arguments itself, borrowed or encoded, and writes its result
    /// itself. If it does not write exactly one value, the caller gets an error.
    #[must_use]
    pub fn raw_method(
        self,
        name: &str,
        method: impl Fn(&Call<'_>, &mut ResultWriter<'_>) -> Result<(), Error> + Send + Sync + 'static,
    ) -> Self {
        self.insert(name, move |call, writer| {
            let start = writer.out.len();
            method(call, writer)?;
            let result = &writer.out[start..];
            let limits = Limits { message: usize::MAX, ..Limits::default() };
            match Scanner::default().scan(result, &limits) {
                Ok(Scan::Whole(length)) if length == result.len() => Ok(()),
                _ => Err(Error::unserializable("it is not exactly one value")),
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

    /// Returns the method of this name, and its index. `guess` is the index to try first, since clients
    /// often call the same method again.
    #[inline]
    pub(super) fn find(&self, name: &[u8], guess: usize) -> Option<(usize, &Method)> {
        if let Some((known, method)) = self.methods.get(guess)
            && is_equal(known, name)
        {
            return Some((guess, method));
        }
        let index = *self.indices.get(name)?;
        Some((index, &self.methods[index].1))
    }
}

/// Returns whether two names are equal. Names are short: a loop is faster than a call of memcmp(3).
#[inline]
fn is_equal(one: &[u8], other: &[u8]) -> bool {
    one.len() == other.len() && one.iter().zip(other).all(|(a, b)| a == b)
}

impl fmt::Debug for Methods {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = self.methods.iter().map(|(name, _)| String::from_utf8_lossy(name));
        f.debug_set().entries(names).finish()
    }
}

/// FNV-1a, which is fast for short names. Predictable hashes are safe here, since only the program
/// inserts names.
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

    /// Mixes in the length in one step instead of eight.
    fn write_usize(&mut self, length: usize) {
        self.mix(length as u64);
    }

    fn finish(&self) -> u64 {
        self.0
    }
}
