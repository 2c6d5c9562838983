//! Names of other domains: `x@b.test` is served by the registry of `b.test`.
//!
//! ```text
//!   local caller ── x@b.test ──▶ cut the domain off ── x ──▶ registry of b.test
//!                ◀─ x@b.test ── put it on again, url ours ◀── x, its own url
//! ```
//!
//! - **Who may.** Callers of the own trust domain. A peer asks the domain it means itself; we relay for nobody.
//! - **Find** asks the remote registry each time, and a watched one joins the one watch that all local watchers of the same
//!   query share (`shared_watch`). An endpoint's URL becomes the one of our own connection manager; where it really is stays in
//!   [`Federation::locate`].
//! - **Register** of an endpoint publishes our URL in its place, and answers with the caller's; see [`Federation::published`].
//! - **Loss.** A remote registry that gives no sign of life for a lease (`domains`) loses its watches, and local watchers' streams end,
//!   which is how NSM's clients learn of a loss. What was last known stays readable, marked stale ([`Federation::snapshot`]).
//! - **Faults** reach the caller as a status that says whose fault it is, never as an empty answer.
//!
//! A floating domain is one whose registry holds endpoints of others; nothing here is different for it.

mod domains;
mod places;
mod relay;
mod remote;
mod shared_watch;
mod urls;

use std::{
    collections::HashMap,
    sync::{Arc, atomic::AtomicUsize},
    time::{Duration, Instant, SystemTime},
};

use arc_swap::ArcSwap;
use carrick_identity::token::TokenPath;
use carrick_model::{Domain, SpiffeId};
use carrick_proto::registry::{NetworkService, NetworkServiceEndpoint};
use carrick_runtime::Tasks;
use carrick_telemetry::Metrics;
use futures::{StreamExt as _, stream};
use parking_lot::Mutex;
use tonic::{Code, Status};

pub(crate) use self::remote::answered;
use self::{
    domains::Domains,
    places::{Place, Places},
    shared_watch::{MAX_OBJECTS, MAX_OCTETS, SharedWatch, Subscriber, Told},
    urls::{FoundUrls, Published},
};
pub use self::{
    relay::Relay,
    remote::{RemoteAnswer, RemoteAnswers, RemoteBlame, RemoteFault, RemoteRegistries, RemoteRegistry},
    urls::PublishedFull,
};
use crate::{
    find::{Answers, Wire},
    names,
};

/// The end of every denial in NSM.
const DENIED: &str = "no sufficient privileges";
/// How long a remote registry may take to answer a query, a registration, or to be connected to.
pub(crate) const CALL_DEADLINE: Duration = Duration::from_secs(5);
/// Watches of remote registries at a time, of each kind: one for each service in use in other domains.
const MAX_SHARED_WATCHES: usize = 2_048;
/// Watches of one domain, of each kind. A peer's registry lets one caller have a thousand.
const MAX_SHARED_WATCHES_PER_DOMAIN: usize = 512;
/// Watches that ended and are kept for people to read.
const MAX_STALE: usize = 64;
/// Names of stale objects that are listed for people.
const MAX_LISTED: usize = 100;
/// Longest name of an object that is taken from a remote registry: a Kubernetes object name has 253 octets.
const MAX_NAME: usize = 512;
/// Until when an endpoint without an expiration time counts as published: NSM's registries say at most a minute.
const PUBLISHED: Duration = Duration::from_secs(600);

/// The registries of other domains as the own registry's callers see them. Clones are the same.
#[derive(Clone)]
pub struct Federation {
    inner: Arc<Inner>,
}

struct Inner {
    remotes: Arc<dyn RemoteRegistries>,
    connect_url: ArcSwap<String>,
    tasks: Tasks,
    metrics: Metrics,
    domains: Domains,
    places: Arc<Places>,
    services: Mutex<Watches<NetworkService>>,
    endpoints: Mutex<Watches<NetworkServiceEndpoint>>,
    octets: Arc<AtomicUsize>,
    found: Mutex<FoundUrls>,
    published: Mutex<Published>,
}

