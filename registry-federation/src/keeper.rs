//! Between the catalogue and its store: what the store tells goes into the catalogue, what lapses goes out of the store.
//!
//! ```text
//!   store.follow ─▶ follow task ─▶ catalogue ─▶ lease ends ─▶ sweep task ─▶ store.commit(Delete)
//! ```
//!
//! - A lease ends when it was announced to end, by the monotonic clock: setting the wall clock neither ends nor extends
//!   the leases of a running daemon.
//! - What lapsed is gone for everybody at once, and from the store as soon as that takes a write: until then its name
//!   waits among the leftovers, so that a new registration can replace it. A store that several replicas share ends
//!   leases itself.
//! - An export wins a name. A registration that has it already waits in the shade until the export is gone.
//! - While the store is away the catalogue keeps what it was told last; leases go on ending.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use carrick_model::SpiffeId;
use carrick_proto::registry::{NetworkService, NetworkServiceEndpoint};
use carrick_registry_core::{Filter, Holder, Kind, Lapse, Owner, Record, Registration, Step};
use futures::{StreamExt as _, stream};
use tokio::sync::oneshot;

use crate::{
    limits::MAX_LEASE,
    register::Registered,
    registry::{Registry, State},
    store::{Change, Expect, Key, Store, StoreError, StoreEvent, StoredRecord},
};

/// Deletes under way at a time. They share the store's transactions, so this many cost little more than one.
const SWEEP: usize = 512;

/// Endpoints of a service among which one of the service's owner is looked for. Where there are more, the service is in use.
const ENDPOINTS_ASKED: usize = 1024;

/// A store that is away for the same reason is logged again after this time.
const WARN_AGAIN: Duration = Duration::from_secs(60);

/// Pause before what could not be deleted is tried again.
const SWEEP_AGAIN: Duration = Duration::from_secs(1);

/// Now, by both clocks.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Moment {
    pub(crate) wall: SystemTime,
    pub(crate) mono: Instant,
}

impl Moment {
    pub(crate) fn now() -> Self {
        Self { wall: SystemTime::now(), mono: Instant::now() }
    }
}

/// What the registry knows of its store beside the catalogue.
#[derive(Debug, Default)]
pub(crate) struct Kept {
    /// The revision up to which the catalogue is that of the store.
    applied: u64,
    /// Who waits for a revision.
    waiting: BTreeMap<u64, Vec<oneshot::Sender<()>>>,
    /// Lapsed, and still in the store: the revision that wrote them.
    pub(crate) leftovers: HashMap<Key, u64>,
    /// Registrations whose names are exports.
    shaded: HashMap<Key, (StoredRecord, u64)>,
    /// The keys a full state has mentioned so far. `None`: the first one, which finds an empty catalogue, or none
    /// under way.
    mentioned: Option<HashSet<Key>>,
    /// Why the store is away.
    lost: Option<String>,
    /// When leases are looked at next.
    planned: Option<Instant>,
    /// Since when the services that are registered are what they are.
    services_since: HashMap<String, Instant>,
}

/// How the store is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoreStatus {
    /// Which it is.
    pub name: String,
    /// The revision up to which the catalogue is that of the store.
    pub revision: u64,
    /// Why it is away, if it is: then registrations fail, and what is found is as it was last known.
    pub lost: Option<String>,
}

impl State {
    /// Takes in what the store told. Whoever waits for it is woken at the end.
    fn told(&mut self, event: StoreEvent, shared: bool, now: Moment) {
        let fresh = if shared { Freshness::Others } else { Freshness::Old };
        match event {
            StoreEvent::Record { key, record, revision } => {
                if let Some(mentioned) = &mut self.kept.mentioned {
                    mentioned.insert(key.clone());
                }
                self.put(key, record, revision, Freshness::Old, now);
            }
            StoreEvent::Synced(revision) => {
                self.kept.lost = None;
                if let Some(mentioned) = self.kept.mentioned.take() {
                    self.kept.leftovers.retain(|key, _| mentioned.contains(key));
                    self.kept.shaded.retain(|key, _| mentioned.contains(key));
                }
                self.reached(revision);
            }
            StoreEvent::Committed { revision, changes } => {
                for (key, record) in changes {
                    match record {
                        Some(record) => self.put(key, record, revision, fresh, now),
                        None => self.gone(&key),
                    }
                }
                self.reached(revision);
            }
            StoreEvent::Lost(why) => {
                self.kept.lost = Some(why);
                self.kept.mentioned = Some(HashSet::new());
            }
        }
    }

