//! A registry behind a real gRPC server on loopback: what its clients see.
//!
//! The caller's SPIFFE ID, which the control listener takes from the TLS certificate, comes from a header here.

#![allow(clippy::unwrap_used, reason = "a test may")]

use std::{collections::BTreeMap, time::Duration};

use carrick_identity::Caller;
use carrick_model::{Payload, SpiffeId};
use carrick_proto::registry::{
    NetworkService, NetworkServiceEndpoint as Endpoint, NetworkServiceEndpointQuery,
    NetworkServiceEndpointResponse, NetworkServiceLabels, NetworkServiceQuery,
    network_service_endpoint_registry_client::NetworkServiceEndpointRegistryClient,
    network_service_registry_client::NetworkServiceRegistryClient,
};
use carrick_registry::{
    ExportChanges, ExportError, ExportRecord, Filter, MAX_WATCH_QUERY, MAX_WATCHES_PER_CALLER, Registry,
};
use carrick_runtime::Tasks;
use carrick_telemetry::Metrics;
use tokio::{net::TcpListener, time::timeout};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{
    Code, Request, Status, Streaming,
    service::interceptor::InterceptorLayer,
    transport::{Channel, Server},
};

const OWN: &str = "spiffe://own.test/carrick/gateway";
const PEER: &str = "spiffe://b.test/carrick/gateway";
const STRANGER: &str = "spiffe://c.test/carrick/gateway";
/// Longer than anything here takes, so that a fault is a failure and not a hang.
const PATIENCE: Duration = Duration::from_secs(20);

struct Bench {
    registry: Registry,
    tasks: Tasks,
    metrics: Metrics,
    channel: Channel,
    address: String,
}

impl Bench {
    async fn new() -> Self {
        let (tasks, metrics) = (Tasks::new(), Metrics::new());
        let registry =
            Registry::new("own.test".parse().unwrap(), "own.test".parse().unwrap(), &tasks, &metrics);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let server = Server::builder()
            .layer(InterceptorLayer::new(caller_from_header))
            .add_service(registry.service_registry())
            .add_service(registry.endpoint_registry());
        tasks.spawn("test server", server.serve_with_incoming(TcpListenerStream::new(listener)));
        let channel = connect(&address).await;
        Self { registry, tasks, metrics, channel, address }
    }

    fn endpoints(&self) -> NetworkServiceEndpointRegistryClient<Channel> {
        NetworkServiceEndpointRegistryClient::new(self.channel.clone())
    }

    async fn open(
        &self,
        caller: &str,
        query: Endpoint,
        watch: bool,
    ) -> Result<Streaming<NetworkServiceEndpointResponse>, Status> {
        let query = NetworkServiceEndpointQuery {
            network_service_endpoint: Some(query),
            watch,
            ..NetworkServiceEndpointQuery::default()
        };
        Ok(self.endpoints().find(from(caller, query)).await?.into_inner())
    }

    async fn find(&self, caller: &str, query: Endpoint) -> Vec<Endpoint> {
        let mut answers = self.open(caller, query, false).await.unwrap();
        let mut found = Vec::new();
        while let Some(answer) = timeout(PATIENCE, answers.message()).await.unwrap().unwrap() {
            assert!(!answer.deleted);
            found.push(answer.network_service_endpoint.unwrap());
        }
        found
    }

    async fn find_services(
        &self,
        caller: &str,
        query: NetworkService,
    ) -> Result<Vec<NetworkService>, Status> {
        let mut client = NetworkServiceRegistryClient::new(self.channel.clone());
        let query = NetworkServiceQuery {
            network_service: Some(query),
            watch: false,
            ..NetworkServiceQuery::default()
        };
        let mut answers = client.find(from(caller, query)).await?.into_inner();
        let mut found = Vec::new();
        while let Some(answer) = answers.message().await? {
            found.push(answer.network_service.unwrap());
        }
        Ok(found)
    }
}

async fn connect(address: &str) -> Channel {
    Channel::from_shared(address.to_owned()).unwrap().connect().await.unwrap()
}

