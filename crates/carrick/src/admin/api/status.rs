//! The daemon at a glance: `carrick status`.

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
};

use carrick_model::{
    ConnectionId, Domain, ExportTarget, ListenAddress, Mechanism, Payload, ServiceName, SpiffePattern, Target,
};
use serde::{Deserialize, Serialize};

use super::{Direction, Timestamp, words};

/// The daemon at a glance: `carrick status`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Status {
    /// The domain this daemon speaks for.
    pub(crate) domain: Domain,
    /// Its SPIFFE trust domain.
    pub(crate) trust_domain: String,
    /// Version of the daemon's binary.
    pub(crate) version: String,
    /// Process id.
    pub(crate) pid: u32,
    /// Since when it runs.
    pub(crate) started: Timestamp,
    /// For how long it has been running.
    pub(crate) uptime_seconds: u64,
    /// Where it keeps its state.
    pub(crate) state_dir: PathBuf,
    /// The file it was configured from, if it was one.
    pub(crate) config: Option<PathBuf>,
    /// Whether every part has started and the daemon is not draining.
    pub(crate) ready: bool,
    /// Parts that are still starting.
    pub(crate) waiting_for: Vec<String>,
    /// Whether it takes no new flows because it is about to stop.
    pub(crate) draining: bool,
    /// Who it is to its peers.
    pub(crate) identity: IdentityRow,
    /// What it listens on, import listeners aside.
    pub(crate) listeners: Vec<ListenerRow>,
    /// Where registrations are kept.
    pub(crate) store: Option<StoreRow>,
    /// Services of other domains made reachable here.
    pub(crate) imports: Vec<ImportRow>,
    /// Services offered to other domains.
    pub(crate) exports: Vec<ExportRow>,
    /// Associations with other gateways.
    pub(crate) tunnels: Vec<TunnelRow>,
    /// Other domains it has looked up.
    pub(crate) peers: Vec<PeerRow>,
    /// What it watches in registries of other domains.
    pub(crate) watches: Vec<WatchRow>,
    /// Totals since the start.
    pub(crate) counters: Counters,
}

/// The SVID in use.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct IdentityRow {
    /// The SPIFFE ID.
    pub(crate) spiffe_id: String,
    /// Who issues it: `embedded`.
    pub(crate) source: String,
    /// Start of its validity.
    pub(crate) not_before: Timestamp,
    /// End of its validity. Rotation comes long before.
    pub(crate) not_after: Timestamp,
}

/// The store of registrations.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct StoreRow {
    /// What kind it is, and where.
    pub(crate) name: String,
    /// The revision up to which this daemon knows what is registered.
    pub(crate) revision: u64,
    /// Why it is away, if it is, and what to do: then nothing can be registered, and what is found is as it was last known.
    pub(crate) lost: Option<String>,
}

/// One listening socket.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct ListenerRow {
    /// What it is for: `control`, `tunnel`, `nsm` (what NSM's parts call), `admin`, `dns`.
    pub(crate) name: String,
    /// Address with scheme: `tcp://0.0.0.0:7443`, `udp://…`, `unix://…`; `tcp://:5002` is all addresses of both families.
    pub(crate) address: String,
}

/// Whether a service of another domain can be used right now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum ImportState {
    /// Flows go through.
    Up,
    /// Not yet or not any more; an attempt is under way.
    Connecting,
    /// Refused or unreachable; flows are reset at once and the next attempt waits for its turn.
    Down,
}

/// A service of another domain made reachable here.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct ImportRow {
    /// What is imported.
    pub(crate) service: ServiceName,
    /// Whether it can be used.
    pub(crate) state: ImportState,
    /// Why it is not up.
    pub(crate) why: Option<String>,
    /// What the operator can do about it.
    pub(crate) hint: Option<String>,
    /// Since when it is in this state.
    pub(crate) since: Timestamp,
    /// What it carries; unknown until the peer has answered, unless the listener says it.
    pub(crate) payload: Option<Payload>,
    /// Where applications connect, as bound: port 0 is replaced by the port the system chose.
    pub(crate) listen: Vec<ListenAddress>,
    /// Address the embedded DNS server answers with.
    pub(crate) virtual_ip: Option<IpAddr>,
    /// Name the embedded DNS server answers to.
    pub(crate) dns_name: Option<String>,
    /// Whether `carrick connect` made it; it is then in no config file.
    pub(crate) ad_hoc: bool,
    /// The connection that carries it while it is up.
    pub(crate) connection: Option<ConnectionId>,
    /// Flows open now.
    pub(crate) flows: u64,
}

