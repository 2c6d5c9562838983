//! One import's connection, seen from the importing side.
//!
//! ```text
//!                 ┌───────────────────────── fault: wait, then again ─────────────────────────┐
//!                 ▼                                                                           │
//!   new ──▶ Resolving ──▶ Finding ──▶ Requesting ──▶ Up ──▶ Refreshing ──▶ Up ...           Down
//!                                                    │                        lease over ───▶ │
//!   close() at any point: Closing ──▶ Closed         └── told to be unusable ───────────────▶ ┘
//! ```
//!
//! What the machine knows (gateways, endpoints, a connection) and what it does (one step at a time) are apart: a step is
//! chosen from what is not known or not fresh. So a failed refresh, a lost watch or a vanished endpoint leaves the
//! connection up while the missing knowledge is fetched, and there is one way back up from any fault.
//!
//! Call order: any input, then [`Outbound::poll_transmit`] and [`Outbound::poll_event`] until both are empty, then
//! [`Outbound::poll_timeout`]. Each step handed out is answered once, by the `handle_*` of its kind or by
//! [`Outbound::handle_failure`], with the attempt that came with it. An answer to an older attempt is ignored.

mod words;

use std::{
    collections::VecDeque,
    time::{Duration, Instant, SystemTime},
};

use carrick_model::{Payload, ServiceName};

pub use self::words::{
    Attempt, Established, Event, OutboundClose, OutboundReply, OutboundRequest, OutboundSettings, Reason,
    State, Step,
};
use crate::{
    clock::Now,
    fault::{Fault, FaultKind, StepKind},
    path::Path,
    retry::Retry,
    selection::{self, Endpoint, RoundRobin},
};

/// How long a lease we ask for: NSM's default token lifetime.
pub const LEASE: Duration = Duration::from_secs(600);
/// Longest we wait for the answer to one step. The shell's own deadlines are shorter; this one is for a shell that forgot.
pub const STEP_DEADLINE: Duration = Duration::from_secs(20);
/// Shortest time between two attempts, however much a flow wants the connection.
pub const DEMAND_INTERVAL: Duration = Duration::from_secs(1);
/// A watch that lasted so long ended for a reason of its own.
pub const WATCH_LASTED: Duration = Duration::from_secs(10);
/// A lease shorter than this cannot be renewed in time: the clocks differ, or the peer is not in its right mind.
pub const MIN_LEASE: Duration = Duration::from_millis(500);

/// The state machine of one import's connection. The module says in which order to call it.
#[derive(Debug)]
pub struct Outbound {
    settings: OutboundSettings,
    work: Work,
    closing: bool,
    attempt: u64,
    started: Option<Instant>,
    resolved: bool,
    watching: bool,
    /// Not before this is the watch opened again, unless there is another reason to look.
    find_after: Option<Instant>,
    watch_began: Option<Instant>,
    watch_retry: Retry,
    endpoints: Option<Vec<Endpoint>>,
    turn: RoundRobin,
    asked: Option<Endpoint>,
    path: Option<Path>,
    held: Option<Held>,
    /// Whether the peer may remember something of us.
    remembered: bool,
    /// When we last asked anew because the peer had forgotten us.
    anew: Option<Instant>,
    retry: Retry,
    fault: Option<Fault>,
    transmit: VecDeque<Step>,
    events: VecDeque<Event>,
}

/// The one thing the machine does at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Work {
    Idle,
    InFlight(StepKind, Instant),
    Waiting(Instant),
    Done,
}

/// A connection that we hold.
#[derive(Debug)]
struct Held {
    established: Established,
    lease_end: Instant,
    /// When it is to be renewed; in the past when it must be at once.
    refresh_at: Instant,
    /// Its endpoint is gone: the next request names another.
    reselect: bool,
    /// The peer was seen to refuse it: it is over unless the next request succeeds.
    suspect: bool,
}

impl Outbound {
    /// A machine that begins to connect at once.
    pub fn new(settings: OutboundSettings, now: Now) -> Self {
        let mut machine = Self {
            turn: RoundRobin::new(settings.seed),
            retry: Retry::new(settings.seed),
            watch_retry: Retry::new(settings.seed.wrapping_add(1)),
            find_after: None,
            watch_began: None,
            settings,
            work: Work::Idle,
            closing: false,
            attempt: 0,
            started: None,
            resolved: false,
            watching: false,
            endpoints: None,
            asked: None,
            path: None,
            held: None,
            remembered: false,
            anew: None,
            fault: None,
            transmit: VecDeque::new(),
            events: VecDeque::new(),
        };
        machine.proceed(now);
        machine
    }

