//! What an [`Outbound`](super::Outbound) is made of, what it wants done, and what it says.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use carrick_model::{ConnectionId, Payload, ServiceName};

use crate::{fault::Fault, path::Path};

/// What a connection is made of.
#[derive(Debug, Clone)]
pub struct OutboundSettings {
    /// Our process name in the path, unique across all domains: `<domain>/gateway`.
    pub own_name: String,
    /// The service and its domain.
    pub service: ServiceName,
    /// What the import carries; `None` takes what the service has.
    pub payload: Option<Payload>,
    /// Our id of the connection, for all its life.
    pub id: ConnectionId,
    /// Spreads retries and the choice of endpoint.
    pub seed: u64,
    /// The lease to ask for; see [`LEASE`](super::LEASE).
    pub lease: Duration,
}

/// Ties an answer to the step it answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Attempt(pub(super) u64);

/// What the shell is to do next.
#[derive(Debug, Clone, PartialEq)]
pub enum Step {
    /// Find the gateways of the domain; answer with [`Outbound::handle_resolved`](super::Outbound::handle_resolved).
    Resolve(Attempt),
    /// Find the endpoints of the service and keep watching them; answer with [`Outbound::handle_found`](super::Outbound::handle_found), then
    /// [`Outbound::handle_endpoints_changed`](super::Outbound::handle_endpoints_changed) and [`Outbound::handle_watch_ended`](super::Outbound::handle_watch_ended).
    Find(Attempt),
    /// Request, or renew, the connection; answer with [`Outbound::handle_reply`](super::Outbound::handle_reply).
    Request(Attempt, OutboundRequest),
    /// Close the connection at the peer; answer with [`Outbound::handle_closed`](super::Outbound::handle_closed).
    Close(Attempt, OutboundClose),
}

/// A request for a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutboundRequest {
    /// Our id.
    pub id: ConnectionId,
    /// The service with its domain.
    pub service: ServiceName,
    /// The chosen endpoint, without a domain.
    pub endpoint: String,
    /// What the connection shall carry, where that is known.
    pub payload: Option<Payload>,
    /// The path, ours the current segment.
    pub path: Path,
}

/// The end of a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutboundClose {
    /// Our id.
    pub id: ConnectionId,
    /// The service with its domain.
    pub service: ServiceName,
    /// The endpoint last asked for, without a domain.
    pub endpoint: String,
    /// The path, ours the current segment.
    pub path: Path,
}

/// What a peer answered to a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutboundReply {
    /// The id the answer is about: ours.
    pub id: String,
    /// The path, ours the current segment again.
    pub path: Path,
    /// The endpoint, without a domain.
    pub endpoint: String,
    /// What the connection carries.
    pub payload: Option<Payload>,
    /// The id of the connection in flow headers; missing when the peer speaks no mechanism of ours.
    pub connection: Option<ConnectionId>,
    /// Where the peer's tunnel listens, if it says so.
    pub addresses: Vec<SocketAddr>,
}

/// A connection that is up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Established {
    /// The id that goes into flow headers.
    pub connection: ConnectionId,
    /// The endpoint behind it.
    pub endpoint: String,
    /// What it carries.
    pub payload: Payload,
    /// The service's own port, where known.
    pub port: Option<u16>,
    /// Where the peer's tunnel listens, if it said so.
    pub addresses: Vec<SocketAddr>,
}

/// What the rest of the process has to know.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// Flows can go this way now. Comes again when any of it changes.
    Up(Established),
    /// Flows cannot go; comes with each attempt that fails.
    Down(Fault),
    /// The connection is closed: the machine does nothing more.
    Closed,
}

/// What [`Outbound::poll_timeout`](super::Outbound::poll_timeout) waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// The step in flight has no answer.
    Step,
    /// The wait after a fault is over.
    Retry,
    /// The lease is to be renewed.
    Refresh,
    /// The lease is over.
    Lease,
}

/// What the machine is at, for people.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Looking for gateways.
    Resolving,
    /// Looking for endpoints.
    Finding,
    /// Asking for the connection.
    Requesting,
    /// Established.
    Up,
    /// Established, and being renewed or moved.
    Refreshing,
    /// Waiting for the next attempt, at this instant.
    Down(Instant),
    /// Saying good-bye.
    Closing,
    /// Gone.
    Closed,
}
