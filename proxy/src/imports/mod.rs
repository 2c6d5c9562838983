//! The services of other domains that this one uses: one task and one machine of the core for each.

mod status;
mod worker;

use std::{collections::HashMap, sync::Arc};

use carrick_model::{Domain, Payload, ServiceName};
use carrick_proxy_core::{Fault, FaultKind, StepKind};
use carrick_runtime::Tasks;
use carrick_telemetry::Metrics;
use parking_lot::Mutex;
use tokio::{sync::mpsc, task::JoinHandle};

pub use self::status::{FaultStatus, ImportState, ImportStatus};
use self::{
    status::Board,
    worker::{Input, Worker},
};
use crate::{datapath::DataPath, peers::Peers};

/// Inputs that wait for an import's task. They only say "now" and "lost", so the next one does when these are taken.
const INPUTS: usize = 16;

/// What to import.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Import {
    /// The service and its domain.
    pub service: ServiceName,
    /// What flows the listener takes; `None` where the service decides.
    pub payload: Option<Payload>,
}

/// What does not become an import.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ImportError {
    /// There is one already; both could not be told apart.
    #[error("`{0}` is imported already")]
    Exists(ServiceName),
    /// A gateway does not call itself over the network.
    #[error("`{0}` is a service of this domain")]
    OwnDomain(ServiceName),
}

impl ImportError {
    /// What the operator does next.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Exists(_) => "`carrick connections` shows where it listens",
            Self::OwnDomain(_) => "connect to what the export's `to:` names; imports are for other domains",
        }
    }
}

/// The imports. Clones share them.
#[derive(Clone)]
pub struct Imports {
    inner: Arc<Inner>,
}

struct Inner {
    domain: Domain,
    peers: Peers,
    datapath: Arc<dyn DataPath>,
    tasks: Tasks,
    metrics: Metrics,
    running: Mutex<HashMap<ServiceName, Running>>,
}

struct Running {
    inputs: mpsc::Sender<Input>,
    tasks: Tasks,
    board: Arc<Board>,
    ended: JoinHandle<()>,
}

impl Imports {
    /// No imports yet, for `domain`. Each gets a task of `tasks`; stopping those closes every connection at its peer.
    pub fn new(
        domain: Domain,
        peers: Peers,
        datapath: Arc<dyn DataPath>,
        tasks: Tasks,
        metrics: Metrics,
    ) -> Self {
        let running = Mutex::default();
        Self { inner: Arc::new(Inner { domain, peers, datapath, tasks, metrics, running }) }
    }

    /// Begins to connect. The data path hears of it when the connection is up, and why when it is not.
    pub fn add(&self, import: Import) -> Result<(), ImportError> {
        let inner = &*self.inner;
        if import.service.domain() == &inner.domain {
            return Err(ImportError::OwnDomain(import.service));
        }
        let mut running = inner.running.lock();
        if running.contains_key(&import.service) {
            return Err(ImportError::Exists(import.service));
        }
        let (inputs, inbox) = mpsc::channel(INPUTS);
        let tasks = inner.tasks.child();
        let board = Arc::new(Board::new(&import));
        let worker = Worker::new(
            &inner.domain,
            import.clone(),
            inner.peers.clone(),
            Arc::clone(&inner.datapath),
            Arc::clone(&board),
            inner.metrics.clone(),
        );
        let ended = tasks.spawn("import", worker.run(inbox, tasks.clone()));
        running.insert(import.service, Running { inputs, tasks, board, ended });
        Ok(())
    }

    /// Ends an import: its flows are refused from now on, and its connection is closed at the peer before this returns,
    /// if the peer answers within seconds. `false` when there is none.
    pub async fn remove(&self, service: &ServiceName) -> bool {
        let Some(running) = self.inner.running.lock().remove(service) else { return false };
        running.tasks.stop();
        // A task that panicked has ended too.
        let _ended = running.ended.await;
        true
    }

    /// Ends all imports, as [`Imports::remove`] does.
    pub async fn close_all(&self) {
        let all: Vec<Running> = self.inner.running.lock().drain().map(|(_, r)| r).collect();
        for running in &all {
            running.tasks.stop();
        }
        for running in all {
            let _ended = running.ended.await;
        }
    }

    /// A flow wants this import and it is down: try now.
    pub fn demand(&self, service: &ServiceName) {
        self.tell(service, Input::Demand);
    }

    /// The peer's gateway refused a flow of this import because it does not know the connection, or the data path lost it
    /// in another way. It is asked for anew.
    pub fn lost(&self, service: &ServiceName, why: &str) {
        let fault = Fault {
            step: StepKind::Keep,
            peer: service.domain().clone(),
            kind: FaultKind::UnknownConnection,
            detail: why.to_owned(),
            hint: "the peer has probably restarted; the connection is asked for anew".to_owned(),
        };
        self.tell(service, Input::Lost(fault));
    }

    /// Trust, peers or DNS settings changed: whatever is down tries now.
    pub fn retry(&self) {
        for running in self.inner.running.lock().values() {
            // A full inbox holds a demand already.
            let _full = running.inputs.try_send(Input::Demand);
        }
    }

    /// The names of all imports, in order.
    pub fn list(&self) -> Vec<ServiceName> {
        let mut all: Vec<ServiceName> = self.inner.running.lock().keys().cloned().collect();
        all.sort();
        all
    }

    /// How each import stands, by name.
    pub fn snapshot(&self) -> Vec<ImportStatus> {
        let mut all: Vec<ImportStatus> =
            self.inner.running.lock().values().map(|r| r.board.snapshot()).collect();
        all.sort_by(|a, b| a.service.cmp(&b.service));
        all
    }

    fn tell(&self, service: &ServiceName, input: Input) {
        if let Some(running) = self.inner.running.lock().get(service) {
            let _full = running.inputs.try_send(input);
        }
    }
}
