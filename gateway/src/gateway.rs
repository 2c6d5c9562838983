//! The public face of the data path.

use std::{
    collections::HashMap,
    io,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, SystemTime},
};

use carrick_gateway_core::{CloseCode, control::Message};
use carrick_identity::{Identity, TrustStore};
use carrick_model::{
    ConnectionId, Domain, ExportTarget, ListenAddress, Payload, ServiceName, SpiffeId, Target, TrustDomain,
};
use carrick_runtime::Tasks;
use carrick_telemetry::{Direction, Metrics};
use parking_lot::{Mutex, RwLock};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use crate::{
    endpoint::{self, RefusalLog},
    flow::{FlowCount, FlowLimit, FlowSeries},
    lane::{Lane, Role},
    listener::Bound,
    routes::Routes,
    settings::Settings,
    threads::Threads,
    tunnel::{Destination, State, Tunnel},
    windows,
};

/// What the data path asks of the control plane.
pub trait ControlPlane: Send + Sync + 'static {
    /// A client waits for, or was refused by, an import that is not up: try now rather than later.
    fn demand(&self, service: &ServiceName);
    /// The connection of an import is of no use any more.
    fn lost(&self, service: &ServiceName, connection: ConnectionId, why: &str);
}

/// A connection that a peer may open flows on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Admission {
    /// The id that flow headers carry.
    pub id: ConnectionId,
    /// The only peer that may use it.
    pub peer: SpiffeId,
    /// The service, for logs.
    pub service: Target,
    /// Where its flows go.
    pub target: ExportTarget,
}

/// Where the flows of an import go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// The id that the exporting side gave the connection.
    pub connection: ConnectionId,
    /// The other domain.
    pub domain: Domain,
    /// The trust domain its gateway must prove.
    pub trust_domain: TrustDomain,
    /// What the connection carries.
    pub payload: Payload,
    /// Addresses of the gateway, best first.
    pub gateways: Vec<SocketAddr>,
}

/// A listener, named by what it was asked for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ListenerKey {
    /// The import behind it.
    pub service: ServiceName,
    /// The address as asked for, port 0 included.
    pub address: ListenAddress,
}

/// Why the data path could not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum GatewayError {
    /// The tunnel's UDP socket cannot be had.
    #[error("the tunnel cannot listen on UDP {address}")]
    Tunnel {
        /// The address asked for.
        address: SocketAddr,
        /// What the system says.
        source: io::Error,
    },
    /// An import's listener cannot be had.
    #[error("the import `{service}` cannot listen on {address}")]
    Listener {
        /// The import.
        service: ServiceName,
        /// The address asked for.
        address: ListenAddress,
        /// What the system says.
        source: io::Error,
    },
    /// The import has this listener already.
    #[error("the import `{service}` listens on {address} already")]
    Twice {
        /// The import.
        service: ServiceName,
        /// The address asked for.
        address: ListenAddress,
    },
}

impl GatewayError {
    /// What the operator can do.
    pub fn hint(&self) -> &'static str {
        let (Self::Tunnel { source, .. } | Self::Listener { source, .. }) = self else {
            return "remove the second one";
        };
        match source.kind() {
            io::ErrorKind::AddrInUse => {
                "another program has this port: choose another, or stop it (`ss -lntup` names it)"
            }
            io::ErrorKind::AddrNotAvailable => {
                "the address is none of this host: use one that `ip address` shows"
            }
            io::ErrorKind::PermissionDenied => {
                "ports below 1024 need CAP_NET_BIND_SERVICE, and a Unix socket needs a directory that may be written"
            }
            _ => "see what the system says",
        }
    }
}

/// A tunnel as an operator sees it.
#[derive(Debug, Clone)]
pub struct TunnelSnapshot {
    /// The peer's identity.
    pub peer: SpiffeId,
    /// Its address now.
    pub address: SocketAddr,
    /// `dialled` or `accepted`.
    pub role: &'static str,
    /// When the handshake finished.
    pub since: SystemTime,
    /// Smoothed round-trip time.
    pub rtt: Duration,
    /// Flows that ride on it.
    pub flows: usize,
    /// Flows whose local reader takes nothing.
    pub stalled: u64,
    /// Octets sent, headers of UDP and QUIC included.
    pub sent_bytes: u64,
    /// Octets received.
    pub received_bytes: u64,
    /// Packets sent.
    pub sent_packets: u64,
    /// Packets found lost.
    pub lost_packets: u64,
    /// Largest datagram on this path, in octets of UDP payload.
    pub mtu: u16,
    /// Receive window granted, in octets.
    pub window: u64,
}

