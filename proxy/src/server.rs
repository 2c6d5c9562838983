//! `networkservice.NetworkService`: what other domains ask of our exports.

use carrick_identity::Caller;
use carrick_proto::{
    connection::Connection,
    networkservice::{
        NetworkServiceRequest,
        network_service_server::{NetworkService, NetworkServiceServer},
    },
};
use carrick_proxy_core::inbound::Refusal;
use carrick_telemetry::Metrics;
use tonic::{Code, Request, Response, Status};

use crate::{
    control::MAX_MESSAGE,
    exports::{Exports, RequestError},
    tokens::{self, AdmitError},
};

/// How far a refusal's chain of reasons is written out.
const MAX_CHAIN: usize = 4;

/// Answers requests from the table of [`Exports`].
#[derive(Clone)]
pub struct NetworkServer {
    exports: Exports,
    metrics: Metrics,
}

impl NetworkServer {
    /// A server of these exports.
    pub fn new(exports: Exports, metrics: Metrics) -> Self {
        Self { exports, metrics }
    }

    /// The gRPC service, with its message limits set.
    pub fn into_service(self) -> NetworkServiceServer<Self> {
        NetworkServiceServer::new(self)
            .max_decoding_message_size(MAX_MESSAGE)
            .max_encoding_message_size(MAX_MESSAGE)
    }
}

#[tonic::async_trait]
impl NetworkService for NetworkServer {
    async fn request(&self, request: Request<NetworkServiceRequest>) -> Result<Response<Connection>, Status> {
        let (caller, token) = (caller(&request)?, tokens::presented(request.metadata()));
        let peer = caller.id().clone();
        let asked = request.into_inner();
        let service = asked.connection.as_ref().map(|c| c.network_service.clone()).unwrap_or_default();
        let granted = self.exports.request(&caller, token, asked);
        let outcome = granted.as_ref().map_or_else(RequestError::outcome, |_| "granted");
        self.metrics.requests.of2("export", outcome).inc();
        match granted {
            Ok(connection) => Ok(Response::new(connection)),
            Err(error) => {
                let status = error.status();
                tracing::info!(%peer, ?service, outcome, reason = status.message(), "request refused");
                Err(status)
            }
        }
    }

    async fn close(&self, request: Request<Connection>) -> Result<Response<()>, Status> {
        let (caller, token) = (caller(&request)?, tokens::presented(request.metadata()));
        let peer = caller.id();
        match self.exports.close(&caller, token, request.get_ref()) {
            Ok(()) => Ok(Response::new(())),
            Err(error) => {
                let status = error.status();
                let outcome = error.outcome();
                tracing::info!(%peer, outcome, reason = status.message(), "close refused");
                Err(status)
            }
        }
    }
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
        Status::new(code, chain(self))
    }
}

/// An error and its sources in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    for _ in 0..MAX_CHAIN {
        let Some(error) = source else { break };
        let next = error.to_string();
        if !text.ends_with(&next) {
            text = format!("{text}: {next}");
        }
        source = error.source();
    }
    text
}
