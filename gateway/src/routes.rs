//! The routes of one import: one, or several that are as good, which flows take in shares.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering::Relaxed},
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

/// Flows after which the shares have come round. Weights with a larger sum are scaled down to it.
const ROUND: u64 = 1024;

/// The routes that are up, never none.
#[derive(Debug)]
pub(crate) struct Routes {
    all: Vec<Arc<Routed>>,
    /// Which route the flows of one round take, one after the other.
    order: Vec<usize>,
    turn: AtomicUsize,
}

impl Routes {
    /// Flows take `first` in the share beside it, and the others in theirs.
    pub(crate) fn new(first: (Route, u32), others: Vec<(Route, u32)>) -> Self {
        let (all, shares): (Vec<_>, Vec<_>) = std::iter::once(first)
            .chain(others)
            .map(|(route, share)| (Arc::new(Routed { route, token: CancellationToken::new() }), share))
            .unzip();
        Self { all, order: interleave(&shares), turn: AtomicUsize::new(0) }
    }

    /// The route of the next flow.
    pub(crate) fn pick(&self) -> Arc<Routed> {
        let turn = self.turn.fetch_add(1, Relaxed) % self.order.len();
        Arc::clone(&self.all[self.order[turn]])
    }

    /// The route over this connection to a gateway of this trust domain.
    pub(crate) fn over(&self, id: ConnectionId, trust_domain: &TrustDomain) -> Option<&Arc<Routed>> {
        let is = |r: &&Arc<Routed>| r.route.connection == id && &r.route.trust_domain == trust_domain;
        self.all.iter().find(is)
    }

    /// The routes to one domain.
    pub(crate) fn to<'a>(&'a self, domain: &'a Domain) -> impl Iterator<Item = &'a Arc<Routed>> {
        self.all.iter().filter(move |r| &r.route.domain == domain)
    }

    /// All domains that they lead to.
    pub(crate) fn domains(&self) -> impl Iterator<Item = &Domain> {
        self.all.iter().map(|routed| &routed.route.domain)
    }
}

/// A round in which each index stands as often as its share, and as evenly as can be: who is owed most goes next, and
/// then owes a whole round (the smooth weighted round robin of nginx).
fn interleave(shares: &[u32]) -> Vec<usize> {
    let sum = shares.iter().map(|share| u64::from(*share)).sum::<u64>().max(1);
    let scaled = |share: &u32| (u64::from(*share) * ROUND.min(sum) / sum).max(1).cast_signed();
    let shares: Vec<i64> = shares.iter().map(scaled).collect();
    let round: i64 = shares.iter().sum();
    let mut owed = vec![0; shares.len()];
    let mut order = Vec::new();
    for _ in 0..round {
        for (owed, share) in owed.iter_mut().zip(&shares) {
            *owed += share;
        }
        // The first of equals.
        let Some(next) = (0..owed.len()).rev().max_by_key(|n| owed[*n]) else { break };
        owed[next] -= round;
        order.push(next);
    }
    order
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
    fn large_weights_make_no_large_round_and_small_ones_are_not_forgotten() {
        let order = interleave(&[u32::MAX, u32::MAX, 1]);
        assert!(order.len() <= 1025, "{}", order.len());
        assert_eq!(order.iter().filter(|n| **n == 2).count(), 1);
        assert_eq!(order.iter().filter(|n| **n == 0).count(), order.iter().filter(|n| **n == 1).count());
        assert_eq!(interleave(&[0]), [0]);
    }

    #[test]
    fn one_route_takes_all() {
        let routes = Routes::new((route(1), 7), vec![]);
        assert!((0..10).all(|_| routes.pick().route == route(1)));
        assert!(routes.over(route(1).connection, &route(1).trust_domain).is_some());
        assert!(routes.over(route(1).connection, &route(2).trust_domain).is_none());
    }
}
