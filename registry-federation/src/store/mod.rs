//! Where registrations are kept: one small trait, several stores.
//!
//! A [`Store`] is a map from [`Key`] to [`StoredRecord`] with a history of commits. Each commit has a revision, higher
//! than all before it (commits made together may share one), and is all or nothing. The catalogue is never written
//! directly: it is fed from what a store [tells its followers](Store::follow), so that a change another replica made
//! looks like one of our own.
//!
//! ```text
//!   Register ──▶ commit(Put, expect) ──▶ durable ──▶ revision ──┐
//!                                                                ├─▶ answer, once the catalogue has applied it
//!   follow ──▶ Record… Synced(r) Committed(r+…) … ──▶ catalogue ─┘
//! ```
//!
//! # What every store promises
//!
//! 1. **An answer is durable.** When [`Store::commit`] returns `Ok`, the commit survives the end of the process at any
//!    moment. When it returns an error, nothing was changed, except for [`StoreError::Uncertain`].
//! 2. **All or nothing.** The changes of a commit become visible together, under one revision, or not at all.
//! 3. **Nobody is overwritten by surprise.** [`Expect`] is checked against the state the commit is made on.
//! 4. **Followers miss nothing.** A follower is told the whole state, then every commit in order of revision. When the
//!    store cannot go on so (it was away, the follower fell behind), it says [`Lost`](StoreEvent::Lost) and begins anew.
//! 5. **A lapsed record may go by itself.** A store may remove a record whose `expires` has passed (etcd does, by its
//!    leases), never one whose `expires` has not. A store without a clock leaves that to the registry, which deletes.
//!
//! The tests in `tests/store_contract/` hold every store to this.

mod embedded;
pub mod etcd;
mod record;

use std::{collections::HashSet, fmt};

use futures::stream::BoxStream;

pub use carrick_registry_core::Kind;
pub use embedded::{EmbeddedStore, OpenError};
pub use record::{RecordFault, StoredRecord};

/// Most changes in one commit. etcd takes 128 operations in a transaction unless told otherwise, and a delete with its
/// lease is two.
pub const MAX_CHANGES: usize = 64;

/// Where a domain's registrations are kept.
#[tonic::async_trait]
pub trait Store: Send + Sync + 'static {
    /// What kind of store it is and where, for messages: `embedded store /var/lib/carrick/registry.redb`.
    fn name(&self) -> String;

    /// Makes `changes`, all of them or none, and returns their common revision once they are durable. Concurrent
    /// commits share the cost of being made durable. Waits while the store has enough to do.
    ///
    /// A future that is dropped leaves it open whether the commit is made.
    ///
    /// # Errors
    /// Nothing was changed, except for [`StoreError::Uncertain`].
    async fn commit(&self, changes: Vec<Change>) -> Result<u64, StoreError>;

    /// Whether others write to it too, with clocks of their own. Such a store removes lapsed records by itself, and the
    /// registry does not: its own clock may be the one that is wrong.
    fn is_shared(&self) -> bool {
        false
    }

    /// Everything there is, then every commit, whoever made it; see [`StoreEvent`] for the order. The stream ends when
    /// the store is closed. A follower that does not keep up is told [`StoreEvent::Lost`] and gets a new full state.
    fn follow(&self) -> BoxStream<'static, StoreEvent>;
}

/// What a record is found by.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    /// The kind of the object.
    pub kind: Kind,
    /// Its name in the own domain, never empty.
    pub name: String,
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} `{}`", self.kind.as_str(), self.name)
    }
}

/// What a commit does to one key. The keys of a commit are distinct.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// Writes a record, whether or not there is one, as far as `expect` allows.
    Put {
        /// Where.
        key: Key,
        /// What.
        record: StoredRecord,
        /// On which condition.
        expect: Expect,
    },
    /// Removes a record. Removing what is not there succeeds, if `expect` is [`Expect::Any`] or [`Expect::Absent`].
    Delete {
        /// Which.
        key: Key,
        /// On which condition.
        expect: Expect,
    },
}

impl Change {
    /// The key it is about.
    pub fn key(&self) -> &Key {
        match self {
            Self::Put { key, .. } | Self::Delete { key, .. } => key,
        }
    }

    /// Its condition.
    pub fn expect(&self) -> Expect {
        match self {
            Self::Put { expect, .. } | Self::Delete { expect, .. } => *expect,
        }
    }
}

/// What has to be true of a key for a commit to be made. It keeps two writers from taking a name from each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expect {
    /// Whatever is there.
    Any,
    /// There is no record.
    Absent,
    /// The record is the one that the commit with this revision wrote.
    Revision(u64),
}

impl Expect {
    /// Whether it holds for a key whose record was written at `found`; `None` when there is no record.
    pub fn holds(self, found: Option<u64>) -> bool {
        match self {
            Self::Any => true,
            Self::Absent => found.is_none(),
            Self::Revision(expected) => found == Some(expected),
        }
    }
}

