//! A whole domain in a test: its CA, its control listener, a small registry, its imports and exports, and a data path that
//! writes down what it is told. Everything but the data path and the registry's store is the real thing.

#![allow(dead_code, unreachable_pub, reason = "each test binary uses a part of it")]

use std::{
    collections::{BTreeMap, HashMap},
    net::SocketAddr,
    sync::Arc,
    time::{Duration, SystemTime},
};

mod catalogue;
pub mod workload;

use carrick_identity::{EmbeddedCa, Identity, TrustStore};
use carrick_model::{ConnectionId, Domain, ExportTarget, ServiceName, SpiffeId, TrustDomain};
use carrick_proto::registry::{
    NetworkServiceEndpoint, NetworkServiceEndpointQuery, NetworkServiceEndpointResponse,
    NetworkServiceLabels,
    network_service_endpoint_registry_server::{
        NetworkServiceEndpointRegistry, NetworkServiceEndpointRegistryServer,
    },
    network_service_registry_server::NetworkServiceRegistryServer,
};
use carrick_proxy::{
    catalogue::LocalExport,
    control::ControlListener,
    datapath::{Admission, DataPath, Route},
    explain::Explainer,
    exports::Exports,
    imports::{Import, ImportStatus, Imports},
    monitor::Monitors,
    peers::{Peers, TrustMap},
    resolve::{Resolver, ResolverSettings, StaticPeer},
    server::NetworkServer,
    transit::{ConnectionsFile, SelectSettings, TransitParts, TransitSettings, Transits},
};
use carrick_proxy_core::inbound::InboundSettings;
use carrick_runtime::Tasks;
use carrick_telemetry::Metrics;
use futures::{Stream, StreamExt, stream};
use parking_lot::Mutex;
use tokio::{sync::watch, task::JoinHandle};
use tonic::{Request, Response, Status, service::Routes};

pub use self::catalogue::SiteCatalogue;

/// Longest wait for something that happens within a second or so.
pub const PATIENCE: Duration = Duration::from_secs(15);
/// The file of connections that pass through.
const CONNECTIONS: &str = "connections.redb";