/// A gateway. Clones are the same one.
#[derive(Debug, Clone)]
pub struct Gateway {
    shared: Arc<Shared>,
}

/// What the tasks of a gateway share.
pub(crate) struct Shared {
    pub(crate) domain: Domain,
    pub(crate) settings: Settings,
    pub(crate) identity: Identity,
    pub(crate) trust: TrustStore,
    pub(crate) metrics: Metrics,
    pub(crate) imported: Arc<FlowSeries>,
    pub(crate) exported: Arc<FlowSeries>,
    pub(crate) tasks: Tasks,
    pub(crate) endpoint: quinn::Endpoint,
    pub(crate) threads: Threads,
    pub(crate) admissions: RwLock<HashMap<ConnectionId, Arc<Admitted>>>,
    pub(crate) lanes: Mutex<HashMap<usize, Arc<Lane>>>,
    pub(crate) limit: Arc<FlowLimit>,
    pub(crate) refusal_log: RefusalLog,
    pub(crate) draining: CancellationToken,
    pub(crate) windows_changed: Arc<Notify>,
    imports: RwLock<HashMap<ServiceName, Arc<Import>>>,
    tunnels: Mutex<HashMap<Domain, Arc<Tunnel>>>,
    listeners: Mutex<HashMap<ListenerKey, Listening>>,
    control_plane: std::sync::OnceLock<Arc<dyn ControlPlane>>,
}

#[derive(Debug)]
struct Listening {
    bound: ListenAddress,
    tasks: Tasks,
}

/// An admission and what ends its flows.
#[derive(Debug)]
pub(crate) struct Admitted {
    pub(crate) admission: Admission,
    pub(crate) token: CancellationToken,
    pub(crate) flows: FlowCount,
}

/// An import: its listeners look here for the route.
#[derive(Debug)]
pub(crate) struct Import {
    pub(crate) service: ServiceName,
    pub(crate) flows: FlowCount,
    pub(crate) state: watch::Sender<RouteState>,
}

#[derive(Debug, Clone)]
pub(crate) enum RouteState {
    /// Not tried yet: clients wait.
    Connecting,
    Up(Arc<Routes>),
    /// Tried and failed: clients are refused at once.
    Down(Arc<str>),
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("domain", &self.domain).finish_non_exhaustive()
    }
}

impl Gateway {
    /// Binds the tunnel's socket; tunnels are accepted from [`serve`](Self::serve) on.
    ///
    /// # Errors
    /// [`GatewayError::Tunnel`].
    pub fn bind(
        domain: Domain,
        settings: Settings,
        identity: Identity,
        trust: TrustStore,
        metrics: Metrics,
        tasks: Tasks,
    ) -> Result<Self, GatewayError> {
        let address = settings.listen;
        let fault = |source| GatewayError::Tunnel { address, source };
        let threads = Threads::start(settings.lanes).map_err(fault)?;
        let endpoint = endpoint::bind(&settings, &identity, &trust, &threads).map_err(fault)?;
        let limit = FlowLimit::new(settings.max_flows);
        let shared = Arc::new(Shared {
            domain,
            settings,
            identity,
            trust,
            imported: FlowSeries::new(Direction::Import, &metrics),
            exported: FlowSeries::new(Direction::Export, &metrics),
            metrics,
            tasks,
            endpoint,
            threads,
            admissions: RwLock::default(),
            lanes: Mutex::default(),
            limit,
            refusal_log: RefusalLog::default(),
            draining: CancellationToken::new(),
            windows_changed: Arc::default(),
            imports: RwLock::default(),
            tunnels: Mutex::default(),
            listeners: Mutex::default(),
            control_plane: std::sync::OnceLock::new(),
        });
        Ok(Self { shared })
    }

