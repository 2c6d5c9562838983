//! One QUIC connection to another gateway: its flows, its control stream, its datagrams.
//!
//! Both sides run the same loops, whoever dialled: either may open flows, and whether a flow is welcome is decided by its
//! connection, not by the direction in which the tunnel was dialled.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU8, AtomicU64, AtomicUsize, Ordering},
    },
    time::{Instant, SystemTime},
};

use bytes::Bytes;
use carrick_gateway_core::{
    CloseCode, ResetCode,
    control::{self, Message},
    window::{self, SendWindow},
};
use carrick_model::SpiffeId;
use carrick_telemetry::{ActiveGuard, Metrics};
use parking_lot::Mutex;
use quinn::{RecvStream, SendStream, VarInt, WriteError};
use tokio::{runtime::Handle, sync::mpsc};
use tokio_util::sync::CancellationToken;

use crate::{
    association::Associations, backlog::Backlogs, coalesce::Rounds, gateway::Shared, inbound, turns::Turns,
};

/// Control messages that wait for the network; more means that the tunnel is as good as dead.
const CONTROL_QUEUE: usize = 64;

/// Who dialled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// We did.
    Dialled,
    /// The peer did.
    Accepted,
}

impl Role {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Dialled => "dialled",
            Self::Accepted => "accepted",
        }
    }
}

/// One QUIC connection.
#[derive(Debug)]
pub(crate) struct Lane {
    pub(crate) connection: quinn::Connection,
    pub(crate) peer: SpiffeId,
    pub(crate) role: Role,
    pub(crate) since: SystemTime,
    /// The thread on which the connection is driven and its flows run.
    pub(crate) thread: Handle,
    pub(crate) associations: Associations,
    flows: AtomicUsize,
    /// Flows whose local reader is slower than the tunnel.
    pub(crate) backlogs: Backlogs,
    /// Whose turn it is to write, when the tunnel's window is full.
    turns: Turns,
    /// What is kept until it is acknowledged.
    send_window: Mutex<SendWindow>,
    /// The most of it, in octets.
    pub(crate) most_unacknowledged: AtomicU64,
    /// For flows that let their octets gather.
    pub(crate) rounds: Rounds,
    /// Receive window granted now, in octets.
    pub(crate) window: AtomicU64,
    peer_drains: CancellationToken,
    control: mpsc::Sender<Message>,
    _active: ActiveGuard,
}

/// Ends one flow from outside, with a code.
#[derive(Debug, Clone)]
pub(crate) struct Kill {
    token: CancellationToken,
    code: Arc<AtomicU8>,
}

impl Kill {
    /// A flow that also ends, as revoked, when `connection` is cancelled.
    pub(crate) fn under(connection: &CancellationToken) -> Self {
        let code = Arc::new(AtomicU8::new(ResetCode::Revoked.code() as u8)); // reset codes are single octets
        Self { token: connection.child_token(), code }
    }

    /// Ends the flow.
    pub(crate) fn kill(&self, code: ResetCode) {
        self.code.store(code.code() as u8, Ordering::Relaxed);
        self.token.cancel();
    }

    /// Completes when the flow has to end, with the code to say.
    pub(crate) async fn killed(&self) -> ResetCode {
        self.token.cancelled().await;
        ResetCode::from_code(self.code.load(Ordering::Relaxed).into())
    }
}

/// A flow that rides on a lane; counted until dropped.
#[derive(Debug)]
pub(crate) struct Rider(Arc<Lane>);

