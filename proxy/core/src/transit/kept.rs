//! What outlives this process of a connection that passes through it.
//!
//! A path brings a connection back when its client refreshes it. What is kept besides knows of it before that, and also when
//! the client never comes again: watchers are told of it, and the next hop hears of its end.

use std::time::SystemTime;

use carrick_model::SpiffeId;

use super::{
    Carried, Transit, TransitEvent,
    entry::{Held, Origin},
};
use crate::clock::Now;

/// A connection that is held, and all that is needed to hold it again.
#[derive(Debug, Clone, PartialEq)]
pub struct Kept {
    /// Our id.
    pub id: String,
    /// Whose it is.
    pub owner: SpiffeId,
    /// Process name and id of the connection at the hop before us.
    pub origin: (String, String),
    /// Since when.
    pub since: SystemTime,
    /// When it ends if it is not refreshed.
    pub lease_end: SystemTime,
    /// What the next hop granted.
    pub held: Held,
}

/// Why a connection is not held again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotRestored {
    /// Its lease ended meanwhile, and so did that of the next hop.
    #[error("its lease is over")]
    Over,
    /// It was kept by a process of another name, or is damaged.
    #[error("its path does not lead through this process")]
    NotOurs,
    /// It is held already: its client was quicker.
    #[error("it is held already")]
    Held,
    /// There are too many.
    #[error("too many connections pass through this process")]
    Full,
}

impl Transit {
    /// What to keep of the connection `id`; nothing when it is not held.
    pub fn kept(&self, id: &str, now: Now) -> Option<Kept> {
        let entry = self.entries.get(id)?;
        Some(Kept {
            id: entry.id.clone(),
            owner: entry.owner.clone(),
            origin: (entry.origin.name.clone(), entry.origin.id.clone()),
            since: entry.since,
            lease_end: now.wall_of(entry.lease_end),
            held: entry.held.clone()?,
        })
    }

    /// Holds a connection again that was kept: it is published, and its hop is to be watched.
    ///
    /// # Errors
    /// It is not, or not any more, one that this table holds. Nothing is changed then.
    pub fn restore(&mut self, kept: Kept, now: Now) -> Result<(), NotRestored> {
        let Kept { id, owner, origin: (name, origin_id), since, lease_end, held } = kept;
        let ours = |carried: &Carried| {
            let current = carried.path.check().ok().and_then(|()| carried.path.current());
            current.is_some_and(|s| s.name == self.settings.own_name && s.id == id)
        };
        if !ours(&held.carried) || !ours(&held.shown) {
            return Err(NotRestored::NotOurs);
        }
        let lease = self.lease(Some(lease_end), now).map_err(|_| NotRestored::Over)?;
        let origin = Origin::of(&owner, &name, &origin_id);
        if self.entries.contains_key(&id) || self.by_origin.contains_key(&origin) {
            return Err(NotRestored::Held);
        }
        self.check_bounds(&owner).map_err(|_| NotRestored::Full)?;
        self.admit(&id, origin, &owner, now.mono + lease, now);
        let (hop, shown) = (held.hop.clone(), Box::new(held.shown.clone()));
        self.with(&id, now, |_, entry| {
            entry.since = since;
            entry.held = Some(held);
            entry.published = true;
        });
        self.events.push_back(TransitEvent::HeldAt { id: id.clone(), hop: Some(hop) });
        self.events.push_back(TransitEvent::Published { id, owner, carried: shown });
        Ok(())
    }
}
