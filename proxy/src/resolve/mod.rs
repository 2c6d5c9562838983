//! Where is a domain?
//!
//! Three sources, in this order; the first that has something wins:
//!
//! 1. the `peers:` of the config ([`StaticPeer`]), whose host names are looked up through the same DNS servers,
//! 2. `SRV` records of `_carrick._tcp.<domain>` (control) and `_carrick._udp.<domain>` (tunnel), every target, every A
//!    and AAAA,
//! 3. the names of Network Service Mesh, `registry.nsm-system.<domain>` and `nsmgr-proxy.nsm-system.<domain>`.
//!
//! An answer is kept for the smallest TTL of the records it was made of. While the DNS does not answer, the last good
//! answer stands in, marked `stale` (RFC 8767); a `no` of the DNS is an answer and replaces it. One search per domain
//! runs at a time, whoever asks meanwhile waits for it.
//!
//! | file | |
//! |---|---|
//! | `gateways` | the answer |
//! | `order` | in which order its addresses are tried |
//! | `discover` | one search: which questions, and what the answers mean together |
//! | `servers` | one question: which servers, aliases, time limits |
//! | `system` | the DNS settings of this machine, and whether they changed |
//! | `cache` | what was found, for how long, and what stands in |

mod cache;
mod discover;
mod error;
mod gateways;
mod order;
mod servers;
mod system;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

use std::{
    collections::HashMap,
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use carrick_model::{Domain, HostPort};
use carrick_runtime::Tasks;
use carrick_telemetry::Metrics;
use futures::{
    FutureExt,
    future::{BoxFuture, Shared},
};
use parking_lot::Mutex;
use tokio::{
    sync::oneshot,
    time::{Instant, timeout},
};

use self::{
    cache::{Cache, View},
    discover::{Found, NotFound, discover, static_peer},
    servers::Servers,
};
pub use self::{
    error::ResolveError,
    gateways::{Candidate, Gateways, Source},
    order::order,
};

/// RFC 8767 section 5: a client waits so long for a fresh answer when a stale one could serve it.
const PATIENCE: Duration = Duration::from_millis(1800);
/// A search that takes longer is given up: several questions that each use up their time limit.
const SEARCH_LIMIT: Duration = Duration::from_secs(30);
/// Searches under way at once; each is a task with a few sockets.
const MAX_SEARCHES: usize = 1024;
/// A peer of literal addresses holds until the config changes; this is when its users look again.
const LITERAL_TTL: Duration = Duration::from_secs(3600);

/// How the resolver asks, and how long it remembers.
#[derive(Debug, Clone)]
pub struct ResolverSettings {
    /// The DNS servers, asked in this order. Empty: those of `/etc/resolv.conf`, and `/etc/hosts`
    /// before them, read again when they change.
    pub servers: Vec<SocketAddr>,
    /// How long one server may take for one question, TCP after truncation included.
    pub timeout: Duration,
    /// How often all servers are asked before giving up, at least 1.
    pub attempts: usize,
    /// How long an answer may stand in after its TTL while the DNS is down.
    pub max_stale: Duration,
    /// How many domains are remembered.
    pub cache_size: usize,
}

/// A domain whose gateways the config gives. Entries are tried in their order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StaticPeer {
    /// The domain.
    pub domain: Domain,
    /// Where its control plane listens.
    pub control: Vec<HostPort>,
    /// Where its tunnel listens; may be empty, the peer then tells.
    pub tunnel: Vec<HostPort>,
}

