//! What stands at the two ends of a path: a client and an endpoint as NSM has them, each with an SVID of its domain, over real
//! sockets. They follow NSM's rules on paths and tokens by themselves; nothing of the proxy's is used for it.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

use carrick_identity::{Caller, Identity};
use carrick_proto::{
    UnknownFields,
    connection::{
        Connection, ConnectionEvent, ConnectionEventType, MonitorScopeSelector, Path, PathSegment, State,
        monitor_connection_client::MonitorConnectionClient,
        monitor_connection_server::{MonitorConnection, MonitorConnectionServer},
    },
    networkservice::{
        NetworkServiceRequest,
        network_service_client::NetworkServiceClient,
        network_service_server::{NetworkService, NetworkServiceServer},
    },
    registry::{NetworkServiceEndpoint, NetworkServiceLabels},
};
use carrick_proxy::{
    control::ControlListener,
    peers::{Link, Peers, Role, TrustMap},
    resolve::{Resolver, ResolverSettings, StaticPeer},
};
use carrick_runtime::Tasks;
use carrick_telemetry::Metrics;
use futures::stream::{self, BoxStream, StreamExt};
use parking_lot::Mutex;
use tokio::sync::broadcast;
use tonic::{Request, Response, Status, Streaming, service::Routes};

use super::Site;

/// Lease of the tokens of a client, and so of what it holds.
const LEASE: Duration = Duration::from_secs(600);

/// A client of one connection.
pub struct Client {
    pub name: String,
    pub link: Link,
    /// The last answer.
    pub connection: Connection,
}

impl Client {
    /// A client in the domain of `site`, connected to its proxy.
    pub async fn of(site: &Site, name: &str) -> Self {
        let link = link_of(site, site.workload_identity(name)).await;
        Self { name: name.to_owned(), link, connection: Connection::default() }
    }

    /// Asks for `service`, with nothing else said.
    pub async fn request(&mut self, service: &str) -> Result<Connection, Status> {
        self.request_with(service, |_| {}).await
    }

    pub async fn request_with(
        &mut self,
        service: &str,
        change: impl FnOnce(&mut NetworkServiceRequest),
    ) -> Result<Connection, Status> {
        let id = format!("{}-id", self.name);
        let own = PathSegment { name: self.name.clone(), id: id.clone(), ..PathSegment::default() };
        let connection = Connection {
            id,
            network_service: service.to_owned(),
            path: Some(Path { index: 0, path_segments: vec![own], ..Path::default() }),
            ..Connection::default()
        };
        let mut request =
            NetworkServiceRequest { connection: Some(connection), ..NetworkServiceRequest::default() };
        change(&mut request);
        self.send(request).await
    }

    /// Sends the last answer again.
    pub async fn refresh(&mut self) -> Result<Connection, Status> {
        let connection = Some(self.connection.clone());
        self.send(NetworkServiceRequest { connection, ..NetworkServiceRequest::default() }).await
    }

    /// Gives up the endpoint for another one.
    pub async fn reselect(&mut self) -> Result<Connection, Status> {
        let mut connection = self.connection.clone();
        connection.network_service_endpoint_name.clear();
        connection.mechanism = None;
        connection.set_state(State::ReselectRequested);
        self.send(NetworkServiceRequest { connection: Some(connection), ..NetworkServiceRequest::default() })
            .await
    }

    pub async fn send(&mut self, mut request: NetworkServiceRequest) -> Result<Connection, Status> {
        if let Some(own) =
            request.connection.as_mut().and_then(|c| c.path.as_mut()?.path_segments.first_mut())
        {
            own.expires = Some((SystemTime::now() + LEASE).into());
        }
        let mut request = Request::new(request);
        request.set_timeout(Duration::from_secs(10));
        let answer =
            NetworkServiceClient::new(self.link.channel.clone()).request(request).await?.into_inner();
        self.connection = answer.clone();
        Ok(answer)
    }

    pub async fn close(&self) -> Result<(), Status> {
        let close = self.connection.clone();
        NetworkServiceClient::new(self.link.channel.clone()).close(close).await.map(drop)
    }

