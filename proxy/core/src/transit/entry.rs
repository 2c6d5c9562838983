//! One connection of the table: what is held, what is being done, what waits.

use std::{
    collections::{BTreeMap, VecDeque},
    time::{Duration, Instant, SystemTime},
};

use carrick_model::{SpiffeId, TrustDomain};
use carrick_proto::connection::{Connection, State};

use super::{
    address::Side,
    words::{Candidate, Carried, EndReason, Hop, HopFault, StepId, Ticket, TransitRequest},
};
use crate::path::Path;

/// First wait before a hop that may remember a connection is told again that it is over; doubled each time.
const FIRST_SWEEP: Duration = Duration::from_secs(1);
/// Longest such wait.
const LAST_SWEEP: Duration = Duration::from_secs(30);

/// The hop before us: what stays the same over all its requests for one connection.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Origin {
    pub(super) trust_domain: TrustDomain,
    pub(super) name: String,
    pub(super) id: String,
}

impl Origin {
    pub(super) fn of(peer: &SpiffeId, name: &str, id: &str) -> Self {
        Self { trust_domain: peer.trust_domain().clone(), name: name.to_owned(), id: id.to_owned() }
    }
}

#[derive(Debug)]
pub(super) struct Entry {
    pub(super) id: String,
    pub(super) origin: Origin,
    pub(super) owner: SpiffeId,
    pub(super) since: SystemTime,
    /// When the token of the hop before us ends.
    pub(super) lease_end: Instant,
    pub(super) held: Option<Held>,
    pub(super) running: Option<(StepId, Doing)>,
    pub(super) waiting: VecDeque<Job>,
    /// The end of the lease is among what waits.
    pub(super) ending: bool,
    /// Monitors were told of it.
    pub(super) published: bool,
    pub(super) leftovers: Vec<Leftover>,
    /// The timer that is set for this entry.
    pub(super) timer: Option<Instant>,
}

/// What the next hop granted.
#[derive(Debug, Clone, PartialEq)]
pub struct Held {
    /// Who is next on the way.
    pub hop: Hop,
    /// The service as the owner wrote it.
    pub asked_service: String,
    /// As sent on.
    pub service: String,
    /// The endpoint, as the next hop calls it.
    pub endpoint: String,
    /// It leaves the domain.
    pub leaves: bool,
    /// Under which name selection knows the endpoint.
    pub known_as: String,
    /// Labels of the client.
    pub labels: BTreeMap<String, String>,
    /// As the next hop returned it: its names, our segment the current one.
    pub carried: Carried,
    /// As our caller and our monitors see it. Its state is the connection's.
    pub shown: Carried,
}

/// A call that waits for its turn.
#[derive(Debug)]
pub(super) enum Job {
    Request(Ticket, Box<TransitRequest>),
    Close(Option<Ticket>, EndReason, Option<Box<CloseTokens>>),
    /// A close of a connection that we do not know, from before a restart.
    CloseUnknown(Ticket, Box<Carried>),
}

/// The left part of a path with the tokens of a close.
#[derive(Debug)]
pub(super) struct CloseTokens {
    pub(super) path: Path,
}

/// The step that runs.
#[derive(Debug)]
pub(super) enum Doing {
    /// Closing what is given up for another choice.
    Reselecting {
        ticket: Ticket,
        request: Box<TransitRequest>,
        held: Box<Held>,
    },
    Selecting {
        ticket: Ticket,
        request: Box<TransitRequest>,
    },
    Asking(Box<Asking>),
    Closing {
        ticket: Option<Ticket>,
        held: Box<Held>,
        why: EndReason,
    },
    /// Looking for the hop of a connection from before a restart.
    Locating {
        ticket: Ticket,
        carried: Box<Carried>,
    },
    /// Telling it.
    Forwarding {
        ticket: Ticket,
    },
    /// Telling a hop that may remember the connection that it is over.
    Sweeping(Box<Leftover>),
}

