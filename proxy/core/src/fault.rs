//! What went wrong with a connection: where, whose fault it is, whether it helps to try again, and what to do.

use std::fmt;

use carrick_model::Domain;

/// A step on the way from a name to a connection (design.md section 4).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum StepKind {
    /// Domain to gateways.
    Resolve,
    /// Service to endpoints.
    Find,
    /// Endpoint to connection, or the renewal of one.
    Request,
    /// The end of a connection.
    Close,
    /// An established connection.
    Keep,
}

/// Whose fault it is: where the operator looks first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Blame {
    /// This domain's configuration, trust or clock.
    Us,
    /// The other domain.
    Peer,
    /// Something between the two.
    Network,
}

/// What went wrong, as far as the machine has to tell it apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FaultKind {
    /// The domain has no gateway that we can find.
    Unresolved,
    /// No gateway of the domain accepted a connection.
    Unreachable,
    /// No answer in time.
    TimedOut,
    /// The peer did not prove to be the domain that was called.
    Untrusted,
    /// The peer does not accept our identity.
    NotAccepted,
    /// The peer's policy forbids the service to us.
    Denied,
    /// The domain does not offer the service, or no longer the endpoint we asked for.
    NoService,
    /// The service is offered, but not with what this import carries.
    NoMatch,
    /// The peer does not know the connection that we hold: it restarted.
    UnknownConnection,
    /// The peer is at one of its limits.
    Busy,
    /// The peer's answer breaks the protocol, or speaks of things we do not have.
    BadAnswer,
    /// The clocks of the two domains are too far apart for the lease to mean anything.
    Clock,
    /// The lease ended before it could be renewed.
    LeaseEnded,
}

/// One fault of one step towards one peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// Where it happened.
    pub step: StepKind,
    /// The domain that was called.
    pub peer: Domain,
    /// What it was.
    pub kind: FaultKind,
    /// What was seen: names the object, holds the texts of the sources.
    pub detail: String,
    /// What the operator does next.
    pub hint: String,
}

impl Fault {
    /// Whose fault it is.
    pub fn blame(&self) -> Blame {
        match self.kind {
            FaultKind::Untrusted | FaultKind::NoMatch | FaultKind::Clock => Blame::Us,
            FaultKind::Unreachable | FaultKind::TimedOut | FaultKind::Unresolved | FaultKind::LeaseEnded => {
                Blame::Network
            }
            FaultKind::NotAccepted
            | FaultKind::Denied
            | FaultKind::NoService
            | FaultKind::UnknownConnection
            | FaultKind::Busy
            | FaultKind::BadAnswer => Blame::Peer,
        }
    }

    /// Whether trying again may help without anybody changing a configuration. The machine tries in any case, because
    /// somebody may change it.
    pub fn is_retryable(&self) -> bool {
        matches!(
            self.kind,
            FaultKind::Unresolved
                | FaultKind::Unreachable
                | FaultKind::TimedOut
                | FaultKind::UnknownConnection
                | FaultKind::Busy
                | FaultKind::LeaseEnded
        )
    }

    /// Whether a connection that is up is over with this: the peer has said, or we have, that it is not to be used.
    pub(crate) fn ends_connection(&self) -> bool {
        matches!(
            self.kind,
            FaultKind::Untrusted
                | FaultKind::NotAccepted
                | FaultKind::Denied
                | FaultKind::NoMatch
                | FaultKind::BadAnswer
        )
    }
}

impl StepKind {
    /// One word for tables and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Resolve => "resolve",
            Self::Find => "find",
            Self::Request => "request",
            Self::Close => "close",
            Self::Keep => "keep",
        }
    }
}

impl FaultKind {
    /// A few words for tables and metric labels; bounded.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unresolved => "unresolved",
            Self::Unreachable => "unreachable",
            Self::TimedOut => "timed out",
            Self::Untrusted => "untrusted",
            Self::NotAccepted => "not accepted",
            Self::Denied => "denied",
            Self::NoService => "no service",
            Self::NoMatch => "no match",
            Self::UnknownConnection => "unknown connection",
            Self::Busy => "busy",
            Self::BadAnswer => "bad answer",
            Self::Clock => "clock",
            Self::LeaseEnded => "lease ended",
        }
    }
}

impl fmt::Display for StepKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Display for FaultKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Display for Blame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Us => "us",
            Self::Peer => "peer",
            Self::Network => "network",
        })
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}: {}: {}", self.step, self.peer, self.kind, self.detail)
    }
}

impl std::error::Error for Fault {}
