//! `registry`: raw into final types.

use std::path::{Path, PathBuf};

use carrick_model::{AccessRule, HostPort};

use super::{Draft, Placed};
use crate::{
    config::{Etcd, EtcdClient, EtcdTls, Store},
    cursor::Cursor,
    raw::registry::{RawAccess, RawEtcd, RawEtcdTls, RawRegistry, RawStore},
    text::Text,
};

/// Members of one etcd. Its own advice is at most seven; the rest is room for names that are being replaced.
const MAX_ENDPOINTS: usize = 16;

/// What was read of `registry`.
pub(crate) struct DraftRegistry<'n> {
    /// `None`: it could not be read.
    pub(crate) store: Option<Store>,
    pub(crate) store_given: bool,
    pub(crate) admit: Vec<Placed<'n, AccessRule>>,
    pub(crate) show: Vec<Placed<'n, AccessRule>>,
}

impl<'n> Draft<'n> {
    pub(super) fn registry(
        &mut self,
        raw: &RawRegistry,
        at: &Cursor<'n>,
        directory: &Path,
    ) -> DraftRegistry<'n> {
        let etcd = raw.etcd.as_ref().map(|etcd| self.etcd(etcd, &at.key("etcd"), directory));
        let store = match (raw.store, etcd) {
            (RawStore::Etcd, Some(etcd)) => etcd.map(Store::Etcd),
            (RawStore::Etcd, None) => {
                // An `etcd` that did not fit the schema is a fault already.
                if !self.faulty_in(&at.key("etcd")) {
                    let fault = at.key("store").fault("nothing says where the etcd is");
                    self.faults.push(fault.hint("add `etcd: { endpoints: [\"host:2379\"] }` beside it"));
                }
                None
            }
            (RawStore::Embedded, etcd) => {
                if etcd.is_some() {
                    let warning = at.key("etcd").fault("the records are kept in a file: no etcd is asked");
                    self.warnings.push(warning.hint("add `store: etcd` beside it, or remove it"));
                }
                Some(Store::Embedded)
            }
        };
        DraftRegistry {
            store,
            store_given: at.keys().any(|(key, _)| key == "store"),
            admit: self.list(&raw.admit, &at.key("admit"), Self::access),
            show: self.list(&raw.show, &at.key("show"), Self::access),
        }
    }

    fn etcd(&mut self, raw: &RawEtcd, at: &Cursor<'n>, directory: &Path) -> Option<Etcd> {
        let prefix = self.text(&raw.prefix, &at.key("prefix"));
        let tls = raw.tls.as_ref().map(|tls| self.etcd_tls(tls, &at.key("tls"), directory));
        let place = at.key("endpoints");
        let mut endpoints: Vec<HostPort> = Vec::new();
        for (text, at) in raw.endpoints.iter().zip(place.items()) {
            let Some(endpoint) = self.text(text, &at) else { continue };
            match (endpoint.https, &raw.tls) {
                (Some(true), None) => self.faults.push(
                    at.fault("`https` needs the roots of its certificate").hint("add `tls: { ca: FILE }`"),
                ),
                (Some(false), Some(_)) => self
                    .faults
                    .push(at.fault("`tls` is given, and this endpoint is `http`").hint("write `host:port`")),
                _ => {}
            }
            endpoints.push(endpoint.at);
        }
        if endpoints.is_empty() && !self.faulty_in(&place) {
            self.faults.push(place.fault("no member is given").hint("add its `host:port`"));
        }
        if endpoints.len() > MAX_ENDPOINTS {
            self.faults.push(place.fault(format!("at most {MAX_ENDPOINTS} members can be given")));
        }
        let tls = match tls {
            Some(tls) => Some(tls?),
            None => None,
        };
        Some(Etcd { endpoints, tls, prefix: prefix?.0 })
    }

    fn etcd_tls(&mut self, raw: &RawEtcdTls, at: &Cursor<'n>, directory: &Path) -> Option<EtcdTls> {
        let ca = self.file(&raw.ca, &at.key("ca"), directory);
        let read = |draft: &mut Self, text: &Option<Text<PathBuf>>, key: &str| {
            text.as_ref().map(|text| draft.file(text, &at.key(key), directory))
        };
        let cert = read(self, &raw.cert, "cert");
        let key = read(self, &raw.key, "key");
        let client = match (cert, key) {
            (Some(cert), Some(key)) => Some(EtcdClient { cert: cert?, key: key? }),
            (None, None) => None,
            (cert, _) => {
                let (there, missing) = if cert.is_some() { ("cert", "key") } else { ("key", "cert") };
                if !self.faulty_in(&at.key(missing)) {
                    let fault = at.key(there).fault(format!("`{there}` is given without `{missing}`"));
                    self.faults.push(fault.hint("give both, or none"));
                }
                return None;
            }
        };
        Some(EtcdTls { ca: ca?, client })
    }

    fn access(&mut self, raw: &RawAccess, at: &Cursor<'n>) -> Option<AccessRule> {
        let who = self.texts(&raw.who, &at.key("who"));
        let services = self.texts(&raw.services, &at.key("services"));
        Some(AccessRule { who, services })
    }
}