    fn put(&mut self, key: Key, record: StoredRecord, revision: u64, freshness: Freshness, now: Moment) {
        let placed = match key.kind {
            Kind::Service => self.place::<NetworkService>(&key, &record, revision, freshness, now),
            Kind::Endpoint => self.place::<NetworkServiceEndpoint>(&key, &record, revision, freshness, now),
        };
        match placed {
            Placed::Held | Placed::Unreadable => {
                self.kept.leftovers.remove(&key);
            }
            Placed::Lapsed => {
                self.kept.leftovers.insert(key, revision);
            }
            Placed::Shaded => {
                self.kept.leftovers.remove(&key);
                self.kept.shaded.insert(key, (record, revision));
            }
        }
    }

    fn place<T: Registered>(
        &mut self,
        key: &Key,
        stored: &StoredRecord,
        revision: u64,
        freshness: Freshness,
        now: Moment,
    ) -> Placed {
        match self.catalogue.get::<T>(&key.name).map(|record| &record.holder) {
            Some(Holder::Domain) => return Placed::Shaded,
            Some(Holder::Owner(owner)) if owner.written == revision => return Placed::Held,
            _ => {}
        }
        let object = T::decode(stored.object.as_slice()).ok().filter(|object| object.name() == key.name);
        let Some(object) = object else {
            // It stays in the store, for another version may know what it is.
            tracing::error!(%key, revision, "a stored registration cannot be read and is not offered");
            return Placed::Unreadable;
        };
        let expires = match stored.expires.map(|at| at.duration_since(now.wall)) {
            None => None,
            // Another replica's clock may run ahead of ours, but no lease is longer than that.
            Some(Ok(left)) => Some(now.mono + left.min(MAX_LEASE)),
            // Another replica committed it just now, so it is our clock that runs ahead.
            Some(Err(_)) if freshness == Freshness::Others => Some(now.mono + MAX_LEASE),
            Some(Err(_)) => {
                self.catalogue.unregister::<T>(&key.name);
                return Placed::Lapsed;
            }
        };
        let audience = self.admission.audience(object.services());
        let (id, via) = (stored.owner.clone(), stored.via.clone().map(Arc::new));
        let holder = Holder::Owner(Owner { id, via, written: revision });
        match self.catalogue.register(Registration { object, audience, expires, holder }) {
            Ok(_) => {
                if T::KIND == Kind::Service {
                    self.kept.services_since.insert(key.name.clone(), now.mono);
                }
                Placed::Held
            }
            // A key has a name, so this object has one.
            Err(fault) => {
                tracing::error!(%key, %fault, "a stored registration is not offered");
                Placed::Unreadable
            }
        }
    }

    fn gone(&mut self, key: &Key) {
        self.kept.leftovers.remove(key);
        self.kept.shaded.remove(key);
        match key.kind {
            Kind::Service => {
                self.kept.services_since.remove(&key.name);
                self.remove_registered::<NetworkService>(&key.name);
            }
            Kind::Endpoint => self.remove_registered::<NetworkServiceEndpoint>(&key.name),
        }
    }

    fn remove_registered<T: Registered>(&mut self, name: &str) {
        let registered =
            self.catalogue.get::<T>(name).is_some_and(|record| matches!(record.holder, Holder::Owner(_)));
        if registered {
            self.catalogue.unregister::<T>(name);
        }
    }

    fn reached(&mut self, revision: u64) {
        self.kept.applied = self.kept.applied.max(revision);
        let later = self.kept.waiting.split_off(&(self.kept.applied + 1));
        for waiter in std::mem::replace(&mut self.kept.waiting, later).into_values().flatten() {
            let _gone = waiter.send(());
        }
    }

    /// Whether a full state that is being told has mentioned the registration so far. Exports are not of the store.
    fn is_stale<T: Registered>(&self, record: &Record<T>) -> bool {
        let key = Key { kind: T::KIND, name: record.name().to_string() };
        matches!(record.holder, Holder::Owner(_))
            && self.kept.mentioned.as_ref().is_some_and(|mentioned| !mentioned.contains(&key))
    }

    /// A registration makes way for an export of its name.
    pub(crate) fn shade<T: Registered>(&mut self, record: &Record<T>, now: Moment) {
        let Holder::Owner(owner) = &record.holder else { return };
        let key = Key { kind: T::KIND, name: record.name().to_string() };
        let expires = record.expires.map(|at| now.wall + at.saturating_duration_since(now.mono));
        let (object, owner, written) = (record.octets().to_vec(), owner.clone(), owner.written);
        let stored = StoredRecord { object, owner: owner.id, via: owner.via.as_deref().cloned(), expires };
        self.kept.shaded.insert(key, (stored, written));
    }

