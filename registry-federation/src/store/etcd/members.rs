//! The members of an etcd cluster: one is called until it fails, then another.
//!
//! All calls go to the *current* member. One that cannot be connected to, does not answer in time or says that it cannot
//! serve is blamed, and the member that has not failed for the longest time is current from then on, for calls and for the
//! watch alike. Each call asks for a member that knows a leader, so that one in a minority is left within seconds.
//!
//! Replicas begin with members by chance, which spreads them.

use std::{
    fmt, io,
    sync::Arc,
    time::{Duration, Instant},
};

use carrick_model::cause::in_one_line;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use rand::Rng as _;
use rustls::pki_types::ServerName;
use tokio::{net::TcpStream, sync::watch, time::timeout};
use tokio_rustls::TlsConnector;
use tonic::{
    Request, Status,
    metadata::MetadataValue,
    transport::{Channel, Endpoint, Uri},
};

use super::{
    cause::{Cause, Remembering},
    fault::EtcdFault,
    settings::{Address, EtcdSettings, EtcdSettingsFault},
    tls::TlsFiles,
};

/// For name, TCP and TLS: a SYN that is lost is sent again after 1 s.
const DIAL_DEADLINE: Duration = Duration::from_secs(2);
/// Largest answer that is taken. etcd keeps values to 1.5 MiB, and a page of records is read in smaller pieces if it is
/// larger than this.
pub(super) const MAX_ANSWER: usize = 8 * 1024 * 1024;
/// HTTP/2 windows, so that a full state is not read in steps of 64 KiB.
const WINDOW: u32 = 4 * 1024 * 1024;
/// etcd closes connections that ping more often than every 5 s (`--grpc-keepalive-min-time`). This is for middleboxes: calls
/// have deadlines and a watch asks for signs of life itself.
const PING_INTERVAL: Duration = Duration::from_secs(30);

/// The members, and which of them is called.
#[derive(Clone)]
pub(super) struct Members {
    shared: Arc<Shared>,
}

struct Shared {
    members: Vec<Member>,
    current: watch::Sender<usize>,
    /// Since when no call has been answered.
    away: Mutex<Option<Instant>>,
    tls: Option<TlsFiles>,
}

struct Member {
    address: Address,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    link: Option<Link>,
    dials: u64,
    answered: bool,
    fault: Option<(Instant, EtcdFault)>,
}

/// A connection to a member.
#[derive(Clone)]
pub(super) struct Link {
    pub(super) channel: Channel,
    /// Which of the members.
    pub(super) member: usize,
    /// Which of the connections to it.
    dial: u64,
    /// What it broke of.
    cause: Cause,
}

/// What is known of a member.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemberHealth {
    /// Its endpoint.
    pub endpoint: String,
    /// Whether it is the one that is called.
    pub current: bool,
    /// Whether its last call was answered; `None` when it was not called yet.
    pub up: Option<bool>,
    /// Why not.
    pub fault: Option<String>,
}

impl Members {
    /// The members of the settings; nothing is dialled yet.
    pub(super) fn new(settings: &EtcdSettings) -> Result<Self, EtcdSettingsFault> {
        let member = |address| Member { address, state: Mutex::default() };
        let members: Vec<_> = Address::all(settings)?.into_iter().map(member).collect();
        let first = rand::rng().random_range(0..members.len());
        let tls = settings.tls.clone();
        let current = watch::Sender::new(first);
        Ok(Self { shared: Arc::new(Shared { members, current, away: Mutex::default(), tls }) })
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.shared.members.len()
    }

    /// The endpoint of a member.
    pub(super) fn endpoint(&self, member: usize) -> String {
        self.shared.members[member].address.to_string()
    }

    /// Tells when another member becomes the current one.
    pub(super) fn current(&self) -> watch::Receiver<usize> {
        self.shared.current.subscribe()
    }

    /// For how long no call has been answered.
    pub(super) fn away_for(&self, now: Instant) -> Option<Duration> {
        self.shared.away.lock().map(|since| now.saturating_duration_since(since))
    }

    /// What is known of each.
    pub(super) fn health(&self) -> Vec<MemberHealth> {
        let current = *self.shared.current.borrow();
        let health = |(at, member): (usize, &Member)| {
            let state = member.state.lock();
            let up = (state.answered || state.fault.is_some()).then_some(state.fault.is_none());
            let fault = state.fault.as_ref().map(|(_, fault)| format!("{fault}. Hint: {}", fault.hint()));
            MemberHealth { endpoint: member.address.to_string(), current: at == current, up, fault }
        };
        self.shared.members.iter().enumerate().map(health).collect()
    }

    /// Calls the current member. A fault of the member makes another one current.
    pub(super) async fn call<T, F>(
        &self,
        call: &'static str,
        limit: Duration,
        act: impl FnOnce(Channel) -> F,
    ) -> Result<T, EtcdFault>
    where
        F: Future<Output = Result<T, Status>>,
    {
        let link = self.link().await?;
        self.call_over(&link, call, limit, act(link.channel.clone())).await
    }

