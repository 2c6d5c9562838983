//! Our DNS server as its clients see it.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    process::Command,
    time::Duration,
};

use carrick_model::ServiceName;
use carrick_runtime::Tasks;
use carrick_telemetry::Metrics;
use hickory_resolver::{
    TokioResolver,
    config::{ConnectionConfig, NameServerConfig, ProtocolConfig, ResolverConfig},
    net::runtime::TokioRuntimeProvider,
    proto::{
        op::{Edns, Message, MessageType, OpCode, Query, ResponseCode},
        rr::{DNSClass, Name, RData, RecordType},
    },
};
use proptest::prelude::*;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpStream, UdpSocket},
};

use super::{
    NsmPorts, OwnDomain, Server, Zone, ZoneHandle, ZoneKind,
    message::{Transport, respond},
};
use crate::resolve::{Resolver, ResolverSettings};

fn name(text: &str) -> Name {
    Name::from_ascii(text).unwrap()
}

fn own(advertise: &[&str]) -> OwnDomain {
    OwnDomain {
        domain: "cloud.test".parse().unwrap(),
        advertise: advertise.iter().map(|a| a.parse().unwrap()).collect(),
        control_port: 7443,
        tunnel_port: 8443,
        nsm: None,
    }
}

fn imports() -> Vec<(ServiceName, Ipv4Addr)> {
    let import = |n: &str, last| (n.parse().unwrap(), Ipv4Addr::new(127, 80, 0, last));
    vec![import("postgres@onprem.test", 7), import("db.reporting@onprem.test", 8)]
}

fn zone(own: &OwnDomain) -> Zone {
    let imports = imports();
    Zone::new(Some(own), "mesh", imports.iter().map(|(s, ip)| (s, *ip))).unwrap()
}

fn example() -> Zone {
    zone(&own(&["192.0.2.10", "2001:db8::10", "gw.elsewhere.test"]))
}

/// The answer records in zone file form, and the result code.
fn ask(zone: &Zone, at: &str, kind: RecordType) -> (Vec<String>, ResponseCode) {
    let answer = zone.answer(&Query::query(name(at), kind));
    (answer.answers.iter().map(ToString::to_string).collect(), answer.code)
}

#[test]
fn our_domain_has_its_records() {
    let zone = example();
    assert_eq!(
        ask(&zone, "_carrick._tcp.cloud.test.", RecordType::SRV).0,
        [
            "_carrick._tcp.cloud.test. 60 IN SRV 0 0 7443 gw.cloud.test.",
            "_carrick._tcp.cloud.test. 60 IN SRV 0 0 7443 gw.elsewhere.test.",
        ]
    );
    assert_eq!(
        ask(&zone, "_carrick._udp.cloud.test.", RecordType::SRV).0[0],
        "_carrick._udp.cloud.test. 60 IN SRV 0 0 8443 gw.cloud.test."
    );
    assert_eq!(ask(&zone, "gw.cloud.test.", RecordType::A).0, ["gw.cloud.test. 60 IN A 192.0.2.10"]);
    assert_eq!(ask(&zone, "gw.cloud.test.", RecordType::AAAA).0, ["gw.cloud.test. 60 IN AAAA 2001:db8::10"]);
    assert_eq!(ask(&zone, "cloud.test.", RecordType::NS).0, ["cloud.test. 60 IN NS gw.cloud.test."]);
    assert!(
        ask(&zone, "cloud.test.", RecordType::SOA).0[0].starts_with("cloud.test. 60 IN SOA gw.cloud.test. ")
    );

    let srv = zone.answer(&Query::query(name("_carrick._tcp.cloud.test."), RecordType::SRV));
    assert!(srv.authoritative && srv.zone == ZoneKind::Own);
    let glue: Vec<_> = srv.additionals.iter().map(ToString::to_string).collect();
    assert_eq!(glue, ["gw.cloud.test. 60 IN A 192.0.2.10", "gw.cloud.test. 60 IN AAAA 2001:db8::10"]);
}

