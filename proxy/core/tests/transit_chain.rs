//! Two managers in a row between a client and an endpoint, with messages lost, doubled and delayed: whatever happens, nobody remembers a
//! connection that its neighbour before it has forgotten.
//!
//! ```text
//!   client ──▶ table A ──▶ table B ──▶ endpoint, a set of ids that end with the token of table B
//! ```
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "test code")]

use std::{
    collections::BTreeMap,
    time::{Duration, Instant, SystemTime},
};

use carrick_model::SpiffeId;
use carrick_proto::{
    UnknownFields,
    connection::{Connection, State},
};
use carrick_proxy_core::{
    Now,
    path::{Path, Segment},
    transit::{
        Candidate, Carried, Hop, HopClose, HopFault, HopFaultKind, HopRequest, NotRestored, Step, StepId,
        Transit, TransitEvent, TransitRequest, TransitSettings,
    },
};
use proptest::prelude::*;

const CLIENTS: usize = 3;
const TOKEN: Duration = Duration::from_secs(60);

/// What becomes of one message.
#[derive(Debug, Clone, Copy)]
enum Fate {
    Arrives,
    RequestLost,
    ReplyLost,
    /// It arrives after so many milliseconds; whoever sent it has given up on it.
    Late(u32),
    Twice,
}

#[derive(Debug, Clone, Copy)]
enum Act {
    Request(usize),
    Refresh(usize),
    Reselect(usize),
    Close(usize),
    Pass(u32),
    RestartA,
    RestartB,
    /// A restart of the table that has what was kept.
    Resume(usize),
}

/// The message on a wire.
#[derive(Debug, Clone)]
enum Message {
    Request(HopRequest),
    Close(HopClose),
}

struct World {
    now: Now,
    tables: [Transit; 2],
    endpoint: BTreeMap<String, SystemTime>,
    /// What each client holds: the last answer.
    clients: Vec<Option<Carried>>,
    waiting: BTreeMap<carrick_proxy_core::transit::Ticket, usize>,
    late: Vec<(Instant, usize, Message)>,
    fates: Vec<Fate>,
    fresh: u32,
}

fn spiffe(name: &str) -> SpiffeId {
    SpiffeId::new(format!("spiffe://{name}/x")).unwrap()
}

fn name(table: usize) -> &'static str {
    ["a.test/gateway", "b.test/gateway"][table]
}

/// Which name a table's table of connections is asked by, and where it sends to.
fn hop(table: usize, endpoint: &str) -> Candidate {
    Candidate {
        service: "web".into(),
        endpoint: endpoint.into(),
        payload: String::new(),
        hop: Hop::Url { url: format!("tcp://behind-{table}:1"), trust_domain: None },
        leaves: false,
        known_as: endpoint.into(),
    }
}

