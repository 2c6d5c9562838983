//! Where a domain is: the answer of the resolver.

use std::{fmt, net::SocketAddr, time::Instant};

use carrick_model::Domain;
use rand::Rng;

use super::order::order;

/// The gateways of a domain, from one source, as of one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gateways {
    /// The domain that was asked for.
    pub domain: Domain,
    /// What told us.
    pub source: Source,
    /// Where the control plane listens (gRPC over TLS over TCP). For [`Source::Nsm`] the `nsmgr-proxy`, which may be
    /// missing: the registry of a floating domain has none.
    pub control: Vec<Candidate>,
    /// Where the tunnel listens (QUIC over UDP). Empty when the domain does not publish it: the peer then tells its
    /// tunnel addresses in its reply to a request.
    pub tunnel: Vec<Candidate>,
    /// Where the registry listens. Equal to `control` except for [`Source::Nsm`].
    pub registry: Vec<Candidate>,
    /// The DNS did not answer lately and this is the last good answer (RFC 8767).
    pub stale: bool,
    /// When this answer is to be asked for again.
    pub expires: Instant,
    /// What was asked and what came back, one line each, for people.
    pub evidence: Vec<String>,
}

/// What told us where a domain is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Source {
    /// The `peers:` of the config.
    Static,
    /// `SRV` records of `_carrick._tcp` and `_carrick._udp`.
    Srv,
    /// The names of Network Service Mesh, `registry.nsm-system` and `nsmgr-proxy.nsm-system`.
    Nsm,
}

/// One address of one gateway.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Candidate {
    /// Where to connect to.
    pub addr: SocketAddr,
    /// The name the address was found under, or the address itself where it was given literally.
    pub host: String,
    /// Lower comes first (RFC 2782).
    pub priority: u16,
    /// Share among the hosts of one priority (RFC 2782).
    pub weight: u16,
}

impl Gateways {
    /// The control addresses in the order in which to try them, see [`order()`].
    pub fn control_order<R: Rng + ?Sized>(&self, rng: &mut R) -> Vec<SocketAddr> {
        order(&self.control, rng)
    }

    /// The tunnel addresses in the order in which to try them, see [`order()`].
    pub fn tunnel_order<R: Rng + ?Sized>(&self, rng: &mut R) -> Vec<SocketAddr> {
        order(&self.tunnel, rng)
    }

    /// The registry addresses in the order in which to try them, see [`order()`].
    pub fn registry_order<R: Rng + ?Sized>(&self, rng: &mut R) -> Vec<SocketAddr> {
        order(&self.registry, rng)
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Static => "peers",
            Self::Srv => "srv",
            Self::Nsm => "nsm",
        })
    }
}

impl fmt::Display for Candidate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({}, priority {}, weight {})", self.addr, self.host, self.priority, self.weight)
    }
}
