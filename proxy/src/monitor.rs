//! `connection.MonitorConnection`: who watches the connections of this process, and the streams that tell them.

use std::{collections::HashMap, sync::Arc};

use carrick_identity::Caller;
use carrick_model::TrustDomain;
use carrick_proto::connection::{
    Connection, ConnectionEvent, MonitorScopeSelector,
    monitor_connection_server::{MonitorConnection, MonitorConnectionServer},
};
use carrick_proxy_core::monitor::{self, Viewer, WatchId};
use carrick_runtime::Tasks;
use futures::stream::{self, BoxStream, StreamExt};
use parking_lot::Mutex;
use tokio::sync::Notify;
use tonic::{Request, Response, Status};

use crate::control::MAX_MESSAGE;

/// The connections of this process, as others watch them. Clones share them.
#[derive(Clone)]
pub struct Monitors {
    inner: Arc<Inner>,
}

struct Inner {
    own: TrustDomain,
    tasks: Tasks,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    table: monitor::Monitors,
    news: HashMap<WatchId, Arc<Notify>>,
}

impl Monitors {
    /// No connections yet. Callers of the trust domain `own` see all of them; watches end when `tasks` is told to stop.
    pub fn new(own: TrustDomain, tasks: &Tasks) -> Self {
        Self { inner: Arc::new(Inner { own, tasks: tasks.clone(), state: Mutex::default() }) }
    }

    /// The gRPC service. Requests need a [`Caller`] in their extensions.
    pub fn into_service(self) -> MonitorConnectionServer<Self> {
        MonitorConnectionServer::new(self).max_decoding_message_size(MAX_MESSAGE)
    }

    /// How many watches are open.
    pub fn watch_count(&self) -> usize {
        self.inner.state.lock().table.watch_count()
    }

    /// A connection of `owner` is like this now, with our id and our place in its path.
    pub(crate) fn publish(&self, owner: &TrustDomain, connection: Connection) {
        self.inner.change(|table| table.publish(owner, connection));
    }

    /// A connection is gone.
    pub(crate) fn remove(&self, id: &str) {
        self.inner.change(|table| table.remove(id));
    }
}

impl Inner {
    fn change(&self, f: impl FnOnce(&mut monitor::Monitors)) {
        let mut state = self.state.lock();
        f(&mut state.table);
        while let Some(id) = state.table.poll_woken() {
            if let Some(news) = state.news.get(&id) {
                news.notify_one();
            }
        }
    }
}

/// A watch that ends when it is dropped.
struct Watch {
    inner: Arc<Inner>,
    id: WatchId,
    news: Arc<Notify>,
}

impl Watch {
    /// The next event; `None` when the process stops.
    async fn next(&self) -> Option<ConnectionEvent> {
        while !self.inner.tasks.is_stopping() {
            if let Some(event) = self.inner.state.lock().table.poll_event(self.id) {
                return Some(event);
            }
            tokio::select! {
                () = self.news.notified() => {}
                () = self.inner.tasks.stopping() => {}
            }
        }
        None
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let mut state = self.inner.state.lock();
        state.table.unwatch(self.id);
        state.news.remove(&self.id);
    }
}

#[tonic::async_trait]
impl MonitorConnection for Monitors {
    type MonitorConnectionsStream = BoxStream<'static, Result<ConnectionEvent, Status>>;

    async fn monitor_connections(
        &self,
        request: Request<MonitorScopeSelector>,
    ) -> Result<Response<Self::MonitorConnectionsStream>, Status> {
        let Some(caller) = request.extensions().get::<Caller>() else {
            return Err(Status::unauthenticated("the connection carries no SPIFFE identity"));
        };
        let trust_domain = caller.id().trust_domain();
        let viewer =
            if *trust_domain == self.inner.own { Viewer::Own } else { Viewer::Peer(trust_domain.clone()) };
        let watch = {
            let mut state = self.inner.state.lock();
            let id = state.table.watch(request.into_inner(), viewer);
            let id = id.map_err(|e| Status::resource_exhausted(e.to_string()))?;
            let news = Arc::new(Notify::new());
            state.news.insert(id, Arc::clone(&news));
            Watch { inner: Arc::clone(&self.inner), id, news }
        };
        // A client takes the end of its monitor as the loss of this process, and heals: that is what a stop is.
        let events = stream::unfold(Some(watch), |watch| async move {
            let watch = watch?;
            match watch.next().await {
                Some(event) => Some((Ok(event), Some(watch))),
                None => Some((Err(Status::unavailable("this process is stopping")), None)),
            }
        });
        Ok(Response::new(events.boxed()))
    }
}
