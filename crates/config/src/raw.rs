//! The keys of `carrick.yaml` as they are written. The doc comments are the text of `docs/reference/config.md`.

pub(crate) mod compat;
pub(crate) mod registry;

use std::{collections::BTreeMap, net::SocketAddr, path::PathBuf, time::Duration};

use carrick_model::{
    Domain, ExportTarget, Host, HostPort, ListenAddress, ServiceName, SpiffePattern, Target, TrustDomain,
};
use ipnet::Ipv4Net;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use self::{compat::RawCompat, registry::RawRegistry};
use crate::{
    config::{BundleSource, Congestion, IdentitySource, Lanes, LogFormat},
    defaults,
    text::{Bytes, Level, OneOrMore, Server, Suffix, Switched, Text},
};

/// The keys at the top of the file. Only `domain` is needed.
#[derive(Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(title = "carrick.yaml", rename = "Config")]
pub(crate) struct RawConfig {
    /// The DNS name of this domain: what stands after the `@` when others ask for its services.
    pub(crate) domain: Text<Domain>,
    /// The SPIFFE trust domain of this domain's SVIDs. Left out: the same as `domain`.
    #[serde(default)]
    pub(crate) trust_domain: Option<Text<TrustDomain>>,
    /// Directory of the CA's key, the bundles that were imported, and the admin socket. Only the daemon's user needs to
    /// read it. A relative path starts at the config file.
    #[serde(default = "state_dir")]
    pub(crate) state_dir: Text<PathBuf>,
    /// What the daemon listens on.
    #[serde(default)]
    pub(crate) listen: RawListen,
    /// Addresses and names under which peers reach this domain, without ports: the embedded DNS server's own records
    /// and the answers to peers name them. Left out: the listen addresses.
    #[serde(default)]
    pub(crate) advertise: Vec<Text<Host>>,
    /// Where this domain's SVIDs come from.
    #[serde(default)]
    pub(crate) identity: RawIdentity,
    /// The domains this one trusts. Each needs its own root; a domain that is not listed here, nor imported with
    /// `carrick trust import`, is refused.
    #[serde(default)]
    pub(crate) trust: Vec<RawTrust>,
    /// Names: which servers are asked for other domains, and what the embedded DNS server answers.
    #[serde(default)]
    pub(crate) dns: RawDns,
    /// Domains whose gateways are given here. For them the DNS is not asked.
    #[serde(default)]
    pub(crate) peers: Vec<RawPeer>,
    /// Services this domain offers to others.
    #[serde(default)]
    pub(crate) exports: Vec<RawExport>,
    /// Services of other domains that applications here use.
    #[serde(default)]
    pub(crate) imports: Vec<RawImport>,
    /// The registry: where its records are kept, and what callers of other trust domains may do.
    #[serde(default)]
    pub(crate) registry: RawRegistry,
    /// How the daemon appears to programs that are not Carrick.
    #[serde(default)]
    pub(crate) compat: RawCompat,
    /// The QUIC tunnels between gateways.
    #[serde(default)]
    pub(crate) tunnel: RawTunnel,
    /// How long things may take.
    #[serde(default)]
    pub(crate) timeouts: RawTimeouts,
    /// The log, on standard error.
    #[serde(default)]
    pub(crate) log: RawLog,
    /// Time for live flows to end after a stop was asked for; then they are cut. From `0s` to `1h`.
    #[serde(default = "drain_timeout")]
    pub(crate) drain_timeout: Text<Duration>,
    /// How much of everything there may be at a time. What is over a limit is refused, and counted.
    #[serde(default)]
    pub(crate) limits: RawLimits,
}

/// What the daemon listens on.
#[derive(Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(rename = "Listen")]
pub(crate) struct RawListen {
    /// Control plane: gRPC over mTLS, TCP. Peers have to reach it.
    pub(crate) control: Text<SocketAddr>,
    /// Tunnels: QUIC, UDP. Peers have to reach it.
    pub(crate) tunnel: Text<SocketAddr>,
    /// Metrics, readiness and console: HTTP without any login, so keep it on loopback.
    pub(crate) admin: Text<Switched>,
    /// The DNS server, UDP and TCP: this domain's own records, and the names of its imports. Left out: there is none.
    pub(crate) dns: Option<Text<Switched>>,
}

/// Where this domain's SVIDs come from.
#[derive(Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(rename = "Identity")]
pub(crate) struct RawIdentity {
    /// The issuer.
    pub(crate) source: IdentitySource,
    /// Lifetime of an own SVID; it is renewed at half of it, and no flow is cut. From `5s` to `30days`.
    pub(crate) svid_lifetime: Text<Duration>,
}

