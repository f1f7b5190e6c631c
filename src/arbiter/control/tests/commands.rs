//! Commands: what is refused before the loop hears of it, and how the loop's answer is told.

use serde_json::{Value, json};

use super::*;
use crate::arbiter::operations::{Command, Fact, Refusal, ReloadStage, ScaleTo, Work};

/// A client of `control_socket`, and the loop.
struct Commander<'s> {
    session: Session<'s>,
    operations: SharedOperations,
    spare: Vec<u8>,
}

impl<'s> Commander<'s> {
    fn new(service: &'s Http<Api>, operations: &SharedOperations) -> Self {
        let info = ClientInfo { address: None, allow_keepalive: true };
        let now = MonotonicTime::default();
        let session = Session::new(service.accept(&info), Duration::ZERO, now);
        Self { session, operations: operations.clone(), spare: Vec::new() }
    }

    fn post(&mut self, target: &str, fields: &str, body: &str) {
        let request = format!(
            "POST {target} HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n{fields}\r\n{body}",
            body.len()
        );
        let now = MonotonicTime::default();
        self.session.on_received(request.as_bytes(), &mut self.spare, &mut Reporter, now);
    }

    /// Takes the only command.
    fn asked(&mut self) -> Asked {
        let mut asked = self.operations.lock().take_asked();
        assert_eq!(asked.len(), 1);
        asked.remove(0)
    }

    fn read(&mut self) -> String {
        let (now, mut text) = (self.operations.lock().now(), Vec::new());
        self.session.wake(&mut self.spare, &mut Reporter, now);
        while self.session.wants() == Wants::Write {
            text.extend_from_slice(self.session.unsent());
            let length = self.session.unsent().len();
            self.session.on_sent(length, &mut self.spare, &mut Reporter, now);
        }
        String::from_utf8(text).unwrap()
    }

    /// Reads a whole response.
    fn response(&mut self) -> (u16, Value) {
        let text = self.read();
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("{text:?}"));
        (head[9..12].parse().unwrap(), serde_json::from_str(body).unwrap())
    }
}

/// Has a client send a command, and returns the command that the loop gets, or the refusal.
fn parse(target: &str, body: &str) -> Result<Command, (u16, String)> {
    let service = service(Endpoint::Control, snapshot(""));
    let operations = service.handler_ref().operations.clone();
    let mut client = Commander::new(&service, &operations);
    client.post(target, "", body);
    let asked = operations.lock().take_asked();
    match asked.into_iter().next() {
        Some(asked) => Ok(asked.command),
        None => {
            let (status, answer) = client.response();
            Err((status, answer["error"].as_str().unwrap().to_owned()))
        }
    }
}

