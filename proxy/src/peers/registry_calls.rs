//! Whole calls to the registry of another domain, for who passes on what others ask of it.

use std::{future::Future, sync::atomic::Ordering::Relaxed};

use carrick_identity::token::{PATH_KEY, TokenPath};
use carrick_model::Domain;
use carrick_proto::registry::{
    NetworkService, NetworkServiceEndpoint, NetworkServiceEndpointQuery, NetworkServiceQuery,
    network_service_endpoint_registry_client::NetworkServiceEndpointRegistryClient,
    network_service_registry_client::NetworkServiceRegistryClient,
};
use futures::{StreamExt, TryStreamExt, stream, stream::BoxStream};
use http::uri::PathAndQuery;
use tonic::{Request, Response, Status, client::Grpc, metadata::AsciiMetadataValue};
use tonic_prost::ProstCodec;

use super::{Link, PeerFault, Peers, Role, calls::with_deadline};
use crate::{control::MAX_MESSAGE, tokens::TokenChannel};

/// Any gRPC server answers this one, if only with a status (gRPC health checking protocol).
const HEALTH: &str = "/grpc.health.v1.Health/Check";

/// The answers of a registry: each an object, and whether it is gone. They end with the first fault.
pub type RegistryAnswers<T> = BoxStream<'static, Result<(T, bool), PeerFault>>;

type Statuses<T> = BoxStream<'static, Result<(T, bool), Status>>;

/// What registries hold: network services and endpoints.
pub trait RegistryObject: Clone + Send + Sync + 'static {
    /// Asks for what matches `query`.
    #[doc(hidden)]
    fn find(
        channel: TokenChannel,
        query: Self,
        watch: bool,
    ) -> impl Future<Output = Result<Statuses<Self>, Status>> + Send;

    /// Registers it.
    #[doc(hidden)]
    fn register(
        channel: TokenChannel,
        request: Request<Self>,
    ) -> impl Future<Output = Result<Response<Self>, Status>> + Send;

    /// Unregisters it.
    #[doc(hidden)]
    fn unregister(
        channel: TokenChannel,
        request: Request<Self>,
    ) -> impl Future<Output = Result<Response<()>, Status>> + Send;
}

impl Peers {
    /// What the registry of `domain` has that matches `query`, and with `watch` how it changes. Returns when the registry can be
    /// asked; a watched query waits for the first answer in the stream, because NSM's registries say nothing before.
    pub async fn ask_registry<T: RegistryObject>(
        &self,
        domain: &Domain,
        query: T,
        watch: bool,
    ) -> Result<RegistryAnswers<T>, PeerFault> {
        let (_, pooled) = self.pooled(domain, Role::Registry).await?;
        if watch {
            let (peers, domain, link) = (self.clone(), domain.clone(), pooled.link.clone());
            let opened = async move {
                T::find(link.channel.clone(), query, true)
                    .await
                    .map_err(|status| peers.judge(&domain, &link, "Find (watch)", &status))
                    .map(|answers| peers.judged(domain, link, "Find (watch)", answers))
            };
            return Ok(stream::once(opened).try_flatten().boxed());
        }
        let first = T::find(pooled.link.channel.clone(), query.clone(), false).await;
        let fault = match first {
            Ok(answers) => {
                pooled.proven.store(true, Relaxed);
                return Ok(self.judged(domain.clone(), pooled.link, "Find", answers));
            }
            Err(status) => self.judge(domain, &pooled.link, "Find", &status),
        };
        if !matches!(fault, PeerFault::Broken { .. }) || !pooled.proven.load(Relaxed) {
            return Err(fault);
        }
        // The peer may have restarted since the last call.
        let (_, pooled) = self.pooled(domain, Role::Registry).await?;
        let again = T::find(pooled.link.channel.clone(), query, false).await;
        let answers = again.map_err(|status| self.judge(domain, &pooled.link, "Find", &status))?;
        Ok(self.judged(domain.clone(), pooled.link, "Find", answers))
    }

    /// Registers `object` at `domain`; `path` has the tokens of the hops up to us. Returns what became of both.
    pub async fn register_at<T: RegistryObject>(
        &self,
        domain: &Domain,
        object: T,
        path: &TokenPath,
    ) -> Result<(T, Option<TokenPath>), PeerFault> {
        let header = path_header(domain, "Register", path)?;
        let rpc = |channel| T::register(channel, with_path(object.clone(), &header));
        let answer = self.call(domain, Role::Registry, "Register", rpc).await?;
        let path = answer.metadata().get(PATH_KEY).map(|value| TokenPath::parse(value.as_bytes()));
        let path = path.transpose().map_err(|fault| {
            let (domain, detail) = (domain.clone(), fault.to_string());
            PeerFault::BadAnswer { domain, call: "Register", detail }
        })?;
        Ok((answer.into_inner(), path))
    }

