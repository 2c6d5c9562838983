//! The time as a caller hands it in: a core reads no clock.

use std::time::{Duration, Instant, SystemTime};

/// One moment on both clocks: timers run on the monotonic one, leases travel between hosts on the wall clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Now {
    /// The monotonic clock.
    pub mono: Instant,
    /// The wall clock.
    pub wall: SystemTime,
}

/// What stands in for "never" where an instant is needed: far enough for any lease, near enough not to overflow.
const FAR: Duration = Duration::from_secs(365 * 24 * 3600);

impl Now {
    /// How long until `wall`; zero when that is past.
    pub fn until(&self, wall: SystemTime) -> Duration {
        wall.duration_since(self.wall).unwrap_or_default().min(FAR)
    }

    /// The monotonic instant of the wall time `wall`, as far as is known now.
    pub fn instant_of(&self, wall: SystemTime) -> Instant {
        self.mono + self.until(wall)
    }

    /// The wall time of the monotonic instant `mono`, as far as is known now.
    pub fn wall_of(&self, mono: Instant) -> SystemTime {
        match mono.checked_duration_since(self.mono) {
            Some(ahead) => self.wall + ahead.min(FAR),
            None => self.wall - self.mono.duration_since(mono).min(FAR),
        }
    }

    /// Both clocks moved on by `by`.
    #[must_use]
    pub fn after(&self, by: Duration) -> Self {
        Self { mono: self.mono + by, wall: self.wall + by }
    }
}
