//! The one QUIC endpoint: configuration, and the loop that accepts tunnels.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use aws_lc_rs::hmac;
use carrick_gateway_core::{ALPN, CloseCode, window};
use carrick_identity::{Identity, PeerError, TrustStore, client_config, peer_id, server_config};
use carrick_model::{SpiffeId, TrustDomain};
use carrick_runtime::Tasks;
use quinn::{
    ClientConfig, Endpoint, EndpointConfig, IdleTimeout, Incoming, ServerConfig, TransportConfig, VarInt,
    congestion::{BbrConfig, CubicConfig},
    crypto::rustls::{QuicClientConfig, QuicServerConfig},
};
use quinn_proto::HashedConnectionIdGenerator;
use rustls_pki_types::CertificateDer;

use crate::{
    gateway::Shared,
    lane::{Lane, Role, count_refused},
    settings::{Congestion, ResetKey, Settings},
    socket::{self, TunnelRuntime, TunnelSocket},
    threads::Threads,
};

/// Flows that a connection may have before its peer is known. quinn keeps an entry for each one allowed, so that many for
/// every half-open handshake would be a gift; a lane allows more as it fills.
const FIRST_STREAMS: u32 = 64;
/// Datagrams that wait to be read, in octets: a burst of a few milliseconds.
const DATAGRAM_BUFFER: usize = 4 << 20;
/// A handshake that takes longer is given up.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// ACKs may be asked for less often than every second packet (draft-ietf-quic-ack-frequency): fewer wake-ups per octet.
const ACK_EVERY: u32 = 10;

/// Binds the socket and makes the endpoint on it, on the first of the threads. Nothing is accepted before [`accept`] runs.
///
/// # Errors
/// The address cannot be bound, or the system lacks a socket option.
pub(crate) fn bind(
    settings: &Settings,
    identity: &Identity,
    trust: &TrustStore,
    threads: &Threads,
) -> io::Result<Endpoint> {
    let _socket_and_driver_live_there = threads.first().enter();
    let socket = Arc::new(TunnelSocket::new(socket::bind(settings.listen)?)?);
    let tls = server_config(identity, trust, &[ALPN]);
    let crypto = QuicServerConfig::try_from(tls).map_err(io::Error::other)?;
    let mut server = ServerConfig::with_crypto(Arc::new(crypto));
    server.transport_config(Arc::new(transport(settings)));
    server.max_incoming(settings.max_half_open);
    // quinn's drivers end with their connections and the endpoint; nobody has to tell them, or to wait.
    let runtime = Arc::new(TunnelRuntime::new(Tasks::new(), socket.clone()));
    Endpoint::new_with_abstract_socket(endpoint_config(&settings.reset_key), Some(server), socket, runtime)
}

/// Connection IDs and the tokens of stateless resets come from the same key at every start: a packet for a tunnel of before the
/// start is known for one, and answered with the reset that its sender was promised.
fn endpoint_config(key: &ResetKey) -> EndpointConfig {
    let derive = |label: &[u8]| hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &key.0), label);
    let reset = hmac::Key::new(hmac::HMAC_SHA256, derive(b"carrick stateless reset").as_ref());
    let ids = derive(b"carrick connection ids");
    let ids = ids.as_ref().iter().take(8).fold(0, |sum, &octet| sum << 8 | u64::from(octet));
    let mut config = EndpointConfig::new(Arc::new(reset));
    config.cid_generator(move || Box::new(HashedConnectionIdGenerator::from_key(ids)));
    config
}

/// How we dial gateways of `expected`.
///
/// # Errors
/// The TLS configuration lacks what QUIC needs; that is a fault of this program.
pub(crate) fn dial_config(shared: &Shared, expected: &TrustDomain) -> io::Result<ClientConfig> {
    let tls = client_config(&shared.identity, &shared.trust, expected, &[ALPN]);
    let crypto = QuicClientConfig::try_from(tls).map_err(io::Error::other)?;
    let mut config = ClientConfig::new(Arc::new(crypto));
    config.transport_config(Arc::new(transport(&shared.settings)));
    Ok(config)
}

fn transport(settings: &Settings) -> TransportConfig {
    let mut transport = TransportConfig::default();
    let octets = |n: u64| VarInt::from_u64(n).unwrap_or(VarInt::MAX);
    transport
        .max_concurrent_bidi_streams(VarInt::from_u32(FIRST_STREAMS))
        .max_concurrent_uni_streams(VarInt::from_u32(1))
        .stream_receive_window(octets(window::STREAM))
        .receive_window(octets(window::TUNNEL))
        // Until the lane knows what its path needs.
        .send_window(window::STREAM)
        .datagram_receive_buffer_size(Some(DATAGRAM_BUFFER))
        .datagram_send_buffer_size(DATAGRAM_BUFFER)
        .keep_alive_interval(Some(settings.keep_alive))
        .max_idle_timeout(IdleTimeout::try_from(settings.idle_timeout).ok());
    let mut acks = quinn::AckFrequencyConfig::default();
    acks.ack_eliciting_threshold(VarInt::from_u32(ACK_EVERY));
    transport.ack_frequency_config(Some(acks));
    match settings.congestion {
        Congestion::Cubic => transport.congestion_controller_factory(Arc::new(CubicConfig::default())),
        Congestion::Bbr => transport.congestion_controller_factory(Arc::new(BbrConfig::default())),
    };
    transport
}

