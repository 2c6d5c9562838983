//! The control listener: TCP and Unix sockets, mutual TLS, then gRPC for whatever services the caller brings. All sockets take
//! the same calls.
//!
//! ```text
//!   accept loops ──▶ handshake task (bounded, 5 s) ──▶ queue ──▶ HTTP/2 server ──▶ services, with the Caller in the request
//! ```
//!
//! The accept loop waits for nobody. A handshake has its own task and its place among the half-open ones
//! (`half_open`); what is established is counted and can be cut per trust domain (`live`).

mod half_open;
mod listener;
mod live;
mod refusal_log;

use std::{
    convert::Infallible,
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use carrick_identity::{Caller, Identity, PeerCertificate, Svid, TrustStore, server_config_with};
use carrick_model::cause::in_one_line;
use carrick_runtime::Tasks;
use carrick_telemetry::Metrics;
use futures::StreamExt;
use parking_lot::Mutex;
use socket2::{SockRef, TcpKeepalive};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf},
    net::TcpStream,
    sync::mpsc,
    time::timeout,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    service::Routes,
    transport::{Server, server::Connected},
};

pub use self::listener::{BindError, ControlListener};
use self::{
    half_open::{HalfOpen, Place},
    listener::{Remote, Socket, Wire},
    live::{Live, LiveGuard},
    refusal_log::RefusalLog,
};
use crate::io::Severable;

/// Largest gRPC message in either direction: grpc-go's default, which NSM never changes.
pub const MAX_MESSAGE: usize = 4 << 20;
/// Largest header list: NSM sends paths of tokens in a header, hyper's default of 16 KiB is too small for them.
pub const MAX_HEADER_LIST: u32 = 256 << 10;
/// Flow-control window of one stream: 4 MiB is 100 ms × 320 Mbit/s, ample for a registry's answer.
pub const STREAM_WINDOW: u32 = 4 << 20;
/// Flow-control window of one connection.
pub const CONNECTION_WINDOW: u32 = 16 << 20;
/// When nothing was heard for so long, a ping is sent.
pub const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
/// How long the answer to a ping may take.
pub const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(20);
/// Streams of one connection at a time: watches of a large peer and its calls beside them.
pub const MAX_STREAMS: u32 = 1024;
/// Calls of one connection that are worked on at a time; the others wait. A request that passes through waits for the hops behind,
/// and in a chain that comes by here again, for a call of its own on the same connection: a low bound would have it wait for itself.
/// Each may hold a message of [`MAX_MESSAGE`], and a real one has some 100 KiB.
pub const MAX_CALLS: usize = 256;
/// A TLS handshake takes three round trips; who needs longer holds a place that others need.
pub const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(5);
/// Until the first answer of a handler. Ours decide from memory, so only a store that hangs comes near it.
pub const HANDLER_DEADLINE: Duration = Duration::from_secs(30);

/// Established connections that wait for the HTTP/2 server to take them over; it does so at once.
const QUEUE: usize = 64;
/// How long open streams may go on after a stop: watches never end by themselves.
const STOP_GRACE: Duration = Duration::from_secs(2);
/// Pause after an accept that failed for lack of descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How long a refused client may take to read why.
const LINGER: Duration = Duration::from_millis(500);

