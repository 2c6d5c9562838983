//! The services of other domains that this one uses: one task and one machine of the core for each.

mod group;
mod status;
mod worker;

use std::{collections::HashMap, sync::Arc};

use carrick_model::{ConnectionId, Domain, Payload, ServiceName};
pub use carrick_proxy_core::alternatives::Strategy;
use carrick_proxy_core::{Fault, FaultKind, StepKind};
use carrick_runtime::Tasks;
use carrick_telemetry::Metrics;
use parking_lot::Mutex;
use tokio::{sync::mpsc, task::JoinHandle};

pub use self::status::{FaultStatus, ImportState, ImportStatus};
use self::{
    group::Group,
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
    /// Services of other domains that are as good.
    pub others: Vec<ServiceName>,
    /// Which of them all is used.
    pub strategy: Strategy,
}

impl Import {
    /// One service of one domain.
    pub fn new(service: ServiceName, payload: Option<Payload>) -> Self {
        Self { service, payload, others: Vec::new(), strategy: Strategy::Priority }
    }
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
    members: Vec<Member>,
    /// With several members, who of them is used.
    group: Option<Group>,
    tasks: Tasks,
}

/// One service of an import.
struct Member {
    service: ServiceName,
    inputs: mpsc::Sender<Input>,
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
        let services: Vec<ServiceName> =
            [&import.service].into_iter().chain(&import.others).cloned().collect();
        if let Some(own) = services.iter().find(|s| s.domain() == &inner.domain) {
            return Err(ImportError::OwnDomain(own.clone()));
        }
        let mut running = inner.running.lock();
        if running.contains_key(&import.service) {
            return Err(ImportError::Exists(import.service));
        }
        let tasks = inner.tasks.child();
        let group = (services.len() > 1).then(|| {
            let strategy = import.strategy.clone();
            Group::new(&import.service, &services, strategy, Arc::clone(&inner.datapath))
        });
        if let Some(group) = &group {
            tasks.spawn("alternatives of an import", group.clone().run(tasks.clone()));
        }
        let member = |(index, service): (usize, ServiceName)| {
            let (inputs, inbox) = mpsc::channel(INPUTS);
            let own = Import::new(service.clone(), import.payload);
            let board = Arc::new(Board::new(&own));
            let datapath = group.as_ref().map_or_else(|| Arc::clone(&inner.datapath), |g| g.member(index));
            let worker = Worker::new(
                &inner.domain,
                own,
                inner.peers.clone(),
                datapath,
                Arc::clone(&board),
                inner.metrics.clone(),
            );
            let ended = tasks.spawn("import", worker.run(inbox, tasks.clone()));
            Member { service, inputs, board, ended }
        };
        let members = services.into_iter().enumerate().map(member).collect();
        running.insert(import.service, Running { members, group, tasks });
        Ok(())
    }

    /// Ends an import: its flows are refused from now on, and its connection is closed at the peer before this returns,
    /// if the peer answers within seconds. `false` when there is none.
    pub async fn remove(&self, service: &ServiceName) -> bool {
        let Some(running) = self.inner.running.lock().remove(service) else { return false };
        running.end().await;
        true
    }

    /// Ends all imports, as [`Imports::remove`] does.
    pub async fn close_all(&self) {
        let all: Vec<Running> = self.inner.running.lock().drain().map(|(_, r)| r).collect();
        for running in &all {
            running.tasks.stop();
        }
        for running in all {
            running.end().await;
        }
    }

    /// A flow wants this import and it is down: try now.
    pub fn demand(&self, service: &ServiceName) {
        if let Some(running) = self.inner.running.lock().get(service) {
            running.demand();
        }
    }

    /// The peer's gateway refused a flow of this import because it does not know the connection, or the data path lost it
    /// in another way. It is asked for anew.
    pub fn lost(&self, service: &ServiceName, connection: ConnectionId, why: &str) {
        let running = self.inner.running.lock();
        let Some(running) = running.get(service) else { return };
        let holder = running.group.as_ref().map_or(Some(0), |group| group.holder(connection));
        // One that no member holds any more is lost already.
        let Some(member) = holder.and_then(|index| running.members.get(index)) else { return };
        let fault = Fault {
            step: StepKind::Keep,
            peer: member.service.domain().clone(),
            kind: FaultKind::UnknownConnection,
            detail: why.to_owned(),
            hint: "the peer has probably restarted; the connection is asked for anew".to_owned(),
        };
        let _full = member.inputs.try_send(Input::Lost(fault));
    }

    /// Trust, peers or DNS settings changed: whatever is down tries now.
    pub fn retry(&self) {
        for running in self.inner.running.lock().values() {
            running.demand();
        }
    }

    /// The names of all imports, in order.
    pub fn list(&self) -> Vec<ServiceName> {
        let mut all: Vec<ServiceName> = self.inner.running.lock().keys().cloned().collect();
        all.sort();
        all
    }

    /// How each import stands, by name. One that several domains offer stands as that which is used.
    pub fn snapshot(&self) -> Vec<ImportStatus> {
        let mut all: Vec<ImportStatus> =
            self.inner.running.lock().iter().filter_map(|(name, r)| r.snapshot(name)).collect();
        all.sort_by(|a, b| a.service.cmp(&b.service));
        all
    }
}

impl Running {
    /// Tells all members to close, and waits for them.
    async fn end(self) {
        self.tasks.stop();
        for member in self.members {
            // A task that panicked has ended too.
            let _ended = member.ended.await;
        }
    }

    fn demand(&self) {
        for member in &self.members {
            // A full inbox holds a demand already.
            let _full = member.inputs.try_send(Input::Demand);
        }
    }

    fn snapshot(&self, name: &ServiceName) -> Option<ImportStatus> {
        let used = self.group.as_ref().and_then(|group| group.used().first().copied()).unwrap_or_default();
        let status = self.members.get(used)?.board.snapshot();
        let via = (&status.service != name).then(|| status.service.clone());
        Some(ImportStatus { service: name.clone(), via, ..status })
    }
}
