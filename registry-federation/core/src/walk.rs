//! Going through a view in name order, in steps that each take a bounded time.

use std::sync::Arc;

use crate::{
    filter::{Filter, Object},
    record::{Record, Revision},
    shelf::Shelf,
    term::Term,
};

/// How many candidates a step looks at before it lets others have the catalogue. One costs about 1.5 µs when it has to be
/// read (`examples/catalogue_speed.rs`), so a step takes some 100 µs.
const CANDIDATES_PER_STEP: usize = 64;

/// What a step came to.
#[derive(Debug, Clone, PartialEq)]
pub enum Step<I> {
    /// An item; there may be more.
    Item(I),
    /// None yet: step again, after others had their turn.
    Busy,
    /// None now. A walk has ended; a watch has news when [`Event::News`](crate::Event::News) says so.
    Idle,
}

/// A change of a view.
#[derive(Debug, Clone, PartialEq)]
pub enum Update<T> {
    /// The object is in the view, in this state.
    Present(Arc<Record<T>>),
    /// The object left the view.
    Gone {
        /// The object as it was last in the view.
        last: Arc<Record<T>>,
        /// The change that took it away.
        revision: Revision,
    },
}

impl<T> Update<T> {
    /// The object concerned.
    pub fn record(&self) -> &Arc<Record<T>> {
        match self {
            Self::Present(record) | Self::Gone { last: record, .. } => record,
        }
    }
}

/// What a walk follows: every object it can find lies along it.
#[derive(Debug, Clone)]
pub(crate) enum Along {
    /// The objects that have this term.
    Term(Term),
    /// The objects that have one of these URLs.
    Urls(Box<[Term]>),
}

/// A walk through the view of a filter. It belongs to its caller and costs the catalogue nothing.
///
/// Objects that are in the view all the time are found exactly once, in name order; of those that come or go meanwhile
/// some are found.
#[derive(Debug, Clone)]
pub struct Walk<T> {
    filter: Filter<T>,
    along: Along,
    /// The last name looked at.
    after: Option<Arc<str>>,
}

impl<T: Object> Walk<T> {
    pub(crate) fn new(filter: Filter<T>, along: Along) -> Self {
        Self { along, filter, after: None }
    }

    pub(crate) fn filter(&self) -> &Filter<T> {
        &self.filter
    }

    /// What it follows.
    pub(crate) fn along(&self) -> &Along {
        &self.along
    }

    /// Whether objects of this name were looked at already.
    pub(crate) fn is_past(&self, name: &str) -> bool {
        self.after.as_deref().is_some_and(|after| name <= after)
    }

    pub(crate) fn step(&mut self, shelf: &Shelf<T>) -> Step<Arc<Record<T>>> {
        for _ in 0..CANDIDATES_PER_STEP {
            let Some((name, record)) = shelf.next_along(&self.along, self.after.as_deref()) else {
                return Step::Idle;
            };
            self.after = Some(Arc::clone(name));
            if self.filter.admits_record(record) {
                return Step::Item(Arc::clone(record));
            }
        }
        Step::Busy
    }
}
