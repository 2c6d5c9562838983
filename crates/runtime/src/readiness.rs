//! Ready when the last part is.

use std::{collections::BTreeMap, sync::Arc};

use parking_lot::Mutex;
use tokio::sync::watch;

/// Which parts are not ready yet. Clones speak of the same process.
#[derive(Clone, Debug)]
pub struct Readiness {
    waiting: Arc<Mutex<BTreeMap<&'static str, usize>>>,
    ready: Arc<watch::Sender<bool>>,
}

/// Held by a part until it serves; the process is ready when the last guard drops.
#[derive(Debug)]
pub struct ReadyGuard {
    part: &'static str,
    readiness: Readiness,
}

impl Readiness {
    /// Nothing waits: ready.
    pub fn new() -> Self {
        Self { waiting: Arc::default(), ready: Arc::new(watch::Sender::new(true)) }
    }

    /// Not ready until the guard drops. `part` is what [`waiting_for`](Self::waiting_for) shows.
    pub fn guard(&self, part: &'static str) -> ReadyGuard {
        *self.waiting.lock().entry(part).or_default() += 1;
        self.ready.send_replace(false);
        ReadyGuard { part, readiness: self.clone() }
    }

    /// Whether no part is waited for.
    pub fn is_ready(&self) -> bool {
        *self.ready.borrow()
    }

    /// The parts that still start, by name.
    pub fn waiting_for(&self) -> Vec<&'static str> {
        self.waiting.lock().keys().copied().collect()
    }

    /// Completes when ready.
    pub async fn ready(&self) {
        // The sender lives in `self`, so the channel cannot close while we wait.
        let mut changes = self.ready.subscribe();
        let _closed = changes.wait_for(|ready| *ready).await;
    }
}

impl Default for Readiness {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for ReadyGuard {
    fn drop(&mut self) {
        let mut waiting = self.readiness.waiting.lock();
        if let Some(count) = waiting.get_mut(self.part) {
            *count -= 1;
            if *count == 0 {
                waiting.remove(self.part);
            }
        }
        if waiting.is_empty() {
            self.readiness.ready.send_replace(true);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn ready_when_the_last_guard_drops() {
        let readiness = Readiness::new();
        let a = readiness.guard("tunnel");
        let b = readiness.guard("control");
        let c = readiness.guard("control");
        assert_eq!(readiness.waiting_for(), ["control", "tunnel"]);
        drop(a);
        drop(b);
        assert!(!readiness.is_ready());
        assert_eq!(readiness.waiting_for(), ["control"]);
        drop(c);
        readiness.ready().await;
        assert!(readiness.is_ready());
    }
}
