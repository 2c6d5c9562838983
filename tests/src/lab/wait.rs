//! Waiting for something to become true: the only place of the lab that sleeps.

use std::{
    fmt::Debug,
    time::{Duration, Instant},
};

/// Asks `probe` again and again until it gives a value; panics with `what` when `limit` has passed.
#[track_caller]
pub fn within<T>(limit: Duration, what: &str, mut probe: impl FnMut() -> Option<T>) -> T {
    within_or(limit, what, || probe().ok_or("not yet"))
}

/// The same for a probe that says why not: the last reason is in the panic.
#[track_caller]
pub fn within_or<T, E: Debug>(limit: Duration, what: &str, mut probe: impl FnMut() -> Result<T, E>) -> T {
    let deadline = Instant::now() + limit;
    let mut pause = Duration::from_millis(2);
    loop {
        match probe() {
            Ok(value) => return value,
            Err(reason) if Instant::now() >= deadline => {
                panic!("{what}: not within {limit:?}; last: {reason:?}")
            }
            Err(_) => std::thread::sleep(pause),
        }
        pause = (pause * 2).min(Duration::from_millis(50));
    }
}