/// The shared watches of a kind, by domain and encoded query. Those that ended are here until they are watched anew.
pub(crate) type Watches<T> = HashMap<(Domain, Vec<u8>), Arc<SharedWatch<T>>>;

/// Why something of another domain is not answered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FederationError {
    /// The caller is not of the own trust domain. It has to ask the other domain itself.
    #[error(
        "`{caller}` is of another trust domain: ask the registry of {domain} itself; no sufficient privileges"
    )]
    Foreign {
        /// Who asked.
        caller: SpiffeId,
        /// About which domain.
        domain: Domain,
    },
    /// This registry was started without federation. The caller has to ask the domain itself.
    #[error("{0} is another domain and this registry does not federate: ask the registry of {0}")]
    Off(Domain),
    /// The other domain's registry could not be asked, or said no.
    #[error(transparent)]
    Remote(Arc<RemoteFault>),
    /// The other domain leaves too many calls without an answer; a retry may help.
    #[error("{1} calls to the registry of {0} are unanswered, no more are made: it answers slowly")]
    CallsOfDomain(Domain, usize),
    /// There are too many calls; a retry may help.
    #[error("{0} calls to other domains are unanswered, no more are made")]
    Calls(usize),
    /// There are too many watches of other domains; somebody has to end one.
    #[error("{0} watches of other domains are open, no more are taken")]
    Watches(usize),
    /// The caller has too many watches; it has to end one.
    #[error("{0} has {1} watches of other domains open, no more are taken: end one first")]
    WatchesOfCaller(SpiffeId, usize),
    /// There are too many watches of one domain.
    #[error("{1} watches of {0} are open, no more are taken")]
    WatchesOfDomain(Domain, usize),
    /// There is no room for another publication.
    #[error(transparent)]
    Published(#[from] PublishedFull),
}

/// What is known of another domain, for people.
#[derive(Debug, Clone)]
pub struct RemoteView {
    /// The domain.
    pub domain: Domain,
    /// What is watched: `network service` or `network service endpoint`.
    pub what: &'static str,
    /// The query in words: services or a name; empty for everything.
    pub query: String,
    /// How many objects there are, or were.
    pub objects: usize,
    /// The names of some of them.
    pub names: Vec<String>,
    /// How many local watchers there are.
    pub watchers: usize,
    /// Since when it is stale, and why. `None` while the watch stands.
    pub stale: Option<(SystemTime, String)>,
}

/// A kind of object that is federated.
pub(crate) trait Federated: Wire {
    fn remote(all: &dyn RemoteRegistries) -> &dyn RemoteRegistry<Self>;

    fn watches(federation: &Federation) -> &Mutex<Watches<Self>>;

    /// Where requests for it go, if it is an object that requests are for.
    fn url_mut(&mut self) -> Option<&mut String>;

    /// Itself, if it is an endpoint.
    fn as_endpoint(&self) -> Option<&NetworkServiceEndpoint>;

    /// When its registration ends, if it says so.
    fn ends(&self) -> Option<SystemTime>;

    /// The query in words, for people.
    fn words(&self) -> String;
}

impl From<RemoteFault> for FederationError {
    fn from(fault: RemoteFault) -> Self {
        Self::Remote(Arc::new(fault))
    }
}

impl From<FederationError> for Status {
    fn from(fault: FederationError) -> Self {
        let code = match &fault {
            FederationError::Foreign { .. } => Code::PermissionDenied,
            FederationError::Off(_) => Code::Unimplemented,
            FederationError::Remote(remote) => remote.code,
            FederationError::CallsOfDomain(..)
            | FederationError::Calls(_)
            | FederationError::Watches(_)
            | FederationError::WatchesOfCaller(..)
            | FederationError::WatchesOfDomain(..)
            | FederationError::Published(_) => Code::ResourceExhausted,
        };
        let mut text = fault.to_string();
        // What NSM's callers look for at the end of a denial.
        if code == Code::PermissionDenied && !text.ends_with(DENIED) {
            text = format!("{text}: {DENIED}");
        }
        Self::new(code, text)
    }
}

