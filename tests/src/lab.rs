//! The lab: three sites that share nothing but a WAN, each in a network namespace of its own.
//!
//! ```text
//!   a  cloud.test            wan (router, DNS)             b  onprem.test
//!   lan 10.0.0.0/24 ──┐                               ┌── lan 10.0.0.0/24   (PostgreSQL: 10.0.0.5)
//!        198.51.100.2 ├──── 198.51.100.1   203.0.113.1 ──┤ 203.0.113.2
//!            fd00:a::2┘      192.0.2.53, fd00:53::53   └ fd00:b::2
//!                                  │
//!                            198.18.3.1
//!                                  └── 198.18.3.2, fd00:c::2   c  partner.test   lan 10.0.0.0/24
//! ```
//!
//! The private networks overlap on purpose and the WAN routes none of them. Names are unique per process and per
//! lab, so tests run side by side on fixed ports; dropping a [`Lab`] removes it, and the next one removes what a killed
//! process left behind.

mod app;
mod carrick;
mod etcd;
mod haproxy;
mod knot;
mod leftovers;
mod mesh;
mod namespace;
mod needs;
mod nsm;
mod postgres;
mod process;
mod resources;
mod wait;

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
};

pub use self::{
    app::{TcpApp, UdpEcho, echo, echoes, try_echo},
    carrick::{Carrick, PORT, Settings, binary},
    etcd::{ETCD, EtcdCluster, SlowDisk},
    haproxy::HaproxyPair,
    knot::{Knot, Zone},
    mesh::{MESH, Mesh},
    namespace::{Finished, Namespace},
    needs::needs,
    nsm::{
        NSM, NSM_REGISTRY, NsmDomain, NsmWay, Workload, nsm_interop, nsm_interop_here, nsm_interop_program,
        nsm_registry, shows,
    },
    postgres::Postgres,
    process::{Daemon, Signal},
    resources::{Usage, raise_file_limit},
    wait::{within, within_or},
};

/// The WAN's DNS server, IPv4.
pub const DNS: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 53);
/// The WAN's DNS server, IPv6.
pub const DNS6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x53, 0, 0, 0, 0, 0, 0x53);
/// The same in every site: the private network, the gateway's own address on it.
pub const LAN_GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
/// The same in every site: the application host. PostgreSQL has it in site b.
pub const LAN_APP: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 5);

/// Three sites and the WAN between them.
pub struct Lab {
    /// The router between the sites; the DNS server lives here.
    pub wan: Namespace,
    /// `cloud.test`: the clients.
    pub a: Site,
    /// `onprem.test`: the services.
    pub b: Site,
    /// `partner.test`: trusted, but neither of the two.
    pub c: Site,
    parts: Parts,
}

/// What has to be removed, from the first namespace on: also when building the lab fails half-way.
struct Parts {
    dir: PathBuf,
    namespaces: Vec<Namespace>,
}

/// One domain's network.
pub struct Site {
    /// Where its programs run.
    pub ns: Namespace,
    /// The domain.
    pub domain: &'static str,
    /// Its address on the WAN.
    pub addr: Ipv4Addr,
    /// Its IPv6 address on the WAN.
    pub addr6: Ipv6Addr,
    wan: Namespace,
    letter: char,
}

impl Lab {
    /// Builds the namespaces and the links between them. Needs `netns` (see [`needs`]).
    pub fn new() -> Self {
        leftovers::remove();
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let id = format!("{}-{}", leftovers::own_prefix(), COUNT.fetch_add(1, Ordering::Relaxed));
        let dir = std::env::temp_dir().join(&id);
        std::fs::create_dir(&dir).unwrap_or_else(|e| panic!("creating {}: {e}", dir.display()));
        raise_file_limit();

        let mut parts = Parts { dir, namespaces: Vec::new() };
        let mut namespace = |role: &str| {
            let ns = Namespace::named(format!("{id}-{role}"));
            parts.namespaces.push(ns.clone());
            ns.create();
            ns
        };

        let wan = namespace("wan");
        wan.configure(&format!("addr add {DNS}/32 dev lo\naddr add {DNS6}/128 dev lo nodad"));
        for (key, value) in [
            ("net/ipv4/ip_forward", "1"),
            ("net/ipv6/conf/all/forwarding", "1"),
            // A link that goes down and up again keeps its addresses, as with IPv4.
            ("net/ipv6/conf/all/keep_addr_on_down", "1"),
        ] {
            wan.sysctl(key, value);
        }
        let mut site = |letter: char, domain, addr: [u8; 4], group| {
            let addr6 = Ipv6Addr::new(0xfd00, group, 0, 0, 0, 0, 0, 2);
            let ns = namespace(letter.encode_utf8(&mut [0; 4]));
            let site = Site { ns, domain, addr: addr.into(), addr6, wan: wan.clone(), letter };
            site.join();
            site
        };
        let a = site('a', "cloud.test", [198, 51, 100, 2], 0xa);
        let b = site('b', "onprem.test", [203, 0, 113, 2], 0xb);
        let c = site('c', "partner.test", [198, 18, 3, 2], 0xc);
        Self { wan, a, b, c, parts }
    }

