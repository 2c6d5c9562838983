//! The registry of one domain: the catalogue behind a lock, and the watchers it wakes.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, hash_map::Entry},
    marker::PhantomData,
    sync::{Arc, OnceLock},
};

use carrick_identity::Identity;
use carrick_model::{Domain, SpiffeId, TrustDomain};
use carrick_proto::registry::{NetworkService, NetworkServiceEndpoint};
use carrick_registry_core::{
    Audience, Catalogue, Event, Filter, Holder, Kind, Object, Record, Registration, Revision, Step, Update,
    Viewer, Walk, WatchId,
};
use carrick_runtime::Tasks;
use carrick_telemetry::{ActiveGuard, Metrics};
use parking_lot::Mutex;
use prost_types::Timestamp;
use tokio::sync::{Notify, watch};

use crate::{
    admission::Admission,
    exports::{ExportChanges, ExportError, ExportRecord, Offer},
    federation::{Federation, FederationError, RemoteRegistries},
    find::FindError,
    keeper::{Kept, Moment},
    limits::{MAX_WATCHES, MAX_WATCHES_PER_CALLER},
    register::Registered,
    store::Store,
    upstream::Upstream,
};

/// What a domain offers, for others to find. Clones are the same registry.
#[derive(Clone)]
pub struct Registry {
    shared: Arc<Shared>,
}

pub(crate) struct Shared {
    federation: OnceLock<Federation>,
    domain: Domain,
    trust_domain: TrustDomain,
    tasks: Tasks,
    metrics: Metrics,
    pub(crate) state: Mutex<State>,
    keeping: OnceLock<(Arc<dyn Store>, Identity)>,
    upstream: OnceLock<Upstream>,
    /// Whether the store has told a full state since the start.
    pub(crate) synced: watch::Sender<bool>,
    /// A lease may end earlier than the task that ends leases knows.
    pub(crate) leases: Notify,
}

#[derive(Default)]
pub(crate) struct State {
    pub(crate) catalogue: Catalogue,
    pub(crate) admission: Admission,
    pub(crate) kept: Kept,
    /// Names of what the exports put into the catalogue.
    exported_services: BTreeSet<String>,
    exported_endpoints: BTreeSet<String>,
    watchers: HashMap<WatchId, Arc<Notify>>,
    watches_of: HashMap<SpiffeId, usize>,
}

impl Registry {
    /// An empty registry of `domain`, without a store. Callers of `trust_domain` see everything. Watches end when `tasks` is
    /// told to stop.
    pub fn new(domain: Domain, trust_domain: TrustDomain, tasks: &Tasks, metrics: &Metrics) -> Self {
        let (tasks, metrics) = (tasks.clone(), metrics.clone());
        let shared = Shared {
            federation: OnceLock::new(),
            domain,
            trust_domain,
            tasks,
            metrics,
            state: Mutex::default(),
            keeping: OnceLock::new(),
            upstream: OnceLock::new(),
            synced: watch::Sender::new(false),
            leases: Notify::new(),
        };
        Self { shared: Arc::new(shared) }
    }

    /// Gives the registry a store, and with it takes registrations. `identity` signs what we say to those who register; it is
    /// the domain's administrator too. The first store stays.
    pub fn attach(&self, store: Arc<dyn Store>, identity: Identity) {
        if self.shared.keeping.set((Arc::clone(&store), identity)).is_ok() {
            self.keep(store);
        }
    }

    /// Registrations of own names are passed on to `upstream` from now on, which is asked about our own domain; the store is to be its
    /// [mirror](crate::MirrorStore). The first one stays.
    pub fn set_upstream(&self, upstream: Arc<dyn RemoteRegistries>) {
        let upstream = Upstream { domain: self.shared.domain.clone(), registry: upstream };
        let _first = self.shared.upstream.set(upstream);
    }

    pub(crate) fn upstream(&self) -> Option<&Upstream> {
        self.shared.upstream.get()
    }

    /// Completes when the store has told all there is, for the first time. Never without a store, or while it is away.
    pub async fn synced(&self) {
        // The sender lives in `self`, so the channel cannot close while we wait.
        let mut synced = self.shared.synced.subscribe();
        let _closed = synced.wait_for(|synced| *synced).await;
    }

    /// Replaces what callers of other trust domains may do with registrations. Those who watch are told what appears and
    /// disappears for them; what is registered stays.
    pub async fn set_admission(&self, admission: Admission) {
        {
            let mut state = self.shared.state.lock();
            if state.admission == admission {
                return;
            }
            state.admission = admission.clone();
        }
        self.readmit::<NetworkService>(&admission).await;
        self.readmit::<NetworkServiceEndpoint>(&admission).await;
    }

    /// Gives every registration the audience that `admission` says, and lets others in between.
    async fn readmit<T: Registered>(&self, admission: &Admission) {
        let mut walk = self.walk(Filter::own(T::default()));
        loop {
            match self.poll_walk(&mut walk) {
                Step::Item(record) => {
                    let name = record.name();
                    let mut state = self.shared.state.lock();
                    // Another admission may have come meanwhile, another registration, or an export.
                    let now = state.catalogue.get::<T>(name).filter(|now| now.holder != Holder::Domain);
                    let audience = now
                        .filter(|_| state.admission == *admission)
                        .map(|now| (admission.audience(now.object().services()), &now.audience))
                        .and_then(|(audience, before)| (audience != *before).then_some(audience));
                    if let Some(audience) = audience {
                        state.catalogue.set_audience::<T>(name, audience);
                        state.wake();
                    }
                }
                Step::Busy => tokio::task::yield_now().await,
                Step::Idle => return,
            }
        }
    }

