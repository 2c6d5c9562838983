//! Registries of two and three domains that federate over real connections.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use carrick_identity::{EmbeddedCa, Identity, TrustStore};
use carrick_model::{Domain, Payload, SpiffeId, TrustDomain};
use carrick_proto::registry::{
    NetworkServiceEndpoint, NetworkServiceEndpointQuery, NetworkServiceEndpointResponse, NetworkServiceQuery,
    network_service_endpoint_registry_client::NetworkServiceEndpointRegistryClient,
    network_service_registry_client::NetworkServiceRegistryClient,
};
use carrick_proxy::{
    TokenChannel,
    control::ControlListener,
    peers::{Peers, Role, TrustMap},
    resolve::{Resolver, ResolverSettings, StaticPeer},
};
use carrick_registry::{ExportRecord, Registry, federation::Federation};
use carrick_runtime::Tasks;
use carrick_telemetry::Metrics;
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
};
use tonic::{Code, Status, Streaming, service::Routes};

use super::RemotePeers;

/// One domain: its CA, its registry behind its control listener, and its connections to others.
struct Site {
    domain: Domain,
    ca: EmbeddedCa,
    trust: TrustStore,
    resolver: Resolver,
    registry: Registry,
    federation: Federation,
    control: SocketAddr,
    tasks: Tasks,
    _state: tempfile::TempDir,
}

impl Site {
    async fn new(domain: &str) -> Self {
        let state = tempfile::tempdir().unwrap();
        let domain: Domain = domain.parse().unwrap();
        let td = TrustDomain::new(domain.as_str()).unwrap();
        let now = SystemTime::now();
        let open = || EmbeddedCa::open_or_create(state.path(), &td, now).unwrap();
        let (trust, tasks, metrics) = (TrustStore::new(), Tasks::new(), Metrics::new());
        trust.set(open().bundle()).unwrap();
        let id = SpiffeId::new(format!("spiffe://{td}/carrick/gateway")).unwrap();
        let identity = Identity::embedded(open(), id, Duration::from_secs(3600), now).unwrap();
        let resolver = resolver(&metrics);
        let peers = Peers::new(identity.clone(), trust.clone(), TrustMap::new(), resolver.clone(), &tasks);
        let listener = ControlListener::bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let control = listener.local_addr();
        let registry = Registry::new(domain.clone(), td.clone(), &tasks, &metrics);
        let remotes = Arc::new(RemotePeers(peers));
        let federation = Federation::new(remotes, format!("tcp://{control}"), &tasks, &metrics);
        registry.set_federation(federation.clone());
        let routes = Routes::new(registry.service_registry()).add_service(registry.endpoint_registry());
        let (trust_of_server, tasks_of_server) = (trust.clone(), tasks.clone());
        let _served = tasks.spawn("serve", async move {
            listener.serve(routes, &identity, &trust_of_server, tasks_of_server, metrics).await;
        });
        let ca = open();
        Self { domain, ca, trust, resolver, registry, federation, control, tasks, _state: state }
    }

    /// Both trust each other.
    fn federates_with(&self, other: &Self) {
        self.trust.set(other.ca.bundle()).unwrap();
        other.trust.set(self.ca.bundle()).unwrap();
    }

    /// This one finds the others there.
    fn finds(&self, others: &[(&Self, SocketAddr)]) {
        let peer = |(other, at): &(&Self, SocketAddr)| StaticPeer {
            domain: other.domain.clone(),
            control: vec![(*at).into()],
            tunnel: vec![],
        };
        self.resolver.set_peers(others.iter().map(peer).collect());
    }

    /// Offers `service` with these endpoints to whoever `allow` names.
    fn offers(&self, service: &str, endpoints: &[&str], allow: &str) {
        let record = |endpoint: &&str| ExportRecord {
            service: service.parse().unwrap(),
            endpoint: (*endpoint).to_owned(),
            payload: Payload::Tcp,
            url: format!("tcp://{}", self.control),
            labels: [("app".to_owned(), "x".to_owned())].into(),
            allow: vec![allow.parse().unwrap()],
        };
        self.registry.set_exports(endpoints.iter().map(record).collect()).unwrap();
    }

    /// A process of this domain that talks to the registry of `other`, as NSM's do: its own SVID, its own connection.
    async fn process(&self, other: &Self) -> Client {
        let td = TrustDomain::new(self.domain.as_str()).unwrap();
        let id = SpiffeId::new(format!("spiffe://{td}/nsmgr")).unwrap();
        let ca = EmbeddedCa::open_or_create(self._state.path(), &td, SystemTime::now()).unwrap();
        let identity = Identity::embedded(ca, id, Duration::from_secs(3600), SystemTime::now()).unwrap();
        let resolver = resolver(&Metrics::new());
        resolver.set_peers(vec![StaticPeer {
            domain: other.domain.clone(),
            control: vec![other.control.into()],
            tunnel: vec![],
        }]);
        let peers = Peers::new(identity, self.trust.clone(), TrustMap::new(), resolver, &self.tasks);
        let gateways = peers.gateways(&other.domain).await.unwrap();
        let link = peers.dial(&other.domain, Role::Registry, &gateways).await.unwrap();
        Client(link.channel)
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        self.tasks.stop();
    }
}

