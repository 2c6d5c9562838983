use carrick_model::{ExportTarget, Payload};

use super::*;
use crate::path::Segment;

fn start() -> Now {
    Now { mono: Instant::now(), wall: SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000) }
}

fn s(n: u64) -> Duration {
    Duration::from_secs(n)
}

fn id(n: u8) -> ConnectionId {
    ConnectionId::from_bytes([n; 16])
}

fn peer(domain: &str) -> SpiffeId {
    SpiffeId::new(format!("spiffe://{domain}/carrick/gateway")).unwrap()
}

fn export(endpoint: &str, service: &str, to: &str, allow: &[&str]) -> LocalExport {
    let target: ExportTarget = to.parse().unwrap();
    LocalExport {
        endpoint: endpoint.into(),
        service: service.parse().unwrap(),
        payload: target.payload(),
        target,
        allow: allow.iter().map(|p| p.parse().unwrap()).collect(),
    }
}

fn exports() -> Vec<LocalExport> {
    vec![
        export("pg-1", "postgres", "tcp://10.0.0.5:5432", &["spiffe://cloud.test/**"]),
        export("pg-2", "postgres", "tcp://10.0.0.6:5432", &["spiffe://cloud.test/**"]),
        export("dns-1", "dns", "udp://10.0.0.7:53", &["spiffe://cloud.test/**"]),
        export("private-1", "private", "tcp://10.0.0.8:80", &[]),
    ]
}

fn table() -> Inbound {
    let mut settings = InboundSettings::new("onprem.test".parse().unwrap());
    settings.max_per_peer = 3;
    settings.max_total = 5;
    let mut table = Inbound::new(settings);
    table.handle_exports_changed(exports());
    table
}

/// A request as a gateway of Carrick sends it.
fn request(service: &str, id: &str, now: Now) -> InboundRequest {
    InboundRequest {
        id: id.into(),
        service: service.into(),
        path: Path::begin("cloud.test/gateway", id, now.wall + s(600)),
        mechanisms: vec![("REMOTE".into(), "QUIC".into())],
        ..InboundRequest::default()
    }
}

fn events(table: &mut Inbound) -> Vec<InboundEvent> {
    std::iter::from_fn(|| table.poll_event()).collect()
}

fn refusal(request: InboundRequest, now: Now) -> Refusal {
    table().handle_request(&peer("cloud.test"), request, id(1), now).unwrap_err()
}

#[test]
fn an_allowed_caller_gets_a_connection_and_the_path_back() {
    let (mut table, now) = (table(), start());
    let reply = table
        .handle_request(&peer("cloud.test"), request("postgres@onprem.test", "c", now), id(1), now)
        .unwrap();
    assert_eq!((reply.id.as_str(), reply.connection, reply.payload), ("c", id(1), Payload::Tcp));
    assert_eq!((reply.path.index, reply.path.segments.len()), (0, 2));
    let own = &reply.path.segments[1];
    assert_eq!((own.name.as_str(), own.id.clone()), ("onprem.test/gateway", id(1).to_string()));
    assert_eq!(own.expires, Some(now.wall + s(600)));
    let [InboundEvent::Admit(admitted)] = &events(&mut table)[..] else { panic!("admitted") };
    assert_eq!((admitted.id, admitted.target.to_string()), (id(1), "tcp://10.0.0.5:5432".into()));
    assert_eq!(table.poll_timeout(), Some(now.mono + s(600)));
}

#[test]
fn a_request_whose_reply_was_lost_makes_no_second_entry() {
    let (mut table, now) = (table(), start());
    let first = table.handle_request(&peer("cloud.test"), request("postgres", "c", now), id(1), now).unwrap();
    let again = table.handle_request(&peer("cloud.test"), request("postgres", "c", now), id(2), now).unwrap();
    assert_eq!((again.connection, again.endpoint), (first.connection, first.endpoint));
    assert_eq!((table.len(), events(&mut table).len()), (1, 1));
}

#[test]
fn a_renewal_moves_the_end_of_the_lease() {
    let (mut table, now) = (table(), start());
    let first = table.handle_request(&peer("cloud.test"), request("postgres", "c", now), id(1), now).unwrap();
    let later = now.after(s(200));
    let mut renewal = request("postgres", "c", later);
    renewal.path.segments.push(first.path.segments[1].clone());
    table.handle_request(&peer("cloud.test"), renewal, id(2), later).unwrap();
    table.handle_timeout(now.after(s(700)));
    assert_eq!(table.len(), 1);
    table.handle_timeout(now.after(s(800)));
    assert_eq!(events(&mut table).last(), Some(&InboundEvent::Revoke(id(1), RevokeReason::Expired)));
    assert!(table.is_empty() && table.by_origin.is_empty() && table.per_peer.is_empty());
}

