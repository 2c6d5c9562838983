//! The table's books: which entries there are, whose, found by what, and when each is looked at again.

use std::{
    collections::VecDeque,
    time::{Duration, Instant, SystemTime},
};

use carrick_model::SpiffeId;

use super::{
    MAX_WAITING, StepId, Ticket, Transit, TransitRefusal,
    entry::{Doing, Entry, Job, Origin},
};
use crate::{clock::Now, path::Path};

impl Transit {
    /// The entry of `peer` that a path speaks of: by the caller's segment, else by ours behind it. Another trust domain's is never found.
    pub(super) fn known(&self, peer: &SpiffeId, path: &Path, origin: &Origin) -> Option<String> {
        if let Some(id) = self.by_origin.get(origin) {
            return Some(id.clone());
        }
        let ours = path.next().filter(|s| s.name == self.settings.own_name)?;
        let entry = self.entries.get(&ours.id)?;
        (&entry.origin.trust_domain == peer.trust_domain()).then(|| ours.id.clone())
    }

    pub(super) fn lease(&self, end: Option<SystemTime>, now: Now) -> Result<Duration, TransitRefusal> {
        match end.ok_or(TransitRefusal::NoExpiry)?.duration_since(now.wall) {
            Ok(left) if !left.is_zero() => Ok(left.min(self.settings.max_lease)),
            Ok(_) => Err(TransitRefusal::LeaseOver(Duration::ZERO)),
            Err(past) => Err(TransitRefusal::LeaseOver(past.duration())),
        }
    }

    pub(super) fn check_bounds(&self, peer: &SpiffeId) -> Result<(), TransitRefusal> {
        let theirs = self.per_peer.get(peer.trust_domain()).copied().unwrap_or_default();
        if theirs >= self.settings.max_per_peer {
            return Err(TransitRefusal::PeerLimit(peer.trust_domain().clone(), theirs));
        }
        if self.entries.len() >= self.settings.max_total {
            return Err(TransitRefusal::TotalLimit(self.entries.len()));
        }
        Ok(())
    }

    pub(super) fn admit(&mut self, id: &str, origin: Origin, owner: &SpiffeId, lease_end: Instant, now: Now) {
        *self.per_peer.entry(origin.trust_domain.clone()).or_default() += 1;
        self.by_origin.insert(origin.clone(), id.to_owned());
        let entry = Entry {
            id: id.to_owned(),
            origin,
            owner: owner.clone(),
            since: now.wall,
            lease_end,
            held: None,
            running: None,
            waiting: VecDeque::new(),
            ending: false,
            published: false,
            leftovers: Vec::new(),
            timer: None,
        };
        self.entries.insert(id.to_owned(), entry);
    }

    /// The caller's segment may have another name or id than before, when the caller restarted and kept ours.
    pub(super) fn adopt(&mut self, id: &str, origin: Origin, owner: &SpiffeId) {
        let Some(entry) = self.entries.get_mut(id) else { return };
        entry.owner = owner.clone();
        if entry.origin != origin {
            self.by_origin.remove(&entry.origin);
            entry.origin = origin.clone();
        }
        self.by_origin.insert(origin, id.to_owned());
    }

    pub(super) fn ticket(&mut self) -> Ticket {
        self.last += 1;
        Ticket(self.last)
    }

    pub(super) fn step(&mut self, entry: &mut Entry, doing: Doing) -> StepId {
        self.last += 1;
        let step = StepId(self.last);
        self.by_step.insert(step, entry.id.clone());
        entry.running = Some((step, doing));
        step
    }

    pub(super) fn queue(&mut self, id: &str, job: Job, now: Now) -> Result<(), TransitRefusal> {
        let waiting = self.entries.get(id).map_or(0, |e| e.waiting.len());
        if waiting >= MAX_WAITING {
            return Err(TransitRefusal::Busy(waiting));
        }
        self.with(id, now, |_, entry| entry.waiting.push_back(job));
        Ok(())
    }

    /// Changes an entry, does what can be done next with it, and keeps the books.
    pub(super) fn with(&mut self, id: &str, now: Now, change: impl FnOnce(&mut Self, &mut Entry)) {
        let Some(mut entry) = self.entries.remove(id) else { return };
        change(self, &mut entry);
        self.proceed(&mut entry, now);
        let timer = entry.next_timer();
        if entry.timer != timer {
            if let Some(old) = entry.timer {
                self.timers.remove(&(old, entry.id.clone()));
            }
            if let Some(at) = timer {
                self.timers.insert((at, entry.id.clone()));
            }
            entry.timer = timer;
        }
        if !entry.is_over() {
            self.entries.insert(entry.id.clone(), entry);
            return;
        }
        if self.by_origin.get(&entry.origin) == Some(&entry.id) {
            self.by_origin.remove(&entry.origin);
        }
        let td = entry.origin.trust_domain;
        if let Some(count) = self.per_peer.get_mut(&td) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                self.per_peer.remove(&td);
            }
        }
    }

    /// Ends a step. An outcome of a step that is not running is a duplicate, and nothing.
    pub(super) fn finish(&mut self, step: StepId, now: Now, then: impl FnOnce(&mut Self, &mut Entry, Doing)) {
        let Some(id) = self.by_step.get(&step).cloned() else { return };
        self.with(&id, now, |this, entry| match entry.running.take() {
            Some((running, doing)) if running == step => {
                this.by_step.remove(&step);
                then(this, entry, doing);
            }
            other => entry.running = other,
        });
    }
}
