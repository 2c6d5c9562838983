//! In which order the endpoints that a service picks are tried.
//!
//! NSM takes them in turn. Here the turn is the last word, after these, each of which sorts only what the one before calls equal:
//!
//! 1. **Health.** What failed a moment ago comes last, but it does come: all of them may have failed.
//! 2. **Priority.** The label `carrick.priority`, lowest first, as in DNS SRV records.
//! 3. **Locality.** The node of the client (`nodeName`), then its cluster (`clusterName`), then the rest.
//! 4. **Turn, by weight.** Smooth weighted round robin: of weights 5 and 1 the second has every sixth turn, and no runs.

use std::{
    cmp::Reverse,
    collections::{HashMap, HashSet, VecDeque},
    time::{Duration, Instant},
};

use carrick_proto::registry::NetworkServiceEndpoint;

use super::matching::{Labels, Pick};

/// Label of an endpoint under its service: which endpoints come first, lowest number first.
pub const PRIORITY_LABEL: &str = "carrick.priority";
/// What an endpoint without [`PRIORITY_LABEL`] has, so that others can be put before and behind it.
pub const DEFAULT_PRIORITY: u32 = 100;
/// How long an endpoint that failed is tried last. A restart takes about this long; the attempt that ends it costs one client
/// one failover.
pub const PENALTY: Duration = Duration::from_secs(10);

/// Labels by which locality is told, the closest first (`nodeName` and `clusterName` of NSM's client information).
const PLACES: [&str; 2] = ["nodeName", "clusterName"];
/// Services whose turn is kept: what a domain asks for within a few minutes. The one not asked for longest is forgotten, and begins anew.
const MAX_TURNS: usize = 4096;
/// Endpoints whose failure is kept.
const MAX_FAILURES: usize = 65_536;

/// Whose turn it is, and who failed lately.
#[derive(Debug, Default)]
pub struct Ranking {
    turns: HashMap<String, HashMap<String, i64>>,
    /// Services in the order of first use.
    order: VecDeque<String>,
    failures: HashMap<String, Instant>,
}

/// A pick with all that decides about it.
struct Ranked<'a> {
    endpoint: usize,
    name: &'a str,
    weight: i64,
    group: (bool, u32, Reverse<usize>),
}

impl Ranking {
    /// No turns taken, nobody failed.
    pub fn new() -> Self {
        Self::default()
    }

    /// The picks of `service` in the order in which to try them, each once; indexes into `endpoints`. Takes the next turn of
    /// those that are called `turn`: services of one name in several domains have turns of their own.
    pub fn order(
        &mut self,
        turn: &str,
        service: &str,
        labels: &Labels,
        endpoints: &[NetworkServiceEndpoint],
        picks: &[Pick],
        now: Instant,
    ) -> Vec<usize> {
        let mut ranked: Vec<Ranked<'_>> = Vec::with_capacity(picks.len());
        let mut places: HashMap<usize, usize> = HashMap::with_capacity(picks.len());
        for pick in picks {
            let weight = i64::from(pick.weight);
            // Picked by two routes: their weights add up.
            if let Some(place) = places.get(&pick.endpoint) {
                ranked[*place].weight += weight;
                continue;
            }
            places.insert(pick.endpoint, ranked.len());
            let endpoint = &endpoints[pick.endpoint];
            let failed = self.has_failed(&endpoint.name, now);
            let group = (failed, priority(endpoint, service), Reverse(closeness(endpoint, service, labels)));
            ranked.push(Ranked { endpoint: pick.endpoint, name: &endpoint.name, weight, group });
        }
        ranked.sort_by_key(|r| r.group);
        let turns = self.turns_of(turn);
        // Endpoints that are gone would keep their credit for ever.
        if turns.len() > 2 * endpoints.len() {
            let there: HashSet<&str> = endpoints.iter().map(|e| e.name.as_str()).collect();
            turns.retain(|name, _| there.contains(name.as_str()));
        }
        ranked.chunk_by_mut(|a, b| a.group == b.group).for_each(|equals| take_turn(turns, equals));
        ranked.into_iter().map(|r| r.endpoint).collect()
    }

    /// `endpoint` did not answer, or refused.
    pub fn handle_failed(&mut self, endpoint: &str, now: Instant) {
        if self.failures.len() >= MAX_FAILURES {
            self.failures.retain(|_, at| *at + PENALTY > now);
        }
        if self.failures.len() < MAX_FAILURES {
            self.failures.insert(endpoint.to_owned(), now);
        }
    }

    /// `endpoint` granted a request.
    pub fn handle_granted(&mut self, endpoint: &str) {
        self.failures.remove(endpoint);
    }

    fn has_failed(&self, endpoint: &str, now: Instant) -> bool {
        self.failures.get(endpoint).is_some_and(|at| *at + PENALTY > now)
    }

    fn turns_of(&mut self, service: &str) -> &mut HashMap<String, i64> {
        if !self.turns.contains_key(service) {
            if self.order.len() >= MAX_TURNS
                && let Some(oldest) = self.order.pop_front()
            {
                self.turns.remove(&oldest);
            }
            self.order.push_back(service.to_owned());
        }
        self.turns.entry(service.to_owned()).or_default()
    }
}

