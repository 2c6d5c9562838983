//! Making a daemon.

use std::{
    net::{IpAddr, SocketAddr, UdpSocket},
    path::PathBuf,
    sync::{Arc, OnceLock},
    time::{Duration, Instant, SystemTime},
};

use anyhow::Context;
use arc_swap::ArcSwap;
use carrick_config::{Config, Congestion, Lanes};
use carrick_gateway::{Gateway, ResetKey};
use carrick_identity::{EmbeddedCa, Identity, TrustStore};
use carrick_model::{Host, ServeUrl, SpiffeId};
use carrick_proxy::{
    InboundSettings,
    catalogue::Beyond,
    control::ControlListener,
    dns,
    explain::Explainer,
    exports::Exports,
    imports::Imports,
    monitor::Monitors,
    peers::{Peers, TrustMap},
    resolve::{Resolver, ResolverSettings, StaticPeer},
    server::NetworkServer,
    transit::{SelectSettings, TransitParts, TransitSettings, Transits},
};
use carrick_registry::{
    Admission, MirrorStore, Registry,
    federation::{Federation, Relay, RemoteRegistries},
    store::Store,
};
use carrick_runtime::{Readiness, Tasks, notify};
use carrick_telemetry::Metrics;
use parking_lot::Mutex;
use tonic::service::Routes;

use super::{
    bridge::{GatewayPath, ImportPlane, RegistryView},
    control::Admin,
    flat_files,
    imports::{Listeners, Names, saved},
    life, nsm, reload,
    remote::{FederationBeyond, RemotePart, RemotePeers},
    store,
    trust::{self, Trusted},
};
use crate::{
    admin::{server as admin, socket::AdminSocket},
    state_dir::StateDir,
};

/// Path of a gateway's SPIFFE ID.
const GATEWAY_PATH: &str = "/carrick/gateway";
/// How long the start waits for what is registered. The embedded store reads 1,000,000 records in about a second; a store
/// that is away for longer must not keep the domain's exports from being served.
const STORE_PATIENCE: Duration = Duration::from_secs(10);
/// The file of virtual addresses in the state directory.
const VIRTUAL_IPS: &str = "virtual_ips.json";
/// The file of the secret that stateless resets are made with.
const TUNNEL_KEY: &str = "tunnel.key";
/// The service under which NSM's forwarders register (`NSM_FORWARDER_NETWORK_SERVICE_NAME`).
const FORWARDER: &str = "forwarder";
/// Names whose DNS answers are kept (design: 10,000 domains known).
const KNOWN_DOMAINS: usize = 10_000;

/// A running daemon: all its parts.
pub(crate) struct Daemon {
    /// What is in force: after a reload, the new file with those keys of the old that need a restart.
    pub(crate) config: ArcSwap<Config>,
    pub(crate) config_path: Option<PathBuf>,
    pub(crate) state: StateDir,
    pub(crate) identity: Identity,
    pub(crate) trust: TrustStore,
    pub(crate) trust_map: TrustMap,
    pub(crate) trusted: Mutex<Vec<Trusted>>,
    pub(crate) metrics: Metrics,
    pub(crate) tasks: Tasks,
    pub(crate) readiness: Readiness,
    pub(crate) gateway: Gateway,
    pub(crate) exports: Exports,
    pub(crate) transits: Transits,
    pub(crate) monitors: Monitors,
    pub(crate) imports: Imports,
    pub(crate) listeners: Arc<Listeners>,
    pub(crate) peers: Peers,
    pub(crate) resolver: Resolver,
    pub(crate) registry: Registry,
    pub(crate) federation: Federation,
    pub(crate) explainer: Explainer,
    pub(crate) addresses: Addresses,
    pub(crate) started: SystemTime,
    pub(crate) began: Instant,
    pub(crate) draining: std::sync::atomic::AtomicBool,
    pub(crate) reloading: tokio::sync::Mutex<()>,
}

/// Where the daemon listens, with real ports.
#[derive(Debug, Clone)]
pub(crate) struct Addresses {
    pub(crate) control: SocketAddr,
    pub(crate) tunnel: SocketAddr,
    pub(crate) admin: Option<SocketAddr>,
    pub(crate) dns: Option<SocketAddr>,
    pub(crate) socket: PathBuf,
    /// For NSM's parts, beside the control plane's own.
    pub(crate) nsm: Vec<ServeUrl>,
}

