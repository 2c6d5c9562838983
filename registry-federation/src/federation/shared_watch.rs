//! One watch of a remote registry for all local watchers of the same query.
//!
//! ```text
//!   remote stream ──▶ driver task ──▶ catalogue of this one watch ──▶ subscriber, subscriber, …   each at its own pace
//! ```
//!
//! The catalogue coalesces for those who are slow. When the remote stream ends, the subscribers end; what was last seen stays
//! readable, marked stale, until somebody watches anew. When the last subscriber leaves, the watch goes on for [`LINGER`].

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, SystemTime},
};

use carrick_model::Domain;
use carrick_registry_core::{
    Audience, Catalogue, Event, Filter, Holder, Record, Registration, Step, Update, WatchId,
};
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::{
    Federated,
    remote::{RemoteAnswer, RemoteFault},
};

/// Objects of one watch.
pub(super) const MAX_OBJECTS: usize = 10_000;
/// Octets of one watch's objects, or of one answer: what 10,000 ordinary endpoints take three times over.
pub(super) const MAX_OCTETS: usize = 16 << 20;
/// Octets of all watches together.
const MAX_OCTETS_OF_ALL: usize = 256 << 20;
/// How long a watch goes on without subscribers: who renews a connection watches again in a moment.
pub(super) const LINGER: Duration = Duration::from_secs(5);

/// A watch that several subscribers share.
pub(crate) struct SharedWatch<T: Federated> {
    pub(super) domain: Domain,
    /// The query as it goes to the remote registry.
    pub(super) query: T,
    state: Mutex<State>,
    octets_of_all: Arc<AtomicUsize>,
    /// The last subscriber has left.
    left: Notify,
}

#[derive(Default)]
struct State {
    catalogue: Catalogue,
    sizes: HashMap<String, usize>,
    octets: usize,
    subscribers: HashMap<WatchId, Arc<Notify>>,
    ended: Option<Ended>,
}

/// How a watch ended.
#[derive(Debug, Clone)]
pub(super) struct Ended {
    pub(super) at: SystemTime,
    pub(super) fault: Arc<RemoteFault>,
}

/// A local watcher of a shared watch. Dropping it ends its part.
pub(super) struct Subscriber<T: Federated> {
    watch: Arc<SharedWatch<T>>,
    id: WatchId,
    news: Arc<Notify>,
}

/// What a subscriber is told next.
pub(super) enum Told<T> {
    /// An object as it is, or as it was before it was deleted.
    Object(Arc<Record<T>>, bool),
    /// The watch has ended.
    Ended(Arc<RemoteFault>),
}

impl<T: Federated> SharedWatch<T> {
    pub(super) fn new(domain: Domain, query: T, octets_of_all: Arc<AtomicUsize>) -> Self {
        Self { domain, query, state: Mutex::default(), octets_of_all, left: Notify::new() }
    }

    /// A subscriber more, who begins with what is there; nothing when the watch has ended.
    pub(super) fn subscribe(self: &Arc<Self>) -> Option<Subscriber<T>> {
        let mut state = self.state.lock();
        if state.ended.is_some() {
            return None;
        }
        let id = state.catalogue.subscribe(Filter::own(T::default()));
        let news = Arc::new(Notify::new());
        state.subscribers.insert(id, Arc::clone(&news));
        Some(Subscriber { watch: Arc::clone(self), id, news })
    }

