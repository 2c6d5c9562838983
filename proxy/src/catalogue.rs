//! What the proxy asks of the registry.

use std::collections::BTreeMap;

use carrick_model::{Domain, SpiffeId, Target};
use carrick_proto::registry::{NetworkService, NetworkServiceEndpoint};
pub use carrick_proxy_core::inbound::LocalExport;
use futures::stream::BoxStream;
use tonic::Status;

/// The services that this domain offers itself.
pub trait LocalExports: Send + Sync + 'static {
    /// The exports of one service; empty when it is not offered.
    fn export(&self, service: &Target) -> Vec<LocalExport>;
}

/// The domain's registry, as whoever chooses an endpoint asks it. Answers come from memory: no method waits.
///
/// Names are those of the own domain, without an `@`, unless a method says otherwise. `viewer` is who asked for the connection: what
/// it may not see is not there for it. `None` is this process itself, which sees everything.
pub trait Catalogue: Send + Sync + 'static {
    /// The network service of this name.
    fn service(&self, name: &str, viewer: Option<&SpiffeId>) -> Option<NetworkService>;

    /// The endpoints that offer this service and whose lease is not over, at most `limit`.
    fn endpoints_of(
        &self,
        service: &str,
        viewer: Option<&SpiffeId>,
        limit: usize,
    ) -> Vec<NetworkServiceEndpoint>;

    /// The endpoint of this name.
    fn endpoint(&self, name: &str, viewer: Option<&SpiffeId>) -> Option<NetworkServiceEndpoint>;

    /// The endpoint of ours that is registered with another domain under this full name, `endpoint@domain`, with its own url in
    /// place of the one that was published there.
    fn published(&self, full_name: &str) -> Option<NetworkServiceEndpoint>;

    /// Network services as they change, beginning with none: each item is a service that was registered anew, or
    /// its name alone when it was removed. Ends when the registry does.
    fn service_changes(&self) -> BoxStream<'static, ServiceChange>;
}

/// A part that stays in charge of the registries of other domains, in place of our own search for them. Names are plain in both
/// directions.
#[tonic::async_trait]
pub trait Beyond: Send + Sync + 'static {
    /// The network service of this name.
    async fn service(&self, domain: &Domain, name: &str) -> Result<Option<NetworkService>, Status>;

    /// The endpoints of a service, with the urls at which to ask for them.
    async fn endpoints(&self, domain: &Domain, service: &str) -> Result<Vec<NetworkServiceEndpoint>, Status>;

    /// The endpoint of this name.
    async fn endpoint(&self, domain: &Domain, name: &str) -> Result<Option<NetworkServiceEndpoint>, Status>;
}

/// A network service that changed.
#[derive(Debug, Clone, PartialEq)]
pub enum ServiceChange {
    /// It is like this now.
    Now(NetworkService),
    /// The service of this name is gone.
    Gone(String),
    /// Changes were lost: whatever depends on a service has to be looked at again.
    Resynced,
}

/// A catalogue without anything, for domains without a registry.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoCatalogue;

impl Catalogue for NoCatalogue {
    fn service(&self, _: &str, _: Option<&SpiffeId>) -> Option<NetworkService> {
        None
    }

    fn endpoints_of(&self, _: &str, _: Option<&SpiffeId>, _: usize) -> Vec<NetworkServiceEndpoint> {
        Vec::new()
    }

    fn endpoint(&self, _: &str, _: Option<&SpiffeId>) -> Option<NetworkServiceEndpoint> {
        None
    }

    fn published(&self, _: &str) -> Option<NetworkServiceEndpoint> {
        None
    }

    fn service_changes(&self) -> BoxStream<'static, ServiceChange> {
        Box::pin(futures::stream::pending())
    }
}

/// The labels of an endpoint under a service; empty when it has none.
pub(crate) fn labels_of<'a>(
    endpoint: &'a NetworkServiceEndpoint,
    service: &str,
) -> Option<&'a BTreeMap<String, String>> {
    endpoint.network_service_labels.get(service).map(|l| &l.labels)
}
