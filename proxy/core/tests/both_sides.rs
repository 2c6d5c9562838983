//! An importing and an exporting machine against each other, over a network that loses, doubles and delays every message,
//! with a clock that is a number. Whatever happens: one import never has two entries, both sides agree when the network is well
//! again, and after a close and one lease neither remembers anything.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "test code")]

use std::{
    collections::{HashMap, HashSet},
    time::{Duration, Instant, SystemTime},
};

use carrick_model::{ConnectionId, ExportTarget, SpiffeId};
use carrick_proxy_core::{
    Endpoint, Fault, FaultKind, Now, StepKind,
    inbound::{Inbound, InboundEvent, InboundRequest, InboundSettings, LocalExport, MAX_LEASE, Refusal},
    outbound::{
        Attempt, Event, LEASE, Outbound, OutboundClose, OutboundReply, OutboundRequest, OutboundSettings,
        State, Step,
    },
};
use proptest::prelude::*;

const IMPORTS: usize = 3;

/// What befalls one message.
#[derive(Debug, Clone, Copy)]
enum Fate {
    Arrives,
    RequestLost,
    ReplyLost,
    /// Arrives, and once more that much later.
    Doubled(u16),
    /// Arrives that much later.
    Delayed(u16),
}

#[derive(Debug, Clone, Copy)]
enum Act {
    Pass(u16),
    Demand(usize),
    Lost(usize),
    WatchBreaks(usize),
    PeerRestarts,
    Deny,
    Allow,
    MoveEndpoints(u8),
    CloseAndReplace(usize),
}

/// A message on its way to the exporting side.
#[derive(Debug, Clone)]
enum Message {
    Request(OutboundRequest),
    Close(OutboundClose),
}

struct World {
    now: Now,
    inbound: Inbound,
    imports: Vec<Option<Import>>,
    /// Imports that were closed and may still have messages under way.
    closing: Vec<Import>,
    wire: Vec<(Instant, Message)>,
    replies: Vec<(Instant, ConnectionId, Attempt, OutboundReply)>,
    fates: Vec<Fate>,
    next_id: u32,
    names: Vec<String>,
    allowed: bool,
    admitted: HashSet<ConnectionId>,
    /// The entry that each import was last given.
    granted: HashMap<ConnectionId, ConnectionId>,
}

struct Import {
    id: ConnectionId,
    machine: Outbound,
    up: bool,
}

fn importer() -> SpiffeId {
    SpiffeId::new("spiffe://cloud.test/carrick/gateway").unwrap()
}