    /// Takes in what the remote registry said.
    pub(super) fn take(&self, answer: RemoteAnswer<T>) -> Result<(), RemoteFault> {
        let mut state = self.state.lock();
        let RemoteAnswer { object, deleted } = answer;
        let name = object.name().to_owned();
        let before = state.sizes.remove(&name).unwrap_or_default();
        self.shrink(&mut state, before);
        if deleted {
            state.catalogue.unregister::<T>(&name);
        } else {
            let size = object.encoded_len();
            let total = self.octets_of_all.fetch_add(size, Relaxed) + size;
            state.octets += size;
            state.sizes.insert(name, size);
            if state.sizes.len() > MAX_OBJECTS || state.octets > MAX_OCTETS {
                return Err(RemoteFault::too_much(&self.domain, MAX_OBJECTS, MAX_OCTETS));
            }
            if total > MAX_OCTETS_OF_ALL {
                return Err(RemoteFault::no_room(&self.domain, MAX_OCTETS_OF_ALL));
            }
            let registration = Registration {
                object,
                audience: Audience::own_domain(),
                expires: None,
                holder: Holder::Domain,
            };
            // An object without a name was sorted out before.
            let _revision = state.catalogue.register(registration);
        }
        state.wake();
        Ok(())
    }

    /// Ends the watch for all subscribers.
    pub(super) fn end(&self, fault: &Arc<RemoteFault>) {
        let mut state = self.state.lock();
        state.ended.get_or_insert(Ended { at: SystemTime::now(), fault: Arc::clone(fault) });
        for news in state.subscribers.values() {
            news.notify_one();
        }
    }

    /// Completes when there has been no subscriber for [`LINGER`]; then nobody can subscribe any more.
    pub(super) async fn abandoned(&self) {
        loop {
            self.left.notified().await;
            tokio::time::sleep(LINGER).await;
            let mut state = self.state.lock();
            if state.subscribers.is_empty() {
                let fault = Arc::new(RemoteFault::abandoned(&self.domain));
                state.ended.get_or_insert(Ended { at: SystemTime::now(), fault });
                return;
            }
        }
    }

    /// How it ended, if it has.
    pub(super) fn ended(&self) -> Option<Ended> {
        self.state.lock().ended.clone()
    }

    /// How many objects there are, or were, and how many subscribers.
    pub(super) fn counts(&self) -> (usize, usize) {
        let state = self.state.lock();
        (state.catalogue.count::<T>(), state.subscribers.len())
    }

    /// The names of what is there, or was.
    pub(super) fn names(&self, limit: usize) -> Vec<String> {
        let state = self.state.lock();
        let mut names: Vec<String> = state.sizes.keys().cloned().collect();
        drop(state);
        names.sort_unstable();
        names.truncate(limit);
        names
    }

    fn shrink(&self, state: &mut State, octets: usize) {
        state.octets -= octets;
        self.octets_of_all.fetch_sub(octets, Relaxed);
    }
}

impl State {
    fn wake(&mut self) {
        while let Some(Event::News(id)) = self.catalogue.poll_event() {
            if let Some(news) = self.subscribers.get(&id) {
                news.notify_one();
            }
        }
    }
}

impl<T: Federated> Drop for SharedWatch<T> {
    fn drop(&mut self) {
        self.octets_of_all.fetch_sub(self.state.get_mut().octets, Relaxed);
    }
}

impl<T: Federated> Subscriber<T> {
    /// What there is to tell next. What is pending is told before the end.
    pub(super) async fn next(&mut self) -> Told<T> {
        loop {
            let step = {
                let mut state = self.watch.state.lock();
                match (state.catalogue.poll_update::<T>(self.id), &state.ended) {
                    (Step::Idle, Some(ended)) => return Told::Ended(Arc::clone(&ended.fault)),
                    (step, _) => step,
                }
            };
            match step {
                Step::Item(Update::Present(record)) => return Told::Object(record, false),
                Step::Item(Update::Gone { last, .. }) => return Told::Object(last, true),
                Step::Busy => tokio::task::yield_now().await,
                Step::Idle => self.news.notified().await,
            }
        }
    }
}

impl<T: Federated> Drop for Subscriber<T> {
    fn drop(&mut self) {
        let mut state = self.watch.state.lock();
        state.catalogue.unsubscribe::<T>(self.id);
        state.subscribers.remove(&self.id);
        if state.subscribers.is_empty() {
            self.watch.left.notify_one();
        }
    }
}
