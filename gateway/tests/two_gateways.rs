//! Two gateways of two domains with separate roots, on loopback, without a control plane: the test plays it.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs, clippy::disallowed_methods)]

use std::{
    io::ErrorKind,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, SystemTime},
};

use carrick_gateway::{Admission, ControlPlane, Gateway, ListenerKey, Route, Settings};
use carrick_identity::{EmbeddedCa, Identity, TrustStore};
use carrick_model::{ConnectionId, ExportTarget, ListenAddress, Payload, ServiceName, SpiffeId, TrustDomain};
use carrick_runtime::Tasks;
use carrick_telemetry::Metrics;
use parking_lot::Mutex;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, UdpSocket},
    time::timeout,
};

const SOON: Duration = Duration::from_secs(10);

/// One domain's gateway.
struct Side {
    gateway: Gateway,
    identity: Identity,
    trust: TrustStore,
    metrics: Metrics,
    trust_domain: TrustDomain,
    plane: Arc<Plane>,
    ca: carrick_identity::Bundle,
    tasks: Tasks,
    _dir: tempfile::TempDir,
}

/// Remembers what the gateway asked for.
#[derive(Default)]
struct Plane {
    lost: Mutex<Vec<(ServiceName, ConnectionId, String)>>,
    demands: AtomicUsize,
}

impl ControlPlane for Plane {
    fn demand(&self, _service: &ServiceName) {
        self.demands.fetch_add(1, Ordering::Relaxed);
    }

    fn lost(&self, service: &ServiceName, connection: ConnectionId, why: &str) {
        self.lost.lock().push((service.clone(), connection, why.to_owned()));
    }
}

fn side(domain: &str, change: impl FnOnce(&mut Settings)) -> Side {
    let dir = tempfile::tempdir().unwrap();
    let trust_domain = TrustDomain::new(domain).unwrap();
    let now = SystemTime::now();
    let ca = EmbeddedCa::open_or_create(dir.path(), &trust_domain, now).unwrap();
    let bundle = ca.bundle();
    let id = SpiffeId::new(format!("spiffe://{domain}/carrick/gateway")).unwrap();
    let identity = Identity::embedded(ca, id, Duration::from_secs(3600), now).unwrap();
    let trust = TrustStore::new();
    let metrics = Metrics::new();
    let mut settings = Settings {
        listen: ([127, 0, 0, 1], 0).into(),
        flow_open: Duration::from_secs(3),
        connect: Duration::from_secs(2),
        ..Settings::default()
    };
    change(&mut settings);
    let tasks = Tasks::new();
    let gateway = Gateway::bind(
        domain.parse().unwrap(),
        settings,
        identity.clone(),
        trust.clone(),
        metrics.clone(),
        tasks.clone(),
    )
    .unwrap();
    let plane = Arc::new(Plane::default());
    gateway.serve(plane.clone());
    Side { gateway, identity, trust, metrics, trust_domain, plane, ca: bundle, tasks, _dir: dir }
}

/// Two domains that trust each other.
fn pair() -> (Side, Side) {
    let (a, b) = (side("a.test", |_| {}), side("b.test", |_| {}));
    befriend(&a, &b);
    (a, b)
}

fn befriend(a: &Side, b: &Side) {
    a.trust.set(b.ca.clone()).unwrap();
    b.trust.set(a.ca.clone()).unwrap();
}

fn service() -> ServiceName {
    "echo@b.test".parse().unwrap()
}

impl Side {
    fn admit(&self, from: &Side, target: &str) -> ConnectionId {
        let id = ConnectionId::random();
        let target: ExportTarget = target.parse().unwrap();
        self.gateway.admit(Admission {
            id,
            peer: from.identity.id(),
            service: "echo".parse().unwrap(),
            target,
        });
        id
    }

    fn route_to(&self, other: &Side, connection: ConnectionId, payload: Payload) {
        let route = Route {
            connection,
            domain: "b.test".parse().unwrap(),
            trust_domain: other.trust_domain.clone(),
            payload,
            gateways: vec![other.gateway.local_addr().unwrap()],
        };
        self.gateway.route(&service(), route);
    }

    fn listen(&self, address: &str) -> SocketAddr {
        let key = ListenerKey { service: service(), address: address.parse().unwrap() };
        match self.gateway.listen(key).unwrap() {
            ListenAddress::Tcp(address) | ListenAddress::Udp(address) => address,
            ListenAddress::Unix(path) => panic!("{path:?}"),
        }
    }

