//! Several commits as one transaction of etcd.
//!
//! etcd makes a transaction durable with one write of its log, so what waits while one is under way goes into the next
//! together. Each commit is a transaction inside it, with its own conditions, so one conflict does not fail the others:
//!
//! ```text
//!   if fence is at revision F          nobody but this replica writes its fence
//!   then  fence := number of the batch
//!         if expectations of commit 1  then its puts and deletes  else read its keys
//!         if expectations of commit 2  then its puts and deletes  else read its keys
//!   else  read fence
//! ```
//!
//! # Once, also when the answer is lost
//!
//! A batch whose answer is lost is sent again, to another member too. The fence moves with every batch, so of all copies
//! that are on their way at most one is made, however late another one arrives (a member that was stopped for an hour may
//! then go on). A copy that finds the fence moved reads it: if it holds the number of this batch, the batch was made, and
//! the keys tell how each commit went ([`Batch::outcome_after_loss`]).
//!
//! The fence lies in the range that is followed, so each batch is seen by every follower, even if it removed nothing.

use std::{collections::HashSet, time::SystemTime};

use bytes::Bytes;

use super::{
    super::{Change, Expect, Key, MAX_CHANGES},
    keys::{Keyspace, Mark},
    wire::{
        Compare, DeleteRangeRequest, KeyValue, PutRequest, RangeRequest, RequestOp, ResponseOp, TxnRequest,
        TxnResponse, compare, request_op::Request, response_op::Response, revision,
    },
};

/// etcd refuses a transaction with more (`--max-txn-ops`); those inside another one get what that one leaves.
const MAX_OPS: usize = 128;
/// Commits in a batch: with the fence, and with the most changes that one commit has, they stay below [`MAX_OPS`].
const MAX_COMMITS: usize = MAX_OPS - MAX_CHANGES - 1;
/// Octets of keys and values in a batch. etcd refuses a request of more than 1.5 MiB (`--max-request-bytes`).
pub(super) const MAX_OCTETS: usize = 1024 * 1024;
/// What a change takes beside its key and its value, amply: messages around it, a condition, a mark.
const CHANGE_OCTETS: usize = 160;

/// One commit on its way.
#[derive(Debug)]
pub(super) struct Commit {
    changes: Vec<Change>,
    mark: Mark,
    octets: usize,
}

/// Commits on their way together. Their keys are distinct, since etcd writes no key twice in a transaction.
#[derive(Debug, Default)]
pub(super) struct Batch {
    commits: Vec<Commit>,
    keys: HashSet<Key>,
    octets: usize,
}

/// What a batch needs to become a transaction.
#[derive(Debug)]
pub(super) struct Frame<'a> {
    pub(super) keyspace: &'a Keyspace,
    /// The fence of this replica, the lease it is attached to, the revision that wrote it last (0: it is not there).
    pub(super) fence: Bytes,
    pub(super) fence_lease: i64,
    pub(super) fence_revision: i64,
    /// The number of this batch.
    pub(super) number: u64,
}

/// What etcd did with a batch.
#[derive(Debug, PartialEq)]
pub(super) enum Answer {
    /// It was made now, at this revision; how each commit went.
    Made(u64, Vec<Outcome>),
    /// It was made before, at this revision: the answer to an earlier copy was lost.
    MadeBefore(i64),
    /// It was not made and no earlier copy will be: the fence was written at this revision (0: it is not there).
    Fenced(i64),
    /// This is not what etcd answers.
    Nonsense(&'static str),
}

/// How a commit went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Outcome {
    /// It was made, at this revision.
    Made(u64),
    /// An expectation did not hold; nothing was changed.
    Conflict {
        /// Of which key.
        key: Key,
        /// What wrote its record; `None` when there is none.
        found: Option<u64>,
    },
    /// One of the two, and others have written since, so nobody can tell.
    Unknown,
}

impl Commit {
    pub(super) fn new(changes: Vec<Change>, mark: Mark) -> Self {
        let octets = octets(&changes);
        Self { changes, mark, octets }
    }

    pub(super) fn into_changes(self) -> Vec<Change> {
        self.changes
    }

