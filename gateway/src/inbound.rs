//! One flow to here: header, admission, target, verdict, relay.

use std::{io, sync::Arc, time::Duration};

use bytes::Bytes;
use carrick_gateway_core::{DropReason, FlowHeader, HeaderError, HeaderKind, ResetCode, Verdict, header};
use carrick_model::{ExportTarget, Payload};
use quinn::{ReadExactError, RecvStream, WriteError};

use crate::{
    association,
    flow::{End, Flow, FlowPermit},
    gateway::{Admitted, Shared},
    lane::{Kill, Lane},
    local::LocalStream,
    relay::{Stream, Tally, Verdicts, read_reason, relay},
};

/// A header that does not come in this time belongs to a peer in trouble, or one that means trouble.
const HEADER: Duration = Duration::from_secs(5);

/// Flows that a peer may have open on one lane, to begin with: ample for most, and little memory for each of a thousand.
const STREAMS: u32 = 1 << 12;
/// The most it may have.
const MOST_STREAMS: u32 = 1 << 17;

/// Takes flows from a lane until its connection ends. Each runs in a task of its own.
pub(crate) async fn accept_flows(shared: &Arc<Shared>, lane: &Arc<Lane>) {
    let mut allowed = STREAMS;
    lane.connection.set_max_concurrent_bi_streams(allowed.into());
    while let Ok((send, recv)) = lane.connection.accept_bi().await {
        if lane.flows() > allowed as usize / 2 && allowed < MOST_STREAMS {
            allowed *= 2;
            lane.connection.set_max_concurrent_bi_streams(allowed.into());
        }
        let stream = Stream { send, recv };
        match shared.limit.take() {
            Some(permit) => {
                let serving = serve(shared.clone(), lane.clone(), stream, permit);
                let _detached = shared.tasks.spawn("inbound-flow", serving);
            }
            None => {
                shared.exported.refused(DropReason::TooManyFlows.as_str());
                let _detached =
                    shared.tasks.spawn("inbound-refusal", refuse(lane.clone(), stream, Verdict::Overloaded));
            }
        }
    }
}

/// Sends the verdict.
pub(crate) async fn answer(lane: &Lane, stream: &mut Stream, verdict: Verdict) -> Result<(), WriteError> {
    lane.write(&mut stream.send, Bytes::copy_from_slice(&[verdict.code()])).await
}

/// Says no, and gives the peer the time to read it.
pub(crate) async fn refuse(lane: Arc<Lane>, mut stream: Stream, verdict: Verdict) {
    let _gone = answer(&lane, &mut stream, verdict).await;
    let _gone = stream.send.finish();
    let _gone = stream.recv.stop(crate::relay::var_int(ResetCode::Reset));
}

async fn serve(shared: Arc<Shared>, lane: Arc<Lane>, mut stream: Stream, _permit: FlowPermit) {
    let header = match tokio::time::timeout(HEADER, read_header(&mut stream.recv)).await {
        Ok(Ok(header)) => header,
        Ok(Err(NoHeader::Gone)) => return,
        Ok(Err(NoHeader::Bad(error))) => {
            return refuse_early(&shared, &lane, stream, Verdict::Malformed, &error.to_string()).await;
        }
        Err(_late) => {
            return refuse_early(&shared, &lane, stream, Verdict::Malformed, "no flow header came").await;
        }
    };
    let admitted = match admission(&shared, &lane, &header) {
        Ok(admitted) => admitted,
        Err((verdict, why)) => return refuse_early(&shared, &lane, stream, verdict, &why).await,
    };
    let _rider = lane.ride();
    let _counted = admitted.flows.one_more();
    let mut flow = Flow::begin(
        &shared.exported,
        admitted.admission.service.at(&shared.domain),
        admitted.admission.target.to_string(),
    );
    flow.connection = Some(header.connection);
    flow.peer = Some(lane.peer.clone());
    flow.gateway = Some(lane.address());
    flow.caller = header.caller.clone().or_else(|| Some(lane.peer.clone()));
    flow.trace = header.trace.map(|trace| trace.trace_hex()).unwrap_or_default();
    let kill = Kill::under(&admitted.token);
    match header.kind {
        HeaderKind::Stream => serve_stream(&shared, &lane, &admitted, stream, flow, &kill).await,
        HeaderKind::Datagrams => association::serve(&shared, &lane, &admitted, stream, flow, &kill).await,
    }
}

