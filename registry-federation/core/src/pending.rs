//! What a watcher has yet to be told.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    sync::Arc,
};

use crate::walk::Update;

/// Updates by object, the latest for each, told in the order in which the objects first changed.
///
/// An object that keeps changing keeps its place, so no object starves.
#[derive(Debug)]
pub(crate) struct Pending<T> {
    states: BTreeMap<Arc<str>, State<T>>,
    order: BTreeMap<u64, Arc<str>>,
    next_place: u64,
}

#[derive(Debug)]
struct State<T> {
    place: u64,
    /// Whether the watcher knows the object from before: if not, it need not hear that it is gone.
    known: bool,
    update: Update<T>,
}

impl<T> Default for Pending<T> {
    fn default() -> Self {
        Self { states: BTreeMap::new(), order: BTreeMap::new(), next_place: 0 }
    }
}

impl<T> Pending<T> {
    /// Takes in that `name` changed. Whether it was in the view before tells what the watcher knows, as long as nothing
    /// is pending for it.
    pub(crate) fn note(&mut self, name: &Arc<str>, was_in_view: bool, update: Update<T>) {
        match self.states.entry(Arc::clone(name)) {
            Entry::Occupied(entry) if matches!(update, Update::Gone { .. }) && !entry.get().known => {
                self.order.remove(&entry.remove().place);
            }
            Entry::Occupied(mut entry) => entry.get_mut().update = update,
            Entry::Vacant(entry) => {
                let place = self.next_place;
                self.next_place += 1;
                self.order.insert(place, Arc::clone(name));
                entry.insert(State { place, known: was_in_view, update });
            }
        }
    }

    /// The oldest one.
    pub(crate) fn pop(&mut self) -> Option<Update<T>> {
        let (_, name) = self.order.pop_first()?;
        self.states.remove(&name).map(|state| state.update)
    }

    pub(crate) fn len(&self) -> usize {
        self.states.len()
    }
}