    /// Unregisters `object` at `domain`; `path` has the tokens of the hops up to us.
    pub async fn unregister_at<T: RegistryObject>(
        &self,
        domain: &Domain,
        object: T,
        path: &TokenPath,
    ) -> Result<(), PeerFault> {
        let header = path_header(domain, "Unregister", path)?;
        let rpc = |channel| T::unregister(channel, with_path(object.clone(), &header));
        self.call(domain, Role::Registry, "Unregister", rpc).await.map(Response::into_inner)
    }

    /// Completes when the registry of `domain` has answered something; a status that says no is an answer.
    pub async fn probe_registry(&self, domain: &Domain) -> Result<(), PeerFault> {
        match self.call(domain, Role::Registry, "Check", check).await {
            Ok(()) | Err(PeerFault::Refused { .. }) => Ok(()),
            Err(fault) => Err(fault),
        }
    }

    fn judged<T: Send + 'static>(
        &self,
        domain: Domain,
        link: Link,
        call: &'static str,
        answers: Statuses<T>,
    ) -> RegistryAnswers<T> {
        let peers = self.clone();
        answers.map_err(move |status| peers.judge(&domain, &link, call, &status)).boxed()
    }
}

/// One unary call without a message: an empty request asks for the whole server's health, and nothing of the answer is read.
pub(crate) async fn check(channel: TokenChannel) -> Result<(), Status> {
    let mut grpc = Grpc::new(channel);
    grpc.ready().await.map_err(|fault| Status::from_error(fault.into()))?;
    let codec = ProstCodec::<(), ()>::default();
    grpc.unary(with_deadline(Request::new(())), PathAndQuery::from_static(HEALTH), codec)
        .await
        .map(Response::into_inner)
}

fn path_header(
    domain: &Domain,
    call: &'static str,
    path: &TokenPath,
) -> Result<AsciiMetadataValue, PeerFault> {
    AsciiMetadataValue::try_from(path.to_header()).map_err(|_| PeerFault::BadAnswer {
        domain: domain.clone(),
        call,
        detail: "the path has a token that fits no header".to_owned(),
    })
}

pub(crate) fn with_path<T>(object: T, path: &AsciiMetadataValue) -> Request<T> {
    let mut request = with_deadline(Request::new(object));
    request.metadata_mut().insert(PATH_KEY, path.clone());
    request
}

impl RegistryObject for NetworkService {
    async fn find(channel: TokenChannel, query: Self, watch: bool) -> Result<Statuses<Self>, Status> {
        let query =
            NetworkServiceQuery { network_service: Some(query), watch, ..NetworkServiceQuery::default() };
        let answers = services(channel).find(query).await?.into_inner();
        Ok(answers
            .try_filter_map(|r| async move { Ok(r.network_service.map(|object| (object, r.deleted))) })
            .boxed())
    }

    async fn register(channel: TokenChannel, request: Request<Self>) -> Result<Response<Self>, Status> {
        services(channel).register(request).await
    }

    async fn unregister(channel: TokenChannel, request: Request<Self>) -> Result<Response<()>, Status> {
        services(channel).unregister(request).await
    }
}

impl RegistryObject for NetworkServiceEndpoint {
    async fn find(channel: TokenChannel, query: Self, watch: bool) -> Result<Statuses<Self>, Status> {
        let query = NetworkServiceEndpointQuery {
            network_service_endpoint: Some(query),
            watch,
            ..NetworkServiceEndpointQuery::default()
        };
        let answers = endpoints(channel).find(query).await?.into_inner();
        Ok(answers
            .try_filter_map(
                |r| async move { Ok(r.network_service_endpoint.map(|object| (object, r.deleted))) },
            )
            .boxed())
    }

    async fn register(channel: TokenChannel, request: Request<Self>) -> Result<Response<Self>, Status> {
        endpoints(channel).register(request).await
    }

    async fn unregister(channel: TokenChannel, request: Request<Self>) -> Result<Response<()>, Status> {
        endpoints(channel).unregister(request).await
    }
}

fn services(channel: TokenChannel) -> NetworkServiceRegistryClient<TokenChannel> {
    NetworkServiceRegistryClient::new(channel)
        .max_decoding_message_size(MAX_MESSAGE)
        .max_encoding_message_size(MAX_MESSAGE)
}

fn endpoints(channel: TokenChannel) -> NetworkServiceEndpointRegistryClient<TokenChannel> {
    NetworkServiceEndpointRegistryClient::new(channel)
        .max_decoding_message_size(MAX_MESSAGE)
        .max_encoding_message_size(MAX_MESSAGE)
}
