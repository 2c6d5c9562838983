//! The embedded store: one file, one writer, group commit.
//!
//! ```text
//!   commit ─▶ queue (bounded) ─▶ writer thread: takes what waits, one transaction, one sync ─▶ followers, then answers
//!   follow ─▶ a snapshot of the file, then what the writer tells
//! ```
//!
//! While one transaction is synced the next commits gather, so the rate follows the load without a timer. The file is
//! [redb](https://www.redb.org)'s: a transaction is in it in full or not at all, whenever the process ends.
//!
//! A file that failed is closed and opened again: only what can be read back afterwards counts. That is also how a
//! commit whose sync failed gets its verdict. Until it is open again commits are refused with the reason; followers keep
//! what they were told.

mod file;
mod follow;
mod writer;

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
    thread,
};

use carrick_runtime::create_private;
use futures::{StreamExt as _, stream::BoxStream};
use tokio::sync::{broadcast, mpsc, oneshot};

use self::{
    file::{File, Opener},
    writer::{Job, News, Writer},
};
use super::{Change, Store, StoreError, StoreEvent, check_shape};

/// Commits that wait for the writer; the next one waits for room. A transaction takes all of them at once.
const QUEUE: usize = 4096;

/// Commits a follower may be behind before it is given a new full state. One is a few hundred octets.
const NEWS: usize = 16 * 1024;

/// A store in a file of its own. Dropping it finishes the commits that wait and closes the file.
#[derive(Debug)]
pub struct EmbeddedStore {
    name: String,
    file: Arc<File>,
    /// `None` once it is being dropped: the writer ends with the last sender.
    jobs: Option<mpsc::Sender<Job>>,
    news: broadcast::Sender<News>,
    writer: Option<thread::JoinHandle<()>>,
}

/// Why the file of the store cannot be used. The daemon does not start.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The file cannot be created or opened.
    #[error("the registry's store {} cannot be opened", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// Another process has it.
    #[error("the registry's store {} is in use by another process", path.display())]
    InUse {
        /// The file.
        path: PathBuf,
    },
    /// It is not a store or was damaged.
    #[error("the registry's store {} is damaged: {reason}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A newer daemon wrote it.
    #[error("the registry's store {} has the form {form}, which a newer version wrote", path.display())]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its form.
        form: u64,
    },
}

impl OpenError {
    /// What an operator can do about it.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Io { .. } => "check the owner, the permissions and the free space of the state directory",
            Self::InUse { .. } => {
                "two daemons share one state directory: stop one, or give it its own `state_dir`"
            }
            Self::Damaged { .. } => {
                "move the file away and start again: endpoints that live register themselves anew within a minute"
            }
            Self::Newer { .. } => "start the version that wrote it, or move the file away",
        }
    }
}

impl EmbeddedStore {
    /// Opens the store in the file at `path`, which is created if it is missing.
    ///
    /// # Errors
    /// The file cannot be used.
    pub fn open(path: &Path) -> Result<Self, OpenError> {
        create_private(path).map_err(|source| OpenError::Io { path: path.to_owned(), source })?;
        Self::with_opener(path, Opener::path(path))
    }

    fn with_opener(path: &Path, opener: Opener) -> Result<Self, OpenError> {
        let name = format!("the embedded store {}", path.display());
        let file = Arc::new(File::open(name.clone(), path, opener)?);
        let (jobs, queue) = mpsc::channel(QUEUE);
        let news = broadcast::Sender::new(NEWS);
        let writer = Writer::new(Arc::clone(&file), news.clone());
        let writer = thread::Builder::new()
            .name("registry-store".into())
            .spawn(move || writer.run(queue))
            .map_err(|source| OpenError::Io { path: path.to_owned(), source })?;
        Ok(Self { name, file, jobs: Some(jobs), news, writer: Some(writer) })
    }

    fn closed(&self) -> StoreError {
        StoreError::Closed { store: self.name.clone() }
    }
}

#[tonic::async_trait]
impl Store for EmbeddedStore {
    fn name(&self) -> String {
        self.name.clone()
    }

    async fn commit(&self, changes: Vec<Change>) -> Result<u64, StoreError> {
        check_shape(&changes)?;
        let (answer, answered) = oneshot::channel();
        let jobs = self.jobs.as_ref().ok_or_else(|| self.closed())?;
        jobs.send(Job { changes, answer }).await.map_err(|_| self.closed())?;
        answered.await.map_err(|_| self.closed())?
    }

    fn follow(&self) -> BoxStream<'static, StoreEvent> {
        follow::follow(Arc::clone(&self.file), self.news.subscribe()).boxed()
    }
}

impl Drop for EmbeddedStore {
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(writer) = self.writer.take() {
            // At most the commits that wait and one sync: the file is closed when the drop returns.
            let _panicked = writer.join();
        }
    }
}

#[cfg(test)]
#[path = "failing_disk_tests.rs"]
mod failing_disk_tests;