    /// Watches the own connection at the next hop, as NSM's heal does.
    pub async fn monitor(&self) -> Streaming<ConnectionEvent> {
        let run = self.connection.path.as_ref().unwrap().path_segments[1].clone();
        let run = PathSegment { name: run.name, id: run.id, ..PathSegment::default() };
        self.monitor_with(MonitorScopeSelector {
            path_segments: vec![run],
            ..MonitorScopeSelector::default()
        })
        .await
    }

    pub async fn monitor_with(&self, selector: MonitorScopeSelector) -> Streaming<ConnectionEvent> {
        let mut client = MonitorConnectionClient::new(self.link.channel.clone());
        client.monitor_connections(selector).await.unwrap().into_inner()
    }
}

/// A connection of its own to the proxy of `site`.
async fn link_of(site: &Site, identity: Identity) -> Link {
    let settings = ResolverSettings {
        servers: vec!["127.0.0.1:1".parse().unwrap()],
        timeout: Duration::from_millis(100),
        attempts: 1,
        ..ResolverSettings::default()
    };
    let resolver = Resolver::new(settings, Metrics::new()).unwrap();
    resolver.set_peers(vec![StaticPeer {
        domain: site.domain.clone(),
        control: vec![site.control.into()],
        tunnel: vec![],
    }]);
    let peers = Peers::new(identity, site.trust.clone(), TrustMap::new(), resolver, &Tasks::new());
    let gateways = peers.gateways(&site.domain).await.unwrap();
    peers.dial(&site.domain, Role::Connect, &gateways).await.unwrap()
}

/// Names and ids of a path.
pub fn hops(connection: &Connection) -> Vec<(String, String)> {
    let path = connection.path.as_ref().unwrap();
    path.path_segments.iter().map(|s| (s.name.clone(), s.id.clone())).collect()
}

/// An endpoint that grants everything.
#[derive(Clone)]
pub struct Endpoint {
    pub name: String,
    pub url: String,
    pub held: Arc<Mutex<BTreeMap<String, Connection>>>,
    /// What the last request said that this endpoint does not know.
    pub unknown: Arc<Mutex<UnknownFields>>,
    events: broadcast::Sender<ConnectionEvent>,
    next: Arc<AtomicU64>,
    /// How many monitors were ever opened here.
    pub monitors: Arc<AtomicU64>,
    tasks: Tasks,
    identity: Identity,
    /// A passthrough: it asks for the same service onward, over this connection, with these labels.
    onward: Arc<Mutex<Option<Onward>>>,
}

/// Where a passthrough asks, and with which labels.
type Onward = (Link, BTreeMap<String, String>);

impl Endpoint {
    /// An endpoint in the domain of `site`, serving.
    pub async fn of(site: &Site, name: &str) -> Self {
        let listener = ControlListener::bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let identity = site.workload_identity(name);
        let endpoint = Self {
            name: name.to_owned(),
            url: format!("tcp://{}", listener.local_addr()),
            held: Arc::default(),
            unknown: Arc::default(),
            events: broadcast::channel(64).0,
            next: Arc::default(),
            monitors: Arc::default(),
            tasks: Tasks::new(),
            identity: identity.clone(),
            onward: Arc::default(),
        };
        let mut routes = Routes::builder();
        routes.add_service(NetworkServiceServer::new(endpoint.clone()));
        routes.add_service(MonitorConnectionServer::new(endpoint.clone()));
        let (trust, tasks) = (site.trust.clone(), endpoint.tasks.clone());
        let _serves = endpoint.tasks.spawn("endpoint", async move {
            listener.serve(routes.routes(), &identity, &trust, tasks, Metrics::new()).await;
        });
        endpoint
    }

    /// From now on what it is asked for goes on to the proxy of `site`, as a client with these labels asks.
    pub async fn passes_on(&self, site: &Site, labels: &[(&str, &str)]) {
        let labels = labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        // With the SVID that it serves with: its callers verify the tokens that it leaves in the path against that one.
        let link = link_of(site, self.identity.clone()).await;
        *self.onward.lock() = Some((link, labels));
    }

    /// Its entry in a registry, offering `service`.
    pub fn record(&self, service: &str, labels: &[(&str, &str)]) -> NetworkServiceEndpoint {
        let labels = labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        NetworkServiceEndpoint {
            name: self.name.clone(),
            network_service_names: vec![service.to_owned()],
            network_service_labels: [(
                service.to_owned(),
                NetworkServiceLabels { labels, ..NetworkServiceLabels::default() },
            )]
            .into(),
            url: self.url.clone(),
            path_ids: vec![self.identity.id().to_string()],
            ..NetworkServiceEndpoint::default()
        }
    }

