//! The names of the objects that have something in common.

use std::{collections::BTreeSet, mem, ops::Bound, sync::Arc};

/// Some names, at least one. Most terms are those of one object only, and a set of one takes ten times its memory.
#[derive(Debug)]
pub(crate) enum Names {
    One(Arc<str>),
    Many(BTreeSet<Arc<str>>),
}

impl Names {
    pub(crate) fn insert(&mut self, name: &Arc<str>) {
        match self {
            Self::One(one) if one == name => {}
            Self::One(one) => {
                let both = BTreeSet::from([mem::replace(one, Arc::clone(name)), Arc::clone(name)]);
                *self = Self::Many(both);
            }
            Self::Many(names) => {
                names.insert(Arc::clone(name));
            }
        }
    }

    /// Removes a name; true when none is left.
    #[must_use]
    pub(crate) fn remove(&mut self, name: &str) -> bool {
        match self {
            Self::One(one) => **one == *name,
            Self::Many(names) => {
                names.remove(name);
                if let (1, Some(last)) = (names.len(), names.first()) {
                    *self = Self::One(Arc::clone(last));
                }
                false
            }
        }
    }

    pub(crate) fn len(&self) -> usize {
        match self {
            Self::One(_) => 1,
            Self::Many(names) => names.len(),
        }
    }

    /// The first name after `after`.
    pub(crate) fn next(&self, after: Option<&str>) -> Option<&Arc<str>> {
        match self {
            Self::One(one) => Some(one).filter(|one| after.is_none_or(|after| after < &***one)),
            Self::Many(names) => {
                let rest = (after.map_or(Bound::Unbounded, Bound::Excluded), Bound::Unbounded);
                names.range::<str, _>(rest).next()
            }
        }
    }
}
