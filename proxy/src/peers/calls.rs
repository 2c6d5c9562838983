//! What is asked of a peer. Everything here is idempotent, so a call that breaks on a connection that worked before is made
//! once more on a new one: the peer may have restarted since.

use std::{collections::BTreeMap, future::Future, sync::atomic::Ordering::Relaxed, time::Duration};

use carrick_identity::token::{TokenError, policy::Denial};
use carrick_model::{Domain, Target, cause::in_one_line, service::split_name};
use carrick_proto::{
    connection::Connection,
    networkservice::{NetworkServiceRequest, network_service_client::NetworkServiceClient},
    registry::{
        NetworkService, NetworkServiceEndpoint, NetworkServiceEndpointQuery, NetworkServiceEndpointResponse,
        NetworkServiceQuery, network_service_endpoint_registry_client::NetworkServiceEndpointRegistryClient,
        network_service_registry_client::NetworkServiceRegistryClient,
    },
};
use futures::{Stream, StreamExt, stream};
use serde::Serialize;
use tokio::time::timeout;
use tonic::{Code, Request, Status, Streaming};

use super::{CALL_DEADLINE, Link, PeerFault, Peers, Role, fault};
use crate::{control::MAX_MESSAGE, tokens::TokenChannel};

/// Most items we take of one answer: a registry of a million is not listed to us by one query.
const MAX_ITEMS: usize = 10_000;

/// A change in a peer's registry.
pub type WatchItem = NetworkServiceEndpointResponse;

/// A service of another domain, for people.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PeerService {
    /// Its name, without a domain.
    pub name: String,
    /// What it carries, as its registry says.
    pub payload: String,
    /// The names of its endpoints.
    pub endpoints: Vec<String>,
}

impl Peers {
    /// The endpoints of a service of `domain`, as of now.
    pub async fn find(
        &self,
        domain: &Domain,
        service: &Target,
    ) -> Result<Vec<NetworkServiceEndpoint>, PeerFault> {
        let service = service.as_str();
        self.call(domain, Role::Registry, "Find", |channel| find(channel, service)).await
    }

    /// Changes of the endpoints of a service of `domain`, beginning with what is there. Ends with a fault.
    pub fn watch(
        &self,
        domain: &Domain,
        service: &Target,
    ) -> impl Stream<Item = Result<WatchItem, PeerFault>> + Send + use<> {
        let (peers, domain, service) = (self.clone(), domain.clone(), service.clone());
        let opened = async move {
            let (_, pooled) = peers.pooled(&domain, Role::Registry).await?;
            let broken = {
                let (peers, domain, link) = (peers.clone(), domain.clone(), pooled.link.clone());
                move |status: Status| peers.judge(&domain, &link, "Find (watch)", &status)
            };
            // Not under a deadline: a registry of NSM answers a watch only when there is something to tell.
            let answer = registry(pooled.link.channel).find(query(service.as_str(), true)).await;
            let changes = answer.map_err(&broken)?.into_inner();
            let ended = {
                let domain = domain.clone();
                async move {
                    let detail = "the peer ended the watch".to_owned();
                    Err(PeerFault::BadAnswer { domain, call: "Find (watch)", detail })
                }
            };
            Ok::<_, PeerFault>(changes.map(move |item| item.map_err(&broken)).chain(stream::once(ended)))
        };
        stream::once(opened).flat_map(|opened| match opened {
            Ok(changes) => changes.left_stream(),
            Err(fault) => stream::once(async { Err(fault) }).right_stream(),
        })
    }

    /// One endpoint of `domain` by its name.
    pub(crate) async fn find_endpoint(
        &self,
        domain: &Domain,
        name: &str,
    ) -> Result<Option<NetworkServiceEndpoint>, PeerFault> {
        let pattern = NetworkServiceEndpoint { name: name.to_owned(), ..Default::default() };
        let all =
            self.call(domain, Role::Registry, "Find", |channel| find_like(channel, pattern.clone())).await?;
        Ok(all.into_iter().find(|e| e.name == name))
    }

    /// The endpoints of a service of `domain`, whatever its name is.
    pub(crate) async fn find_endpoints(
        &self,
        domain: &Domain,
        service: &str,
    ) -> Result<Vec<NetworkServiceEndpoint>, PeerFault> {
        self.call(domain, Role::Registry, "Find", |channel| find(channel, service)).await
    }

    /// One service of `domain` by its name.
    pub(crate) async fn find_service(
        &self,
        domain: &Domain,
        name: &str,
    ) -> Result<Option<NetworkService>, PeerFault> {
        let all = self
            .call(domain, Role::Registry, "Find (services)", |channel| find_services(channel, name))
            .await?;
        Ok(all.into_iter().find(|s| s.name == name))
    }

