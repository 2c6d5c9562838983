//! What a local stream has for its tunnel, a piece at a time.

use std::sync::atomic::{AtomicU64, Ordering};

use bytes::{Bytes, BytesMut};
use carrick_gateway_core::DropReason;
use futures::FutureExt;
use tokio::{io::AsyncReadExt, task::coop};

use crate::local::ReadSide;

/// First read of a flow; small flows need no more.
const FIRST_READ: usize = 4 << 10;
/// Largest read: each wakes whoever fills the socket, and larger ones leave the processor's cache before they are sent.
const LARGEST_READ: usize = 384 << 10;
/// What is read while others wait for the tunnel: it waits for its turn, and has left the processor's cache when that comes.
/// The rest of the turn's octets are read in the turn.
const READ_AHEAD: usize = 16 << 10;

/// The reading half of a local stream.
pub(crate) struct Source<'a, R> {
    read: R,
    /// Size of the next read.
    size: usize,
    /// Octets read.
    tally: &'a AtomicU64,
    /// No more will come.
    ended: Option<Result<(), DropReason>>,
}

impl<'a, R: ReadSide> Source<'a, R> {
    pub(crate) fn new(read: R, tally: &'a AtomicU64) -> Self {
        Self { read, size: FIRST_READ, tally, ended: None }
    }

    /// Completes when there is something to read, or the end. Until then no buffer is held.
    ///
    /// # Errors
    /// The local stream broke.
    pub(crate) async fn readable(&self) -> Result<(), DropReason> {
        self.read.readable().await.map_err(|_| DropReason::LocalReset)
    }

    /// What there is now, with which to wait for a turn; little when others wait already.
    pub(crate) fn first(&mut self, contended: bool) -> Option<Bytes> {
        let most = if contended { READ_AHEAD } else { LARGEST_READ };
        self.read_at_most(most)
    }

    /// What there is now.
    pub(crate) fn next(&mut self) -> Option<Bytes> {
        self.read_at_most(LARGEST_READ)
    }

    /// Whether the local stream has sent all.
    ///
    /// # Errors
    /// The local stream broke.
    pub(crate) fn has_ended(&self) -> Result<bool, DropReason> {
        self.ended.map_or(Ok(false), |ended| ended.map(|()| true))
    }

    fn read_at_most(&mut self, most: usize) -> Option<Bytes> {
        if self.ended.is_some() {
            return None;
        }
        let size = self.size.min(most);
        let mut buffer = BytesMut::with_capacity(size);
        // The half clears its readiness after a short read, so a request and its answer cost no extra system call. Without
        // `unconstrained` a spent budget would look like a socket without bytes, and its reader would turn for ever.
        let n = match coop::unconstrained(self.read.read_buf(&mut buffer)).now_or_never()? {
            Ok(0) => {
                self.ended = Some(Ok(()));
                return None;
            }
            Ok(n) => n,
            Err(_) => {
                self.ended = Some(Err(DropReason::LocalReset));
                return None;
            }
        };
        self.tally.fetch_add(n as u64, Ordering::Relaxed);
        if n == self.size {
            self.size = (n * 2).min(LARGEST_READ);
        } else if n < self.size.min(most) / 8 {
            self.size = (self.size / 2).max(FIRST_READ);
        }
        // What fills its buffer travels as it is; what does not is copied, so that little data does not hold much memory.
        Some(if n >= size / 2 { buffer.freeze() } else { Bytes::copy_from_slice(&buffer) })
    }
}
