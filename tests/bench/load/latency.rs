//! Round-trip times of small messages on one warm connection.

use std::{
    io::{Read, Write},
    net::SocketAddr,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::wire::{Wish, open};

/// Rounds that are not counted: caches, congestion windows and branch predictors warm up.
const WARM_UP: usize = 200;

/// Sends `size` bytes and waits for them to come back, again and again for `time`.
pub(crate) fn run(to: SocketAddr, size: usize, time: Duration) -> anyhow::Result<Value> {
    let mut stream = open(to, Wish::Echo)?;
    let mut buffer = vec![0x5a; size];
    let mut micros = Vec::with_capacity(1 << 17);
    let mut warm = 0;
    let mut begin = Instant::now();
    while begin.elapsed() < time {
        let sent = Instant::now();
        stream.write_all(&buffer)?;
        stream.read_exact(&mut buffer)?;
        if warm < WARM_UP {
            warm += 1;
            begin = Instant::now();
            continue;
        }
        micros.push(sent.elapsed().as_secs_f64() * 1e6);
    }
    Ok(summary(&mut micros))
}

/// Count and quantiles of times in microseconds.
pub(crate) fn summary(micros: &mut [f64]) -> Value {
    micros.sort_unstable_by(f64::total_cmp);
    let quantile = |q: f64| {
        let index = (micros.len() as f64 * q) as usize;
        micros.get(index.min(micros.len().saturating_sub(1))).copied().unwrap_or(f64::NAN)
    };
    json!({
        "count": micros.len(),
        "p50_us": quantile(0.5),
        "p90_us": quantile(0.9),
        "p99_us": quantile(0.99),
        "max_us": quantile(1.0),
    })
}
