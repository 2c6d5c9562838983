//! The traits by which gateway, proxy and registry use each other.

use std::{
    sync::{Arc, OnceLock, Weak},
    time::{Duration, SystemTime},
};

use carrick_gateway::{ControlPlane, Gateway};
use carrick_model::{ConnectionId, ServiceName, SpiffeId, TrustDomain};
use carrick_proto::registry::{NetworkService, NetworkServiceEndpoint};
use carrick_proxy::{
    catalogue::{Catalogue, ServiceChange},
    datapath::{self, DataPath},
    imports::Imports,
};

use carrick_registry::{Changes, Filter, Registry, Update, Viewer};
use futures::stream::{self, BoxStream, StreamExt};

use super::imports::Listeners;

/// Pause before the registry is followed anew after it had no room for one more watch.
const FOLLOW_AGAIN: Duration = Duration::from_secs(1);

/// The gateway as the proxy sees it.
pub(crate) struct GatewayPath {
    pub(crate) gateway: Gateway,
    /// Listeners on virtual addresses open when a route tells the service's port.
    pub(crate) listeners: Arc<OnceLock<Weak<Listeners>>>,
}

impl DataPath for GatewayPath {
    fn admit(&self, admission: datapath::Admission) {
        let datapath::Admission { id, peer, service, endpoint: _, target } = admission;
        self.gateway.admit(carrick_gateway::Admission { id, peer, service, target });
    }

    fn revoke(&self, id: ConnectionId, why: &str) {
        self.gateway.revoke(id, why);
    }

    fn route(&self, import: &ServiceName, route: datapath::Route) {
        self.share(import, vec![(route, 1)]);
    }

    fn share(&self, import: &ServiceName, routes: Vec<(datapath::Route, u32)>) {
        // All of them are of one import, and so of one kind of payload; the first one's port is the listeners'.
        let Some((payload, port)) = routes.first().map(|(route, _)| (route.payload, route.port)) else {
            return;
        };
        let mut routes = routes.into_iter().map(|(route, share)| {
            let datapath::Route { connection, domain, trust_domain, payload, gateways, .. } = route;
            (carrick_gateway::Route { connection, domain, trust_domain, payload, gateways }, share)
        });
        let Some(first) = routes.next() else { return };
        self.gateway.share(import, first, routes.collect());
        if let Some(listeners) = self.listeners.get().and_then(Weak::upgrade) {
            listeners.learned(import, payload, port);
        }
    }

    fn unroute(&self, import: &ServiceName, why: &str) {
        self.gateway.unroute(import, why);
    }
}

/// The proxy as the gateway sees it.
pub(crate) struct ImportPlane(pub(crate) Imports);

impl ControlPlane for ImportPlane {
    fn demand(&self, service: &ServiceName) {
        self.0.demand(service);
    }

    fn lost(&self, service: &ServiceName, connection: ConnectionId, why: &str) {
        self.0.lost(service, connection, why);
    }
}

/// The registry as the proxy sees it.
pub(crate) struct RegistryView {
    pub(crate) registry: Registry,
    /// Who we are: what we follow counts as ours.
    pub(crate) own: SpiffeId,
}

impl RegistryView {
    fn viewer(&self, viewer: Option<&SpiffeId>) -> Viewer {
        let own: TrustDomain = self.own.trust_domain().clone();
        match viewer {
            Some(id) if id.trust_domain() != &own => Viewer::Peer(id.clone()),
            _ => Viewer::Own,
        }
    }
}

impl Catalogue for RegistryView {
    fn service(&self, name: &str, viewer: Option<&SpiffeId>) -> Option<NetworkService> {
        let query = NetworkService { name: name.to_owned(), ..NetworkService::default() };
        let found = self.registry.find_some(Filter { query, viewer: self.viewer(viewer) }, 1);
        found.first().map(|record| record.object()).filter(|_| !name.is_empty())
    }

    fn endpoints_of(
        &self,
        service: &str,
        viewer: Option<&SpiffeId>,
        limit: usize,
    ) -> Vec<NetworkServiceEndpoint> {
        if service.is_empty() {
            return Vec::new();
        }
        let query = NetworkServiceEndpoint {
            network_service_names: vec![service.to_owned()],
            ..NetworkServiceEndpoint::default()
        };
        let found = self.registry.find_some(Filter { query, viewer: self.viewer(viewer) }, limit);
        found.iter().map(|record| record.object()).filter(is_alive).collect()
    }

    fn endpoint(&self, name: &str, viewer: Option<&SpiffeId>) -> Option<NetworkServiceEndpoint> {
        let query = NetworkServiceEndpoint { name: name.to_owned(), ..NetworkServiceEndpoint::default() };
        let found = self.registry.find_some(Filter { query, viewer: self.viewer(viewer) }, 1);
        found.first().map(|record| record.object()).filter(|_| !name.is_empty())
    }

    fn published(&self, full_name: &str) -> Option<NetworkServiceEndpoint> {
        self.registry.federation()?.published(full_name)
    }

    fn service_changes(&self) -> BoxStream<'static, ServiceChange> {
        let view = Self { registry: self.registry.clone(), own: self.own.clone() };
        let follow = move || {
            let filter = Filter { query: NetworkService::default(), viewer: Viewer::Own };
            view.registry.changes(filter, &view.own)
        };
        stream::unfold((follow, None::<Changes<NetworkService>>), |(follow, changes)| async move {
            let Some(mut changes) = changes else {
                return Some(match follow() {
                    Ok(changes) => (ServiceChange::Resynced, (follow, Some(changes))),
                    Err(error) => {
                        tracing::debug!(%error, "changes of services are not followed for a moment");
                        tokio::time::sleep(FOLLOW_AGAIN).await;
                        (ServiceChange::Resynced, (follow, None))
                    }
                });
            };
            let change = match changes.next().await? {
                Update::Present(record) => ServiceChange::Now(record.object()),
                Update::Gone { last, .. } => ServiceChange::Gone(last.name().to_string()),
            };
            Some((change, (follow, Some(changes))))
        })
        .boxed()
    }
}

/// Whether its lease is not over yet: the registry drops it soon.
fn is_alive(endpoint: &NetworkServiceEndpoint) -> bool {
    let end = endpoint.expiration_time.and_then(|end| SystemTime::try_from(end).ok());
    end.is_none_or(|end| end > SystemTime::now())
}