fn caller_from_header(mut request: Request<()>) -> Result<Request<()>, Status> {
    let caller = request.metadata().get("test-caller").map(|id| SpiffeId::new(id.to_str().unwrap()).unwrap());
    if let Some(caller) = caller {
        request.extensions_mut().insert(Caller::in_process(caller));
    }
    Ok(request)
}

fn from<T>(caller: &str, message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("test-caller", caller.parse().unwrap());
    request
}

fn export(service: &str, endpoint: &str, labels: &[(&str, &str)], allow: &[&str]) -> ExportRecord {
    ExportRecord {
        service: service.parse().unwrap(),
        endpoint: endpoint.into(),
        payload: Payload::Tcp,
        url: "tcp://192.0.2.1:7443".into(),
        labels: labels.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect(),
        allow: allow.iter().map(|p| p.parse().unwrap()).collect(),
    }
}

fn by_service(service: &str) -> Endpoint {
    Endpoint { network_service_names: vec![service.into()], ..Default::default() }
}

fn labels(service: &str, pairs: &[(&str, &str)]) -> BTreeMap<String, NetworkServiceLabels> {
    let labels = pairs.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect();
    [(service.into(), NetworkServiceLabels { labels, ..NetworkServiceLabels::default() })].into()
}

fn names(found: &[Endpoint]) -> Vec<&str> {
    found.iter().map(|e| e.name.as_str()).collect()
}

/// The next answer of a watch: `+name` or `-name`, and the object.
async fn next(answers: &mut Streaming<NetworkServiceEndpointResponse>) -> (String, Endpoint) {
    let answer = timeout(PATIENCE, answers.message()).await.unwrap().unwrap().unwrap();
    let endpoint = answer.network_service_endpoint.unwrap();
    (format!("{}{}", if answer.deleted { '-' } else { '+' }, endpoint.name), endpoint)
}

