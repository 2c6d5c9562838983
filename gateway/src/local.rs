//! Local streams: TCP connections and Unix stream sockets behind one face.

use std::{future::Future, io, path::Path, time::Duration};

use carrick_model::{ExportTarget, Host, HostPort};
use socket2::SockRef;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, UnixStream, tcp, unix},
};

/// A stream to a client or a target.
#[derive(Debug)]
pub(crate) enum LocalStream {
    /// A TCP connection.
    Tcp(TcpStream),
    /// A Unix stream socket.
    Unix(UnixStream),
}

/// A stream on its way from one thread to another.
#[derive(Debug)]
pub(crate) enum Moving {
    Tcp(std::net::TcpStream),
    Unix(std::os::unix::net::UnixStream),
}

impl Moving {
    /// The stream on the thread that calls this.
    ///
    /// # Errors
    /// The thread cannot watch more descriptors.
    pub(crate) fn arrive(self) -> io::Result<LocalStream> {
        match self {
            Self::Tcp(tcp) => TcpStream::from_std(tcp).map(LocalStream::Tcp),
            Self::Unix(unix) => UnixStream::from_std(unix).map(LocalStream::Unix),
        }
    }
}

/// A half that can be waited for without holding a buffer: an idle flow costs none.
pub(crate) trait ReadSide: AsyncRead + Unpin + Send {
    /// Completes when a read would not block.
    fn readable(&self) -> impl Future<Output = io::Result<()>> + Send;
}

/// The other half.
pub(crate) trait WriteSide: AsyncWrite + Unpin + Send {}

impl ReadSide for tcp::ReadHalf<'_> {
    fn readable(&self) -> impl Future<Output = io::Result<()>> + Send {
        tcp::ReadHalf::readable(self)
    }
}

impl ReadSide for unix::ReadHalf<'_> {
    fn readable(&self) -> impl Future<Output = io::Result<()>> + Send {
        unix::ReadHalf::readable(self)
    }
}

impl WriteSide for tcp::WriteHalf<'_> {}
impl WriteSide for unix::WriteHalf<'_> {}

/// A silent client behind a dead link is noticed after about two minutes (RFC 9293 section 3.8.4 leaves the time open).
const KEEPALIVE: Duration = Duration::from_secs(60);

/// No Nagle delay, and keep-alive probes. What a listener accepts has the options of the listener (tcp(7)).
pub(crate) fn tune(socket: &SockRef<'_>) {
    // A stream that refuses an option still carries bytes.
    let _nodelay = socket.set_tcp_nodelay(true);
    let probes =
        socket2::TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE / 4).with_retries(4);
    let _keepalive = socket.set_tcp_keepalive(&probes);
}

impl LocalStream {
    /// Dials a target.
    ///
    /// # Errors
    /// As the system says; [`io::ErrorKind::TimedOut`] after `timeout`.
    pub(crate) async fn dial(target: &ExportTarget, timeout: Duration) -> io::Result<Self> {
        let dialling = async {
            match target {
                ExportTarget::Tcp(to) => {
                    let stream = dial_tcp(to).await?;
                    tune(&SockRef::from(&stream));
                    Ok(Self::Tcp(stream))
                }
                ExportTarget::Unix(path) => dial_unix(path).await,
                ExportTarget::Udp(_) => Err(io::ErrorKind::Unsupported.into()),
            }
        };
        tokio::time::timeout(timeout, dialling).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
    }

    /// Takes the stream off this thread.
    ///
    /// # Errors
    /// As the system says.
    pub(crate) fn depart(self) -> io::Result<Moving> {
        match self {
            Self::Tcp(tcp) => tcp.into_std().map(Moving::Tcp),
            Self::Unix(unix) => unix.into_std().map(Moving::Unix),
        }
    }

    /// Ends a TCP connection with a reset instead of a FIN when it is dropped.
    pub(crate) fn reset_on_drop(&self) {
        if let Self::Tcp(stream) = self {
            // Failing this, the client sees a FIN: still an end.
            let _linger = SockRef::from(stream).set_linger(Some(Duration::ZERO));
        }
    }
}

async fn dial_tcp(to: &HostPort) -> io::Result<TcpStream> {
    match &to.host {
        Host::Ip(ip) => TcpStream::connect((*ip, to.port)).await,
        Host::Name(name) => TcpStream::connect((name.as_str(), to.port)).await,
    }
}

async fn dial_unix(path: &Path) -> io::Result<LocalStream> {
    UnixStream::connect(path).await.map(LocalStream::Unix)
}
