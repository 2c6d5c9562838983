//! The sockets of the DNS server.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use carrick_runtime::Tasks;
use carrick_telemetry::Metrics;
use hickory_resolver::proto::op::ResponseCode;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, UdpSocket},
    sync::Semaphore,
    time::{sleep, timeout},
};
use tracing::{debug, warn};

use super::{
    message::{Reply, Transport, respond},
    zone::{ZoneHandle, ZoneKind},
};

/// Questions are small; what is longer is not one of ours.
const MAX_QUESTION: usize = 4096;
/// TCP clients served at once. They hold a file descriptor each, and UDP serves everybody else meanwhile.
const MAX_TCP_CLIENTS: usize = 128;
/// A TCP client is idle for at most this long (RFC 7766 section 6.2.3 asks for seconds).
const TCP_IDLE: Duration = Duration::from_secs(10);
/// Pause after the system refused us a socket operation, so that we do not spin.
const BREATH: Duration = Duration::from_millis(50);
/// Attempts to find a port that is free for UDP and TCP when the system chooses.
const PORT_ATTEMPTS: usize = 16;

/// A DNS server on one address, UDP and TCP. Bound early, serving once told to.
///
/// Bind it to a specific address where the host has several: answers leave from the address that routing chooses.
#[derive(Debug)]
pub struct Server {
    udp: UdpSocket,
    tcp: TcpListener,
    addr: SocketAddr,
    shared: Shared,
}

#[derive(Debug, Clone)]
struct Shared {
    zone: ZoneHandle,
    metrics: Metrics,
}

/// The DNS server cannot listen.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {addr} ({transport}) for DNS")]
pub struct BindError {
    /// The address.
    pub addr: SocketAddr,
    /// `UDP` or `TCP`.
    pub transport: &'static str,
    /// What the system says.
    #[source]
    pub source: io::Error,
}

impl BindError {
    /// What the operator can do about it.
    pub fn hint(&self) -> &'static str {
        match self.source.kind() {
            io::ErrorKind::AddrInUse => {
                "another DNS server has this address (`ss -lunp`): choose another under `listen.dns:`, 127.0.0.1:5353 for example"
            }
            io::ErrorKind::PermissionDenied => {
                "ports below 1024 need CAP_NET_BIND_SERVICE: grant it, or choose a higher port under `listen.dns:`"
            }
            io::ErrorKind::AddrNotAvailable => "this host does not have the address: correct `listen.dns:`",
            _ => "correct `listen.dns:`",
        }
    }
}

impl Server {
    /// Takes the address for UDP and TCP. Port 0 lets the system choose one that is free for both.
    pub async fn bind(addr: SocketAddr, zone: ZoneHandle, metrics: Metrics) -> Result<Self, BindError> {
        let mut attempts = if addr.port() == 0 { PORT_ATTEMPTS } else { 1 };
        loop {
            attempts -= 1;
            match bind_both(addr).await {
                Ok((udp, tcp, addr)) => return Ok(Self { udp, tcp, addr, shared: Shared { zone, metrics } }),
                Err(error) if attempts == 0 || error.source.kind() != io::ErrorKind::AddrInUse => {
                    return Err(error);
                }
                Err(_) => {}
            }
        }
    }

    /// The address it listens on, with the port that the system chose.
    pub fn local_addr(&self) -> SocketAddr {
        self.addr
    }

    /// Answers questions until `tasks` stops.
    pub fn serve(self, tasks: &Tasks) {
        let Self { udp, tcp, shared, .. } = self;
        tasks.spawn("dns over udp", serve_udp(udp, shared.clone(), tasks.clone()));
        tasks.spawn("dns over tcp", serve_tcp(tcp, shared, tasks.clone()));
    }
}

async fn bind_both(addr: SocketAddr) -> Result<(UdpSocket, TcpListener, SocketAddr), BindError> {
    let fault = |addr, transport| move |source| BindError { addr, transport, source };
    let tcp = TcpListener::bind(addr).await.map_err(fault(addr, "TCP"))?;
    let addr = tcp.local_addr().map_err(fault(addr, "TCP"))?;
    let udp = UdpSocket::bind(addr).await.map_err(fault(addr, "UDP"))?;
    Ok((udp, tcp, addr))
}

