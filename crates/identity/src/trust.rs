//! Whom we trust: one bundle per trust domain, read without a lock in every handshake.

use std::{collections::HashMap, fmt, sync::Arc};

use arc_swap::ArcSwap;
use carrick_model::{SpiffeId, TrustDomain};
use parking_lot::Mutex;
use rustls::{
    RootCertStore,
    client::verify_server_cert_signed_by_trust_anchor,
    server::{ParsedCertificate, WebPkiClientVerifier, danger::ClientCertVerifier},
};
use rustls_pki_types::{CertificateDer, UnixTime};
use tokio::sync::watch;

use crate::{
    bundle::{Bundle, BundleError, BundleFault},
    peer::{PeerError, wall},
    tls,
};

/// The bundles we hold, one per trust domain and never pooled. Clones share them.
///
/// Reads take no lock: a handshake sees either the old or the new set. Own trust domain included, a trust domain is
/// known only after [`set`](Self::set).
#[derive(Clone, Default)]
pub struct TrustStore {
    inner: Arc<Inner>,
}

#[derive(Default)]
struct Inner {
    domains: ArcSwap<HashMap<TrustDomain, Arc<Anchors>>>,
    /// Held while the map is replaced, so that two writers do not lose each other's change.
    writing: Mutex<()>,
    revision: watch::Sender<u64>,
}

/// The verifiers of one trust domain, built when its bundle is set and not per handshake.
pub(crate) struct Anchors {
    bundle: Arc<Bundle>,
    roots: Arc<RootCertStore>,
    clients: Arc<dyn ClientCertVerifier>,
}

/// Which end of the connection presented the chain: it must be allowed to be that (extended key usage).
#[derive(Debug, Clone, Copy)]
pub(crate) enum Role {
    Server,
    Client,
}

impl TrustStore {
    /// A store that trusts nobody yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Trusts `b` for its trust domain, in place of what was there. Fails on a root that cannot be an anchor; then what
    /// was there stays. Setting the same bundle again changes nothing.
    pub fn set(&self, b: Bundle) -> Result<(), BundleError> {
        let td = b.trust_domain().clone();
        let anchors = Anchors::new(b)?;
        self.change(|domains| {
            let news = domains.get(&td).is_none_or(|old| old.bundle != anchors.bundle);
            if news {
                domains.insert(td, Arc::new(anchors));
            }
            news
        });
        Ok(())
    }

    /// Stops trusting `td`; `false` when it was not trusted. The next handshake with it fails.
    pub fn remove(&self, td: &TrustDomain) -> bool {
        self.change(|domains| domains.remove(td).is_some())
    }

    /// The bundle of `td`.
    pub fn get(&self, td: &TrustDomain) -> Option<Arc<Bundle>> {
        self.anchors(td).map(|anchors| Arc::clone(&anchors.bundle))
    }

    /// Every trust domain that has a bundle, in order.
    pub fn trust_domains(&self) -> Vec<TrustDomain> {
        let mut all: Vec<_> = self.inner.domains.load().keys().cloned().collect();
        all.sort_unstable_by(|a, b| a.as_str().cmp(b.as_str()));
        all
    }

    /// A counter that moves with every change, for those who must look at live connections again.
    pub fn changed(&self) -> watch::Receiver<u64> {
        self.inner.revision.subscribe()
    }

    pub(crate) fn anchors(&self, td: &TrustDomain) -> Option<Arc<Anchors>> {
        self.inner.domains.load().get(td).cloned()
    }

    /// Replaces the map by a changed copy; `f` says whether it changed anything.
    fn change(&self, f: impl FnOnce(&mut HashMap<TrustDomain, Arc<Anchors>>) -> bool) -> bool {
        let _writing = self.inner.writing.lock();
        let mut domains = HashMap::clone(&self.inner.domains.load());
        let changed = f(&mut domains);
        if changed {
            self.inner.domains.store(Arc::new(domains));
            self.inner.revision.send_modify(|revision| *revision += 1);
        }
        changed
    }
}

impl fmt::Debug for TrustStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = self.trust_domains();
        f.debug_set().entries(names.iter().map(TrustDomain::as_str)).finish()
    }
}

impl Anchors {
    fn new(bundle: Bundle) -> Result<Self, BundleError> {
        let fail = |fault| BundleError { trust_domain: bundle.trust_domain().clone(), path: None, fault };
        let mut roots = RootCertStore::empty();
        for (index, root) in bundle.roots().enumerate() {
            roots.add(root.clone()).map_err(|_| fail(BundleFault::Certificate(index + 1)))?;
        }
        let roots = Arc::new(roots);
        let clients =
            WebPkiClientVerifier::builder_with_provider(Arc::clone(&roots), Arc::clone(tls::provider()))
                .build()
                .map_err(|_| fail(BundleFault::NoRoots))?;
        Ok(Self { bundle: Arc::new(bundle), roots, clients })
    }

    /// Whether the chain of `id` leads to a root of this trust domain at the time `now`.
    pub(crate) fn verify(
        &self,
        id: &SpiffeId,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        role: Role,
        now: UnixTime,
    ) -> Result<(), PeerError> {
        // A trust anchor's own validity is not part of path validation (RFC 5280 section 6.1), so it is checked here.
        let (clock, not_after) = (wall(now), self.bundle.not_after());
        if clock > not_after {
            let trust_domain = self.bundle.trust_domain().clone();
            return Err(PeerError::BundleExpired { trust_domain, not_after, now: clock });
        }
        let verdict = match role {
            Role::Client => self.clients.verify_client_cert(leaf, intermediates, now).map(drop),
            Role::Server => ParsedCertificate::try_from(leaf).and_then(|leaf| {
                let algorithms = tls::provider().signature_verification_algorithms.all;
                verify_server_cert_signed_by_trust_anchor(&leaf, &self.roots, intermediates, now, algorithms)
            }),
        };
        verdict.map_err(|err| PeerError::from_chain(id.clone(), err))
    }
}
