//! The proxy's connections to other domains, as the registry asks their registries over them.

use carrick_identity::token::TokenPath;
use carrick_model::{Domain, cause::in_one_line};
use carrick_proxy::peers::{PeerFault, Peers, RegistryObject};
use carrick_proxy_core::Blame;
use carrick_registry::federation::{
    RemoteAnswer, RemoteAnswers, RemoteBlame, RemoteFault, RemoteRegistries, RemoteRegistry,
};
use futures::StreamExt as _;
use tonic::Code;

/// The registries of other domains: found by the proxy's resolver, reached over its pool, trusted as its map says.
pub(crate) struct RemotePeers(pub(crate) Peers);

#[tonic::async_trait]
impl<T: RegistryObject> RemoteRegistry<T> for RemotePeers {
    async fn find(&self, domain: &Domain, query: T, watch: bool) -> Result<RemoteAnswers<T>, RemoteFault> {
        let answers = self.0.ask_registry(domain, query, watch).await.map_err(|e| fault(domain, &e))?;
        let domain = domain.clone();
        Ok(answers
            .map(move |answer| match answer {
                Ok((object, deleted)) => Ok(RemoteAnswer { object, deleted }),
                Err(error) => Err(fault(&domain, &error)),
            })
            .boxed())
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
