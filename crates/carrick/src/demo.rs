//! The demo.

use std::process::ExitCode;

pub(crate) fn run(_check: bool) -> anyhow::Result<ExitCode> {
    anyhow::bail!("not built yet")
}
