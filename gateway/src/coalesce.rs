//! Lets the octets of a busy flow gather before they are written.
//!
//! A tunnel interleaves the packets of its flows, so when many are busy, each wakes for a packet at a time; and a system call
//! for each packet, which wakes its reader for each, costs more than all else of the way. A flow that moves much a little
//! at a time therefore lets the others and the network have some rounds of the thread's loop before it looks again. Where
//! nobody else has anything to do, nobody waits.

use std::{
    collections::BTreeMap,
    future::poll_fn,
    task::{Poll, Waker},
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use tokio::{sync::Notify, task::yield_now};

/// A flow that moves [`BUSY`] octets in this time is busy: 26 Mbit/s.
const SPAN: Duration = Duration::from_millis(20);
const BUSY: usize = 64 << 10;
/// So much at a time is enough.
const ENOUGH: usize = 32 << 10;
/// And so much comes without waiting: nearly all that is taken at once.
const MUCH: usize = 56 << 10;
/// Rounds that one flow lets pass at most, and for how long, about.
const ROUNDS: u32 = 32;
const PATIENCE: Duration = Duration::from_millis(3);
/// A round in which nothing was done takes less: an empty look at the sockets.
const IDLE: Duration = Duration::from_micros(3);

/// How many rounds one flow lets pass.
#[derive(Debug)]
pub(crate) struct Coalesce {
    since: Instant,
    moved: usize,
    busy: bool,
    rounds: u32,
}

impl Coalesce {
    pub(crate) fn new() -> Self {
        Self { since: Instant::now(), moved: 0, busy: false, rounds: 0 }
    }

    /// Lets rounds pass, now that so many octets were moved.
    pub(crate) async fn gather(&mut self, moved: usize, rounds: &Rounds) {
        let begin = Instant::now();
        let wait = self.rounds(moved, begin);
        if wait > 0 {
            rounds.pass(wait).await;
            if begin.elapsed() > PATIENCE {
                self.rounds /= 2;
            }
        }
    }

    /// Doubles while little comes at a time, and halves while it is much.
    fn rounds(&mut self, moved: usize, now: Instant) -> u32 {
        self.moved = self.moved.saturating_add(moved);
        let span = now.duration_since(self.since);
        if span >= SPAN {
            self.busy = self.moved >= BUSY && span < 2 * SPAN;
            (self.since, self.moved) = (now, 0);
        }
        self.rounds = match moved {
            _ if !self.busy => 0,
            moved if moved < ENOUGH => (self.rounds * 2).clamp(1, ROUNDS),
            moved if moved > MUCH => self.rounds / 2,
            _ => self.rounds,
        };
        self.rounds
    }
}

/// Counts the rounds of the thread's loop while flows of a lane wait for some to pass.
#[derive(Debug, Default)]
pub(crate) struct Rounds {
    state: Mutex<State>,
    somebody: Notify,
}

#[derive(Debug, Default)]
struct State {
    now: u64,
    due: BTreeMap<u64, Vec<Waker>>,
}

impl Rounds {
    /// Counts for ever. One task does it for all flows, which then need not look at each round.
    pub(crate) async fn run(&self) -> std::convert::Infallible {
        loop {
            self.somebody.notified().await;
            loop {
                let begin = Instant::now();
                yield_now().await;
                let (due, more) = self.next(begin.elapsed() < IDLE);
                due.into_iter().for_each(Waker::wake);
                if !more {
                    break;
                }
            }
        }
    }

    /// One round has passed. Who has waited long enough, which when it was `idle` is everybody, and whether anybody goes on
    /// to wait.
    fn next(&self, idle: bool) -> (Vec<Waker>, bool) {
        let mut state = self.state.lock();
        state.now += 1;
        let now = state.now;
        let mut due = Vec::new();
        if idle {
            state.now = state.due.last_key_value().map_or(now, |(last, _)| now.max(*last));
            due.extend(std::mem::take(&mut state.due).into_values().flatten());
        } else if let Some(first) = state.due.first_entry()
            && *first.key() <= now
        {
            due = first.remove();
        }
        (due, !state.due.is_empty())
    }

    /// Completes after so many rounds.
    async fn pass(&self, rounds: u32) {
        let mut waits: Option<(u64, Waker)> = None;
        poll_fn(|cx| {
            let mut state = self.state.lock();
            let due = waits.as_ref().map_or(state.now + u64::from(rounds), |(due, _)| *due);
            if state.now >= due {
                return Poll::Ready(());
            }
            if waits.as_ref().is_none_or(|(_, waker)| !waker.will_wake(cx.waker())) {
                if state.due.is_empty() {
                    self.somebody.notify_one();
                }
                state.due.entry(due).or_default().push(cx.waker().clone());
                waits = Some((due, cx.waker().clone()));
            }
            Poll::Pending
        })
        .await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flow_waits_only_while_it_moves_much_a_little_at_a_time() {
        let (mut flow, mut now) = (Coalesce::new(), Instant::now());
        let mut moves = |octets, apart: Duration| {
            let mut rounds = 0;
            for _ in 0..200 {
                now += apart;
                rounds = flow.rounds(octets, now);
            }
            rounds
        };
        let packet = 1400;
        assert_eq!(moves(64, Duration::from_micros(100)), 0, "a conversation of short messages");
        assert_eq!(moves(packet, Duration::from_millis(1)), 0, "11 Mbit/s");
        assert_eq!(moves(packet, Duration::from_micros(400)), ROUNDS);
        assert_eq!(moves(ENOUGH + 1, Duration::from_micros(100)), ROUNDS, "as much as it should be");
        assert_eq!(moves(60 << 10, Duration::from_micros(100)), 0, "much comes at a time without waiting");
        assert_eq!(moves(packet, Duration::from_micros(400)), ROUNDS);
        assert_eq!(moves(packet, Duration::from_secs(1)), 0, "a pause");
    }

    #[tokio::test]
    async fn those_who_wait_are_woken_in_their_round_and_all_when_nothing_is_done() {
        let rounds = Rounds::default();
        let order = Mutex::new(Vec::new());
        let waits = |n| {
            let (rounds, order) = (&rounds, &order);
            async move {
                rounds.pass(n).await;
                order.lock().push(n);
            }
        };
        let counts = async {
            for _ in 0..3 {
                yield_now().await;
                let (due, _) = rounds.next(false);
                due.into_iter().for_each(Waker::wake);
            }
            yield_now().await;
            assert_eq!(*order.lock(), [1, 3]);
            assert!(rounds.next(false).1, "one still waits");
            let (due, more) = rounds.next(true);
            assert!(!more);
            due.into_iter().for_each(Waker::wake);
        };
        tokio::join!(waits(3), waits(100), waits(1), counts);
        assert_eq!(*order.lock(), [1, 3, 100]);
    }

    #[tokio::test]
    async fn rounds_are_counted_while_somebody_waits() {
        let rounds = Rounds::default();
        for _ in 0..3 {
            let passing = async { tokio::join!(rounds.pass(5), rounds.pass(1000)) };
            tokio::select! {
                never = rounds.run() => match never {},
                _passed = passing => {}
                () = tokio::time::sleep(Duration::from_secs(10)) => panic!("somebody waits for ever"),
            }
        }
    }
}