async fn serve_stream(
    shared: &Shared,
    lane: &Arc<Lane>,
    admitted: &Admitted,
    mut stream: Stream,
    flow: Flow,
    kill: &Kill,
) {
    let target = &admitted.admission.target;
    let local = match LocalStream::dial(target, shared.settings.connect).await {
        Ok(local) => local,
        Err(error) => {
            let verdict = dial_verdict(&error);
            refuse(lane.clone(), stream, verdict).await;
            return target_failed(flow, target, verdict, &error);
        }
    };
    if answer(lane, &mut stream, Verdict::Accepted).await.is_err() {
        return flow.end(End::Dropped(DropReason::TunnelLost), "");
    }
    flow.opened();
    let tally = Tally { from_local: &flow.to_client, to_local: &flow.to_service };
    let end = relay(local, stream, Verdicts::Given, tally, lane, kill).await;
    flow.end(end, "");
}

/// Logs a target that did not take a flow.
pub(crate) fn target_failed(flow: Flow, target: &ExportTarget, verdict: Verdict, error: &io::Error) {
    tracing::warn!(service = %flow.service, %target, %error, hint = verdict.hint(), "the target of an export did not take a flow");
    flow.end(End::Dropped(DropReason::Verdict(verdict)), &error.to_string());
}

/// What the peer is told of a target that could not be dialled.
pub(crate) fn dial_verdict(error: &io::Error) -> Verdict {
    match error.kind() {
        io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound | io::ErrorKind::ConnectionReset => {
            Verdict::TargetRefused
        }
        _ => Verdict::TargetUnreachable,
    }
}

/// Counts and logs a refusal for which there is no flow yet, and sends it.
async fn refuse_early(shared: &Shared, lane: &Arc<Lane>, stream: Stream, verdict: Verdict, why: &str) {
    shared.exported.refused(verdict.as_str());
    if shared.refusal_log.allow(lane.address().ip()) {
        tracing::warn!(peer = %lane.peer, address = %lane.address(), verdict = verdict.as_str(), why, "a flow was refused");
    }
    refuse(lane.clone(), stream, verdict).await;
}

enum NoHeader {
    /// The stream or the tunnel ended before it.
    Gone,
    Bad(HeaderError),
}

async fn read_header(recv: &mut RecvStream) -> Result<FlowHeader, NoHeader> {
    let gone = |error: ReadExactError| {
        if let ReadExactError::ReadError(error) = &error {
            tracing::trace!(reason = read_reason(error).as_str(), "a stream ended before its header");
        }
        NoHeader::Gone
    };
    let mut prefix = [0; header::PREFIX];
    recv.read_exact(&mut prefix).await.map_err(gone)?;
    let length = FlowHeader::rest_length(prefix).map_err(NoHeader::Bad)?;
    let mut rest = vec![0; length];
    recv.read_exact(&mut rest).await.map_err(gone)?;
    FlowHeader::decode(prefix, &rest).map_err(NoHeader::Bad)
}

/// Whether this peer may open this flow.
fn admission(shared: &Shared, lane: &Lane, header: &FlowHeader) -> Result<Arc<Admitted>, (Verdict, String)> {
    if shared.draining.is_cancelled() {
        return Err((Verdict::Draining, "this gateway drains".into()));
    }
    let Some(admitted) = shared.admissions.read().get(&header.connection).cloned() else {
        return Err((Verdict::UnknownConnection, format!("there is no connection {}", header.connection)));
    };
    let owner = &admitted.admission.peer;
    if owner != &lane.peer {
        return Err((Verdict::NotYours, format!("connection {} belongs to {owner}", header.connection)));
    }
    // A gateway vouches for the workloads of its own trust domain and for no others.
    if let Some(caller) = &header.caller
        && caller.trust_domain() != lane.peer.trust_domain()
    {
        return Err((Verdict::NotYours, format!("{} cannot speak for {caller}", lane.peer)));
    }
    let wanted = match header.kind {
        HeaderKind::Stream => Payload::Tcp,
        HeaderKind::Datagrams => Payload::Udp,
    };
    if admitted.admission.target.payload() != wanted {
        return Err((
            Verdict::WrongPayload,
            format!("{} does not carry {wanted}", admitted.admission.service),
        ));
    }
    Ok(admitted)
}