/// Everyone gains its weight, whoever has most comes first and pays the sum; the others follow by what they have.
fn take_turn(turns: &mut HashMap<String, i64>, equals: &mut [Ranked<'_>]) {
    let total: i64 = equals.iter().map(|r| r.weight).sum();
    for r in &*equals {
        *turns.entry(r.name.to_owned()).or_default() += r.weight;
    }
    equals.sort_by_key(|r| Reverse(turns.get(r.name).copied().unwrap_or_default()));
    if let Some(first) = equals.first()
        && let Some(credit) = turns.get_mut(first.name)
    {
        *credit -= total;
    }
}

fn label<'a>(endpoint: &'a NetworkServiceEndpoint, service: &str, name: &str) -> Option<&'a str> {
    endpoint.network_service_labels.get(service)?.labels.get(name).map(String::as_str)
}

fn priority(endpoint: &NetworkServiceEndpoint, service: &str) -> u32 {
    label(endpoint, service, PRIORITY_LABEL).and_then(|p| p.parse().ok()).unwrap_or(DEFAULT_PRIORITY)
}

/// How close an endpoint is: the higher the closer, 0 when nothing is known.
fn closeness(endpoint: &NetworkServiceEndpoint, service: &str, labels: &Labels) -> usize {
    let same = |place: &str| match (labels.get(place), label(endpoint, service, place)) {
        (Some(here), Some(there)) => !here.is_empty() && here == there,
        _ => false,
    };
    PLACES.iter().position(|place| same(place)).map_or(0, |i| PLACES.len() - i)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{
        super::matching::{
            picks,
            tests::{endpoint, labels, rule, service},
        },
        *,
    };

    fn order(
        ranking: &mut Ranking,
        from: &[(&str, &str)],
        all: &[NetworkServiceEndpoint],
        now: Instant,
    ) -> Vec<String> {
        let (from, service) = (labels(from), service(vec![]));
        let picked = picks(&from, &service, all);
        ranking
            .order("web", "web", &from, all, &picked, now)
            .into_iter()
            .map(|i| all[i].name.clone())
            .collect()
    }

    #[test]
    fn equals_come_first_in_turn_and_all_are_candidates() {
        let all = ["a", "b", "c"].map(|n| endpoint(n, &[]));
        let (mut ranking, now) = (Ranking::new(), Instant::now());
        let firsts: Vec<String> = (0..6)
            .map(|_| {
                let order = order(&mut ranking, &[], &all, now);
                assert_eq!(order.len(), 3);
                order[0].clone()
            })
            .collect();
        assert_eq!(firsts, ["a", "b", "c", "a", "b", "c"]);
    }

    #[test]
    fn health_goes_before_priority_before_locality() {
        let all = [
            endpoint("far", &[]),
            endpoint("cluster", &[("clusterName", "c1")]),
            endpoint("node", &[("nodeName", "n1"), ("clusterName", "c1")]),
            endpoint("first", &[("carrick.priority", "10")]),
            endpoint("last", &[("carrick.priority", "200"), ("nodeName", "n1")]),
        ];
        let (mut ranking, now) = (Ranking::new(), Instant::now());
        let from = [("nodeName", "n1"), ("clusterName", "c1")];
        assert_eq!(order(&mut ranking, &from, &all, now), ["first", "node", "cluster", "far", "last"]);
        ranking.handle_failed("first", now);
        assert_eq!(order(&mut ranking, &from, &all, now), ["node", "cluster", "far", "last", "first"]);
        assert_eq!(order(&mut ranking, &from, &all, now + PENALTY)[0], "first", "it gets another chance");
        ranking.handle_failed("node", now);
        ranking.handle_granted("node");
        assert_eq!(order(&mut ranking, &from, &all, now)[0], "node");
    }

    #[test]
    fn an_endpoint_that_two_routes_pick_has_both_weights_and_is_tried_once() {
        let all = [endpoint("a", &[("v", "1"), ("app", "a")]), endpoint("b", &[("v", "1")])];
        let mut heavy = rule(&[], &[&[("v", "1")], &[("app", "a")]]);
        heavy.routes[1].weight = 2;
        let (service, from) = (service(vec![heavy]), labels(&[]));
        let picked = picks(&from, &service, &all);
        let mut ranking = Ranking::new();
        let firsts: Vec<usize> =
            (0..8).map(|_| ranking.order("web", "web", &from, &all, &picked, Instant::now())[0]).collect();
        assert_eq!(firsts.iter().filter(|i| **i == 0).count(), 6, "3 of 4: {firsts:?}");
        assert_eq!(ranking.order("web", "web", &from, &all, &picked, Instant::now()).len(), 2);
    }

    proptest! {
        /// Over a whole round everyone is first as often as its weight says, and every order holds every pick once.
        #[test]
        fn turns_are_as_many_as_the_weights_say(weights in prop::collection::vec(1u32..8, 1..6)) {
            let all: Vec<_> = (0..weights.len()).map(|i| endpoint(&format!("e{i}"), &[])).collect();
            let picked: Vec<Pick> =
                weights.iter().enumerate().map(|(endpoint, weight)| Pick { endpoint, weight: *weight }).collect();
            let (mut ranking, now) = (Ranking::new(), Instant::now());
            let mut firsts = vec![0; weights.len()];
            for _ in 0..weights.iter().sum::<u32>() {
                let mut order = ranking.order("web", "web", &Labels::new(), &all, &picked, now);
                firsts[order[0]] += 1;
                order.sort_unstable();
                prop_assert_eq!(order, (0..weights.len()).collect::<Vec<_>>());
            }
            prop_assert_eq!(firsts, weights);
        }
    }
}
