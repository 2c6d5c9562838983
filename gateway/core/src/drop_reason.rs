//! Why a flow or a datagram was not carried: a value, counted and logged in one place.

use crate::verdict::{ResetCode, Verdict};

/// Why something was dropped. The words are metric labels and stand in access-log events.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DropReason {
    /// The import has no connection to its service now.
    ImportDown,
    /// No tunnel to the other gateway came up in time.
    NoTunnel,
    /// The other gateway answered with a refusal.
    Verdict(Verdict),
    /// The other gateway gave no verdict in time, or the tunnel was lost before it.
    NoVerdict,
    /// The stream was ended by a code.
    Stream(ResetCode),
    /// The tunnel was lost under the flow.
    TunnelLost,
    /// The local TCP connection was reset or broke.
    LocalReset,
    /// This gateway has as many flows as it may.
    TooManyFlows,
    /// A queue was full.
    QueueFull,
    /// A datagram for a flow that is not, or no longer, known.
    UnknownFlow,
    /// A DATAGRAM frame that is no datagram of ours.
    MalformedDatagram,
    /// The local UDP socket did not take the datagram.
    LocalSend,
}

impl DropReason {
    /// One word for logs and metric labels.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ImportDown => "import_down",
            Self::NoTunnel => "no_tunnel",
            Self::Verdict(verdict) => verdict.as_str(),
            Self::NoVerdict => "no_verdict",
            Self::Stream(code) => code.as_str(),
            Self::TunnelLost => "tunnel_lost",
            Self::LocalReset => "local_reset",
            Self::TooManyFlows => "too_many_flows",
            Self::QueueFull => "queue_full",
            Self::UnknownFlow => "unknown_flow",
            Self::MalformedDatagram => "malformed_datagram",
            Self::LocalSend => "local_send",
        }
    }
}
