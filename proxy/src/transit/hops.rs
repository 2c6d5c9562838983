//! Calls to the next hop: one connection to each, shared by all who call.
//!
//! A hop is the gateway of another domain, which [`Peers`] knows how to reach, or a url from a registry: a manager, a forwarder,
//! an endpoint, another domain's proxy. Every call carries a token of ours and has a deadline. A call that breaks on a connection
//! which worked before is made once more on a new one: everything that is asked here is idempotent.

use std::{
    collections::HashMap,
    net::SocketAddr,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, Instant, SystemTime},
};

use carrick_identity::{
    Bundle, Identity, PeerCertificate, TrustStore, client_config_any_with, client_config_with,
    token::policy::Denial,
};
use carrick_model::{Domain, HostPort, TrustDomain, cause::in_one_line};
use carrick_proto::{
    connection::{
        Connection, ConnectionEvent, MonitorScopeSelector, monitor_connection_client::MonitorConnectionClient,
    },
    networkservice::{NetworkServiceRequest, network_service_client::NetworkServiceClient},
};
use carrick_proxy_core::transit::{Hop, HopFault, HopFaultKind};
use carrick_runtime::Tasks;
use futures::{
    FutureExt,
    future::{BoxFuture, Shared},
};
use parking_lot::Mutex;
use rustls::pki_types::ServerName;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, UnixStream, lookup_host},
    time::timeout,
};
use tokio_rustls::TlsConnector;
use tonic::{Code, Request, Status, Streaming};

use crate::{
    control::{MAX_MESSAGE, tune},
    peers::{Peers, channel_over},
    tokens::TokenChannel,
};

/// TCP and TLS with one address: SYN, a retransmitted SYN, three round trips.
const DIAL_DEADLINE: Duration = Duration::from_secs(5);
/// Addresses of one name that are tried, one after the other.
const MAX_ADDRESSES: usize = 8;
/// Connections that are kept: those to the endpoints and managers of a large domain. Over it, an old one goes.
const MAX_LINKS: usize = 4096;
/// What is left to a hop's answer on its way back.
const MARGIN: Duration = Duration::from_millis(50);

/// The connections to next hops. Clones share them.
#[derive(Clone)]
pub(crate) struct Hops {
    inner: Arc<Inner>,
}

struct Inner {
    identity: Identity,
    trust: TrustStore,
    peers: Peers,
    tasks: Tasks,
    pool: Mutex<Pool>,
}

#[derive(Default)]
struct Pool {
    next: u64,
    slots: HashMap<Key, Slot>,
}

type Key = (String, Option<TrustDomain>);
type Dialled = Shared<BoxFuture<'static, Result<Link, Unreached>>>;

#[derive(Clone)]
struct Slot {
    number: u64,
    dialled: Dialled,
}

/// A connection to a hop.
#[derive(Clone)]
pub(crate) struct Link {
    pub(crate) channel: TokenChannel,
    /// What the peer's trust domain was checked against.
    bundle: Option<Arc<Bundle>>,
    proven: Arc<AtomicBool>,
}

/// Why there is no connection to a hop: nothing was sent.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum Unreached {
    #[error("`{0}` is no url that can be called: `tcp://host:port` and `unix:///path` are")]
    Url(String),
    #[error("cannot connect to {url}: {detail}")]
    Dial { url: String, detail: String },
    #[error("cannot connect to {url} within {} s", DIAL_DEADLINE.as_secs())]
    Late { url: String },
    #[error("{0}")]
    Domain(String),
}

/// A url, read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Address {
    Tcp(String),
    Unix(PathBuf),
}

impl Address {
    /// Reads `tcp://host:port`, `host:port`, `unix:///path` and `unix:/path`.
    pub(crate) fn read(url: &str) -> Option<Self> {
        if let Some(path) = url.strip_prefix("unix:") {
            let path = path.strip_prefix("//").unwrap_or(path);
            return path.starts_with('/').then(|| Self::Unix(PathBuf::from(path)));
        }
        let rest = match url.split_once("://") {
            Some(("tcp", rest)) => rest,
            Some(_) => return None,
            None => url,
        };
        let rest = rest.trim_end_matches('/');
        rest.parse::<HostPort>().ok().map(|at| Self::Tcp(at.to_string()))
    }
}

