//! The connections that pass through: the table of the core, its clock, and the calls that it wants made.
//!
//! ```text
//!   server ──▶ Transits ──▶ table (core: Transit) ──▶ select: registry, other registries
//!                 ▲                │        └──────▶ hops: Request, Close
//!                 │                ▼
//!        watch: monitors of hops   monitor: what watchers of this process are told
//! ```
//!
//! | module | room |
//! |---|---|
//! | `select` | which endpoints a request may go to, in which order |
//! | `remote` | what other domains' registries said a moment ago |
//! | `hops` | calls to the next hop |
//! | `watch` | what the next hops tell |
//! | `memory` | what is held again after a restart |
//! | `file` | where that is kept |

mod file;
pub(crate) mod hops;
mod memory;
mod remote;
mod select;
mod watch;

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Weak},
    time::{Duration, Instant, SystemTime},
};

use carrick_identity::{
    Caller, Identity, TrustStore,
    token::{Presented, PresentedError},
};
use carrick_model::cause::in_one_line;
use carrick_proto::{connection::Connection, networkservice::NetworkServiceRequest};
use carrick_proxy_core::{
    Now,
    transit::{
        Carried, EndReason, Hop, HopFault, HopFaultKind, News, Step, StepId, Ticket, Transit,
        TransitConnection, TransitEvent, TransitFault, TransitRefusal, TransitRequest, address::AddressMap,
    },
};
use carrick_runtime::Tasks;
use carrick_telemetry::Metrics;
use futures::StreamExt;
use parking_lot::Mutex;
use serde::Serialize;
use tokio::sync::{Notify, oneshot};
use tonic::{Code, Status};

pub use self::{
    file::{ConnectionsFile, FileFault},
    select::SelectSettings,
};
use self::{
    hops::Hops,
    memory::Memory,
    select::Selector,
    watch::{HopWatches, Told},
};
use crate::{
    catalogue::{Beyond, Catalogue, ServiceChange},
    exports::now,
    monitor::Monitors,
    peers::Peers,
    tokens::{AdmitError, OwnTokens},
    wire::{self, WireFault},
};

pub use carrick_proxy_core::transit::TransitSettings;

/// A caller that does not say how long it waits gets this: NSM's standard client waits 15 s.
pub const REQUEST_DEADLINE: Duration = Duration::from_secs(15);
/// How long a hop may take to hear of a close.
const CLOSE_DEADLINE: Duration = Duration::from_secs(5);
/// A timer that sleeps no longer than this sees a host that was suspended, or whose table was empty.
const LOOK: Duration = Duration::from_secs(30);

/// What the connections that pass through are made of.
pub struct TransitParts {
    /// Our place in the path, and how much we hold.
    pub settings: TransitSettings,
    /// Whose endpoints are chosen, and how.
    pub select: SelectSettings,
    /// The own registry.
    pub catalogue: Arc<dyn Catalogue>,
    /// What is asked for the endpoints of other domains; `None` for their own registries.
    pub beyond: Option<Arc<dyn Beyond>>,
    /// Other domains.
    pub peers: Peers,
    /// Who we are.
    pub identity: Identity,
    /// Whom we trust.
    pub trust: TrustStore,
    /// Who watches.
    pub monitors: Monitors,
    /// Where connections are kept over a restart; without it their clients bring them back.
    pub file: Option<ConnectionsFile>,
    /// What is counted.
    pub metrics: Metrics,
}

/// The connections that pass through. Clones share them.
#[derive(Clone)]
pub struct Transits {
    inner: Arc<Inner>,
}

struct Inner {
    tokens: OwnTokens,
    state: Mutex<State>,
    selector: Selector,
    hops: Hops,
    watches: HopWatches,
    monitors: Monitors,
    memory: Option<Memory>,
    tasks: Tasks,
    changed: Notify,
    metrics: Metrics,
}

struct State {
    table: Transit,
    answers: HashMap<Ticket, oneshot::Sender<Answer>>,
}

enum Answer {
    Granted(Box<Carried>),
    Failed(TransitFault),
    Closed(Result<(), HopFault>),
}