    /// The shared connection to the connection manager of `domain`.
    pub(crate) async fn connect_link(&self, domain: &Domain) -> Result<Link, PeerFault> {
        self.pooled(domain, Role::Connect).await.map(|(_, pooled)| pooled.link)
    }

    /// Makes or renews a connection.
    pub async fn request(
        &self,
        domain: &Domain,
        request: NetworkServiceRequest,
    ) -> Result<Connection, PeerFault> {
        let answer =
            self.call(domain, Role::Connect, "Request", |channel| request_on(channel, request.clone()));
        answered(domain, answer.await?)
    }

    /// Closes a connection.
    pub async fn close(&self, domain: &Domain, connection: Connection) -> Result<(), PeerFault> {
        self.call(domain, Role::Connect, "Close", |channel| close_on(channel, connection.clone())).await
    }

    /// What `domain` offers: all services with their endpoints, by name.
    pub async fn services(&self, domain: &Domain) -> Result<Vec<PeerService>, PeerFault> {
        let services = self
            .call(domain, Role::Registry, "Find (services)", |channel| find_services(channel, ""))
            .await?;
        let endpoints = self.call(domain, Role::Registry, "Find", |channel| find(channel, "")).await?;
        let mut all: BTreeMap<String, PeerService> = BTreeMap::new();
        let of = |name: &str| split_name(name).0.to_owned();
        for service in services {
            let name = of(&service.name);
            all.insert(name.clone(), PeerService { name, payload: service.payload, endpoints: Vec::new() });
        }
        for endpoint in endpoints {
            for service in &endpoint.network_service_names {
                let name = of(service);
                let entry = all.entry(name.clone()).or_insert_with(|| PeerService {
                    name,
                    payload: String::new(),
                    endpoints: Vec::new(),
                });
                entry.endpoints.push(of(&endpoint.name));
            }
        }
        Ok(all.into_values().collect())
    }

    pub(super) async fn call<T, F, Fut>(
        &self,
        domain: &Domain,
        role: Role,
        call: &'static str,
        rpc: F,
    ) -> Result<T, PeerFault>
    where
        F: Fn(TokenChannel) -> Fut,
        Fut: Future<Output = Result<T, Status>>,
    {
        let (_, first) = self.pooled(domain, role).await?;
        let worked_before = first.proven.load(Relaxed);
        let result = self.call_on(domain, &first.link, call, &rpc).await;
        let broke = matches!(result, Err(PeerFault::Broken { .. }));
        if broke && worked_before {
            let (_, second) = self.pooled(domain, role).await?;
            let result = self.call_on(domain, &second.link, call, &rpc).await;
            return result.inspect(|_| Self::prove(&second));
        }
        result.inspect(|_| Self::prove(&first))
    }

    /// One call on one connection, under the deadline.
    pub(crate) async fn call_on<T, F, Fut>(
        &self,
        domain: &Domain,
        link: &Link,
        call: &'static str,
        rpc: F,
    ) -> Result<T, PeerFault>
    where
        F: Fn(TokenChannel) -> Fut,
        Fut: Future<Output = Result<T, Status>>,
    {
        match timeout(CALL_DEADLINE, rpc(link.channel.clone())).await {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(status)) => Err(self.judge(domain, link, call, &status)),
            Err(_) => {
                // The path may be dead without a word; the next call finds out on a new connection.
                self.drop_link(domain, link);
                Err(PeerFault::TimedOut { domain: domain.clone(), call, after: CALL_DEADLINE })
            }
        }
    }

    /// Whether the peer said no, or the connection broke, or the peer had refused us before we asked.
    pub(super) fn judge(
        &self,
        domain: &Domain,
        link: &Link,
        call: &'static str,
        status: &Status,
    ) -> PeerFault {
        // A status without a source came over the wire.
        let Some(source) = std::error::Error::source(status) else {
            return fault::refused(domain, call, status);
        };
        // Our own deadline passed. The next call dials anew: a peer that moved leaves a connection on which nobody answers.
        if matches!(status.code(), Code::DeadlineExceeded | Code::Cancelled) {
            self.drop_link(domain, link);
            return PeerFault::TimedOut { domain: domain.clone(), call, after: CALL_DEADLINE };
        }
        self.drop_link(domain, link);
        let reason = link.cause.get();
        let alert = reason.and_then(|e| fault::alert_in(e)).or_else(|| fault::alert_in(source));
        let (domain, addr) = (domain.clone(), link.addr);
        if let Some(alert) = alert.filter(|a| fault::speaks_of_certificate(*a)) {
            return PeerFault::NotAccepted { domain, addr, alert: format!("{alert:?}") };
        }
        let detail = reason.map_or_else(|| in_one_line(source), ToString::to_string);
        PeerFault::Broken { domain, addr, call, detail }
    }
}