/// A server that does not answer: what is not given by `set_peers` is not found.
fn resolver(metrics: &Metrics) -> Resolver {
    let settings = ResolverSettings {
        servers: vec!["127.0.0.1:1".parse().unwrap()],
        timeout: Duration::from_millis(100),
        attempts: 1,
        ..ResolverSettings::default()
    };
    Resolver::new(settings, metrics.clone()).unwrap()
}

struct Client(TokenChannel);

impl Client {
    async fn stream(
        &self,
        service: &str,
        watch: bool,
    ) -> Result<Streaming<NetworkServiceEndpointResponse>, Status> {
        let endpoint =
            NetworkServiceEndpoint { network_service_names: vec![service.into()], ..Default::default() };
        let query = NetworkServiceEndpointQuery {
            network_service_endpoint: Some(endpoint),
            watch,
            ..NetworkServiceEndpointQuery::default()
        };
        let mut client = NetworkServiceEndpointRegistryClient::new(self.0.clone());
        client.find(query).await.map(tonic::Response::into_inner)
    }

    async fn find(&self, service: &str) -> Result<Vec<NetworkServiceEndpoint>, Status> {
        let mut answers = self.stream(service, false).await?;
        let mut found = Vec::new();
        while let Some(answer) = answers.message().await? {
            found.push(answer.network_service_endpoint.unwrap());
        }
        Ok(found)
    }
}

async fn next(watch: &mut Streaming<NetworkServiceEndpointResponse>) -> (String, bool) {
    let answer = tokio::time::timeout(Duration::from_secs(10), watch.message()).await.expect("in time");
    let answer = answer.unwrap().expect("the stream goes on");
    (answer.network_service_endpoint.unwrap().name, answer.deleted)
}

/// A line between two domains that can be cut without a word: it accepts and carries until then, and after that swallows.
struct Line {
    at: SocketAddr,
    stopped: tokio::sync::watch::Sender<bool>,
}

