#![allow(clippy::unwrap_used, clippy::expect_used, reason = "test code")]

use std::time::SystemTime;

use carrick_proto::{
    UnknownFields,
    connection::{Connection, Mechanism},
};

use super::*;
use crate::path::Segment;

const OWN: &str = "onprem.test/gateway";

struct World {
    table: Transit,
    now: Now,
    fresh: u32,
}

impl World {
    fn new() -> Self {
        let now =
            Now { mono: Instant::now(), wall: SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000) };
        Self { table: Transit::new(TransitSettings::new(OWN)), now, fresh: 0 }
    }

    fn request(&mut self, request: TransitRequest) -> Result<Ticket, TransitRefusal> {
        self.fresh += 1;
        let fresh = format!("ours-{}", self.fresh);
        self.table.handle_request(&client(), request, &fresh, self.now)
    }

    fn pass(&mut self, seconds: u64) {
        self.now = self.now.after(Duration::from_secs(seconds));
        self.table.handle_timeout(self.now);
    }

    fn select(&mut self, to: &[Candidate]) -> SelectQuery {
        let Some(Step::Select(step, query)) = self.table.poll_transmit() else { panic!("nothing to select") };
        self.table.handle_selected(step, Ok(to.to_vec()), self.now);
        *query
    }

    fn asked(&mut self) -> (StepId, HopRequest) {
        match self.table.poll_transmit() {
            Some(Step::Request(step, request)) => (step, *request),
            other => panic!("no request goes out: {other:?}"),
        }
    }

    fn closing(&mut self) -> (StepId, HopClose) {
        match self.table.poll_transmit() {
            Some(Step::Close(step, close)) => (step, *close),
            other => panic!("no close goes out: {other:?}"),
        }
    }

    fn answer(&mut self) -> Result<Carried, TransitFault> {
        loop {
            match self.table.poll_event().expect("a call is answered") {
                TransitEvent::Granted(_, carried) => return Ok(*carried),
                TransitEvent::Failed(_, fault) => return Err(fault),
                _ => {}
            }
        }
    }

    fn events(&mut self) -> Vec<TransitEvent> {
        std::iter::from_fn(|| self.table.poll_event()).collect()
    }

    /// A whole request that the endpoint `e` behind `hop` grants.
    fn establish(&mut self, request: TransitRequest) -> Carried {
        self.request(request).unwrap();
        self.select(&[candidate("e", "tcp://10.0.0.1:1")]);
        let (step, asked) = self.asked();
        self.table.handle_reply(step, grant(&asked), self.now);
        self.answer().unwrap()
    }
}

fn client() -> SpiffeId {
    SpiffeId::new("spiffe://onprem.test/ns/default/pod/nsc").unwrap()
}

fn url(url: &str) -> Hop {
    Hop::Url { url: url.into(), trust_domain: None }
}

fn candidate(endpoint: &str, to: &str) -> Candidate {
    Candidate {
        service: "web".into(),
        endpoint: endpoint.into(),
        payload: "IP".into(),
        hop: url(to),
        leaves: false,
        known_as: endpoint.into(),
    }
}

fn fault(kind: HopFaultKind) -> HopFault {
    HopFault { kind, code: 14, message: "in a test".into() }
}

impl World {
    /// The client's first request.
    fn first(&self) -> TransitRequest {
        let mut path = Path::begin("nsc", "c", self.now.wall + Duration::from_secs(60));
        path.segments[0].token = "token-of-nsc".into();
        self.with_path(path)
    }

    /// Its refresh: the path and the endpoint of the answer.
    fn refresh(&self, last: &Carried) -> TransitRequest {
        let mut path = last.path.clone();
        path.segments[0].expires = Some(self.now.wall + Duration::from_secs(60));
        let mut request = self.with_path(path);
        request.carried.connection = last.connection.clone();
        request
    }

    fn with_path(&self, path: Path) -> TransitRequest {
        let connection =
            Connection { id: "c".into(), network_service: "web@onprem.test".into(), ..Connection::default() };
        TransitRequest {
            carried: Carried { connection, path },
            preferences: vec![],
            unknown_fields: UnknownFields::default(),
            own_token: ("token-of-ours".into(), self.now.wall + Duration::from_secs(600)),
            deadline: self.now.mono + Duration::from_secs(15),
        }
    }
}

