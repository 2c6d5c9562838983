//! The registry of a site, as its own proxy asks it and as others do: lists that a test replaces.

use std::{pin::Pin, sync::Arc};

use carrick_model::SpiffeId;
use carrick_proto::registry::{
    NetworkService, NetworkServiceEndpoint, NetworkServiceQuery, NetworkServiceResponse,
    network_service_registry_server::NetworkServiceRegistry,
};
use carrick_proxy::catalogue::{Catalogue, ServiceChange};
use futures::{
    Stream, StreamExt,
    stream::{self, BoxStream},
};
use parking_lot::Mutex;
use tokio::sync::{broadcast, watch};
use tonic::{Request, Response, Status};

/// Endpoints, services, and what is published elsewhere.
pub struct SiteCatalogue {
    endpoints: watch::Receiver<Vec<NetworkServiceEndpoint>>,
    services: Mutex<Vec<NetworkService>>,
    published: Mutex<Vec<NetworkServiceEndpoint>>,
    /// Endpoints that callers of other domains must not see.
    hidden: Mutex<Vec<String>>,
    changes: broadcast::Sender<ServiceChange>,
}

impl SiteCatalogue {
    pub fn new(endpoints: watch::Receiver<Vec<NetworkServiceEndpoint>>) -> Self {
        let (changes, _) = broadcast::channel(16);
        Self {
            endpoints,
            services: Mutex::default(),
            published: Mutex::default(),
            hidden: Mutex::default(),
            changes,
        }
    }

    pub fn endpoints(&self) -> watch::Receiver<Vec<NetworkServiceEndpoint>> {
        self.endpoints.clone()
    }

    pub fn set_service(&self, service: NetworkService) {
        let mut services = self.services.lock();
        services.retain(|s| s.name != service.name);
        services.push(service.clone());
        let _nobody_follows = self.changes.send(ServiceChange::Now(service));
    }

    pub fn publish(&self, endpoint: NetworkServiceEndpoint) {
        self.published.lock().push(endpoint);
    }

    pub fn hide(&self, endpoint: &str) {
        self.hidden.lock().push(endpoint.to_owned());
    }

    fn list(&self, viewer: Option<&SpiffeId>) -> Vec<NetworkServiceEndpoint> {
        let hidden = self.hidden.lock();
        let sees = |e: &&NetworkServiceEndpoint| viewer.is_none() || !hidden.contains(&e.name);
        self.endpoints.borrow().iter().filter(sees).cloned().collect()
    }
}

impl Catalogue for SiteCatalogue {
    fn service(&self, name: &str, _: Option<&SpiffeId>) -> Option<NetworkService> {
        self.services.lock().iter().find(|s| s.name == name).cloned()
    }

    fn endpoints_of(
        &self,
        service: &str,
        viewer: Option<&SpiffeId>,
        limit: usize,
    ) -> Vec<NetworkServiceEndpoint> {
        let offers = |e: &NetworkServiceEndpoint| e.network_service_names.iter().any(|n| n == service);
        self.list(viewer).into_iter().filter(offers).take(limit).collect()
    }

    fn endpoint(&self, name: &str, viewer: Option<&SpiffeId>) -> Option<NetworkServiceEndpoint> {
        self.list(viewer).into_iter().find(|e| e.name == name)
    }

    fn published(&self, full_name: &str) -> Option<NetworkServiceEndpoint> {
        self.published.lock().iter().find(|e| e.name == full_name).cloned()
    }

    fn service_changes(&self) -> BoxStream<'static, ServiceChange> {
        let changes = self.changes.subscribe();
        stream::unfold(changes, |mut changes| async move { Some((changes.recv().await.ok()?, changes)) })
            .boxed()
    }
}

/// Find of services.
pub struct Services(pub Arc<SiteCatalogue>);

type Found = Pin<Box<dyn Stream<Item = Result<NetworkServiceResponse, Status>> + Send>>;

#[tonic::async_trait]
impl NetworkServiceRegistry for Services {
    type FindStream = Found;

    async fn register(&self, _: Request<NetworkService>) -> Result<Response<NetworkService>, Status> {
        Err(Status::unimplemented("not in these tests"))
    }

    async fn unregister(&self, _: Request<NetworkService>) -> Result<Response<()>, Status> {
        Err(Status::unimplemented("not in these tests"))
    }

    async fn find(&self, request: Request<NetworkServiceQuery>) -> Result<Response<Found>, Status> {
        let pattern = request.into_inner().network_service.unwrap_or_default();
        let all = self.0.services.lock().clone();
        let fits = move |s: &NetworkService| pattern.name.is_empty() || pattern.name == s.name;
        let told = |s| {
            Ok(NetworkServiceResponse {
                network_service: Some(s),
                deleted: false,
                ..NetworkServiceResponse::default()
            })
        };
        let all: Vec<_> = all.into_iter().filter(fits).map(told).collect();
        Ok(Response::new(stream::iter(all).boxed()))
    }
}
