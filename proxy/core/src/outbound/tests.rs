use std::time::Duration;

use carrick_model::ConnectionId;

use super::*;
use crate::path::Segment;

fn start() -> Now {
    Now { mono: Instant::now(), wall: SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000) }
}

fn s(n: u64) -> Duration {
    Duration::from_secs(n)
}

fn endpoint(name: &str) -> Endpoint {
    Endpoint { name: name.into(), payload: Some(Payload::Tcp), port: Some(5432) }
}

fn settings() -> OutboundSettings {
    OutboundSettings {
        own_name: "cloud.test/gateway".into(),
        service: "postgres@onprem.test".parse().unwrap(),
        payload: Some(Payload::Tcp),
        id: ConnectionId::from_bytes([1; 16]),
        seed: 3,
        lease: LEASE,
    }
}

/// A machine and the answers that a peer in good health would give.
struct Scene {
    machine: Outbound,
    now: Now,
    connection: ConnectionId,
    lease: Duration,
}

impl Scene {
    fn new() -> Self {
        let now = start();
        let machine = Outbound::new(settings(), now);
        Self { machine, now, connection: ConnectionId::from_bytes([9; 16]), lease: s(600) }
    }

    fn up() -> Self {
        let mut scene = Self::new();
        scene.run();
        assert_eq!(scene.machine.state(), State::Up);
        scene.events();
        scene
    }

    /// Answers every step until there is none.
    fn run(&mut self) {
        while let Some(step) = self.machine.poll_transmit() {
            self.answer(step);
        }
    }

    fn answer(&mut self, step: Step) {
        match step {
            Step::Resolve(attempt) => self.machine.handle_resolved(attempt, self.now),
            Step::Find(attempt) => {
                self.machine.handle_found(attempt, vec![endpoint("a"), endpoint("b")], self.now);
            }
            Step::Request(attempt, request) => {
                let reply = self.grant(&request);
                self.machine.handle_reply(attempt, reply, self.now);
            }
            Step::Close(attempt, _) => self.machine.handle_closed(attempt, self.now),
        }
    }

    fn grant(&self, request: &OutboundRequest) -> OutboundReply {
        let mut path = request.path.clone();
        path.segments.truncate(1);
        path.segments.push(Segment {
            name: "onprem.test/gateway".into(),
            id: self.connection.to_string(),
            expires: Some(self.now.wall + self.lease),
            ..Segment::default()
        });
        OutboundReply {
            id: request.id.to_string(),
            path,
            endpoint: request.endpoint.clone(),
            payload: request.payload,
            connection: Some(self.connection),
            addresses: vec!["192.0.2.1:7443".parse().unwrap()],
        }
    }

    fn events(&mut self) -> Vec<Event> {
        std::iter::from_fn(|| self.machine.poll_event()).collect()
    }

    fn pass(&mut self, by: Duration) {
        self.now = self.now.after(by);
        self.machine.handle_timeout(self.now);
    }

    /// Lets time pass to the next timer.
    fn wake(&mut self) -> Reason {
        let (at, reason) = self.machine.poll_timeout().unwrap();
        self.pass(at.saturating_duration_since(self.now.mono));
        reason
    }

    fn fault(&self, step: StepKind, kind: FaultKind) -> Fault {
        let peer = self.machine.service().domain().clone();
        Fault { step, peer, kind, detail: "in a test".into(), hint: "none".into() }
    }

    /// Fails the next step.
    fn fail(&mut self, kind: FaultKind) -> StepKind {
        let step = self.machine.poll_transmit().expect("a step is due");
        let (attempt, step) = match step {
            Step::Resolve(a) => (a, StepKind::Resolve),
            Step::Find(a) => (a, StepKind::Find),
            Step::Request(a, _) => (a, StepKind::Request),
            Step::Close(a, _) => (a, StepKind::Close),
        };
        let fault = self.fault(step, kind);
        self.machine.handle_failure(attempt, fault, self.now);
        step
    }

    fn next_request(&mut self) -> (Attempt, OutboundRequest) {
        match self.machine.poll_transmit() {
            Some(Step::Request(attempt, request)) => (attempt, request),
            other => panic!("a request was expected, not {other:?}"),
        }
    }
}

