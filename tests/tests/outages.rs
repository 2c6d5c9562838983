//! What breaks, and that it heals by itself.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::disallowed_methods,
    reason = "test code; outages last"
)]

use std::{
    io::{ErrorKind, Read, Write},
    net::TcpStream,
    time::{Duration, Instant},
};

use carrick_tests::lab::{
    LAN_APP, MESH, Mesh, Postgres, Settings, TcpApp, Zone, echoes, needs, try_echo, within_or,
};

const UP: Duration = Duration::from_secs(15);
const HEALED: Duration = Duration::from_secs(20);
const SERVICE: &str = "echo@onprem.test";
const IMPORT: u16 = 17000;

fn prepared() -> (Mesh, TcpApp) {
    let mesh = Mesh::prepare(
        |a| a.import(SERVICE, &format!("127.0.0.1:{IMPORT}")),
        |b| b.export("echo", "tcp://10.0.0.5:7000", "spiffe://cloud.test/**"),
    );
    let app = TcpApp::echo(&mesh.lab.b.ns, (LAN_APP, 7000).into());
    (mesh, app)
}

fn running() -> (Mesh, TcpApp) {
    let (mut mesh, app) = prepared();
    mesh.b.up();
    mesh.a.up();
    mesh.a.wait_import(SERVICE, "up", UP);
    (mesh, app)
}

/// A new flow echoes.
fn works(mesh: &Mesh) -> std::io::Result<()> {
    try_echo(&mut mesh.a.connect(IMPORT)?, b"hello")
}

/// A flow that has carried something, and on which a read waits for so long from now on.
fn standing(mesh: &Mesh, limit: Duration) -> TcpStream {
    let mut flow = mesh.a.connect(IMPORT).unwrap();
    echoes(&mut flow, b"before");
    flow.set_read_timeout(Some(limit)).unwrap();
    flow
}

#[test]
fn a_database_session_after_its_gateway_was_killed() {
    if !needs(&[MESH, &["postgres", "initdb", "psql"]].concat()) {
        return;
    }
    let service = "postgres@onprem.test";
    let mut mesh = Mesh::start(
        |a| a.import(service, "127.0.0.1:15432"),
        |b| b.export("postgres", "tcp://10.0.0.5:5432", "spiffe://cloud.test/**"),
    );
    let _postgres = Postgres::start(&mesh.lab);
    mesh.a.wait_import(service, "up", UP);
    let client = mesh.a.ns().clone();
    let query = || Postgres::psql_over(&client, "127.0.0.1", 15432, "select 1");
    query().ok();
    mesh.b.kill();
    query().failed();
    mesh.b.up();
    within_or(HEALED, "psql to work again", || {
        let finished = query();
        if finished.code == 0 { Ok(()) } else { Err(finished.to_string()) }
    });
}

#[test]
fn flows_of_a_killed_gateway_end_and_do_not_hang() {
    if !needs(MESH) {
        return;
    }
    let (mut mesh, _app) = running();
    let mut flow = standing(&mesh, Duration::from_secs(60));
    mesh.b.kill();
    let ended = flow.read(&mut [0]).expect_err("an end that the application did not make is no clean one");
    assert_eq!(ended.kind(), ErrorKind::ConnectionReset);
}

#[test]
fn a_gateway_that_was_killed_and_is_back_is_reached_at_once() {
    if !needs(MESH) {
        return;
    }
    let (mut mesh, _app) = running();
    let mut flow = standing(&mesh, Duration::from_secs(60));
    mesh.b.kill();
    mesh.b.up();
    // Nobody said goodbye, and the tunnel of before would be kept for another quarter of a minute. But what is sent into it now
    // comes to somebody who knows that it is gone, and can prove to be the one who had it.
    let back = Instant::now();
    let ended = flow.write_all(b"into the old tunnel").and_then(|()| flow.read(&mut [0]));
    assert_eq!(ended.unwrap_err().kind(), ErrorKind::ConnectionReset);
    within_or(Duration::from_secs(5), "a new flow", || works(&mesh));
    assert!(back.elapsed() < Duration::from_secs(5), "{:?} is not at once", back.elapsed());
}