impl Drop for Rider {
    fn drop(&mut self) {
        self.0.flows.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Lane {
    /// Takes over a connection whose peer is known, and starts its loops on the thread on which this is called.
    pub(crate) fn start(
        shared: &Arc<Shared>,
        connection: quinn::Connection,
        peer: SpiffeId,
        role: Role,
    ) -> Arc<Self> {
        let (control, messages) = mpsc::channel(CONTROL_QUEUE);
        let metrics = &shared.metrics;
        metrics.tunnels_opened.of(role.as_str()).inc();
        let lane = Arc::new(Self {
            associations: Associations::new(metrics),
            connection,
            peer,
            role,
            since: SystemTime::now(),
            thread: Handle::current(),
            flows: AtomicUsize::new(0),
            backlogs: Backlogs::new(shared.windows_changed.clone()),
            turns: Turns::default(),
            send_window: Mutex::default(),
            most_unacknowledged: AtomicU64::new(window::TUNNEL),
            rounds: Rounds::default(),
            window: AtomicU64::new(window::TUNNEL),
            peer_drains: CancellationToken::new(),
            control,
            _active: ActiveGuard::new(&metrics.tunnels_active),
        });
        shared.lanes.lock().insert(lane.connection.stable_id(), lane.clone());
        shared.windows_changed.notify_one();
        let _runs = shared.tasks.spawn("tunnel", run(shared.clone(), lane.clone(), messages));
        let _counts = shared.tasks.spawn("tunnel-rounds", count_rounds(lane.clone()));
        lane
    }

    /// The address the peer is reached at now; it may move.
    pub(crate) fn address(&self) -> SocketAddr {
        let address = self.connection.remote_address();
        // A dual-stack socket shows IPv4 peers as mapped addresses.
        SocketAddr::new(address.ip().to_canonical(), address.port())
    }

    /// Writes all of `piece` to a stream of this lane, in turn with the other flows.
    ///
    /// # Errors
    /// The peer stopped the stream, or the tunnel is lost.
    pub(crate) fn write<'a>(
        &'a self,
        send: &'a mut SendStream,
        piece: Bytes,
    ) -> impl Future<Output = Result<(), WriteError>> + 'a {
        self.write_run(send, piece, || None)
    }

    /// Writes all of `piece`, as [`Self::write`], and what `more` gives while it is this flow's turn.
    ///
    /// # Errors
    /// The peer stopped the stream, or the tunnel is lost.
    pub(crate) fn write_run<'a>(
        &'a self,
        send: &'a mut SendStream,
        piece: Bytes,
        more: impl FnMut() -> Option<Bytes> + 'a,
    ) -> impl Future<Output = Result<(), WriteError>> + 'a {
        self.turns.write(send, piece, more, || self.fit_send_window())
    }

    /// Whether flows wait for the window of this lane.
    pub(crate) fn is_contended(&self) -> bool {
        self.turns.is_contended()
    }

    /// Makes the send window fit to what is under way.
    fn fit_send_window(&self) {
        let mut window = self.send_window.lock();
        let now = Instant::now();
        if window.is_due(now) {
            let (sent, rtt) = (self.connection.stats().udp_tx.bytes, self.connection.rtt());
            let most = self.most_unacknowledged.load(Ordering::Relaxed);
            if let Some(octets) = window.look(now, sent, rtt, most) {
                self.connection.set_send_window(octets);
            }
        }
    }

    /// One more flow, counted until the rider is dropped.
    pub(crate) fn ride(self: &Arc<Self>) -> Rider {
        self.flows.fetch_add(1, Ordering::Relaxed);
        Rider(self.clone())
    }

    /// Flows that ride now.
    pub(crate) fn flows(&self) -> usize {
        self.flows.load(Ordering::Relaxed)
    }

    /// Whether new flows may be opened.
    pub(crate) fn is_open(&self) -> bool {
        self.connection.close_reason().is_none() && !self.peer_drains.is_cancelled()
    }

    /// Completes when no new flow should be opened: the connection ended, or the peer drains.
    pub(crate) async fn unusable(&self) {
        tokio::select! {
            _reason = self.connection.closed() => {}
            () = self.peer_drains.cancelled() => {}
        }
    }

    /// Tells the peer; a tunnel whose queue is full hears no more, and its end will come by time-out.
    pub(crate) fn tell(&self, message: Message) {
        if self.control.try_send(message).is_err() {
            tracing::debug!(peer = %self.peer, ?message, "a control message was not sent");
        }
    }

    /// Ends the connection.
    pub(crate) fn close(&self, code: CloseCode) {
        let number = VarInt::from_u32(code.code() as u32); // close codes are single octets
        self.connection.close(number, code.as_str().as_bytes());
    }
}