    /// All that it holds is in this state now, and it says so.
    pub fn tell(&self, state: State) {
        let mut held = self.held.lock();
        held.values_mut().for_each(|c| c.set_state(state));
        let mut event = ConnectionEvent { connections: held.clone(), ..ConnectionEvent::default() };
        event.set_type(ConnectionEventType::Update);
        let _nobody_listens = self.events.send(event);
    }

    pub async fn stop(&self) {
        self.tasks.stop();
        assert!(self.tasks.wait(Duration::from_secs(10)).await);
    }
}

#[tonic::async_trait]
impl NetworkService for Endpoint {
    async fn request(&self, request: Request<NetworkServiceRequest>) -> Result<Response<Connection>, Status> {
        let caller = request.extensions().get::<Caller>().cloned().unwrap();
        let token = request.metadata().get("nsm-client-token").unwrap().to_str().unwrap().to_owned();
        let request = request.into_inner();
        *self.unknown.lock() = request.unknown_fields;
        let mut connection = request.connection.unwrap();
        let own = caller.mint_token(&self.identity, LEASE, SystemTime::now()).unwrap();
        let path = connection.path.as_mut().unwrap();
        let index = path.index as usize;
        assert_eq!(path.path_segments[index].id, connection.id, "the id is that of the caller's segment");
        path.path_segments[index].token = token;
        let passes = self.onward.lock().is_some();
        if path.path_segments.get(index + 1).is_none_or(|s| s.name != self.name) {
            path.path_segments.truncate(index + 1);
            let id = format!("{}-{}", self.name, self.next.fetch_add(1, Ordering::Relaxed));
            path.path_segments.push(PathSegment { name: self.name.clone(), id, ..PathSegment::default() });
        }
        if !passes {
            path.path_segments.truncate(index + 2);
        }
        let segment = &mut path.path_segments[index + 1];
        segment.token = own.jwt;
        segment.expires = Some(own.expires.into());
        let id = segment.id.clone();
        connection.set_state(State::Up);
        let mut ours = connection.clone();
        ours.id.clone_from(&id);
        ours.path.as_mut().unwrap().index += 1;
        let onward = self.onward.lock().clone();
        if let Some((link, labels)) = onward {
            let mut asked = ours.clone();
            asked.labels = labels;
            asked.network_service_endpoint_name = String::new();
            let asked = NetworkServiceRequest { connection: Some(asked), ..NetworkServiceRequest::default() };
            let answer = NetworkServiceClient::new(link.channel.clone()).request(asked).await?.into_inner();
            ours.path = answer.path;
            connection.path = ours.path.clone();
            connection.path.as_mut().unwrap().index -= 1;
        }
        self.held.lock().insert(id.clone(), ours.clone());
        let mut event = ConnectionEvent { connections: [(id, ours)].into(), ..ConnectionEvent::default() };
        event.set_type(ConnectionEventType::Update);
        let _nobody_listens = self.events.send(event);
        Ok(Response::new(connection))
    }

    async fn close(&self, request: Request<Connection>) -> Result<Response<()>, Status> {
        let path = request.into_inner().path.unwrap();
        let ours = path.path_segments.get(path.index as usize + 1);
        if let Some(ours) = ours {
            self.held.lock().remove(&ours.id);
        }
        Ok(Response::new(()))
    }
}

#[tonic::async_trait]
impl MonitorConnection for Endpoint {
    type MonitorConnectionsStream = BoxStream<'static, Result<ConnectionEvent, Status>>;

    async fn monitor_connections(
        &self,
        _: Request<MonitorScopeSelector>,
    ) -> Result<Response<Self::MonitorConnectionsStream>, Status> {
        self.monitors.fetch_add(1, Ordering::Relaxed);
        let events = self.events.subscribe();
        let initial = ConnectionEvent { connections: self.held.lock().clone(), ..ConnectionEvent::default() };
        let rest =
            stream::unfold(events, |mut events| async move { Some((Ok(events.recv().await.ok()?), events)) });
        Ok(Response::new(stream::iter([Ok(initial)]).chain(rest).boxed()))
    }
}