#[test]
fn a_lease_is_never_longer_than_the_callers_own_nor_than_ours() {
    let now = start();
    for (asked, granted) in [(s(30), s(30)), (s(6000), s(600))] {
        let mut r = request("postgres", "c", now);
        r.path.segments[0].expires = Some(now.wall + asked);
        let reply = table().handle_request(&peer("cloud.test"), r, id(1), now).unwrap();
        assert_eq!(reply.expires, now.wall + granted);
    }
    let mut r = request("postgres", "c", now);
    r.path.segments[0].expires = Some(now.wall - s(7));
    assert_eq!(refusal(r, now), Refusal::LeaseOver(s(7)));
}

#[test]
fn nobody_is_allowed_by_default_and_the_reason_is_given() {
    let (mut table, now) = (table(), start());
    let mut ask = |from: &str, service: &str| {
        table.handle_request(&peer(from), request(service, "c", now), id(1), now).unwrap_err().to_string()
    };
    for text in [ask("evil.test", "postgres"), ask("cloud.test", "private")] {
        assert!(text.ends_with("no sufficient privileges"), "{text}");
    }
    assert!(ask("evil.test", "postgres").contains("no entry of the allow list is of this trust domain"));
    assert!(ask("cloud.test", "private").contains("the allow list is empty"));
    assert!(table.is_empty() && events(&mut table).is_empty());
}

#[test]
fn what_is_not_there_is_named() {
    let now = start();
    let text = |r| refusal(r, now).to_string();
    assert_eq!(text(request("mysql", "c", now)), "network service `mysql` is not offered by onprem.test");
    let other = text(request("postgres@other.test", "c", now));
    assert_eq!(other, "`postgres@other.test` is not of this domain, which is onprem.test");
    let mut r = request("postgres", "c", now);
    r.endpoint = "pg-9@onprem.test".into();
    assert!(text(r).contains("no endpoint `pg-9`"));
    let mut r = request("postgres", "c", now);
    r.payload = "IP".into();
    assert_eq!(text(r), "network service `postgres` carries TCP, not `IP`");
    let mut r = request("postgres", "c", now);
    r.mechanisms = vec![("REMOTE".into(), "VXLAN".into()), ("LOCAL".into(), "QUIC".into())];
    assert_eq!(refusal(r, now), Refusal::Mechanism);
    assert!(matches!(refusal(request("no such name!", "c", now), now), Refusal::Name { .. }));
    assert!(matches!(refusal(request("", "c", now), now), Refusal::Name { .. }));
}

#[test]
fn bad_paths_are_refused_and_leave_nothing() {
    let now = start();
    let mut r = request("postgres", "c", now);
    r.path = Path::default();
    assert_eq!(refusal(r, now), Refusal::Path(PathFault::Empty));
    let mut r = request("postgres", "c", now);
    r.path.index = 1;
    assert!(matches!(refusal(r, now), Refusal::Path(PathFault::Index { .. })));
    let mut r = request("postgres", "c", now);
    r.id = "d".into();
    assert!(matches!(refusal(r, now), Refusal::Path(PathFault::IdMismatch { .. })));
    let mut r = request("postgres", "c", now);
    r.path.segments[0].name = "onprem.test/gateway".into();
    assert!(matches!(refusal(r, now), Refusal::OwnName(_)));
}

#[test]
fn only_the_owner_closes() {
    let (mut table, now) = (table(), start());
    let reply = table.handle_request(&peer("cloud.test"), request("postgres", "c", now), id(1), now).unwrap();
    let foreign = table.handle_close(&peer("evil.test"), &reply.path);
    assert!(matches!(foreign, Err(Refusal::NotYours(_))));
    assert_eq!(table.len(), 1);
    // Another gateway of the same domain may: replicas share what they hold. It need not know our part of the path.
    let replica = SpiffeId::new("spiffe://cloud.test/carrick/other").unwrap();
    let own_only = request("postgres", "c", now).path;
    assert_eq!(table.handle_close(&replica, &own_only), Ok(Some(id(1))));
    assert_eq!(table.handle_close(&replica, &own_only), Ok(None), "closed is closed");
    assert_eq!(events(&mut table).last(), Some(&InboundEvent::Revoke(id(1), RevokeReason::Closed)));
    assert_eq!(table.handle_close(&replica, &Path::default()), Err(PathFault::Empty.into()));
}

#[test]
fn nobody_takes_over_a_connection_of_another_by_its_id() {
    let (mut table, now) = (table(), start());
    let both = vec![export(
        "pg-1",
        "postgres",
        "tcp://10.0.0.5:5432",
        &["spiffe://cloud.test/**", "spiffe://evil.test/**"],
    )];
    table.handle_exports_changed(both);
    let mine = table.handle_request(&peer("cloud.test"), request("postgres", "c", now), id(1), now).unwrap();
    let mut theft = request("postgres", "c", now);
    theft.path.segments.push(mine.path.segments[1].clone());
    let theirs = table.handle_request(&peer("evil.test"), theft, id(2), now).unwrap();
    assert_eq!((theirs.connection, table.len()), (id(2), 2));
}

