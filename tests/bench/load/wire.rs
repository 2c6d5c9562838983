//! What a client says first, and the sockets both sides use.

use std::{
    io::{self, Read, Write},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

/// Bytes per system call of a bulk flow: large enough to make calls rare, small enough to stay in the L2 cache.
pub(crate) const BULK: usize = 256 * 1024;
/// Bytes of a short request and of its response.
pub(crate) const SHORT: usize = 64;
/// Length of the first message.
pub(crate) const HEADER: usize = 16;

/// What the rest of a connection is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wish {
    /// The server reads to the end, then answers with the number of bytes as a little-endian `u64`.
    Sink,
    /// The server sends until the client is gone.
    Source,
    /// The server sends back what it reads.
    Echo,
    /// [`SHORT`] bytes each way, then the server closes first, so that it keeps the TIME_WAIT state and the client's
    /// ports last.
    Short,
    /// One byte from the server, then silence until the client closes.
    Idle,
}

impl Wish {
    const ALL: [Self; 5] = [Self::Sink, Self::Source, Self::Echo, Self::Short, Self::Idle];

    /// The first message.
    pub(crate) fn header(self) -> [u8; HEADER] {
        let mut header = *b"carrick-load/1 \0";
        header[HEADER - 1] = Self::ALL.iter().position(|w| *w == self).unwrap_or(0) as u8;
        header
    }

    /// The wish in a first message, if it is one.
    pub(crate) fn parse(header: &[u8; HEADER]) -> Option<Self> {
        Self::ALL.into_iter().find(|wish| wish.header() == *header)
    }
}

/// Connects, without delay for small writes, and says the wish.
pub(crate) fn open(to: SocketAddr, wish: Wish) -> io::Result<TcpStream> {
    let mut stream = TcpStream::connect_timeout(&to, Duration::from_secs(5))?;
    stream.set_nodelay(true)?;
    // Nothing may hang: a flow that moves no byte for this long is broken.
    stream.set_read_timeout(Some(Duration::from_secs(20)))?;
    stream.set_write_timeout(Some(Duration::from_secs(20)))?;
    stream.write_all(&wish.header())?;
    Ok(stream)
}

/// Reads the closing count of a [`Wish::Sink`] flow.
pub(crate) fn read_count(stream: &mut TcpStream) -> io::Result<u64> {
    let mut count = [0; 8];
    stream.read_exact(&mut count)?;
    Ok(u64::from_le_bytes(count))
}
