//! `networkservice.NetworkService`: what is asked of our exports, and what passes through to other hops.

use std::time::{Duration, Instant};

use carrick_identity::Caller;
use carrick_model::{Domain, cause::in_one_line};
use carrick_proto::{
    connection::{Connection, Mechanism},
    networkservice::{
        NetworkServiceRequest,
        network_service_server::{NetworkService, NetworkServiceServer},
    },
};
use carrick_proxy_core::{inbound::Refusal, transit::names};
use carrick_telemetry::Metrics;
use tonic::{Code, Request, Response, Status, metadata::MetadataMap};

use crate::{
    control::{HANDLER_DEADLINE, MAX_MESSAGE},
    exports::{Exports, RequestError},
    tokens::{self, AdmitError},
    transit::{REQUEST_DEADLINE, Transits},
};

/// No caller is waited for longer: the listener cuts a handler off then.
const MAX_WAIT: Duration = HANDLER_DEADLINE;

/// Answers requests for what this domain offers itself from the table of [`Exports`], and hands all others to [`Transits`].
#[derive(Clone)]
pub struct NetworkServer {
    exports: Exports,
    transits: Option<Transits>,
    metrics: Metrics,
}

impl NetworkServer {
    /// A server of these exports, through which nothing passes.
    pub fn new(exports: Exports, metrics: Metrics) -> Self {
        Self { exports, transits: None, metrics }
    }

    /// The same, and connections pass through it.
    #[must_use]
    pub fn with_transits(self, transits: Transits) -> Self {
        Self { transits: Some(transits), ..self }
    }

    /// The gRPC service, with its message limits set.
    pub fn into_service(self) -> NetworkServiceServer<Self> {
        NetworkServiceServer::new(self)
            .max_decoding_message_size(MAX_MESSAGE)
            .max_encoding_message_size(MAX_MESSAGE)
    }

    /// Who decides about a request: the exports, if they offer what is asked for in a way that the caller speaks; else the
    /// transits, if the names lead anywhere. What leads nowhere is refused by the exports, which say best why.
    fn transits_for(&self, caller: &Caller, asked: &NetworkServiceRequest) -> Option<&Transits> {
        let (transits, connection) = (self.transits.as_ref()?, asked.connection.as_ref()?);
        if transits.knows(caller, connection) {
            return Some(transits);
        }
        let names = names::asked(&connection.network_service, &connection.network_service_endpoint_name);
        let local =
            names.domain.is_none_or(|d| d.parse::<Domain>().is_ok_and(|d| &d == self.exports.domain()));
        let quic = |m: &Mechanism| m.r#type == carrick_model::Mechanism::Quic.as_str();
        let mut mechanisms = asked.mechanism_preferences.iter().chain(&connection.mechanism).peekable();
        let speaks = mechanisms.peek().is_none() || mechanisms.any(quic);
        if local && speaks && self.exports.offers(names.service, names.endpoint) {
            return None;
        }
        transits.takes(caller, connection).then_some(transits)
    }
}

#[tonic::async_trait]
impl NetworkService for NetworkServer {
    async fn request(&self, request: Request<NetworkServiceRequest>) -> Result<Response<Connection>, Status> {
        let (caller, token) = (caller(&request)?, tokens::presented(request.metadata()));
        let deadline = deadline(request.metadata());
        let peer = caller.id().clone();
        let asked = request.into_inner();
        let service = asked.connection.as_ref().map(|c| c.network_service.clone()).unwrap_or_default();
        let (side, granted) = match self.transits_for(&caller, &asked) {
            Some(transits) => {
                let granted = transits.request(&caller, token, asked, deadline).await;
                ("transit", granted.map_err(|e| (e.outcome(), e.status())))
            }
            None => {
                let granted = self.exports.request(&caller, token, asked);
                ("export", granted.map_err(|e| (e.outcome(), e.status())))
            }
        };
        let outcome = granted.as_ref().map_or_else(|(outcome, _)| *outcome, |_| "granted");
        self.metrics.requests.of2(side, outcome).inc();
        match granted {
            Ok(connection) => Ok(Response::new(connection)),
            Err((outcome, status)) => {
                tracing::info!(%peer, ?service, side, outcome, reason = status.message(), "request refused");
                Err(status)
            }
        }
    }

