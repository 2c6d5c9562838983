//! The value of every key that was left out, and why it has it.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    time::Duration,
};

use ipnet::Ipv4Net;

/// Where state is kept: what systemd's `StateDirectory=carrick` creates.
pub const STATE_DIR: &str = "/var/lib/carrick";

/// The control listener (gRPC over mTLS, TCP). All addresses, because peers come from outside; every caller has to show
/// an SVID. 7443 needs no privilege and is registered to no service.
pub const LISTEN_CONTROL: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 7443);
/// The tunnel listener (QUIC, UDP). The same number as the control listener, so that a firewall rule names one port.
pub const LISTEN_TUNNEL: SocketAddr = LISTEN_CONTROL;
/// Metrics, readiness and the console. Loopback only, because nothing on it asks who is calling.
pub const LISTEN_ADMIN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9901);

/// Lifetime of an own SVID. One hour is SPIRE's default: short enough that a stolen key is soon worthless, long enough
/// to outlive an hour's failure of whoever renews it (renewal starts at half of it).
pub const SVID_LIFETIME: Duration = Duration::from_secs(60 * 60);

/// The port of a DNS server that was given without one (RFC 1035 section 4.2).
pub const DNS_PORT: u16 = 53;
/// The last label of the names of imported services. Not delegated in the public DNS, so nothing real is hidden.
pub const DNS_SUFFIX: &str = "mesh";
/// Pool of virtual IPs. Inside 127.0.0.0/8 every address can be bound without privilege and never leaves the host; a /16
/// is room for 65,000 imports and stays clear of 127.0.0.1 and of the 127.0.0.53 of systemd-resolved.
pub const DNS_VIRTUAL_IPS: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(127, 80, 0, 0), 16);
/// Wait for one answer of a DNS server. A resolver on another continent answers in under a second; the rest is one
/// recursion of its own.
pub const DNS_TIMEOUT: Duration = Duration::from_secs(2);
/// Questions put to each DNS server before giving up: one lost datagram is forgiven.
pub const DNS_ATTEMPTS: u8 = 2;
/// How long a last good answer is served while the DNS is down: one day, the low end of RFC 8767 section 5.
pub const DNS_MAX_STALE: Duration = Duration::from_secs(24 * 60 * 60);
/// TTL of the answers the embedded DNS server gives: a moved gateway or a changed import is seen within half a minute.
pub const DNS_TTL: Duration = Duration::from_secs(30);

/// A tunnel without a packet is dead after this time: flows survive an interruption of 15 s, and clients wait no longer
/// for a dead gateway. Three keep-alives long.
pub const TUNNEL_IDLE_TIMEOUT: Duration = Duration::from_secs(15);
/// Time between keep-alives. Many NATs forget a UDP binding after 30 s, against the two minutes that RFC 4787 REQ-5 asks
/// for; two in a row may be lost.
pub const TUNNEL_KEEP_ALIVE: Duration = Duration::from_secs(5);
/// Receive windows of all tunnels together, in bytes: 80 flows at 100 ms x 1 Gbit/s (12.5 MB each) at full stretch.
pub const TUNNEL_MAX_MEMORY: u64 = 1 << 30;

/// Reaching a peer: TCP or QUIC handshake with TLS, over all its addresses. Two lost SYNs (RFC 6298: 1 s + 2 s) fit in.
pub const TIMEOUT_CONNECT: Duration = Duration::from_secs(5);
/// One control-plane call (`Find`, `Request`, `Close`), the peer's own connect to its export included.
pub const TIMEOUT_REQUEST: Duration = Duration::from_secs(10);
/// From a client's first byte to the peer's verdict on its flow: the peer's connect to its export and one round trip.
pub const TIMEOUT_FLOW_OPEN: Duration = Duration::from_secs(10);
/// A UDP association without a packet ends after this time: the least that RFC 4787 REQ-5 asks of a NAT.
pub const TIMEOUT_UDP_IDLE: Duration = Duration::from_secs(120);

/// What the keys of an etcd start with.
pub const ETCD_PREFIX: &str = "/carrick/";

/// Longest life of a token: that of NSM's own parts. A lease is no longer than its token.
pub const NSM_MAX_TOKEN_LIFETIME: Duration = Duration::from_secs(10 * 60);
/// Mode of the Unix sockets for NSM's parts. They run as other users, and every caller has to show an SVID.
pub const NSM_SOCKET_MODE: u32 = 0o666;

/// What is logged: a line per flow and per change of state, nothing per packet.
pub const LOG_LEVEL: &str = "info";

/// Time for live flows to end after a stop was asked for. Below the 30 s after which Kubernetes kills a pod.
pub const DRAIN_TIMEOUT: Duration = Duration::from_secs(25);

/// Flows at a time: the figure a gateway is built and measured for.
pub const MAX_FLOWS: u32 = 100_000;
/// Tunnels at a time: the figure a gateway is built and measured for.
pub const MAX_TUNNELS: u32 = 1_000;
/// Handshakes at a time of callers that have not shown who they are: what one core finishes in half a second. More are
/// answered with a QUIC Retry, or wait in the TCP backlog.
pub const MAX_HALF_OPEN: u32 = 1_000;
