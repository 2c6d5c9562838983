//! Applications that a test writes itself: a function per connection, on a thread, in a namespace.

use std::{
    io::{self, Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket},
    sync::Arc,
    time::Duration,
};

use rustix::net::{Shutdown as Direction, shutdown};

use super::Namespace;

/// A TCP server; dropping it closes the listener, not the flows.
pub struct TcpApp {
    listener: Arc<TcpListener>,
}

/// A UDP server that sends every datagram back; dropping it ends it.
pub struct UdpEcho {
    socket: Arc<UdpSocket>,
}

impl TcpApp {
    /// Calls `serve` for every connection, each on a thread of its own.
    pub fn serve(ns: &Namespace, at: SocketAddr, serve: impl Fn(TcpStream) + Send + Sync + 'static) -> Self {
        let listener = Arc::new(ns.listen(at));
        let (accepting, serve) = (Arc::clone(&listener), Arc::new(serve));
        std::thread::spawn(move || {
            while let Ok((stream, _)) = accepting.accept() {
                let serve = Arc::clone(&serve);
                std::thread::spawn(move || serve(stream));
            }
        });
        Self { listener }
    }

    /// Sends back what it reads, and ends when the client has ended.
    pub fn echo(ns: &Namespace, at: SocketAddr) -> Self {
        Self::serve(ns, at, echo)
    }
}

/// Sends back what comes, and the end after it.
pub fn echo(mut stream: TcpStream) {
    let Ok(mut back) = stream.try_clone() else { return };
    let _ = stream.set_nodelay(true);
    if io::copy(&mut stream, &mut back).is_ok() {
        let _ = back.shutdown(Shutdown::Write);
    }
}

impl Drop for TcpApp {
    fn drop(&mut self) {
        // Wakes the thread in accept(2).
        let _ = shutdown(&self.listener, Direction::Both);
    }
}

impl UdpEcho {
    /// Starts it.
    pub fn start(ns: &Namespace, at: SocketAddr) -> Self {
        let socket = Arc::new(ns.udp(at, Duration::from_millis(200)));
        let weak = Arc::downgrade(&socket);
        std::thread::spawn(move || {
            let mut buffer = vec![0; 65_536];
            while let Some(socket) = weak.upgrade() {
                if let Ok((size, from)) = socket.recv_from(&mut buffer) {
                    let _ = socket.send_to(&buffer[..size], from);
                }
            }
        });
        Self { socket }
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.socket.local_addr().unwrap()
    }
}

/// Sends bytes over a flow of an echo server and checks that the same come back.
#[track_caller]
pub fn echoes(flow: &mut TcpStream, bytes: &[u8]) {
    try_echo(flow, bytes).unwrap_or_else(|e| panic!("the flow does not echo: {e}"));
}

/// The same for a flow that may be broken.
pub fn try_echo(flow: &mut TcpStream, bytes: &[u8]) -> io::Result<()> {
    flow.write_all(bytes)?;
    let mut back = vec![0; bytes.len()];
    flow.read_exact(&mut back)?;
    if back == bytes { Ok(()) } else { Err(io::Error::other("other bytes came back")) }
}
