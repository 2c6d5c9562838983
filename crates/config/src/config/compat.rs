//! How the daemon appears to programs that are not Carrick.

use std::{path::PathBuf, time::Duration};

use carrick_model::{Domain, HostPort, PartUrl, ServeUrl};

use crate::defaults;

/// How the daemon appears to programs that are not Carrick.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Compat {
    /// Network Service Mesh.
    pub nsm: Nsm,
}

/// Network Service Mesh's parts: which of them this daemon is, and where the others are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Nsm {
    /// Whether the domain is to be found by NSM's parts: its names are served by the embedded DNS server.
    pub on: bool,
    /// Where their calls are taken, beside `listen.control`. No address twice.
    pub listen: Vec<ServeUrl>,
    /// Mode of the Unix sockets in `listen`.
    pub socket_mode: u32,
    /// The name of this daemon in the path of a connection. No other hop may have it, in any domain.
    pub name: String,
    /// Where others call the endpoints that are published here. `None`: the first TCP address of `listen`, or
    /// `listen.control`, as it is advertised.
    pub url: Option<HostPort>,
    /// Longest life of a token of this daemon.
    pub max_token_lifetime: Duration,
    /// Internal addresses of nodes and what they are outside: flat YAML.
    pub map_ip_file: Option<PathBuf>,
    /// Labels that every connection gets: flat YAML.
    pub clusterinfo_file: Option<PathBuf>,
    /// A registry of NSM's that stays in charge of this domain's services. `None`: the own one is.
    pub registry_url: Option<PartUrl>,
    /// NSM's registry-proxy behind us: it is asked for names of other domains. `None`: the daemon finds their registries itself.
    pub registry_proxy_url: Option<PartUrl>,
    /// NSM's proxy behind us, where we are the registry only: it is asked for those names, and connections go to it.
    pub proxy_registry_url: Option<PartUrl>,
}

impl Compat {
    /// What holds where nothing is said.
    pub fn new(domain: &Domain) -> Self {
        Self { nsm: Nsm::new(domain) }
    }
}

impl Nsm {
    /// What holds where nothing is said.
    pub fn new(domain: &Domain) -> Self {
        Self {
            on: false,
            listen: Vec::new(),
            socket_mode: defaults::NSM_SOCKET_MODE,
            name: Self::own_name(domain),
            url: None,
            max_token_lifetime: defaults::NSM_MAX_TOKEN_LIFETIME,
            map_ip_file: None,
            clusterinfo_file: None,
            registry_url: None,
            registry_proxy_url: None,
            proxy_registry_url: None,
        }
    }

    /// The name a daemon has in paths where none is given. The domain keeps it unique.
    pub(crate) fn own_name(domain: &Domain) -> String {
        format!("{domain}/gateway")
    }
}