impl Hops {
    /// No connections yet.
    pub(crate) fn new(identity: Identity, trust: TrustStore, peers: Peers, tasks: &Tasks) -> Self {
        let inner = Inner { identity, trust, peers, tasks: tasks.clone(), pool: Mutex::default() };
        Self { inner: Arc::new(inner) }
    }

    /// Makes or refreshes a connection at `hop`.
    pub(crate) async fn request(
        &self,
        hop: &Hop,
        request: NetworkServiceRequest,
        deadline: Instant,
    ) -> Result<Connection, HopFault> {
        let call = |channel: TokenChannel| {
            let request = request.clone();
            async move {
                let signed = channel.sign(request, |r| r.connection.as_mut()?.path.as_mut());
                let signed = within(signed.map_err(|e| Status::internal(e.to_string()))?, deadline);
                let answer = connect(channel.clone()).request(signed).await?.into_inner();
                Ok(channel.check(&answer).map(|()| answer))
            }
        };
        // It granted what we do not take: it has to be told.
        let denied =
            |denial: Denial| fault(HopFaultKind::Unknown, Code::PermissionDenied, denial.to_string());
        self.call(hop, deadline, call).await?.map_err(denied)
    }

    /// Closes a connection at `hop`.
    pub(crate) async fn close(
        &self,
        hop: &Hop,
        connection: Connection,
        deadline: Instant,
    ) -> Result<(), HopFault> {
        let call = |channel: TokenChannel| {
            let connection = connection.clone();
            async move {
                let signed = channel.sign(connection, |c| c.path.as_mut());
                let signed = within(signed.map_err(|e| Status::internal(e.to_string()))?, deadline);
                connect(channel).close(signed).await.map(tonic::Response::into_inner)
            }
        };
        self.call(hop, deadline, call).await
    }

    /// Opens a monitor at `hop`. Its stream has no deadline.
    pub(crate) async fn monitor(
        &self,
        hop: &Hop,
        selector: MonitorScopeSelector,
    ) -> Result<Streaming<ConnectionEvent>, MonitorFault> {
        let (number, link) = self.link(hop).await.map_err(|e| MonitorFault::Lost(e.to_string()))?;
        let mut client =
            MonitorConnectionClient::new(link.channel.clone()).max_decoding_message_size(MAX_MESSAGE);
        let opened = timeout(DIAL_DEADLINE, client.monitor_connections(Request::new(selector))).await;
        match opened {
            Ok(Ok(stream)) => Ok(stream.into_inner()),
            // It is there, and does not let us watch: that says nothing of its connections.
            Ok(Err(status)) if !is_local(&status) && status.code() != Code::Unavailable => {
                Err(MonitorFault::None)
            }
            Ok(Err(status)) => {
                if is_local(&status) {
                    self.forget(hop, number);
                }
                Err(MonitorFault::Lost(status.message().to_owned()))
            }
            Err(_) => {
                self.forget(hop, number);
                Err(MonitorFault::Lost("no answer".to_owned()))
            }
        }
    }

    /// Makes a call at `hop`, once more if the connection turns out to be broken.
    pub(crate) async fn call<T, F, Fut>(&self, hop: &Hop, deadline: Instant, rpc: F) -> Result<T, HopFault>
    where
        F: Fn(TokenChannel) -> Fut,
        Fut: Future<Output = Result<T, Status>>,
    {
        let mut again = true;
        loop {
            let dialled = tokio::time::timeout_at(deadline.into(), self.link(hop)).await;
            let (number, link) = match dialled {
                Ok(Ok(link)) => link,
                Ok(Err(unreached)) => {
                    return Err(fault(HopFaultKind::NotSent, Code::Unavailable, unreached.to_string()));
                }
                Err(_) => return Err(fault(HopFaultKind::NotSent, Code::DeadlineExceeded, late(hop))),
            };
            let status = match tokio::time::timeout_at(deadline.into(), rpc(link.channel.clone())).await {
                Ok(Ok(value)) => {
                    link.proven.store(true, Relaxed);
                    return Ok(value);
                }
                Ok(Err(status)) => status,
                Err(_) => {
                    // The path may be dead without a word; the next call finds out on a new connection.
                    self.forget(hop, number);
                    return Err(fault(HopFaultKind::Unknown, Code::DeadlineExceeded, late(hop)));
                }
            };
            if matches!(status.code(), Code::DeadlineExceeded | Code::Cancelled) {
                if is_local(&status) {
                    self.forget(hop, number);
                }
                return Err(fault(HopFaultKind::Unknown, status.code(), status.message()));
            }
            if !is_local(&status) {
                return Err(fault(HopFaultKind::Refused, status.code(), status.message()));
            }
            self.forget(hop, number);
            if !(std::mem::take(&mut again) && link.proven.load(Relaxed)) {
                let detail = format!("the connection to {hop} broke: {}", in_one_line(&status));
                return Err(fault(HopFaultKind::Unknown, Code::Unavailable, detail));
            }
        }
    }

