//! What a flow may rely on: every byte, both directions apart, ends that mean what they say, and its own pace.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "test code")]

use std::{
    io::{self, ErrorKind, Read, Write},
    net::{Shutdown, SocketAddr, TcpStream},
    thread,
    time::{Duration, Instant},
};

use carrick_tests::lab::{LAN_APP, MESH, Mesh, TcpApp, UdpEcho, echo, echoes, needs};

const UP: Duration = Duration::from_secs(15);
const IMPORT: u16 = 17000;

const LITTLE: &str = "tunnel: { max_memory: 256MiB }";
/// Within what time the gateways notice readers that are behind and make room for others; a user would call it a hiccup.
const NOTICED: Duration = Duration::from_secs(1);
/// Within what time flows that stand still are shed where there is no room, the time to fill all windows included.
const SHED: Duration = Duration::from_secs(30);

/// One TCP service, imported.
fn mesh() -> Mesh {
    let mesh = Mesh::start(
        |a| a.import("app@onprem.test", &format!("127.0.0.1:{IMPORT}")),
        |b| b.export("app", "tcp://10.0.0.5:7000", "spiffe://cloud.test/**"),
    );
    mesh.a.wait_import("app@onprem.test", "up", UP);
    mesh
}

fn app(mesh: &Mesh, serve: impl Fn(TcpStream) + Send + Sync + 'static) -> TcpApp {
    TcpApp::serve(&mesh.lab.b.ns, (LAN_APP, 7000).into(), serve)
}

/// Bytes that differ everywhere, so that a lost, doubled or swapped block shows.
fn pattern(len: usize) -> Vec<u8> {
    (0..len as u64).map(|i| (i.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8).collect()
}

#[test]
fn both_directions_carry_every_byte_at_once() {
    if !needs(MESH) {
        return;
    }
    let mesh = mesh();
    let _app = TcpApp::echo(&mesh.lab.b.ns, (LAN_APP, 7000).into());
    let bytes = pattern(64 << 20);
    let mut flow = mesh.a.connect(IMPORT).unwrap();
    let mut sending = flow.try_clone().unwrap();
    thread::scope(|scope| {
        scope.spawn(|| {
            sending.write_all(&bytes).unwrap();
            sending.shutdown(Shutdown::Write).unwrap();
        });
        let mut back = Vec::with_capacity(bytes.len());
        flow.read_to_end(&mut back).unwrap();
        assert_eq!(back.len(), bytes.len());
        assert!(back == bytes, "the bytes differ");
    });
}

#[test]
fn a_client_that_has_said_everything_still_hears_everything() {
    if !needs(MESH) {
        return;
    }
    let mesh = mesh();
    // Answers only after the client's end, as `ssh host cat` or a batch upload would.
    let _app = app(&mesh, |mut stream| {
        let mut all = Vec::new();
        stream.read_to_end(&mut all).unwrap();
        stream.write_all(&(all.len() as u64).to_le_bytes()).unwrap();
        stream.write_all(&pattern(4 << 20)).unwrap();
    });
    let mut flow = mesh.a.connect(IMPORT).unwrap();
    flow.write_all(&pattern(3 << 20)).unwrap();
    flow.shutdown(Shutdown::Write).unwrap();
    let mut answer = Vec::new();
    flow.read_to_end(&mut answer).unwrap();
    assert_eq!(answer[..8], (3_u64 << 20).to_le_bytes());
    assert!(answer[8..] == pattern(4 << 20));
}

#[test]
fn a_server_that_has_said_everything_still_listens() {
    if !needs(MESH) {
        return;
    }
    let mesh = mesh();
    let (told, heard) = std::sync::mpsc::sync_channel(1);
    let _app = app(&mesh, move |mut stream| {
        stream.write_all(b"go on").unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let mut all = Vec::new();
        stream.read_to_end(&mut all).unwrap();
        told.send(all.len()).unwrap();
    });
    let mut flow = mesh.a.connect(IMPORT).unwrap();
    let mut said = String::new();
    flow.read_to_string(&mut said).unwrap();
    assert_eq!(said, "go on");
    flow.write_all(&pattern(2 << 20)).unwrap();
    drop(flow);
    assert_eq!(heard.recv_timeout(Duration::from_secs(10)).unwrap(), 2 << 20);
}

#[test]
fn a_reset_is_a_reset_on_the_other_side_both_ways() {
    if !needs(MESH) {
        return;
    }
    let mesh = mesh();
    let (told, heard) = std::sync::mpsc::sync_channel(2);
    let _app = app(&mesh, move |mut stream| {
        let mut word = [0; 4];
        stream.read_exact(&mut word).unwrap();
        if &word == b"kill" {
            return reset(stream);
        }
        stream.write_all(b"ready").unwrap();
        told.send(stream.read(&mut word).map_err(|e| e.kind())).unwrap();
    });
    let mut flow = mesh.a.connect(IMPORT).unwrap();
    flow.write_all(b"kill").unwrap();
    assert_eq!(flow.read(&mut [0; 8]).unwrap_err().kind(), ErrorKind::ConnectionReset, "not a clean end");

    let mut flow = mesh.a.connect(IMPORT).unwrap();
    flow.write_all(b"wait").unwrap();
    flow.read_exact(&mut [0; 5]).unwrap();
    reset(flow);
    assert_eq!(heard.recv_timeout(Duration::from_secs(10)).unwrap(), Err(ErrorKind::ConnectionReset));
}

/// Closes with RST instead of FIN.
fn reset(stream: TcpStream) {
    socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
    drop(stream);
}

#[test]
fn a_dead_target_resets_the_flow_and_the_log_names_it() {
    if !needs(MESH) {
        return;
    }
    let mut mesh = mesh();
    let started = Instant::now();
    // The reset may come before `connect` has returned.
    let error = mesh.a.connect(IMPORT).and_then(|mut flow| flow.read(&mut [0])).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset, "nobody listens on 10.0.0.5:7000");
    assert!(started.elapsed() < Duration::from_secs(3));
    mesh.b.daemon_mut().wait_for_log("10.0.0.5:7000", Duration::from_secs(2));
}

