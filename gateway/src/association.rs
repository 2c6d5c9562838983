//! Datagrams between a local UDP socket and a tunnel.
//!
//! An association is one client address and one stream. Datagrams that fit a DATAGRAM frame travel there, behind the
//! stream's number; larger ones, and those sent before the verdict, travel on the stream as messages. A datagram from the
//! tunnel goes from the lane's reader straight to the local socket: no queue and no task in between.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use carrick_gateway_core::{DropReason, HeaderKind, ResetCode, Verdict, datagram};
use carrick_model::{ExportTarget, Host, HostPort};
use carrick_telemetry::Metrics;
use parking_lot::RwLock;
use quinn::{RecvStream, SendDatagramError, SendStream};
use socket2::SockRef;
use tokio::{net::UdpSocket, sync::mpsc};

use crate::{
    flow::{End, Flow, FlowPermit},
    gateway::{Admitted, Import, Shared},
    inbound::{self, dial_verdict, target_failed},
    lane::{Kill, Lane},
    outbound,
    relay::{Stream, await_verdict, read_reason, write_reason},
};

/// Room in front of a payload for the longest flow number.
const HEADROOM: usize = 8;
/// Memory that datagrams are received into, shared by as many as fit.
const SLAB: usize = 256 << 10;

/// A received datagram, with room for the flow number in front.
#[derive(Debug)]
pub(crate) struct Packet(BytesMut);

impl Packet {
    /// The datagram without the room.
    pub(crate) fn payload(&self) -> &[u8] {
        &self.0[HEADROOM..]
    }

    /// The content of a DATAGRAM frame.
    fn framed(mut self, flow: u64) -> Bytes {
        let length = datagram::flow_number_length(flow);
        let mut number = Vec::with_capacity(HEADROOM);
        datagram::put_flow_number(flow, &mut number);
        self.0[HEADROOM - length..HEADROOM].copy_from_slice(&number);
        self.0.advance(HEADROOM - length);
        self.0.freeze()
    }
}

/// Receives datagrams into shared memory.
#[derive(Debug, Default)]
pub(crate) struct Receiver {
    slab: BytesMut,
}

impl Receiver {
    /// The next datagram and its sender.
    ///
    /// # Errors
    /// As the system says, an ICMP error from an earlier datagram included.
    pub(crate) async fn receive(&mut self, socket: &UdpSocket) -> std::io::Result<(Packet, SocketAddr)> {
        loop {
            socket.readable().await?;
            if self.slab.capacity() - self.slab.len() < HEADROOM + datagram::MAX_PAYLOAD {
                self.slab = BytesMut::with_capacity(SLAB);
            }
            self.slab.put_bytes(0, HEADROOM);
            match socket.try_recv_buf_from(&mut self.slab) {
                Ok((_length, from)) => return Ok((Packet(self.slab.split()), from)),
                Err(error) => {
                    self.slab.clear();
                    if error.kind() != std::io::ErrorKind::WouldBlock {
                        return Err(error);
                    }
                    // An idle socket holds no memory.
                    self.slab = BytesMut::new();
                }
            }
        }
    }
}

/// Where datagrams of one flow number go.
#[derive(Debug)]
struct Sink {
    socket: Arc<UdpSocket>,
    /// The client, or nobody where the socket is connected.
    to: Option<SocketAddr>,
    octets: AtomicU64,
    activity: Activity,
}

impl Sink {
    fn deliver(&self, payload: &[u8], metrics: &Metrics) {
        self.activity.touch();
        // Past tokio: its `try_send` fails until the reactor has seen the socket writable once, and a fresh socket is.
        let socket = SockRef::from(&*self.socket);
        let sent = match self.to {
            Some(client) => socket.send_to(payload, &client.into()),
            None => socket.send(payload),
        };
        match sent {
            Ok(_) => {
                self.octets.fetch_add(payload.len() as u64, Ordering::Relaxed);
            }
            Err(_) => {
                metrics.datagrams_dropped.of(DropReason::LocalSend.as_str()).inc();
            }
        }
    }
}

/// When something last moved.
#[derive(Debug)]
struct Activity {
    began: Instant,
    last_ms: AtomicU64,
}

impl Activity {
    fn new() -> Self {
        Self { began: Instant::now(), last_ms: AtomicU64::new(0) }
    }

    fn touch(&self) {
        self.last_ms.store(self.began.elapsed().as_millis() as u64, Ordering::Relaxed);
    }

    /// Completes when nothing moved for `limit`.
    async fn idle(&self, limit: Duration) {
        loop {
            let quiet = self
                .began
                .elapsed()
                .saturating_sub(Duration::from_millis(self.last_ms.load(Ordering::Relaxed)));
            if quiet >= limit {
                return;
            }
            tokio::time::sleep(limit - quiet).await;
        }
    }
}

/// The associations of one lane, by flow number.
#[derive(Debug)]
pub(crate) struct Associations {
    sinks: RwLock<HashMap<u64, Arc<Sink>>>,
    metrics: Metrics,
}