    /// The domain's gateways are known.
    pub fn handle_resolved(&mut self, attempt: Attempt, now: Now) {
        if self.take(attempt, StepKind::Resolve) {
            self.resolved = true;
            self.proceed(now);
        }
    }

    /// The service's endpoints are known, and watched from now on.
    pub fn handle_found(&mut self, attempt: Attempt, endpoints: Vec<Endpoint>, now: Now) {
        if !self.take(attempt, StepKind::Find) {
            return;
        }
        self.watching = true;
        self.watch_began = Some(now.mono);
        // We looked while holding a connection because the watch had broken: perhaps the peer restarted and knows
        // nothing of it. A renewal tells.
        if let Some(held) = &mut self.held {
            held.refresh_at = now.mono;
        }
        if !endpoints.is_empty() {
            self.learn(endpoints);
            self.proceed(now);
        } else if self.held.is_none() && !self.closing {
            // A registry hides what we may not use. The manager knows whether there is no such service or we are not
            // allowed, so it is asked for whatever endpoint there is: its refusal is the reason.
            self.ask(Endpoint { name: String::new(), payload: None, port: None }, now);
        } else {
            let fault = self.no_service();
            self.fail(fault, now);
        }
    }

    /// The peer granted or renewed the connection.
    pub fn handle_reply(&mut self, attempt: Attempt, reply: OutboundReply, now: Now) {
        if !self.take(attempt, StepKind::Request) {
            return;
        }
        match self.accept(reply, now) {
            Ok(()) => {
                self.retry.reset();
                self.fault = None;
                self.proceed(now);
            }
            Err(fault) => self.fail(fault, now),
        }
    }

    /// The peer confirmed the close.
    pub fn handle_closed(&mut self, attempt: Attempt, now: Now) {
        if self.take(attempt, StepKind::Close) {
            self.remembered = false;
            self.proceed(now);
        }
    }

    /// The step in flight failed.
    pub fn handle_failure(&mut self, attempt: Attempt, fault: Fault, now: Now) {
        let Work::InFlight(kind, _) = self.work else { return };
        if self.take(attempt, kind) {
            self.fail(fault, now);
        }
    }

    /// The watch brought another list of endpoints.
    pub fn handle_endpoints_changed(&mut self, endpoints: Vec<Endpoint>, now: Now) {
        if self.closing {
            return;
        }
        let changed = self.endpoints.as_ref() != Some(&endpoints);
        if endpoints.is_empty() {
            self.endpoints = Some(endpoints);
            if self.held.is_some() {
                let fault = self.no_service();
                self.drop_held(fault);
            }
            if self.work == Work::Idle {
                self.work = Work::Waiting(now.mono + self.retry.next_delay());
            }
            return;
        }
        self.learn(endpoints);
        if changed {
            self.hurry(now);
        }
        self.proceed(now);
    }

    /// The watch broke. The connection stays; the endpoints are looked for again.
    pub fn handle_watch_ended(&mut self, fault: Fault, now: Now) {
        if self.closing || !self.watching {
            return;
        }
        self.watching = false;
        self.resolved = false;
        self.fault = Some(fault);
        // A watch that lasted was a real one; a registry that ends each at once is asked ever more seldom.
        if self.watch_began.is_some_and(|t| now.mono > t + WATCH_LASTED) {
            self.watch_retry.reset();
        }
        self.find_after = Some(now.mono + self.watch_retry.next_delay());
        self.proceed(now);
    }

    /// The data path saw the peer refuse the connection: it is asked for anew at once, and it is over if that fails.
    pub fn handle_lost(&mut self, fault: Fault, now: Now) {
        if self.closing {
            return;
        }
        self.fault = Some(fault);
        if let Some(held) = &mut self.held {
            held.suspect = true;
            self.forget_peer_segments();
            self.ask_anew(now);
        }
        self.proceed(now);
    }

    /// A flow wants the connection now: a wait is cut short, though not to under [`DEMAND_INTERVAL`] between attempts.
    pub fn handle_demand(&mut self, now: Now) {
        self.hurry(now);
        self.proceed(now);
    }

    /// Time has passed.
    pub fn handle_timeout(&mut self, now: Now) {
        if let Some(held) = &self.held
            && held.lease_end <= now.mono
        {
            let fault = self.lease_ended();
            self.drop_held(fault);
        }
        match self.work {
            Work::InFlight(kind, deadline) if deadline <= now.mono => {
                self.attempt += 1;
                self.work = Work::Idle;
                let detail = format!("no answer within {} s", STEP_DEADLINE.as_secs());
                let hint = "the peer accepts connections but does not answer: look at its log and load";
                self.fail(self.fault_of(kind, FaultKind::TimedOut, detail, hint), now);
            }
            Work::Waiting(until) if until <= now.mono => {
                self.work = Work::Idle;
                self.proceed(now);
            }
            _ => self.proceed(now),
        }
    }

