//! An import that several domains offer: each of them connects by itself, and the data path hears of the import's own name only.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use carrick_model::{ConnectionId, ServiceName};
use carrick_proxy_core::alternatives::{Alternatives, Strategy};
use carrick_runtime::Tasks;
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::datapath::{Admission, DataPath, Route};

/// Without anything to wait for the group looks again after this.
const LOOK: Duration = Duration::from_secs(60);

/// The alternatives of one import. Clones share them.
#[derive(Clone)]
pub(super) struct Group {
    inner: Arc<Inner>,
}

struct Inner {
    /// What the data path knows the import by.
    name: ServiceName,
    datapath: Arc<dyn DataPath>,
    changed: Notify,
    /// Held while the data path is told, so that it hears of things in the order in which they happened.
    state: Mutex<State>,
}

struct State {
    alternatives: Alternatives,
    members: Vec<Member>,
    used: Vec<(usize, u32)>,
}

struct Member {
    service: ServiceName,
    /// Its route, or why it has none.
    route: Result<Route, String>,
}

impl Group {
    pub(super) fn new(
        name: &ServiceName,
        members: &[ServiceName],
        strategy: Strategy,
        datapath: Arc<dyn DataPath>,
    ) -> Self {
        let member = |service: &ServiceName| Member {
            service: service.clone(),
            route: Err("it is being connected".to_owned()),
        };
        let state = State {
            alternatives: Alternatives::new(strategy, members.len()),
            members: members.iter().map(member).collect(),
            used: Vec::new(),
        };
        let (changed, state) = (Notify::new(), Mutex::new(state));
        Self { inner: Arc::new(Inner { name: name.clone(), datapath, changed, state }) }
    }

    /// The data path of one member.
    pub(super) fn member(&self, index: usize) -> Arc<dyn DataPath> {
        Arc::new(MemberPath { group: self.clone(), index })
    }

    /// The members that flows go to now.
    pub(super) fn used(&self) -> Vec<usize> {
        self.inner.state.lock().used.iter().map(|(index, _)| *index).collect()
    }

    /// The member that holds this connection.
    pub(super) fn holder(&self, connection: ConnectionId) -> Option<usize> {
        let state = self.inner.state.lock();
        state.members.iter().position(|m| m.route.as_ref().is_ok_and(|r| r.connection == connection))
    }

    /// Moves flows back to better members when those have stayed long enough.
    pub(super) async fn run(self, tasks: Tasks) {
        let stopping = tasks.stopping();
        tokio::pin!(stopping);
        loop {
            let latest = Instant::now() + LOOK;
            let next =
                self.inner.state.lock().alternatives.poll_timeout().map_or(latest, |at| at.min(latest));
            tokio::select! {
                () = &mut stopping => return,
                () = self.inner.changed.notified() => {}
                () = tokio::time::sleep_until(next.into()) => self.change(|_, _| {}),
            }
        }
    }

    fn change(&self, f: impl FnOnce(&mut State, Instant)) {
        let inner = &*self.inner;
        let now = Instant::now();
        let mut state = inner.state.lock();
        let before = state.routes();
        f(&mut state, now);
        state.used = state.alternatives.choose(now);
        let routes = state.routes();
        if routes.is_empty() {
            inner.datapath.unroute(&inner.name, &state.why());
        } else if routes != before {
            let names: Vec<String> =
                state.used.iter().map(|(i, _)| state.members[*i].service.to_string()).collect();
            tracing::info!(import = %inner.name, used = ?names, "the import's flows go here now");
            inner.datapath.share(&inner.name, routes);
        }
        drop(state);
        inner.changed.notify_one();
    }
}

impl State {
    fn routes(&self) -> Vec<(Route, u32)> {
        let route = |(index, share): &(usize, u32)| {
            let route = self.members.get(*index)?.route.as_ref().ok()?;
            Some((route.clone(), *share))
        };
        self.used.iter().filter_map(route).collect()
    }

    fn why(&self) -> String {
        let of = |m: &Member| m.route.as_ref().err().map(|why| format!("{}: {why}", m.service));
        self.members.iter().filter_map(of).collect::<Vec<_>>().join("; ")
    }
}

/// What the worker of one member tells.
struct MemberPath {
    group: Group,
    index: usize,
}

impl DataPath for MemberPath {
    fn admit(&self, admission: Admission) {
        self.group.inner.datapath.admit(admission);
    }

    fn revoke(&self, id: ConnectionId, why: &str) {
        self.group.inner.datapath.revoke(id, why);
    }

    fn route(&self, _: &ServiceName, route: Route) {
        self.group.change(|state, now| {
            state.alternatives.handle_up(self.index, route.answered, now);
            if let Some(member) = state.members.get_mut(self.index) {
                member.route = Ok(route);
            }
        });
    }

    fn unroute(&self, _: &ServiceName, why: &str) {
        self.group.change(|state, _| {
            state.alternatives.handle_down(self.index);
            if let Some(member) = state.members.get_mut(self.index) {
                member.route = Err(why.to_owned());
            }
        });
    }
}