#[test]
fn a_name_becomes_a_connection() {
    let mut scene = Scene::new();
    assert_eq!(scene.machine.state(), State::Resolving);
    scene.run();
    let [Event::Up(up)] = &scene.events()[..] else { panic!("one event: up") };
    assert_eq!((up.connection, up.port, up.payload), (scene.connection, Some(5432), Payload::Tcp));
    assert_eq!(up.addresses.len(), 1);
    let (at, reason) = scene.machine.poll_timeout().unwrap();
    let after = at - scene.now.mono;
    assert_eq!(reason, Reason::Refresh);
    assert!(after <= s(200) && after >= s(180), "a third of the lease, jittered: {after:?}");
}

#[test]
fn a_renewal_keeps_endpoint_id_and_path_and_is_silent() {
    let mut scene = Scene::up();
    let endpoint = scene.machine.established().unwrap().endpoint.clone();
    assert_eq!(scene.wake(), Reason::Refresh);
    assert_eq!(scene.machine.state(), State::Refreshing);
    let (attempt, request) = scene.next_request();
    assert_eq!(request.endpoint, endpoint);
    assert_eq!(request.path.segments.len(), 2);
    assert_eq!(request.path.segments[1].id, scene.connection.to_string());
    assert_eq!(request.path.segments[0].expires, Some(scene.now.wall + LEASE));
    let reply = scene.grant(&request);
    scene.machine.handle_reply(attempt, reply, scene.now);
    assert_eq!((scene.machine.state(), scene.events()), (State::Up, vec![]));
}

#[test]
fn a_dead_peer_costs_the_connection_only_when_the_lease_ends() {
    let mut scene = Scene::up();
    let end = scene.machine.lease_end().unwrap();
    scene.wake();
    let mut attempts = 0;
    while scene.now.mono < end {
        if scene.machine.poll_transmit().is_some() {
            // No answer at all: the machine's own deadline.
            attempts += 1;
        }
        assert!(scene.machine.established().is_some());
        scene.wake();
    }
    assert!(attempts > 10, "{attempts} attempts while the lease lasted");
    let events = scene.events();
    let Some(Event::Down(fault)) = events.first() else { panic!("down, not {events:?}") };
    assert_eq!((fault.step, fault.kind), (StepKind::Keep, FaultKind::LeaseEnded));
    assert!(fault.detail.contains("no answer within"), "{}", fault.detail);
    // The peer is back: the step that nobody answers runs out, then the next ones are answered.
    for _ in 0..3 {
        scene.wake();
        scene.run();
    }
    assert_eq!(scene.machine.state(), State::Up);
}

#[test]
fn a_fault_is_told_waited_for_and_made_good() {
    let mut scene = Scene::new();
    assert_eq!(scene.fail(FaultKind::Unresolved), StepKind::Resolve);
    assert!(matches!(&scene.events()[..], [Event::Down(f)] if f.kind == FaultKind::Unresolved));
    assert!(matches!(scene.machine.state(), State::Down(_)));
    assert_eq!(scene.wake(), Reason::Retry);
    scene.run();
    assert_eq!(scene.machine.state(), State::Up);
    assert_eq!(scene.machine.last_fault(), None);
}

#[test]
fn waits_grow_to_five_seconds_and_no_further() {
    let mut scene = Scene::new();
    let mut longest = Duration::ZERO;
    for _ in 0..20 {
        scene.fail(FaultKind::Unreachable);
        let (at, _) = scene.machine.poll_timeout().unwrap();
        longest = longest.max(at - scene.now.mono);
        scene.wake();
    }
    assert!(longest > s(2) && longest <= s(5), "{longest:?}");
}

#[test]
fn demand_cuts_a_wait_short_but_not_below_a_second() {
    let mut scene = Scene::new();
    for _ in 0..8 {
        scene.fail(FaultKind::Unreachable);
        scene.wake();
    }
    scene.fail(FaultKind::Unreachable);
    let failed_at = scene.now;
    scene.machine.handle_demand(scene.now);
    assert!(scene.machine.poll_transmit().is_none(), "an attempt was made just now");
    scene.wake();
    let waited = scene.now.mono - failed_at.mono;
    assert!(waited <= s(1), "{waited:?}");
    assert!(scene.machine.poll_transmit().is_some());
}