/// A service offered to other domains.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct ExportRow {
    /// Its name in this domain.
    pub(crate) service: Target,
    /// Where its flows go.
    pub(crate) target: ExportTarget,
    /// What it carries.
    pub(crate) payload: Payload,
    /// The service's own port, where it has one.
    pub(crate) port: Option<u16>,
    /// Who may use it; nobody else may.
    pub(crate) allow: Vec<SpiffePattern>,
    /// Connections held by other domains now.
    pub(crate) connections: u64,
    /// Flows open now.
    pub(crate) flows: u64,
}

/// The association with one gateway of another domain.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct TunnelRow {
    /// The peer's domain, if it is known by configuration.
    pub(crate) domain: Option<Domain>,
    /// The peer's SPIFFE ID.
    pub(crate) peer: String,
    /// The peer's address in use.
    pub(crate) address: SocketAddr,
    /// Who dialled.
    pub(crate) direction: Direction,
    /// How it is carried.
    pub(crate) mechanism: Mechanism,
    /// Since when it is up.
    pub(crate) since: Timestamp,
    /// Smoothed round-trip time, the worst lane's.
    pub(crate) rtt_micros: Option<u64>,
    /// Parallel associations in it.
    pub(crate) lanes: u32,
    /// Flows open now.
    pub(crate) flows: u64,
    /// Bytes of flows to the peer.
    pub(crate) bytes_sent: u64,
    /// Bytes of flows from the peer.
    pub(crate) bytes_received: u64,
    /// Largest UDP payload the path is known to carry.
    pub(crate) mtu: Option<u16>,
    /// Packets declared lost and sent again.
    pub(crate) lost_packets: u64,
}

/// Another domain and how it is reached.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct PeerRow {
    /// The domain.
    pub(crate) domain: Domain,
    /// Its trust domain.
    pub(crate) trust_domain: String,
    /// Where its addresses come from: `static`, `srv`, `nsm`; `null` before the first answer.
    pub(crate) source: Option<String>,
    /// Its control addresses.
    pub(crate) control: Vec<SocketAddr>,
    /// Its tunnel addresses.
    pub(crate) tunnel: Vec<SocketAddr>,
    /// Whether the answer outlived its TTL because no newer one can be had.
    pub(crate) stale: bool,
    /// Why it cannot be reached.
    pub(crate) why: Option<String>,
}

/// What this daemon watches in another domain's registry for workloads of its own, or watched until the domain was lost.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct WatchRow {
    /// The other domain.
    pub(crate) domain: Domain,
    /// What is watched: `network service` or `network service endpoint`.
    pub(crate) what: String,
    /// The query in words; empty for everything.
    pub(crate) query: String,
    /// How many objects there are, or were.
    pub(crate) objects: u64,
    /// The names of the first hundred.
    pub(crate) names: Vec<String>,
    /// How many workloads watch.
    pub(crate) watchers: u64,
    /// Since when this is only what was last known.
    pub(crate) stale_since: Option<Timestamp>,
    /// Why.
    pub(crate) why: Option<String>,
}

/// Totals since the daemon started.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Counters {
    /// Flows open now.
    pub(crate) flows_active: u64,
    /// Flows that reached their target.
    pub(crate) flows_total: u64,
    /// Flows that were refused, here or by the peer.
    pub(crate) flows_refused: u64,
    /// Bytes of flows to other domains.
    pub(crate) bytes_sent: u64,
    /// Bytes of flows from other domains.
    pub(crate) bytes_received: u64,
}

words! {
    ImportState { Up => "up", Connecting => "connecting", Down => "down" }
}