/// What a store tells a follower.
///
/// First `Record`s, one for each record there is, in any order, and `Synced`. Then `Committed`, each with a higher
/// revision than all before. `Lost` can come at any time, also first; after it nothing new is known until another round
/// of `Record`s has ended with `Synced`. Whatever a round does not mention is gone.
///
/// Commits that were made together may be told as one `Committed`, and one that changed nothing with no changes at all.
#[derive(Debug, Clone, PartialEq)]
pub enum StoreEvent {
    /// Part of a full state.
    Record {
        /// Where.
        key: Key,
        /// What.
        record: StoredRecord,
        /// The revision of the commit that wrote it.
        revision: u64,
    },
    /// The full state has been told. It is that of this revision; commits up to it are not told again.
    Synced(u64),
    /// A commit was made.
    Committed {
        /// Its revision.
        revision: u64,
        /// What is new, for each key it changed; `None` where the record is gone. A delete of what was not there may be
        /// left out.
        changes: Vec<(Key, Option<StoredRecord>)>,
    },
    /// The store is away or the follower fell behind. What was told is the last good state; it may be out of date.
    Lost(String),
}

/// Why a commit was not made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// An expectation did not hold: somebody else wrote first. Look at the record again, then decide anew.
    #[error("{key} is not as expected: {}", found.map_or("there is none".to_owned(), |r| format!("revision {r} wrote it")))]
    Conflict {
        /// The first key in question.
        key: Key,
        /// The revision that wrote the record that is there; `None` when there is none.
        found: Option<u64>,
    },
    /// The commit has no change, too many, or two for one key. A fault of the caller; a retry does not help.
    #[error("a commit has 1 to {MAX_CHANGES} changes of distinct keys, not {0}")]
    Malformed(String),
    /// The commit is larger than the store takes at once. The caller has to register less, or in parts.
    #[error("a commit of {octets} octets is too large: the store takes {most} at once")]
    TooLarge {
        /// What it takes, about.
        octets: usize,
        /// The most.
        most: usize,
    },
    /// There is no room. Reading goes on; a retry helps once there is room again.
    #[error("{store} is full")]
    Full {
        /// Which store.
        store: String,
    },
    /// The store takes no writes. Reading goes on; a retry helps once an operator has acted.
    #[error("{store} is read-only: {reason}")]
    ReadOnly {
        /// Which store.
        store: String,
        /// What it said.
        reason: String,
    },
    /// The store failed or cannot be reached; nothing was changed. A retry may help.
    #[error("{store} is not available: {reason}")]
    Unavailable {
        /// Which store.
        store: String,
        /// What it said, or how it could not be reached.
        reason: String,
    },
    /// The store went away while the commit was under way: it was made in full or not at all. Look again, or repeat it
    /// with the same expectation: a conflict then means that it was made, or that somebody else was first.
    #[error("{store} went away during a commit: {reason}")]
    Uncertain {
        /// Which store.
        store: String,
        /// How it went away.
        reason: String,
    },
    /// The store is closed, because the daemon stops.
    #[error("{store} is closed")]
    Closed {
        /// Which store.
        store: String,
    },
}

impl StoreError {
    /// The word for it in metrics.
    pub fn outcome(&self) -> &'static str {
        match self {
            Self::Conflict { .. } => "conflict",
            Self::Malformed(_) => "malformed",
            Self::TooLarge { .. } => "too_large",
            Self::Full { .. } => "full",
            Self::ReadOnly { .. } => "read_only",
            Self::Unavailable { .. } => "unavailable",
            Self::Uncertain { .. } => "uncertain",
            Self::Closed { .. } => "closed",
        }
    }

    /// What an operator can do about it.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Conflict { .. } => "another registration of this name was first: look at it and try again",
            Self::Malformed(_) => "this is a fault of the program: report it",
            Self::TooLarge { .. } => "register less at once, or smaller objects",
            Self::Full { .. } => "make room on the device of the state directory, or raise the quota of etcd",
            Self::ReadOnly { .. } => "remount the state directory for writing and check who owns its files",
            Self::Unavailable { .. } | Self::Uncertain { .. } => {
                "look at the store's own log and the disk or network under it; registrations resume by themselves"
            }
            Self::Closed { .. } => "ask again: the daemon is stopping or being restarted",
        }
    }
}

/// Whether `changes` can be a commit at all. Every store asks this first.
///
/// # Errors
/// [`StoreError::Malformed`].
pub fn check_shape(changes: &[Change]) -> Result<(), StoreError> {
    if changes.is_empty() || changes.len() > MAX_CHANGES {
        return Err(StoreError::Malformed(changes.len().to_string()));
    }
    let mut keys = HashSet::with_capacity(changes.len());
    for change in changes {
        if change.key().name.is_empty() {
            return Err(StoreError::Malformed("one without a name".into()));
        }
        if !keys.insert(change.key()) {
            return Err(StoreError::Malformed(format!("two of {}", change.key())));
        }
    }
    Ok(())
}
