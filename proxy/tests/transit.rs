//! Connections that pass through two domains in one process, over real TCP and real TLS on loopback: what the client sees, what the
//! endpoint sees, and what either domain remembers.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::disallowed_methods, reason = "test code")]

mod site;

use std::{sync::atomic::Ordering::Relaxed, time::Duration};

use carrick_proto::{
    connection::{Connection, ConnectionEvent, ConnectionEventType, Mechanism, MonitorScopeSelector, State},
    connectioncontext::ConnectionContext,
    networkservice::NetworkServiceRequest,
    registry::{Destination, Match, NetworkService},
};
use prost::Message as _;
use tokio::time::timeout;
use tonic::{Code, Streaming};

use self::site::{
    PATIENCE, Site, eventually,
    workload::{Client, Endpoint, hops},
};

/// `cloud.test`, where clients are, and `onprem.test`, where endpoints are; each trusts and finds the other.
async fn two() -> (Site, Site) {
    let (cloud, onprem) = (Site::new("cloud.test").await, Site::new("onprem.test").await);
    cloud.knows(&onprem);
    onprem.knows(&cloud);
    (cloud, onprem)
}

fn service(matches: Vec<Match>) -> NetworkService {
    NetworkService { name: "web".into(), payload: "IP".into(), matches, ..NetworkService::default() }
}

/// The next event that is not about what was there already.
async fn next(events: &mut Streaming<ConnectionEvent>) -> ConnectionEvent {
    timeout(PATIENCE, events.message()).await.expect("an event comes").unwrap().expect("the stream goes on")
}

