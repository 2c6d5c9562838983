//! One flow from here: route, tunnel, header, verdict, relay.

use std::{sync::Arc, time::Duration};

use carrick_gateway_core::{DropReason, FlowHeader, HeaderKind, ResetCode, TraceContext, Verdict};
use carrick_model::ConnectionId;
use carrick_telemetry::Direction;
use quinn::{RecvStream, SendStream};

use crate::{
    flow::{End, Flow, FlowPermit},
    gateway::{Import, RouteState, Shared},
    lane::{Kill, Lane, Rider},
    local::LocalStream,
    relay::{Stream, Tally, Verdicts, relay},
    routes::Routed,
};

/// An open flow, before its verdict.
pub(crate) struct Opened {
    pub(crate) lane: Arc<Lane>,
    pub(crate) rider: Rider,
    pub(crate) stream: Stream,
    pub(crate) kill: Kill,
    pub(crate) connection: ConnectionId,
}

/// Why a flow could not be opened.
pub(crate) struct NotOpened {
    pub(crate) reason: DropReason,
    pub(crate) detail: String,
}

/// Carries a client's stream to the service and back.
pub(crate) async fn carry(
    shared: Arc<Shared>,
    import: Arc<Import>,
    local: LocalStream,
    client: String,
    _permit: FlowPermit,
) {
    let _counted = import.flows.one_more();
    let mut flow = Flow::begin(Direction::Import, &shared.metrics, import.service.clone(), client);
    let opened = match open(&shared, &import, HeaderKind::Stream, &mut flow).await {
        Ok(opened) => opened,
        Err(refused) => {
            local.reset_on_drop();
            drop(local);
            return refuse(&shared, &import, flow, &refused);
        }
    };
    let Opened { lane, rider: _rider, stream, kill, connection } = opened;
    let end = {
        let tally = Tally { from_local: &flow.to_service, to_local: &flow.to_client };
        let tell = || flow.opened();
        let verdict = Verdicts::Awaited(shared.settings.flow_open, &tell);
        relay(local, stream, verdict, tally, &lane, &kill).await
    };
    conclude(&shared, &import, flow, connection, end);
}

/// Counts and logs the end, and tells the control plane what it should know.
pub(crate) fn conclude(shared: &Shared, import: &Import, flow: Flow, connection: ConnectionId, end: End) {
    let mut detail = String::new();
    if let End::Dropped(DropReason::Verdict(verdict)) = end {
        detail = verdict.hint().to_owned();
        if matches!(verdict, Verdict::UnknownConnection | Verdict::NotYours) {
            shared.connection_lost(import, connection, "the other gateway no longer knows the connection");
        }
        warn_refused(import, verdict.as_str(), &detail);
    }
    flow.end(end, &detail);
}

pub(crate) fn refuse(shared: &Shared, import: &Import, flow: Flow, refused: &NotOpened) {
    shared.demand(import);
    warn_refused(import, refused.reason.as_str(), &refused.detail);
    flow.end(End::Dropped(refused.reason), &refused.detail);
}

fn warn_refused(import: &Import, reason: &str, detail: &str) {
    tracing::warn!(service = %import.service, reason, why = detail, "a client of the import was refused");
}

/// Opens a stream to the service and writes the flow header.
///
/// # Errors
/// Nothing was sent; the client should be refused at once.
pub(crate) async fn open(
    shared: &Arc<Shared>,
    import: &Import,
    kind: HeaderKind,
    flow: &mut Flow,
) -> Result<Opened, NotOpened> {
    let patience = shared.settings.flow_open;
    let not = |reason: DropReason| move |detail: String| NotOpened { reason, detail };
    let routed = wait_for_route(shared, import, patience).await.map_err(not(DropReason::ImportDown))?;
    flow.connection = Some(routed.route.connection);
    let tunnel = shared.tunnel(&routed.route);
    let no_tunnel = not(DropReason::NoTunnel);
    let lane = tunnel.lane(patience).await.map_err(|why| no_tunnel(why.to_string()))?;
    let rider = lane.ride();
    flow.peer = Some(lane.peer.clone());
    flow.gateway = Some(lane.address());
    flow.caller = Some(shared.identity.id());
    let trace = new_trace();
    flow.trace = trace.trace_hex();
    let connection = routed.route.connection;
    let header = FlowHeader { kind, connection, caller: None, trace: Some(trace) };
    let (send, recv) = open_stream(&lane, &header, patience).await.map_err(no_tunnel)?;
    let kill = Kill::under(&routed.token);
    Ok(Opened { lane, rider, stream: Stream { send, recv }, kill, connection })
}

async fn wait_for_route(shared: &Shared, import: &Import, patience: Duration) -> Result<Arc<Routed>, String> {
    let mut states = import.state.subscribe();
    let waiting = async {
        loop {
            match &*states.borrow_and_update() {
                RouteState::Up(routes) => return Ok(routes.pick()),
                RouteState::Down(why) => return Err(why.to_string()),
                RouteState::Connecting => shared.demand(import),
            }
            if states.changed().await.is_err() {
                return Err("the import was removed".into());
            }
        }
    };
    let late = |_| Err(format!("the connection was still being made after {patience:?}"));
    tokio::time::timeout(patience, waiting).await.unwrap_or_else(late)
}

async fn open_stream(
    lane: &Lane,
    header: &FlowHeader,
    patience: Duration,
) -> Result<(SendStream, RecvStream), String> {
    let opening = async {
        let (mut send, mut recv) = lane.connection.open_bi().await.map_err(|error| error.to_string())?;
        let mut octets = Vec::with_capacity(64);
        header.encode(&mut octets);
        if let Err(error) = send.write_all(&octets).await {
            let _ended = recv.stop(crate::relay::var_int(ResetCode::Reset));
            return Err(error.to_string());
        }
        Ok((send, recv))
    };
    let late = |_| Err("the other gateway has no room for more flows".into());
    tokio::time::timeout(patience, opening).await.unwrap_or_else(late)
}

/// A trace of its own for every flow; sampled is not set, because nothing exports spans yet.
fn new_trace() -> TraceContext {
    let nonzero = |n: u128| n.max(1);
    TraceContext {
        trace_id: nonzero(rand::random::<u128>()).to_be_bytes(),
        span_id: rand::random::<u64>().max(1).to_be_bytes(),
        flags: 0,
    }
}
