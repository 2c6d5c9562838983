//! The admin API over real sockets, with a daemon that answers from memory.

use std::sync::atomic::{AtomicBool, Ordering};

use carrick_model::{ListenAddress, ServiceName};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpStream, UnixStream},
    sync::{Notify, mpsc},
};

use super::*;
use crate::{
    admin::{
        api::{
            ConnectReply, ConnectionRow, ExplainReport, ExplainStep, ImportState, Origin, PassingRow,
            ReloadReply, ServiceRow, Status, StepKind, TrustRow, Verdict,
        },
        client::{Client, ClientError},
    },
    cli::{Format, Output, connect, status::tests::sample},
    state_dir::StateDir,
};

/// Answers from memory and tells what it was asked to end.
struct Fake {
    ready: AtomicBool,
    connected: Notify,
    ended: mpsc::Sender<(ServiceName, ListenAddress)>,
}

impl Control for Fake {
    fn domain(&self) -> Domain {
        "cloud.test".parse().unwrap()
    }

    async fn status(&self) -> Status {
        sample()
    }

    async fn services(&self, domain: Option<Domain>) -> Result<Vec<ServiceRow>, Problem> {
        let domain = domain.unwrap_or_else(|| self.domain());
        if domain.as_str() == "far.test" {
            return Err(Problem::new(ProblemCode::Unavailable, "far.test does not answer").hint("wait"));
        }
        let row = |name: &str| ServiceRow {
            service: format!("{name}@{domain}").parse().unwrap(),
            origin: Origin::Export,
            payload: None,
            port: None,
            endpoints: vec![],
            reach: vec![],
            state: None,
        };
        Ok(vec![row("zebra"), row("ant")])
    }

    async fn connections(&self) -> Vec<ConnectionRow> {
        vec![]
    }

    async fn passing(&self) -> Vec<PassingRow> {
        vec![]
    }

    async fn explain(&self, name: ServiceName) -> ExplainReport {
        if name.target().as_str() == "stuck" {
            std::future::pending::<()>().await;
        }
        let step = ExplainStep {
            step: StepKind::Name,
            verdict: Verdict::Ok,
            took_micros: 1,
            evidence: vec![name.to_string()],
            problem: None,
            hint: None,
        };
        ExplainReport::new(name, vec![step], Duration::from_micros(1))
    }

    async fn connect(&self, request: ConnectRequest) -> Result<ConnectReply, Problem> {
        if request.service.target().as_str() == "secret" {
            return Err(Problem::new(ProblemCode::Denied, "cloud.test may not use secret@onprem.test"));
        }
        let ConnectRequest { service, listen, .. } = request;
        self.connected.notify_one();
        Ok(ConnectReply { service, listen, state: ImportState::Up, why: None })
    }

    async fn disconnect(&self, service: ServiceName, listen: ListenAddress) -> Result<(), Problem> {
        self.ended.send((service, listen)).await.unwrap();
        Ok(())
    }

    async fn trust(&self) -> Vec<TrustRow> {
        vec![]
    }

    async fn reload(&self) -> Result<ReloadReply, Problem> {
        Err(Problem::new(ProblemCode::InvalidConfig, "carrick.yaml has 2 faults"))
    }

    fn metrics(&self) -> String {
        "# EOF\n".into()
    }

    fn ready(&self) -> bool {
        self.ready.load(Ordering::Relaxed)
    }
}

struct Lab {
    state: StateDir,
    client: Client,
    control: Arc<Fake>,
    ended: mpsc::Receiver<(ServiceName, ListenAddress)>,
    tasks: Tasks,
    _dir: tempfile::TempDir,
}

impl Lab {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::new(dir.path().join("state"));
        let tasks = Tasks::new();
        let (sender, ended) = mpsc::channel(4);
        let control =
            Arc::new(Fake { ready: AtomicBool::new(true), connected: Notify::new(), ended: sender });
        let socket = AdminSocket::bind(&state).await.unwrap();
        serve(socket, Arc::clone(&control), &tasks);
        Self { client: Client::new(state.clone()), state, control, ended, tasks, _dir: dir }
    }

    /// The next import that was ended; what never comes fails the test instead of hanging it.
    async fn next_ended(&mut self) -> (ServiceName, ListenAddress) {
        tokio::time::timeout(Duration::from_secs(10), self.ended.recv())
            .await
            .expect("nothing was ended")
            .unwrap()
    }

    /// Sends bytes as they are and returns all that comes back.
    async fn raw(&self, request: &[u8]) -> String {
        let mut stream = UnixStream::connect(self.state.admin_socket()).await.unwrap();
        stream.write_all(request).await.unwrap();
        let mut reply = Vec::new();
        // A server that refuses a body it has not read may reset after its reply.
        let read = tokio::time::timeout(Duration::from_secs(100), stream.read_to_end(&mut reply));
        let _ = read.await.expect("the connection was never closed");
        String::from_utf8(reply).unwrap()
    }

    async fn request(&self, line: &str, body: &str) -> (u16, serde_json::Value) {
        let length = body.len();
        let text = format!(
            "{line} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{body}"
        );
        let reply = self.raw(text.as_bytes()).await;
        let status = reply.split(' ').nth(1).unwrap().parse().unwrap();
        let (_, body) = reply.split_once("\r\n\r\n").unwrap();
        (status, serde_json::from_str(body).unwrap())
    }
}

