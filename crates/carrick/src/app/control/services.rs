//! Services of the own domain and of others.

use carrick_model::{Domain, Payload};
use carrick_proxy::imports::ImportStatus;

use super::{Daemon, state_of};
use crate::admin::api::{ImportState, Origin, Problem, ProblemCode, ServiceRow};

pub(super) fn own_services(daemon: &Daemon, imports_too: bool) -> Vec<ServiceRow> {
    let config = daemon.config.load();
    let mut rows: Vec<ServiceRow> = daemon
        .exports
        .list()
        .into_iter()
        .map(|export| ServiceRow {
            service: export.service.at(&config.domain),
            origin: Origin::Export,
            payload: Some(export.payload),
            port: config.exports.iter().find(|e| e.service == export.service).and_then(|e| e.port),
            endpoints: vec![export.endpoint],
            reach: vec![export.target.to_string()],
            state: None,
        })
        .collect();
    if imports_too {
        rows.extend(daemon.imports.snapshot().into_iter().map(|import| {
            let (reach, state) = reach(daemon, &import);
            ServiceRow {
                origin: Origin::Import,
                payload: import.payload,
                port: import.port,
                endpoints: import.endpoint.into_iter().collect(),
                reach,
                state: Some(state),
                service: import.service,
            }
        }));
    }
    rows.sort_by(|a, b| a.service.cmp(&b.service));
    rows
}

fn reach(daemon: &Daemon, import: &ImportStatus) -> (Vec<String>, ImportState) {
    let view = daemon.listeners.view(&import.service);
    let mut reach: Vec<String> = view.listen.iter().map(ToString::to_string).collect();
    reach.extend(view.dns_name);
    (reach, state_of(import.state))
}

pub(super) async fn remote_services(daemon: &Daemon, domain: &Domain) -> Result<Vec<ServiceRow>, Problem> {
    let found = daemon.peers.services(domain).await.map_err(|fault| {
        let hint = fault.hint();
        let why = format!("{:#}", anyhow::Error::from(fault));
        Problem::new(ProblemCode::Unavailable, format!("{domain} does not tell its services: {why}"))
            .hint(hint)
    })?;
    let imported = daemon.imports.snapshot();
    let rows = found.into_iter().filter_map(|service| {
        let name = service.name.parse::<carrick_model::Target>().ok()?.at(domain);
        let import = imported.iter().find(|import| import.service == name);
        let (reach, state) = import.map_or((Vec::new(), None), |import| {
            let (reach, state) = reach(daemon, import);
            (reach, Some(state))
        });
        Some(ServiceRow {
            origin: if import.is_some() { Origin::Import } else { Origin::Remote },
            payload: service.payload.parse::<Payload>().ok(),
            port: import.and_then(|import| import.port),
            endpoints: service.endpoints,
            reach,
            state,
            service: name,
        })
    });
    Ok(rows.collect())
}