    /// Ends the connection: at once towards the rest of the process, then at the peer. [`Event::Closed`] is the last word.
    pub fn close(&mut self, now: Now) {
        if self.closing {
            return;
        }
        self.closing = true;
        self.held = None;
        // A request in flight is waited for: closing first would let it arrive afterwards and stay behind.
        match self.work {
            Work::InFlight(StepKind::Request, _) => {}
            Work::Done => {}
            _ => {
                self.attempt += 1;
                self.work = Work::Idle;
                self.transmit.clear();
            }
        }
        self.proceed(now);
    }

    /// The next step to take.
    pub fn poll_transmit(&mut self) -> Option<Step> {
        self.transmit.pop_front()
    }

    /// The next thing the rest of the process has to know.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// When to call [`Outbound::handle_timeout`], and why.
    pub fn poll_timeout(&self) -> Option<(Instant, Reason)> {
        let work = match self.work {
            Work::InFlight(_, deadline) => Some((deadline, Reason::Step)),
            Work::Waiting(until) => Some((until, Reason::Retry)),
            Work::Idle => self.held.as_ref().map(|h| (h.refresh_at, Reason::Refresh)),
            Work::Done => None,
        };
        let lease = self.held.as_ref().map(|h| (h.lease_end, Reason::Lease));
        work.into_iter().chain(lease).min_by_key(|(at, _)| *at)
    }

    /// What the machine is at.
    pub fn state(&self) -> State {
        match (&self.held, self.work) {
            (_, Work::Done) => State::Closed,
            _ if self.closing => State::Closing,
            (Some(_), Work::Idle) => State::Up,
            (Some(_), _) => State::Refreshing,
            (None, Work::Waiting(until)) => State::Down(until),
            (None, Work::InFlight(StepKind::Resolve, _)) => State::Resolving,
            (None, Work::InFlight(StepKind::Find, _)) => State::Finding,
            (None, _) => State::Requesting,
        }
    }

    /// The connection, while it is up.
    pub fn established(&self) -> Option<&Established> {
        self.held.as_ref().map(|h| &h.established)
    }

    /// When the lease ends, while it is up.
    pub fn lease_end(&self) -> Option<Instant> {
        self.held.as_ref().map(|h| h.lease_end)
    }

    /// The last fault that has not been made good since.
    pub fn last_fault(&self) -> Option<&Fault> {
        self.fault.as_ref()
    }

    /// The service this is about.
    pub fn service(&self) -> &ServiceName {
        &self.settings.service
    }

    /// Whether `attempt` is the one in flight, which it is no longer then.
    fn take(&mut self, attempt: Attempt, kind: StepKind) -> bool {
        let current = matches!(self.work, Work::InFlight(k, _) if k == kind) && attempt.0 == self.attempt;
        if current {
            self.work = Work::Idle;
        }
        current
    }

    /// Chooses and starts the next step, if there is one and nothing is in the way.
    fn proceed(&mut self, now: Now) {
        if self.work != Work::Idle {
            return;
        }
        if self.closing {
            return self.say_good_bye(now);
        }
        let due = self.held.as_ref().is_none_or(|h| h.suspect || h.reselect || h.refresh_at <= now.mono);
        if !due {
            let wait = self.find_after.filter(|at| *at > now.mono);
            match wait {
                _ if self.watching => return,
                Some(until) => return self.work = Work::Waiting(until),
                None => {}
            }
        }
        if !self.resolved {
            let attempt = self.start(StepKind::Resolve, now);
            self.transmit.push_back(Step::Resolve(attempt));
        } else if !self.watching || self.endpoints.as_ref().is_none_or(Vec::is_empty) {
            let attempt = self.start(StepKind::Find, now);
            self.transmit.push_back(Step::Find(attempt));
        } else {
            self.request(now);
        }
    }

    fn start(&mut self, kind: StepKind, now: Now) -> Attempt {
        self.attempt += 1;
        self.started = Some(now.mono);
        self.work = Work::InFlight(kind, now.mono + STEP_DEADLINE);
        Attempt(self.attempt)
    }

    fn request(&mut self, now: Now) {
        let Some(endpoint) = self.choose() else {
            let fault = self.no_match();
            return self.fail(fault, now);
        };
        self.ask(endpoint, now);
    }