/// The resolver could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// The system's DNS settings are not readable.
    #[error("cannot read /etc/resolv.conf; set `dns.servers:` or make it readable")]
    ResolvConf(#[source] io::Error),
    /// The DNS client refused its settings.
    #[error("cannot set up the DNS client")]
    Resolver(#[source] hickory_resolver::net::NetError),
}

/// Says where domains are. Clones share everything.
#[derive(Clone)]
pub struct Resolver {
    inner: Arc<Inner>,
}

struct Inner {
    servers: Servers,
    peers: ArcSwap<HashMap<Domain, StaticPeer>>,
    cache: Mutex<Cache>,
    searches: Mutex<HashMap<Domain, Search>>,
    next_id: AtomicU64,
    tasks: Tasks,
    metrics: Metrics,
}

type Outcome = Result<Arc<Gateways>, ResolveError>;

/// A search under way. Its task ends by itself; who waits shares the result.
#[derive(Clone)]
struct Search {
    id: u64,
    outcome: Shared<BoxFuture<'static, Outcome>>,
}

impl Default for ResolverSettings {
    fn default() -> Self {
        Self {
            servers: Vec::new(),
            timeout: Duration::from_secs(2),
            attempts: 2,
            max_stale: Duration::from_secs(24 * 3600),
            cache_size: 10_000,
        }
    }
}

impl Resolver {
    /// A resolver with nothing in its cache and no static peers.
    pub fn new(settings: ResolverSettings, metrics: Metrics) -> Result<Self, SetupError> {
        let cache = Cache::new(settings.cache_size, settings.max_stale);
        let servers = Servers::new(settings, metrics.clone())?;
        Ok(Self {
            inner: Arc::new(Inner {
                servers,
                peers: ArcSwap::default(),
                cache: Mutex::new(cache),
                searches: Mutex::default(),
                next_id: AtomicU64::new(0),
                tasks: Tasks::new(),
                metrics,
            }),
        })
    }

    /// Where `domain` is, from the cache while that is fresh.
    pub async fn resolve(&self, domain: &Domain) -> Result<Arc<Gateways>, ResolveError> {
        let (known, outcome) = self.answer(domain).await;
        let label = match &outcome {
            Ok(gateways) if gateways.stale => "stale",
            Ok(gateways) if gateways.source == Source::Static => "static",
            Ok(_) if known => "cached",
            Ok(_) => "found",
            Err(error) if error.is_failure() => "failed",
            Err(_) => "none",
        };
        self.inner.metrics.domain_lookups.of(label).inc();
        outcome
    }

    /// The answer, and whether it was known without asking anybody.
    async fn answer(&self, domain: &Domain) -> (bool, Outcome) {
        if let Some(literal) = self.inner.peers.load().get(domain).and_then(literal) {
            return (true, Ok(Arc::new(literal)));
        }
        let view = self.inner.cache.lock().get(domain, now());
        let stand_in = match view {
            View::Fresh(outcome) => return (true, outcome),
            View::Expired(stale) => Some(stale),
            View::Unknown => None,
        };
        let outcome = match (self.search(domain), stand_in) {
            (Err(busy), None) => Err(busy),
            (Err(_), Some(stale)) => Ok(stale),
            (Ok(search), None) => search.outcome.await,
            // The search goes on without us and fills the cache.
            (Ok(search), Some(stale)) => timeout(PATIENCE, search.outcome).await.unwrap_or(Ok(stale)),
        };
        (false, outcome)
    }

    /// Has `domain` looked up again at its next use, because what was found does not work. At most once a second; the
    /// old answer still stands in if the DNS is down.
    pub fn expire(&self, domain: &Domain) {
        self.inner.cache.lock().expire(domain);
    }

    /// Replaces the static peers. What is known of peers that changed is forgotten, the rest stays.
    pub fn set_peers(&self, peers: Vec<StaticPeer>) {
        let new: HashMap<_, _> = peers.into_iter().map(|p| (p.domain.clone(), p)).collect();
        let old = self.inner.peers.swap(Arc::new(new.clone()));
        let changed = old.keys().chain(new.keys()).filter(|d| old.get(*d) != new.get(*d));
        let (mut searches, mut cache) = (self.inner.searches.lock(), self.inner.cache.lock());
        for domain in changed {
            // A search begun under the old peers finds itself missing here and leaves the cache alone.
            searches.remove(domain);
            cache.forget(domain);
        }
    }

    /// How many domains the cache knows.
    pub fn cached(&self) -> usize {
        self.inner.cache.lock().len()
    }

    /// The search for `domain` that is under way, or a new one.
    fn search(&self, domain: &Domain) -> Result<Search, ResolveError> {
        let mut searches = self.inner.searches.lock();
        if let Some(running) = searches.get(domain) {
            return Ok(running.clone());
        }
        if searches.len() >= MAX_SEARCHES {
            return Err(ResolveError::Busy { domain: domain.clone() });
        }
        let id = self.inner.next_id.fetch_add(1, Relaxed);
        let (done, outcome) = oneshot::channel();
        let lost = ResolveError::Busy { domain: domain.clone() };
        let outcome = outcome.map(|r: Result<Outcome, _>| r.unwrap_or(Err(lost))).boxed().shared();
        let search = Search { id, outcome };
        searches.insert(domain.clone(), search.clone());
        drop(searches);
        let (inner, domain) = (Arc::clone(&self.inner), domain.clone());
        self.inner.tasks.spawn("resolve", async move {
            let landing = Landing { inner: &inner, domain: &domain, id };
            let result = inner.look_up(&domain).await;
            // Nobody may be waiting any more; the cache has it.
            let _unheard = done.send(landing.land(result));
        });
        Ok(search)
    }
}

impl Inner {
    async fn look_up(&self, domain: &Domain) -> Result<Gateways, (ResolveError, Duration)> {
        let peer = self.peers.load().get(domain).cloned();
        let search = async {
            match &peer {
                Some(peer) => static_peer(&self.servers, peer).await,
                None => discover(&self.servers, domain).await,
            }
        };
        match timeout(SEARCH_LIMIT, search).await {
            Ok(Ok(found)) => Ok(gateways(domain.clone(), found)),
            Ok(Err(NotFound { error, ttl })) => Err((error, ttl)),
            Err(_) => {
                let detail = format!("given up after {} s", SEARCH_LIMIT.as_secs());
                let error =
                    ResolveError::Unreachable { name: domain.to_string(), servers: Vec::new(), detail };
                Err((error, Duration::ZERO))
            }
        }
    }
}

/// The end of a search: however it ends, it is no longer under way.
struct Landing<'a> {
    inner: &'a Inner,
    domain: &'a Domain,
    id: u64,
}