impl Line {
    async fn to(target: SocketAddr, tasks: &Tasks) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = listener.local_addr().unwrap();
        let stopped = tokio::sync::watch::Sender::new(false);
        let (cut, inner) = (stopped.clone(), tasks.clone());
        let _carries = tasks.spawn("line", async move {
            while let Ok((mut near, _)) = listener.accept().await {
                let mut cut = cut.subscribe();
                let _carried = inner.spawn("carry", async move {
                    let mut far = None;
                    if !*cut.borrow() {
                        let far = far.insert(TcpStream::connect(target).await.unwrap());
                        tokio::select! {
                            _ = copy_bidirectional(&mut near, far) => return,
                            _ = cut.wait_for(|stopped| *stopped) => {}
                        }
                    }
                    // The sockets stay open and nobody reads them.
                    let _held = (near, far);
                    std::future::pending::<()>().await;
                });
            }
        });
        Self { at, stopped }
    }

    fn goes_dead(&self) {
        self.stopped.send_replace(true);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_local_client_finds_and_watches_what_another_domain_offers() {
    let (a, b) = (Site::new("a.test").await, Site::new("b.test").await);
    a.federates_with(&b);
    a.finds(&[(&b, b.control)]);
    b.offers("web", &["web-1"], "spiffe://a.test/**");
    let client = a.process(&a).await;

    let found = client.find("web@b.test").await.unwrap();
    assert_eq!(found.len(), 1);
    assert_eq!(
        (found[0].name.as_str(), &found[0].network_service_names),
        ("web-1@b.test", &vec!["web@b.test".to_owned()])
    );
    assert_eq!(found[0].url, format!("tcp://{}", a.control), "requests go to our own connection manager");
    assert_eq!(found[0].network_service_labels["web@b.test"].labels["app"], "x");
    let at = a.federation.locate(&b.domain, "web-1").await.unwrap();
    assert_eq!(at, Some(format!("tcp://{}", b.control)));
    assert!(
        client.find("web@a.test").await.unwrap().is_empty(),
        "the own domain is asked without the network"
    );

    let service = carrick_proto::registry::NetworkService { name: "web@b.test".into(), ..Default::default() };
    let query = NetworkServiceQuery {
        network_service: Some(service),
        watch: false,
        ..NetworkServiceQuery::default()
    };
    let mut services =
        NetworkServiceRegistryClient::new(client.0.clone()).find(query).await.unwrap().into_inner();
    let answer = services.message().await.unwrap().unwrap().network_service.unwrap();
    assert_eq!((answer.name.as_str(), answer.payload.as_str()), ("web@b.test", "TCP"));

    let mut one = client.stream("web@b.test", true).await.unwrap();
    let mut two = client.stream("web@b.test", true).await.unwrap();
    for watch in [&mut one, &mut two] {
        assert_eq!(next(watch).await, ("web-1@b.test".into(), false));
    }
    assert_eq!(b.registry.watch_count(), 1, "one watch for both");
    b.offers("web", &["web-2"], "spiffe://a.test/**");
    for watch in [&mut one, &mut two] {
        let mut told = [next(watch).await, next(watch).await];
        told.sort();
        assert_eq!(told, [("web-1@b.test".into(), true), ("web-2@b.test".into(), false)]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_of_three_domains_shows_what_its_policy_lets_see_and_none_relays_for_another() {
    let (a, b, c) = (Site::new("a.test").await, Site::new("b.test").await, Site::new("c.test").await);
    a.federates_with(&b);
    a.federates_with(&c);
    a.finds(&[(&b, b.control), (&c, c.control)]);
    b.offers("web", &["web-b"], "spiffe://a.test/**");
    c.offers("web", &["web-c"], "spiffe://nobody.test/**");
    let client = a.process(&a).await;
    assert_eq!(client.find("web@b.test").await.unwrap()[0].name, "web-b@b.test");
    assert!(client.find("web@c.test").await.unwrap().is_empty(), "what is not for us does not exist");

    let stranger = c.process(&a).await;
    let status = stranger.find("web@b.test").await.unwrap_err();
    assert_eq!(status.code(), Code::PermissionDenied, "c has to ask b itself: {status}");
    let status = client.find("web@nowhere.test").await.unwrap_err();
    assert!(status.message().contains("the registry of nowhere.test"), "{status}");
    // Trust is part of it: b is found, and not trusted any more.
    a.trust.remove(&TrustDomain::new("b.test").unwrap());
    let status = client.find("web@b.test").await.unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition, "{status}");
    assert!(status.message().contains("to be mended here"), "{status}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_domain_that_dies_without_a_word_is_lost_within_three_seconds() {
    let (a, b, c) = (Site::new("a.test").await, Site::new("b.test").await, Site::new("c.test").await);
    a.federates_with(&b);
    a.federates_with(&c);
    let line = Line::to(b.control, &a.tasks).await;
    a.finds(&[(&b, line.at), (&c, c.control)]);
    for site in [&b, &c] {
        site.offers("web", &["web-1"], "spiffe://a.test/**");
    }
    let client = a.process(&a).await;
    let mut dying = client.stream("web@b.test", true).await.unwrap();
    let mut living = client.stream("web@c.test", true).await.unwrap();
    assert_eq!(next(&mut dying).await.0, "web-1@b.test");
    assert_eq!(next(&mut living).await.0, "web-1@c.test");

    line.goes_dead();
    let began = Instant::now();
    let end = tokio::time::timeout(Duration::from_secs(10), dying.message()).await.expect("it ends");
    assert!(matches!(end, Ok(None)), "the end of the stream: {end:?}");
    assert!(began.elapsed() < Duration::from_millis(3_200), "{:?}", began.elapsed());
    let views = a.federation.snapshot();
    let stale = views.iter().find(|view| view.domain == b.domain).unwrap();
    assert_eq!((stale.names.as_slice(), stale.stale.is_some()), (["web-1".to_owned()].as_slice(), true));
    let status = client.find("web@b.test").await.unwrap_err();
    assert!(matches!(status.code(), Code::DeadlineExceeded | Code::Unavailable), "{status}");
    c.offers("web", &["web-1", "web-2"], "spiffe://a.test/**");
    assert_eq!(next(&mut living).await, ("web-2@c.test".into(), false), "others are served");

    // Another way to the same domain: who watches anew is served.
    a.finds(&[(&b, b.control), (&c, c.control)]);
    // A dial of the dead line may be in flight, and whoever asks meanwhile shares its fault.
    let served = async {
        loop {
            let Ok(mut watch) = client.stream("web@b.test", true).await else { continue };
            if let Ok(Some(first)) = watch.message().await {
                return (first.network_service_endpoint.unwrap().name, watch);
            }
        }
    };
    let (first, mut again) =
        tokio::time::timeout(Duration::from_secs(20), served).await.expect("served anew");
    assert_eq!(first, "web-1@b.test");
    // And a registry that stops in order ends its watches at once.
    b.tasks.stop();
    let end = tokio::time::timeout(Duration::from_secs(3), again.message()).await.expect("it ends");
    assert!(matches!(end, Ok(None)), "{end:?}");
}
