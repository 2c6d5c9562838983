//! The config as the daemon sees it: final types only, every default filled in.

mod compat;
mod registry;

use std::{collections::BTreeMap, net::SocketAddr, path::PathBuf, time::Duration};

use carrick_model::{
    Domain, ExportTarget, Host, HostPort, ListenAddress, ServiceName, SpiffePattern, Target, TrustDomain,
};
use ipnet::Ipv4Net;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{defaults, fault::Fault};

pub use self::{
    compat::{Compat, Nsm},
    registry::{Etcd, EtcdClient, EtcdTls, Registry, Store},
};

/// The whole of `carrick.yaml`. Field names are its keys, `docs/reference/config.md` explains them.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// This domain.
    pub domain: Domain,
    /// The trust domain of this domain's SVIDs.
    pub trust_domain: TrustDomain,
    /// Where keys, bundles and the admin socket are kept.
    pub state_dir: PathBuf,
    /// What the daemon listens on.
    pub listen: Listen,
    /// Where peers reach this domain. Empty: the listen addresses.
    pub advertise: Vec<Host>,
    /// Where this domain's SVIDs come from.
    pub identity: Identity,
    /// The domains that are trusted, each with its roots. No domain twice.
    pub trust: Vec<Trust>,
    /// Names: those asked for and those answered.
    pub dns: Dns,
    /// Domains whose gateways are given here and not by the DNS. No domain twice.
    pub peers: Vec<Peer>,
    /// Services offered to other domains. No service twice.
    pub exports: Vec<Export>,
    /// Services of other domains. No service twice, no two on one address.
    pub imports: Vec<Import>,
    /// The catalogue of this domain.
    pub registry: Registry,
    /// How the daemon appears to programs that are not Carrick.
    pub compat: Compat,
    /// The tunnels between gateways.
    pub tunnel: Tunnel,
    /// How long things may take.
    pub timeouts: Timeouts,
    /// The log.
    pub log: Log,
    /// Time for live flows to end after a stop was asked for.
    pub drain_timeout: Duration,
    /// How much of everything there may be at a time.
    pub limits: Limits,
    /// What is allowed but probably not meant, in the order of the text.
    pub warnings: Vec<Fault>,
}

/// What the daemon listens on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listen {
    /// Control plane: gRPC over mTLS, TCP.
    pub control: SocketAddr,
    /// Tunnels: QUIC, UDP.
    pub tunnel: SocketAddr,
    /// Metrics, readiness, console: HTTP. `None` when switched off.
    pub admin: Option<SocketAddr>,
    /// The DNS server, UDP and TCP. `None` when there is none.
    pub dns: Option<SocketAddr>,
}

/// Where this domain's SVIDs come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The issuer.
    pub source: IdentitySource,
    /// Lifetime of an own SVID; it is renewed at half of it.
    pub svid_lifetime: Duration,
}

/// The issuer of this domain's SVIDs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum IdentitySource {
    /// A CA of the daemon's own, its key in the state directory.
    Embedded,
}

/// A domain that is trusted, and its roots.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trust {
    /// The domain.
    pub domain: Domain,
    /// The trust domain its SVIDs are of.
    pub trust_domain: TrustDomain,
    /// Where its roots are found.
    pub bundle: BundleSource,
}

/// Where the roots of a trust domain are found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BundleSource {
    /// A file: SPIFFE bundle JSON or PEM.
    File(PathBuf),
}

/// Names: those asked for and those answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dns {
    /// Servers that are asked for other domains. Empty: those of the system.
    pub servers: Vec<SocketAddr>,
    /// What follows `<service>.<domain>.` in the name of an import: lower case, no dot at either end.
    pub suffix: String,
    /// The pool of virtual IPs, one for each import.
    pub virtual_ips: Ipv4Net,
    /// Wait for one answer.
    pub timeout: Duration,
    /// Questions put to each server, at least 1.
    pub attempts: u8,
    /// How long a last good answer is used while the DNS is down.
    pub max_stale: Duration,
    /// TTL of the answers given, whole seconds.
    pub ttl: Duration,
}

/// A domain whose gateways are given here. At least one of the lists has an entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// The domain.
    pub domain: Domain,
    /// Its control listeners. Empty: found by DNS.
    pub control: Vec<HostPort>,
    /// Its tunnel listeners. Empty: found by DNS.
    pub tunnel: Vec<HostPort>,
}

/// A service offered to other domains.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Export {
    /// The service.
    pub service: Target,
    /// What its flows are forwarded to.
    pub to: ExportTarget,
    /// The service's own port, told to importers. `None` only for a Unix socket without one.
    pub port: Option<u16>,
    /// Who may use it. Empty: nobody.
    pub allow: Vec<SpiffePattern>,
    /// Labels of the endpoint.
    pub labels: BTreeMap<String, String>,
}

/// A service of another domain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Import {
    /// The service. Of several, the first: what the import is known by.
    pub service: ServiceName,
    /// Services of other domains that are as good. None twice, none the same as `service`.
    pub others: Vec<ServiceName>,
    /// Which of them is used.
    pub strategy: Strategy,
    /// Where applications reach it, beside its virtual IP. Always there when `listen.dns` is `None`.
    pub listen: Option<ListenAddress>,
    /// The port on the virtual IP. `None`: the service's own, as the peer tells it.
    pub port: Option<u16>,
}

