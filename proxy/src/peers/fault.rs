//! Why a call to another domain failed.

use std::{error::Error, fmt, io, net::SocketAddr, sync::Arc, time::Duration};

use carrick_identity::PeerError;
use carrick_model::{Domain, cause::in_one_line};
use carrick_proxy_core::{Blame, Fault, FaultKind, StepKind};
use rustls::AlertDescription;
use tonic::{Code, Status};

use super::Role;
use crate::resolve::ResolveError;

/// Most of a peer's own text that we pass on.
const MAX_PEER_TEXT: usize = 400;

/// Why a call to another domain failed. Cheap to clone: those who waited for one dial share its fault.
#[derive(Debug, Clone, thiserror::Error)]
pub enum PeerFault {
    /// Nobody can say where the domain is.
    #[error("cannot find the gateways of {domain}")]
    Resolve {
        /// The domain.
        domain: Domain,
        /// Why.
        #[source]
        source: Arc<ResolveError>,
    },
    /// We hold no bundle for it: whoever answered could not be checked.
    #[error("no trust bundle for {domain} (trust domain `{trust_domain}`)")]
    NoTrust {
        /// The domain.
        domain: Domain,
        /// What its gateways must prove to be.
        trust_domain: String,
    },
    /// The domain has no address for what we want of it.
    #[error("{domain} has no address for its {role}")]
    NoAddress {
        /// The domain.
        domain: Domain,
        /// What was wanted.
        role: Role,
    },
    /// No address took the call.
    #[error("cannot connect to {domain}: {}", list(.attempts))]
    Dial {
        /// The domain.
        domain: Domain,
        /// Each address with its fault.
        attempts: Vec<(SocketAddr, DialFault)>,
    },
    /// The peer refused our certificate.
    #[error("{domain} ({addr}) refused our identity: {alert}")]
    NotAccepted {
        /// The domain.
        domain: Domain,
        /// Who answered.
        addr: SocketAddr,
        /// The TLS alert that it sent.
        alert: String,
    },
    /// The connection broke.
    #[error("the connection to {domain} ({addr}) broke during {call}: {detail}")]
    Broken {
        /// The domain.
        domain: Domain,
        /// Who answered.
        addr: SocketAddr,
        /// What was being asked.
        call: &'static str,
        /// What the transport says.
        detail: String,
    },
    /// No answer in time.
    #[error("{domain} did not answer {call} within {} s", .after.as_secs_f32())]
    TimedOut {
        /// The domain.
        domain: Domain,
        /// What was asked, or `connect`.
        call: &'static str,
        /// The deadline.
        after: Duration,
    },
    /// The peer answered no.
    #[error("{domain} refused {call}: {}: {message}", code_word(*.code))]
    Refused {
        /// The domain.
        domain: Domain,
        /// What was asked.
        call: &'static str,
        /// The gRPC code.
        code: Code,
        /// The peer's words, shortened.
        message: String,
    },
    /// The peer's answer cannot be used.
    #[error("{domain} answered {call} with something unusable: {detail}")]
    BadAnswer {
        /// The domain.
        domain: Domain,
        /// What was asked.
        call: &'static str,
        /// What is wrong with it.
        detail: String,
    },
}

/// Why one address did not take the call.
#[derive(Debug, Clone, thiserror::Error)]
pub enum DialFault {
    /// Nothing listens there, or a firewall says so.
    #[error("connection refused")]
    Refused,
    /// No answer.
    #[error("no answer within {} s", .0.as_secs())]
    TimedOut(Duration),
    /// The network says no.
    #[error("{0}")]
    Network(Arc<io::Error>),
    /// The TLS handshake failed; a [`PeerError`] may be inside.
    #[error("{}", tls_text(.0))]
    Tls(Arc<io::Error>),
}

impl DialFault {
    pub(super) fn tcp(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::ConnectionRefused => Self::Refused,
            _ => Self::Network(Arc::new(error)),
        }
    }

    /// What is wrong with the peer's certificate, if that is it.
    pub fn peer_error(&self) -> Option<&PeerError> {
        match self {
            Self::Tls(error) => PeerError::find_in(error.as_ref()),
            _ => None,
        }
    }
}

impl PeerFault {
    /// What the operator does next.
    pub fn hint(&self) -> String {
        match self {
            Self::Resolve { source, .. } => source.hint().to_owned(),
            Self::NoTrust { domain, trust_domain } => format!(
                "run `carrick trust export` in {domain} and import the bundle here, or correct the `trust:` entry that maps {domain} to `{trust_domain}`"
            ),
            Self::NoAddress { role: Role::Registry, .. } => {
                "the domain publishes no registry: ask its operator".to_owned()
            }
            Self::NoAddress { role: Role::Connect, .. } => {
                "the domain publishes a registry only (a floating domain): its services are other domains'"
                    .to_owned()
            }
            Self::Dial { attempts, .. } => dial_hint(attempts),
            Self::NotAccepted { domain, .. } => format!(
                "{domain} does not trust this domain: run `carrick trust export` here and import the bundle there; compare the clocks too"
            ),
            Self::Broken { .. } => {
                "the peer closed or restarted; if it goes on, look at its log for a refused handshake"
                    .to_owned()
            }
            Self::TimedOut { call: "connect", .. } => {
                "is the address right, and does a firewall drop TCP to the control port?".to_owned()
            }
            Self::TimedOut { .. } => {
                "the peer takes connections but does not answer: look at its log and load".to_owned()
            }
            Self::Refused { domain, code, .. } => match code {
                Code::PermissionDenied => format!(
                    "the operator of {domain} has to add this gateway's SPIFFE ID to the export's `allow:` list"
                ),
                Code::NotFound => {
                    format!(
                        "`carrick services @{domain}` lists what there is; check the spelling of the service"
                    )
                }
                Code::ResourceExhausted => "the peer is at a limit: its log says which".to_owned(),
                Code::Unimplemented => {
                    "the peer is not a gateway of this protocol: check the address".to_owned()
                }
                _ => "the peer's log says more; compare the versions".to_owned(),
            },
            Self::BadAnswer { .. } => {
                "the peer speaks the protocol differently: compare the versions".to_owned()
            }
        }
    }

