//! Serves the admin API. Bind early ([`AdminSocket::bind`], [`bind_tcp`]), serve late ([`serve`], [`serve_tcp`]).
//!
//! Give it a group of tasks that is stopped last: while the daemon drains, operators and probes still ask.

use std::{
    convert::Infallible,
    io,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{
    Router,
    body::{Body, Bytes},
    extract::{DefaultBodyLimit, Query, Request, State, rejection::BytesRejection},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::{get, post},
    serve::Listener,
};
use carrick_model::{Domain, ServiceName};
use carrick_runtime::Tasks;
use futures::{StreamExt, stream};
use http::{HeaderValue, StatusCode, header};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use serde::{Deserialize, de::DeserializeOwned};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpListener,
    sync::Semaphore,
    task::JoinHandle,
};

use crate::admin::{
    API_HEADER, API_VERSION, VERSION, VERSION_HEADER,
    api::{ConnectRequest, ConnectionList, DisconnectRequest, Problem, ProblemCode, ServiceList, TrustList},
    control::Control,
    socket::AdminSocket,
};

/// Largest request body. The largest real one names a service and an address; the rest is room.
const MAX_BODY: usize = 64 * 1024;
/// Connections at a time on each listener. A foreground `carrick connect` holds one; the rest come and go.
const MAX_CONNECTIONS: usize = 256;
/// A caller has this long to send a request's head, and an idle connection this long to send the next one. Above the
/// usual scrape interval's jitter is not needed: scrapers dial again.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// One request, start to reply. `explain` and `services` walk to another domain, so this covers their own deadlines.
pub(super) const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
/// The text `/metrics` is in (OpenMetrics 1.0).
const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
/// One JSON document a line.
const NDJSON: &str = "application/x-ndjson";

/// The TCP listener could not be had.
#[derive(Debug, thiserror::Error)]
#[error("listen.admin {addr}: cannot listen")]
pub(crate) struct BindError {
    addr: SocketAddr,
    source: io::Error,
}

impl BindError {
    /// What the operator can do.
    pub(crate) fn hint(&self) -> &'static str {
        match self.source.kind() {
            io::ErrorKind::AddrInUse => {
                "another program has this port: choose another `listen.admin`, or `none`"
            }
            io::ErrorKind::AddrNotAvailable => "this host has no such address: correct `listen.admin`",
            io::ErrorKind::PermissionDenied => {
                "ports below 1024 need privilege: choose a higher one for `listen.admin`"
            }
            _ => "correct `listen.admin`",
        }
    }
}

/// Binds `listen.admin`.
pub(crate) async fn bind_tcp(addr: SocketAddr) -> Result<TcpListener, BindError> {
    TcpListener::bind(addr).await.map_err(|source| BindError { addr, source })
}

/// Serves the whole API on the Unix socket until `tasks` stops.
pub(crate) fn serve<C: Control>(mut socket: AdminSocket, control: Arc<C>, tasks: &Tasks) -> JoinHandle<()> {
    let router = full_router(control, tasks.clone());
    let tasks_of_connections = tasks.clone();
    tasks.spawn("admin socket", async move {
        accept_loop(socket.listener(), router, tasks_of_connections).await;
    })
}

/// Serves metrics and probes on TCP until `tasks` stops.
pub(crate) fn serve_tcp<C: Control>(
    mut listener: TcpListener,
    control: Arc<C>,
    tasks: &Tasks,
) -> JoinHandle<()> {
    let router = probe_router(control);
    let tasks_of_connections = tasks.clone();
    tasks.spawn("admin listener", async move {
        accept_loop(&mut listener, router, tasks_of_connections).await;
    })
}

/// What the handlers share.
struct Shared<C> {
    control: Arc<C>,
    tasks: Tasks,
}

impl<C> Clone for Shared<C> {
    fn clone(&self) -> Self {
        Self { control: Arc::clone(&self.control), tasks: self.tasks.clone() }
    }
}

fn full_router<C: Control>(control: Arc<C>, tasks: Tasks) -> Router {
    let api = Router::new()
        .route("/v1/status", get(status::<C>))
        .route("/v1/services", get(services::<C>))
        .route("/v1/connections", get(connections::<C>))
        .route("/v1/explain", get(explain::<C>))
        .route("/v1/connect", post(connect::<C>))
        .route("/v1/disconnect", post(disconnect::<C>))
        .route("/v1/trust", get(trust::<C>))
        .route("/v1/reload", post(reload::<C>))
        .with_state(Shared { control: Arc::clone(&control), tasks });
    finish(api.merge(probes(control)))
}