/// Waits for an event that says `state` of the one connection that is watched.
async fn until(events: &mut Streaming<ConnectionEvent>, state: State) {
    loop {
        let event = next(events).await;
        if event.r#type() == ConnectionEventType::Update
            && event.connections.values().all(|c| c.state() == state)
        {
            return;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_that_come_and_go_share_one_monitor_of_a_hop() {
    let (cloud, onprem) = two().await;
    let nse = Endpoint::of(&onprem, "nse-1").await;
    onprem.registers(vec![nse.record("web", &[])]);
    for n in 0..5 {
        let mut client = Client::of(&cloud, &format!("nsc-{n}")).await;
        client.request("web@onprem.test").await.unwrap();
        eventually("the endpoint is monitored", || (nse.monitors.load(Relaxed) > 0).then_some(())).await;
        client.close().await.unwrap();
    }
    assert_eq!(nse.monitors.load(Relaxed), 1);

    // What is made on a monitor that was there already is watched by it.
    let mut client = Client::of(&cloud, "nsc").await;
    client.request("web@onprem.test").await.unwrap();
    let mut events = client.monitor().await;
    nse.tell(State::Down);
    until(&mut events, State::Down).await;
    assert_eq!(nse.monitors.load(Relaxed), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_path_of_four_hops_is_made_refreshed_and_closed() {
    let (cloud, onprem) = two().await;
    let nse = Endpoint::of(&onprem, "nse-1").await;
    onprem.registers(vec![nse.record("web", &[])]);
    onprem.catalogue.set_service(service(vec![]));
    let mut client = Client::of(&cloud, "nsc").await;
    let first = client.request("web@onprem.test").await.unwrap();

    let names: Vec<String> = hops(&first).into_iter().map(|(name, _)| name).collect();
    assert_eq!(names, ["nsc", "cloud.test/gateway", "onprem.test/gateway", "nse-1"]);
    assert_eq!((first.id.as_str(), first.path.as_ref().unwrap().index), ("nsc-id", 0));
    assert_eq!(first.network_service, "web@onprem.test");
    assert_eq!(first.network_service_endpoint_name, "nse-1@onprem.test");
    assert_eq!(first.payload, "IP", "as the service says");
    let held = nse.held.lock().values().next().unwrap().clone();
    assert_eq!((&*held.network_service, &*held.network_service_endpoint_name), ("web", "nse-1"));
    let tokens = &first.path.as_ref().unwrap().path_segments;
    let claims: Vec<_> = tokens.iter().map(|s| carrick_identity::token::decode(&s.token).unwrap()).collect();
    for pair in claims.windows(2) {
        assert!(pair[0].aud.contains(&pair[1].sub), "{} is not meant for {}", pair[0].sub, pair[1].sub);
    }

    let second = client.refresh().await.unwrap();
    assert_eq!(hops(&first), hops(&second));
    assert_eq!(nse.held.lock().len(), 1);
    assert_eq!((cloud.transits.connections().len(), onprem.transits.connections().len()), (1, 1));

    client.close().await.unwrap();
    assert!(nse.held.lock().is_empty());
    assert!(cloud.transits.connections().is_empty() && onprem.transits.connections().is_empty());
    client.close().await.expect("what is not known is closed");
}

/// Field 127 of a message of the future: the text `new`.
const NEWER: &[u8] = b"\xfa\x07\x03new";

#[tokio::test(flavor = "multi_thread")]
async fn what_only_newer_ends_know_goes_through_both_domains() {
    let (cloud, onprem) = two().await;
    let nse = Endpoint::of(&onprem, "nse-1").await;
    onprem.registers(vec![nse.record("web", &[])]);
    let mut client = Client::of(&cloud, "nsc").await;
    let says = |request: &mut NetworkServiceRequest| {
        request.merge(NEWER).unwrap();
        let connection = request.connection.as_mut().unwrap();
        connection.merge(NEWER).unwrap();
        let context = ConnectionContext::decode(NEWER).unwrap();
        connection.context = Some(context);
        let path = connection.path.as_mut().unwrap();
        path.merge(NEWER).unwrap();
        path.path_segments[0].merge(NEWER).unwrap();
    };
    let has = |connection: &Connection| {
        let (context, path) = (connection.context.as_ref().unwrap(), connection.path.as_ref().unwrap());
        let segment = &path.path_segments[0];
        let all = [
            &connection.unknown_fields,
            &context.unknown_fields,
            &path.unknown_fields,
            &segment.unknown_fields,
        ];
        assert!(all.iter().all(|unknown| !unknown.is_empty()), "{connection:?}");
    };
    has(&client.request_with("web@onprem.test", says).await.unwrap());
    has(nse.held.lock().values().next().unwrap());
    assert!(!nse.unknown.lock().is_empty());
    let mut events = client.monitor().await;
    has(next(&mut events).await.connections.values().next().unwrap());
    has(&client.refresh().await.unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_of_the_own_domain_never_leaves_it() {
    let cloud = Site::new("cloud.test").await;
    // Its own address is under its name: whoever resolved it would call itself.
    cloud.finds(&cloud.domain, cloud.control);
    let nse = Endpoint::of(&cloud, "nse-1").await;
    cloud.registers(vec![nse.record("web", &[])]);
    let mut client = Client::of(&cloud, "nsc").await;
    let answer = client.request("web@cloud.test").await.unwrap();
    assert_eq!(hops(&answer).len(), 3);
    assert_eq!(answer.network_service_endpoint_name, "nse-1@cloud.test");
    assert_eq!(nse.held.lock().values().next().unwrap().network_service, "web");
    let mut plain = Client::of(&cloud, "other").await;
    assert_eq!(plain.request("web").await.unwrap().network_service_endpoint_name, "nse-1");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_next_endpoint_is_tried_within_the_same_request() {
    let (cloud, onprem) = two().await;
    let (dead, alive) = (Endpoint::of(&onprem, "dead").await, Endpoint::of(&onprem, "alive").await);
    onprem.registers(vec![dead.record("web", &[]), alive.record("web", &[])]);
    dead.stop().await;
    for i in 0..4 {
        let mut client = Client::of(&cloud, &format!("nsc-{i}")).await;
        // Behind another domain, and through the own one.
        let answer = client.request("web@onprem.test").await.unwrap();
        assert_eq!(answer.network_service_endpoint_name, "alive@onprem.test");
    }
    let mut local = Client::of(&onprem, "nsc").await;
    assert_eq!(local.request("web").await.unwrap().network_service_endpoint_name, "alive");
    alive.stop().await;
    let status = Client::of(&onprem, "late").await.request("web").await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
    assert!(status.message().contains(&alive.url) && status.message().contains(&dead.url), "{status:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_endpoint_is_told_to_the_client_and_reselect_finds_another() {
    let (cloud, onprem) = two().await;
    let (one, two) = (Endpoint::of(&onprem, "nse-1").await, Endpoint::of(&onprem, "nse-2").await);
    onprem.registers(vec![one.record("web", &[])]);
    let mut client = Client::of(&cloud, "nsc").await;
    let first = client.request("web@onprem.test").await.unwrap();
    let mut events = client.monitor().await;
    let initial = next(&mut events).await;
    assert_eq!(initial.r#type(), ConnectionEventType::InitialStateTransfer);
    let shown = initial.connections.values().next().unwrap();
    assert_eq!((shown.path.as_ref().unwrap().index, shown.state()), (1, State::Up));
    assert_eq!(shown.network_service, "web@onprem.test");

    // It says itself that it is down, then that it is up again.
    let loud = async {
        one.tell(State::Down);
        until(&mut events, State::Down).await;
        one.tell(State::Up);
        until(&mut events, State::Up).await;
    };
    // The monitors of two hops have to be open before anything is heard through them.
    tokio::time::sleep(Duration::from_millis(500)).await;
    loud.await;

    onprem.registers(vec![two.record("web", &[])]);
    one.stop().await;
    until(&mut events, State::Down).await;
    let healed = client.reselect().await.unwrap();
    assert_eq!(healed.network_service_endpoint_name, "nse-2@onprem.test");
    assert_eq!(hops(&first)[..3], hops(&healed)[..3]);
    until(&mut events, State::Up).await;
    assert_eq!(two.held.lock().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_of_the_services_matches_moves_the_connection() {
    let (cloud, onprem) = two().await;
    let (one, two) = (Endpoint::of(&onprem, "nse-1").await, Endpoint::of(&onprem, "nse-2").await);
    onprem.registers(vec![one.record("web", &[("v", "1")]), two.record("web", &[("v", "2")])]);
    let version = |v: &str| {
        let route = Destination {
            destination_selector: [("v".to_owned(), v.to_owned())].into(),
            weight: 1,
            ..Destination::default()
        };
        service(vec![Match { routes: vec![route], ..Match::default() }])
    };
    onprem.catalogue.set_service(version("1"));
    let mut client = Client::of(&cloud, "nsc").await;
    let answer = client.request("web@onprem.test").await.unwrap();
    assert_eq!(answer.network_service_endpoint_name, "nse-1@onprem.test");
    let mut events = client.monitor().await;
    next(&mut events).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    onprem.catalogue.set_service(version("2"));
    until(&mut events, State::Down).await;
    eventually("the old endpoint is told", || one.held.lock().is_empty().then_some(())).await;
    assert_eq!(client.reselect().await.unwrap().network_service_endpoint_name, "nse-2@onprem.test");
}

#[tokio::test(flavor = "multi_thread")]
async fn ids_are_kept_over_the_restart_of_a_hop() {
    let (cloud, mut onprem) = two().await;
    let nse = Endpoint::of(&onprem, "nse-1").await;
    onprem.registers(vec![nse.record("web", &[])]);
    let mut client = Client::of(&cloud, "nsc").await;
    let first = client.request("web@onprem.test").await.unwrap();
    onprem.restart_server().await;
    assert!(onprem.transits.connections().is_empty());
    let second = client.refresh().await.unwrap();
    assert_eq!(hops(&first), hops(&second));
    assert_eq!((nse.held.lock().len(), onprem.transits.connections().len()), (1, 1));
    // And a close after a restart reaches the endpoint.
    onprem.restart_server().await;
    client.close().await.unwrap();
    assert!(nse.held.lock().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_kept_is_held_watched_and_ended_after_a_restart() {
    let cloud = Site::new("cloud.test").await;
    let mut onprem = Site::keeping("onprem.test", Duration::from_secs(8)).await;
    cloud.knows(&onprem);
    onprem.knows(&cloud);
    let nse = Endpoint::of(&onprem, "nse-1").await;
    onprem.registers(vec![nse.record("web", &[])]);
    let (mut client, mut leaver) = (Client::of(&cloud, "nsc").await, Client::of(&cloud, "leaver").await);
    client.request("web@onprem.test").await.unwrap();
    leaver.request("web@onprem.test").await.unwrap();
    leaver.close().await.unwrap();
    let told = |site: &Site| {
        site.transits
            .connections()
            .into_iter()
            .map(|c| (c.id, c.owner, c.endpoint, c.since))
            .collect::<Vec<_>>()
    };
    let before = told(&onprem);
    assert_eq!(before.len(), 1);
    eventually("the endpoint is monitored", || (nse.monitors.load(Relaxed) == 1).then_some(())).await;

    onprem.restart_server().await;
    let micros = |at: std::time::SystemTime| at.duration_since(std::time::UNIX_EPOCH).unwrap().as_micros();
    let after = told(&onprem);
    assert_eq!(after.len(), 1, "without a word of the client");
    assert_eq!(
        (&after[0].0, &after[0].1, &after[0].2, micros(after[0].3)),
        (&before[0].0, &before[0].1, &before[0].2, micros(before[0].3))
    );
    eventually("its hop is monitored again", || (nse.monitors.load(Relaxed) == 2).then_some(())).await;
    nse.tell(State::Down);
    eventually("its state is followed", || onprem.transits.connections()[0].down.then_some(())).await;

    // Nobody refreshes it: who restarted tells the endpoint all the same.
    eventually("the endpoint hears of the end", || nse.held.lock().is_empty().then_some(())).await;
    assert!(onprem.transits.connections().is_empty());
    onprem.restart_server().await;
    assert!(onprem.transits.connections().is_empty(), "what has ended is not kept");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_kept_for_a_domain_that_is_not_trusted_any_more_ends() {
    let cloud = Site::new("cloud.test").await;
    let mut onprem = Site::keeping("onprem.test", Duration::from_secs(600)).await;
    cloud.knows(&onprem);
    onprem.knows(&cloud);
    let nse = Endpoint::of(&onprem, "nse-1").await;
    onprem.registers(vec![nse.record("web", &[])]);
    Client::of(&cloud, "nsc").await.request("web@onprem.test").await.unwrap();
    onprem.stop_server().await;
    onprem.trust.remove(&cloud.identity.trust_domain());
    onprem.start_server().await;
    eventually("the endpoint hears of the end", || nse.held.lock().is_empty().then_some(())).await;
    assert!(onprem.transits.connections().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_floating_endpoint_is_reached_by_its_full_name() {
    let (cloud, onprem, float) =
        (Site::new("cloud.test").await, Site::new("onprem.test").await, Site::new("float.test").await);
    for (a, b) in [(&cloud, &onprem), (&cloud, &float), (&onprem, &cloud), (&float, &cloud)] {
        a.trusts(b);
    }
    cloud.finds(&float.domain, float.control);
    // `nse-1@float.test` was registered through onprem's proxy: the floating registry has that proxy's url for it.
    let nse = Endpoint::of(&onprem, "nse-1").await;
    let mut there = nse.record("web", &[]);
    there.url = format!("tcp://{}", onprem.control);
    float.registers(vec![there]);
    let mut here = nse.record("web", &[]);
    here.name = "nse-1@float.test".into();
    onprem.catalogue.publish(here);

    let mut client = Client::of(&cloud, "nsc").await;
    let answer = client.request("web@float.test").await.unwrap();
    let names: Vec<String> = hops(&answer).into_iter().map(|(name, _)| name).collect();
    assert_eq!(names, ["nsc", "cloud.test/gateway", "onprem.test/gateway", "nse-1"]);
    assert_eq!(answer.network_service_endpoint_name, "nse-1@float.test");
    let held = nse.held.lock().values().next().unwrap().clone();
    assert_eq!(
        (&*held.network_service, &*held.network_service_endpoint_name),
        ("web@float.test", "nse-1@float.test")
    );
    client.close().await.unwrap();
    assert!(nse.held.lock().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn callers_of_other_domains_see_what_they_may_and_are_not_carried_on() {
    let (cloud, onprem) = two().await;
    let (open, hidden) = (Endpoint::of(&onprem, "open").await, Endpoint::of(&onprem, "hidden").await);
    onprem.registers(vec![open.record("web", &[]), hidden.record("db", &[])]);
    onprem.catalogue.hide("hidden");
    let mut client = Client::of(&cloud, "nsc").await;
    let ask = |r: &mut NetworkServiceRequest| {
        r.connection.as_mut().unwrap().network_service_endpoint_name = "hidden@onprem.test".into();
    };
    let status = client.request_with("db@onprem.test", ask).await.unwrap_err();
    assert_eq!(status.code(), Code::NotFound, "{status:?}");
    // A caller of another domain for a third one, straight at this domain's proxy.
    let mut stranger = Client::of(&cloud, "stranger").await;
    stranger.link = {
        let gateways = cloud.peers.gateways(&onprem.domain).await.unwrap();
        cloud.peers.dial(&onprem.domain, carrick_proxy::peers::Role::Connect, &gateways).await.unwrap()
    };
    let status = stranger.request("web@third.test").await.map(|c| c.network_service_endpoint_name);
    // What has another domain's name is looked up here all the same: NSM's proxies do not know their own names.
    assert_eq!(status.unwrap(), "open@third.test");
    assert_eq!(stranger.request("db@third.test").await.unwrap_err().code(), Code::NotFound);
    assert!(hidden.held.lock().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_export_is_reached_through_the_own_domain_and_can_be_watched() {
    let (cloud, onprem) = two().await;
    onprem.offers("postgres", &["pg-1"], &["spiffe://cloud.test/**"]);
    let mut client = Client::of(&cloud, "nsc").await;
    let quic = |r: &mut NetworkServiceRequest| {
        r.mechanism_preferences.push(Mechanism {
            cls: "REMOTE".into(),
            r#type: "QUIC".into(),
            ..Mechanism::default()
        });
    };
    let answer = client.request_with("postgres@onprem.test", quic).await.unwrap();
    assert_eq!(hops(&answer).len(), 3);
    assert!(answer.mechanism.unwrap().parameters.contains_key("connection"));
    let mut events = client.monitor().await;
    next(&mut events).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    onprem.offers("postgres", &["pg-1"], &[]);
    until(&mut events, State::Down).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watcher_of_another_domain_sees_only_what_it_holds() {
    let (cloud, onprem) = two().await;
    let nse = Endpoint::of(&onprem, "nse-1").await;
    onprem.registers(vec![nse.record("web", &[])]);
    let mut local = Client::of(&onprem, "local").await;
    local.request("web").await.unwrap();
    let mut remote = Client::of(&cloud, "remote").await;
    remote.request("web@onprem.test").await.unwrap();
    let everything = MonitorScopeSelector::default;
    let count = |event: ConnectionEvent| event.connections.len();
    assert_eq!(count(next(&mut local.monitor_with(everything()).await).await), 2);
    let foreign = {
        let gateways = cloud.peers.gateways(&onprem.domain).await.unwrap();
        cloud.peers.dial(&onprem.domain, carrick_proxy::peers::Role::Connect, &gateways).await.unwrap()
    };
    remote.link = foreign;
    let seen = next(&mut remote.monitor_with(everything()).await).await;
    assert_eq!(seen.connections.len(), 1);
    assert_eq!(seen.connections.values().next().unwrap().network_service, "web@onprem.test");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_forwarder_is_asked_first_and_stays() {
    let site = Site::new("cloud.test").await;
    let (one, two) = (Endpoint::of(&site, "fwd-1").await, Endpoint::of(&site, "fwd-2").await);
    let nse = Endpoint::of(&site, "nse-1").await;
    site.registers(vec![
        one.record("forwarder", &[("p2p", "true")]),
        two.record("forwarder", &[("p2p", "true")]),
        nse.record("web", &[]),
    ]);
    let mut client = Client::of(&site, "nsc").await;
    let first = client.request("web").await.unwrap();
    let forwarder = hops(&first)[2].0.clone();
    assert!(forwarder.starts_with("fwd-"), "{forwarder}");
    for _ in 0..3 {
        assert_eq!(hops(&client.refresh().await.unwrap()), hops(&first));
    }
    // The forwarder itself asks on: for it the endpoint is next.
    let mut as_forwarder = Client::of(&site, &forwarder).await;
    assert_eq!(hops(&as_forwarder.request("web").await.unwrap())[2].0, "nse-1");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_import_of_two_domains_uses_the_first_and_falls_back_to_the_other() {
    let (cloud, mut one, two) =
        (Site::new("cloud.test").await, Site::new("one.test").await, Site::new("two.test").await);
    for site in [&one, &two] {
        cloud.trusts(site);
        site.trusts(&cloud);
        site.offers("postgres", &["pg"], &["spiffe://cloud.test/**"]);
    }
    cloud.finds_all(&[(&one.domain, one.control), (&two.domain, two.control)]);
    let service: carrick_model::ServiceName = "postgres@one.test".parse().unwrap();
    let import = carrick_proxy::imports::Import {
        others: vec!["postgres@two.test".parse().unwrap()],
        ..carrick_proxy::imports::Import::new(service.clone(), None)
    };
    cloud.imports.add(import).unwrap();
    let by = |domain: &str| {
        let routes = cloud.datapath.routes.lock();
        routes.get(&service).filter(|r| r.domain.as_str() == domain).map(|_| ())
    };
    // Whichever is up first is used at once; both are up soon.
    eventually("it is up", || cloud.datapath.routes.lock().get(&service).map(|_| ())).await;
    eventually("both hold a connection", || {
        (one.exports.connections().len() + two.exports.connections().len() == 2).then_some(())
    })
    .await;
    one.stop_server().await;
    let held = cloud.datapath.routes.lock()[&service].clone();
    if held.domain == one.domain {
        cloud.imports.lost(&service, held.connection, "the tunnel is gone");
    }
    one.offers("postgres", &["pg"], &[]);
    eventually("it goes to the other domain", || by("two.test")).await;
    let status = cloud.status(&service);
    assert_eq!(status.via.map(|v| v.to_string()).as_deref(), Some("postgres@two.test"));
    assert!(cloud.imports.remove(&service).await);
    assert!(two.exports.connections().is_empty(), "all alternatives are closed");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chain_of_passthrough_endpoints_keeps_names_and_ids() {
    let (cloud, onprem) = two().await;
    let (pass, last) = (Endpoint::of(&onprem, "pass").await, Endpoint::of(&onprem, "last").await);
    onprem.registers(vec![pass.record("web", &[("app", "pass")]), last.record("web", &[("app", "last")])]);
    let to = |app: &str| Destination {
        destination_selector: [("app".to_owned(), app.to_owned())].into(),
        weight: 0,
        ..Destination::default()
    };
    let from_pass = [("app".to_owned(), "pass".to_owned())].into();
    onprem.catalogue.set_service(service(vec![
        Match { source_selector: from_pass, routes: vec![to("last")], ..Match::default() },
        Match { routes: vec![to("pass")], ..Match::default() },
    ]));
    pass.passes_on(&onprem, &[("app", "pass")]).await;
    let mut client = Client::of(&cloud, "nsc").await;
    let first = client.request("web@onprem.test").await.unwrap();
    let names: Vec<String> = hops(&first).into_iter().map(|(name, _)| name).collect();
    let gateway = "onprem.test/gateway";
    assert_eq!(names, ["nsc", "cloud.test/gateway", gateway, "pass", gateway, "last"]);
    assert_eq!(first.network_service_endpoint_name, "pass@onprem.test");
    assert_eq!(hops(&client.refresh().await.unwrap()), hops(&first));
    assert_eq!((pass.held.lock().len(), last.held.lock().len()), (1, 1));
    assert_eq!(onprem.transits.connections().len(), 2, "one process, two places in the path");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_nobody_refreshes_ends_at_the_endpoint_too() {
    let site = Site::with_lease("cloud.test", Duration::from_secs(2)).await;
    let nse = Endpoint::of(&site, "nse-1").await;
    site.registers(vec![nse.record("web", &[])]);
    let mut client = Client::of(&site, "nsc").await;
    client.request("web").await.unwrap();
    let mut events = client.monitor().await;
    next(&mut events).await;
    loop {
        if next(&mut events).await.r#type() == ConnectionEventType::Delete {
            break;
        }
    }
    assert!(nse.held.lock().is_empty());
    assert!(site.transits.connections().is_empty());
}
