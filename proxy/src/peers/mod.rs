//! Calls to other domains: one connection per domain and role, shared by all who call.
//!
//! A call finds the connection, or makes it: gateways from the resolver, the expected trust domain from the [`TrustMap`], TCP and
//! TLS raced over the addresses. Many who want it at once wait for one dial. A connection leaves the pool when a call
//! breaks on it, when the trust it was made under changes, and when our SVID or the peer's gets old: tokens are verified
//! against the certificates of the connection. Every call has a deadline.

mod calls;
mod dial;
mod fault;
mod registry_calls;
mod trust_map;

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, SystemTime},
};

use carrick_identity::{Bundle, Identity, TrustStore};
use carrick_model::{Domain, TrustDomain};
use carrick_runtime::Tasks;
use futures::{
    FutureExt,
    future::{BoxFuture, Shared},
};
use parking_lot::Mutex;

pub use self::{
    calls::{PeerService, WatchItem},
    dial::Link,
    fault::{DialFault, PeerFault},
    registry_calls::{RegistryAnswers, RegistryObject},
    trust_map::TrustMap,
};
pub(crate) use self::{
    calls::{answered, close_on, find, request_on},
    dial::channel_over,
    registry_calls::{check, with_path},
};
use crate::resolve::{Gateways, Resolver};

/// How long a peer may take to answer one call.
pub const CALL_DEADLINE: Duration = Duration::from_secs(5);

/// What we want of a domain. They differ only where NSM's own names are published.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Role {
    /// Its catalogue.
    Registry,
    /// Its connection manager.
    Connect,
}

/// The connections to other domains. Clones share them.
#[derive(Clone)]
pub struct Peers {
    inner: Arc<Inner>,
}

struct Inner {
    identity: Identity,
    trust: TrustStore,
    map: TrustMap,
    resolver: Resolver,
    tasks: Tasks,
    pool: Mutex<Pool>,
}

#[derive(Default)]
struct Pool {
    next: u64,
    slots: HashMap<(Domain, Role), Slot>,
}

type Dialled = Shared<BoxFuture<'static, Result<Pooled, PeerFault>>>;

/// A dial, finished or not.
#[derive(Clone)]
struct Slot {
    number: u64,
    dialled: Dialled,
}

/// A connection in the pool.
#[derive(Clone)]
struct Pooled {
    link: Link,
    bundle: Arc<Bundle>,
    /// Whether a call ever succeeded on it: only then is a broken call worth another try at once.
    proven: Arc<AtomicBool>,
}

impl Peers {
    /// No connections yet. A task of `tasks` follows trust.
    pub fn new(
        identity: Identity,
        trust: TrustStore,
        map: TrustMap,
        resolver: Resolver,
        tasks: &Tasks,
    ) -> Self {
        let inner = Inner { identity, trust, map, resolver, tasks: tasks.clone(), pool: Mutex::default() };
        let peers = Self { inner: Arc::new(inner) };
        tasks.spawn("trust of peers", peers.clone().follow_trust(tasks.clone()));
        peers
    }

    /// Where `domain` is.
    pub async fn gateways(&self, domain: &Domain) -> Result<Arc<Gateways>, PeerFault> {
        let found = self.inner.resolver.resolve(domain).await;
        found.map_err(|e| PeerFault::Resolve { domain: domain.clone(), source: Arc::new(e) })
    }

    /// What the gateways of `domain` must prove to be, and the roots that prove it.
    pub fn expected(&self, domain: &Domain) -> Result<(TrustDomain, Arc<Bundle>), PeerFault> {
        let mapped = self.inner.map.trust_domain(domain);
        let known = mapped.as_ref().and_then(|td| Some((td.clone(), self.inner.trust.get(td)?)));
        known.ok_or_else(|| PeerFault::NoTrust {
            domain: domain.clone(),
            trust_domain: mapped.map_or_else(|| domain.to_string(), |td| td.as_str().to_owned()),
        })
    }

    /// A connection of its own, outside the pool.
    pub async fn dial(&self, domain: &Domain, role: Role, gateways: &Gateways) -> Result<Link, PeerFault> {
        let (trust_domain, _bundle) = self.expected(domain)?;
        let addresses = {
            let mut rng = rand::rng();
            match role {
                Role::Registry => gateways.registry_order(&mut rng),
                Role::Connect => gateways.control_order(&mut rng),
            }
        };
        if addresses.is_empty() {
            return Err(PeerFault::NoAddress { domain: domain.clone(), role });
        }
        dial::dial(&self.inner.identity, &self.inner.trust, domain, &trust_domain, addresses).await
    }