fn probe_router<C: Control>(control: Arc<C>) -> Router {
    finish(probes(control).route("/", get(index)))
}

fn probes<C: Control>(control: Arc<C>) -> Router {
    Router::new()
        .route("/metrics", get(metrics::<C>))
        .route("/livez", get(async || "ok\n"))
        .route("/readyz", get(readyz::<C>))
        .with_state(control)
}

fn finish(router: Router) -> Router {
    router
        .fallback(no_such_path)
        .method_not_allowed_fallback(wrong_method)
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .layer(middleware::from_fn(frame))
}

/// Around every request: the deadline, the version headers, one log line.
async fn frame(request: Request, next: Next) -> Response {
    let begun = Instant::now();
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let mut response = match tokio::time::timeout(REQUEST_TIMEOUT, next.run(request)).await {
        Ok(response) => response,
        Err(_) => Problem::new(ProblemCode::Timeout, format!("{path}: no answer within {REQUEST_TIMEOUT:?}"))
            .hint("the daemon is waiting for another domain: see `carrick explain` and its log")
            .into_response(),
    };
    let headers = response.headers_mut();
    headers.insert(API_HEADER, HeaderValue::from(API_VERSION));
    headers.insert(VERSION_HEADER, HeaderValue::from_static(VERSION));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    tracing::debug!(%method, path, status = response.status().as_u16(), took = ?begun.elapsed(), "admin request");
    response
}

async fn status<C: Control>(State(shared): State<Shared<C>>) -> Response {
    axum::Json(shared.control.status().await).into_response()
}

#[derive(Deserialize)]
struct ServicesQuery {
    domain: Option<Domain>,
}

async fn services<C: Control>(
    State(shared): State<Shared<C>>,
    query: Result<Query<ServicesQuery>, axum::extract::rejection::QueryRejection>,
) -> Result<Response, Problem> {
    let Query(ServicesQuery { domain }) = query.map_err(|r| invalid(r.body_text()))?;
    let mut services = shared.control.services(domain.clone()).await?;
    services.sort_by(|a, b| a.service.cmp(&b.service));
    Ok(axum::Json(ServiceList { domain, services }).into_response())
}

async fn connections<C: Control>(State(shared): State<Shared<C>>) -> Response {
    let mut connections = shared.control.connections().await;
    connections.sort_by_key(|c| c.since);
    let passing = shared.control.passing().await;
    axum::Json(ConnectionList { connections, passing }).into_response()
}

#[derive(Deserialize)]
struct ExplainQuery {
    name: String,
}

async fn explain<C: Control>(
    State(shared): State<Shared<C>>,
    query: Result<Query<ExplainQuery>, axum::extract::rejection::QueryRejection>,
) -> Result<Response, Problem> {
    let Query(ExplainQuery { name }) = query.map_err(|r| invalid(r.body_text()))?;
    let name = full_name(&name, &shared.control.domain())?;
    Ok(axum::Json(shared.control.explain(name).await).into_response())
}

/// A name without `@` is one of the own domain.
fn full_name(text: &str, own: &Domain) -> Result<ServiceName, Problem> {
    let parsed = match carrick_model::service::split_name(text) {
        (_, Some(_)) => text.parse::<ServiceName>(),
        (target, None) => target.parse::<carrick_model::Target>().map(|t| t.at(own)).map_err(Into::into),
    };
    parsed.map_err(|err| {
        let why = std::error::Error::source(&err).map(|s| format!(": {s}")).unwrap_or_default();
        invalid(format!("`{text}` is not a service: {err}{why}"))
    })
}

