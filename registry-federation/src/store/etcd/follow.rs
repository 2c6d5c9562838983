//! Everything there is, then every change: a read of all keys at one revision, then a watch from the next one on.
//!
//! ```text
//!        ┌────────────────────────────── Lost ◀──────────────────────────────┐
//!        ▼                                                                    │ compacted, another history,
//!   reading ── Record… ── Synced(r) ──▶ opening ──▶ watching ── Committed… ──┤ or no watch for LOST_AFTER
//!                                          ▲                                  │
//!                                          └── another member, from the next ─┘
//!                                              revision on: nothing is missed
//! ```
//!
//! - Pages of the read name the revision of the first one, so they are of one state.
//! - A watch is opened on a member that has just answered a read agreed by a quorum, at a revision not before ours: one that
//!   lags would be silent, and one whose data is from another history would start anywhere.
//! - The watch asks for a sign of life when it has been silent for a while. A member that is stopped, or whose host is gone,
//!   is left after [`PROBE_AFTER`] and [`PROBE_DEADLINE`]; one without a leader says so by itself.
//! - Only whole revisions are told. Of an answer that etcd splits, the last revision waits for the rest.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use bytes::Bytes;
use carrick_runtime::{Backoff, Tasks};
use tokio::{
    sync::{mpsc, watch},
    time::{sleep, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Streaming};

use super::{
    super::{Key, StoreEvent, StoredRecord},
    fault::EtcdFault,
    keys::{self, Entry, Keyspace},
    members::{Link, MAX_ANSWER, Members, led},
    wire::{
        Event, EventType, KvClient, RangeRequest, RangeResponse, WatchClient, WatchCreateRequest,
        WatchProgressRequest, WatchRequest, WatchResponse, revision, watch_request::RequestUnion,
    },
};

/// Keys in a page, at first; halved while the answer is too large.
const PAGE: i64 = 1000;
/// For a page: a disk may have to be read.
const PAGE_DEADLINE: Duration = Duration::from_secs(5);
/// For what is small.
const CALL_DEADLINE: Duration = Duration::from_secs(2);
/// A watch that was silent for so long is asked for a sign of life.
const PROBE_AFTER: Duration = Duration::from_secs(1);
/// And is left if it gives none.
const PROBE_DEADLINE: Duration = Duration::from_secs(2);
/// Without a watch for so long the state counts as lost. An election and a second one take less.
const LOST_AFTER: Duration = Duration::from_secs(6);
/// Between attempts, once every member has failed.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
/// Requests on the stream of a watch: its creation, then one sign of life at a time.
const REQUESTS: usize = 2;

/// Follows the records of one domain.
pub(super) struct Follower {
    members: Members,
    keyspace: Keyspace,
    tasks: Tasks,
    events: VecDeque<StoreEvent>,
    phase: Phase,
    told: Told,
    /// What it has been told completely.
    revision: i64,
    /// The cluster that the revision is of.
    cluster: u64,
    failures: usize,
    broken_since: Option<Instant>,
    backoff: Backoff,
}

enum Phase {
    /// Reads from this key on, at this revision; 0 for the newest.
    Reading { from: Bytes, at: i64, page: i64 },
    /// Looks for a member to watch.
    Opening,
    /// Watches.
    Watching(Box<Watching>),
}

struct Watching {
    link: Link,
    current: watch::Receiver<usize>,
    requests: mpsc::Sender<WatchRequest>,
    answers: Streaming<WatchResponse>,
    probed: bool,
    partial: Partial,
}

/// What was told last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Told {
    /// Nothing at all.
    Nothing,
    /// A state, or some of it.
    State,
    /// That it is lost.
    Lost,
}

/// Changes of revisions that are not told yet.
#[derive(Debug, Default)]
struct Partial {
    /// Of one revision: the newest.
    revision: i64,
    changes: Vec<(Key, Option<StoredRecord>)>,
}

