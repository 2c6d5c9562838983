//! The resolver against DNS servers on loopback.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering::SeqCst},
    },
    time::Duration,
};

use carrick_telemetry::Metrics;
use hickory_resolver::proto::{
    op::{Message, ResponseCode},
    rr::{
        Name, RData, RecordType,
        rdata::{CNAME, NS, SOA, SRV},
    },
};
use tokio::time::Instant;

use super::{
    Gateways, ResolveError, Resolver, ResolverSettings, Source, StaticPeer,
    testing::{Act, Asked, ScriptServer, ZoneServer, answer_to, reply_to},
};
use carrick_model::Domain;

fn domain(text: &str) -> Domain {
    text.parse().unwrap()
}

fn name(text: &str) -> Name {
    Name::from_ascii(text).unwrap()
}

fn resolver(servers: &[SocketAddr]) -> Resolver {
    // Loopback answers within a millisecond; the rest is for a machine that is busy with other tests.
    let settings = ResolverSettings {
        servers: servers.to_vec(),
        timeout: Duration::from_secs(1),
        attempts: 1,
        ..Default::default()
    };
    Resolver::new(settings, Metrics::new()).unwrap()
}

/// `address priority weight` of the candidates, sorted.
fn shown(candidates: &[super::Candidate]) -> Vec<String> {
    let mut lines: Vec<_> =
        candidates.iter().map(|c| format!("{} {} {} {}", c.addr, c.host, c.priority, c.weight)).collect();
    lines.sort();
    lines
}

fn seconds_left(gateways: &Gateways) -> u64 {
    (gateways.expires - super::now()).as_secs_f64().round() as u64
}

async fn resolve(zone: &str) -> Result<Arc<Gateways>, ResolveError> {
    let server = ZoneServer::start(&[("onprem.test", zone)]).await;
    resolver(&[server.addr]).resolve(&domain("onprem.test")).await
}

#[tokio::test]
async fn every_target_and_every_address_is_a_candidate() {
    let found = resolve(
        "_carrick._tcp 300 SRV 10 60 7443 gw1\n\
         _carrick._tcp 300 SRV 10 40 7444 gw2\n\
         _carrick._tcp 300 SRV 20 0 7445 six\n\
         _carrick._udp 200 SRV 5 1 8443 gw1\n\
         gw1 100 A 198.51.100.1\ngw1 100 A 198.51.100.2\ngw1 100 AAAA 2001:db8::1\n\
         gw2 300 CNAME alias\nalias 90 CNAME real\nreal 300 A 198.51.100.9\n\
         six 300 AAAA 2001:db8::6",
    )
    .await
    .unwrap();
    assert_eq!((found.source, found.stale), (Source::Srv, false));
    assert_eq!(
        shown(&found.control),
        [
            "198.51.100.1:7443 gw1.onprem.test 10 60",
            "198.51.100.2:7443 gw1.onprem.test 10 60",
            "198.51.100.9:7444 gw2.onprem.test 10 40",
            "[2001:db8::1]:7443 gw1.onprem.test 10 60",
            "[2001:db8::6]:7445 six.onprem.test 20 0",
        ]
    );
    assert_eq!(
        shown(&found.tunnel),
        [
            "198.51.100.1:8443 gw1.onprem.test 5 1",
            "198.51.100.2:8443 gw1.onprem.test 5 1",
            "[2001:db8::1]:8443 gw1.onprem.test 5 1",
        ]
    );
    assert_eq!(found.registry, found.control);
    assert_eq!(seconds_left(&found), 90, "the alias has the smallest TTL");
    let evidence = found.evidence.join("\n");
    assert!(
        evidence.contains("SRV _carrick._tcp.onprem.test: 3 records, TTL 300 s (from 127.0.0.1:"),
        "{evidence}"
    );
    assert!(
        evidence.contains("A gw2.onprem.test: 1 record, TTL 90 s at real.onprem.test (2 CNAME)"),
        "{evidence}"
    );
}

#[tokio::test]
async fn a_target_without_address_does_not_hide_the_others() {
    let found = resolve(
        "_carrick._tcp 300 SRV 1 0 7443 dead\n_carrick._tcp 300 SRV 2 0 7443 alive\nalive 300 A 198.51.100.2\nalive 300 A 0.0.0.0\nalive 300 AAAA ff02::1",
    )
    .await
    .unwrap();
    assert_eq!(shown(&found.control), ["198.51.100.2:7443 alive.onprem.test 2 0"]);
    assert!(found.tunnel.is_empty());
    assert_eq!(seconds_left(&found), 60, "without _carrick._udp the answer is looked up again soon");
    assert!(
        found.evidence.iter().any(|l| l.starts_with("A dead.onprem.test: no such name")),
        "{:?}",
        found.evidence
    );
}

