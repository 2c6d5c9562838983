//! The connections that pass through this process: from a client, an endpoint that is a client too, or another domain, to an
//! endpoint behind another hop.
//!
//! ```text
//!                  handle_request                     handle_selected            handle_reply
//!   caller ──▶ checks, bounds, queue ──▶ Select ──▶ candidates ──▶ Request ──▶ held, answered, published
//!                     │                                  ▲             │
//!                     │ RESELECT: Close first            └── next one ─┘ failed
//!                     ▼
//!                   Close ──▶ the stored connection goes to the next hop, its answer to the caller
//! ```
//!
//! Rules, those of NSM's manager and proxy:
//!
//! 1. **One call at a time** for one connection. The others wait, a few of them, in the order in which they came.
//! 2. **A request is idempotent.** It is found again by the caller's segment of the path, so one that is sent twice, or whose answer was
//!    lost, makes no second connection. It keeps our id, also over our own restart: the path brings it back.
//! 3. **A failed first request leaves nothing**, a failed refresh leaves what there was, marked down.
//! 4. **A close sends what is held**, not what the caller says. To close what is not known is a success; where its path shows that it
//!    was known once, the hop that its endpoint is behind is told all the same.
//! 5. **It ends with the token** of the hop before us. Then the next hop is told.
//! 6. **Nothing is orphaned.** A next hop that did not answer, or could not be told of an end, may remember the connection: it is told
//!    until it answers or the lease is over.
//! 7. **What is not ours is left alone**: context, mechanisms, labels and the segments of others pass as they are. What does change:
//!    names ([`names`]), addresses ([`address`]), labels of the cluster, our own segment.
//!
//! Call order: any input, then [`Transit::poll_event`] and [`Transit::poll_transmit`] until both are empty, then
//! [`Transit::poll_timeout`]. Each step is answered exactly once.

pub mod address;
mod entry;
pub mod names;
mod words;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    mem,
    time::{Duration, Instant, SystemTime},
};

use carrick_model::{SpiffeId, TrustDomain};
use carrick_proto::connection::{Connection, State};

pub use self::words::{
    Candidate, Carried, EndReason, Hop, HopClose, HopFault, HopFaultKind, HopRequest, SelectQuery, Step,
    StepId, Ticket, TransitConnection, TransitEvent, TransitFault, TransitRefusal, TransitRequest,
    TransitSettings, Verdict,
};
use self::{
    address::AddressMap,
    entry::{Asking, CloseTokens, Doing, Entry, Held, Job, Origin, renamed},
};
use crate::{
    clock::Now,
    path::{Hop as PathHop, Path, PathFault},
};

/// Longest time a connection lives without a refresh: NSM's default token lifetime. A longer token only costs more refreshes,
/// because clients refresh by the shortest token of the path, which ours is then.
pub const MAX_LEASE: Duration = Duration::from_secs(600);
/// Connections of one trust domain.
pub const MAX_PER_PEER: usize = 16_384;
/// Connections in all: at some 4 KiB each, with their tokens, the table stays under 256 MiB.
pub const MAX_TOTAL: usize = 65_536;
/// Calls that wait for one connection: a client has one, and its retries while the first is slow.
pub const MAX_WAITING: usize = 8;
/// Candidates that one request tries: each may cost a time-out.
pub const MAX_CANDIDATES: usize = 8;

/// The table. The module says in which order to call it.
#[derive(Debug)]
pub struct Transit {
    settings: TransitSettings,
    addresses: AddressMap,
    cluster: BTreeMap<String, String>,
    entries: HashMap<String, Entry>,
    by_origin: HashMap<Origin, String>,
    by_step: HashMap<StepId, String>,
    per_peer: HashMap<TrustDomain, usize>,
    timers: BTreeSet<(Instant, String)>,
    steps: VecDeque<Step>,
    events: VecDeque<TransitEvent>,
    last: u64,
}

/// What the next hop's monitor tells of a connection.
#[derive(Debug, Clone, PartialEq)]
pub enum News {
    /// It is like this now; the path as the next hop sends it, whatever its index.
    Update(Box<Carried>),
    /// It is gone there, or nobody can say.
    Lost,
}