/// Why there has to be a new full state.
enum Gap {
    /// The revisions between are compacted away.
    Compacted(i64),
    /// This is not the history we know.
    OtherHistory,
}

impl Follower {
    pub(super) fn new(members: Members, keyspace: Keyspace, tasks: Tasks) -> Self {
        let phase = Phase::start(&keyspace);
        Self {
            members,
            keyspace,
            tasks,
            events: VecDeque::new(),
            phase,
            told: Told::Nothing,
            revision: 0,
            cluster: 0,
            failures: 0,
            broken_since: None,
            backoff: Backoff::new(FIRST_PAUSE, LONGEST_PAUSE),
        }
    }

    /// The next event; `None` when the store is closed.
    pub(super) async fn next(&mut self) -> Option<StoreEvent> {
        let stopping = self.tasks.stopping();
        tokio::select! {
            biased;
            () = stopping => None,
            event = self.advance() => Some(event),
        }
    }

    async fn advance(&mut self) -> StoreEvent {
        loop {
            if let Some(event) = self.events.pop_front() {
                return event;
            }
            let step = match &self.phase {
                Phase::Reading { from, at, page } => {
                    let (from, at, page) = (from.clone(), *at, *page);
                    self.read(from, at, page).await
                }
                Phase::Opening => self.open().await,
                Phase::Watching(_) => self.watch().await,
            };
            if let Err(fault) = step {
                self.fail(&fault).await;
            }
        }
    }

    /// Reads a page.
    async fn read(&mut self, from: Bytes, at: i64, page: i64) -> Result<(), EtcdFault> {
        let (_, range_end) = self.keyspace.range();
        let request = RangeRequest {
            key: from.clone(),
            range_end,
            limit: page,
            revision: at,
            ..RangeRequest::default()
        };
        let answer = match self.range(request, PAGE_DEADLINE).await {
            Ok(answer) => answer,
            // Either the answer is too large for us or, at a given revision, it is compacted away.
            Err(fault) if fault.refusal() == Some(Code::OutOfRange) => {
                if page > 1 {
                    self.phase = Phase::Reading { from, at, page: page / 2 };
                } else {
                    self.lose(&fault);
                    self.phase = Phase::start(&self.keyspace);
                }
                return Ok(());
            }
            Err(fault) => return Err(fault),
        };
        let header = answer.header.unwrap_or_default();
        let at = if at == 0 { header.revision } else { at };
        self.cluster = header.cluster_id;
        let next = answer.kvs.last().map(|kv| [&kv.key[..], &[0]].concat());
        for kv in answer.kvs {
            let Some(Entry::Record(key)) = self.keyspace.parse(&kv.key) else { continue };
            let Some(record) = usable(&key, &kv.value) else { continue };
            let revision = u64::try_from(kv.mod_revision).unwrap_or_default();
            self.told = Told::State;
            self.events.push_back(StoreEvent::Record { key, record, revision });
        }
        self.recovered();
        self.phase = match next {
            Some(next) if answer.more => Phase::Reading { from: next.into(), at, page },
            _ => {
                self.told = Told::State;
                self.revision = at;
                self.events.push_back(StoreEvent::Synced(u64::try_from(at).unwrap_or_default()));
                Phase::Opening
            }
        };
        Ok(())
    }

