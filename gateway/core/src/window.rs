//! How much each tunnel may have in flight, within a bound for all of them.
//!
//! A tunnel's receive window has to cover its bandwidth-delay product, or it is slow. It also is the memory that the peer
//! can make us hold when local readers do not keep up. A reader that is slow, or has stopped (a pager, a dead laptop), fills
//! its stream's window and keeps that part of the tunnel's window for itself, so the tunnel is granted as much again for each
//! such flow; when the bound for all tunnels is reached, the caller sheds the flow that has stood still longest.
//!
//! A sender's window is what it keeps until it is acknowledged, sent or not. What is under way has to fit, and a little
//! more, so that there is always something to send. What waits beyond that has left the processor's cache when its turn
//! comes, and lets many flows alternate packet by packet. So it follows what is under way ([`SendWindow`]).

use std::time::{Duration, Instant};

/// Receive window of one stream: 100 ms at 1 Gbit/s is 12.5 MB.
pub const STREAM: u64 = 16 << 20;
/// Receive window of a tunnel whose flows all move: several streams at full rate.
pub const TUNNEL: u64 = 64 << 20;
/// Least window of a tunnel, however many there are: 20 ms at 1 Gbit/s, or one flow at 100 ms and 200 Mbit/s.
pub const LEAST: u64 = 5 << 19;

/// The grant of each tunnel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Grants {
    /// Window of a tunnel in which every flow moves, in octets.
    pub base: u64,
    /// How many flows whose reader is behind can be compensated for with [`STREAM`] octets each.
    pub behind: u64,
}

/// Shares `budget` octets among `tunnels` tunnels, and says how many of the flows that are `behind` it can carry besides.
pub fn share(budget: u64, tunnels: u64, behind: u64) -> Grants {
    let tunnels = tunnels.max(1);
    let base = (budget / 2 / tunnels).clamp(LEAST, TUNNEL);
    let left = budget.saturating_sub(base.saturating_mul(tunnels));
    Grants { base, behind: behind.min(left / STREAM) }
}

/// What waits to be sent beyond what is under way.
const UNSENT: u64 = 1 << 20;
/// What is under way has room for this rate at least, in octets per second: 1 Gbit/s. So slow starts and losses on all but the
/// fastest paths never meet the window.
const RATE: f64 = 125e6;
/// No look at what is under way takes less: a shorter time says little.
const LEAST_LOOK: Duration = Duration::from_millis(5);
/// For how long what was seen is good: the window of before a pause, and the shortest round trip.
const MEMORY: Duration = Duration::from_secs(10);

/// How much a sender keeps that is not acknowledged.
///
/// What is under way is the rate of sending times the round trip (Little's law), so a window that bounds the rate doubles with
/// each round trip, as a slow start does, and one that does not stays. The round trip is the shortest of late, without the queue
/// that the sender itself makes on the way; when none that is as short was seen for a while, the window is made small for a
/// moment, so that the queue drains and the round trip shows (as BBR's ProbeRTT does).
#[derive(Debug, Default)]
pub struct SendWindow {
    /// The last look: when, and the octets sent until then.
    last: Option<(Instant, u64)>,
    /// The most that was under way, fading.
    under_way: f64,
    /// The shortest round trip, and when it was seen.
    shortest: Option<(Duration, Instant)>,
    /// The queue drains until then.
    drains: Option<Instant>,
}

impl SendWindow {
    /// Takes a look, because a writer found no room: `sent` octets have been sent in all, and `rtt` is the round trip now. The
    /// window to set, of at most `most` octets; nothing when it is too early to tell.
    pub fn look(&mut self, now: Instant, sent: u64, rtt: Duration, most: u64) -> Option<u64> {
        let Some((then, before)) = self.last else {
            self.last = Some((now, sent));
            return None;
        };
        let (time, least) = (now.saturating_duration_since(then), rtt.max(LEAST_LOOK));
        if time < least {
            return None;
        }
        self.last = Some((now, sent));
        let shortest = self.shortest(now, rtt);
        self.under_way *= 1.0 - (time.as_secs_f64() / MEMORY.as_secs_f64()).min(1.0);
        // Longer ago there was a pause, in which nothing was sent.
        if time < 4 * least {
            let rate = sent.saturating_sub(before) as f64 / time.as_secs_f64();
            self.under_way = self.under_way.max(rate * shortest.as_secs_f64());
        }
        let under_way = if self.drains.is_some() { 0.0 } else { 2.0 * self.under_way };
        Some((UNSENT + under_way.max(RATE * shortest.as_secs_f64()) as u64).min(most))
    }