    /// Whose fault it is.
    pub fn blame(&self) -> Blame {
        self.at(StepKind::Find, self.domain()).blame()
    }

    /// Which domain was called.
    pub fn domain(&self) -> &Domain {
        match self {
            Self::Resolve { domain, .. }
            | Self::NoTrust { domain, .. }
            | Self::NoAddress { domain, .. }
            | Self::Dial { domain, .. }
            | Self::NotAccepted { domain, .. }
            | Self::Broken { domain, .. }
            | Self::TimedOut { domain, .. }
            | Self::Refused { domain, .. }
            | Self::BadAnswer { domain, .. } => domain,
        }
    }

    /// The fault as a connection's machine knows it.
    pub(crate) fn at(&self, step: StepKind, peer: &Domain) -> Fault {
        let detail = in_one_line(self);
        Fault { step, peer: peer.clone(), kind: self.kind(), detail, hint: self.hint() }
    }

    fn kind(&self) -> FaultKind {
        match self {
            Self::Resolve { .. } | Self::NoAddress { .. } => FaultKind::Unresolved,
            Self::NoTrust { .. } => FaultKind::Untrusted,
            Self::Dial { attempts, .. } => {
                if attempts.iter().any(|(_, f)| f.peer_error().is_some()) {
                    FaultKind::Untrusted
                } else {
                    FaultKind::Unreachable
                }
            }
            Self::NotAccepted { .. } => FaultKind::NotAccepted,
            Self::Broken { .. } => FaultKind::Unreachable,
            Self::TimedOut { .. } => FaultKind::TimedOut,
            Self::Refused { code, .. } => match code {
                Code::PermissionDenied | Code::Unauthenticated => FaultKind::Denied,
                Code::NotFound => FaultKind::NoService,
                Code::ResourceExhausted | Code::Unavailable | Code::Aborted => FaultKind::Busy,
                Code::DeadlineExceeded | Code::Cancelled => FaultKind::TimedOut,
                _ => FaultKind::BadAnswer,
            },
            Self::BadAnswer { .. } => FaultKind::BadAnswer,
        }
    }
}

/// A status that the peer sent, as opposed to one that the transport made up.
pub(super) fn refused(domain: &Domain, call: &'static str, status: &Status) -> PeerFault {
    let message = status.message();
    let message = match message.char_indices().nth(MAX_PEER_TEXT) {
        Some((end, _)) => format!("{}…", &message[..end]),
        None => message.to_owned(),
    };
    PeerFault::Refused { domain: domain.clone(), call, code: status.code(), message }
}

/// The TLS alert inside an error: what a peer that refused us said.
pub(super) fn alert_in(error: &(dyn Error + 'static)) -> Option<AlertDescription> {
    if let Some(rustls::Error::AlertReceived(alert)) = error.downcast_ref() {
        return Some(*alert);
    }
    let inner = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
    inner.and_then(|e| alert_in(e)).or_else(|| alert_in(error.source()?))
}

/// Whether an alert speaks of our certificate (RFC 8446 section 6.2).
pub(super) fn speaks_of_certificate(alert: AlertDescription) -> bool {
    use AlertDescription as A;
    matches!(
        alert,
        A::BadCertificate
            | A::UnsupportedCertificate
            | A::CertificateRevoked
            | A::CertificateExpired
            | A::CertificateUnknown
            | A::UnknownCA
            | A::AccessDenied
            | A::CertificateRequired
            | A::DecryptError
    )
}

/// The most telling fault decides: one that a person must mend before one that may pass.
fn dial_hint(attempts: &[(SocketAddr, DialFault)]) -> String {
    if let Some(error) = attempts.iter().find_map(|(_, f)| f.peer_error()) {
        return error.hint().to_owned();
    }
    let any = |wanted: fn(&DialFault) -> bool| attempts.iter().any(|(_, f)| wanted(f));
    if any(|f| matches!(f, DialFault::Tls(_))) {
        "something else than a Carrick gateway listens there, or it is a much older version"
    } else if any(|f| matches!(f, DialFault::Refused)) {
        "nothing listens there: does the peer run, and is the control port the right one?"
    } else {
        "is the address right, and does a firewall drop TCP to the control port?"
    }
    .to_owned()
}

fn list(attempts: &[(SocketAddr, DialFault)]) -> String {
    let texts: Vec<String> = attempts.iter().map(|(addr, fault)| format!("{addr}: {fault}")).collect();
    texts.join("; ")
}

fn tls_text(error: &io::Error) -> String {
    match PeerError::find_in(error) {
        Some(peer) => peer.to_string(),
        None => format!("TLS handshake failed: {error}"),
    }
}

fn code_word(code: Code) -> &'static str {
    match code {
        Code::PermissionDenied => "permission denied",
        Code::NotFound => "not found",
        Code::InvalidArgument => "invalid argument",
        Code::ResourceExhausted => "resource exhausted",
        Code::Unimplemented => "unimplemented",
        Code::Unavailable => "unavailable",
        Code::DeadlineExceeded => "deadline exceeded",
        Code::Unauthenticated => "unauthenticated",
        Code::FailedPrecondition => "failed precondition",
        Code::OutOfRange => "out of range",
        Code::Internal => "internal error",
        _ => "error",
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Registry => "registry",
            Self::Connect => "gateway",
        })
    }
}