    /// A directory for files of this lab, removed with it.
    pub fn dir(&self) -> &Path {
        &self.parts.dir
    }
}

impl Default for Lab {
    fn default() -> Self {
        Self::new()
    }
}

impl Site {
    /// Makes its networks: the link to the WAN and the private one.
    fn join(&self) {
        let Self { ns, addr, addr6, wan, letter, .. } = self;
        let [o1, o2, o3, _] = addr.octets();
        let router = Ipv4Addr::new(o1, o2, o3, 1);
        let mut groups = addr6.segments();
        groups[7] = 1;
        let router6 = Ipv6Addr::from(groups);
        ns.configure(&format!(
            "link add uplink type veth peer name to-{letter} netns {wan}\n\
             addr add {addr}/24 dev uplink\n\
             addr add {addr6}/64 dev uplink nodad\n\
             link add lan type bridge\n\
             addr add {LAN_GATEWAY}/24 dev lan\n\
             addr add {LAN_APP}/24 dev lan\n\
             link set lan up\n\
             link set uplink up",
            wan = wan.name(),
        ));
        wan.configure(&format!(
            "addr add {router}/24 dev to-{letter}\n\
             addr add {router6}/64 dev to-{letter} nodad\n\
             link set to-{letter} up"
        ));
        ns.configure(&format!("route add default via {router}\nroute add ::/0 via {router6}"));
        for (key, value) in [
            // One client opens tens of thousands of flows in a benchmark.
            ("net/ipv4/ip_local_port_range", "1024 65535"),
            ("net/ipv4/tcp_tw_reuse", "1"),
        ] {
            ns.sysctl(key, value);
        }
    }

    /// The same place with another domain: a second daemon runs there, on other ports than what is there already.
    pub fn also(&self, domain: &'static str) -> Self {
        let Self { ns, addr, addr6, wan, letter, .. } = self;
        Self { ns: ns.clone(), domain, addr: *addr, addr6: *addr6, wan: wan.clone(), letter: *letter }
    }

    /// Its WAN address with a port.
    pub fn at(&self, port: u16) -> SocketAddr {
        SocketAddr::new(IpAddr::V4(self.addr), port)
    }

    /// Takes the WAN's end of its link down: no carrier, no packets either way.
    pub fn unplug(&self) {
        self.wan.configure(&format!("link set to-{} down", self.letter));
    }

    /// Brings the link back.
    pub fn plug_in(&self) {
        self.wan.configure(&format!("link set to-{} up", self.letter));
    }

    /// Makes the WAN lose everything to and from this site without a sign: the link stays up.
    pub fn lose_packets(&self) {
        self.loss("add");
    }

    /// Ends [`lose_packets`](Self::lose_packets).
    pub fn stop_losing_packets(&self) {
        self.loss("del");
    }

    fn loss(&self, verb: &str) {
        let rules = |to: &dyn std::fmt::Display| {
            format!("rule {verb} iif to-{} blackhole\nrule {verb} to {to} blackhole", self.letter)
        };
        self.wan.configure(&rules(&self.addr));
        self.wan.configure_v6(&rules(&self.addr6));
    }
}

impl Drop for Parts {
    fn drop(&mut self) {
        for ns in &self.namespaces {
            ns.destroy();
        }
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}
