//! What outlives this process of a connection that passes through it.
//!
//! A path brings a connection back when its client refreshes it. What is kept besides knows of it before that, and also when
//! the client never comes again: watchers are told of it, and the next hop hears of its end.

use std::{collections::BTreeMap, time::SystemTime};

use carrick_model::SpiffeId;
use carrick_proto::connection::State;

use super::{
    Carried, Hop, Transit, TransitEvent,
    entry::{Held, Origin},
};
use crate::clock::Now;

/// A connection that is held, all that is needed to hold it again.
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
    /// Who is next on the way.
    pub hop: Hop,
    /// The service as the owner wrote it.
    pub asked_service: String,
    /// As sent on.
    pub service: String,
    /// The endpoint, as the next hop calls it.
    pub endpoint: String,
    /// It leaves the domain.
    pub leaves: bool,
    /// Under which name selection knows the endpoint.
    pub known_as: String,
    /// Labels of the client.
    pub labels: BTreeMap<String, String>,
    /// As the next hop returned it.
    pub carried: Carried,
    /// As our caller and our monitors see it.
    pub shown: Carried,
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
        let held = entry.held.as_ref()?;
        Some(Kept {
            id: entry.id.clone(),
            owner: entry.owner.clone(),
            origin: (entry.origin.name.clone(), entry.origin.id.clone()),
            since: entry.since,
            lease_end: now.wall_of(entry.lease_end),
            hop: held.hop.clone(),
            asked_service: held.asked_service.clone(),
            service: held.service.clone(),
            endpoint: held.endpoint.clone(),
            leaves: held.leaves,
            known_as: held.known_as.clone(),
            labels: held.labels.clone(),
            carried: held.carried.clone(),
            shown: held.shown.clone(),
        })
    }

    /// Holds a connection again that was kept: it is published, and its hop is to be watched.
    ///
    /// # Errors
    /// It is not, or not any more, one that this table holds. Nothing is changed then.
    pub fn restore(&mut self, kept: Kept, now: Now) -> Result<(), NotRestored> {
        let Kept { id, owner, origin: (name, origin_id), since, lease_end, shown, .. } = kept;
        let ours = |carried: &Carried| {
            let current = carried.path.check().ok().and_then(|()| carried.path.current());
            current.is_some_and(|s| s.name == self.settings.own_name && s.id == id)
        };
        if !ours(&kept.carried) || !ours(&shown) {
            return Err(NotRestored::NotOurs);
        }
        let lease = self.lease(Some(lease_end), now).map_err(|_| NotRestored::Over)?;
        let origin = Origin::of(&owner, &name, &origin_id);
        if self.entries.contains_key(&id) || self.by_origin.contains_key(&origin) {
            return Err(NotRestored::Held);
        }
        self.check_bounds(&owner).map_err(|_| NotRestored::Full)?;
        self.admit(&id, origin, &owner, now.mono + lease, now);
        let held = Held {
            hop: kept.hop.clone(),
            asked_service: kept.asked_service,
            service: kept.service,
            endpoint: kept.endpoint,
            leaves: kept.leaves,
            known_as: kept.known_as,
            labels: kept.labels,
            carried: kept.carried,
            down: shown.connection.state() == State::Down,
            shown: shown.clone(),
        };
        self.with(&id, now, |_, entry| {
            entry.since = since;
            entry.held = Some(held);
            entry.published = true;
        });
        self.events.push_back(TransitEvent::HeldAt { id: id.clone(), hop: Some(kept.hop) });
        self.events.push_back(TransitEvent::Published { id, owner, carried: Box::new(shown) });
        Ok(())
    }
}
