//! Why nobody can say where a domain is.

use std::net::SocketAddr;

use carrick_model::Domain;

/// Why a domain has no gateways. Clones are cheap enough to be cached.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ResolveError {
    /// The DNS answered, and knows the domain under none of the names. Asking again helps after the record is made.
    #[error("domain {domain} is not in the DNS: {}", .asked.join("; "))]
    NotInDns {
        /// The domain.
        domain: Domain,
        /// What was asked and what came back, one line for each question.
        asked: Vec<String>,
    },
    /// The domain says with an `SRV` target of `.` that it does not offer this (RFC 2782).
    #[error("domain {domain} decidedly does not offer Carrick: {name} has the target `.`")]
    NotOffered {
        /// The domain.
        domain: Domain,
        /// The name of the record.
        name: String,
    },
    /// The `SRV` records exist, and none of their targets has an address.
    #[error("the SRV records of domain {domain} point nowhere: {target} has no address")]
    SrvPointsNowhere {
        /// The domain.
        domain: Domain,
        /// The targets, joined by commas.
        target: String,
    },
    /// No host of a static peer has an address.
    #[error("the peers entry of domain {domain} points nowhere: {target} has no address")]
    PeerPointsNowhere {
        /// The domain.
        domain: Domain,
        /// The hosts, joined by commas.
        target: String,
    },
    /// A name leads in a circle, or through too many aliases.
    #[error("{name} is an alias that never ends (CNAME)")]
    AliasLoop {
        /// The name.
        name: String,
    },
    /// The domain is too long to prefix it with the names that are asked for.
    #[error("{name} is longer than a DNS name can be")]
    TooLong {
        /// The name.
        name: String,
    },
    /// No DNS server answered in time. Asking again helps.
    #[error("no DNS server answered for {name}: {detail}")]
    Unreachable {
        /// What was asked for.
        name: String,
        /// The servers that were tried.
        servers: Vec<SocketAddr>,
        /// What happened at each.
        detail: String,
    },
    /// Every DNS server that answered refused to serve us.
    #[error("the DNS servers refuse to answer for {name}: {detail}")]
    Refused {
        /// What was asked for.
        name: String,
        /// What happened at each server.
        detail: String,
    },
    /// The DNS servers answered that they failed. Asking again helps.
    #[error("the DNS servers failed to answer for {name}: {detail}")]
    ServFail {
        /// What was asked for.
        name: String,
        /// What happened at each server.
        detail: String,
    },
    /// What came back is not a usable DNS answer.
    #[error("the DNS servers gave no usable answer for {name}: {detail}")]
    Garbage {
        /// What was asked for.
        name: String,
        /// What happened at each server.
        detail: String,
    },
    /// Too many domains are being resolved at this moment. Asking again helps.
    #[error("too many domains are being resolved at once, {domain} has to wait")]
    Busy {
        /// The domain.
        domain: Domain,
    },
}

impl ResolveError {
    /// Whether the DNS itself failed, so that an older answer may stand in (RFC 8767); false when it said no.
    pub fn is_failure(&self) -> bool {
        match self {
            Self::Unreachable { .. }
            | Self::Refused { .. }
            | Self::ServFail { .. }
            | Self::Garbage { .. }
            | Self::Busy { .. } => true,
            Self::NotInDns { .. }
            | Self::NotOffered { .. }
            | Self::SrvPointsNowhere { .. }
            | Self::PeerPointsNowhere { .. }
            | Self::AliasLoop { .. }
            | Self::TooLong { .. } => false,
        }
    }

    /// What the operator can do about it.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::NotInDns { .. } => {
                "check the spelling of the domain, have its operator publish _carrick._tcp and _carrick._udp SRV records, \
                 or list its addresses under `peers:`"
            }
            Self::NotOffered { .. } => {
                "the operator of the domain switched Carrick off there; ask them, or list an address under `peers:`"
            }
            Self::SrvPointsNowhere { .. } => {
                "the operator of the domain has to add A or AAAA records for the SRV target, or correct the target"
            }
            Self::PeerPointsNowhere { .. } => "correct the host under `peers:`, or give its address",
            Self::AliasLoop { .. } => "the operator of the domain has to correct its CNAME records",
            Self::TooLong { .. } => "list the addresses of this domain under `peers:`",
            Self::Unreachable { .. } => {
                "check that the servers under `dns.servers:` (or in /etc/resolv.conf) run and that UDP and TCP port 53 \
                 reach them"
            }
            Self::Refused { .. } => {
                "the servers do not resolve for this host: allow its address there, or set others under `dns.servers:`"
            }
            Self::ServFail { .. } => {
                "the servers could not reach or verify the domain's own name servers: try again, then ask its operator"
            }
            Self::Garbage { .. } => {
                "make sure that what answers under `dns.servers:` is a recursive DNS server"
            }
            Self::Busy { .. } => "try again in a second",
        }
    }
}
