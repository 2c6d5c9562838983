//! What is held again after a restart: read from the file at the start, written to it as connections change.
//!
//! A connection is written a moment after it changed, with all others that did. What a kill takes away is brought back by
//! the path of the client's next refresh.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use carrick_identity::TrustStore;
use carrick_model::cause::in_one_line;
use carrick_runtime::Tasks;
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::{
    Transits,
    file::{ConnectionsFile, encode},
};
use crate::exports::now;

/// What changes in this time is written to the file together.
const WRITE_AFTER: Duration = Duration::from_secs(1);
/// Pause after the file could not be written.
const WRITE_AGAIN_AFTER: Duration = Duration::from_secs(10);

/// What is to be written.
#[derive(Debug)]
pub(super) struct Memory {
    pub(super) file: Arc<ConnectionsFile>,
    changed: Mutex<BTreeSet<String>>,
    pub(super) some: Notify,
}

impl Memory {
    pub(super) fn new(file: ConnectionsFile) -> Self {
        Self { file: Arc::new(file), changed: Mutex::default(), some: Notify::new() }
    }

    /// Connection `id` has changed, or is gone.
    pub(super) fn mark(&self, id: &str) {
        let first = {
            let mut changed = self.changed.lock();
            changed.insert(id.to_owned()) && changed.len() == 1
        };
        if first {
            self.some.notify_one();
        }
    }

    pub(super) fn take(&self) -> BTreeSet<String> {
        std::mem::take(&mut self.changed.lock())
    }
}

impl Transits {
    pub(super) fn mark(&self, id: &str) {
        if let Some(memory) = &self.inner.memory {
            memory.mark(id);
        }
    }

    /// Holds again what was kept.
    pub(super) fn restore(&self, trust: &TrustStore) {
        let Some(memory) = &self.inner.memory else { return };
        let kept = match memory.file.all() {
            Ok(kept) => kept,
            Err(error) => {
                tracing::warn!(
                    error = in_one_line(&error),
                    "connections of before the restart are not known: their clients bring them back"
                );
                return;
            }
        };
        let all = kept.len();
        let held = self.change(|state, now| {
            for (id, kept) in kept {
                let restored = match kept {
                    Some(kept) => state.table.restore(kept, now).map_err(|why| why.to_string()),
                    None => Err("it cannot be read".to_owned()),
                };
                if let Err(why) = restored {
                    tracing::debug!(
                        connection = id,
                        why,
                        "a connection of before the restart is not held again"
                    );
                    memory.mark(&id);
                }
            }
            let trusted = trust.trust_domains();
            let owners: BTreeSet<_> =
                state.table.connections().map(|c| c.owner.trust_domain().clone()).collect();
            for gone in owners.iter().filter(|owner| !trusted.contains(owner)) {
                state.table.handle_trust_removed(gone, now);
            }
            state.table.len()
        });
        if all > 0 {
            tracing::info!(held, over = all - held, "connections of before the restart");
        }
    }

    /// Writes what changes to the file, a last time when the process stops.
    pub(super) async fn keep(self, tasks: Tasks) {
        let Some(memory) = &self.inner.memory else { return };
        let stopping = tasks.stopping();
        tokio::pin!(stopping);
        let mut pause = WRITE_AFTER;
        loop {
            tokio::select! {
                () = &mut stopping => {}
                () = memory.some.notified() => {
                    tokio::select! {
                        () = &mut stopping => {}
                        () = tokio::time::sleep(pause) => {}
                    }
                }
            }
            let changed = memory.take();
            if !changed.is_empty() {
                pause = match self.write(memory, changed).await {
                    Ok(()) => WRITE_AFTER,
                    Err(error) => {
                        tracing::warn!(
                            error,
                            "connections are not kept over a restart until the file can be written again"
                        );
                        WRITE_AGAIN_AFTER
                    }
                };
            }
            if tasks.is_stopping() {
                return;
            }
        }
    }

    async fn write(&self, memory: &Memory, changed: BTreeSet<String>) -> Result<(), String> {
        // The table is locked for one connection at a time.
        let kept = |id: &str| self.inner.state.lock().table.kept(id, now());
        let changes: Vec<_> = changed
            .into_iter()
            .map(|id| {
                let octets = kept(&id).map(encode);
                (id, octets)
            })
            .collect();
        let file = Arc::clone(&memory.file);
        let write = move || {
            let result = file.write(&changes);
            (changes, result)
        };
        match tokio::task::spawn_blocking(write).await {
            Ok((_, Ok(()))) => Ok(()),
            Ok((changes, Err(error))) => {
                changes.iter().for_each(|(id, _)| memory.mark(id));
                Err(in_one_line(&error))
            }
            // The process ends.
            Err(error) => Err(error.to_string()),
        }
    }
}
