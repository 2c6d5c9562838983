//! Values that are right by themselves and wrong together.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::Path,
};

use carrick_model::{AccessRule, Domain, ListenAddress, Payload, ServeUrl, TrustDomain, domain::MAX_NAME};

use crate::{
    config::{Dns, Export, Import, Listen, Peer, Trust},
    convert::{Draft, Placed},
    cursor::Cursor,
};

/// What could be read. `None` is what could not, and is not checked against.
pub(crate) struct Known<'a, 'n> {
    pub(crate) domain: Option<&'a Domain>,
    pub(crate) trust_domain: Option<&'a TrustDomain>,
    pub(crate) listen: Option<&'a Listen>,
    pub(crate) dns: Option<&'a Dns>,
    pub(crate) trust: &'a [Placed<'n, Trust>],
    pub(crate) peers: &'a [Placed<'n, Peer>],
    pub(crate) exports: &'a [Placed<'n, Export>],
    pub(crate) imports: &'a [Placed<'n, Import>],
    pub(crate) admit: &'a [Placed<'n, AccessRule>],
    pub(crate) show: &'a [Placed<'n, AccessRule>],
    pub(crate) nsm_listen: &'a [Placed<'n, ServeUrl>],
}

/// Adds to the draft what is wrong, and what is odd.
pub(crate) fn check(draft: &mut Draft<'_>, known: &Known<'_, '_>) {
    trust(draft, known);
    peers(draft, known);
    exports(draft, known);
    imports(draft, known);
    access(draft, known);
    sockets(draft, known);
    names(draft, known);
}

fn trust(draft: &mut Draft<'_>, known: &Known<'_, '_>) {
    let mut domains = HashMap::new();
    let mut roots: HashMap<&TrustDomain, &Trust> = HashMap::new();
    for Placed { value: trust, at } in known.trust {
        if Some(&trust.domain) == known.domain {
            let fault = at.key("domain").fault(format!("`{}` is this domain", trust.domain));
            draft.faults.push(fault.hint("remove the entry: a domain knows its own roots"));
        } else if Some(&trust.trust_domain) == known.trust_domain {
            let message = format!("`{}` is this domain's own trust domain", trust.trust_domain);
            let fault = at.key("trust_domain").fault(message);
            draft.faults.push(fault.hint("every domain needs a trust domain of its own"));
        }
        if let Some(line) = domains.insert(&trust.domain, at.line()) {
            let message = format!("`{}` is listed twice, first on line {line}", trust.domain);
            draft.faults.push(at.key("domain").fault(message).hint("keep one of the entries"));
            continue;
        }
        // Roots of one trust domain from two files would have to be merged, and roots are never merged.
        let first = roots.entry(&trust.trust_domain).or_insert(trust);
        if first.bundle != trust.bundle {
            let message = format!(
                "trust domain `{}` has another bundle already, by `{}`",
                trust.trust_domain, first.domain
            );
            draft.faults.push(at.key("bundle").fault(message).hint("name the same file in both entries"));
        }
    }
}

fn peers(draft: &mut Draft<'_>, known: &Known<'_, '_>) {
    let mut domains = HashMap::new();
    for Placed { value: peer, at } in known.peers {
        if Some(&peer.domain) == known.domain {
            let fault = at.key("domain").fault(format!("`{}` is this domain", peer.domain));
            draft.faults.push(fault.hint("remove the entry: a domain never calls itself over the network"));
        }
        if let Some(line) = domains.insert(&peer.domain, at.line()) {
            let message = format!("`{}` is listed twice, first on line {line}", peer.domain);
            draft.faults.push(at.key("domain").fault(message).hint("put all its addresses into one entry"));
        }
        // A list may be empty because what was in it is a fault already.
        if peer.control.is_empty() && peer.tunnel.is_empty() && !draft.faulty_in(at) {
            let fault = at.fault(format!("the entry gives no address of `{}`", peer.domain));
            draft.faults.push(fault.hint("add `control: [\"host:port\"]` and `tunnel: [\"host:port\"]`"));
        }
    }
}

fn exports(draft: &mut Draft<'_>, known: &Known<'_, '_>) {
    let trusted = trusted(known);
    let mut services: HashMap<_, (Payload, usize)> = HashMap::new();
    for Placed { value: export, at } in known.exports {
        let payload = export.to.payload();
        if let Some((first, line)) = services.insert(&export.service, (payload, at.line())) {
            let (message, hint) = twice(&export.service.to_string(), "exported", (first, line), payload);
            draft.faults.push(at.key("service").fault(message).hint(hint));
        }
        if export.allow.is_empty() && !draft.faulty_in(&at.key("allow")) {
            let warning = at.key("allow").fault("nobody may use this service");
            draft.warnings.push(warning.hint("add `allow: [\"spiffe://their.trust.domain/**\"]`"));
        }
        for (pattern, at) in export.allow.iter().zip(at.key("allow").items()) {
            if !trusted.contains(pattern.trust_domain().as_str()) {
                let message = format!("no `trust:` entry is for trust domain `{}`", pattern.trust_domain());
                draft.warnings.push(at.fault(message).hint("add one, or run `carrick trust import`"));
            }
        }
    }
}

