//! How an import stands, for people.

use std::{net::SocketAddr, time::SystemTime};

use carrick_model::{ConnectionId, Payload, ServiceName};
use carrick_proxy_core::{Fault, Now, outbound::Outbound, outbound::State};
use parking_lot::Mutex;
use serde::Serialize;

use super::Import;
use crate::datapath::Route;

/// What an import is at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ImportState {
    /// Looking for the domain's gateways.
    Resolving,
    /// Looking for the service's endpoints.
    Finding,
    /// Asking for a connection.
    Requesting,
    /// Connected.
    Up,
    /// Connected, and being renewed or moved.
    Refreshing,
    /// Not connected; waiting for the next attempt.
    Down,
    /// Saying good-bye to the peer.
    Closing,
    /// Gone.
    Closed,
}

/// One import, as of now.
#[derive(Debug, Clone, Serialize)]
pub struct ImportStatus {
    /// The service and its domain.
    pub service: ServiceName,
    /// The service of another domain that is used in its place; `None` when it is the import's own.
    pub via: Option<ServiceName>,
    /// What it carries; unknown until it was up, if the import leaves it to the service.
    pub payload: Option<Payload>,
    /// What it is at.
    pub state: ImportState,
    /// Since when it is up, or not up.
    pub since: SystemTime,
    /// The peer's id of the connection, while up.
    pub connection: Option<ConnectionId>,
    /// The endpoint behind it, while up.
    pub endpoint: Option<String>,
    /// The peer's tunnel addresses, best first; empty while down.
    pub gateways: Vec<SocketAddr>,
    /// The service's own port, where known.
    pub port: Option<u16>,
    /// When the lease ends, while up.
    pub lease_end: Option<SystemTime>,
    /// When the next attempt is made, while down.
    pub retry_at: Option<SystemTime>,
    /// The last fault that was not made good since.
    pub last_fault: Option<FaultStatus>,
}

/// A fault, for people.
#[derive(Debug, Clone, Serialize)]
pub struct FaultStatus {
    /// Which step failed: `resolve`, `find`, `request`, `close` or `keep`.
    pub step: &'static str,
    /// A few words of a closed set.
    pub kind: &'static str,
    /// `us`, `peer` or `network`.
    pub blame: String,
    /// Whether trying again may help by itself.
    pub retryable: bool,
    /// What was seen.
    pub detail: String,
    /// What to do.
    pub hint: String,
}

/// Where an import's task writes its status and others read it.
pub(super) struct Board {
    status: Mutex<ImportStatus>,
}

impl ImportState {
    /// Whether flows go.
    pub fn is_up(self) -> bool {
        matches!(self, Self::Up | Self::Refreshing)
    }
}

impl Board {
    pub(super) fn new(import: &Import) -> Self {
        Self {
            status: Mutex::new(ImportStatus {
                service: import.service.clone(),
                via: None,
                payload: import.payload,
                state: ImportState::Resolving,
                since: SystemTime::now(),
                connection: None,
                endpoint: None,
                gateways: Vec::new(),
                port: None,
                lease_end: None,
                retry_at: None,
                last_fault: None,
            }),
        }
    }

    pub(super) fn snapshot(&self) -> ImportStatus {
        self.status.lock().clone()
    }

    pub(super) fn write(&self, machine: &Outbound, route: Option<&Route>, now: Now) {
        let state = state_of(machine.state());
        let established = machine.established();
        let mut status = self.status.lock();
        if status.state.is_up() != state.is_up() {
            status.since = now.wall;
        }
        status.state = state;
        status.payload = established.map(|e| e.payload).or(status.payload);
        status.connection = established.map(|e| e.connection);
        status.endpoint = established.map(|e| e.endpoint.clone());
        status.port = established.and_then(|e| e.port);
        status.gateways = route.map(|r| r.gateways.clone()).unwrap_or_default();
        status.lease_end = machine.lease_end().map(|at| now.wall_of(at));
        status.retry_at = match machine.state() {
            State::Down(at) => Some(now.wall_of(at).max(now.wall)),
            _ => None,
        };
        status.last_fault = machine.last_fault().map(FaultStatus::from);
    }
}

impl From<&Fault> for FaultStatus {
    fn from(fault: &Fault) -> Self {
        Self {
            step: fault.step.as_str(),
            kind: fault.kind.as_str(),
            blame: fault.blame().to_string(),
            retryable: fault.is_retryable(),
            detail: fault.detail.clone(),
            hint: fault.hint.clone(),
        }
    }
}

fn state_of(state: State) -> ImportState {
    match state {
        State::Resolving => ImportState::Resolving,
        State::Finding => ImportState::Finding,
        State::Requesting => ImportState::Requesting,
        State::Up => ImportState::Up,
        State::Refreshing => ImportState::Refreshing,
        State::Down(_) => ImportState::Down,
        State::Closing => ImportState::Closing,
        State::Closed => ImportState::Closed,
    }
}
