//! What the proxy asks of the data path.

use std::{fmt, net::SocketAddr, time::Duration};

use carrick_model::{
    ConnectionId, Domain, ExportTarget, Payload, ServiceName, SpiffeId, Target, TrustDomain,
};

/// The data path, as the proxy sees it: tables that say which flows are welcome and where flows go.
///
/// Every method is called in the order in which things happened, some of them under a lock: an implementation neither
/// blocks nor calls back. Each is idempotent; the last call about an id or an import counts.
pub trait DataPath: Send + Sync + 'static {
    /// Exporting side: from now on flows of this connection are welcome. Comes again when the target changes.
    fn admit(&self, admission: Admission);
    /// Exporting side: the connection was closed, has expired, or policy changed. Its flows end.
    fn revoke(&self, id: ConnectionId, why: &str);
    /// Importing side: the connection is up, flows go this way. Comes again when any of it changes.
    fn route(&self, import: &ServiceName, route: Route);
    /// Importing side: several connections are as good, flows take them in these shares, never none. A data path that knows one
    /// route for an import takes the first.
    fn share(&self, import: &ServiceName, routes: Vec<(Route, u32)>) {
        if let Some((route, _)) = routes.into_iter().next() {
            self.route(import, route);
        }
    }
    /// Importing side: the connection is down. `why` is what the log line of a refused client says.
    fn unroute(&self, import: &ServiceName, why: &str);
}

/// A connection of another domain to one of our exports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Admission {
    /// Our id; flow headers name it.
    pub id: ConnectionId,
    /// Who asked for it: only flows of a tunnel of this trust domain are its flows.
    pub peer: SpiffeId,
    /// The service.
    pub service: Target,
    /// Which of our endpoints.
    pub endpoint: String,
    /// Where flows go.
    pub target: ExportTarget,
}

/// How flows of an import reach their service.
#[derive(Clone, PartialEq, Eq)]
pub struct Route {
    /// The peer's id of the connection; goes into flow headers.
    pub connection: ConnectionId,
    /// The domain that offers the service.
    pub domain: Domain,
    /// Who its gateway must prove to be.
    pub trust_domain: TrustDomain,
    /// What the connection carries.
    pub payload: Payload,
    /// Where the domain's tunnel listens, the best address first; never empty.
    pub gateways: Vec<SocketAddr>,
    /// The service's own port, where known.
    pub port: Option<u16>,
    /// How long the domain took to grant the connection.
    pub answered: Duration,
}

impl fmt::Debug for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Route({} {} at {} via {:?})", self.payload, self.connection, self.domain, self.gateways)
    }
}