fn connect_request(service: &str) -> ConnectRequest {
    let listen = "127.0.0.1:15432".parse().unwrap();
    ConnectRequest { service: service.parse().unwrap(), listen, hold: false }
}

#[tokio::test]
async fn a_status_arrives_as_it_was_sent() {
    let lab = Lab::new().await;
    assert_eq!(lab.client.status().await.unwrap(), sample());
}

#[tokio::test]
async fn services_come_in_order_and_name_the_domain_asked() {
    let lab = Lab::new().await;
    let names = |list: &ServiceList| list.services.iter().map(|s| s.service.to_string()).collect::<Vec<_>>();
    let own = lab.client.services(None).await.unwrap();
    assert_eq!(
        (own.domain.clone(), names(&own)),
        (None, vec!["ant@cloud.test".into(), "zebra@cloud.test".into()])
    );
    let theirs = lab.client.services(Some(&"onprem.test".parse().unwrap())).await.unwrap();
    assert_eq!(theirs.domain.unwrap().as_str(), "onprem.test");
}

#[tokio::test]
async fn a_problem_keeps_its_code_and_hint() {
    let lab = Lab::new().await;
    let err = lab.client.services(Some(&"far.test".parse().unwrap())).await.unwrap_err();
    let ClientError::Problem(problem) = err else { panic!("{err:?}") };
    assert_eq!(problem, Problem::new(ProblemCode::Unavailable, "far.test does not answer").hint("wait"));
    let denied = lab.client.connect(&connect_request("secret@onprem.test")).await.unwrap_err();
    assert!(matches!(denied, ClientError::Problem(Problem { code: ProblemCode::Denied, .. })));
    let invalid = lab.client.reload().await.unwrap_err();
    assert_eq!(invalid.to_string(), "carrick.yaml has 2 faults");
}

#[tokio::test]
async fn a_bare_name_is_one_of_the_own_domain() {
    let lab = Lab::new().await;
    let report = lab.client.explain("web").await.unwrap();
    assert_eq!(report.steps[0].evidence, ["web@cloud.test"]);
    let (status, problem) = lab.request("GET /v1/explain?name=a@10.0.0.1", "").await;
    assert_eq!(status, 400);
    let message = problem["message"].as_str().unwrap();
    assert!(
        message.starts_with("`a@10.0.0.1` is not a service: not a domain after the `@`: an IP"),
        "{message}"
    );
    assert_eq!(lab.request("GET /v1/explain", "").await.0, 400);
}

#[tokio::test]
async fn what_is_not_a_request_is_told_in_json() {
    let lab = Lab::new().await;
    let code = |(status, body): (u16, serde_json::Value)| (status, body["code"].as_str().unwrap().to_owned());
    assert_eq!(code(lab.request("GET /v1/nothing", "").await), (404, "unknown_path".into()));
    assert_eq!(code(lab.request("DELETE /v1/status", "").await), (405, "method_not_allowed".into()));
    assert_eq!(code(lab.request("POST /v1/connect", "{").await), (400, "invalid_request".into()));
    let wrong = r#"{"service": "no-domain", "listen": "127.0.0.1:1"}"#;
    let (status, problem) = lab.request("POST /v1/connect", wrong).await;
    assert_eq!(status, 400);
    assert!(problem["message"].as_str().unwrap().contains("names no domain"), "{problem}");
}

