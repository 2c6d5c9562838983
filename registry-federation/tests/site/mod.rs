//! A registry behind mutual TLS on loopback, and workloads that call it with SVIDs and tokens, as NSM's do.

#![allow(dead_code, unreachable_pub, reason = "each test binary uses a part of it")]

use std::{
    net::SocketAddr,
    path::Path,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, SystemTime},
};

use carrick_identity::{
    Caller, EmbeddedCa, Identity, PeerCertificate, Svid, TrustStore, client_config_with, server_config_with,
    token::{EXPIRES_KEY, MAX_LIFETIME, PATH_KEY, TOKEN_KEY, Token, TokenPath, format_expires},
};
use carrick_model::{SpiffeId, TrustDomain};
use carrick_proto::registry::{
    NetworkService, NetworkServiceEndpoint as Endpoint, NetworkServiceEndpointQuery,
    NetworkServiceEndpointResponse, NetworkServiceQuery,
    network_service_endpoint_registry_client::NetworkServiceEndpointRegistryClient,
    network_service_registry_client::NetworkServiceRegistryClient,
};
use carrick_registry::{Registry, store::Store};
use carrick_runtime::Tasks;
use carrick_telemetry::Metrics;
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::mpsc,
    time::timeout,
};
use tokio_rustls::{TlsAcceptor, TlsConnector, server::TlsStream};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Request, Response, Status, Streaming,
    transport::{Channel, Server, server::Connected},
};

/// Longer than anything here takes, so that a fault is a failure and not a hang.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Certificate authorities of some trust domains, and everybody's trust in all of them.
pub struct World {
    pub trust: TrustStore,
    directory: tempfile::TempDir,
}

impl World {
    pub fn new() -> Self {
        Self { trust: TrustStore::new(), directory: tempfile::tempdir().unwrap() }
    }

    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    /// An SVID of `spiffe://<id>`, for an hour.
    pub fn identity(&self, id: &str) -> Identity {
        self.identity_for(id, Duration::from_secs(3600))
    }

    pub fn identity_for(&self, id: &str, lifetime: Duration) -> Identity {
        let id = SpiffeId::new(format!("spiffe://{id}")).unwrap();
        let td: &TrustDomain = id.trust_domain();
        let directory = self.directory.path().join(td.to_string());
        std::fs::create_dir_all(&directory).unwrap();
        let now = SystemTime::now();
        let ca = EmbeddedCa::open_or_create(&directory, td, now).unwrap();
        self.trust.set(ca.bundle()).unwrap();
        Identity::embedded(ca, id, lifetime, now).unwrap()
    }
}

/// A registry of `own.test` that serves.
pub struct Site {
    pub registry: Registry,
    pub tasks: Tasks,
    pub metrics: Metrics,
    pub identity: Identity,
    pub address: SocketAddr,
}

impl Site {
    pub async fn new(world: &World, store: Arc<dyn Store>) -> Self {
        let (tasks, metrics) = (Tasks::new(), Metrics::new());
        let identity = world.identity("own.test/carrick/gateway");
        let registry =
            Registry::new("own.test".parse().unwrap(), "own.test".parse().unwrap(), &tasks, &metrics);
        registry.attach(store, identity.clone());
        timeout(PATIENCE, registry.synced()).await.unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (established, incoming) = mpsc::channel(16);
        let server = Server::builder()
            .http2_max_header_list_size(256 * 1024)
            .add_service(registry.service_registry())
            .add_service(registry.endpoint_registry());
        let serving = server.serve_with_incoming_shutdown(ReceiverStream::new(incoming), tasks.stopping());
        tasks.spawn("test server", serving);
        let (svid, trust) = (identity.current(), world.trust.clone());
        let stopping = tasks.stopping();
        tasks.spawn("test listener", async move {
            tokio::select! {
                () = stopping => {}
                () = accept(listener, svid, trust, established) => {}
            }
        });
        Self { registry, tasks, metrics, identity, address }
    }
}

async fn accept(
    listener: TcpListener,
    svid: Arc<Svid>,
    trust: TrustStore,
    established: mpsc::Sender<std::io::Result<Io>>,
) {
    let acceptor = TlsAcceptor::from(Arc::new(server_config_with(&svid, &trust, &[b"h2"])));
    while let Ok((stream, _)) = listener.accept().await {
        let Ok(io) = acceptor.accept(stream).await else { continue };
        let certificate = PeerCertificate::of(io.get_ref().1.peer_certificates().unwrap()).unwrap();
        let caller = Caller::new(certificate, Arc::clone(&svid));
        if established.send(Ok(Io { io, caller })).await.is_err() {
            return;
        }
    }
}

/// A connection of a server, which knows who called.
struct Io {
    io: TlsStream<TcpStream>,
    caller: Caller,
}

impl Connected for Io {
    type ConnectInfo = Caller;

    fn connect_info(&self) -> Caller {
        self.caller.clone()
    }
}

impl AsyncRead for Io {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl AsyncWrite for Io {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

/// Somebody with an SVID and a connection to a registry.
pub struct Workload {
    pub svid: Arc<Svid>,
    pub id: SpiffeId,
    pub channel: Channel,
    pub server: SpiffeId,
}

impl Workload {
    pub async fn connect(world: &World, id: &str, site: &Site) -> Self {
        Self::with(world, &world.identity(id), site).await
    }

