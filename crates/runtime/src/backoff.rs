//! Capped, jittered, exponential back-off.

use std::time::Duration;

use rand::Rng;

/// The next wait doubles up to a cap; each is drawn from its upper half, so that peers which failed together do not
/// return together.
#[derive(Debug, Clone)]
pub struct Backoff {
    first: Duration,
    cap: Duration,
    next: Duration,
}

impl Backoff {
    /// Waits of `first`, twice that, and so on up to `cap`.
    pub fn new(first: Duration, cap: Duration) -> Self {
        let cap = cap.max(first);
        Self { first, cap, next: first }
    }

    /// How long to wait now; the wait after it is twice as long.
    pub fn next_delay(&mut self) -> Duration {
        let full = self.next;
        self.next = full.saturating_mul(2).min(self.cap);
        rand::rng().random_range(full / 2..=full)
    }

    /// Starts over after a success.
    pub fn reset(&mut self) {
        self.next = self.first;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn waits_grow_to_the_cap_and_start_over(first in 1u64..10_000, cap in 1u64..1_000_000, n in 1usize..40) {
            let (first, cap) = (Duration::from_millis(first), Duration::from_millis(cap));
            let mut backoff = Backoff::new(first, cap);
            let mut full = first;
            for _ in 0..n {
                let wait = backoff.next_delay();
                prop_assert!(wait <= full && wait >= full / 2, "{wait:?} of {full:?}");
                full = (full * 2).min(cap.max(first));
            }
            backoff.reset();
            prop_assert!(backoff.next_delay() <= first);
        }
    }
}
