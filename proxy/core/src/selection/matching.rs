//! Which endpoints a network service's matches pick for a request: NSM's rules, to the letter.
//!
//! 1. A service without matches picks all endpoints.
//! 2. Otherwise the first match whose `source_selector` is within the request's labels decides. Its picks are the endpoints whose
//!    labels for the service hold a route's `destination_selector`; one that two routes name is picked twice.
//! 3. A match without picks leaves the decision to the next one if it says `fallthrough`; picks all endpoints if it has `metadata`
//!    and no routes; else it picks none.
//! 4. No match for the request picks none.

use std::collections::BTreeMap;

use carrick_proto::registry::{NetworkService, NetworkServiceEndpoint};

use super::template;

/// Labels by name.
pub type Labels = BTreeMap<String, String>;

/// An endpoint that was picked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pick {
    /// Which of the endpoints given.
    pub endpoint: usize,
    /// The route's weight; 1 where none is set.
    pub weight: u32,
}

/// The endpoints that `service` picks for a request with `labels`.
pub fn picks(labels: &Labels, service: &NetworkService, endpoints: &[NetworkServiceEndpoint]) -> Vec<Pick> {
    let all = || (0..endpoints.len()).map(|endpoint| Pick { endpoint, weight: 1 }).collect();
    if service.matches.is_empty() {
        return all();
    }
    let none = Labels::new();
    for rule in service.matches.iter().filter(|m| within(&m.source_selector, labels, labels)) {
        let mut picked = Vec::new();
        for route in &rule.routes {
            for (endpoint, candidate) in endpoints.iter().enumerate() {
                let has = candidate.network_service_labels.get(&service.name).map_or(&none, |l| &l.labels);
                if within(&route.destination_selector, has, labels) {
                    picked.push(Pick { endpoint, weight: route.weight.max(1) });
                }
            }
        }
        if !picked.is_empty() {
            return picked;
        }
        if rule.fallthrough {
            continue;
        }
        return if rule.metadata.is_some() && rule.routes.is_empty() { all() } else { picked };
    }
    Vec::new()
}

/// Whether `service` would still pick `endpoint` for a request with `labels`.
pub fn picks_endpoint(labels: &Labels, service: &NetworkService, endpoint: &NetworkServiceEndpoint) -> bool {
    !picks(labels, service, std::slice::from_ref(endpoint)).is_empty()
}

/// The labels that an endpoint needs to carry traffic of a request (the `metadata` of the match that decides): NSM chooses its
/// forwarder by them. `None` when the service has no matches, or the match no metadata.
pub fn metadata<'a>(labels: &Labels, service: &'a NetworkService) -> Option<&'a Labels> {
    let rule = service.matches.iter().find(|m| within(&m.source_selector, labels, labels))?;
    rule.metadata.as_ref().map(|m| &m.labels)
}

/// Whether every label of `selector` is in `has`, literally or after its value was evaluated over the request's labels.
///
/// A label that is not there counts as empty, and a map with fewer labels than the selector never holds it: both as in NSM.
pub fn within(selector: &Labels, has: &Labels, request: &Labels) -> bool {
    if has.len() < selector.len() {
        return false;
    }
    selector.iter().all(|(key, wanted)| {
        let value = has.get(key).map_or("", String::as_str);
        value == wanted || value == template::evaluate(wanted, request)
    })
}

#[cfg(test)]
pub(crate) mod tests {
    use carrick_proto::registry::{Destination, Match, Metadata, NetworkServiceLabels};
    use proptest::prelude::*;

    use super::*;

