//! The established control connections, per trust domain: counted, and cut when trust goes.

use std::{collections::HashMap, io, sync::Arc};

use carrick_identity::{PeerError, TrustStore};
use carrick_model::TrustDomain;
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use super::Refused;

/// Established connections in all: at about 100 KiB of buffers each, 400 MiB at the worst.
pub(crate) const MAX_ESTABLISHED: usize = 4096;
/// Established connections of one trust domain. NSM opens one per call, so it is far more than Carrick's own two.
pub(crate) const MAX_PER_PEER: usize = 512;
/// Established connections of the own trust domain: its clients and endpoints have one or two each. A quarter is left to others.
pub(crate) const MAX_OWN: usize = 3072;

pub(super) struct Live {
    own: TrustDomain,
    trust: TrustStore,
    peers: Arc<Mutex<HashMap<TrustDomain, Peer>>>,
}

struct Peer {
    count: usize,
    cut: CancellationToken,
    /// The roots that these connections were made under.
    roots: Vec<String>,
}

/// One connection; counted until dropped.
pub(super) struct LiveGuard {
    trust_domain: TrustDomain,
    peers: Arc<Mutex<HashMap<TrustDomain, Peer>>>,
    cut: CancellationToken,
}

impl Live {
    pub(super) fn new(own: TrustDomain, trust: TrustStore) -> Self {
        Self { own, trust, peers: Arc::default() }
    }

    pub(super) fn enter(&self, trust_domain: &TrustDomain) -> Result<LiveGuard, Refused> {
        let roots = self.roots(trust_domain);
        if roots.is_empty() {
            // Trust went between the handshake and now.
            let trust_domain = trust_domain.clone();
            return Err(Refused::Tls(io::Error::other(PeerError::UnknownTrustDomain { trust_domain })));
        }
        let mut peers = self.peers.lock();
        let total: usize = peers.values().map(|p| p.count).sum();
        if total >= MAX_ESTABLISHED {
            return Err(Refused::TotalLimit(total));
        }
        let peer = peers.entry(trust_domain.clone()).or_insert_with(|| Peer {
            count: 0,
            cut: CancellationToken::new(),
            roots,
        });
        let limit = if *trust_domain == self.own { MAX_OWN } else { MAX_PER_PEER };
        if peer.count >= limit {
            return Err(Refused::PeerLimit(trust_domain.clone(), peer.count));
        }
        peer.count += 1;
        let cut = peer.cut.clone();
        Ok(LiveGuard { trust_domain: trust_domain.clone(), peers: Arc::clone(&self.peers), cut })
    }

    /// Cuts what was made under roots of which none is left. A bundle that only gains a root cuts nothing.
    pub(super) fn sever_untrusted(&self) -> Vec<TrustDomain> {
        let mut severed = Vec::new();
        for (td, peer) in self.peers.lock().iter_mut() {
            let roots = self.roots(td);
            if peer.roots.iter().any(|old| roots.contains(old)) {
                continue;
            }
            // Those that come later are cut by a token of their own.
            std::mem::take(&mut peer.cut).cancel();
            peer.roots = roots;
            severed.push(td.clone());
        }
        severed
    }

    /// Cuts everything: nobody serves it any more.
    pub(super) fn sever_all(&self) {
        for peer in self.peers.lock().values() {
            peer.cut.cancel();
        }
    }

    fn roots(&self, trust_domain: &TrustDomain) -> Vec<String> {
        self.trust.get(trust_domain).map(|b| b.fingerprints()).unwrap_or_default()
    }
}

impl LiveGuard {
    /// Cancelled when the connection is to end.
    pub(super) fn token(&self) -> CancellationToken {
        self.cut.clone()
    }
}

impl Drop for LiveGuard {
    fn drop(&mut self) {
        let mut peers = self.peers.lock();
        if let Some(peer) = peers.get_mut(&self.trust_domain) {
            peer.count -= 1;
            if peer.count == 0 {
                peers.remove(&self.trust_domain);
            }
        }
    }
}
