//! Bundles from the own CA, the config, and `carrick trust import`.

use std::collections::HashMap;

use carrick_config::{BundleSource, Config};
use carrick_identity::{Bundle, BundleError, TrustStore};
use carrick_model::{Domain, TrustDomain};

use crate::{
    state_dir::StateDir,
    trust_file::{self, TrustFileError},
};

/// Where a bundle comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Origin {
    Embedded,
    Config,
    Imported,
}

impl Origin {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Embedded => "embedded",
            Self::Config => "config",
            Self::Imported => "imported",
        }
    }
}

/// One domain whose names somebody vouches for.
#[derive(Debug, Clone)]
pub(crate) struct Trusted {
    pub(crate) domain: Domain,
    pub(crate) bundle: Bundle,
    pub(crate) origin: Origin,
}

/// A bundle that could not be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TrustError {
    #[error("the bundle of {domain} cannot be used")]
    Config {
        domain: Domain,
        #[source]
        source: BundleError,
    },
    #[error(transparent)]
    Imported(#[from] TrustFileError),
}

impl TrustError {
    pub(crate) fn hint(&self) -> String {
        match self {
            Self::Config { source, .. } => source.hint().to_owned(),
            Self::Imported(error) => error.hint(),
        }
    }
}

/// Everything that is trusted, the own domain first. What cannot be read is told apart, and the rest stands.
pub(crate) fn read(config: &Config, state: &StateDir, own: &Bundle) -> (Vec<Trusted>, Vec<TrustError>) {
    let mut faults = Vec::new();
    let mut all =
        vec![Trusted { domain: config.domain.clone(), bundle: own.clone(), origin: Origin::Embedded }];
    for entry in &config.trust {
        let BundleSource::File(path) = &entry.bundle;
        match Bundle::read(&entry.trust_domain, path) {
            Ok(bundle) => all.push(Trusted { domain: entry.domain.clone(), bundle, origin: Origin::Config }),
            Err(source) => faults.push(TrustError::Config { domain: entry.domain.clone(), source }),
        }
    }
    let (imported, unread) = trust_file::read_all(state);
    for import in imported {
        // An entry of the config wins, even one that could not be read: falling back would be a surprise.
        if import.domain != config.domain && !config.trust.iter().any(|entry| entry.domain == import.domain) {
            all.push(Trusted { domain: import.domain, bundle: import.bundle, origin: Origin::Imported });
        }
    }
    faults.extend(unread.into_iter().map(TrustError::from));
    (all, faults)
}

/// Puts `all` into force, and returns the trust domains that were trusted before and are not any more.
pub(crate) fn apply(
    all: &[Trusted],
    store: &TrustStore,
    map: &carrick_proxy::peers::TrustMap,
) -> Result<Vec<TrustDomain>, BundleError> {
    for trusted in all {
        store.set(trusted.bundle.clone())?;
    }
    let names: HashMap<Domain, TrustDomain> =
        all.iter().map(|t| (t.domain.clone(), t.bundle.trust_domain().clone())).collect();
    let gone: Vec<TrustDomain> =
        store.trust_domains().into_iter().filter(|td| !names.values().any(|kept| kept == td)).collect();
    map.set(names);
    for trust_domain in &gone {
        store.remove(trust_domain);
    }
    Ok(gone)
}
