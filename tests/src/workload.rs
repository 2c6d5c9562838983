//! A workload of a domain: an SVID of the domain's own CA, and calls to the domain's registry with NSM's tokens.

use std::{
    net::SocketAddr,
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime},
};

use carrick_identity::{
    EmbeddedCa, Identity, TrustStore, client_config,
    token::{EXPIRES_KEY, MAX_LIFETIME, PATH_KEY, TOKEN_KEY, Token, TokenPath, format_expires},
};
use carrick_model::{SpiffeId, TrustDomain};
use carrick_proto::registry::{
    NetworkService, NetworkServiceEndpoint, NetworkServiceEndpointQuery, NetworkServiceEndpointResponse,
    network_service_endpoint_registry_client::NetworkServiceEndpointRegistryClient as Endpoints,
    network_service_registry_client::NetworkServiceRegistryClient as Services,
};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tonic::{
    Request, Status, Streaming,
    transport::{Channel, Endpoint},
};

/// Longest wait for an answer.
const PATIENCE: Duration = Duration::from_secs(20);

/// The SVID of pod `pod` of `domain`, whose daemon keeps its CA in `state`, and a trust store with that CA.
pub fn identity(state: &Path, domain: &str, pod: &str) -> anyhow::Result<(Identity, TrustStore)> {
    let now = SystemTime::now();
    let ca = EmbeddedCa::open_or_create(state, &TrustDomain::new(domain)?, now)?;
    let trust = TrustStore::new();
    trust.set(ca.bundle())?;
    Ok((Identity::embedded(ca, self::pod(domain, pod)?, Duration::from_secs(3600), now)?, trust))
}

/// The SPIFFE ID of a pod.
pub fn pod(domain: &str, name: &str) -> anyhow::Result<SpiffeId> {
    Ok(SpiffeId::new(format!("spiffe://{domain}/ns/default/pod/{name}"))?)
}

/// The SPIFFE ID of a domain's daemon.
pub fn gateway(domain: &str) -> anyhow::Result<SpiffeId> {
    Ok(SpiffeId::new(format!("spiffe://{domain}/carrick/gateway"))?)
}

/// A connection with mutual TLS to the daemon of `identity`'s domain.
pub async fn dial(identity: &Identity, trust: &TrustStore, daemon: SocketAddr) -> anyhow::Result<Channel> {
    let tls = client_config(identity, trust, &identity.trust_domain(), &[b"h2"]);
    let tls = TlsConnector::from(Arc::new(tls));
    let dial = tower::service_fn(move |_| {
        let tls = tls.clone();
        async move {
            let stream = TcpStream::connect(daemon).await?;
            stream.set_nodelay(true)?;
            let name = "daemon".try_into().map_err(std::io::Error::other)?;
            Ok::<_, std::io::Error>(TokioIo::new(tls.connect(name, stream).await?))
        }
    });
    Ok(Endpoint::from_static("http://daemon").connect_with_connector(dial).await?)
}

/// Puts a token into a call's metadata.
pub fn show_token<T>(request: &mut Request<T>, token: &Token) {
    let values = (token.jwt.parse(), format_expires(token.expires).parse());
    if let (Ok(jwt), Ok(expires)) = values {
        request.metadata_mut().insert(TOKEN_KEY, jwt);
        request.metadata_mut().insert(EXPIRES_KEY, expires);
    }
}

/// A workload with a connection to the registry of its domain.
#[derive(Clone)]
pub struct Workload {
    channel: Channel,
    /// One for all calls: it lives for ten minutes.
    token: Token,
}

impl Workload {
    /// Connects pod `pod` of `domain`, whose daemon keeps its CA in `state`, to the registry at `registry`.
    pub async fn connect(
        state: &Path,
        domain: &str,
        pod: &str,
        registry: SocketAddr,
    ) -> anyhow::Result<Self> {
        let (identity, trust) = identity(state, domain, pod)?;
        let channel = dial(&identity, &trust, registry).await?;
        let token = identity.current().mint_token(&gateway(domain)?, MAX_LIFETIME, SystemTime::now())?;
        Ok(Self { channel, token })
    }

    /// A call with this workload's token.
    pub fn call<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        show_token(&mut request, &self.token);
        request
    }

    /// The same with the path of a first hop, which NSM's registry wants of whoever registers.
    fn first_call<T>(&self, message: T) -> Request<T> {
        let mut request = self.call(message);
        request.set_timeout(PATIENCE);
        if let Ok(path) = TokenPath::default().to_header().parse() {
            request.metadata_mut().insert(PATH_KEY, path);
        }
        request
    }

    /// Registers an endpoint.
    pub async fn register(&self, endpoint: NetworkServiceEndpoint) -> Result<NetworkServiceEndpoint, Status> {
        Ok(Endpoints::new(self.channel.clone()).register(self.first_call(endpoint)).await?.into_inner())
    }

    /// Registers a service.
    pub async fn register_service(&self, service: NetworkService) -> Result<NetworkService, Status> {
        Ok(Services::new(self.channel.clone()).register(self.first_call(service)).await?.into_inner())
    }

    /// The endpoints that match.
    pub async fn find(&self, query: NetworkServiceEndpoint) -> Result<Vec<NetworkServiceEndpoint>, Status> {
        let mut answers = self.open(query, false).await?;
        let mut found = Vec::new();
        while let Some(answer) = answers.message().await? {
            found.extend(answer.network_service_endpoint);
        }
        Ok(found)
    }

    /// The services there are.
    pub async fn services(&self) -> Result<Vec<NetworkService>, Status> {
        let mut answers =
            Services::new(self.channel.clone()).find(self.call(Default::default())).await?.into_inner();
        let mut found = Vec::new();
        while let Some(answer) = answers.message().await? {
            found.extend(answer.network_service);
        }
        Ok(found)
    }

    /// The endpoints that match, and every change from then on.
    pub async fn watch(
        &self,
        query: NetworkServiceEndpoint,
    ) -> Result<Streaming<NetworkServiceEndpointResponse>, Status> {
        self.open(query, true).await
    }

    async fn open(
        &self,
        query: NetworkServiceEndpoint,
        watch: bool,
    ) -> Result<Streaming<NetworkServiceEndpointResponse>, Status> {
        let query = NetworkServiceEndpointQuery {
            network_service_endpoint: Some(query),
            watch,
            ..NetworkServiceEndpointQuery::default()
        };
        Ok(Endpoints::new(self.channel.clone()).find(self.call(query)).await?.into_inner())
    }
}
