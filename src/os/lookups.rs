//! Look-ups that may wait: users, groups, hosts, files, directories, and whether the kernel has a module. A
//! child can record them, so that its parent need not wait: it repeats what it does with the recorded answers.

use std::cell::RefCell;
use std::convert::Infallible;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::Path;

use serde_json::{Map, Value, json};

use super::credentials::{self, Credentials};
use super::network_stats;

/// Where answers come from.
pub(crate) enum Lookups {
    /// From the system.
    Live,
    /// From the system; each answer is recorded. Errors are not.
    Recording(RefCell<Map<String, Value>>),
    /// From a record; what it lacks, from the system.
    Recorded(Map<String, Value>),
}

impl Lookups {
    /// Returns look-ups that are recorded.
    pub(crate) fn recording() -> Self {
        Self::Recording(RefCell::default())
    }

    /// Returns look-ups with the answers of a [`record`](Self::record); `None` if it is none.
    pub(crate) fn recorded(record: Value) -> Option<Self> {
        match record {
            Value::Object(answers) => Some(Self::Recorded(answers)),
            _ => None,
        }
    }

    /// Adds an answer to a record.
    pub(crate) fn add_host(&mut self, host: &str, port: u16, found: &[SocketAddr]) {
        let found = json!(found.iter().map(SocketAddr::to_string).collect::<Vec<_>>());
        if let Self::Recorded(answers) = self {
            answers.insert(json!(["host", host, port]).to_string(), found);
        }
    }

    /// Returns what has been recorded.
    pub(crate) fn record(self) -> Value {
        match self {
            Self::Live => Value::Object(Map::new()),
            Self::Recording(answers) => Value::Object(answers.into_inner()),
            Self::Recorded(answers) => Value::Object(answers),
        }
    }

    /// Looks up a user and a group: see [`Credentials::lookup`].
    ///
    /// # Errors
    /// A message.
    pub(crate) fn credentials(
        &self,
        user: Option<&str>,
        group: Option<&str>,
    ) -> Result<Credentials, String> {
        let live = || Credentials::lookup(user, group);
        let key = json!(["credentials", user, group]);
        self.ask(&key, live, Credentials::to_json, Credentials::from_json)
    }

    /// Looks up a user by name or number: see [`credentials::lookup_uid`].
    ///
    /// # Errors
    /// A message.
    pub(crate) fn uid(&self, user: &str) -> Result<u32, String> {
        self.ask(&json!(["uid", user]), || credentials::lookup_uid(user), to_number, from_number)
    }

    /// Looks up a group by name or number: see [`credentials::lookup_gid`].
    ///
    /// # Errors
    /// A message.
    pub(crate) fn gid(&self, group: &str) -> Result<u32, String> {
        self.ask(&json!(["gid", group]), || credentials::lookup_gid(group), to_number, from_number)
    }

    /// Returns the addresses of a host, at least one, each once.
    ///
    /// # Errors
    /// The resolver's; `NotFound` if the host has no address.
    pub(crate) fn host(&self, host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
        let live = || {
            let mut found: Vec<SocketAddr> = Vec::new();
            for address in (host, port).to_socket_addrs()? {
                if !found.contains(&address) {
                    found.push(address);
                }
            }
            if found.is_empty() { Err(io::ErrorKind::NotFound.into()) } else { Ok(found) }
        };
        let to_json = |found: &Vec<SocketAddr>| {
            json!(found.iter().map(SocketAddr::to_string).collect::<Vec<_>>())
        };
        let from_json = |record: &Value| {
            let texts = record.as_array()?.iter();
            let found: Vec<_> =
                texts.map(|text| text.as_str()?.parse().ok()).collect::<Option<_>>()?;
            (!found.is_empty()).then_some(found)
        };
        self.ask(&json!(["host", host, port]), live, to_json, from_json)
    }

    /// Returns whether the kernel tells the accept queues of unix listeners. That may load a module.
    pub(crate) fn has_unix_queues(&self) -> bool {
        let live = || Ok::<_, Infallible>(network_stats::has_unix_queues());
        let Ok(answer) = self.ask(&json!(["unix_queues"]), live, |it| json!(it), Value::as_bool);
        answer
    }