    async fn close(&self, request: Request<Connection>) -> Result<Response<()>, Status> {
        let (caller, token) = (caller(&request)?, tokens::presented(request.metadata()));
        let peer = caller.id().clone();
        let connection = request.into_inner();
        let known = self.transits.as_ref().filter(|t| t.knows(&caller, &connection));
        let closed = match known {
            Some(_) => Ok(false),
            None => {
                let closed = self.exports.close(&caller, token.clone(), &connection);
                closed.map_err(|e| (e.outcome(), e.status()))
            }
        };
        let closed = match (closed, &self.transits) {
            (Ok(false), Some(transits)) => {
                let closed = transits.close(&caller, token, connection).await;
                closed.map_err(|e| (e.outcome(), e.status()))
            }
            (closed, _) => closed.map(drop),
        };
        match closed {
            Ok(()) => Ok(Response::new(())),
            Err((outcome, status)) => {
                tracing::info!(%peer, outcome, reason = status.message(), "close refused");
                Err(status)
            }
        }
    }
}

/// Until when the caller waits, as it says itself (`grpc-timeout`, gRPC over HTTP/2), and no longer than a manager's client does.
fn deadline(metadata: &MetadataMap) -> Instant {
    let asked = metadata.get("grpc-timeout").and_then(|v| v.to_str().ok()).and_then(timeout);
    Instant::now() + asked.unwrap_or(REQUEST_DEADLINE).min(MAX_WAIT)
}

/// At most eight digits and a unit.
fn timeout(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let number: u64 = digits.parse().ok().filter(|_| digits.len() <= 8)?;
    Some(match unit {
        "H" => Duration::from_secs(number * 3600),
        "M" => Duration::from_secs(number * 60),
        "S" => Duration::from_secs(number),
        "m" => Duration::from_millis(number),
        "u" => Duration::from_micros(number),
        "n" => Duration::from_nanos(number),
        _ => return None,
    })
}

/// Who calls, as the TLS handshake proved it.
fn caller<T>(request: &Request<T>) -> Result<Caller, Status> {
    match request.extensions().get::<Caller>() {
        Some(caller) => Ok(caller.clone()),
        None => Err(Status::unauthenticated("the connection carries no SPIFFE identity")),
    }
}

impl RequestError {
    /// A word for the metric; a closed set.
    fn outcome(&self) -> &'static str {
        match self {
            Self::Wire(_) | Self::Refused(Refusal::Path(_) | Refusal::OwnName(_) | Refusal::Name { .. }) => {
                "malformed"
            }
            Self::Tokens(AdmitError::Path(_)) => "malformed",
            Self::Tokens(AdmitError::Denied(_)) => "denied",
            Self::Tokens(AdmitError::Own(_)) => "internal",
            Self::Refused(r) => match r {
                Refusal::Denied { .. } | Refusal::NotYours(_) => "denied",
                Refusal::NoService { .. } | Refusal::NoEndpoint { .. } | Refusal::OtherDomain { .. } => {
                    "unknown"
                }
                Refusal::PeerLimit(..) | Refusal::TotalLimit(_) => "limit",
                _ => "mismatch",
            },
        }
    }

    fn status(&self) -> Status {
        let code = match self {
            Self::Wire(_) | Self::Tokens(AdmitError::Path(_)) => Code::InvalidArgument,
            Self::Tokens(AdmitError::Denied(_)) => Code::PermissionDenied,
            Self::Tokens(AdmitError::Own(_)) => Code::Internal,
            Self::Refused(r) => match r {
                Refusal::Denied { .. } | Refusal::NotYours(_) => Code::PermissionDenied,
                Refusal::NoService { .. } | Refusal::NoEndpoint { .. } | Refusal::OtherDomain { .. } => {
                    Code::NotFound
                }
                Refusal::PeerLimit(..) | Refusal::TotalLimit(_) => Code::ResourceExhausted,
                Refusal::Path(_)
                | Refusal::OwnName(_)
                | Refusal::Name { .. }
                | Refusal::Payload { .. }
                | Refusal::Mechanism
                | Refusal::LeaseOver(_) => Code::InvalidArgument,
            },
        };
        Status::new(code, in_one_line(self))
    }
}
