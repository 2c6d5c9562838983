//! Bytes between a local stream and a QUIC stream.
//!
//! Both directions of a flow run in one task. Bytes are not copied in between: what is read from the local stream is handed
//! to quinn as it is, and what quinn received is written with one vectored write. Back-pressure is the streams' own: a
//! reader that stops fills its socket, then the stream's window, then the sender's socket. Flows that wait for the window of
//! their tunnel write in turn (`turns`).
//!
//! A FIN is mapped to a FIN. A reset, or a write to a local stream whose reader is gone, becomes RESET_STREAM and
//! STOP_SENDING with [`ResetCode::Reset`], and the other end resets its local stream.

use std::{
    future::{Future, poll_fn},
    io::{self, IoSlice},
    pin::Pin,
    sync::atomic::{AtomicU64, Ordering},
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::{Buf, Bytes};
use carrick_gateway_core::{DropReason, ResetCode, Verdict};
use quinn::{ReadError, RecvStream, SendStream, VarInt, WriteError};
use tokio::{io::AsyncWriteExt, task::coop, time::timeout};

use crate::{
    backlog::{Backlogs, Behind},
    coalesce::Coalesce,
    flow::End,
    lane::{Kill, Lane},
    local::{LocalStream, ReadSide, WriteSide},
    source::Source,
};

/// Received pieces written at once; a piece is at most a packet.
const PIECES: usize = 48;
/// A local reader that takes nothing for so long is behind until it has caught up (see `windows`).
const BEHIND_AFTER: Duration = Duration::from_millis(150);
/// A reader that is behind and takes nothing for so long more is stalled: it may be shed.
const STALLED_AFTER: Duration = Duration::from_millis(850);

/// The QUIC side of a flow.
pub(crate) struct Stream {
    pub(crate) send: SendStream,
    pub(crate) recv: RecvStream,
}

impl Stream {
    /// Ends both directions with a code.
    pub(crate) fn abort(&mut self, code: ResetCode) {
        let code = var_int(code);
        // Both fail only when the direction has ended already.
        let _ended = self.send.reset(code);
        let _ended = self.recv.stop(code);
    }
}

pub(crate) fn var_int(code: ResetCode) -> VarInt {
    VarInt::from_u32(code.code() as u32) // reset codes are single octets
}

/// Which way bytes go from the local stream.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Tally<'a> {
    /// Octets read from the local stream.
    pub(crate) from_local: &'a AtomicU64,
    /// Octets written to the local stream.
    pub(crate) to_local: &'a AtomicU64,
}

/// Relays until both directions have ended, or one broke, or the flow is killed.
///
/// On anything but [`End::Closed`] the stream is aborted and the local stream reset.
pub(crate) async fn relay(
    mut local: LocalStream,
    mut stream: Stream,
    awaits: Verdicts<'_>,
    tally: Tally<'_>,
    lane: &Lane,
    kill: &Kill,
) -> End {
    let pumping = async {
        match &mut local {
            LocalStream::Tcp(tcp) => {
                let (read, write) = tcp.split();
                pump_both(read, write, &mut stream, awaits, tally, lane, kill).await
            }
            LocalStream::Unix(unix) => {
                let (read, write) = unix.split();
                pump_both(read, write, &mut stream, awaits, tally, lane, kill).await
            }
        }
    };
    let end = tokio::select! {
        biased;
        code = kill.killed() => Err(DropReason::Stream(code)),
        end = pumping => end,
    };
    match end {
        Ok(()) => End::Closed,
        Err(reason) => {
            let code = match reason {
                DropReason::Stream(code) => code,
                _ => ResetCode::Reset,
            };
            stream.abort(code);
            local.reset_on_drop();
            End::Dropped(reason)
        }
    }
}

/// Whether the first octet from the tunnel is a verdict.
pub(crate) enum Verdicts<'a> {
    /// We gave it.
    Given,
    /// We wait for it, at most so long; then tell.
    Awaited(Duration, &'a (dyn Fn() + Sync)),
}

async fn pump_both(
    read: impl ReadSide,
    write: impl WriteSide,
    stream: &mut Stream,
    awaits: Verdicts<'_>,
    tally: Tally<'_>,
    lane: &Lane,
    kill: &Kill,
) -> Result<(), DropReason> {
    let Stream { send, recv } = stream;
    let down = async {
        if let Verdicts::Awaited(patience, tell) = awaits {
            await_verdict(recv, patience).await?;
            tell();
        }
        pump_down(recv, write, tally.to_local, lane, kill).await
    };
    tokio::try_join!(pump_up(read, send, tally.from_local, lane), down).map(|((), ())| ())
}

/// Reads the verdict octet.
pub(crate) async fn await_verdict(recv: &mut RecvStream, patience: Duration) -> Result<(), DropReason> {
    let mut octet = [0];
    match timeout(patience, recv.read_exact(&mut octet)).await {
        Ok(Ok(())) => match Verdict::from_code(octet[0]) {
            Verdict::Accepted => Ok(()),
            refused => Err(DropReason::Verdict(refused)),
        },
        Ok(Err(quinn::ReadExactError::ReadError(error))) => Err(read_reason(&error)),
        Ok(Err(quinn::ReadExactError::FinishedEarly(_))) | Err(_) => Err(DropReason::NoVerdict),
    }
}

/// Local to tunnel.
async fn pump_up(
    read: impl ReadSide,
    send: &mut SendStream,
    tally: &AtomicU64,
    lane: &Lane,
) -> Result<(), DropReason> {
    let mut source = Source::new(read, tally);
    loop {
        // A client that always has bytes shares its thread with the other flows.
        coop::consume_budget().await;
        source.readable().await?;
        if let Some(piece) = source.first(lane.is_contended()) {
            lane.write_run(send, piece, || source.next()).await.map_err(|error| write_reason(&error))?;
        }
        if source.has_ended()? {
            // Fails only when the peer has stopped the stream, and then there is nobody to tell.
            let _stopped = send.finish();
            return Ok(());
        }
    }
}

