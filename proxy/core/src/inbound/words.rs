//! What an [`Inbound`](super::Inbound) is made of, what it is asked, and what it says.

use std::{
    fmt,
    time::{Duration, Instant, SystemTime},
};

use carrick_model::{
    ConnectionId, Domain, ExportTarget, Mechanism, Payload, SpiffeId, SpiffePattern, Target, TargetError,
    TrustDomain,
};

use super::{MAX_LEASE, MAX_PER_PEER, MAX_TOTAL};
use crate::{
    path::{Path, PathFault},
    policy::Decision,
};

/// One endpoint that this domain runs itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalExport {
    /// Its name in the registry, without a domain.
    pub endpoint: String,
    /// The service it offers.
    pub service: Target,
    /// Where its flows go.
    pub target: ExportTarget,
    /// What it carries.
    pub payload: Payload,
    /// Who may use it; empty is nobody.
    pub allow: Vec<SpiffePattern>,
}

/// Who we are, and how much we hold.
#[derive(Debug, Clone)]
pub struct InboundSettings {
    /// Our domain.
    pub domain: Domain,
    /// Our process name in the path: `<domain>/gateway`.
    pub own_name: String,
    /// See [`MAX_LEASE`].
    pub max_lease: Duration,
    /// See [`MAX_PER_PEER`].
    pub max_per_peer: usize,
    /// See [`MAX_TOTAL`].
    pub max_total: usize,
}

impl InboundSettings {
    /// The settings of `domain`, with the default limits.
    pub fn new(domain: Domain) -> Self {
        let own_name = format!("{domain}/gateway");
        Self { domain, own_name, max_lease: MAX_LEASE, max_per_peer: MAX_PER_PEER, max_total: MAX_TOTAL }
    }
}

/// A request as it came, with texts still unread.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct InboundRequest {
    /// The caller's id of the connection.
    pub id: String,
    /// `service` or `service@our.domain`.
    pub service: String,
    /// `endpoint`, `endpoint@our.domain`, or empty: any endpoint of the service.
    pub endpoint: String,
    /// What the caller wants to carry; empty takes what the service has.
    pub payload: String,
    /// The mechanisms the caller speaks, class and type each; empty is any.
    pub mechanisms: Vec<(String, String)>,
    /// The caller gives up what it holds under this id and wants another choice (NSM's RESELECT_REQUESTED).
    pub reselect: bool,
    /// The path.
    pub path: Path,
}

/// A connection granted or renewed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    /// The caller's id of the connection, again.
    pub id: String,
    /// Our id: what flow headers name.
    pub connection: ConnectionId,
    /// The endpoint chosen, without a domain.
    pub endpoint: String,
    /// What the connection carries.
    pub payload: Payload,
    /// The path with our segment, the caller's the current one.
    pub path: Path,
    /// When the lease ends.
    pub expires: SystemTime,
    /// Why the caller may.
    pub decision: Decision,
}

/// Why a request is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The path breaks the rules.
    #[error("bad path")]
    Path(#[from] PathFault),
    /// The caller uses our process name.
    #[error("the caller names itself `{0}`, which is this gateway: process names are unique across domains")]
    OwnName(String),
    /// The service is not a name.
    #[error("`{given}` is not a service name")]
    Name {
        /// What was given, shortened.
        given: String,
        /// Why it is none.
        source: TargetError,
    },
    /// The request is for another domain: we carry no requests onward.
    #[error("`{given}` is not of this domain, which is {domain}")]
    OtherDomain {
        /// What was given, shortened.
        given: String,
        /// Ours.
        domain: Domain,
    },
    /// We do not offer the service.
    #[error("network service `{service}` is not offered by {domain}")]
    NoService {
        /// What was asked for.
        service: Target,
        /// Ours.
        domain: Domain,
    },
    /// The service has no such endpoint.
    #[error("network service `{service}` of {domain} has no endpoint `{endpoint}`")]
    NoEndpoint {
        /// What was asked for.
        service: Target,
        /// Ours.
        domain: Domain,
        /// The endpoint asked for, shortened.
        endpoint: String,
    },
    /// The service carries something else.
    #[error("network service `{service}` carries {offered}, not `{wanted}`")]
    Payload {
        /// What was asked for.
        service: Target,
        /// What it carries.
        offered: Payload,
        /// What the caller wants, shortened.
        wanted: String,
    },
    /// There is no mechanism that both speak.
    #[error("no mechanism in common: this gateway speaks {}/{}", Mechanism::Quic.class(), Mechanism::Quic)]
    Mechanism,
    /// No allow list names the caller.
    #[error("`{caller}` may not use `{service}`: {decision}: no sufficient privileges")]
    Denied {
        /// Who asked.
        caller: SpiffeId,
        /// For what.
        service: Target,
        /// Why not.
        decision: Decision,
    },
    /// The caller's own part of the lease is over.
    #[error("the lease of the caller's path segment is over since {} s: compare the clocks", .0.as_secs())]
    LeaseOver(Duration),
    /// The connection is another trust domain's.
    #[error("the connection is not of trust domain `{0}`: no sufficient privileges")]
    NotYours(TrustDomain),
    /// The caller's trust domain has too many connections.
    #[error("trust domain `{0}` holds {1} connections, which is the limit for one peer")]
    PeerLimit(TrustDomain, usize),
    /// There are too many connections.
    #[error("this gateway holds {0} connections, which is its limit")]
    TotalLimit(usize),
}

/// Why flows of a connection are not welcome any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RevokeReason {
    /// Its owner closed it.
    Closed,
    /// Its lease is over.
    Expired,
    /// The export is gone.
    ExportRemoved,
    /// The allow list does not name the caller any more.
    Denied,
    /// The caller's trust domain is not trusted any more.
    TrustRemoved,
    /// The caller asked for another choice.
    Reselected,
}

/// What the data path has to know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum InboundEvent {
    /// Flows of this connection are welcome; comes again when the endpoint or the target changes.
    Admit(Admitted),
    /// They are no more.
    Revoke(ConnectionId, RevokeReason),
}

/// A connection whose flows are welcome.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Admitted {
    /// Our id.
    pub id: ConnectionId,
    /// Who asked for it.
    pub peer: SpiffeId,
    /// For what.
    pub service: Target,
    /// Which endpoint it got.
    pub endpoint: String,
    /// Where its flows go.
    pub target: ExportTarget,
    /// What it carries.
    pub payload: Payload,
}

/// An entry of the table, for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InboundConnection {
    /// The connection.
    pub admitted: Admitted,
    /// Since when.
    pub since: SystemTime,
    /// When the lease ends.
    pub lease_end: Instant,
}

impl fmt::Display for RevokeReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Closed => "closed by its owner",
            Self::Expired => "the lease ended without a renewal",
            Self::ExportRemoved => "the export was removed",
            Self::Denied => "the allow list does not name the caller any more",
            Self::TrustRemoved => "the caller's trust domain is not trusted any more",
            Self::Reselected => "the caller asked for another endpoint",
        })
    }
}