    /// When each record lapses, which says what leases are needed.
    pub(super) fn expiries(&self) -> impl Iterator<Item = Option<SystemTime>> {
        self.changes.iter().filter_map(|change| match change {
            Change::Put { record, .. } => Some(record.expires),
            Change::Delete { .. } => None,
        })
    }

    fn transaction(&self, keyspace: &Keyspace, lease: &impl Fn(Option<SystemTime>) -> i64) -> TxnRequest {
        let condition = |change: &Change| {
            let expected = match change.expect() {
                Expect::Any => return None,
                Expect::Absent => 0,
                Expect::Revision(revision) => i64::try_from(revision).unwrap_or(i64::MAX),
            };
            Some(unchanged(keyspace.record(change.key()), expected))
        };
        let step = |change: &Change| match change {
            Change::Put { key, record, .. } => put(PutRequest {
                key: keyspace.record(key),
                value: self.mark.value(record),
                lease: lease(record.expires),
            }),
            Change::Delete { key, .. } => {
                op(Request::RequestDeleteRange(DeleteRangeRequest { key: keyspace.record(key) }))
            }
        };
        TxnRequest {
            compare: self.changes.iter().filter_map(condition).collect(),
            success: self.changes.iter().map(step).collect(),
            failure: self.changes.iter().map(|change| read(keyspace.record(change.key()), true)).collect(),
        }
    }

    /// The keys again, with their values, to find out how a commit went whose answer was lost.
    pub(super) fn inquiry(&self, keyspace: &Keyspace) -> TxnRequest {
        let success = self.changes.iter().map(|change| read(keyspace.record(change.key()), false)).collect();
        TxnRequest { compare: Vec::new(), success, failure: Vec::new() }
    }

    /// How the commit went, from what its step in the batch gave.
    fn outcome(&self, revision: u64, step: Option<ResponseOp>) -> Result<Outcome, &'static str> {
        let Some(Response::ResponseTxn(own)) = step.and_then(|step| step.response) else {
            return Err("no answer to a transaction inside another one");
        };
        if own.succeeded {
            return Ok(Outcome::Made(revision));
        }
        let found = found(own)?;
        let mut each = self.changes.iter().zip(found);
        let missed = each.find_map(|(change, kv)| {
            let found = kv.map(|kv| written(&kv));
            (!change.expect().holds(found)).then(|| (change.key().clone(), found))
        });
        missed
            .map(|(key, found)| Outcome::Conflict { key, found })
            .ok_or("a conflict where all is as expected")
    }

    /// How the commit went, if its batch was made at `revision` and this is what its keys are since.
    pub(super) fn outcome_after_loss(
        &self,
        revision: u64,
        inquiry: TxnResponse,
    ) -> Result<Outcome, &'static str> {
        let now = found(inquiry)?;
        let each = || self.changes.iter().zip(now.iter().map(Option::as_ref));
        let made = each().any(|(change, kv)| {
            matches!(change, Change::Put { .. }) && kv.is_some_and(|kv| self.mark.wrote(&kv.value))
        });
        if made {
            return Ok(Outcome::Made(revision));
        }
        // A record from before the batch: had the commit been made, it would be gone or newer.
        let left_alone = |kv: Option<&KeyValue>| kv.map(written).is_some_and(|at| at < revision);
        let missed = |(change, kv): &(&Change, Option<&KeyValue>)| !change.expect().holds(kv.map(written));
        if let Some(witness) = each().find(|(_, kv)| left_alone(*kv)) {
            let (change, kv) = each().find(missed).unwrap_or(witness);
            return Ok(Outcome::Conflict { key: change.key().clone(), found: kv.map(written) });
        }
        // Nothing but removals of what may be missing anyway: they cannot have failed.
        let sure =
            self.changes.iter().all(|change| matches!(change, Change::Delete { expect: Expect::Any, .. }));
        Ok(if sure { Outcome::Made(revision) } else { Outcome::Unknown })
    }
}

