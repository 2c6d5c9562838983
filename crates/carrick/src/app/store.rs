//! The store of registrations that the config names.

use std::{path::Path, sync::Arc};

use carrick_config::{Config, Etcd, Store as Chosen};
use carrick_registry::store::{
    EmbeddedStore, Store,
    etcd::{EtcdSettings, EtcdStore, TlsFiles},
};
use carrick_runtime::Tasks;

/// The file of registrations in the state directory.
const FILE: &str = "registry.redb";

/// Opens the store. An etcd is not called yet, so it may be away.
pub(crate) fn open(config: &Config, state: &Path, tasks: &Tasks) -> anyhow::Result<Arc<dyn Store>> {
    Ok(match &config.registry.store {
        Chosen::Embedded => Arc::new(EmbeddedStore::open(&state.join(FILE))?),
        Chosen::Etcd(etcd) => Arc::new(EtcdStore::new(&settings(config, etcd), tasks)?),
    })
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