#[test]
fn imports_have_an_ipv4_address_and_no_other() {
    let zone = example();
    assert_eq!(
        ask(&zone, "postgres.onprem.test.mesh.", RecordType::A).0,
        ["postgres.onprem.test.mesh. 5 IN A 127.80.0.7"]
    );
    assert_eq!(ask(&zone, "db.reporting.onprem.test.mesh.", RecordType::A).0.len(), 1);
    for kind in [RecordType::AAAA, RecordType::HTTPS, RecordType::MX] {
        let answer = zone.answer(&Query::query(name("postgres.onprem.test.mesh."), kind));
        assert_eq!(
            (answer.code, answer.answers.len(), answer.authorities.len()),
            (ResponseCode::NoError, 0, 1)
        );
        assert_eq!(answer.authorities[0].record_type(), RecordType::SOA);
        assert_eq!(answer.authorities[0].name, name("mesh."));
        assert!(answer.authoritative && answer.zone == ZoneKind::Imports);
    }
}

#[test]
fn what_is_not_there_is_denied_and_what_is_not_ours_refused() {
    let zone = example();
    for (at, code) in [
        ("mysql.onprem.test.mesh.", ResponseCode::NXDomain),
        ("x.postgres.onprem.test.mesh.", ResponseCode::NXDomain),
        ("www.cloud.test.", ResponseCode::NXDomain),
        ("onprem.test.mesh.", ResponseCode::NoError), // holds names, so it exists (RFC 8020)
        ("_tcp.cloud.test.", ResponseCode::NoError),
        ("mesh.", ResponseCode::NoError),
    ] {
        let answer = zone.answer(&Query::query(name(at), RecordType::A));
        assert_eq!(answer.code, code, "{at}");
        assert_eq!(
            (answer.answers.len(), answer.authorities.len(), answer.authoritative),
            (0, 1, true),
            "{at}"
        );
    }
    for at in ["example.com.", ".", "test.", "notcloud.test.", "onprem.test."] {
        let answer = zone.answer(&Query::query(name(at), RecordType::A));
        assert_eq!((answer.code, answer.authoritative), (ResponseCode::Refused, false), "{at}");
    }
    let mut chaos = Query::query(name("cloud.test."), RecordType::TXT);
    chaos.set_query_class(DNSClass::CH);
    assert_eq!(zone.answer(&chaos).code, ResponseCode::Refused);
    assert_eq!(ask(&zone, "cloud.test.", RecordType::AXFR).1, ResponseCode::Refused);
    assert_eq!(ask(&Zone::empty(), "cloud.test.", RecordType::A).1, ResponseCode::Refused);
}

#[test]
fn the_case_of_the_question_does_not_matter_and_is_kept() {
    let (records, _) = ask(&example(), "PostGres.OnPrem.TEST.meSH.", RecordType::A);
    assert_eq!(records, ["PostGres.OnPrem.TEST.meSH. 5 IN A 127.80.0.7"]);
}

#[test]
fn any_gets_one_kind_of_record() {
    let zone = example();
    assert_eq!(ask(&zone, "gw.cloud.test.", RecordType::ANY).0, ["gw.cloud.test. 60 IN A 192.0.2.10"]);
    assert_eq!(ask(&zone, "cloud.test.", RecordType::ANY).0.len(), 1);
}

#[test]
fn a_zone_inside_another_is_its_own() {
    let imports = imports();
    let zone =
        Zone::new(Some(&own(&["192.0.2.10"])), "mesh.cloud.test", imports.iter().map(|(s, ip)| (s, *ip)))
            .unwrap();
    let no = zone.answer(&Query::query(name("x.mesh.cloud.test."), RecordType::A));
    assert_eq!((no.zone, &no.authorities[0].name), (ZoneKind::Imports, &name("mesh.cloud.test.")));
    assert_eq!(ask(&zone, "postgres.onprem.test.mesh.cloud.test.", RecordType::A).0.len(), 1);

    let same =
        Zone::new(Some(&own(&["192.0.2.10"])), "cloud.test", imports.iter().map(|(s, ip)| (s, *ip))).unwrap();
    assert_eq!(ask(&same, "postgres.onprem.test.cloud.test.", RecordType::A).0.len(), 1);
    assert_eq!(ask(&same, "cloud.test.", RecordType::SOA).0.len(), 1);
}

