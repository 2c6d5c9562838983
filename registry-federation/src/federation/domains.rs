//! What is going on with each remote domain: calls in flight, watches that stand, and whether its registry still answers.
//!
//! While a domain has watches, its registry is asked for a sign of life every [`PROBE`]. When none came for [`LEASE`], the domain
//! is lost: every watch of it ends. Loss is noticed so also where the network swallows packets without a word, long before TCP
//! or HTTP/2 notice.

use std::{
    collections::{HashMap, hash_map::Entry},
    sync::Arc,
    time::{Duration, SystemTime},
};

use carrick_model::Domain;
use parking_lot::Mutex;
use tokio::{
    sync::watch,
    time::{Instant, timeout_at},
};

use super::{Federation, FederationError, remote::RemoteFault};

/// How often a registry is asked for a sign of life.
const PROBE: Duration = Duration::from_millis(750);
/// How soon after a probe that failed the next one is made: a connection that broke is made anew.
const RETRY: Duration = Duration::from_millis(200);
/// How long the last sign of life counts. With the time that a probe's answer takes it stays under the three seconds in
/// which the endpoints of a lost domain have to leave.
pub(super) const LEASE: Duration = Duration::from_millis(2_500);
/// Calls to one domain at a time: one that does not answer holds no more than these.
const MAX_CALLS_PER_DOMAIN: usize = 64;
/// Calls to all domains at a time. Each may hold an answer in memory.
const MAX_CALLS: usize = 1_024;
/// Lost domains whose fault is remembered for people.
const MAX_REMEMBERED: usize = 1_000;

/// The remote domains that something is going on with.
#[derive(Default)]
pub(super) struct Domains {
    all: Mutex<HashMap<Domain, State>>,
}

struct State {
    calls: usize,
    watches: usize,
    probing: bool,
    lost: watch::Sender<Option<Arc<RemoteFault>>>,
    last_fault: Option<(SystemTime, Arc<RemoteFault>)>,
}

impl Default for State {
    fn default() -> Self {
        Self { calls: 0, watches: 0, probing: false, lost: watch::Sender::new(None), last_fault: None }
    }
}

#[cfg(test)]
impl Domains {
    pub(super) fn is_empty(&self) -> bool {
        self.all.lock().is_empty()
    }
}

/// A call in flight, or a watch that stands; counted until dropped.
pub(super) struct Counted {
    federation: Federation,
    domain: Domain,
    what: What,
}

#[derive(Clone, Copy)]
enum What {
    Call,
    Watch,
}

/// Tells a watch that its domain is lost.
pub(super) type Lost = watch::Receiver<Option<Arc<RemoteFault>>>;

impl Federation {
    /// A place for a call to `domain`.
    pub(super) fn begin_call(&self, domain: &Domain) -> Result<Counted, FederationError> {
        let mut all = self.inner.domains.all.lock();
        if all.values().map(|state| state.calls).sum::<usize>() >= MAX_CALLS {
            return Err(FederationError::Calls(MAX_CALLS));
        }
        let state = all.entry(domain.clone()).or_default();
        if state.calls >= MAX_CALLS_PER_DOMAIN {
            return Err(FederationError::CallsOfDomain(domain.clone(), state.calls));
        }
        state.calls += 1;
        Ok(Counted { federation: self.clone(), domain: domain.clone(), what: What::Call })
    }

    /// A watch of `domain` stands. The first one starts the probes.
    pub(super) fn begin_watch(&self, domain: &Domain) -> (Counted, Lost) {
        let mut all = self.inner.domains.all.lock();
        let state = all.entry(domain.clone()).or_default();
        state.watches += 1;
        state.last_fault = None;
        let lost = state.lost.subscribe();
        if !std::mem::replace(&mut state.probing, true) {
            let probes = self.clone().probe(domain.clone());
            self.inner.tasks.spawn("probe a remote registry", probes);
        }
        (Counted { federation: self.clone(), domain: domain.clone(), what: What::Watch }, lost)
    }

    /// Why `domain` was last lost, and when; nothing while it answers.
    pub(super) fn last_fault(&self, domain: &Domain) -> Option<(SystemTime, Arc<RemoteFault>)> {
        self.inner.domains.all.lock().get(domain)?.last_fault.clone()
    }

    /// Remembers why a watch of `domain` ended.
    pub(super) fn note_fault(&self, domain: &Domain, fault: &Arc<RemoteFault>) {
        let mut all = self.inner.domains.all.lock();
        if all.len() >= MAX_REMEMBERED {
            all.retain(|_, state| state.calls + state.watches > 0);
        }
        all.entry(domain.clone()).or_default().last_fault = Some((SystemTime::now(), Arc::clone(fault)));
    }

    async fn probe(self, domain: Domain) {
        let stopping = self.inner.tasks.stopping();
        tokio::pin!(stopping);
        let mut heard = Instant::now();
        while self.wants_probes(&domain) {
            let answer = tokio::select! {
                () = &mut stopping => return,
                answer = timeout_at(heard + LEASE, self.inner.remotes.probe(&domain)) => answer,
            };
            let pause = match answer {
                Ok(Ok(())) => {
                    heard = Instant::now();
                    PROBE
                }
                Ok(Err(_)) if heard.elapsed() + RETRY < LEASE => RETRY,
                Ok(Err(fault)) => {
                    self.lose(&domain, fault);
                    heard = Instant::now();
                    PROBE
                }
                Err(_) => {
                    self.lose(&domain, RemoteFault::silent(&domain, LEASE));
                    heard = Instant::now();
                    PROBE
                }
            };
            tokio::select! {
                () = &mut stopping => return,
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    /// Whether there is still something to lose; if not, the task that asks is over.
    fn wants_probes(&self, domain: &Domain) -> bool {
        let mut all = self.inner.domains.all.lock();
        let Some(state) = all.get_mut(domain) else { return false };
        state.probing = state.watches > 0;
        let goes_on = state.probing;
        self.tidy(&mut all, domain);
        goes_on
    }

    fn lose(&self, domain: &Domain, fault: RemoteFault) {
        tracing::warn!(%domain, %fault, "a remote registry is lost: its endpoints are not selected any more");
        let fault = Arc::new(fault);
        self.inner.remotes.lost(domain);
        self.inner.found.lock().lose(domain);
        self.note_fault(domain, &fault);
        if let Some(state) = self.inner.domains.all.lock().get_mut(domain) {
            std::mem::take(&mut state.lost).send_replace(Some(fault));
        }
    }

    fn tidy(&self, all: &mut HashMap<Domain, State>, domain: &Domain) {
        if let Entry::Occupied(entry) = all.entry(domain.clone()) {
            let state = entry.get();
            if state.calls + state.watches == 0 && !state.probing && state.last_fault.is_none() {
                entry.remove();
            }
        }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let mut all = self.federation.inner.domains.all.lock();
        if let Some(state) = all.get_mut(&self.domain) {
            match self.what {
                What::Call => state.calls -= 1,
                What::Watch => state.watches -= 1,
            }
        }
        self.federation.tidy(&mut all, &self.domain);
    }
}