async fn connect<C: Control>(
    State(shared): State<Shared<C>>,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, Problem> {
    let request: ConnectRequest = decode(body)?;
    let (hold, service) = (request.hold, request.service.clone());
    let reply = shared.control.connect(request).await?;
    if !hold {
        return Ok(axum::Json(reply).into_response());
    }
    let line = json_line(&reply)?;
    let held = Held { shared, request: Some(DisconnectRequest { service, listen: reply.listen }) };
    let rest = stream::once(async move {
        held.shared.tasks.stopping().await;
        drop(held);
        Ok::<_, Infallible>(Bytes::new())
    });
    let body = Body::from_stream(stream::once(async { Ok::<_, Infallible>(line) }).chain(rest));
    Ok(([(header::CONTENT_TYPE, NDJSON)], body).into_response())
}

fn json_line(value: &impl serde::Serialize) -> Result<Bytes, Problem> {
    let mut line = serde_json::to_vec(value)
        .map_err(|err| Problem::new(ProblemCode::Internal, format!("the reply has no JSON form: {err}")))?;
    line.push(b'\n');
    Ok(line.into())
}

/// An import that lives as long as its request. It is part of the reply's body, which hyper drops when the caller is
/// gone, even when the caller was killed.
struct Held<C: Control> {
    shared: Shared<C>,
    request: Option<DisconnectRequest>,
}

impl<C: Control> Drop for Held<C> {
    fn drop(&mut self) {
        // Without a runtime the daemon is past its end, and so is the import.
        let alive = tokio::runtime::Handle::try_current().is_ok();
        if let Some(DisconnectRequest { service, listen }) = self.request.take().filter(|_| alive) {
            let control = Arc::clone(&self.shared.control);
            self.shared.tasks.spawn("held import", async move {
                if let Err(problem) = control.disconnect(service.clone(), listen).await {
                    tracing::debug!(%service, %problem, "a held import was already gone");
                }
            });
        }
    }
}

async fn disconnect<C: Control>(
    State(shared): State<Shared<C>>,
    body: Result<Bytes, BytesRejection>,
) -> Result<StatusCode, Problem> {
    let DisconnectRequest { service, listen } = decode(body)?;
    shared.control.disconnect(service, listen).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn trust<C: Control>(State(shared): State<Shared<C>>) -> Response {
    axum::Json(TrustList { bundles: shared.control.trust().await }).into_response()
}

async fn reload<C: Control>(State(shared): State<Shared<C>>) -> Result<Response, Problem> {
    Ok(axum::Json(shared.control.reload().await?).into_response())
}

async fn metrics<C: Control>(State(control): State<Arc<C>>) -> Response {
    ([(header::CONTENT_TYPE, OPENMETRICS)], control.metrics()).into_response()
}

async fn readyz<C: Control>(State(control): State<Arc<C>>) -> Response {
    match control.ready() {
        true => "ready\n".into_response(),
        false => (StatusCode::SERVICE_UNAVAILABLE, "not ready\n").into_response(),
    }
}

async fn index() -> String {
    format!(
        "carrick {VERSION}\n\n/metrics   metrics, OpenMetrics text\n/livez     the process answers\n/readyz    it takes flows\n"
    )
}

async fn no_such_path(request: Request) -> Problem {
    Problem::new(ProblemCode::UnknownPath, format!("no such path: {}", request.uri().path()))
}

async fn wrong_method(request: Request) -> Problem {
    let message = format!("{}: not with {}", request.uri().path(), request.method());
    Problem::new(ProblemCode::MethodNotAllowed, message)
}

fn decode<T: DeserializeOwned>(body: Result<Bytes, BytesRejection>) -> Result<T, Problem> {
    let body = body.map_err(|rejection| match rejection.status() {
        StatusCode::PAYLOAD_TOO_LARGE => {
            Problem::new(ProblemCode::TooLarge, format!("the request is over {MAX_BODY} bytes"))
        }
        _ => invalid("the request ended early"),
    })?;
    serde_json::from_slice(&body).map_err(|err| invalid(format!("the request is not as expected: {err}")))
}

fn invalid(message: impl Into<String>) -> Problem {
    Problem::new(ProblemCode::InvalidRequest, message)
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        (self.code.status(), axum::Json(self)).into_response()
    }
}

/// Accepts until `tasks` stops; each connection is a task of its own, so a slow caller holds up nobody. What an accept
/// may fail with, the listener waits out.
async fn accept_loop<L: Listener>(listener: &mut L, router: Router, tasks: Tasks) {
    let room = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let next = async {
            let permit = Arc::clone(&room).acquire_owned().await;
            (permit, listener.accept().await.0)
        };
        let (permit, stream) = tokio::select! {
            next = next => next,
            () = tasks.stopping() => return,
        };
        let connection = serve_connection(stream, router.clone(), tasks.clone());
        tasks.spawn("admin connection", async move {
            connection.await;
            drop(permit);
        });
    }
}

async fn serve_connection<S>(stream: S, router: Router, tasks: Tasks)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    let mut connection = std::pin::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = tasks.stopping() => {
            // The reply under way, this stop's own among them, is still sent.
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(err) = ended {
        tracing::debug!(%err, "an admin connection ended early");
    }
}

#[cfg(test)]
mod tests;