impl World {
    fn new(fates: Vec<Fate>) -> Self {
        let now =
            Now { mono: Instant::now(), wall: SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000) };
        let inbound = Inbound::new(InboundSettings::new("onprem.test".parse().unwrap()));
        let mut world = Self {
            now,
            inbound,
            imports: Vec::new(),
            closing: Vec::new(),
            wire: Vec::new(),
            replies: Vec::new(),
            fates,
            next_id: 1,
            names: vec!["a".into(), "b".into()],
            allowed: true,
            admitted: HashSet::new(),
            granted: HashMap::new(),
        };
        world.set_exports();
        for _ in 0..IMPORTS {
            let import = world.import();
            world.imports.push(Some(import));
        }
        world
    }

    fn id(&mut self) -> ConnectionId {
        self.next_id += 1;
        ConnectionId::from_bytes(u128::from(self.next_id).to_be_bytes())
    }

    fn import(&mut self) -> Import {
        let id = self.id();
        let settings = OutboundSettings {
            own_name: "cloud.test/gateway".into(),
            service: "postgres@onprem.test".parse().unwrap(),
            payload: None,
            id,
            seed: u64::from(self.next_id),
            lease: LEASE,
        };
        Import { id, machine: Outbound::new(settings, self.now), up: false }
    }

    fn set_exports(&mut self) {
        let target: ExportTarget = "tcp://10.0.0.5:5432".parse().unwrap();
        let allow = if self.allowed { vec!["spiffe://cloud.test/**".parse().unwrap()] } else { vec![] };
        let export = |name: &String| LocalExport {
            endpoint: name.clone(),
            service: "postgres".parse().unwrap(),
            payload: target.payload(),
            target: target.clone(),
            allow: allow.clone(),
        };
        self.inbound.handle_exports_changed(self.names.iter().map(export).collect());
    }

    fn endpoints(&self) -> Vec<Endpoint> {
        let of = |n: &String| Endpoint { name: n.clone(), payload: None, port: None };
        self.names.iter().map(of).collect()
    }

    fn act(&mut self, act: Act) {
        match act {
            Act::Pass(ms) => self.pass(Duration::from_millis(u64::from(ms) * 20)),
            Act::Demand(i) => self.on(i, Outbound::handle_demand),
            Act::Lost(i) => {
                self.on(i, |m, now| m.handle_lost(fault(StepKind::Keep, FaultKind::UnknownConnection), now));
            }
            Act::WatchBreaks(i) => {
                self.on(i, |m, now| m.handle_watch_ended(fault(StepKind::Find, FaultKind::Unreachable), now));
            }
            Act::PeerRestarts => {
                self.inbound = Inbound::new(InboundSettings::new("onprem.test".parse().unwrap()));
                self.admitted.clear();
                self.set_exports();
                for i in 0..IMPORTS {
                    self.act(Act::WatchBreaks(i));
                }
            }
            Act::Deny | Act::Allow => {
                self.allowed = matches!(act, Act::Allow);
                self.set_exports();
            }
            Act::MoveEndpoints(n) => {
                self.names = (0..1 + n % 3).map(|i| format!("e{}", (n + i) % 4)).collect();
                self.set_exports();
                let endpoints = self.endpoints();
                for i in 0..IMPORTS {
                    let endpoints = endpoints.clone();
                    self.on(i, move |m, now| m.handle_endpoints_changed(endpoints, now));
                }
            }
            Act::CloseAndReplace(i) => {
                let mut new = Some(self.import());
                std::mem::swap(&mut self.imports[i], &mut new);
                if let Some(mut old) = new {
                    old.machine.close(self.now);
                    self.closing.push(old);
                }
            }
        }
        self.settle();
    }

    fn on(&mut self, i: usize, f: impl FnOnce(&mut Outbound, Now)) {
        if let Some(import) = &mut self.imports[i] {
            f(&mut import.machine, self.now);
        }
    }

    /// Time passes, timer by timer and message by message.
    fn pass(&mut self, by: Duration) {
        let end = self.now.mono + by;
        self.settle();
        loop {
            let timers = self.all().filter_map(|i| i.machine.poll_timeout().map(|(at, _)| at));
            let arrivals = self.wire.iter().map(|(at, _)| *at).chain(self.replies.iter().map(|(at, ..)| *at));
            let next = timers.chain(arrivals).chain(self.inbound.poll_timeout()).min();
            let Some(at) = next.filter(|at| *at <= end) else { break };
            self.now = self.now.after(at.saturating_duration_since(self.now.mono));
            let now = self.now;
            self.inbound.handle_timeout(now);
            for import in self.imports.iter_mut().flatten().chain(&mut self.closing) {
                import.machine.handle_timeout(now);
            }
            self.deliver();
            self.settle();
        }
        self.now = self.now.after(end.saturating_duration_since(self.now.mono));
    }

    fn all(&self) -> impl Iterator<Item = &Import> {
        self.imports.iter().flatten().chain(&self.closing)
    }

    fn deliver(&mut self) {
        let now = self.now.mono;
        let (due, later) = std::mem::take(&mut self.wire).into_iter().partition(|(at, _)| *at <= now);
        self.wire = later;
        for (_, message) in due as Vec<_> {
            // A late message has nobody who waits for its reply.
            let _unheard = self.arrive(message);
        }
        let (due, later) = std::mem::take(&mut self.replies).into_iter().partition(|(at, ..)| *at <= now);
        self.replies = later;
        for (_, id, attempt, reply) in due as Vec<_> {
            self.machine(id, |m, now| m.handle_reply(attempt, reply, now));
        }
    }

    fn machine(&mut self, id: ConnectionId, f: impl FnOnce(&mut Outbound, Now)) {
        let now = self.now;
        let mut all = self.imports.iter_mut().flatten().chain(&mut self.closing);
        if let Some(import) = all.find(|i| i.id == id) {
            f(&mut import.machine, now);
        }
    }

    /// The exporting side answers.
    fn arrive(&mut self, message: Message) -> Result<Option<OutboundReply>, Refusal> {
        let fresh = self.id();
        let import = if let Message::Request(request) = &message { Some(request.id) } else { None };
        let result = match message {
            Message::Close(close) => self.inbound.handle_close(&importer(), &close.path).map(|_| None),
            Message::Request(request) => {
                let asked = InboundRequest {
                    id: request.id.to_string(),
                    service: request.service.to_string(),
                    endpoint: request.endpoint,
                    path: request.path,
                    ..InboundRequest::default()
                };
                self.inbound.handle_request(&importer(), asked, fresh, self.now).map(|granted| {
                    Some(OutboundReply {
                        id: granted.id,
                        path: granted.path,
                        endpoint: granted.endpoint,
                        payload: Some(granted.payload),
                        connection: Some(granted.connection),
                        addresses: vec!["192.0.2.1:7443".parse().unwrap()],
                    })
                })
            }
        };
        while let Some(event) = self.inbound.poll_event() {
            self.told(event);
        }
        if let (Ok(Some(reply)), Some(id)) = (&result, import) {
            let new = reply.connection.unwrap();
            let old = self.granted.insert(id, new);
            assert!(old.is_none_or(|o| o == new || !self.admitted.contains(&o)), "one import, two entries");
        }
        result
    }

    fn told(&mut self, event: InboundEvent) {
        match event {
            InboundEvent::Admit(a) => {
                self.admitted.insert(a.id);
            }
            InboundEvent::Revoke(id, _) => {
                assert!(self.admitted.remove(&id), "revoked what was never admitted");
            }
        }
    }

    /// Everything the machines want done is done, as fate has it.
    fn settle(&mut self) {
        while let Some(event) = self.inbound.poll_event() {
            self.told(event);
        }
        let ids: Vec<ConnectionId> = self.all().map(|i| i.id).collect();
        for id in ids {
            loop {
                let mut step = None;
                self.machine(id, |m, _| step = m.poll_transmit());
                let Some(step) = step else { break };
                self.take(id, step);
            }
        }
        for import in self.imports.iter_mut().flatten().chain(&mut self.closing) {
            while let Some(event) = import.machine.poll_event() {
                import.up = matches!(event, Event::Up(_));
            }
            assert!(!import.up || import.machine.established().is_some(), "told up, holds nothing");
        }
        self.closing.retain(|i| i.machine.state() != State::Closed);
        assert_eq!(self.inbound.len(), self.admitted.len());
    }

    fn take(&mut self, id: ConnectionId, step: Step) {
        let (attempt, message, kind) = match step {
            Step::Resolve(attempt) => return self.machine(id, |m, now| m.handle_resolved(attempt, now)),
            Step::Find(attempt) => {
                let endpoints = self.endpoints();
                return self.machine(id, |m, now| m.handle_found(attempt, endpoints, now));
            }
            Step::Request(attempt, request) => (attempt, Message::Request(request), StepKind::Request),
            Step::Close(attempt, close) => (attempt, Message::Close(close), StepKind::Close),
        };
        let late = |ms: u16| self.now.mono + Duration::from_millis(u64::from(ms) * 10);
        let lost = fault(kind, FaultKind::TimedOut);
        match self.fates.pop().unwrap_or(Fate::Arrives) {
            Fate::RequestLost => self.machine(id, |m, now| m.handle_failure(attempt, lost, now)),
            Fate::ReplyLost => {
                let _unheard = self.arrive(message);
                self.machine(id, |m, now| m.handle_failure(attempt, lost, now));
            }
            Fate::Delayed(ms) => {
                self.wire.push((late(ms), message));
                self.machine(id, |m, now| m.handle_failure(attempt, lost, now));
            }
            Fate::Doubled(ms) => {
                self.wire.push((late(ms), message.clone()));
                self.answer(id, attempt, message, kind, Some(late(ms)));
            }
            Fate::Arrives => self.answer(id, attempt, message, kind, None),
        }
    }

    fn answer(
        &mut self,
        id: ConnectionId,
        attempt: Attempt,
        message: Message,
        kind: StepKind,
        again: Option<Instant>,
    ) {
        match self.arrive(message) {
            Ok(Some(reply)) => {
                if let Some(at) = again {
                    self.replies.push((at, id, attempt, reply.clone()));
                }
                self.machine(id, |m, now| m.handle_reply(attempt, reply, now));
            }
            Ok(None) => self.machine(id, |m, now| m.handle_closed(attempt, now)),
            Err(refusal) => {
                let kind_of = match refusal {
                    Refusal::Denied { .. } => FaultKind::Denied,
                    Refusal::NoService { .. } | Refusal::NoEndpoint { .. } => FaultKind::NoService,
                    Refusal::LeaseOver(_) => FaultKind::Clock,
                    other => panic!("not a refusal that we provoke: {other}"),
                };
                self.machine(id, |m, now| m.handle_failure(attempt, fault(kind, kind_of), now));
            }
        }
    }
}