#[test]
fn command_takes_parameters_from_query_or_body() {
    let scale = |workers| Ok(Command::Scale { pool: Some("web".into()), workers });
    assert_eq!(parse("/v1/scale?pool=web&workers=4", ""), scale(ScaleTo::Count(4)));
    assert_eq!(parse("/v1/scale?pool=web&workers=%2B4", ""), scale(ScaleTo::Step(4)));
    assert_eq!(parse("/v1/scale?pool=web&workers=+4", ""), scale(ScaleTo::Step(4)));
    assert_eq!(parse("/v1/scale", r#"{"pool": "web", "workers": -4}"#), scale(ScaleTo::Step(-4)));
    assert_eq!(parse("/v1/scale?pool=web", r#"{"workers": "+4"}"#), scale(ScaleTo::Step(4)));
    assert_eq!(parse("/v1/reload", ""), Ok(Command::Reload { dry_run: false }));
    assert_eq!(parse("/v1/reload?dry_run", ""), Ok(Command::Reload { dry_run: true }));
    assert_eq!(parse("/v1/reload", r#"{"dry_run":true}"#), Ok(Command::Reload { dry_run: true }));
    let recycle =
        |pool: Option<&str>, slot| Ok(Command::Recycle { pool: pool.map(str::to_owned), slot });
    assert_eq!(parse("/v1/recycle", " "), recycle(None, None));
    assert_eq!(parse("/v1/recycle?pool=a%20b&slot=3&wait=0", ""), recycle(Some("a b"), Some(3)));
    let drain_mode = |pool: Option<&str>, slot, is_on| {
        Ok(Command::DrainMode { pool: pool.map(str::to_owned), slot, is_on })
    };
    assert_eq!(parse("/v1/drain", ""), drain_mode(None, None, true));
    assert_eq!(parse("/v1/drain", r#"{"pool": "web"}"#), drain_mode(Some("web"), None, true));
    assert_eq!(parse("/v1/drain?pool=web&slot=3", ""), drain_mode(Some("web"), Some(3), true));
    assert_eq!(parse("/v1/undrain?pool=web", ""), drain_mode(Some("web"), None, false));
    assert_eq!(parse("/v1/undrain", r#"{"slot": 0}"#), drain_mode(None, Some(0), false));
    assert_eq!(parse("/v1/stop?now=1", ""), Ok(Command::Stop { now: true }));
}

#[test]
fn wrong_parameters_are_400_and_name_the_fault() {
    for (target, body, reason) in [
        ("/v1/reload?dryrun=1", "", "\"dryrun\""),
        ("/v1/reload?dry_run=maybe", "", "\"maybe\""),
        ("/v1/upgrade?now=1", "", "\"now\""),
        ("/v1/scale", "", "workers"),
        ("/v1/scale?workers=many", "", "\"many\""),
        ("/v1/scale?workers=1&workers=2", "", "twice"),
        ("/v1/scale?workers=1", r#"{"workers":2}"#, "twice"),
        ("/v1/scale", r#"{"workers":1,"workers":2}"#, "twice"),
        ("/v1/recycle?slot=-1", "", "\"-1\""),
        ("/v1/drain?slot=a", "", "\"a\""),
        ("/v1/stop", "now", "JSON"),
        ("/v1/stop", "[1]", "JSON object"),
        ("/v1/stop", r#"{"now":[1]}"#, "\"now\""),
        ("/v1/stop", r#"{"later":1}"#, "\"later\""),
    ] {
        let (status, text) = parse(target, body).unwrap_err();
        assert_eq!(status, 400, "{target}");
        assert!(text.contains(reason), "{target}: {text}");
    }
}

#[test]
fn commands_are_for_control_socket_and_for_no_page() {
    let post = |endpoint, fields: &str| {
        let request = format!("POST /v1/stop HTTP/1.1\r\nHost: localhost\r\n{fields}\r\n");
        ask(endpoint, snapshot(""), &request)
    };
    assert!(post(Endpoint::Metrics, "").starts_with("HTTP/1.1 403 "));
    assert_eq!(post(Endpoint::Control, ""), "", "it waits");
    for origin in ["http://localhost", "null", "http://evil.example"] {
        let fields = format!("Origin: {origin}\r\nContent-Type: text/plain\r\n");
        assert!(post(Endpoint::Control, &fields).starts_with("HTTP/1.1 403 "), "{origin}");
    }
}

#[test]
fn command_is_answered_when_it_has_ended() {
    let service = service(Endpoint::Control, snapshot(""));
    let operations = service.handler_ref().operations.clone();
    for (facts, status) in [
        (vec![Fact::ReloadStarted(2), Fact::ReloadCommitted(2), Fact::ReloadComplete(2)], 200),
        (vec![Fact::ReloadRejected("no such key".into())], 422),
        (vec![Fact::ReloadStarted(2), Fact::ReloadRolledBack("exit 3".into())], 422),
    ] {
        let mut client = Commander::new(&service, &operations);
        client.post("/v1/reload", "", "");
        let asked = client.asked();
        assert_eq!(client.read(), "");
        let stage = ReloadStage::Requested;
        let id = operations.lock().begin(Work::Reload(stage), &asked.by, None);
        asked.reply.set(Ok(id)).unwrap();
        for fact in [Fact::ReloadPlanned].into_iter().chain(facts) {
            assert_eq!(client.read(), "");
            operations.lock().on_fact(fact);
        }
        let (answered, operation) = client.response();
        assert_eq!(answered, status, "{operation}");
        assert_eq!(operation["by"], "uid 0 pid 7");
        let ended = if status == 200 { "done" } else { "failed" };
        assert_eq!((&operation["id"], &operation["state"]), (&json!(id), &json!(ended)));
    }
}

#[test]
fn refused_command_gets_status_and_reason_of_the_loop() {
    let service = service(Endpoint::Control, snapshot(""));
    let operations = service.handler_ref().operations.clone();
    let mut client = Commander::new(&service, &operations);
    for accept in ["", "Accept: text/event-stream\r\n"] {
        client.post("/v1/upgrade", accept, "");
        client.asked().reply.set(Err(Refusal::conflict("under way"))).unwrap();
        assert_eq!(client.response(), (409, json!({ "error": "under way" })));
    }
}

#[test]
fn wait_0_answers_once_the_command_is_begun() {
    let service = service(Endpoint::Control, snapshot(""));
    let operations = service.handler_ref().operations.clone();
    let mut client = Commander::new(&service, &operations);
    client.post("/v1/stop?wait=0", "", "");
    assert_eq!(client.read(), "");
    let id = operations.lock().begin(Work::Stop { workers: 2 }, "me", None);
    client.asked().reply.set(Ok(id)).unwrap();
    let text = client.read();
    assert!(text.starts_with("HTTP/1.1 202 "), "{text}");
    assert!(text.contains(&format!("\r\nLocation: /v1/operations/{id}\r\n")), "{text}");
}

#[test]
fn events_tell_progress_and_the_end() {
    let service = service(Endpoint::Control, snapshot(""));
    let operations = service.handler_ref().operations.clone();
    let mut client = Commander::new(&service, &operations);
    client.post("/v1/reload", "Accept: text/event-stream\r\n", "");
    let id = operations.lock().begin(Work::Reload(ReloadStage::Requested), "me", None);
    client.asked().reply.set(Ok(id)).unwrap();
    let head = client.read();
    assert!(head.starts_with("HTTP/1.1 200 ") && head.contains("text/event-stream"), "{head}");
    assert!(head.contains("event: progress\ndata: {"), "{head}");
    assert_eq!(client.read(), "", "nothing has changed");
    operations.lock().on_fact(Fact::ReloadPlanned);
    operations.lock().on_fact(Fact::ReloadRejected("bad".into()));
    let end = client.read();
    assert!(end.contains("event: failed\ndata: {") && end.ends_with("\r\n0\r\n\r\n"), "{end}");
    assert!(end.contains("\"error\":\"bad\""), "{end}");
}

#[test]
fn clients_beyond_the_places_are_refused_until_one_has_gone() {
    let service = service(Endpoint::Control, snapshot(""));
    let operations = service.handler_ref().operations.clone();
    let post = || {
        let mut client = Commander::new(&service, &operations);
        client.post("/v1/reload", "", "");
        client
    };
    let mut waiting: Vec<_> = (0..16).map(|_| post()).collect();
    assert!(waiting.iter().all(|client| client.session.is_waiting()));
    let mut refused = post();
    assert!(!refused.session.is_waiting());
    assert!(refused.read().starts_with("HTTP/1.1 503 "));
    waiting.pop();
    assert!(post().session.is_waiting());
}

#[test]
fn operations_can_be_asked_for() {
    let service = service(Endpoint::Control, snapshot(""));
    let operations = service.handler_ref().operations.clone();
    let id = operations.lock().begin(Work::Reopen, "signal SIGUSR1", None);
    operations.lock().end(id, Ok(json!({})));
    let get = |path: &str| {
        let mut client = Commander::new(&service, &operations);
        let request = format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n");
        let now = MonotonicTime::default();
        client.session.on_received(request.as_bytes(), &mut client.spare, &mut Reporter, now);
        client.response()
    };
    let (status, operation) = get(&format!("/v1/operations/{id}"));
    assert_eq!((status, &operation["command"]), (200, &json!("reopen")));
    assert_eq!(get("/v1/operations").1, json!({ "operations": [operation] }));
    for path in ["/v1/operations/9", "/v1/operations/x", "/v1/operations/"] {
        assert_eq!(get(path).0, 404, "{path}");
    }
}

/// The published description has the paths, methods, parameters and statuses of the routes.
#[test]
fn openapi_document_equals_the_routes() {
    let document: Value = serde_json::from_str(api::OPENAPI).unwrap();
    assert_eq!(document["openapi"], "3.1.0");
    let mut described: Vec<_> = document["paths"].as_object().unwrap().keys().collect();
    let mut paths: Vec<_> = ROUTES.iter().map(|route| route.path).collect();
    described.sort();
    paths.sort();
    assert_eq!(described, paths);
    for route in ROUTES {
        let path = &document["paths"][route.path];
        let method = match route.answer {
            Answer::Read(_) | Answer::Readiness | Answer::Show(_) => "get",
            Answer::Command(_) => "post",
        };
        assert_eq!(
            path.as_object().unwrap().keys().collect::<Vec<_>>(),
            [method],
            "{}",
            route.path
        );
        let operation = &path[method];
        let parameters = operation["parameters"].as_array().cloned().unwrap_or_default();
        let (in_path, in_query): (Vec<_>, Vec<_>) =
            parameters.iter().partition(|parameter| parameter["in"] == "path");
        let names: Vec<_> = in_query.iter().map(|it| it["name"].as_str().unwrap()).collect();
        assert_eq!(names, route.parameters, "{}", route.path);
        assert_eq!(in_path.len(), route.path.matches('{').count(), "{}", route.path);
        if method == "post" {
            let schema = &operation["requestBody"]["content"]["application/json"]["schema"];
            let mut properties: Vec<_> = schema["properties"].as_object().unwrap().keys().collect();
            let mut expected = names.clone();
            properties.sort();
            expected.sort();
            assert_eq!(properties, expected, "{}", route.path);
        }
        let statuses = operation["responses"].as_object().unwrap().keys();
        let statuses: Vec<u16> = statuses.map(|status| status.parse().unwrap()).collect();
        assert_eq!(statuses, route.statuses, "{}", route.path);
    }
}
