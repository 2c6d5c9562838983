//! The rows of a status.

use std::{collections::BTreeMap, time::Duration};

use carrick_gateway::TunnelSnapshot;
use carrick_model::{Domain, Mechanism};
use carrick_proxy::imports::ImportStatus;
use carrick_registry::federation::RemoteView;

use super::{Daemon, state_of, why};
use crate::admin::api::{
    Counters, Direction, ExportRow, ImportRow, ImportState, ListenerRow, PeerRow, TunnelRow, WatchRow, micros,
};

pub(super) fn listeners(daemon: &Daemon) -> Vec<ListenerRow> {
    let row = |name: &str, address: String| ListenerRow { name: name.to_owned(), address };
    let at = &daemon.addresses;
    let mut rows = vec![
        row("control", format!("tcp://{}", at.control)),
        row("tunnel", format!("udp://{}", at.tunnel)),
        row("admin", format!("unix://{}", at.socket.display())),
    ];
    rows.extend(at.nsm.iter().map(|url| row("nsm", url.to_string())));
    rows.extend(at.admin.map(|address| row("admin", format!("tcp://{address}"))));
    rows.extend(
        at.dns
            .into_iter()
            .flat_map(|address| ["udp", "tcp"].map(|over| row("dns", format!("{over}://{address}")))),
    );
    rows
}

pub(super) fn import_row(daemon: &Daemon, import: &ImportStatus) -> ImportRow {
    let view = daemon.listeners.view(&import.service);
    let up = import.state.is_up();
    let failing = daemon.gateway.failing(import.service.domain()).filter(|_| up);
    let state = if failing.is_some() { ImportState::Down } else { state_of(import.state) };
    ImportRow {
        service: import.service.clone(),
        state,
        why: failing.or_else(|| why(import)),
        hint: import.last_fault.as_ref().filter(|_| !up).map(|fault| fault.hint.clone()),
        since: import.since.into(),
        payload: import.payload,
        listen: view.listen,
        virtual_ip: view.virtual_ip.map(Into::into),
        dns_name: view.dns_name,
        ad_hoc: view.ad_hoc,
        connection: import.connection,
        flows: daemon.gateway.import_flows(&import.service) as u64,
    }
}

pub(super) fn export_rows(daemon: &Daemon) -> Vec<ExportRow> {
    let mut connections: BTreeMap<String, (u64, u64)> = BTreeMap::new();
    for connection in daemon.exports.connections() {
        let count = connections.entry(connection.endpoint).or_default();
        count.0 += 1;
        count.1 += daemon.gateway.connection_flows(connection.id) as u64;
    }
    let config = daemon.config.load();
    let port = |service: &carrick_model::Target| {
        config.exports.iter().find(|export| &export.service == service).and_then(|export| export.port)
    };
    let row = |export: carrick_proxy::catalogue::LocalExport| {
        let (connections, flows) = connections.get(&export.endpoint).copied().unwrap_or_default();
        ExportRow {
            port: port(&export.service),
            service: export.service,
            target: export.target,
            payload: export.payload,
            allow: export.allow,
            connections,
            flows,
        }
    };
    daemon.exports.list().into_iter().map(row).collect()
}

