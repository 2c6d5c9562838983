//! A new config, as differences: what did not change is not touched.

use std::{collections::BTreeSet, time::SystemTime};

use carrick_config::{Config, Export, Registry};
use carrick_identity::{CaError, EmbeddedCa};
use carrick_model::{ExportTarget, ServiceName, cause::in_one_line};
use carrick_proxy::catalogue::LocalExport;
use carrick_registry::{ExportRecord, PORT_LABEL};

use super::{
    environment, nsm,
    parts::{self, Daemon},
    trust,
};
use crate::admin::api::{Problem, ProblemCode, ReloadReply};

/// Reads the config file and the bundles again and applies what changed. With faults in the file nothing changes.
pub(crate) async fn reload(daemon: &Daemon) -> Result<ReloadReply, Problem> {
    // One at a time: a second caller finds the first one's work done. No other lock is taken while this one waits.
    let _one = daemon.reloading.lock().await;
    let outcome = apply(daemon).await;
    daemon.metrics.reloads.of(if outcome.is_ok() { "applied" } else { "refused" }).inc();
    match &outcome {
        Ok(done) => {
            tracing::info!(applied = ?done.applied, restart_needed = ?done.restart_needed, "the configuration was read again");
        }
        Err(problem) => {
            tracing::error!(why = %problem, hint = problem.hint, "the new configuration is refused; the old one stays in force");
        }
    }
    outcome
}

async fn apply(daemon: &Daemon) -> Result<ReloadReply, Problem> {
    let old = daemon.config.load_full();
    let new = match &daemon.config_path {
        Some(path) => load(path)?,
        None => Config::clone(&old),
    };
    let difference = old.difference(&new);
    let mut done = ReloadReply {
        restart_needed: difference.restart_needed.iter().map(ToString::to_string).collect(),
        ..ReloadReply::default()
    };
    let effective = effective(&old, new);

    apply_trust(daemon, &effective, &mut done)?;
    if !difference.peers.is_empty() {
        daemon.resolver.set_peers(parts::static_peers(&effective));
        note(
            &mut done,
            "peer",
            &difference.peers.added,
            &difference.peers.removed,
            &difference.peers.changed,
            |p| p.domain.to_string(),
        );
    }
    if !difference.exports.is_empty() {
        apply_exports(daemon, &effective)
            .map_err(|error| Problem::new(ProblemCode::InvalidConfig, format!("{error:#}")))?;
        let exports = &difference.exports;
        note(&mut done, "export", &exports.added, &exports.removed, &exports.changed, |e| {
            e.service.to_string()
        });
    }
    if effective.registry != old.registry {
        daemon.registry.set_admission(parts::admission(&effective)).await;
        done.applied.push("registry rules: changed".to_owned());
    }
    let imports = &difference.imports;
    for service in &imports.removed {
        daemon.listeners.remove(&daemon.imports, service).await;
    }
    for import in &imports.changed {
        daemon.listeners.remove(&daemon.imports, &import.service).await;
    }
    let mut failed: BTreeSet<ServiceName> = BTreeSet::new();
    for import in imports.added.iter().chain(&imports.changed) {
        if let Err(error) = daemon.listeners.add(&daemon.imports, import) {
            let hint = error.hint();
            let why = format!("{:#}", anyhow::Error::from(error));
            tracing::error!(service = %import.service, why, hint, "an import of the new configuration cannot be made");
            done.applied.push(format!("import {}: FAILED: {why}", import.service));
            failed.insert(import.service.clone());
        }
    }
    note(&mut done, "import", &imports.added, &imports.removed, &imports.changed, |i| i.service.to_string());
    if !imports.is_empty() {
        daemon.listeners.publish();
    }
    // What is wrong now may be right at the next reload: a failed import does not count as in force.
    let in_force = Config {
        imports: effective.imports.iter().filter(|i| !failed.contains(&i.service)).cloned().collect(),
        ..effective
    };
    daemon.config.store(in_force.into());
    daemon.imports.retry();
    Ok(done)
}

/// The new file, with the keys that need a restart as they were.
fn effective(old: &Config, new: Config) -> Config {
    let Config { trust, peers, exports, imports, registry, warnings, .. } = new;
    let registry = Registry { store: old.registry.store.clone(), ..registry };
    Config { trust, peers, exports, imports, registry, warnings, ..old.clone() }
}

