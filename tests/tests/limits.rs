//! Strangers in large numbers: they cost little and stop nobody.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "test code")]

use std::{
    net::{SocketAddr, TcpStream, UdpSocket},
    sync::Arc,
    time::{Duration, Instant},
};

use carrick_tests::lab::{LAN_APP, MESH, Mesh, PORT, TcpApp, echoes, needs, within_or};
use quinn_proto::crypto::rustls::QuicClientConfig;

const UP: Duration = Duration::from_secs(15);
const SERVICE: &str = "echo@onprem.test";
const IMPORT: u16 = 17000;
const STRANGERS: usize = 10_000;

fn mesh() -> (Mesh, TcpApp) {
    let mesh = Mesh::start(
        |a| a.import(SERVICE, &format!("127.0.0.1:{IMPORT}")),
        |b| b.export("echo", "tcp://10.0.0.5:7000", "spiffe://cloud.test/**"),
    );
    let app = TcpApp::echo(&mesh.lab.b.ns, (LAN_APP, 7000).into());
    mesh.a.wait_import(SERVICE, "up", UP);
    (mesh, app)
}

/// Old and new flows work, and so does a whole new beginning.
#[track_caller]
fn everybody_else_is_served(mesh: &mut Mesh, flow: &mut TcpStream) {
    echoes(flow, b"an old flow");
    let asked = Instant::now();
    echoes(&mut mesh.a.connect(IMPORT).unwrap(), b"a new flow");
    assert!(asked.elapsed() < Duration::from_secs(1), "a new flow took {:?}", asked.elapsed());
    mesh.a.kill();
    mesh.a.up();
    within_or(Duration::from_secs(20), "a new tunnel beside the strangers", || {
        mesh.a.connect(IMPORT).and_then(|mut flow| carrick_tests::lab::try_echo(&mut flow, b"a new tunnel"))
    });
    let rss = mesh.b.daemon().usage().rss >> 20;
    assert!(rss < 500, "{rss} MiB for {STRANGERS} strangers");
}

#[test]
fn ten_thousand_quic_handshakes_that_never_go_on() {
    if !needs(MESH) {
        return;
    }
    let (mut mesh, _app) = mesh();
    let mut flow = mesh.a.connect(IMPORT).unwrap();
    echoes(&mut flow, b"before the strangers");
    let socket = mesh.lab.c.ns.udp((mesh.lab.c.addr, 0).into(), Duration::from_millis(1));
    first_packets(&socket, mesh.lab.b.at(PORT));
    everybody_else_is_served(&mut mesh, &mut flow);
}

/// Sends a genuine first packet of [`STRANGERS`] handshakes and ignores every answer.
fn first_packets(socket: &UdpSocket, to: SocketAddr) {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    tls.alpn_protocols = vec![b"carrick/1".to_vec()];
    let config = quinn_proto::ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls).unwrap()));
    let mut endpoint =
        quinn_proto::Endpoint::new(Arc::new(quinn_proto::EndpointConfig::default()), None, true, None);
    let mut packet = Vec::with_capacity(2048);
    for _ in 0..STRANGERS {
        let now = Instant::now();
        let (_, mut connection) = endpoint.connect(now, config.clone(), to, "onprem.test").unwrap();
        packet.clear();
        let transmit = connection.poll_transmit(now, 1, &mut packet).expect("a first packet");
        socket.send_to(&packet[..transmit.size], to).unwrap();
    }
}

#[test]
fn ten_thousand_control_connections_that_never_speak() {
    if !needs(MESH) {
        return;
    }
    let (mut mesh, _app) = mesh();
    let mut flow = mesh.a.connect(IMPORT).unwrap();
    echoes(&mut flow, b"before the strangers");
    let to = mesh.lab.b.at(PORT);
    // The daemon may refuse some of them; once it takes none for a while, it takes none.
    let strangers = mesh.lab.c.ns.enter(|| {
        let (mut strangers, mut refused) = (Vec::new(), 0);
        while strangers.len() < STRANGERS && refused < 50 {
            match TcpStream::connect_timeout(&to, Duration::from_millis(100)) {
                Ok(stream) => strangers.push(stream),
                Err(_) => refused += 1,
            }
        }
        strangers
    });
    everybody_else_is_served(&mut mesh, &mut flow);
    assert!(strangers.len() > 100, "only {} connections came through", strangers.len());
}
