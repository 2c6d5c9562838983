//! Receive windows of all tunnels within one bound.
//!
//! `carrick_gateway_core::window` decides, this loop applies: when a tunnel comes or goes, and while flows are stalled.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use carrick_gateway_core::window;
use quinn::VarInt;

use crate::{gateway::Shared, lane::Lane};

/// How often stalled flows are looked at.
const PERIOD: Duration = Duration::from_millis(500);

/// Runs until the group stops.
pub(crate) async fn run(shared: Arc<Shared>) {
    loop {
        tokio::select! {
            () = shared.tasks.stopping() => return,
            () = shared.windows_changed.notified() => {}
            () = tokio::time::sleep(PERIOD) => {}
        }
        let lanes: Vec<Arc<Lane>> = shared.lanes.lock().values().cloned().collect();
        apply(&shared, &lanes);
    }
}

fn apply(shared: &Shared, lanes: &[Arc<Lane>]) {
    let stalls: Vec<u64> = lanes.iter().map(|lane| lane.stall_count()).collect();
    let stalled = stalls.iter().sum();
    let grants = window::share(shared.settings.max_memory, lanes.len() as u64, stalled);
    let mut compensated = grants.stalled;
    let mut total = 0;
    for (lane, stalled) in lanes.iter().zip(stalls) {
        let mine = stalled.min(compensated);
        compensated -= mine;
        if stalled > mine {
            let n = (stalled - mine) as usize;
            tracing::warn!(
                peer = %lane.peer, flows = n,
                hint = "raise `tunnel.max_memory`, or look at the clients that do not read",
                "flows that stand still are shed: the memory for tunnels is used up"
            );
            lane.shed(n);
        }
        let octets = grants.base + mine * window::STREAM;
        total += octets;
        if lane.window.swap(octets, Ordering::Relaxed) != octets {
            lane.connection.set_receive_window(VarInt::from_u64(octets).unwrap_or(VarInt::MAX));
            lane.connection.set_send_window(grants.base);
        }
    }
    shared.metrics.tunnel_window_bytes.set(total.cast_signed());
}