impl Transit {
    /// An empty table.
    pub fn new(settings: TransitSettings) -> Self {
        Self {
            settings,
            addresses: AddressMap::default(),
            cluster: BTreeMap::new(),
            entries: HashMap::new(),
            by_origin: HashMap::new(),
            by_step: HashMap::new(),
            per_peer: HashMap::new(),
            timers: BTreeSet::new(),
            steps: VecDeque::new(),
            events: VecDeque::new(),
            last: 0,
        }
    }

    /// Inner and outer addresses are these from the next request on.
    pub fn set_addresses(&mut self, addresses: AddressMap) {
        self.addresses = addresses;
    }

    /// Labels that every request through here gets, over what it has: NSM's cluster information.
    pub fn set_cluster_labels(&mut self, labels: BTreeMap<String, String>) {
        self.cluster = labels;
    }

    /// Takes a request of `peer` in; `fresh` becomes our id of the connection if it is a new one.
    pub fn handle_request(
        &mut self,
        peer: &SpiffeId,
        mut request: TransitRequest,
        fresh: &str,
        now: Now,
    ) -> Result<Ticket, TransitRefusal> {
        let path = &mut request.carried.path;
        path.check()?;
        let current = path.current().ok_or(PathFault::Empty)?;
        let origin = Origin::of(peer, &current.name, &current.id);
        let lease = self.lease(current.expires, now)?;
        let known = self.known(peer, path, &origin);
        let hop = path.advance(&self.settings.own_name, &request.carried.connection.id, fresh)?;
        if matches!(hop, PathHop::Own | PathHop::First) {
            return Err(TransitRefusal::OwnName(self.settings.own_name.clone()));
        }
        let id = match known {
            Some(id) => id,
            None => {
                let ours = path.current().map(|s| s.id.clone()).unwrap_or_default();
                if self.entries.contains_key(&ours) {
                    return Err(TransitRefusal::NotYours(peer.trust_domain().clone()));
                }
                self.check_bounds(peer)?;
                self.admit(&ours, origin.clone(), peer, now.mono + lease, now);
                ours
            }
        };
        if let Some(own) = path.current_mut() {
            own.id.clone_from(&id);
            own.token.clone_from(&request.own_token.0);
            own.expires = Some(request.own_token.1);
        }
        let ticket = self.ticket();
        self.adopt(&id, origin, peer);
        self.queue(&id, Job::Request(ticket, Box::new(request)), now)?;
        Ok(ticket)
    }

    /// Takes a close of `peer` in.
    pub fn handle_close(
        &mut self,
        peer: &SpiffeId,
        mut carried: Carried,
        now: Now,
    ) -> Result<Ticket, TransitRefusal> {
        carried.path.check()?;
        let current = carried.path.current().ok_or(PathFault::Empty)?;
        let origin = Origin::of(peer, &current.name, &current.id);
        let ticket = self.ticket();
        if let Some(id) = self.known(peer, &carried.path, &origin) {
            let tokens = Box::new(CloseTokens { path: carried.path });
            self.queue(&id, Job::Close(Some(ticket), EndReason::Closed, Some(tokens)), now)?;
            return Ok(ticket);
        }
        let named = [carried.path.current(), carried.path.next()];
        if named.into_iter().flatten().any(|s| self.entries.contains_key(&s.id)) {
            return Err(TransitRefusal::NotYours(peer.trust_domain().clone()));
        }
        // Known once: our segment, and what stood behind it.
        let ours = carried.path.next().filter(|s| s.name == self.settings.own_name).map(|s| s.id.clone());
        let behind = carried.path.segments.len() > carried.path.index as usize + 2;
        let endpoint = !carried.connection.network_service_endpoint_name.is_empty();
        match ours.filter(|_| behind && endpoint) {
            Some(ours) => {
                self.check_bounds(peer)?;
                carried.path.index += 1;
                self.admit(&ours, origin, peer, now.mono, now);
                self.queue(&ours, Job::CloseUnknown(ticket, Box::new(carried)), now)?;
            }
            None => self.events.push_back(TransitEvent::Closed(ticket, Ok(()))),
        }
        Ok(ticket)
    }

    /// A choice was made: whom to ask, the best first.
    pub fn handle_selected(&mut self, step: StepId, result: Result<Vec<Candidate>, HopFault>, now: Now) {
        self.finish(step, now, |this, entry, doing| match doing {
            Doing::Selecting { ticket, request } => this.selected(entry, ticket, request, result, now),
            Doing::Locating { ticket, carried } => this.located(entry, ticket, &carried, result),
            other => other.put_back(entry, step),
        });
    }