    /// An export is gone: what it kept in the shade comes back.
    pub(crate) fn unshade(&mut self, kind: Kind, name: &str, now: Moment) {
        let key = Key { kind, name: name.to_owned() };
        if let Some((record, revision)) = self.kept.shaded.remove(&key) {
            self.put(key, record, revision, Freshness::Old, now);
        }
    }

    /// Whether whoever registered the service has left it: it is as it is for as long as a lease, and its owner offers no
    /// endpoint of it. Services have no lease, so without this a name would be bound for ever to a workload that is gone.
    pub(crate) fn is_abandoned(&self, name: &str, owner: &SpiffeId, now: Instant) -> bool {
        let since = self.kept.services_since.get(name);
        if since.is_none_or(|since| now.saturating_duration_since(*since) < MAX_LEASE) {
            return false;
        }
        let query =
            NetworkServiceEndpoint { network_service_names: vec![name.to_owned()], ..Default::default() };
        let mut walk = self.catalogue.walk(Filter::own(query));
        for _ in 0..ENDPOINTS_ASKED {
            match self.catalogue.poll_walk(&mut walk) {
                Step::Item(record) if matches!(&record.holder, Holder::Owner(by) if by.id.as_ref() == Some(owner)) =>
                {
                    return false;
                }
                Step::Item(_) | Step::Busy => {}
                Step::Idle => return true,
            }
        }
        false
    }

    /// Whether the task that ends leases has to look earlier than it means to.
    fn is_due_earlier(&self) -> bool {
        let next = self.catalogue.poll_timeout().map(|(at, _)| at);
        !self.kept.leftovers.is_empty()
            || next.is_some_and(|next| self.kept.planned.is_none_or(|planned| next < planned))
    }

    /// Takes in what lapsed.
    pub(crate) fn lapsed(&mut self, lapse: Lapse) {
        if let Holder::Owner(owner) = lapse.holder {
            let key = Key { kind: lapse.kind, name: lapse.name.to_string() };
            self.kept.leftovers.insert(key, owner.written);
        }
    }
}

/// What is known of the moment when a record was committed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Freshness {
    /// Just now, perhaps by another replica and its clock.
    Others,
    /// Some time ago, or by our own clock.
    Old,
}

/// What became of a stored record.
enum Placed {
    /// It is in the catalogue.
    Held,
    /// It has ended: it has to leave the store.
    Lapsed,
    /// Nobody knows what it is.
    Unreadable,
    /// An export has its name.
    Shaded,
}

impl Registry {
    /// How the store is; `None` when there is none.
    pub fn store_status(&self) -> Option<StoreStatus> {
        let name = self.store()?.name();
        let state = self.shared().state.lock();
        Some(StoreStatus { name, revision: state.kept.applied, lost: state.kept.lost.clone() })
    }

    /// Starts to follow `store` and to end leases.
    pub(crate) fn keep(&self, store: Arc<dyn Store>) {
        let (follow, sweep) = (self.clone().follow(Arc::clone(&store)), self.clone().sweep(store));
        let _until_stop = self.tasks().spawn("registry follows its store", follow);
        let _until_stop = self.tasks().spawn("registry ends leases", sweep);
    }

    /// Completes when the catalogue has what the store had at `revision`.
    pub(crate) async fn applied(&self, revision: u64) {
        let waiter = {
            let mut state = self.shared().state.lock();
            if state.kept.applied >= revision {
                return;
            }
            let (waiter, reached) = oneshot::channel();
            state.kept.waiting.entry(revision).or_default().push(waiter);
            reached
        };
        let _stopped = waiter.await;
    }

    async fn follow(self, store: Arc<dyn Store>) {
        let mut events = store.follow();
        let mut warned: Option<(String, Instant)> = None;
        loop {
            let event = tokio::select! {
                () = self.tasks().stopping() => return,
                event = events.next() => event,
            };
            let Some(event) = event else { return };
            match &event {
                StoreEvent::Lost(why) => {
                    let known = |(before, at): &(String, Instant)| before == why && at.elapsed() < WARN_AGAIN;
                    if !warned.as_ref().is_some_and(known) {
                        tracing::warn!(store = store.name(), why, "the registry's store is away");
                        warned = Some((why.clone(), Instant::now()));
                    }
                }
                StoreEvent::Synced(revision) => {
                    warned = None;
                    tracing::info!(store = store.name(), revision, "the registry has its store's state");
                    self.drop_stale::<NetworkService>().await;
                    self.drop_stale::<NetworkServiceEndpoint>().await;
                }
                _ => {}
            }
            let synced = matches!(event, StoreEvent::Synced(_));
            let due_earlier = {
                let mut state = self.shared().state.lock();
                state.told(event, store.is_shared(), Moment::now());
                state.wake();
                state.is_due_earlier()
            };
            if synced {
                self.shared().synced.send_replace(true);
            }
            if due_earlier {
                self.shared().leases.notify_one();
            }
        }
    }

