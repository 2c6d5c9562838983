//! Scenarios on the catalogue: what a caller finds and what a watcher is told.

#![allow(clippy::unwrap_used, reason = "a test may")]

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use carrick_model::SpiffeId;
use carrick_proto::registry::{
    Destination, Match, NetworkService, NetworkServiceEndpoint as Endpoint, NetworkServiceLabels,
};
use carrick_registry_core::{
    Audience, Catalogue, Event, Filter, Holder, Object, Owner, RegisterError, Registration, Resumed, Step,
    Timeout, Update, Viewer, WatchId,
};

fn endpoint(name: &str, services: &[&str]) -> Endpoint {
    Endpoint {
        name: name.into(),
        network_service_names: services.iter().map(|s| (*s).into()).collect(),
        url: format!("tcp://192.0.2.1:7443/{name}"),
        ..Default::default()
    }
}

fn labelled(mut endpoint: Endpoint, service: &str, labels: &[(&str, &str)]) -> Endpoint {
    let labels: BTreeMap<_, _> = labels.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect();
    endpoint
        .network_service_labels
        .insert(service.into(), NetworkServiceLabels { labels, ..NetworkServiceLabels::default() });
    endpoint
}

fn for_own<T>(object: T) -> Registration<T> {
    Registration { object, audience: Audience::own_domain(), expires: None, holder: Holder::Domain }
}

fn audience(patterns: &[&str]) -> Audience {
    patterns.iter().map(|p| p.parse().unwrap()).collect()
}

fn peer(id: &str) -> Viewer {
    Viewer::Peer(SpiffeId::new(id).unwrap())
}

fn names<T: Object>(catalogue: &Catalogue, query: T) -> Vec<String> {
    catalogue.find(&Filter::own(query)).iter().map(|r| r.name().to_string()).collect()
}

/// All updates there are now, as `+name` and `-name`.
fn drain<T: Object>(catalogue: &mut Catalogue, watch: WatchId) -> Vec<String> {
    let mut told = Vec::new();
    loop {
        match catalogue.poll_update::<T>(watch) {
            Step::Item(Update::Present(record)) => told.push(format!("+{}", record.name())),
            Step::Item(Update::Gone { last, .. }) => told.push(format!("-{}", last.name())),
            Step::Busy => {}
            Step::Idle => return told,
        }
    }
}

#[test]
fn a_query_finds_by_every_rule_of_nsm() {
    let mut c = Catalogue::new();
    let mut timed = endpoint("c", &["web"]);
    timed.expiration_time = Some(prost_types::Timestamp { seconds: 100, nanos: 7 });
    for e in [
        labelled(endpoint("a", &["web", "db"]), "web", &[("zone", "1"), ("tier", "x")]),
        labelled(endpoint("b", &["web"]), "web", &[("zone", "2")]),
        timed,
    ] {
        c.register(for_own(e)).unwrap();
    }
    let any = Endpoint::default();
    assert_eq!(names(&c, any.clone()), ["a", "b", "c"], "an empty query finds all");
    assert_eq!(names(&c, endpoint_query("b", "")), ["b"]);
    assert!(names(&c, endpoint_query("", "http://")).is_empty());
    assert_eq!(names(&c, endpoint_query("", "7443/b")), ["b"], "a URL is found by a part of it");
    let services = |s: &[&str]| Endpoint { url: String::new(), ..endpoint("", s) };
    assert_eq!(names(&c, services(&["web"])), ["a", "b", "c"]);
    assert_eq!(names(&c, services(&["db", "web"])), ["a"], "all services asked for, in any order");
    assert!(names(&c, services(&["web", "mail"])).is_empty());
    assert!(names(&c, services(&["we"])).is_empty(), "no prefixes");
    assert!(names(&c, endpoint_query("A", "")).is_empty());
    assert_eq!(names(&c, labelled(any.clone(), "web", &[("zone", "1")])), ["a"]);
    assert!(names(&c, labelled(any.clone(), "web", &[("zone", "1"), ("tier", "y")])).is_empty());
    assert!(
        names(&c, labelled(any.clone(), "db", &[("zone", "1")])).is_empty(),
        "labels belong to a service"
    );
    assert_eq!(
        names(&c, labelled(any.clone(), "web", &[])),
        ["a", "b"],
        "a service without labels has to exist"
    );
    let at = |seconds| Endpoint {
        expiration_time: Some(prost_types::Timestamp { seconds, nanos: 0 }),
        ..Default::default()
    };
    assert_eq!(names(&c, at(100)), ["c"], "seconds are compared, and nothing finer");
    assert!(names(&c, at(0)).is_empty(), "no time is not the epoch");
    let first = Some(prost_types::Timestamp { seconds: 1, nanos: 0 });
    let ignored =
        Endpoint { initial_registration_time: first, path_ids: vec!["x".into()], ..Default::default() };
    assert_eq!(names(&c, ignored).len(), 3, "first registration and path ids are not compared");
}

