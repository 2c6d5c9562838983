//! A client and an endpoint that do what NSM's wire asks of them and nothing else: a token for each call, a segment in the path,
//! no policies. What a Request takes between them is what the two daemons take.

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use carrick_identity::{
    Identity, TrustStore, server_config,
    token::{MAX_LIFETIME, Token},
};
use carrick_model::SpiffeId;
use carrick_proto::{
    connection::{
        Connection, ConnectionEvent, MonitorScopeSelector, Path, PathSegment,
        monitor_connection_server::{MonitorConnection, MonitorConnectionServer},
    },
    networkservice::{
        NetworkServiceRequest,
        network_service_client::NetworkServiceClient,
        network_service_server::{NetworkService, NetworkServiceServer},
    },
    registry::NetworkServiceEndpoint,
};
use carrick_tests::{
    lab::{Carrick, Mesh, PORT, Site},
    workload::{self, Workload},
};
use futures::stream::{self, BoxStream, StreamExt as _};
use hyper::server::conn::http2;
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    service::TowerToHyperService,
};
use tokio::{net::TcpListener, task::JoinSet};
use tokio_rustls::TlsAcceptor;
use tonic::{Request, Response, Status, service::Routes, transport::Channel};

use crate::report::{ms, quantiles};

/// The service that is asked for.
const SERVICE: &str = "measured";
/// The domains of client and endpoint.
const NEAR: &str = "cloud.test";
const FAR: &str = "onprem.test";
/// Longest wait for an answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// What a load measured.
pub(super) struct Load {
    /// Requests a second, each with its Close.
    pub(super) rate: f64,
    /// Median and 99th percentile of the time of a Request, in milliseconds.
    pub(super) p50: f64,
    pub(super) p99: f64,
}

/// From the client's daemon to the endpoint's.
struct Way {
    /// Where both ends stand.
    host: Ipv4Addr,
    near: Daemon,
    far: Daemon,
}

/// A daemon of a domain.
struct Daemon {
    state: PathBuf,
    control: SocketAddr,
}

/// Makes and closes connections for some seconds, `workers` at a time. Both ends stand where the first daemon of `mesh` does.
pub(super) fn load(mesh: &Mesh, workers: usize, seconds: u64) -> anyhow::Result<Load> {
    let daemon =
        |carrick: &Carrick, site: &Site| Daemon { state: carrick.state_dir(), control: site.at(PORT) };
    let way =
        Way { host: mesh.lab.a.addr, near: daemon(&mesh.a, &mesh.lab.a), far: daemon(&mesh.b, &mesh.lab.b) };
    mesh.a.ns().enter(|| {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
        runtime.block_on(measure(&way, workers, Duration::from_secs(seconds)))
    })
}

async fn measure(way: &Way, workers: usize, time: Duration) -> anyhow::Result<Load> {
    // It is registered as long as this one is there.
    let _endpoint = Granting::start(way.host, &way.far).await?;
    let client = Client::connect(&way.near).await?;
    // The first one finds the way.
    client.close(client.request(0).await.context("the first Request")?).await.context("the first Close")?;
    let (began, next) = (Instant::now(), AtomicUsize::new(1));
    let work = (0..workers).map(async |_| {
        let mut times = Vec::new();
        while began.elapsed() < time {
            let sent = Instant::now();
            let connection = client.request(next.fetch_add(1, Ordering::Relaxed)).await?;
            let took = sent.elapsed();
            client.close(connection).await?;
            times.push(took);
        }
        anyhow::Ok(times)
    });
    let times = futures::future::try_join_all(work).await?.concat();
    let rate = times.len() as f64 / began.elapsed().as_secs_f64();
    let (p50, p99) = quantiles(times)?;
    Ok(Load { rate, p50: ms(p50), p99: ms(p99) })
}

/// A client with one connection to its domain's daemon.
struct Client {
    channel: Channel,
    identity: Identity,
    daemon: SpiffeId,
}

impl Client {
    async fn connect(daemon: &Daemon) -> anyhow::Result<Self> {
        let (identity, trust) = workload::identity(&daemon.state, NEAR, "nsc")?;
        let channel = workload::dial(&identity, &trust, daemon.control).await?;
        Ok(Self { channel, identity, daemon: workload::gateway(NEAR)? })
    }

    fn token(&self) -> anyhow::Result<Token> {
        Ok(self.identity.mint_token(&self.daemon, MAX_LIFETIME)?)
    }

    fn call<T>(&self, message: T, token: &Token) -> Request<T> {
        let mut call = Request::new(message);
        call.set_timeout(PATIENCE);
        workload::show_token(&mut call, token);
        call
    }

