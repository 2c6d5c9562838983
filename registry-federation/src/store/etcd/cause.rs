//! A stream that remembers why it failed.
//!
//! Between the socket and the caller of a gRPC method the reason of a failure is lost, and in TLS 1.3 that is where a client
//! learns that its certificate was refused: after its own side of the handshake has ended.

use std::{
    io,
    pin::Pin,
    sync::{Arc, OnceLock},
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// The first error of a stream.
#[derive(Debug, Clone, Default)]
pub(super) struct Cause(Arc<OnceLock<Arc<io::Error>>>);

impl Cause {
    pub(super) fn get(&self) -> Option<Arc<io::Error>> {
        self.0.get().cloned()
    }
}

/// A stream and its cause.
pub(super) struct Remembering<S> {
    io: S,
    cause: Cause,
}

impl<S: AsyncRead + Unpin> Remembering<S> {
    pub(super) fn new(io: S, cause: Cause) -> Self {
        Self { io, cause }
    }

    fn keep(&self, error: io::Error) -> io::Error {
        let kind = error.kind();
        // Only the first one is the reason.
        let _later = self.cause.0.set(Arc::new(error));
        kind.into()
    }

    /// Who refuses us says why and closes; what we then write fails before that is read. So it is looked for first, and
    /// waited for: a socket that takes nothing any more can always be read, if only to its end.
    fn keep_write(&mut self, error: io::Error, cx: &mut Context<'_>) -> Poll<io::Error> {
        let mut scratch = [0; 512];
        Poll::Ready(match ready!(Pin::new(&mut self.io).poll_read(cx, &mut ReadBuf::new(&mut scratch))) {
            Err(reason) => self.keep(reason),
            Ok(()) => self.keep(error),
        })
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Remembering<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let result = ready!(Pin::new(&mut self.io).poll_read(cx, buf));
        Poll::Ready(result.map_err(|error| self.keep(error)))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Remembering<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let result = ready!(Pin::new(&mut self.io).poll_write(cx, buf));
        match result {
            Ok(done) => Poll::Ready(Ok(done)),
            Err(error) => self.keep_write(error, cx).map(Err),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let result = ready!(Pin::new(&mut self.io).poll_flush(cx));
        match result {
            Ok(done) => Poll::Ready(Ok(done)),
            Err(error) => self.keep_write(error, cx).map(Err),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let result = ready!(Pin::new(&mut self.io).poll_write_vectored(cx, bufs));
        match result {
            Ok(done) => Poll::Ready(Ok(done)),
            Err(error) => self.keep_write(error, cx).map(Err),
        }
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
}
