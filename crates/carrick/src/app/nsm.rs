//! What the daemon is to Network Service Mesh's parts: sockets, names, URL.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use carrick_config::Config;
use carrick_identity::{Identity, TrustStore};
use carrick_model::{Host, HostPort, PartUrl, ServeUrl};
use carrick_proxy::{
    control::{BindError, ControlListener},
    dns::{NsmPorts, OwnDomain},
    part::PartRegistry,
    peers::Peers,
};
use carrick_runtime::Tasks;

use super::parts::{self, Addresses};

/// The ports of NSM's own parts.
const REGISTRY_PORT: u16 = 5002;
const PROXY_PORT: u16 = 5004;

/// Listens where the config says that NSM's parts call. The URLs have the real ports.
pub(crate) async fn listen(
    config: &Config,
    control: &mut ControlListener,
) -> Result<Vec<ServeUrl>, BindError> {
    let nsm = &config.compat.nsm;
    let mut bound = Vec::with_capacity(nsm.listen.len());
    for url in &nsm.listen {
        bound.push(control.also(url, nsm.socket_mode).await?);
    }
    Ok(bound)
}

/// The ports that NSM's names lead to; `None` when the domain is not to be found under them. A part's own port where we
/// listen on it, or else the first one that others can reach.
pub(crate) fn ports(config: &Config, listen: &[ServeUrl], control: u16) -> Option<NsmPorts> {
    let ports: Vec<u16> = listen.iter().filter_map(reachable).map(|(_, port)| port).collect();
    let first = ports.first().copied().unwrap_or(control);
    let of = |own: u16| if ports.contains(&own) { own } else { first };
    config.compat.nsm.on.then(|| NsmPorts { registry: of(REGISTRY_PORT), proxy: of(PROXY_PORT) })
}

/// The domain as a config describes it to the DNS, before anything listens.
pub(crate) fn own_domain(config: &Config) -> OwnDomain {
    let (control_port, tunnel_port) = (config.listen.control.port(), config.listen.tunnel.port());
    OwnDomain {
        domain: config.domain.clone(),
        advertise: parts::advertised(config),
        control_port,
        tunnel_port,
        nsm: ports(config, &config.compat.nsm.listen, control_port),
    }
}

/// Where others call the endpoints that this daemon publishes. `None` when no address of it is known.
pub(crate) fn public_url(config: &Config, addresses: &Addresses) -> Option<HostPort> {
    if let Some(url) = &config.compat.nsm.url {
        return Some(url.clone());
    }
    let first = addresses.nsm.iter().find_map(reachable);
    let (ip, port) = first.unwrap_or((None, addresses.control.port()));
    // An address of `advertise` counts for more than the one listened on: there may be a NAT between.
    let named = config.advertise.first().cloned();
    let own = ip.filter(|ip: &IpAddr| !ip.is_unspecified()).map(Host::Ip);
    let host = named.or(own).or_else(|| parts::advertised(config).into_iter().next())?;
    Some(HostPort { host, port })
}

/// The url that callers of our own get for endpoints of other domains, and other domains for ours. Empty where we are the registry
/// alone: then each stays at the url at which the proxy in charge says it is.
pub(crate) fn connect_url(config: &Config, addresses: &Addresses) -> String {
    let at = public_url(config, addresses).filter(|_| config.compat.nsm.proxy_registry_url.is_none());
    at.map_or_else(String::new, |at| format!("tcp://{at}"))
}

/// The parts of NSM that stay in charge beside this daemon.
pub(crate) struct InCharge {
    /// Of our own names.
    pub(crate) own: Option<PartRegistry>,
    /// Of the names of other domains.
    pub(crate) others: Option<PartRegistry>,
}

/// Which of NSM's parts stay in charge. They have to be of our own trust domain, as NSM's parts of one cluster are.
pub(crate) fn in_charge(
    config: &Config,
    identity: &Identity,
    trust: &TrustStore,
    peers: &Peers,
    tasks: &Tasks,
) -> InCharge {
    let nsm = &config.compat.nsm;
    let at = |url: &PartUrl| {
        let (identity, trust) = (identity.clone(), trust.clone());
        PartRegistry::new(url, config.trust_domain.clone(), identity, trust, peers.clone(), tasks)
    };
    InCharge {
        own: nsm.registry_url.as_ref().map(at),
        others: nsm.registry_proxy_url.as_ref().or(nsm.proxy_registry_url.as_ref()).map(at),
    }
}