#[test]
fn an_id_that_outlived_our_restart_is_used_again() {
    let (mut table, now) = (table(), start());
    let mut r = request("postgres", "c", now);
    r.path.segments.push(Segment {
        name: "onprem.test/gateway".into(),
        id: id(7).to_string(),
        ..Segment::default()
    });
    let reply = table.handle_request(&peer("cloud.test"), r, id(1), now).unwrap();
    assert_eq!((reply.connection, reply.path.segments[1].id.clone()), (id(7), id(7).to_string()));
}

#[test]
fn bounds_hold_for_one_peer_and_for_all() {
    let (mut table, now) = (table(), start());
    let all = ["spiffe://a.test/**", "spiffe://b.test/**"];
    table.handle_exports_changed(vec![export("pg-1", "postgres", "tcp://10.0.0.5:5432", &all)]);
    let mut ask = |from: &str, n: u8| {
        table
            .handle_request(&peer(from), request("postgres", &n.to_string(), now), id(n), now)
            .map(|r| r.connection)
    };
    for n in 1..=3 {
        ask("a.test", n).unwrap();
    }
    assert!(matches!(ask("a.test", 4), Err(Refusal::PeerLimit(_, 3))));
    assert_eq!(ask("a.test", 2), Ok(id(2)), "a renewal is not one more");
    ask("b.test", 5).unwrap();
    ask("b.test", 6).unwrap();
    assert!(matches!(ask("b.test", 7), Err(Refusal::TotalLimit(5))));
}

#[test]
fn a_change_of_exports_revokes_what_is_no_longer_allowed_and_nothing_else() {
    let (mut table, now) = (table(), start());
    for (n, service) in [(1, "postgres"), (2, "dns")] {
        table.handle_request(&peer("cloud.test"), request(service, &n.to_string(), now), id(n), now).unwrap();
    }
    events(&mut table);
    table.handle_exports_changed(exports());
    assert_eq!(events(&mut table), []);

    let mut changed = exports();
    changed[0].target = "tcp://10.0.0.9:5432".parse().unwrap();
    changed[2].allow.clear();
    table.handle_exports_changed(changed);
    let after = events(&mut table);
    assert!(after.contains(&InboundEvent::Revoke(id(2), RevokeReason::Denied)));
    assert!(
        after
            .iter()
            .any(|e| matches!(e, InboundEvent::Admit(a) if a.target.to_string() == "tcp://10.0.0.9:5432"))
    );

    table.handle_exports_changed(vec![]);
    assert_eq!(events(&mut table), [InboundEvent::Revoke(id(1), RevokeReason::ExportRemoved)]);
}

#[test]
fn trust_that_goes_takes_the_connections_along() {
    let (mut table, now) = (table(), start());
    table.handle_request(&peer("cloud.test"), request("postgres", "c", now), id(1), now).unwrap();
    table.handle_trust_removed(peer("other.test").trust_domain());
    assert_eq!(table.len(), 1);
    table.handle_trust_removed(peer("cloud.test").trust_domain());
    assert_eq!(events(&mut table).last(), Some(&InboundEvent::Revoke(id(1), RevokeReason::TrustRemoved)));
}

#[test]
fn a_renewal_that_is_denied_ends_the_connection() {
    let (mut table, now) = (table(), start());
    table.handle_request(&peer("cloud.test"), request("postgres", "c", now), id(1), now).unwrap();
    // Not through a change of exports: another identity of the same domain renews, and is not allowed.
    table.exports.values_mut().flatten().for_each(|e| e.allow.clear());
    let denied = table.handle_request(&peer("cloud.test"), request("postgres", "c", now), id(2), now);
    assert!(matches!(denied, Err(Refusal::Denied { .. })));
    assert!(table.is_empty());
}

#[test]
fn a_reselect_gives_up_the_old_choice_first() {
    let (mut table, now) = (table(), start());
    let first = table.handle_request(&peer("cloud.test"), request("postgres", "c", now), id(1), now).unwrap();
    events(&mut table);
    let mut again = request("postgres", "c", now);
    again.reselect = true;
    let second = table.handle_request(&peer("cloud.test"), again, id(2), now).unwrap();
    assert_ne!(first.endpoint, second.endpoint);
    let [InboundEvent::Revoke(old, RevokeReason::Reselected), InboundEvent::Admit(new)] =
        &events(&mut table)[..]
    else {
        panic!("revoked and admitted")
    };
    assert_eq!((*old, new.id, table.len()), (id(1), id(1), 1));
}
