//! The registry of one domain: the catalogue behind a lock, and the watchers it wakes.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, hash_map::Entry},
    marker::PhantomData,
    sync::Arc,
    time::SystemTime,
};

use carrick_model::{Domain, SpiffeId, TrustDomain};
use carrick_proto::registry::{NetworkService, NetworkServiceEndpoint};
use carrick_registry_core::{
    Audience, Catalogue, Event, Filter, Holder, Object, Record, Registration, Revision, Step, Update, Viewer,
    Walk, WatchId,
};
use carrick_runtime::Tasks;
use carrick_telemetry::{ActiveGuard, Metrics};
use parking_lot::Mutex;
use prost_types::Timestamp;
use tokio::sync::Notify;

use crate::{
    exports::{ExportChanges, ExportError, ExportRecord, Offer},
    find::FindError,
    limits::{MAX_WATCHES, MAX_WATCHES_PER_CALLER},
};

/// What a domain offers, for others to find. Clones are the same registry.
#[derive(Clone)]
pub struct Registry {
    shared: Arc<Shared>,
}

struct Shared {
    domain: Domain,
    trust_domain: TrustDomain,
    tasks: Tasks,
    metrics: Metrics,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    catalogue: Catalogue,
    /// Names of what the exports put into the catalogue.
    exported_services: BTreeSet<String>,
    exported_endpoints: BTreeSet<String>,
    watchers: HashMap<WatchId, Arc<Notify>>,
    watches_of: HashMap<SpiffeId, usize>,
}

impl Registry {
    /// An empty registry of `domain`. Callers of `trust_domain` see everything. Watches end when `tasks` is told to stop.
    pub fn new(domain: Domain, trust_domain: TrustDomain, tasks: &Tasks, metrics: &Metrics) -> Self {
        let (tasks, metrics) = (tasks.clone(), metrics.clone());
        Self { shared: Arc::new(Shared { domain, trust_domain, tasks, metrics, state: Mutex::default() }) }
    }

    /// Replaces what the domain exports. Watchers hear of the differences only.
    ///
    /// # Errors
    /// The set is contradictory; the set before stays in force.
    pub fn set_exports(&self, exports: Vec<ExportRecord>) -> Result<ExportChanges, ExportError> {
        let offer = Offer::of(exports)?;
        let now = SystemTime::now();
        let mut state = self.shared.state.lock();
        let changes = state.apply(offer, now.into());
        state.wake();
        Ok(changes)
    }

    /// What is in the view of `filter`, in name order.
    pub fn find<T: Object>(&self, filter: Filter<T>) -> Vec<Arc<Record<T>>> {
        let mut walk = self.walk(filter);
        let mut found = Vec::new();
        loop {
            match self.poll_walk(&mut walk) {
                Step::Item(record) => found.push(record),
                Step::Busy => {}
                Step::Idle => return found,
            }
        }
    }

    /// The last change.
    pub fn revision(&self) -> Revision {
        self.shared.state.lock().catalogue.revision()
    }

    /// How many watch streams are open.
    pub fn watch_count(&self) -> usize {
        self.shared.state.lock().catalogue.watch_count()
    }

    /// The domain whose registry this is.
    pub fn domain(&self) -> &Domain {
        &self.shared.domain
    }

    /// What a caller is to the registry.
    pub(crate) fn viewer(&self, caller: &SpiffeId) -> Viewer {
        if *caller.trust_domain() == self.shared.trust_domain {
            Viewer::Own
        } else {
            Viewer::Peer(caller.clone())
        }
    }

    pub(crate) fn tasks(&self) -> &Tasks {
        &self.shared.tasks
    }

    pub(crate) fn walk<T: Object>(&self, filter: Filter<T>) -> Walk<T> {
        self.shared.state.lock().catalogue.walk(filter)
    }

    pub(crate) fn poll_walk<T: Object>(&self, walk: &mut Walk<T>) -> Step<Arc<Record<T>>> {
        self.shared.state.lock().catalogue.poll_walk(walk)
    }

