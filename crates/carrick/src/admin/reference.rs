//! `docs/reference/admin-api.md`, made from the types and compared with the file by a test.

use std::time::Duration;

use carrick_model::{Mechanism, Payload};
use serde::Serialize;

use crate::{
    admin::api::{
        ConnectReply, ConnectRequest, ConnectionList, ConnectionRow, Direction, DisconnectRequest,
        ExplainReport, ExplainStep, ImportState, Origin, PassingRow, Problem, ProblemCode, ReloadReply,
        ServiceList, ServiceRow, StepKind, Timestamp, TrustList, TrustRow, Verdict,
    },
    cli::status::tests::{ago, now, sample},
};

const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/reference/admin-api.md");
/// Set, the test writes the page instead of comparing it.
const WRITE: &str = "CARRICK_WRITE_REFERENCE";

const HEAD: &str = "\
# Admin API

<!-- Made from the code: CARRICK_WRITE_REFERENCE=1 cargo test -p carrick the_reference_page -->

HTTP/1.1 over the Unix socket `state_dir/admin.sock` (mode 0600: the daemon's user and root). `carrick status` and the
other commands use it, and `-o json` prints its replies as they are. `listen.admin` serves `/`, `/metrics`, `/livez` and
`/readyz` over TCP as well, and nothing else.

```console
$ curl -s --unix-socket /var/lib/carrick/admin.sock http://carrick/v1/status | jq .ready
true
```

- Keys are always there; what is unknown or does not apply is `null`.
- Times are RFC 3339 in UTC. Spans are whole numbers with their unit in the key, sizes are bytes.
- The API only grows: keys and codes are added, never renamed. Skip keys that you do not know.
- Every reply names its versions in the headers `carrick-api` and `carrick-version`.
- A request body has at most 64 KiB, and a request is answered within 30 seconds.

| path | metrics and probes |
|---|---|
| `GET /metrics` | OpenMetrics text |
| `GET /livez` | 200 as long as the process answers |
| `GET /readyz` | 200 when every part has started, 503 before that and while draining |
";

fn page() -> String {
    let mut text = String::from(HEAD);
    let service = || "postgres@onprem.test".parse().expect("a service");
    let listen = || "127.0.0.1:15432".parse().expect("an address");

    part(&mut text, "GET /v1/status", "The daemon at a glance.", None::<&()>, Some(&sample()));
    part(
        &mut text,
        "GET /v1/services?domain=D",
        "Services of domain D, asked there; without `domain`, what this daemon exports and imports. `origin` is `export`, \
         `import` or `remote`.",
        None::<&()>,
        Some(&ServiceList { domain: None, services: vec![service_row(service())] }),
    );
    part(
        &mut text,
        "GET /v1/connections",
        "Connections in both directions, the oldest first, and those that pass through to another hop.",
        None::<&()>,
        Some(&ConnectionList { connections: vec![connection_row(service())], passing: vec![passing_row()] }),
    );
    part(
        &mut text,
        "GET /v1/explain?name=S@D",
        "Walks the steps from a name to a flow: `name`, `gateways`, `trust`, `find`, `select`, `request`, `stitch`, `keep`. A \
         verdict is `ok`, `skipped`, `warning` or `failed`; that of the report is the worst of its steps. A step that fails \
         is part of the report, not an error. A name without `@` is a service of the own domain.",
        None::<&()>,
        Some(&ExplainReport::new(service(), vec![explain_step()], Duration::from_micros(12_348))),
    );
    part(
        &mut text,
        "POST /v1/connect",
        "Makes an import that is in no config file. The reply comes when its listener is bound; port 0 takes a free one. With \
         `hold` the reply is one line of JSON and the body stays open: the import ends when the caller closes the \
         connection, however that comes about.",
        Some(&ConnectRequest { service: service(), listen: listen(), hold: true }),
        Some(&ConnectReply { service: service(), listen: listen(), state: ImportState::Up, why: None }),
    );
    part(
        &mut text,
        "POST /v1/disconnect",
        "Ends such an import. The reply has no body (204).",
        Some(&DisconnectRequest { service: service(), listen: listen() }),
        None::<&()>,
    );
    part(
        &mut text,
        "GET /v1/trust",
        "The bundles in force, the own one first.",
        None::<&()>,
        Some(&trust_list()),
    );
    part(
        &mut text,
        "POST /v1/reload",
        "Reads the config file and the imported bundles again and applies what changed.",
        None::<&()>,
        Some(&ReloadReply {
            applied: vec!["import postgres@onprem.test: added".into()],
            restart_needed: vec!["listen.control".into()],
        }),
    );
    problems(&mut text);
    text
}

fn part<Q: Serialize, A: Serialize>(
    text: &mut String,
    title: &str,
    about: &str,
    ask: Option<&Q>,
    answer: Option<&A>,
) {
    text.push_str(&format!("\n## {title}\n\n{about}\n"));
    if let Some(ask) = ask {
        text.push_str(&format!("\nRequest:\n\n```json\n{}\n```\n", json(ask)));
    }
    if let Some(answer) = answer {
        text.push_str(&format!("\nReply:\n\n```json\n{}\n```\n", json(answer)));
    }
}

fn problems(text: &mut String) {
    let example =
        Problem::new(ProblemCode::Conflict, "127.0.0.1:15432 is in use").hint("choose another port");
    text.push_str(&format!("\n## Problems\n\nWhat goes wrong:\n\n```json\n{}\n```\n\n", json(&example)));
    text.push_str("| code | status | meaning |\n|---|---|---|\n");
    for (code, meaning) in [
        (ProblemCode::InvalidRequest, "the request is not one: correct it"),
        (ProblemCode::Denied, "policy or trust says no: a retry does not help"),
        (ProblemCode::NotFound, "there is no such thing"),
        (ProblemCode::UnknownPath, "the path is none of this API: an older daemon does not have it"),
        (ProblemCode::MethodNotAllowed, "the path exists, the method does not"),
        (ProblemCode::Conflict, "it exists already or is in use"),
        (ProblemCode::TooLarge, "the body is over the limit"),
        (ProblemCode::InvalidConfig, "the new config has faults, and the old one stays in force"),
        (ProblemCode::Internal, "the daemon failed: its log says more"),
        (ProblemCode::Unavailable, "something it depends on does not answer, or it is draining: try again"),
        (ProblemCode::Timeout, "it took too long: try again"),
    ] {
        let word = json(&code);
        text.push_str(&format!(
            "| `{}` | {} | {meaning} |\n",
            word.trim_matches('"'),
            code.status().as_u16()
        ));
    }
}

fn json(value: &impl Serialize) -> String {
    serde_json::to_string_pretty(value).expect("every message has a JSON form")
}

fn service_row(service: carrick_model::ServiceName) -> ServiceRow {
    ServiceRow {
        service,
        origin: Origin::Import,
        payload: Some(Payload::Tcp),
        port: Some(5432),
        endpoints: vec!["postgres-0".into()],
        reach: vec!["127.0.0.1:15432".into(), "postgres.onprem.test.mesh:5432".into()],
        state: Some(ImportState::Up),
    }
}

fn connection_row(service: carrick_model::ServiceName) -> ConnectionRow {
    ConnectionRow {
        id: "0f2d2c3a-5b1e-4a55-9d5e-0a6f6c1a7b11".into(),
        direction: Direction::Outgoing,
        service,
        peer: "spiffe://onprem.test/carrick/gateway".into(),
        endpoint: Some("postgres-0".into()),
        mechanism: Mechanism::Quic,
        payload: Payload::Tcp,
        state: "up".into(),
        since: ago(90),
        expires: Some(Timestamp(now() + Duration::from_secs(300))),
        flows: 12,
    }
}

fn passing_row() -> PassingRow {
    PassingRow {
        id: "7c1f5b0e-2d1a-4f0e-8f57-0c0b8f5d2a10".into(),
        service: "web@onprem.test".into(),
        owner: "spiffe://cloud.test/ns/shop/pod/client".into(),
        endpoint: "web-0@onprem.test".into(),
        next: "the gateway of onprem.test".into(),
        state: "up".into(),
        since: ago(60),
        expires: Timestamp(now() + Duration::from_secs(540)),
    }
}

fn explain_step() -> ExplainStep {
    ExplainStep {
        step: StepKind::Trust,
        verdict: Verdict::Failed,
        took_micros: 12_345,
        evidence: vec!["198.51.100.7:7443 answered in 4.0 ms".into()],
        problem: Some("the peer is of trust domain other.test, not onprem.test".into()),
        hint: Some("check who answers at 198.51.100.7:7443".into()),
    }
}

fn trust_list() -> TrustList {
    let row = TrustRow {
        domain: "onprem.test".parse().expect("a domain"),
        trust_domain: "onprem.test".into(),
        own: false,
        source: "imported".into(),
        fingerprints: vec!["1c1e43e7e60707c789a0e622d931ecd66e46191afa3affd78a3f01a20a887394".into()],
        states: Vec::new(),
        not_after: Timestamp(now() + Duration::from_secs(86_400 * 3_650)),
    };
    TrustList { bundles: vec![row] }
}

#[test]
fn the_reference_page_of_the_admin_api_is_what_the_code_says() {
    let made = page();
    if std::env::var_os(WRITE).is_some() {
        std::fs::create_dir_all(std::path::Path::new(PAGE).parent().unwrap()).unwrap();
        std::fs::write(PAGE, &made).unwrap();
    }
    let written = std::fs::read_to_string(PAGE).unwrap_or_default();
    assert!(
        made == written,
        "docs/reference/admin-api.md is out of date: {WRITE}=1 cargo test -p carrick the_reference_page"
    );
}
