//! In which order the candidates of a domain are tried.

use std::{
    collections::{BTreeMap, HashSet},
    net::SocketAddr,
};

use rand::Rng;

use super::gateways::Candidate;

/// One `SRV` record with its addresses.
struct Record<'a> {
    host: &'a str,
    port: u16,
    weight: u16,
    addrs: Vec<SocketAddr>,
}

/// Every address of `candidates` once, in the order in which to try them.
///
/// Priorities ascend. Inside a priority the hosts are drawn by weight (RFC 2782) and then the address families
/// alternate (RFC 8305 section 4), beginning with IPv6 if the host drawn first has it. So the first try follows the
/// weights, and the second one goes over the other family where there is one.
pub fn order<R: Rng + ?Sized>(candidates: &[Candidate], rng: &mut R) -> Vec<SocketAddr> {
    let mut priorities: BTreeMap<u16, Vec<Record<'_>>> = BTreeMap::new();
    let mut seen = HashSet::new();
    // An address of two priorities belongs to the better one.
    let mut sorted: Vec<_> = candidates.iter().collect();
    sorted.sort_by_key(|c| c.priority);
    for candidate in sorted {
        if !seen.insert(candidate.addr) {
            continue;
        }
        let records = priorities.entry(candidate.priority).or_default();
        let same = |r: &Record<'_>| {
            r.host == candidate.host && r.port == candidate.addr.port() && r.weight == candidate.weight
        };
        match records.iter_mut().find(|r| same(r)) {
            Some(record) => record.addrs.push(candidate.addr),
            None => records.push(Record {
                host: &candidate.host,
                port: candidate.addr.port(),
                weight: candidate.weight,
                addrs: vec![candidate.addr],
            }),
        }
    }
    priorities.into_values().flat_map(|records| alternate(&draw(records, rng))).collect()
}

/// The weighted order of RFC 2782: a record comes next with the probability of its weight among those left. Records
/// of weight 0 stand first in the running sum, so they keep a very small chance while others have a weight.
fn draw<'a, R: Rng + ?Sized>(mut records: Vec<Record<'a>>, rng: &mut R) -> Vec<Record<'a>> {
    // Hosts of equal weight should not profit from the order in which a server listed them.
    for i in (1..records.len()).rev() {
        records.swap(i, rng.random_range(0..=i));
    }
    records.sort_by_key(|r| r.weight > 0);
    let mut drawn = Vec::with_capacity(records.len());
    while !records.is_empty() {
        let total: u64 = records.iter().map(|r| u64::from(r.weight)).sum();
        let mark = rng.random_range(0..=total);
        let mut sum = 0;
        let hit = records.iter().position(|r| {
            sum += u64::from(r.weight);
            sum >= mark
        });
        // The running sum ends at `total`, so the mark is always hit.
        drawn.push(records.remove(hit.unwrap_or(0)));
    }
    drawn
}

