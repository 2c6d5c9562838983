//! What federation asks of the registries of other domains.

use std::{fmt, time::Duration};

use carrick_identity::token::TokenPath;
use carrick_model::Domain;
use carrick_proto::registry::{NetworkService, NetworkServiceEndpoint};
use futures::stream::BoxStream;
use tokio::time::timeout;
use tonic::Code;

/// The registries of other domains, for one kind of object. Names are plain in both directions: the domain is an argument.
#[tonic::async_trait]
pub trait RemoteRegistry<T>: Send + Sync + 'static {
    /// The answers of the registry of `domain` to `query`; a watched query goes on with changes.
    ///
    /// Returns once the registry can be asked: one of NSM's says nothing to a watched query until there is something to
    /// say.
    async fn find(&self, domain: &Domain, query: T, watch: bool) -> Result<RemoteAnswers<T>, RemoteFault>;

    /// Registers `object` at `domain`, with the tokens of who asked for it up to us. Returns what the registry made of it, and the
    /// tokens of the hops behind us.
    async fn register(
        &self,
        domain: &Domain,
        object: T,
        path: TokenPath,
    ) -> Result<(T, Option<TokenPath>), RemoteFault>;

    /// Unregisters `object` at `domain`.
    async fn unregister(&self, domain: &Domain, object: T, path: TokenPath) -> Result<(), RemoteFault>;
}

/// The registries of other domains.
#[tonic::async_trait]
pub trait RemoteRegistries:
    RemoteRegistry<NetworkService> + RemoteRegistry<NetworkServiceEndpoint> + 'static
{
    /// Completes when the registry of `domain` has answered something, whatever it is.
    async fn probe(&self, domain: &Domain) -> Result<(), RemoteFault>;

    /// The registry of `domain` did not answer for too long: what is asked next goes over a new connection.
    fn lost(&self, domain: &Domain);
}

/// The answers of a remote registry. They end with the first fault.
pub type RemoteAnswers<T> = BoxStream<'static, Result<RemoteAnswer<T>, RemoteFault>>;

/// One answer.
#[derive(Debug, Clone, PartialEq)]
pub struct RemoteAnswer<T> {
    /// The object as the registry has it, or had it.
    pub object: T,
    /// Whether it is gone.
    pub deleted: bool,
}

/// Why another domain's registry could not be asked, or said no.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the registry of {domain}: {detail} ({blame}; {hint})")]
pub struct RemoteFault {
    /// Whose registry.
    pub domain: Domain,
    /// What it is to a caller: the registry's own code where it said no.
    pub code: Code,
    /// Whose fault it is.
    pub blame: RemoteBlame,
    /// What was seen.
    pub detail: String,
    /// What the operator of this side does next.
    pub hint: String,
}

/// Whose fault it is that a remote registry could not be asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RemoteBlame {
    /// This domain's configuration, trust or clock, or the caller's query.
    Us,
    /// The other domain.
    Peer,
    /// What is between the two.
    Network,
}

impl fmt::Display for RemoteBlame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Us => "to be mended here",
            Self::Peer => "to be mended there",
            Self::Network => "to be mended in between",
        })
    }
}

/// What a call to the registry of `domain` comes to; that it is silent after `limit`.
pub(crate) async fn answered<T>(
    domain: &Domain,
    limit: Duration,
    call: impl Future<Output = Result<T, RemoteFault>>,
) -> Result<T, RemoteFault> {
    timeout(limit, call).await.unwrap_or_else(|_| Err(RemoteFault::silent(domain, limit)))
}

impl RemoteFault {
    /// No answer came in time.
    pub(super) fn silent(domain: &Domain, after: Duration) -> Self {
        Self {
            domain: domain.clone(),
            code: Code::DeadlineExceeded,
            blame: RemoteBlame::Network,
            detail: format!("no answer within {} s", after.as_secs_f32()),
            hint: format!("`carrick explain` with a service of {domain} shows where the way ends"),
        }
    }

    /// The registry ended a watch.
    pub(crate) fn ended(domain: &Domain) -> Self {
        Self {
            domain: domain.clone(),
            code: Code::Unavailable,
            blame: RemoteBlame::Peer,
            detail: "it ended the watch".to_owned(),
            hint: "it stopped or restarted, or lost what it watches itself".to_owned(),
        }
    }

    /// What a registry answers is more than we take.
    pub(crate) fn too_much(domain: &Domain, objects: usize, octets: usize) -> Self {
        Self {
            domain: domain.clone(),
            code: Code::ResourceExhausted,
            blame: RemoteBlame::Us,
            detail: format!("the answer has more than {objects} objects or {octets} octets"),
            hint: "ask for a service or an endpoint by name".to_owned(),
        }
    }

    /// All answers together are more than we keep.
    pub(super) fn no_room(domain: &Domain, octets: usize) -> Self {
        Self {
            domain: domain.clone(),
            code: Code::ResourceExhausted,
            blame: RemoteBlame::Us,
            detail: format!("what is watched in all remote domains has more than {octets} octets"),
            hint: "end some watches, or watch services by name".to_owned(),
        }
    }

    /// Nobody watches any more.
    pub(super) fn abandoned(domain: &Domain) -> Self {
        Self {
            domain: domain.clone(),
            code: Code::Cancelled,
            blame: RemoteBlame::Us,
            detail: "nobody watches any more".to_owned(),
            hint: "ask again".to_owned(),
        }
    }

    /// We stop.
    pub(super) fn stopping(domain: &Domain) -> Self {
        Self {
            domain: domain.clone(),
            code: Code::Unavailable,
            blame: RemoteBlame::Us,
            detail: "this registry is stopping".to_owned(),
            hint: "ask again".to_owned(),
        }
    }
}