#[tokio::test]
async fn srv_that_points_nowhere_names_the_target() {
    let error = resolve("_carrick._tcp 300 SRV 1 0 7443 dead\n_carrick._udp 300 SRV 1 0 7443 dead")
        .await
        .unwrap_err();
    assert_eq!(
        error,
        ResolveError::SrvPointsNowhere { domain: domain("onprem.test"), target: "dead.onprem.test".into() }
    );
    assert!(!error.is_failure());
    assert!(error.hint().contains("A or AAAA"));
}

#[tokio::test]
async fn the_target_dot_says_no() {
    let error = resolve("_carrick._tcp 300 SRV 0 0 0 .").await.unwrap_err();
    let expected =
        ResolveError::NotOffered { domain: domain("onprem.test"), name: "_carrick._tcp.onprem.test".into() };
    assert_eq!(error, expected);

    let found =
        resolve("_carrick._tcp 300 SRV 0 0 7443 gw\n_carrick._udp 300 SRV 0 0 0 .\ngw 300 A 198.51.100.2")
            .await
            .unwrap();
    assert!(found.tunnel.is_empty() && found.control.len() == 1);
    assert!(
        found.evidence.iter().any(|l| l.contains("QUIC is decidedly not offered")),
        "{:?}",
        found.evidence
    );
}

#[tokio::test]
async fn nsm_names_serve_a_domain_without_carrick_records() {
    let found = resolve(
        "registry.nsm-system 30 SRV 0 50 5002 elsewhere\nregistry.nsm-system 30 A 203.0.113.1\n\
         nsmgr-proxy.nsm-system 30 SRV 0 50 5004 nsmgr-proxy.nsm-system\nnsmgr-proxy.nsm-system 30 A 203.0.113.2\n\
         nsmgr-proxy.nsm-system 30 AAAA 2001:db8::2\nelsewhere 30 A 203.0.113.3",
    )
    .await
    .unwrap();
    assert_eq!(found.source, Source::Nsm);
    assert_eq!(
        shown(&found.registry),
        [
            "203.0.113.1:5002 registry.nsm-system.onprem.test 0 50",
            "203.0.113.3:5002 elsewhere.onprem.test 0 50"
        ]
    );
    assert_eq!(
        shown(&found.control),
        [
            "203.0.113.2:5004 nsmgr-proxy.nsm-system.onprem.test 0 50",
            "[2001:db8::2]:5004 nsmgr-proxy.nsm-system.onprem.test 0 50",
        ]
    );
    assert!(found.tunnel.is_empty());
}

#[tokio::test]
async fn the_registry_of_a_floating_domain_stands_alone() {
    let found = resolve(
        "registry.nsm-system 30 SRV 0 0 5002 registry.nsm-system\nregistry.nsm-system 30 A 203.0.113.1",
    )
    .await
    .unwrap();
    assert_eq!((found.registry.len(), found.control.len()), (1, 0));
}

#[tokio::test]
async fn a_domain_that_is_not_there_names_what_was_asked() {
    let error = resolve("www 300 A 192.0.2.1").await.unwrap_err();
    let ResolveError::NotInDns { domain: of, asked } = &error else { panic!("{error}") };
    assert_eq!(of, &domain("onprem.test"));
    let names: Vec<_> = asked.iter().map(|l| l.split(':').next().unwrap()).collect();
    assert_eq!(
        names,
        [
            "SRV _carrick._tcp.onprem.test",
            "SRV _carrick._udp.onprem.test",
            "SRV registry.nsm-system.onprem.test",
        ]
    );
    assert!(
        error
            .to_string()
            .starts_with("domain onprem.test is not in the DNS: SRV _carrick._tcp.onprem.test: no such name")
    );
}

#[tokio::test]
async fn an_alias_of_the_srv_name_is_followed_into_another_zone() {
    let hosted =
        "_carrick._tcp.x 300 SRV 1 0 7443 gw\n_carrick._udp.x 300 SRV 1 0 7443 gw\ngw 300 A 198.51.100.7";
    let zone = "_carrick._tcp 300 CNAME _carrick._tcp.x.hoster.test.\n_carrick._udp 300 CNAME _carrick._udp.x.hoster.test.";
    let server = ZoneServer::start(&[("onprem.test", zone), ("hoster.test", hosted)]).await;
    let found = resolver(&[server.addr]).resolve(&domain("onprem.test")).await.unwrap();
    assert_eq!(shown(&found.control), ["198.51.100.7:7443 gw.hoster.test 1 0"]);
    assert_eq!(found.tunnel, found.control);
}