    /// Accepts tunnels from now on, and asks `control_plane` for what it needs. To be called once.
    pub fn serve(&self, control_plane: Arc<dyn ControlPlane>) {
        let shared = &self.shared;
        if shared.control_plane.set(control_plane).is_err() {
            return;
        }
        let accepting = endpoint::accept(shared.clone());
        let _detached = shared.tasks.spawn_on(shared.threads.first(), "tunnel-accept", accepting);
        let _detached = shared.tasks.spawn("tunnel-windows", windows::run(shared.clone()));
    }

    /// Where tunnels are accepted.
    ///
    /// # Errors
    /// As the system says.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.shared.endpoint.local_addr()
    }

    /// From now on flows of this connection are welcome. An admission of the same id is replaced; its flows go on.
    pub fn admit(&self, admission: Admission) {
        let mut admissions = self.shared.admissions.write();
        let (token, flows) = match admissions.get(&admission.id) {
            Some(old) => (old.token.clone(), old.flows.clone()),
            None => (CancellationToken::new(), FlowCount::default()),
        };
        admissions.insert(admission.id, Arc::new(Admitted { admission, token, flows }));
    }

    /// Ends a connection and its flows, and tells the peer.
    pub fn revoke(&self, id: ConnectionId, why: &str) {
        let Some(admitted) = self.shared.admissions.write().remove(&id) else { return };
        admitted.token.cancel();
        tracing::debug!(connection = %id, peer = %admitted.admission.peer, why, "a connection was revoked");
        for lane in self.shared.lanes.lock().values().filter(|lane| lane.peer == admitted.admission.peer) {
            lane.tell(Message::Revoke(id));
        }
    }

    /// Flows open now on a connection that others have to us.
    pub fn connection_flows(&self, id: ConnectionId) -> usize {
        self.shared.admissions.read().get(&id).map_or(0, |admitted| admitted.flows.open())
    }

    /// Flows open now of an import.
    pub fn import_flows(&self, service: &ServiceName) -> usize {
        self.shared.imports.read().get(service).map_or(0, |import| import.flows.open())
    }

    /// The import is up: its flows take this route. Begins to dial, so that the first client finds the tunnel warm.
    pub fn route(&self, service: &ServiceName, route: Route) {
        self.share(service, (route, 1), Vec::new());
    }

    /// The import is up by several routes: its flows take `first` and the others in the shares beside them.
    pub fn share(&self, service: &ServiceName, first: (Route, u32), others: Vec<(Route, u32)>) {
        let import = self.shared.import(service);
        for (route, _) in std::iter::once(&first).chain(&others) {
            let _warming = self.shared.tunnel(route);
        }
        import.state.send_replace(RouteState::Up(Arc::new(Routes::new(first, others))));
        self.shared.drop_idle_tunnels();
    }

    /// The import is down: clients are refused at once. Flows that run go on as long as they can.
    pub fn unroute(&self, service: &ServiceName, why: &str) {
        self.shared.import(service).state.send_replace(RouteState::Down(why.into()));
        self.shared.drop_idle_tunnels();
    }

    /// The import is gone, with its listeners. Flows that run go on as long as they can.
    pub fn forget(&self, service: &ServiceName) {
        self.shared.imports.write().remove(service);
        self.shared.listeners.lock().retain(|key, listening| {
            let keep = &key.service != service;
            if !keep {
                listening.tasks.stop();
            }
            keep
        });
        self.shared.drop_idle_tunnels();
    }

    /// Opens a listener for an import, and returns where it is bound.
    ///
    /// # Errors
    /// [`GatewayError::Listener`] or [`GatewayError::Twice`].
    pub fn listen(&self, key: ListenerKey) -> Result<ListenAddress, GatewayError> {
        let mut listeners = self.shared.listeners.lock();
        if listeners.contains_key(&key) {
            return Err(GatewayError::Twice { service: key.service, address: key.address });
        }
        let fault = |source| GatewayError::Listener {
            service: key.service.clone(),
            address: key.address.clone(),
            source,
        };
        let thread = self.shared.threads.first();
        let listener = {
            let _clients_are_accepted_there = thread.enter();
            Bound::bind(&key.address).map_err(fault)?
        };
        let bound = listener.address(&key.address).map_err(fault)?;
        let tasks = self.shared.tasks.child();
        let serving = listener.serve(self.shared.clone(), self.shared.import(&key.service), tasks.clone());
        let _detached = tasks.spawn_on(thread, "import-listener", serving);
        tracing::info!(service = %key.service, address = %bound, "an import listens");
        listeners.insert(key, Listening { bound: bound.clone(), tasks });
        Ok(bound)
    }

    /// Closes a listener; flows that came through it go on. False when there was none.
    pub fn unlisten(&self, key: &ListenerKey) -> bool {
        let Some(listening) = self.shared.listeners.lock().remove(key) else { return false };
        listening.tasks.stop();
        remove_socket_file(&listening.bound);
        true
    }

    /// Listeners and where they are bound.
    pub fn listeners(&self) -> Vec<(ListenerKey, ListenAddress)> {
        self.shared
            .listeners
            .lock()
            .iter()
            .map(|(key, listening)| (key.clone(), listening.bound.clone()))
            .collect()
    }

    /// Closes every tunnel of a trust domain that is no longer trusted.
    pub fn untrust(&self, trust_domain: &TrustDomain) {
        for lane in self.shared.lanes.lock().values().filter(|lane| lane.peer.trust_domain() == trust_domain)
        {
            lane.close(CloseCode::Untrusted);
        }
    }

    /// Waits until a tunnel for the route is up, dialling if necessary, and describes it.
    ///
    /// # Errors
    /// Why there is none.
    pub async fn probe(&self, route: &Route) -> Result<TunnelSnapshot, String> {
        let tunnel = self.shared.tunnel(route);
        let lane = tunnel.lane(self.shared.settings.flow_open).await.map_err(|why| why.to_string())?;
        Ok(snapshot(&lane))
    }

    /// The tunnels that are up.
    pub fn tunnels(&self) -> Vec<TunnelSnapshot> {
        let mut all: Vec<_> = self.shared.lanes.lock().values().map(|lane| snapshot(lane)).collect();
        all.sort_by_cached_key(|tunnel| (tunnel.peer.to_string(), tunnel.address));
        all
    }

    /// Why tunnels of a domain cannot be dialled now, if so.
    pub fn failing(&self, domain: &Domain) -> Option<String> {
        let tunnel = self.shared.tunnels.lock().get(domain).cloned()?;
        match tunnel.state() {
            State::Failing(why) => Some(why.to_string()),
            State::Dialling | State::Up(_) => None,
        }
    }

    /// Flows open now.
    pub fn flows(&self) -> usize {
        self.shared.limit.open()
    }

    /// No new flows: listeners close, peers are told, flows that run go on.
    pub fn drain(&self) {
        self.shared.draining.cancel();
        for (_, listening) in self.shared.listeners.lock().drain() {
            listening.tasks.stop();
            remove_socket_file(&listening.bound);
        }
        for lane in self.shared.lanes.lock().values() {
            lane.tell(Message::Drain);
        }
    }

    /// Waits until no flow is open; false when `deadline` passed first.
    pub async fn drained(&self, deadline: Duration) -> bool {
        const LOOK: Duration = Duration::from_millis(50);
        let waiting = async {
            while self.flows() > 0 {
                tokio::time::sleep(LOOK).await;
            }
        };
        tokio::time::timeout(deadline, waiting).await.is_ok()
    }

    /// Closes all tunnels, and waits a moment for the peers to hear it.
    pub async fn close(&self) {
        const GOODBYE: Duration = Duration::from_millis(500);
        for (_, tunnel) in self.shared.tunnels.lock().drain() {
            tunnel.stop.cancel();
        }
        let lanes: Vec<_> = self.shared.lanes.lock().values().cloned().collect();
        for lane in lanes {
            lane.close(CloseCode::Stopping);
        }
        self.shared.endpoint.close(quinn::VarInt::from_u32(CloseCode::Stopping.code() as u32), b"stopping");
        let _late = tokio::time::timeout(GOODBYE, self.shared.endpoint.wait_idle()).await;
    }
}

