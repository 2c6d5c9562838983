//! The catalogue for others in this process: what there is, a few at a time, and how it changes.

use std::sync::Arc;

use carrick_model::SpiffeId;
use carrick_registry_core::{Filter, Object, Record, Step, Update};

use crate::{
    find::FindError,
    registry::{Registry, Watch},
};

impl Registry {
    /// What is in the view of `filter`, in name order, at most `limit`.
    pub fn find_some<T: Object>(&self, filter: Filter<T>, limit: usize) -> Vec<Arc<Record<T>>> {
        let mut walk = self.walk(filter);
        let mut found = Vec::new();
        while found.len() < limit {
            match self.poll_walk(&mut walk) {
                Step::Item(record) => found.push(record),
                Step::Busy => {}
                Step::Idle => break,
            }
        }
        found
    }

    /// The changes of the view of `filter`, beginning with what is there. It counts as a watch of `caller`.
    ///
    /// # Errors
    /// There are too many watches; a retry may help.
    pub fn changes<T: Object>(&self, filter: Filter<T>, caller: &SpiffeId) -> Result<Changes<T>, FindError> {
        Ok(Changes { registry: self.clone(), watch: self.watch(filter, caller)? })
    }
}

/// The changes of a view. They end with the registry, and when this is dropped.
pub struct Changes<T: Object> {
    registry: Registry,
    watch: Watch<T>,
}

impl<T: Object> Changes<T> {
    /// The next change; `None` when the registry stops.
    pub async fn next(&mut self) -> Option<Update<T>> {
        while !self.registry.tasks().is_stopping() {
            match self.watch.poll() {
                Step::Item(update) => return Some(update),
                Step::Busy => tokio::task::yield_now().await,
                Step::Idle => tokio::select! {
                    () = self.watch.news() => {}
                    () = self.registry.tasks().stopping() => {}
                },
            }
        }
        None
    }
}