    /// The next hop granted a request.
    pub fn handle_reply(&mut self, step: StepId, reply: Carried, now: Now) {
        self.finish(step, now, |this, entry, doing| match doing {
            Doing::Asking(asking) => match checked(&asking.sent.path, &asking.sent.connection.id, reply) {
                Ok(reply) => this.granted(entry, *asking, reply, now),
                Err(message) => {
                    let fault = HopFault { kind: HopFaultKind::Unknown, code: CODE_INTERNAL, message };
                    this.not_granted(entry, *asking, fault, now);
                }
            },
            other => other.put_back(entry, step),
        });
    }

    /// The next hop closed what it was told to.
    pub fn handle_closed(&mut self, step: StepId, now: Now) {
        self.finish(step, now, |this, entry, doing| this.told(entry, step, doing, Ok(()), now));
    }

    /// A request or a close failed.
    pub fn handle_failure(&mut self, step: StepId, fault: HopFault, now: Now) {
        self.finish(step, now, |this, entry, doing| match doing {
            Doing::Asking(asking) => this.not_granted(entry, *asking, fault, now),
            Doing::Selecting { ticket, request } => this.selected(entry, ticket, request, Err(fault), now),
            Doing::Locating { ticket, carried } => this.located(entry, ticket, &carried, Err(fault)),
            other => this.told(entry, step, other, Err(fault), now),
        });
    }

    /// The monitor of `hop` tells of the connection that we hold there under our `id`.
    pub fn handle_news(&mut self, id: &str, hop: &Hop, news: News) {
        let Some(entry) = self.entries.get_mut(id) else { return };
        let owner = entry.owner.clone();
        let Some(held) = entry.held.as_mut().filter(|h| &h.hop == hop) else { return };
        let before = (held.shown.clone(), held.down);
        match news {
            News::Lost => held.set_state(State::Down),
            News::Update(told) => {
                let ours = held.carried.path.index as usize;
                let same = told
                    .path
                    .segments
                    .get(ours)
                    .is_some_and(|s| s.id == id && s.name == self.settings.own_name);
                if !same {
                    return;
                }
                for carried in [&mut held.carried, &mut held.shown] {
                    carried.path.segments.truncate(ours + 1);
                    carried.path.segments.extend(told.path.segments.iter().skip(ours + 1).cloned());
                    carried.connection.context.clone_from(&told.connection.context);
                }
                held.set_state(told.connection.state());
            }
        }
        if (&held.shown, held.down) != (&before.0, before.1) {
            let carried = Box::new(held.shown.clone());
            self.events.push_back(TransitEvent::Published { id: id.to_owned(), owner, carried });
        }
    }

    /// The connection may not be any more: its owner sees it end, and asks anew if it still wants it.
    pub fn handle_ended(&mut self, id: &str, why: EndReason, now: Now) {
        self.with(id, now, |_, entry| {
            if !entry.ending {
                entry.ending = true;
                entry.waiting.push_back(Job::Close(None, why, None));
            }
        });
    }

    /// `trust_domain` is not trusted any more: all it holds ends.
    pub fn handle_trust_removed(&mut self, trust_domain: &TrustDomain, now: Now) {
        let theirs = |e: &&Entry| &e.origin.trust_domain == trust_domain;
        let over: Vec<String> = self.entries.values().filter(theirs).map(|e| e.id.clone()).collect();
        for id in over {
            self.handle_ended(&id, EndReason::TrustRemoved, now);
        }
    }

    /// Time has passed: ends what is over, tells those who may remember.
    pub fn handle_timeout(&mut self, now: Now) {
        while let Some((at, id)) = self.timers.first().cloned() {
            if at > now.mono {
                return;
            }
            self.timers.pop_first();
            self.with(&id, now, |_, entry| {
                entry.timer = None;
                if entry.held.is_some() && !entry.ending && entry.lease_end <= now.mono {
                    entry.ending = true;
                    entry.waiting.push_back(Job::Close(None, EndReason::Expired, None));
                }
            });
        }
    }

    /// The next thing that others have to know.
    pub fn poll_event(&mut self) -> Option<TransitEvent> {
        self.events.pop_front()
    }

    /// The next thing to be done.
    pub fn poll_transmit(&mut self) -> Option<Step> {
        self.steps.pop_front()
    }