    /// Forgets the connections to `domain`; calls that run on them go on.
    pub fn forget(&self, domain: &Domain) {
        self.inner.pool.lock().slots.retain(|(d, _), _| d != domain);
    }

    /// The pooled connection, dialled if need be.
    async fn pooled(&self, domain: &Domain, role: Role) -> Result<(u64, Pooled), PeerFault> {
        let key = (domain.clone(), role);
        let slot = {
            let mut pool = self.inner.pool.lock();
            match pool.slots.get(&key) {
                Some(slot) => slot.clone(),
                None => self.begin_dial(&mut pool, key.clone()),
            }
        };
        match slot.dialled.await {
            Ok(pooled) if self.is_current(domain, &pooled) && self.is_fresh(&pooled) => {
                Ok((slot.number, pooled))
            }
            Ok(_) => {
                self.drop_slot(&key, slot.number);
                // The follower of trust has not run yet, or an SVID is old; the next dial is made under what holds now.
                Box::pin(self.pooled(domain, role)).await
            }
            Err(fault) => {
                self.drop_slot(&key, slot.number);
                self.inner.resolver.expire(domain);
                Err(fault)
            }
        }
    }

    fn begin_dial(&self, pool: &mut Pool, key: (Domain, Role)) -> Slot {
        let number = pool.next;
        pool.next += 1;
        let (peers, (domain, role)) = (self.clone(), key.clone());
        let lost =
            PeerFault::TimedOut { domain: domain.clone(), call: "connect", after: dial::DIAL_DEADLINE };
        let task = self.inner.tasks.spawn("dial a peer", async move { peers.make(&domain, role).await });
        let dialled = task.map(|joined| joined.unwrap_or(Err(lost))).boxed().shared();
        let slot = Slot { number, dialled };
        pool.slots.insert(key, slot.clone());
        slot
    }

    async fn make(&self, domain: &Domain, role: Role) -> Result<Pooled, PeerFault> {
        let (_, bundle) = self.expected(domain)?;
        let gateways = self.gateways(domain).await?;
        if role == Role::Registry && gateways.registry == gateways.control {
            // One gateway serves both: one connection is enough.
            return Box::pin(self.pooled(domain, Role::Connect)).await.map(|(_, pooled)| pooled);
        }
        let link = self.dial(domain, role, &gateways).await?;
        tracing::debug!(%domain, addr = %link.addr, peer = %link.peer, "control connection up");
        Ok(Pooled { link, bundle, proven: Arc::default() })
    }

    fn is_current(&self, domain: &Domain, pooled: &Pooled) -> bool {
        self.expected(domain)
            .is_ok_and(|(td, bundle)| td == pooled.link.trust_domain && Arc::ptr_eq(&bundle, &pooled.bundle))
    }

    fn is_fresh(&self, pooled: &Pooled) -> bool {
        pooled.link.channel.is_fresh(&self.inner.identity, SystemTime::now())
    }

    fn drop_slot(&self, key: &(Domain, Role), number: u64) {
        let mut pool = self.inner.pool.lock();
        if pool.slots.get(key).is_some_and(|s| s.number == number) {
            pool.slots.remove(key);
        }
    }

    /// A call broke on this connection: whoever calls next makes a new one, in whatever role.
    fn drop_link(&self, domain: &Domain, link: &Link) {
        let same = |slot: &Slot| {
            slot.dialled.peek().is_some_and(|r| r.as_ref().is_ok_and(|p| p.link.cause.is(&link.cause)))
        };
        self.inner.pool.lock().slots.retain(|(d, _), slot| d != domain || !same(slot));
    }

    /// Cuts connections that were made under a trust that does not hold any more.
    async fn follow_trust(self, tasks: Tasks) {
        let mut trust = self.inner.trust.changed();
        let mut map = self.inner.map.changed();
        let stopping = tasks.stopping();
        tokio::pin!(stopping);
        loop {
            tokio::select! {
                () = &mut stopping => return,
                result = trust.changed() => if result.is_err() { return },
                result = map.changed() => if result.is_err() { return },
            }
            let slots: Vec<_> =
                self.inner.pool.lock().slots.iter().map(|(k, s)| (k.clone(), s.clone())).collect();
            for (key, slot) in slots {
                if let Some(Ok(pooled)) = slot.dialled.peek()
                    && !self.is_current(&key.0, pooled)
                {
                    tracing::info!(domain = %key.0, "control connection cut: its trust changed");
                    pooled.link.cut.cancel();
                    self.drop_slot(&key, slot.number);
                }
            }
        }
    }

    fn prove(pooled: &Pooled) {
        pooled.proven.store(true, Relaxed);
    }
}