fn endpoint_query(name: &str, url: &str) -> Endpoint {
    Endpoint { name: name.into(), url: url.into(), ..Default::default() }
}

#[test]
fn services_are_found_by_name_payload_and_matches() {
    let mut c = Catalogue::new();
    let route = |v: &str| Match {
        routes: vec![Destination {
            destination_selector: [("app".to_owned(), v.to_owned())].into(),
            weight: 0,
            ..Destination::default()
        }],
        ..Default::default()
    };
    let web = NetworkService {
        name: "web".into(),
        payload: "TCP".into(),
        matches: vec![route("1"), route("2")],
        ..NetworkService::default()
    };
    c.register(for_own(web.clone())).unwrap();
    c.register(for_own(NetworkService { name: "vpn".into(), ..Default::default() })).unwrap();
    let any = NetworkService::default();
    assert_eq!(names(&c, any.clone()), ["vpn", "web"]);
    assert_eq!(names(&c, NetworkService { name: "web".into(), ..any.clone() }), ["web"]);
    assert_eq!(
        names(&c, NetworkService { payload: "IP".into(), ..any.clone() }),
        ["vpn"],
        "no payload is stored as IP"
    );
    assert_eq!(names(&c, web.clone()), ["web"]);
    let turned = web.matches.iter().rev().cloned().collect();
    assert!(names(&c, NetworkService { matches: turned, ..any }).is_empty(), "the order of matches counts");
}

#[test]
fn an_object_needs_a_name() {
    let mut c = Catalogue::new();
    let fault = c.register(for_own(Endpoint::default())).unwrap_err();
    assert_eq!(fault, RegisterError::NoName("network service endpoint"));
    assert_eq!(c.revision().get(), 0, "what was refused is no change");
}

#[test]
fn a_watcher_is_told_the_state_and_then_every_change_in_full() {
    let mut c = Catalogue::new();
    c.register(for_own(endpoint("a", &["web"]))).unwrap();
    c.register(for_own(endpoint("x", &["db"]))).unwrap();
    let query = Endpoint { url: String::new(), ..endpoint("", &["web"]) };
    let watch = c.subscribe(Filter::own(query));
    assert_eq!(drain::<Endpoint>(&mut c, watch), ["+a"]);
    assert_eq!(c.poll_event(), None, "nobody is woken for what it was told");

    c.register(for_own(endpoint("b", &["web"]))).unwrap();
    assert_eq!(c.poll_event(), Some(Event::News(watch)));
    assert_eq!(c.poll_event(), None, "once is enough");
    c.register(for_own(endpoint("y", &["db"]))).unwrap();
    assert_eq!(drain::<Endpoint>(&mut c, watch), ["+b"]);

    c.register(for_own(endpoint("b", &["web"]))).unwrap();
    assert_eq!(drain::<Endpoint>(&mut c, watch), ["+b"], "a refresh is told");

    c.unregister::<Endpoint>("b").unwrap();
    let revision = c.revision();
    let Step::Item(gone) = c.poll_update::<Endpoint>(watch) else { panic!("a deletion is told") };
    let last = gone.record();
    assert_eq!(gone, Update::Gone { last: last.clone(), revision });
    assert_eq!(last.object(), endpoint("b", &["web"]), "the full object, not the name alone");

    assert!(c.unregister::<Endpoint>("b").is_none());
    assert_eq!(c.revision(), revision, "removing nothing is no change");
    assert_eq!(c.poll_update::<Endpoint>(watch), Step::Idle);
}

