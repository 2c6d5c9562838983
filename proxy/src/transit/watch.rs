//! What the next hops tell of the connections that we hold there: one monitor for each hop, for all connections on it.
//!
//! NSM opens a monitor for each connection. The selector used here names this process alone, so the hop tells of every connection that
//! passes through here and there. A monitor that breaks is opened again at once; when that does not work, the
//! connections on it are down, because nobody can say how they are. One that has nothing to tell of stays open for a while:
//! clients that come and go one at a time would open one each.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use carrick_proto::connection::{
    Connection, ConnectionEvent, ConnectionEventType, MonitorScopeSelector, PathSegment,
};
use carrick_proxy_core::transit::{Carried, Hop, News};
use carrick_runtime::{Backoff, Tasks};
use futures::StreamExt;
use parking_lot::Mutex;
use tokio::time::{Instant, timeout};
use tonic::{Code, Streaming};

use super::hops::{Hops, MonitorFault};
use crate::wire;

/// How long it may take to open a hop's monitor, again or at all, before its connections count as down.
const GRACE: Duration = Duration::from_millis(1500);
/// A monitor that was open for so long is opened again without a pause.
const STABLE: Duration = Duration::from_secs(1);
/// How long a monitor is kept, at least, after the last connection has left its hop.
const LINGER: Duration = Duration::from_secs(10);
/// First and longest pause between attempts.
const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// Takes what was told: our id, the hop, and what is new.
pub(super) type Told = Arc<dyn Fn(&str, &Hop, News) + Send + Sync>;

/// The monitors that are open. Clones share them.
#[derive(Clone)]
pub(super) struct HopWatches {
    inner: Arc<Inner>,
}

struct Inner {
    own_name: String,
    hops: Hops,
    tasks: Tasks,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    at: HashMap<String, Hop>,
    watches: HashMap<Hop, Watched>,
}

struct Watched {
    ids: HashSet<String>,
    /// When the last one of them has left; nothing while there is one.
    unused_since: Option<Instant>,
}

impl HopWatches {
    pub(super) fn new(own_name: String, hops: Hops, tasks: &Tasks) -> Self {
        Self { inner: Arc::new(Inner { own_name, hops, tasks: tasks.clone(), state: Mutex::default() }) }
    }

    /// The connection `id` is held at `hop` now, or at none.
    pub(super) fn held_at(&self, id: &str, hop: Option<Hop>, told: &Told) {
        let mut state = self.inner.state.lock();
        let old = match &hop {
            Some(hop) => state.at.insert(id.to_owned(), hop.clone()),
            None => state.at.remove(id),
        };
        if let Some(old) = old.filter(|old| Some(old) != hop.as_ref())
            && let Some(watched) = state.watches.get_mut(&old)
        {
            watched.ids.remove(id);
            if watched.ids.is_empty() {
                watched.unused_since = Some(Instant::now());
            }
        }
        let Some(hop) = hop else { return };
        if let Some(watched) = state.watches.get_mut(&hop) {
            watched.ids.insert(id.to_owned());
            watched.unused_since = None;
            return;
        }
        let ids = HashSet::from([id.to_owned()]);
        state.watches.insert(hop.clone(), Watched { ids, unused_since: None });
        let (this, told) = (self.clone(), Arc::clone(told));
        let _runs = self.inner.tasks.spawn("monitor of a hop", async move {
            tokio::select! {
                () = this.follow(&hop, told) => {}
                () = this.unused(&hop) => {}
            }
        });
    }

    /// Until nothing was held at `hop` for [`LINGER`]; then it is not watched any more.
    async fn unused(&self, hop: &Hop) {
        loop {
            tokio::time::sleep(LINGER).await;
            if self.give_up(hop, LINGER) {
                return;
            }
        }
    }

    /// Gives a monitor up when nothing was held at its hop for so long: what comes next begins with one of its own at once.
    fn give_up(&self, hop: &Hop, unused: Duration) -> bool {
        let mut state = self.inner.state.lock();
        let since = state.watches.get(hop).map(|watched| watched.unused_since);
        let over = since.is_none_or(|since| since.is_some_and(|since| since.elapsed() >= unused));
        if over {
            state.watches.remove(hop);
        }
        over
    }