impl Doing {
    /// An outcome of another kind than the step's is none.
    pub(super) fn put_back(self, entry: &mut Entry, step: StepId) {
        entry.running = Some((step, self));
    }
}

#[derive(Debug)]
pub(super) struct Asking {
    pub(super) ticket: Ticket,
    pub(super) request: Box<TransitRequest>,
    pub(super) current: Candidate,
    pub(super) side: Side,
    pub(super) sent: Carried,
    pub(super) rest: VecDeque<Candidate>,
    pub(super) faults: Vec<(String, HopFault)>,
}

/// A hop that may remember the connection.
#[derive(Debug, Clone)]
pub(super) struct Leftover {
    pub(super) hop: Hop,
    pub(super) carried: Carried,
    pub(super) delay: Duration,
    pub(super) next: Instant,
}

impl Leftover {
    pub(super) fn new(hop: Hop, carried: Carried, now: Instant) -> Self {
        Self { hop, carried, delay: FIRST_SWEEP, next: now + FIRST_SWEEP }
    }

    /// It could not be told: later, once more.
    pub(super) fn postponed(mut self, now: Instant) -> Self {
        self.delay = (self.delay * 2).min(LAST_SWEEP);
        self.next = now + self.delay;
        self
    }
}

impl Entry {
    /// Nothing is left of it.
    pub(super) fn is_over(&self) -> bool {
        self.held.is_none() && self.running.is_none() && self.waiting.is_empty() && self.leftovers.is_empty()
    }

    /// When it has to be looked at.
    pub(super) fn next_timer(&self) -> Option<Instant> {
        let lease = (self.held.is_some() && !self.ending).then_some(self.lease_end);
        let idle = self.running.is_none();
        let sweep = self.leftovers.iter().map(|l| l.next).min().filter(|_| idle);
        lease.into_iter().chain(sweep).min()
    }

    /// The hop may remember us; it is told at a quiet moment.
    pub(super) fn suspect(&mut self, hop: &Hop, carried: Carried, now: Instant) {
        self.leftovers.retain(|l| &l.hop != hop);
        self.leftovers.push(Leftover::new(hop.clone(), carried, now));
    }
}

impl Held {
    /// What a close sends: the connection as it is held, with the tokens of the path's left part as they came with the close.
    pub(super) fn to_close(&self, tokens: Option<&CloseTokens>) -> Carried {
        let mut carried = self.carried.clone();
        if let Some(tokens) = tokens {
            for (held, given) in carried.path.segments.iter_mut().zip(&tokens.path.segments) {
                if held.name == given.name && held.id == given.id && !given.token.is_empty() {
                    held.token.clone_from(&given.token);
                    held.expires = given.expires;
                }
            }
        }
        carried
    }

    pub(super) fn set_state(&mut self, state: State) {
        self.shown.connection.set_state(state);
    }

    /// The next hop says that it is down, or does not say anything.
    pub(super) fn is_down(&self) -> bool {
        self.shown.connection.state() == State::Down
    }

    /// Whether a request is for what is held, and not for something else under the same id.
    pub(super) fn is_what(&self, asked: &Connection) -> bool {
        let endpoint = &asked.network_service_endpoint_name;
        self.asked_service == asked.network_service
            && (endpoint.is_empty() || endpoint == &self.shown.connection.network_service_endpoint_name)
    }

    /// The way the connection goes now.
    pub(super) fn candidate(&self) -> Candidate {
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

/// A connection without its path, as a close of something unknown sends it on.
pub(super) fn renamed(connection: &Connection, id: &str, candidate: &Candidate) -> Connection {
    let mut connection = connection.clone();
    id.clone_into(&mut connection.id);
    connection.network_service.clone_from(&candidate.service);
    connection.network_service_endpoint_name.clone_from(&candidate.endpoint);
    connection.path = None;
    connection
}
