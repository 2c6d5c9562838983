//! What a process uses, from `/proc`.

use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// CPU time and memory of one process at one moment.
#[derive(Debug, Clone, Copy, Default)]
pub struct Usage {
    /// User and system time of all threads since the start.
    pub cpu: Duration,
    /// Resident set in bytes.
    pub rss: u64,
    /// The most that the resident set ever was.
    pub peak: u64,
}

/// `_SC_CLK_TCK`: 100 on every Linux architecture that Rust supports.
const TICKS_PER_SECOND: u64 = 100;

impl Usage {
    /// Of a live process; zero if it is gone.
    pub fn of(pid: u32) -> Self {
        let read = |file: &str| std::fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap_or_default();
        let stat = read("stat");
        let fields: Vec<&str> =
            stat.rsplit_once(')').map_or("", |(_, rest)| rest).split_whitespace().collect();
        // proc(5): utime and stime are fields 14 and 15; the third is the first behind the name.
        let ticks = |i: usize| fields.get(i).and_then(|f| f.parse::<u64>().ok()).unwrap_or(0);
        let millis = (ticks(11) + ticks(12)) * 1000 / TICKS_PER_SECOND;
        let status = read("status");
        let octets = |key: &str| {
            let kib = |line: &str| line.strip_prefix(key)?.trim().strip_suffix(" kB")?.parse::<u64>().ok();
            status.lines().find_map(kib).unwrap_or(0) * 1024
        };
        Self { cpu: Duration::from_millis(millis), rss: octets("VmRSS:"), peak: octets("VmHWM:") }
    }
}

/// Raises the limit on open files, here and for children, as far as it may be, and returns it: 10,000 flows are 20,000
/// descriptors in a proxy. Beyond the hard limit only a privileged process comes.
pub fn raise_file_limit() -> u64 {
    const ENOUGH: u64 = 1 << 18;
    let old = getrlimit(Resource::Nofile);
    let hard = old.maximum.unwrap_or(ENOUGH);
    for limit in [ENOUGH, hard] {
        let wanted = Rlimit { current: Some(limit), maximum: Some(hard.max(limit)) };
        if setrlimit(Resource::Nofile, wanted).is_ok() {
            return limit;
        }
    }
    old.current.unwrap_or(hard)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_usage_is_seen() {
        let busy = std::time::Instant::now();
        while busy.elapsed() < Duration::from_millis(60) {
            std::hint::spin_loop();
        }
        let usage = Usage::of(std::process::id());
        assert!(usage.cpu >= Duration::from_millis(10), "{usage:?}");
        assert!(usage.rss > 500_000 && usage.peak >= usage.rss, "{usage:?}");
    }
}
