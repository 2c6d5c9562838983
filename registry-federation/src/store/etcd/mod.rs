//! The store of a domain with several replicas: etcd, 3.4 or later.
//!
//! etcd agrees on every commit by a quorum of its members, so what is acknowledged survives the loss of a minority of them
//! and of any replica of Carrick. Replicas share nothing else: each follows the same keys and writes to them.
//!
//! | module | is for |
//! |---|---|
//! | `settings` | where etcd is |
//! | `members` | which member is called; TLS by `tls`, reasons of failures by `cause` |
//! | `keys` | which key is for what |
//! | `leases` | records that lapse although every replica is dead |
//! | `batch` | commits as transactions, made once although answers get lost |
//! | `writer` | the task that makes batches |
//! | `follow` | a full state and every change after it |
//! | `probe` | what an operator asks: can the members be used |

mod batch;
mod cause;
mod fault;
mod follow;
mod keys;
mod leases;
mod members;
mod probe;
mod settings;
mod tls;
mod wire;
mod writer;

use std::{sync::Arc, time::Instant};

use carrick_runtime::Tasks;
use futures::stream::{self, BoxStream, StreamExt as _};
use tokio::sync::{mpsc, oneshot};

pub use self::{
    fault::EtcdFault,
    members::MemberHealth,
    probe::{MemberFacts, probe},
    settings::{EtcdSettings, EtcdSettingsFault, MAX_ENDPOINTS},
    tls::{TlsFault, TlsFiles},
};
use self::{
    follow::Follower,
    keys::Keyspace,
    members::Members,
    writer::{QUEUE, Waiting, Writer},
};
use super::{Change, Store, StoreError, StoreEvent, check_shape};

/// Registrations in etcd. Clones are the same store.
#[derive(Clone)]
pub struct EtcdStore {
    name: Arc<str>,
    members: Members,
    keyspace: Keyspace,
    queue: mpsc::Sender<Waiting>,
    tasks: Tasks,
}

impl EtcdStore {
    /// A store of these settings. Nothing is dialled yet, so etcd may come up later. It is closed when `tasks` is told to
    /// stop.
    ///
    /// # Errors
    /// The settings contradict themselves.
    pub fn new(settings: &EtcdSettings, tasks: &Tasks) -> Result<Self, EtcdSettingsFault> {
        let members = Members::new(settings)?;
        let keyspace = Keyspace::new(&settings.prefix, &settings.domain);
        let name: Arc<str> = format!("etcd at {}", settings.endpoints.join(", ")).into();
        let (queue, waiting) = mpsc::channel(QUEUE);
        let writer = Writer::new(members.clone(), keyspace.clone(), name.clone());
        let _writes = tasks.spawn("etcd writer", writer.run(waiting, tasks.clone()));
        Ok(Self { name, members, keyspace, queue, tasks: tasks.clone() })
    }

    /// What is known of each member, from the calls so far.
    pub fn health(&self) -> Vec<MemberHealth> {
        self.members.health()
    }

    fn closed(&self) -> StoreError {
        StoreError::Closed { store: self.name.to_string() }
    }
}

#[tonic::async_trait]
impl Store for EtcdStore {
    fn name(&self) -> String {
        self.name.to_string()
    }

    fn is_shared(&self) -> bool {
        true
    }

    async fn commit(&self, changes: Vec<Change>) -> Result<u64, StoreError> {
        check_shape(&changes)?;
        let octets = batch::octets(&changes);
        if octets > batch::MAX_OCTETS {
            return Err(StoreError::TooLarge { octets, most: batch::MAX_OCTETS });
        }
        if self.tasks.is_stopping() {
            return Err(self.closed());
        }
        let (done, made) = oneshot::channel();
        let waiting = Waiting { changes, asked: Instant::now(), done };
        self.queue.send(waiting).await.map_err(|_| self.closed())?;
        made.await.unwrap_or_else(|_| Err(self.closed()))
    }

    fn follow(&self) -> BoxStream<'static, StoreEvent> {
        let follower = Follower::new(self.members.clone(), self.keyspace.clone(), self.tasks.clone());
        stream::unfold(follower, |mut follower| async move { Some((follower.next().await?, follower)) })
            .boxed()
    }
}
