//! Connections that begin or end here, or pass through.

use carrick_model::Mechanism;
use carrick_proxy::{imports::ImportStatus, transit::TransitStatus};

use super::Daemon;
use crate::admin::api::{ConnectionRow, Direction, PassingRow};

pub(super) fn outgoing_row(daemon: &Daemon, import: &ImportStatus) -> Option<ConnectionRow> {
    let domain = import.service.domain();
    Some(ConnectionRow {
        id: import.connection?.to_string(),
        direction: Direction::Outgoing,
        service: import.service.clone(),
        peer: daemon.trust_map.trust_domain(domain).map_or_else(String::new, |td| format!("spiffe://{td}")),
        endpoint: import.endpoint.clone(),
        mechanism: Mechanism::Quic,
        payload: import.payload?,
        state: format!("{:?}", import.state).to_lowercase(),
        since: import.since.into(),
        expires: import.lease_end.map(Into::into),
        flows: daemon.gateway.import_flows(&import.service) as u64,
    })
}

pub(super) fn incoming_rows(daemon: &Daemon) -> Vec<ConnectionRow> {
    let domain = daemon.config.load().domain.clone();
    let row = |connection: carrick_proxy::exports::ExportConnection| ConnectionRow {
        id: connection.id.to_string(),
        direction: Direction::Incoming,
        service: connection.service.at(&domain),
        peer: connection.peer,
        endpoint: Some(connection.endpoint),
        mechanism: Mechanism::Quic,
        payload: connection.payload,
        state: "up".to_owned(),
        since: connection.since.into(),
        expires: Some(connection.lease_end.into()),
        flows: daemon.gateway.connection_flows(connection.id) as u64,
    };
    daemon.exports.connections().into_iter().map(row).collect()
}

pub(super) fn passing_row(c: TransitStatus) -> PassingRow {
    PassingRow {
        id: c.id,
        service: c.service,
        owner: c.owner,
        endpoint: c.endpoint,
        next: c.next,
        state: if c.down { "down" } else { "up" }.to_owned(),
        since: c.since.into(),
        expires: c.lease_end.into(),
    }
}