fn remove_socket_file(bound: &ListenAddress) {
    if let ListenAddress::Unix(path) = bound {
        // Left behind it does no harm: the next start replaces it.
        let _removed = std::fs::remove_file(path);
    }
}

fn snapshot(lane: &Lane) -> TunnelSnapshot {
    let stats = lane.connection.stats();
    TunnelSnapshot {
        peer: lane.peer.clone(),
        address: lane.address(),
        role: lane.role.as_str(),
        since: lane.since,
        rtt: stats.path.rtt,
        flows: lane.flows(),
        stalled: lane.backlogs.stalled_count(),
        sent_bytes: stats.udp_tx.bytes,
        received_bytes: stats.udp_rx.bytes,
        sent_packets: stats.path.sent_packets,
        lost_packets: stats.path.lost_packets,
        mtu: stats.path.current_mtu,
        window: lane.window.load(std::sync::atomic::Ordering::Relaxed),
    }
}

impl Shared {
    /// The import of that name, made when it is not there.
    fn import(&self, service: &ServiceName) -> Arc<Import> {
        if let Some(import) = self.imports.read().get(service) {
            return import.clone();
        }
        let state = watch::Sender::new(RouteState::Connecting);
        let new = || Arc::new(Import { service: service.clone(), flows: FlowCount::default(), state });
        self.imports.write().entry(service.clone()).or_insert_with(new).clone()
    }