/// Waits until the registry has `count` watches.
async fn watches(bench: &Bench, count: usize) {
    let reached = async {
        while bench.registry.watch_count() != count {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let seen = timeout(PATIENCE, reached).await;
    assert!(seen.is_ok(), "{} watches, not {count}", bench.registry.watch_count());
}

#[tokio::test]
async fn exports_are_found_as_endpoints_and_services() {
    let bench = Bench::new().await;
    let changes = bench
        .registry
        .set_exports(vec![
            export("postgres", "pg-1", &[("zone", "1"), ("carrick.port", "5432")], &["spiffe://b.test/**"]),
            export("postgres", "pg-2", &[("zone", "2")], &["spiffe://b.test/**"]),
            export("redis", "redis-1", &[], &["spiffe://b.test/**"]),
        ])
        .unwrap();
    assert_eq!(changes, ExportChanges { added: 3, changed: 0, removed: 0 });

    let found = bench.find(PEER, by_service("postgres")).await;
    assert_eq!(names(&found), ["pg-1", "pg-2"]);
    assert_eq!(found[0].url, "tcp://192.0.2.1:7443");
    assert_eq!(found[0].network_service_names, ["postgres"]);
    let expected = [("carrick.payload", "TCP"), ("carrick.port", "5432"), ("zone", "1")];
    assert_eq!(found[0].network_service_labels, labels("postgres", &expected));
    assert!(found[0].initial_registration_time.is_some());
    assert_eq!(found[0].expiration_time, None, "what the domain itself offers does not lapse");

    let subset =
        Endpoint { network_service_labels: labels("postgres", &[("zone", "2")]), ..by_service("postgres") };
    assert_eq!(names(&bench.find(PEER, subset).await), ["pg-2"]);
    let both = Endpoint {
        network_service_labels: labels("postgres", &[("zone", "2"), ("carrick.port", "5432")]),
        ..Default::default()
    };
    assert!(bench.find(PEER, both).await.is_empty(), "all labels asked for have to be there");
    assert_eq!(bench.find(PEER, Endpoint::default()).await.len(), 3, "an empty query finds all");

    let services =
        bench.find_services(PEER, NetworkService { payload: "TCP".into(), ..Default::default() }).await;
    let service =
        |name: &str| NetworkService { name: name.into(), payload: "TCP".into(), ..Default::default() };
    assert_eq!(services.unwrap(), [service("postgres"), service("redis")]);
    assert_eq!(bench.find_services(PEER, service("mysql")).await.unwrap(), []);
}

#[tokio::test]
async fn a_watch_gives_the_state_then_updates_then_the_whole_of_what_is_gone() {
    let bench = Bench::new().await;
    let pg = |zone| export("postgres", "pg-1", &[("zone", zone)], &["spiffe://b.test/**"]);
    bench.registry.set_exports(vec![pg("1")]).unwrap();
    let mut watch = bench.open(PEER, by_service("postgres"), true).await.unwrap();
    let (told, first) = next(&mut watch).await;
    assert_eq!(told, "+pg-1");

    let unchanged = bench.registry.set_exports(vec![pg("1")]).unwrap();
    assert_eq!(unchanged, ExportChanges::default());
    let revision = bench.registry.revision();
    let changes = bench
        .registry
        .set_exports(vec![pg("2"), export("redis", "redis-1", &[], &["spiffe://b.test/**"])])
        .unwrap();
    assert_eq!(changes, ExportChanges { added: 1, changed: 1, removed: 0 });
    assert!(bench.registry.revision() > revision);
    let (told, second) = next(&mut watch).await;
    assert_eq!(
        (told.as_str(), &second.network_service_labels["postgres"].labels["zone"]),
        ("+pg-1", &"2".to_owned())
    );
    assert_eq!(second.initial_registration_time, first.initial_registration_time, "it is as old as it was");

    bench.registry.set_exports(vec![]).unwrap();
    let (told, last) = next(&mut watch).await;
    assert_eq!(told, "-pg-1");
    assert_eq!(last, second, "what is gone is told in full");
}

#[tokio::test]
async fn a_name_with_the_own_domain_is_answered_with_it() {
    let bench = Bench::new().await;
    bench
        .registry
        .set_exports(vec![export("postgres", "pg-1", &[("zone", "1")], &["spiffe://b.test/**"])])
        .unwrap();
    let query = Endpoint {
        network_service_labels: labels("postgres@own.test", &[("zone", "1")]),
        ..by_service("postgres@own.test")
    };
    let found = bench.find(PEER, query.clone()).await;
    assert_eq!(names(&found), ["pg-1@own.test"]);
    assert_eq!(found[0].network_service_names, ["postgres@own.test"]);
    assert!(found[0].network_service_labels.contains_key("postgres@own.test"));
    let by_name = NetworkService { name: "postgres@own.test".into(), ..Default::default() };
    assert_eq!(bench.find_services(PEER, by_name).await.unwrap()[0].name, "postgres@own.test");

    let mut watch = bench.open(PEER, query, true).await.unwrap();
    assert_eq!(next(&mut watch).await.0, "+pg-1@own.test");
    bench.registry.set_exports(vec![]).unwrap();
    assert_eq!(next(&mut watch).await.0, "-pg-1@own.test");
}

#[tokio::test]
async fn what_is_not_for_this_registry_is_refused_in_words() {
    let bench = Bench::new().await;
    let refused = bench.open(PEER, by_service("postgres@b.test"), false).await.unwrap_err();
    assert_eq!(
        refused.code(),
        Code::PermissionDenied,
        "names of other domains are for our own callers: {refused}"
    );
    assert!(refused.message().contains("b.test"), "{refused}");

    let refused = bench.open(PEER, by_service("postgres@"), true).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");

    for refused in [
        bench
            .endpoints()
            .register(from(OWN, Endpoint { name: "x".into(), ..Default::default() }))
            .await
            .unwrap_err(),
        bench
            .endpoints()
            .unregister(from(OWN, Endpoint { name: "x".into(), ..Default::default() }))
            .await
            .unwrap_err(),
    ] {
        assert_eq!(refused.code(), Code::FailedPrecondition);
        assert!(refused.message().contains("has no store"), "{refused}");
    }

    let anonymous = NetworkServiceEndpointQuery {
        network_service_endpoint: None,
        watch: false,
        ..NetworkServiceEndpointQuery::default()
    };
    let refused = bench.endpoints().find(Request::new(anonymous)).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated);
}

#[tokio::test]
async fn a_peer_sees_what_it_is_allowed_and_the_own_domain_everything() {
    let bench = Bench::new().await;
    let set = |allow: &[&str]| {
        let exports = vec![
            export("postgres", "pg-1", &[], allow),
            export("postgres", "pg-2", &[], &["spiffe://c.test/**"]),
            export("secret", "secret-1", &[], &[]),
        ];
        bench.registry.set_exports(exports).unwrap()
    };
    set(&["spiffe://b.test/carrick/*"]);
    assert_eq!(names(&bench.find(PEER, Endpoint::default()).await), ["pg-1"]);
    assert_eq!(names(&bench.find(STRANGER, Endpoint::default()).await), ["pg-2"]);
    assert_eq!(names(&bench.find(OWN, Endpoint::default()).await), ["pg-1", "pg-2", "secret-1"]);
    assert!(bench.find("spiffe://b.test/other/app", Endpoint::default()).await.is_empty());
    assert!(bench.find("spiffe://own.test.evil/carrick/gateway", Endpoint::default()).await.is_empty());
    let services = |found: Vec<NetworkService>| found.into_iter().map(|s| s.name).collect::<Vec<_>>();
    for (caller, seen) in
        [(PEER, &["postgres"][..]), (STRANGER, &["postgres"]), (OWN, &["postgres", "secret"])]
    {
        let found = bench.find_services(caller, NetworkService::default()).await.unwrap();
        assert_eq!(services(found), seen, "{caller}");
    }

    let mut peer = bench.open(PEER, Endpoint::default(), true).await.unwrap();
    let mut own = bench.open(OWN, by_service("postgres"), true).await.unwrap();
    assert_eq!(next(&mut peer).await.0, "+pg-1");
    assert_eq!((next(&mut own).await.0, next(&mut own).await.0), ("+pg-1".into(), "+pg-2".into()));
    assert_eq!(set(&[]).changed, 1);
    assert_eq!(next(&mut peer).await.0, "-pg-1", "what is withdrawn is gone for the peer");
    set(&["spiffe://b.test/**"]);
    assert_eq!(next(&mut peer).await.0, "+pg-1");
    bench.registry.set_exports(vec![]).unwrap();
    assert_eq!(next(&mut own).await.0, "-pg-1", "nothing had changed for the own domain before");
}

#[tokio::test]
async fn a_watcher_that_does_not_read_holds_up_nobody() {
    let bench = Bench::new().await;
    // Enough that the answers do not fit into the windows of the connection that is not read.
    let payload = "x".repeat(64 * 1024);
    let set = |round: usize| {
        let round = round.to_string();
        let labels = [("round", round.as_str()), ("bulk", payload.as_str())];
        let exports =
            (0..8).map(|n| export("bulk", &format!("e{n}"), &labels, &["spiffe://b.test/**"])).collect();
        bench.registry.set_exports(exports).unwrap();
    };
    let query = NetworkServiceEndpointQuery {
        network_service_endpoint: None,
        watch: true,
        ..NetworkServiceEndpointQuery::default()
    };
    let mut stuck = NetworkServiceEndpointRegistryClient::new(connect(&bench.address).await)
        .find(from(PEER, query))
        .await
        .unwrap()
        .into_inner();
    let mut reader = bench.open(PEER, Endpoint::default(), true).await.unwrap();
    watches(&bench, 2).await;
    let round_of = |e: &Endpoint| e.network_service_labels["bulk"].labels["round"].parse::<usize>().unwrap();
    for round in 0..40 {
        set(round);
        let mut current = 0;
        while current < 8 {
            current += usize::from(round_of(&next(&mut reader).await.1) == round);
        }
    }
    // Late, it is told the latest state and not the 320 steps towards it.
    let (mut heard, mut current) = (0, 0);
    while current < 8 {
        current += usize::from(round_of(&next(&mut stuck).await.1) == 39);
        heard += 1;
    }
    assert!(heard < 300, "heard {heard} of 320: nothing was left out");
}

#[tokio::test]
async fn what_is_too_large_is_refused_and_the_next_caller_served() {
    let bench = Bench::new().await;
    bench.registry.set_exports(vec![export("postgres", "pg-1", &[], &["spiffe://b.test/**"])]).unwrap();
    let huge = Endpoint { url: "x".repeat(5 * 1024 * 1024), ..Default::default() };
    let refused = bench.open(PEER, huge, false).await.unwrap_err();
    assert_eq!(refused.code(), Code::OutOfRange, "{refused}");
    assert!(refused.message().contains("4194304"), "{refused}");

    let large = Endpoint { url: "x".repeat(MAX_WATCH_QUERY + 1), ..Default::default() };
    assert!(bench.find(PEER, large.clone()).await.is_empty(), "it may be asked, but not kept");
    let refused = bench.open(PEER, large, true).await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused}");
    assert_eq!(names(&bench.find(PEER, Endpoint::default()).await), ["pg-1"]);
}