#[test]
fn nsm_finds_us_under_its_own_names() {
    let ports = Some(NsmPorts { registry: 5002, proxy: 5004 });
    let zone_of = |advertise: &[&str]| zone(&OwnDomain { nsm: ports, ..own(advertise) });
    let zone = zone_of(&["192.0.2.10"]);
    for (service, port) in [("registry", 5002), ("nsmgr-proxy", 5004)] {
        let host = format!("{service}.nsm-system.cloud.test.");
        assert_eq!(ask(&zone, &host, RecordType::SRV).0, [format!("{host} 60 IN SRV 0 0 {port} {host}")]);
        assert_eq!(ask(&zone, &host, RecordType::A).0, [format!("{host} 60 IN A 192.0.2.10")]);
    }
    assert_eq!(ask(&example(), "registry.nsm-system.cloud.test.", RecordType::A).1, ResponseCode::NXDomain);
    let warned = zone_of(&["gw.example.net"]).warnings().join("\n");
    assert!(warned.contains("only names are advertised"), "{warned}");
}

#[test]
fn what_nobody_can_reach_is_warned_of() {
    assert_eq!(example().warnings(), &[] as &[String]);
    let warned = |advertise: &[&str]| zone(&own(advertise)).warnings().join("\n");
    assert!(warned(&["0.0.0.0"]).contains("0.0.0.0 is no address to be reached at"));
    assert!(warned(&["0.0.0.0"]).contains("nobody finds cloud.test"));
    assert!(warned(&["gw.cloud.test"]).contains("gw.cloud.test. lies in the zone served here"));
    // The example of the reference page: the name and its address.
    assert_eq!(warned(&["192.0.2.10", "gw.cloud.test"]), "");
}

#[test]
fn a_new_zone_has_a_new_serial() {
    let handle = ZoneHandle::new(example());
    let first = handle.get().serial();
    handle.set(example());
    handle.set(example());
    assert_eq!(handle.get().serial(), first + 2);
    let soa = handle.get().answer(&Query::query(name("mesh."), RecordType::SOA)).answers;
    assert!(soa[0].to_string().contains(&format!(" {} ", first + 2)), "{}", soa[0]);
}

fn question(at: &str, kind: RecordType) -> Message {
    let mut message = Message::query();
    message.metadata.id = 4711;
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(name(at), kind));
    message
}

fn exchange(zone: &Zone, message: &Message, transport: Transport) -> Message {
    Message::from_vec(&respond(zone, &message.to_vec().unwrap(), transport).unwrap().bytes).unwrap()
}

#[test]
fn header_and_edns_are_as_they_should_be() {
    let zone = example();
    let plain = exchange(&zone, &question("GW.cloud.test.", RecordType::A), Transport::Udp);
    assert_eq!((plain.id, plain.message_type), (4711, MessageType::Response));
    assert!(
        plain.authoritative && plain.recursion_desired && !plain.recursion_available && !plain.truncation
    );
    assert!(plain.edns.is_none());
    assert!(plain.queries[0].name().eq_case(&name("GW.cloud.test.")));

    let mut asked = question("gw.cloud.test.", RecordType::A);
    let mut edns = Edns::new();
    edns.set_max_payload(4096).set_dnssec_ok(true);
    asked.set_edns(edns.clone());
    let reply = exchange(&zone, &asked, Transport::Udp);
    let edns_back = reply.edns.unwrap();
    assert_eq!((edns_back.version(), edns_back.max_payload(), edns_back.flags().dnssec_ok), (0, 1232, true));

    asked.set_edns({
        edns.set_version(1);
        edns
    });
    let reply = exchange(&zone, &asked, Transport::Udp);
    // BADVERS and BADSIG are one number, 16, and hickory reads it as the latter.
    assert_eq!((u16::from(reply.response_code), reply.answers.len()), (16, 0));
}

