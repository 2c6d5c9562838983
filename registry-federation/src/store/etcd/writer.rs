//! The task that makes commits: what waits goes into one batch, one batch is under way at a time.

use std::{
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use carrick_runtime::{Backoff, Tasks};
use tokio::{
    sync::{mpsc, oneshot},
    time::sleep,
};
use tonic::Code;
use uuid::Uuid;

use super::{
    super::{Change, StoreError},
    batch::{Answer, Batch, Commit, Frame, Outcome},
    fault::EtcdFault,
    keys::{Keyspace, Mark},
    leases::{Lease, Leases},
    members::{MAX_ANSWER, Members, led},
    wire::{KvClient, LeaseClient, LeaseGrantRequest, TxnRequest, TxnResponse},
};

/// Commits that wait for a batch; who comes later waits to get in. A batch takes some sixty.
pub(super) const QUEUE: usize = 1024;
/// How long a commit is tried. An election takes one to three seconds, and callers of Register wait for about 15.
const PATIENCE: Duration = Duration::from_secs(8);
/// How long it is tried where etcd has been away for longer than that already.
const SHORT_PATIENCE: Duration = Duration::from_secs(1);
/// For one attempt. etcd itself gives up after 7 s; a leader that is alive answers in milliseconds.
const CALL_DEADLINE: Duration = Duration::from_secs(2);
/// Between attempts, once every member has failed.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// The fence of a replica that writes nothing goes after so long; the next batch makes it anew.
const FENCE_LIFE: Duration = Duration::from_secs(86_400);

/// A commit that waits, and who waits for it.
pub(super) struct Waiting {
    pub(super) changes: Vec<Change>,
    pub(super) asked: Instant,
    pub(super) done: oneshot::Sender<Result<u64, StoreError>>,
}

/// The one who writes for this replica.
pub(super) struct Writer {
    members: Members,
    keyspace: Keyspace,
    name: Arc<str>,
    id: Uuid,
    commits: u64,
    batches: u64,
    fence_revision: i64,
    leases: Leases,
}

/// Why an attempt to make a batch failed.
struct Failed {
    fault: EtcdFault,
    /// Whether the batch itself was sent.
    sent: bool,
}

impl Writer {
    pub(super) fn new(members: Members, keyspace: Keyspace, name: Arc<str>) -> Self {
        let (id, leases) = (Uuid::new_v4(), Leases::default());
        Self { members, keyspace, name, id, commits: 0, batches: 0, fence_revision: 0, leases }
    }

    /// Makes commits until it is told to stop; then those that wait learn that the store is closed.
    pub(super) async fn run(mut self, mut queue: mpsc::Receiver<Waiting>, tasks: Tasks) {
        // What did not fit into the batch before.
        let mut kept: Option<Waiting> = None;
        loop {
            let first = match kept.take() {
                Some(waiting) => waiting,
                None => tokio::select! {
                    waiting = queue.recv() => match waiting {
                        Some(waiting) => waiting,
                        None => return,
                    },
                    () = tasks.stopping() => break,
                },
            };
            let (mut batch, mut answers, mut newest) = (Batch::default(), Vec::new(), first.asked);
            let mut next = Some(first);
            while let Some(waiting) = next {
                // It waited behind a batch that etcd did not answer.
                if waiting.asked.elapsed() >= PATIENCE {
                    let _gone = waiting.done.send(Err(self.waited_in_vain()));
                } else {
                    let commit = Commit::new(waiting.changes, Mark::new(self.id, self.commits));
                    if !batch.fits(&commit) {
                        let changes = commit.into_changes();
                        kept = Some(Waiting { changes, asked: waiting.asked, done: waiting.done });
                        break;
                    }
                    self.commits += 1;
                    newest = newest.max(waiting.asked);
                    batch.push(commit);
                    answers.push(waiting.done);
                }
                next = queue.try_recv().ok();
            }
            if answers.is_empty() {
                continue;
            }
            let results = self.make(&batch, newest).await;
            for (done, result) in answers.into_iter().zip(results) {
                // Who dropped its commit does not want to know.
                let _gone = done.send(result);
            }
        }
        queue.close();
        let left = kept.into_iter().chain(std::iter::from_fn(|| queue.try_recv().ok()));
        for waiting in left {
            let _gone = waiting.done.send(Err(StoreError::Closed { store: self.name.to_string() }));
        }
    }

    /// Tries until etcd has answered or patience ends. One result for each commit.
    async fn make(&mut self, batch: &Batch, newest: Instant) -> Vec<Result<u64, StoreError>> {
        let long_gone = self.members.away_for(Instant::now()).is_some_and(|away| away > PATIENCE);
        let until = if long_gone { Instant::now() + SHORT_PATIENCE } else { newest + PATIENCE };
        self.batches += 1;
        let mut backoff = Backoff::new(FIRST_PAUSE, LONGEST_PAUSE);
        // Whether a copy of the batch may be on its way or made.
        let mut uncertain = false;
        let mut failures = 0;
        loop {
            let fault = match self.attempt(batch).await {
                Ok(Answer::Made(revision, outcomes)) => {
                    self.fence_revision = i64::try_from(revision).unwrap_or(i64::MAX);
                    return outcomes.into_iter().map(|outcome| self.result(outcome)).collect();
                }
                Ok(Answer::MadeBefore(revision)) => {
                    self.fence_revision = revision;
                    return self.look_up(batch, revision, until).await;
                }
                Ok(Answer::Fenced(revision)) if Instant::now() < until => {
                    // Ours had lapsed, or a copy of the batch before has been made after all. No copy of this one
                    // will be.
                    (self.fence_revision, uncertain) = (revision, false);
                    continue;
                }
                Ok(Answer::Fenced(_)) => self.nonsense("somebody else writes the key of this writer"),
                Ok(Answer::Nonsense(detail)) => {
                    uncertain = true;
                    self.nonsense(detail)
                }
                Err(Failed { fault, sent }) => {
                    uncertain |= sent && fault.may_have_been_done();
                    fault
                }
            };
            if fault.refusal() == Some(Code::NotFound) {
                // A lease is gone, for example with the data of an etcd that was set up anew.
                self.leases.forget();
            } else if !fault.is_of_the_member() {
                return self.all(batch, &fault, false);
            }
            failures += 1;
            if Instant::now() >= until {
                return self.all(batch, &fault, uncertain);
            }
            if failures % self.members.len() == 0 {
                sleep(backoff.next_delay()).await;
            }
        }
    }

    async fn attempt(&mut self, batch: &Batch) -> Result<Answer, Failed> {
        let (wall, now) = (SystemTime::now(), Instant::now());
        let fence_end = Some(wall + FENCE_LIFE);
        let expiries = batch.commits().iter().flat_map(Commit::expiries);
        for expires in expiries.chain([fence_end]) {
            if let Lease::Wanted { bucket, ttl } = self.leases.find(expires, wall, now) {
                let granted = self.grant(ttl).await;
                let id = granted.map_err(|fault| Failed { fault, sent: false })?;
                self.leases.insert(bucket, id, ttl, now);
            }
        }
        let held = |expires| match self.leases.find(expires, wall, now) {
            Lease::Held(id) => id,
            // All that are wanted have just been granted.
            Lease::None | Lease::Wanted { .. } => 0,
        };
        let frame = Frame {
            keyspace: &self.keyspace,
            fence: self.keyspace.writer(self.id),
            fence_lease: held(fence_end),
            fence_revision: self.fence_revision,
            number: self.batches,
        };
        let answer = self.transact(batch.transaction(&frame, held)).await;
        let answer = answer.map_err(|fault| Failed { fault, sent: true })?;
        Ok(batch.answer(self.batches, answer))
    }

    /// The batch was made at `revision`, but the answer that said so is lost: its keys tell how each commit went.
    async fn look_up(&self, batch: &Batch, revision: i64, until: Instant) -> Vec<Result<u64, StoreError>> {
        let at = u64::try_from(revision).unwrap_or_default();
        let mut results = Vec::with_capacity(batch.commits().len());
        for commit in batch.commits() {
            let outcome = loop {
                let fault = match self.transact(commit.inquiry(&self.keyspace)).await {
                    Ok(answer) => match commit.outcome_after_loss(at, answer) {
                        Ok(outcome) => break Ok(outcome),
                        Err(detail) => self.nonsense(detail),
                    },
                    Err(fault) => fault,
                };
                if Instant::now() >= until {
                    break Err(fault);
                }
                sleep(FIRST_PAUSE).await;
            };
            results.push(match outcome {
                Ok(outcome) => self.result(outcome),
                Err(fault) => Err(fault.store_error(self.name.to_string(), true)),
            });
        }
        results
    }

    async fn grant(&self, ttl: u64) -> Result<i64, EtcdFault> {
        let request = LeaseGrantRequest { ttl: i64::try_from(ttl).unwrap_or(i64::MAX), id: 0 };
        let grant = |channel| async move { LeaseClient::new(channel).lease_grant(led(request)).await };
        Ok(self.members.call("LeaseGrant", CALL_DEADLINE, grant).await?.into_inner().id)
    }

    async fn transact(&self, request: TxnRequest) -> Result<TxnResponse, EtcdFault> {
        let txn = |channel| async move {
            KvClient::new(channel).max_decoding_message_size(MAX_ANSWER).txn(led(request)).await
        };
        Ok(self.members.call("Txn", CALL_DEADLINE, txn).await?.into_inner())
    }

    fn result(&self, outcome: Outcome) -> Result<u64, StoreError> {
        match outcome {
            Outcome::Made(revision) => Ok(revision),
            Outcome::Conflict { key, found } => Err(StoreError::Conflict { key, found }),
            Outcome::Unknown => Err(StoreError::Uncertain {
                store: self.name.to_string(),
                reason: "its answer was lost, and others have written since".into(),
            }),
        }
    }

    fn all(&self, batch: &Batch, fault: &EtcdFault, uncertain: bool) -> Vec<Result<u64, StoreError>> {
        let error = fault.store_error(self.name.to_string(), uncertain);
        tracing::warn!(store = %self.name, commits = batch.commits().len(), %error, "commits were not made");
        batch.commits().iter().map(|_| Err(error.clone())).collect()
    }

    fn nonsense(&self, detail: &'static str) -> EtcdFault {
        EtcdFault::Nonsense { member: self.name.to_string(), call: "Txn", detail }
    }

    fn waited_in_vain(&self) -> StoreError {
        let reason = format!("it did not take commits for {} s", PATIENCE.as_secs());
        StoreError::Unavailable { store: self.name.to_string(), reason }
    }
}
