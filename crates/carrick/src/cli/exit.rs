//! How a command ends, for scripts. The numbers are part of the interface.

use std::process::ExitCode;

/// The exit codes of every command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exit {
    /// Done, and all is well.
    Ok = 0,
    /// It failed.
    Failed = 1,
    /// The command line or the config is wrong.
    Usage = 2,
    /// No daemon is running.
    NoDaemon = 3,
    /// Refused, or the answer is a bad one: not ready, a step that failed.
    Unhealthy = 4,
}

/// The closing text of every `--help`.
pub(crate) const EXIT_CODES: &str = "\
EXIT CODES
  0  done, and all is well
  1  failed
  2  the command line or the config is wrong
  3  no daemon is running
  4  denied, or not healthy: the daemon is not ready, a step of explain failed";

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}
