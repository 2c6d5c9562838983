//! What changes between two configs, as hot reload needs it.

use carrick_model::{Domain, ServiceName, Target};

use crate::config::{
    Compat, Config, Dns, Export, Identity, Import, Limits, Listen, Log, Nsm, Peer, Registry, Timeouts, Trust,
    Tunnel,
};

/// What a reload has to do. All that is not listed stays as it is and must not be touched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// Services offered.
    pub exports: Changes<Export, Target>,
    /// Services used.
    pub imports: Changes<Import, ServiceName>,
    /// Trusted domains.
    pub trust: Changes<Trust, Domain>,
    /// Domains with given gateways.
    pub peers: Changes<Peer, Domain>,
    /// Keys whose new value takes a restart: `listen.control`.
    pub restart_needed: Vec<&'static str>,
}

/// What changes in one list: `T` is an entry, `K` what it is known by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Changes<T, K> {
    /// Entries that are new.
    pub added: Vec<T>,
    /// What the entries that are gone were known by.
    pub removed: Vec<K>,
    /// Entries that are known but differ, as they are now.
    pub changed: Vec<T>,
}

impl Config {
    /// What has to be done to get from this config to `new`.
    pub fn difference(&self, new: &Self) -> Difference {
        Difference {
            exports: changes(&self.exports, &new.exports, |export| &export.service),
            imports: changes(&self.imports, &new.imports, |import| &import.service),
            trust: changes(&self.trust, &new.trust, |trust| &trust.domain),
            peers: changes(&self.peers, &new.peers, |peer| &peer.domain),
            restart_needed: restart_needed(self, new),
        }
    }
}

impl Difference {
    /// Whether nothing changes.
    pub fn is_empty(&self) -> bool {
        let Self { exports, imports, trust, peers, restart_needed } = self;
        exports.is_empty()
            && imports.is_empty()
            && trust.is_empty()
            && peers.is_empty()
            && restart_needed.is_empty()
    }
}

impl<T, K> Changes<T, K> {
    /// Whether the list stays as it is.
    pub fn is_empty(&self) -> bool {
        self.added.is_empty() && self.removed.is_empty() && self.changed.is_empty()
    }
}

/// Both lists hold no key twice. The order of entries means nothing.
fn changes<T: Clone + PartialEq, K: Clone + Ord>(old: &[T], new: &[T], key: fn(&T) -> &K) -> Changes<T, K> {
    let index = |list: &'_ [T]| list.iter().map(|entry| (key(entry).clone(), entry.clone())).collect();
    let before: std::collections::BTreeMap<K, T> = index(old);
    let after: std::collections::BTreeMap<K, T> = index(new);
    let mut changes = Changes { added: Vec::new(), removed: Vec::new(), changed: Vec::new() };
    for (key, entry) in &after {
        match before.get(key) {
            None => changes.added.push(entry.clone()),
            Some(known) if known != entry => changes.changed.push(entry.clone()),
            Some(_) => {}
        }
    }
    changes.removed.extend(before.keys().filter(|key| !after.contains_key(key)).cloned());
    changes
}

/// Names the fields of two values that differ. The pattern lists every field, so that a new one cannot be forgotten;
/// those after `not:` are compared elsewhere.
macro_rules! differing {
    ($out:ident, $ty:ident, $old:expr, $new:expr, [$($field:ident => $key:literal),* $(,)?] $(, not: [$($other:ident),*])?) => {
        let $ty { $($field: _,)* $($($other: _),*)? } = $old;
        $(if $old.$field != $new.$field { $out.push($key); })*
    };
}