/// The addresses of one priority, families alternating, otherwise in the order of the records.
fn alternate(records: &[Record<'_>]) -> Vec<SocketAddr> {
    let six_first = records.first().is_some_and(|r| r.addrs.iter().any(SocketAddr::is_ipv6));
    let of = |six: bool| {
        records.iter().flat_map(|r| &r.addrs).copied().filter(move |a: &SocketAddr| a.is_ipv6() == six)
    };
    let (mut one, mut other) = (of(six_first), of(!six_first));
    let mut out = Vec::new();
    loop {
        let (a, b) = (one.next(), other.next());
        if a.is_none() && b.is_none() {
            return out;
        }
        out.extend(a);
        out.extend(b);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeSet, HashMap};

    use proptest::prelude::*;
    use rand::{SeedableRng, rngs::StdRng};

    use super::*;

    fn candidate(n: u8, six: bool, host: u8, priority: u16, weight: u16) -> Candidate {
        let port = 7443;
        let addr = if six {
            SocketAddr::from(([0x2001, 0xdb8, 0, 0, 0, 0, 0, u16::from(n)], port))
        } else {
            SocketAddr::from(([192, 0, 2, n], port))
        };
        Candidate { addr, host: format!("gw{host}.test"), priority, weight }
    }

    fn any_candidates() -> impl Strategy<Value = Vec<Candidate>> {
        let one =
            (any::<u8>(), any::<bool>(), 0u8..6, 0u16..4, prop_oneof![Just(0u16), Just(1), any::<u16>()]);
        prop::collection::vec(one, 0..24)
            .prop_map(|v| v.into_iter().map(|(n, six, h, p, w)| candidate(n, six, h, p, w)).collect())
    }

    proptest! {
        #[test]
        fn every_address_once_and_priorities_ascend(candidates in any_candidates(), seed: u64) {
            let ordered = order(&candidates, &mut StdRng::seed_from_u64(seed));
            let want: BTreeSet<_> = candidates.iter().map(|c| c.addr).collect();
            prop_assert_eq!(ordered.len(), want.len());
            prop_assert_eq!(ordered.iter().copied().collect::<BTreeSet<_>>(), want);
            let best: HashMap<_, _> = candidates.iter().fold(HashMap::new(), |mut m, c| {
                m.entry(c.addr).and_modify(|p: &mut u16| *p = c.priority.min(*p)).or_insert(c.priority);
                m
            });
            let priorities: Vec<_> = ordered.iter().map(|a| best[a]).collect();
            prop_assert!(priorities.is_sorted(), "{priorities:?}");
        }

        #[test]
        fn families_alternate_while_both_last(candidates in any_candidates(), seed: u64) {
            let one_priority: Vec<_> =
                candidates.into_iter().map(|c| Candidate { priority: 7, ..c }).collect();
            let ordered = order(&one_priority, &mut StdRng::seed_from_u64(seed));
            let six = ordered.iter().filter(|a| a.is_ipv6()).count();
            let both = 2 * six.min(ordered.len() - six);
            for pair in ordered[..both].chunks(2) {
                prop_assert_ne!(pair[0].is_ipv6(), pair[1].is_ipv6());
            }
        }

        #[test]
        fn the_seed_decides(candidates in any_candidates(), seed: u64) {
            let run = || order(&candidates, &mut StdRng::seed_from_u64(seed));
            prop_assert_eq!(run(), run());
        }
    }

    /// How often each host comes first in 10,000 draws.
    fn firsts(candidates: &[Candidate]) -> HashMap<SocketAddr, u32> {
        let mut rng = StdRng::seed_from_u64(1);
        let mut counts = HashMap::new();
        for _ in 0..10_000 {
            *counts.entry(order(candidates, &mut rng)[0]).or_default() += 1;
        }
        counts
    }

    #[test]
    fn the_first_try_follows_the_weights() {
        let c =
            [candidate(1, false, 1, 10, 60), candidate(2, false, 2, 10, 30), candidate(3, false, 3, 10, 10)];
        let counts = firsts(&c);
        for (i, share) in [6_000, 3_000, 1_000].into_iter().enumerate() {
            let got = counts[&c[i].addr];
            assert!(got.abs_diff(share) < 300, "host {i}: {got} of 10000, expected about {share}");
        }
    }

    #[test]
    fn a_host_of_many_addresses_has_the_weight_of_one_host() {
        let mut c = vec![candidate(1, false, 1, 0, 50)];
        c.extend((10..20).map(|n| candidate(n, n % 2 == 0, 2, 0, 50)));
        let single = firsts(&c)[&c[0].addr];
        assert!(single.abs_diff(5_000) < 300, "{single} of 10000");
    }

    #[test]
    fn weight_zero_is_last_but_not_never_beside_weights_and_fair_among_itself() {
        let c = [candidate(1, false, 1, 0, 0), candidate(2, false, 2, 0, 99)];
        let zero = firsts(&c)[&c[0].addr];
        assert!((20..400).contains(&zero), "about 1 in 100: {zero} of 10000");

        let c: Vec<_> = (1..=4).map(|n| candidate(n, false, n, 0, 0)).collect();
        let counts = firsts(&c);
        for each in &c {
            assert!(counts[&each.addr].abs_diff(2_500) < 300, "{counts:?}");
        }
    }

    #[test]
    fn a_lower_priority_number_always_comes_first() {
        let c = [candidate(1, false, 1, 20, 65535), candidate(2, true, 2, 10, 0)];
        assert_eq!(firsts(&c)[&c[1].addr], 10_000);
    }

    #[test]
    fn the_second_try_uses_the_other_family() {
        let c = [
            candidate(1, true, 1, 0, 1),
            candidate(2, true, 1, 0, 1),
            candidate(3, true, 1, 0, 1),
            candidate(4, false, 1, 0, 1),
            candidate(5, false, 1, 0, 1),
        ];
        let families: Vec<_> =
            order(&c, &mut StdRng::seed_from_u64(3)).iter().map(SocketAddr::is_ipv6).collect();
        assert_eq!(families, [true, false, true, false, true]);
    }
}