    /// Keeps the monitor of one hop open, until it is lost with nothing held there.
    async fn follow(&self, hop: &Hop, told: Told) {
        let tasks = &self.inner.tasks;
        let mut backoff = Backoff::new(RETRY.0, RETRY.1);
        let mut lost_since: Option<Instant> = None;
        let (mut said, mut opened_once) = (false, false);
        // What the hop has told of at all: one that is just being made may come after the first event.
        let mut heard: HashSet<String> = HashSet::new();
        loop {
            let ids = self.ids(hop);
            heard.retain(|id| ids.contains(id));
            let opened = tokio::select! {
                () = tasks.stopping() => return,
                opened = timeout(GRACE, self.inner.hops.monitor(hop, self.selector())) => opened,
            };
            let fault = match opened.unwrap_or_else(|_| Err(MonitorFault::Lost("no answer".to_owned()))) {
                Err(MonitorFault::None) => {
                    tracing::debug!(%hop, "the hop offers no monitor: its end is seen by the next refresh");
                    return tasks.stopping().await;
                }
                Err(MonitorFault::Lost(why)) => Some(why),
                Ok(stream) => {
                    let began = Instant::now();
                    let ended = tokio::select! {
                        () = tasks.stopping() => return,
                        ended = self.read(hop, stream, &mut heard, &told) => ended,
                    };
                    if let Ended::Unimplemented = ended {
                        return tasks.stopping().await;
                    }
                    (lost_since, said, opened_once) = (None, false, true);
                    if self.give_up(hop, Duration::ZERO) {
                        return;
                    }
                    // It is opened again at once: that fails when the hop is gone. One that ends as soon as it is open waits.
                    if began.elapsed() >= STABLE {
                        backoff.reset();
                        continue;
                    }
                    None
                }
            };
            let since = *lost_since.get_or_insert_with(Instant::now);
            let lost = fault.filter(|_| opened_once || since.elapsed() >= GRACE);
            let down = if lost.is_some() { self.ids(hop) } else { HashSet::new() };
            if let Some(why) = lost.filter(|_| !down.is_empty() && !said) {
                tracing::info!(%hop, why, connections = down.len(), "the hop is lost: its connections are down");
                said = true;
            }
            // Again and again, because connections may have been made meanwhile; what is down already is no news.
            for id in down {
                told(&id, hop, News::Lost);
            }
            if self.give_up(hop, Duration::ZERO) {
                return;
            }
            tokio::select! {
                () = tasks.stopping() => return,
                () = tokio::time::sleep(backoff.next_delay()) => {}
            }
        }
    }

    async fn read(
        &self,
        hop: &Hop,
        mut stream: Streaming<ConnectionEvent>,
        heard: &mut HashSet<String>,
        told: &Told,
    ) -> Ended {
        let mut missing = Some(heard.clone());
        while let Some(item) = stream.next().await {
            let event = match item {
                Ok(event) => event,
                Err(status) if status.code() == Code::Unimplemented => return Ended::Unimplemented,
                Err(status) => {
                    tracing::debug!(%hop, why = status.message(), "the monitor ended");
                    return Ended::Lost;
                }
            };
            let kind = event.r#type();
            // A large state comes in several events; the first other one ends it.
            if kind != ConnectionEventType::InitialStateTransfer
                && let Some(gone) = missing.take()
            {
                for id in gone {
                    told(&id, hop, News::Lost);
                }
            }
            let last_of_initial = event.connections.len() < FULL_EVENT;
            for connection in event.connections.into_values() {
                let Some((id, carried)) = self.ours(connection) else { continue };
                if let Some(missing) = &mut missing {
                    missing.remove(&id);
                }
                let news = match kind {
                    ConnectionEventType::Delete => News::Lost,
                    _ => News::Update(Box::new(carried)),
                };
                told(&id, hop, news);
                heard.insert(id);
            }
            if heard.len() > 2 * self.held(hop) + FULL_EVENT {
                let ids = self.ids(hop);
                heard.retain(|id| ids.contains(id));
            }
            if last_of_initial && let Some(gone) = missing.take() {
                for id in gone {
                    told(&id, hop, News::Lost);
                }
            }
        }
        Ended::Lost
    }

    /// Our id of a connection that the hop tells of: that of the segment before the hop's own.
    fn ours(&self, mut connection: Connection) -> Option<(String, Carried)> {
        let path = wire::path_of(&connection).ok()?;
        connection.path = None;
        let theirs = usize::try_from(path.index).ok()?;
        let named = |i: usize| path.segments.get(i).filter(|s| s.name == self.inner.own_name);
        let ours = theirs.checked_sub(1).and_then(named).or_else(|| named(theirs))?;
        Some((ours.id.clone(), Carried { connection, path: path.clone() }))
    }

    fn held(&self, hop: &Hop) -> usize {
        self.inner.state.lock().watches.get(hop).map_or(0, |w| w.ids.len())
    }

    fn ids(&self, hop: &Hop) -> HashSet<String> {
        self.inner.state.lock().watches.get(hop).map(|w| w.ids.clone()).unwrap_or_default()
    }

    fn selector(&self) -> MonitorScopeSelector {
        let own = PathSegment { name: self.inner.own_name.clone(), ..PathSegment::default() };
        MonitorScopeSelector { path_segments: vec![own], ..MonitorScopeSelector::default() }
    }
}

/// An event of the initial state with so many connections has another one behind it (a Carrick's has; NSM sends all in one).
const FULL_EVENT: usize = 256;

/// How a monitor ended.
enum Ended {
    Unimplemented,
    Lost,
}
