//! The one UDP socket of a gateway, and batches of datagrams per system call.
//!
//! quinn hands over at most ten datagrams at a time. Between two gateways nearly all of them have one size and one
//! destination, and a system call costs the same for ten as for forty. So while a connection's driver task is polled,
//! what it sends is gathered in a [`Batch`] of the task, as long as it continues the batch, and goes out as one
//! generic-segmentation-offload send when something else comes or the poll ends. Nothing waits for a timer, and what the
//! kernel does not take at once is kept and sent before the driver runs again.

use std::{
    cell::RefCell,
    future::Future,
    io::{self, IoSliceMut},
    net::{SocketAddr, UdpSocket as StdUdpSocket},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Wake, Waker, ready},
    time::Instant,
};

use carrick_runtime::Tasks;
use futures::task::AtomicWaker;
use quinn::{
    AsyncTimer, AsyncUdpSocket, Runtime, UdpPoller,
    udp::{EcnCodepoint, RecvMeta, Transmit, UdpSockRef, UdpSocketState},
};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use tokio::{io::Interest, net::UdpSocket};

/// Socket buffers: a few milliseconds at several Gbit/s. The default of Linux, 208 KiB, loses packets in bursts.
const BUFFER: usize = 4 << 20;
/// Most octets of one send: the largest UDP payload over IPv4.
const MAX_BATCH: usize = 65_507;
/// How often a driver that has more to send is polled again before its batch goes out. quinn yields after 20 datagrams;
/// three polls fill a batch at the usual packet size.
const POLLS: usize = 3;

/// Binds the socket with buffers as large as the system allows.
///
/// # Errors
/// The address is taken, not ours, or needs a privilege.
pub(crate) fn bind(listen: SocketAddr) -> io::Result<StdUdpSocket> {
    let socket = Socket::new(Domain::for_address(listen), Type::DGRAM, Some(Protocol::UDP))?;
    if listen.is_ipv6() {
        // `[::]` serves IPv4 too, so that one socket reaches every peer.
        socket.set_only_v6(false)?;
    }
    socket.set_nonblocking(true)?;
    socket.bind(&SockAddr::from(listen))?;
    grow(&socket);
    Ok(socket.into())
}

/// With CAP_NET_ADMIN beyond the system's limit, else up to it.
fn grow(socket: &Socket) {
    use rustix::net::sockopt;
    if sockopt::set_socket_recv_buffer_size_force(socket, BUFFER).is_err() {
        let _clamped_by_the_system = socket.set_recv_buffer_size(BUFFER);
    }
    if sockopt::set_socket_send_buffer_size_force(socket, BUFFER).is_err() {
        let _clamped_by_the_system = socket.set_send_buffer_size(BUFFER);
    }
    let got = socket.recv_buffer_size().unwrap_or_default();
    // Linux reports twice what was asked for.
    if got < 2 * BUFFER {
        tracing::info!(
            octets = got / 2,
            wanted = BUFFER,
            hint = "sysctl -w net.core.rmem_max=4194304 net.core.wmem_max=4194304",
            "the UDP buffers of the tunnel are small: bursts may lose packets"
        );
    }
}

/// quinn's view of tokio, with drivers that batch.
#[derive(Debug)]
pub(crate) struct TunnelRuntime {
    tasks: Tasks,
    socket: Arc<TunnelSocket>,
}

impl TunnelRuntime {
    /// Drivers run as tasks of `tasks` and send through `socket`.
    pub(crate) fn new(tasks: Tasks, socket: Arc<TunnelSocket>) -> Self {
        Self { tasks, socket }
    }
}

impl Runtime for TunnelRuntime {
    fn new_timer(&self, at: Instant) -> Pin<Box<dyn AsyncTimer>> {
        Box::pin(Timer(Box::pin(tokio::time::sleep_until(at.into()))))
    }

    fn spawn(&self, driver: Pin<Box<dyn Future<Output = ()> + Send>>) {
        let _detached = self.tasks.spawn("quic", Driver::new(driver, self.socket.clone()));
    }

    fn wrap_udp_socket(&self, socket: StdUdpSocket) -> io::Result<Arc<dyn AsyncUdpSocket>> {
        Ok(Arc::new(TunnelSocket::new(socket)?))
    }

    fn now(&self) -> Instant {
        tokio::time::Instant::now().into_std()
    }
}