    fn counted(&self, series: &str) -> bool {
        self.metrics.encode().contains(series)
    }
}

/// Import in A of `target` behind B, over TCP.
fn import_tcp(a: &Side, b: &Side, target: SocketAddr) -> SocketAddr {
    let id = b.admit(a, &format!("tcp://{target}"));
    a.route_to(b, id, Payload::Tcp);
    a.listen("127.0.0.1:0")
}

/// A client that is refused sees a reset, sometimes before it has seen its connection made.
async fn refused(address: SocketAddr) -> ErrorKind {
    let reading = async { TcpStream::connect(address).await?.read_u8().await };
    timeout(SOON, reading).await.unwrap().unwrap_err().kind()
}

async fn echo_server() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (mut read, mut write) = stream.split();
                let _done = tokio::io::copy(&mut read, &mut write).await;
                let _shut = write.shutdown().await;
            });
        }
    });
    address
}

/// Polls until `done`, for at most ten seconds.
async fn eventually(what: &str, mut done: impl FnMut() -> bool) {
    for _ in 0..1000 {
        if done() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("did not happen: {what}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bytes_cross_both_ways_and_ends_are_mapped() {
    let (a, b) = pair();
    let address = import_tcp(&a, &b, echo_server().await);
    let mut client = TcpStream::connect(address).await.unwrap();
    let sent: Vec<u8> = (0..20_000_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let (mut read, mut write) = client.split();
    let writing = async {
        write.write_all(&sent).await.unwrap();
        write.shutdown().await.unwrap(); // half-close: the answer still comes, whole
    };
    let mut received = Vec::new();
    let reading = async { read.read_to_end(&mut received).await.unwrap() };
    tokio::join!(writing, async { timeout(SOON * 3, reading).await.unwrap() });
    assert!(received == sent, "{} of {} octets", received.len(), sent.len());
    eventually("both flows end", || a.gateway.flows() == 0 && b.gateway.flows() == 0).await;
    assert!(a.counted(r#"carrick_flow_bytes_total{direction="import",way="to_service"} 20000000"#));
    assert!(b.counted(r#"carrick_flow_bytes_total{direction="export",way="to_client"} 20000000"#));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reset_crosses_as_a_reset() {
    let (a, b) = pair();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = import_tcp(&a, &b, listener.local_addr().unwrap());

    // The server resets: the client sees a reset, not an orderly end.
    let mut client = TcpStream::connect(address).await.unwrap();
    client.write_all(b"x").await.unwrap();
    let (mut server, _) = listener.accept().await.unwrap();
    server.read_u8().await.unwrap();
    server.set_zero_linger().unwrap();
    drop(server);
    let error = timeout(SOON, client.read_u8()).await.unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);

    // The client resets: so does the server's side.
    let mut client = TcpStream::connect(address).await.unwrap();
    client.write_all(b"x").await.unwrap();
    let (mut server, _) = listener.accept().await.unwrap();
    server.read_u8().await.unwrap();
    client.set_zero_linger().unwrap();
    drop(client);
    let error = timeout(SOON, server.read_u8()).await.unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_target_that_is_down_resets_the_client_with_a_reason() {
    let (a, b) = pair();
    let closed = {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        listener.local_addr().unwrap()
    };
    let address = import_tcp(&a, &b, closed);
    assert_eq!(refused(address).await, ErrorKind::ConnectionReset);
    eventually("the refusal is counted on both sides", || {
        a.counted(r#"flows_refused_total{direction="import",reason="target_refused"} 1"#)
            && b.counted(r#"flows_refused_total{direction="export",reason="target_refused"} 1"#)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unknown_or_revoked_connection_is_reported_and_recovered() {
    let (a, b) = pair();
    let echo = echo_server().await;
    let unknown = ConnectionId::random();
    a.route_to(&b, unknown, Payload::Tcp);
    let address = a.listen("127.0.0.1:0");
    refused(address).await;
    eventually("the control plane hears of it", || {
        a.plane.lost.lock().iter().any(|(_, id, _)| *id == unknown)
    })
    .await;

    let id = b.admit(&a, &format!("tcp://{echo}"));
    a.route_to(&b, id, Payload::Tcp);
    let mut client = TcpStream::connect(address).await.unwrap();
    client.write_all(b"hello").await.unwrap();
    let mut answer = [0; 5];
    timeout(SOON, client.read_exact(&mut answer)).await.unwrap().unwrap();
    assert_eq!(&answer, b"hello");

    b.gateway.revoke(id, "policy");
    assert!(timeout(SOON, client.read_u8()).await.unwrap().is_err(), "a revoked flow is reset");
    eventually("the peer hears of the revocation", || {
        a.plane.lost.lock().iter().any(|(_, lost, _)| *lost == id)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_of_another_peer_is_not_usable() {
    let (a, b) = pair();
    let c = side("c.test", |_| {});
    befriend(&c, &b);
    let id = b.admit(&c, &format!("tcp://{}", echo_server().await));
    a.route_to(&b, id, Payload::Tcp);
    let address = a.listen("127.0.0.1:0");
    refused(address).await;
    eventually("the refusal is counted", || b.counted(r#"reason="not_yours"} 1"#)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_of_another_trusted_domain_is_refused_and_clients_fail_fast() {
    let (a, b) = pair();
    let c = side("c.test", |_| {});
    befriend(&a, &c);
    // The route expects b.test; at the address answers c.test, whose root A trusts too.
    let id = b.admit(&a, "tcp://127.0.0.1:9");
    let route = Route {
        connection: id,
        domain: "b.test".parse().unwrap(),
        trust_domain: b.trust_domain.clone(),
        payload: Payload::Tcp,
        gateways: vec![c.gateway.local_addr().unwrap()],
    };
    let why = a.gateway.probe(&route).await.unwrap_err();
    assert!(why.contains("c.test") && why.contains("b.test"), "{why}");
    a.gateway.route(&service(), route);
    let address = a.listen("127.0.0.1:0");
    assert_eq!(refused(address).await, ErrorKind::ConnectionReset);
    eventually("the control plane is asked to look again", || !a.plane.lost.lock().is_empty()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_import_that_is_down_resets_at_once_and_one_that_connects_waits() {
    let (a, b) = pair();
    let echo = echo_server().await;
    let address = a.listen("127.0.0.1:0");
    let mut early = TcpStream::connect(address).await.unwrap();
    early.write_all(b"wait").await.unwrap();
    eventually("the client's demand is heard", || a.plane.demands.load(Ordering::Relaxed) > 0).await;
    let id = b.admit(&a, &format!("tcp://{echo}"));
    a.route_to(&b, id, Payload::Tcp);
    let mut answer = [0; 4];
    timeout(SOON, early.read_exact(&mut answer)).await.unwrap().unwrap();

    a.gateway.unroute(&service(), "the domain is not in the DNS");
    assert_eq!(refused(address).await, ErrorKind::ConnectionReset);
    early.write_all(b"more").await.unwrap();
    timeout(SOON, early.read_exact(&mut answer)).await.unwrap().unwrap();
    assert_eq!(&answer, b"more", "a flow that runs goes on");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_that_never_read_do_not_stop_the_others() {
    // Room for one tunnel's base window and two stalled flows only.
    let (a, b) = (side("a.test", |s| s.max_memory = 96 << 20), side("b.test", |_| {}));
    befriend(&a, &b);
    let source = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = import_tcp(&a, &b, source.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = source.accept().await {
            tokio::spawn(async move {
                let block = vec![7; 1 << 20];
                // 64 MiB to whoever asks.
                for _ in 0..64 {
                    if stream.write_all(&block).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    let mut idle = Vec::new();
    for _ in 0..8 {
        idle.push(TcpStream::connect(address).await.unwrap());
    }
    // 8 flows of 16 MiB windows would hold 128 MiB: more than the tunnel's window.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let mut moving = TcpStream::connect(address).await.unwrap();
    let mut total = 0;
    let mut buffer = vec![0; 1 << 20];
    let all = async {
        while let n @ 1.. = moving.read(&mut buffer).await.unwrap() {
            total += n;
        }
    };
    timeout(Duration::from_secs(60), all)
        .await
        .expect("the moving flow is stuck behind those that stand still");
    assert_eq!(total, 64 << 20);
    assert!(a.counted(r#"reason="stalled"}"#), "some flows had to be shed:\n{}", a.metrics.encode());
    assert!(!b.gateway.tunnels().is_empty());
}

async fn udp_echo() -> SocketAddr {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let address = socket.local_addr().unwrap();
    tokio::spawn(async move {
        let mut buffer = vec![0; 65_536];
        while let Ok((n, from)) = socket.recv_from(&mut buffer).await {
            let _sent = socket.send_to(&buffer[..n], from).await;
        }
    });
    address
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn datagrams_of_every_size_cross_for_each_client_apart() {
    let (a, b) = (side("a.test", |_| {}), side("b.test", |s| s.udp_idle = Duration::from_secs(1)));
    befriend(&a, &b);
    let id = b.admit(&a, &format!("udp://{}", udp_echo().await));
    a.route_to(&b, id, Payload::Udp);
    let address = a.listen("udp://127.0.0.1:0");
    let mut clients = Vec::new();
    for _ in 0..3 {
        let client = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        client.connect(address).await.unwrap();
        clients.push(client);
    }
    let mut buffer = vec![0; 65_536];
    for (round, size) in [1, 0, 1200, 1400, 1500, 9_000, 60_000, 65_507, 2].into_iter().enumerate() {
        for (i, client) in clients.iter().enumerate() {
            let payload = vec![(round * 8 + i) as u8; size];
            client.send(&payload).await.unwrap();
            let n = timeout(SOON, client.recv(&mut buffer))
                .await
                .unwrap_or_else(|_| panic!("{size} octets"))
                .unwrap();
            assert!(buffer[..n] == payload, "client {i}: {n} of {size} octets");
        }
    }
    assert_eq!(b.gateway.flows(), 3, "one association for each client");
    eventually("idle associations end on both sides", || a.gateway.flows() == 0 && b.gateway.flows() == 0)
        .await;
    clients[0].send(b"again").await.unwrap();
    let n = timeout(SOON, clients[0].recv(&mut buffer)).await.unwrap().unwrap();
    assert_eq!(&buffer[..n], b"again");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn draining_lets_flows_finish_and_refuses_new_ones() {
    let (a, b) = pair();
    let address = import_tcp(&a, &b, echo_server().await);
    let mut client = TcpStream::connect(address).await.unwrap();
    client.write_all(b"one").await.unwrap();
    let mut answer = [0; 3];
    timeout(SOON, client.read_exact(&mut answer)).await.unwrap().unwrap();

    b.gateway.drain();
    client.write_all(b"two").await.unwrap();
    timeout(SOON, client.read_exact(&mut answer)).await.unwrap().unwrap();
    assert_eq!(&answer, b"two", "a flow that runs goes on");
    refused(address).await;
    assert!(!b.gateway.drained(Duration::from_millis(200)).await);
    drop(client);
    assert!(b.gateway.drained(SOON).await);
    b.gateway.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tunnel_to_a_gateway_that_returns_is_dialled_again() {
    let a = side("a.test", |s| s.idle_timeout = Duration::from_secs(2));
    let echo = echo_server().await;
    let b = side("b.test", |_| {});
    befriend(&a, &b);
    let listen = b.gateway.local_addr().unwrap();
    let address = import_tcp(&a, &b, echo);
    let mut client = TcpStream::connect(address).await.unwrap();
    client.write_all(b"x").await.unwrap();
    timeout(SOON, client.read_u8()).await.unwrap().unwrap();

    b.gateway.close().await;
    assert!(timeout(SOON, client.read_u8()).await.unwrap().is_err(), "the flow ends with its tunnel");
    let tasks = b.tasks.clone();
    drop(b);
    tasks.stop();
    assert!(tasks.wait(SOON).await, "a task outlives its gateway");
    let mut b2 = None;
    // The old socket is free once its last task has gone.
    for _ in 0..100 {
        tokio::time::sleep(Duration::from_millis(50)).await;
        if std::net::UdpSocket::bind(listen).is_ok() {
            b2 = Some(side("b.test", |s| s.listen = listen));
            break;
        }
    }
    let b2 = b2.expect("the address is free again");
    befriend(&a, &b2);
    let id = b2.admit(&a, &format!("tcp://{echo}"));
    a.route_to(&b2, id, Payload::Tcp);
    eventually("the tunnel is up again", || a.gateway.tunnels().iter().any(|t| t.address == listen)).await;
    let mut client = TcpStream::connect(address).await.unwrap();
    client.write_all(b"y").await.unwrap();
    assert_eq!(timeout(SOON, client.read_u8()).await.unwrap().unwrap(), b'y');
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_domain_that_loses_trust_loses_its_tunnels() {
    let (a, b) = pair();
    let address = import_tcp(&a, &b, echo_server().await);
    let mut client = TcpStream::connect(address).await.unwrap();
    client.write_all(b"x").await.unwrap();
    timeout(SOON, client.read_u8()).await.unwrap().unwrap();
    b.trust.remove(&a.trust_domain);
    b.gateway.untrust(&a.trust_domain);
    assert!(timeout(SOON, client.read_u8()).await.unwrap().is_err());
    refused(address).await;
    eventually("b has no tunnel", || b.gateway.tunnels().is_empty()).await;
}
