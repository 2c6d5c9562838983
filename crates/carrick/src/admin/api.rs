//! The messages of the admin API, which are also what `-o json` prints.
//!
//! Keys are `snake_case` and always there; what is unknown or does not apply is `null`. Times are RFC 3339 in UTC,
//! spans are whole numbers with their unit in the key (`uptime_seconds`, `rtt_micros`), sizes are bytes.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    time::{Duration, SystemTime},
};

use carrick_model::{
    ConnectionId, Domain, ExportTarget, ListenAddress, Mechanism, Payload, ServiceName, SpiffePattern, Target,
};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

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

/// Which side began.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Direction {
    /// This daemon began.
    Outgoing,
    /// The peer began.
    Incoming,
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

/// `carrick services`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct ServiceList {
    /// The domain that was asked, or `null` for what this daemon exports and imports.
    pub(crate) domain: Option<Domain>,
    /// In order of their names.
    pub(crate) services: Vec<ServiceRow>,
}

/// One network service.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct ServiceRow {
    /// Its name with its domain.
    pub(crate) service: ServiceName,
    /// How this daemon knows it.
    pub(crate) origin: Origin,
    /// What it carries.
    pub(crate) payload: Option<Payload>,
    /// The service's own port.
    pub(crate) port: Option<u16>,
    /// Names of its endpoints.
    pub(crate) endpoints: Vec<String>,
    /// Where a local application reaches it: listen addresses and DNS names. Empty when it is not imported.
    pub(crate) reach: Vec<String>,
    /// State of the import, when it is imported.
    pub(crate) state: Option<ImportState>,
}

/// How a service is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Origin {
    /// An export of this daemon.
    Export,
    /// An import of this daemon.
    Import,
    /// Offered by another domain, not imported here.
    Remote,
}

/// `carrick connections`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct ConnectionList {
    /// Those that end here, in order of their start.
    pub(crate) connections: Vec<ConnectionRow>,
    /// Those that pass through to another hop, by service.
    pub(crate) passing: Vec<PassingRow>,
}

/// A connection that passes through.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct PassingRow {
    /// The id this daemon knows it by.
    pub(crate) id: String,
    /// The service, as its owner wrote it.
    pub(crate) service: String,
    /// SPIFFE ID of the hop before.
    pub(crate) owner: String,
    /// Name of the endpoint, as it is called on the next hop.
    pub(crate) endpoint: String,
    /// The next hop.
    pub(crate) next: String,
    /// `up`, or `down`: the next hop says so, or says nothing.
    pub(crate) state: String,
    /// Since when it passes.
    pub(crate) since: Timestamp,
    /// When it ends unless it is refreshed.
    pub(crate) expires: Timestamp,
}

/// An established client-endpoint relation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct ConnectionRow {
    /// The id this daemon knows it by.
    pub(crate) id: String,
    /// Who asked for it.
    pub(crate) direction: Direction,
    /// The service.
    pub(crate) service: ServiceName,
    /// SPIFFE ID of the other side.
    pub(crate) peer: String,
    /// Name of the endpoint that serves it.
    pub(crate) endpoint: Option<String>,
    /// How it is carried.
    pub(crate) mechanism: Mechanism,
    /// What it carries.
    pub(crate) payload: Payload,
    /// Where it stands: `up`, `refreshing`, `closing` …
    pub(crate) state: String,
    /// Since when it is established.
    pub(crate) since: Timestamp,
    /// When it ends unless it is refreshed.
    pub(crate) expires: Option<Timestamp>,
    /// Flows open now.
    pub(crate) flows: u64,
}

/// How a name becomes a connection, step by step: `carrick explain`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct ExplainReport {
    /// What was asked for.
    pub(crate) service: ServiceName,
    /// The worst verdict of the steps.
    pub(crate) verdict: Verdict,
    /// How long it took.
    pub(crate) took_micros: u64,
    /// In the order of design; after a failed step the others are skipped.
    pub(crate) steps: Vec<ExplainStep>,
}

/// One step of an [`ExplainReport`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct ExplainStep {
    /// Which one.
    pub(crate) step: StepKind,
    /// How it ended.
    pub(crate) verdict: Verdict,
    /// How long it took.
    pub(crate) took_micros: u64,
    /// What was seen, one fact a line.
    pub(crate) evidence: Vec<String>,
    /// What is wrong, when the verdict is `warning` or `failed`.
    pub(crate) problem: Option<String>,
    /// What the operator can do about it.
    pub(crate) hint: Option<String>,
}