/// A domain that is trusted.
#[derive(Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "Trust")]
pub(crate) struct RawTrust {
    /// The domain.
    pub(crate) domain: Text<Domain>,
    /// The trust domain that belongs to it. Left out: the same as `domain`.
    #[serde(default)]
    pub(crate) trust_domain: Option<Text<TrustDomain>>,
    /// File with its roots, as `carrick trust export` writes it there: a SPIFFE bundle (JSON), or PEM. A relative path
    /// starts at the config file.
    pub(crate) bundle: Text<BundleSource>,
}

/// Names: those asked for and those answered.
#[derive(Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(rename = "Dns")]
pub(crate) struct RawDns {
    /// Servers that are asked for other domains; port 53 may be left out. Empty: those of `/etc/resolv.conf`.
    pub(crate) servers: Vec<Text<Server>>,
    /// Last part of the name of an import, `<service>.<domain>.<suffix>`.
    pub(crate) suffix: Text<Suffix>,
    /// Pool of the virtual IPs that the names of imports are answered with, one for each import. Outside `127.0.0.0/8`
    /// the addresses have to be on an interface of this host.
    pub(crate) virtual_ips: Text<Ipv4Net>,
    /// Wait for one answer. From `10ms` to `1m`.
    pub(crate) timeout: Text<Duration>,
    /// Questions put to each server before giving up.
    #[schemars(range(min = 1, max = 10))]
    pub(crate) attempts: u8,
    /// How long the last good answer is used while the DNS is down (RFC 8767). From `0s` to `30days`.
    pub(crate) max_stale: Text<Duration>,
    /// TTL of the answers the embedded DNS server gives, in whole seconds. From `1s` to `1day`.
    pub(crate) ttl: Text<Duration>,
}

/// A domain whose gateways are given here. At least one of `control` and `tunnel` has an entry.
#[derive(Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "Peer")]
pub(crate) struct RawPeer {
    /// The domain.
    pub(crate) domain: Text<Domain>,
    /// Its control listeners.
    #[serde(default)]
    pub(crate) control: Vec<Text<HostPort>>,
    /// Its tunnel listeners.
    #[serde(default)]
    pub(crate) tunnel: Vec<Text<HostPort>>,
}

/// A service this domain offers to others.
#[derive(Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "Export")]
pub(crate) struct RawExport {
    /// Its name: one or more DNS labels. Others ask for `<service>@<domain>`.
    pub(crate) service: Text<Target>,
    /// What flows are forwarded to: `tcp://host:port`, `udp://host:port` or `unix:///path`.
    pub(crate) to: Text<ExportTarget>,
    /// The service's own port, on which imports listen on their virtual IPs. Left out: the port in `to`.
    #[serde(default)]
    #[schemars(range(min = 1))]
    pub(crate) port: Option<u16>,
    /// Who may use it: SPIFFE IDs in which `*` stands for one segment of the path and a closing `**` for any rest.
    /// Empty: nobody.
    #[serde(default)]
    pub(crate) allow: Vec<Text<SpiffePattern>>,
    /// Labels of the endpoint, for selection by clients. Keys that start with `carrick.` are the daemon's own.
    #[serde(default)]
    pub(crate) labels: BTreeMap<String, String>,
}

/// A service of another domain.
#[derive(Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "Import")]
pub(crate) struct RawImport {
    /// The service and its domain; or a list of at most 16, when several domains offer what the applications here need.
    /// The first one names the import.
    pub(crate) service: OneOrMore<ServiceName>,
    /// Which of several is used.
    #[serde(default)]
    pub(crate) strategy: RawStrategy,
    /// With `strategy: weighted`, the share of each service in the list, from 1 to 1000. Left out: equal shares.
    #[serde(default)]
    #[schemars(inner(range(min = 1, max = 1000)))]
    pub(crate) weights: Vec<u32>,
    /// Where applications reach it: `ip:port` (TCP), `udp://ip:port` or `unix:///path`. May be left out when
    /// `listen.dns` is set: then the name `<service>.<domain>.<suffix>` leads to it.
    #[serde(default)]
    pub(crate) listen: Option<Text<ListenAddress>>,
    /// The port on its virtual IP. Left out: the service's own port.
    #[serde(default)]
    #[schemars(range(min = 1))]
    pub(crate) port: Option<u16>,
}

/// Which of several equal services is used.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum RawStrategy {
    /// The first in the list of which an endpoint is there.
    #[default]
    Priority,
    /// All of them: new connections in the shares of `weights`.
    Weighted,
    /// The one that answers fastest.
    Nearest,
}