impl World {
    fn new(fates: Vec<Fate>) -> Self {
        let now =
            Now { mono: Instant::now(), wall: SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000) };
        Self {
            now,
            tables: [0, 1].map(|t| Transit::new(TransitSettings::new(name(t)))),
            endpoint: BTreeMap::new(),
            clients: vec![None; CLIENTS],
            waiting: BTreeMap::new(),
            late: Vec::new(),
            fates,
            fresh: 0,
        }
    }

    fn own_token(&self) -> (String, SystemTime) {
        (String::new(), self.now.wall + TOKEN)
    }

    fn id(&mut self) -> String {
        self.fresh += 1;
        format!("id-{}", self.fresh)
    }

    fn request_of(&self, client: usize, state: State) -> TransitRequest {
        let id = format!("client-{client}");
        let mut carried = self.clients[client].clone().unwrap_or_else(|| Carried {
            connection: Connection { id: id.clone(), network_service: "web".into(), ..Connection::default() },
            path: Path::begin(&format!("nsc-{client}"), &id, self.now.wall),
        });
        carried.path.segments[0].expires = Some(self.now.wall + TOKEN);
        carried.connection.set_state(state);
        let deadline = self.now.mono + Duration::from_secs(15);
        TransitRequest {
            carried,
            preferences: vec![],
            unknown_fields: UnknownFields::default(),
            own_token: self.own_token(),
            deadline,
        }
    }

    fn act(&mut self, act: Act) {
        match act {
            Act::Request(c) => {
                // A client that lost what it knew.
                self.clients[c] = None;
                self.call(c, State::Up);
            }
            Act::Refresh(c) => self.call(c, State::Up),
            Act::Reselect(c) => self.call(c, State::ReselectRequested),
            Act::Close(c) => {
                let carried = self.request_of(c, State::Up).carried;
                self.clients[c] = None;
                let now = self.now;
                self.tables[0].handle_close(&spiffe("a.test"), carried, now).unwrap();
            }
            Act::Pass(ms) => self.pass(Duration::from_millis(ms.into())),
            Act::RestartA => self.tables[0] = Transit::new(TransitSettings::new(name(0))),
            Act::RestartB => self.tables[1] = Transit::new(TransitSettings::new(name(1))),
            Act::Resume(table) => self.resume(table),
        }
        self.settle();
    }

    fn resume(&mut self, table: usize) {
        let (now, before) = (self.now, &self.tables[table]);
        let kept: Vec<_> = before.connections().map(|c| before.kept(&c.id, now).unwrap()).collect();
        let mut after = Transit::new(TransitSettings::new(name(table)));
        for one in kept {
            after.restore(one.clone(), now).unwrap();
            assert_eq!(after.kept(&one.id, now), Some(one.clone()));
            assert_eq!(after.restore(one, now), Err(NotRestored::Held));
        }
        let all = |table: &Transit| {
            table.connections().map(|c| (c.id.clone(), format!("{c:?}"))).collect::<BTreeMap<_, _>>()
        };
        assert_eq!(all(&after), all(before));
        self.tables[table] = after;
    }

    fn call(&mut self, client: usize, state: State) {
        let (request, fresh, now) = (self.request_of(client, state), self.id(), self.now);
        // Too many calls at once are refused, and nothing is begun.
        if let Ok(ticket) = self.tables[0].handle_request(&spiffe("a.test"), request, &fresh, now) {
            self.waiting.insert(ticket, client);
        }
    }

    fn pass(&mut self, by: Duration) {
        let end = self.now.mono + by;
        loop {
            let timers = self.tables.iter().filter_map(Transit::poll_timeout);
            let next = timers.chain(self.late.iter().map(|l| l.0)).min();
            let Some(at) = next.filter(|at| *at <= end) else { break };
            self.now = self.now.after(at.saturating_duration_since(self.now.mono));
            let now = self.now;
            for table in &mut self.tables {
                table.handle_timeout(now);
            }
            let (due, later) = std::mem::take(&mut self.late).into_iter().partition(|l| l.0 <= now.mono);
            self.late = later;
            for (_, table, message) in due as Vec<_> {
                let _nobody_waits = self.arrive(table, message);
            }
            self.settle();
        }
        self.now = self.now.after(end.saturating_duration_since(self.now.mono));
        let wall = self.now.wall;
        self.endpoint.retain(|_, end| *end > wall);
    }

    /// Everything that is to be done is done, as fate has it.
    fn settle(&mut self) {
        loop {
            let mut idle = true;
            for table in 0..2 {
                while let Some(event) = self.tables[table].poll_event() {
                    if table == 0
                        && let TransitEvent::Granted(ticket, carried) = event
                        && let Some(client) = self.waiting.remove(&ticket)
                    {
                        self.clients[client] = Some(*carried);
                    }
                }
                while let Some(step) = self.tables[table].poll_transmit() {
                    idle = false;
                    self.run(table, step);
                }
            }
            if idle {
                return;
            }
        }
    }

    fn run(&mut self, table: usize, step: Step) {
        let now = self.now;
        let (step, message) = match step {
            Step::Select(step, query) => {
                let endpoint = if query.endpoint.is_empty() { "e" } else { &query.endpoint };
                return self.tables[table].handle_selected(step, Ok(vec![hop(table, endpoint)]), now);
            }
            Step::Request(step, request) => (step, Message::Request(*request)),
            Step::Close(step, close) => (step, Message::Close(*close)),
        };
        match self.fates.pop().unwrap_or(Fate::Arrives) {
            Fate::Arrives => self.deliver(table, step, message),
            Fate::Twice => {
                let _first = self.arrive(table, message.clone());
                self.deliver(table, step, message);
            }
            Fate::RequestLost => self.fail(table, step),
            Fate::ReplyLost => {
                let _lost = self.arrive(table, message);
                self.fail(table, step);
            }
            Fate::Late(ms) => {
                self.late.push((now.mono + Duration::from_millis(ms.into()), table, message));
                self.fail(table, step);
            }
        }
    }

    fn deliver(&mut self, table: usize, step: StepId, message: Message) {
        let closes = matches!(message, Message::Close(_));
        let now = self.now;
        match self.arrive(table, message) {
            Some(reply) => self.tables[table].handle_reply(step, reply, now),
            None if closes => self.tables[table].handle_closed(step, now),
            None => self.fail(table, step),
        }
    }

    fn fail(&mut self, table: usize, step: StepId) {
        let fault = HopFault { kind: HopFaultKind::Unknown, code: 4, message: "lost".into() };
        let now = self.now;
        self.tables[table].handle_failure(step, fault, now);
    }

    /// The message has come to what is behind `table`; its answer, if it grants something.
    fn arrive(&mut self, table: usize, message: Message) -> Option<Carried> {
        if table == 1 { self.at_endpoint(message) } else { self.at_second(message) }
    }

    fn at_endpoint(&mut self, message: Message) -> Option<Carried> {
        match message {
            Message::Request(request) => {
                let mut carried = request.carried;
                let end = self.now.wall + TOKEN;
                self.endpoint.insert(carried.connection.id.clone(), end);
                let ours = carried.path.index as usize + 1;
                carried.path.segments.truncate(ours);
                let id = format!("nse-of-{}", carried.connection.id);
                carried.path.segments.push(Segment { name: "nse".into(), id, ..Segment::default() });
                Some(carried)
            }
            Message::Close(close) => {
                self.endpoint.remove(&close.carried.connection.id);
                None
            }
        }
    }

    /// Table B works while A waits: its own messages to the endpoint have fates too.
    fn at_second(&mut self, message: Message) -> Option<Carried> {
        let (now, caller) = (self.now, spiffe("a.test"));
        let ticket = match message {
            Message::Close(close) => {
                let _told = self.tables[1].handle_close(&caller, close.carried, now);
                None
            }
            Message::Request(request) => {
                let fresh = self.id();
                let request = TransitRequest {
                    carried: request.carried,
                    preferences: vec![],
                    own_token: self.own_token(),
                    deadline: request.deadline,
                    unknown_fields: UnknownFields::default(),
                };
                Some(self.tables[1].handle_request(&caller, request, &fresh, now).ok()?)
            }
        };
        let mut answer = None;
        loop {
            while let Some(event) = self.tables[1].poll_event() {
                if let TransitEvent::Granted(granted, carried) = event
                    && Some(granted) == ticket
                {
                    answer = Some(*carried);
                }
            }
            let Some(step) = self.tables[1].poll_transmit() else { return answer };
            self.run(1, step);
        }
    }
}

