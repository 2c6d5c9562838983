//! A part of Network Service Mesh that stays in charge of names with an `@`.
//!
//! Such a part — registry-proxy-dns behind a proxy, or the proxy behind a registry — takes full names and answers with full names.
//! [`Relay`] is the registries of all other domains by way of that one part.

use carrick_identity::token::TokenPath;
use carrick_model::{Domain, service::split_name};
use carrick_proto::registry::{NetworkService, NetworkServiceEndpoint};
use futures::StreamExt as _;

use super::remote::{RemoteAnswer, RemoteAnswers, RemoteFault, RemoteRegistries, RemoteRegistry};
use crate::names::Named;

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
        address(&mut query, domain);
        let answers = self.0.find(domain, query, watch).await?;
        let cut = |RemoteAnswer { mut object, deleted }| {
            unaddress(&mut object);
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
        address(&mut object, domain);
        let (mut object, path) = self.0.register(domain, object, path).await?;
        unaddress(&mut object);
        Ok((object, path))
    }

    async fn unregister(&self, domain: &Domain, mut object: T, path: TokenPath) -> Result<(), RemoteFault> {
        address(&mut object, domain);
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

/// Puts the domain behind every name there is. A query may have none: it asks for all of a service.
fn address(object: &mut impl Named, domain: &Domain) {
    object.rename(|name| if name.is_empty() { String::new() } else { format!("{name}@{domain}") });
}

fn unaddress(object: &mut impl Named) {
    object.rename(|name| split_name(name).0.to_owned());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_get_the_domain_and_lose_it_again() {
        let domain = "b.test".parse().unwrap();
        let plain = NetworkServiceEndpoint {
            network_service_names: vec!["web".into()],
            network_service_labels: [("web".to_owned(), Default::default())].into(),
            ..Default::default()
        };
        let mut query = plain.clone();
        address(&mut query, &domain);
        assert_eq!((query.name.as_str(), query.network_service_names[0].as_str()), ("", "web@b.test"));
        assert!(query.network_service_labels.contains_key("web@b.test"), "{query:?}");
        unaddress(&mut query);
        assert_eq!(query, plain);
        let mut service = NetworkService { name: "web".into(), ..Default::default() };
        address(&mut service, &domain);
        assert_eq!(service.name, "web@b.test");
    }
}