#[test]
fn what_is_no_question_is_told_or_ignored() {
    let zone = example();
    let code = |bytes: &[u8]| respond(&zone, bytes, Transport::Udp).map(|r| r.code);
    let good = question("gw.cloud.test.", RecordType::A);
    assert_eq!(code(&good.to_vec().unwrap()), Some(ResponseCode::NoError));

    let mut response = good.clone();
    response.metadata.message_type = MessageType::Response;
    assert_eq!(code(&response.to_vec().unwrap()), None, "an answer is never answered");
    assert_eq!(code(&[1, 2, 3]), None);

    let mut two = good.clone();
    two.add_query(Query::query(name("cloud.test."), RecordType::A));
    assert_eq!(code(&two.to_vec().unwrap()), Some(ResponseCode::FormErr));
    let mut notify = good.clone();
    notify.metadata.op_code = OpCode::Notify;
    assert_eq!(code(&notify.to_vec().unwrap()), Some(ResponseCode::NotImp));
    let whole = good.to_vec().unwrap();
    assert_eq!(code(&whole[..whole.len() - 3]), Some(ResponseCode::FormErr));
    // A header that announces 65535 questions.
    let mut many = whole[..12].to_vec();
    many[4..6].copy_from_slice(&[0xff, 0xff]);
    assert_eq!(code(&many), Some(ResponseCode::FormErr));
}

#[test]
fn a_large_answer_fits_udp_and_is_whole_over_tcp() {
    let hosts: Vec<_> = (0..40).map(|n| format!("gateway-number-{n}.elsewhere.test")).collect();
    let mut advertise: Vec<_> = hosts.iter().map(String::as_str).collect();
    advertise.push("192.0.2.10");
    let zone = zone(&own(&advertise));
    let mut asked = question("_carrick._tcp.cloud.test.", RecordType::SRV);
    for payload in [None, Some(1232), Some(65_535)] {
        if let Some(payload) = payload {
            let mut edns = Edns::new();
            edns.set_max_payload(payload);
            asked.set_edns(edns);
        }
        let bytes = respond(&zone, &asked.to_vec().unwrap(), Transport::Udp).unwrap().bytes;
        assert!(bytes.len() <= if payload.is_some() { 1232 } else { 512 }, "{}", bytes.len());
        let reply = Message::from_vec(&bytes).unwrap();
        assert!(reply.truncation && reply.answers.is_empty());
        assert_eq!(reply.edns.is_some(), payload.is_some());
    }
    let whole = exchange(&zone, &asked, Transport::Tcp);
    assert_eq!((whole.truncation, whole.answers.len(), whole.additionals.len()), (false, 41, 1));
}

#[test]
fn glue_is_left_out_before_the_answer_is_truncated() {
    let addresses: Vec<_> = (1..=40).map(|n| format!("192.0.2.{n}")).collect();
    let zone = zone(&own(&addresses.iter().map(String::as_str).collect::<Vec<_>>()));
    let reply = exchange(&zone, &question("_carrick._tcp.cloud.test.", RecordType::SRV), Transport::Udp);
    assert_eq!((reply.truncation, reply.answers.len(), reply.additionals.len()), (false, 1, 0));
}

proptest! {
    #[test]
    fn no_message_makes_us_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        respond(&example(), &bytes, Transport::Udp);
    }

    #[test]
    fn no_damaged_question_makes_us_panic_or_talk_too_much(
        at in prop::sample::select(vec!["_carrick._tcp.cloud.test.", "postgres.onprem.test.mesh.", "mesh."]),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
    ) {
        let mut bytes = question(at, RecordType::SRV).to_vec().unwrap();
        for (index, byte) in damage {
            let i = index.index(bytes.len());
            bytes[i] = byte;
        }
        if let Some(reply) = respond(&example(), &bytes, Transport::Udp) {
            prop_assert!(reply.bytes.len() <= 1232);
            prop_assert_eq!(&reply.bytes[..2], &bytes[..2]);
        }
    }
}