    fn shortest(&mut self, now: Instant, rtt: Duration) -> Duration {
        let drained = self.drains.is_some_and(|until| now >= until);
        if drained {
            self.drains = None;
        }
        let (shortest, seen) = *self.shortest.get_or_insert((rtt, now));
        if drained || rtt <= shortest {
            self.shortest = Some((rtt, now));
            return rtt;
        }
        if now.saturating_duration_since(seen) > MEMORY && self.drains.is_none() {
            self.drains = Some(now + 2 * rtt.max(LEAST_LOOK));
        }
        shortest
    }

    /// Whether it is time to look again. The look costs more.
    pub fn is_due(&self, now: Instant) -> bool {
        self.last.is_none_or(|(then, _)| now.saturating_duration_since(then) >= LEAST_LOOK)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn few_tunnels_have_full_windows() {
        assert_eq!(share(1 << 30, 1, 0), Grants { base: TUNNEL, behind: 0 });
        assert_eq!(share(1 << 30, 8, 3), Grants { base: TUNNEL, behind: 3 });
        assert_eq!(share(1 << 30, 1, 1000).behind, 60);
        assert_eq!(share(1 << 30, 1000, 0).base, LEAST);
    }

    proptest! {
        #[test]
        fn the_budget_holds_unless_the_least_alone_exceeds_it(budget in 0u64..1 << 40, tunnels in 0u64..5000, behind in 0u64..100_000) {
            let grants = share(budget, tunnels, behind);
            let granted = grants.base * tunnels.max(1) + grants.behind * STREAM;
            prop_assert!(granted <= budget.max(LEAST * tunnels.max(1)));
            prop_assert!(grants.behind <= behind);
        }
    }

    /// A path that carries so many octets per second, with a round trip of its own, and a queue in front.
    struct Path {
        rate: f64,
        rtt: Duration,
    }

    /// A bulk transfer, looked at every 5 ms: its end, and the window then.
    fn transfer(window: &mut SendWindow, path: &Path, begin: Instant, time: Duration) -> (Instant, u64) {
        let (mut now, mut sent, mut octets) = (begin, 0.0, UNSENT);
        while now < begin + time {
            // What is not acknowledged is under way or in the queue: more makes no more rate, but a longer round trip.
            let rate = path.rate.min(octets as f64 / path.rtt.as_secs_f64());
            let rtt = path.rtt.max(Duration::from_secs_f64(octets as f64 / path.rate));
            now += LEAST_LOOK;
            sent += rate * LEAST_LOOK.as_secs_f64();
            octets = window.look(now, sent as u64, rtt, TUNNEL).unwrap_or(octets);
        }
        (now, octets)
    }

    #[test]
    fn a_long_path_is_filled_and_a_short_one_keeps_little() {
        let (begin, rtt) = (Instant::now(), Duration::from_millis(100));
        let long = Path { rate: 3.0 * RATE, rtt };
        let mut window = SendWindow::default();
        let (now, octets) = transfer(&mut window, &long, begin, 10 * rtt);
        let product = long.rate * rtt.as_secs_f64();
        assert!(octets as f64 >= product, "{octets}");
        // A short pause does not begin anew, a long one does.
        let after = window.look(now + Duration::from_secs(2), u64::MAX, rtt, TUNNEL).unwrap();
        assert!(after > octets / 2, "{after}");
        let later = window.look(now + Duration::from_secs(20), u64::MAX, rtt, TUNNEL);
        assert_eq!(later, Some(UNSENT + (RATE * rtt.as_secs_f64()) as u64));

        let short = Path { rate: 1e9, rtt: Duration::from_micros(200) };
        let (_, octets) = transfer(&mut SendWindow::default(), &short, begin, Duration::from_secs(60));
        assert!(octets <= 4 * UNSENT, "{octets}");
    }

    #[test]
    fn a_path_that_becomes_longer_is_filled_again() {
        let mut window = SendWindow::default();
        let path = |rtt| Path { rate: 2.0 * RATE, rtt: Duration::from_millis(rtt) };
        let (now, _) = transfer(&mut window, &path(5), Instant::now(), Duration::from_secs(5));
        let (_, octets) = transfer(&mut window, &path(100), now, Duration::from_secs(15));
        assert!(octets >= 25_000_000, "{octets}");
    }

    proptest! {
        #[test]
        fn a_send_window_is_within_its_bounds(
            looks in prop::collection::vec((0u64..1_000_000, any::<u32>(), 0u64..2_000_000), 1..50),
            most in LEAST..TUNNEL,
        ) {
            let (mut window, mut now, mut sent) = (SendWindow::default(), Instant::now(), 0);
            for (apart, octets, rtt) in looks {
                now += Duration::from_micros(apart);
                sent += u64::from(octets);
                if let Some(octets) = window.look(now, sent, Duration::from_micros(rtt), most) {
                    prop_assert!((UNSENT..=most).contains(&octets));
                }
            }
        }
    }
}
