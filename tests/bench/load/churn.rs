//! Short connections.

use std::{
    io::{self, Read, Write},
    net::SocketAddr,
    time::{Duration, Instant},
};

use anyhow::Context;
use serde_json::{Value, json};

use crate::{
    latency,
    wire::{HEADER, SHORT, Wish},
};

/// Pause after a failure: a dead peer must not turn this into a busy loop.
const RETRY: Duration = Duration::from_millis(1);

/// `parallel` threads, each with one connection after the other.
pub(crate) fn run(to: SocketAddr, parallel: usize, time: Duration) -> anyhow::Result<Value> {
    let begin = Instant::now();
    let client = || {
        let (mut micros, mut failed, mut why) = (Vec::with_capacity(1 << 14), 0_u64, None);
        while begin.elapsed() < time {
            let started = Instant::now();
            match once(to) {
                Ok(()) => micros.push(started.elapsed().as_secs_f64() * 1e6),
                Err(e) => {
                    failed += 1;
                    why.get_or_insert(e);
                    std::thread::sleep(RETRY);
                }
            }
        }
        (micros, failed, why)
    };
    let results: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..parallel).map(|_| scope.spawn(client)).collect();
        threads
            .into_iter()
            .map(|t| t.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
            .collect()
    });
    let seconds = begin.elapsed().as_secs_f64();
    let (mut micros, mut failed, mut why) = (Vec::new(), 0, None);
    for (some, bad, reason) in results {
        micros.extend(some);
        failed += bad;
        why = why.or(reason);
    }
    if let (true, Some(why)) = (micros.is_empty(), why) {
        return Err(why).with_context(|| format!("not one of {failed} connections worked"));
    }
    let mut report = latency::summary(&mut micros);
    report["per_second"] = json!(micros.len() as f64 / seconds);
    report["failed"] = json!(failed);
    Ok(report)
}

/// One connection: header and request in one segment, the response, the server's end.
fn once(to: SocketAddr) -> io::Result<()> {
    let mut request = [0x5a; HEADER + SHORT];
    let mut stream = open_short(to)?;
    request[..HEADER].copy_from_slice(&Wish::Short.header());
    stream.write_all(&request)?;
    stream.read_exact(&mut request[..SHORT])?;
    match stream.read(&mut request)? {
        0 => Ok(()),
        _ => Err(io::Error::other("more than the response came back")),
    }
}

fn open_short(to: SocketAddr) -> io::Result<std::net::TcpStream> {
    let stream = std::net::TcpStream::connect(to)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    Ok(stream)
}
