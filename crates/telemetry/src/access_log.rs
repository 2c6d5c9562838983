//! One event per flow, when it ends.

use std::{net::SocketAddr, time::Duration};

use carrick_model::{ConnectionId, Mechanism, ServiceName, SpiffeId};

use crate::metrics::Direction;

/// The target of access-log events, for filters such as `carrick::access=info`.
pub const TARGET: &str = "carrick::access";

/// What is told of a flow that ended. Addresses of clients are operational data, the payload never appears.
#[derive(Debug)]
pub struct FlowRecord<'a> {
    /// Our side of the flow.
    pub direction: Direction,
    /// The service with its domain.
    pub service: &'a ServiceName,
    /// The connection the flow rode on; none when there was none to ride on.
    pub connection: Option<ConnectionId>,
    /// The other domain's gateway.
    pub peer: Option<&'a SpiffeId>,
    /// The address of that gateway.
    pub gateway: Option<SocketAddr>,
    /// Who asked, as the other side or we ourselves claim and vouch for.
    pub caller: Option<&'a SpiffeId>,
    /// Where the client came from (import) or what was dialled (export).
    pub local: &'a str,
    /// How the flow was carried.
    pub mechanism: Mechanism,
    /// Payload bytes from the client to the service.
    pub bytes_to_service: u64,
    /// Payload bytes from the service to the client.
    pub bytes_to_client: u64,
    /// From accept to end.
    pub duration: Duration,
    /// Why it ended: `closed`, or the word of a refusal or reset.
    pub end: &'static str,
    /// What an operator needs beside the word; empty for `closed`.
    pub detail: &'a str,
    /// The trace id of the flow header, in hex; empty without one.
    pub trace: &'a str,
}

impl FlowRecord<'_> {
    /// Writes the event.
    pub fn log(&self) {
        let text = |v: Option<&dyn std::fmt::Display>| v.map(ToString::to_string).unwrap_or_default();
        tracing::info!(
            target: TARGET,
            direction = self.direction.as_str(),
            service = %self.service,
            connection = text(self.connection.as_ref().map(|v| v as _)),
            peer = text(self.peer.map(|v| v as _)),
            gateway = text(self.gateway.as_ref().map(|v| v as _)),
            caller = text(self.caller.map(|v| v as _)),
            local = self.local,
            mechanism = %self.mechanism,
            bytes_to_service = self.bytes_to_service,
            bytes_to_client = self.bytes_to_client,
            duration_ms = self.duration.as_millis() as u64,
            end = self.end,
            detail = self.detail,
            trace = self.trace,
            "flow"
        );
    }
}
