//! One connection to one of a domain's gateways: TCP and TLS raced over its addresses, then HTTP/2.

use std::{
    io,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, SystemTime},
};

use carrick_identity::{Identity, PeerCertificate, TrustStore, client_config_with};
use carrick_model::{Domain, SpiffeId, TrustDomain, cause::in_one_line};
use carrick_runtime::race;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use rustls::pki_types::ServerName;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Endpoint, Uri};

use super::fault::{DialFault, PeerFault};
use crate::{
    control::{
        CONNECTION_WINDOW, KEEPALIVE_INTERVAL, KEEPALIVE_TIMEOUT, MAX_HEADER_LIST, STREAM_WINDOW, tune,
    },
    io::{Cause, Severable},
    tokens::TokenChannel,
};

/// RFC 8305 section 5: the next address is tried when the one before has not answered for so long.
const STAGGER: Duration = Duration::from_millis(250);
/// For TCP and TLS with one address: SYN, retransmitted SYN (1 s, 3 s), three round trips.
const ATTEMPT_DEADLINE: Duration = Duration::from_secs(5);
/// For all addresses of a domain together.
pub(super) const DIAL_DEADLINE: Duration = Duration::from_secs(8);
/// Addresses tried in one dial.
const MAX_ADDRESSES: usize = 16;

/// A connection that stands, and what it was made with.
#[derive(Clone)]
pub struct Link {
    /// gRPC over it, each call with a token of ours. It is one connection: when that is gone, every call fails.
    pub channel: TokenChannel,
    /// The address that answered.
    pub addr: SocketAddr,
    /// Who answered, as its certificate proved.
    pub peer: SpiffeId,
    /// The trust domain that was expected.
    pub trust_domain: TrustDomain,
    /// Ends the connection.
    pub(super) cut: CancellationToken,
    /// What it broke of.
    pub(super) cause: Cause,
}

/// Connects to the first of `addresses` that proves to be of `trust_domain`.
pub(super) async fn dial(
    identity: &Identity,
    trust: &TrustStore,
    domain: &Domain,
    trust_domain: &TrustDomain,
    addresses: Vec<SocketAddr>,
) -> Result<Link, PeerFault> {
    let shown = identity.current();
    let connector = TlsConnector::from(Arc::new(client_config_with(&shown, trust, trust_domain, &[b"h2"])));
    let name = server_name(domain);
    let faults = Arc::new(Mutex::new(Vec::new()));
    let attempt = |addr| {
        let (connector, name, faults) = (connector.clone(), name.clone(), Arc::clone(&faults));
        async move {
            let connected = timeout(ATTEMPT_DEADLINE, connect(connector, name, addr)).await;
            let result = connected.unwrap_or(Err(DialFault::TimedOut(ATTEMPT_DEADLINE)));
            result.inspect_err(|fault| faults.lock().push((addr, fault.clone())))
        }
    };
    let racing = race(addresses.into_iter().take(MAX_ADDRESSES), STAGGER, attempt);
    let (addr, stream) = match timeout(DIAL_DEADLINE, racing).await {
        Ok(Ok(won)) => won,
        Ok(Err(lost)) => return Err(PeerFault::Dial { domain: domain.clone(), attempts: lost.attempts }),
        Err(_) => {
            let attempts = std::mem::take(&mut *faults.lock());
            let domain = domain.clone();
            return Err(match attempts.is_empty() {
                true => PeerFault::TimedOut { domain, call: "connect", after: DIAL_DEADLINE },
                false => PeerFault::Dial { domain, attempts },
            });
        }
    };
    let chain = stream.get_ref().1.peer_certificates().unwrap_or_default();
    let certificate = PeerCertificate::of(chain).map_err(|error| {
        let fault = DialFault::Tls(Arc::new(io::Error::other(error)));
        PeerFault::Dial { domain: domain.clone(), attempts: vec![(addr, fault)] }
    })?;
    let cut = CancellationToken::new();
    let stream = Severable::new(stream, cut.clone());
    let cause = stream.cause();
    let channel = channel_over(domain.as_str(), stream).await.map_err(|error| PeerFault::Broken {
        domain: domain.clone(),
        addr,
        call: "connect",
        detail: in_one_line(&error),
    })?;
    let peer = certificate.id().clone();
    let channel = TokenChannel::new(channel, shown, certificate, SystemTime::now());
    Ok(Link { channel, addr, peer, trust_domain: trust_domain.clone(), cut, cause })
}

async fn connect(
    connector: TlsConnector,
    name: ServerName<'static>,
    addr: SocketAddr,
) -> Result<TlsStream<TcpStream>, DialFault> {
    let tcp = TcpStream::connect(addr).await.map_err(DialFault::tcp)?;
    tune(&tcp);
    connector.connect(name, tcp).await.map_err(|e| DialFault::Tls(Arc::new(e)))
}

/// For SNI only. The peer is checked by its SPIFFE ID; a domain that cannot be a server name is called without its name.
fn server_name(domain: &Domain) -> ServerName<'static> {
    ServerName::try_from(domain.as_str().to_owned())
        .unwrap_or_else(|_| ServerName::IpAddress(std::net::Ipv4Addr::UNSPECIFIED.into()))
}

/// HTTP/2 over `stream`, and over nothing else: tonic would reconnect behind our back, in a loop if the peer refuses our
/// certificate, so its second call for a connection fails. `name` is the authority of the calls.
pub(crate) async fn channel_over<S>(name: &str, stream: S) -> Result<Channel, tonic::transport::Error>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let uri = Uri::try_from(format!("http://{name}")).unwrap_or_else(|_| Uri::from_static("http://peer"));
    let endpoint = Endpoint::from(uri)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT)
        .keep_alive_while_idle(true)
        .http2_max_header_list_size(MAX_HEADER_LIST);
    let once = Arc::new(Mutex::new(Some(stream)));
    let connector = tower::service_fn(move |_: Uri| {
        let stream = once.lock().take();
        async move { stream.map(TokioIo::new).ok_or(io::Error::from(io::ErrorKind::NotConnected)) }
    });
    endpoint.connect_with_connector(connector).await
}
