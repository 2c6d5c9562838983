//! The routes of one import: one, or several that are as good, which flows take in shares.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering::Relaxed},
};

use carrick_model::{ConnectionId, Domain, TrustDomain};
use tokio_util::sync::CancellationToken;

use crate::gateway::Route;

/// A route and what ends its flows.
#[derive(Debug)]
pub(crate) struct Routed {
    pub(crate) route: Route,
    pub(crate) token: CancellationToken,
}

/// The routes that are up, never none.
#[derive(Debug)]
pub(crate) struct Routes {
    first: Arc<Routed>,
    others: Vec<(Arc<Routed>, u32)>,
    share: u32,
    turn: AtomicU64,
}

impl Routes {
    /// Flows take `first` in the share beside it, and the others in theirs.
    pub(crate) fn new(first: (Route, u32), others: Vec<(Route, u32)>) -> Self {
        let routed = |route| Arc::new(Routed { route, token: CancellationToken::new() });
        Self {
            first: routed(first.0),
            share: first.1.max(1),
            others: others.into_iter().map(|(route, share)| (routed(route), share.max(1))).collect(),
            turn: AtomicU64::new(0),
        }
    }

    /// The route of the next flow.
    pub(crate) fn pick(&self) -> Arc<Routed> {
        if self.others.is_empty() {
            return Arc::clone(&self.first);
        }
        let total = self.all().map(|(_, share)| u64::from(share)).sum::<u64>();
        // A step that has no divisor in common with the total spreads the shares: 3 and 1 are not three in a row.
        let mut at = self.turn.fetch_add(1, Relaxed).wrapping_mul(stride(total)) % total;
        for (routed, share) in self.all() {
            match at.checked_sub(u64::from(share)) {
                Some(rest) => at = rest,
                None => return Arc::clone(routed),
            }
        }
        Arc::clone(&self.first)
    }

    /// The route over this connection to a gateway of this trust domain.
    pub(crate) fn over(&self, id: ConnectionId, trust_domain: &TrustDomain) -> Option<&Arc<Routed>> {
        let is = |r: &&Arc<Routed>| r.route.connection == id && &r.route.trust_domain == trust_domain;
        self.all().map(|(routed, _)| routed).find(is)
    }

    /// The routes to one domain.
    pub(crate) fn to<'a>(&'a self, domain: &'a Domain) -> impl Iterator<Item = &'a Arc<Routed>> {
        self.all().map(|(routed, _)| routed).filter(move |r| &r.route.domain == domain)
    }

    /// All domains that they lead to.
    pub(crate) fn domains(&self) -> impl Iterator<Item = &Domain> {
        self.all().map(|(routed, _)| &routed.route.domain)
    }

    fn all(&self) -> impl Iterator<Item = (&Arc<Routed>, u32)> {
        let others = self.others.iter().map(|(routed, share)| (routed, *share));
        std::iter::once((&self.first, self.share)).chain(others)
    }
}

/// About the golden section of `total`, and coprime to it: turns fall as evenly as can be (Knuth, volume 3, section 6.4).
fn stride(total: u64) -> u64 {
    let golden = (total * 618 / 1000).max(1);
    (golden..=total).find(|step| gcd(*step, total) == 1).unwrap_or(1)
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn route(n: u8) -> Route {
        Route {
            connection: ConnectionId::from_bytes([n; 16]),
            domain: format!("d{n}.test").parse().unwrap(),
            trust_domain: TrustDomain::new(format!("d{n}.test")).unwrap(),
            payload: carrick_model::Payload::Tcp,
            gateways: vec![],
        }
    }

    #[test]
    fn flows_take_the_routes_in_their_shares() {
        let routes = Routes::new((route(1), 3), vec![(route(2), 1), (route(3), 2)]);
        let mut counts = [0; 4];
        let mut longest = (0, 0);
        let mut last = 0;
        for _ in 0..600 {
            let n = routes.pick().route.connection.to_bytes()[0];
            counts[usize::from(n)] += 1;
            longest = if n == last { (longest.0 + 1, longest.1.max(longest.0 + 1)) } else { (1, longest.1) };
            last = n;
        }
        assert_eq!(counts, [0, 300, 100, 200]);
        assert!(longest.1 <= 2, "no long runs: {longest:?}");
        assert_eq!(routes.domains().count(), 3);
    }

    #[test]
    fn one_route_takes_all() {
        let routes = Routes::new((route(1), 7), vec![]);
        assert!((0..10).all(|_| routes.pick().route == route(1)));
        assert!(routes.over(route(1).connection, &route(1).trust_domain).is_some());
        assert!(routes.over(route(1).connection, &route(2).trust_domain).is_none());
    }
}