    /// When to call [`Transit::handle_timeout`].
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.timers.first().map(|(at, _)| *at)
    }

    /// The connections that are held.
    pub fn connections(&self) -> impl Iterator<Item = TransitConnection> + '_ {
        self.entries.values().filter_map(|e| e.held.as_ref().map(|h| (e, h))).map(|(e, h)| {
            TransitConnection {
                id: e.id.clone(),
                owner: e.owner.clone(),
                service: h.asked_service.clone(),
                sent_service: h.service.clone(),
                endpoint: h.endpoint.clone(),
                labels: h.labels.clone(),
                hop: h.hop.clone(),
                down: h.down,
                since: e.since,
                lease_end: e.lease_end,
            }
        })
    }

    /// Whether `peer` holds the connection that a path speaks of, or may: then it is a matter of this table.
    pub fn knows(&self, peer: &SpiffeId, path: &Path) -> bool {
        let origin = path.current().map(|s| Origin::of(peer, &s.name, &s.id));
        origin.is_some_and(|o| self.known(peer, path, &o).is_some())
    }

    /// How many connections there are, with those that are just being made or ended.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

/// gRPC's `INTERNAL`.
const CODE_INTERNAL: i32 = 13;

/// The work on one entry, and the books.
impl Transit {
    /// The entry of `peer` that a path speaks of: by the caller's segment, else by ours behind it. Another trust domain's is never found.
    fn known(&self, peer: &SpiffeId, path: &Path, origin: &Origin) -> Option<String> {
        if let Some(id) = self.by_origin.get(origin) {
            return Some(id.clone());
        }
        let ours = path.next().filter(|s| s.name == self.settings.own_name)?;
        let entry = self.entries.get(&ours.id)?;
        (&entry.origin.trust_domain == peer.trust_domain()).then(|| ours.id.clone())
    }

    fn lease(&self, end: Option<SystemTime>, now: Now) -> Result<Duration, TransitRefusal> {
        match end.ok_or(TransitRefusal::NoExpiry)?.duration_since(now.wall) {
            Ok(left) if !left.is_zero() => Ok(left.min(self.settings.max_lease)),
            Ok(_) => Err(TransitRefusal::LeaseOver(Duration::ZERO)),
            Err(past) => Err(TransitRefusal::LeaseOver(past.duration())),
        }
    }

    fn check_bounds(&self, peer: &SpiffeId) -> Result<(), TransitRefusal> {
        let theirs = self.per_peer.get(peer.trust_domain()).copied().unwrap_or_default();
        if theirs >= self.settings.max_per_peer {
            return Err(TransitRefusal::PeerLimit(peer.trust_domain().clone(), theirs));
        }
        if self.entries.len() >= self.settings.max_total {
            return Err(TransitRefusal::TotalLimit(self.entries.len()));
        }
        Ok(())
    }

    fn admit(&mut self, id: &str, origin: Origin, owner: &SpiffeId, lease_end: Instant, now: Now) {
        *self.per_peer.entry(origin.trust_domain.clone()).or_default() += 1;
        self.by_origin.insert(origin.clone(), id.to_owned());
        let entry = Entry {
            id: id.to_owned(),
            origin,
            owner: owner.clone(),
            since: now.wall,
            lease_end,
            held: None,
            running: None,
            waiting: VecDeque::new(),
            ending: false,
            published: false,
            leftovers: Vec::new(),
            timer: None,
        };
        self.entries.insert(id.to_owned(), entry);
    }

    /// The caller's segment may have another name or id than before, when the caller restarted and kept ours.
    fn adopt(&mut self, id: &str, origin: Origin, owner: &SpiffeId) {
        let Some(entry) = self.entries.get_mut(id) else { return };
        entry.owner = owner.clone();
        if entry.origin != origin {
            self.by_origin.remove(&entry.origin);
            entry.origin = origin.clone();
        }
        self.by_origin.insert(origin, id.to_owned());
    }

    fn ticket(&mut self) -> Ticket {
        self.last += 1;
        Ticket(self.last)
    }

    fn step(&mut self, entry: &mut Entry, doing: Doing) -> StepId {
        self.last += 1;
        let step = StepId(self.last);
        self.by_step.insert(step, entry.id.clone());
        entry.running = Some((step, doing));
        step
    }