impl ControlListener {
    /// Serves `routes` until `tasks` stops: then peers are told (GOAWAY) and streams have a moment to end. When this returns, the
    /// sockets are closed: who dials is refused by the system and goes elsewhere at once.
    pub async fn serve(
        self,
        routes: Routes,
        identity: &Identity,
        trust: &TrustStore,
        tasks: Tasks,
        metrics: Metrics,
    ) {
        let (established, queue) = mpsc::channel(QUEUE);
        let front = Arc::new(Front {
            acceptors: Acceptors::new(identity.clone(), trust.clone()),
            half_open: HalfOpen::new(),
            live: Live::new(identity.trust_domain(), trust.clone()),
            log: RefusalLog::new(),
            established,
            metrics,
        });
        tasks.spawn("control trust", Arc::clone(&front).follow_trust(trust.clone(), tasks.clone()));
        let accepting: Vec<_> = (self.sockets.into_iter())
            .map(|socket| tasks.spawn("control accept", Arc::clone(&front).accept(socket, tasks.clone())))
            .collect();

        let server = Server::builder()
            .timeout(HANDLER_DEADLINE)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_concurrent_streams(MAX_STREAMS)
            .concurrency_limit_per_connection(MAX_CALLS)
            .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
            .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
            .http2_max_header_list_size(MAX_HEADER_LIST)
            .add_routes(routes)
            .serve_with_incoming_shutdown(
                ReceiverStream::new(queue).map(Ok::<_, Infallible>),
                tasks.stopping(),
            );
        let over = async {
            tasks.stopping().await;
            tokio::time::sleep(STOP_GRACE).await;
        };
        tokio::select! {
            result = server => if let Err(error) = result {
                tracing::error!(%error, "the control listener ended");
            },
            () = over => tracing::debug!("control streams are cut after the grace of a stop"),
        }
        // The HTTP/2 server leaves connections with open streams to themselves.
        front.live.sever_all();
        futures::future::join_all(accepting).await;
    }
}

/// What accept loop and handshakes share.
struct Front {
    acceptors: Acceptors,
    half_open: HalfOpen,
    live: Live,
    log: RefusalLog,
    established: mpsc::Sender<ControlIo>,
    metrics: Metrics,
}

/// What handshakes are made with: one configuration for each SVID, so that it is known which one a caller was shown.
struct Acceptors {
    identity: Identity,
    trust: TrustStore,
    current: Mutex<(Arc<Svid>, TlsAcceptor)>,
}

impl Acceptors {
    fn new(identity: Identity, trust: TrustStore) -> Self {
        let svid = identity.current();
        let acceptor = Self::acceptor(&svid, &trust);
        Self { identity, trust, current: Mutex::new((svid, acceptor)) }
    }

    /// The acceptor of the current SVID, and that SVID.
    fn current(&self) -> (TlsAcceptor, Arc<Svid>) {
        let svid = self.identity.current();
        let mut current = self.current.lock();
        if !Arc::ptr_eq(&current.0, &svid) {
            *current = (Arc::clone(&svid), Self::acceptor(&svid, &self.trust));
        }
        (current.1.clone(), svid)
    }

    fn acceptor(svid: &Arc<Svid>, trust: &TrustStore) -> TlsAcceptor {
        TlsAcceptor::from(Arc::new(server_config_with(svid, trust, &[b"h2"])))
    }
}