/// `tokio::time::Sleep` by another name, because the trait is quinn's and the type tokio's.
#[derive(Debug)]
struct Timer(Pin<Box<tokio::time::Sleep>>);

impl AsyncTimer for Timer {
    fn reset(mut self: Pin<&mut Self>, at: Instant) {
        tokio::time::Sleep::reset(self.0.as_mut(), at.into());
    }

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        Future::poll(self.0.as_mut(), cx)
    }
}

/// The socket all connections share.
#[derive(Debug)]
pub(crate) struct TunnelSocket {
    io: UdpSocket,
    state: UdpSocketState,
}

impl TunnelSocket {
    /// The socket as quinn wants it.
    ///
    /// # Errors
    /// The socket cannot be registered, or lacks an option quinn needs.
    pub(crate) fn new(socket: StdUdpSocket) -> io::Result<Self> {
        let state = UdpSocketState::new(UdpSockRef::from(&socket))?;
        Ok(Self { io: UdpSocket::from_std(socket)?, state })
    }

    fn send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        self.io
            .try_io(Interest::WRITABLE, || self.state.try_send(UdpSockRef::from(&self.io), transmit))
            .or_else(unless_blocked)
    }
}

/// A datagram that the network refuses (no route, too big) is a lost packet, which QUIC repairs; an error would end the
/// connection.
fn unless_blocked(error: io::Error) -> io::Result<()> {
    if error.kind() == io::ErrorKind::WouldBlock {
        return Err(error);
    }
    tracing::trace!(%error, "a datagram was not sent");
    Ok(())
}

impl AsyncUdpSocket for TunnelSocket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(WhenWritable { socket: self, wait: None })
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        CURRENT.with_borrow_mut(|current| match current {
            Some(batch) => batch.push(self, transmit),
            None => self.send(transmit),
        })
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        buffers: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.io.poll_recv_ready(cx))?;
            let received = self
                .io
                .try_io(Interest::READABLE, || self.state.recv(UdpSockRef::from(&self.io), buffers, meta));
            match received {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                other => return Poll::Ready(other),
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.io.local_addr()
    }

    fn may_fragment(&self) -> bool {
        self.state.may_fragment()
    }

    fn max_transmit_segments(&self) -> usize {
        self.state.max_gso_segments()
    }

    fn max_receive_segments(&self) -> usize {
        self.state.gro_segments()
    }
}

type Writable = Pin<Box<dyn Future<Output = io::Result<()>> + Send + Sync>>;

struct WhenWritable {
    socket: Arc<TunnelSocket>,
    wait: Option<Writable>,
}

impl std::fmt::Debug for WhenWritable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WhenWritable").finish_non_exhaustive()
    }
}

impl UdpPoller for WhenWritable {
    fn poll_writable(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        poll_writable(&this.socket, &mut this.wait, cx)
    }
}

/// Readiness is nearly always there, and then costs no allocation.
fn poll_writable(
    socket: &Arc<TunnelSocket>,
    wait: &mut Option<Writable>,
    cx: &mut Context<'_>,
) -> Poll<io::Result<()>> {
    if wait.is_none() && socket.io.try_io(Interest::WRITABLE, || Ok(())).is_ok() {
        return Poll::Ready(Ok(()));
    }
    let future = wait.get_or_insert_with(|| {
        let socket = socket.clone();
        Box::pin(async move { socket.io.writable().await })
    });
    let result = ready!(future.as_mut().poll(cx));
    *wait = None;
    Poll::Ready(result)
}

thread_local! {
    /// The batch of the driver that this thread polls now.
    static CURRENT: RefCell<Option<Batch>> = const { RefCell::new(None) };
}

/// Datagrams of one size, to one destination; the last may be shorter.
#[derive(Debug, Default)]
struct Batch {
    octets: Vec<u8>,
    segment: usize,
    to: Option<(SocketAddr, Option<EcnCodepoint>, Option<std::net::IpAddr>)>,
    /// A shorter datagram stands at the end: nothing can follow.
    closed: bool,
}