fn imports(draft: &mut Draft<'_>, known: &Known<'_, '_>) {
    let trusted: BTreeSet<&Domain> = known.trust.iter().map(|trust| &trust.value.domain).collect();
    let mut services: HashMap<_, (Option<Payload>, usize)> = HashMap::new();
    for Placed { value: import, at } in known.imports {
        let payload = import.listen.as_ref().map(ListenAddress::payload);
        let at_services: Vec<Cursor<'_>> = at.key("service").items().collect();
        for (index, service) in import.services().enumerate() {
            let at = at_services.get(index).cloned().unwrap_or_else(|| at.key("service"));
            let domain = service.domain();
            if Some(domain) == known.domain {
                let message = format!("`{service}` is a service of this domain: it is local");
                draft.faults.push(at.fault(message).hint("use the target of its export directly"));
            } else if !trusted.contains(domain) && !draft.doubtful.contains("trust") {
                let warning = at.fault(format!("no `trust:` entry is for domain `{domain}`"));
                draft.warnings.push(warning.hint("add one, or run `carrick trust import`"));
            }
        }
        if let Some((first, line)) = services.insert(&import.service, (payload, at.line())) {
            let (first, payload) = (first.unwrap_or(Payload::Tcp), payload.unwrap_or(Payload::Tcp));
            let (message, hint) = twice(&import.service.to_string(), "imported", (first, line), payload);
            draft.faults.push(at.key("service").fault(message).hint(hint));
        }
        if import.listen.is_none() && known.listen.is_some_and(|listen| listen.dns.is_none()) {
            let message = format!("no application could reach `{}`", import.service);
            draft
                .faults
                .push(at.fault(message).hint("add `listen:` here, or `dns:` under `listen:` at the top"));
        }
        if import.port.is_some() && known.listen.is_some_and(|listen| listen.dns.is_none()) {
            let warning = at.key("port").fault("the port is that of a virtual IP, and there are none");
            draft.warnings.push(warning.hint("set `listen.dns`, or remove it"));
        }
    }
}

/// The trust domains whose callers can get in at all.
fn trusted<'a>(known: &Known<'a, '_>) -> BTreeSet<&'a str> {
    let foreign = known.trust.iter().map(|trust| trust.value.trust_domain.as_str());
    foreign.chain(known.trust_domain.map(TrustDomain::as_str)).collect()
}

/// The rules of the registry.
fn access(draft: &mut Draft<'_>, known: &Known<'_, '_>) {
    let trusted = trusted(known);
    for Placed { value: rule, at } in known.admit.iter().chain(known.show) {
        for (key, empty) in [("who", rule.who.is_empty()), ("services", rule.services.is_empty())] {
            if empty && !draft.faulty_in(&at.key(key)) {
                let warning = at.key(key).fault("the list is empty: this lets nobody do anything");
                draft.warnings.push(warning.hint("add an entry, or remove the rule"));
            }
        }
        for (pattern, at) in rule.who.iter().zip(at.key("who").items()) {
            let of = pattern.trust_domain();
            if Some(of) == known.trust_domain {
                let warning = at.fault("callers of the own trust domain need no rule");
                draft.warnings.push(warning.hint("remove it"));
            } else if !trusted.contains(of.as_str()) {
                let warning = at.fault(format!("no `trust:` entry is for trust domain `{of}`"));
                draft.warnings.push(warning.hint("add one, or run `carrick trust import`"));
            }
        }
    }
}

/// What is said of a service that is there twice.
fn twice(name: &str, verb: &str, (first, line): (Payload, usize), second: Payload) -> (String, &'static str) {
    if first == second {
        (format!("`{name}` is {verb} twice, first on line {line}"), "keep one of the entries")
    } else {
        let message = format!("`{name}` is {verb} as {second}, and as {first} on line {line}");
        (message, "a service has one payload: give the other a name of its own")
    }
}

/// No two listeners on one socket.
fn sockets(draft: &mut Draft<'_>, known: &Known<'_, '_>) {
    let mut taken = Taken::default();
    if let Some(listen) = known.listen {
        let at = draft.root.key("listen");
        taken.claim(draft, Protocol::Tcp, listen.control, &at.key("control"));
        taken.claim(draft, Protocol::Udp, listen.tunnel, &at.key("tunnel"));
        if let Some(admin) = listen.admin {
            taken.claim(draft, Protocol::Tcp, admin, &at.key("admin"));
        }
        if let Some(dns) = listen.dns
            && taken.claim(draft, Protocol::Udp, dns, &at.key("dns"))
        {
            taken.claim(draft, Protocol::Tcp, dns, &at.key("dns"));
        }
    }
    let mut paths: HashMap<&Path, Cursor<'_>> = HashMap::new();
    for Placed { value: url, at } in known.nsm_listen {
        match url {
            ServeUrl::Unix(path) => claim_path(draft, &mut paths, path, at),
            ServeUrl::Tcp { ip: Some(ip), port } => {
                taken.claim(draft, Protocol::Tcp, SocketAddr::new(*ip, *port), at);
            }
            ServeUrl::Tcp { ip: None, port } => {
                let all: [IpAddr; 2] = [Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()];
                let _clash =
                    all.iter().all(|ip| taken.claim(draft, Protocol::Tcp, SocketAddr::new(*ip, *port), at));
            }
        }
    }
    for Placed { value: import, at } in known.imports {
        let at = at.key("listen");
        match &import.listen {
            Some(ListenAddress::Tcp(addr)) => {
                taken.claim(draft, Protocol::Tcp, *addr, &at);
            }
            Some(ListenAddress::Udp(addr)) => {
                taken.claim(draft, Protocol::Udp, *addr, &at);
            }
            Some(ListenAddress::Unix(path)) => claim_path(draft, &mut paths, path, &at),
            None => {}
        }
    }
}