impl Landing<'_> {
    fn land(&self, result: Result<Gateways, (ResolveError, Duration)>) -> Outcome {
        let mut searches = self.inner.searches.lock();
        if searches.get(self.domain).is_some_and(|s| s.id == self.id) {
            searches.remove(self.domain);
            return self.inner.cache.lock().put(self.domain, result, now());
        }
        result.map(Arc::new).map_err(|(error, _)| error)
    }
}

impl Drop for Landing<'_> {
    fn drop(&mut self) {
        let mut searches = self.inner.searches.lock();
        if searches.get(self.domain).is_some_and(|s| s.id == self.id) {
            searches.remove(self.domain);
        }
    }
}

fn gateways(domain: Domain, found: Found) -> Gateways {
    let Found { source, control, tunnel, registry, ttl, evidence } = found;
    Gateways { domain, source, control, tunnel, registry, stale: false, expires: now() + ttl, evidence }
}

/// The gateways of a peer that needs no DNS.
fn literal(peer: &StaticPeer) -> Option<Gateways> {
    let candidates = |entries: &[HostPort]| -> Option<Vec<Candidate>> {
        let candidate = |(i, e): (usize, &HostPort)| {
            let priority = u16::try_from(i).unwrap_or(u16::MAX);
            e.literal().map(|addr| Candidate { addr, host: e.host.to_string(), priority, weight: 0 })
        };
        entries.iter().enumerate().map(candidate).collect()
    };
    let (control, tunnel) = (candidates(&peer.control)?, candidates(&peer.tunnel)?);
    (!control.is_empty()).then(|| Gateways {
        domain: peer.domain.clone(),
        source: Source::Static,
        registry: control.clone(),
        control,
        tunnel,
        stale: false,
        expires: now() + LITERAL_TTL,
        evidence: vec![format!("peers: entry of {} in the config", peer.domain)],
    })
}

/// tokio's clock, which tests can stop.
fn now() -> std::time::Instant {
    Instant::now().into_std()
}
