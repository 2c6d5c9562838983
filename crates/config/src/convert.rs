//! The raw config into final types. Each text that cannot be read is a fault of its own.

pub(crate) mod compat;
mod registry;

use std::{
    collections::BTreeSet,
    ops::RangeInclusive,
    path::{Path, PathBuf},
    time::Duration,
};

use carrick_model::ServiceName;

use crate::{
    checks,
    config::{
        BundleSource, Compat, Config, Dns, Export, Identity, Import, Limits, Listen, Log, Peer, Registry,
        Strategy, Timeouts, Trust, Tunnel, same_trust_domain,
    },
    cursor::Cursor,
    fault::{Fault, Faults},
    raw::{
        RawConfig, RawDns, RawExport, RawIdentity, RawImport, RawListen, RawPeer, RawStrategy, RawTimeouts,
        RawTrust, RawTunnel,
    },
    structure::Checked,
    text::{Text, Written},
};

const MILLIS_10: Duration = Duration::from_millis(10);
const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(60 * 60);
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// The shortest life in which an SVID can be renewed at half of it with a retry, and the longest that still counts as
/// short-lived.
const SVID_LIFETIMES: RangeInclusive<Duration> =
    Duration::from_secs(5)..=Duration::from_secs(30 * 24 * 60 * 60);
/// One flow needs 12.5 MB to fill a line of 100 ms x 1 Gbit/s.
const LEAST_TUNNEL_MEMORY: u64 = 16 << 20;
/// Domains that offer one import. Each is watched, and a list that is longer is a mistake.
const MAX_ALTERNATIVES: usize = 16;
/// Labels of these names are set by the daemon (`carrick.port`, `carrick.payload`).
const OWN_LABELS: &str = "carrick.";

/// A list entry and where it stands.
pub(crate) struct Placed<'n, T> {
    pub(crate) value: T,
    pub(crate) at: Cursor<'n>,
}

/// What is known so far of a config that may never become one.
pub(crate) struct Draft<'n> {
    pub(crate) root: Cursor<'n>,
    /// Keys at the top with a fault in or on them.
    pub(crate) doubtful: BTreeSet<String>,
    /// Paths with a fault on them.
    faulty: BTreeSet<String>,
    pub(crate) faults: Vec<Fault>,
    pub(crate) warnings: Vec<Fault>,
}

/// Reads a tree that fits the schema. Relative paths are relative to `directory`.
pub(crate) fn convert(checked: &Checked, directory: &Path) -> Result<Config, Faults> {
    let raw: RawConfig = serde_json::from_value(checked.root.to_json()).map_err(|error| {
        Faults::of(checked.faults.clone()).unwrap_or_else(|| {
            Faults::one(checked.root.at.fault("", format!("does not fit the schema: {error}")))
        })
    })?;
    let mut draft = Draft {
        root: Cursor::root(&checked.root),
        doubtful: checked.doubtful.clone(),
        faulty: checked.faults.iter().map(|fault| fault.path.clone()).collect(),
        faults: checked.faults.clone(),
        warnings: Vec::new(),
    };
    let config = draft.config(raw, directory);
    match (Faults::of(draft.faults), config) {
        (None, Some(mut config)) => {
            draft.warnings.sort_by_key(|warning| (warning.line, warning.column));
            config.warnings = draft.warnings;
            Ok(config)
        }
        (Some(faults), _) => Err(faults),
        (None, None) => Err(Faults::one(checked.root.at.fault("", "a value cannot be read"))),
    }
}