/// All urls that lead to this daemon, as far as it can know them: an endpoint that has one of them is not called from here.
pub(crate) fn own_urls(config: &Config, addresses: &Addresses) -> Vec<String> {
    let mut ports = vec![addresses.control.port()];
    let mut urls: Vec<String> =
        public_url(config, addresses).map(|at| format!("tcp://{at}")).into_iter().collect();
    for url in &addresses.nsm {
        match url {
            ServeUrl::Tcp { port, .. } => ports.push(*port),
            ServeUrl::Unix(path) => urls.push(format!("unix://{}", path.display())),
        }
    }
    let loopback: [IpAddr; 2] = [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
    let mut hosts = parts::advertised(config);
    hosts.extend(loopback.map(Host::Ip));
    for port in ports {
        let of = |host: &Host| format!("tcp://{}", HostPort { host: host.clone(), port });
        urls.extend(hosts.iter().map(of));
    }
    urls
}

/// A TCP address that other hosts may be able to call.
fn reachable(url: &ServeUrl) -> Option<(Option<IpAddr>, u16)> {
    match url {
        ServeUrl::Tcp { ip, port } if !ip.is_some_and(|ip| ip.is_loopback()) => Some((*ip, *port)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(nsm: &str) -> Config {
        let text = format!("domain: a.test\nadvertise: [192.0.2.7]\ncompat: {{ nsm: {{ {nsm} }} }}");
        carrick_config::parse(&text).unwrap_or_else(|faults| panic!("{faults}"))
    }

    fn addresses(config: &Config) -> Addresses {
        Addresses {
            control: config.listen.control,
            tunnel: config.listen.tunnel,
            admin: None,
            dns: None,
            socket: "/nowhere".into(),
            nsm: config.compat.nsm.listen.clone(),
        }
    }

    #[test]
    fn names_lead_to_the_ports_of_the_parts_or_to_one_that_is_there() {
        let of = |nsm: &str| {
            let config = config(nsm);
            let found = ports(&config, &config.compat.nsm.listen, 7443).unwrap();
            (found.registry, found.proxy)
        };
        assert_eq!(of("listen: [':5001', ':5002', ':5004']"), (5002, 5004));
        assert_eq!(of("listen: [':6000']"), (6000, 6000));
        assert_eq!(of("listen: ['127.0.0.1:5002', 'unix:///s']"), (7443, 7443), "nobody else reaches these");
        assert_eq!(of(""), (7443, 7443));
        let off = carrick_config::parse("domain: a.test").unwrap();
        assert_eq!(ports(&off, &[], 7443), None);
    }

    #[test]
    fn all_own_urls_are_known() {
        let config = config("listen: ['unix:///run/nsm.sock', ':5001']");
        let urls = own_urls(&config, &addresses(&config));
        for own in
            ["tcp://192.0.2.7:5001", "tcp://192.0.2.7:7443", "tcp://127.0.0.1:5001", "unix:///run/nsm.sock"]
        {
            assert!(urls.iter().any(|url| url == own), "{own} is not in {urls:?}");
        }
    }

    #[test]
    fn the_url_of_endpoints_is_the_one_given_or_the_first_that_others_can_call() {
        let of = |nsm: &str| {
            let config = config(nsm);
            public_url(&config, &addresses(&config)).unwrap().to_string()
        };
        assert_eq!(of("url: 'gw.a.test:5004', listen: [':5001']"), "gw.a.test:5004");
        assert_eq!(of("listen: ['unix:///s', ':5004']"), "192.0.2.7:5004");
        assert_eq!(of("listen: ['192.0.2.9:5004']"), "192.0.2.7:5004");
        assert_eq!(of(""), "192.0.2.7:7443");
    }

    #[test]
    fn a_registry_alone_gives_no_url_of_its_own() {
        let of = |nsm: &str| {
            let config = config(nsm);
            connect_url(&config, &addresses(&config))
        };
        assert_eq!(of("listen: [':5004'], registry_proxy_url: 'p:5005'"), "tcp://192.0.2.7:5004");
        assert_eq!(of("listen: [':5002'], proxy_registry_url: 'p:5004'"), "");
    }
}