/// What a hop behind us answers: its segment is added, our index and id come back.
fn grant(asked: &HopRequest) -> Carried {
    let mut reply = asked.carried.clone();
    if reply.path.next().is_none() {
        reply.path.segments.push(Segment { name: "nse".into(), id: "n".into(), ..Segment::default() });
    }
    reply.connection.mechanism.get_or_insert_with(Mechanism::default);
    reply
}

#[test]
fn a_request_goes_on_with_our_segment_and_the_answer_comes_back_as_the_callers() {
    let mut w = World::new();
    w.request(w.first()).unwrap();
    let query = w.select(&[candidate("e", "tcp://10.0.0.1:1")]);
    assert_eq!((query.service.as_str(), query.previous.as_str()), ("web@onprem.test", "nsc"));
    let (step, asked) = w.asked();
    assert_eq!(asked.hop, url("tcp://10.0.0.1:1"));
    assert_eq!((asked.carried.connection.id.as_str(), asked.carried.path.index), ("ours-1", 1));
    assert_eq!(
        (&*asked.carried.connection.network_service, &*asked.carried.connection.payload),
        ("web", "IP")
    );
    let tokens: Vec<&str> = asked.carried.path.segments.iter().map(|s| s.token.as_str()).collect();
    assert_eq!(tokens, ["token-of-nsc", "token-of-ours"]);
    w.table.handle_reply(step, grant(&asked), w.now);
    let answer = w.answer().unwrap();
    assert_eq!((answer.connection.id.as_str(), answer.path.index), ("c", 0));
    assert_eq!(answer.connection.network_service, "web@onprem.test");
    assert_eq!(answer.connection.network_service_endpoint_name, "e@onprem.test");
    let ids: Vec<&str> = answer.path.segments.iter().map(|s| s.id.as_str()).collect();
    assert_eq!(ids, ["c", "ours-1", "n"]);
    assert_eq!(w.table.connections().count(), 1);
}

#[test]
fn a_refresh_keeps_every_id_and_stays_with_its_endpoint() {
    let mut w = World::new();
    let first = w.establish(w.first());
    w.pass(20);
    w.request(w.refresh(&first)).unwrap();
    let query = w.select(&[candidate("e", "tcp://10.0.0.1:1")]);
    assert_eq!(query.endpoint, "e@onprem.test");
    let (step, asked) = w.asked();
    w.table.handle_reply(step, grant(&asked), w.now);
    let second = w.answer().unwrap();
    let ids = |c: &Carried| c.path.segments.iter().map(|s| s.id.clone()).collect::<Vec<_>>();
    assert_eq!(ids(&first), ids(&second));
    assert_eq!(w.table.len(), 1);
    w.pass(59);
    assert!(w.table.poll_transmit().is_none(), "the refresh has moved the end");
}

#[test]
fn the_same_request_again_makes_no_second_connection_and_knows_the_hops_behind() {
    let mut w = World::new();
    w.establish(w.first());
    w.request(w.first()).unwrap();
    w.select(&[candidate("e", "tcp://10.0.0.1:1")]);
    let (step, asked) = w.asked();
    assert_eq!(asked.carried.connection.id, "ours-1");
    assert_eq!(asked.carried.path.segments.last().unwrap().id, "n");
    w.table.handle_reply(step, grant(&asked), w.now);
    assert_eq!(w.table.len(), 1);
}

#[test]
fn calls_for_one_connection_wait_for_each_other() {
    let mut w = World::new();
    w.request(w.first()).unwrap();
    w.request(w.first()).unwrap();
    let close = w.first().carried;
    w.table.handle_close(&client(), close, w.now).unwrap();
    w.select(&[candidate("e", "tcp://10.0.0.1:1")]);
    let (step, asked) = w.asked();
    assert!(w.table.poll_transmit().is_none(), "one at a time");
    w.table.handle_reply(step, grant(&asked), w.now);
    w.select(&[candidate("e", "tcp://10.0.0.1:1")]);
    let (step, asked) = w.asked();
    w.table.handle_reply(step, grant(&asked), w.now);
    let (step, _) = w.closing();
    w.table.handle_closed(step, w.now);
    assert!(w.table.is_empty());
    for _ in 0..=MAX_WAITING {
        w.request(w.first()).unwrap();
    }
    assert_eq!(w.request(w.first()), Err(TransitRefusal::Busy(MAX_WAITING)));
}

