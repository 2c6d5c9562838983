//! Why a call to etcd failed: which member, what was asked, whose fault it is.

use std::{io, sync::Arc, time::Duration};

use carrick_model::cause::in_one_line;
use tonic::{Code, Status};

use super::{super::StoreError, tls::TlsFault};

/// Most of etcd's own text that is passed on.
const MAX_TEXT: usize = 400;

/// Why a call to a member failed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum EtcdFault {
    /// The member cannot be connected to: its process, its host or the network.
    #[error("{member} cannot be connected to: {why}")]
    Connect {
        /// The endpoint.
        member: String,
        /// What the system says.
        why: Arc<io::Error>,
    },
    /// TLS failed: one side does not accept the other's certificate.
    #[error("TLS with {member} failed: {why}")]
    Tls {
        /// The endpoint.
        member: String,
        /// What was wrong.
        why: Arc<io::Error>,
    },
    /// Our files for TLS cannot be used.
    #[error("{member} cannot be called: {}", in_one_line(.why))]
    Files {
        /// The endpoint.
        member: String,
        /// Which file, and why.
        why: TlsFault,
    },
    /// The member took the call and did not answer: it is stopped, slow, or cut off from the others.
    #[error("{member} did not answer {call} within {} s", .after.as_secs_f32())]
    TimedOut {
        /// The endpoint.
        member: String,
        /// What was asked, or `connect`.
        call: &'static str,
        /// For how long.
        after: Duration,
    },
    /// The connection broke, or the member says that it cannot serve now, for example without a leader.
    #[error("{member} failed during {call}: {detail}")]
    Broken {
        /// The endpoint.
        member: String,
        /// What was asked.
        call: &'static str,
        /// What it or the transport says.
        detail: String,
    },
    /// etcd says no. Another member would say the same.
    #[error("{member} refused {call}: {message} ({code:?})")]
    Refused {
        /// The endpoint.
        member: String,
        /// What was asked.
        call: &'static str,
        /// The gRPC code.
        code: Code,
        /// etcd's words, shortened.
        message: String,
    },
    /// The answer is not what etcd answers: something else listens there, or it is a version we do not know.
    #[error("{member} answered {call} with something unusable: {detail}")]
    Nonsense {
        /// The endpoint.
        member: String,
        /// What was asked.
        call: &'static str,
        /// What is wrong with it.
        detail: &'static str,
    },
}

impl EtcdFault {
    /// What a status says. Codes decide, not words.
    pub(super) fn of(member: String, call: &'static str, status: &Status) -> Self {
        let message: String = status.message().chars().take(MAX_TEXT).collect();
        match status.code() {
            code @ (Code::InvalidArgument
            | Code::NotFound
            | Code::AlreadyExists
            | Code::PermissionDenied
            | Code::Unauthenticated
            | Code::ResourceExhausted
            | Code::FailedPrecondition
            | Code::OutOfRange
            | Code::Unimplemented) => Self::Refused { member, call, code, message },
            _ => Self::Broken { member, call, detail: message },
        }
    }

    /// Whether another member may do better.
    pub(super) fn is_of_the_member(&self) -> bool {
        !matches!(self, Self::Refused { .. })
    }

    /// Whether the member may have done what was asked all the same.
    pub(super) fn may_have_been_done(&self) -> bool {
        matches!(self, Self::TimedOut { .. } | Self::Broken { .. } | Self::Nonsense { .. })
    }

    /// The code of a refusal.
    pub(super) fn refusal(&self) -> Option<Code> {
        match self {
            Self::Refused { code, .. } => Some(*code),
            _ => None,
        }
    }

    /// What an operator can do about it.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Connect { .. } => {
                "check that etcd runs there and that nothing between filters its client port"
            }
            Self::Tls { .. } => {
                "the certificate of etcd has to be for the host of the endpoint and of the CA in registry.etcd.tls.ca, and \
                 etcd has to trust registry.etcd.tls.cert"
            }
            Self::Files { .. } => "put the file right: it is read again at the next attempt",
            Self::TimedOut { .. } | Self::Broken { .. } => {
                "look at `etcdctl endpoint status --cluster` and at the log of that member"
            }
            Self::Refused { code: Code::ResourceExhausted, .. } => {
                "etcd's database is full: compact and defragment it, raise --quota-backend-bytes, then `etcdctl alarm disarm`"
            }
            Self::Refused { code: Code::PermissionDenied | Code::Unauthenticated, .. } => {
                "give the user of registry.etcd.tls.cert a role that reads and writes registry.etcd.prefix"
            }
            Self::Refused { .. } | Self::Nonsense { .. } => {
                "check that the endpoint is etcd 3.4 or later with its v3 API, and not a proxy that changes calls"
            }
        }
    }

    /// The error of a commit that failed for it. `uncertain`: an attempt may have been made.
    pub(super) fn store_error(&self, store: String, uncertain: bool) -> StoreError {
        let reason = format!("{self}. Hint: {}", self.hint());
        match self.refusal() {
            Some(Code::ResourceExhausted) => StoreError::Full { store },
            Some(Code::PermissionDenied | Code::Unauthenticated) => StoreError::ReadOnly { store, reason },
            _ if uncertain => StoreError::Uncertain { store, reason },
            _ => StoreError::Unavailable { store, reason },
        }
    }
}