/// The steps from a name to a flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum StepKind {
    /// Reading the name.
    Name,
    /// From the domain to its gateways.
    Gateways,
    /// Reaching a gateway and checking that it is whom the name means.
    Trust,
    /// Asking the peer's registry for endpoints.
    Find,
    /// Choosing one.
    Select,
    /// Asking the peer for the connection.
    Request,
    /// Joining the local side to the tunnel.
    Stitch,
    /// Staying up: lease, refresh, live flows.
    Keep,
}

/// How a step ended. Ordered from good to bad.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Verdict {
    /// As it should be.
    Ok,
    /// Not tried, because an earlier step failed or because it does not apply.
    Skipped,
    /// Works, with something to look at.
    Warning,
    /// Does not work.
    Failed,
}

/// Asks for an import that is in no config file: `carrick connect`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct ConnectRequest {
    /// What to import.
    pub(crate) service: ServiceName,
    /// Where to listen.
    pub(crate) listen: ListenAddress,
    /// The import ends with the request's connection: the reply's body stays open after its first line, and when the
    /// caller goes away, however it ends, the daemon disconnects.
    #[serde(default)]
    pub(crate) hold: bool,
}

/// The import that was made.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct ConnectReply {
    /// What is imported.
    pub(crate) service: ServiceName,
    /// Where it listens, as bound.
    pub(crate) listen: ListenAddress,
    /// Whether it can be used.
    pub(crate) state: ImportState,
    /// Why it is not up.
    pub(crate) why: Option<String>,
}

/// Ends an import that `carrick connect` made.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct DisconnectRequest {
    /// What is imported.
    pub(crate) service: ServiceName,
    /// Where it listens, as the reply to connect said.
    pub(crate) listen: ListenAddress,
}

/// `carrick trust show`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct TrustList {
    /// The own bundle first, then in order of domains.
    pub(crate) bundles: Vec<TrustRow>,
}

/// The roots one domain's peers are checked against.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct TrustRow {
    /// The domain whose names these roots vouch for.
    pub(crate) domain: Domain,
    /// The trust domain in its SPIFFE IDs.
    pub(crate) trust_domain: String,
    /// Whether it is this daemon's own.
    pub(crate) own: bool,
    /// Where it comes from: `embedded`, `config`, `imported`.
    pub(crate) source: String,
    /// SHA-256 of each root certificate, in hex.
    pub(crate) fingerprints: Vec<String>,
    /// When the roots end.
    pub(crate) not_after: Timestamp,
}

/// What a reload did.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct ReloadReply {
    /// What changed, one line each: `import postgres@onprem.test: added`.
    pub(crate) applied: Vec<String>,
    /// Keys whose change needs a restart.
    pub(crate) restart_needed: Vec<String>,
}

/// Why a request was not done. The HTTP status follows from the code.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub(crate) struct Problem {
    /// For programs.
    pub(crate) code: ProblemCode,
    /// What failed, with the name of the object.
    pub(crate) message: String,
    /// What the operator can do about it.
    pub(crate) hint: Option<String>,
}

/// The kinds of [`Problem`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum ProblemCode {
    /// The request is not one (400). Correct it.
    InvalidRequest,
    /// Policy or trust says no (403). A retry does not help.
    Denied,
    /// There is no such thing (404).
    NotFound,
    /// The path is none of this API (404): an older daemon does not have it.
    UnknownPath,
    /// The path exists, the method does not (405).
    MethodNotAllowed,
    /// It exists already or is in use (409).
    Conflict,
    /// The body is over the limit (413).
    TooLarge,
    /// The new configuration has faults, and the old one stays in force (422).
    InvalidConfig,
    /// The daemon failed (500). Its log says more.
    Internal,
    /// Something it depends on does not answer, or it is draining (503). Try again.
    Unavailable,
    /// It took too long (504). Try again.
    Timeout,
    /// A code of a newer daemon.
    #[serde(other)]
    Unknown,
}

impl ProblemCode {
    /// The HTTP status that carries it.
    pub(crate) fn status(self) -> http::StatusCode {
        use http::StatusCode as S;
        match self {
            Self::InvalidRequest => S::BAD_REQUEST,
            Self::Denied => S::FORBIDDEN,
            Self::NotFound | Self::UnknownPath => S::NOT_FOUND,
            Self::MethodNotAllowed => S::METHOD_NOT_ALLOWED,
            Self::Conflict => S::CONFLICT,
            Self::TooLarge => S::PAYLOAD_TOO_LARGE,
            Self::InvalidConfig => S::UNPROCESSABLE_ENTITY,
            Self::Unavailable => S::SERVICE_UNAVAILABLE,
            Self::Timeout => S::GATEWAY_TIMEOUT,
            Self::Internal | Self::Unknown => S::INTERNAL_SERVER_ERROR,
        }
    }
}

