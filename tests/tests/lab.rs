//! The lab tests itself: a scenario that passes in a lab that isolates nothing proves nothing.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "test code")]

use std::{
    io::{Read, Write},
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use carrick_tests::lab::{DNS6, Daemon, HaproxyPair, Knot, LAN_APP, Lab, Postgres, Zone, needs, within};

const SHORT: Duration = Duration::from_millis(300);
const LONG: Duration = Duration::from_secs(5);

#[test]
fn sites_reach_each_other_over_the_wan_only() {
    if !needs(&["netns"]) {
        return;
    }
    let lab = Lab::new();
    let (wan_listener, lan_listener) =
        (lab.b.ns.listen(lab.b.at(9000)), lab.b.ns.listen((LAN_APP, 9001).into()));
    let v6 = lab.b.ns.listen((lab.b.addr6, 9002).into());

    lab.a.ns.connect(lab.b.at(9000), LONG).expect("a reaches b's WAN address");
    let peer = wan_listener.accept().unwrap().1;
    assert_eq!(peer.ip(), lab.a.addr, "b sees a's WAN address: no translation on the way");
    lab.a.ns.connect((lab.b.addr6, 9002).into(), LONG).expect("and over IPv6");
    drop(v6);

    lab.b.ns.connect((LAN_APP, 9001).into(), LONG).expect("b reaches its own LAN");
    drop(lan_listener);
    let error = lab.a.ns.connect((LAN_APP, 9001).into(), SHORT).unwrap_err();
    assert!(
        matches!(error.kind(), std::io::ErrorKind::ConnectionRefused | std::io::ErrorKind::TimedOut),
        "{error}"
    );
    let route = lab.wan.run("ip", &["route", "get", &LAN_APP.to_string()]).failed();
    assert!(route.contains("unreachable"), "the WAN routes no private network: {route}");
}

#[test]
fn the_same_private_address_is_another_host_in_each_site() {
    if !needs(&["netns"]) {
        return;
    }
    let lab = Lab::new();
    let at: SocketAddr = (LAN_APP, 9000).into();
    let answer = |site: &carrick_tests::lab::Site, word: &'static str| {
        let listener = site.ns.listen(at);
        std::thread::spawn(move || listener.accept().unwrap().0.write_all(word.as_bytes()).unwrap());
        let mut text = String::new();
        site.ns.connect(at, LONG).unwrap().read_to_string(&mut text).unwrap();
        text
    };
    assert_eq!(answer(&lab.a, "cloud"), "cloud");
    assert_eq!(answer(&lab.b, "onprem"), "onprem");
}

#[test]
fn an_unplugged_link_and_a_lossy_one_stop_traffic_and_recover() {
    if !needs(&["netns"]) {
        return;
    }
    let lab = Lab::new();
    let _v4 = lab.b.ns.listen(lab.b.at(9000));
    let v6 = SocketAddr::from((lab.b.addr6, 9000));
    let _v6 = lab.b.ns.listen(v6);
    let reach = || [lab.b.at(9000), v6].map(|to| lab.a.ns.connect(to, SHORT).is_ok());
    let recovered =
        || within(LONG, "both families to work again", || (reach() == [true, true]).then_some(()));
    recovered();
    lab.b.unplug();
    assert_eq!(reach(), [false, false]);
    lab.b.plug_in();
    recovered();
    lab.b.lose_packets();
    assert_eq!(reach(), [false, false]);
    lab.b.stop_losing_packets();
    recovered();
}

#[test]
fn a_dropped_lab_leaves_nothing() {
    if !needs(&["netns"]) {
        return;
    }
    let (name, dir, pid) = {
        let lab = Lab::new();
        lab.b.ns.resolv_conf("127.0.0.1");
        let mut sleeper = lab.b.ns.command("sleep");
        let child = sleeper.arg("600").spawn().unwrap();
        within(LONG, "sleep to be in the namespace", || (!lab.b.ns.pids().is_empty()).then_some(()));
        (lab.b.ns.name().to_owned(), lab.dir().to_owned(), child)
    };
    let mut child = pid;
    assert!(child.try_wait().unwrap().is_some(), "programs in it are killed");
    assert!(!std::path::Path::new("/run/netns").join(&name).exists());
    assert!(!std::path::Path::new("/etc/netns").join(&name).exists());
    assert!(!dir.exists());
}

