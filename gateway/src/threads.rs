//! The threads of the data path.
//!
//! A lane and the flows that ride on it speak to each other for every packet. On different threads each packet would wake
//! a thread and move memory from core to core, so all of them share one thread, which does nothing else: the control
//! plane has the process's other runtime. Lanes are dealt out over the threads in turn.

use std::{
    io,
    sync::atomic::{AtomicUsize, Ordering},
};

use tokio::runtime::{Builder, Handle};
use tokio_util::sync::{CancellationToken, DropGuard};

/// The threads; they end when this is dropped, and with them what still runs there.
#[derive(Debug)]
pub(crate) struct Threads {
    handles: Vec<Handle>,
    turn: AtomicUsize,
    _end: DropGuard,
}

impl Threads {
    /// Starts `count` threads, at least one.
    ///
    /// # Errors
    /// The system gives no more threads or descriptors.
    pub(crate) fn start(count: usize) -> io::Result<Self> {
        let end = CancellationToken::new();
        let handles = (0..count.max(1)).map(|n| start(n, end.clone())).collect::<io::Result<_>>()?;
        Ok(Self { handles, turn: AtomicUsize::new(0), _end: end.drop_guard() })
    }

    /// Where the socket is read and where clients are accepted.
    pub(crate) fn first(&self) -> &Handle {
        &self.handles[0]
    }

    /// Where the next lane lives.
    pub(crate) fn next(&self) -> &Handle {
        &self.handles[self.turn.fetch_add(1, Ordering::Relaxed) % self.handles.len()]
    }
}

fn start(number: usize, end: CancellationToken) -> io::Result<Handle> {
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let handle = runtime.handle().clone();
    std::thread::Builder::new()
        .name(format!("carrick-data-{number}"))
        .spawn(move || runtime.block_on(end.cancelled()))?;
    Ok(handle)
}

/// Whether this code runs on the thread of `handle`.
pub(crate) fn is_here(handle: &Handle) -> bool {
    Handle::try_current().is_ok_and(|current| current.id() == handle.id())
}