#[test]
fn a_close_sends_what_is_held_and_an_unknown_one_is_a_success() {
    let mut w = World::new();
    let answer = w.establish(w.first());
    let mut close = answer.clone();
    close.connection.network_service = "something else".into();
    close.path.segments[0].token = "newer".into();
    w.table.handle_close(&client(), close, w.now).unwrap();
    let (step, sent) = w.closing();
    assert_eq!((&*sent.carried.connection.network_service, &*sent.carried.connection.id), ("web", "ours-1"));
    assert_eq!(sent.carried.path.segments[0].token, "newer");
    assert_eq!(sent.carried.path.index, 1);
    w.events();
    w.table.handle_closed(step, w.now);
    let events = w.events();
    assert!(
        matches!(&events[0], TransitEvent::Gone { id, why: EndReason::Closed } if id == "ours-1"),
        "{events:?}"
    );
    assert!(matches!(events[1], TransitEvent::Closed(_, Ok(()))));
    assert!(w.table.is_empty());

    w.table.handle_close(&client(), w.first().carried, w.now).unwrap();
    assert!(matches!(w.events()[..], [TransitEvent::Closed(_, Ok(()))]));
}

#[test]
fn a_close_from_before_a_restart_reaches_the_hop_that_the_endpoint_is_behind() {
    let mut before = World::new();
    let answer = before.establish(before.first());
    let mut w = World::new();
    w.table.handle_close(&client(), answer, w.now).unwrap();
    let query = w.select(&[candidate("e", "tcp://10.0.0.1:1")]);
    assert_eq!(query.endpoint, "e@onprem.test");
    let (step, close) = w.closing();
    assert_eq!((&*close.carried.connection.id, close.carried.path.index), ("ours-1", 1));
    w.table.handle_failure(step, fault(HopFaultKind::Unknown), w.now);
    assert!(matches!(w.events()[..], [TransitEvent::Closed(_, Ok(()))]));
    assert!(w.table.is_empty());
}

#[test]
fn a_restart_resumes_from_the_refreshed_path() {
    let mut before = World::new();
    let answer = before.establish(before.first());
    let mut w = World::new();
    let resumed = w.establish(w.refresh(&answer));
    let ids = |c: &Carried| c.path.segments.iter().map(|s| s.id.clone()).collect::<Vec<_>>();
    assert_eq!(ids(&answer), ids(&resumed));
}

#[test]
fn reselect_closes_first_and_asks_for_what_it_is_told() {
    // A client leaves the choice to us; a hop before us has chosen already.
    for named in ["", "e2@onprem.test"] {
        let mut w = World::new();
        let answer = w.establish(w.first());
        let mut again = w.refresh(&answer);
        again.carried.connection.set_state(State::ReselectRequested);
        named.clone_into(&mut again.carried.connection.network_service_endpoint_name);
        w.request(again).unwrap();
        let (step, close) = w.closing();
        assert_eq!(close.hop, url("tcp://10.0.0.1:1"));
        w.table.handle_closed(step, w.now);
        assert_eq!(w.select(&[candidate("e2", "tcp://10.0.0.2:1")]).endpoint, named);
        let (step, asked) = w.asked();
        w.events();
        w.table.handle_reply(step, grant(&asked), w.now);
        assert_eq!(w.answer().unwrap().connection.network_service_endpoint_name, "e2@onprem.test");
    }
}

#[test]
fn a_failed_first_request_leaves_nothing_a_failed_refresh_all_but_the_state() {
    let mut w = World::new();
    w.request(w.first()).unwrap();
    w.select(&[]);
    assert!(matches!(w.answer(), Err(TransitFault::NoCandidate { .. })));
    assert!(w.table.is_empty());

    let answer = w.establish(w.first());
    w.request(w.refresh(&answer)).unwrap();
    let Some(Step::Select(step, _)) = w.table.poll_transmit() else { panic!() };
    w.table.handle_selected(step, Err(fault(HopFaultKind::Unknown)), w.now);
    let (step, asked) = w.asked();
    assert_eq!(asked.hop, url("tcp://10.0.0.1:1"), "without a registry it stays where it is");
    w.table.handle_failure(step, fault(HopFaultKind::Refused), w.now);
    let events = w.events();
    let down = events.iter().any(
        |e| matches!(e, TransitEvent::Published { carried, .. } if carried.connection.state() == State::Down),
    );
    assert!(down, "{events:?}");
    assert!(w.table.connections().next().unwrap().down);
}