    fn ask(&mut self, endpoint: Endpoint, now: Now) {
        let expires = now.wall + self.settings.lease;
        let attempt = self.start(StepKind::Request, now);
        let path = self.own_path(expires);
        self.remembered = true;
        self.transmit.push_back(Step::Request(
            attempt,
            OutboundRequest {
                id: self.settings.id,
                service: self.settings.service.clone(),
                endpoint: endpoint.name.clone(),
                payload: self.settings.payload.or(endpoint.payload),
                path,
            },
        ));
        self.asked = Some(endpoint);
    }

    /// A renewal stays with its endpoint, all else takes the next in turn.
    fn choose(&mut self) -> Option<Endpoint> {
        let endpoints = self.endpoints.as_deref()?;
        let stays = self.held.as_ref().filter(|h| !h.reselect).map(|h| h.established.endpoint.as_str());
        let wanted = self.settings.payload;
        stays
            .and_then(|name| endpoints.iter().find(|e| e.name == name && selection::carries(e, wanted)))
            .or_else(|| self.turn.next(endpoints, wanted))
            .cloned()
    }

    /// The path as the peer last returned it, with our own part of the lease renewed.
    fn own_path(&mut self, expires: SystemTime) -> Path {
        let id = self.settings.id.to_string();
        let mut path = self.path.take().unwrap_or_else(|| Path::begin(&self.settings.own_name, &id, expires));
        if let Some(own) = path.current_mut() {
            own.expires = Some(expires);
        }
        self.path = Some(path.clone());
        path
    }

    fn accept(&mut self, reply: OutboundReply, now: Now) -> Result<(), Fault> {
        let bad = |this: &Self, detail: String| {
            let hint = "the peer speaks the protocol in another way than Carrick does: compare the versions";
            this.fault_of(StepKind::Request, FaultKind::BadAnswer, detail, hint)
        };
        let own = self.settings.id.to_string();
        let is_ours = reply.path.current().is_some_and(|s| s.name == self.settings.own_name && s.id == own);
        if reply.id != own || reply.path.check().is_err() || !is_ours {
            return Err(bad(self, "the answer is not about our connection".into()));
        }
        let Some(connection) = reply.connection else {
            return Err(bad(self, "the answer names no connection for the mechanism QUIC".into()));
        };
        let Some(payload) = reply.payload.or(self.settings.payload) else {
            return Err(bad(self, "the answer does not say what the connection carries".into()));
        };
        if self.settings.payload.is_some_and(|wanted| wanted != payload) {
            return Err(bad(self, format!("the answer is a connection for {payload}")));
        }
        let lease = now.until(reply.path.expires().unwrap_or(now.wall + self.settings.lease));
        let lease = lease.min(self.settings.lease);
        if lease < MIN_LEASE {
            let hint = "compare the clocks of both domains (NTP): they differ by more than the lease";
            let detail = "the lease that the peer granted is over already".to_owned();
            return Err(self.fault_of(StepKind::Request, FaultKind::Clock, detail, hint));
        }
        let port = self.asked.as_ref().and_then(|e| e.port);
        let established =
            Established { connection, endpoint: reply.endpoint, payload, port, addresses: reply.addresses };
        if self.held.as_ref().is_none_or(|h| h.established != established || h.suspect) && !self.closing {
            self.events.push_back(Event::Up(established.clone()));
        }
        self.path = Some(reply.path);
        if !self.closing {
            self.held = Some(Held {
                established,
                lease_end: now.mono + lease,
                refresh_at: now.mono + self.retry.jittered(lease / 3),
                reselect: false,
                suspect: false,
            });
        }
        Ok(())
    }

    /// Takes a list of endpoints that is not empty.
    fn learn(&mut self, endpoints: Vec<Endpoint>) {
        if let Some(held) = &mut self.held {
            held.reselect = !endpoints.iter().any(|e| e.name == held.established.endpoint);
        }
        self.endpoints = Some(endpoints);
    }