/// A mesh with little memory for windows, and an application that echoes, or talks without end to who asks for it.
fn talker() -> (Mesh, TcpApp) {
    let mesh = Mesh::start(
        |a| a.line(LITTLE).import("app@onprem.test", &format!("127.0.0.1:{IMPORT}")),
        |b| b.line(LITTLE).export("app", "tcp://10.0.0.5:7000", "spiffe://cloud.test/**"),
    );
    mesh.a.wait_import("app@onprem.test", "up", UP);
    // The first byte says which kind of server this flow wants.
    let app = app(&mesh, |mut stream| {
        let mut kind = [0];
        stream.read_exact(&mut kind).unwrap();
        if kind == *TALK {
            let block = vec![7; 1 << 20];
            while stream.write_all(&block).is_ok() {}
        } else {
            echo(stream);
        }
    });
    (mesh, app)
}

const TALK: &[u8; 1] = b"s";
const ECHO: &[u8; 1] = b"e";

fn open(mesh: &Mesh, kind: &[u8; 1]) -> TcpStream {
    let mut flow = mesh.a.connect(IMPORT).unwrap();
    flow.write_all(kind).unwrap();
    flow
}

/// The longest that an echo takes within a time.
fn slowest_echo(mesh: &Mesh, limit: Duration) -> Duration {
    let mut flow = open(mesh, ECHO);
    let (begin, mut worst) = (Instant::now(), Duration::ZERO);
    while begin.elapsed() < limit {
        let sent = Instant::now();
        echoes(&mut flow, &[1; 1000]);
        worst = worst.max(sent.elapsed());
    }
    worst
}

#[test]
fn a_client_that_never_reads_stalls_nobody_else() {
    if !needs(MESH) {
        return;
    }
    let (mesh, _app) = talker();
    // A few, from the first moment on: there is room for them, so they are noticed and compensated for at once.
    let mut sleepers: Vec<TcpStream> = (0..4).map(|_| open(&mesh, TALK)).collect();
    let worst = slowest_echo(&mesh, Duration::from_secs(2));
    assert!(worst < NOTICED, "an echo took {worst:?} beside {} sleepers", sleepers.len());
    // More than all windows together hold: others may wait until the gateways have shed some, but not for ever.
    sleepers.extend((0..60).map(|_| open(&mesh, TALK)));
    let begin = Instant::now();
    while slowest_echo(&mesh, Duration::from_secs(2)) > NOTICED {
        assert!(begin.elapsed() < SHED, "echoes still wait beside {} sleepers", sleepers.len());
    }
    echoes(&mut open(&mesh, ECHO), &pattern(8 << 20)[..]);
    for daemon in [mesh.a.daemon(), mesh.b.daemon()] {
        let rss = daemon.usage().rss >> 20;
        assert!(rss < 3 * 256, "{rss} MiB for flows that nobody reads");
    }
}

/// Six readers at 2.5 MB/s want more than a tunnel's own window, and none of them ever stands still for long.
#[test]
#[allow(clippy::disallowed_methods, reason = "a slow reader sleeps")]
fn clients_that_read_slowly_hold_nobody_up_and_are_not_shed() {
    if !needs(MESH) {
        return;
    }
    let (mesh, _app) = talker();
    let flows: Vec<TcpStream> = (0..6).map(|_| open(&mesh, TALK)).collect();
    let begin = Instant::now();
    thread::scope(|scope| {
        for mut flow in &flows {
            scope.spawn(move || {
                let mut block = vec![0; 128 << 10];
                while begin.elapsed() < Duration::from_secs(8) {
                    flow.read_exact(&mut block).unwrap();
                    thread::sleep(Duration::from_millis(50));
                }
            });
        }
        let worst = slowest_echo(&mesh, Duration::from_secs(6));
        assert!(worst < NOTICED, "an echo took {worst:?} beside slow readers");
    });
}