/// The loops of a lane, until its connection ends.
async fn run(shared: Arc<Shared>, lane: Arc<Lane>, messages: mpsc::Receiver<Message>) {
    let ended = tokio::select! {
        reason = lane.connection.closed() => reason.to_string(),
        () = inbound::accept_flows(&shared, &lane) => String::new(),
        () = read_datagrams(&lane) => String::new(),
        fault = read_control(&shared, &lane) => fault,
        never = write_control(&lane, messages) => match never {},
    };
    // A loop that ended before the connection did found it broken, or met a peer that breaks the protocol.
    if lane.connection.close_reason().is_none() {
        lane.close(CloseCode::Protocol);
    }
    let reason = lane.connection.closed().await;
    shared.lanes.lock().remove(&lane.connection.stable_id());
    shared.windows_changed.notify_one();
    lane.associations.clear();
    tracing::info!(
        peer = %lane.peer, address = %lane.address(), role = lane.role.as_str(), %reason, detail = ended,
        "a tunnel ended"
    );
}

/// By itself, so that a round costs no look at all else that a lane waits for.
async fn count_rounds(lane: Arc<Lane>) {
    tokio::select! {
        _reason = lane.connection.closed() => {}
        never = lane.rounds.run() => match never {},
    }
}

async fn read_datagrams(lane: &Lane) {
    while let Ok(frame) = lane.connection.read_datagram().await {
        lane.associations.deliver(&frame);
    }
}

/// Reads the peer's control stream; returns what is wrong with it.
async fn read_control(shared: &Arc<Shared>, lane: &Lane) -> String {
    let Ok(mut stream) = lane.connection.accept_uni().await else {
        // The connection ended: `run` knows.
        return std::future::pending().await;
    };
    let mut kind = [0];
    match stream.read_exact(&mut kind).await {
        Ok(()) if kind[0] == control::STREAM_TYPE => {}
        Ok(()) => return format!("unidirectional stream of unknown type {:#04x}", kind[0]),
        Err(_) => return "the control stream ended at once".into(),
    }
    loop {
        match read_message(&mut stream).await {
            Ok(Some(Message::Drain)) => {
                tracing::info!(peer = %lane.peer, address = %lane.address(), "the peer drains: new flows take another tunnel");
                lane.peer_drains.cancel();
            }
            Ok(Some(Message::Revoke(id))) => shared.revoked_by_peer(lane, id),
            Ok(None) => {}
            Err(ControlEnd::Ended) => return std::future::pending().await,
            Err(ControlEnd::Fault(fault)) => return fault,
        }
    }
}

enum ControlEnd {
    Ended,
    Fault(String),
}

async fn read_message(stream: &mut RecvStream) -> Result<Option<Message>, ControlEnd> {
    let mut prefix = [0; control::PREFIX];
    stream.read_exact(&mut prefix).await.map_err(|_| ControlEnd::Ended)?;
    let fault = |error: control::ControlError| ControlEnd::Fault(error.to_string());
    let mut body = vec![0; Message::body_length(prefix).map_err(fault)?];
    stream.read_exact(&mut body).await.map_err(|_| ControlEnd::Ended)?;
    Message::decode(prefix, &body).map_err(fault)
}

/// Opens our control stream when there is something to say.
async fn write_control(lane: &Lane, mut messages: mpsc::Receiver<Message>) -> std::convert::Infallible {
    let mut stream: Option<SendStream> = None;
    while let Some(message) = messages.recv().await {
        let mut octets = Vec::new();
        let open = match stream.as_mut() {
            Some(open) => open,
            None => {
                let Ok(opened) = lane.connection.open_uni().await else { break };
                octets.push(control::STREAM_TYPE);
                stream.insert(opened)
            }
        };
        message.encode(&mut octets);
        if lane.write(open, octets.into()).await.is_err() {
            break;
        }
    }
    // The connection ended, or the peer does not listen: its flows go on.
    std::future::pending().await
}

/// Counts what was refused before there was a lane.
pub(crate) fn count_refused(metrics: &Metrics, reason: &'static str) {
    metrics.tunnel_handshakes_refused.of(reason).inc();
}
