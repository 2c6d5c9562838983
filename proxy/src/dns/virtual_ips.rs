//! Which address stands for which imported service.

use std::{
    collections::{BTreeMap, HashMap},
    net::Ipv4Addr,
};

use carrick_model::ServiceName;
use ipnet::Ipv4Net;

/// Assigns each imported service an address of a pool. No IO.
///
/// A name hashes to its first choice and takes the next free address after it, so a set of names gets the same addresses
/// on every host and after every restart, save where two names collide: [`saved`](Self::saved) and
/// [`restore`](Self::restore) keep those apart too.
///
/// Never assigned: the network and broadcast address of the pool (unless it is a /31 or /32, RFC 3021), and addresses
/// that end in .0 or .255, which some programs take for those of a /24.
#[derive(Debug, Clone)]
pub struct VirtualIps {
    pool: Ipv4Net,
    by_service: BTreeMap<ServiceName, Ipv4Addr>,
    by_ip: HashMap<Ipv4Addr, ServiceName>,
}

/// Every address of the pool is taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("no virtual IP is left in {pool} for {service}: all {taken} are taken")]
pub struct PoolExhausted {
    /// The pool.
    pub pool: Ipv4Net,
    /// The service that goes without.
    pub service: ServiceName,
    /// How many services have one.
    pub taken: usize,
}

impl PoolExhausted {
    /// What the operator can do about it.
    pub fn hint(&self) -> &'static str {
        "give `dns.virtual_ips:` a larger network, for example 127.80.0.0/16"
    }
}

impl VirtualIps {
    /// All of `pool` is free.
    pub fn new(pool: Ipv4Net) -> Self {
        Self { pool: pool.trunc(), by_service: BTreeMap::new(), by_ip: HashMap::new() }
    }

    /// The assignments of an earlier run. Those that do not fit the pool, or contradict one before them, are dropped.
    pub fn restore(pool: Ipv4Net, saved: impl IntoIterator<Item = (ServiceName, Ipv4Addr)>) -> Self {
        let mut this = Self::new(pool);
        for (service, ip) in saved {
            if this.usable(ip) && !this.by_ip.contains_key(&ip) && !this.by_service.contains_key(&service) {
                this.insert(&service, ip);
            }
        }
        this
    }

    /// The address of `service`: the one it has, or a free one.
    pub fn assign(&mut self, service: &ServiceName) -> Result<Ipv4Addr, PoolExhausted> {
        if let Some(ip) = self.by_service.get(service) {
            return Ok(*ip);
        }
        let size = 1u64 << (32 - self.pool.prefix_len());
        let base = u32::from(self.pool.network());
        // The high bits of the hash choose the place, in proportion to the size of the pool.
        let first = ((u128::from(hash(service)) * u128::from(size)) >> 64) as u64;
        for step in 0..size {
            // Both sums stay inside the pool, so they fit.
            let ip = Ipv4Addr::from(base + ((first + step) % size) as u32);
            if self.usable(ip) && !self.by_ip.contains_key(&ip) {
                self.insert(service, ip);
                return Ok(ip);
            }
        }
        Err(PoolExhausted { pool: self.pool, service: service.clone(), taken: self.by_ip.len() })
    }

    /// Frees the address of an import that is gone.
    pub fn release(&mut self, service: &ServiceName) -> Option<Ipv4Addr> {
        let ip = self.by_service.remove(service)?;
        self.by_ip.remove(&ip);
        Some(ip)
    }

    /// Frees the addresses of all services that `keep` does not want.
    pub fn retain(&mut self, mut keep: impl FnMut(&ServiceName) -> bool) {
        self.by_service.retain(|service, _| keep(service));
        let by_service = &self.by_service;
        self.by_ip.retain(|_, service| by_service.contains_key(service));
    }

    /// The address of `service`, if it has one.
    pub fn get(&self, service: &ServiceName) -> Option<Ipv4Addr> {
        self.by_service.get(service).copied()
    }

    /// The service behind `ip`, if there is one.
    pub fn service(&self, ip: Ipv4Addr) -> Option<&ServiceName> {
        self.by_ip.get(&ip)
    }

    /// All assignments, to be given to [`restore`](Self::restore) after a restart. Serialises as a map of texts.
    pub fn saved(&self) -> &BTreeMap<ServiceName, Ipv4Addr> {
        &self.by_service
    }

    /// The pool.
    pub fn pool(&self) -> Ipv4Net {
        self.pool
    }

    fn insert(&mut self, service: &ServiceName, ip: Ipv4Addr) {
        self.by_service.insert(service.clone(), ip);
        self.by_ip.insert(ip, service.clone());
    }

    fn usable(&self, ip: Ipv4Addr) -> bool {
        let edge = self.pool.prefix_len() < 31 && (ip == self.pool.network() || ip == self.pool.broadcast());
        self.pool.contains(&ip) && !edge && !matches!(ip.octets()[3], 0 | 255)
    }
}

