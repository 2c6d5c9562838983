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
//!    lost, makes no second connection. It keeps our id, also over our own restart: what was [`kept`](Transit::kept) brings it back,
//!    else the path does.
//! 3. **A failed first request leaves nothing**, a failed refresh leaves what there was, marked down.
//! 4. **A close sends what is held**, not what the caller says. To close what is not known is a success; where its path shows that it
//!    was known once, the hop that its endpoint is behind is told all the same.
//! 5. **It ends with the token** of the hop before us. Then the next hop is told.
//! 6. **Nothing is orphaned.** A next hop that did not answer, or could not be told of an end, may remember the connection: it is told
//!    until it answers or the lease is over.
//! 7. **What is not ours is left alone**: context, mechanisms, labels and the segments of others pass as they are. What does change:
//!    names ([`names`]), addresses ([`address`]), labels of the cluster, our own segment.
//!
//! The faces of the table are here, its `books`, the `turns` of one connection, and what is `kept` of it beside it.
//!
//! Call order: any input, then [`Transit::poll_event`] and [`Transit::poll_transmit`] until both are empty, then
//! [`Transit::poll_timeout`]. Each step is answered exactly once.

pub mod address;
mod books;
mod entry;
mod kept;
pub mod names;
mod turns;
mod words;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    time::{Duration, Instant},
};

use carrick_model::{SpiffeId, TrustDomain};
use carrick_proto::connection::State;

pub use self::words::{
    Candidate, Carried, EndReason, Hop, HopClose, HopFault, HopFaultKind, HopRequest, SelectQuery, Step,
    StepId, Ticket, TransitConnection, TransitEvent, TransitFault, TransitRefusal, TransitRequest,
    TransitSettings, Verdict,
};
use self::{
    address::AddressMap,
    entry::{CloseTokens, Doing, Entry, Job, Origin},
    turns::checked,
};
pub use self::{
    entry::Held,
    kept::{Kept, NotRestored},
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
/// gRPC's `INTERNAL`.
const CODE_INTERNAL: i32 = 13;

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
        let before = held.shown.clone();
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
        if held.shown != before {
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
                down: h.is_down(),
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

#[cfg(test)]
mod tests;
