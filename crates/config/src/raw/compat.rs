//! The keys under `compat`.

use std::{path::PathBuf, time::Duration};

use carrick_model::{PartUrl, ServeUrl};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    defaults,
    text::{FileMode, PartName, PublicUrl, Text},
};

/// How the daemon appears to programs that are not Carrick.
#[derive(Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(rename = "Compat")]
pub(crate) struct RawCompat {
    /// Network Service Mesh. Left out: no socket or name is there for its sake; peers that run NSM still reach the domain
    /// at `listen.control`.
    pub(crate) nsm: Option<RawNsm>,
}

/// The sockets and names that NSM's parts expect, and the parts that stay NSM's own. `docs/guides/nsm.md` shows which keys
/// go together.
#[derive(Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(rename = "Nsm")]
pub(crate) struct RawNsm {
    /// Where NSM's parts call this daemon, beside `listen.control`: `tcp://:5002`, `tcp://ip:port`, `ip:port` or
    /// `unix:///path`. At most 16. All of them take the same calls, over mTLS, Unix sockets too.
    pub(crate) listen: Vec<Text<ServeUrl>>,
    /// Mode of the Unix sockets in `listen`. Who may open one still has to show an SVID.
    pub(crate) socket_mode: Text<FileMode>,
    /// The name of this daemon in the path of a connection. No other hop may have it, in any domain: two with one name
    /// cannot talk to each other. Left out: `<domain>/gateway`.
    pub(crate) name: Option<Text<PartName>>,
    /// Where others call the endpoints this daemon publishes for the ones behind it: `tcp://host:port` or `host:port`. Left
    /// out: the first TCP address of `listen`, or else `listen.control`, as it is advertised.
    pub(crate) url: Option<Text<PublicUrl>>,
    /// Longest life of a token; it ends no later than the SVID that signed it. From `10s` to `10m`.
    pub(crate) max_token_lifetime: Text<Duration>,
    /// File that maps addresses of nodes to what they are outside, as `cmd-map-ip-k8s` writes it: flat YAML,
    /// `internal: external`. Read anew when it changes.
    pub(crate) map_ip_file: Option<Text<PathBuf>>,
    /// File with labels that every connection gets, as `cmd-cluster-info-k8s` writes it: flat YAML. Read anew when it
    /// changes.
    pub(crate) clusterinfo_file: Option<Text<PathBuf>>,
    /// NSM's registry, when it stays in charge of this domain's services: `host:port`, `tcp://host:port` or `unix:///path`. What is
    /// registered there is mirrored, and who registers with the daemon is passed on to it; `registry.store` is not used. It has to
    /// be of the own trust domain.
    pub(crate) registry_url: Option<Text<PartUrl>>,
    /// NSM's registry-proxy-dns, when it stays in charge of names with an `@` and the daemon is the nsmgr-proxy before it:
    /// registrations, Find and connections of NSM go by way of it. Imports do not: their domains are found as ever.
    pub(crate) registry_proxy_url: Option<Text<PartUrl>>,
    /// The same for a daemon that is the registry only: the nsmgr-proxy that is asked for names with an `@`. The URLs that it
    /// gives are passed on, so connections go to it and not through the daemon. Only one of the two can be given.
    pub(crate) proxy_registry_url: Option<Text<PartUrl>>,
}

impl Default for RawNsm {
    fn default() -> Self {
        Self {
            listen: Vec::new(),
            socket_mode: FileMode::text(defaults::NSM_SOCKET_MODE),
            name: None,
            url: None,
            max_token_lifetime: defaults::NSM_MAX_TOKEN_LIFETIME.into(),
            map_ip_file: None,
            clusterinfo_file: None,
            registry_url: None,
            registry_proxy_url: None,
            proxy_registry_url: None,
        }
    }
}
