//! Lets the flows of a lane that wait for its window write in turn.
//!
//! quinn keeps no order among those that wait for the window of the whole connection: it wakes all of them whenever there is
//! room, last in, first out. So what flows give quinn to wake is not their task but their place in a [`Line`], which calls
//! one at a time. Order and reasons are in [`carrick_gateway_core::turns`].

use std::{
    future::{Future, poll_fn},
    pin::pin,
    sync::Arc,
    task::{Context, Poll, Wake, Waker},
    time::{Duration, Instant},
};

use bytes::Bytes;
use carrick_gateway_core::turns::{Length, Line, Look, Ticket};
use parking_lot::Mutex;
use quinn::{SendStream, WriteError};

/// What is no longer goes before bulk: a header, a verdict, a request, an answer.
const SHORT: usize = 4 << 10;
/// So much a flow may write in one turn: some hundred packets in a row, which the other side can hand on at once.
const RUN: usize = 1 << 20;
/// But no next piece after so long: a slow tunnel ends the turn after the first piece.
const RUN_TIME: Duration = Duration::from_millis(3);

type SharedLine = Arc<Mutex<Line<Waker>>>;

/// The line of one lane.
#[derive(Debug, Default)]
pub(crate) struct Turns(SharedLine);

impl Turns {
    /// Whether somebody waits for room.
    pub(crate) fn is_contended(&self) -> bool {
        !self.0.lock().is_empty()
    }

    /// Writes all of `piece`, in turn with the other flows of the lane, and in the same turn what `more` gives then. `no_room`
    /// is called whenever a try ends for want of it.
    ///
    /// # Errors
    /// quinn's: the peer stopped the stream, or the tunnel is lost.
    // Not an `async fn`: its future would hold the arguments twice, and every flow has one.
    pub(crate) fn write<'a>(
        &'a self,
        send: &'a mut SendStream,
        piece: Bytes,
        mut more: impl FnMut() -> Option<Bytes> + 'a,
        no_room: impl Fn() + 'a,
    ) -> impl Future<Output = Result<(), WriteError>> + 'a {
        let length = if piece.len() <= SHORT { Length::Short } else { Length::Long };
        let mut turn = Turn { line: &self.0, length, place: None };
        let mut whole = [piece];
        // Octets of this turn, and when it ends.
        let (mut run, mut ends) = (0, None);
        poll_fn(move |cx| {
            turn.poll(cx, |cx| {
                let mut progress = false;
                loop {
                    // quinn keeps the state of a write in the stream, so that a write can be begun anew at each poll.
                    let polled = pin!(send.write_chunks(&mut whole)).poll(cx);
                    let Poll::Ready(result) = polled else {
                        no_room();
                        return (Poll::Pending, progress);
                    };
                    let written = match result {
                        Ok(written) => written,
                        Err(error) => return (Poll::Ready(Err(error)), progress),
                    };
                    progress = true;
                    run += written.bytes;
                    let now = Instant::now();
                    let ends = *ends.get_or_insert(now + RUN_TIME);
                    if written.chunks < whole.len() {
                        continue;
                    }
                    // A short piece that went first does not bring a long one with it.
                    let goes_on = length == Length::Long && run < RUN && now < ends;
                    let Some(next) = goes_on.then(&mut more).flatten() else {
                        return (Poll::Ready(Ok(())), progress);
                    };
                    whole = [next];
                }
            })
        })
    }
}

/// One piece's way through the line; leaves it when dropped.
struct Turn<'a> {
    line: &'a SharedLine,
    length: Length,
    /// The place, and what quinn wakes for it.
    place: Option<(Ticket, Waker)>,
}

impl Turn<'_> {
    /// Writes when it is this piece's turn. `write` tells whether all was written, and whether a part was, and wakes whom it was
    /// polled by when there is room.
    fn poll<T>(
        &mut self,
        cx: &mut Context<'_>,
        mut write: impl FnMut(&mut Context<'_>) -> (Poll<T>, bool),
    ) -> Poll<T> {
        if self.place.is_none() && !self.line.lock().has_ready() {
            // Nobody waits whose turn it could be. This is the usual case, and costs no place.
            if let (Poll::Ready(written), _) = write(cx) {
                return Poll::Ready(written);
            }
        }
        let (ticket, told) = self.place.get_or_insert_with(|| {
            let ticket = self.line.lock().enter(self.length, cx.waker().clone());
            (ticket, Arc::new(Told { line: self.line.clone(), ticket }).into())
        });
        let look = self.line.lock().look(*ticket, cx.waker());
        let attempt = match look {
            Look::Try(attempt) => attempt,
            Look::Wake(other) => {
                other.wake();
                return Poll::Pending;
            }
            Look::Wait => return Poll::Pending,
        };
        match write(&mut Context::from_waker(told)) {
            (Poll::Ready(written), _) => {
                self.leave();
                Poll::Ready(written)
            }
            (Poll::Pending, progress) => {
                let called = self.line.lock().tried(attempt, progress);
                wake(called);
                Poll::Pending
            }
        }
    }

    fn leave(&mut self) {
        if let Some((ticket, _)) = self.place.take() {
            let called = self.line.lock().leave(ticket);
            wake(called);
        }
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.leave();
    }
}

/// A place in the line, for quinn to wake.
struct Told {
    line: SharedLine,
    ticket: Ticket,
}

impl Wake for Told {
    fn wake(self: Arc<Self>) {
        let called = self.line.lock().told(self.ticket);
        wake(called);
    }
}

/// Wakes, without the lock: a task that is woken may be dropped by that, and then leaves the line.
fn wake(called: Option<Waker>) {
    if let Some(called) = called {
        called.wake();
    }
}