fn apply_trust(daemon: &Daemon, config: &Config, done: &mut ReloadReply) -> Result<(), Problem> {
    let ca = own_ca(daemon, config)?;
    let (all, faults) = trust::read(config, &daemon.state, &ca.bundle());
    if let Some(fault) = faults.into_iter().next() {
        let hint = fault.hint();
        return Err(
            Problem::new(ProblemCode::InvalidConfig, format!("{:#}", anyhow::Error::from(fault))).hint(hint)
        );
    }
    let before = std::mem::replace(&mut *daemon.trusted.lock(), all.clone());
    let gone = trust::apply(&all, &daemon.trust, &daemon.trust_map)
        .map_err(|error| Problem::new(ProblemCode::InvalidConfig, error.to_string()).hint(error.hint()))?;
    for trust_domain in &gone {
        daemon.gateway.untrust(trust_domain);
    }
    // After the bundle: who of our own domain is shown an SVID of a new root has to trust that root already. And after what ends
    // trust, which does not wait for an SVID that cannot be issued.
    if daemon.identity.adopt(ca, SystemTime::now()).map_err(|error| ca_problem(&error))? {
        done.applied.push("identity: the new root issues".to_owned());
    }
    for trusted in &all {
        match before.iter().find(|old| old.domain == trusted.domain) {
            None => done.applied.push(format!("trust {}: added", trusted.domain)),
            Some(old) if old.bundle.fingerprints() != trusted.bundle.fingerprints() => {
                done.applied.push(format!("trust {}: changed", trusted.domain));
            }
            Some(_) => {}
        }
    }
    for old in before.iter().filter(|old| !all.iter().any(|kept| kept.domain == old.domain)) {
        done.applied.push(format!("trust {}: removed", old.domain));
    }
    Ok(())
}

/// The own CA as it is on disk: `carrick trust rotate` changes it there.
fn own_ca(daemon: &Daemon, config: &Config) -> Result<EmbeddedCa, Problem> {
    match EmbeddedCa::reopen(daemon.state.path(), &config.trust_domain, SystemTime::now()) {
        Ok(Some(ca)) => Ok(ca),
        Ok(None) => {
            let root = daemon.state.ca_root();
            let message = format!("the domain's root {} is gone; the daemon goes on with it", root.display());
            let hint = "restore the file from a backup before the next start, which would make another root";
            Err(Problem::new(ProblemCode::InvalidConfig, message).hint(hint))
        }
        Err(error) => Err(ca_problem(&error)),
    }
}

fn ca_problem(error: &CaError) -> Problem {
    Problem::new(ProblemCode::InvalidConfig, in_one_line(error)).hint(error.hint())
}

/// Offers the config's exports: to the proxy, which decides about requests, and to the registry, which is asked for them.
pub(crate) fn apply_exports(daemon: &Daemon, config: &Config) -> anyhow::Result<()> {
    let url = nsm::public_url(config, &daemon.addresses).map_or_else(String::new, |at| format!("tcp://{at}"));
    daemon.federation.set_connect_url(nsm::connect_url(config, &daemon.addresses));
    let name = |export: &Export| format!("{}.{}", export.service, config.domain);
    let record = |export: &Export| ExportRecord {
        service: export.service.clone(),
        endpoint: name(export),
        payload: export.to.payload(),
        url: url.clone(),
        labels: {
            let mut labels = export.labels.clone();
            if let Some(port) = export.port {
                labels.insert(PORT_LABEL.to_owned(), port.to_string());
            }
            labels
        },
        allow: export.allow.clone(),
    };
    let local = |export: &Export| LocalExport {
        endpoint: name(export),
        service: export.service.clone(),
        target: ExportTarget::clone(&export.to),
        payload: export.to.payload(),
        allow: export.allow.clone(),
    };
    daemon.transits.set_own_urls(&nsm::own_urls(config, &daemon.addresses));
    daemon.registry.set_exports(config.exports.iter().map(record).collect())?;
    daemon.exports.set(config.exports.iter().map(local).collect());
    Ok(())
}

fn note<T, K: ToString>(
    done: &mut ReloadReply,
    what: &str,
    added: &[T],
    removed: &[K],
    changed: &[T],
    name: impl Fn(&T) -> String,
) {
    done.applied.extend(added.iter().map(|item| format!("{what} {}: added", name(item))));
    done.applied.extend(removed.iter().map(|item| format!("{what} {}: removed", item.to_string())));
    done.applied.extend(changed.iter().map(|item| format!("{what} {}: changed", name(item))));
}

/// The file, and what the environment has said since the start.
fn load(path: &std::path::Path) -> Result<Config, Problem> {
    let mut config = carrick_config::load(path).map_err(|error| refused(&error))?;
    environment::overlay(&mut config)
        .map_err(|error| Problem::new(ProblemCode::InvalidConfig, error.to_string()).hint(error.hint()))?;
    Ok(config)
}

fn refused(error: &carrick_config::LoadError) -> Problem {
    Problem::new(ProblemCode::InvalidConfig, error.to_string()).hint(error.hint())
}