impl<'n> Draft<'n> {
    /// Everything is read before the first `?`, so that no fault hides another.
    fn config(&mut self, raw: RawConfig, directory: &Path) -> Option<Config> {
        let root = self.root.clone();
        let domain = self.text(&raw.domain, &root.key("domain"));
        let given_trust_domain = raw.trust_domain.map(|text| self.text(&text, &root.key("trust_domain")));
        let state_dir = self.text(&raw.state_dir, &root.key("state_dir")).map(|path| directory.join(path));
        let listen = self.listen(&raw.listen, &root.key("listen"));
        let advertise = self.texts(&raw.advertise, &root.key("advertise"));
        let identity = self.identity(&raw.identity, &root.key("identity"));
        let dns = self.dns(&raw.dns, &root.key("dns"));
        let tunnel = self.tunnel(&raw.tunnel, &root.key("tunnel"));
        let timeouts = self.timeouts(&raw.timeouts, &root.key("timeouts"));
        let level = self.text(&raw.log.level, &root.key("log").key("level"));
        let drain = self.duration(&raw.drain_timeout, &root.key("drain_timeout"), Duration::ZERO..=HOUR);

        let trust =
            self.list(&raw.trust, &root.key("trust"), |draft, raw, at| draft.trust(raw, at, directory));
        let peers = self.list(&raw.peers, &root.key("peers"), Self::peer);
        let exports = self.list(&raw.exports, &root.key("exports"), Self::export);
        let imports = self.list(&raw.imports, &root.key("imports"), Self::import);

        let registry = self.registry(&raw.registry, &root.key("registry"), directory);
        let compat = self.compat(&raw.compat, &root.key("compat"), domain.as_ref(), directory);

        let trust_domain = given_trust_domain.unwrap_or_else(|| domain.as_ref().map(same_trust_domain));
        let known = checks::Known {
            domain: domain.as_ref().filter(|_| !self.doubtful.contains("domain")),
            trust_domain: trust_domain.as_ref().filter(|_| !self.doubtful.contains("domain")),
            listen: listen.as_ref().filter(|_| !self.doubtful.contains("listen")),
            dns: dns.as_ref().filter(|_| !self.doubtful.contains("dns")),
            trust: &trust,
            peers: &peers,
            exports: &exports,
            imports: &imports,
            admit: &registry.admit,
            show: &registry.show,
            nsm_listen: &compat.listen,
        };
        checks::check(self, &known);

        Some(Config {
            domain: domain?,
            trust_domain: trust_domain?,
            state_dir: state_dir?,
            listen: listen?,
            advertise,
            identity: identity?,
            trust: values(trust),
            dns: dns?,
            peers: values(peers),
            exports: values(exports),
            imports: values(imports),
            registry: Registry {
                store: registry.store?,
                store_given: registry.store_given,
                admit: values(registry.admit),
                show: values(registry.show),
            },
            compat: Compat { nsm: compat.nsm? },
            tunnel: tunnel?,
            timeouts: timeouts?,
            log: Log { format: raw.log.format, level: level?.0 },
            drain_timeout: drain?,
            limits: Limits {
                max_flows: raw.limits.max_flows,
                max_tunnels: raw.limits.max_tunnels,
                max_half_open: raw.limits.max_half_open,
            },
            warnings: Vec::new(),
        })
    }

