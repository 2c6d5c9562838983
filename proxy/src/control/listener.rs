//! The sockets of the control plane: TCP on some addresses, and Unix sockets that speak TLS inside as NSM's do.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
};

use carrick_model::ServeUrl;
use carrick_runtime::{UnixSocket, UnixSocketError};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio_util::either::Either;

use super::{half_open::Source, tune};

/// The sockets, bound and not yet served.
#[derive(Debug)]
pub struct ControlListener {
    addr: SocketAddr,
    pub(super) sockets: Vec<Socket>,
}

/// One of the sockets.
#[derive(Debug)]
pub(super) enum Socket {
    Tcp(TcpListener),
    Unix(UnixSocket),
}

/// A connection as it was accepted.
pub(super) type Wire = Either<TcpStream, UnixStream>;

/// Who called: where from, and as what it counts among the half-open.
#[derive(Debug, Clone)]
pub(super) struct Remote {
    pub(super) name: String,
    pub(super) source: Source,
}

/// An address of the control plane cannot be bound.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// A TCP address.
    #[error("cannot listen on {addr} for the control plane (TCP)")]
    Tcp {
        /// Which address.
        addr: SocketAddr,
        /// The key of the config that gave it.
        key: &'static str,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A Unix socket.
    #[error("cannot listen on a Unix socket for the control plane")]
    Unix(#[from] UnixSocketError),
}

/// The key of the first address.
const CONTROL: &str = "listen.control";
/// The key of the others.
const NSM: &str = "compat.nsm.listen";

impl BindError {
    /// What the operator does next.
    pub fn hint(&self) -> String {
        let (source, key) = match self {
            Self::Tcp { source, key, .. } => (source, key),
            Self::Unix(error) => return error.hint(),
        };
        match source.kind() {
            io::ErrorKind::AddrInUse => {
                format!("another process has the port (`ss -ltnp` shows which); stop it or change `{key}`")
            }
            io::ErrorKind::AddrNotAvailable => {
                format!("the host does not have this address: correct `{key}`")
            }
            io::ErrorKind::PermissionDenied => {
                "ports below 1024 need CAP_NET_BIND_SERVICE; take a higher one".to_owned()
            }
            _ => format!("correct `{key}`"),
        }
    }
}

impl ControlListener {
    /// Takes the port. Connections queue in the system until [`ControlListener::serve`].
    pub async fn bind(addr: SocketAddr) -> Result<Self, BindError> {
        let (listener, addr) = bind_tcp(addr, CONTROL).await?;
        Ok(Self { addr, sockets: vec![Socket::Tcp(listener)] })
    }

    /// Listens on `url` too; a Unix socket gets `mode`. Returns the URL with its real port.
    pub async fn also(&mut self, url: &ServeUrl, mode: u32) -> Result<ServeUrl, BindError> {
        let Some(addr) = url.socket_addr() else {
            let ServeUrl::Unix(path) = url else { return Ok(url.clone()) };
            self.sockets.push(Socket::Unix(UnixSocket::bind(path, mode).await?));
            return Ok(url.clone());
        };
        let everywhere = matches!(url, ServeUrl::Tcp { ip: None, .. });
        let (listener, bound) = match bind_tcp(addr, NSM).await {
            // A host without IPv6 has all its addresses in the other family.
            Err(BindError::Tcp { source, .. }) if everywhere && no_such_family(&source) => {
                bind_tcp(SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), addr.port()), NSM).await?
            }
            bound => bound?,
        };
        self.sockets.push(Socket::Tcp(listener));
        Ok(if everywhere { ServeUrl::Tcp { ip: None, port: bound.port() } } else { bound.into() })
    }

    /// Where the first of the sockets listens, with the real port.
    pub fn local_addr(&self) -> SocketAddr {
        self.addr
    }
}

/// `[::]` takes calls of both families, whatever the system's default is.
async fn bind_tcp(addr: SocketAddr, key: &'static str) -> Result<(TcpListener, SocketAddr), BindError> {
    let fault = |source| BindError::Tcp { addr, key, source };
    let listener = if addr.is_ipv6() && addr.ip().is_unspecified() {
        dual_stack(addr).map_err(fault)?
    } else {
        TcpListener::bind(addr).await.map_err(fault)?
    };
    let bound = listener.local_addr().map_err(fault)?;
    Ok((listener, bound))
}

fn dual_stack(addr: SocketAddr) -> io::Result<TcpListener> {
    /// What tokio and std ask for.
    const BACKLOG: i32 = 1024;
    let socket = socket2::Socket::new(socket2::Domain::IPV6, socket2::Type::STREAM, None)?;
    socket.set_only_v6(false)?;
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&addr.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

fn no_such_family(error: &io::Error) -> bool {
    // IPv6 is not built in, or it is switched off.
    let code = error.raw_os_error();
    code == Some(rustix::io::Errno::AFNOSUPPORT.raw_os_error())
        || error.kind() == io::ErrorKind::AddrNotAvailable
}

impl Socket {
    pub(super) async fn accept(&mut self) -> io::Result<(Wire, Remote)> {
        match self {
            Self::Tcp(listener) => {
                let (stream, remote) = listener.accept().await?;
                tune(&stream);
                let remote = SocketAddr::new(remote.ip().to_canonical(), remote.port());
                let remote = Remote { name: remote.to_string(), source: remote.ip().into() };
                Ok((Either::Left(stream), remote))
            }
            Self::Unix(socket) => {
                let (stream, _) = socket.listener().accept().await?;
                let uid = stream.peer_cred()?.uid();
                let name = format!("user {uid} on {}", socket.path().display());
                Ok((Either::Right(stream), Remote { name, source: Source::User(uid) }))
            }
        }
    }
}
