//! The two gRPC services on NSM's wire.

use carrick_proto::registry::{
    NetworkService, NetworkServiceEndpoint, NetworkServiceEndpointQuery, NetworkServiceEndpointResponse,
    NetworkServiceQuery, NetworkServiceResponse,
    network_service_endpoint_registry_server::{
        NetworkServiceEndpointRegistry, NetworkServiceEndpointRegistryServer,
    },
    network_service_registry_server::{NetworkServiceRegistry, NetworkServiceRegistryServer},
};
use tonic::{Extensions, Request, Response, Status};

use crate::{
    find::{Answers, Wire, find},
    limits::MAX_MESSAGE,
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

    fn answer<T: Wire>(
        &self,
        extensions: &Extensions,
        query: Option<T>,
        watch: bool,
    ) -> Result<Response<Answers<T::Response>>, Status> {
        // A query without a template asks for everything.
        match find(self, extensions, query.unwrap_or_default(), watch) {
            Ok(answers) => Ok(Response::new(answers)),
            Err(fault) => {
                tracing::info!(kind = T::WHAT, %fault, "a Find is refused");
                Err(fault.into())
            }
        }
    }

    fn read_only(&self) -> Status {
        Status::unimplemented(format!(
            "the registry of {} takes no registrations yet: it offers what its configuration exports",
            self.domain()
        ))
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
        self.0.answer(&extensions, query.network_service, query.watch)
    }

    async fn register(&self, _: Request<NetworkService>) -> Result<Response<NetworkService>, Status> {
        Err(self.0.read_only())
    }

    async fn unregister(&self, _: Request<NetworkService>) -> Result<Response<()>, Status> {
        Err(self.0.read_only())
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
        self.0.answer(&extensions, query.network_service_endpoint, query.watch)
    }

    async fn register(
        &self,
        _: Request<NetworkServiceEndpoint>,
    ) -> Result<Response<NetworkServiceEndpoint>, Status> {
        Err(self.0.read_only())
    }

    async fn unregister(&self, _: Request<NetworkServiceEndpoint>) -> Result<Response<()>, Status> {
        Err(self.0.read_only())
    }
}

impl Wire for NetworkService {
    type Response = NetworkServiceResponse;

    fn response(self, deleted: bool) -> NetworkServiceResponse {
        NetworkServiceResponse { network_service: Some(self), deleted }
    }
}

impl Wire for NetworkServiceEndpoint {
    type Response = NetworkServiceEndpointResponse;

    fn response(self, deleted: bool) -> NetworkServiceEndpointResponse {
        NetworkServiceEndpointResponse { network_service_endpoint: Some(self), deleted }
    }
}