    /// Whether something at or below this place is a fault already.
    pub(crate) fn faulty_in(&self, at: &Cursor<'_>) -> bool {
        let below = self.faulty.range(at.path().to_owned()..).map_while(|path| path.strip_prefix(at.path()));
        below.into_iter().any(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
    }

    fn listen(&mut self, raw: &RawListen, at: &Cursor<'n>) -> Option<Listen> {
        let control = self.text(&raw.control, &at.key("control"));
        let tunnel = self.text(&raw.tunnel, &at.key("tunnel"));
        let admin = self.text(&raw.admin, &at.key("admin"));
        let dns = raw.dns.as_ref().map(|text| self.text(text, &at.key("dns")));
        Some(Listen {
            control: control?,
            tunnel: tunnel?,
            admin: admin?.0,
            dns: match dns {
                Some(dns) => dns?.0,
                None => None,
            },
        })
    }

    fn identity(&mut self, raw: &RawIdentity, at: &Cursor<'n>) -> Option<Identity> {
        let svid_lifetime = self.duration(&raw.svid_lifetime, &at.key("svid_lifetime"), SVID_LIFETIMES)?;
        Some(Identity { source: raw.source, svid_lifetime })
    }

    fn dns(&mut self, raw: &RawDns, at: &Cursor<'n>) -> Option<Dns> {
        let servers = self.texts(&raw.servers, &at.key("servers"));
        let suffix = self.text(&raw.suffix, &at.key("suffix"));
        let virtual_ips = self.text(&raw.virtual_ips, &at.key("virtual_ips"));
        let timeout = self.duration(&raw.timeout, &at.key("timeout"), MILLIS_10..=MINUTE);
        let max_stale = self.duration(&raw.max_stale, &at.key("max_stale"), Duration::ZERO..=30 * DAY);
        let ttl = self.duration(&raw.ttl, &at.key("ttl"), SECOND..=DAY);
        if ttl.is_some_and(|ttl| ttl.subsec_nanos() != 0) {
            self.faults.push(at.key("ttl").fault("a TTL has whole seconds"));
        }
        Some(Dns {
            servers: servers.into_iter().map(|server| server.0).collect(),
            suffix: suffix?.0,
            virtual_ips: virtual_ips?,
            timeout: timeout?,
            attempts: raw.attempts,
            max_stale: max_stale?,
            ttl: ttl?,
        })
    }

    fn tunnel(&mut self, raw: &RawTunnel, at: &Cursor<'n>) -> Option<Tunnel> {
        let lanes = self.text(&raw.lanes, &at.key("lanes"));
        let idle_timeout = self.duration(&raw.idle_timeout, &at.key("idle_timeout"), SECOND..=HOUR);
        let keep_alive = self.duration(&raw.keep_alive, &at.key("keep_alive"), 10 * MILLIS_10..=HOUR);
        let max_memory = self.text(&raw.max_memory, &at.key("max_memory")).map(|bytes| bytes.0);
        if max_memory.is_some_and(|bytes| bytes < LEAST_TUNNEL_MEMORY) {
            let fault = at.key("max_memory").fault("too little for one flow at full speed");
            self.faults.push(fault.hint("at least `16MiB`"));
        }
        if let (Some(idle), Some(alive)) = (idle_timeout, keep_alive)
            && alive >= idle
        {
            let fault = at.key("keep_alive").fault("a tunnel would be dead before its first keep-alive");
            self.faults.push(fault.hint("make it less than `tunnel.idle_timeout`, best a third of it"));
        }
        Some(Tunnel {
            lanes: lanes?,
            idle_timeout: idle_timeout?,
            keep_alive: keep_alive?,
            max_memory: max_memory?,
            congestion: raw.congestion,
        })
    }

    fn timeouts(&mut self, raw: &RawTimeouts, at: &Cursor<'n>) -> Option<Timeouts> {
        let connect = self.duration(&raw.connect, &at.key("connect"), MILLIS_10..=HOUR);
        let request = self.duration(&raw.request, &at.key("request"), MILLIS_10..=HOUR);
        let flow_open = self.duration(&raw.flow_open, &at.key("flow_open"), MILLIS_10..=HOUR);
        let udp_idle = self.duration(&raw.udp_idle, &at.key("udp_idle"), SECOND..=DAY);
        Some(Timeouts { connect: connect?, request: request?, flow_open: flow_open?, udp_idle: udp_idle? })
    }

    fn trust(&mut self, raw: &RawTrust, at: &Cursor<'n>, directory: &Path) -> Option<Trust> {
        let domain = self.text(&raw.domain, &at.key("domain"));
        let trust_domain = raw.trust_domain.as_ref().map(|text| self.text(text, &at.key("trust_domain")));
        let bundle = self.text(&raw.bundle, &at.key("bundle"));
        let domain = domain?;
        let trust_domain = trust_domain.unwrap_or_else(|| Some(same_trust_domain(&domain)))?;
        let BundleSource::File(path) = bundle?;
        Some(Trust { domain, trust_domain, bundle: BundleSource::File(directory.join(path)) })
    }

    fn peer(&mut self, raw: &RawPeer, at: &Cursor<'n>) -> Option<Peer> {
        let domain = self.text(&raw.domain, &at.key("domain"));
        let control = self.texts(&raw.control, &at.key("control"));
        let tunnel = self.texts(&raw.tunnel, &at.key("tunnel"));
        Some(Peer { domain: domain?, control, tunnel })
    }

    fn export(&mut self, raw: &RawExport, at: &Cursor<'n>) -> Option<Export> {
        let service = self.text(&raw.service, &at.key("service"));
        let to = self.text(&raw.to, &at.key("to"));
        let allow = self.texts(&raw.allow, &at.key("allow"));
        for (label, at) in at.key("labels").keys() {
            if label.is_empty() {
                self.faults.push(at.fault("a label needs a name"));
            }
            if label.starts_with(OWN_LABELS) {
                let fault = at.fault("labels that start with `carrick.` are set by the daemon");
                self.faults.push(fault.hint("choose another name"));
            }
        }
        let (service, to) = (service?, to?);
        Some(Export { service, port: raw.port.or_else(|| to.port()), to, allow, labels: raw.labels.clone() })
    }

    fn import(&mut self, raw: &RawImport, at: &Cursor<'n>) -> Option<Import> {
        let (services, strategy) = (self.alternatives(raw, at), self.strategy(raw, at));
        let listen = raw.listen.as_ref().map(|text| self.text(text, &at.key("listen")));
        let listen = match listen {
            Some(listen) => Some(listen?),
            None => None,
        };
        let mut services = services?.into_iter();
        Some(Import {
            service: services.next()?,
            others: services.collect(),
            strategy,
            listen,
            port: raw.port,
        })
    }

    /// The services of an import, at least one.
    fn alternatives(&mut self, raw: &RawImport, at: &Cursor<'n>) -> Option<Vec<ServiceName>> {
        let at = at.key("service");
        let places: Vec<_> = if raw.service.list { at.items().collect() } else { vec![at.clone()] };
        let read = |(text, at)| self.text(text, at).map(|service| (service, at));
        let read: Option<Vec<_>> = raw.service.texts.iter().zip(&places).map(read).collect();
        let mut services = Vec::new();
        for (service, at) in read? {
            if services.contains(&service) {
                self.faults.push(at.fault(format!("`{service}` is in the list twice")).hint("keep one"));
                continue;
            }
            services.push(service);
        }
        if services.is_empty() && !self.faulty_in(&at) {
            self.faults.push(at.fault("the list is empty").hint("write `service@domain`"));
        }
        if services.len() > MAX_ALTERNATIVES {
            self.faults.push(at.fault(format!("at most {MAX_ALTERNATIVES} services can stand for one")));
        }
        (!services.is_empty()).then_some(services)
    }

    fn strategy(&mut self, raw: &RawImport, at: &Cursor<'n>) -> Strategy {
        let (services, weights) = (raw.service.texts.len(), raw.weights.len());
        if services == 1 && raw.strategy != RawStrategy::Priority {
            let warning = at.key("strategy").fault("there is one service to choose from");
            self.warnings.push(warning.hint("list more under `service`, or remove it"));
        }
        match raw.strategy {
            RawStrategy::Weighted if weights == 0 => Strategy::Weighted(vec![1; services]),
            RawStrategy::Weighted => {
                let place = at.key("weights");
                if weights != services && !self.faulty_in(&place) {
                    let message = format!("there are {weights} weights for {services} services");
                    self.faults.push(place.fault(message).hint("give one for each, in the same order"));
                }
                Strategy::Weighted(raw.weights.clone())
            }
            _ if weights > 0 => {
                let fault = at.key("weights").fault("weights mean something with one strategy only");
                self.faults.push(fault.hint("add `strategy: weighted`, or remove them"));
                Strategy::Priority
            }
            RawStrategy::Priority => Strategy::Priority,
            RawStrategy::Nearest => Strategy::Nearest,
        }
    }

    fn file(&mut self, text: &Text<PathBuf>, at: &Cursor<'n>, directory: &Path) -> Option<PathBuf> {
        self.text(text, at).map(|path| directory.join(path))
    }

    fn text<T: Written>(&mut self, text: &Text<T>, at: &Cursor<'n>) -> Option<T> {
        match text.read() {
            Ok(value) => Some(value),
            Err(message) => {
                let top = at.path().split(['.', '[']).next().unwrap_or_default();
                self.doubtful.insert(top.to_owned());
                self.faulty.insert(at.path().to_owned());
                self.faults.push(at.fault(message));
                None
            }
        }
    }

    fn texts<T: Written>(&mut self, texts: &[Text<T>], at: &Cursor<'n>) -> Vec<T> {
        texts.iter().zip(at.items()).filter_map(|(text, at)| self.text(text, &at)).collect()
    }

    fn duration(
        &mut self,
        text: &Text<Duration>,
        at: &Cursor<'n>,
        range: RangeInclusive<Duration>,
    ) -> Option<Duration> {
        let duration = self.text(text, at)?;
        if range.contains(&duration) {
            return Some(duration);
        }
        let [least, most] = [range.start(), range.end()].map(|bound| humantime::format_duration(*bound));
        let fault = at.fault(format!("{} is out of range", humantime::format_duration(duration)));
        self.faults.push(fault.hint(format!("from `{least}` to `{most}`")));
        None
    }

    fn list<R, T>(
        &mut self,
        raw: &[R],
        at: &Cursor<'n>,
        read: impl Fn(&mut Self, &R, &Cursor<'n>) -> Option<T>,
    ) -> Vec<Placed<'n, T>> {
        let place = |(raw, at): (&R, Cursor<'n>)| {
            let value = read(self, raw, &at)?;
            Some(Placed { value, at })
        };
        raw.iter().zip(at.items()).filter_map(place).collect()
    }
}

fn values<T>(placed: Vec<Placed<'_, T>>) -> Vec<T> {
    placed.into_iter().map(|placed| placed.value).collect()
}