#[test]
fn an_object_that_leaves_the_view_is_told_as_gone() {
    let mut c = Catalogue::new();
    c.register(for_own(endpoint("a", &["web"]))).unwrap();
    let watch = c.subscribe(Filter::own(Endpoint { url: String::new(), ..endpoint("", &["web"]) }));
    assert_eq!(drain::<Endpoint>(&mut c, watch), ["+a"]);
    c.register(for_own(endpoint("a", &["db"]))).unwrap();
    assert_eq!(drain::<Endpoint>(&mut c, watch), ["-a"]);
    c.unregister::<Endpoint>("a").unwrap();
    assert!(drain::<Endpoint>(&mut c, watch).is_empty());
}

#[test]
fn a_slow_watcher_holds_the_latest_state_of_each_object_and_nothing_else() {
    let mut c = Catalogue::new();
    for name in ["kept", "lost", "back"] {
        c.register(for_own(endpoint(name, &["web"]))).unwrap();
    }
    let watch = c.subscribe(Filter::own(Endpoint::default()));
    assert_eq!(drain::<Endpoint>(&mut c, watch), ["+back", "+kept", "+lost"]);
    for round in 0..1000 {
        c.register(for_own(endpoint(&format!("fleeting-{round}"), &["web"]))).unwrap();
        c.register(for_own(endpoint("kept", &["web", &format!("v{round}")]))).unwrap();
        c.unregister::<Endpoint>("back");
        c.register(for_own(endpoint("back", &["web"]))).unwrap();
        c.unregister::<Endpoint>("lost");
        c.unregister::<Endpoint>(&format!("fleeting-{round}"));
    }
    assert_eq!(c.pending_count::<Endpoint>(watch), 3);
    let Step::Item(first) = c.poll_update::<Endpoint>(watch) else { panic!("there is news") };
    assert_eq!(first.record().object(), endpoint("kept", &["web", "v999"]), "the latest, at its first place");
    assert_eq!(drain::<Endpoint>(&mut c, watch), ["+back", "-lost"]);
}

#[test]
fn a_change_ahead_of_the_walk_is_told_once() {
    let mut c = Catalogue::new();
    for name in ["a", "m", "z"] {
        c.register(for_own(endpoint(name, &["web"]))).unwrap();
    }
    let watch = c.subscribe(Filter::own(Endpoint::default()));
    let Step::Item(Update::Present(first)) = c.poll_update::<Endpoint>(watch) else {
        panic!("the state comes first")
    };
    assert_eq!(&**first.name(), "a");
    c.unregister::<Endpoint>("z");
    c.register(for_own(endpoint("n", &["web"]))).unwrap();
    c.unregister::<Endpoint>("a");
    assert_eq!(drain::<Endpoint>(&mut c, watch), ["+m", "+n", "-a"]);
}

#[test]
fn a_long_walk_lets_others_in() {
    let mut c = Catalogue::new();
    for n in 0..1000 {
        c.register(for_own(endpoint(&format!("e{n:04}"), &["web"]))).unwrap();
    }
    let hidden = Filter { query: Endpoint::default(), viewer: peer("spiffe://b.test/gw") };
    let watch = c.subscribe(hidden);
    let mut busy = 0;
    while c.poll_update::<Endpoint>(watch) == Step::Busy {
        busy += 1;
    }
    assert!(busy >= 2, "1000 hidden objects in {busy} steps");
}

#[test]
fn a_peer_sees_what_its_audience_admits_as_that_changes() {
    let mut c = Catalogue::new();
    let allow = |patterns: &[&str]| Registration {
        object: endpoint("a", &["web"]),
        audience: audience(patterns),
        expires: None,
        holder: Holder::Domain,
    };
    c.register(allow(&["spiffe://b.test/**"])).unwrap();
    let viewers = [Viewer::Own, peer("spiffe://b.test/gw"), peer("spiffe://c.test/gw")];
    let [own, b, d] = viewers.map(|viewer| c.subscribe(Filter { query: Endpoint::default(), viewer }));
    assert_eq!(drain::<Endpoint>(&mut c, own), ["+a"]);
    assert_eq!(drain::<Endpoint>(&mut c, b), ["+a"]);
    assert!(drain::<Endpoint>(&mut c, d).is_empty());

    assert!(c.set_audience::<Endpoint>("a", audience(&["spiffe://c.test/**"])));
    assert!(drain::<Endpoint>(&mut c, own).is_empty(), "for the own domain nothing changed");
    assert_eq!(drain::<Endpoint>(&mut c, b), ["-a"]);
    assert_eq!(drain::<Endpoint>(&mut c, d), ["+a"]);

    c.unregister::<Endpoint>("a");
    assert_eq!(drain::<Endpoint>(&mut c, own), ["-a"]);
    assert!(drain::<Endpoint>(&mut c, b).is_empty(), "it cannot see the end of what it does not see");
    assert_eq!(drain::<Endpoint>(&mut c, d), ["-a"]);
    assert!(!c.set_audience::<Endpoint>("a", Audience::own_domain()));
}