    /// Removes what a full state did not mention, in steps that let others in.
    async fn drop_stale<T: Registered>(&self) {
        if self.shared().state.lock().kept.mentioned.is_none() {
            return;
        }
        let mut walk = self.walk(Filter::own(T::default()));
        loop {
            match self.poll_walk(&mut walk) {
                Step::Item(record) => {
                    let mut state = self.shared().state.lock();
                    if state.is_stale(&record) {
                        state.gone(&Key { kind: T::KIND, name: record.name().to_string() });
                        state.wake();
                    }
                }
                Step::Busy => tokio::task::yield_now().await,
                Step::Idle => return,
            }
        }
    }

    /// Ends leases in time and takes what lapsed out of the store.
    async fn sweep(self, store: Arc<dyn Store>) {
        let mut failed = false;
        while !self.tasks().is_stopping() {
            let (next, leftovers) = self.end_leases();
            if !leftovers.is_empty() && !failed && !store.is_shared() {
                tokio::select! {
                    () = self.tasks().stopping() => return,
                    deleted = self.delete(&store, leftovers) => failed = deleted.is_err(),
                }
                continue;
            }
            let next = next.unwrap_or(Duration::MAX).min(if failed { SWEEP_AGAIN } else { Duration::MAX });
            tokio::select! {
                () = self.tasks().stopping() => return,
                () = self.shared().leases.notified(), if !failed => {}
                () = tokio::time::sleep(next) => failed = false,
            }
        }
    }

    /// Ends the leases that are over. Tells how long it is to the next, and some of what has to leave the store.
    fn end_leases(&self) -> (Option<Duration>, Vec<(Key, u64)>) {
        let now = Instant::now();
        let mut state = self.shared().state.lock();
        state.catalogue.handle_timeout(now);
        let lapsed = state.wake();
        self.metrics().registry_expirations.inc_by(lapsed);
        let next = state.catalogue.poll_timeout().map(|(at, _)| at);
        state.kept.planned = next;
        let next = next.map(|at| at.saturating_duration_since(now));
        let leftovers = state.kept.leftovers.iter().take(SWEEP).map(|(key, written)| (key.clone(), *written));
        (next, leftovers.collect())
    }

    /// Takes records out of the store, each if it is still the one that lapsed.
    async fn delete(&self, store: &Arc<dyn Store>, leftovers: Vec<(Key, u64)>) -> Result<(), StoreError> {
        let deletes = leftovers.into_iter().map(|(key, written)| async move {
            let expect = Expect::Revision(written);
            let verdict = self.commit(store, vec![Change::Delete { key: key.clone(), expect }]).await;
            (key, written, verdict)
        });
        let mut deletes = stream::iter(deletes).buffer_unordered(SWEEP);
        let mut worst = Ok(());
        while let Some((key, written, verdict)) = deletes.next().await {
            match verdict {
                // A conflict: it was refreshed, or somebody else has deleted it.
                Ok(_) | Err(StoreError::Conflict { .. }) => {
                    let mut state = self.shared().state.lock();
                    if state.kept.leftovers.get(&key) == Some(&written) {
                        state.kept.leftovers.remove(&key);
                    }
                }
                Err(fault) => worst = Err(fault),
            }
        }
        worst.inspect_err(|fault| {
            tracing::warn!(error = %fault, hint = fault.hint(), "lapsed registrations stay in the store");
        })
    }