impl Daemon {
    /// Makes the parts, binds, joins, and serves. Returns when the daemon is ready.
    pub(crate) async fn start(config: Config, config_path: Option<PathBuf>) -> anyhow::Result<Arc<Self>> {
        let (started, began) = (SystemTime::now(), Instant::now());
        let state = StateDir::new(&config.state_dir);
        let socket = AdminSocket::bind(&state).await?;
        let metrics = Metrics::new();
        metrics.start_time.set(epoch_seconds(started));
        let tasks = Tasks::new();
        let readiness = Readiness::new();
        let starting = readiness.guard("start");

        // Who we are and whom we trust.
        let (identity, own_bundle) = embedded_identity(&config, &state)?;
        let (trust, trust_map) = (TrustStore::new(), TrustMap::new());
        let (trusted, faults) = trust::read(&config, &state, &own_bundle);
        if let Some(fault) = faults.into_iter().next() {
            return Err(fault.into());
        }
        trust::apply(&trusted, &trust, &trust_map)?;

        // Every socket, before anything begins.
        let mut control_listener = ControlListener::bind(config.listen.control).await?;
        let nsm = nsm::listen(&config, &mut control_listener).await?;
        let reset_key = ResetKey::new(carrick_identity::secret(state.path(), TUNNEL_KEY)?);
        let gateway = Gateway::bind(
            config.domain.clone(),
            gateway_settings(&config, reset_key),
            identity.clone(),
            trust.clone(),
            metrics.clone(),
            tasks.clone(),
        )?;
        let admin_listener = match config.listen.admin {
            Some(address) => Some(admin::bind_tcp(address).await?),
            None => None,
        };
        let zone = dns::ZoneHandle::new(dns::Zone::empty());
        let dns_server = match config.listen.dns {
            Some(address) => Some(dns::Server::bind(address, zone.clone(), metrics.clone()).await?),
            None => None,
        };
        let addresses = Addresses {
            control: control_listener.local_addr(),
            tunnel: gateway.local_addr().context("the tunnel has no address")?,
            admin: admin_listener.as_ref().and_then(|listener| listener.local_addr().ok()),
            dns: dns_server.as_ref().map(dns::Server::local_addr),
            socket: socket.path().to_owned(),
            nsm,
        };

        // The parts, joined.
        let advertised = advertised(&config);
        let names = addresses.dns.is_some().then(|| Names {
            zone,
            own: dns::OwnDomain {
                domain: config.domain.clone(),
                advertise: advertised.clone(),
                control_port: addresses.control.port(),
                tunnel_port: addresses.tunnel.port(),
                nsm: nsm::ports(&config, &addresses.nsm, addresses.control.port()),
            },
            suffix: config.dns.suffix.clone(),
            addresses: {
                let file = config.state_dir.join(VIRTUAL_IPS);
                Mutex::new(dns::VirtualIps::restore(config.dns.virtual_ips, saved(&file)))
            },
            file: config.state_dir.join(VIRTUAL_IPS),
        });
        let listeners = Listeners::new(gateway.clone(), names);
        let for_bridge = Arc::new(OnceLock::new());
        let _first = for_bridge.set(Arc::downgrade(&listeners));
        let datapath = Arc::new(GatewayPath { gateway: gateway.clone(), listeners: for_bridge });
        let resolver =
            Resolver::new(resolver_settings(&config), metrics.clone()).context("the DNS cannot be asked")?;
        resolver.set_peers(static_peers(&config));
        let peers = Peers::new(identity.clone(), trust.clone(), trust_map.clone(), resolver.clone(), &tasks);
        let tunnel_addresses = tunnel_addresses(&advertised, addresses.tunnel.port());
        let monitors = Monitors::new(config.trust_domain.clone(), &tasks);
        let own_name = config.compat.nsm.name.clone();
        let inbound =
            InboundSettings { own_name: own_name.clone(), ..InboundSettings::new(config.domain.clone()) };
        let exports = Exports::new(
            inbound,
            tunnel_addresses,
            datapath.clone(),
            &identity,
            &trust,
            monitors.clone(),
            &tasks,
            metrics.clone(),
        );
        let registry = Registry::new(config.domain.clone(), config.trust_domain.clone(), &tasks, &metrics);
        registry.set_admission(admission(&config)).await;
        let in_charge = nsm::in_charge(&config, &identity, &trust, &peers, &tasks);
        let store: Arc<dyn Store> = match &in_charge.own {
            None => store::open(&config, state.path(), &tasks)?,
            Some(upstream) => {
                let (place, upstream) = (upstream.to_string(), Arc::new(RemotePart(upstream.clone())));
                registry.set_upstream(upstream.clone());
                Arc::new(MirrorStore::new(&place, config.domain.clone(), upstream))
            }
        };
        registry.attach(store, identity.clone());
        let connect_url = nsm::connect_url(&config, &addresses);
        let remotes: Arc<dyn RemoteRegistries> = match &in_charge.others {
            None => Arc::new(RemotePeers(peers.clone())),
            Some(part) => Arc::new(Relay(RemotePart(part.clone()))),
        };
        let federation = Federation::new(remotes, connect_url, &tasks, &metrics);
        registry.set_federation(federation.clone());
        let beyond =
            in_charge.others.map(|_| Arc::new(FederationBeyond(federation.clone())) as Arc<dyn Beyond>);
        let transits = Transits::new(
            TransitParts {
                settings: TransitSettings::new(own_name),
                select: SelectSettings {
                    domain: config.domain.clone(),
                    trust_domain: config.trust_domain.clone(),
                    // A manager has forwarders. With a registry of NSM's in charge the managers are NSM's, too.
                    forwarder: in_charge.own.is_none().then(|| FORWARDER.to_owned()),
                },
                catalogue: Arc::new(RegistryView { registry: registry.clone(), own: identity.id() }),
                beyond,
                peers: peers.clone(),
                identity: identity.clone(),
                trust: trust.clone(),
                monitors: monitors.clone(),
                file: store::connections(state.path()),
                metrics: metrics.clone(),
            },
            &tasks,
        );
        let imports =
            Imports::new(config.domain.clone(), peers.clone(), datapath, tasks.clone(), metrics.clone());
        let explainer = Explainer::new(peers.clone(), exports.clone());

        let daemon = Arc::new(Self {
            config: ArcSwap::from_pointee(config),
            config_path,
            state,
            identity,
            trust,
            trust_map,
            trusted: Mutex::new(trusted),
            metrics,
            tasks,
            readiness,
            gateway,
            exports,
            transits,
            monitors,
            imports,
            listeners,
            peers,
            resolver,
            registry,
            federation,
            explainer,
            addresses,
            started,
            began,
            draining: std::sync::atomic::AtomicBool::new(false),
            reloading: tokio::sync::Mutex::new(()),
        });

        // What is offered and used; then everything serves.
        reload::apply_exports(&daemon, &daemon.config.load())?;
        daemon.gateway.serve(Arc::new(ImportPlane(daemon.imports.clone())));
        for import in &daemon.config.load().imports {
            daemon.listeners.add(&daemon.imports, import)?;
        }
        daemon.listeners.publish();
        if tokio::time::timeout(STORE_PATIENCE, daemon.registry.synced()).await.is_err() {
            tracing::warn!(
                "what is registered is not known yet: only exports are found until the store answers"
            );
        }
        daemon.serve(control_listener, socket, admin_listener, dns_server);
        life::keep(&daemon);
        flat_files::keep(&daemon);
        drop(starting);
        notify::ready();
        daemon.announce();
        Ok(daemon)
    }