/// The QUIC tunnels between gateways.
#[derive(Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(rename = "Tunnel")]
pub(crate) struct RawTunnel {
    /// QUIC connections for each peer gateway; one keeps about one core busy. `auto` goes by the number of cores.
    pub(crate) lanes: Text<Lanes>,
    /// A tunnel without a packet is dead after this time. From `1s` to `1h`.
    pub(crate) idle_timeout: Text<Duration>,
    /// Time between keep-alives, which also keep NAT bindings open. From `100ms`, below `idle_timeout`.
    pub(crate) keep_alive: Text<Duration>,
    /// Bound of the receive windows of all tunnels together. At least `16MiB`.
    pub(crate) max_memory: Text<Bytes>,
    /// Congestion control.
    pub(crate) congestion: Congestion,
}

/// How long things may take.
#[derive(Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(rename = "Timeouts")]
pub(crate) struct RawTimeouts {
    /// Reaching a peer over all its addresses, handshake included. From `10ms` to `1h`.
    pub(crate) connect: Text<Duration>,
    /// One call of the control plane. From `10ms` to `1h`.
    pub(crate) request: Text<Duration>,
    /// From a client's first byte to the peer's verdict on its flow. From `10ms` to `1h`.
    pub(crate) flow_open: Text<Duration>,
    /// A UDP association without a packet ends after this time. From `1s` to `1day`.
    pub(crate) udp_idle: Text<Duration>,
}

/// The log.
#[derive(Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(rename = "Log")]
pub(crate) struct RawLog {
    /// Its form.
    pub(crate) format: LogFormat,
    /// One of `off`, `error`, `warn`, `info`, `debug`, `trace`, or `target=level` pairs joined by commas.
    pub(crate) level: Text<Level>,
}

/// How much of everything there may be at a time.
#[derive(Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(rename = "Limits")]
pub(crate) struct RawLimits {
    /// Flows, both directions together.
    #[schemars(range(min = 1, max = 10_000_000))]
    pub(crate) max_flows: u32,
    /// Tunnels, both directions together.
    #[schemars(range(min = 1, max = 100_000))]
    pub(crate) max_tunnels: u32,
    /// Handshakes of callers that have not yet shown who they are.
    #[schemars(range(min = 1, max = 100_000))]
    pub(crate) max_half_open: u32,
}

fn state_dir() -> Text<PathBuf> {
    Text::new(defaults::STATE_DIR)
}

fn drain_timeout() -> Text<Duration> {
    defaults::DRAIN_TIMEOUT.into()
}

impl Default for RawListen {
    fn default() -> Self {
        Self {
            control: Text::new(defaults::LISTEN_CONTROL.to_string()),
            tunnel: Text::new(defaults::LISTEN_TUNNEL.to_string()),
            admin: Text::new(defaults::LISTEN_ADMIN.to_string()),
            dns: None,
        }
    }
}

impl Default for RawIdentity {
    fn default() -> Self {
        Self { source: IdentitySource::Embedded, svid_lifetime: defaults::SVID_LIFETIME.into() }
    }
}

impl Default for RawDns {
    fn default() -> Self {
        Self {
            servers: Vec::new(),
            suffix: Text::new(defaults::DNS_SUFFIX),
            virtual_ips: Text::new(defaults::DNS_VIRTUAL_IPS.to_string()),
            timeout: defaults::DNS_TIMEOUT.into(),
            attempts: defaults::DNS_ATTEMPTS,
            max_stale: defaults::DNS_MAX_STALE.into(),
            ttl: defaults::DNS_TTL.into(),
        }
    }
}

impl Default for RawTunnel {
    fn default() -> Self {
        Self {
            lanes: Text::new("auto"),
            idle_timeout: defaults::TUNNEL_IDLE_TIMEOUT.into(),
            keep_alive: defaults::TUNNEL_KEEP_ALIVE.into(),
            max_memory: Bytes::text(defaults::TUNNEL_MAX_MEMORY),
            congestion: Congestion::Cubic,
        }
    }
}

impl Default for RawTimeouts {
    fn default() -> Self {
        Self {
            connect: defaults::TIMEOUT_CONNECT.into(),
            request: defaults::TIMEOUT_REQUEST.into(),
            flow_open: defaults::TIMEOUT_FLOW_OPEN.into(),
            udp_idle: defaults::TIMEOUT_UDP_IDLE.into(),
        }
    }
}

impl Default for RawLog {
    fn default() -> Self {
        Self { format: LogFormat::Human, level: Text::new(defaults::LOG_LEVEL) }
    }
}

impl Default for RawLimits {
    fn default() -> Self {
        Self {
            max_flows: defaults::MAX_FLOWS,
            max_tunnels: defaults::MAX_TUNNELS,
            max_half_open: defaults::MAX_HALF_OPEN,
        }
    }
}
