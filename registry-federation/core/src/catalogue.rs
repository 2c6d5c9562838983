//! The catalogue itself: one set of verbs over both kinds.

use std::{
    collections::{BTreeSet, VecDeque},
    sync::Arc,
    time::Instant,
};

use carrick_model::SpiffeId;
use carrick_proto::registry::{NetworkService, NetworkServiceEndpoint};

use crate::{
    filter::{Audience, Filter, Kind, Object},
    ownership::{ClaimError, Claimant, Holder},
    record::{Record, RegisterError, Registration, Revision},
    shelf::{Shelf, WatchId},
    walk::{Along, Step, Update, Walk},
};

/// How many leases one [`Catalogue::handle_timeout`] ends before it lets others have the catalogue.
const LEASES_PER_TIMEOUT: usize = 1024;

/// Network services and endpoints of one domain, and who watches them.
///
/// Commands ([`register`](Self::register), [`unregister`](Self::unregister), [`set_audience`](Self::set_audience),
/// [`subscribe`](Self::subscribe), [`resume`](Self::resume), [`unsubscribe`](Self::unsubscribe)) come at any time. After each command and each
/// [`handle_timeout`](Self::handle_timeout) call [`poll_event`](Self::poll_event) until `None`, and then
/// [`poll_timeout`](Self::poll_timeout) for when to come back. [`poll_update`](Self::poll_update) belongs to the
/// watcher, at its own pace: until [`Step::Idle`], and again after the next [`Event::News`].
#[derive(Debug, Default)]
pub struct Catalogue {
    pub(crate) services: Shelf<NetworkService>,
    pub(crate) endpoints: Shelf<NetworkServiceEndpoint>,
    revision: Revision,
    last_watch: u64,
    woken: BTreeSet<WatchId>,
    /// Empty between two rounds of `poll_event`, so it holds what one `handle_timeout` ended.
    lapsed: VecDeque<Lapse>,
}

/// What the catalogue has to say unasked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A watch that was idle has updates. Said once until it has been polled idle again.
    News(WatchId),
    /// A lease ended and the object is gone; the store has yet to hear of it.
    Lapsed(Lapse),
}

/// A registration whose lease ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lapse {
    /// Its kind.
    pub kind: Kind,
    /// Its name.
    pub name: Arc<str>,
    /// Who held it.
    pub holder: Holder,
}

/// A watch that goes on after an earlier one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resumed {
    /// Its updates begin with what changed since.
    Changes(WatchId),
    /// Too much has changed since: its updates begin with the whole state, and what that does not mention is gone.
    State(WatchId),
}

/// Why [`Catalogue::handle_timeout`] wants to be called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Timeout {
    /// A lease ends.
    Lease,
}

impl Catalogue {
    /// An empty catalogue.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds the object, or replaces the one of its name. Watchers are told even if nothing changed, as NSM does.
    ///
    /// # Errors
    /// The object has no name.
    pub fn register<T: Object>(&mut self, registration: Registration<T>) -> Result<Revision, RegisterError> {
        let (record, object) = registration.into_record(Revision(self.revision.0 + 1))?;
        let revision = self.revision.advance();
        self.with_shelf(|shelf: &mut Shelf<T>, woken| shelf.put(record, &object, woken));
        Ok(revision)
    }

    /// Removes the object of this name and returns it; `None` when there is none, which is not an error in NSM.
    pub fn unregister<T: Object>(&mut self, name: &str) -> Option<Arc<Record<T>>> {
        self.get::<T>(name)?;
        let revision = self.revision.advance();
        self.with_shelf(|shelf: &mut Shelf<T>, woken| shelf.remove(name, revision, woken))
    }

    /// Changes who may see the object. Only watchers for whom it appears or disappears are told. False when there is no
    /// such object.
    pub fn set_audience<T: Object>(&mut self, name: &str, audience: Audience) -> bool {
        if self.get::<T>(name).is_none() {
            return false;
        }
        let revision = self.revision.advance();
        self.with_shelf(|shelf: &mut Shelf<T>, woken| shelf.set_audience(name, audience, revision, woken))
    }

    /// The object of this name.
    pub fn get<T: Object>(&self, name: &str) -> Option<&Arc<Record<T>>> {
        T::shelf(self).get(name)
    }

    /// All objects in the view of `filter`, in name order. Takes as long as there are candidates: who serves others
    /// meanwhile takes a [`walk`](Self::walk).
    pub fn find<T: Object>(&self, filter: &Filter<T>) -> Vec<Arc<Record<T>>> {
        let mut walk = self.walk(filter.clone());
        let mut found = Vec::new();
        loop {
            match self.poll_walk(&mut walk) {
                Step::Item(record) => found.push(record),
                Step::Busy => {}
                Step::Idle => return found,
            }
        }
    }