/// Why a connection was not taken.
#[derive(Debug, thiserror::Error)]
enum Refused {
    #[error("TLS handshake failed")]
    Tls(#[source] io::Error),
    #[error("no TLS handshake within {} s", HANDSHAKE_DEADLINE.as_secs())]
    Late,
    #[error("gave its place to a newer connection")]
    Evicted,
    #[error("trust domain `{0}` has {1} control connections, which is the limit for one peer")]
    PeerLimit(carrick_model::TrustDomain, usize),
    #[error("{0} control connections are open, which is the limit")]
    TotalLimit(usize),
}

impl Front {
    async fn accept(self: Arc<Self>, mut socket: Socket, tasks: Tasks) {
        let stopping = tasks.stopping();
        tokio::pin!(stopping);
        loop {
            let accepted = tokio::select! {
                () = &mut stopping => return,
                // A server that failed takes nobody any more.
                () = self.established.closed() => return,
                accepted = socket.accept() => accepted,
            };
            match accepted {
                Ok((stream, remote)) => {
                    let place = self.half_open.enter(remote.source);
                    tasks.spawn("control handshake", Arc::clone(&self).handshake(stream, remote, place));
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a control connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    async fn handshake(self: Arc<Self>, stream: Wire, remote: Remote, mut place: Place) {
        let result = tokio::select! {
            biased;
            () = place.evicted() => Err((Refused::Evicted, None)),
            result = timeout(HANDSHAKE_DEADLINE, self.shake(stream)) => match result {
                Err(_) => Err((Refused::Late, None)),
                Ok(result) => result,
            },
        };
        match result {
            Ok(io) => {
                drop(place);
                // The HTTP/2 server is gone when we stop; then so is the connection.
                let _stopped = self.established.send(io).await;
            }
            Err((refused, stream)) => {
                self.report(&refused, &remote);
                if let Some(stream) = stream {
                    linger(stream).await;
                }
            }
        }
    }

    async fn shake(&self, stream: Wire) -> Result<ControlIo, (Refused, Option<Wire>)> {
        let (acceptor, shown) = self.acceptors.current();
        let stream = match acceptor.accept(stream).into_fallible().await {
            Ok(stream) => stream,
            Err((error, stream)) => return Err((Refused::Tls(error), Some(stream))),
        };
        let chain = stream.get_ref().1.peer_certificates().unwrap_or_default();
        let certificate =
            PeerCertificate::of(chain).map_err(|e| (Refused::Tls(io::Error::other(e)), None))?;
        let live = self.live.enter(certificate.id().trust_domain()).map_err(|e| (e, None))?;
        let caller = Caller::new(certificate, shown);
        Ok(ControlIo { io: Severable::new(stream, live.token()), caller, _live: live })
    }

    fn report(&self, refused: &Refused, remote: &Remote) {
        let peer_error = match refused {
            Refused::Tls(error) => carrick_identity::PeerError::find_in(error),
            _ => None,
        };
        let reason = match refused {
            Refused::Tls(_) => peer_error.map_or("tls", carrick_identity::PeerError::reason),
            Refused::Late => "timeout",
            Refused::Evicted => "evicted",
            Refused::PeerLimit(..) | Refused::TotalLimit(_) => "limit",
        };
        self.metrics.control_handshakes_refused.of(reason).inc();
        let Some(suppressed) = self.log.admit() else { return };
        let detail = peer_error.map_or_else(|| in_one_line(refused), ToString::to_string);
        let hint = peer_error.map_or("", carrick_identity::PeerError::hint);
        tracing::warn!(remote = remote.name, reason, detail, hint, suppressed, "control connection refused");
    }

    /// Cuts the connections of trust domains that are trusted no more.
    async fn follow_trust(self: Arc<Self>, trust: TrustStore, tasks: Tasks) {
        let mut changed = trust.changed();
        let stopping = tasks.stopping();
        tokio::pin!(stopping);
        loop {
            tokio::select! {
                () = &mut stopping => return,
                result = changed.changed() => if result.is_err() { return },
            }
            for td in self.live.sever_untrusted() {
                tracing::info!(trust_domain = %td, "control connections cut: not trusted any more");
            }
        }
    }
}

/// An established control connection.
struct ControlIo {
    io: Severable<TlsStream<Wire>>,
    caller: Caller,
    _live: LiveGuard,
}

impl Connected for ControlIo {
    type ConnectInfo = Caller;

    fn connect_info(&self) -> Caller {
        self.caller.clone()
    }
}

impl AsyncRead for ControlIo {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl AsyncWrite for ControlIo {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
}

/// Small messages at once, and a dead peer is noticed by the system too.
pub(crate) fn tune(stream: &TcpStream) {
    let keepalive = TcpKeepalive::new().with_time(KEEPALIVE_INTERVAL).with_interval(KEEPALIVE_INTERVAL);
    let socket = SockRef::from(stream);
    // Both are optimisations; a socket that refuses them works.
    if let Err(error) = socket.set_tcp_nodelay(true).and_then(|()| socket.set_tcp_keepalive(&keepalive)) {
        tracing::debug!(%error, "cannot set TCP options");
    }
}

/// Closes so that the alert is read: closing with unread bytes resets the connection, and the reset overtakes the alert.
async fn linger(mut stream: Wire) {
    let drain = async {
        stream.shutdown().await?;
        let mut scratch = [0; 2048];
        while stream.read(&mut scratch).await? > 0 {}
        Ok::<_, io::Error>(())
    };
    let _either_way_closed = timeout(LINGER, drain).await;
}
