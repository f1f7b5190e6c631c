//! The formats of an access log: a template is parsed once, when the settings are checked.

use std::sync::Arc;

/// The longest template, in bytes.
const TEMPLATE_BYTES_MAX: usize = 1024;

/// The template of the Combined Log Format, which goaccess and fail2ban read.
const COMBINED: &str = r#"%(h)s %(l)s %(u)s %(t)s "%(r)s" %(s)s %(b)s "%(f)s" "%(a)s""#;

/// The format of the records of an access log: `combined`, `json`, or a template. Two formats are equal
/// if their texts are.
#[derive(Clone, Debug)]
pub struct AccessFormat {
    text: String,
    pieces: Arc<[Piece]>,
    /// The late parts among the pieces.
    lates: Arc<[Late]>,
}

/// A part of a record.
#[derive(Debug)]
pub(super) enum Piece {
    /// The same text in every record.
    Literal(Box<[u8]>),
    /// What is known when the response begins.
    Early(Early),
    /// What is known when the response has ended.
    Late(Late),
}

/// What is known when the response begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Early {
    Dash,
    Client,
    User,
    RequestLine,
    Status,
    Method,
    Path,
    Query,
    Protocol,
    Pid,
    PidNumber,
    Pool,
    Slot,
    Id,
    Traceparent,
    Kind,
    Referer,
    UserAgent,
    RequestField(Box<str>),
    ResponseField(Box<str>),
    /// All members of a JSON object that are known early.
    JsonMembers,
}

/// What is known when the response has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Late {
    Time,
    Bytes,
    BytesOrDash,
    Micros,
    Millis,
    Seconds,
    SecondsDecimal,
    End,
    JsonTime,
    /// All members of a JSON object that are known late, except the time.
    JsonMembers,
}

/// An atom of a template.
struct Atom {
    name: &'static str,
    meaning: Meaning,
    #[cfg_attr(not(test), allow(dead_code, reason = "docs/src/access-log.md is compared with it"))]
    doc: &'static str,
}

#[derive(Clone)]
enum Meaning {
    Early(Early),
    Late(Late),
}

macro_rules! atoms {
    ($($name:literal $when:ident $what:ident $doc:literal;)*) => {
        &[$(Atom { name: $name, meaning: Meaning::$when($when::$what), doc: $doc }),*]
    };
}

/// All atoms, except those that name a header field.
static ATOMS: &[Atom] = atoms! {
    "h" Early Client "address of the client; `-` for a unix socket and for a job";
    "l" Early Dash "`-`";
    "u" Early User "user name of a `Basic` authorization";
    "t" Late Time "date and time in UTC at which the record is written: `[10/Oct/2000:13:55:36 +0000]`";
    "r" Early RequestLine "request line: `GET /path?query HTTP/1.1`";
    "s" Early Status "status";
    "b" Late BytesOrDash "bytes of the response's body, without chunk framing; `-` instead of 0";
    "f" Early Referer "`Referer` field";
    "a" Early UserAgent "`User-Agent` field";
    "m" Early Method "method; `CALL` or `NOTIFY` for RPC; `RUN` for a job; `WORK` for a unit that a class of your own marks";
    "U" Early Path "path without query; method of a call; label of a run or of a marked unit";
    "q" Early Query "query";
    "H" Early Protocol "protocol: `HTTP/1.1`, `HTTP/1.0`, `MessagePack-RPC`, `JOB`, `OTHER`";
    "B" Late Bytes "bytes of the response's body, without chunk framing";
    "D" Late Micros "duration in microseconds";
    "M" Late Millis "duration in milliseconds";
    "T" Late Seconds "duration in seconds";
    "L" Late SecondsDecimal "duration in seconds with 6 decimals";
    "p" Early Pid "process ID of the worker in angle brackets, as in gunicorn: `<123>`";
    "pid" Early PidNumber "process ID of the worker";
    "pool" Early Pool "pool of the worker";
    "slot" Early Slot "slot of the worker";
    "id" Early Id "request id";
    "traceparent" Early Traceparent "`traceparent` field, if it is valid";
    "kind" Early Kind "`http`, `rpc`, `job` or `other`";
    "end" Late End "`complete`; `aborted` if the client disconnected before the kernel had taken the whole response; `failed` if the application could not produce the whole body";
};