fn claim_path<'a, 'n>(
    draft: &mut Draft<'_>,
    paths: &mut HashMap<&'a Path, Cursor<'n>>,
    path: &'a Path,
    at: &Cursor<'n>,
) {
    if let Some(first) = paths.insert(path, at.clone()) {
        let message = format!("{} is taken by `{}` on line {}", path.display(), first.path(), first.line());
        draft.faults.push(at.fault(message).hint("choose another path"));
    }
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Protocol {
    Tcp,
    Udp,
}

/// Who holds a socket.
struct Holder {
    path: String,
    line: usize,
}

/// Sockets in use. `IpAddr` orders by family and then by number, so all addresses of a family on a port are neighbours.
#[derive(Default)]
struct Taken {
    holders: BTreeMap<(Protocol, u16, IpAddr), Holder>,
}

impl Taken {
    /// Takes an address. Returns false, and reports it, when it is taken. Port 0 is never taken.
    fn claim(
        &mut self,
        draft: &mut Draft<'_>,
        protocol: Protocol,
        addr: SocketAddr,
        at: &Cursor<'_>,
    ) -> bool {
        let key = |ip: IpAddr| (protocol, addr.port(), ip);
        if addr.port() == 0 {
            return true;
        }
        if let Some(((.., ip), holder)) = self.clash(&key, addr.ip()) {
            let other = SocketAddr::new(*ip, addr.port());
            let of = if other == addr { String::new() } else { format!(" as part of `{other}`") };
            let message = format!("`{addr}` is taken{of} by `{}` on line {}", holder.path, holder.line);
            draft.faults.push(at.fault(message).hint("choose another port or address"));
            return false;
        }
        self.holders.insert(key(addr.ip()), Holder { path: at.path().to_owned(), line: at.line() });
        true
    }

    /// One address clashes with itself and with "all addresses" of its family.
    fn clash(
        &self,
        key: &impl Fn(IpAddr) -> (Protocol, u16, IpAddr),
        ip: IpAddr,
    ) -> Option<(&(Protocol, u16, IpAddr), &Holder)> {
        let (all, last): (IpAddr, IpAddr) = match ip {
            IpAddr::V4(_) => (Ipv4Addr::UNSPECIFIED.into(), Ipv4Addr::BROADCAST.into()),
            IpAddr::V6(_) => (Ipv6Addr::UNSPECIFIED.into(), Ipv6Addr::from(u128::MAX).into()),
        };
        if ip == all {
            return self.holders.range(key(all)..=key(last)).next();
        }
        self.holders.get_key_value(&key(ip)).or_else(|| self.holders.get_key_value(&key(all)))
    }
}

/// The names and virtual IPs of imports, where a DNS server gives them out.
fn names(draft: &mut Draft<'_>, known: &Known<'_, '_>) {
    let (Some(listen), Some(dns)) = (known.listen, known.dns) else { return };
    if listen.dns.is_none() {
        return;
    }
    let mut names: HashMap<String, (&Import, usize)> = HashMap::new();
    for Placed { value: import, at } in known.imports {
        let name = import.service.dns_name(&dns.suffix);
        if name.len() > MAX_NAME {
            let message =
                format!("the DNS name of this import has {} characters, {MAX_NAME} are allowed", name.len());
            draft.faults.push(at.key("service").fault(message).hint("choose a shorter `dns.suffix`"));
        }
        match names.get(&name) {
            Some((first, line)) if first.service != import.service => {
                let message = format!(
                    "`{}` has the DNS name of `{}` on line {line}: `{name}`",
                    import.service, first.service
                );
                draft
                    .faults
                    .push(at.key("service").fault(message).hint("only one of the two can be imported"));
            }
            Some(_) => {}
            None => {
                names.insert(name, (import, at.line()));
            }
        }
    }
    // Neither the first address nor the last: they are the network's own and its broadcast address.
    let room = (1u64 << (32 - dns.virtual_ips.prefix_len())).saturating_sub(2);
    if room < known.imports.len() as u64 {
        let message =
            format!("{} has room for {room} imports, there are {}", dns.virtual_ips, known.imports.len());
        let fault = draft.root.key("dns").key("virtual_ips").fault(message);
        draft.faults.push(fault.hint("choose a larger network"));
    }
}
