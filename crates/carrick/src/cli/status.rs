//! `carrick status`

use std::{fmt::Write, time::SystemTime};

use crate::{
    admin::{
        api::{ImportRow, ImportState, Status},
        client::Client,
    },
    cli::{
        Exit, Mark, Output, Style,
        quantity::{age, bytes, micros, span, until},
        table::{Cell, Table},
    },
};

/// Shows the daemon; the exit code says whether it is ready.
pub(crate) async fn run(client: &Client, output: Output) -> anyhow::Result<Exit> {
    let status = client.status().await?;
    output.show(&status, |status, style| human(status, style, SystemTime::now()))?;
    Ok(if status.ready { Exit::Ok } else { Exit::Unhealthy })
}

fn human(status: &Status, style: Style, now: SystemTime) -> String {
    let mut text = head(status, style, now);
    section(&mut text, "IMPORTS", &imports(&status.imports, now), style);
    for import in &status.imports {
        trouble(&mut text, import, style);
    }
    section(&mut text, "EXPORTS", &exports(status), style);
    section(&mut text, "TUNNELS", &tunnels(status, now), style);
    section(&mut text, "PEERS", &peers(status), style);
    section(&mut text, "WATCHED IN OTHER DOMAINS", &watches(status, now), style);
    text
}

fn head(status: &Status, style: Style, now: SystemTime) -> String {
    let state = match (status.draining, status.ready) {
        (true, _) => style.paint(Mark::Warning, "draining"),
        (false, true) => style.paint(Mark::Good, "ready"),
        (false, false) => style.paint(Mark::Warning, "starting"),
    };
    let mut text = format!(
        "{}  {state}  up {}  carrick {}  process {}\n",
        style.paint(Mark::Heading, &status.domain),
        span(std::time::Duration::from_secs(status.uptime_seconds)),
        status.version,
        status.pid,
    );
    let mut facts = Table::new(&["", ""]).indent(2);
    if !status.waiting_for.is_empty() {
        facts.row(["waiting for".into(), Cell::list(&status.waiting_for)]);
    }
    let identity = &status.identity;
    let validity =
        format!("{}, {}, ends {}", identity.spiffe_id, identity.source, until(identity.not_after, now));
    facts.row(["identity".into(), validity.into()]);
    for listener in &status.listeners {
        facts.row([listener.name.as_str().into(), listener.address.as_str().into()]);
    }
    if let Some(store) = &status.store {
        let known = match &store.lost {
            Some(why) => Cell::marked(Mark::Bad, format!("{}, away: {why}", store.name)),
            None => format!("{}, revision {}", store.name, store.revision).into(),
        };
        facts.row(["store".into(), known]);
    }
    if let Some(config) = &status.config {
        facts.row(["config".into(), Cell::of(config.display())]);
    }
    facts.row(["state_dir".into(), Cell::of(status.state_dir.display())]);
    let c = &status.counters;
    let flows = format!(
        "{} open, {} since the start, {} refused, {} sent, {} received",
        c.flows_active,
        c.flows_total,
        c.flows_refused,
        bytes(c.bytes_sent),
        bytes(c.bytes_received)
    );
    facts.row(["flows".into(), flows.into()]);
    text.push_str(&facts.render(style));
    text
}

fn section(text: &mut String, title: &str, table: &Table, style: Style) {
    if !table.is_empty() {
        let _ = write!(text, "\n{}\n{}", style.paint(Mark::Heading, title), table.render(style));
    }
}

/// The state as a cell with its colour.
pub(super) fn state_cell(state: ImportState) -> Cell {
    let mark = match state {
        ImportState::Up => Mark::Good,
        ImportState::Connecting => Mark::Warning,
        ImportState::Down => Mark::Bad,
    };
    Cell::marked(mark, state)
}