impl Federation {
    /// The registries behind `remotes`. `connect_url` is where our own connection manager is reached (`tcp://ip:port`), which local
    /// callers are told for endpoints of other domains, and other domains for endpoints of ours.
    pub fn new(
        remotes: Arc<dyn RemoteRegistries>,
        connect_url: String,
        tasks: &Tasks,
        metrics: &Metrics,
    ) -> Self {
        let inner = Inner {
            remotes,
            connect_url: ArcSwap::from_pointee(connect_url),
            tasks: tasks.clone(),
            metrics: metrics.clone(),
            domains: Domains::default(),
            places: Arc::default(),
            services: Mutex::default(),
            endpoints: Mutex::default(),
            octets: Arc::default(),
            found: Mutex::default(),
            published: Mutex::default(),
        };
        Self { inner: Arc::new(inner) }
    }

    /// Our connection manager is reached at `connect_url` from now on.
    pub fn set_connect_url(&self, connect_url: String) {
        self.inner.connect_url.store(Arc::new(connect_url));
    }

    /// The endpoints of `domain` that match `query`, with plain names and the URLs they have there.
    ///
    /// # Errors
    /// The domain's registry does not answer, or says no.
    pub async fn find_endpoints(
        &self,
        domain: &Domain,
        query: NetworkServiceEndpoint,
    ) -> Result<Vec<NetworkServiceEndpoint>, FederationError> {
        self.collect(domain, query).await
    }

    /// The network services of `domain` that match `query`, with plain names.
    ///
    /// # Errors
    /// The domain's registry does not answer, or says no.
    pub async fn find_services(
        &self,
        domain: &Domain,
        query: NetworkService,
    ) -> Result<Vec<NetworkService>, FederationError> {
        self.collect(domain, query).await
    }

    /// Where the endpoint `name` of `domain` is: as last seen, or as its registry says now. `None` when there is no such
    /// endpoint.
    ///
    /// # Errors
    /// It was not seen lately, and the domain's registry does not answer.
    pub async fn locate(&self, domain: &Domain, name: &str) -> Result<Option<String>, FederationError> {
        let known = self.inner.found.lock().get(domain, name, Instant::now()).map(str::to_owned);
        if known.is_some() {
            return Ok(known);
        }
        let query = NetworkServiceEndpoint { name: name.to_owned(), ..Default::default() };
        let found = self.collect(domain, query).await?;
        Ok(found.into_iter().find(|endpoint| endpoint.name == name).map(|endpoint| endpoint.url))
    }

    /// The endpoint of ours that is registered in another domain under this full name, `nse@domain`: with its own URL in place of the
    /// one that is published there.
    pub fn published(&self, full_name: &str) -> Option<NetworkServiceEndpoint> {
        self.inner.published.lock().get(full_name, SystemTime::now()).cloned()
    }

    /// How many endpoints of ours are registered in other domains.
    pub fn published_count(&self) -> usize {
        self.inner.published.lock().len()
    }

    /// What is watched in other domains, and what was when its domain was lost.
    pub fn snapshot(&self) -> Vec<RemoteView> {
        let mut all = views(&self.inner.services);
        all.extend(views(&self.inner.endpoints));
        all.sort_by(|a, b| (&a.domain, a.what, &a.query).cmp(&(&b.domain, b.what, &b.query)));
        all
    }

    /// Why the registry of `domain` was last lost, and when; nothing while it answers, or was not watched.
    pub fn fault_of(&self, domain: &Domain) -> Option<(SystemTime, String)> {
        self.last_fault(domain).map(|(at, fault)| (at, fault.to_string()))
    }

    /// Answers a query of the local `caller`. `query` has plain names, `suffix` is the domain as the caller wrote it.
    pub(crate) async fn answer<T: Federated>(
        &self,
        caller: &SpiffeId,
        domain: &Domain,
        suffix: String,
        query: T,
        watch: bool,
    ) -> Result<Answers<T::Response>, FederationError> {
        if watch {
            let place = self.inner.places.enter(caller, &self.inner.metrics)?;
            return self.watch(domain, suffix, query, place);
        }
        let found = self.collect(domain, query).await?;
        let federation = self.clone();
        let answers =
            found.into_iter().map(move |object| Ok(federation.dress(object, &suffix).response(false)));
        Ok(stream::iter(answers).boxed())
    }

