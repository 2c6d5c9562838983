//! `carrick services`

use carrick_model::Domain;

use crate::{
    admin::{
        api::{Origin, ServiceList},
        client::Client,
    },
    cli::{
        Exit, Output, Style, status,
        table::{Cell, Table},
    },
};

/// Lists what is exported and imported here, or what `domain` offers.
pub(crate) async fn run(client: &Client, domain: Option<&Domain>, output: Output) -> anyhow::Result<Exit> {
    let list = client.services(domain).await?;
    output.show(&list, human)?;
    Ok(Exit::Ok)
}

fn human(list: &ServiceList, style: Style) -> String {
    if list.services.is_empty() {
        return match &list.domain {
            Some(domain) => format!("{domain} offers no service that we may see\n"),
            None => "nothing is exported or imported: see `exports:` and `imports:` in the config\n".into(),
        };
    }
    let mut table =
        Table::new(&["SERVICE", "ORIGIN", "PAYLOAD", "PORT>", "ENDPOINTS>", "STATE", "REACH IT AT"]);
    for service in &list.services {
        let reach = match (service.reach.is_empty(), service.origin) {
            (true, Origin::Remote) => "carrick connect".into(),
            _ => Cell::list(&service.reach),
        };
        table.row([
            Cell::of(&service.service),
            Cell::of(service.origin),
            Cell::maybe(service.payload),
            Cell::maybe(service.port),
            Cell::of(service.endpoints.len()),
            service.state.map_or_else(|| "".into(), status::state_cell),
            reach,
        ]);
    }
    table.render(style)
}

#[cfg(test)]
mod tests {
    use carrick_model::Payload;

    use super::*;
    use crate::admin::api::{ImportState, ServiceRow};

    fn row(service: &str, origin: Origin) -> ServiceRow {
        ServiceRow {
            service: service.parse().unwrap(),
            origin,
            payload: Some(Payload::Tcp),
            port: Some(5432),
            endpoints: vec!["a".into(), "b".into()],
            reach: vec![],
            state: None,
        }
    }

    #[test]
    fn services_say_how_to_reach_them() {
        let imported = ServiceRow {
            reach: vec!["127.0.0.1:15432".into(), "postgres.onprem.test.mesh:5432".into()],
            state: Some(ImportState::Up),
            ..row("postgres@onprem.test", Origin::Import)
        };
        let unix = ServiceRow { port: None, ..row("web@cloud.test", Origin::Export) };
        let services = vec![imported, row("x@far.test", Origin::Remote), unix];
        let text = human(&ServiceList { domain: None, services }, Style::default());
        assert_eq!(
            text,
            "\
SERVICE               ORIGIN  PAYLOAD  PORT  ENDPOINTS  STATE  REACH IT AT
postgres@onprem.test  import  TCP      5432          2  up     127.0.0.1:15432, postgres.onprem.test.mesh:5432
x@far.test            remote  TCP      5432          2  -      carrick connect
web@cloud.test        export  TCP         -          2  -      -
"
        );
    }

    #[test]
    fn nothing_is_said_in_words() {
        let of = |domain: Option<&str>| {
            let domain = domain.map(|d| d.parse().unwrap());
            human(&ServiceList { domain, services: vec![] }, Style::default())
        };
        assert_eq!(of(Some("far.test")), "far.test offers no service that we may see\n");
        assert!(of(None).contains("`exports:`"));
    }
}