    /// Commits to the store, counted.
    pub(crate) async fn commit(
        &self,
        store: &Arc<dyn Store>,
        changes: Vec<Change>,
    ) -> Result<u64, StoreError> {
        let verdict = store.commit(changes).await;
        let outcome = verdict.as_ref().map_or_else(StoreError::outcome, |_| "made");
        self.metrics().registry_commits.of(outcome).inc();
        verdict
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(path: &str) -> SpiffeId {
        SpiffeId::new(format!("spiffe://own.test/{path}")).unwrap()
    }

    fn stored(object: &impl prost::Message, owner: &str, expires: Option<SystemTime>) -> StoredRecord {
        StoredRecord { object: object.encode_to_vec(), owner: Some(id(owner)), via: None, expires }
    }

    fn endpoint(name: &str) -> NetworkServiceEndpoint {
        NetworkServiceEndpoint {
            name: name.into(),
            network_service_names: vec!["web".into()],
            ..Default::default()
        }
    }

    fn key(kind: Kind, name: &str) -> Key {
        Key { kind, name: name.into() }
    }

    fn committed(revision: u64, key: Key, record: Option<StoredRecord>) -> StoreEvent {
        StoreEvent::Committed { revision, changes: vec![(key, record)] }
    }

    fn names(state: &State) -> Vec<String> {
        let found = state.catalogue.find(&Filter::own(NetworkServiceEndpoint::default()));
        found.iter().map(|record| record.name().to_string()).collect()
    }

    #[test]
    fn a_service_is_left_when_its_owner_offers_none_of_it() {
        let (mut state, now) = (State::default(), Moment::now());
        let web = NetworkService { name: "web".into(), ..Default::default() };
        state.told(committed(1, key(Kind::Service, "web"), Some(stored(&web, "a", None))), false, now);
        let later = now.mono + MAX_LEASE;
        assert!(!state.is_abandoned("web", &id("a"), now.mono), "its owner may be about to offer it");
        assert!(state.is_abandoned("web", &id("a"), later));
        let lease = Some(now.wall + MAX_LEASE);
        state.told(
            committed(2, key(Kind::Endpoint, "b"), Some(stored(&endpoint("b"), "b", lease))),
            false,
            now,
        );
        assert!(state.is_abandoned("web", &id("a"), later), "others offer it");
        state.told(
            committed(3, key(Kind::Endpoint, "a"), Some(stored(&endpoint("a"), "a", lease))),
            false,
            now,
        );
        assert!(!state.is_abandoned("web", &id("a"), later));
        state.told(committed(4, key(Kind::Service, "web"), None), false, now);
        assert!(!state.is_abandoned("web", &id("a"), later), "what is gone has no owner");
    }

    #[test]
    fn a_clock_that_is_wrong_ends_no_lease_of_another_replica() {
        let now = Moment::now();
        let past = Some(now.wall - Duration::from_secs(120));
        let far = Some(now.wall + Duration::from_secs(3600));
        let record = |expires| Some(stored(&endpoint("nse"), "a", expires));
        let fresh = |shared, expires| {
            let mut state = State::default();
            state.told(committed(1, key(Kind::Endpoint, "nse"), record(expires)), shared, now);
            let lease = state.catalogue.poll_timeout().map(|(at, _)| at - now.mono);
            (names(&state).len(), state.kept.leftovers.len(), lease)
        };
        assert_eq!(fresh(true, past), (1, 0, Some(MAX_LEASE)), "our clock runs ahead of theirs");
        assert_eq!(fresh(true, far), (1, 0, Some(MAX_LEASE)), "or behind");
        assert_eq!(
            fresh(false, past),
            (0, 1, None),
            "our own clock was wrong or the disk slow: it has lapsed"
        );
    }

    #[test]
    fn a_new_full_state_replaces_what_was_known() {
        let (mut state, now) = (State::default(), Moment::now());
        let lease = Some(now.wall + MAX_LEASE);
        let put = |state: &mut State, revision, name: &str| {
            let record = stored(&endpoint(name), "a", lease);
            state.told(StoreEvent::Record { key: key(Kind::Endpoint, name), record, revision }, false, now);
        };
        put(&mut state, 1, "kept");
        put(&mut state, 2, "gone");
        state.told(StoreEvent::Synced(2), false, now);
        let before = state.catalogue.revision();
        state.told(StoreEvent::Lost("away".into()), false, now);
        assert_eq!(names(&state), ["gone", "kept"], "the last good state");
        assert_eq!(state.kept.lost.as_deref(), Some("away"));
        put(&mut state, 1, "kept");
        put(&mut state, 5, "new");
        let records = state.catalogue.find(&Filter::own(NetworkServiceEndpoint::default()));
        let stale: Vec<_> = records.iter().filter(|record| state.is_stale(record)).collect();
        assert_eq!(stale.iter().map(|record| &**record.name()).collect::<Vec<_>>(), ["gone"]);
        assert_eq!(
            state.catalogue.revision().get(),
            before.get() + 1,
            "what did not change is not told again"
        );
        state.told(StoreEvent::Synced(5), false, now);
        assert_eq!((state.kept.lost.as_deref(), state.kept.applied), (None, 5));
    }
}