    fn serve(
        self: &Arc<Self>,
        control: ControlListener,
        socket: AdminSocket,
        admin_listener: Option<tokio::net::TcpListener>,
        dns_server: Option<dns::Server>,
    ) {
        let (identity, trust, tasks) = (self.identity.clone(), self.trust.clone(), self.tasks.clone());
        let (metrics, registry) = (self.metrics.clone(), self.registry.clone());
        let network = NetworkServer::new(self.exports.clone(), metrics.clone());
        let network = network.with_transits(self.transits.clone()).into_service();
        let monitor = self.monitors.clone().into_service();
        let _served = self.tasks.spawn("control", async move {
            let (reporter, health) = tonic_health::server::health_reporter();
            for name in HEALTHY {
                reporter.set_service_status(name, tonic_health::ServingStatus::Serving).await;
            }
            let routes = Routes::new(health)
                .add_service(network)
                .add_service(monitor)
                .add_service(registry.service_registry())
                .add_service(registry.endpoint_registry());
            control.serve(routes, &identity, &trust, tasks, metrics).await;
        });
        let admin_api = Arc::new(Admin(self.clone()));
        let _served = admin::serve(socket, admin_api.clone(), &self.tasks);
        if let Some(listener) = admin_listener {
            let _served = admin::serve_tcp(listener, admin_api, &self.tasks);
        }
        if let Some(server) = dns_server {
            server.serve(&self.tasks);
        }
    }

    fn announce(&self) {
        let config = self.config.load();
        tracing::info!(
            domain = %config.domain,
            identity = %self.identity.id(),
            control = %self.addresses.control,
            tunnel = %self.addresses.tunnel,
            exports = config.exports.len(),
            imports = config.imports.len(),
            took_ms = self.began.elapsed().as_millis() as u64,
            "carrick is ready"
        );
        notify::status(&format!(
            "{}: {} exports, {} imports",
            config.domain,
            config.exports.len(),
            config.imports.len()
        ));
    }
}

/// Names whose health is told; the empty one is the whole server (gRPC health checking protocol).
const HEALTHY: [&str; 5] = [
    "",
    "networkservice.NetworkService",
    "connection.MonitorConnection",
    "registry.NetworkServiceRegistry",
    "registry.NetworkServiceEndpointRegistry",
];

