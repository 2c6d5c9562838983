//! Signals, file changes, rotation, drain.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, atomic::Ordering},
    time::{Duration, SystemTime},
};

use carrick_config::{BundleSource, Config};
use carrick_runtime::notify;
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::{
    parts::{Daemon, epoch_seconds},
    reload,
};

/// How often the config file and the bundles are looked at. Looking, unlike a notification from the kernel, also sees the
/// symbolic links that Kubernetes swaps, and network file systems.
const LOOK: Duration = Duration::from_secs(1);
/// Time for the closes of connections, at the end of a drain.
const FAREWELL: Duration = Duration::from_secs(3);
/// Time for tasks to end after they were told to.
const WIND_DOWN: Duration = Duration::from_secs(3);

/// Starts what runs as long as the daemon: rotation, and the watch over files.
pub(crate) fn keep(daemon: &Arc<Daemon>) {
    let (identity, stopping) = (daemon.identity.clone(), daemon.tasks.stopping());
    let _runs = daemon.tasks.spawn("svid rotation", async move {
        tokio::select! {
            () = identity.rotate_forever() => {}
            () = stopping => {}
        }
    });
    let _runs = daemon.tasks.spawn("svid metrics", count_rotations(daemon.clone()));
    if daemon.config_path.is_some() {
        let _runs = daemon.tasks.spawn("config watch", watch_files(daemon.clone()));
    }
}

async fn count_rotations(daemon: Arc<Daemon>) {
    let mut rotations = daemon.identity.rotations();
    loop {
        daemon.metrics.svid_expiry.set(epoch_seconds(daemon.identity.current().not_after()));
        tokio::select! {
            () = daemon.tasks.stopping() => return,
            changed = rotations.changed() => if changed.is_err() { return },
        }
        daemon.metrics.svid_rotations.of("renewed").inc();
    }
}

async fn watch_files(daemon: Arc<Daemon>) {
    let mut before = marks(&daemon);
    loop {
        tokio::select! {
            () = daemon.tasks.stopping() => return,
            () = tokio::time::sleep(LOOK) => {}
        }
        let now = marks(&daemon);
        if now == before {
            continue;
        }
        // A file that is still being written is faulty now and whole a moment later: the next look sees it change again.
        before = now;
        let _told_in_the_log = reload::reload(&daemon).await;
    }
}

/// What changes when a file does: time, size and inode.
type Mark = (PathBuf, Option<(SystemTime, u64, u64)>);

fn marks(daemon: &Daemon) -> Vec<Mark> {
    let config: Arc<Config> = daemon.config.load_full();
    let mut paths: Vec<PathBuf> = daemon.config_path.iter().cloned().collect();
    paths.extend(config.trust.iter().map(|entry| {
        let BundleSource::File(path) = &entry.bundle;
        path.clone()
    }));
    paths
        .into_iter()
        .map(|path| {
            let mark = mark(&path);
            (path, mark)
        })
        .collect()
}

/// Time, size and inode of a file; `None` when it is not there.
pub(super) fn mark(path: &Path) -> Option<(SystemTime, u64, u64)> {
    use std::os::unix::fs::MetadataExt;
    let meta = std::fs::metadata(path).ok()?;
    Some((meta.modified().ok()?, meta.len(), meta.ino()))
}

/// Serves until SIGTERM or SIGINT, then drains. A second signal cuts the drain short. SIGHUP reloads.
pub(crate) async fn until_told_to_stop(daemon: &Arc<Daemon>) {
    let mut signals = Signals::new();
    while let Heard::Reload = signals.next().await {
        notify::reloading();
        let _told_in_the_log = reload::reload(daemon).await;
        notify::ready();
    }
    tokio::select! {
        () = drain(daemon) => {}
        () = signals.stop() => tracing::warn!("told to stop again: the drain is cut short"),
    }
    stop(daemon).await;
}

/// No new flows; those that run finish, up to the deadline.
async fn drain(daemon: &Daemon) {
    daemon.draining.store(true, Ordering::Relaxed);
    notify::stopping();
    let deadline = daemon.config.load().drain_timeout;
    tracing::info!(flows = daemon.gateway.flows(), deadline = ?deadline, "draining");
    daemon.gateway.drain();
    if !daemon.gateway.drained(deadline).await {
        tracing::warn!(flows = daemon.gateway.flows(), "the drain deadline passed: the flows left are cut");
    }
}

/// Closes connections and tunnels, and ends all tasks.
pub(crate) async fn stop(daemon: &Daemon) {
    daemon.draining.store(true, Ordering::Relaxed);
    let closed = tokio::time::timeout(FAREWELL, daemon.imports.close_all()).await;
    if closed.is_err() {
        tracing::warn!("some peers did not hear of the close; their leases will run out");
    }
    daemon.gateway.close().await;
    daemon.tasks.stop();
    if !daemon.tasks.wait(WIND_DOWN).await {
        tracing::debug!("some tasks had to be cut off");
    }
    tracing::info!("stopped");
}

enum Heard {
    Reload,
    Stop,
}

/// The signals of a daemon; one that cannot be had is never heard.
pub(crate) struct Signals {
    hangup: Option<Signal>,
    terminate: Option<Signal>,
    interrupt: Option<Signal>,
}

impl Signals {
    pub(crate) fn new() -> Self {
        let of = |kind| match signal(kind) {
            Ok(signal) => Some(signal),
            Err(error) => {
                tracing::warn!(?kind, %error, "a signal will not be heard");
                None
            }
        };
        Self {
            hangup: of(SignalKind::hangup()),
            terminate: of(SignalKind::terminate()),
            interrupt: of(SignalKind::interrupt()),
        }
    }

    async fn next(&mut self) -> Heard {
        tokio::select! {
            () = heard(self.hangup.as_mut()) => Heard::Reload,
            () = heard(self.terminate.as_mut()) => Heard::Stop,
            () = heard(self.interrupt.as_mut()) => Heard::Stop,
        }
    }

    /// Completes at SIGTERM or SIGINT.
    pub(crate) async fn stop(&mut self) {
        while let Heard::Reload = self.next().await {}
    }
}

async fn heard(signal: Option<&mut Signal>) {
    match signal {
        Some(signal) => {
            // `None` would mean that the runtime is gone, and with it this task.
            let _heard = signal.recv().await;
        }
        None => std::future::pending().await,
    }
}