/// FNV-1a with a finishing mix. Fixed here because the assignment must not change with the standard library.
fn hash(service: &ServiceName) -> u64 {
    let mut h = 0xcbf2_9ce4_8422_2325_u64;
    for byte in service.to_string().bytes() {
        h = (h ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    }
    h ^= h >> 32;
    h = h.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    h ^ (h >> 32)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    fn service(n: usize) -> ServiceName {
        format!("s{n}@onprem.test").parse().unwrap()
    }

    fn net(text: &str) -> Ipv4Net {
        text.parse().unwrap()
    }

    #[test]
    fn a_name_has_one_address_and_it_is_always_the_same() {
        let mut ips = VirtualIps::new(net("127.80.0.0/16"));
        let ip = ips.assign(&"postgres@onprem.test".parse().unwrap()).unwrap();
        // Written down: a change would move every import of every installation.
        assert_eq!(ip, Ipv4Addr::new(127, 80, 58, 1));
        for n in 0..1000 {
            ips.assign(&service(n)).unwrap();
        }
        assert_eq!(ips.assign(&"postgres@onprem.test".parse().unwrap()), Ok(ip));
        assert_eq!(ips.service(ip).unwrap().to_string(), "postgres@onprem.test");
    }

    #[test]
    fn a_released_address_is_free_again() {
        let mut ips = VirtualIps::new(net("127.80.0.4/30"));
        let (a, b) = (ips.assign(&service(1)).unwrap(), ips.assign(&service(2)).unwrap());
        assert_ne!(a, b);
        let full = ips.assign(&service(3)).unwrap_err();
        assert_eq!(
            full.to_string(),
            "no virtual IP is left in 127.80.0.4/30 for s3@onprem.test: all 2 are taken"
        );
        assert!(full.hint().contains("dns.virtual_ips"));
        assert_eq!(ips.release(&service(1)), Some(a));
        assert_eq!(ips.release(&service(1)), None);
        assert_eq!(ips.assign(&service(3)), Ok(a));
        ips.retain(|s| *s == service(3));
        assert_eq!((ips.get(&service(2)), ips.service(b)), (None, None));
        assert_eq!(ips.get(&service(3)), Some(a));
    }

    #[test]
    fn edges_are_left_out_and_tiny_pools_work() {
        let usable = |text: &str| {
            let mut ips = VirtualIps::new(net(text));
            (0..).map_while(|n| ips.assign(&service(n)).ok()).collect::<HashSet<_>>()
        };
        assert_eq!(usable("127.80.0.0/22").len(), 4 * 254);
        assert_eq!(usable("10.1.2.8/29").len(), 6);
        assert_eq!(usable("10.1.2.6/31").len(), 2);
        assert_eq!(usable("10.1.2.7/32").len(), 1);
        assert!(usable("10.1.2.0/32").is_empty());
        assert!(usable("10.1.2.0/24").iter().all(|ip| !matches!(ip.octets()[3], 0 | 255)));
    }

    #[test]
    fn what_does_not_fit_is_not_restored() {
        let ip = |last| Ipv4Addr::new(127, 80, 0, last);
        let saved = [
            (service(1), ip(7)),
            (service(2), ip(7)),
            (service(1), ip(8)),
            (service(3), Ipv4Addr::new(10, 0, 0, 1)),
            (service(4), ip(255)),
        ];
        let ips = VirtualIps::restore(net("127.80.0.0/16"), saved);
        assert_eq!(ips.saved().iter().collect::<Vec<_>>(), [(&service(1), &ip(7))]);
    }

    proptest! {
        #[test]
        fn addresses_are_unique_and_survive_a_restart(
            ops in prop::collection::vec((0usize..40, any::<bool>()), 0..120),
            prefix in 26u8..=30,
        ) {
            let pool = Ipv4Net::new(Ipv4Addr::new(127, 80, 3, 0), prefix).unwrap();
            let mut ips = VirtualIps::new(pool);
            for (n, add) in ops {
                if add {
                    let known = ips.get(&service(n));
                    match ips.assign(&service(n)) {
                        Ok(ip) => prop_assert!(pool.contains(&ip) && known.is_none_or(|k| k == ip)),
                        Err(_) => prop_assert_eq!(ips.saved().len(), (1 << (32 - prefix)) - 2),
                    }
                } else {
                    ips.release(&service(n));
                }
            }
            let distinct: HashSet<_> = ips.saved().values().collect();
            prop_assert_eq!(distinct.len(), ips.saved().len());
            let again = VirtualIps::restore(pool, ips.saved().clone());
            prop_assert_eq!(again.saved(), ips.saved());
            prop_assert_eq!(again.by_ip, ips.by_ip);
        }
    }
}