#[test]
fn a_log_can_be_waited_for() {
    if !needs(&["netns"]) {
        return;
    }
    let lab = Lab::new();
    let mut command = lab.a.ns.command("sh");
    command.args(["-c", "echo one; sleep 0.2; echo two >&2; exec sleep 600"]);
    let mut daemon = Daemon::spawn(lab.dir(), "talker", command);
    assert_eq!(daemon.wait_for_log("two", LONG), "two");
    assert_eq!(daemon.log(), "one\ntwo\n");
    let missing =
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| daemon.wait_for_log("three", SHORT)));
    assert!(missing.is_err());
    assert!(lab.a.ns.pids().contains(&i32::try_from(daemon.pid()).unwrap()), "the pid is the program's own");
}

#[test]
fn knot_answers_with_what_was_published() {
    if !needs(&["netns", "knotd", "kdig"]) {
        return;
    }
    let lab = Lab::new();
    let mut knot = Knot::start(&lab, [Zone::gateway("onprem.test", 7443, lab.b.addr, lab.b.addr6)]);
    assert_eq!(knot.dig(&["_carrick._udp.onprem.test", "SRV"]), "10 50 7443 gw.onprem.test.");
    assert_eq!(knot.dig(&["gw.onprem.test", "A"]), lab.b.addr.to_string());
    assert_eq!(knot.dig(&["gw.onprem.test", "AAAA"]), lab.b.addr6.to_string());
    let v6 = lab.b.ns.run("kdig", &[&format!("@{DNS6}"), "+short", "gw.onprem.test", "A"]).ok();
    assert_eq!(v6, lab.b.addr.to_string(), "and over IPv6");

    let many = (0..80).fold(Zone::new("onprem.test"), |zone, i| {
        let host = format!("gateway-with-a-long-name-{i}");
        zone.srv("_carrick._tcp", 10, 1, 7443, &host).a(&host, Ipv4Addr::new(203, 0, 113, 2))
    });
    knot.publish(many.cname("alias", "gateway-with-a-long-name-7"));
    let server = format!("@{}", carrick_tests::lab::DNS);
    let query = [server.as_str(), "+ignore", "_carrick._tcp.onprem.test", "SRV"];
    let over_udp = lab.a.ns.run("kdig", &query).ok();
    assert!(over_udp.contains("tc"), "the answer does not fit a datagram: {over_udp}");
    assert_eq!(knot.dig(&["_carrick._tcp.onprem.test", "SRV"]).lines().count(), 80, "but it fits TCP");
    assert!(knot.dig(&["alias.onprem.test", "A"]).ends_with("203.0.113.2"));

    knot.down();
    assert_eq!(knot.dig(&["alias.onprem.test", "A"]), "");
    knot.up();
    assert!(!knot.dig(&["alias.onprem.test", "A"]).is_empty());
}

#[test]
fn postgres_serves_site_b_and_nobody_else() {
    if !needs(&["netns", "postgres", "initdb", "psql", "pgbench"]) {
        return;
    }
    let lab = Lab::new();
    let postgres = Postgres::start(&lab);
    postgres.init_pgbench();
    let host = LAN_APP.to_string();
    let rows = "select count(*) from pgbench_accounts";
    assert_eq!(Postgres::psql_over(&lab.b.ns, &host, 5432, rows).ok(), "100000");
    assert_eq!(postgres.psql("select inet_server_addr() is null").ok(), "t");
    Postgres::psql_over(&lab.a.ns, &host, 5432, "select 1").failed();
}

#[test]
fn the_haproxy_pair_carries_flows_and_checks_certificates() {
    if !needs(&["netns", "haproxy", "openssl"]) {
        return;
    }
    let lab = Lab::new();
    let app = lab.b.ns.listen((LAN_APP, 9000).into());
    let import = SocketAddr::from(([127, 0, 0, 1], 19000));
    let _pair = HaproxyPair::start(&lab, import, (LAN_APP, 9000).into());
    std::thread::spawn(move || {
        for stream in app.incoming().flatten() {
            let (mut from, mut to) = (stream.try_clone().unwrap(), stream);
            std::thread::spawn(move || std::io::copy(&mut from, &mut to));
        }
    });
    let mut flow = lab.a.ns.connect(import, LONG).unwrap();
    flow.write_all(b"through two proxies").unwrap();
    let mut back = [0; 19];
    flow.read_exact(&mut back).unwrap();
    assert_eq!(&back, b"through two proxies");
    let stranger = format!("echo let me in | openssl s_client -quiet -connect {}:9443", lab.b.addr);
    let said = lab.a.ns.run("sh", &["-c", &stranger]).failed();
    assert!(said.contains("certificate required"), "a client without a certificate is refused: {said}");
}
