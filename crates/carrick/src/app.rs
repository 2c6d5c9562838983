//! The composition root: makes the parts of a daemon, joins them, runs them, stops them.
//!
//! Start order: state directory, identity, trust; then every socket is bound, so that a taken port is an error before
//! anything has begun; then the parts, joined by the traits of [`bridge`]; then the exports and imports of the config; then
//! everything serves. Ready is when the last readiness guard has dropped. To stop is to drain: no new flows, peers are told,
//! running flows may finish up to a deadline, connections are closed, tunnels say goodbye.
//!
//! | module | is for |
//! |---|---|
//! | [`bridge`] | the traits by which gateway and proxy use each other |
//! | [`parts`] | making a daemon |
//! | [`nsm`] | what the daemon is to NSM's parts: sockets, names, URL |
//! | [`environment`] | the variables of NSM's deployments that win over the config |
//! | [`imports`] | imports with their listeners and virtual addresses |
//! | [`trust`] | bundles from config, `carrick trust import` and the own CA |
//! | [`reload`] | a new config, as differences |
//! | [`remote`] | the registries of other domains, over the proxy's connections |
//! | [`control`] | what the admin API asks |
//! | [`flat_files`] | NSM's files of addresses and labels |
//! | [`life`] | signals, file changes, drain |

pub(crate) mod bridge;
mod control;
mod environment;
mod flat_files;
mod imports;
mod life;
mod nsm;
pub(crate) mod parts;
mod reload;
mod remote;
pub(crate) mod store;
mod trust;

use std::path::PathBuf;

use anyhow::Context;
use carrick_config::Config;

pub(crate) use self::{
    environment::{load_config, overlay, tell_environment},
    imports::AddError,
    life::{Signals, stop},
    nsm::own_domain,
    parts::Daemon,
    trust::TrustError,
};

/// Runs a daemon until it is told to stop.
pub(crate) fn run(config: Config, path: Option<PathBuf>) -> anyhow::Result<()> {
    let runtime = runtime()?;
    let result = runtime.block_on(async {
        let daemon = Daemon::start(config, path).await?;
        life::until_told_to_stop(&daemon).await;
        Ok(())
    });
    runtime.shutdown_timeout(std::time::Duration::from_secs(1));
    result
}

/// The runtime that all parts share.
pub(crate) fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .thread_name("carrick")
        .build()
        .context("the system gives no threads for the runtime")
}
