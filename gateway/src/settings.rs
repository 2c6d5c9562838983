//! What the data path is told at start.

use std::{net::SocketAddr, time::Duration};

/// How a tunnel reacts to loss.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Congestion {
    /// RFC 9438; the default.
    #[default]
    Cubic,
    /// Model based; quinn calls its implementation experimental.
    Bbr,
}

/// Settings of a gateway. They hold until the process ends.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The UDP socket of all tunnels, dialled and accepted.
    pub listen: SocketAddr,
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