impl Problem {
    /// A problem without a hint.
    pub(crate) fn new(code: ProblemCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), hint: None }
    }

    /// The same with a hint.
    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

impl ExplainReport {
    /// Judges the whole by its worst step; a skipped step alone makes nothing bad.
    pub(crate) fn new(service: ServiceName, steps: Vec<ExplainStep>, took: Duration) -> Self {
        let worst = steps.iter().map(|s| s.verdict).filter(|v| *v != Verdict::Skipped).max();
        Self { service, verdict: worst.unwrap_or(Verdict::Ok), took_micros: micros(took), steps }
    }
}

/// A span as the API counts it: whole microseconds.
pub(crate) fn micros(span: Duration) -> u64 {
    u64::try_from(span.as_micros()).unwrap_or(u64::MAX)
}

/// A point in time: RFC 3339 in UTC, whole seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Timestamp(pub(crate) SystemTime);

impl From<SystemTime> for Timestamp {
    fn from(at: SystemTime) -> Self {
        Self(at)
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The formatter panics outside of the years 1970 to 9999, and a certificate may say anything.
        let last = SystemTime::UNIX_EPOCH + Duration::from_secs(253_402_300_799);
        humantime::format_rfc3339_seconds(self.0.clamp(SystemTime::UNIX_EPOCH, last)).fmt(f)
    }
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = String::deserialize(d)?;
        humantime::parse_rfc3339(&text).map(Self).map_err(serde::de::Error::custom)
    }
}

macro_rules! words {
    ($($ty:ident { $($variant:ident => $word:literal),* $(,)? })*) => {$(
        impl fmt::Display for $ty {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(match self { $(Self::$variant => $word),* })
            }
        }
    )*};
}

words! {
    ImportState { Up => "up", Connecting => "connecting", Down => "down" }
    Direction { Outgoing => "out", Incoming => "in" }
    Origin { Export => "export", Import => "import", Remote => "remote" }
    Verdict { Ok => "ok", Skipped => "skipped", Warning => "warning", Failed => "FAILED" }
    StepKind {
        Name => "name", Gateways => "gateways", Trust => "trust", Find => "find",
        Select => "select", Request => "request", Stitch => "stitch", Keep => "keep",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_survives_json_to_the_second() {
        let at = Timestamp(SystemTime::UNIX_EPOCH + Duration::from_secs(1_795_422_420));
        let json = serde_json::to_string(&at).unwrap();
        assert_eq!(json, "\"2026-11-23T08:27:00Z\"");
        assert_eq!(serde_json::from_str::<Timestamp>(&json).unwrap(), at);
    }

    #[test]
    fn a_time_out_of_range_prints_the_nearest_one() {
        let early = Timestamp(SystemTime::UNIX_EPOCH - Duration::from_secs(5));
        assert_eq!(early.to_string(), "1970-01-01T00:00:00Z");
        let late = Timestamp(SystemTime::UNIX_EPOCH + Duration::from_secs(300_000_000_000));
        assert_eq!(late.to_string(), "9999-12-31T23:59:59Z");
    }

    #[test]
    fn a_problem_of_a_newer_daemon_is_still_one() {
        let json = r#"{"code":"on_fire","message":"m","hint":null,"more":1}"#;
        let problem: Problem = serde_json::from_str(json).unwrap();
        assert_eq!(problem.code, ProblemCode::Unknown);
    }

    #[test]
    fn a_report_is_as_bad_as_its_worst_step() {
        let step = |verdict| ExplainStep {
            step: StepKind::Name,
            verdict,
            took_micros: 1,
            evidence: vec![],
            problem: None,
            hint: None,
        };
        let verdict = |vs: &[Verdict]| {
            let steps = vs.iter().map(|v| step(*v)).collect();
            ExplainReport::new("a@b.test".parse().unwrap(), steps, Duration::ZERO).verdict
        };
        assert_eq!(verdict(&[Verdict::Ok, Verdict::Skipped]), Verdict::Ok);
        assert_eq!(verdict(&[Verdict::Warning, Verdict::Ok]), Verdict::Warning);
        assert_eq!(verdict(&[Verdict::Ok, Verdict::Failed, Verdict::Skipped]), Verdict::Failed);
    }

    #[test]
    fn a_connect_request_is_not_held_unless_it_says_so() {
        let json = r#"{"service":"pg@b.test","listen":"127.0.0.1:1"}"#;
        assert!(!serde_json::from_str::<ConnectRequest>(json).unwrap().hold);
    }
}