    pub async fn with(world: &World, identity: &Identity, site: &Site) -> Self {
        let (svid, trust, address) = (identity.current(), world.trust.clone(), site.address);
        let server = site.identity.id();
        let config = client_config_with(&svid, &trust, server.trust_domain(), &[b"h2"]);
        let connector = TlsConnector::from(Arc::new(config));
        let endpoint =
            tonic::transport::Endpoint::from_static("http://registry").http2_max_header_list_size(256 * 1024);
        let channel = endpoint
            .connect_with_connector(tower::service_fn(move |_| {
                let connector = connector.clone();
                async move {
                    let stream = TcpStream::connect(address).await?;
                    Ok::<_, std::io::Error>(TokioIo::new(
                        connector.connect("registry".try_into().unwrap(), stream).await?,
                    ))
                }
            }))
            .await
            .unwrap();
        Self { svid, id: identity.id(), channel, server }
    }

    /// A token of this workload for `audience`.
    pub fn token(&self, audience: &SpiffeId) -> Token {
        self.token_for(audience, MAX_LIFETIME)
    }

    pub fn token_for(&self, audience: &SpiffeId, lifetime: Duration) -> Token {
        self.svid.mint_token(audience, lifetime, SystemTime::now()).unwrap()
    }

    /// A call of this workload, with its token for the registry.
    pub fn call<T>(&self, message: T) -> Request<T> {
        with_token(Request::new(message), &self.token(&self.server))
    }

    /// A call that passes on what `origin` sent: its token comes first in the path.
    pub fn relay<T>(&self, origin: &Workload, message: T) -> Request<T> {
        let mut path = TokenPath::default();
        path.advance(&origin.token(&self.id).jwt, &self.token(&origin.id).jwt).unwrap();
        let mut request = self.call(message);
        request.metadata_mut().insert(PATH_KEY, path.to_header().parse().unwrap());
        request
    }

    pub fn endpoints(&self) -> NetworkServiceEndpointRegistryClient<Channel> {
        NetworkServiceEndpointRegistryClient::new(self.channel.clone())
    }

    pub fn services(&self) -> NetworkServiceRegistryClient<Channel> {
        NetworkServiceRegistryClient::new(self.channel.clone())
    }

    pub async fn register(&self, endpoint: Endpoint) -> Result<Endpoint, Status> {
        timeout(PATIENCE, self.endpoints().register(self.call(endpoint)))
            .await
            .unwrap()
            .map(Response::into_inner)
    }

    pub async fn unregister(&self, endpoint: Endpoint) -> Result<(), Status> {
        timeout(PATIENCE, self.endpoints().unregister(self.call(endpoint)))
            .await
            .unwrap()
            .map(Response::into_inner)
    }

    pub async fn register_service(&self, service: NetworkService) -> Result<NetworkService, Status> {
        timeout(PATIENCE, self.services().register(self.call(service)))
            .await
            .unwrap()
            .map(Response::into_inner)
    }

    pub async fn find(&self, query: Endpoint) -> Vec<Endpoint> {
        let query = NetworkServiceEndpointQuery {
            network_service_endpoint: Some(query),
            watch: false,
            ..NetworkServiceEndpointQuery::default()
        };
        let mut answers = self.endpoints().find(self.call(query)).await.unwrap().into_inner();
        let mut found = Vec::new();
        while let Some(answer) = timeout(PATIENCE, answers.message()).await.unwrap().unwrap() {
            found.push(answer.network_service_endpoint.unwrap());
        }
        found
    }

    pub async fn names(&self) -> Vec<String> {
        self.find(Endpoint::default()).await.into_iter().map(|endpoint| endpoint.name).collect()
    }

    pub async fn find_services(&self) -> Vec<NetworkService> {
        let query =
            NetworkServiceQuery { network_service: None, watch: false, ..NetworkServiceQuery::default() };
        let mut answers = self.services().find(self.call(query)).await.unwrap().into_inner();
        let mut found = Vec::new();
        while let Some(answer) = timeout(PATIENCE, answers.message()).await.unwrap().unwrap() {
            found.push(answer.network_service.unwrap());
        }
        found
    }

    pub async fn watch(&self, query: Endpoint) -> Streaming<NetworkServiceEndpointResponse> {
        let query = NetworkServiceEndpointQuery {
            network_service_endpoint: Some(query),
            watch: true,
            ..NetworkServiceEndpointQuery::default()
        };
        self.endpoints().find(self.call(query)).await.unwrap().into_inner()
    }
}

/// Puts a token into the metadata of a call.
pub fn with_token<T>(mut request: Request<T>, token: &Token) -> Request<T> {
    request.metadata_mut().insert(TOKEN_KEY, token.jwt.parse().unwrap());
    request.metadata_mut().insert(EXPIRES_KEY, format_expires(token.expires).parse().unwrap());
    request
}

/// The next answer of a watch: `+name` or `-name`, and the object.
pub async fn next(answers: &mut Streaming<NetworkServiceEndpointResponse>) -> (String, Endpoint) {
    let answer = timeout(PATIENCE, answers.message()).await.unwrap().unwrap().unwrap();
    let endpoint = answer.network_service_endpoint.unwrap();
    (format!("{}{}", if answer.deleted { '-' } else { '+' }, endpoint.name), endpoint)
}

/// Waits until `check` says yes.
pub async fn eventually(what: &str, mut check: impl AsyncFnMut() -> bool) {
    let reached = async {
        while !check().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    assert!(timeout(PATIENCE, reached).await.is_ok(), "waited in vain: {what}");
}
