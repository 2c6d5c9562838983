//! Throughput.

use std::{
    io::{Read, Write},
    net::{Shutdown, SocketAddr},
    sync::Barrier,
    time::{Duration, Instant},
};

use anyhow::Context;
use serde_json::{Value, json};

use crate::wire::{BULK, Wish, open, read_count};

/// Moves bytes over `flows` connections for `time`, and counts them at the receiving end.
pub(crate) fn run(to: SocketAddr, flows: usize, down: bool, time: Duration) -> anyhow::Result<Value> {
    let start = Barrier::new(flows);
    let flow = || -> anyhow::Result<(u64, Duration)> {
        let opened = open(to, if down { Wish::Source } else { Wish::Sink });
        // Every thread must get here, or the others wait for ever.
        start.wait();
        let begin = Instant::now();
        let mut stream = opened?;
        let mut buffer = vec![0; BULK];
        if down {
            let mut total = 0;
            while begin.elapsed() < time {
                total += stream.read(&mut buffer)? as u64;
            }
            return Ok((total, begin.elapsed()));
        }
        while begin.elapsed() < time {
            stream.write_all(&buffer)?;
        }
        stream.shutdown(Shutdown::Write)?;
        let total = read_count(&mut stream).context("waiting for the receiver's count")?;
        Ok((total, begin.elapsed()))
    };
    let results: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..flows).map(|_| scope.spawn(flow)).collect();
        threads
            .into_iter()
            .map(|t| t.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
            .collect()
    });
    let mut per_flow = Vec::with_capacity(flows);
    let mut longest = Duration::ZERO;
    for result in results {
        let (bytes, took) = result?;
        per_flow.push(bytes);
        longest = longest.max(took);
    }
    let bytes: u64 = per_flow.iter().sum();
    let least = per_flow.iter().min().copied().unwrap_or(0);
    Ok(json!({
        "mbit_s": bytes as f64 * 8.0 / 1e6 / longest.as_secs_f64(),
        "bytes": bytes,
        "seconds": longest.as_secs_f64(),
        // 1 = every flow got the same.
        "fairness": least as f64 * flows as f64 / bytes.max(1) as f64,
    }))
}

/// How long bulk flows fill the way before the other measurement begins, and outlast it.
const LEAD: Duration = Duration::from_secs(1);

/// Measures something else, of `time`, beside `flows` bulk flows.
pub(crate) fn beside(
    to: SocketAddr,
    flows: usize,
    time: Duration,
    other: impl FnOnce() -> anyhow::Result<Value>,
) -> anyhow::Result<Value> {
    if flows == 0 {
        return other();
    }
    std::thread::scope(|scope| {
        let bulk = scope.spawn(|| run(to, flows, false, time + 2 * LEAD));
        std::thread::sleep(LEAD);
        let measured = other();
        bulk.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)).context("the bulk flows")?;
        measured
    })
}
