//! The two gRPC services on NSM's wire.

use carrick_proto::registry::{
    NetworkService, NetworkServiceEndpoint, NetworkServiceEndpointQuery, NetworkServiceEndpointResponse,
    NetworkServiceQuery, NetworkServiceResponse,
    network_service_endpoint_registry_server::{
        NetworkServiceEndpointRegistry, NetworkServiceEndpointRegistryServer,
    },
    network_service_registry_server::{NetworkServiceRegistry, NetworkServiceRegistryServer},
};
use carrick_registry_core::Object as _;
use tonic::{Extensions, Request, Response, Status};

use crate::{
    federation::Federated,
    find::{Answers, Wire, find},
    limits::MAX_MESSAGE,
    register::{RegisterError, register, unregister},
    registry::Registry,
};

/// `registry.NetworkServiceRegistry` over a [`Registry`].
#[derive(Clone)]
pub struct ServiceRegistry(Registry);

/// `registry.NetworkServiceEndpointRegistry` over a [`Registry`].
#[derive(Clone)]
pub struct EndpointRegistry(Registry);

impl Registry {
    /// The gRPC service for network services. Requests need a [`Caller`](carrick_identity::Caller) in their extensions.
    pub fn service_registry(&self) -> NetworkServiceRegistryServer<ServiceRegistry> {
        NetworkServiceRegistryServer::new(ServiceRegistry(self.clone()))
            .max_decoding_message_size(MAX_MESSAGE)
    }

    /// The gRPC service for endpoints. Requests need a [`Caller`](carrick_identity::Caller) in their extensions.
    pub fn endpoint_registry(&self) -> NetworkServiceEndpointRegistryServer<EndpointRegistry> {
        NetworkServiceEndpointRegistryServer::new(EndpointRegistry(self.clone()))
            .max_decoding_message_size(MAX_MESSAGE)
    }

    async fn answer<T: Federated>(
        &self,
        extensions: &Extensions,
        query: Option<T>,
        watch: bool,
    ) -> Result<Response<Answers<T::Response>>, Status> {
        // A query without a template asks for everything.
        match find(self, extensions, query.unwrap_or_default(), watch).await {
            Ok(answers) => Ok(Response::new(answers)),
            Err(fault) => {
                tracing::info!(kind = T::WHAT, %fault, "a Find is refused");
                Err(fault.into())
            }
        }
    }

    /// Logs and counts what a call came to.
    fn conclude<R>(
        &self,
        what: &'static str,
        verb: &'static str,
        verdict: Result<Response<R>, RegisterError>,
    ) -> Result<Response<R>, Status> {
        let outcome = verdict.as_ref().map_or_else(RegisterError::outcome, |_| "done");
        self.metrics().registrations.of2(verb, outcome).inc();
        verdict.map_err(|fault| {
            tracing::info!(kind = what, verb, %fault, "a registration is refused");
            fault.into()
        })
    }
}

#[tonic::async_trait]
impl NetworkServiceRegistry for ServiceRegistry {
    type FindStream = Answers<NetworkServiceResponse>;

    async fn find(
        &self,
        request: Request<NetworkServiceQuery>,
    ) -> Result<Response<Self::FindStream>, Status> {
        let (_, extensions, query) = request.into_parts();
        self.0.answer(&extensions, query.network_service, query.watch).await
    }

    async fn register(&self, request: Request<NetworkService>) -> Result<Response<NetworkService>, Status> {
        let verdict = register(&self.0, request).await;
        self.0.conclude(NetworkService::WHAT, "register", verdict)
    }

    async fn unregister(&self, request: Request<NetworkService>) -> Result<Response<()>, Status> {
        let verdict = unregister(&self.0, request).await;
        self.0.conclude(NetworkService::WHAT, "unregister", verdict)
    }
}

#[tonic::async_trait]
impl NetworkServiceEndpointRegistry for EndpointRegistry {
    type FindStream = Answers<NetworkServiceEndpointResponse>;

    async fn find(
        &self,
        request: Request<NetworkServiceEndpointQuery>,
    ) -> Result<Response<Self::FindStream>, Status> {
        let (_, extensions, query) = request.into_parts();
        self.0.answer(&extensions, query.network_service_endpoint, query.watch).await
    }

    async fn register(
        &self,
        request: Request<NetworkServiceEndpoint>,
    ) -> Result<Response<NetworkServiceEndpoint>, Status> {
        let verdict = register(&self.0, request).await;
        self.0.conclude(NetworkServiceEndpoint::WHAT, "register", verdict)
    }

    async fn unregister(&self, request: Request<NetworkServiceEndpoint>) -> Result<Response<()>, Status> {
        let verdict = unregister(&self.0, request).await;
        self.0.conclude(NetworkServiceEndpoint::WHAT, "unregister", verdict)
    }
}

impl Wire for NetworkService {
    type Response = NetworkServiceResponse;

    fn response(self, deleted: bool) -> NetworkServiceResponse {
        NetworkServiceResponse { network_service: Some(self), deleted, ..NetworkServiceResponse::default() }
    }
}

impl Wire for NetworkServiceEndpoint {
    type Response = NetworkServiceEndpointResponse;

    fn response(self, deleted: bool) -> NetworkServiceEndpointResponse {
        NetworkServiceEndpointResponse {
            network_service_endpoint: Some(self),
            deleted,
            ..NetworkServiceEndpointResponse::default()
        }
    }
}