fn fault(step: StepKind, kind: FaultKind) -> Fault {
    Fault {
        step,
        peer: "onprem.test".parse().unwrap(),
        kind,
        detail: "in a test".into(),
        hint: String::new(),
    }
}

fn fate() -> impl Strategy<Value = Fate> {
    prop_oneof![
        4 => Just(Fate::Arrives),
        1 => Just(Fate::RequestLost),
        2 => Just(Fate::ReplyLost),
        1 => (1u16..2000).prop_map(Fate::Doubled),
        1 => (1u16..2000).prop_map(Fate::Delayed),
    ]
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        6 => (1u16..20_000).prop_map(Act::Pass),
        1 => (0..IMPORTS).prop_map(Act::Demand),
        1 => (0..IMPORTS).prop_map(Act::Lost),
        1 => (0..IMPORTS).prop_map(Act::WatchBreaks),
        1 => Just(Act::PeerRestarts),
        1 => Just(Act::Deny),
        1 => Just(Act::Allow),
        2 => (0u8..12).prop_map(Act::MoveEndpoints),
        1 => (0..IMPORTS).prop_map(Act::CloseAndReplace),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn nothing_is_orphaned_on_either_side(
        fates in prop::collection::vec(fate(), 0..60),
        acts in prop::collection::vec(act(), 0..25),
    ) {
        let mut world = World::new(fates);
        world.settle();
        for act in acts {
            world.act(act);
        }

        // The network is well again: within a lease both sides agree on exactly the imports there are.
        world.fates.clear();
        world.act(Act::Allow);
        world.pass(MAX_LEASE + LEASE);
        for import in world.imports.iter().flatten() {
            prop_assert!(import.up, "{:?}: {:?}", import.machine.state(), import.machine.last_fault());
            let connection = import.machine.established().unwrap().connection;
            prop_assert!(world.admitted.contains(&connection), "the importing side holds what the other does not");
        }
        prop_assert_eq!(world.inbound.len(), IMPORTS, "one entry for each import and no other");

        // Closed, without anybody telling the peer: its lease ends all the same.
        world.fates = vec![Fate::RequestLost; IMPORTS];
        let open: Vec<Import> = world.imports.iter_mut().filter_map(Option::take).collect();
        for mut import in open {
            import.machine.close(world.now);
            world.closing.push(import);
        }
        world.settle();
        world.pass(MAX_LEASE);
        prop_assert!(world.closing.is_empty());
        prop_assert!(world.inbound.is_empty() && world.admitted.is_empty());
        prop_assert_eq!(world.inbound.poll_timeout(), None);
    }

    #[test]
    fn a_close_that_arrives_leaves_nothing_at_once(acts in prop::collection::vec(act(), 0..15)) {
        let mut world = World::new(Vec::new());
        world.settle();
        for act in acts {
            world.act(act);
        }
        for i in 0..IMPORTS {
            let mut old = world.imports[i].take().unwrap();
            old.machine.close(world.now);
            world.closing.push(old);
        }
        world.settle();
        prop_assert!(world.closing.is_empty());
        prop_assert!(world.inbound.is_empty(), "{} left", world.inbound.len());
    }
}
