//! The traits by which gateway and proxy use each other.

use std::sync::{Arc, OnceLock, Weak};

use carrick_gateway::{ControlPlane, Gateway};
use carrick_model::{ConnectionId, ServiceName};
use carrick_proxy::{
    datapath::{self, DataPath},
    imports::Imports,
};

use super::imports::Listeners;

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
        let datapath::Route { connection, domain, trust_domain, payload, gateways, port } = route;
        let route = carrick_gateway::Route { connection, domain, trust_domain, payload, gateways };
        self.gateway.route(import, route);
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

    fn lost(&self, service: &ServiceName, _connection: ConnectionId, why: &str) {
        self.0.lost(service, why);
    }
}