    /// The tunnel of a route, dialling when there is none.
    pub(crate) fn tunnel(self: &Arc<Self>, route: &Route) -> Arc<Tunnel> {
        let destination =
            Destination { trust_domain: route.trust_domain.clone(), gateways: route.gateways.clone() };
        let mut tunnels = self.tunnels.lock();
        if let Some(tunnel) = tunnels.get(&route.domain) {
            tunnel.redirect(destination);
            return tunnel.clone();
        }
        let tunnel = Tunnel::start(self, route.domain.clone(), destination);
        tunnels.insert(route.domain.clone(), tunnel.clone());
        tunnel
    }

    /// Lets go of tunnels whose domain no import routes to. A route that is down for a moment keeps its tunnel.
    fn drop_idle_tunnels(&self) {
        let mut used = std::collections::HashSet::new();
        for import in self.imports.read().values() {
            used.insert(import.service.domain().clone());
            if let RouteState::Up(routes) = &*import.state.borrow() {
                used.extend(routes.domains().cloned());
            }
        }
        self.tunnels.lock().retain(|domain, tunnel| {
            let keep = used.contains(domain);
            if !keep {
                tunnel.stop.cancel();
            }
            keep
        });
    }

    /// How many tunnels others have to us.
    pub(crate) fn accepted_lanes(&self) -> usize {
        self.lanes.lock().values().filter(|lane| lane.role == Role::Accepted).count()
    }

    /// The peer no longer carries one of our connections.
    pub(crate) fn revoked_by_peer(&self, lane: &Lane, id: ConnectionId) {
        let imports: Vec<Arc<Import>> = self.imports.read().values().cloned().collect();
        for import in imports {
            let RouteState::Up(routes) = import.state.borrow().clone() else { continue };
            if let Some(routed) = routes.over(id, lane.peer.trust_domain()) {
                routed.token.cancel();
                self.connection_lost(&import, id, "the other domain revoked the connection");
            }
        }
    }

    /// Every import of the domain hears that its tunnel cannot be dialled: the gateway may have moved.
    pub(crate) fn tunnel_failed(&self, domain: &Domain, why: &str) {
        let imports: Vec<Arc<Import>> = self.imports.read().values().cloned().collect();
        for import in imports {
            let RouteState::Up(routes) = import.state.borrow().clone() else { continue };
            for routed in routes.to(domain) {
                let why = format!("the tunnel cannot be dialled: {why}");
                self.connection_lost(&import, routed.route.connection, &why);
            }
        }
    }

    pub(crate) fn connection_lost(&self, import: &Import, connection: ConnectionId, why: &str) {
        if let Some(plane) = self.control_plane.get() {
            plane.lost(&import.service, connection, why);
        }
    }

    pub(crate) fn demand(&self, import: &Import) {
        if let Some(plane) = self.control_plane.get() {
            plane.demand(&import.service);
        }
    }
}
