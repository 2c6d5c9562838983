//! A byte stream that can be cut from outside and remembers why it failed.
//!
//! Cut: a control connection whose trust is withdrawn ends at once, whatever gRPC streams still run on it. Remembers: between
//! the socket and the caller of a gRPC method the reason of a failure is lost, and in TLS 1.3 that is where a client learns
//! that its certificate was refused.

use std::{
    io,
    pin::Pin,
    sync::{Arc, OnceLock},
    task::{Context, Poll},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

/// The first error of a stream.
#[derive(Debug, Clone, Default)]
pub(crate) struct Cause(Arc<OnceLock<io::Error>>);

impl Cause {
    pub(crate) fn get(&self) -> Option<&io::Error> {
        self.0.get()
    }

    /// Whether both are of one stream.
    pub(crate) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

/// A stream, the token that cuts it, and what it failed of.
pub(crate) struct Severable<T> {
    io: T,
    cut: Pin<Box<WaitForCancellationFutureOwned>>,
    cause: Cause,
}

impl<T> Severable<T> {
    /// `io`, until `cut` is cancelled.
    pub(crate) fn new(io: T, cut: CancellationToken) -> Self {
        Self { io, cut: Box::pin(cut.cancelled_owned()), cause: Cause::default() }
    }

    /// Where the first error will be found.
    pub(crate) fn cause(&self) -> Cause {
        self.cause.clone()
    }

    fn keep(&self, error: io::Error) -> io::Error {
        let kind = error.kind();
        // Only the first one is the reason.
        let _later = self.cause.0.set(error);
        kind.into()
    }
}

impl<T: AsyncRead + Unpin> Severable<T> {
    /// A peer that refuses us says why and closes; what we then write fails before what it said is read. So a failed write
    /// looks for the reason first.
    fn keep_write(&mut self, error: io::Error, cx: &mut Context<'_>) -> io::Error {
        let mut scratch = [0; 512];
        let mut buf = ReadBuf::new(&mut scratch);
        match Pin::new(&mut self.io).poll_read(cx, &mut buf) {
            Poll::Ready(Err(reason)) => self.keep(reason),
            _ => self.keep(error),
        }
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Severable<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.cut.as_mut().poll(cx).is_ready() {
            let error = io::Error::new(io::ErrorKind::ConnectionAborted, "trust was withdrawn or changed");
            return Poll::Ready(Err(self.keep(error)));
        }
        Pin::new(&mut self.io).poll_read(cx, buf).map_err(|e| self.keep(e))
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Severable<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.io).poll_write(cx, buf);
        result.map_err(|e| self.keep_write(e, cx))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let result = Pin::new(&mut self.io).poll_flush(cx);
        result.map_err(|e| self.keep_write(e, cx))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.io).poll_write_vectored(cx, bufs);
        result.map_err(|e| self.keep_write(e, cx))
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
}
