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
use carrick_telemetry::{ActiveGuard, Direction, Metrics, access_log::FlowRecord};

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

/// What is known of a flow while it runs. Counted when made; counted, and logged, when [ended](Self::end).
#[derive(Debug)]
pub(crate) struct Flow {
    direction: Direction,
    metrics: Metrics,
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
    pub(crate) fn begin(
        direction: Direction,
        metrics: &Metrics,
        service: ServiceName,
        local: String,
    ) -> Self {
        metrics.flows_opened.of(direction.as_str()).inc();
        Self {
            direction,
            metrics: metrics.clone(),
            _active: ActiveGuard::new(&metrics.flows_active.of(direction.as_str())),
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
        self.metrics
            .flow_open_seconds
            .of(self.direction.as_str())
            .observe(self.began.elapsed().as_secs_f64());
    }

    /// Counts and logs the end. `detail` says what the word of the reason cannot.
    pub(crate) fn end(self, end: End, detail: &str) {
        let direction = self.direction.as_str();
        let (to_service, to_client) = (self.to_service.into_inner(), self.to_client.into_inner());
        self.metrics.flow_bytes.of2(direction, "to_service").inc_by(to_service);
        self.metrics.flow_bytes.of2(direction, "to_client").inc_by(to_client);
        let word = match end {
            End::Closed => "closed",
            End::Dropped(reason) => {
                self.metrics.flows_refused.of2(direction, reason.as_str()).inc();
                reason.as_str()
            }
        };
        FlowRecord {
            direction: self.direction,
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
