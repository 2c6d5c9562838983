//! What a [`Transit`](super::Transit) is made of, what it is asked, what it wants done, and what it says.

use std::{
    collections::BTreeMap,
    fmt,
    time::{Duration, Instant, SystemTime},
};

use carrick_model::{Domain, SpiffeId, TrustDomain};
use carrick_proto::{
    UnknownFields,
    connection::{Connection, Mechanism},
};

use super::{MAX_LEASE, MAX_PER_PEER, MAX_TOTAL};
use crate::path::{Path, PathFault};

/// Who we are, and how much we hold.
#[derive(Debug, Clone)]
pub struct TransitSettings {
    /// Our process name in the path.
    pub own_name: String,
    /// See [`MAX_LEASE`].
    pub max_lease: Duration,
    /// See [`MAX_PER_PEER`].
    pub max_per_peer: usize,
    /// See [`MAX_TOTAL`].
    pub max_total: usize,
}

impl TransitSettings {
    /// The settings of the process `own_name`, with the default limits.
    pub fn new(own_name: impl Into<String>) -> Self {
        let own_name = own_name.into();
        Self { own_name, max_lease: MAX_LEASE, max_per_peer: MAX_PER_PEER, max_total: MAX_TOTAL }
    }
}

/// A connection and its path, which on the wire are one message. The `path` inside of `connection` is not used.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Carried {
    /// The connection.
    pub connection: Connection,
    /// Its path.
    pub path: Path,
}

/// A request as it came.
#[derive(Debug, Clone, PartialEq)]
pub struct TransitRequest {
    /// The connection, its current segment the caller's, with the token that came with the call.
    pub carried: Carried,
    /// What the caller can carry it by.
    pub preferences: Vec<Mechanism>,
    /// What else the caller said, for the next hop.
    pub unknown_fields: UnknownFields,
    /// Our segment's token, and when it ends.
    pub own_token: (String, SystemTime),
    /// Until when the caller waits.
    pub deadline: Instant,
}

/// Ties an answer to whoever waits for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ticket(pub(super) u64);

/// Ties an outcome to the step it is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StepId(pub(super) u64);

/// Who is next on the way to the endpoint.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Hop {
    /// Whoever serves this url: `tcp://host:port` or `unix:///path`.
    Url {
        /// The url.
        url: String,
        /// Who it must prove to be; any trusted one where that is not known.
        trust_domain: Option<TrustDomain>,
    },
    /// The gateway of another domain.
    Domain(Domain),
}

/// One way to grant a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// The service's name as it is sent on.
    pub service: String,
    /// The endpoint's name as it is sent on.
    pub endpoint: String,
    /// What the service carries; empty leaves what the caller said.
    pub payload: String,
    /// Whom to ask.
    pub hop: Hop,
    /// The request leaves this domain: addresses are translated.
    pub leaves: bool,
    /// Under which name selection learns how it went.
    pub known_as: String,
}

/// What to choose an endpoint for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SelectQuery {
    /// Who asks.
    pub caller: SpiffeId,
    /// The service, as the caller wrote it.
    pub service: String,
    /// The endpoint, as the caller wrote it; empty is any.
    pub endpoint: String,
    /// The caller gives up the endpoint that it had: what was found before does not count.
    pub reselect: bool,
    /// The caller's labels.
    pub labels: BTreeMap<String, String>,
    /// What the caller wants to carry; empty is what the service has.
    pub payload: String,
    /// The name of the hop before us.
    pub previous: String,
    /// The name of the hop behind us as the path has it; empty when there is none, or another one is wanted.
    pub next: String,
}

/// A request as it goes on.
#[derive(Debug, Clone, PartialEq)]
pub struct HopRequest {
    /// Whom to ask.
    pub hop: Hop,
    /// The connection, its current segment ours.
    pub carried: Carried,
    /// What it can be carried by.
    pub preferences: Vec<Mechanism>,
    /// What else the caller said.
    pub unknown_fields: UnknownFields,
    /// Until when to wait.
    pub deadline: Instant,
}

/// A close as it goes on.
#[derive(Debug, Clone, PartialEq)]
pub struct HopClose {
    /// Whom to tell.
    pub hop: Hop,
    /// The connection, its current segment ours.
    pub carried: Carried,
}

/// What the shell is to do next. Each is answered exactly once, whatever happens.
#[derive(Debug, Clone, PartialEq)]
pub enum Step {
    /// Choose; answer with [`Transit::handle_selected`](super::Transit::handle_selected).
    Select(StepId, Box<SelectQuery>),
    /// Ask the next hop; answer with [`Transit::handle_reply`](super::Transit::handle_reply) or
    /// [`Transit::handle_failure`](super::Transit::handle_failure).
    Request(StepId, Box<HopRequest>),
    /// Close at the next hop; answer with [`Transit::handle_closed`](super::Transit::handle_closed) or
    /// [`Transit::handle_failure`](super::Transit::handle_failure).
    Close(StepId, Box<HopClose>),
}

/// What is known of a step that failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum HopFaultKind {
    /// Nothing reached the next hop.
    NotSent,
    /// It said no.
    Refused,
    /// There was no answer: it may hold the connection.
    Unknown,
}