impl PartialEq for AccessFormat {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Eq for AccessFormat {}

impl Default for AccessFormat {
    fn default() -> Self {
        Self::new("combined", template(COMBINED).unwrap_or_default())
    }
}

impl AccessFormat {
    /// Parses a format.
    ///
    /// # Errors
    /// An unknown or incomplete atom, a control character, or a template without atoms or of more than
    /// 1024 bytes: a reason that can follow the quoted text.
    pub fn parse(text: &str) -> Result<Self, String> {
        let pieces = match text {
            "combined" => template(COMBINED)?,
            "json" => json(),
            _ => template(text)?,
        };
        Ok(Self::new(text, pieces))
    }

    fn new(text: &str, pieces: Vec<Piece>) -> Self {
        let late = |piece: &Piece| match piece {
            Piece::Late(late) => Some(*late),
            Piece::Literal(_) | Piece::Early(_) => None,
        };
        let lates = pieces.iter().filter_map(late).collect();
        Self { text: text.to_owned(), pieces: pieces.into(), lates }
    }

    /// Returns the text that was parsed.
    pub fn text(&self) -> &str {
        &self.text
    }

    pub(super) fn pieces(&self) -> &[Piece] {
        &self.pieces
    }

    /// Returns the late parts of a record, in their order.
    pub(super) fn lates(&self) -> &[Late] {
        &self.lates
    }

    /// Returns whether records contain a duration.
    pub(super) fn has_duration(&self) -> bool {
        let is_other =
            |late: &Late| matches!(late, Late::Time | Late::Bytes | Late::BytesOrDash | Late::End);
        !self.lates.iter().all(is_other)
    }