/// Tunnel to local.
async fn pump_down(
    recv: &mut RecvStream,
    mut write: impl WriteSide,
    tally: &AtomicU64,
    lane: &Lane,
    kill: &Kill,
) -> Result<(), DropReason> {
    // What the local stream did not take at once. A flow that waits for the tunnel keeps nothing here.
    let mut left: Vec<Bytes> = Vec::new();
    let mut behind: Option<Behind<'_>> = None;
    let mut coalesce = Coalesce::new();
    loop {
        let moved = poll_fn(|cx| {
            let polled = poll_down(recv, &mut write, &mut left, cx);
            if polled.is_pending() {
                // There is nothing more to take: the reader has caught up.
                behind = None;
            }
            polled
        })
        .await?;
        let Some(length) = moved else {
            // The client may have gone already; then there is nobody to tell.
            let _shut = write.shutdown().await;
            return Ok(());
        };
        if !left.is_empty() {
            write_left(&mut left, &mut write, &lane.backlogs, &mut behind, kill)
                .await
                .map_err(|_| DropReason::LocalReset)?;
            left = Vec::new();
        }
        tally.fetch_add(length as u64, Ordering::Relaxed);
        coalesce.gather(length, &lane.rounds).await;
    }
}

/// Receives, and writes what the local stream takes now; the rest goes to `left`. Octets received, or nothing at the end.
///
/// The arrays are here, on the stack, and not in the flow's task, where each of many waiting flows would keep them.
fn poll_down(
    recv: &mut RecvStream,
    write: &mut impl WriteSide,
    left: &mut Vec<Bytes>,
    cx: &mut Context<'_>,
) -> Poll<Result<Option<usize>, DropReason>> {
    let mut pieces: [Bytes; PIECES] = std::array::from_fn(|_| Bytes::new());
    // quinn keeps the state of a read in the stream, so that a read can be begun anew at each poll.
    let received = ready!(std::pin::pin!(recv.read_chunks(&mut pieces)).poll(cx));
    let Some(n) = received.map_err(|error| read_reason(&error))? else { return Poll::Ready(Ok(None)) };
    let length = pieces[..n].iter().map(Bytes::len).sum();
    let mut rest = &mut pieces[..n];
    while !rest.is_empty() {
        match poll_write(write, rest, cx) {
            Poll::Ready(Ok(written)) => rest = advance(rest, written),
            Poll::Ready(Err(_)) => return Poll::Ready(Err(DropReason::LocalReset)),
            Poll::Pending => {
                left.extend(rest.iter_mut().map(std::mem::take));
                break;
            }
        }
    }
    Poll::Ready(Ok(Some(length)))
}

/// Waits until the local stream has taken all of it.
async fn write_left<'a>(
    left: &mut [Bytes],
    write: &mut impl WriteSide,
    backlogs: &'a Backlogs,
    behind: &mut Option<Behind<'a>>,
    kill: &Kill,
) -> io::Result<()> {
    let mut rest = left;
    while !rest.is_empty() {
        let mut writing = poll_fn(|cx| poll_write(write, rest, cx));
        let (mut late, mut stalled) = (false, None);
        let written = loop {
            match timeout(if late { STALLED_AFTER } else { BEHIND_AFTER }, &mut writing).await {
                Ok(written) => break written?,
                Err(_) if !late => {
                    behind.get_or_insert_with(|| backlogs.behind());
                    late = true;
                }
                Err(_) => {
                    stalled.get_or_insert_with(|| backlogs.stalled(kill));
                }
            }
        };
        drop(stalled);
        rest = advance(rest, written);
    }
    Ok(())
}

/// One vectored write of at least one octet.
fn poll_write(write: &mut impl WriteSide, pieces: &[Bytes], cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
    let slices: [IoSlice<'_>; PIECES] =
        std::array::from_fn(|i| IoSlice::new(pieces.get(i).map_or(&[], |piece| piece)));
    let most = pieces.len().min(PIECES);
    match ready!(Pin::new(write).poll_write_vectored(cx, &slices[..most])) {
        Ok(0) => Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
        written => Poll::Ready(written),
    }
}

/// Skips what was written.
fn advance(mut pieces: &mut [Bytes], mut written: usize) -> &mut [Bytes] {
    while written > 0 {
        let Some(first) = pieces.first_mut() else { break };
        let part = written.min(first.len());
        first.advance(part);
        written -= part;
        if first.is_empty() {
            pieces = &mut pieces[1..];
        }
    }
    pieces
}

pub(crate) fn read_reason(error: &ReadError) -> DropReason {
    match error {
        ReadError::Reset(code) => DropReason::Stream(ResetCode::from_code(code.into_inner())),
        ReadError::ConnectionLost(_) => DropReason::TunnelLost,
        ReadError::ClosedStream | ReadError::IllegalOrderedRead | ReadError::ZeroRttRejected => {
            DropReason::Stream(ResetCode::Protocol)
        }
    }
}

pub(crate) fn write_reason(error: &WriteError) -> DropReason {
    match error {
        WriteError::Stopped(code) => DropReason::Stream(ResetCode::from_code(code.into_inner())),
        WriteError::ConnectionLost(_) => DropReason::TunnelLost,
        WriteError::ClosedStream | WriteError::ZeroRttRejected => DropReason::Stream(ResetCode::Protocol),
    }
}