/// Which of several equal services is used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Strategy {
    /// The first of which an endpoint is there.
    Priority,
    /// All of them, new connections in these shares: one for `service` and one for each of `others`, each at least 1.
    Weighted(Vec<u32>),
    /// The one that answers fastest.
    Nearest,
}

impl Import {
    /// All its services in the order of the file, `service` first.
    pub fn services(&self) -> impl Iterator<Item = &ServiceName> {
        std::iter::once(&self.service).chain(&self.others)
    }
}

/// The tunnels between gateways.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tunnel {
    /// QUIC connections for each peer gateway.
    pub lanes: Lanes,
    /// A tunnel without a packet is dead after this time.
    pub idle_timeout: Duration,
    /// Time between keep-alives, below `idle_timeout`.
    pub keep_alive: Duration,
    /// Bound of all receive windows together, in bytes.
    pub max_memory: u64,
    /// Congestion control.
    pub congestion: Congestion,
}

/// QUIC connections for each peer gateway.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lanes {
    /// The daemon decides, from the number of cores.
    Auto,
    /// This many, 1 to 16.
    Count(u8),
}

/// Congestion control of a tunnel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Congestion {
    /// CUBIC (RFC 9438): fair to others on a shared line.
    Cubic,
    /// BBR: for long lines with random loss.
    Bbr,
}

/// How long things may take.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Timeouts {
    /// Reaching a peer, handshake included.
    pub connect: Duration,
    /// One control-plane call.
    pub request: Duration,
    /// From a client's first byte to the peer's verdict on its flow.
    pub flow_open: Duration,
    /// A UDP association without a packet ends after this time.
    pub udp_idle: Duration,
}

/// The log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Log {
    /// Its form.
    pub format: LogFormat,
    /// A level, or `target=level` pairs joined by commas.
    pub level: String,
}

/// The form of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For a terminal.
    Human,
    /// One JSON object on each line.
    Json,
}

/// How much of everything there may be at a time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Flows, both directions together.
    pub max_flows: u32,
    /// Tunnels, both directions together.
    pub max_tunnels: u32,
    /// Handshakes of callers that have not shown who they are.
    pub max_half_open: u32,
}

impl Config {
    /// The config of a `carrick.yaml` that says `domain:` and nothing else.
    pub fn new(domain: Domain) -> Self {
        Self {
            trust_domain: same_trust_domain(&domain),
            compat: Compat::new(&domain),
            domain,
            state_dir: defaults::STATE_DIR.into(),
            listen: Listen::default(),
            advertise: Vec::new(),
            identity: Identity::default(),
            trust: Vec::new(),
            dns: Dns::default(),
            peers: Vec::new(),
            exports: Vec::new(),
            imports: Vec::new(),
            registry: Registry::default(),
            tunnel: Tunnel::default(),
            timeouts: Timeouts::default(),
            log: Log::default(),
            drain_timeout: defaults::DRAIN_TIMEOUT,
            limits: Limits::default(),
            warnings: Vec::new(),
        }
    }
}

/// The trust domain with a domain's own name.
#[expect(
    clippy::expect_used,
    reason = "a trust domain may hold all that a Domain may: a-z, 0-9, `-`, `.`, 253 octets"
)]
pub(crate) fn same_trust_domain(domain: &Domain) -> TrustDomain {
    TrustDomain::new(domain.as_str()).expect("every domain is a trust domain")
}

impl Default for Listen {
    fn default() -> Self {
        Self {
            control: defaults::LISTEN_CONTROL,
            tunnel: defaults::LISTEN_TUNNEL,
            admin: Some(defaults::LISTEN_ADMIN),
            dns: None,
        }
    }
}

impl Default for Identity {
    fn default() -> Self {
        Self { source: IdentitySource::Embedded, svid_lifetime: defaults::SVID_LIFETIME }
    }
}

impl Default for Dns {
    fn default() -> Self {
        Self {
            servers: Vec::new(),
            suffix: defaults::DNS_SUFFIX.into(),
            virtual_ips: defaults::DNS_VIRTUAL_IPS,
            timeout: defaults::DNS_TIMEOUT,
            attempts: defaults::DNS_ATTEMPTS,
            max_stale: defaults::DNS_MAX_STALE,
            ttl: defaults::DNS_TTL,
        }
    }
}

impl Default for Tunnel {
    fn default() -> Self {
        Self {
            lanes: Lanes::Auto,
            idle_timeout: defaults::TUNNEL_IDLE_TIMEOUT,
            keep_alive: defaults::TUNNEL_KEEP_ALIVE,
            max_memory: defaults::TUNNEL_MAX_MEMORY,
            congestion: Congestion::Cubic,
        }
    }
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            connect: defaults::TIMEOUT_CONNECT,
            request: defaults::TIMEOUT_REQUEST,
            flow_open: defaults::TIMEOUT_FLOW_OPEN,
            udp_idle: defaults::TIMEOUT_UDP_IDLE,
        }
    }
}

impl Default for Log {
    fn default() -> Self {
        Self { format: LogFormat::Human, level: defaults::LOG_LEVEL.into() }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_flows: defaults::MAX_FLOWS,
            max_tunnels: defaults::MAX_TUNNELS,
            max_half_open: defaults::MAX_HALF_OPEN,
        }
    }
}
