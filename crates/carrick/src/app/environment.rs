//! The config as this process has it: the file, and the variables of NSM's deployments that win over it.

use std::path::Path;

use carrick_config::{Config, Environment, EnvironmentFaults};

/// Reads the file at `path` and lets this process's environment win over it.
pub(crate) fn load_config(path: &Path) -> anyhow::Result<(Config, Environment)> {
    let mut config = carrick_config::load(path)?;
    let environment = overlay(&mut config)?;
    Ok((config, environment))
}

/// Lets this process's environment win over `config`.
pub(crate) fn overlay(config: &mut Config) -> Result<Environment, EnvironmentFaults> {
    // A variable that is not text is none of NSM's.
    let variables = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
    config.apply_environment(variables)
}

/// Says in the log what the environment did.
pub(crate) fn tell_environment(environment: &Environment) {
    for (variable, key) in &environment.applied {
        tracing::info!(variable, key, "set by the environment");
    }
    for ignored in &environment.ignored {
        tracing::warn!(variable = ignored.name, why = ignored.why, "a variable of NSM changes nothing here");
    }
}