    /// The connection to a hop, dialled if need be.
    pub(crate) async fn link(&self, hop: &Hop) -> Result<(u64, Link), Unreached> {
        let (url, trust_domain) = match hop {
            Hop::Domain(domain) => return self.domain_link(domain).await.map(|link| (0, link)),
            Hop::Url { url, trust_domain } => (url, trust_domain),
        };
        let key: Key = (url.clone(), trust_domain.clone());
        let slot = {
            let mut pool = self.inner.pool.lock();
            match pool.slots.get(&key) {
                Some(slot) => slot.clone(),
                None => self.begin_dial(&mut pool, key.clone()),
            }
        };
        match slot.dialled.await {
            Ok(link) if self.is_current(&link) => Ok((slot.number, link)),
            Ok(_) => {
                self.drop_slot(&key, slot.number);
                Box::pin(self.link(hop)).await
            }
            Err(unreached) => {
                self.drop_slot(&key, slot.number);
                Err(unreached)
            }
        }
    }

    async fn domain_link(&self, domain: &Domain) -> Result<Link, Unreached> {
        let link = self.inner.peers.connect_link(domain).await;
        let link = link.map_err(|e| Unreached::Domain(in_one_line(&e)))?;
        // The pool of peers drops what breaks; whether the peer has restarted since is for the second attempt to find out.
        Ok(Link { channel: link.channel, bundle: None, proven: Arc::new(AtomicBool::new(true)) })
    }

    fn begin_dial(&self, pool: &mut Pool, key: Key) -> Slot {
        if pool.slots.len() >= MAX_LINKS
            && let Some(oldest) = pool.slots.iter().min_by_key(|(_, s)| s.number).map(|(k, _)| k.clone())
        {
            pool.slots.remove(&oldest);
        }
        pool.next += 1;
        let number = pool.next;
        let (hops, (url, trust_domain)) = (self.clone(), key.clone());
        let ended = Unreached::Late { url: url.clone() };
        let task = self.inner.tasks.spawn("dial a hop", async move {
            match timeout(DIAL_DEADLINE, hops.dial(&url, trust_domain.as_ref())).await {
                Ok(result) => result,
                Err(_) => Err(Unreached::Late { url }),
            }
        });
        let dialled = task.map(|joined| joined.unwrap_or(Err(ended))).boxed().shared();
        let slot = Slot { number, dialled };
        pool.slots.insert(key, slot.clone());
        slot
    }

    async fn dial(&self, url: &str, trust_domain: Option<&TrustDomain>) -> Result<Link, Unreached> {
        let fault = |detail: String| Unreached::Dial { url: url.to_owned(), detail };
        match Address::read(url).ok_or_else(|| Unreached::Url(url.to_owned()))? {
            Address::Unix(path) => {
                let stream = UnixStream::connect(&path).await.map_err(|e| fault(e.to_string()))?;
                self.secure(url, stream, trust_domain, None).await
            }
            Address::Tcp(at) => {
                let addresses = lookup_host(&at).await.map_err(|e| fault(e.to_string()))?;
                let mut faults = Vec::new();
                for address in addresses.take(MAX_ADDRESSES) {
                    match TcpStream::connect(address).await {
                        Ok(stream) => {
                            tune(&stream);
                            return self.secure(url, stream, trust_domain, Some(address)).await;
                        }
                        Err(error) => faults.push(format!("{address}: {error}")),
                    }
                }
                Err(fault(if faults.is_empty() { "it has no address".to_owned() } else { faults.join("; ") }))
            }
        }
    }

