//! Asks a running daemon, over its admin socket.

use std::{
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use carrick_model::{Domain, address::MAX_UNIX_PATH};
use carrick_runtime::Tasks;
use http::{HeaderMap, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper_util::rt::TokioIo;
use serde::{Serialize, de::DeserializeOwned};
use tokio::net::UnixStream;

use crate::{
    admin::{
        API_HEADER, API_VERSION, VERSION, VERSION_HEADER,
        api::{
            ConnectReply, ConnectRequest, ConnectionList, DisconnectRequest, ExplainReport, Problem,
            ProblemCode, ReloadReply, ServiceList, Status, TrustList,
        },
        server::REQUEST_TIMEOUT,
    },
    state_dir::StateDir,
};

/// Largest reply. A registry of a million services is about 200 MB; who wants that asks the registry itself.
const MAX_REPLY: usize = 64 * 1024 * 1024;
/// A daemon that is alive accepts at once.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Longer than the daemon's own deadline, so that its reason arrives.
const REPLY_TIMEOUT: Duration = REQUEST_TIMEOUT.saturating_add(Duration::from_secs(5));

/// A caller of one daemon. Each request has a connection of its own.
#[derive(Debug, Clone)]
pub(crate) struct Client {
    state_dir: StateDir,
    tasks: Tasks,
}

/// Why the daemon did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ClientError {
    /// No daemon uses this state directory.
    #[error("no carrick is running with state_dir {}", state_dir.display())]
    NotRunning {
        /// The directory that was looked in.
        state_dir: PathBuf,
        /// Whether there is a socket that nobody serves.
        stale: bool,
    },
    /// The socket is another user's.
    #[error("{}: this user may not connect", path.display())]
    Denied {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The path does not fit into a socket address.
    #[error("{}: over {MAX_UNIX_PATH} characters, too long for a Unix socket", .0.display())]
    TooLong(PathBuf),
    /// The socket cannot be reached for another reason.
    #[error("{}: cannot connect", path.display())]
    Connect {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The daemon took the request and did not answer in time.
    #[error("the daemon did not answer within {0:?}")]
    Silent(Duration),
    /// The connection broke: the daemon ended or was killed.
    #[error("the daemon broke off the request")]
    Broken(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The daemon speaks another version of the admin API.
    #[error(
        "the running carrick {daemon} speaks another admin API ({api}) than this one, {VERSION} ({API_VERSION})"
    )]
    Skew {
        /// The daemon's version.
        daemon: String,
        /// Its API's.
        api: String,
    },
    /// The reply is not what this version expects.
    #[error("the running carrick {daemon} gave a reply that this one, {VERSION}, cannot read")]
    Unreadable {
        /// The daemon's version.
        daemon: String,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// The daemon says no.
    #[error(transparent)]
    Problem(#[from] Problem),
}

impl ClientError {
    /// What the operator can do.
    pub(crate) fn hint(&self) -> Option<String> {
        Some(match self {
            Self::NotRunning { stale: true, .. } => {
                "it ended without cleaning up: see its log, and start it again with `carrick up -c FILE`"
                    .into()
            }
            Self::NotRunning { .. } => "start `carrick up -c FILE`, or pass --state-dir".into(),
            Self::Denied { .. } => "run this as the user of the daemon, for example with sudo".into(),
            Self::TooLong(_) => "choose a shorter `state_dir`".into(),
            Self::Connect { .. } => "pass the daemon's --state-dir".into(),
            Self::Silent(_) | Self::Broken(_) => "look at the daemon's log".into(),
            Self::Skew { .. } | Self::Unreadable { .. } => {
                "use the same version for both: restart the daemon after an upgrade".into()
            }
            Self::Problem(problem) => return problem.hint.clone(),
        })
    }
}

impl Client {
    /// A caller of the daemon that uses `state_dir`. Nothing is connected yet.
    pub(crate) fn new(state_dir: StateDir) -> Self {
        Self { state_dir, tasks: Tasks::new() }
    }

    /// `GET /v1/status`
    pub(crate) async fn status(&self) -> Result<Status, ClientError> {
        self.get("/v1/status").await
    }

    /// `GET /v1/services`
    pub(crate) async fn services(&self, domain: Option<&Domain>) -> Result<ServiceList, ClientError> {
        match domain {
            // A domain holds nothing that a query would have to escape.
            Some(domain) => self.get(&format!("/v1/services?domain={domain}")).await,
            None => self.get("/v1/services").await,
        }
    }

    /// `GET /v1/connections`
    pub(crate) async fn connections(&self) -> Result<ConnectionList, ClientError> {
        self.get("/v1/connections").await
    }

    /// `GET /v1/explain`. `name` is `service` or `service@domain`, checked by the caller.
    pub(crate) async fn explain(&self, name: &str) -> Result<ExplainReport, ClientError> {
        self.get(&format!("/v1/explain?name={name}")).await
    }

    /// `POST /v1/connect`, without holding it.
    pub(crate) async fn connect(&self, request: &ConnectRequest) -> Result<ConnectReply, ClientError> {
        let request = ConnectRequest { hold: false, ..request.clone() };
        self.post("/v1/connect", &request).await
    }

    /// `POST /v1/connect`: the import lives until the [`Hold`] is dropped or this process ends.
    pub(crate) async fn hold(&self, request: &ConnectRequest) -> Result<(ConnectReply, Hold), ClientError> {
        let request = ConnectRequest { hold: true, ..request.clone() };
        let response = self.send(Method::POST, "/v1/connect", encode(&request)?).await?;
        let (parts, mut body) = response.into_parts();
        if parts.status != StatusCode::OK {
            return Err(problem(&parts.headers, &collect(body).await?));
        }
        let mut line = Vec::new();
        while !line.ends_with(b"\n") && line.len() < MAX_REPLY {
            match tokio::time::timeout(REPLY_TIMEOUT, body.frame()).await {
                Ok(Some(Ok(frame))) => line.extend_from_slice(frame.data_ref().map_or(&[][..], |d| d)),
                Ok(Some(Err(err))) => return Err(ClientError::Broken(err.into())),
                Ok(None) => break,
                Err(_) => return Err(ClientError::Silent(REPLY_TIMEOUT)),
            }
        }
        Ok((decode(&parts.headers, &line)?, Hold(body)))
    }

    /// `POST /v1/disconnect`
    pub(crate) async fn disconnect(&self, request: &DisconnectRequest) -> Result<(), ClientError> {
        let response = self.send(Method::POST, "/v1/disconnect", encode(request)?).await?;
        let (parts, body) = response.into_parts();
        match parts.status.is_success() {
            true => Ok(()),
            false => Err(problem(&parts.headers, &collect(body).await?)),
        }
    }

    /// `GET /v1/trust`
    pub(crate) async fn trust(&self) -> Result<TrustList, ClientError> {
        self.get("/v1/trust").await
    }

    /// `POST /v1/reload`
    pub(crate) async fn reload(&self) -> Result<ReloadReply, ClientError> {
        self.exchange(Method::POST, "/v1/reload", Bytes::new()).await
    }

    async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        self.exchange(Method::GET, path, Bytes::new()).await
    }

    async fn post<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<T, ClientError> {
        self.exchange(Method::POST, path, encode(body)?).await
    }

    async fn exchange<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<T, ClientError> {
        let (parts, body) = self.send(method, path, body).await?.into_parts();
        let body = collect(body).await?;
        match parts.status.is_success() {
            true => decode(&parts.headers, &body),
            false => Err(problem(&parts.headers, &body)),
        }
    }

    async fn send(&self, method: Method, path: &str, body: Bytes) -> Result<Response<Incoming>, ClientError> {
        let stream = self.dial().await?;
        let exchange = async {
            let (mut sender, connection) =
                hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
            self.tasks.spawn("admin client", async move {
                if let Err(err) = connection.await {
                    tracing::debug!(%err, "the admin connection broke");
                }
            });
            let request = Request::builder()
                .method(method)
                .uri(path)
                .header(header::HOST, "carrick")
                .header(header::CONTENT_TYPE, "application/json")
                .header(API_HEADER, API_VERSION)
                .body(Full::new(body))?;
            Ok::<_, Box<dyn std::error::Error + Send + Sync>>(sender.send_request(request).await?)
        };
        let response = match tokio::time::timeout(REPLY_TIMEOUT, exchange).await {
            Ok(answered) => answered.map_err(ClientError::Broken)?,
            Err(_) => return Err(ClientError::Silent(REPLY_TIMEOUT)),
        };
        check_api(response.headers())?;
        Ok(response)
    }

    async fn dial(&self) -> Result<UnixStream, ClientError> {
        let path = self.state_dir.admin_socket();
        if path.as_os_str().len() > MAX_UNIX_PATH {
            return Err(ClientError::TooLong(path));
        }
        match tokio::time::timeout(CONNECT_TIMEOUT, UnixStream::connect(&path)).await {
            Ok(Ok(stream)) => Ok(stream),
            Ok(Err(source)) => Err(self.refused(&path, source)),
            Err(_) => Err(ClientError::Silent(CONNECT_TIMEOUT)),
        }
    }

    fn refused(&self, path: &Path, source: io::Error) -> ClientError {
        let state_dir = self.state_dir.path().to_owned();
        match source.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => {
                ClientError::NotRunning { state_dir, stale: false }
            }
            io::ErrorKind::ConnectionRefused => ClientError::NotRunning { state_dir, stale: true },
            io::ErrorKind::PermissionDenied => ClientError::Denied { path: path.to_owned(), source },
            _ => ClientError::Connect { path: path.to_owned(), source },
        }
    }
}

/// Keeps an import alive.
#[derive(Debug)]
pub(crate) struct Hold(Incoming);

impl Hold {
    /// Completes when the daemon stops or is killed.
    pub(crate) async fn ended(&mut self) {
        while let Some(Ok(_)) = self.0.frame().await {}
    }
}

fn encode(body: &impl Serialize) -> Result<Bytes, ClientError> {
    serde_json::to_vec(body).map(Bytes::from).map_err(|err| ClientError::Broken(err.into()))
}

async fn collect(body: Incoming) -> Result<Bytes, ClientError> {
    let whole = Limited::new(body, MAX_REPLY).collect();
    match tokio::time::timeout(REPLY_TIMEOUT, whole).await {
        Ok(Ok(collected)) => Ok(collected.to_bytes()),
        Ok(Err(err)) => Err(ClientError::Broken(err)),
        Err(_) => Err(ClientError::Silent(REPLY_TIMEOUT)),
    }
}

fn header_text(headers: &HeaderMap, name: &str) -> String {
    headers.get(name).and_then(|v| v.to_str().ok()).unwrap_or("of unknown version").to_owned()
}

fn check_api(headers: &HeaderMap) -> Result<(), ClientError> {
    let api = header_text(headers, API_HEADER);
    if api.parse() == Ok(API_VERSION) {
        return Ok(());
    }
    Err(ClientError::Skew { daemon: header_text(headers, VERSION_HEADER), api })
}

fn decode<T: DeserializeOwned>(headers: &HeaderMap, body: &[u8]) -> Result<T, ClientError> {
    serde_json::from_slice(body)
        .map_err(|source| ClientError::Unreadable { daemon: header_text(headers, VERSION_HEADER), source })
}

fn problem(headers: &HeaderMap, body: &[u8]) -> ClientError {
    match decode::<Problem>(headers, body) {
        // The path is ours, so a daemon that does not know it is an older one.
        Ok(p) if p.code == ProblemCode::UnknownPath => ClientError::Skew {
            daemon: header_text(headers, VERSION_HEADER),
            api: header_text(headers, API_HEADER),
        },
        Ok(p) => p.into(),
        Err(unreadable) => unreadable,
    }
}