    /// Returns the text of a file, which `read` reads.
    ///
    /// # Errors
    /// Those of `read`.
    pub(crate) fn text<E>(
        &self,
        path: &Path,
        read: impl FnOnce(&Path) -> Result<String, E>,
    ) -> Result<String, E> {
        let key = json!(["text", path.to_string_lossy()]);
        self.ask(&key, || read(path), |text| json!(text), |text| text.as_str().map(str::to_owned))
    }

    /// Returns the path that a link leads to, which `follow` finds.
    ///
    /// # Errors
    /// Those of `follow`.
    pub(crate) fn real_path<E>(
        &self,
        link: &Path,
        follow: impl FnOnce(&Path) -> Result<String, E>,
    ) -> Result<String, E> {
        let key = json!(["real_path", link.to_string_lossy()]);
        self.ask(&key, || follow(link), |path| json!(path), |path| path.as_str().map(str::to_owned))
    }

    /// Returns the names in a directory, which `list` lists; `None` if the path is not a directory.
    ///
    /// # Errors
    /// Those of `list`.
    pub(crate) fn names<E>(
        &self,
        path: &Path,
        list: impl FnOnce(&Path) -> Result<Option<Vec<String>>, E>,
    ) -> Result<Option<Vec<String>>, E> {
        let key = json!(["names", path.to_string_lossy()]);
        let from_json = |record: &Value| match record {
            Value::Null => Some(None),
            names => {
                let names = names.as_array()?.iter();
                names.map(|name| name.as_str().map(str::to_owned)).collect::<Option<_>>().map(Some)
            }
        };
        self.ask(&key, || list(path), |names| json!(names), from_json)
    }

    fn ask<T, E>(
        &self,
        question: &Value,
        live: impl FnOnce() -> Result<T, E>,
        to_json: impl FnOnce(&T) -> Value,
        from_json: impl FnOnce(&Value) -> Option<T>,
    ) -> Result<T, E> {
        let key = question.to_string();
        match self {
            Self::Live => live(),
            Self::Recording(answers) => {
                let answer = live()?;
                answers.borrow_mut().insert(key, to_json(&answer));
                Ok(answer)
            }
            Self::Recorded(answers) => answers.get(&key).and_then(from_json).map_or_else(live, Ok),
        }
    }
}

fn to_number(number: &u32) -> Value {
    json!(number)
}

fn from_number(number: &Value) -> Option<u32> {
    number.as_u64()?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn recorded_answers_are_not_looked_up_again() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let ask = |lookups: &Lookups, may_read: bool| {
            let listing = |names| if may_read { Ok(names) } else { Err(()) };
            let text = lookups
                .text(file.path(), |_| if may_read { Ok("a: \u{e9}\n".into()) } else { Err(()) });
            (
                lookups.credentials(Some("root"), None),
                lookups.credentials(None, None),
                lookups.uid("0"),
                lookups.gid("root"),
                lookups.host("127.0.0.1", 80).ok(),
                text,
                lookups.names(Path::new("/x"), |_| listing(Some(vec!["a".into()]))),
                lookups.names(Path::new("/y"), |_| listing(None)),
            )
        };
        let recording = Lookups::recording();
        let expected = ask(&recording, true);
        assert_eq!(expected.5.as_deref(), Ok("a: \u{e9}\n"));
        let sent = recording.record().to_string();
        let recorded = Lookups::recorded(serde_json::from_str(&sent).unwrap()).unwrap();
        assert_eq!(ask(&recorded, false), expected);
    }

    #[test]
    fn errors_are_looked_up_again() {
        let recording = Lookups::recording();
        assert_eq!(recording.text(Path::new("/x"), |_| Err("no file")), Err("no file"));
        let recorded = Lookups::recorded(recording.record()).unwrap();
        assert_eq!(recorded.text(Path::new("/x"), |_| Err("still none")), Err("still none"));
        assert!(Lookups::recorded(json!(1)).is_none());
    }
}