fn restart_needed(old: &Config, new: &Config) -> Vec<&'static str> {
    let mut keys = Vec::new();
    differing!(
        keys, Config, old, new,
        [domain => "domain", trust_domain => "trust_domain", state_dir => "state_dir", advertise => "advertise",
         drain_timeout => "drain_timeout"],
        not: [listen, identity, trust, dns, peers, exports, imports, registry, compat, tunnel, timeouts, log, limits, warnings]
    );
    differing!(keys, Listen, &old.listen, &new.listen,
        [control => "listen.control", tunnel => "listen.tunnel", admin => "listen.admin", dns => "listen.dns"]);
    differing!(keys, Identity, &old.identity, &new.identity,
        [source => "identity.source", svid_lifetime => "identity.svid_lifetime"]);
    differing!(keys, Dns, &old.dns, &new.dns,
        [servers => "dns.servers", suffix => "dns.suffix", virtual_ips => "dns.virtual_ips", timeout => "dns.timeout",
         attempts => "dns.attempts", max_stale => "dns.max_stale", ttl => "dns.ttl"]);
    differing!(keys, Registry, &old.registry, &new.registry,
        [store => "registry.store"], not: [store_given, admit, show]);
    differing!(keys, Compat, &old.compat, &new.compat, [], not: [nsm]);
    differing!(keys, Nsm, &old.compat.nsm, &new.compat.nsm,
        [on => "compat.nsm", listen => "compat.nsm.listen", socket_mode => "compat.nsm.socket_mode",
         name => "compat.nsm.name", url => "compat.nsm.url", max_token_lifetime => "compat.nsm.max_token_lifetime",
         map_ip_file => "compat.nsm.map_ip_file", clusterinfo_file => "compat.nsm.clusterinfo_file",
         registry_url => "compat.nsm.registry_url", registry_proxy_url => "compat.nsm.registry_proxy_url",
         proxy_registry_url => "compat.nsm.proxy_registry_url"]);
    differing!(keys, Tunnel, &old.tunnel, &new.tunnel,
        [lanes => "tunnel.lanes", idle_timeout => "tunnel.idle_timeout", keep_alive => "tunnel.keep_alive",
         max_memory => "tunnel.max_memory", congestion => "tunnel.congestion"]);
    differing!(keys, Timeouts, &old.timeouts, &new.timeouts,
        [connect => "timeouts.connect", request => "timeouts.request", flow_open => "timeouts.flow_open",
         udp_idle => "timeouts.udp_idle"]);
    differing!(keys, Log, &old.log, &new.log, [format => "log.format", level => "log.level"]);
    differing!(keys, Limits, &old.limits, &new.limits,
        [max_flows => "limits.max_flows", max_tunnels => "limits.max_tunnels", max_half_open => "limits.max_half_open"]);
    keys
}

#[cfg(test)]
mod tests {
    use super::*;

    const OLD: &str = r#"
domain: cloud.test
listen: { dns: "127.0.0.1:5353" }
trust: [ { domain: a.test, bundle: a.pem }, { domain: b.test, bundle: b.pem } ]
peers: [ { domain: a.test, control: ["192.0.2.1:7443"] } ]
exports:
  - { service: stays, to: "tcp://10.0.0.1:1" }
  - { service: goes, to: "tcp://10.0.0.1:2" }
  - { service: moves, to: "tcp://10.0.0.1:3" }
imports: [ { service: db@a.test }, { service: web@b.test, port: 80 } ]
"#;
    const NEW: &str = r#"
domain: cloud.test
listen: { dns: "127.0.0.1:5353", control: "0.0.0.0:8443" }
trust: [ { domain: b.test, bundle: new.pem }, { domain: a.test, bundle: a.pem } ]
exports:
  - { service: moves, to: "tcp://10.0.0.9:3" }
  - { service: comes, to: "tcp://10.0.0.1:4" }
  - { service: stays, to: "tcp://10.0.0.1:1" }
imports: [ { service: web@b.test, port: 8080 }, { service: db@a.test } ]
log: { level: debug }
limits: { max_flows: 7 }
"#;

    #[test]
    fn only_what_differs_is_listed() {
        let (old, new) = (crate::parse(OLD).unwrap(), crate::parse(NEW).unwrap());
        let difference = old.difference(&new);
        let names = |exports: &[Export]| exports.iter().map(|e| e.service.to_string()).collect::<Vec<_>>();
        assert_eq!(names(&difference.exports.added), ["comes"]);
        assert_eq!(names(&difference.exports.changed), ["moves"]);
        assert_eq!(difference.exports.removed, ["goes".parse().unwrap()]);
        assert_eq!(difference.imports.changed, [new.imports[0].clone()]);
        assert!(difference.imports.added.is_empty() && difference.imports.removed.is_empty());
        assert_eq!(difference.trust.changed, [new.trust[0].clone()]);
        assert_eq!(difference.peers.removed, ["a.test".parse().unwrap()]);
        assert_eq!(difference.restart_needed, ["listen.control", "log.level", "limits.max_flows"]);
    }

    #[test]
    fn a_config_differs_from_itself_in_nothing() {
        let config = crate::parse(OLD).unwrap();
        assert!(config.difference(&config).is_empty());
        let mut noted = config.clone();
        noted.warnings.clear();
        assert_ne!(noted.warnings, config.warnings);
        assert!(config.difference(&noted).is_empty(), "a warning is not a change");
    }
}