fn imports(imports: &[ImportRow], now: SystemTime) -> Table {
    let mut table =
        Table::new(&["SERVICE", "STATE", "FOR", "LISTEN", "DNS NAME", "VIRTUAL IP", "FLOWS>", "MADE BY"])
            .indent(2);
    for import in imports {
        table.row([
            Cell::of(&import.service),
            state_cell(import.state),
            age(import.since, now).into(),
            Cell::list(&import.listen),
            Cell::maybe(import.dns_name.as_ref()),
            Cell::maybe(import.virtual_ip),
            Cell::of(import.flows),
            if import.ad_hoc { "connect" } else { "config" }.into(),
        ]);
    }
    table
}

/// Why an import is not up belongs under the table: a sentence in a column would stretch it.
fn trouble(text: &mut String, import: &ImportRow, style: Style) {
    if let Some(why) = &import.why {
        let _ = writeln!(text, "  {}: {why}", style.paint(Mark::Warning, &import.service));
        if let Some(hint) = &import.hint {
            let _ = writeln!(text, "    {} {hint}", style.paint(Mark::Heading, "hint:"));
        }
    }
}

fn exports(status: &Status) -> Table {
    let mut table = Table::new(&["SERVICE", "TARGET", "CONNECTIONS>", "FLOWS>", "ALLOW"]).indent(2);
    for export in &status.exports {
        let allow = match export.allow.as_slice() {
            [] => Cell::marked(Mark::Warning, "nobody"),
            patterns => Cell::list(patterns),
        };
        table.row([
            Cell::of(&export.service),
            Cell::of(&export.target),
            Cell::of(export.connections),
            Cell::of(export.flows),
            allow,
        ]);
    }
    table
}

fn tunnels(status: &Status, now: SystemTime) -> Table {
    let mut table = Table::new(&[
        "PEER",
        "ADDRESS",
        "DIR",
        "BY",
        "FOR",
        "RTT>",
        "LANES>",
        "FLOWS>",
        "SENT>",
        "RECEIVED>",
        "MTU>",
        "LOST>",
    ])
    .indent(2);
    for tunnel in &status.tunnels {
        table.row([
            tunnel.domain.as_ref().map_or_else(|| Cell::of(&tunnel.peer), Cell::of),
            Cell::of(tunnel.address),
            Cell::of(tunnel.direction),
            Cell::of(tunnel.mechanism),
            age(tunnel.since, now).into(),
            Cell::maybe(tunnel.rtt_micros.map(micros)),
            Cell::of(tunnel.lanes),
            Cell::of(tunnel.flows),
            bytes(tunnel.bytes_sent).into(),
            bytes(tunnel.bytes_received).into(),
            Cell::maybe(tunnel.mtu),
            Cell::of(tunnel.lost_packets),
        ]);
    }
    table
}

fn peers(status: &Status) -> Table {
    let mut table = Table::new(&["DOMAIN", "FOUND BY", "CONTROL", "TUNNEL", "NOTE"]).indent(2);
    for peer in &status.peers {
        let note = match (&peer.why, peer.stale) {
            (Some(why), _) => Cell::marked(Mark::Bad, why),
            (None, true) => Cell::marked(Mark::Warning, "stale: no newer answer can be had"),
            (None, false) => "".into(),
        };
        table.row([
            Cell::of(&peer.domain),
            Cell::maybe(peer.source.as_ref()),
            Cell::list(&peer.control),
            Cell::list(&peer.tunnel),
            note,
        ]);
    }
    table
}

fn watches(status: &Status, now: SystemTime) -> Table {
    let mut table = Table::new(&["DOMAIN", "WHAT", "QUERY", "OBJECTS>", "WATCHERS>", "NOTE"]).indent(2);
    for watch in &status.watches {
        let note = match (watch.stale_since, &watch.why) {
            (Some(since), why) => {
                let why = why.as_deref().unwrap_or_default();
                Cell::marked(Mark::Bad, format!("stale for {}: {why}", age(since, now)))
            }
            (None, _) => "".into(),
        };
        table.row([
            Cell::of(&watch.domain),
            Cell::of(&watch.what),
            Cell::maybe(Some(&watch.query).filter(|query| !query.is_empty())),
            Cell::of(watch.objects),
            Cell::of(watch.watchers),
            note,
        ]);
    }
    table
}

