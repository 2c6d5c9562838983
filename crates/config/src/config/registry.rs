//! The registry: where it keeps its records, and what it lets callers of other trust domains do.

use std::path::PathBuf;

use carrick_model::{AccessRule, HostPort};

/// The catalogue of this domain.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Registry {
    /// Where its records are kept.
    pub store: Store,
    /// Whether the text says so: nobody is to be told of a default that is not used.
    pub store_given: bool,
    /// Who of another trust domain may register which services here. Own callers may register any.
    pub admit: Vec<AccessRule>,
    /// Who of another trust domain may see which registered services. Exports have `allow` instead.
    pub show: Vec<AccessRule>,
}

/// Where the records of the registry are kept.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Store {
    /// A file in the state directory.
    #[default]
    Embedded,
    /// An etcd that several replicas of the domain share.
    Etcd(Etcd),
}

/// How to reach an etcd.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Etcd {
    /// Its members, at least one.
    pub endpoints: Vec<HostPort>,
    /// How its members and this daemon show who they are. `None`: not at all, and nothing is encrypted.
    pub tls: Option<EtcdTls>,
    /// What all its keys start with; ends in `/`.
    pub prefix: String,
}

/// Certificates for an etcd.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EtcdTls {
    /// The roots of its members' certificates, PEM.
    pub ca: PathBuf,
    /// What this daemon shows. `None`: the etcd asks for nothing.
    pub client: Option<EtcdClient>,
}

/// What the daemon shows to an etcd.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EtcdClient {
    /// The certificate chain, PEM.
    pub cert: PathBuf,
    /// Its key, PEM.
    pub key: PathBuf,
}