impl Batch {
    /// Whether the commit can go with those that are in already. An empty batch takes any commit that
    /// [has the size](octets) for it.
    pub(super) fn fits(&self, commit: &Commit) -> bool {
        self.commits.is_empty()
            || (self.commits.len() < MAX_COMMITS
                && self.octets + commit.octets <= MAX_OCTETS
                && !commit.changes.iter().any(|change| self.keys.contains(change.key())))
    }

    pub(super) fn push(&mut self, commit: Commit) {
        self.octets += commit.octets;
        self.keys.extend(commit.changes.iter().map(|change| change.key().clone()));
        self.commits.push(commit);
    }

    pub(super) fn commits(&self) -> &[Commit] {
        &self.commits
    }

    /// The batch as etcd takes it. `lease` gives the lease for an expiry.
    pub(super) fn transaction(
        &self,
        frame: &Frame<'_>,
        lease: impl Fn(Option<SystemTime>) -> i64,
    ) -> TxnRequest {
        let fence = put(PutRequest {
            key: frame.fence.clone(),
            value: Bytes::copy_from_slice(&frame.number.to_be_bytes()),
            lease: frame.fence_lease,
        });
        let commits = self
            .commits
            .iter()
            .map(|commit| op(Request::RequestTxn(commit.transaction(frame.keyspace, &lease))));
        TxnRequest {
            compare: vec![unchanged(frame.fence.clone(), frame.fence_revision)],
            success: std::iter::once(fence).chain(commits).collect(),
            failure: vec![read(frame.fence.clone(), false)],
        }
    }

    /// What etcd's answer to the batch of this number says.
    pub(super) fn answer(&self, number: u64, answer: TxnResponse) -> Answer {
        let at = revision(answer.header.as_ref());
        if !answer.succeeded {
            return match found(answer) {
                Ok(kvs) => match kvs.into_iter().next().flatten() {
                    Some(kv) if *kv.value == number.to_be_bytes() => Answer::MadeBefore(kv.mod_revision),
                    Some(kv) => Answer::Fenced(kv.mod_revision),
                    None => Answer::Fenced(0),
                },
                Err(what) => Answer::Nonsense(what),
            };
        }
        let Ok(at) = u64::try_from(at) else { return Answer::Nonsense("a revision below zero") };
        let mut steps = answer.responses.into_iter().skip(1);
        let outcomes = self.commits.iter().map(|commit| commit.outcome(at, steps.next())).collect();
        match outcomes {
            Ok(outcomes) => Answer::Made(at, outcomes),
            Err(what) => Answer::Nonsense(what),
        }
    }
}

/// What changes take in a request, at most.
pub(super) fn octets(changes: &[Change]) -> usize {
    let each = changes.iter().map(|change| {
        let record = match change {
            Change::Put { record, .. } => record.encode().len(),
            Change::Delete { .. } => 0,
        };
        // The key is written up to three times: condition, step, and what is read where the condition does not hold.
        record + 3 * change.key().name.len() + CHANGE_OCTETS
    });
    each.sum()
}

/// The one key that each step read, if it is there.
fn found(answer: TxnResponse) -> Result<Vec<Option<KeyValue>>, &'static str> {
    let each = answer.responses.into_iter().map(|step| match step.response {
        Some(Response::ResponseRange(mut range)) => Ok(range.kvs.pop()),
        _ => Err("no answer to a read inside a transaction"),
    });
    each.collect()
}

/// The revision that wrote it.
fn written(kv: &KeyValue) -> u64 {
    u64::try_from(kv.mod_revision).unwrap_or_default()
}

fn unchanged(key: Bytes, since: i64) -> Compare {
    Compare {
        result: compare::CompareResult::Equal.into(),
        target: compare::CompareTarget::Mod.into(),
        key,
        target_union: Some(compare::TargetUnion::ModRevision(since)),
    }
}

fn read(key: Bytes, keys_only: bool) -> RequestOp {
    op(Request::RequestRange(RangeRequest { key, keys_only, ..RangeRequest::default() }))
}

fn put(put: PutRequest) -> RequestOp {
    op(Request::RequestPut(put))
}

fn op(request: Request) -> RequestOp {
    RequestOp { request: Some(request) }
}