#[tokio::test]
async fn an_alias_that_never_ends_is_told() {
    let server = ScriptServer::start(|q, _| {
        let n = q.queries[0].name();
        let next = if n.iter().next() == Some(b"a") { "b.test." } else { "a.test." };
        Act::Reply(answer_to(q, 60, [RData::CNAME(CNAME(name(next)))]))
    })
    .await;
    let error = resolver(&[server.addr]).resolve(&domain("onprem.test")).await.unwrap_err();
    assert_eq!(error, ResolveError::AliasLoop { name: "_carrick._tcp.onprem.test".into() });
    assert!(server.asked().len() <= 2 * (8 + 2), "{}", server.asked().len());
}

/// A server that knows `onprem.test` at one address.
fn serve(q: &Message, asked: &Asked) -> Act {
    let data = match asked.kind {
        RecordType::SRV if asked.name.contains("nsm") => vec![],
        RecordType::SRV => vec![RData::SRV(SRV::new(0, 0, 7443, name("gw.onprem.test.")))],
        RecordType::A => vec![RData::A(Ipv4Addr::new(198, 51, 100, 1).into())],
        _ => vec![],
    };
    Act::Reply(answer_to(q, 300, data))
}

#[tokio::test]
async fn a_truncated_answer_is_asked_for_over_tcp() {
    let server = ScriptServer::start(|q, asked| match (asked.tcp, serve(q, asked)) {
        (false, Act::Reply(_)) => {
            let mut reply = reply_to(q, ResponseCode::NoError);
            reply.metadata.truncation = true;
            Act::Reply(reply)
        }
        (_, act) => act,
    })
    .await;
    let found = resolver(&[server.addr]).resolve(&domain("onprem.test")).await.unwrap();
    assert_eq!(shown(&found.control), ["198.51.100.1:7443 gw.onprem.test 0 0"]);
    let (tcp, udp): (Vec<_>, Vec<_>) = server.asked().into_iter().partition(|a| a.tcp);
    assert_eq!((tcp.len(), udp.len()), (4, 4));
}

#[tokio::test]
async fn a_large_zone_is_read_over_tcp_and_cut_to_a_bound() {
    let mut zone = String::from("_carrick._udp 300 SRV 0 0 7443 gw1\n");
    for n in 1..=60 {
        zone += &format!("_carrick._tcp 300 SRV {n} 0 7443 gw{n}\ngw{n} 300 A 198.51.100.{n}\n");
    }
    let found = resolve(&zone).await.unwrap();
    assert_eq!(found.control.len(), 32);
    assert!(found.control.iter().all(|c| c.priority <= 32), "the best priorities are kept");
    assert!(
        found.evidence.iter().any(|l| l == "only the first 32 of 60 records are used"),
        "{:?}",
        found.evidence
    );
}

#[tokio::test]
async fn a_server_without_edns_is_asked_without() {
    let server = ScriptServer::start(|q, asked| {
        if q.edns.is_some() { Act::Reply(reply_to(q, ResponseCode::FormErr)) } else { serve(q, asked) }
    })
    .await;
    resolver(&[server.addr]).resolve(&domain("onprem.test")).await.unwrap();
}

#[tokio::test]
async fn a_server_that_fails_leaves_the_answer_to_the_next() {
    let good = ScriptServer::start(serve).await;
    for code in [ResponseCode::ServFail, ResponseCode::Refused, ResponseCode::NotAuth] {
        let bad = ScriptServer::start(move |q, _| Act::Reply(reply_to(q, code))).await;
        resolver(&[bad.addr, good.addr]).resolve(&domain("onprem.test")).await.unwrap();
    }
    let silent = ScriptServer::start(|_, _| Act::Silence).await;
    let began = Instant::now();
    resolver(&[silent.addr, good.addr]).resolve(&domain("onprem.test")).await.unwrap();
    assert!(began.elapsed() < Duration::from_millis(900), "{:?}", began.elapsed());
    assert_eq!(
        silent.asked().iter().filter(|a| a.kind != RecordType::SRV).count(),
        0,
        "the one that answers is preferred"
    );
}

