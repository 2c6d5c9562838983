//! Dials a peer's gateway and keeps it dialled.
//!
//! A [`Tunnel`] exists while a route needs its domain. Its task dials the gateway's addresses in a race, keeps the wished
//! number of lanes, replaces those that end or drain, and backs off, for ever, when nobody answers.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use carrick_gateway_core::CloseCode;
use carrick_model::{Domain, TrustDomain};
use carrick_runtime::{Backoff, RaceError, race};
use tokio::sync::{Notify, watch};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

use crate::{
    endpoint,
    gateway::Shared,
    lane::{Lane, Role},
};

/// Time between the starts of two attempts of a race (RFC 8305 section 5).
const STAGGER: Duration = Duration::from_millis(250);
const FIRST_RETRY: Duration = Duration::from_millis(100);
/// The longest wait between attempts: a gateway that returns is found within seconds.
const LAST_RETRY: Duration = Duration::from_secs(5);
/// A client that wants the tunnel cuts a wait short, but not more often than this.
const DEMAND_SPACING: Duration = Duration::from_secs(1);

/// Where a tunnel leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Destination {
    /// Whose SVID is expected.
    pub(crate) trust_domain: TrustDomain,
    /// Addresses of the gateway, best first.
    pub(crate) gateways: Vec<std::net::SocketAddr>,
}

/// What a flow finds.
#[derive(Debug, Clone)]
pub(crate) enum State {
    /// The first attempt runs: wait.
    Dialling,
    /// Lanes to choose from; never empty.
    Up(Arc<[Arc<Lane>]>),
    /// Nobody answered: fail fast, with the reason.
    Failing(Arc<str>),
}

/// The dialled lanes to one domain.
#[derive(Debug)]
pub(crate) struct Tunnel {
    pub(crate) domain: Domain,
    state: watch::Sender<State>,
    destination: watch::Sender<Destination>,
    demand: Notify,
    pub(crate) stop: CancellationToken,
}

impl Tunnel {
    /// Begins to dial.
    pub(crate) fn start(shared: &Arc<Shared>, domain: Domain, destination: Destination) -> Arc<Self> {
        let tunnel = Arc::new(Self {
            domain,
            state: watch::Sender::new(State::Dialling),
            destination: watch::Sender::new(destination),
            demand: Notify::new(),
            stop: CancellationToken::new(),
        });
        let _runs = shared.tasks.spawn("tunnel-keep", run(shared.clone(), tunnel.clone()));
        tunnel
    }

    /// Leads the tunnel elsewhere; lanes that already lead there stay.
    pub(crate) fn redirect(&self, destination: Destination) {
        self.destination.send_if_modified(|current| {
            let changed = *current != destination;
            *current = destination;
            changed
        });
    }

    /// The lane with the fewest flows, waiting for a first attempt that still runs.
    ///
    /// # Errors
    /// Why there is none; or that `patience` ran out.
    pub(crate) async fn lane(&self, patience: Duration) -> Result<Arc<Lane>, Arc<str>> {
        let mut states = self.state.subscribe();
        let waiting = async {
            loop {
                match states.borrow_and_update().clone() {
                    State::Up(lanes) => {
                        if let Some(lane) =
                            lanes.iter().filter(|lane| lane.is_open()).min_by_key(|lane| lane.flows())
                        {
                            return Ok(lane.clone());
                        }
                    }
                    State::Failing(why) => {
                        self.demand.notify_one();
                        return Err(why);
                    }
                    State::Dialling => {}
                }
                if states.changed().await.is_err() {
                    return Err("the tunnel is closed".into());
                }
            }
        };
        tokio::time::timeout(patience, waiting)
            .await
            .unwrap_or_else(|_| Err("the tunnel did not come up in time".into()))
    }

    /// What a flow would find now.
    pub(crate) fn state(&self) -> State {
        self.state.borrow().clone()
    }
}