    fn queue(&mut self, id: &str, job: Job, now: Now) -> Result<(), TransitRefusal> {
        let waiting = self.entries.get(id).map_or(0, |e| e.waiting.len());
        if waiting >= MAX_WAITING {
            return Err(TransitRefusal::Busy(waiting));
        }
        self.with(id, now, |_, entry| entry.waiting.push_back(job));
        Ok(())
    }

    /// Changes an entry, does what can be done next with it, and keeps the books.
    fn with(&mut self, id: &str, now: Now, change: impl FnOnce(&mut Self, &mut Entry)) {
        let Some(mut entry) = self.entries.remove(id) else { return };
        change(self, &mut entry);
        self.proceed(&mut entry, now);
        let timer = entry.next_timer();
        if entry.timer != timer {
            if let Some(old) = entry.timer {
                self.timers.remove(&(old, entry.id.clone()));
            }
            if let Some(at) = timer {
                self.timers.insert((at, entry.id.clone()));
            }
            entry.timer = timer;
        }
        if !entry.is_over() {
            self.entries.insert(entry.id.clone(), entry);
            return;
        }
        if self.by_origin.get(&entry.origin) == Some(&entry.id) {
            self.by_origin.remove(&entry.origin);
        }
        let td = entry.origin.trust_domain;
        if let Some(count) = self.per_peer.get_mut(&td) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                self.per_peer.remove(&td);
            }
        }
    }

    /// Ends a step. An outcome of a step that is not running is a duplicate, and nothing.
    fn finish(&mut self, step: StepId, now: Now, then: impl FnOnce(&mut Self, &mut Entry, Doing)) {
        let Some(id) = self.by_step.get(&step).cloned() else { return };
        self.with(&id, now, |this, entry| match entry.running.take() {
            Some((running, doing)) if running == step => {
                this.by_step.remove(&step);
                then(this, entry, doing);
            }
            other => entry.running = other,
        });
    }

    /// Begins what waits, until something runs.
    fn proceed(&mut self, entry: &mut Entry, now: Now) {
        while entry.running.is_none() {
            match entry.waiting.pop_front() {
                Some(Job::Request(ticket, request)) => self.begin(entry, ticket, request, now),
                Some(Job::Close(ticket, why, tokens)) => {
                    if ticket.is_none() {
                        entry.ending = false;
                        // A refresh came between.
                        if why == EndReason::Expired && entry.lease_end > now.mono {
                            continue;
                        }
                    }
                    self.close(entry, ticket, why, tokens.as_deref());
                }
                Some(Job::CloseUnknown(ticket, carried)) => {
                    let query = query_of(entry, &carried);
                    let step = self.step(entry, Doing::Locating { ticket, carried });
                    self.steps.push_back(Step::Select(step, query));
                }
                None => {
                    let Some(due) = entry.leftovers.iter().position(|l| l.next <= now.mono) else { return };
                    let leftover = entry.leftovers.swap_remove(due);
                    let close = HopClose { hop: leftover.hop.clone(), carried: leftover.carried.clone() };
                    let step = self.step(entry, Doing::Sweeping(Box::new(leftover)));
                    self.steps.push_back(Step::Close(step, Box::new(close)));
                }
            }
        }
    }

    fn begin(&mut self, entry: &mut Entry, ticket: Ticket, request: Box<TransitRequest>, now: Now) {
        if request.deadline <= now.mono {
            return self.events.push_back(TransitEvent::Failed(ticket, TransitFault::Late));
        }
        if entry.held.is_none() {
            // So long a hop may remember what we are about to ask of it.
            let caller = (request.carried.path.index as usize).checked_sub(1);
            let end = caller.and_then(|i| request.carried.path.segments.get(i)).and_then(|s| s.expires);
            entry.lease_end = now.mono + self.lease(end, now).unwrap_or_default();
        }
        if request.carried.connection.state() == State::ReselectRequested {
            // Who asks for another endpoint leaves the name out; a hop before us that has chosen one already names it.
            if let Some(held) = entry.held.take() {
                self.events.push_back(TransitEvent::HeldAt { id: entry.id.clone(), hop: None });
                let close = HopClose { hop: held.hop.clone(), carried: held.to_close(None) };
                let held = Box::new(held);
                let step = self.step(entry, Doing::Reselecting { ticket, request, held });
                return self.steps.push_back(Step::Close(step, Box::new(close)));
            }
        }
        self.select(entry, ticket, request);
    }

    fn select(&mut self, entry: &mut Entry, ticket: Ticket, request: Box<TransitRequest>) {
        let query = query_of(entry, &request.carried);
        let step = self.step(entry, Doing::Selecting { ticket, request });
        self.steps.push_back(Step::Select(step, query));
    }

    fn selected(
        &mut self,
        entry: &mut Entry,
        ticket: Ticket,
        mut request: Box<TransitRequest>,
        result: Result<Vec<Candidate>, HopFault>,
        now: Now,
    ) {
        let same = entry.held.as_ref().filter(|held| held.is_what(&request.carried.connection));
        let mut candidates = match (result, same) {
            (Ok(candidates), _) if !candidates.is_empty() => candidates,
            // The registry may have lost the endpoint, or be lost itself; the connection is alive as long as its endpoint says so.
            (_, Some(held)) => vec![held.candidate()],
            (Ok(_), None) => {
                let service = request.carried.connection.network_service.clone();
                return self.failed(entry, ticket, TransitFault::NoCandidate { service });
            }
            (Err(fault), None) => return self.failed(entry, ticket, TransitFault::Select(fault)),
        };
        candidates.truncate(MAX_CANDIDATES);
        // Sent again because its answer was lost: the hops behind us are known all the same.
        let ours = request.carried.path.index as usize;
        if let Some(held) = &entry.held
            && request.carried.path.segments.len() == ours + 1
        {
            request.carried.path.segments.extend(held.carried.path.segments.iter().skip(ours + 1).cloned());
        }
        self.ask(entry, ticket, request, candidates.into(), Vec::new(), now);
    }

    /// Asks the next candidate. With others behind it, it gets half of the time that is left.
    fn ask(
        &mut self,
        entry: &mut Entry,
        ticket: Ticket,
        request: Box<TransitRequest>,
        mut rest: VecDeque<Candidate>,
        faults: Vec<(String, HopFault)>,
        now: Now,
    ) {
        let Some(current) = rest.pop_front() else {
            return self.failed(entry, ticket, TransitFault::Hops(faults));
        };
        let left = request.deadline.saturating_duration_since(now.mono);
        if left.is_zero() {
            let fault = if faults.is_empty() { TransitFault::Late } else { TransitFault::Hops(faults) };
            return self.failed(entry, ticket, fault);
        }
        let deadline = if rest.is_empty() { request.deadline } else { now.mono + left / 2 };
        let mut connection = renamed(&request.carried.connection, &entry.id, &current);
        if !current.payload.is_empty() {
            connection.payload.clone_from(&current.payload);
        }
        connection.labels.extend(self.cluster.iter().map(|(k, v)| (k.clone(), v.clone())));
        let mut preferences = request.preferences.clone();
        let side = address::side(current.leaves, connection.mechanism.iter().chain(&preferences));
        for mechanism in connection.mechanism.iter_mut().chain(&mut preferences) {
            self.addresses.translate_request(side, mechanism);
        }
        let sent = Carried { connection, path: request.carried.path.clone() };
        let hop_request =
            HopRequest { hop: current.hop.clone(), carried: sent.clone(), preferences, deadline };
        let asking = Asking { ticket, request, current, side, sent, rest, faults };
        let step = self.step(entry, Doing::Asking(Box::new(asking)));
        self.steps.push_back(Step::Request(step, Box::new(hop_request)));
    }

    fn granted(&mut self, entry: &mut Entry, asking: Asking, reply: Carried, now: Now) {
        let Asking { ticket, request, current, side, .. } = asking;
        let asked = &request.carried.connection;
        let mut shown = reply.clone();
        let connection = &mut shown.connection;
        entry.id.clone_into(&mut connection.id);
        connection.network_service_endpoint_name = names::restored(
            &asked.network_service,
            &asked.network_service_endpoint_name,
            &current.service,
            &reply.connection.network_service_endpoint_name,
        );
        connection.network_service.clone_from(&asked.network_service);
        if let Some(mechanism) = &mut connection.mechanism {
            self.addresses.translate_reply(side, mechanism);
        }
        connection.set_state(State::Up);

        let mut answer = shown.clone();
        let caller = request.carried.path.index.saturating_sub(1);
        answer.path.restore(caller).unwrap_or_default().clone_into(&mut answer.connection.id);

        let caller_end = reply.path.segments.get(caller as usize).and_then(|s| s.expires);
        entry.lease_end = now.mono + self.lease(caller_end, now).unwrap_or_default();
        entry.leftovers.retain(|l| l.hop != current.hop);
        let moved = entry.held.as_ref().is_none_or(|h| h.hop != current.hop);
        let endpoint = reply.connection.network_service_endpoint_name.clone();
        self.events
            .push_back(TransitEvent::Tried { known_as: current.known_as.clone(), verdict: Verdict::Granted });
        entry.held = Some(Held {
            hop: current.hop.clone(),
            asked_service: asked.network_service.clone(),
            service: current.service,
            endpoint,
            leaves: current.leaves,
            known_as: current.known_as,
            labels: asked.labels.clone(),
            carried: reply,
            shown: shown.clone(),
            down: false,
        });
        entry.published = true;
        let (id, owner) = (entry.id.clone(), entry.owner.clone());
        if moved {
            self.events.push_back(TransitEvent::HeldAt { id: id.clone(), hop: Some(current.hop) });
        }
        self.events.push_back(TransitEvent::Published { id, owner, carried: Box::new(shown) });
        self.events.push_back(TransitEvent::Granted(ticket, Box::new(answer)));
    }

    fn not_granted(&mut self, entry: &mut Entry, asking: Asking, fault: HopFault, now: Now) {
        let Asking { ticket, request, current, sent, mut rest, mut faults, .. } = asking;
        let held_there = entry.held.as_ref().is_some_and(|h| h.hop == current.hop);
        if fault.kind == HopFaultKind::Unknown && !held_there {
            entry.suspect(&current.hop, sent, now.mono);
        }
        if fault.kind == HopFaultKind::NotSent {
            // Others behind the same hop are not reached either.
            rest.retain(|c| c.hop != current.hop);
        }
        let refused = fault.kind == HopFaultKind::Refused;
        let verdict = if refused { Verdict::Refused } else { Verdict::Silent };
        self.events.push_back(TransitEvent::Tried { known_as: current.known_as, verdict });
        faults.push((current.hop.to_string(), fault));
        self.ask(entry, ticket, request, rest, faults, now);
    }

    /// A request is not granted: what was held stays held, and is down.
    fn failed(&mut self, entry: &mut Entry, ticket: Ticket, fault: TransitFault) {
        if let Some(held) = entry.held.as_mut().filter(|h| !h.down) {
            held.set_state(State::Down);
            let (id, owner) = (entry.id.clone(), entry.owner.clone());
            let carried = Box::new(held.shown.clone());
            self.events.push_back(TransitEvent::Published { id, owner, carried });
        }
        if entry.held.is_none() && mem::take(&mut entry.published) {
            self.events.push_back(TransitEvent::Gone { id: entry.id.clone(), why: EndReason::Closed });
        }
        self.events.push_back(TransitEvent::Failed(ticket, fault));
    }

    fn close(
        &mut self,
        entry: &mut Entry,
        ticket: Option<Ticket>,
        why: EndReason,
        tokens: Option<&CloseTokens>,
    ) {
        let Some(held) = entry.held.take() else {
            if let Some(ticket) = ticket {
                self.events.push_back(TransitEvent::Closed(ticket, Ok(())));
            }
            return;
        };
        self.events.push_back(TransitEvent::HeldAt { id: entry.id.clone(), hop: None });
        let close = HopClose { hop: held.hop.clone(), carried: held.to_close(tokens) };
        let step = self.step(entry, Doing::Closing { ticket, held: Box::new(held), why });
        self.steps.push_back(Step::Close(step, Box::new(close)));
    }

    /// A close was answered, or was not.
    fn told(
        &mut self,
        entry: &mut Entry,
        step: StepId,
        doing: Doing,
        result: Result<(), HopFault>,
        now: Now,
    ) {
        let unheard = matches!(&result, Err(f) if f.kind != HopFaultKind::Refused);
        let over = entry.lease_end <= now.mono;
        match doing {
            Doing::Closing { ticket, held, why } => {
                // With the lease over, so is the next hop's: what could not be told now ends by itself.
                if unheard && !over {
                    entry.suspect(&held.hop, held.carried.clone(), now.mono);
                }
                entry.published = false;
                self.events.push_back(TransitEvent::Gone { id: entry.id.clone(), why });
                if let Some(ticket) = ticket {
                    self.events.push_back(TransitEvent::Closed(ticket, result));
                }
            }
            Doing::Reselecting { ticket, request, held } => {
                if unheard {
                    entry.suspect(&held.hop, held.carried.clone(), now.mono);
                }
                self.select(entry, ticket, request);
            }
            Doing::Sweeping(leftover) => {
                if unheard && !over {
                    entry.leftovers.push(leftover.postponed(now.mono));
                }
                entry.leftovers.retain(|_| !over);
            }
            // The answer for what is not known is always yes.
            Doing::Forwarding { ticket } => self.events.push_back(TransitEvent::Closed(ticket, Ok(()))),
            other => other.put_back(entry, step),
        }
    }

    fn located(
        &mut self,
        entry: &mut Entry,
        ticket: Ticket,
        carried: &Carried,
        result: Result<Vec<Candidate>, HopFault>,
    ) {
        let Some(candidate) = result.ok().and_then(|c| c.into_iter().next()) else {
            return self.events.push_back(TransitEvent::Closed(ticket, Ok(())));
        };
        let connection = renamed(&carried.connection, &entry.id, &candidate);
        let close =
            HopClose { hop: candidate.hop, carried: Carried { connection, path: carried.path.clone() } };
        let step = self.step(entry, Doing::Forwarding { ticket });
        self.steps.push_back(Step::Close(step, Box::new(close)));
    }
}