#[test]
fn a_link_that_is_cut_for_five_seconds() {
    if !needs(MESH) {
        return;
    }
    let (mesh, _app) = running();
    let mut flow = standing(&mesh, HEALED);
    mesh.lab.b.unplug();
    std::thread::sleep(Duration::from_secs(5));
    mesh.lab.b.plug_in();
    echoes(&mut flow, b"the same flow goes on");
    within_or(HEALED, "a new flow", || works(&mesh));
}

#[test]
fn packets_that_are_lost_without_a_sign_for_three_seconds() {
    if !needs(MESH) {
        return;
    }
    let (mesh, _app) = running();
    let mut flow = standing(&mesh, HEALED);
    mesh.lab.a.lose_packets();
    std::thread::sleep(Duration::from_secs(3));
    mesh.lab.a.stop_losing_packets();
    echoes(&mut flow, b"the same flow goes on");
}

#[test]
fn while_the_remote_is_down_a_client_is_reset_at_once_and_the_log_says_why() {
    if !needs(MESH) {
        return;
    }
    let (mut mesh, _app) = prepared();
    mesh.a.up();
    let row = mesh.a.wait_import(SERVICE, "down", UP);
    assert!(row["why"].as_str().is_some_and(|why| why.contains("onprem.test")), "{row}");

    let mark = mesh.a.daemon().mark();
    let asked = Instant::now();
    let error = mesh.a.connect(IMPORT).and_then(|mut flow| flow.read(&mut [0])).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::ConnectionRefused), "{error}");
    assert!(asked.elapsed() < Duration::from_secs(1), "{:?} is not at once", asked.elapsed());
    let line = mesh.a.daemon_mut().wait_for_log_from(mark, SERVICE, Duration::from_secs(2));
    assert!(line.contains("203.0.113.2:7443") || line.contains("onprem.test"), "it says why: {line}");

    mesh.b.up();
    within_or(HEALED, "recovery without a restart", || works(&mesh));
}

#[test]
fn a_dead_dns_server_takes_nothing_that_worked() {
    if !needs(MESH) {
        return;
    }
    let (mut mesh, _app) = running();
    let mut flow = mesh.a.connect(IMPORT).unwrap();
    mesh.knot.down();
    // Longer than the records' TTL of two seconds.
    std::thread::sleep(Duration::from_secs(4));
    echoes(&mut flow, b"an old flow");
    works(&mesh).expect("a new flow");

    // Even the peer may come back without DNS: its last good answer is still known.
    mesh.b.kill();
    mesh.b.up();
    within_or(HEALED, "healing on the last good answer", || works(&mesh));

    mesh.knot.up();
    works(&mesh).expect("and with DNS again");
}

#[test]
fn a_domain_that_moves_is_followed() {
    if !needs(MESH) {
        return;
    }
    let (mut mesh, _app) = running();
    // The site gets another address, and the records say so a moment later.
    let (old, old6) = (mesh.lab.b.addr, mesh.lab.b.addr6);
    mesh.lab.b.ns.configure(&format!(
        "addr del {old}/24 dev uplink\naddr del {old6}/64 dev uplink\naddr add 203.0.113.9/24 dev uplink\n\
         route add default via 203.0.113.1"
    ));
    mesh.b.kill();
    let moved = Settings::new(&mesh.lab.b, &mesh.b)
        .line("advertise: [\"203.0.113.9\"]")
        .trust(&mesh.a)
        .export("echo", "tcp://10.0.0.5:7000", "spiffe://cloud.test/**");
    mesh.b.configure(&moved);
    mesh.b.up();
    mesh.knot.publish(Zone::new("onprem.test").carrick(10, 50, 7443, "gw").a("gw", [203, 0, 113, 9].into()));
    within_or(HEALED, "the new address to be used", || works(&mesh));
}