#[tokio::test]
async fn a_no_of_the_first_server_is_not_overruled() {
    let no = ScriptServer::start(|q, _| Act::Reply(reply_to(q, ResponseCode::NXDomain))).await;
    let yes = ScriptServer::start(serve).await;
    let error = resolver(&[no.addr, yes.addr]).resolve(&domain("onprem.test")).await.unwrap_err();
    assert!(matches!(error, ResolveError::NotInDns { .. }), "{error}");
    assert!(yes.asked().is_empty());
}

#[tokio::test]
async fn each_way_to_fail_has_its_own_error() {
    async fn failing(
        script: impl Fn(&Message, &Asked) -> Act + Send + Sync + 'static,
    ) -> (ResolveError, SocketAddr) {
        let server = ScriptServer::start(script).await;
        let error = resolver(&[server.addr]).resolve(&domain("onprem.test")).await.unwrap_err();
        assert!(error.is_failure() && !error.hint().is_empty(), "{error}");
        (error, server.addr)
    }
    let (error, addr) = failing(|_, _| Act::Silence).await;
    assert_eq!(
        error,
        ResolveError::Unreachable {
            name: "_carrick._tcp.onprem.test".into(),
            servers: vec![addr],
            detail: format!("{addr}: no answer in 1000 ms"),
        }
    );
    let (error, _) = failing(|q, _| Act::Reply(reply_to(q, ResponseCode::Refused))).await;
    assert!(matches!(&error, ResolveError::Refused { .. }), "{error}");
    let (error, _) = failing(|q, _| Act::Reply(reply_to(q, ResponseCode::ServFail))).await;
    assert!(matches!(&error, ResolveError::ServFail { .. }), "{error}");
    // A server that does not recurse refers to those who know.
    let (error, _) = failing(|q, _| {
        let mut reply = reply_to(q, ResponseCode::NoError);
        let ns = RData::NS(NS(name("ns.elsewhere.test.")));
        reply.add_authority(hickory_resolver::proto::rr::Record::from_rdata(name("test."), 60, ns));
        Act::Reply(reply)
    })
    .await;
    assert!(error.to_string().contains("not a recursive server"), "{error}");
    let (error, _) = failing(|q, _| {
        let mut bytes = q.id.to_be_bytes().to_vec();
        bytes.extend([0x81, 0x80, 0xff, 0xff, 0xff]);
        Act::Bytes(bytes)
    })
    .await;
    assert!(matches!(&error, ResolveError::Garbage { .. }), "{error}");
    // Nobody answers here at all.
    let closed = std::net::UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let error = resolver(&[closed]).resolve(&domain("onprem.test")).await.unwrap_err();
    assert!(matches!(&error, ResolveError::Unreachable { .. }), "{error}");
}

#[tokio::test]
async fn an_answer_with_another_id_is_not_believed() {
    let server = ScriptServer::start(|q, asked| match serve(q, asked) {
        Act::Reply(mut reply) => {
            reply.metadata.id = reply.metadata.id.wrapping_add(1);
            Act::Reply(reply)
        }
        act => act,
    })
    .await;
    let error = resolver(&[server.addr]).resolve(&domain("onprem.test")).await.unwrap_err();
    assert!(matches!(error, ResolveError::Unreachable { .. }), "{error}");
}

#[tokio::test]
async fn many_ask_at_once_and_one_search_runs() {
    let server = ScriptServer::start(serve).await;
    let (resolver, onprem) = (resolver(&[server.addr]), domain("onprem.test"));
    let all = futures::future::join_all((0..50).map(|_| resolver.resolve(&onprem))).await;
    assert!(all.iter().all(|r| Arc::ptr_eq(r.as_ref().unwrap(), all[0].as_ref().unwrap())));
    resolver.resolve(&domain("OnPrem.Test.")).await.unwrap();
    assert_eq!(server.asked().len(), 4, "two SRV, one A, one AAAA: {:?}", server.asked());
    assert_eq!(resolver.cached(), 1);
}

#[tokio::test]
async fn who_gives_up_waiting_does_not_stop_the_search() {
    let server = ScriptServer::start(serve).await;
    let (resolver, onprem) = (resolver(&[server.addr]), domain("onprem.test"));
    {
        let mut first = Box::pin(resolver.resolve(&onprem));
        assert!(futures::poll!(first.as_mut()).is_pending());
    }
    resolver.resolve(&onprem).await.unwrap();
    assert_eq!(server.asked().len(), 4);
}

const UP: u8 = 0;
const SILENT: u8 = 1;
const GONE: u8 = 2;