    pub(crate) fn watch<T: Object>(
        &self,
        filter: Filter<T>,
        caller: &SpiffeId,
    ) -> Result<Watch<T>, FindError> {
        let mut state = self.shared.state.lock();
        if state.watchers.len() >= MAX_WATCHES {
            return Err(FindError::Watches);
        }
        let own = state.watches_of.entry(caller.clone()).or_default();
        if *own >= MAX_WATCHES_PER_CALLER {
            return Err(FindError::WatchesOfCaller(caller.clone()));
        }
        *own += 1;
        let id = state.catalogue.subscribe(filter);
        let news = Arc::new(Notify::new());
        state.watchers.insert(id, Arc::clone(&news));
        drop(state);
        let counted = ActiveGuard::new(&self.shared.metrics.registry_watches);
        Ok(Watch {
            registry: self.clone(),
            id,
            caller: caller.clone(),
            news,
            _counted: counted,
            kind: PhantomData,
        })
    }
}

impl State {
    fn apply(&mut self, offer: Offer, now: Timestamp) -> ExportChanges {
        // Endpoints keep the time at which they were first offered: NSM's vL3 endpoints order themselves by it.
        let first_offered = |endpoint: &mut NetworkServiceEndpoint, old: Option<&NetworkServiceEndpoint>| {
            endpoint.initial_registration_time = old.map_or(Some(now), |old| old.initial_registration_time);
        };
        replace(
            &mut self.catalogue,
            &mut self.exported_services,
            offer.services,
            |_: &mut NetworkService, _| {},
        );
        replace(&mut self.catalogue, &mut self.exported_endpoints, offer.endpoints, first_offered)
    }

    /// Wakes the watchers that have news.
    fn wake(&mut self) {
        while let Some(event) = self.catalogue.poll_event() {
            match event {
                Event::News(id) => {
                    if let Some(watcher) = self.watchers.get(&id) {
                        watcher.notify_one();
                    }
                }
                Event::Lapsed(_) => {}
            }
        }
    }
}

/// Makes the objects named in `exported` those of `offered`, touching only what differs. `carry_over` copies into a new
/// object what it keeps of the old one.
fn replace<T: Object>(
    catalogue: &mut Catalogue,
    exported: &mut BTreeSet<String>,
    offered: BTreeMap<String, (T, Audience)>,
    carry_over: impl Fn(&mut T, Option<&T>),
) -> ExportChanges {
    let mut changes = ExportChanges::default();
    let names: BTreeSet<String> = offered.keys().cloned().collect();
    for name in exported.difference(&names) {
        changes.removed += usize::from(catalogue.unregister::<T>(name).is_some());
    }
    for (name, (mut object, audience)) in offered {
        let old = catalogue.get::<T>(&name).cloned();
        carry_over(&mut object, old.as_deref().map(|old| &old.object));
        match old {
            Some(old) if old.object == object && old.audience == audience => {}
            Some(old) if old.object == object => {
                catalogue.set_audience::<T>(&name, audience);
                changes.changed += 1;
            }
            old => {
                if let Err(fault) = catalogue.register(Registration {
                    object,
                    audience,
                    expires: None,
                    holder: Holder::Domain,
                }) {
                    // An offer has a name for everything; should that break, the object is missing, not the daemon.
                    tracing::error!(name, %fault, "an export is not offered");
                    continue;
                }
                changes.changed += usize::from(old.is_some());
                changes.added += usize::from(old.is_none());
            }
        }
    }
    *exported = names;
    changes
}

/// A watch of the catalogue that ends when it is dropped.
pub(crate) struct Watch<T: Object> {
    registry: Registry,
    id: WatchId,
    caller: SpiffeId,
    news: Arc<Notify>,
    _counted: ActiveGuard,
    kind: PhantomData<fn() -> T>,
}

impl<T: Object> Watch<T> {
    pub(crate) fn poll(&mut self) -> Step<Update<T>> {
        self.registry.shared.state.lock().catalogue.poll_update(self.id)
    }

    /// Completes when there is news after [`poll`](Self::poll) said that there is none.
    pub(crate) async fn news(&self) {
        self.news.notified().await;
    }
}

impl<T: Object> Drop for Watch<T> {
    fn drop(&mut self) {
        let mut state = self.registry.shared.state.lock();
        state.catalogue.unsubscribe::<T>(self.id);
        state.watchers.remove(&self.id);
        if let Entry::Occupied(mut count) = state.watches_of.entry(self.caller.clone()) {
            *count.get_mut() -= 1;
            if *count.get() == 0 {
                count.remove();
            }
        }
    }
}