async fn serve_udp(socket: UdpSocket, shared: Shared, tasks: Tasks) {
    let mut buffer = [0; MAX_QUESTION];
    let stopping = tasks.stopping();
    tokio::pin!(stopping);
    loop {
        let received = tokio::select! {
            () = &mut stopping => return,
            received = socket.recv_from(&mut buffer) => received,
        };
        match received {
            Ok((len, from)) => {
                if let Some(bytes) = shared.respond(&buffer[..len], Transport::Udp) {
                    // A full send buffer loses the answer, as the network may: the client asks again.
                    if let Err(error) = socket.try_send_to(&bytes, from) {
                        debug!(%error, "a DNS answer was not sent");
                    }
                }
            }
            Err(error) => {
                warn!(%error, "the DNS server cannot receive");
                sleep(BREATH).await;
            }
        }
    }
}

async fn serve_tcp(listener: TcpListener, shared: Shared, tasks: Tasks) {
    let places = Arc::new(Semaphore::new(MAX_TCP_CLIENTS));
    let stopping = tasks.stopping();
    tokio::pin!(stopping);
    loop {
        let accepted = tokio::select! {
            () = &mut stopping => return,
            accepted = async {
                // Never closed. Further clients wait in the backlog.
                let place = Arc::clone(&places).acquire_owned().await.ok();
                (listener.accept().await, place)
            } => accepted,
        };
        match accepted {
            (Ok((stream, _)), place) => {
                let (shared, stop) = (shared.clone(), tasks.stopping());
                tasks.spawn("dns client", async move {
                    tokio::select! {
                        () = stop => {}
                        result = serve_client(stream, &shared) => {
                            if let Err(error) = result {
                                debug!(%error, "a DNS client over TCP ended");
                            }
                        }
                    }
                    drop(place);
                });
            }
            (Err(error), _) => {
                warn!(%error, "the DNS server cannot accept");
                sleep(BREATH).await;
            }
        }
    }
}

/// Questions and answers one after another, each behind its length (RFC 1035 section 4.2.2).
async fn serve_client(mut stream: TcpStream, shared: &Shared) -> io::Result<()> {
    let mut question = vec![0; MAX_QUESTION];
    loop {
        let read = async {
            let len = usize::from(stream.read_u16().await?);
            let Some(room) = question.get_mut(..len) else {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    "a question of this length is not answered",
                ));
            };
            stream.read_exact(room).await?;
            Ok(len)
        };
        let len = timeout(TCP_IDLE, read).await??;
        let Some(bytes) = shared.respond(&question[..len], Transport::Tcp) else { return Ok(()) };
        let Ok(len) = u16::try_from(bytes.len()) else { return Ok(()) };
        // One write, so that the length does not travel alone.
        let framed = [&len.to_be_bytes()[..], &bytes].concat();
        timeout(TCP_IDLE, stream.write_all(&framed)).await??;
    }
}

impl Shared {
    fn respond(&self, bytes: &[u8], transport: Transport) -> Option<Vec<u8>> {
        let reply = respond(&self.zone.get(), bytes, transport)?;
        self.metrics.dns_queries.of2(zone_label(reply.zone), outcome_label(&reply)).inc();
        Some(reply.bytes)
    }
}

fn zone_label(zone: ZoneKind) -> &'static str {
    match zone {
        ZoneKind::Own => "own",
        ZoneKind::Imports => "imports",
        ZoneKind::Foreign => "none",
    }
}

fn outcome_label(reply: &Reply) -> &'static str {
    match reply.code {
        ResponseCode::NoError if reply.no_data => "no_data",
        ResponseCode::NoError => "answered",
        ResponseCode::NXDomain => "no_such_name",
        ResponseCode::Refused => "refused",
        ResponseCode::NotImp => "not_implemented",
        ResponseCode::BADVERS => "bad_version",
        _ => "malformed",
    }
}
