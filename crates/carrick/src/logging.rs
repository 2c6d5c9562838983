//! The log: to standard error, for people or for programs, filtered by module.
//!
//! What is logged is said, the first that speaks: `CARRICK_LOG`, `RUST_LOG`, `-v`, the config's `log.level`. The forms
//! of all four are those of tracing's `EnvFilter`: a level, or `target=level` pairs joined by commas.

mod queue;

use std::io;

use carrick_config::{Log, LogFormat};
use tracing_subscriber::{EnvFilter, filter::ParseError, fmt::MakeWriter, util::TryInitError};

use self::queue::{Drained, Queue};
use crate::cli::Style;

/// Our own variable first, so that it can be set without touching other programs' logs.
const VARIABLES: [&str; 2] = ["CARRICK_LOG", "RUST_LOG"];
/// A command that asks the daemon has its say on standard output; its log is for its faults.
const OF_COMMANDS: &str = "warn";
/// The demo tells its own story.
const OF_DEMO: &str = "warn";

/// Why there is no log.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LogError {
    /// The filter is not one.
    #[error("{origin}: `{text}` is not a log filter")]
    Filter {
        /// Which of the four said it.
        origin: String,
        /// What it said.
        text: String,
        /// What is wrong with it.
        source: ParseError,
    },
    /// The thread that writes it cannot be started.
    #[error("the log has no thread")]
    Thread(#[source] io::Error),
    /// There is a log already.
    #[error("the log cannot be started")]
    Started(#[from] TryInitError),
}

/// Starts the daemon's log. What is returned has to live as long as there is something to log.
pub(crate) fn init(log: &Log, verbose: u8) -> Result<Drained, LogError> {
    let filter = filter(verbose, "log.level", &log.level, variable())?;
    let (queue, drained) = Queue::start(io::stderr()).map_err(LogError::Thread)?;
    start(log.format, filter, queue)?;
    Ok(drained)
}

/// Starts the log of a command that asks the daemon.
pub(crate) fn init_command(verbose: u8) -> Result<(), LogError> {
    start(LogFormat::Human, filter(verbose, "default", OF_COMMANDS, variable())?, io::stderr)
}

/// Starts the demo's log.
pub(crate) fn init_demo(verbose: u8) -> Result<(), LogError> {
    start(LogFormat::Human, filter(verbose, "default", OF_DEMO, variable())?, io::stderr)
}

fn variable() -> Option<(&'static str, String)> {
    let of = |name| std::env::var(name).ok().filter(|text| !text.is_empty()).map(|text| (name, text));
    VARIABLES.into_iter().find_map(of)
}

fn filter(
    verbose: u8,
    origin: &str,
    text: &str,
    variable: Option<(&str, String)>,
) -> Result<EnvFilter, LogError> {
    let (origin, text) = match (variable, verbose) {
        (Some((name, text)), _) => (name, text),
        (None, 0) => (origin, text.to_owned()),
        (None, 1) => ("-v", "debug".to_owned()),
        (None, _) => ("-vv", "trace".to_owned()),
    };
    EnvFilter::builder().parse(&text).map_err(|source| LogError::Filter {
        origin: origin.to_owned(),
        text,
        source,
    })
}

fn start<W>(format: LogFormat, filter: EnvFilter, writer: W) -> Result<(), LogError>
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    use tracing_subscriber::util::SubscriberInitExt;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(writer);
    match format {
        LogFormat::Human => builder.with_ansi(Style::of(&io::stderr()).is_coloured()).finish().try_init()?,
        LogFormat::Json => builder
            .json()
            .flatten_event(true)
            .with_current_span(true)
            .with_span_list(false)
            .finish()
            .try_init()?,
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(verbose: u8, variable: Option<(&str, String)>) -> String {
        filter(verbose, "log.level", "info,carrick_proxy=debug", variable).unwrap().to_string()
    }

    #[test]
    fn the_first_that_speaks_is_heard() {
        assert_eq!(text(0, Some(("CARRICK_LOG", "error".into()))), "error");
        assert_eq!(text(2, Some(("RUST_LOG", "error".into()))), "error");
        assert_eq!(text(1, None), "debug");
        assert_eq!(text(2, None), "trace");
        assert!(text(0, None).contains("carrick_proxy=debug"));
    }

    #[test]
    fn a_bad_filter_says_where_it_stands() {
        let err = filter(0, "log.level", "info,x=loud", None).unwrap_err();
        assert_eq!(err.to_string(), "log.level: `info,x=loud` is not a log filter");
    }
}