fn fate() -> impl Strategy<Value = Fate> {
    prop_oneof![
        4 => Just(Fate::Arrives),
        1 => Just(Fate::RequestLost),
        2 => Just(Fate::ReplyLost),
        1 => (1u32..20_000).prop_map(Fate::Late),
        1 => Just(Fate::Twice),
    ]
}

fn act(restarts: bool) -> impl Strategy<Value = Act> {
    let restart = u32::from(restarts);
    prop_oneof![
        3 => (0..CLIENTS).prop_map(Act::Request),
        3 => (0..CLIENTS).prop_map(Act::Refresh),
        2 => (0..CLIENTS).prop_map(Act::Reselect),
        2 => (0..CLIENTS).prop_map(Act::Close),
        4 => (1u32..40_000).prop_map(Act::Pass),
        restart => Just(Act::RestartA),
        restart => Just(Act::RestartB),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    /// Messages are lost, doubled, late. When the network is well again and the clients have closed, everyone has been told or has
    /// heard nothing for a token's life.
    #[test]
    fn nothing_is_orphaned_on_either_side(
        fates in prop::collection::vec(fate(), 0..40),
        acts in prop::collection::vec(act(false), 0..25),
    ) {
        let mut world = World::new(fates);
        for act in acts {
            world.act(act);
        }
        world.fates.clear();
        world.pass(Duration::from_secs(20));
        for client in 0..CLIENTS {
            world.act(Act::Close(client));
        }
        world.pass(TOKEN * 3);
        prop_assert!(world.tables[0].is_empty(), "A holds {:?}", world.tables[0].connections().collect::<Vec<_>>());
        prop_assert!(world.tables[1].is_empty(), "B holds {:?}", world.tables[1].connections().collect::<Vec<_>>());
        prop_assert!(world.endpoint.is_empty());
        prop_assert_eq!(world.tables[0].poll_timeout().or(world.tables[1].poll_timeout()), None);
    }

    /// Answers of hops are lost, and nothing else: who may remember is told as soon as the network is well, long before any token ends.
    #[test]
    fn who_may_remember_is_told_soon(
        fates in prop::collection::vec(prop_oneof![Just(Fate::Arrives), Just(Fate::ReplyLost), Just(Fate::RequestLost)], 0..6),
        acts in prop::collection::vec(prop_oneof![
            (0..CLIENTS).prop_map(Act::Request), (0..CLIENTS).prop_map(Act::Reselect), (0..CLIENTS).prop_map(Act::Close)
        ], 0..8),
    ) {
        let mut world = World::new(fates);
        for act in acts {
            world.act(act);
        }
        world.fates.clear();
        for client in 0..CLIENTS {
            world.act(Act::Close(client));
        }
        // The longest wait after six losses in a row.
        world.pass(Duration::from_secs(35));
        prop_assert!(world.tables.iter().all(Transit::is_empty));
        prop_assert!(world.endpoint.is_empty(), "{:?}", world.endpoint);
    }

    /// Nobody closes: everything ends with the clients' tokens. This holds over restarts of either manager, which forget all they knew,
    /// as long as the clients refresh what they hold afterwards.
    #[test]
    fn what_is_abandoned_ends_with_its_token(
        fates in prop::collection::vec(fate(), 0..40),
        acts in prop::collection::vec(act(true), 0..25),
    ) {
        let mut world = World::new(fates);
        for act in acts {
            world.act(act);
        }
        world.fates.clear();
        world.pass(TOKEN * 3);
        prop_assert!(world.tables.iter().all(Transit::is_empty));
    }

    /// On a good network there is one connection at the endpoint for each client that holds one, whatever the clients do, and a close leaves
    /// nothing at once. Restarts of managers that have what they kept change nothing.
    #[test]
    fn on_a_good_network_both_sides_agree_at_once(acts in prop::collection::vec(prop_oneof![
        4 => act(false), 1 => (0usize..2).prop_map(Act::Resume)
    ], 0..25)) {
        let mut world = World::new(Vec::new());
        for act in acts {
            world.act(act);
            let held = world.tables[0].connections().count();
            prop_assert_eq!(held, world.tables[1].connections().count());
            prop_assert_eq!(held, world.endpoint.len());
        }
        for client in 0..CLIENTS {
            world.act(Act::Close(client));
        }
        prop_assert!(world.tables.iter().all(Transit::is_empty) && world.endpoint.is_empty());
    }

    /// A refresh keeps every id of the path, also when both managers have restarted.
    #[test]
    fn ids_are_kept_over_refreshes_and_restarts(acts in prop::collection::vec(prop_oneof![
        Just(Act::Refresh(0)), Just(Act::RestartA), Just(Act::RestartB), (1u32..30_000).prop_map(Act::Pass)
    ], 0..12)) {
        let mut world = World::new(Vec::new());
        world.act(Act::Request(0));
        let ids = |w: &World| {
            w.clients[0].as_ref().unwrap().path.segments.iter().map(|s| s.id.clone()).collect::<Vec<_>>()
        };
        let first = ids(&world);
        prop_assert_eq!(first.len(), 4);
        for act in acts {
            world.act(act);
            world.act(Act::Refresh(0));
            prop_assert_eq!(&ids(&world), &first);
        }
        prop_assert_eq!(world.endpoint.len(), 1);
    }
}