/// The lanes to one gateway are one row.
pub(super) fn tunnel_rows(daemon: &Daemon) -> Vec<TunnelRow> {
    let trusted = daemon.trusted.lock();
    let domain_of = |tunnel: &TunnelSnapshot| {
        trusted
            .iter()
            .find(|t| t.bundle.trust_domain() == tunnel.peer.trust_domain())
            .map(|t| t.domain.clone())
    };
    let mut rows: Vec<TunnelRow> = Vec::new();
    for tunnel in daemon.gateway.tunnels() {
        let direction = if tunnel.role == "dialled" { Direction::Outgoing } else { Direction::Incoming };
        let peer = tunnel.peer.to_string();
        let rtt = micros(tunnel.rtt);
        let same = |row: &&mut TunnelRow| {
            row.peer == peer && row.address == tunnel.address && row.direction == direction
        };
        if let Some(row) = rows.iter_mut().find(same) {
            row.lanes += 1;
            row.flows += tunnel.flows as u64;
            row.bytes_sent += tunnel.sent_bytes;
            row.bytes_received += tunnel.received_bytes;
            row.lost_packets += tunnel.lost_packets;
            row.rtt_micros = row.rtt_micros.max(Some(rtt));
            row.mtu = row.mtu.min(Some(tunnel.mtu));
            row.since = row.since.min(tunnel.since.into());
            continue;
        }
        rows.push(TunnelRow {
            domain: domain_of(&tunnel),
            peer,
            address: tunnel.address,
            direction,
            mechanism: Mechanism::Quic,
            since: tunnel.since.into(),
            rtt_micros: Some(rtt),
            lanes: 1,
            flows: tunnel.flows as u64,
            bytes_sent: tunnel.sent_bytes,
            bytes_received: tunnel.received_bytes,
            mtu: Some(tunnel.mtu),
            lost_packets: tunnel.lost_packets,
        });
    }
    rows
}

/// A status answers soon, whatever the DNS does.
const PEER: Duration = Duration::from_millis(500);

/// The domains that imports need. The resolver answers from its cache as a rule.
pub(super) async fn peer_rows(daemon: &Daemon) -> Vec<PeerRow> {
    let mut domains: Vec<Domain> =
        daemon.imports.list().into_iter().map(|service| service.domain().clone()).collect();
    domains.dedup();
    let rows = domains.into_iter().map(|domain| async move {
        let trust_domain =
            daemon.trust_map.trust_domain(&domain).map_or_else(String::new, |td| td.to_string());
        let mut row = PeerRow {
            domain,
            trust_domain,
            source: None,
            control: Vec::new(),
            tunnel: Vec::new(),
            stale: false,
            why: None,
        };
        match tokio::time::timeout(PEER, daemon.resolver.resolve(&row.domain)).await {
            Ok(Ok(found)) => {
                row.source = Some(found.source.to_string());
                row.control = found.control.iter().map(|candidate| candidate.addr).collect();
                row.tunnel = found.tunnel.iter().map(|candidate| candidate.addr).collect();
                row.stale = found.stale;
            }
            Ok(Err(error)) => row.why = Some(error.to_string()),
            Err(_late) => row.why = Some("the DNS has not answered yet".to_owned()),
        }
        row
    });
    futures::future::join_all(rows).await
}

pub(super) fn counters(daemon: &Daemon) -> Counters {
    let metrics = &daemon.metrics;
    let both = |of: &dyn Fn(&'static str) -> u64| of("import") + of("export");
    let bytes = |direction, way| metrics.flow_bytes.of2(direction, way).get();
    Counters {
        flows_active: daemon.gateway.flows() as u64,
        flows_total: both(&|direction| metrics.flows_opened.of(direction).get()),
        flows_refused: both(&|direction| metrics.flows_refused.sum(direction)),
        bytes_sent: bytes("import", "to_service") + bytes("export", "to_client"),
        bytes_received: bytes("import", "to_client") + bytes("export", "to_service"),
    }
}

/// What is watched in other domains, and what was when its domain was lost.
pub(super) fn watch_rows(daemon: &Daemon) -> Vec<WatchRow> {
    let row = |view: RemoteView| {
        let (stale_since, why) = view.stale.map_or((None, None), |(at, why)| (Some(at.into()), Some(why)));
        WatchRow {
            domain: view.domain,
            what: view.what.to_owned(),
            query: view.query,
            objects: view.objects as u64,
            names: view.names,
            watchers: view.watchers as u64,
            stale_since,
            why,
        }
    };
    daemon.federation.snapshot().into_iter().map(row).collect()
}