    /// The same over a connection that is there.
    pub(super) async fn call_over<T>(
        &self,
        link: &Link,
        call: &'static str,
        limit: Duration,
        answer: impl Future<Output = Result<T, Status>>,
    ) -> Result<T, EtcdFault> {
        let member = || self.endpoint(link.member);
        let result = match timeout(limit, answer).await {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(status)) => Err(self.fault(link, call, &status)),
            Err(_) => Err(EtcdFault::TimedOut { member: member(), call, after: limit }),
        };
        match &result {
            Err(fault) if fault.is_of_the_member() => self.blame(link, fault),
            // A refusal is an answer, too.
            _ => self.praise(link),
        }
        result
    }

    /// What a status over a connection says, with what the connection broke of if it did.
    pub(super) fn fault(&self, link: &Link, call: &'static str, status: &Status) -> EtcdFault {
        let member = self.endpoint(link.member);
        match (EtcdFault::of(member.clone(), call, status), link.cause.get()) {
            // Only TLS makes an error of this kind.
            (EtcdFault::Broken { .. }, Some(why)) if why.kind() == io::ErrorKind::InvalidData => {
                EtcdFault::Tls { member, why }
            }
            (EtcdFault::Broken { .. }, Some(why)) => {
                EtcdFault::Broken { member, call, detail: why.to_string() }
            }
            (fault, _) => fault,
        }
    }

    /// A connection to the current member.
    pub(super) async fn link(&self) -> Result<Link, EtcdFault> {
        let at = *self.shared.current.borrow();
        self.link_to(at).await.inspect_err(|fault| {
            self.blame_member(at, fault);
        })
    }

    /// A connection to this member, the one that is there or a new one. Whoever asks meanwhile dials, too; the last wins.
    pub(super) async fn link_to(&self, at: usize) -> Result<Link, EtcdFault> {
        let member = &self.shared.members[at];
        if let Some(link) = member.state.lock().link.clone() {
            return Ok(link);
        }
        let dialling = dial(&member.address, self.shared.tls.as_ref());
        let (channel, cause) = timeout(DIAL_DEADLINE, dialling).await.unwrap_or_else(|_| {
            let (member, call) = (member.address.to_string(), "connect");
            Err(EtcdFault::TimedOut { member, call, after: DIAL_DEADLINE })
        })?;
        let mut state = member.state.lock();
        state.dials += 1;
        let link = Link { channel, member: at, dial: state.dials, cause };
        state.link = Some(link.clone());
        Ok(link)
    }

    /// A member failed over this connection: the connection is not used again.
    pub(super) fn blame(&self, link: &Link, fault: &EtcdFault) {
        let mut state = self.shared.members[link.member].state.lock();
        if state.link.as_ref().is_some_and(|kept| kept.dial == link.dial) {
            state.link = None;
        }
        drop(state);
        self.blame_member(link.member, fault);
    }

    fn blame_member(&self, at: usize, fault: &EtcdFault) {
        let now = Instant::now();
        self.shared.members[at].state.lock().fault = Some((now, fault.clone()));
        self.shared.away.lock().get_or_insert(now);
        self.shared.current.send_if_modified(|current| {
            if *current != at {
                return false;
            }
            let count = self.len();
            let failed = |at: &usize| self.shared.members[*at].state.lock().fault.as_ref().map(|(at, _)| *at);
            *current = (1..=count).map(|step| (at + step) % count).min_by_key(failed).unwrap_or(at);
            *current != at
        });
        tracing::debug!(%fault, next = *self.shared.current.borrow(), "a member of etcd failed");
    }

    fn praise(&self, link: &Link) {
        let mut state = self.shared.members[link.member].state.lock();
        (state.answered, state.fault) = (true, None);
        drop(state);
        *self.shared.away.lock() = None;
    }
}

/// A request that only a member with a leader answers.
pub(super) fn led<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("hasleader", MetadataValue::from_static("true"));
    request
}

/// HTTP/2 over one connection, and over no other: tonic would dial again behind our back.
async fn dial(address: &Address, tls: Option<&TlsFiles>) -> Result<(Channel, Cause), EtcdFault> {
    let member = || address.to_string();
    let connect = |why| EtcdFault::Connect { member: member(), why: Arc::new(why) };
    let tcp = TcpStream::connect((address.host.as_str(), address.port)).await.map_err(connect)?;
    // Requests are small and waited for.
    tcp.set_nodelay(true).map_err(connect)?;
    let endpoint = Endpoint::from(address.uri.clone())
        .initial_stream_window_size(WINDOW)
        .initial_connection_window_size(WINDOW)
        .http2_keep_alive_interval(PING_INTERVAL)
        .keep_alive_while_idle(false);
    let cause = Cause::default();
    let channel = match tls.filter(|_| address.tls) {
        Some(files) => {
            let config = files.read().await.map_err(|why| EtcdFault::Files { member: member(), why })?;
            let name = ServerName::try_from(address.host.clone())
                .map_err(|fault| connect(io::Error::other(fault)))?;
            let handshake = TlsConnector::from(Arc::new(config)).connect(name, tcp).await;
            let tls = handshake.map_err(|why| EtcdFault::Tls { member: member(), why: Arc::new(why) })?;
            over(&endpoint, Remembering::new(tls, cause.clone())).await
        }
        None => over(&endpoint, Remembering::new(tcp, cause.clone())).await,
    };
    let broken = |fault| EtcdFault::Broken { member: member(), call: "connect", detail: in_one_line(&fault) };
    Ok((channel.map_err(broken)?, cause))
}

async fn over<S>(endpoint: &Endpoint, stream: S) -> Result<Channel, tonic::transport::Error>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin + 'static,
{
    let once = Arc::new(Mutex::new(Some(stream)));
    let connector = tower::service_fn(move |_: Uri| {
        let stream = once.lock().take();
        async move { stream.map(TokioIo::new).ok_or(io::Error::from(io::ErrorKind::NotConnected)) }
    });
    endpoint.connect_with_connector(connector).await
}

impl fmt::Debug for Members {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.shared.members.iter().map(|member| member.address.to_string())).finish()
    }
}