    /// Opens a watch from the next revision on.
    async fn open(&mut self) -> Result<(), EtcdFault> {
        let current = self.members.current();
        let link = self.members.link().await?;
        // Agreed by a quorum, so the member has a leader and has caught up.
        let (key, range_end) = self.keyspace.range();
        let request = RangeRequest {
            key: key.clone(),
            range_end: range_end.clone(),
            limit: 1,
            keys_only: true,
            revision: 0,
        };
        let read = async {
            let channel = link.channel.clone();
            KvClient::new(channel).max_decoding_message_size(MAX_ANSWER).range(led(request)).await
        };
        let answer = self.members.call_over(&link, "Range", CALL_DEADLINE, read).await?.into_inner();
        let header = answer.header.unwrap_or_default();
        if header.revision < self.revision || header.cluster_id != self.cluster {
            self.begin_anew(&Gap::OtherHistory);
            return Ok(());
        }
        let (requests, receiver) = mpsc::channel(REQUESTS);
        let create = WatchCreateRequest {
            key,
            range_end,
            start_revision: self.revision + 1,
            progress_notify: true,
            fragment: true,
        };
        // The channel is empty and has room.
        let _room =
            requests.try_send(WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) });
        let watch = async {
            let channel = link.channel.clone();
            let mut client = WatchClient::new(channel).max_decoding_message_size(MAX_ANSWER);
            client.watch(led(ReceiverStream::new(receiver))).await
        };
        let answers = self.members.call_over(&link, "Watch", CALL_DEADLINE, watch).await?.into_inner();
        let partial = Partial::default();
        self.phase =
            Phase::Watching(Box::new(Watching { link, current, requests, answers, probed: false, partial }));
        Ok(())
    }

    /// Takes the next answer of the watch.
    async fn watch(&mut self) -> Result<(), EtcdFault> {
        let Phase::Watching(watching) = &mut self.phase else { return Ok(()) };
        let limit = if watching.probed { PROBE_DEADLINE } else { PROBE_AFTER };
        let member = watching.link.member;
        let answer = tokio::select! {
            // What has arrived counts, however late we come for it.
            biased;
            answer = timeout(limit, watching.answers.message()) => answer,
            Ok(()) = watching.current.changed() => {
                // Calls go to another member: there was trouble with this one.
                self.phase = Phase::Opening;
                return Ok(());
            }
        };
        let broken = |detail: String| EtcdFault::Broken {
            member: self.members.endpoint(member),
            call: "Watch",
            detail,
        };
        let fault = match answer {
            Ok(Ok(Some(answer))) => {
                watching.probed = false;
                return self.take(answer);
            }
            Ok(Ok(None)) => broken("the watch ended".into()),
            Ok(Err(status)) => self.members.fault(&watching.link, "Watch", &status),
            Err(_) if !watching.probed => {
                watching.probed = true;
                let probe = RequestUnion::ProgressRequest(WatchProgressRequest {});
                match watching.requests.try_send(WatchRequest { request_union: Some(probe) }) {
                    Ok(()) => return Ok(()),
                    Err(_) => broken("the watch takes no requests".into()),
                }
            }
            Err(_) => {
                let (call, after) = ("Watch", PROBE_AFTER + PROBE_DEADLINE);
                EtcdFault::TimedOut { member: self.members.endpoint(member), call, after }
            }
        };
        self.members.blame(&watching.link, &fault);
        Err(fault)
    }

    fn take(&mut self, answer: WatchResponse) -> Result<(), EtcdFault> {
        let at = revision(answer.header.as_ref());
        let Phase::Watching(watching) = &mut self.phase else { return Ok(()) };
        if answer.canceled {
            let member = self.members.endpoint(watching.link.member);
            if answer.compact_revision > 0 {
                self.begin_anew(&Gap::Compacted(answer.compact_revision));
                return Ok(());
            }
            let fault = EtcdFault::Broken { member, call: "Watch", detail: answer.cancel_reason };
            self.members.blame(&watching.link, &fault);
            return Err(fault);
        }
        let more = answer.fragment;
        // Its own news of progress: the watch has all up to there. Not the answers to our asking, which are of the whole
        // stream; before 3.4.25 and 3.5.8 those may be ahead of what the watch has been sent.
        let progress = answer.events.is_empty() && !answer.created && !more && answer.watch_id >= 0;
        let told = watching.partial.add(answer.events, more, self.revision, &self.keyspace);
        for (revision, changes) in told {
            self.revision = revision;
            let revision = u64::try_from(revision).unwrap_or_default();
            self.events.push_back(StoreEvent::Committed { revision, changes });
        }
        if progress {
            self.revision = self.revision.max(at);
        }
        self.recovered();
        Ok(())
    }

    async fn range(&self, request: RangeRequest, limit: Duration) -> Result<RangeResponse, EtcdFault> {
        let range = |channel| async move {
            KvClient::new(channel).max_decoding_message_size(MAX_ANSWER).range(led(request)).await
        };
        Ok(self.members.call("Range", limit, range).await?.into_inner())
    }

    fn recovered(&mut self) {
        if let Some(since) = self.broken_since.take() {
            tracing::info!(after_ms = since.elapsed().as_millis() as u64, "etcd is followed again");
        }
        self.failures = 0;
        self.backoff.reset();
    }

    /// Waits until there is something to try, and says so when it takes long.
    async fn fail(&mut self, fault: &EtcdFault) {
        if matches!(self.phase, Phase::Watching(_)) {
            self.phase = Phase::Opening;
        }
        let since = *self.broken_since.get_or_insert_with(|| {
            tracing::warn!(%fault, hint = fault.hint(), "etcd is not followed");
            Instant::now()
        });
        self.failures += 1;
        let round = self.failures >= self.members.len();
        // Who was never told anything should know at once why.
        if since.elapsed() >= LOST_AFTER || (self.told == Told::Nothing && round) {
            self.lose(fault);
            self.phase = Phase::start(&self.keyspace);
        }
        if round {
            sleep(self.backoff.next_delay()).await;
        }
    }

    fn begin_anew(&mut self, gap: &Gap) {
        let reason = match gap {
            Gap::Compacted(at) => format!("etcd has compacted its history up to revision {at} meanwhile"),
            Gap::OtherHistory => {
                "etcd has another history than before: it was set up anew or restored".to_owned()
            }
        };
        tracing::warn!(reason, "all registrations are read again");
        self.told = Told::Lost;
        self.events.push_back(StoreEvent::Lost(reason));
        self.phase = Phase::start(&self.keyspace);
    }

    /// Tells, once, that nothing new is known.
    fn lose(&mut self, fault: &EtcdFault) {
        if self.told != Told::Lost {
            self.told = Told::Lost;
            self.events.push_back(StoreEvent::Lost(format!("{fault}. Hint: {}", fault.hint())));
        }
    }
}