#[cfg(test)]
pub(crate) mod tests {
    use std::time::Duration;

    use super::*;
    use crate::admin::api::{
        Counters, Direction, ExportRow, IdentityRow, ListenerRow, PeerRow, StoreRow, Timestamp, TunnelRow,
        WatchRow,
    };

    /// The moment at which the samples are looked at.
    pub(crate) fn now() -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_795_422_420)
    }

    pub(crate) fn ago(seconds: u64) -> Timestamp {
        Timestamp(now() - Duration::from_secs(seconds))
    }

    fn import(service: &str, state: ImportState) -> ImportRow {
        ImportRow {
            service: service.parse().unwrap(),
            state,
            why: None,
            hint: None,
            since: ago(11_520),
            payload: Some(carrick_model::Payload::Tcp),
            listen: vec!["127.0.0.1:15432".parse().unwrap()],
            virtual_ip: Some([127, 80, 0, 2].into()),
            dns_name: Some("postgres.onprem.test.mesh".into()),
            ad_hoc: false,
            connection: None,
            flows: 3,
        }
    }

    /// A daemon with one of everything.
    pub(crate) fn sample() -> Status {
        let down = ImportRow {
            why: Some("_carrick._tcp.far.test has no records".into()),
            hint: Some("add a `peers:` entry for far.test, or ask its operator for SRV records".into()),
            listen: vec!["udp://127.0.0.1:5300".parse().unwrap()],
            virtual_ip: None,
            dns_name: None,
            ad_hoc: true,
            flows: 0,
            since: ago(14),
            ..import("dns@far.test", ImportState::Down)
        };
        Status {
            domain: "cloud.test".parse().unwrap(),
            trust_domain: "cloud.test".into(),
            version: "0.1.0".into(),
            pid: 4711,
            started: ago(11_530),
            uptime_seconds: 11_530,
            state_dir: "/var/lib/carrick".into(),
            config: Some("/etc/carrick/carrick.yaml".into()),
            ready: true,
            waiting_for: vec![],
            draining: false,
            identity: IdentityRow {
                spiffe_id: "spiffe://cloud.test/carrick/gateway".into(),
                source: "embedded".into(),
                not_before: ago(600),
                not_after: Timestamp(now() + Duration::from_secs(3_000)),
            },
            listeners: vec![
                ListenerRow { name: "control".into(), address: "tcp://0.0.0.0:7443".into() },
                ListenerRow { name: "tunnel".into(), address: "udp://0.0.0.0:7443".into() },
            ],
            store: Some(StoreRow {
                name: "embedded store /var/lib/carrick/registry.redb".into(),
                revision: 1_042,
                lost: None,
            }),
            imports: vec![import("postgres@onprem.test", ImportState::Up), down],
            exports: vec![
                ExportRow {
                    service: "web".parse().unwrap(),
                    target: "tcp://10.0.0.5:80".parse().unwrap(),
                    payload: carrick_model::Payload::Tcp,
                    port: Some(80),
                    allow: vec!["spiffe://onprem.test/**".parse().unwrap()],
                    connections: 1,
                    flows: 12,
                },
                ExportRow {
                    service: "secret".parse().unwrap(),
                    target: "unix:///run/secret.sock".parse().unwrap(),
                    payload: carrick_model::Payload::Tcp,
                    port: None,
                    allow: vec![],
                    connections: 0,
                    flows: 0,
                },
            ],
            tunnels: vec![TunnelRow {
                domain: Some("onprem.test".parse().unwrap()),
                peer: "spiffe://onprem.test/carrick/gateway".into(),
                address: "198.51.100.7:7443".parse().unwrap(),
                direction: Direction::Outgoing,
                mechanism: carrick_model::Mechanism::Quic,
                since: ago(11_520),
                rtt_micros: Some(12_340),
                lanes: 2,
                flows: 15,
                bytes_sent: 5_000_000,
                bytes_received: 3 << 30,
                mtu: Some(1452),
                lost_packets: 7,
            }],
            peers: vec![PeerRow {
                domain: "onprem.test".parse().unwrap(),
                trust_domain: "onprem.test".into(),
                source: Some("srv".into()),
                control: vec!["198.51.100.7:7443".parse().unwrap()],
                tunnel: vec!["198.51.100.7:7443".parse().unwrap()],
                stale: true,
                why: None,
            }],
            watches: vec![WatchRow {
                domain: "onprem.test".parse().unwrap(),
                what: "network service endpoint".into(),
                query: "postgres".into(),
                objects: 2,
                names: vec!["postgres-1".into(), "postgres-2".into()],
                watchers: 1,
                stale_since: Some(ago(12)),
                why: Some("the registry of onprem.test is silent".into()),
            }],
            counters: Counters {
                flows_active: 15,
                flows_total: 1_042,
                flows_refused: 2,
                bytes_sent: 5_000_000,
                bytes_received: 3 << 30,
            },
        }
    }

    #[test]
    fn a_status_reads_well() {
        let text = human(&sample(), Style::default(), now());
        assert_eq!(
            text,
            "\
cloud.test  ready  up 3h 12m  carrick 0.1.0  process 4711
  identity   spiffe://cloud.test/carrick/gateway, embedded, ends in 50m 0s
  control    tcp://0.0.0.0:7443
  tunnel     udp://0.0.0.0:7443
  store      embedded store /var/lib/carrick/registry.redb, revision 1042
  config     /etc/carrick/carrick.yaml
  state_dir  /var/lib/carrick
  flows      15 open, 1042 since the start, 2 refused, 4.8 MiB sent, 3.0 GiB received

IMPORTS
  SERVICE               STATE  FOR     LISTEN                 DNS NAME                   VIRTUAL IP  FLOWS  MADE BY
  postgres@onprem.test  up     3h 12m  tcp://127.0.0.1:15432  postgres.onprem.test.mesh  127.80.0.2      3  config
  dns@far.test          down   14s     udp://127.0.0.1:5300   -                          -               0  connect
  dns@far.test: _carrick._tcp.far.test has no records
    hint: add a `peers:` entry for far.test, or ask its operator for SRV records

EXPORTS
  SERVICE  TARGET                   CONNECTIONS  FLOWS  ALLOW
  web      tcp://10.0.0.5:80                  1     12  spiffe://onprem.test/**
  secret   unix:///run/secret.sock            0      0  nobody

TUNNELS
  PEER         ADDRESS            DIR  BY    FOR         RTT  LANES  FLOWS     SENT  RECEIVED   MTU  LOST
  onprem.test  198.51.100.7:7443  out  QUIC  3h 12m  12.3 ms      2     15  4.8 MiB   3.0 GiB  1452     7

PEERS
  DOMAIN       FOUND BY  CONTROL            TUNNEL             NOTE
  onprem.test  srv       198.51.100.7:7443  198.51.100.7:7443  stale: no newer answer can be had

WATCHED IN OTHER DOMAINS
  DOMAIN       WHAT                      QUERY     OBJECTS  WATCHERS  NOTE
  onprem.test  network service endpoint  postgres        2         1  stale for 12s: the registry of onprem.test is silent
"
        );
    }

    #[test]
    fn what_is_not_ready_says_what_it_waits_for() {
        let mut status = sample();
        status.ready = false;
        status.waiting_for = vec!["control listener".into(), "dns".into()];
        let text = human(&status, Style::default(), now());
        assert!(text.starts_with("cloud.test  starting  up"), "{text}");
        assert!(text.contains("  waiting for  control listener, dns\n"), "{text}");
        status.draining = true;
        assert!(human(&status, Style::default(), now()).starts_with("cloud.test  draining"));
    }

    #[test]
    fn an_idle_daemon_shows_no_empty_tables() {
        let mut status = sample();
        (status.imports, status.exports) = (vec![], vec![]);
        (status.tunnels, status.peers, status.watches) = (vec![], vec![], vec![]);
        let text = human(&status, Style::default(), now());
        assert!(!text.contains("IMPORTS") && !text.contains("TUNNELS"), "{text}");
    }
}
