//! Flows whose local reader is slower than the tunnel.
//!
//! Such a flow keeps a part of the tunnel's window for itself. `windows` hears of it here at once, grants the tunnel more, or
//! sheds what has stood still.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use carrick_gateway_core::ResetCode;
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::lane::Kill;

/// The slow readers of one tunnel.
#[derive(Debug)]
pub(crate) struct Backlogs {
    behind: AtomicU64,
    /// By number, so that those that came first come first.
    stalled: Mutex<BTreeMap<u64, Kill>>,
    next: AtomicU64,
    changed: Arc<Notify>,
}

/// A flow that has more for its reader than the reader took; counted until dropped.
pub(crate) struct Behind<'a>(&'a Backlogs);

impl Drop for Behind<'_> {
    fn drop(&mut self) {
        self.0.behind.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A flow whose reader takes nothing; may be shed until dropped.
pub(crate) struct Stalled<'a> {
    backlogs: &'a Backlogs,
    number: u64,
}

impl Drop for Stalled<'_> {
    fn drop(&mut self) {
        self.backlogs.stalled.lock().remove(&self.number);
    }
}

impl Backlogs {
    /// Nobody is slow; `changed` is told when somebody is.
    pub(crate) fn new(changed: Arc<Notify>) -> Self {
        Self { behind: AtomicU64::new(0), stalled: Mutex::default(), next: AtomicU64::new(0), changed }
    }

    /// One more flow is behind.
    pub(crate) fn behind(&self) -> Behind<'_> {
        self.behind.fetch_add(1, Ordering::Relaxed);
        self.changed.notify_one();
        Behind(self)
    }

    /// A flow that is behind takes nothing at all any more.
    pub(crate) fn stalled(&self, kill: &Kill) -> Stalled<'_> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        self.stalled.lock().insert(number, kill.clone());
        self.changed.notify_one();
        Stalled { backlogs: self, number }
    }

    /// How many flows are behind, those that are stalled among them.
    pub(crate) fn behind_count(&self) -> u64 {
        self.behind.load(Ordering::Relaxed)
    }

    /// How many flows are stalled.
    pub(crate) fn stalled_count(&self) -> u64 {
        self.stalled.lock().len() as u64
    }

    /// Ends up to `n` flows, those that have been stalled longest; returns how many there were.
    pub(crate) fn shed(&self, n: u64) -> usize {
        let oldest: Vec<Kill> = self.stalled.lock().values().take(n as usize).cloned().collect();
        for kill in &oldest {
            kill.kill(ResetCode::Stalled);
        }
        oldest.len()
    }
}