    /// Starts a walk through the view of `filter`.
    pub fn walk<T: Object>(&self, filter: Filter<T>) -> Walk<T> {
        let along = T::shelf(self).along(&filter.query);
        Walk::new(filter, along)
    }

    /// The next object of a walk; [`Step::Idle`] is its end.
    pub fn poll_walk<T: Object>(&self, walk: &mut Walk<T>) -> Step<Arc<Record<T>>> {
        walk.step(T::shelf(self))
    }

    /// How many objects a find with this query would look at, at most.
    pub fn candidates<T: Object>(&self, query: &T) -> usize {
        let shelf = T::shelf(self);
        match shelf.along(query) {
            Along::Term(term) => shelf.candidates(&term),
            Along::Urls(urls) => urls.iter().map(|url| shelf.candidates(url)).sum(),
        }
    }

    /// Whether `claimant` may register or unregister an object of this name.
    ///
    /// # Errors
    /// The name is somebody else's, or the claimant speaks for whom it must not speak for.
    pub fn claim<T: Object>(&self, name: &str, claimant: &Claimant) -> Result<(), ClaimError> {
        claimant.may_take(self.get::<T>(name).map(|record| &record.holder))
    }

    /// How many objects of a kind there are that came with the certificate of `bringer`.
    pub fn brought_by<T: Object>(&self, bringer: &SpiffeId) -> usize {
        T::shelf(self).brought_by(bringer)
    }

    /// Starts a watch: its updates are the objects in the view of `filter`, then the changes of that view.
    pub fn subscribe<T: Object>(&mut self, filter: Filter<T>) -> WatchId {
        self.last_watch += 1;
        let id = WatchId(self.last_watch);
        T::shelf_mut(self).subscribe(id, filter);
        id
    }

    /// Starts a watch for somebody who was told all that the view of `filter` was at `revision`: if the changes since are
    /// still known, its updates are those. A revision that is yet to come is one of another catalogue.
    pub fn resume<T: Object>(&mut self, filter: Filter<T>, revision: Revision) -> Resumed {
        if revision <= self.revision {
            let id = WatchId(self.last_watch + 1);
            if T::shelf_mut(self).resume(id, filter.clone(), revision) {
                self.last_watch += 1;
                return Resumed::Changes(id);
            }
        }
        Resumed::State(self.subscribe(filter))
    }

    /// Ends a watch and frees what it holds; false when there is none.
    pub fn unsubscribe<T: Object>(&mut self, id: WatchId) -> bool {
        self.woken.remove(&id);
        T::shelf_mut(self).unsubscribe(id)
    }

    /// The next update of a watch. A watch that has ended is idle.
    pub fn poll_update<T: Object>(&mut self, id: WatchId) -> Step<Update<T>> {
        T::shelf_mut(self).poll_update(id)
    }

    /// Ends leases that have run out at `now`, some at a time.
    pub fn handle_timeout(&mut self, now: Instant) {
        for _ in 0..LEASES_PER_TIMEOUT {
            if let Some(name) = self.services.lapsed(now) {
                self.lapse::<NetworkService>(name);
            } else if let Some(name) = self.endpoints.lapsed(now) {
                self.lapse::<NetworkServiceEndpoint>(name);
            } else {
                return;
            }
        }
    }

    fn lapse<T: Object>(&mut self, name: Arc<str>) {
        if let Some(record) = self.unregister::<T>(&name) {
            self.lapsed.push_back(Lapse { kind: T::KIND, name, holder: record.holder.clone() });
        }
    }

    /// When [`handle_timeout`](Self::handle_timeout) wants to be called, and why. May lie in the past.
    pub fn poll_timeout(&self) -> Option<(Instant, Timeout)> {
        let leases = [self.services.next_lease(), self.endpoints.next_lease()];
        leases.into_iter().flatten().min().map(|at| (at, Timeout::Lease))
    }

    /// The next event.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.woken.pop_first().map(Event::News).or_else(|| self.lapsed.pop_front().map(Event::Lapsed))
    }

    /// The last change.
    pub fn revision(&self) -> Revision {
        self.revision
    }

    /// How many objects of a kind there are.
    pub fn count<T: Object>(&self) -> usize {
        T::shelf(self).len()
    }

    /// How many watches there are, of both kinds.
    pub fn watch_count(&self) -> usize {
        self.services.watch_count() + self.endpoints.watch_count()
    }

    /// How many updates a watch holds back until it is polled.
    pub fn pending_count<T: Object>(&self, id: WatchId) -> usize {
        T::shelf(self).pending_len(id)
    }

    /// Lends the shelf and the set of woken watches at once.
    fn with_shelf<T: Object, R>(
        &mut self,
        act: impl FnOnce(&mut Shelf<T>, &mut BTreeSet<WatchId>) -> R,
    ) -> R {
        let mut woken = std::mem::take(&mut self.woken);
        let result = act(T::shelf_mut(self), &mut woken);
        self.woken = woken;
        result
    }
}