#[test]
fn a_lease_ends_unless_it_is_renewed() {
    let start = Instant::now();
    let after = |seconds| start + Duration::from_secs(seconds);
    let leased =
        |name, seconds| Registration { expires: Some(after(seconds)), ..for_own(endpoint(name, &["web"])) };
    let mut c = Catalogue::new();
    c.register(for_own(endpoint("own", &["web"]))).unwrap();
    assert_eq!(c.poll_timeout(), None, "what the domain itself offers has no lease");
    c.register(leased("a", 10)).unwrap();
    c.register(leased("b", 20)).unwrap();
    let watch = c.subscribe(Filter::own(Endpoint::default()));
    assert_eq!(drain::<Endpoint>(&mut c, watch), ["+a", "+b", "+own"]);
    assert_eq!(c.poll_timeout(), Some((after(10), Timeout::Lease)));
    c.register(leased("a", 30)).unwrap();
    assert_eq!(c.poll_timeout(), Some((after(20), Timeout::Lease)));
    c.handle_timeout(after(19));
    assert_eq!(c.count::<Endpoint>(), 3);
    c.handle_timeout(after(20));
    assert_eq!(c.poll_event(), Some(Event::News(watch)));
    let Some(Event::Lapsed(lapse)) = c.poll_event() else { panic!("the store has to hear of it") };
    assert_eq!((&*lapse.name, lapse.holder), ("b", Holder::Domain));
    assert_eq!(c.poll_event(), None);
    assert_eq!(drain::<Endpoint>(&mut c, watch), ["+a", "-b"]);
    c.handle_timeout(after(1000));
    assert_eq!(names(&c, Endpoint::default()), ["own"]);
    assert_eq!(c.poll_timeout(), None);
}

#[test]
fn a_watcher_that_comes_back_is_told_what_changed() {
    let mut c = Catalogue::new();
    for name in ["kept", "lost", "changed"] {
        c.register(for_own(endpoint(name, &["web"]))).unwrap();
    }
    let filter = Filter::own(Endpoint { url: String::new(), ..endpoint("", &["web"]) });
    let watch = c.subscribe(filter.clone());
    assert_eq!(drain::<Endpoint>(&mut c, watch).len(), 3);
    let revision = c.revision();
    c.unsubscribe::<Endpoint>(watch);

    c.unregister::<Endpoint>("lost");
    c.register(for_own(endpoint("changed", &["web", "more"]))).unwrap();
    c.register(for_own(endpoint("fleeting", &["web"]))).unwrap();
    c.register(for_own(endpoint("other", &["db"]))).unwrap();
    c.unregister::<Endpoint>("fleeting");
    let Resumed::Changes(watch) = c.resume(filter.clone(), revision) else { panic!("little has changed") };
    assert_eq!(drain::<Endpoint>(&mut c, watch), ["-lost", "+changed"]);
    c.register(for_own(endpoint("new", &["web"]))).unwrap();
    assert_eq!(c.poll_event(), Some(Event::News(watch)), "it goes on as any other");
    assert_eq!(drain::<Endpoint>(&mut c, watch), ["+new"]);

    let yet_to_come = carrick_registry_core::Revision::new(c.revision().get() + 1);
    assert!(matches!(c.resume(filter.clone(), yet_to_come), Resumed::State(_)));
    for _ in 0..10_000 {
        c.register(for_own(endpoint("kept", &["web"]))).unwrap();
    }
    let Resumed::State(watch) = c.resume(filter, revision) else { panic!("10,000 changes are too many") };
    assert_eq!(drain::<Endpoint>(&mut c, watch), ["+changed", "+kept", "+new"]);
}