impl Associations {
    pub(crate) fn new(metrics: &Metrics) -> Self {
        Self { sinks: RwLock::default(), metrics: metrics.clone() }
    }

    /// Hands the content of a DATAGRAM frame to its socket.
    pub(crate) fn deliver(&self, frame: &[u8]) {
        let dropped = |reason: DropReason| {
            self.metrics.datagrams_dropped.of(reason.as_str()).inc();
        };
        let Some((flow, at)) = datagram::flow_number(frame) else {
            dropped(DropReason::MalformedDatagram);
            return;
        };
        // Cloned out, so that no lock is held over a system call.
        let Some(sink) = self.sinks.read().get(&flow).cloned() else {
            dropped(DropReason::UnknownFlow);
            return;
        };
        sink.deliver(&frame[at..], &self.metrics);
    }

    /// Forgets all, when the lane has ended.
    pub(crate) fn clear(&self) {
        self.sinks.write().clear();
    }

    fn add(&self, flow: u64, sink: Arc<Sink>) -> Registered<'_> {
        self.sinks.write().insert(flow, sink);
        Registered { associations: self, flow }
    }
}

struct Registered<'a> {
    associations: &'a Associations,
    flow: u64,
}

impl Drop for Registered<'_> {
    fn drop(&mut self) {
        self.associations.sinks.write().remove(&self.flow);
    }
}

/// Carries the datagrams of one client of an import.
pub(crate) async fn carry(
    shared: Arc<Shared>,
    import: Arc<Import>,
    socket: Arc<UdpSocket>,
    client: SocketAddr,
    packets: mpsc::Receiver<Packet>,
    _permit: FlowPermit,
) {
    let _counted = import.flows.one_more();
    let mut flow = Flow::begin(&shared.imported, import.service.clone(), client.to_string());
    let seat = match outbound::take_seat(&shared, &import, &mut flow).await {
        Ok(seat) => seat,
        Err(refused) => return outbound::refuse(&shared, &import, flow, &refused),
    };
    let (stream, kill) = match outbound::open(&shared, &seat, HeaderKind::Datagrams, &mut flow).await {
        Ok(opened) => opened,
        Err(refused) => return outbound::refuse(&shared, &import, flow, &refused),
    };
    let sink =
        Arc::new(Sink { socket, to: Some(client), octets: AtomicU64::new(0), activity: Activity::new() });
    let source = Source::Queue(packets);
    let verdict = Some(shared.settings.flow_open);
    let end = exchange(&shared, &seat.lane, stream, source, &sink, &flow.to_service, verdict, &kill).await;
    flow.to_client = AtomicU64::new(sink.octets.load(Ordering::Relaxed));
    outbound::conclude(&shared, &import, flow, seat.connection(), end);
}

/// Carries an association that a peer opened.
pub(crate) async fn serve(
    shared: &Shared,
    lane: &Arc<Lane>,
    admitted: &Admitted,
    mut stream: Stream,
    mut flow: Flow,
    kill: &Kill,
) {
    let target = &admitted.admission.target;
    let ExportTarget::Udp(to) = target else { return };
    let socket = match tokio::time::timeout(shared.settings.connect, dial(to)).await {
        Ok(Ok(socket)) => Arc::new(socket),
        failed => {
            let error = failed.map_or_else(
                |_| std::io::ErrorKind::TimedOut.into(),
                |r| match r {
                    Ok(_) => std::io::ErrorKind::Other.into(),
                    Err(error) => error,
                },
            );
            let verdict = dial_verdict(&error);
            inbound::refuse(lane.clone(), stream, verdict).await;
            return target_failed(flow, target, verdict, &error);
        }
    };
    let sink = Arc::new(Sink {
        socket: socket.clone(),
        to: None,
        octets: AtomicU64::new(0),
        activity: Activity::new(),
    });
    if inbound::answer(lane, &mut stream, Verdict::Accepted).await.is_err() {
        return flow.end(End::Dropped(DropReason::TunnelLost), "");
    }
    flow.opened();
    let source = Source::Socket(socket, Receiver::default());
    let end = exchange(shared, lane, stream, source, &sink, &flow.to_client, None, kill).await;
    flow.to_service = AtomicU64::new(sink.octets.load(Ordering::Relaxed));
    flow.end(end, "");
}

async fn dial(to: &HostPort) -> std::io::Result<UdpSocket> {
    let addresses: Vec<SocketAddr> = match &to.host {
        Host::Ip(ip) => vec![SocketAddr::new(*ip, to.port)],
        Host::Name(name) => tokio::net::lookup_host((name.as_str(), to.port)).await?.collect(),
    };
    let address = *addresses.first().ok_or(std::io::ErrorKind::NotFound)?;
    let any: SocketAddr = if address.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { ([0u16; 8], 0).into() };
    let socket = UdpSocket::bind(any).await?;
    socket.connect(address).await?;
    Ok(socket)
}

