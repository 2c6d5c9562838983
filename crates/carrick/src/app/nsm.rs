//! What the daemon is to Network Service Mesh's parts: sockets, names, URL.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use carrick_config::Config;
use carrick_model::{Host, HostPort, ServeUrl};
use carrick_proxy::{
    control::{BindError, ControlListener},
    dns::{NsmPorts, OwnDomain},
};

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

/// A key of the config that this version reads and does not act on.
pub(crate) struct Unserved {
    pub(crate) key: &'static str,
    pub(crate) why: &'static str,
    pub(crate) hint: &'static str,
}

/// What of `compat.nsm` has no effect: said at the start and by `carrick check`, never passed over.
pub(crate) fn unserved(config: &Config) -> Vec<Unserved> {
    let nsm = &config.compat.nsm;
    let registry = nsm.registry_url.as_ref().map(|_| Unserved {
        key: "compat.nsm.registry_url",
        why: "no other registry is asked for this domain's services: the own one answers",
        hint: "let endpoints and managers register here, and remove the key",
    });
    let remote = nsm.remote_registry.as_ref().map(|_| Unserved {
        key: "compat.nsm.registry_proxy_url",
        why: "no other part is asked for names of other domains: the daemon finds their registries itself",
        hint: "remove the key (or `proxy_registry_url`, or the variable that sets it)",
    });
    registry.into_iter().chain(remote).collect()
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
    fn what_has_no_effect_is_told() {
        let keys = |nsm: &str| unserved(&config(nsm)).iter().map(|u| u.key).collect::<Vec<_>>();
        assert_eq!(keys("listen: [':5002'], name: x"), [] as [&str; 0]);
        assert_eq!(
            keys("registry_url: 'r:1', proxy_registry_url: 'p:1'"),
            ["compat.nsm.registry_url", "compat.nsm.registry_proxy_url"]
        );
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
}