async fn start(zone: Zone) -> (SocketAddr, ZoneHandle, Tasks, Metrics) {
    let (handle, tasks, metrics) = (ZoneHandle::new(zone), Tasks::new(), Metrics::new());
    let server = Server::bind("127.0.0.1:0".parse().unwrap(), handle.clone(), metrics.clone()).await.unwrap();
    let addr = server.local_addr();
    server.serve(&tasks);
    (addr, handle, tasks, metrics)
}

/// A client that is not ours.
fn stub(addr: SocketAddr, protocol: ProtocolConfig) -> TokioResolver {
    let mut connection = ConnectionConfig::new(protocol);
    connection.port = addr.port();
    let server = NameServerConfig::new(addr.ip(), true, vec![connection]);
    let config = ResolverConfig::from_name_servers(vec![server]);
    let mut builder = TokioResolver::builder_with_config(config, TokioRuntimeProvider::default());
    builder.options_mut().cache_size = 0;
    builder.build().unwrap()
}

#[tokio::test]
async fn applications_look_names_up_over_udp_and_tcp() {
    let (addr, handle, _tasks, metrics) = start(example()).await;
    for protocol in [ProtocolConfig::Udp, ProtocolConfig::Tcp] {
        let stub = stub(addr, protocol);
        let ips: Vec<_> = stub.lookup_ip("postgres.onprem.test.mesh.").await.unwrap().iter().collect();
        assert_eq!(ips, [IpAddr::from([127, 80, 0, 7])]);
        let error = stub.ipv6_lookup("postgres.onprem.test.mesh.").await.unwrap_err();
        assert!(error.is_no_records_found() && !error.is_nx_domain(), "{error}");
        assert!(stub.lookup_ip("mysql.onprem.test.mesh.").await.unwrap_err().is_nx_domain());
        assert!(!stub.lookup_ip("example.com.").await.unwrap_err().is_no_records_found());
        let srv = stub.srv_lookup("_carrick._udp.cloud.test.").await.unwrap();
        assert!(srv.answers().iter().any(|r| matches!(&r.data, RData::SRV(s) if s.port == 8443)));
    }
    let text = metrics.encode();
    for line in [
        r#"carrick_dns_queries_total{zone="imports",outcome="answered"}"#,
        r#"carrick_dns_queries_total{zone="imports",outcome="no_data"}"#,
        r#"carrick_dns_queries_total{zone="imports",outcome="no_such_name"}"#,
        r#"carrick_dns_queries_total{zone="none",outcome="refused"}"#,
        r#"carrick_dns_queries_total{zone="own",outcome="answered"} 2"#,
    ] {
        assert!(text.contains(line), "{line}\n{text}");
    }
    // An import that goes away is gone at once.
    handle.set(Zone::new(None, "mesh", []).unwrap());
    let udp = stub(addr, ProtocolConfig::Udp);
    assert!(udp.lookup_ip("postgres.onprem.test.mesh.").await.unwrap_err().is_nx_domain());
}

#[tokio::test]
async fn another_domain_finds_us_through_our_own_server() {
    let (addr, _handle, _tasks, _) = start(zone(&own(&["192.0.2.10", "2001:db8::10"]))).await;
    let settings = ResolverSettings { servers: vec![addr], ..Default::default() };
    let resolver = Resolver::new(settings, Metrics::new()).unwrap();
    let found = resolver.resolve(&"cloud.test".parse().unwrap()).await.unwrap();
    let ports: Vec<_> = found.control.iter().chain(&found.tunnel).map(|c| c.addr.port()).collect();
    assert_eq!(ports, [7443, 7443, 8443, 8443]);
    let error = resolver.resolve(&"other.test".parse().unwrap()).await.unwrap_err();
    assert!(matches!(error, crate::resolve::ResolveError::Refused { .. }), "{error}");
}