/// Where local datagrams come from.
enum Source {
    /// The listener sorts them by client.
    Queue(mpsc::Receiver<Packet>),
    /// A connected socket.
    Socket(Arc<UdpSocket>, Receiver),
}

impl Source {
    async fn next(&mut self) -> Option<Packet> {
        match self {
            Self::Queue(queue) => queue.recv().await,
            Self::Socket(socket, receiver) => loop {
                match receiver.receive(socket).await {
                    Ok((packet, _from)) => return Some(packet),
                    // "Connection refused" is the ICMP answer to an earlier datagram: the service may come back.
                    Err(error) => tracing::debug!(%error, "a UDP target answered with an error"),
                }
            },
        }
    }
}

#[expect(clippy::too_many_arguments, reason = "the two directions of an association share them all")]
async fn exchange(
    shared: &Shared,
    lane: &Lane,
    stream: Stream,
    mut source: Source,
    sink: &Arc<Sink>,
    from_local: &AtomicU64,
    verdict: Option<Duration>,
    kill: &Kill,
) -> End {
    let Stream { mut send, mut recv } = stream;
    let number = send.id().index();
    let _registered = lane.associations.add(number, sink.clone());
    let accepted = AtomicBool::new(verdict.is_none());
    let up = async {
        while let Some(packet) = source.next().await {
            sink.activity.touch();
            from_local.fetch_add(packet.payload().len() as u64, Ordering::Relaxed);
            send_packet(lane, &mut send, packet, number, accepted.load(Ordering::Relaxed)).await?;
        }
        Err(DropReason::Stream(ResetCode::Idle)) // the listener is gone
    };
    let down = async {
        if let Some(patience) = verdict {
            await_verdict(&mut recv, patience).await?;
            accepted.store(true, Ordering::Relaxed);
        }
        read_messages(&mut recv, sink, &shared.metrics).await
    };
    let result: Result<((), ()), DropReason> = tokio::select! {
        biased;
        code = kill.killed() => Err(DropReason::Stream(code)),
        () = sink.activity.idle(shared.settings.udp_idle) => Err(DropReason::Stream(ResetCode::Idle)),
        result = async { tokio::try_join!(up, down) } => result,
    };
    let code = match result {
        Err(DropReason::Stream(code)) => code,
        _ => ResetCode::Reset,
    };
    Stream { send, recv }.abort(code);
    match result {
        // An association has no end of its own: being idle, or the peer finding it idle, is the ordinary one.
        Ok(((), ())) | Err(DropReason::Stream(ResetCode::Idle)) => End::Closed,
        Err(reason) => End::Dropped(reason),
    }
}

/// As a DATAGRAM frame where it fits, else as a message on the stream.
async fn send_packet(
    lane: &Lane,
    send: &mut SendStream,
    packet: Packet,
    number: u64,
    accepted: bool,
) -> Result<(), DropReason> {
    let length = packet.payload().len() + datagram::flow_number_length(number);
    if accepted && lane.connection.max_datagram_size().is_some_and(|most| length <= most) {
        match lane.connection.send_datagram_wait(packet.framed(number)).await {
            Ok(()) => return Ok(()),
            Err(SendDatagramError::ConnectionLost(_)) => return Err(DropReason::TunnelLost),
            // The path's limit shrank between the question and the sending: as if lost on the way, once.
            Err(_) => {
                lane.associations.metrics.datagrams_dropped.of(DropReason::QueueFull.as_str()).inc();
                return Ok(());
            }
        }
    }
    let mut message = Vec::with_capacity(packet.payload().len() + datagram::MESSAGE_PREFIX);
    if !datagram::put_message(packet.payload(), &mut message) {
        lane.associations.metrics.datagrams_dropped.of(DropReason::MalformedDatagram.as_str()).inc();
        return Ok(());
    }
    lane.write(send, message.into()).await.map_err(|error| write_reason(&error))
}

async fn read_messages(recv: &mut RecvStream, sink: &Sink, metrics: &Metrics) -> Result<(), DropReason> {
    let mut payload = Vec::new();
    loop {
        let mut prefix = [0; datagram::MESSAGE_PREFIX];
        if !read(recv, &mut prefix).await? {
            return Ok(());
        }
        let length = datagram::message_length(prefix).ok_or(DropReason::Stream(ResetCode::Protocol))?;
        payload.resize(length, 0);
        if !read(recv, &mut payload).await? {
            return Err(DropReason::Stream(ResetCode::Protocol));
        }
        sink.deliver(&payload, metrics);
        if payload.capacity() > 4096 {
            payload = Vec::new(); // large messages are rare; an association that waits holds no large buffer
        }
    }
}

/// Fills the buffer; false at the end of the stream.
async fn read(recv: &mut RecvStream, buffer: &mut [u8]) -> Result<bool, DropReason> {
    match recv.read_exact(buffer).await {
        Ok(()) => Ok(true),
        Err(quinn::ReadExactError::FinishedEarly(_)) => Ok(false),
        Err(quinn::ReadExactError::ReadError(error)) => Err(read_reason(&error)),
    }
}