/// Who is at the other end of a finished handshake.
///
/// # Errors
/// The certificate names nobody; the verifier would have refused it before.
pub(crate) fn peer_of(connection: &quinn::Connection) -> Result<SpiffeId, PeerError> {
    let chain =
        connection.peer_identity().and_then(|any| any.downcast::<Vec<CertificateDer<'static>>>().ok());
    peer_id(chain.as_deref().map_or(&[], Vec::as_slice))
}

/// Accepts tunnels until the endpoint is closed.
pub(crate) async fn accept(shared: Arc<Shared>) {
    let half_open = Arc::new(AtomicUsize::new(0));
    while let Some(incoming) = shared.endpoint.accept().await {
        admit(&shared, incoming, &half_open);
    }
}

/// Decides without waiting what becomes of a first packet.
fn admit(shared: &Arc<Shared>, incoming: Incoming, half_open: &Arc<AtomicUsize>) {
    let waiting = half_open.load(Ordering::Relaxed);
    let refusal = if shared.draining.is_cancelled() {
        Some("draining")
    } else if waiting >= shared.settings.max_half_open {
        Some("half_open")
    } else if shared.accepted_lanes() >= shared.settings.max_tunnels {
        Some("too_many")
    } else {
        None
    };
    if let Some(reason) = refusal {
        count_refused(&shared.metrics, reason);
        // Under a flood no answer is cheapest, and gives a forger nothing to reflect.
        if reason == "half_open" {
            incoming.ignore();
        } else {
            incoming.refuse();
        }
        return;
    }
    // Under load an address has to show that it is real before a handshake costs us anything (RFC 9000 section 8.1).
    if waiting >= shared.settings.max_half_open / 4
        && incoming.may_retry()
        && !incoming.remote_address_validated()
    {
        count_refused(&shared.metrics, "retry");
        let _sent = incoming.retry();
        return;
    }
    half_open.fetch_add(1, Ordering::Relaxed);
    let (shared, half_open) = (shared.clone(), half_open.clone());
    let tasks = shared.tasks.clone();
    // The connection's driver, and later its flows, run where its handshake is taken up.
    let thread = shared.threads.next().clone();
    let _detached = tasks.spawn_on(&thread, "tunnel-handshake", async move {
        shake_hands(&shared, incoming).await;
        half_open.fetch_sub(1, Ordering::Relaxed);
    });
}

async fn shake_hands(shared: &Arc<Shared>, incoming: Incoming) {
    let address: SocketAddr = incoming.remote_address();
    let connection = match tokio::time::timeout(HANDSHAKE, incoming).await {
        Ok(Ok(connection)) => connection,
        Ok(Err(error)) => {
            count_refused(&shared.metrics, "handshake");
            if shared.refusal_log.allow(address.ip()) {
                tracing::warn!(%address, %error, hint = PeerError::find_in(&error).map(PeerError::hint),
                    "a gateway's handshake failed");
            }
            return;
        }
        Err(_late) => return count_refused(&shared.metrics, "timeout"),
    };
    match peer_of(&connection) {
        Ok(peer) => {
            tracing::info!(%peer, %address, "a gateway dialled a tunnel to us");
            let _lane = Lane::start(shared, connection, peer, Role::Accepted);
        }
        Err(error) => {
            count_refused(&shared.metrics, "identity");
            tracing::warn!(%address, %error, hint = error.hint(), "a gateway has no usable identity");
            connection.close(VarInt::from_u32(CloseCode::Untrusted.code() as u32), error.reason().as_bytes());
        }
    }
}

/// Lets one line per address and [`RefusalLog::PERIOD`] through, so that a flood does not fill the log.
#[derive(Debug, Default)]
pub(crate) struct RefusalLog {
    last: parking_lot::Mutex<std::collections::HashMap<IpAddr, std::time::Instant>>,
}

impl RefusalLog {
    const PERIOD: Duration = Duration::from_secs(10);
    /// Addresses remembered; beyond them everything is forgotten at once, which costs a few extra lines.
    const MOST: usize = 1024;

    pub(crate) fn allow(&self, address: IpAddr) -> bool {
        let now = std::time::Instant::now();
        let mut last = self.last.lock();
        if last.get(&address).is_some_and(|then| now.duration_since(*then) < Self::PERIOD) {
            return false;
        }
        if last.len() >= Self::MOST {
            last.clear();
        }
        last.insert(address, now);
        true
    }
}