#[test]
fn a_registration_counts_for_who_brought_it() {
    let mut c = Catalogue::new();
    let id = |path: &str| SpiffeId::new(format!("spiffe://own.test/{path}")).unwrap();
    let by = |name: &str, owner: &str, via: Option<&str>| Registration {
        holder: Holder::Owner(Owner { id: Some(id(owner)), via: via.map(id).map(Arc::new), written: 1 }),
        ..for_own(endpoint(name, &["web"]))
    };
    c.register(by("a", "nse", None)).unwrap();
    c.register(by("b", "nse", Some("nsmgr"))).unwrap();
    c.register(by("b", "nse", Some("nsmgr"))).unwrap();
    let count = |c: &Catalogue, path| c.brought_by::<Endpoint>(&id(path));
    assert_eq!((count(&c, "nse"), count(&c, "nsmgr")), (1, 1));
    c.unregister::<Endpoint>("b");
    assert_eq!((count(&c, "nse"), count(&c, "nsmgr")), (1, 0));
}

#[test]
fn a_watch_that_ended_holds_nothing_and_says_nothing() {
    let mut c = Catalogue::new();
    let watch = c.subscribe(Filter::own(Endpoint::default()));
    assert_eq!(drain::<Endpoint>(&mut c, watch), [""; 0]);
    c.register(for_own(endpoint("a", &["web"]))).unwrap();
    assert!(c.unsubscribe::<Endpoint>(watch));
    assert!(!c.unsubscribe::<Endpoint>(watch));
    assert_eq!((c.poll_event(), c.watch_count()), (None, 0));
    c.register(for_own(endpoint("b", &["web"]))).unwrap();
    assert_eq!(c.poll_update::<Endpoint>(watch), Step::Idle);
}

#[test]
fn a_find_looks_at_candidates_only() {
    let mut c = Catalogue::new();
    for n in 0..1000 {
        let e = labelled(
            endpoint(&format!("e{n}"), &["web", &format!("s{}", n % 100)]),
            "web",
            &[("n", &n.to_string())],
        );
        c.register(for_own(e)).unwrap();
    }
    let services = |s: &[&str]| Endpoint { url: String::new(), ..endpoint("", s) };
    assert_eq!(c.candidates(&Endpoint::default()), 1000);
    assert_eq!(c.candidates(&endpoint_query("e7", "")), 1);
    assert_eq!(c.candidates(&services(&["web", "s7"])), 10, "the rarest of what is asked for");
    assert_eq!(c.candidates(&labelled(services(&["web"]), "web", &[("n", "7")])), 1);
    assert_eq!(c.candidates(&services(&["unheard-of"])), 0);
}

#[test]
fn a_part_of_a_url_is_found_among_the_urls() {
    let mut c = Catalogue::new();
    let at = |name: &str, url: &str| Endpoint { url: url.into(), ..endpoint(name, &["web"]) };
    // 10,000 endpoints behind 100 managers, and some whose URLs are of another make.
    for n in 0..10_000 {
        c.register(for_own(at(&format!("e{n:05}"), &format!("tcp://10.0.0.{}:5001", n % 100)))).unwrap();
    }
    c.register(for_own(at("odd", "http://proxy/?to=tcp://10.0.0.7:5001"))).unwrap();
    c.register(for_own(at("near", "tcp://10.0.0.7:50012"))).unwrap();
    let query = |url: &str| endpoint_query("", url);
    for (part, found, looked_at) in [
        ("tcp://10.0.0.7:5001", 102, 102),
        ("10.0.0.7:5001", 102, 102),
        ("tcp://10.0.0.7:50012", 1, 1),
        ("tcp://10.0.0.7", 1102, 1102),
        ("http://", 1, 1),
        ("unix:///", 0, 0),
        (":5001", 10_002, 10_002),
    ] {
        assert_eq!(names(&c, query(part)).len(), found, "{part}");
        assert_eq!(c.candidates(&query(part)), looked_at, "{part}");
    }
    let all = names(&c, query("10.0.0.7:5001"));
    assert!(all.is_sorted(), "in name order, whichever the URL");
    c.unregister::<Endpoint>("odd");
    assert_eq!(c.candidates(&query("tcp://10.0.0.7:5001")), 101);

    // So many URLs that they are not looked at one by one: a plain beginning still finds its way.
    for n in 0..5_000 {
        c.register(for_own(at(&format!("u{n}"), &format!("tcp://host-{n}.test:5001")))).unwrap();
    }
    assert_eq!(c.candidates(&query("tcp://host-77.test")), 1);
    assert_eq!(names(&c, query("host-77.test")), ["u77"], "found all the same, by walking");
}