/// A connection that passes through, for people.
#[derive(Debug, Clone, Serialize)]
pub struct TransitStatus {
    /// Our id.
    pub id: String,
    /// Whose it is.
    pub owner: String,
    /// The service, as its owner wrote it.
    pub service: String,
    /// The endpoint.
    pub endpoint: String,
    /// Who is next on the way.
    pub next: String,
    /// Whether the next hop says that it is down, or does not say anything.
    pub down: bool,
    /// Since when.
    pub since: SystemTime,
    /// When it ends if it is not refreshed.
    pub lease_end: SystemTime,
}

/// Why a call was not done.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TransitError {
    #[error(transparent)]
    Wire(#[from] WireFault),
    #[error(transparent)]
    Tokens(#[from] AdmitError),
    #[error(transparent)]
    Refused(#[from] TransitRefusal),
    #[error(transparent)]
    Failed(#[from] TransitFault),
    #[error(transparent)]
    Hop(#[from] HopFault),
    #[error("this process is stopping")]
    Stopping,
}

impl Transits {
    /// A table with the connections that were kept. Leases, trust, services, the monitors of hops and the file are looked after by
    /// tasks of `tasks`.
    pub fn new(parts: TransitParts, tasks: &Tasks) -> Self {
        let TransitParts {
            settings,
            select,
            catalogue,
            beyond,
            peers,
            identity,
            trust,
            monitors,
            file,
            metrics,
        } = parts;
        let hops = Hops::new(identity.clone(), trust.clone(), peers.clone(), tasks);
        let watches = HopWatches::new(settings.own_name.clone(), hops.clone(), tasks);
        let selector = Selector::new(select, Arc::clone(&catalogue), beyond, peers);
        let state = Mutex::new(State { table: Transit::new(settings), answers: HashMap::new() });
        let transits = Self {
            inner: Arc::new(Inner {
                tokens: OwnTokens::new(identity),
                state,
                selector,
                hops,
                watches,
                monitors,
                memory: file.map(Memory::new),
                tasks: tasks.clone(),
                changed: Notify::new(),
                metrics,
            }),
        };
        transits.restore(&trust);
        tasks.spawn("connections of transit", transits.clone().keep(tasks.clone()));
        tasks.spawn("leases of transit", transits.clone().expire(tasks.clone()));
        tasks.spawn("trust of transit", transits.clone().follow_trust(trust, tasks.clone()));
        tasks.spawn("services of transit", transits.clone().follow_services(catalogue, tasks.clone()));
        transits
    }

    /// Inner addresses of tunnels, and what other domains call them.
    pub fn set_addresses(&self, map: BTreeMap<String, String>) {
        self.inner.state.lock().table.set_addresses(AddressMap::new(map));
    }

    /// Labels that every request through here gets: NSM's cluster information.
    pub fn set_cluster_labels(&self, labels: BTreeMap<String, String>) {
        self.inner.state.lock().table.set_cluster_labels(labels);
    }

    /// Urls that lead to this process, and are never called from it.
    pub fn set_own_urls(&self, urls: &[String]) {
        self.inner.selector.set_own_urls(urls);
    }

    /// All connections, by service and owner.
    pub fn connections(&self) -> Vec<TransitStatus> {
        let now = now();
        let mut all: Vec<TransitStatus> =
            self.inner.state.lock().table.connections().map(|c| status_of(c, now)).collect();
        all.sort_by(|a, b| (&a.service, &a.owner, &a.id).cmp(&(&b.service, &b.owner, &b.id)));
        all
    }

    /// Whether a request is a matter of this table: it holds the connection, or the names lead elsewhere.
    pub(crate) fn takes(&self, caller: &Caller, connection: &Connection) -> bool {
        let names = (&connection.network_service, &connection.network_service_endpoint_name);
        self.knows(caller, connection) || self.inner.selector.concerns(caller.id(), names.0, names.1)
    }

    /// Whether the table holds the connection.
    pub(crate) fn knows(&self, caller: &Caller, connection: &Connection) -> bool {
        let path = wire::path_of(connection);
        path.is_ok_and(|path| self.inner.state.lock().table.knows(caller.id(), &path))
    }

    /// Makes or refreshes a connection that goes on to another hop.
    pub(crate) async fn request(
        &self,
        caller: &Caller,
        presented: Result<Presented, PresentedError>,
        request: NetworkServiceRequest,
        deadline: Instant,
    ) -> Result<Connection, TransitError> {
        let mut connection = request.connection.ok_or(WireFault::NoConnection)?;
        let mut path = wire::path_of(&connection)?;
        let own = self.inner.tokens.admit(caller, presented, &mut path, SystemTime::now())?;
        connection.path = None;
        let request = TransitRequest {
            carried: Carried { connection, path },
            preferences: request.mechanism_preferences,
            unknown_fields: request.unknown_fields,
            own_token: (own.jwt, own.expires),
            deadline,
        };
        let fresh = carrick_model::ConnectionId::random().to_string();
        let answer = self.ask(|table, now| table.handle_request(caller.id(), request, &fresh, now))?;
        match answer.await {
            Ok(Answer::Granted(carried)) => Ok(wire::message(*carried)),
            Ok(Answer::Failed(fault)) => Err(fault.into()),
            Ok(Answer::Closed(_)) | Err(_) => Err(TransitError::Stopping),
        }
    }

    /// Closes a connection; one that is not known is closed already.
    pub(crate) async fn close(
        &self,
        caller: &Caller,
        presented: Result<Presented, PresentedError>,
        mut connection: Connection,
    ) -> Result<(), TransitError> {
        let mut path = wire::path_of(&connection)?;
        self.inner.tokens.admit(caller, presented, &mut path, SystemTime::now())?;
        connection.path = None;
        let carried = Carried { connection, path };
        let answer = self.ask(|table, now| table.handle_close(caller.id(), carried, now))?;
        match answer.await {
            Ok(Answer::Closed(result)) => Ok(result?),
            Ok(_) | Err(_) => Err(TransitError::Stopping),
        }
    }

    /// Puts a call to the table; the answer comes when its turn has come.
    fn ask(
        &self,
        call: impl FnOnce(&mut Transit, Now) -> Result<Ticket, TransitRefusal>,
    ) -> Result<oneshot::Receiver<Answer>, TransitRefusal> {
        let (sender, receiver) = oneshot::channel();
        self.change(|state, now| {
            let ticket = call(&mut state.table, now)?;
            state.answers.insert(ticket, sender);
            Ok(receiver)
        })
    }

    /// Changes the table, tells what came of it, and begins what it wants done.
    fn change<T>(&self, f: impl FnOnce(&mut State, Now) -> T) -> T {
        let inner = &*self.inner;
        let mut state = inner.state.lock();
        let before = state.table.poll_timeout();
        let result = f(&mut state, now());
        while let Some(event) = state.table.poll_event() {
            self.tell(&mut state.answers, event);
        }
        let steps: Vec<Step> = std::iter::from_fn(|| state.table.poll_transmit()).collect();
        inner
            .metrics
            .connections_active
            .of("transit")
            .set(i64::try_from(state.table.len()).unwrap_or(i64::MAX));
        let earlier = state.table.poll_timeout().is_some_and(|at| before.is_none_or(|b| at < b));
        drop(state);
        for step in steps {
            self.begin(step);
        }
        if earlier {
            inner.changed.notify_one();
        }
        result
    }

    /// Under the lock of the table, so that watchers hear of things in the order in which they happened.
    fn tell(&self, answers: &mut HashMap<Ticket, oneshot::Sender<Answer>>, event: TransitEvent) {
        let mut answer = |ticket, answer| {
            if let Some(waiting) = answers.remove(&ticket) {
                // The caller may have gone; what it asked for is done all the same.
                let _gone = waiting.send(answer);
            }
        };
        match event {
            TransitEvent::Granted(ticket, carried) => answer(ticket, Answer::Granted(carried)),
            TransitEvent::Failed(ticket, fault) => answer(ticket, Answer::Failed(fault)),
            TransitEvent::Closed(ticket, result) => answer(ticket, Answer::Closed(result)),
            TransitEvent::Published { id, owner, carried } => {
                self.mark(&id);
                tracing::debug!(connection = id, %owner, state = ?carried.connection.state(), "connection published");
                self.inner.monitors.publish(owner.trust_domain(), wire::message(*carried));
            }
            TransitEvent::Gone { id, why } => {
                self.mark(&id);
                tracing::info!(connection = id, %why, "connection through here ended");
                self.inner.monitors.remove(&id);
            }
            TransitEvent::HeldAt { id, hop } => {
                self.inner.watches.held_at(&id, hop, &self.told());
            }
            TransitEvent::Tried { known_as, verdict } => self.inner.selector.tried(&known_as, verdict),
        }
    }

    /// Who hears the monitors of hops. They must not keep the table alive.
    fn told(&self) -> Told {
        let inner: Weak<Inner> = Arc::downgrade(&self.inner);
        Arc::new(move |id: &str, hop: &Hop, news: News| {
            if let Some(inner) = inner.upgrade() {
                Self { inner }.change(|state, _| state.table.handle_news(id, hop, news));
            }
        })
    }

    fn begin(&self, step: Step) {
        let this = self.clone();
        let _runs = match step {
            Step::Select(step, query) => self.inner.tasks.spawn("transit select", async move {
                let outstanding = Outstanding::new(&this, step);
                let found = this.inner.selector.candidates(&query).await;
                outstanding.done(|table, now| table.handle_selected(step, found, now));
            }),
            Step::Request(step, request) => self.inner.tasks.spawn("transit request", async move {
                let outstanding = Outstanding::new(&this, step);
                let message = NetworkServiceRequest {
                    connection: Some(wire::message(request.carried)),
                    mechanism_preferences: request.preferences,
                    unknown_fields: request.unknown_fields,
                };
                let answer = this.inner.hops.request(&request.hop, message, request.deadline).await;
                let answer = answer.and_then(|mut connection| {
                    let path = wire::path_of(&connection).map_err(|e| bad_answer(&request.hop, e))?;
                    connection.path = None;
                    Ok(Carried { connection, path })
                });
                outstanding.done(|table, now| match answer {
                    Ok(carried) => table.handle_reply(step, carried, now),
                    Err(fault) => table.handle_failure(step, fault, now),
                });
            }),
            Step::Close(step, close) => self.inner.tasks.spawn("transit close", async move {
                let outstanding = Outstanding::new(&this, step);
                let deadline = Instant::now() + CLOSE_DEADLINE;
                let answer = this.inner.hops.close(&close.hop, wire::message(close.carried), deadline).await;
                outstanding.done(|table, now| match answer {
                    Ok(()) => table.handle_closed(step, now),
                    Err(fault) => table.handle_failure(step, fault, now),
                });
            }),
        };
    }

    /// Ends leases when they are over, and tells hops that may remember.
    async fn expire(self, tasks: Tasks) {
        let stopping = tasks.stopping();
        tokio::pin!(stopping);
        loop {
            let latest = Instant::now() + LOOK;
            let next = self.inner.state.lock().table.poll_timeout().map_or(latest, |at| at.min(latest));
            tokio::select! {
                () = &mut stopping => return,
                () = self.inner.changed.notified() => {}
                () = tokio::time::sleep_until(next.into()) => {
                    self.change(|state, now| state.table.handle_timeout(now));
                }
            }
        }
    }

    /// Ends what a trust domain holds when it is trusted no more.
    async fn follow_trust(self, trust: TrustStore, tasks: Tasks) {
        let mut changed = trust.changed();
        let mut before = trust.trust_domains();
        let stopping = tasks.stopping();
        tokio::pin!(stopping);
        loop {
            tokio::select! {
                () = &mut stopping => return,
                result = changed.changed() => if result.is_err() { return },
            }
            let after = trust.trust_domains();
            for gone in before.iter().filter(|td| !after.contains(td)) {
                self.change(|state, now| state.table.handle_trust_removed(gone, now));
            }
            before = after;
        }
    }

    /// Ends connections whose service does not pick their endpoint any more: their clients ask anew and are led elsewhere.
    async fn follow_services(self, catalogue: Arc<dyn Catalogue>, tasks: Tasks) {
        let mut changes = catalogue.service_changes();
        let stopping = tasks.stopping();
        tokio::pin!(stopping);
        loop {
            let change = tokio::select! {
                () = &mut stopping => return,
                change = changes.next() => match change {
                    Some(change) => change,
                    None => return,
                },
            };
            match change {
                ServiceChange::Now(service) => {
                    self.check(|name| (name == service.name).then(|| service.clone()));
                }
                ServiceChange::Resynced => self.check(|name| catalogue.service(name, None)),
                // As long as nobody says anything else, what there is may stay.
                ServiceChange::Gone(_) => {}
            }
        }
    }

    /// Looks again at all connections within the own domain whose service `of` gives.
    fn check(&self, of: impl Fn(&str) -> Option<carrick_proto::registry::NetworkService>) {
        let held: Vec<TransitConnection> = self.inner.state.lock().table.connections().collect();
        for connection in held {
            let Some(service) = of(&connection.sent_service) else { continue };
            if !self.inner.selector.still_picks(&service, &connection.endpoint, &connection.labels) {
                tracing::info!(
                    connection = connection.id,
                    service = service.name,
                    endpoint = connection.endpoint,
                    "the service picks other endpoints now"
                );
                self.change(|state, now| state.table.handle_ended(&connection.id, EndReason::Unmatched, now));
            }
        }
    }
}

/// A step that has begun. Should its task end without an answer, the table has one all the same.
struct Outstanding {
    transits: Transits,
    step: Option<StepId>,
}

impl Outstanding {
    fn new(transits: &Transits, step: StepId) -> Self {
        Self { transits: transits.clone(), step: Some(step) }
    }

    fn done(mut self, tell: impl FnOnce(&mut Transit, Now)) {
        self.step = None;
        self.transits.change(|state, now| tell(&mut state.table, now));
    }
}

impl Drop for Outstanding {
    fn drop(&mut self) {
        let Some(step) = self.step else { return };
        let message = "the call was given up".to_owned();
        let fault = HopFault { kind: HopFaultKind::Unknown, code: Code::Internal.into(), message };
        self.transits.change(|state, now| state.table.handle_failure(step, fault, now));
    }
}

fn bad_answer(hop: &Hop, fault: WireFault) -> HopFault {
    let message = format!("{hop} gave an answer that cannot be read: {fault}");
    HopFault { kind: HopFaultKind::Unknown, code: Code::Internal.into(), message }
}

fn status_of(c: TransitConnection, now: Now) -> TransitStatus {
    TransitStatus {
        id: c.id,
        owner: c.owner.to_string(),
        service: c.service,
        endpoint: c.endpoint,
        next: c.hop.to_string(),
        down: c.down,
        since: c.since,
        lease_end: now.wall_of(c.lease_end),
    }
}

impl TransitError {
    /// A word for the metric; a closed set.
    pub(crate) fn outcome(&self) -> &'static str {
        match self {
            Self::Wire(_) | Self::Tokens(AdmitError::Path(_)) => "malformed",
            Self::Tokens(AdmitError::Denied(_)) => "denied",
            Self::Tokens(AdmitError::Own(_)) | Self::Stopping => "internal",
            Self::Refused(r) => match r {
                TransitRefusal::NotYours(_) => "denied",
                TransitRefusal::PeerLimit(..) | TransitRefusal::TotalLimit(_) | TransitRefusal::Busy(_) => {
                    "limit"
                }
                _ => "malformed",
            },
            Self::Failed(TransitFault::NoCandidate { .. }) => "unknown",
            Self::Failed(_) | Self::Hop(_) => "failed",
        }
    }

    pub(crate) fn status(&self) -> Status {
        let code = match self {
            Self::Wire(_) | Self::Tokens(AdmitError::Path(_)) => Code::InvalidArgument,
            Self::Tokens(AdmitError::Denied(_)) => Code::PermissionDenied,
            Self::Tokens(AdmitError::Own(_)) => Code::Internal,
            Self::Stopping => Code::Unavailable,
            Self::Refused(r) => match r {
                TransitRefusal::NotYours(_) => Code::PermissionDenied,
                TransitRefusal::PeerLimit(..) | TransitRefusal::TotalLimit(_) => Code::ResourceExhausted,
                TransitRefusal::Busy(_) => Code::Aborted,
                _ => Code::InvalidArgument,
            },
            Self::Failed(fault) => match fault {
                TransitFault::Select(fault) => Code::from(fault.code),
                TransitFault::NoCandidate { .. } => Code::NotFound,
                TransitFault::Late => Code::DeadlineExceeded,
                TransitFault::Hops(faults) => {
                    faults.last().map_or(Code::Unavailable, |(_, f)| Code::from(f.code))
                }
            },
            Self::Hop(fault) => Code::from(fault.code),
        };
        Status::new(code, in_one_line(self))
    }
}