/// Asks for a connection. The policies on tokens may refuse the answer.
pub(crate) async fn request_on(
    channel: TokenChannel,
    request: NetworkServiceRequest,
) -> Result<Result<Connection, Denial>, Status> {
    let signed = channel.sign(request, |r| r.connection.as_mut()?.path.as_mut()).map_err(unsigned)?;
    let answer = connect(channel.clone()).request(with_deadline(signed)).await?.into_inner();
    Ok(channel.check(&answer).map(|()| answer))
}

/// Closes one.
pub(crate) async fn close_on(channel: TokenChannel, connection: Connection) -> Result<(), Status> {
    let signed = channel.sign(connection, |c| c.path.as_mut()).map_err(unsigned)?;
    connect(channel).close(with_deadline(signed)).await.map(tonic::Response::into_inner)
}

/// What a call for a connection came to, when the policies on tokens had their say.
pub(crate) fn answered(domain: &Domain, answer: Result<Connection, Denial>) -> Result<Connection, PeerFault> {
    answer.map_err(|denial| PeerFault::BadAnswer {
        domain: domain.clone(),
        call: "Request",
        detail: denial.to_string(),
    })
}

#[expect(clippy::needless_pass_by_value, reason = "for `map_err`")]
fn unsigned(fault: TokenError) -> Status {
    Status::internal(fault.to_string())
}

/// The endpoints of a service; of all services when `service` is empty.
pub(crate) async fn find(
    channel: TokenChannel,
    service: &str,
) -> Result<Vec<NetworkServiceEndpoint>, Status> {
    find_like(channel, pattern(service)).await
}

/// The endpoints that match `pattern`.
async fn find_like(
    channel: TokenChannel,
    pattern: NetworkServiceEndpoint,
) -> Result<Vec<NetworkServiceEndpoint>, Status> {
    let query = NetworkServiceEndpointQuery {
        network_service_endpoint: Some(pattern),
        watch: false,
        ..NetworkServiceEndpointQuery::default()
    };
    let answer = registry(channel).find(with_deadline(Request::new(query))).await?;
    collect(answer.into_inner(), |r: NetworkServiceEndpointResponse| r.network_service_endpoint).await
}

/// The services of this name; all when it is empty.
async fn find_services(channel: TokenChannel, name: &str) -> Result<Vec<NetworkService>, Status> {
    let pattern = NetworkService { name: name.to_owned(), ..NetworkService::default() };
    let query = NetworkServiceQuery {
        network_service: Some(pattern),
        watch: false,
        ..NetworkServiceQuery::default()
    };
    let mut client = NetworkServiceRegistryClient::new(channel).max_decoding_message_size(MAX_MESSAGE);
    let answer = client.find(with_deadline(Request::new(query))).await?;
    collect(answer.into_inner(), |r| r.network_service).await
}

async fn collect<R, T>(mut answer: Streaming<R>, item: impl Fn(R) -> Option<T>) -> Result<Vec<T>, Status> {
    let mut all = Vec::new();
    while let Some(response) = answer.message().await? {
        all.extend(item(response));
        if all.len() >= MAX_ITEMS {
            break;
        }
    }
    Ok(all)
}

fn query(service: &str, watch: bool) -> NetworkServiceEndpointQuery {
    NetworkServiceEndpointQuery {
        network_service_endpoint: Some(pattern(service)),
        watch,
        ..NetworkServiceEndpointQuery::default()
    }
}

/// Any endpoint of a service; any at all when `service` is empty.
fn pattern(service: &str) -> NetworkServiceEndpoint {
    let names = if service.is_empty() { Vec::new() } else { vec![service.to_owned()] };
    NetworkServiceEndpoint { network_service_names: names, ..Default::default() }
}

/// The peer is told how long we wait, so that it does not work for nobody.
pub(super) fn with_deadline<T>(mut request: Request<T>) -> Request<T> {
    request.set_timeout(CALL_DEADLINE.saturating_sub(Duration::from_millis(100)));
    request
}

fn registry(channel: TokenChannel) -> NetworkServiceEndpointRegistryClient<TokenChannel> {
    NetworkServiceEndpointRegistryClient::new(channel).max_decoding_message_size(MAX_MESSAGE)
}

fn connect(channel: TokenChannel) -> NetworkServiceClient<TokenChannel> {
    NetworkServiceClient::new(channel).max_decoding_message_size(MAX_MESSAGE)
}
