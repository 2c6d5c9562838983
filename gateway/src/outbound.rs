//! One flow from here: route, tunnel, header, verdict, relay.

use std::{sync::Arc, time::Duration};

use carrick_gateway_core::{DropReason, FlowHeader, HeaderKind, ResetCode, TraceContext, Verdict};
use carrick_model::ConnectionId;
use quinn::{RecvStream, SendStream};

use crate::{
    flow::{End, Flow, FlowPermit},
    gateway::{Import, RouteState, Shared},
    lane::{Kill, Lane, Rider},
    local::LocalStream,
    relay::{Stream, Tally, Verdicts, relay},
    routes::Routed,
    threads,
};

/// What a flow rides on.
pub(crate) struct Seat {
    pub(crate) lane: Arc<Lane>,
    _rider: Rider,
    routed: Arc<Routed>,
}

impl Seat {
    pub(crate) fn connection(&self) -> ConnectionId {
        self.routed.route.connection
    }
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
    permit: FlowPermit,
) {
    let counted = import.flows.one_more();
    let mut flow = Flow::begin(&shared.imported, import.service.clone(), client);
    let seat = match take_seat(&shared, &import, &mut flow).await {
        Ok(seat) => seat,
        Err(refused) => {
            local.reset_on_drop();
            drop(local);
            return refuse(&shared, &import, flow, &refused);
        }
    };
    if threads::is_here(&seat.lane.thread) {
        return ride(&shared, &import, local, flow, seat).await;
    }
    let Ok(moving) = local.depart() else {
        return flow.end(End::Dropped(DropReason::LocalReset), "the client's socket could not be moved");
    };
    let (tasks, thread) = (shared.tasks.clone(), seat.lane.thread.clone());
    let _detached = tasks.spawn_on(&thread, "outbound-flow", async move {
        let _held_to_the_end = (permit, counted);
        match moving.arrive() {
            Ok(local) => ride(&shared, &import, local, flow, seat).await,
            Err(error) => flow.end(End::Dropped(DropReason::LocalReset), &error.to_string()),
        }
    });
}

/// Opens the flow and relays it, on the thread of its lane.
async fn ride(shared: &Arc<Shared>, import: &Import, local: LocalStream, mut flow: Flow, seat: Seat) {
    let (stream, kill) = match open(shared, &seat, HeaderKind::Stream, &mut flow).await {
        Ok(opened) => opened,
        Err(refused) => {
            local.reset_on_drop();
            drop(local);
            return refuse(shared, import, flow, &refused);
        }
    };
    let end = {
        let tally = Tally { from_local: &flow.to_service, to_local: &flow.to_client };
        let tell = || flow.opened();
        let verdict = Verdicts::Awaited(shared.settings.flow_open, &tell);
        relay(local, stream, verdict, tally, &seat.lane, &kill).await
    };
    conclude(shared, import, flow, seat.connection(), end);
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

/// The route of the import, and a lane of its tunnel.
///
/// # Errors
/// Nothing was sent; the client should be refused at once.
pub(crate) async fn take_seat(
    shared: &Arc<Shared>,
    import: &Import,
    flow: &mut Flow,
) -> Result<Seat, NotOpened> {
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
    Ok(Seat { lane, _rider: rider, routed })
}

/// Opens a stream to the service and writes the flow header.
///
/// # Errors
/// Nothing was sent; the client should be refused at once.
pub(crate) async fn open(
    shared: &Shared,
    seat: &Seat,
    kind: HeaderKind,
    flow: &mut Flow,
) -> Result<(Stream, Kill), NotOpened> {
    let trace = new_trace();
    flow.trace = trace.trace_hex();
    let header = FlowHeader { kind, connection: seat.connection(), caller: None, trace: Some(trace) };
    let (send, recv) = open_stream(&seat.lane, &header, shared.settings.flow_open)
        .await
        .map_err(|detail| NotOpened { reason: DropReason::NoTunnel, detail })?;
    Ok((Stream { send, recv }, Kill::under(&seat.routed.token)))
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
        if let Err(error) = lane.write(&mut send, octets.into()).await {
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

#[cfg(test)]
mod tests {
    use super::*;

    /// What the task of a flow takes, without running it.
    fn size_of_task<A, B, C, D, E, F>(_task: impl Fn(A, B, C, D, E) -> F) -> usize {
        size_of::<F>()
    }

    /// Each of 100,000 idle flows keeps its task, and each new one moves it several times.
    #[test]
    fn a_flow_is_a_small_task() {
        let size = size_of_task(carry);
        assert!(size <= 2624, "{size} octets");
    }
}
