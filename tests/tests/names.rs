//! From a domain's name to its gateways, with records as administrators write them.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "test code")]

use std::{net::Ipv4Addr, time::Duration};

use carrick_tests::lab::{LAN_APP, MESH, Mesh, PORT, Settings, TcpApp, Zone, echoes, needs};

const UP: Duration = Duration::from_secs(15);
const SERVICE: &str = "echo@onprem.test";
const IMPORT: u16 = 17000;
/// In site b's network, but nobody has it.
const DEAD: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 77);

/// Site b runs; site a finds it through `zone` and nothing else.
#[track_caller]
fn found_through(zone: Zone) {
    let mut mesh = Mesh::prepare(
        |a| a.import(SERVICE, &format!("127.0.0.1:{IMPORT}")),
        |b| b.export("echo", "tcp://10.0.0.5:7000", "spiffe://cloud.test/**"),
    );
    let _app = TcpApp::echo(&mesh.lab.b.ns, (LAN_APP, 7000).into());
    mesh.knot.publish(zone);
    mesh.b.up();
    mesh.a.up();
    mesh.a.wait_import(SERVICE, "up", UP);
    echoes(&mut mesh.a.connect(IMPORT).unwrap(), b"found");
}

fn b4() -> Ipv4Addr {
    Ipv4Addr::new(203, 0, 113, 2)
}

fn b6() -> std::net::Ipv6Addr {
    "fd00:b::2".parse().unwrap()
}

#[test]
fn a_target_that_is_an_alias() {
    if !needs(MESH) {
        return;
    }
    found_through(
        Zone::new("onprem.test")
            .carrick(10, 50, PORT, "gw")
            .cname("gw", "host.dmz.onprem.test.")
            .a("host.dmz", b4()),
    );
}

#[test]
fn records_that_are_aliases() {
    if !needs(MESH) {
        return;
    }
    let zone = Zone::new("onprem.test").cname("_carrick._tcp", "tcp.srv").cname("_carrick._udp", "udp.srv");
    found_through(zone.srv("tcp.srv", 1, 1, PORT, "gw").srv("udp.srv", 1, 1, PORT, "gw").a("gw", b4()));
}

#[test]
fn an_answer_that_fits_no_datagram() {
    if !needs(MESH) {
        return;
    }
    // Only the last of 60 is alive, and it comes first only if the whole answer was read.
    let zone = (0..60).fold(Zone::new("onprem.test"), |zone, i| {
        let host = format!("a-gateway-with-a-name-that-is-rather-long-{i}");
        zone.carrick(100 - i, 1, PORT, &host).a(&host, if i == 59 { b4() } else { DEAD })
    });
    found_through(zone);
}

#[test]
fn a_gateway_with_ipv6_only() {
    if !needs(MESH) {
        return;
    }
    found_through(Zone::new("onprem.test").carrick(10, 50, PORT, "gw").aaaa("gw", b6()));
}

#[test]
fn a_first_target_that_is_dead() {
    if !needs(MESH) {
        return;
    }
    let zone = Zone::new("onprem.test").carrick(10, 50, PORT, "dead").carrick(20, 50, PORT, "gw");
    found_through(zone.a("dead", DEAD).a("gw", b4()).aaaa("gw", b6()));
}

#[test]
fn a_first_target_whose_name_has_no_address() {
    if !needs(MESH) {
        return;
    }
    let zone = Zone::new("onprem.test").carrick(10, 50, PORT, "nameless").carrick(20, 50, PORT, "gw");
    found_through(zone.a("gw", b4()));
}

#[test]
fn several_ports_and_one_of_them_closed() {
    if !needs(MESH) {
        return;
    }
    let zone = Zone::new("onprem.test").carrick(10, 90, 7999, "gw").carrick(10, 10, PORT, "gw");
    found_through(zone.a("gw", b4()));
}

#[test]
fn a_static_peer_needs_no_dns_at_all() {
    if !needs(MESH) {
        return;
    }
    let mut mesh =
        Mesh::prepare(|a| a, |b| b.export("echo", "tcp://10.0.0.5:7000", "spiffe://cloud.test/**"));
    let settings = Settings::new(&mesh.lab.a, &mesh.a).trust(&mesh.b).peer(&mesh.lab.b);
    mesh.a.configure(&settings.import(SERVICE, &format!("127.0.0.1:{IMPORT}")));
    let _app = TcpApp::echo(&mesh.lab.b.ns, (LAN_APP, 7000).into());
    mesh.knot.down();
    mesh.b.up();
    mesh.a.up();
    mesh.a.wait_import(SERVICE, "up", UP);
    echoes(&mut mesh.a.connect(IMPORT).unwrap(), b"found");
}

#[test]
fn two_sites_that_are_each_other_s_dns_servers() {
    if !needs(MESH) {
        return;
    }
    // No other DNS server: each daemon serves its own zone (WAN port 53) and asks the other's.
    let listen = "listen: { control: \"[::]:7443\", tunnel: \"[::]:7443\", dns: \"0.0.0.0:53\" }";
    let dns = |other: &str| format!("dns: {{ servers: [\"{other}:53\"] }}");
    let mut mesh = Mesh::prepare(
        |a| a.line(listen).line(&dns("203.0.113.2")).import(SERVICE, &format!("127.0.0.1:{IMPORT}")),
        |b| {
            b.line(listen).line(&dns("198.51.100.2")).export(
                "echo",
                "tcp://10.0.0.5:7000",
                "spiffe://cloud.test/**",
            )
        },
    );
    mesh.knot.down();
    let _app = TcpApp::echo(&mesh.lab.b.ns, (LAN_APP, 7000).into());
    mesh.b.up();
    let asked = mesh.a.ns().run("kdig", &["@203.0.113.2", "+short", "_carrick._udp.onprem.test", "SRV"]).ok();
    assert!(asked.contains(" 7443 "), "{asked}");
    mesh.a.up();
    mesh.a.wait_import(SERVICE, "up", UP);
    echoes(&mut mesh.a.connect(IMPORT).unwrap(), b"found");
}
