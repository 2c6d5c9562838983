//! The proxy's connections to other domains and to parts of NSM, as the registry asks over them.

use carrick_identity::token::TokenPath;
use carrick_model::{Domain, cause::in_one_line};
use carrick_proto::registry::{NetworkService, NetworkServiceEndpoint};
use carrick_proxy::{
    catalogue::Beyond,
    part::{PartFault, PartRegistry},
    peers::{PeerFault, Peers, RegistryObject},
};
use carrick_proxy_core::Blame;
use carrick_registry::federation::{
    Federation, RemoteAnswer, RemoteAnswers, RemoteBlame, RemoteFault, RemoteRegistries, RemoteRegistry,
};
use futures::{Stream, StreamExt as _};
use tonic::{Code, Status};

/// The registries of other domains: found by the proxy's resolver, reached over its pool, trusted as its map says.
pub(crate) struct RemotePeers(pub(crate) Peers);

#[tonic::async_trait]
impl<T: RegistryObject> RemoteRegistry<T> for RemotePeers {
    async fn find(&self, domain: &Domain, query: T, watch: bool) -> Result<RemoteAnswers<T>, RemoteFault> {
        let answers = self.0.ask_registry(domain, query, watch).await.map_err(|e| fault(domain, &e))?;
        Ok(answers_of(domain, answers, fault))
    }

    async fn register(
        &self,
        domain: &Domain,
        object: T,
        path: TokenPath,
    ) -> Result<(T, Option<TokenPath>), RemoteFault> {
        self.0.register_at(domain, object, &path).await.map_err(|e| fault(domain, &e))
    }

    async fn unregister(&self, domain: &Domain, object: T, path: TokenPath) -> Result<(), RemoteFault> {
        self.0.unregister_at(domain, object, &path).await.map_err(|e| fault(domain, &e))
    }
}

#[tonic::async_trait]
impl RemoteRegistries for RemotePeers {
    async fn probe(&self, domain: &Domain) -> Result<(), RemoteFault> {
        self.0.probe_registry(domain).await.map_err(|e| fault(domain, &e))
    }

    fn lost(&self, domain: &Domain) {
        self.0.forget(domain);
    }
}

/// One registry that is asked about every domain: NSM's, for our own names or for those of others.
pub(crate) struct RemotePart(pub(crate) PartRegistry);

#[tonic::async_trait]
impl<T: RegistryObject> RemoteRegistry<T> for RemotePart {
    async fn find(&self, domain: &Domain, query: T, watch: bool) -> Result<RemoteAnswers<T>, RemoteFault> {
        let answers = self.0.ask(query, watch).await.map_err(|e| part_fault(domain, &e))?;
        Ok(answers_of(domain, answers, part_fault))
    }

    async fn register(
        &self,
        domain: &Domain,
        object: T,
        path: TokenPath,
    ) -> Result<(T, Option<TokenPath>), RemoteFault> {
        self.0.register(object, &path).await.map_err(|e| part_fault(domain, &e))
    }

    async fn unregister(&self, domain: &Domain, object: T, path: TokenPath) -> Result<(), RemoteFault> {
        self.0.unregister(object, &path).await.map_err(|e| part_fault(domain, &e))
    }
}

#[tonic::async_trait]
impl RemoteRegistries for RemotePart {
    async fn probe(&self, domain: &Domain) -> Result<(), RemoteFault> {
        self.0.probe().await.map_err(|e| part_fault(domain, &e))
    }

    /// A call that gets no answer drops the connection itself.
    fn lost(&self, _: &Domain) {}
}

/// Answers of the proxy in the registry's words.
fn answers_of<T: Send + 'static, E: 'static>(
    domain: &Domain,
    answers: impl Stream<Item = Result<(T, bool), E>> + Send + 'static,
    fault: fn(&Domain, &E) -> RemoteFault,
) -> RemoteAnswers<T> {
    let domain = domain.clone();
    let answer = move |(object, deleted)| RemoteAnswer { object, deleted };
    answers.map(move |answered| answered.map(answer).map_err(|error| fault(&domain, &error))).boxed()
}

fn part_fault(domain: &Domain, error: &PartFault) -> RemoteFault {
    let (blame, hint) = match error.refused {
        true => (RemoteBlame::Peer, "it was reached and says no: its log says more"),
        false => (
            RemoteBlame::Us,
            "compare the url under `compat.nsm` with where that part listens, and its roots with `trust`",
        ),
    };
    let hint = hint.to_owned();
    RemoteFault { domain: domain.clone(), code: error.code, blame, detail: error.to_string(), hint }
}

/// The federation as whoever chooses an endpoint asks it, where a part of NSM stays in charge of other domains.
pub(crate) struct FederationBeyond(pub(crate) Federation);

#[tonic::async_trait]
impl Beyond for FederationBeyond {
    async fn service(&self, domain: &Domain, name: &str) -> Result<Option<NetworkService>, Status> {
        let query = NetworkService { name: name.to_owned(), ..Default::default() };
        let found = self.0.find_services(domain, query).await?;
        Ok(found.into_iter().find(|service| service.name == name))
    }

    async fn endpoints(&self, domain: &Domain, service: &str) -> Result<Vec<NetworkServiceEndpoint>, Status> {
        let network_service_names = vec![service.to_owned()];
        let query = NetworkServiceEndpoint { network_service_names, ..Default::default() };
        Ok(self.0.find_endpoints(domain, query).await?)
    }

    async fn endpoint(&self, domain: &Domain, name: &str) -> Result<Option<NetworkServiceEndpoint>, Status> {
        let query = NetworkServiceEndpoint { name: name.to_owned(), ..Default::default() };
        let found = self.0.find_endpoints(domain, query).await?;
        Ok(found.into_iter().find(|endpoint| endpoint.name == name))
    }
}

fn fault(domain: &Domain, error: &PeerFault) -> RemoteFault {
    let code = match error {
        PeerFault::Resolve { .. }
        | PeerFault::NoAddress { .. }
        | PeerFault::Dial { .. }
        | PeerFault::Broken { .. } => Code::Unavailable,
        PeerFault::NoTrust { .. } | PeerFault::NotAccepted { .. } => Code::FailedPrecondition,
        PeerFault::TimedOut { .. } => Code::DeadlineExceeded,
        PeerFault::Refused { code, .. } => *code,
        PeerFault::BadAnswer { .. } => Code::Internal,
    };
    let blame = match error.blame() {
        Blame::Us => RemoteBlame::Us,
        Blame::Peer => RemoteBlame::Peer,
        Blame::Network => RemoteBlame::Network,
    };
    RemoteFault { domain: domain.clone(), code, blame, detail: in_one_line(error), hint: error.hint() }
}

#[cfg(test)]
#[path = "remote_tests.rs"]
mod tests;