/// Why a step failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct HopFault {
    /// What is known of it.
    pub kind: HopFaultKind,
    /// The gRPC code it came with, or that fits it.
    pub code: i32,
    /// What was seen, and whose fault it is.
    pub message: String,
}

/// Why a request is not even begun.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TransitRefusal {
    /// The path breaks the rules.
    #[error("bad path")]
    Path(#[from] PathFault),
    /// The caller uses our process name.
    #[error("the caller names itself `{0}`, which is this process: process names are unique across domains")]
    OwnName(String),
    /// Nobody can say when the connection ends.
    #[error("the caller's path segment has no `expires`, and the call no `nsm-client-token-expires`")]
    NoExpiry,
    /// The caller's part of the lease is over.
    #[error("the caller's token is over since {} s: compare the clocks", .0.as_secs())]
    LeaseOver(Duration),
    /// The connection is another trust domain's.
    #[error("the connection is not of trust domain `{0}`: no sufficient privileges")]
    NotYours(TrustDomain),
    /// Too many calls for one connection wait for each other.
    #[error("{0} calls for this connection wait for each other: try again when they are answered")]
    Busy(usize),
    /// The caller's trust domain has too many connections.
    #[error("trust domain `{0}` holds {1} connections through this process, which is the limit for one peer")]
    PeerLimit(TrustDomain, usize),
    /// There are too many connections.
    #[error("{0} connections pass through this process, which is its limit")]
    TotalLimit(usize),
}

/// Why a request that was begun is not granted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TransitFault {
    /// No endpoint could be chosen.
    #[error(transparent)]
    Select(HopFault),
    /// NSM's text: clients look for it.
    #[error("network service endpoint candidates not found for `{service}`")]
    NoCandidate {
        /// What was asked for.
        service: String,
    },
    /// Every candidate failed.
    #[error("{}", list(.0))]
    Hops(Vec<(String, HopFault)>),
    /// The caller's time was over before it was its turn.
    #[error("the call's deadline passed before the next hop was asked")]
    Late,
}

/// Why a connection ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum EndReason {
    /// Its owner closed it.
    Closed,
    /// The token of the hop before us is over.
    Expired,
    /// The network service does not pick its endpoint for it any more.
    Unmatched,
    /// The owner's trust domain is not trusted any more.
    TrustRemoved,
}

/// What the rest of the process has to know.
#[derive(Debug, Clone, PartialEq)]
pub enum TransitEvent {
    /// Answer this call: granted.
    Granted(Ticket, Box<Carried>),
    /// Answer this call: not granted.
    Failed(Ticket, TransitFault),
    /// Answer this call: closed, or as far as it could be.
    Closed(Ticket, Result<(), HopFault>),
    /// The connection is like this now, our segment the current one. `UP` or `DOWN` is its state.
    Published {
        /// Our id.
        id: String,
        /// Whose it is.
        owner: SpiffeId,
        /// The connection as our monitors see it.
        carried: Box<Carried>,
    },
    /// The connection is gone.
    Gone {
        /// Our id.
        id: String,
        /// Why.
        why: EndReason,
    },
    /// The connection is held at this hop now, which is to be watched; `None` when at none.
    HeldAt {
        /// Our id.
        id: String,
        /// Where.
        hop: Option<Hop>,
    },
    /// A candidate was asked: selection learns from it.
    Tried {
        /// [`Candidate::known_as`].
        known_as: String,
        /// How it went.
        verdict: Verdict,
    },
}

/// How a candidate took a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// It granted it.
    Granted,
    /// It said no, which may be about this request alone.
    Refused,
    /// It could not be reached, or did not answer.
    Silent,
}

/// A connection that passes through, for people and for checks.
#[derive(Debug, Clone, PartialEq)]
pub struct TransitConnection {
    /// Our id.
    pub id: String,
    /// Whose it is.
    pub owner: SpiffeId,
    /// The service, as the owner wrote it.
    pub service: String,
    /// The service, as it was sent on.
    pub sent_service: String,
    /// The endpoint, as it was sent on.
    pub endpoint: String,
    /// The owner's labels.
    pub labels: BTreeMap<String, String>,
    /// Who is next.
    pub hop: Hop,
    /// Whether the next hop says that it is down, or does not say anything.
    pub down: bool,
    /// Since when.
    pub since: SystemTime,
    /// When it ends if it is not refreshed.
    pub lease_end: Instant,
}

impl fmt::Display for Hop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Url { url, .. } => f.write_str(url),
            Self::Domain(domain) => write!(f, "the gateway of {domain}"),
        }
    }
}

impl fmt::Display for EndReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Closed => "closed by its owner",
            Self::Expired => "the owner's token ended without a refresh",
            Self::Unmatched => "the network service does not pick its endpoint any more",
            Self::TrustRemoved => "the owner's trust domain is not trusted any more",
        })
    }
}

fn list(faults: &[(String, HopFault)]) -> String {
    let texts: Vec<String> = faults.iter().map(|(hop, fault)| format!("{hop}: {fault}")).collect();
    texts.join("; ")
}
