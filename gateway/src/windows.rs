//! Receive windows of all tunnels within one bound.
//!
//! `carrick_gateway_core::window` decides, this loop applies: when a tunnel comes or goes, and when a local reader falls behind.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use carrick_gateway_core::window;
use quinn::VarInt;

use crate::{gateway::Shared, lane::Lane};

/// How often windows are looked at when nothing is known to have changed.
const PERIOD: Duration = Duration::from_millis(500);
/// Many readers fall behind at once; they are looked at together.
const SETTLE: Duration = Duration::from_millis(20);

/// Runs until the group stops.
pub(crate) async fn run(shared: Arc<Shared>) {
    loop {
        tokio::select! {
            () = shared.tasks.stopping() => return,
            () = shared.windows_changed.notified() => tokio::time::sleep(SETTLE).await,
            () = tokio::time::sleep(PERIOD) => {}
        }
        let lanes: Vec<Arc<Lane>> = shared.lanes.lock().values().cloned().collect();
        apply(&shared, &lanes);
    }
}

fn apply(shared: &Shared, lanes: &[Arc<Lane>]) {
    let counts: Vec<u64> = lanes.iter().map(|lane| lane.backlogs.behind_count()).collect();
    let grants = window::share(shared.settings.max_memory, lanes.len() as u64, counts.iter().sum());
    let mut compensated = grants.behind;
    let mut total = 0;
    for (lane, behind) in lanes.iter().zip(counts) {
        let mine = behind.min(compensated);
        compensated -= mine;
        if behind > mine {
            // One that still moves is slow, not dead: it stays, and others have to wait for it.
            let flows = lane.backlogs.shed(behind - mine);
            if flows > 0 {
                tracing::warn!(
                    peer = %lane.peer, flows,
                    hint = "raise `tunnel.max_memory`, or look at the clients that do not read",
                    "flows that stand still are shed: the memory for tunnels is used up"
                );
            }
        }
        let octets = grants.base + mine * window::STREAM;
        total += octets;
        if lane.window.swap(octets, Ordering::Relaxed) != octets {
            lane.connection.set_receive_window(VarInt::from_u64(octets).unwrap_or(VarInt::MAX));
            lane.most_unacknowledged.store(grants.base, Ordering::Relaxed);
        }
    }
    shared.metrics.tunnel_window_bytes.set(total.cast_signed());
}
