//! What a follower is told: a snapshot, then the writer's news.

use std::sync::Arc;

use futures::stream::{self, Stream};
use tokio::sync::{
    broadcast::{Receiver, error::RecvError},
    mpsc,
};

use super::{
    file::{self, File},
    writer::News,
};
use crate::store::{Change, Key, StoreEvent, StoredRecord};

/// Records read ahead of the follower.
const AHEAD: usize = 1024;

/// How long a follower waits before it reads a file that failed once more.
const AGAIN: std::time::Duration = std::time::Duration::from_secs(1);

/// Everything in `file`, then `news`, which was subscribed to before.
pub(super) fn follow(file: Arc<File>, news: Receiver<News>) -> impl Stream<Item = StoreEvent> + Send {
    let follower = Follower { file, news, phase: Phase::Begin };
    stream::unfold(follower, |mut follower| async move { Some((follower.next().await?, follower)) })
}

struct Follower {
    file: Arc<File>,
    news: Receiver<News>,
    phase: Phase,
}

enum Phase {
    /// A full state is due.
    Begin,
    /// It is being read.
    Reading(mpsc::Receiver<StoreEvent>),
    /// What is after this revision is told as it comes.
    Live(u64),
    /// The file could not be read.
    Waiting,
}

impl Follower {
    async fn next(&mut self) -> Option<StoreEvent> {
        loop {
            match &mut self.phase {
                Phase::Begin => self.phase = Phase::Reading(read(Arc::clone(&self.file))),
                Phase::Reading(read) => match read.recv().await {
                    Some(StoreEvent::Synced(revision)) => {
                        self.phase = Phase::Live(revision);
                        return Some(StoreEvent::Synced(revision));
                    }
                    Some(StoreEvent::Lost(why)) => {
                        self.phase = Phase::Waiting;
                        return Some(StoreEvent::Lost(why));
                    }
                    Some(event) => return Some(event),
                    None => {
                        self.phase = Phase::Waiting;
                        return Some(StoreEvent::Lost("reading the store broke off".into()));
                    }
                },
                Phase::Live(after) => match self.news.recv().await {
                    Ok(News::Committed { revision, changes }) if revision > *after => {
                        *after = revision;
                        let changes = changes.iter().map(told).collect();
                        return Some(StoreEvent::Committed { revision, changes });
                    }
                    Ok(News::Committed { .. }) => {}
                    Ok(News::Unsure(why)) => return Some(self.lost(why.to_string())),
                    Err(RecvError::Lagged(missed)) => {
                        return Some(self.lost(format!("{missed} commits came faster than they were read")));
                    }
                    Err(RecvError::Closed) => return None,
                },
                Phase::Waiting => {
                    tokio::time::sleep(AGAIN).await;
                    self.phase = Phase::Begin;
                }
            }
        }
    }

    /// A new round, which has everything: what waits to be told is older.
    fn lost(&mut self, why: String) -> StoreEvent {
        self.news = self.news.resubscribe();
        self.phase = Phase::Begin;
        StoreEvent::Lost(why)
    }
}

/// Reads the whole file on a thread of its own, for it waits for the disk and for the follower.
fn read(file: Arc<File>) -> mpsc::Receiver<StoreEvent> {
    let (sender, receiver) = mpsc::channel(AHEAD);
    let _detached = tokio::task::spawn_blocking(move || {
        let database = match file.database() {
            Ok(database) => database,
            Err(fault) => {
                let _gone = sender.blocking_send(StoreEvent::Lost(fault.to_string()));
                return;
            }
        };
        let read = file::snapshot(&database, |key, record, revision| {
            sender.blocking_send(StoreEvent::Record { key, record, revision }).is_ok()
        });
        let last = match read {
            Ok(revision) => StoreEvent::Synced(revision),
            Err(fault) => StoreEvent::Lost(file.fault(&fault).to_string()),
        };
        // Who hears the end may close the store and open it again at once.
        drop((database, file));
        let _gone = sender.blocking_send(last);
    });
    receiver
}

fn told(change: &Change) -> (Key, Option<StoredRecord>) {
    match change {
        Change::Put { key, record, .. } => (key.clone(), Some(record.clone())),
        Change::Delete { key, .. } => (key.clone(), None),
    }
}