/// Asks the application to take all it can, and to say how much that was.
const TAKE: &[u8; 1] = b"t";
/// How long bulk is carried.
const BULK: Duration = Duration::from_secs(4);

/// Reads for [`BULK`].
fn take(flow: &mut TcpStream) -> u64 {
    let (begin, mut taken, mut block) = (Instant::now(), 0, vec![0; 256 << 10]);
    while begin.elapsed() < BULK {
        taken += flow.read(&mut block).unwrap() as u64;
    }
    taken
}

/// Sends until the application says how much it took.
fn give(flow: &mut TcpStream) -> u64 {
    let mut giving = flow.try_clone().unwrap();
    thread::spawn(move || while giving.write_all(&[7; 256 << 10]).is_ok() {});
    let mut taken = [0; 8];
    flow.read_exact(&mut taken).unwrap();
    // Ends the giving, too.
    flow.shutdown(Shutdown::Both).unwrap();
    u64::from_le_bytes(taken)
}

/// More bulk than the tunnel carries, either way: its flows share it, and new ones get in.
#[test]
fn bulk_flows_share_a_tunnel_and_others_get_in() {
    const FLOWS: usize = 64;
    if !needs(MESH) {
        return;
    }
    let mesh = mesh();
    let _app = app(&mesh, |mut stream| {
        let mut kind = [0];
        stream.read_exact(&mut kind).unwrap();
        match &kind {
            TAKE => {
                let taken = take(&mut stream);
                stream.write_all(&taken.to_le_bytes()).unwrap();
                let _rest = io::copy(&mut stream, &mut io::sink());
            }
            TALK => while stream.write_all(&[7; 256 << 10]).is_ok() {},
            _ => echo(stream),
        }
    });
    for (kind, carry) in [(TAKE, give as fn(&mut TcpStream) -> u64), (TALK, take)] {
        let way = kind.escape_ascii();
        let mut flows: Vec<TcpStream> = (0..FLOWS).map(|_| open(&mesh, kind)).collect();
        let (carried, worst) = thread::scope(|scope| {
            let bulk: Vec<_> = flows.iter_mut().map(|flow| scope.spawn(move || carry(flow))).collect();
            let (begin, mut worst) = (Instant::now(), Duration::ZERO);
            while begin.elapsed() < BULK * 3 / 4 {
                let opened = Instant::now();
                echoes(&mut open(&mesh, ECHO), &[1; 1000]);
                worst = worst.max(opened.elapsed());
            }
            (bulk.into_iter().map(|flow| flow.join().unwrap()).collect::<Vec<_>>(), worst)
        });
        let (least, all) = (carried.iter().min().unwrap(), carried.iter().sum::<u64>());
        assert!(least * FLOWS as u64 * 5 > all, "{way}: one carried {least} of {all} octets: {carried:?}");
        assert!(worst < Duration::from_secs(2), "{way}: a new flow took {worst:?}");
    }
}

#[test]
fn datagrams_of_every_size_come_back_to_the_client_that_sent_them() {
    if !needs(MESH) {
        return;
    }
    let mesh = Mesh::start(
        |a| a.import("echo@onprem.test", "udp://127.0.0.1:17001"),
        |b| b.export("echo", "udp://10.0.0.5:7001", "spiffe://cloud.test/**"),
    );
    let echo = UdpEcho::start(&mesh.lab.b.ns, (LAN_APP, 7001).into());
    assert_eq!(echo.addr().port(), 7001);
    mesh.a.wait_import("echo@onprem.test", "up", UP);

    let import = SocketAddr::from(([127, 0, 0, 1], 17001));
    let clients: Vec<_> = (0..5)
        .map(|_| {
            let socket = mesh.a.ns().udp(([127, 0, 0, 1], 0).into(), Duration::from_millis(500));
            socket.connect(import).unwrap();
            socket
        })
        .collect();
    let mut buffer = vec![0; 65_536];
    for size in [1, 64, 1_200, 1_472, 1_500, 9_000, 30_000, 60_000] {
        for (i, client) in clients.iter().enumerate() {
            let mut datagram = pattern(size);
            datagram[0] = i as u8;
            // Datagrams may be lost, but not always.
            let came_back = (0..5).any(|_| {
                client.send(&datagram).unwrap();
                client.recv(&mut buffer).is_ok_and(|len| buffer[..len] == datagram)
            });
            assert!(came_back, "{size} bytes of client {i} never came back");
        }
    }
}