    /// A step failed: forgets what it proves wrong, and waits.
    fn fail(&mut self, fault: Fault, now: Now) {
        self.work = Work::Idle;
        if self.closing {
            // A peer that cannot be told forgets us when the lease ends.
            if fault.step == StepKind::Close {
                self.remembered = false;
            }
            self.fault = Some(fault);
            return self.proceed(now);
        }
        match fault.kind {
            FaultKind::NoService | FaultKind::NoMatch => self.endpoints = None,
            FaultKind::UnknownConnection => self.forget_peer_segments(),
            FaultKind::Denied | FaultKind::Busy | FaultKind::BadAnswer | FaultKind::Clock => {}
            // The gateways may have moved.
            _ => self.resolved = false,
        }
        // An endpoint list that was wrong is asked for again, watch or not.
        if self.endpoints.is_none() {
            self.watching = false;
        }
        self.work = Work::Waiting(now.mono + self.retry.next_delay());
        let forgotten = fault.kind == FaultKind::UnknownConnection;
        let unusable = self.held.as_ref().is_none_or(|h| h.suspect) || fault.ends_connection();
        // "No service" from the registry is the word of the peer; from a request it may be one endpoint only.
        let withdrawn = fault.kind == FaultKind::NoService && fault.step == StepKind::Find;
        if unusable || withdrawn {
            self.drop_held(fault);
        } else {
            self.fault = Some(fault);
        }
        if forgotten {
            if let Some(held) = &mut self.held {
                held.suspect = true;
            }
            self.ask_anew(now);
            self.proceed(now);
        }
    }

    /// The peer has forgotten us: asks again without a wait, unless that has just been done.
    fn ask_anew(&mut self, now: Now) {
        let just = self.anew.is_some_and(|t| now.mono < t + DEMAND_INTERVAL);
        if matches!(self.work, Work::InFlight(..) | Work::Done) {
            return;
        }
        if just {
            let until = now.mono + DEMAND_INTERVAL;
            self.work = match self.work {
                Work::Waiting(t) if t >= until => Work::Waiting(t),
                _ => Work::Waiting(until),
            };
        } else {
            self.anew = Some(now.mono);
            self.work = Work::Idle;
        }
    }

    /// What stands behind our segment belongs to hops that know us no more.
    fn forget_peer_segments(&mut self) {
        if let Some(path) = &mut self.path {
            path.segments.truncate(1);
        }
    }

    fn drop_held(&mut self, fault: Fault) {
        self.held = None;
        self.fault = Some(fault.clone());
        self.events.push_back(Event::Down(fault));
    }

    fn hurry(&mut self, now: Now) {
        if let Work::Waiting(until) = self.work {
            let soonest = self.started.map_or(now.mono, |t| t + DEMAND_INTERVAL).max(now.mono);
            self.work = if soonest <= now.mono { Work::Idle } else { Work::Waiting(until.min(soonest)) };
        }
    }

    fn say_good_bye(&mut self, now: Now) {
        if !self.remembered {
            self.work = Work::Done;
            self.events.push_back(Event::Closed);
            return;
        }
        let attempt = self.start(StepKind::Close, now);
        let path = self.own_path(now.wall + self.settings.lease);
        let endpoint = self.asked.as_ref().map(|e| e.name.clone()).unwrap_or_default();
        let service = self.settings.service.clone();
        let id = self.settings.id;
        self.transmit.push_back(Step::Close(attempt, OutboundClose { id, service, endpoint, path }));
    }

    fn fault_of(&self, step: StepKind, kind: FaultKind, detail: String, hint: &str) -> Fault {
        let peer = self.settings.service.domain().clone();
        Fault { step, peer, kind, detail, hint: hint.to_owned() }
    }

    fn no_service(&self) -> Fault {
        let service = &self.settings.service;
        let detail = format!("`{}` has no endpoint in {}", service.target(), service.domain());
        let hint = format!(
            "`carrick services @{}` lists what there is; check the spelling and the peer's `exports:`",
            service.domain()
        );
        self.fault_of(StepKind::Find, FaultKind::NoService, detail, &hint)
    }

    fn no_match(&self) -> Fault {
        let offered: Vec<&str> =
            self.endpoints.iter().flatten().filter_map(|e| e.payload).map(Payload::as_str).collect();
        let wanted = self.settings.payload.map_or("TCP or UDP", Payload::as_str);
        let detail = format!("the import carries {wanted}, the endpoints offer {}", offered.join(", "));
        let hint = "make the import's `listen:` of the service's kind: `tcp://…` or `udp://…`";
        self.fault_of(StepKind::Find, FaultKind::NoMatch, detail, hint)
    }

    fn lease_ended(&self) -> Fault {
        let detail = match &self.fault {
            Some(last) => format!("it could not be renewed: {last}"),
            None => "it could not be renewed in time".to_owned(),
        };
        let hint = self.fault.as_ref().map_or("look whether the peer is reachable", |f| f.hint.as_str());
        self.fault_of(StepKind::Keep, FaultKind::LeaseEnded, detail, hint)
    }
}

#[cfg(test)]
mod tests;