fn embedded_identity(
    config: &Config,
    state: &StateDir,
) -> anyhow::Result<(Identity, carrick_identity::Bundle)> {
    let now = SystemTime::now();
    let ca = EmbeddedCa::open_or_create(state.path(), &config.trust_domain, now)?;
    let bundle = ca.bundle();
    let id = SpiffeId::new(format!("spiffe://{}{GATEWAY_PATH}", config.trust_domain))
        .context("the gateway has no SPIFFE ID")?;
    let (lifetime, tokens) = (config.identity.svid_lifetime, config.compat.nsm.max_token_lifetime);
    let identity = Identity::embedded_with_tokens(ca, id, lifetime, tokens, now)?;
    Ok((identity, bundle))
}

fn gateway_settings(config: &Config, reset_key: ResetKey) -> carrick_gateway::Settings {
    carrick_gateway::Settings {
        listen: config.listen.tunnel,
        reset_key,
        lanes: match config.tunnel.lanes {
            // One QUIC connection keeps one core of each side busy; the other cores are for the sockets of the flows.
            Lanes::Auto => std::thread::available_parallelism().map_or(1, |n| n.get() / 2).clamp(1, 8),
            Lanes::Count(n) => n.into(),
        },
        idle_timeout: config.tunnel.idle_timeout,
        keep_alive: config.tunnel.keep_alive,
        max_memory: config.tunnel.max_memory,
        congestion: match config.tunnel.congestion {
            Congestion::Cubic => carrick_gateway::Congestion::Cubic,
            Congestion::Bbr => carrick_gateway::Congestion::Bbr,
        },
        connect: config.timeouts.connect,
        flow_open: config.timeouts.flow_open,
        udp_idle: config.timeouts.udp_idle,
        max_flows: config.limits.max_flows as usize,
        max_tunnels: config.limits.max_tunnels as usize,
        max_half_open: config.limits.max_half_open as usize,
    }
}

fn resolver_settings(config: &Config) -> ResolverSettings {
    ResolverSettings {
        servers: config.dns.servers.clone(),
        timeout: config.dns.timeout,
        attempts: config.dns.attempts.into(),
        max_stale: config.dns.max_stale,
        cache_size: KNOWN_DOMAINS,
    }
}

/// The `peers:` of the config as the resolver takes them.
pub(crate) fn static_peers(config: &Config) -> Vec<StaticPeer> {
    let peer = |peer: &carrick_config::Peer| StaticPeer {
        domain: peer.domain.clone(),
        control: peer.control.clone(),
        tunnel: peer.tunnel.clone(),
    };
    config.peers.iter().map(peer).collect()
}

/// What the config lets callers of other trust domains do with registrations.
pub(crate) fn admission(config: &Config) -> Admission {
    Admission { admit: config.registry.admit.clone(), show: config.registry.show.clone() }
}

/// What peers are told: `advertise:`, or the listen addresses, or, where they listen everywhere, the address that the
/// system would send from.
pub(crate) fn advertised(config: &Config) -> Vec<Host> {
    if !config.advertise.is_empty() {
        return config.advertise.clone();
    }
    let mut all: Vec<IpAddr> = Vec::new();
    for listen in [config.listen.control.ip(), config.listen.tunnel.ip()] {
        let ip = if listen.is_unspecified() { source_address(listen) } else { Some(listen) };
        all.extend(ip.filter(|ip| !all.contains(ip)));
    }
    all.into_iter().map(Host::Ip).collect()
}

/// Asks the routing table, without sending anything, from where a packet to the world would come.
fn source_address(any: IpAddr) -> Option<IpAddr> {
    // Addresses for documentation (RFC 5737, RFC 3849): they belong to nobody, and connecting a UDP socket sends nothing.
    let (any, world) =
        if any.is_ipv4() { ("0.0.0.0:0", "192.0.2.1:9") } else { ("[::]:0", "[2001:db8::1]:9") };
    let socket = UdpSocket::bind(any).ok()?;
    socket.connect(world).ok()?;
    socket.local_addr().ok().map(|address| address.ip())
}

/// Tunnel addresses for the answers to requests: literal ones only, names are for the DNS.
fn tunnel_addresses(advertised: &[Host], port: u16) -> Vec<SocketAddr> {
    let literal = |host: &Host| match host {
        Host::Ip(ip) => Some(SocketAddr::new(*ip, port)),
        Host::Name(_) => None,
    };
    advertised.iter().filter_map(literal).collect()
}

/// Whole seconds since the epoch, for gauges.
pub(crate) fn epoch_seconds(at: SystemTime) -> i64 {
    let since = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO);
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}
