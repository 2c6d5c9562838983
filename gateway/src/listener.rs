//! Import listeners: accept streams, or take datagrams, and hand them on.

use std::{
    collections::HashMap, io, net::SocketAddr, os::unix::fs::FileTypeExt, path::Path, sync::Arc,
    time::Duration,
};

use carrick_gateway_core::DropReason;
use carrick_model::ListenAddress;
use carrick_runtime::Tasks;
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::{
    net::{TcpListener, UdpSocket, UnixListener},
    sync::mpsc,
};

use crate::{
    association::{self, Packet, Receiver},
    flow::FlowPermit,
    gateway::{Import, Shared},
    local::{LocalStream, tune},
    outbound,
};

/// Connections that wait to be accepted; the kernel caps it at net.core.somaxconn.
const BACKLOG: i32 = 4096;
/// A rest after an accept that failed for want of descriptors or memory.
const BREATHER: Duration = Duration::from_millis(50);
/// Datagrams of one client that wait while its association opens or its tunnel is full.
const CLIENT_QUEUE: usize = 256;
/// How often ended associations are forgotten.
const SWEEP: Duration = Duration::from_secs(10);

/// A bound listener that does not accept yet.
pub(crate) enum Bound {
    Tcp(TcpListener),
    Unix(UnixListener),
    Udp(UdpSocket),
}

impl Bound {
    /// Binds.
    ///
    /// # Errors
    /// The address is taken, not ours, or needs a privilege; a path has something on it that is no dead socket.
    pub(crate) fn bind(address: &ListenAddress) -> io::Result<Self> {
        match address {
            ListenAddress::Tcp(address) => bind_tcp(*address).map(Self::Tcp),
            ListenAddress::Unix(path) => bind_unix(path).map(Self::Unix),
            ListenAddress::Udp(address) => {
                let socket = std::net::UdpSocket::bind(address)?;
                socket.set_nonblocking(true)?;
                UdpSocket::from_std(socket).map(Self::Udp)
            }
        }
    }

    /// Where it is bound; tells the port that the system chose.
    ///
    /// # Errors
    /// As the system says.
    pub(crate) fn address(&self, asked: &ListenAddress) -> io::Result<ListenAddress> {
        Ok(match self {
            Self::Tcp(listener) => ListenAddress::Tcp(listener.local_addr()?),
            Self::Udp(socket) => ListenAddress::Udp(socket.local_addr()?),
            Self::Unix(_) => asked.clone(),
        })
    }

    /// Hands clients on until `tasks` stop.
    pub(crate) async fn serve(self, shared: Arc<Shared>, import: Arc<Import>, tasks: Tasks) {
        let stopping = tasks.stopping();
        tokio::select! {
            () = stopping => {}
            () = async {
                match self {
                    Self::Tcp(listener) => accept_tcp(&shared, &import, &listener).await,
                    Self::Unix(listener) => accept_unix(&shared, &import, &listener).await,
                    Self::Udp(socket) => sort_datagrams(&shared, &import, Arc::new(socket)).await,
                }
            } => {}
        }
    }
}

fn bind_tcp(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    tune(&SockRef::from(&socket));
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

/// A socket file that nobody listens on is left over from a crash and is replaced; anything else is left alone.
fn bind_unix(path: &Path) -> io::Result<UnixListener> {
    match UnixListener::bind(path) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            let is_socket = std::fs::symlink_metadata(path)?.file_type().is_socket();
            if !is_socket || std::os::unix::net::UnixStream::connect(path).is_ok() {
                return Err(error);
            }
            std::fs::remove_file(path)?;
            UnixListener::bind(path)
        }
        bound => bound,
    }
}

async fn accept_tcp(shared: &Arc<Shared>, import: &Arc<Import>, listener: &TcpListener) {
    loop {
        match listener.accept().await {
            Ok((stream, client)) => hand_on(shared, import, LocalStream::Tcp(stream), client.to_string()),
            Err(error) => breathe(import, &error).await,
        }
    }
}

async fn accept_unix(shared: &Arc<Shared>, import: &Arc<Import>, listener: &UnixListener) {
    loop {
        match listener.accept().await {
            Ok((stream, _unnamed)) => {
                let client = stream
                    .peer_cred()
                    .map_or_else(|_| "unix".into(), |cred| format!("unix:uid={}", cred.uid()));
                hand_on(shared, import, LocalStream::Unix(stream), client);
            }
            Err(error) => breathe(import, &error).await,
        }
    }
}

async fn breathe(import: &Import, error: &io::Error) {
    tracing::warn!(service = %import.service, %error, hint = "raise the limit of open files (LimitNOFILE=)", "a client could not be accepted");
    tokio::time::sleep(BREATHER).await;
}

fn hand_on(shared: &Arc<Shared>, import: &Arc<Import>, local: LocalStream, client: String) {
    let Some(permit) = permit(shared, import) else { return local.reset_on_drop() };
    let _detached = shared
        .tasks
        .spawn("outbound-flow", outbound::carry(shared.clone(), import.clone(), local, client, permit));
}

fn permit(shared: &Shared, import: &Import) -> Option<FlowPermit> {
    let permit = shared.limit.take();
    if permit.is_none() {
        shared.imported.refused(DropReason::TooManyFlows.as_str());
        if shared.refusal_log.allow(std::net::Ipv4Addr::UNSPECIFIED.into()) {
            tracing::warn!(service = %import.service, most = shared.settings.max_flows, hint = "raise `limits.max_flows`", "too many flows");
        }
    }
    permit
}

async fn sort_datagrams(shared: &Arc<Shared>, import: &Arc<Import>, socket: Arc<UdpSocket>) {
    let mut clients: HashMap<SocketAddr, mpsc::Sender<Packet>> = HashMap::new();
    let mut receiver = Receiver::default();
    let mut sweep = tokio::time::interval(SWEEP);
    let full = shared.metrics.datagrams_dropped.of(DropReason::QueueFull.as_str());
    loop {
        let (packet, client) = tokio::select! {
            received = receiver.receive(&socket) => match received {
                Ok(received) => received,
                Err(error) => {
                    tracing::debug!(service = %import.service, %error, "an import's UDP socket reports an error");
                    continue;
                }
            },
            _tick = sweep.tick() => {
                clients.retain(|_, queue| !queue.is_closed());
                continue;
            }
        };
        let known = clients.get(&client).filter(|queue| !queue.is_closed());
        let queue = match known {
            Some(queue) => queue,
            None => {
                let Some(permit) = permit(shared, import) else { continue };
                let (queue, packets) = mpsc::channel(CLIENT_QUEUE);
                let carrying = association::carry(
                    shared.clone(),
                    import.clone(),
                    socket.clone(),
                    client,
                    packets,
                    permit,
                );
                let _detached = shared.tasks.spawn("outbound-association", carrying);
                clients.entry(client).insert_entry(queue).into_mut()
            }
        };
        if queue.try_send(packet).is_err() {
            full.inc();
        }
    }
}
