//! `compat`: raw into final types.

use std::{
    ops::RangeInclusive,
    path::{Path, PathBuf},
    time::Duration,
};

use carrick_model::{Domain, ServeUrl};

use super::{Draft, Placed};
use crate::{
    config::Nsm,
    cursor::Cursor,
    defaults,
    raw::compat::{RawCompat, RawNsm},
    text::{Text, Written},
};

/// Sockets for NSM's sake. Its parts have five ports and one socket among them.
pub(crate) const MAX_SOCKETS: usize = 16;
/// A token that is dead before a slow call comes back is of no use; NSM's own live no longer than its default.
pub(crate) const TOKEN_LIFETIMES: RangeInclusive<Duration> =
    Duration::from_secs(10)..=defaults::NSM_MAX_TOKEN_LIFETIME;

/// What was read of `compat`.
pub(crate) struct DraftCompat<'n> {
    /// `None`: it could not be read.
    pub(crate) nsm: Option<Nsm>,
    pub(crate) listen: Vec<Placed<'n, ServeUrl>>,
}

impl<'n> Draft<'n> {
    pub(super) fn compat(
        &mut self,
        raw: &RawCompat,
        at: &Cursor<'n>,
        domain: Option<&Domain>,
        directory: &Path,
    ) -> DraftCompat<'n> {
        let nothing = RawNsm::default();
        let nsm = raw.nsm.as_ref().unwrap_or(&nothing);
        let at = at.key("nsm");
        let listen = self.list(&nsm.listen, &at.key("listen"), Self::text);
        if listen.len() > MAX_SOCKETS {
            let fault = at.key("listen").fault(format!("at most {MAX_SOCKETS} sockets can be given"));
            self.faults.push(fault.hint("all of them take the same calls: fewer do the same"));
        }
        let nsm = self.nsm(nsm, &at, domain, directory).map(|read| Nsm {
            on: raw.nsm.is_some(),
            listen: listen.iter().map(|placed| placed.value.clone()).collect(),
            ..read
        });
        DraftCompat { nsm, listen }
    }

    fn nsm(
        &mut self,
        raw: &RawNsm,
        at: &Cursor<'n>,
        domain: Option<&Domain>,
        directory: &Path,
    ) -> Option<Nsm> {
        let socket_mode = self.text(&raw.socket_mode, &at.key("socket_mode"));
        let name = self.given(&raw.name, at, "name");
        let url = self.given(&raw.url, at, "url");
        let max_token_lifetime =
            self.duration(&raw.max_token_lifetime, &at.key("max_token_lifetime"), TOKEN_LIFETIMES);
        let map_ip_file = self.given_file(&raw.map_ip_file, at, "map_ip_file", directory);
        let clusterinfo_file = self.given_file(&raw.clusterinfo_file, at, "clusterinfo_file", directory);
        let registry_url = self.given(&raw.registry_url, at, "registry_url");
        let registry_proxy = self.given(&raw.registry_proxy_url, at, "registry_proxy_url");
        let proxy_registry = self.given(&raw.proxy_registry_url, at, "proxy_registry_url");
        if raw.registry_proxy_url.is_some() && raw.proxy_registry_url.is_some() {
            let fault = at.key("proxy_registry_url").fault("`registry_proxy_url` says where these names go");
            self.faults.push(fault.hint("keep one of the two"));
        }
        Some(Nsm {
            on: false,
            listen: Vec::new(),
            socket_mode: socket_mode?.0,
            name: name?.map_or_else(|| domain.map(Nsm::own_name), |name| Some(name.0))?,
            url: url?.map(|url| url.0),
            max_token_lifetime: max_token_lifetime?,
            map_ip_file: map_ip_file?,
            clusterinfo_file: clusterinfo_file?,
            registry_url: registry_url?,
            registry_proxy_url: registry_proxy?,
            proxy_registry_url: proxy_registry?,
        })
    }

    /// What a key holds, if it is there. `None` is a fault.
    fn given<T: Written>(&mut self, text: &Option<Text<T>>, at: &Cursor<'n>, key: &str) -> Option<Option<T>> {
        match text {
            Some(text) => self.text(text, &at.key(key)).map(Some),
            None => Some(None),
        }
    }

    fn given_file(
        &mut self,
        text: &Option<Text<PathBuf>>,
        at: &Cursor<'n>,
        key: &str,
        directory: &Path,
    ) -> Option<Option<PathBuf>> {
        self.given(text, at, key).map(|path| path.map(|path| directory.join(path)))
    }
}
