//! A log line for a refused connection, unless there were many.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// A flood writes this many lines in a [`WINDOW`]; the rest is a number in the next line, and in the metric.
const LINES: u32 = 10;
/// See [`LINES`].
const WINDOW: Duration = Duration::from_secs(10);

pub(super) struct RefusalLog {
    state: Mutex<State>,
}

struct State {
    begun: Instant,
    written: u32,
    suppressed: u64,
}

impl RefusalLog {
    pub(super) fn new() -> Self {
        Self { state: Mutex::new(State { begun: Instant::now(), written: 0, suppressed: 0 }) }
    }

    /// Whether a line may be written, and how many were not before it.
    pub(super) fn admit(&self) -> Option<u64> {
        self.admit_at(Instant::now())
    }

    fn admit_at(&self, now: Instant) -> Option<u64> {
        let mut state = self.state.lock();
        if now.duration_since(state.begun) >= WINDOW {
            state.begun = now;
            state.written = 0;
        }
        if state.written >= LINES {
            state.suppressed += 1;
            return None;
        }
        state.written += 1;
        Some(std::mem::take(&mut state.suppressed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_a_number() {
        let log = RefusalLog::new();
        let now = Instant::now();
        let written = (0..1000).filter(|_| log.admit_at(now).is_some()).count();
        assert_eq!(written, LINES as usize);
        assert_eq!(log.admit_at(now + WINDOW), Some(1000 - u64::from(LINES)));
        assert_eq!(log.admit_at(now + WINDOW), Some(0));
    }
}