impl Batch {
    fn push(&mut self, socket: &TunnelSocket, transmit: &Transmit<'_>) -> io::Result<()> {
        let to = (transmit.destination, transmit.ecn, transmit.src_ip);
        let segment = transmit.segment_size.unwrap_or(transmit.contents.len());
        if !self.octets.is_empty()
            && !self.continues(to, segment, transmit.contents.len(), socket.max_transmit_segments())
        {
            self.flush(socket)?;
        }
        if self.octets.is_empty() {
            self.to = Some(to);
            self.segment = segment;
        }
        self.octets.extend_from_slice(transmit.contents);
        self.closed = !self.octets.len().is_multiple_of(self.segment.max(1));
        Ok(())
    }

    fn continues(
        &self,
        to: (SocketAddr, Option<EcnCodepoint>, Option<std::net::IpAddr>),
        segment: usize,
        length: usize,
        most_segments: usize,
    ) -> bool {
        let total = self.octets.len() + length;
        !self.closed
            && self.to == Some(to)
            && (segment == self.segment || length < self.segment)
            && total <= MAX_BATCH
            && total.div_ceil(self.segment.max(1)) <= most_segments
    }

    fn flush(&mut self, socket: &TunnelSocket) -> io::Result<()> {
        let Some((destination, ecn, src_ip)) = self.to.filter(|_| !self.octets.is_empty()) else {
            return Ok(());
        };
        let segment_size = (self.octets.len() > self.segment).then_some(self.segment);
        socket.send(&Transmit { destination, ecn, contents: &self.octets, segment_size, src_ip })?;
        self.octets.clear();
        self.closed = false;
        Ok(())
    }
}

/// A driver task of quinn, whose datagrams leave in batches.
struct Driver {
    inner: Pin<Box<dyn Future<Output = ()> + Send>>,
    socket: Arc<TunnelSocket>,
    batch: Batch,
    wait: Option<Writable>,
    wakeup: Arc<Wakeup>,
    waker: Waker,
}

/// Tells a wake-up during a poll (there is more to do now) from one between polls.
#[derive(Default)]
struct Wakeup {
    woken: AtomicBool,
    polling: AtomicBool,
    task: AtomicWaker,
}

impl Wake for Wakeup {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.woken.store(true, Ordering::SeqCst);
        if !self.polling.load(Ordering::SeqCst) {
            self.task.wake();
        }
    }
}

impl Driver {
    fn new(inner: Pin<Box<dyn Future<Output = ()> + Send>>, socket: Arc<TunnelSocket>) -> Self {
        let wakeup = Arc::new(Wakeup::default());
        let waker = Waker::from(wakeup.clone());
        Self { inner, socket, batch: Batch::default(), wait: None, wakeup, waker }
    }

    /// Sends the batch, or registers for the moment when that is possible.
    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while let Err(_blocked) = self.batch.flush(&self.socket) {
            if ready!(poll_writable(&self.socket, &mut self.wait, cx)).is_err() {
                break; // the socket is gone, and the connection's own timeout says so
            }
        }
        Poll::Ready(())
    }

    /// Polls the driver while it says that it has more, gathering what it sends.
    fn poll_inner(&mut self) -> Poll<()> {
        let _gathering = Gathering::begin(&mut self.batch);
        for _ in 0..POLLS {
            self.wakeup.woken.store(false, Ordering::SeqCst);
            let poll = self.inner.as_mut().poll(&mut Context::from_waker(&self.waker));
            if poll.is_ready() {
                return poll;
            }
            if !self.wakeup.woken.load(Ordering::SeqCst) {
                break;
            }
        }
        Poll::Pending
    }
}

impl Future for Driver {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = &mut *self;
        this.wakeup.task.register(cx.waker());
        ready!(this.poll_flush(cx));
        this.wakeup.polling.store(true, Ordering::SeqCst);
        let poll = this.poll_inner();
        this.wakeup.polling.store(false, Ordering::SeqCst);
        let flushed = this.poll_flush(cx);
        if poll.is_pending() && flushed.is_ready() && this.wakeup.woken.load(Ordering::SeqCst) {
            cx.waker().wake_by_ref();
        }
        poll
    }
}

/// Puts a batch where [`TunnelSocket::try_send`] finds it, and takes it back even when the driver panics.
struct Gathering<'a>(&'a mut Batch);

impl<'a> Gathering<'a> {
    fn begin(batch: &'a mut Batch) -> Self {
        CURRENT.set(Some(std::mem::take(batch)));
        Self(batch)
    }
}

impl Drop for Gathering<'_> {
    fn drop(&mut self) {
        *self.0 = CURRENT.take().unwrap_or_default();
    }
}
