//! What is counted and logged of every flow.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Instant,
};

use carrick_gateway_core::DropReason;
use carrick_model::{ConnectionId, Mechanism, ServiceName, SpiffeId};
use carrick_telemetry::{
    ActiveGuard, Counter, Counters, Direction, Gauge, Histogram, Metrics, access_log::FlowRecord,
};

/// How a flow ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// Both sides finished.
    Closed,
    /// Something else, and what.
    Dropped(DropReason),
}

/// Counts flows against the limit of the gateway.
#[derive(Debug, Default)]
pub(crate) struct FlowLimit {
    open: AtomicUsize,
    most: usize,
}

/// One place under the limit.
#[derive(Debug)]
pub(crate) struct FlowPermit(Arc<FlowLimit>);

impl FlowLimit {
    pub(crate) fn new(most: usize) -> Arc<Self> {
        Arc::new(Self { open: AtomicUsize::new(0), most })
    }

    /// A place, unless all are taken.
    pub(crate) fn take(self: &Arc<Self>) -> Option<FlowPermit> {
        let more = |n: usize| (n < self.most).then_some(n + 1);
        self.open.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).ok()?;
        Some(FlowPermit(self.clone()))
    }

    /// Flows open now.
    pub(crate) fn open(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }
}

impl Drop for FlowPermit {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}

/// How many flows something has. Clones count together.
#[derive(Debug, Clone, Default)]
pub(crate) struct FlowCount(Arc<AtomicUsize>);

/// Counted until dropped.
#[derive(Debug)]
pub(crate) struct Counted(FlowCount);

impl FlowCount {
    pub(crate) fn one_more(&self) -> Counted {
        self.0.fetch_add(1, Ordering::Relaxed);
        Counted(self.clone())
    }

    pub(crate) fn open(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The series that count flows of one direction, found once: finding one costs a lock.
#[derive(Debug)]
pub(crate) struct FlowSeries {
    direction: Direction,
    opened: Counter,
    active: Gauge,
    to_service: Counter,
    to_client: Counter,
    open_seconds: Histogram,
    refused: Counters,
}

impl FlowSeries {
    pub(crate) fn new(direction: Direction, metrics: &Metrics) -> Arc<Self> {
        let word = direction.as_str();
        Arc::new(Self {
            direction,
            opened: metrics.flows_opened.of(word),
            active: metrics.flows_active.of(word),
            to_service: metrics.flow_bytes.of2(word, "to_service"),
            to_client: metrics.flow_bytes.of2(word, "to_client"),
            open_seconds: metrics.flow_open_seconds.of(word),
            refused: metrics.flows_refused.clone(),
        })
    }

    /// Counts a flow that was refused, by the word of the reason.
    pub(crate) fn refused(&self, reason: &'static str) {
        self.refused.of2(self.direction.as_str(), reason).inc();
    }
}

/// What is known of a flow while it runs. Counted when made; counted, and logged, when [ended](Self::end).
#[derive(Debug)]
pub(crate) struct Flow {
    series: Arc<FlowSeries>,
    _active: ActiveGuard,
    began: Instant,
    /// The service with its domain.
    pub(crate) service: ServiceName,
    /// The connection the flow rides on, once known.
    pub(crate) connection: Option<ConnectionId>,
    /// The other gateway's identity.
    pub(crate) peer: Option<SpiffeId>,
    /// The other gateway's address.
    pub(crate) gateway: Option<SocketAddr>,
    /// Who asked.
    pub(crate) caller: Option<SpiffeId>,
    /// Client address or target.
    pub(crate) local: String,
    /// Trace id in hex.
    pub(crate) trace: String,
    /// Octets towards the service.
    pub(crate) to_service: AtomicU64,
    /// Octets towards the client.
    pub(crate) to_client: AtomicU64,
}

impl Flow {
    pub(crate) fn begin(series: &Arc<FlowSeries>, service: ServiceName, local: String) -> Self {
        series.opened.inc();
        Self {
            series: series.clone(),
            _active: ActiveGuard::new(&series.active),
            began: Instant::now(),
            service,
            connection: None,
            peer: None,
            gateway: None,
            caller: None,
            local,
            trace: String::new(),
            to_service: AtomicU64::new(0),
            to_client: AtomicU64::new(0),
        }
    }

    /// The other end answered.
    pub(crate) fn opened(&self) {
        self.series.open_seconds.observe(self.began.elapsed().as_secs_f64());
    }

    /// Counts and logs the end. `detail` says what the word of the reason cannot.
    pub(crate) fn end(self, end: End, detail: &str) {
        let (to_service, to_client) = (self.to_service.into_inner(), self.to_client.into_inner());
        self.series.to_service.inc_by(to_service);
        self.series.to_client.inc_by(to_client);
        let word = match end {
            End::Closed => "closed",
            End::Dropped(reason) => {
                self.series.refused(reason.as_str());
                reason.as_str()
            }
        };
        FlowRecord {
            direction: self.series.direction,
            service: &self.service,
            connection: self.connection,
            peer: self.peer.as_ref(),
            gateway: self.gateway,
            caller: self.caller.as_ref(),
            local: &self.local,
            mechanism: Mechanism::Quic,
            bytes_to_service: to_service,
            bytes_to_client: to_client,
            duration: self.began.elapsed(),
            end: word,
            detail,
            trace: &self.trace,
        }
        .log();
    }
}