async fn run(shared: Arc<Shared>, tunnel: Arc<Tunnel>) {
    let mut destination = tunnel.destination.subscribe();
    let mut lanes: Vec<Arc<Lane>> = Vec::new();
    let mut backoff = Backoff::new(FIRST_RETRY, LAST_RETRY);
    loop {
        let now = destination.borrow_and_update().clone();
        lanes.retain(|lane| {
            let keep = lane.is_open() && leads_to(lane, &now);
            if !keep && lane.is_open() {
                retire(&shared, lane);
            }
            keep
        });
        let wanted = shared.settings.lanes.max(1);
        if lanes.len() < wanted {
            let dialled = tokio::select! {
                dialled = dial(&shared, &tunnel.domain, now) => dialled,
                () = tunnel.stop.cancelled() => break,
            };
            match dialled {
                Ok(lane) => {
                    backoff.reset();
                    lanes.push(lane);
                    tunnel.state.send_replace(State::Up(lanes.clone().into()));
                    continue;
                }
                Err(why) => {
                    shared.metrics.tunnel_dial_failures.inc();
                    tracing::warn!(domain = %tunnel.domain, %why, hint = DIAL_HINT, "no gateway answered");
                    if lanes.is_empty() {
                        tunnel.state.send_replace(State::Failing(why.clone().into()));
                        shared.tunnel_failed(&tunnel.domain, &why);
                    }
                }
            }
            if wait_to_retry(&tunnel, &mut destination, backoff.next_delay()).await.is_break() {
                break;
            }
            continue;
        }
        tokio::select! {
            () = any_unusable(&lanes) => {}
            _changed = destination.changed() => {}
            () = tunnel.stop.cancelled() => break,
        }
        lanes.retain(|lane| lane.is_open());
        if lanes.is_empty() {
            tunnel.state.send_replace(State::Dialling);
        } else {
            tunnel.state.send_replace(State::Up(lanes.clone().into()));
        }
    }
    for lane in &lanes {
        retire(&shared, lane);
    }
    tunnel.state.send_replace(State::Failing("the tunnel is no longer needed".into()));
}

const DIAL_HINT: &str = "check that UDP reaches the gateway's tunnel port, and that both domains trust each other (`carrick explain`)";

/// Whether the lane is one that the destination would be dialled for. After a migration of the peer its address is a new
/// one, so a lane is only given up when the expected identity changed or no address is left that it was dialled at.
fn leads_to(lane: &Lane, destination: &Destination) -> bool {
    lane.peer.trust_domain() == &destination.trust_domain
        && (destination.gateways.is_empty() || destination.gateways.contains(&lane.address()))
}

/// Closes a lane when its last flow has ended.
fn retire(shared: &Arc<Shared>, lane: &Arc<Lane>) {
    let (tasks, lane) = (shared.tasks.clone(), lane.clone());
    let stopping = tasks.stopping();
    let _detached = tasks.spawn("tunnel-retire", async move {
        let idle = async {
            while lane.flows() > 0 {
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        };
        tokio::select! {
            () = idle => lane.close(CloseCode::Done),
            () = stopping => {}
            _ended = lane.connection.closed() => {}
        }
    });
}

async fn any_unusable(lanes: &[Arc<Lane>]) {
    let waits = lanes.iter().map(|lane| Box::pin(lane.unusable()));
    let _first = futures::future::select_all(waits).await;
}

async fn wait_to_retry(
    tunnel: &Tunnel,
    destination: &mut watch::Receiver<Destination>,
    delay: Duration,
) -> std::ops::ControlFlow<()> {
    let began = Instant::now();
    let demanded = async {
        tunnel.demand.notified().await;
        tokio::time::sleep(DEMAND_SPACING.saturating_sub(began.elapsed())).await;
    };
    tokio::select! {
        () = tokio::time::sleep(delay) => {}
        () = demanded => {}
        _changed = destination.changed() => {}
        () = tunnel.stop.cancelled() => return std::ops::ControlFlow::Break(()),
    }
    std::ops::ControlFlow::Continue(())
}

/// Dials on the thread where the lane is going to live.
async fn dial(shared: &Arc<Shared>, domain: &Domain, destination: Destination) -> Result<Arc<Lane>, String> {
    let dialling = {
        let (shared, domain) = (shared.clone(), domain.clone());
        async move { dial_here(&shared, &domain, &destination).await }
    };
    let task = shared.tasks.spawn_on(shared.threads.next(), "tunnel-dial", dialling);
    AbortOnDropHandle::new(task).await.unwrap_or_else(|_| Err("the dial was cut off".into()))
}

async fn dial_here(
    shared: &Arc<Shared>,
    domain: &Domain,
    destination: &Destination,
) -> Result<Arc<Lane>, String> {
    let config =
        endpoint::dial_config(shared, &destination.trust_domain).map_err(|error| error.to_string())?;
    let (address, connection) = race(destination.gateways.iter().copied(), STAGGER, |address| {
        let config = config.clone();
        async move { dial_one(shared, domain, address, config).await }
    })
    .await
    .map_err(|error: RaceError<String>| error.to_string())?;
    let peer = endpoint::peer_of(&connection).map_err(|error| error.to_string())?;
    tracing::info!(%domain, %peer, %address, "a tunnel is up");
    Ok(Lane::start(shared, connection, peer, Role::Dialled))
}

async fn dial_one(
    shared: &Shared,
    domain: &Domain,
    address: std::net::SocketAddr,
    config: quinn::ClientConfig,
) -> Result<quinn::Connection, String> {
    // The name is for SNI only: the peer is known by its SPIFFE ID.
    let connecting =
        shared.endpoint.connect_with(config, address, domain.as_str()).map_err(|error| error.to_string())?;
    match tokio::time::timeout(shared.settings.connect, connecting).await {
        Ok(Ok(connection)) => Ok(connection),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_late) => Err(format!("no answer within {:?}", shared.settings.connect)),
    }
}