    async fn request(&self, number: usize) -> anyhow::Result<Connection> {
        let (id, token) = (format!("client-{number}"), self.token()?);
        let own = PathSegment {
            name: id.clone(),
            id: id.clone(),
            token: token.jwt.clone(),
            expires: Some(token.expires.into()),
            ..PathSegment::default()
        };
        let connection = Connection {
            id,
            network_service: format!("{SERVICE}@{FAR}"),
            path: Some(Path { index: 0, path_segments: vec![own], ..Path::default() }),
            ..Connection::default()
        };
        let request =
            NetworkServiceRequest { connection: Some(connection), ..NetworkServiceRequest::default() };
        let mut client = NetworkServiceClient::new(self.channel.clone());
        let granted = client.request(self.call(request, &token)).await?.into_inner();
        let segments = granted.path.as_ref().map_or(0, |path| path.path_segments.len());
        ensure!(segments == 4, "a path of {segments} segments instead of 4");
        Ok(granted)
    }

    async fn close(&self, connection: Connection) -> anyhow::Result<()> {
        let token = self.token()?;
        NetworkServiceClient::new(self.channel.clone()).close(self.call(connection, &token)).await?;
        Ok(())
    }
}

/// An endpoint that grants everything, and tells nothing more.
#[derive(Clone)]
struct Granting {
    identity: Identity,
    /// Who calls it: the daemon of its domain.
    daemon: SpiffeId,
    next: Arc<AtomicUsize>,
}

impl Granting {
    /// Serves on `host` and registers with its domain's daemon. It ends with what is returned.
    async fn start(host: Ipv4Addr, daemon: &Daemon) -> anyhow::Result<JoinSet<()>> {
        let (identity, trust) = workload::identity(&daemon.state, FAR, "nse")?;
        let listener = TcpListener::bind((host, 0)).await?;
        let url = format!("tcp://{}", listener.local_addr()?);
        let this = Self { identity, daemon: workload::gateway(FAR)?, next: Arc::default() };
        let mut serving = JoinSet::new();
        serving.spawn(this.serve(listener, trust));
        let registry = Workload::connect(&daemon.state, FAR, "nse", daemon.control).await?;
        let own = NetworkServiceEndpoint {
            name: "granting".into(),
            network_service_names: vec![SERVICE.into()],
            url,
            ..NetworkServiceEndpoint::default()
        };
        registry.register(own).await.context("registering the endpoint")?;
        Ok(serving)
    }

    async fn serve(self, listener: TcpListener, trust: TrustStore) {
        let tls = TlsAcceptor::from(Arc::new(server_config(&self.identity, &trust, &[b"h2"])));
        let routes = Routes::new(NetworkServiceServer::new(self.clone()))
            .add_service(MonitorConnectionServer::new(self));
        let mut connections = JoinSet::new();
        while let Ok((stream, _)) = listener.accept().await {
            let (tls, service) = (tls.clone(), TowerToHyperService::new(routes.clone()));
            connections.spawn(async move {
                let _late = stream.set_nodelay(true);
                let Ok(stream) = tls.accept(stream).await else { return };
                let server = http2::Builder::new(TokioExecutor::new());
                // The daemon breaks it off when it stops.
                let _ended = server.serve_connection(TokioIo::new(stream), service).await;
            });
        }
    }
}

#[tonic::async_trait]
impl NetworkService for Granting {
    async fn request(&self, request: Request<NetworkServiceRequest>) -> Result<Response<Connection>, Status> {
        let mut connection =
            request.into_inner().connection.ok_or_else(|| Status::invalid_argument("empty"))?;
        let token = self.identity.mint_token(&self.daemon, MAX_LIFETIME);
        let token = token.map_err(|e| Status::internal(e.to_string()))?;
        if let Some(path) = &mut connection.path {
            path.path_segments.push(PathSegment {
                name: "granting".into(),
                id: format!("granted-{}", self.next.fetch_add(1, Ordering::Relaxed)),
                token: token.jwt,
                expires: Some(token.expires.into()),
                ..PathSegment::default()
            });
        }
        Ok(Response::new(connection))
    }

    async fn close(&self, _: Request<Connection>) -> Result<Response<()>, Status> {
        Ok(Response::new(()))
    }
}

#[tonic::async_trait]
impl MonitorConnection for Granting {
    type MonitorConnectionsStream = BoxStream<'static, Result<ConnectionEvent, Status>>;

    async fn monitor_connections(
        &self,
        _: Request<MonitorScopeSelector>,
    ) -> Result<Response<Self::MonitorConnectionsStream>, Status> {
        let nothing = stream::iter([Ok(ConnectionEvent::default())]).chain(stream::pending());
        Ok(Response::new(nothing.boxed()))
    }
}
