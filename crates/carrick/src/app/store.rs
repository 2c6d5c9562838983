//! The store of registrations that the config names, and the file of connections.

use std::{path::Path, sync::Arc};

use carrick_config::{Config, Etcd, Store as Chosen};
use carrick_model::cause::in_one_line;
use carrick_proxy::transit::ConnectionsFile;
use carrick_registry::store::{
    EmbeddedStore, Store,
    etcd::{EtcdSettings, EtcdStore, TlsFiles},
};
use carrick_runtime::Tasks;

/// The file of registrations in the state directory.
const FILE: &str = "registry.redb";
/// The file of connections that pass through, in the state directory.
const CONNECTIONS: &str = "connections.redb";
/// The key that names a store.
pub(crate) const KEY: &str = "registry.store";

/// A store that is named and not used.
#[derive(Debug)]
pub(crate) struct Unused {
    /// What happens, and by which key.
    pub(crate) message: String,
    /// What to do.
    pub(crate) hint: &'static str,
}

/// Opens the store. An etcd is not called yet, so it may be away.
pub(crate) fn open(config: &Config, state: &Path, tasks: &Tasks) -> anyhow::Result<Arc<dyn Store>> {
    Ok(match &config.registry.store {
        Chosen::Embedded => Arc::new(EmbeddedStore::open(&state.join(FILE))?),
        Chosen::Etcd(etcd) => Arc::new(EtcdStore::new(&settings(config, etcd), tasks)?),
    })
}

/// Opens the file of connections that pass through. It only saves work, so the daemon starts without it, too.
pub(crate) fn connections(state: &Path) -> Option<ConnectionsFile> {
    let opened = ConnectionsFile::open(&state.join(CONNECTIONS));
    if let Err(error) = &opened {
        tracing::warn!(
            error = in_one_line(error),
            "connections that pass through are not kept over a restart: their clients bring them back"
        );
    }
    opened.ok()
}

/// What there is to say when the config names a store and leaves the records to NSM's registry all the same.
pub(crate) fn unused(config: &Config) -> Option<Unused> {
    let registry = config.compat.nsm.registry_url.as_ref().filter(|_| config.registry.store_given)?;
    let store = match &config.registry.store {
        Chosen::Embedded => "the embedded store",
        Chosen::Etcd(_) => "the etcd",
    };
    Some(Unused {
        message: format!("{store} is not used: `compat.nsm.registry_url` leaves the records to {registry}"),
        hint: "remove `registry.store`, or `compat.nsm.registry_url` (`NSM_REGISTRY_URL`) to keep records here",
    })
}

/// Says in the log that the store is not used.
pub(crate) fn tell_unused(config: &Config) {
    if let Some(Unused { message, hint }) = unused(config) {
        tracing::warn!(key = KEY, hint, "{message}");
    }
}

/// How the etcd of the config is called.
pub(crate) fn settings(config: &Config, etcd: &Etcd) -> EtcdSettings {
    let scheme = if etcd.tls.is_some() { "https" } else { "http" };
    EtcdSettings {
        endpoints: etcd.endpoints.iter().map(|member| format!("{scheme}://{member}")).collect(),
        tls: etcd.tls.as_ref().map(|tls| TlsFiles {
            ca: tls.ca.clone(),
            client: tls.client.as_ref().map(|client| (client.cert.clone(), client.key.clone())),
        }),
        prefix: etcd.prefix.clone(),
        domain: config.domain.clone(),
    }
}