    /// Replaces what the domain exports. Watchers hear of the differences only.
    ///
    /// # Errors
    /// The set is contradictory; the set before stays in force.
    pub fn set_exports(&self, exports: Vec<ExportRecord>) -> Result<ExportChanges, ExportError> {
        let offer = Offer::of(exports)?;
        let now = Moment::now();
        let mut state = self.shared.state.lock();
        let changes = state.apply(offer, now);
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

    /// Whether a caller is of the own trust domain.
    pub(crate) fn is_own(&self, caller: &SpiffeId) -> bool {
        *caller.trust_domain() == self.shared.trust_domain
    }

    /// What answers for other domains, if anything does.
    pub fn federation(&self) -> Option<&Federation> {
        self.shared.federation.get()
    }

    /// Names of other domains are answered by `federation` from now on; the first one set counts.
    pub fn set_federation(&self, federation: Federation) {
        let _first = self.shared.federation.set(federation);
    }

    /// What answers for `domain`, if `caller` may ask through us.
    pub(crate) fn federation_for(
        &self,
        caller: &SpiffeId,
        domain: &Domain,
    ) -> Result<&Federation, FederationError> {
        if !self.is_own(caller) {
            let (caller, domain) = (caller.clone(), domain.clone());
            return Err(FederationError::Foreign { caller, domain });
        }
        self.shared.federation.get().ok_or_else(|| FederationError::Off(domain.clone()))
    }

    /// What a caller is to the registry.
    pub(crate) fn viewer(&self, caller: &SpiffeId) -> Viewer {
        if self.is_own(caller) { Viewer::Own } else { Viewer::Peer(caller.clone()) }
    }

    pub(crate) fn tasks(&self) -> &Tasks {
        &self.shared.tasks
    }

    pub(crate) fn metrics(&self) -> &Metrics {
        &self.shared.metrics
    }

    pub(crate) fn shared(&self) -> &Shared {
        &self.shared
    }

    pub(crate) fn store(&self) -> Option<&Arc<dyn Store>> {
        self.shared.keeping.get().map(|(store, _)| store)
    }

    /// The store, and who signs for it.
    pub(crate) fn keeping(&self) -> Option<(Arc<dyn Store>, &Identity)> {
        self.shared.keeping.get().map(|(store, identity)| (Arc::clone(store), identity))
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
    fn apply(&mut self, offer: Offer, now: Moment) -> ExportChanges {
        // Endpoints keep the time at which they were first offered: NSM's vL3 endpoints order themselves by it.
        let began: Timestamp = now.wall.into();
        let first_offered = |endpoint: &mut NetworkServiceEndpoint, old: Option<&NetworkServiceEndpoint>| {
            endpoint.initial_registration_time = old.map_or(Some(began), |old| old.initial_registration_time);
        };
        self.replace(offer.services, now, |_: &mut NetworkService, _| {});
        self.replace(offer.endpoints, now, first_offered)
    }

    /// Makes the exports of one kind those of `offered`, touching only what differs. `carry_over` copies into a new object
    /// what it keeps of the export before.
    fn replace<T: Registered>(
        &mut self,
        offered: BTreeMap<String, (T, Audience)>,
        now: Moment,
        carry_over: impl Fn(&mut T, Option<&T>),
    ) -> ExportChanges {
        let mut changes = ExportChanges::default();
        let names: BTreeSet<String> = offered.keys().cloned().collect();
        let exported = match T::KIND {
            Kind::Service => &mut self.exported_services,
            Kind::Endpoint => &mut self.exported_endpoints,
        };
        let before = std::mem::replace(exported, names);
        for name in before.iter().filter(|name| !offered.contains_key(*name)) {
            changes.removed += usize::from(self.catalogue.unregister::<T>(name).is_some());
            self.unshade(T::KIND, name, now);
        }
        for (name, (mut object, audience)) in offered {
            let old = self.catalogue.get::<T>(&name).cloned();
            // A registration of the name makes way.
            let old = old.filter(|old| {
                let export = old.holder == Holder::Domain;
                if !export {
                    self.shade(old, now);
                }
                export
            });
            let before = old.as_deref().map(Record::object);
            carry_over(&mut object, before.as_ref());
            let same = before.as_ref() == Some(&object);
            match old {
                Some(old) if same && old.audience == audience => {}
                Some(_) if same => {
                    self.catalogue.set_audience::<T>(&name, audience);
                    changes.changed += 1;
                }
                old => {
                    let registration =
                        Registration { object, audience, expires: None, holder: Holder::Domain };
                    if let Err(fault) = self.catalogue.register(registration) {
                        // An offer has a name for everything; should that break, the object is missing, not the daemon.
                        tracing::error!(name, %fault, "an export is not offered");
                        continue;
                    }
                    changes.changed += usize::from(old.is_some());
                    changes.added += usize::from(old.is_none());
                }
            }
        }
        changes
    }

    /// Wakes the watchers that have news. Tells how many leases ended.
    pub(crate) fn wake(&mut self) -> u64 {
        let mut lapsed = 0;
        while let Some(event) = self.catalogue.poll_event() {
            match event {
                Event::News(id) => {
                    if let Some(watcher) = self.watchers.get(&id) {
                        watcher.notify_one();
                    }
                }
                Event::Lapsed(lapse) => {
                    self.lapsed(lapse);
                    lapsed += 1;
                }
            }
        }
        lapsed
    }
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