#[tokio::test]
async fn a_client_that_leaves_frees_its_watch() {
    let bench = Bench::new().await;
    let channel = connect(&bench.address).await;
    let query = NetworkServiceEndpointQuery {
        network_service_endpoint: None,
        watch: true,
        ..NetworkServiceEndpointQuery::default()
    };
    let mut client = NetworkServiceEndpointRegistryClient::new(channel);
    let one = client.find(from(PEER, query.clone())).await.unwrap();
    let two = client.find(from(PEER, query)).await.unwrap();
    watches(&bench, 2).await;
    assert!(bench.metrics.encode().contains("carrick_registry_watches 2"), "{}", bench.metrics.encode());
    drop(one);
    watches(&bench, 1).await;
    drop((two, client));
    watches(&bench, 0).await;
    assert!(bench.metrics.encode().contains("carrick_registry_watches 0"), "{}", bench.metrics.encode());
}

#[tokio::test]
async fn one_caller_cannot_take_all_watches() {
    let bench = Bench::new().await;
    let mut held = Vec::new();
    for n in 0..MAX_WATCHES_PER_CALLER {
        // A server grants some hundred streams to a connection.
        let query = NetworkServiceEndpointQuery {
            network_service_endpoint: None,
            watch: true,
            ..NetworkServiceEndpointQuery::default()
        };
        if n % 100 == 0 {
            held.push((NetworkServiceEndpointRegistryClient::new(connect(&bench.address).await), Vec::new()));
        }
        let (client, streams) = held.last_mut().unwrap();
        streams.push(client.find(from(PEER, query)).await.unwrap());
    }
    let refused = bench.open(PEER, Endpoint::default(), true).await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted);
    assert!(refused.message().contains(PEER), "{refused}");
    bench.open(STRANGER, Endpoint::default(), true).await.unwrap();
    held.clear();
    watches(&bench, 0).await;
    bench.open(PEER, Endpoint::default(), true).await.unwrap();
}

#[tokio::test]
async fn watches_end_when_the_registry_stops() {
    let bench = Bench::new().await;
    let mut watch = bench.open(PEER, Endpoint::default(), true).await.unwrap();
    watches(&bench, 1).await;
    bench.tasks.stop();
    let end = timeout(PATIENCE, watch.message()).await.unwrap().unwrap_err();
    assert_eq!(end.code(), Code::Unavailable);
    watches(&bench, 0).await;
}

#[tokio::test]
async fn contradictory_exports_leave_the_old_ones_in_force() {
    let bench = Bench::new().await;
    bench.registry.set_exports(vec![export("a", "e", &[], &[])]).unwrap();
    let twice = vec![export("b", "e", &[], &[]), export("c", "e", &[], &[])];
    assert_eq!(bench.registry.set_exports(twice), Err(ExportError::SameEndpoint("e".into())));
    let nameless = vec![export("b", "", &[], &[])];
    assert_eq!(bench.registry.set_exports(nameless), Err(ExportError::NoEndpoint("b".parse().unwrap())));
    let found = bench.registry.find(Filter::own(Endpoint::default()));
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].object().network_service_names, ["a"]);
}