impl Phase {
    fn start(keyspace: &Keyspace) -> Self {
        Self::Reading { from: keyspace.range().0, at: 0, page: PAGE }
    }
}

/// A revision and what it changed.
type Complete = (i64, Vec<(Key, Option<StoredRecord>)>);

impl Partial {
    /// Adds events and returns what is complete: each revision with its changes. `more`: the answer goes on.
    fn add(&mut self, events: Vec<Event>, more: bool, told: i64, keyspace: &Keyspace) -> Vec<Complete> {
        let mut complete = Vec::new();
        for event in events {
            let gone = event.r#type() == EventType::Delete;
            let Some(kv) = event.kv else { continue };
            // A watch that starts where it should has none of these.
            if kv.mod_revision <= told {
                continue;
            }
            if kv.mod_revision != self.revision {
                complete.extend(self.finish());
                self.revision = kv.mod_revision;
            }
            if let Some(Entry::Record(key)) = keyspace.parse(&kv.key) {
                let record = if gone { None } else { usable(&key, &kv.value) };
                self.changes.push((key, record));
            }
        }
        if !more {
            complete.extend(self.finish());
        }
        complete
    }

    fn finish(&mut self) -> Option<Complete> {
        let (revision, changes) = (std::mem::take(&mut self.revision), std::mem::take(&mut self.changes));
        (revision != 0).then_some((revision, changes))
    }
}

/// A record that this version can read.
fn usable(key: &Key, value: &[u8]) -> Option<StoredRecord> {
    match keys::record(value) {
        Ok(record) => Some(record),
        Err(fault) => {
            tracing::warn!(%key, %fault, "a record in etcd is left out");
            None
        }
    }
}