#[test]
fn an_endpoint_that_vanishes_is_replaced_without_a_break() {
    let mut scene = Scene::up();
    let old = scene.machine.established().unwrap().endpoint.clone();
    let other = if old == "a" { "b" } else { "a" };
    scene.machine.handle_endpoints_changed(vec![endpoint(other)], scene.now);
    assert!(scene.machine.established().is_some(), "make before break");
    let (attempt, request) = scene.next_request();
    assert_eq!((request.endpoint.as_str(), request.id), (other, settings().id));
    let reply = scene.grant(&request);
    scene.machine.handle_reply(attempt, reply, scene.now);
    assert!(matches!(&scene.events()[..], [Event::Up(up)] if up.endpoint == other));
}

#[test]
fn a_service_without_endpoints_is_down_until_one_comes() {
    let mut scene = Scene::up();
    scene.machine.handle_endpoints_changed(vec![], scene.now);
    assert!(matches!(&scene.events()[..], [Event::Down(f)] if f.kind == FaultKind::NoService));
    scene.now = scene.now.after(s(2));
    scene.machine.handle_endpoints_changed(vec![endpoint("c")], scene.now);
    scene.run();
    assert!(matches!(&scene.events()[..], [Event::Up(up)] if up.endpoint == "c"));
}

#[test]
fn a_broken_watch_leaves_the_connection_up_and_asks_the_peer_whether_it_still_knows_it() {
    let mut scene = Scene::up();
    let fault = scene.fault(StepKind::Find, FaultKind::Unreachable);
    scene.machine.handle_watch_ended(fault, scene.now);
    assert!(scene.machine.established().is_some());
    assert_eq!(scene.wake(), Reason::Retry);
    // The peer restarted and gives another id.
    scene.connection = ConnectionId::from_bytes([8; 16]);
    scene.run();
    assert!(matches!(&scene.events()[..], [Event::Up(up)] if up.connection == scene.connection));
}

#[test]
fn a_registry_that_ends_every_watch_is_not_asked_in_a_loop() {
    let mut scene = Scene::up();
    let end = scene.now.mono + s(60);
    let mut finds = 0;
    while scene.now.mono < end {
        while let Some(step) = scene.machine.poll_transmit() {
            finds += usize::from(matches!(step, Step::Find(_)));
            scene.answer(step);
        }
        let fault = scene.fault(StepKind::Find, FaultKind::BadAnswer);
        scene.machine.handle_watch_ended(fault, scene.now);
        assert!(scene.machine.established().is_some());
        scene.wake();
    }
    assert!((12..40).contains(&finds), "{finds} in a minute");
}

#[test]
fn a_peer_that_forgot_us_is_asked_anew_at_once_and_not_in_a_loop() {
    let mut scene = Scene::up();
    let lost = scene.fault(StepKind::Keep, FaultKind::UnknownConnection);
    scene.machine.handle_lost(lost.clone(), scene.now);
    let (attempt, request) = scene.next_request();
    assert_eq!(request.path.segments.len(), 1, "nothing of what the peer forgot");
    let reply = scene.grant(&request);
    scene.machine.handle_reply(attempt, reply, scene.now);
    assert!(matches!(&scene.events()[..], [Event::Up(_)]));
    scene.machine.handle_lost(lost, scene.now);
    assert!(scene.machine.poll_transmit().is_none());
    let before = scene.now;
    scene.wake();
    assert!(scene.now.mono - before.mono >= DEMAND_INTERVAL);
    assert_eq!(scene.fail(FaultKind::Busy), StepKind::Request);
    assert!(matches!(&scene.events()[..], [Event::Down(_)]), "refused by the peer and not granted anew");
}