#[test]
fn another_service_under_the_same_id_is_not_what_is_held() {
    let mut w = World::new();
    w.establish(w.first());
    let mut other = w.first();
    other.carried.connection.network_service = "db@onprem.test".into();
    w.request(other).unwrap();
    w.select(&[]);
    w.events()
        .iter()
        .find(|e| matches!(e, TransitEvent::Failed(_, TransitFault::NoCandidate { .. })))
        .unwrap();
    assert_eq!(w.table.connections().next().unwrap().service, "web@onprem.test");
}

#[test]
fn the_next_candidate_is_tried_and_one_that_never_answered_is_told_later() {
    let mut w = World::new();
    w.request(w.first()).unwrap();
    w.select(&[
        candidate("a", "tcp://10.0.0.1:1"),
        candidate("b", "tcp://10.0.0.1:1"),
        candidate("c", "tcp://10.0.0.3:1"),
        candidate("d", "tcp://10.0.0.4:1"),
    ]);
    let (step, asked) = w.asked();
    assert_eq!(asked.deadline, w.now.mono + Duration::from_millis(7500), "others wait behind it");
    w.table.handle_failure(step, fault(HopFaultKind::NotSent), w.now);
    let (step, asked) = w.asked();
    assert_eq!(asked.carried.connection.network_service_endpoint_name, "c", "b is behind the same dead hop");
    w.table.handle_failure(step, fault(HopFaultKind::Unknown), w.now);
    let (step, asked) = w.asked();
    w.table.handle_reply(step, grant(&asked), w.now);
    assert_eq!(w.answer().unwrap().connection.network_service_endpoint_name, "d@onprem.test");

    assert!(w.table.poll_transmit().is_none());
    w.pass(1);
    let (step, sweep) = w.closing();
    assert_eq!((sweep.hop, sweep.carried.connection.id.as_str()), (url("tcp://10.0.0.3:1"), "ours-1"));
    w.table.handle_failure(step, fault(HopFaultKind::NotSent), w.now);
    w.pass(2);
    let (step, _) = w.closing();
    w.table.handle_closed(step, w.now);
    w.pass(30);
    assert!(w.table.poll_transmit().is_none());
    assert_eq!(w.table.connections().count(), 1);
}

#[test]
fn the_end_of_the_callers_token_closes_the_connection() {
    let mut w = World::new();
    w.establish(w.first());
    w.events();
    w.pass(59);
    assert!(w.table.poll_transmit().is_none());
    w.pass(1);
    let (step, _) = w.closing();
    w.table.handle_failure(step, fault(HopFaultKind::Unknown), w.now);
    assert!(matches!(w.events().last(), Some(TransitEvent::Gone { why: EndReason::Expired, .. })));
    assert!(w.table.is_empty(), "the next hop's part of the lease is over too");
    assert_eq!(w.table.poll_timeout(), None);
}

#[test]
fn another_trust_domain_neither_closes_nor_takes_over() {
    let mut w = World::new();
    let answer = w.establish(w.first());
    let other = SpiffeId::new("spiffe://evil.test/x").unwrap();
    let refused = w.table.handle_close(&other, answer.clone(), w.now);
    assert!(matches!(refused, Err(TransitRefusal::NotYours(_))), "{refused:?}");
    let refused = w.table.handle_request(&other, w.refresh(&answer), "fresh", w.now);
    assert!(matches!(refused, Err(TransitRefusal::NotYours(_))), "{refused:?}");
    assert_eq!(w.table.connections().count(), 1);
}

#[test]
fn an_answer_about_something_else_is_not_taken() {
    let bad: [fn(&mut Carried); 4] = [
        |c| c.connection.id = "other".into(),
        |c| c.path.index = 0,
        |c| c.path.segments[0].id = "other".into(),
        |c| c.path.segments.truncate(1),
    ];
    for spoil in bad {
        let mut w = World::new();
        w.request(w.first()).unwrap();
        w.select(&[candidate("e", "tcp://10.0.0.1:1")]);
        let (step, asked) = w.asked();
        let mut reply = grant(&asked);
        spoil(&mut reply);
        w.table.handle_reply(step, reply, w.now);
        assert!(matches!(w.answer(), Err(TransitFault::Hops(_))));
    }
}