    /// Returns whether records contain the request id.
    pub(super) fn has_id(&self) -> bool {
        let is_id = |piece: &Piece| matches!(piece, Piece::Early(Early::Id | Early::JsonMembers));
        self.pieces.iter().any(is_id)
    }
}

fn json() -> Vec<Piece> {
    let literal = |text: &str| Piece::Literal(text.as_bytes().into());
    vec![
        literal("{\"ts\":\""),
        Piece::Late(Late::JsonTime),
        literal("\""),
        Piece::Early(Early::JsonMembers),
        Piece::Late(Late::JsonMembers),
        literal("}"),
    ]
}

fn template(text: &str) -> Result<Vec<Piece>, String> {
    if text.len() > TEMPLATE_BYTES_MAX {
        return Err(format!("is too long: give at most {TEMPLATE_BYTES_MAX} bytes"));
    }
    if text.chars().any(char::is_control) {
        return Err("contains a control character: a record is one line".into());
    }
    let (mut pieces, mut literal, mut rest) = (Vec::new(), String::new(), text);
    let mut has_atom = false;
    while let Some(at) = rest.find('%') {
        literal.push_str(&rest[..at]);
        let atom = &rest[at..];
        if let Some(after) = atom.strip_prefix("%%") {
            literal.push('%');
            rest = after;
            continue;
        }
        let inner = atom.strip_prefix("%(").and_then(|inner| inner.split_once(")s"));
        let Some((name, after)) = inner else {
            let shown: String = atom.chars().take(8).collect();
            return Err(format!(
                "has an incomplete atom at {shown:?}: write %(NAME)s, or %% for a percent sign"
            ));
        };
        rest = after;
        has_atom = true;
        match piece_of(name)? {
            Piece::Early(Early::Dash) => literal.push('-'),
            piece => {
                if !literal.is_empty() {
                    pieces.push(Piece::Literal(std::mem::take(&mut literal).into_bytes().into()));
                }
                pieces.push(piece);
            }
        }
    }
    if !has_atom {
        return Err(
            "is no access log format: give combined, json, or a template with atoms such as %(h)s"
                .into(),
        );
    }
    literal.push_str(rest);
    if !literal.is_empty() {
        pieces.push(Piece::Literal(literal.into_bytes().into()));
    }
    Ok(pieces)
}

fn piece_of(name: &str) -> Result<Piece, String> {
    if let Some(atom) = ATOMS.iter().find(|atom| atom.name == name) {
        return Ok(match atom.meaning.clone() {
            Meaning::Early(early) => Piece::Early(early),
            Meaning::Late(late) => Piece::Late(late),
        });
    }
    let is_token = |field: &str| {
        !field.is_empty() && field.bytes().all(|byte| byte.is_ascii_graphic() && byte != b':')
    };
    match name.strip_prefix('{').and_then(|name| name.rsplit_once('}')) {
        Some((field, "i")) if is_token(field) => {
            Ok(Piece::Early(Early::RequestField(field.into())))
        }
        Some((field, "o")) if is_token(field) => {
            Ok(Piece::Early(Early::ResponseField(field.into())))
        }
        _ => {
            let known: Vec<_> = ATOMS.iter().map(|atom| atom.name).collect();
            Err(format!(
                "has the unknown atom %({name})s: known are {}, and {{field}}i and {{field}}o for \
                 header fields of the request and the response",
                known.join(", ")
            ))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(text: &str) -> String {
        AccessFormat::parse(text).unwrap_err()
    }

    #[test]
    fn parse_names_what_is_wrong() {
        assert!(error("%(h)s %(z)s").contains("unknown atom %(z)s: known are h, l, u"));
        assert!(error("%({x}e)s").contains("unknown atom %({x}e)s"));
        assert!(error("%({}i)s").contains("unknown atom"));
        assert!(error("%({a b}i)s").contains("unknown atom"));
        assert!(error("%(h)d").contains("incomplete atom at \"%(h)d\""));
        assert!(error("100%").contains("incomplete atom"));
        assert!(error("%(h)s\n").contains("control character"));
        assert!(error("jsn").contains("give combined, json, or a template"));
        assert!(error("").contains("give combined, json, or a template"));
        assert!(error(&"%(h)s".repeat(300)).contains("at most 1024 bytes"));
    }

    #[test]
    fn parse_accepts_every_atom() {
        for Atom { name, .. } in ATOMS {
            let format = AccessFormat::parse(&format!("100%% %({name})s.")).unwrap();
            let is_constant = *name == "l";
            assert!(match &*format.pieces {
                [Piece::Literal(all)] => is_constant && **all == *b"100% -.",
                [Piece::Literal(a), _, Piece::Literal(b)] => **a == *b"100% " && **b == *b".",
                _ => false,
            });
        }
        for (name, is_id) in [("%({X-A}i)s", false), ("%({x-b}o)s", false), ("%(id)s", true)] {
            assert_eq!(AccessFormat::parse(name).unwrap().has_id(), is_id);
        }
        assert!(AccessFormat::parse("json").unwrap().has_id());
        assert_eq!(AccessFormat::default(), AccessFormat::parse("combined").unwrap());
    }

    #[test]
    fn guide_lists_every_atom() {
        let page = include_str!("../../../docs/src/access-log.md");
        let rows: Vec<String> =
            ATOMS.iter().map(|atom| format!("| `%({})s` | {} |", atom.name, atom.doc)).collect();
        let listed: Vec<&str> =
            page.lines().filter(|line| line.starts_with("| `%(") && !line.contains('{')).collect();
        assert_eq!(listed, rows, "docs/src/access-log.md needs these rows:\n{}", rows.join("\n"));
    }
}
