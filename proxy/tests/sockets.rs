//! The control plane on several sockets at once: TCP and Unix, TLS inside each, the same services behind all.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::disallowed_methods, reason = "test code")]

use std::{
    io,
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime},
};

use carrick_identity::{EmbeddedCa, Identity, TrustStore, client_config};
use carrick_model::{ServeUrl, SpiffeId, TrustDomain};
use carrick_proxy::control::{BindError, ControlListener};
use carrick_runtime::{Tasks, UnixSocketError};
use carrick_telemetry::Metrics;
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, UnixStream},
};
use tokio_rustls::TlsConnector;
use tonic::{
    service::Routes,
    transport::{Channel, Endpoint},
};
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};

const ANY: &str = "127.0.0.1:0";

/// A domain's control plane, and what a process of the same domain needs to call it.
struct Site {
    identity: Identity,
    trust: TrustStore,
    tasks: Tasks,
    metrics: Metrics,
    dir: tempfile::TempDir,
}

impl Site {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let td = TrustDomain::new("cloud.test").unwrap();
        let ca = EmbeddedCa::open_or_create(dir.path(), &td, SystemTime::now()).unwrap();
        let trust = TrustStore::new();
        trust.set(ca.bundle()).unwrap();
        let id = SpiffeId::new("spiffe://cloud.test/carrick/gateway").unwrap();
        let hour = Duration::from_secs(3600);
        let identity = Identity::embedded(ca, id, hour, SystemTime::now()).unwrap();
        Self { identity, trust, tasks: Tasks::new(), metrics: Metrics::new(), dir }
    }

    fn serve(&self, listener: ControlListener) -> tokio::task::JoinHandle<()> {
        let (identity, trust) = (self.identity.clone(), self.trust.clone());
        let (tasks, metrics) = (self.tasks.clone(), self.metrics.clone());
        tokio::spawn(async move {
            let (reporter, health) = tonic_health::server::health_reporter();
            reporter.set_service_status("registry.X", tonic_health::ServingStatus::Serving).await;
            listener.serve(Routes::new(health), &identity, &trust, tasks, metrics).await;
        })
    }

    /// A gRPC channel over `stream`, with TLS in between.
    async fn channel<S>(&self, stream: S) -> Channel
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let td = TrustDomain::new("cloud.test").unwrap();
        let config = client_config(&self.identity, &self.trust, &td, &[b"h2"]);
        let name = ServerName::try_from("cloud.test").unwrap();
        let tls = TlsConnector::from(Arc::new(config)).connect(name, stream).await.unwrap();
        let mut once = Some(TokioIo::new(tls));
        let connector = tower::service_fn(move |_: http::Uri| {
            let stream = once.take();
            async move { stream.ok_or_else(|| io::Error::from(io::ErrorKind::NotConnected)) }
        });
        Endpoint::from_static("http://cloud.test").connect_with_connector(connector).await.unwrap()
    }

    async fn is_healthy(&self, channel: Channel) -> bool {
        let request = HealthCheckRequest { service: "registry.X".into() };
        let answer = HealthClient::new(channel).check(request).await.unwrap().into_inner();
        answer.status() == ServingStatus::Serving
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        self.tasks.stop();
    }
}

fn unix(path: &Path) -> ServeUrl {
    ServeUrl::Unix(path.to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn all_sockets_take_the_same_calls() {
    let site = Site::new();
    let path = site.dir.path().join("nsm.sock");
    let mut listener = ControlListener::bind(ANY.parse().unwrap()).await.unwrap();
    let first = listener.local_addr();
    let second = listener.also(&ANY.parse().unwrap(), 0o600).await.unwrap().socket_addr().unwrap();
    let all = listener.also(&":0".parse().unwrap(), 0o600).await.unwrap();
    assert_eq!(listener.also(&unix(&path), 0o660).await.unwrap(), unix(&path));
    let serving = site.serve(listener);

    for address in [first, second] {
        let channel = site.channel(TcpStream::connect(address).await.unwrap()).await;
        assert!(site.is_healthy(channel).await, "{address}");
    }
    // All addresses of both families: IPv4 is one of them whether or not the host has IPv6.
    let ServeUrl::Tcp { ip: None, port } = all else { panic!("{all}") };
    let channel = site.channel(TcpStream::connect(("127.0.0.1", port)).await.unwrap()).await;
    assert!(site.is_healthy(channel).await);
    let channel = site.channel(UnixStream::connect(&path).await.unwrap()).await;
    assert!(site.is_healthy(channel).await);

    site.tasks.stop();
    serving.await.unwrap();
    let gone = async {
        while path.exists() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(5), gone).await.expect("the file goes with the socket");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_unix_socket_asks_who_is_calling_too() {
    let site = Site::new();
    let path = site.dir.path().join("nsm.sock");
    let mut listener = ControlListener::bind(ANY.parse().unwrap()).await.unwrap();
    listener.also(&unix(&path), 0o666).await.unwrap();
    let _serving = site.serve(listener);

    // A stranger: a sound SVID of a domain that nobody here trusts.
    let stranger = Site::new();
    let td = TrustDomain::new("cloud.test").unwrap();
    stranger.trust.set((*site.trust.get(&td).unwrap()).clone()).unwrap();
    let config = client_config(&stranger.identity, &stranger.trust, &td, &[b"h2"]);
    let stream = UnixStream::connect(&path).await.unwrap();
    let name = ServerName::try_from("cloud.test").unwrap();
    let mut tls = TlsConnector::from(Arc::new(config)).connect(name, stream).await.unwrap();
    // In TLS 1.3 the client learns of the refusal with its first read.
    let read = tokio::io::AsyncReadExt::read_u8(&mut tls);
    let refused = tokio::time::timeout(Duration::from_secs(5), read).await.unwrap();
    assert!(refused.is_err());
    let refusals = site.metrics.encode();
    assert!(
        refusals
            .lines()
            .any(|l| l.starts_with("carrick_control_handshakes_refused_total") && l.ends_with(" 1")),
        "{refusals}"
    );
    let channel = site.channel(UnixStream::connect(&path).await.unwrap()).await;
    assert!(site.is_healthy(channel).await, "and everyone else is served");
}

#[tokio::test]
async fn a_live_socket_is_left_alone_and_a_dead_one_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("nsm.sock");
    let mut first = ControlListener::bind(ANY.parse().unwrap()).await.unwrap();
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    first.also(&unix(&path), 0o600).await.unwrap();
    let mut second = ControlListener::bind(ANY.parse().unwrap()).await.unwrap();
    let error = second.also(&unix(&path), 0o600).await.unwrap_err();
    assert!(matches!(error, BindError::Unix(UnixSocketError::Live(_))), "{error:?}");
    assert!(error.hint().contains("ss -lxp"), "{}", error.hint());
    let taken = ServeUrl::from(first.local_addr());
    let error = second.also(&taken, 0o600).await.unwrap_err();
    assert!(error.hint().contains("`compat.nsm.listen`"), "{}", error.hint());
    UnixStream::connect(&path).await.unwrap();
}
