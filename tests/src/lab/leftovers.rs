//! What a test process that was killed left behind: its namespaces, the programs in them, its directories.
//!
//! Everything of a lab is named `carrick-<pid>-<start>-…`, where `start` tells two processes with one pid apart. Whoever
//! builds a lab first removes what belongs to processes that are gone; nothing else is ever touched.

use std::{
    path::{Path, PathBuf},
    process::Command,
    sync::Once,
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};

const FAMILY: &str = "carrick";

/// The prefix of this process's names.
pub(super) fn own_prefix() -> String {
    let pid = std::process::id();
    format!("{FAMILY}-{pid}-{}", start_of(pid).unwrap_or(0))
}

/// Removes the leftovers of processes that are gone, once per process.
pub(super) fn remove() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        for name in names_in(Path::new("/run/netns")) {
            remove_namespace(&name);
        }
        let temp = std::env::temp_dir();
        for name in names_in(&temp) {
            let _ = std::fs::remove_dir_all(temp.join(name));
        }
    });
}

/// Kills the programs in a namespace of ours and removes it. Best effort, silent.
pub(super) fn remove_namespace(name: &str) {
    for _ in 0..50 {
        let pids = pids_in(name);
        if pids.is_empty() {
            break;
        }
        for pid in pids.into_iter().filter_map(Pid::from_raw) {
            let _ = kill_process(pid, Signal::KILL);
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    let _ = Command::new(ip()).args(["netns", "del", name]).output();
    let _ = std::fs::remove_dir_all(Path::new("/etc/netns").join(name));
}

/// The processes in a namespace; never our own, whose threads visit it.
pub(super) fn pids_in(name: &str) -> Vec<i32> {
    let Ok(output) = Command::new(ip()).args(["netns", "pids", name]).output() else { return Vec::new() };
    let own = std::process::id();
    String::from_utf8_lossy(&output.stdout)
        .split_whitespace()
        .filter_map(|pid| pid.parse().ok())
        .filter(|pid: &i32| u32::try_from(*pid).is_ok_and(|pid| pid != own))
        .collect()
}

fn ip() -> PathBuf {
    super::needs::program("ip").unwrap_or_else(|| "ip".into())
}

fn names_in(dir: &Path) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(dir) else { return Vec::new() };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|n| is_orphan(n))
        .collect()
}

fn is_orphan(name: &str) -> bool {
    let mut parts = name.split('-');
    if parts.next() != Some(FAMILY) {
        return false;
    }
    let (Some(pid), Some(start)) = (parts.next(), parts.next()) else { return false };
    match (pid.parse(), start.parse()) {
        (Ok(pid), Ok(start)) => start_of(pid) != Some(start),
        _ => false,
    }
}

/// When a process started, in clock ticks since boot (proc(5), field 22), if it is there.
fn start_of(pid: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The program's name is in parentheses and may hold anything, so count from behind it.
    stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_dead_processes_are_orphans() {
        assert!(!is_orphan(&format!("{}-0-a", own_prefix())));
        assert!(is_orphan(&format!("{FAMILY}-{}-1-0-a", std::process::id())), "same pid, another process");
        for other in ["carrick", "carrick-notes", "carrick-x-1", "other-1-1-a", "cargo-install"] {
            assert!(!is_orphan(other), "{other}");
        }
    }
}
