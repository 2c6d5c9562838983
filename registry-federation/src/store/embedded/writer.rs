//! The one writer of the file.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use redb::Database;
use tokio::sync::{broadcast, mpsc, oneshot};

use super::{
    QUEUE,
    file::{self, File, Outcome},
};
use crate::store::{Change, StoreError};

/// A commit that waits.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) changes: Vec<Change>,
    pub(super) answer: oneshot::Sender<Result<u64, StoreError>>,
}

/// What followers are told.
#[derive(Debug, Clone)]
pub(super) enum News {
    /// A commit is durable.
    Committed {
        /// Its revision.
        revision: u64,
        /// What it changed.
        changes: Arc<[Change]>,
    },
    /// The file may hold what was not told: read it again.
    Unsure(Arc<str>),
}

/// What a transaction came to before it was made durable: each job's revision or refusal, in their order.
type Verdicts = Vec<Result<u64, StoreError>>;

/// After a failure commits are refused for this long without another attempt: each may read the file back first.
const REST: Duration = Duration::from_secs(1);

/// Takes commits from the queue and writes them, all that wait in one transaction.
pub(super) struct Writer {
    file: Arc<File>,
    news: broadcast::Sender<News>,
    /// The revision of the file; `None` when the file has to be asked.
    revision: Option<u64>,
    /// Whether the file may hold what followers were not told.
    unsure: bool,
    failed: Option<(Instant, StoreError)>,
}

impl Writer {
    pub(super) fn new(file: Arc<File>, news: broadcast::Sender<News>) -> Self {
        Self { file, news, revision: None, unsure: false, failed: None }
    }

    /// Runs until the queue is closed and empty.
    pub(super) fn run(mut self, mut queue: mpsc::Receiver<Job>) {
        let mut batch = Vec::new();
        while queue.blocking_recv_many(&mut batch, QUEUE) > 0 {
            self.write(std::mem::take(&mut batch));
        }
    }

    fn write(&mut self, batch: Vec<Job>) {
        let attempt = match &self.failed {
            Some((at, fault)) if at.elapsed() < REST => Err(fault.clone()),
            _ => self.attempt(&batch).inspect_err(|fault| {
                tracing::warn!(error = %fault, hint = fault.hint(), "registrations are not stored");
            }),
        };
        match attempt {
            Ok(verdicts) => {
                self.failed = None;
                for (job, verdict) in batch.into_iter().zip(verdicts) {
                    self.conclude(job, verdict);
                }
            }
            Err(fault) => {
                for job in batch {
                    let _gone = job.answer.send(Err(fault.clone()));
                }
            }
        }
    }

    /// Followers hear of a commit before its writer does.
    fn conclude(&self, job: Job, verdict: Result<u64, StoreError>) {
        if let Ok(revision) = verdict {
            let _nobody = self.news.send(News::Committed { revision, changes: job.changes.into() });
        }
        let _gone = job.answer.send(verdict);
    }

    /// One transaction. An error means for all of the batch that nothing was changed, or, if it says so, that this is
    /// not known.
    fn attempt(&mut self, batch: &[Job]) -> Result<Verdicts, StoreError> {
        let database = self.file.database()?;
        let before = self.revision(&database)?;
        let Failure { fault, verdicts, after } = match transact(&database, batch, before) {
            Ok((verdicts, after)) => {
                self.revision = Some(after);
                return Ok(verdicts);
            }
            Err(failure) => *failure,
        };
        self.revision = None;
        // Before it was to be made durable nothing can be in the file.
        let fault = match (self.file.failed(database, &fault, after.unwrap_or(u64::MAX)), after) {
            (Outcome::Made, _) => return Ok(verdicts),
            (Outcome::Unknown(fault), Some(_)) => {
                self.unsure = true;
                self.failed = Some((Instant::now(), fault.clone()));
                let (store, reason) = (self.file.name().into(), fault.to_string());
                return Err(StoreError::Uncertain { store, reason });
            }
            (Outcome::NotMade(fault) | Outcome::Unknown(fault), _) => fault,
        };
        self.failed = Some((Instant::now(), fault.clone()));
        Err(fault)
    }

    /// The revision to go on from.
    fn revision(&mut self, database: &Database) -> Result<u64, StoreError> {
        if let Some(revision) = self.revision {
            return Ok(revision);
        }
        let revision = file::revision_of(database).map_err(|fault| self.file.fault(&fault))?;
        self.revision = Some(revision);
        if std::mem::take(&mut self.unsure) {
            let _nobody =
                self.news.send(News::Unsure(format!("{} had failed and is back", self.file.name()).into()));
        }
        Ok(revision)
    }
}

/// A transaction that failed.
struct Failure {
    fault: redb::Error,
    verdicts: Verdicts,
    /// The revision it would have led to, if it failed while it was made durable.
    after: Option<u64>,
}

/// Writes what can be written of `batch` on top of revision `before`, and the revision that led to.
fn transact(database: &Database, batch: &[Job], before: u64) -> Result<(Verdicts, u64), Box<Failure>> {
    let early = |fault| Box::new(Failure { fault, verdicts: Vec::new(), after: None });
    let transaction = database.begin_write().map_err(|fault| early(fault.into()))?;
    let (mut verdicts, mut revision) = (Vec::with_capacity(batch.len()), before);
    for job in batch {
        let applied = file::apply(&transaction, &job.changes, revision + 1).map_err(early)?;
        if applied.is_ok() {
            revision += 1;
        }
        verdicts.push(applied.map(|()| revision));
    }
    if revision == before {
        return Ok((verdicts, before));
    }
    file::set_revision(&transaction, revision).map_err(early)?;
    match transaction.commit() {
        Ok(()) => Ok((verdicts, revision)),
        Err(fault) => Err(Box::new(Failure { fault: fault.into(), verdicts, after: Some(revision) })),
    }
}
