//! How many local watchers of other domains there may be.

use std::{
    collections::{HashMap, hash_map::Entry},
    sync::Arc,
};

use carrick_model::SpiffeId;
use carrick_telemetry::{ActiveGuard, Metrics};
use parking_lot::Mutex;

use super::FederationError;
use crate::limits::{MAX_WATCHES, MAX_WATCHES_PER_CALLER};

/// The local watchers, by caller: as many as the own registry lets watch.
#[derive(Default)]
pub(super) struct Places {
    taken: Mutex<HashMap<SpiffeId, usize>>,
}

/// The place of one watcher, until it is dropped.
pub(super) struct Place {
    places: Arc<Places>,
    caller: SpiffeId,
    _counted: ActiveGuard,
}

impl Places {
    pub(super) fn enter(
        self: &Arc<Self>,
        caller: &SpiffeId,
        metrics: &Metrics,
    ) -> Result<Place, FederationError> {
        let mut taken = self.taken.lock();
        if taken.values().sum::<usize>() >= MAX_WATCHES {
            return Err(FederationError::Watches(MAX_WATCHES));
        }
        let own = taken.entry(caller.clone()).or_default();
        if *own >= MAX_WATCHES_PER_CALLER {
            return Err(FederationError::WatchesOfCaller(caller.clone(), MAX_WATCHES_PER_CALLER));
        }
        *own += 1;
        let counted = ActiveGuard::new(&metrics.registry_watches);
        Ok(Place { places: Arc::clone(self), caller: caller.clone(), _counted: counted })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Entry::Occupied(mut count) = self.places.taken.lock().entry(self.caller.clone()) {
            *count.get_mut() -= 1;
            if *count.get() == 0 {
                count.remove();
            }
        }
    }
}