#[test]
fn what_the_next_hop_tells_is_told_on_once() {
    let mut w = World::new();
    w.establish(w.first());
    w.events();
    let hop = url("tcp://10.0.0.1:1");
    let mut told = w.table.entries["ours-1"].held.as_ref().unwrap().carried.clone();
    told.path.index = 2;
    told.connection.id = "n".into();
    told.connection.set_state(State::Down);
    w.table.handle_news("ours-1", &url("tcp://other:1"), News::Update(Box::new(told.clone())));
    assert!(w.events().is_empty(), "not from where it is held");
    w.table.handle_news("ours-1", &hop, News::Update(Box::new(told.clone())));
    let events = w.events();
    let [TransitEvent::Published { carried, .. }] = &events[..] else { panic!("{events:?}") };
    assert_eq!((carried.connection.state(), carried.path.index), (State::Down, 1));
    assert_eq!(carried.connection.id, "ours-1");
    w.table.handle_news("ours-1", &hop, News::Update(Box::new(told)));
    w.table.handle_news("ours-1", &hop, News::Lost);
    assert!(w.events().is_empty(), "no news");
}

#[test]
fn addresses_and_labels_change_on_the_way_out_and_back() {
    let mut w = World::new();
    w.table.set_addresses(AddressMap::new([("10.0.0.1".to_owned(), "192.0.2.1".to_owned())].into()));
    w.table.set_cluster_labels([("clusterName".to_owned(), "c1".to_owned())].into());
    let mut request = w.first();
    let parameters = [("src_ip".to_owned(), "10.0.0.1".to_owned())].into();
    request.preferences.push(Mechanism { parameters, ..Mechanism::default() });
    w.request(request).unwrap();
    w.select(&[Candidate { leaves: true, ..candidate("e", "tcp://203.0.113.1:1") }]);
    let (step, asked) = w.asked();
    assert_eq!(asked.preferences[0].parameters["src_ip"], "192.0.2.1");
    assert_eq!(asked.carried.connection.labels["clusterName"], "c1");
    let mut reply = grant(&asked);
    reply.connection.mechanism = Some(asked.preferences[0].clone());
    w.table.handle_reply(step, reply, w.now);
    let parameters = w.answer().unwrap().connection.mechanism.unwrap().parameters;
    assert_eq!((&*parameters["src_ip"], &*parameters["orig_src_ip"]), ("10.0.0.1", ""));
}

#[test]
fn bounds_hold_for_each_peer_and_in_all() {
    let mut w = World::new();
    w.table.settings.max_per_peer = 1;
    w.establish(w.first());
    let mut second = w.with_path(Path::begin("nsc", "d", w.now.wall + Duration::from_secs(60)));
    second.carried.connection.id = "d".into();
    assert!(matches!(w.request(second.clone()), Err(TransitRefusal::PeerLimit(_, 1))));
    w.table.settings.max_per_peer = 8;
    w.table.settings.max_total = 1;
    assert!(matches!(w.request(second), Err(TransitRefusal::TotalLimit(1))));
}

#[test]
fn requests_without_a_path_an_expiry_or_a_name_of_their_own_are_refused() {
    let mut w = World::new();
    let mut request = w.first();
    request.carried.path.segments.clear();
    assert_eq!(w.request(request), Err(TransitRefusal::Path(PathFault::Empty)));
    let mut request = w.first();
    request.carried.path.segments[0].expires = None;
    assert_eq!(w.request(request), Err(TransitRefusal::NoExpiry));
    let mut request = w.first();
    request.carried.path.segments[0].expires = Some(w.now.wall - Duration::from_secs(3));
    assert_eq!(w.request(request), Err(TransitRefusal::LeaseOver(Duration::from_secs(3))));
    let mut request = w.first();
    request.carried.path.segments[0].name = OWN.into();
    assert_eq!(w.request(request), Err(TransitRefusal::OwnName(OWN.into())));
    assert!(w.table.is_empty());
}