#[test]
fn a_denied_renewal_ends_the_connection_at_once() {
    let mut scene = Scene::up();
    scene.wake();
    scene.fail(FaultKind::Denied);
    assert!(matches!(&scene.events()[..], [Event::Down(f)] if f.kind == FaultKind::Denied));
    assert!(scene.machine.established().is_none());
}

#[test]
fn an_import_of_another_kind_says_so() {
    let mut scene = Scene::new();
    let Some(Step::Resolve(a)) = scene.machine.poll_transmit() else { panic!() };
    scene.machine.handle_resolved(a, scene.now);
    let Some(Step::Find(a)) = scene.machine.poll_transmit() else { panic!() };
    let udp = Endpoint { payload: Some(Payload::Udp), ..endpoint("a") };
    scene.machine.handle_found(a, vec![udp], scene.now);
    let events = scene.events();
    let Some(Event::Down(fault)) = events.first() else { panic!() };
    assert_eq!(fault.kind, FaultKind::NoMatch);
    assert!(fault.detail.contains("TCP") && fault.detail.contains("UDP"), "{}", fault.detail);
}

#[test]
fn bad_answers_are_refused() {
    type Spoil = fn(&mut OutboundReply);
    let spoil: [(&str, Spoil); 6] = [
        ("another id", |r| r.id = "x".into()),
        ("another path", |r| r.path.segments[0].id = "x".into()),
        ("no path", |r| r.path = Path::default()),
        ("an index behind the path", |r| r.path.index = 7),
        ("no connection", |r| r.connection = None),
        ("another payload", |r| r.payload = Some(Payload::Udp)),
    ];
    for (what, spoil) in spoil {
        let mut scene = Scene::new();
        loop {
            match scene.machine.poll_transmit().unwrap() {
                Step::Request(attempt, request) => {
                    let mut reply = scene.grant(&request);
                    spoil(&mut reply);
                    scene.machine.handle_reply(attempt, reply, scene.now);
                    break;
                }
                step => scene.answer(step),
            }
        }
        assert!(matches!(&scene.events()[..], [Event::Down(f)] if f.kind == FaultKind::BadAnswer), "{what}");
    }
}

#[test]
fn clocks_that_differ_by_more_than_the_lease_are_named() {
    let mut scene = Scene::new();
    scene.lease = Duration::ZERO;
    scene.run();
    assert!(matches!(&scene.events()[..], [Event::Down(f)] if f.kind == FaultKind::Clock));
}

#[test]
fn close_waits_for_a_request_in_flight_and_then_tells_the_peer() {
    let mut scene = Scene::new();
    loop {
        match scene.machine.poll_transmit().unwrap() {
            Step::Request(attempt, request) => {
                scene.machine.close(scene.now);
                assert!(scene.machine.poll_transmit().is_none());
                let reply = scene.grant(&request);
                scene.machine.handle_reply(attempt, reply, scene.now);
                break;
            }
            step => scene.answer(step),
        }
    }
    let Some(Step::Close(attempt, close)) = scene.machine.poll_transmit() else { panic!("a close") };
    assert_eq!(close.path.segments.len(), 2);
    assert_eq!(scene.events(), []);
    scene.machine.handle_closed(attempt, scene.now);
    assert_eq!(scene.events(), [Event::Closed]);
    assert_eq!((scene.machine.state(), scene.machine.poll_timeout()), (State::Closed, None));
}

#[test]
fn close_before_any_request_is_silent() {
    let mut scene = Scene::new();
    scene.machine.close(scene.now);
    assert_eq!(scene.events(), [Event::Closed]);
    assert!(scene.machine.poll_transmit().is_none());
}

#[test]
fn an_answer_to_an_older_attempt_is_ignored() {
    let mut scene = Scene::new();
    let Some(Step::Resolve(old)) = scene.machine.poll_transmit() else { panic!() };
    scene.pass(STEP_DEADLINE);
    scene.wake();
    let Some(Step::Resolve(new)) = scene.machine.poll_transmit() else { panic!() };
    scene.machine.handle_resolved(old, scene.now);
    assert!(scene.machine.poll_transmit().is_none());
    scene.machine.handle_resolved(new, scene.now);
    assert!(matches!(scene.machine.poll_transmit(), Some(Step::Find(_))));
}