/// A server whose state the test changes, and a resolver that knows its domain from before, the answer out of date.
async fn out_of_date() -> (Resolver, Arc<AtomicU8>) {
    let state = Arc::new(AtomicU8::new(UP));
    let seen = Arc::clone(&state);
    let server = ScriptServer::start(move |q, asked| match seen.load(SeqCst) {
        UP => serve(q, asked),
        SILENT => Act::Silence,
        _ => {
            let mut reply = reply_to(q, ResponseCode::NXDomain);
            let soa = SOA::new(name("ns.test."), name("a.test."), 1, 1, 1, 1, 5);
            let soa = hickory_resolver::proto::rr::Record::from_rdata(name("test."), 900, RData::SOA(soa));
            reply.add_authority(soa);
            Act::Reply(reply)
        }
    })
    .await;
    let resolver = resolver(&[server.addr]);
    let found = resolver.resolve(&domain("onprem.test")).await.unwrap();
    assert_eq!(seconds_left(&found), 300);
    skip(Duration::from_secs(301)).await;
    (resolver, state)
}

/// Moves the clock, and lets it run on: the sockets are real.
async fn skip(time: Duration) {
    tokio::time::pause();
    tokio::time::advance(time).await;
    tokio::time::resume();
}

#[tokio::test]
async fn the_last_good_answer_stands_in_while_the_dns_is_silent() {
    let (resolver, state) = out_of_date().await;
    state.store(SILENT, SeqCst);
    let stand_in = resolver.resolve(&domain("onprem.test")).await.unwrap();
    assert!(stand_in.stale);
    assert_eq!(shown(&stand_in.control), ["198.51.100.1:7443 gw.onprem.test 0 0"]);
    assert!(stand_in.evidence.last().unwrap().contains("no DNS server answered"), "{:?}", stand_in.evidence);
    // The DNS is left alone for 30 s, then asked again.
    state.store(UP, SeqCst);
    assert!(resolver.resolve(&domain("onprem.test")).await.unwrap().stale);
    skip(Duration::from_secs(31)).await;
    assert!(!resolver.resolve(&domain("onprem.test")).await.unwrap().stale);
}

#[tokio::test]
async fn a_stand_in_is_given_after_a_moment_even_if_the_dns_takes_its_time() {
    let state = Arc::new(AtomicU8::new(UP));
    let seen = Arc::clone(&state);
    let server = ScriptServer::start(move |q, asked| match seen.load(SeqCst) {
        UP => serve(q, asked),
        _ => Act::Silence,
    })
    .await;
    let settings = ResolverSettings {
        servers: vec![server.addr],
        timeout: Duration::from_secs(20),
        attempts: 1,
        ..Default::default()
    };
    let resolver = Resolver::new(settings, Metrics::new()).unwrap();
    resolver.resolve(&domain("onprem.test")).await.unwrap();
    skip(Duration::from_secs(301)).await;
    state.store(SILENT, SeqCst);
    // From here on nothing but clocks runs.
    tokio::time::pause();
    let began = Instant::now();
    assert!(resolver.resolve(&domain("onprem.test")).await.unwrap().stale);
    let late = began.elapsed() - super::PATIENCE;
    assert!(late < Duration::from_millis(10), "{late:?}");
}

#[tokio::test]
async fn a_domain_that_is_gone_is_gone() {
    let (resolver, state) = out_of_date().await;
    state.store(GONE, SeqCst);
    let error = resolver.resolve(&domain("onprem.test")).await.unwrap_err();
    assert!(matches!(error, ResolveError::NotInDns { .. }), "{error}");
    // The `no` holds for the SOA minimum, 5 s.
    state.store(UP, SeqCst);
    skip(Duration::from_secs(4)).await;
    assert!(resolver.resolve(&domain("onprem.test")).await.is_err());
    skip(Duration::from_secs(2)).await;
    assert!(resolver.resolve(&domain("onprem.test")).await.is_ok());
}

#[tokio::test]
async fn an_expired_answer_is_looked_up_again() {
    let server = ScriptServer::start(serve).await;
    let resolver = resolver(&[server.addr]);
    resolver.resolve(&domain("onprem.test")).await.unwrap();
    resolver.expire(&domain("onprem.test"));
    skip(Duration::from_secs(2)).await;
    assert!(!resolver.resolve(&domain("onprem.test")).await.unwrap().stale);
    assert_eq!(server.asked().len(), 8);
}