impl Origin {
    fn of(peer: &SpiffeId, name: &str, id: &str) -> Self {
        Self { trust_domain: peer.trust_domain().clone(), name: name.to_owned(), id: id.to_owned() }
    }
}

impl Doing {
    /// An outcome of another kind than the step's is none.
    fn put_back(self, entry: &mut Entry, step: StepId) {
        entry.running = Some((step, self));
    }
}

impl Held {
    /// Whether a request is for what is held, and not for something else under the same id.
    fn is_what(&self, asked: &Connection) -> bool {
        let endpoint = &asked.network_service_endpoint_name;
        self.asked_service == asked.network_service
            && (endpoint.is_empty() || endpoint == &self.shown.connection.network_service_endpoint_name)
    }

    /// The way the connection goes now.
    fn candidate(&self) -> Candidate {
        Candidate {
            service: self.service.clone(),
            endpoint: self.endpoint.clone(),
            payload: self.carried.connection.payload.clone(),
            hop: self.hop.clone(),
            leaves: self.leaves,
            known_as: self.known_as.clone(),
        }
    }
}

fn query_of(entry: &Entry, carried: &Carried) -> Box<SelectQuery> {
    let connection = &carried.connection;
    let reselect = connection.state() == State::ReselectRequested;
    Box::new(SelectQuery {
        caller: entry.owner.clone(),
        service: connection.network_service.clone(),
        endpoint: connection.network_service_endpoint_name.clone(),
        reselect,
        labels: connection.labels.clone(),
        payload: connection.payload.clone(),
        previous: entry.origin.name.clone(),
        next: if reselect {
            String::new()
        } else {
            carried.path.next().map(|s| s.name.clone()).unwrap_or_default()
        },
    })
}

/// The next hop's answer, if it is about our connection and leaves the hops before us alone.
fn checked(sent: &Path, id: &str, mut reply: Carried) -> Result<Carried, String> {
    reply.path.check().map_err(|fault| format!("the answer's path is bad: {fault}"))?;
    if reply.path.index != sent.index || reply.connection.id != id {
        return Err("the answer is not about the connection that was asked for".to_owned());
    }
    let ours = sent.index as usize;
    let same = sent.segments.len() > ours
        && reply.path.segments.len() > ours
        && sent
            .segments
            .iter()
            .zip(&reply.path.segments)
            .take(ours + 1)
            .all(|(a, b)| a.name == b.name && a.id == b.id);
    if !same {
        return Err("the answer's path is another one than was sent".to_owned());
    }
    // Tokens and measurements of the hops before us are theirs; our own token is the one that the next hop was shown.
    for (segment, known) in reply.path.segments.iter_mut().zip(&sent.segments).take(ours) {
        segment.clone_from(known);
    }
    reply.connection.path = None;
    Ok(reply)
}

#[cfg(test)]
mod tests;