    pub(crate) fn labels(of: &[(&str, &str)]) -> Labels {
        of.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    pub(crate) fn endpoint(name: &str, of: &[(&str, &str)]) -> NetworkServiceEndpoint {
        NetworkServiceEndpoint {
            name: name.to_owned(),
            network_service_names: vec!["web".to_owned()],
            network_service_labels: [(
                "web".to_owned(),
                NetworkServiceLabels { labels: labels(of), ..NetworkServiceLabels::default() },
            )]
            .into(),
            ..NetworkServiceEndpoint::default()
        }
    }

    pub(crate) fn rule(source: &[(&str, &str)], routes: &[&[(&str, &str)]]) -> Match {
        let route =
            |to: &&[(&str, &str)]| Destination { destination_selector: labels(to), ..Destination::default() };
        Match {
            source_selector: labels(source),
            routes: routes.iter().map(route).collect(),
            ..Match::default()
        }
    }

    pub(crate) fn service(matches: Vec<Match>) -> NetworkService {
        NetworkService { name: "web".to_owned(), matches, ..NetworkService::default() }
    }

    fn names(
        request: &[(&str, &str)],
        service: &NetworkService,
        all: &[NetworkServiceEndpoint],
    ) -> Vec<String> {
        picks(&labels(request), service, all).iter().map(|p| all[p.endpoint].name.clone()).collect()
    }

    #[test]
    fn without_matches_all_endpoints_are_picked() {
        let all = [endpoint("a", &[]), endpoint("b", &[("x", "y")])];
        assert_eq!(names(&[], &service(vec![]), &all), ["a", "b"]);
    }

    #[test]
    fn the_first_match_of_the_source_decides_even_when_it_picks_none() {
        let all = [endpoint("a", &[("app", "a")]), endpoint("b", &[("app", "b")])];
        let s = service(vec![rule(&[("from", "x")], &[&[("app", "c")]]), rule(&[], &[&[("app", "b")]])]);
        assert_eq!(names(&[("from", "x")], &s, &all), [""; 0]);
        assert_eq!(names(&[], &s, &all), ["b"]);
    }

    #[test]
    fn fallthrough_and_metadata_pass_on() {
        let all = [endpoint("a", &[("app", "a")])];
        let mut through = rule(&[], &[&[("app", "none")]]);
        through.fallthrough = true;
        assert_eq!(names(&[], &service(vec![through.clone(), rule(&[], &[&[("app", "a")]])]), &all), ["a"]);
        assert_eq!(names(&[], &service(vec![through]), &all), [""; 0], "nothing is left to fall through to");
        let only_metadata = Match {
            metadata: Some(Metadata { labels: labels(&[("p2p", "true")]), ..Metadata::default() }),
            ..rule(&[], &[])
        };
        let s = service(vec![only_metadata]);
        assert_eq!(names(&[], &s, &all), ["a"]);
        assert_eq!(metadata(&labels(&[]), &s), Some(&labels(&[("p2p", "true")])));
    }

    #[test]
    fn an_endpoint_of_two_routes_is_picked_twice_in_the_order_of_the_routes() {
        let all = [endpoint("a", &[("app", "a"), ("v", "1")]), endpoint("b", &[("app", "b"), ("v", "1")])];
        let s = service(vec![rule(&[], &[&[("v", "1")], &[("app", "a")]])]);
        assert_eq!(names(&[], &s, &all), ["a", "b", "a"]);
    }

    #[test]
    fn templates_count_in_both_selectors_and_a_missing_label_is_no_value() {
        let all = [endpoint("a", &[("nodeName", "n1")]), endpoint("b", &[("nodeName", "<no value>")])];
        let s = service(vec![rule(&[], &[&[("nodeName", "{{.nodeName}}")]])]);
        assert_eq!(names(&[("nodeName", "n1")], &s, &all), ["a"]);
        assert_eq!(names(&[], &s, &all), ["b"]);
        let s = service(vec![rule(&[("a", "{{.b}}")], &[&[]])]);
        assert_eq!(names(&[("a", "1"), ("b", "1")], &s, &all), ["a", "b"]);
        assert_eq!(names(&[("a", "1"), ("b", "2")], &s, &all), [""; 0]);
    }

    #[test]
    fn a_smaller_map_never_holds_a_selector_and_an_absent_label_is_empty() {
        let selector = labels(&[("a", "")]);
        assert!(!within(&selector, &labels(&[]), &labels(&[])));
        assert!(within(&selector, &labels(&[("b", "1")]), &labels(&[])));
    }

    #[test]
    fn labels_of_another_service_do_not_count() {
        let mut other = endpoint("a", &[("app", "a")]);
        other.network_service_labels = [(
            "db".to_owned(),
            NetworkServiceLabels { labels: labels(&[("app", "a")]), ..NetworkServiceLabels::default() },
        )]
        .into();
        assert_eq!(names(&[], &service(vec![rule(&[], &[&[("app", "a")]])]), &[other]), [""; 0]);
    }

    /// The rules once more, written the other way round: recursion over the list of matches.
    fn reference(request: &Labels, rules: &[Match], all: &[NetworkServiceEndpoint]) -> Vec<usize> {
        let Some((first, rest)) = rules.split_first() else { return Vec::new() };
        if !within(&first.source_selector, request, request) {
            return reference(request, rest, all);
        }
        let hits: Vec<usize> = first
            .routes
            .iter()
            .flat_map(|r| {
                (0..all.len()).filter(|i| {
                    let has = &all[*i].network_service_labels["web"].labels;
                    within(&r.destination_selector, has, request)
                })
            })
            .collect();
        match (hits.is_empty(), first.fallthrough, first.metadata.is_some() && first.routes.is_empty()) {
            (true, true, _) => reference(request, rest, all),
            (true, false, true) => (0..all.len()).collect(),
            _ => hits,
        }
    }

    prop_compose! {
        fn some_labels()(of in prop::collection::btree_map("[ab]", "1|2|\\{\\{\\.a\\}\\}", 0..3)) -> Labels { of }
    }

    prop_compose! {
        fn some_rule()(
            source in some_labels(),
            routes in prop::collection::vec(some_labels(), 0..3),
            falls in any::<bool>(),
            metadata in any::<bool>(),
        ) -> Match {
            Match {
                source_selector: source,
                routes: routes
                    .into_iter()
                    .map(|destination_selector| Destination { destination_selector, ..Destination::default() })
                    .collect(),
                fallthrough: falls,
                metadata: metadata.then(Metadata::default),
                ..Match::default()
            }
        }
    }

    proptest! {
        #[test]
        fn picks_are_those_of_the_reference(
            request in some_labels(),
            rules in prop::collection::vec(some_rule(), 1..4),
            all in prop::collection::vec(some_labels(), 0..4),
        ) {
            let all: Vec<NetworkServiceEndpoint> = all
                .into_iter()
                .map(|labels| NetworkServiceEndpoint {
                    network_service_labels: [(
                        "web".to_owned(),
                        NetworkServiceLabels { labels, ..NetworkServiceLabels::default() },
                    )]
                    .into(),
                    ..NetworkServiceEndpoint::default()
                })
                .collect();
            let expected = reference(&request, &rules, &all);
            let got: Vec<usize> = picks(&request, &service(rules), &all).iter().map(|p| p.endpoint).collect();
            prop_assert_eq!(got, expected);
        }
    }
}