fn peer(control: &[&str], tunnel: &[&str]) -> StaticPeer {
    let entries = |texts: &[&str]| texts.iter().map(|t| t.parse().unwrap()).collect();
    StaticPeer { domain: domain("onprem.test"), control: entries(control), tunnel: entries(tunnel) }
}

#[tokio::test]
async fn a_static_peer_overrides_the_dns() {
    let server = ScriptServer::start(serve).await;
    let resolver = resolver(&[server.addr]);
    resolver.set_peers(vec![peer(&["203.0.113.9:7443", "[2001:db8::9]:7443"], &["203.0.113.9:7444"])]);
    let found = resolver.resolve(&domain("onprem.test")).await.unwrap();
    assert_eq!(found.source, Source::Static);
    assert_eq!(
        shown(&found.control),
        ["203.0.113.9:7443 203.0.113.9 0 0", "[2001:db8::9]:7443 2001:db8::9 1 0"]
    );
    assert_eq!(shown(&found.tunnel), ["203.0.113.9:7444 203.0.113.9 0 0"]);
    assert!(server.asked().is_empty());

    resolver.set_peers(Vec::new());
    assert_eq!(resolver.resolve(&domain("onprem.test")).await.unwrap().source, Source::Srv);
    resolver.set_peers(vec![peer(&["203.0.113.8:7443"], &[])]);
    assert_eq!(resolver.resolve(&domain("onprem.test")).await.unwrap().source, Source::Static);
}

#[tokio::test]
async fn names_of_a_static_peer_are_looked_up_in_the_same_dns() {
    let zone = "gw 50 A 198.51.100.3\ngw 50 AAAA 2001:db8::3";
    let server = ZoneServer::start(&[("onprem.test", zone)]).await;
    let resolver = resolver(&[server.addr]);
    resolver.set_peers(vec![peer(&["gw.onprem.test:7443"], &["gw.onprem.test:7444", "203.0.113.1:7444"])]);
    let found = resolver.resolve(&domain("onprem.test")).await.unwrap();
    assert_eq!(
        shown(&found.control),
        ["198.51.100.3:7443 gw.onprem.test 0 0", "[2001:db8::3]:7443 gw.onprem.test 0 0"]
    );
    assert_eq!(found.tunnel.len(), 3);
    assert_eq!((found.source, seconds_left(&found)), (Source::Static, 50));

    resolver.set_peers(vec![peer(&["typo.onprem.test:7443"], &[])]);
    let error = resolver.resolve(&domain("onprem.test")).await.unwrap_err();
    let target = "typo.onprem.test".to_owned();
    assert_eq!(error, ResolveError::PeerPointsNowhere { domain: domain("onprem.test"), target });
}

#[tokio::test]
async fn localhost_is_never_asked_for() {
    let server = ScriptServer::start(|_, _| Act::Silence).await;
    let resolver = resolver(&[server.addr]);
    resolver.set_peers(vec![peer(&["localhost:7443"], &[])]);
    let found = resolver.resolve(&domain("onprem.test")).await.unwrap();
    assert_eq!(shown(&found.control), ["127.0.0.1:7443 localhost 0 0", "[::1]:7443 localhost 0 0"]);
    assert!(server.asked().is_empty());
}

#[tokio::test]
async fn a_domain_too_long_for_the_names_is_told() {
    let long = [["a"; 60].concat(), ["b"; 60].concat(), ["c"; 60].concat(), ["d"; 60].concat()].join(".");
    let server = ScriptServer::start(serve).await;
    let error = resolver(&[server.addr]).resolve(&domain(&long)).await.unwrap_err();
    assert_eq!(error, ResolveError::TooLong { name: format!("_carrick._tcp.{long}") });
    assert!(server.asked().is_empty());
}

#[tokio::test]
async fn lookups_are_counted_by_outcome() {
    let server = ScriptServer::start(serve).await;
    let metrics = Metrics::new();
    let settings = ResolverSettings { servers: vec![server.addr], ..Default::default() };
    let resolver = Resolver::new(settings, metrics.clone()).unwrap();
    for _ in 0..3 {
        resolver.resolve(&domain("onprem.test")).await.unwrap();
    }
    let text = metrics.encode();
    for line in [
        r#"carrick_domain_lookups_total{outcome="found"} 1"#,
        r#"carrick_domain_lookups_total{outcome="cached"} 2"#,
        r#"carrick_dns_questions_total{type="srv",outcome="answered"} 2"#,
        r#"carrick_dns_questions_total{type="aaaa",outcome="nothing"} 1"#,
    ] {
        assert!(text.contains(line), "{line}\n{text}");
    }
}
