//! `carrick connections`

use std::time::SystemTime;

use crate::{
    admin::{api::ConnectionList, client::Client},
    cli::{
        Exit, Output, Style,
        quantity::{age, until},
        table::{Cell, Table},
    },
};

/// Lists connections in both directions.
pub(crate) async fn run(client: &Client, output: Output) -> anyhow::Result<Exit> {
    let list = client.connections().await?;
    output.show(&list, |list, style| human(list, style, SystemTime::now()))?;
    Ok(Exit::Ok)
}

fn human(list: &ConnectionList, style: Style, now: SystemTime) -> String {
    if list.connections.is_empty() && list.passing.is_empty() {
        return "no connections: nobody imports from here, and no import is up\n".into();
    }
    let parts = [ends(list, style, now), passing(list, style, now)];
    parts.into_iter().flatten().collect::<Vec<_>>().join("\n")
}

/// Those that pass through.
fn passing(list: &ConnectionList, style: Style, now: SystemTime) -> Option<String> {
    let mut table = Table::new(&["THROUGH HERE", "FROM", "TO", "STATE", "FOR", "EXPIRES", "ENDPOINT", "ID"]);
    for row in &list.passing {
        table.row([
            row.service.as_str().into(),
            row.owner.as_str().into(),
            row.next.as_str().into(),
            row.state.as_str().into(),
            age(row.since, now).into(),
            until(row.expires, now).into(),
            row.endpoint.as_str().into(),
            row.id.as_str().into(),
        ]);
    }
    (!list.passing.is_empty()).then(|| table.render(style))
}

/// Those that end here.
fn ends(list: &ConnectionList, style: Style, now: SystemTime) -> Option<String> {
    let mut table =
        Table::new(&["SERVICE", "DIR", "PEER", "BY", "STATE", "FOR", "EXPIRES", "FLOWS>", "ENDPOINT", "ID"]);
    for connection in &list.connections {
        table.row([
            Cell::of(&connection.service),
            Cell::of(connection.direction),
            connection.peer.as_str().into(),
            Cell::of(connection.mechanism),
            connection.state.as_str().into(),
            age(connection.since, now).into(),
            Cell::maybe(connection.expires.map(|at| until(at, now))),
            Cell::of(connection.flows),
            Cell::maybe(connection.endpoint.as_ref()),
            connection.id.as_str().into(),
        ]);
    }
    (!list.connections.is_empty()).then(|| table.render(style))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use carrick_model::{Mechanism, Payload};

    use super::*;
    use crate::{
        admin::api::{ConnectionRow, Direction, PassingRow, Timestamp},
        cli::status::tests::{ago, now},
    };

    #[test]
    fn connections_read_well() {
        let outgoing = ConnectionRow {
            id: "1f0c".into(),
            direction: Direction::Outgoing,
            service: "postgres@onprem.test".parse().unwrap(),
            peer: "spiffe://onprem.test/carrick/gateway".into(),
            endpoint: Some("postgres-0".into()),
            mechanism: Mechanism::Quic,
            payload: Payload::Tcp,
            state: "up".into(),
            since: ago(90),
            expires: Some(Timestamp(now() + Duration::from_secs(300))),
            flows: 12,
        };
        let incoming = ConnectionRow {
            id: "2e".into(),
            direction: Direction::Incoming,
            service: "web@cloud.test".parse().unwrap(),
            endpoint: None,
            expires: None,
            ..outgoing.clone()
        };
        let through = PassingRow {
            id: "7c".into(),
            service: "db@onprem.test".into(),
            owner: "spiffe://cloud.test/nsc".into(),
            endpoint: "db-0@onprem.test".into(),
            next: "the gateway of onprem.test".into(),
            state: "up".into(),
            since: ago(60),
            expires: Timestamp(now() + Duration::from_secs(540)),
        };
        let list = ConnectionList { connections: vec![outgoing, incoming], passing: vec![through] };
        assert_eq!(
            human(&list, Style::default(), now()),
            "\
SERVICE               DIR  PEER                                  BY    STATE  FOR     EXPIRES   FLOWS  ENDPOINT    ID
postgres@onprem.test  out  spiffe://onprem.test/carrick/gateway  QUIC  up     1m 30s  in 5m 0s     12  postgres-0  1f0c
web@cloud.test        in   spiffe://onprem.test/carrick/gateway  QUIC  up     1m 30s  -            12  -           2e

THROUGH HERE    FROM                     TO                          STATE  FOR    EXPIRES   ENDPOINT          ID
db@onprem.test  spiffe://cloud.test/nsc  the gateway of onprem.test  up     1m 0s  in 9m 0s  db-0@onprem.test  7c
"
        );
        let none = ConnectionList { connections: vec![], passing: vec![] };
        assert!(human(&none, Style::default(), now()).starts_with("no connections"));
    }
}
