//! The last changes, for watchers that come back.

use std::{collections::VecDeque, sync::Arc};

use crate::record::{Record, Revision};

/// Changes that are remembered of each kind. One is four words; what it holds alive is what the change replaced, about
/// a kilobyte. A watcher that was away for longer than so many changes gets the whole state.
pub(crate) const REMEMBERED: usize = 8 * 1024;

/// What happened to an object.
#[derive(Debug)]
pub(crate) struct Change<T> {
    pub(crate) name: Arc<str>,
    pub(crate) old: Option<Arc<Record<T>>>,
    pub(crate) new: Option<Arc<Record<T>>>,
    pub(crate) revision: Revision,
    /// Whether those who see the object before and after are told. NSM tells them of every registration, a refresh
    /// included.
    pub(crate) tell_all: bool,
}

/// The last changes of one kind, the oldest first.
#[derive(Debug)]
pub(crate) struct History<T> {
    changes: VecDeque<Change<T>>,
    /// The last change that was forgotten.
    forgotten: Revision,
}

impl<T> Default for History<T> {
    fn default() -> Self {
        Self { changes: VecDeque::new(), forgotten: Revision::default() }
    }
}

impl<T> History<T> {
    pub(crate) fn note(&mut self, change: Change<T>) {
        if self.changes.len() == REMEMBERED
            && let Some(oldest) = self.changes.pop_front()
        {
            self.forgotten = oldest.revision;
        }
        self.changes.push_back(change);
    }

    /// What changed after `revision`; `None` when some of it is forgotten.
    pub(crate) fn since(&self, revision: Revision) -> Option<impl Iterator<Item = &Change<T>>> {
        if revision < self.forgotten {
            return None;
        }
        let first = self.changes.partition_point(|change| change.revision <= revision);
        Some(self.changes.range(first..))
    }
}
