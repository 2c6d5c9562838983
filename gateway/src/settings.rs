//! What the data path is told at start.

use std::{fmt, net::SocketAddr, time::Duration};

use carrick_identity::SECRET;

/// How a tunnel reacts to loss.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Congestion {
    /// RFC 9438; the default.
    #[default]
    Cubic,
    /// Model based; quinn calls its implementation experimental.
    Bbr,
}

/// What lets a gateway that has restarted tell its peers at once that their tunnels are gone, instead of after their idle timeout:
/// stateless resets (RFC 9000 section 10.3) that the peers know to be from it. The same at every start, and nobody else's.
#[derive(Clone)]
pub struct ResetKey(pub(crate) [u8; SECRET]);

impl ResetKey {
    /// A key from a secret of this installation.
    pub fn new(secret: [u8; SECRET]) -> Self {
        Self(secret)
    }
}

impl Default for ResetKey {
    /// One that is forgotten with the process.
    fn default() -> Self {
        Self(rand::random())
    }
}

impl fmt::Debug for ResetKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ResetKey(..)")
    }
}

/// Settings of a gateway. They hold until the process ends.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The UDP socket of all tunnels, dialled and accepted.
    pub listen: SocketAddr,
    /// What its stateless resets are made with.
    pub reset_key: ResetKey,
    /// QUIC connections per dialled tunnel. One connection is one task, hence at most one core.
    pub lanes: usize,
    /// A tunnel that heard nothing for so long is lost.
    pub idle_timeout: Duration,
    /// How often a silent tunnel is kept alive; well below half the idle timeout.
    pub keep_alive: Duration,
    /// Bound of the receive windows of all tunnels together, in octets.
    pub max_memory: u64,
    /// How tunnels react to loss.
    pub congestion: Congestion,
    /// Longest time to dial one address of a gateway, or a target.
    pub connect: Duration,
    /// Longest time a client waits for its flow to get a verdict.
    pub flow_open: Duration,
    /// A UDP association without a datagram for so long ends.
    pub udp_idle: Duration,
    /// Most flows at once, imports and exports together.
    pub max_flows: usize,
    /// Most tunnels that others may have to us.
    pub max_tunnels: usize,
    /// Most handshakes of others in flight; from a quarter of it on, addresses are validated first (QUIC Retry).
    pub max_half_open: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([0, 0, 0, 0], 7443)),
            reset_key: ResetKey::default(),
            lanes: 1,
            idle_timeout: Duration::from_secs(10),
            keep_alive: Duration::from_secs(3),
            max_memory: 1 << 30,
            congestion: Congestion::default(),
            connect: Duration::from_secs(5),
            flow_open: Duration::from_secs(10),
            udp_idle: Duration::from_secs(120), // RFC 4787 requirement 5: at least two minutes
            max_flows: 100_000,
            max_tunnels: 1_000,
            max_half_open: 1_024,
        }
    }
}