#[tokio::test]
async fn an_oversize_body_is_refused_and_the_next_caller_served() {
    let lab = Lab::new().await;
    let (status, problem) = lab.request("POST /v1/connect", &"x".repeat(MAX_BODY + 1)).await;
    assert_eq!((status, problem["code"].as_str().unwrap()), (413, "too_large"));
    // One that does not say its size is cut off at the same point.
    let mut chunked =
        b"POST /v1/connect HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n"
            .to_vec();
    for _ in 0..(MAX_BODY / 0x1000 + 2) {
        chunked.extend_from_slice(b"1000\r\n");
        chunked.extend_from_slice(&[b'x'; 0x1000]);
        chunked.extend_from_slice(b"\r\n");
    }
    assert!(lab.raw(&chunked).await.starts_with("HTTP/1.1 413 "));
    lab.client.status().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_caller_that_never_finishes_its_request_is_let_go() {
    let lab = Lab::new().await;
    let begun = tokio::time::Instant::now();
    let reply = lab.raw(b"GET /v1/status HTTP/1.1\r\nhost:").await;
    assert!(reply.is_empty() || reply.starts_with("HTTP/1.1 408 "), "{reply}");
    assert!(begun.elapsed() >= HEAD_TIMEOUT && begun.elapsed() < HEAD_TIMEOUT * 2, "{:?}", begun.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_caller_that_is_idle_after_a_request_is_let_go() {
    let lab = Lab::new().await;
    let begun = tokio::time::Instant::now();
    let reply = lab.raw(b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n").await;
    assert!(reply.ends_with("ok\n"), "{reply}");
    assert!(begun.elapsed() < HEAD_TIMEOUT * 2, "{:?}", begun.elapsed());
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_does_not_come_is_a_timeout() {
    let lab = Lab::new().await;
    let err = lab.client.explain("stuck").await.unwrap_err();
    assert!(matches!(err, ClientError::Problem(Problem { code: ProblemCode::Timeout, .. })), "{err:?}");
}

#[tokio::test]
async fn a_held_import_ends_with_its_caller() {
    let mut lab = Lab::new().await;
    let request = connect_request("postgres@onprem.test");
    let (reply, hold) = lab.client.hold(&request).await.unwrap();
    assert_eq!(reply.state, ImportState::Up);
    assert!(lab.ended.try_recv().is_err(), "it lives while it is held");
    drop(hold);
    assert_eq!(lab.next_ended().await, (request.service.clone(), request.listen.clone()));

    // A caller that is killed says nothing; its socket just closes.
    let body = serde_json::to_string(&ConnectRequest { hold: true, ..request.clone() }).unwrap();
    let mut stream = UnixStream::connect(lab.state.admin_socket()).await.unwrap();
    let head =
        format!("POST /v1/connect HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n{body}", body.len());
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut first = [0; 16];
    stream.read_exact(&mut first).await.unwrap();
    drop(stream);
    assert_eq!(lab.next_ended().await.0, request.service);
}

#[tokio::test]
async fn one_that_is_not_held_stays() {
    let mut lab = Lab::new().await;
    let request = connect_request("postgres@onprem.test");
    lab.client.connect(&request).await.unwrap();
    lab.client.status().await.unwrap();
    assert!(lab.ended.try_recv().is_err());
    let DisconnectRequest { service, listen } =
        DisconnectRequest { service: request.service, listen: request.listen };
    lab.client.disconnect(&DisconnectRequest { service, listen }).await.unwrap();
    lab.next_ended().await;
}

#[tokio::test]
async fn who_holds_an_import_learns_of_the_daemons_end() {
    let lab = Lab::new().await;
    let (_, mut hold) = lab.client.hold(&connect_request("postgres@onprem.test")).await.unwrap();
    lab.tasks.stop();
    tokio::time::timeout(Duration::from_secs(10), hold.ended()).await.expect("the hold never ended");
    assert!(lab.tasks.wait(Duration::from_secs(5)).await, "every task has ended");
    assert!(!lab.state.admin_socket().exists(), "the socket is gone with the daemon");
}

/// Runs `carrick connect` in the foreground, and `then` once the import is made.
async fn foreground(lab: &Lab, then: impl FnOnce()) -> anyhow::Result<crate::cli::Exit> {
    let ConnectRequest { service, listen, .. } = connect_request("postgres@onprem.test");
    let command = connect::run(&lab.client, service, listen, false, Output::new(Format::Json));
    let interruption = async {
        lab.control.connected.notified().await;
        then();
    };
    let both = async { tokio::join!(command, interruption).0 };
    tokio::time::timeout(Duration::from_secs(10), both).await.expect("the command never ended")
}

#[tokio::test]
async fn a_signal_ends_connect_and_its_import() {
    let mut lab = Lab::new().await;
    // The command catches the signal before it asks for the import, so it does not end the test.
    let own = rustix::process::getpid();
    let exit =
        foreground(&lab, || rustix::process::kill_process(own, rustix::process::Signal::TERM).unwrap()).await;
    assert_eq!(exit.unwrap(), crate::cli::Exit::Ok);
    assert_eq!(
        lab.ended.try_recv().unwrap().0.to_string(),
        "postgres@onprem.test",
        "closed when the command returns"
    );
}

#[tokio::test]
async fn the_daemons_end_is_an_error_of_connect() {
    let lab = Lab::new().await;
    let err = foreground(&lab, || lab.tasks.stop()).await.unwrap_err();
    assert!(err.to_string().starts_with("the daemon stopped, and with it"), "{err}");
}

#[tokio::test]
async fn the_tcp_listener_only_reads() {
    let lab = Lab::new().await;
    let listener = bind_tcp("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let addr = listener.local_addr().unwrap();
    serve_tcp(listener, Arc::clone(&lab.control), &lab.tasks);
    let get = async |request: &str| {
        let mut stream = TcpStream::connect(addr).await.unwrap();
        let text = format!("{request} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        stream.write_all(text.as_bytes()).await.unwrap();
        let mut reply = String::new();
        stream.read_to_string(&mut reply).await.unwrap();
        reply
    };
    let metrics = get("GET /metrics").await;
    assert!(metrics.contains(OPENMETRICS) && metrics.ends_with("# EOF\n"), "{metrics}");
    assert!(get("GET /livez").await.starts_with("HTTP/1.1 200 "));
    assert!(get("GET /").await.contains("/readyz"));
    assert!(get("GET /readyz").await.starts_with("HTTP/1.1 200 "));
    lab.control.ready.store(false, Ordering::Relaxed);
    assert!(get("GET /readyz").await.starts_with("HTTP/1.1 503 "));
    for forbidden in ["GET /v1/status", "POST /v1/reload", "POST /v1/connect"] {
        assert!(get(forbidden).await.starts_with("HTTP/1.1 404 "), "{forbidden}");
    }
    assert!(get("POST /metrics").await.starts_with("HTTP/1.1 405 "));

    let err = bind_tcp(addr).await.unwrap_err();
    assert_eq!(err.to_string(), format!("listen.admin {addr}: cannot listen"));
    assert!(err.hint().contains("another program"));
}

#[tokio::test]
async fn no_daemon_is_told_from_a_dead_one() {
    let dir = tempfile::tempdir().unwrap();
    let state = StateDir::new(dir.path());
    let client = Client::new(state.clone());
    let err = client.status().await.unwrap_err();
    assert!(matches!(err, ClientError::NotRunning { stale: false, .. }), "{err:?}");
    assert_eq!(err.to_string(), format!("no carrick is running with state_dir {}", dir.path().display()));
    assert!(err.hint().unwrap().contains("carrick up"));

    drop(std::os::unix::net::UnixListener::bind(state.admin_socket()).unwrap());
    let err = client.status().await.unwrap_err();
    assert!(matches!(err, ClientError::NotRunning { stale: true, .. }), "{err:?}");
}

/// A daemon that answers every caller with the same bytes.
async fn answer_with(reply: &'static str) -> (Client, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let state = StateDir::new(dir.path());
    let listener = tokio::net::UnixListener::bind(state.admin_socket()).unwrap();
    Tasks::new().spawn("test daemon", async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut request = [0; 4096];
            let _ = stream.read(&mut request).await;
            let _ = stream.write_all(reply.as_bytes()).await;
        }
    });
    (Client::new(state), dir)
}

#[tokio::test]
async fn another_version_is_told_as_such() {
    let newer = "HTTP/1.1 200 OK\r\ncarrick-api: 2\r\ncarrick-version: 9.9.9\r\ncontent-length: 2\r\n\r\n{}";
    let (client, _dir) = answer_with(newer).await;
    let err = client.status().await.unwrap_err();
    assert!(matches!(err, ClientError::Skew { .. }), "{err:?}");
    assert!(err.to_string().starts_with("the running carrick 9.9.9 speaks another admin API (2)"), "{err}");

    let unlike = "HTTP/1.1 200 OK\r\ncarrick-api: 1\r\ncarrick-version: 0.1.1\r\ncontent-length: 2\r\n\r\n{}";
    let (client, _dir) = answer_with(unlike).await;
    let err = client.status().await.unwrap_err();
    assert!(matches!(err, ClientError::Unreadable { .. }), "{err:?}");
    assert!(err.hint().unwrap().contains("same version"));

    let (client, _dir) = answer_with("").await;
    assert!(matches!(client.status().await.unwrap_err(), ClientError::Broken(_)));
}
