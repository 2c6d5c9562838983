//! The keys under `registry`.

use std::path::PathBuf;

use carrick_model::{ServicePattern, SpiffePattern};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    defaults,
    text::{EtcdEndpoint, KeyPrefix, Text},
};

/// The registry: where its records are kept, and what callers of other trust domains may do.
#[derive(Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(rename = "Registry")]
pub(crate) struct RawRegistry {
    /// Where its records are kept.
    pub(crate) store: RawStore,
    /// The etcd of `store: etcd`.
    pub(crate) etcd: Option<RawEtcd>,
    /// Who of another trust domain may register which services here, as endpoints that stand elsewhere do in a floating
    /// domain. Empty: nobody. Callers of the own trust domain need no entry.
    pub(crate) admit: Vec<RawAccess>,
    /// Who of another trust domain may see which registered services. Empty: nobody. The exports of this file are not
    /// meant: each has an `allow` of its own.
    pub(crate) show: Vec<RawAccess>,
}

/// Where the records of the registry are kept.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum RawStore {
    /// A file in the state directory: for a domain with one daemon.
    #[default]
    Embedded,
    /// An etcd, which several daemons of one domain share.
    Etcd,
}

/// The etcd that the daemons of a domain share.
#[derive(Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "Etcd")]
pub(crate) struct RawEtcd {
    /// Its members, 1 to 16: `host:port`, or a URL with `http` or `https` as etcd's own tools write it.
    pub(crate) endpoints: Vec<Text<EtcdEndpoint>>,
    /// How its members and this daemon show who they are. Left out: nothing is encrypted, which is taken on loopback only.
    #[serde(default)]
    pub(crate) tls: Option<RawEtcdTls>,
    /// What all its keys start with; the domain's name follows, so that domains can share an etcd.
    #[serde(default = "prefix")]
    pub(crate) prefix: Text<KeyPrefix>,
}

/// Certificates for an etcd. Relative paths start at the config file.
#[derive(Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "EtcdTls")]
pub(crate) struct RawEtcdTls {
    /// File with the roots of its members' certificates, PEM.
    pub(crate) ca: Text<PathBuf>,
    /// File with the certificate chain this daemon shows, PEM. Needs `key`.
    #[serde(default)]
    pub(crate) cert: Option<Text<PathBuf>>,
    /// File with the key of `cert`, PEM.
    #[serde(default)]
    pub(crate) key: Option<Text<PathBuf>>,
}

/// Lets callers do something with services.
#[derive(Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "Access")]
pub(crate) struct RawAccess {
    /// The callers: SPIFFE IDs in which `*` stands for one segment of the path and a closing `**` for any rest.
    pub(crate) who: Vec<Text<SpiffePattern>>,
    /// The services, without a domain: a closing `*` stands for any rest, `*` alone for all.
    pub(crate) services: Vec<Text<ServicePattern>>,
}

fn prefix() -> Text<KeyPrefix> {
    Text::new(defaults::ETCD_PREFIX)
}