    /// TLS over `stream`, then HTTP/2.
    async fn secure<S>(
        &self,
        url: &str,
        stream: S,
        trust_domain: Option<&TrustDomain>,
        address: Option<SocketAddr>,
    ) -> Result<Link, Unreached>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let fault = |detail: String| Unreached::Dial { url: url.to_owned(), detail };
        let inner = &*self.inner;
        let shown = inner.identity.current();
        let config = match trust_domain {
            Some(expected) => client_config_with(&shown, &inner.trust, expected, &[b"h2"]),
            None => client_config_any_with(&shown, &inner.trust, &[b"h2"]),
        };
        // Peers are known by their SPIFFE IDs; a name is sent only because TLS wants one.
        let name = match address {
            Some(address) => ServerName::IpAddress(address.ip().into()),
            None => ServerName::IpAddress(std::net::Ipv4Addr::LOCALHOST.into()),
        };
        let connector = TlsConnector::from(Arc::new(config));
        let stream = connector.connect(name, stream).await.map_err(|e| {
            let peer = carrick_identity::PeerError::find_in(&e);
            fault(peer.map_or_else(|| format!("TLS handshake failed: {e}"), ToString::to_string))
        })?;
        let chain = stream.get_ref().1.peer_certificates().unwrap_or_default();
        let certificate = PeerCertificate::of(chain).map_err(|e| fault(e.to_string()))?;
        let bundle = inner.trust.get(certificate.id().trust_domain());
        let channel = channel_over("hop", stream).await.map_err(|e| fault(in_one_line(&e)))?;
        tracing::debug!(url, peer = %certificate.id(), "connection to a hop up");
        let channel = TokenChannel::new(channel, shown, certificate, SystemTime::now());
        Ok(Link { channel, bundle, proven: Arc::default() })
    }

    /// Made under the trust and with the identity that hold now.
    fn is_current(&self, link: &Link) -> bool {
        let now = self.inner.trust.get(link.channel.peer().id().trust_domain());
        let same = match (&link.bundle, &now) {
            (Some(a), Some(b)) => Arc::ptr_eq(a, b),
            _ => false,
        };
        same && link.channel.is_fresh(&self.inner.identity, SystemTime::now())
    }

    /// A call broke on this connection: whoever calls next makes a new one.
    pub(crate) fn forget(&self, hop: &Hop, number: u64) {
        match hop {
            Hop::Domain(domain) => self.inner.peers.forget(domain),
            Hop::Url { url, trust_domain } => self.drop_slot(&(url.clone(), trust_domain.clone()), number),
        }
    }

    fn drop_slot(&self, key: &Key, number: u64) {
        let mut pool = self.inner.pool.lock();
        if pool.slots.get(key).is_some_and(|s| s.number == number) {
            pool.slots.remove(key);
        }
    }
}

/// Why there is no monitor.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum MonitorFault {
    /// The hop has none, or none for us.
    #[error("the hop offers no monitor")]
    None,
    /// It cannot be reached, or does not answer.
    #[error("{0}")]
    Lost(String),
}

/// Whether the transport made the status up, as opposed to the peer.
fn is_local(status: &Status) -> bool {
    std::error::Error::source(status).is_some()
}

fn fault(kind: HopFaultKind, code: Code, message: impl Into<String>) -> HopFault {
    HopFault { kind, code: code.into(), message: message.into() }
}

fn late(hop: &Hop) -> String {
    format!("{hop} did not answer in time")
}

/// The hop is told how long we wait, so that it does not work for nobody.
fn within<T>(mut request: Request<T>, deadline: Instant) -> Request<T> {
    request.set_timeout(deadline.saturating_duration_since(Instant::now()).saturating_sub(MARGIN));
    request
}

fn connect(channel: TokenChannel) -> NetworkServiceClient<TokenChannel> {
    NetworkServiceClient::new(channel).max_decoding_message_size(MAX_MESSAGE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_read_as_nsm_writes_them() {
        let tcp = |s: &str| Some(Address::Tcp(s.to_owned()));
        assert_eq!(Address::read("tcp://10.0.0.1:5001"), tcp("10.0.0.1:5001"));
        assert_eq!(Address::read("registry:5002"), tcp("registry:5002"));
        assert_eq!(Address::read("tcp://[2001:db8::1]:5001"), tcp("[2001:db8::1]:5001"));
        let unix = Some(Address::Unix("/var/lib/x.sock".into()));
        assert_eq!(Address::read("unix:///var/lib/x.sock"), unix);
        assert_eq!(Address::read("unix:/var/lib/x.sock"), unix);
        for bad in ["", "tcp://", "tcp://:5001", "http://a:1", "inode://4/5", "unix://relative"] {
            assert_eq!(Address::read(bad), None, "{bad}");
        }
    }
}
