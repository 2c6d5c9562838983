//! What answers a flow header, and the codes that end streams and tunnels.

macro_rules! codes {
    ($(#[$meta:meta])* $name:ident: $repr:ty, unknown = $unknown:ident { $($(#[$vmeta:meta])* $variant:ident = $code:literal, $word:literal;)* }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum $name {
            $($(#[$vmeta])* $variant,)*
        }

        impl $name {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$variant),*];

            /// The number on the wire.
            pub fn code(self) -> $repr {
                match self { $(Self::$variant => $code,)* }
            }

            /// One word for logs and metric labels.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word,)* }
            }

            /// The meaning of a number; one that is not known is the general failure, so that newer peers are understood.
            pub fn from_code(code: $repr) -> Self {
                match code {
                    $($code => Self::$variant,)*
                    _ => Self::$unknown,
                }
            }
        }
    };
}

codes! {
    /// The first octet of the exporting side's answer.
    Verdict: u8, unknown = Refused {
        /// The target took the flow; bytes follow.
        Accepted = 0x00, "accepted";
        /// Not carried, for a reason this side does not know.
        Refused = 0x01, "refused";
        /// The header could not be read.
        Malformed = 0x02, "malformed_header";
        /// No connection has this id here: it expired, was closed, or the gateway restarted. Request a new one.
        UnknownConnection = 0x03, "unknown_connection";
        /// The connection belongs to another peer.
        NotYours = 0x04, "not_yours";
        /// The connection carries another payload than the flow.
        WrongPayload = 0x05, "wrong_payload";
        /// The target refused (TCP reset, no such socket).
        TargetRefused = 0x06, "target_refused";
        /// The target did not answer in time or has no route.
        TargetUnreachable = 0x07, "target_unreachable";
        /// The gateway has as many flows as it may.
        Overloaded = 0x08, "overloaded";
        /// The gateway drains and takes no new flows.
        Draining = 0x09, "draining";
    }
}

codes! {
    /// Application error codes of RESET_STREAM and STOP_SENDING.
    ResetCode: u64, unknown = Reset {
        /// The TCP connection behind the stream was reset or broke.
        Reset = 0x01, "reset";
        /// Policy, trust or configuration no longer allows the connection.
        Revoked = 0x02, "revoked";
        /// The local side took no bytes for so long that the flow was in others' way.
        Stalled = 0x03, "stalled";
        /// The drain deadline passed.
        DrainDeadline = 0x04, "drain_deadline";
        /// A UDP association was idle.
        Idle = 0x05, "idle";
        /// What the other side sent is not of the protocol.
        Protocol = 0x06, "protocol_error";
    }
}

codes! {
    /// Application error codes of CONNECTION_CLOSE.
    CloseCode: u64, unknown = Failed {
        /// A failure this side does not know.
        Failed = 0x00, "failed";
        /// No longer needed.
        Done = 0x01, "done";
        /// The gateway stops.
        Stopping = 0x02, "stopping";
        /// The peer's trust domain is no longer trusted.
        Untrusted = 0x03, "untrusted";
        /// The gateway has as many tunnels as it may.
        Overloaded = 0x04, "overloaded";
        /// What the other side sent is not of the protocol.
        Protocol = 0x05, "protocol_error";
    }
}

impl Verdict {
    /// What the operator of the importing side should do about it.
    pub fn hint(self) -> &'static str {
        match self {
            Self::Accepted => "",
            Self::Refused => "look at the log of the other domain's gateway",
            Self::Malformed => "the two gateways disagree about the protocol: compare their versions",
            Self::UnknownConnection => "nothing to do: a new connection is requested at once",
            Self::NotYours => {
                "the connection was made under another identity: check that no two gateways share a state directory"
            }
            Self::WrongPayload => "import the service with the scheme it is exported with (tcp or udp)",
            Self::TargetRefused => {
                "the service behind the export is not running, or not at the address of `to:`"
            }
            Self::TargetUnreachable => {
                "the exporting gateway has no route to the address of `to:`, or a firewall drops its packets"
            }
            Self::Overloaded => "raise `limits.max_flows` on the exporting side, or add a gateway",
            Self::Draining => "the exporting gateway stops or restarts: retry",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_distinct_and_read_back() {
        for v in Verdict::ALL {
            assert_eq!(Verdict::from_code(v.code()), *v);
            assert!(*v == Verdict::Accepted || !v.hint().is_empty());
        }
        for c in ResetCode::ALL {
            assert_eq!(ResetCode::from_code(c.code()), *c);
        }
        for c in CloseCode::ALL {
            assert_eq!(CloseCode::from_code(c.code()), *c);
        }
        assert_eq!(Verdict::from_code(0xff), Verdict::Refused);
    }
}
