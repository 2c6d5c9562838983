//! How long to wait before the next attempt.

use std::time::Duration;

/// Delay after the first failure: a peer that restarts is back in this order of time.
pub const FIRST: Duration = Duration::from_millis(200);
/// Longest delay: a domain that comes back is used again within seconds, and a dead one costs one attempt per 5 s.
pub const CAP: Duration = Duration::from_secs(5);

/// Doubling delays from [`FIRST`] to [`CAP`], each drawn from its upper half, so that the imports that one outage
/// stopped do not come back in one burst.
#[derive(Debug, Clone)]
pub struct Retry {
    next: Duration,
    random: Random,
}

impl Retry {
    /// Delays drawn from `seed`.
    pub fn new(seed: u64) -> Self {
        Self { next: FIRST, random: Random::new(seed) }
    }

    /// The delay before the next attempt; the one after it is up to twice as long.
    pub fn next_delay(&mut self) -> Duration {
        let full = self.next;
        self.next = (full * 2).min(CAP);
        full / 2 + self.random.up_to(full / 2)
    }

    /// Something worked: begin with the short delays again.
    pub fn reset(&mut self) {
        self.next = FIRST;
    }

    /// `of`, made up to a tenth shorter.
    pub fn jittered(&mut self, of: Duration) -> Duration {
        of - self.random.up_to(of / 10)
    }
}

/// SplitMix64 (Steele, Lea, Flood 2014): spread, not secrecy.
#[derive(Debug, Clone)]
struct Random(u64);

impl Random {
    fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn up_to(&mut self, limit: Duration) -> Duration {
        let nanos = u64::try_from(limit.as_nanos()).unwrap_or(u64::MAX);
        Duration::from_nanos(if nanos == 0 { 0 } else { self.next() % (nanos + 1).max(1) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_to_the_cap_and_differ_between_seeds() {
        let mut a = Retry::new(1);
        let mut b = Retry::new(2);
        let mut full = FIRST;
        let mut differ = false;
        for _ in 0..10 {
            let (x, y) = (a.next_delay(), b.next_delay());
            assert!(x >= full / 2 && x <= full, "{x:?} of {full:?}");
            differ |= x != y;
            full = (full * 2).min(CAP);
        }
        assert!(differ);
        a.reset();
        assert!(a.next_delay() <= FIRST);
    }
}