    /// Registers an object of a local caller with `domain`.
    pub(crate) async fn register<T: Federated>(
        &self,
        domain: &Domain,
        suffix: &str,
        mut object: T,
        path: TokenPath,
    ) -> Result<(T, Option<TokenPath>), FederationError> {
        let own_url = self.publish_url(&mut object);
        let sent = format!("{}@{suffix}", object.name());
        if own_url.is_some() {
            self.inner.published.lock().reserve(&sent, SystemTime::now())?;
        }
        let _call = self.begin_call(domain)?;
        let registered = T::remote(&*self.inner.remotes).register(domain, object, path);
        let (mut object, path) = answered(domain, CALL_DEADLINE, registered).await?;
        if let (Some(own), Some(url)) = (&own_url, object.url_mut()) {
            own.clone_into(url);
        }
        names::add_domain(&mut object, suffix);
        if own_url.is_some() {
            let ends = object.ends().unwrap_or_else(|| SystemTime::now() + PUBLISHED);
            if let Some(endpoint) = object.as_endpoint() {
                let mut published = self.inner.published.lock();
                // The registry may have given it another name; callers know it by either.
                published.put(&sent, endpoint, ends);
                published.put(&endpoint.name, endpoint, ends);
            }
        }
        Ok((object, path))
    }

    /// Unregisters an object of a local caller with `domain`.
    pub(crate) async fn unregister<T: Federated>(
        &self,
        domain: &Domain,
        suffix: &str,
        mut object: T,
        path: TokenPath,
    ) -> Result<(), FederationError> {
        let full_name = format!("{}@{suffix}", object.name());
        let is_endpoint = self.publish_url(&mut object).is_some();
        let _call = self.begin_call(domain)?;
        let unregistered = T::remote(&*self.inner.remotes).unregister(domain, object, path);
        answered(domain, CALL_DEADLINE, unregistered).await?;
        if is_endpoint {
            self.inner.published.lock().remove(&full_name);
        }
        Ok(())
    }

    /// Puts our URL into an endpoint and returns the one it had.
    fn publish_url<T: Federated>(&self, object: &mut T) -> Option<String> {
        let ours = self.inner.connect_url.load();
        let url = object.url_mut()?;
        let own = std::mem::take(url);
        if ours.is_empty() {
            own.clone_into(url);
        } else {
            ours.as_str().clone_into(url);
        }
        Some(own)
    }

    /// All that the registry of `domain` answers to `query`.
    async fn collect<T: Federated>(&self, domain: &Domain, query: T) -> Result<Vec<T>, FederationError> {
        let _call = self.begin_call(domain)?;
        let asked = async {
            let mut answers = T::remote(&*self.inner.remotes).find(domain, query.clone(), false).await?;
            let (mut found, mut octets) = (Vec::new(), 0);
            while let Some(answer) = answers.next().await {
                let answer = answer?;
                if answer.deleted || !self.is_sound(domain, &query, &answer) {
                    continue;
                }
                octets += answer.object.encoded_len();
                found.push(answer.object);
                if found.len() > MAX_OBJECTS || octets > MAX_OCTETS {
                    return Err(RemoteFault::too_much(domain, MAX_OBJECTS, MAX_OCTETS));
                }
            }
            Ok(found)
        };
        let mut found = answered(domain, CALL_DEADLINE, asked).await?;
        for object in &mut found {
            self.remember(domain, object, false);
        }
        Ok(found)
    }

