//! One Find: from a query and its caller to a stream of answers.

use std::sync::Arc;

use carrick_identity::Caller;
use carrick_model::SpiffeId;
use carrick_registry_core::{Filter, Object, Record, Step, Update, Walk};
use futures::stream::{self, BoxStream, StreamExt as _};
use prost::Message;
use tonic::{Code, Extensions, Status};

use crate::{
    federation::{Federated, FederationError},
    limits::{MAX_WATCH_QUERY, MAX_WATCHES, MAX_WATCHES_PER_CALLER},
    names::{self, Addressed, NameError, Named},
    registry::{Registry, Watch},
};

/// Why a Find is not answered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FindError {
    /// The connection carries no identity; a retry does not help.
    #[error("the caller has no SPIFFE ID")]
    NoCaller,
    /// The names of the query are not understood; the caller has to change them.
    #[error(transparent)]
    Name(#[from] NameError),
    /// The query is for another domain, and came to nothing there.
    #[error(transparent)]
    Federation(#[from] FederationError),
    /// The query is too large to be kept; the caller has to ask for less, or without `watch`.
    #[error("a watched query has at most {MAX_WATCH_QUERY} octets, this one has {0}")]
    LargeQuery(usize),
    /// All callers together have too many watches; a retry may help.
    #[error("{MAX_WATCHES} watches are open, no more are taken")]
    Watches,
    /// The caller has too many watches; it has to end one.
    #[error("{0} has {MAX_WATCHES_PER_CALLER} watches open, no more are taken: end one first")]
    WatchesOfCaller(SpiffeId),
}

impl From<FindError> for Status {
    fn from(fault: FindError) -> Self {
        let code = match fault {
            FindError::NoCaller => Code::Unauthenticated,
            FindError::Name(_) => Code::InvalidArgument,
            FindError::Federation(fault) => return fault.into(),
            FindError::LargeQuery(_) | FindError::Watches | FindError::WatchesOfCaller(_) => {
                Code::ResourceExhausted
            }
        };
        Self::new(code, fault.to_string())
    }
}

/// A kind of object as it goes over the wire.
pub(crate) trait Wire: Object + Named + Message + Default {
    /// An item of the stream of answers.
    type Response: Send + 'static;

    fn response(self, deleted: bool) -> Self::Response;
}

/// The answers to a query. They end with the walk, or, watched, with the registry.
pub(crate) type Answers<R> = BoxStream<'static, Result<R, Status>>;

/// Answers `query` as its caller, who is in the extensions of the request, may see it.
pub(crate) async fn find<T: Federated>(
    registry: &Registry,
    extensions: &Extensions,
    query: T,
    watch: bool,
) -> Result<Answers<T::Response>, FindError> {
    let caller = extensions.get::<Caller>().ok_or(FindError::NoCaller)?;
    find_for(registry, caller.id(), query, watch).await
}

/// Answers `query` as `caller` may see it.
pub(crate) async fn find_for<T: Federated>(
    registry: &Registry,
    caller: &SpiffeId,
    mut query: T,
    watch: bool,
) -> Result<Answers<T::Response>, FindError> {
    let size = query.encoded_len();
    let suffix = match names::cut_domain(&mut query)? {
        Addressed::Plain => None,
        Addressed::To(domain, text) if domain == *registry.domain() => Some(text),
        Addressed::To(other, suffix) => {
            if size > MAX_WATCH_QUERY {
                return Err(FindError::LargeQuery(size));
            }
            let federation = registry.federation_for(caller, &other)?;
            return Ok(federation.answer(caller, &other, suffix, query, watch).await?);
        }
    };
    let filter = Filter { query, viewer: registry.viewer(caller) };
    if !watch {
        let walk = Walking { walk: registry.walk(filter), registry: registry.clone(), suffix };
        return Ok(
            stream::unfold(walk, |mut walk| async move { Some((Ok(walk.next().await?), walk)) }).boxed()
        );
    }
    if size > MAX_WATCH_QUERY {
        return Err(FindError::LargeQuery(size));
    }
    let watch = Watching { watch: registry.watch(filter, caller)?, registry: registry.clone(), suffix };
    Ok(stream::unfold(Some(watch), |watch| async move {
        let mut watch = watch?;
        match watch.next().await {
            Some(answer) => Some((Ok(answer), Some(watch))),
            None => Some((Err(watch.farewell()), None)),
        }
    })
    .boxed())
}

/// What is there now.
struct Walking<T> {
    registry: Registry,
    walk: Walk<T>,
    suffix: Option<String>,
}

impl<T: Wire> Walking<T> {
    async fn next(&mut self) -> Option<T::Response> {
        loop {
            match self.registry.poll_walk(&mut self.walk) {
                Step::Item(record) => return Some(answer(&record, self.suffix.as_deref(), false)),
                Step::Busy => tokio::task::yield_now().await,
                Step::Idle => return None,
            }
        }
    }
}

/// What is there now, and how it changes.
struct Watching<T: Wire> {
    registry: Registry,
    watch: Watch<T>,
    suffix: Option<String>,
}

impl<T: Wire> Watching<T> {
    /// The next answer; `None` when the registry stops.
    async fn next(&mut self) -> Option<T::Response> {
        while !self.registry.tasks().is_stopping() {
            match self.watch.poll() {
                Step::Item(Update::Present(record)) => {
                    return Some(answer(&record, self.suffix.as_deref(), false));
                }
                Step::Item(Update::Gone { last, .. }) => {
                    return Some(answer(&last, self.suffix.as_deref(), true));
                }
                Step::Busy => tokio::task::yield_now().await,
                Step::Idle => tokio::select! {
                    () = self.watch.news() => {}
                    () = self.registry.tasks().stopping() => {}
                },
            }
        }
        None
    }

    /// Watchers take the end of a stream as the loss of the registry and look for it anew, which is right here.
    fn farewell(&self) -> Status {
        Status::unavailable(format!("the registry of {} is stopping: ask again", self.registry.domain()))
    }
}

fn answer<T: Wire>(record: &Arc<Record<T>>, suffix: Option<&str>, deleted: bool) -> T::Response {
    let mut object = record.object();
    if let Some(suffix) = suffix {
        names::add_domain(&mut object, suffix);
    }
    object.response(deleted)
}
