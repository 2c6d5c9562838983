//! Many flows that do nothing.

use std::{
    io::{self, Read, Write},
    net::{SocketAddr, TcpStream},
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use serde_json::json;

use crate::wire::{Wish, open};

/// Threads that open them.
const OPENERS: usize = 8;

/// Opens `flows` connections within `limit`, reports, and holds them until standard input ends.
pub(crate) fn run(to: SocketAddr, flows: usize, limit: Duration) -> anyhow::Result<()> {
    let begin = Instant::now();
    let next = AtomicUsize::new(0);
    let held = Mutex::new(Vec::with_capacity(flows));
    let opener = || -> anyhow::Result<()> {
        while next.fetch_add(1, Ordering::Relaxed) < flows {
            ensure!(begin.elapsed() < limit, "not all were open within {limit:?}");
            let stream = establish(to).with_context(|| {
                format!(
                    "flow {} of {flows}",
                    held.lock().map_or(0, |held: std::sync::MutexGuard<'_, Vec<_>>| held.len())
                )
            })?;
            if let Ok(mut held) = held.lock() {
                held.push(stream);
            }
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..OPENERS).map(|_| scope.spawn(opener)).collect();
        threads
            .into_iter()
            .try_for_each(|t| t.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    })?;
    let seconds = begin.elapsed().as_secs_f64();
    writeln!(io::stdout(), "{}", json!({ "flows": flows, "seconds": seconds }))?;
    io::stdout().flush()?;
    io::stdin().read_to_end(&mut Vec::new())?;
    Ok(())
}

/// A byte has come back, so the flow exists from end to end.
fn establish(to: SocketAddr) -> io::Result<TcpStream> {
    let mut stream = open(to, Wish::Idle)?;
    stream.read_exact(&mut [0])?;
    Ok(stream)
}
