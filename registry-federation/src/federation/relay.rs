//! A part of Network Service Mesh that stays in charge of names with an `@`.
//!
//! Such a part — registry-proxy-dns behind a proxy, or the proxy behind a registry — takes full names and answers with full names.
//! [`Relay`] is the registries of all other domains by way of that one part.

use carrick_identity::token::TokenPath;
use carrick_model::Domain;
use carrick_proto::registry::{NetworkService, NetworkServiceEndpoint};
use futures::StreamExt as _;

use super::remote::{RemoteAnswer, RemoteAnswers, RemoteFault, RemoteRegistries, RemoteRegistry};
use crate::names::{Named, add_domain, make_plain};

/// All other domains, by way of one part: whichever domain `part` is asked about, it gets full names.
pub struct Relay<P>(pub P);

#[tonic::async_trait]
impl<T: Named + Send + 'static, P: RemoteRegistry<T>> RemoteRegistry<T> for Relay<P> {
    async fn find(
        &self,
        domain: &Domain,
        mut query: T,
        watch: bool,
    ) -> Result<RemoteAnswers<T>, RemoteFault> {
        add_domain(&mut query, domain.as_str());
        let answers = self.0.find(domain, query, watch).await?;
        let cut = |RemoteAnswer { mut object, deleted }| {
            make_plain(&mut object);
            RemoteAnswer { object, deleted }
        };
        Ok(answers.map(move |answer| answer.map(cut)).boxed())
    }

    async fn register(
        &self,
        domain: &Domain,
        mut object: T,
        path: TokenPath,
    ) -> Result<(T, Option<TokenPath>), RemoteFault> {
        add_domain(&mut object, domain.as_str());
        let (mut object, path) = self.0.register(domain, object, path).await?;
        make_plain(&mut object);
        Ok((object, path))
    }

    async fn unregister(&self, domain: &Domain, mut object: T, path: TokenPath) -> Result<(), RemoteFault> {
        add_domain(&mut object, domain.as_str());
        self.0.unregister(domain, object, path).await
    }
}

#[tonic::async_trait]
impl<P> RemoteRegistries for Relay<P>
where
    P: RemoteRegistries,
    Self: RemoteRegistry<NetworkService> + RemoteRegistry<NetworkServiceEndpoint>,
{
    async fn probe(&self, domain: &Domain) -> Result<(), RemoteFault> {
        self.0.probe(domain).await
    }

    fn lost(&self, domain: &Domain) {
        self.0.lost(domain);
    }
}
