//! Which trust domain belongs to which domain.

use std::{collections::HashMap, sync::Arc};

use carrick_model::{Domain, TrustDomain};
use tokio::sync::watch;

/// The mapping of the config's `trust:` entries; a domain that it does not name is its own trust domain. Clones share it.
#[derive(Debug, Clone)]
pub struct TrustMap {
    inner: Arc<watch::Sender<HashMap<Domain, TrustDomain>>>,
}

impl TrustMap {
    /// Every domain is its own trust domain.
    pub fn new() -> Self {
        Self { inner: Arc::new(watch::Sender::new(HashMap::new())) }
    }

    /// Replaces the mapping.
    pub fn set(&self, map: HashMap<Domain, TrustDomain>) {
        self.inner.send_if_modified(|old| {
            let news = *old != map;
            *old = map;
            news
        });
    }

    /// What `domain`'s gateways must prove to be; `None` if its name cannot be a trust domain.
    pub fn trust_domain(&self, domain: &Domain) -> Option<TrustDomain> {
        let mapped = self.inner.borrow().get(domain).cloned();
        mapped.or_else(|| TrustDomain::new(domain.as_str()).ok())
    }

    /// Tells of changes.
    pub fn changed(&self) -> watch::Receiver<HashMap<Domain, TrustDomain>> {
        self.inner.subscribe()
    }
}

impl Default for TrustMap {
    fn default() -> Self {
        Self::new()
    }
}