#[tokio::test]
async fn several_questions_on_one_tcp_connection_and_nonsense_ends_it() {
    let (addr, _handle, _tasks, _) = start(example()).await;
    let mut stream = TcpStream::connect(addr).await.unwrap();
    let question = question("gw.cloud.test.", RecordType::A).to_vec().unwrap();
    let framed = [&(question.len() as u16).to_be_bytes()[..], &question].concat();
    // Two at once, in pieces.
    let both = framed.repeat(2);
    for piece in both.chunks(7) {
        stream.write_all(piece).await.unwrap();
    }
    for _ in 0..2 {
        let len = stream.read_u16().await.unwrap();
        let mut reply = vec![0; len.into()];
        stream.read_exact(&mut reply).await.unwrap();
        assert_eq!(Message::from_vec(&reply).unwrap().answers.len(), 1);
    }
    stream.write_all(&[0xff, 0xff, 1, 2, 3]).await.unwrap();
    assert_eq!(stream.read(&mut [0; 8]).await.unwrap_or(0), 0, "the server hangs up");
    // And it serves on.
    let udp = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    udp.send_to(&[0xff; 3], addr).await.unwrap();
    udp.send_to(&question, addr).await.unwrap();
    let mut buffer = [0; 512];
    let (len, _) = udp.recv_from(&mut buffer).await.unwrap();
    assert_eq!(Message::from_vec(&buffer[..len]).unwrap().id, 4711);
}

#[tokio::test]
async fn idle_tcp_clients_are_bounded_and_do_not_stop_udp() {
    let (addr, _handle, _tasks, _) = start(example()).await;
    let mut idle = Vec::new();
    for _ in 0..200 {
        idle.push(TcpStream::connect(addr).await.unwrap());
    }
    let udp = stub(addr, ProtocolConfig::Udp);
    udp.lookup_ip("gw.cloud.test.").await.unwrap();
    drop(idle);
    stub(addr, ProtocolConfig::Tcp).lookup_ip("gw.cloud.test.").await.unwrap();
}

#[tokio::test]
async fn a_taken_address_says_so_and_stopping_frees_it() {
    let (addr, handle, tasks, metrics) = start(example()).await;
    let error = Server::bind(addr, handle.clone(), metrics.clone()).await.unwrap_err();
    assert_eq!(error.to_string(), format!("cannot listen on {addr} (TCP) for DNS"));
    assert!(error.hint().contains("listen.dns"), "{}", error.hint());
    let _client = TcpStream::connect(addr).await.unwrap();
    tasks.stop();
    assert!(tasks.wait(Duration::from_secs(5)).await);
    Server::bind(addr, handle, metrics).await.unwrap();
}

/// Runs where the tool is installed; says so where it is not.
async fn interop(tool: &'static str) {
    if Command::new(tool).arg("-v").output().is_err() {
        eprintln!("SKIPPED: {tool} is not installed");
        return;
    }
    let (addr, _handle, _tasks, _) = start(example()).await;
    let run = move |arguments: &[&str]| {
        let port = addr.port().to_string();
        let mut command = Command::new(tool);
        command.args(["@127.0.0.1", "-p", &port]).args(arguments);
        async move {
            let output = tokio::task::spawn_blocking(move || command.output()).await.unwrap().unwrap();
            String::from_utf8(output.stdout).unwrap()
        }
    };
    assert_eq!(run(&["+short", "postgres.onprem.test.mesh", "A"]).await.trim(), "127.80.0.7");
    assert_eq!(run(&["+short", "+tcp", "GW.cloud.TEST", "AAAA"]).await.trim(), "2001:db8::10");
    let srv = run(&["_carrick._tcp.cloud.test", "SRV"]).await;
    assert!(
        srv.contains("0 0 7443 gw.cloud.test.") && srv.contains("192.0.2.10") && srv.contains(" aa"),
        "{srv}"
    );
    assert!(run(&["nothing.cloud.test", "A"]).await.contains("NXDOMAIN"));
    assert!(run(&["example.com", "A"]).await.contains("REFUSED"));
}

#[tokio::test]
async fn interop_with_dig() {
    interop("dig").await;
}

#[tokio::test]
async fn interop_with_kdig() {
    interop("kdig").await;
}
