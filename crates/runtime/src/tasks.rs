//! Tasks that belong to somebody.

use std::{future::Future, time::Duration};

use tokio::{runtime::Handle, task::JoinHandle};
use tokio_util::{
    sync::{CancellationToken, WaitForCancellationFutureOwned},
    task::TaskTracker,
};
use tracing::Instrument;

/// A group of tasks that is told to stop together and waited for together.
///
/// Clones are the same group. A [child](Self::child) can be stopped alone and stops with its parent; waiting for the
/// parent waits for its children too, because they share one tracker.
#[derive(Clone, Debug, Default)]
pub struct Tasks {
    tracker: TaskTracker,
    token: CancellationToken,
}

impl Tasks {
    /// An empty group.
    pub fn new() -> Self {
        Self::default()
    }

    /// A group that stops when this one stops, and can be stopped alone.
    pub fn child(&self) -> Self {
        Self { tracker: self.tracker.clone(), token: self.token.child_token() }
    }

    /// Runs `future` to its end on the current runtime. A panic ends this task only, and is logged under `name`.
    ///
    /// # Panics
    /// Outside of a runtime.
    pub fn spawn<F>(&self, name: &'static str, future: F) -> JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send,
    {
        self.spawn_on(&Handle::current(), name, future)
    }

    /// The same on the runtime of `handle`.
    pub fn spawn_on<F>(&self, handle: &Handle, name: &'static str, future: F) -> JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send,
    {
        let guard = PanicNote { name };
        let tracked = self.tracker.track_future(async move {
            let output = future.await;
            std::mem::forget(guard);
            output
        });
        handle.spawn(tracked.in_current_span())
    }

    /// Completes once [`stop`](Self::stop) was called on this group or a parent.
    pub fn stopping(&self) -> WaitForCancellationFutureOwned {
        self.token.clone().cancelled_owned()
    }

    /// Whether [`stop`](Self::stop) was called on this group or a parent.
    pub fn is_stopping(&self) -> bool {
        self.token.is_cancelled()
    }

    /// Tells every task of this group and its children to stop.
    pub fn stop(&self) {
        self.token.cancel();
    }

    /// Waits until every task of the group, its parents and its children has ended; false when `deadline` passed first.
    pub async fn wait(&self, deadline: Duration) -> bool {
        self.tracker.close();
        tokio::time::timeout(deadline, self.tracker.wait()).await.is_ok()
    }
}

/// Says so when a task unwinds; a task that ends or is cancelled forgets or drops it in peace.
struct PanicNote {
    name: &'static str,
}

impl Drop for PanicNote {
    fn drop(&mut self) {
        if std::thread::panicking() {
            tracing::error!(task = self.name, "a task panicked; the others go on");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_child_stops_alone_and_with_its_parent() {
        let parent = Tasks::new();
        let (one, two) = (parent.child(), parent.child());
        let a = one.spawn("a", one.stopping());
        let b = two.spawn("b", two.stopping());
        one.stop();
        a.await.unwrap();
        assert!(!b.is_finished() && !parent.is_stopping());
        parent.stop();
        assert!(parent.wait(Duration::from_secs(5)).await);
        b.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn waiting_gives_up_at_the_deadline() {
        let tasks = Tasks::new();
        let _stuck = tasks.spawn("stuck", std::future::pending::<()>());
        tasks.stop();
        assert!(!tasks.wait(Duration::from_secs(1)).await);
    }

    #[tokio::test]
    async fn a_panic_ends_one_task_only() {
        let tasks = Tasks::new();
        let bad = tasks.spawn("bad", async { panic!("on purpose") });
        let good = tasks.spawn("good", async { 7 });
        assert!(bad.await.is_err());
        assert_eq!(good.await.unwrap(), 7);
        tasks.stop();
        assert!(tasks.wait(Duration::from_secs(5)).await);
    }
}