    /// Joins the watch of `query`, or begins it.
    fn watch<T: Federated>(
        &self,
        domain: &Domain,
        suffix: String,
        query: T,
        place: Place,
    ) -> Result<Answers<T::Response>, FederationError> {
        let subscriber = self.subscribe(domain, query)?;
        let watcher = (subscriber, place, false);
        let federation = self.clone();
        Ok(stream::unfold(Some(watcher), move |watcher| {
            let (federation, suffix) = (federation.clone(), suffix.clone());
            async move {
                let (mut subscriber, place, answered) = watcher?;
                match subscriber.next().await {
                    Told::Object(record, deleted) => {
                        let object = federation.dress(record.object(), &suffix);
                        Some((Ok(object.response(deleted)), Some((subscriber, place, true))))
                    }
                    // NSM's clients take the end of a stream as the loss of what it watched.
                    Told::Ended(_) if answered => None,
                    Told::Ended(fault) => Some((Err(FederationError::Remote(fault).into()), None)),
                }
            }
        })
        .boxed())
    }

    fn subscribe<T: Federated>(&self, domain: &Domain, query: T) -> Result<Subscriber<T>, FederationError> {
        let key = (domain.clone(), query.encode_to_vec());
        let mut watches = T::watches(self).lock();
        if let Some(subscriber) = watches.get(&key).and_then(SharedWatch::subscribe) {
            return Ok(subscriber);
        }
        let standing = || watches.iter().filter(|(_, watch)| watch.ended().is_none());
        if standing().count() >= MAX_SHARED_WATCHES {
            return Err(FederationError::Watches(MAX_SHARED_WATCHES));
        }
        let theirs = standing().filter(|((of, _), _)| of == domain).count();
        if theirs >= MAX_SHARED_WATCHES_PER_DOMAIN {
            return Err(FederationError::WatchesOfDomain(domain.clone(), theirs));
        }
        let watch = Arc::new(SharedWatch::new(domain.clone(), query, Arc::clone(&self.inner.octets)));
        let subscriber = watch.subscribe();
        watches.insert(key.clone(), Arc::clone(&watch));
        drop(watches);
        self.inner.tasks.spawn("watch a remote registry", self.clone().drive(watch, key));
        subscriber.ok_or(FederationError::Watches(MAX_SHARED_WATCHES))
    }

    /// Runs a shared watch to its end.
    async fn drive<T: Federated>(self, watch: Arc<SharedWatch<T>>, key: (Domain, Vec<u8>)) {
        let domain = watch.domain.clone();
        let fault = tokio::select! {
            () = self.inner.tasks.stopping() => Some(RemoteFault::stopping(&domain)),
            () = watch.abandoned() => None,
            fault = self.follow(&watch) => Some(fault),
        };
        let Some(fault) = fault else {
            let mut watches = T::watches(&self).lock();
            if watches.get(&key).is_some_and(|there| Arc::ptr_eq(there, &watch)) {
                watches.remove(&key);
            }
            return;
        };
        tracing::info!(%domain, kind = T::WHAT, %fault, "a watch of a remote registry ended");
        let fault = Arc::new(fault);
        for name in watch.names(usize::MAX) {
            self.inner.found.lock().delete(&domain, &name);
        }
        self.note_fault(&domain, &fault);
        watch.end(&fault);
        self.limit_stale::<T>();
    }

    /// Takes in what the remote registry says until it ends.
    async fn follow<T: Federated>(&self, watch: &SharedWatch<T>) -> RemoteFault {
        let domain = &watch.domain;
        let opened = T::remote(&*self.inner.remotes).find(domain, watch.query.clone(), true);
        let mut answers = match answered(domain, CALL_DEADLINE, opened).await {
            Ok(answers) => answers,
            Err(fault) => return fault,
        };
        let (_standing, mut lost) = self.begin_watch(domain);
        loop {
            let answer = tokio::select! {
                biased;
                fault = lost_of(&mut lost) => {
                    return fault.map_or_else(|| RemoteFault::ended(domain), Arc::unwrap_or_clone);
                }
                answer = answers.next() => answer,
            };
            match answer {
                None => return RemoteFault::ended(domain),
                Some(Err(fault)) => return fault,
                Some(Ok(mut answer)) => {
                    if self.is_sound(domain, &watch.query, &answer) {
                        self.remember(domain, &mut answer.object, answer.deleted);
                        if let Err(fault) = watch.take(answer) {
                            return fault;
                        }
                    }
                }
            }
        }
    }