/// Waits until `check` gives something.
pub async fn eventually<T>(what: &str, mut check: impl FnMut() -> Option<T>) -> T {
    let end = tokio::time::Instant::now() + PATIENCE;
    loop {
        if let Some(value) = check() {
            return value;
        }
        assert!(tokio::time::Instant::now() < end, "waited in vain: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[derive(Default)]
pub struct Recorder {
    pub admitted: Mutex<HashMap<ConnectionId, Admission>>,
    pub revoked: Mutex<Vec<(ConnectionId, String)>>,
    pub routes: Mutex<HashMap<ServiceName, Route>>,
    pub unrouted: Mutex<Vec<String>>,
}

impl DataPath for Recorder {
    fn admit(&self, admission: Admission) {
        self.admitted.lock().insert(admission.id, admission);
    }

    fn revoke(&self, id: ConnectionId, why: &str) {
        assert!(self.admitted.lock().remove(&id).is_some(), "revoked what was not admitted");
        self.revoked.lock().push((id, why.to_owned()));
    }

    fn route(&self, import: &ServiceName, route: Route) {
        assert!(!route.gateways.is_empty());
        self.routes.lock().insert(import.clone(), route);
    }

    fn unroute(&self, import: &ServiceName, why: &str) {
        self.routes.lock().remove(import);
        self.unrouted.lock().push(why.to_owned());
    }
}

/// A domain. Dropping it stops it.
pub struct Site {
    pub domain: Domain,
    pub trust: TrustStore,
    pub resolver: Resolver,
    pub datapath: Arc<Recorder>,
    pub metrics: Metrics,
    pub peers: Peers,
    pub imports: Imports,
    pub exports: Exports,
    pub control: SocketAddr,
    pub registry: watch::Sender<Vec<NetworkServiceEndpoint>>,
    pub catalogue: Arc<SiteCatalogue>,
    pub transits: Transits,
    pub tasks: Tasks,
    pub max_lease: Duration,
    keeps: bool,
    pub identity: Identity,
    serving: JoinHandle<()>,
    state: tempfile::TempDir,
}

impl Site {
    pub async fn new(domain: &str) -> Self {
        Self::with_lease(domain, Duration::from_secs(600)).await
    }

    pub async fn with_lease(domain: &str, max_lease: Duration) -> Self {
        Self::begin(domain, max_lease, false).await
    }

    /// A site whose process has a file of the connections that pass through.
    pub async fn keeping(domain: &str, max_lease: Duration) -> Self {
        Self::begin(domain, max_lease, true).await
    }

    async fn begin(domain: &str, max_lease: Duration, keeps: bool) -> Self {
        let state = tempfile::tempdir().unwrap();
        let domain: Domain = domain.parse().unwrap();
        let td = TrustDomain::new(domain.as_str()).unwrap();
        let now = SystemTime::now();
        let ca = EmbeddedCa::open_or_create(state.path(), &td, now).unwrap();
        let trust = TrustStore::new();
        trust.set(ca.bundle()).unwrap();
        let id = SpiffeId::new(format!("spiffe://{td}/carrick/gateway")).unwrap();
        let identity = Identity::embedded(ca, id, Duration::from_secs(3600), now).unwrap();
        let listener = ControlListener::bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let control = listener.local_addr();
        let metrics = Metrics::new();
        // A server that does not answer: what is not under `peers:` is not found.
        let settings = ResolverSettings {
            servers: vec!["127.0.0.1:1".parse().unwrap()],
            timeout: Duration::from_millis(100),
            attempts: 1,
            ..ResolverSettings::default()
        };
        let resolver = Resolver::new(settings, metrics.clone()).unwrap();
        let tasks = Tasks::new();
        let peers = Peers::new(identity.clone(), trust.clone(), TrustMap::new(), resolver.clone(), &tasks);
        let datapath = Arc::new(Recorder::default());
        let dp: Arc<dyn DataPath> = datapath.clone();
        let imports = Imports::new(domain.clone(), peers.clone(), dp, tasks.child(), metrics.clone());
        let registry = watch::Sender::new(Vec::new());
        let catalogue = Arc::new(SiteCatalogue::new(registry.subscribe()));
        let Served { exports, transits, serving } = serve(Parts {
            domain: &domain,
            max_lease,
            datapath: &datapath,
            trust: &trust,
            identity: &identity,
            catalogue: &catalogue,
            peers: &peers,
            tasks: &tasks,
            metrics: &metrics,
            listener,
            file: keeps.then(|| ConnectionsFile::open(&state.path().join(CONNECTIONS)).unwrap()),
        });
        Self {
            domain,
            trust,
            resolver,
            datapath,
            metrics,
            peers,
            imports,
            exports,
            control,
            registry,
            catalogue,
            transits,
            tasks,
            max_lease,
            keeps,
            identity,
            serving,
            state,
        }
    }

    /// Stops serving, forgets who is connected, and serves again at the same address.
    pub async fn restart_server(&mut self) {
        self.stop_server().await;
        self.start_server().await;
    }

    /// Serves again after [`Site::stop_server`].
    pub async fn start_server(&mut self) {
        let domain = self.domain.clone();
        self.datapath.admitted.lock().clear();
        self.tasks = Tasks::new();
        let listener = ControlListener::bind(self.control).await.unwrap();
        let exports = self.exports.list();
        let mut parts = Parts {
            domain: &domain,
            max_lease: self.max_lease,
            datapath: &self.datapath,
            trust: &self.trust,
            identity: &self.identity,
            catalogue: &self.catalogue,
            peers: &self.peers,
            tasks: &self.tasks,
            metrics: &self.metrics,
            listener,
            file: None,
        };
        if self.keeps {
            // The file is free when nobody has the table of before.
            let path = self.state.path().join(CONNECTIONS);
            self.transits = transits(&mut parts, &Monitors::new(self.identity.trust_domain(), &self.tasks));
            let opened = || ConnectionsFile::open(&path).ok();
            parts.file = Some(eventually("the file of connections is free", opened).await);
        }
        let served = serve(parts);
        Served { exports: self.exports, transits: self.transits, serving: self.serving } = served;
        self.exports.set(exports);
    }

    pub async fn stop_server(&mut self) {
        self.tasks.stop();
        (&mut self.serving).await.unwrap();
    }

    /// From now on this domain trusts `other` and knows where it is.
    pub fn knows(&self, other: &Self) {
        self.trusts(other);
        self.finds(&other.domain, other.control);
    }

    pub fn trusts(&self, other: &Self) {
        let td = other.identity.trust_domain();
        self.trust.set((*other.trust.get(&td).unwrap()).clone()).unwrap();
    }

    pub fn finds(&self, domain: &Domain, control: SocketAddr) {
        self.finds_all(&[(domain, control)]);
    }

    pub fn finds_all(&self, all: &[(&Domain, SocketAddr)]) {
        let peer = |(domain, control): &(&Domain, SocketAddr)| StaticPeer {
            domain: (*domain).clone(),
            control: vec![(*control).into()],
            tunnel: vec![],
        };
        self.resolver.set_peers(all.iter().map(peer).collect());
    }

    /// Another identity of this domain: that of a workload in it.
    pub fn workload_identity(&self, name: &str) -> Identity {
        let td = self.identity.trust_domain();
        let now = SystemTime::now();
        let ca = EmbeddedCa::open_or_create(self.state.path(), &td, now).unwrap();
        let id = SpiffeId::new(format!("spiffe://{td}/{name}")).unwrap();
        Identity::embedded(ca, id, Duration::from_secs(3600), now).unwrap()
    }

    /// The domain's endpoints, behind whatever urls they have.
    pub fn registers(&self, endpoints: Vec<NetworkServiceEndpoint>) {
        self.registry.send_replace(endpoints);
    }

    /// Exports `service` under one endpoint for each of `names`, in the registry too.
    pub fn offers(&self, service: &str, names: &[&str], allow: &[&str]) {
        let target: ExportTarget = "tcp://10.0.0.5:5432".parse().unwrap();
        let export = |name: &&str| LocalExport {
            endpoint: (*name).to_owned(),
            service: service.parse().unwrap(),
            payload: target.payload(),
            target: target.clone(),
            allow: allow.iter().map(|p| p.parse().unwrap()).collect(),
        };
        self.exports.set(names.iter().map(export).collect());
        self.registry.send_replace(names.iter().map(|n| endpoint(n, service)).collect());
    }

    pub fn import(&self, service: &str) -> ServiceName {
        let service: ServiceName = service.parse().unwrap();
        self.imports.add(Import::new(service.clone(), None)).unwrap();
        service
    }

    pub fn explainer(&self) -> Explainer {
        Explainer::new(self.peers.clone(), self.exports.clone())
    }

    pub fn status(&self, service: &ServiceName) -> ImportStatus {
        self.imports.snapshot().into_iter().find(|i| &i.service == service).unwrap()
    }

    pub async fn up(&self, service: &ServiceName) -> Route {
        eventually("the import comes up", || self.datapath.routes.lock().get(service).cloned()).await
    }

    /// The status once the import is down with a fault of this kind.
    pub async fn down_with(&self, service: &ServiceName, kind: &str) -> ImportStatus {
        let down = eventually("the import is down", || {
            let status = self.status(service);
            let fault = status.last_fault.as_ref()?;
            (fault.kind == kind && !status.state.is_up()).then_some(status)
        });
        let result = tokio::time::timeout(PATIENCE - Duration::from_secs(1), down).await;
        result.unwrap_or_else(|_| panic!("not down with `{kind}` but {:?}", self.status(service)))
    }

    /// How many handshakes of others were refused, for whatever reason.
    pub fn handshakes_refused(&self) -> u64 {
        let lines = self.metrics.encode();
        let of = |l: &str| l.rsplit(' ').next().and_then(|n| n.parse::<u64>().ok()).unwrap_or_default();
        lines.lines().filter(|l| l.starts_with("carrick_control_handshakes_refused_total")).map(of).sum()
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        self.tasks.stop();
    }
}

/// What `new` and `restart_server` share.
struct Parts<'a> {
    domain: &'a Domain,
    max_lease: Duration,
    datapath: &'a Arc<Recorder>,
    trust: &'a TrustStore,
    identity: &'a Identity,
    catalogue: &'a Arc<SiteCatalogue>,
    peers: &'a Peers,
    tasks: &'a Tasks,
    metrics: &'a Metrics,
    listener: ControlListener,
    file: Option<ConnectionsFile>,
}

struct Served {
    exports: Exports,
    transits: Transits,
    serving: JoinHandle<()>,
}

/// The connections that pass through; takes the file.
fn transits(parts: &mut Parts<'_>, monitors: &Monitors) -> Transits {
    let (domain, identity) = (parts.domain.clone(), parts.identity.clone());
    let mut settings = TransitSettings::new(InboundSettings::new(domain.clone()).own_name);
    settings.max_lease = parts.max_lease;
    let (trust_domain, forwarder) = (identity.trust_domain(), Some("forwarder".to_owned()));
    let transit_parts = TransitParts {
        settings,
        select: SelectSettings { domain, trust_domain, forwarder },
        catalogue: parts.catalogue.clone(),
        beyond: None,
        peers: parts.peers.clone(),
        identity,
        trust: parts.trust.clone(),
        monitors: monitors.clone(),
        file: parts.file.take(),
        metrics: parts.metrics.clone(),
    };
    Transits::new(transit_parts, parts.tasks)
}

fn serve(mut parts: Parts<'_>) -> Served {
    let monitors = Monitors::new(parts.identity.trust_domain(), parts.tasks);
    let transits = transits(&mut parts, &monitors);
    let Parts { domain, max_lease, datapath, trust, identity, catalogue, tasks, metrics, listener, .. } =
        parts;
    let mut settings = InboundSettings::new(domain.clone());
    settings.max_lease = max_lease;
    let tunnel = vec!["127.0.0.1:9".parse().unwrap()];
    let dp: Arc<dyn DataPath> = datapath.clone();
    let exports =
        Exports::new(settings, tunnel, dp, identity, trust, monitors.clone(), tasks, metrics.clone());
    transits.set_own_urls(&[format!("tcp://{}", listener.local_addr())]);
    let mut routes = Routes::builder();
    let network = NetworkServer::new(exports.clone(), metrics.clone()).with_transits(transits.clone());
    routes.add_service(network.into_service());
    routes.add_service(monitors.into_service());
    routes.add_service(NetworkServiceEndpointRegistryServer::new(Registry(catalogue.endpoints())));
    routes.add_service(NetworkServiceRegistryServer::new(catalogue::Services(catalogue.clone())));
    let (identity, trust, tasks, metrics) = (identity.clone(), trust.clone(), tasks.clone(), metrics.clone());
    let serving = tokio::spawn(async move {
        listener.serve(routes.routes(), &identity, &trust, tasks, metrics).await;
    });
    Served { exports, transits, serving }
}

fn endpoint(name: &str, service: &str) -> NetworkServiceEndpoint {
    let labels: BTreeMap<String, String> = [("carrick.port", "5432"), ("carrick.payload", "TCP")]
        .map(|(k, v)| (k.to_owned(), v.to_owned()))
        .into();
    NetworkServiceEndpoint {
        name: name.to_owned(),
        network_service_names: vec![service.to_owned()],
        network_service_labels: [(
            service.to_owned(),
            NetworkServiceLabels { labels, ..NetworkServiceLabels::default() },
        )]
        .into(),
        ..Default::default()
    }
}

/// Find of one list, with watch.
struct Registry(watch::Receiver<Vec<NetworkServiceEndpoint>>);

type Found = std::pin::Pin<Box<dyn Stream<Item = Result<NetworkServiceEndpointResponse, Status>> + Send>>;

#[tonic::async_trait]
impl NetworkServiceEndpointRegistry for Registry {
    type FindStream = Found;

    async fn register(
        &self,
        _: Request<NetworkServiceEndpoint>,
    ) -> Result<Response<NetworkServiceEndpoint>, Status> {
        Err(Status::unimplemented("not in these tests"))
    }

    async fn unregister(&self, _: Request<NetworkServiceEndpoint>) -> Result<Response<()>, Status> {
        Err(Status::unimplemented("not in these tests"))
    }

    async fn find(&self, request: Request<NetworkServiceEndpointQuery>) -> Result<Response<Found>, Status> {
        let query = request.into_inner();
        let pattern = query.network_service_endpoint.unwrap_or_default();
        let mut list = self.0.clone();
        let fits = move |e: &NetworkServiceEndpoint| {
            let wanted = &pattern.network_service_names;
            (pattern.name.is_empty() || pattern.name == e.name)
                && wanted.iter().all(|w| e.network_service_names.contains(w))
        };
        let told = |endpoint: &NetworkServiceEndpoint, deleted| {
            Ok(NetworkServiceEndpointResponse {
                network_service_endpoint: Some(endpoint.clone()),
                deleted,
                ..NetworkServiceEndpointResponse::default()
            })
        };
        let mut before: Vec<_> = list.borrow_and_update().iter().filter(|e| fits(e)).cloned().collect();
        let first: Vec<_> = before.iter().map(|e| told(e, false)).collect();
        if !query.watch {
            return Ok(Response::new(stream::iter(first).boxed()));
        }
        let (changes, rest) = tokio::sync::mpsc::channel(16);
        tokio::spawn(async move {
            while list.changed().await.is_ok() {
                let after: Vec<_> = list.borrow_and_update().iter().filter(|e| fits(e)).cloned().collect();
                let gone = before.iter().filter(|e| !after.contains(e)).map(|e| told(e, true));
                let new = after.iter().filter(|e| !before.contains(e)).map(|e| told(e, false));
                for change in new.chain(gone).collect::<Vec<_>>() {
                    if changes.send(change).await.is_err() {
                        return;
                    }
                }
                before = after;
            }
        });
        let rest = stream::unfold(rest, |mut rx| async move { rx.recv().await.map(|item| (item, rx)) });
        Ok(Response::new(stream::iter(first).chain(rest).boxed()))
    }
}