    /// Whether an answer is about what was asked, in words that can be passed on.
    fn is_sound<T: Federated>(&self, domain: &Domain, query: &T, answer: &RemoteAnswer<T>) -> bool {
        let object = &answer.object;
        let plain = |name: &str| !name.contains('@') && name.len() <= MAX_NAME;
        let sound = !object.name().is_empty()
            && object.names().all(plain)
            && (answer.deleted || query.matches(object));
        if !sound {
            tracing::debug!(%domain, kind = T::WHAT, "an answer of a remote registry is not about what was asked");
        }
        sound
    }

    /// Keeps where an endpoint is.
    fn remember<T: Federated>(&self, domain: &Domain, object: &mut T, deleted: bool) {
        let name = object.name().to_owned();
        let Some(url) = object.url_mut() else { return };
        let mut found = self.inner.found.lock();
        if deleted {
            found.delete(domain, &name);
        } else {
            found.put(domain, &name, url, Instant::now());
        }
    }

    /// An object as a local caller gets it: full names, our URL.
    fn dress<T: Federated>(&self, mut object: T, suffix: &str) -> T {
        let ours = self.inner.connect_url.load();
        if let Some(url) = object.url_mut().filter(|_| !ours.is_empty()) {
            ours.as_str().clone_into(url);
        }
        names::add_domain(&mut object, suffix);
        object
    }

    /// Forgets the oldest of the watches that ended.
    fn limit_stale<T: Federated>(&self) {
        let mut watches = T::watches(self).lock();
        let mut stale: Vec<_> =
            watches.iter().filter_map(|(key, watch)| Some((watch.ended()?.at, key.clone()))).collect();
        if stale.len() > MAX_STALE {
            stale.sort_unstable();
            stale.truncate(stale.len() - MAX_STALE);
            for (_, key) in stale {
                watches.remove(&key);
            }
        }
    }
}

/// Completes when the domain is lost.
async fn lost_of(lost: &mut domains::Lost) -> Option<Arc<RemoteFault>> {
    lost.wait_for(Option::is_some).await.ok().and_then(|fault| fault.clone())
}

fn views<T: Federated>(watches: &Mutex<Watches<T>>) -> Vec<RemoteView> {
    let all: Vec<Arc<SharedWatch<T>>> = watches.lock().values().cloned().collect();
    let view = |watch: &Arc<SharedWatch<T>>| {
        let (objects, watchers) = watch.counts();
        RemoteView {
            domain: watch.domain.clone(),
            what: T::WHAT,
            query: watch.query.words(),
            objects,
            names: watch.names(MAX_LISTED),
            watchers,
            stale: watch.ended().map(|ended| (ended.at, ended.fault.to_string())),
        }
    };
    all.iter().map(view).collect()
}

impl Federated for NetworkService {
    fn remote(all: &dyn RemoteRegistries) -> &dyn RemoteRegistry<Self> {
        all
    }

    fn watches(federation: &Federation) -> &Mutex<Watches<Self>> {
        &federation.inner.services
    }

    fn url_mut(&mut self) -> Option<&mut String> {
        None
    }

    fn as_endpoint(&self) -> Option<&NetworkServiceEndpoint> {
        None
    }

    fn ends(&self) -> Option<SystemTime> {
        None
    }

    fn words(&self) -> String {
        self.name.clone()
    }
}

impl Federated for NetworkServiceEndpoint {
    fn remote(all: &dyn RemoteRegistries) -> &dyn RemoteRegistry<Self> {
        all
    }

    fn watches(federation: &Federation) -> &Mutex<Watches<Self>> {
        &federation.inner.endpoints
    }

    fn url_mut(&mut self) -> Option<&mut String> {
        Some(&mut self.url)
    }

    fn as_endpoint(&self) -> Option<&NetworkServiceEndpoint> {
        Some(self)
    }

    fn ends(&self) -> Option<SystemTime> {
        SystemTime::try_from(self.expiration_time?).ok()
    }

    fn words(&self) -> String {
        if self.name.is_empty() { self.network_service_names.join(", ") } else { self.name.clone() }
    }
}

#[cfg(test)]
mod tests;
