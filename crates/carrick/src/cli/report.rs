//! What a failed command says: the error, its causes, what to do next, and the exit code.

use std::{error::Error, io::Write};

use carrick_config::{EnvironmentFaults, LoadError};
use carrick_identity::{BundleError, CaError, FileError, PeerError, RotationError};
use serde::Serialize;

use crate::{
    admin::{
        api::{Problem, ProblemCode},
        client::ClientError,
        server::BindError,
        socket::SocketError,
    },
    cli::{
        exit::Exit,
        output::{Format, Mark, Style},
    },
    state_dir::StateDirError,
    trust_file::TrustFileError,
};

/// An error of a command itself, with a hint.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub(crate) struct Advice {
    message: String,
    hint: String,
    exit: Exit,
    #[source]
    source: Option<Box<dyn Error + Send + Sync>>,
}

impl Advice {
    /// It failed.
    pub(crate) fn new(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { message: message.into(), hint: hint.into(), exit: Exit::Failed, source: None }
    }

    /// The command line is wrong.
    pub(crate) fn usage(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { exit: Exit::Usage, ..Self::new(message, hint) }
    }

    /// The same, because of `source`.
    pub(crate) fn because(mut self, source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }
}

/// Prints the error to standard error, and says how to exit.
pub(crate) fn report(err: &anyhow::Error, format: Format) -> Exit {
    let style = Style::of(&std::io::stderr());
    let text = match format {
        Format::Human => human(err, style),
        Format::Json => serde_json::to_string_pretty(&machine(err)).unwrap_or_default() + "\n",
        Format::Yaml => serde_yaml::to_string(&machine(err)).unwrap_or_default(),
    };
    // With nobody to read it, the exit code still says it.
    let _ = std::io::stderr().lock().write_all(text.as_bytes());
    exit_of(err)
}

/// `error:`, a `because:` for each cause, a `hint:` when one of them offers one.
pub(crate) fn human(err: &anyhow::Error, style: Style) -> String {
    let mut text = String::new();
    let mut line = |label: &str, mark: Mark, message: &str| {
        let blanks = " ".repeat(label.len() + 1);
        let message = message.trim_end().replace('\n', &format!("\n{blanks}"));
        text.push_str(&format!("{} {message}\n", style.paint(mark, label)));
    };
    for (i, cause) in err.chain().enumerate() {
        let (label, mark) = if i == 0 { ("error:", Mark::Bad) } else { ("  because:", Mark::Quiet) };
        line(label, mark, &cause.to_string());
    }
    if let Some(hint) = hint_of(err) {
        line("  hint:", Mark::Heading, &hint);
    }
    text
}

#[derive(Serialize)]
struct Machine {
    error: MachineError,
}

/// The same keys as the admin API's problems, and the causes.
#[derive(Serialize)]
struct MachineError {
    code: ProblemCode,
    message: String,
    because: Vec<String>,
    hint: Option<String>,
}

fn machine(err: &anyhow::Error) -> Machine {
    let mut messages = err.chain().map(ToString::to_string);
    let code = match problem_code(err) {
        Some(code) => code,
        None => match exit_of(err) {
            Exit::Usage if faulty_config(err) => ProblemCode::InvalidConfig,
            Exit::Usage => ProblemCode::InvalidRequest,
            Exit::NoDaemon => ProblemCode::Unavailable,
            Exit::Unhealthy => ProblemCode::Denied,
            Exit::Ok | Exit::Failed => ProblemCode::Internal,
        },
    };
    Machine {
        error: MachineError {
            code,
            message: messages.next().unwrap_or_default(),
            because: messages.collect(),
            hint: hint_of(err),
        },
    }
}

/// The exit code that fits the error.
fn exit_of(err: &anyhow::Error) -> Exit {
    if let Some(advice) = find::<Advice>(err) {
        return advice.exit;
    }
    let problem = problem_code(err);
    let client = find::<ClientError>(err);
    match (client, problem) {
        (Some(ClientError::NotRunning { .. }), _) => Exit::NoDaemon,
        (Some(ClientError::Denied { .. }), _) | (_, Some(ProblemCode::Denied)) => Exit::Unhealthy,
        (_, Some(ProblemCode::InvalidRequest | ProblemCode::InvalidConfig)) => Exit::Usage,
        _ if faulty_config(err) => Exit::Usage,
        _ => Exit::Failed,
    }
}

/// The outermost hint of the chain: it knows most about what the operator was doing.
fn hint_of(err: &anyhow::Error) -> Option<String> {
    err.chain().find_map(own_hint)
}

fn own_hint(err: &(dyn Error + 'static)) -> Option<String> {
    macro_rules! first_of {
        ($($ty:ty => $hint:expr),* $(,)?) => {
            $(if let Some(e) = err.downcast_ref::<$ty>() {
                let hint: fn(&$ty) -> Option<String> = $hint;
                return hint(e);
            })*
        };
    }
    first_of! {
        Advice => |e| Some(e.hint.clone()),
        ClientError => ClientError::hint,
        Problem => |e| e.hint.clone(),
        SocketError => |e| Some(e.hint()),
        BindError => |e| Some(e.hint().into()),
        StateDirError => |e| Some(e.hint()),
        TrustFileError => |e| Some(e.hint()),
        LoadError => |e| Some(e.hint().into()),
        EnvironmentFaults => |e| Some(e.hint().into()),
        BundleError => |e| Some(e.hint().into()),
        CaError => |e| Some(e.hint().into()),
        FileError => |e| Some(e.hint().into()),
        RotationError => |e| Some(e.hint().into()),
        carrick_registry::store::OpenError => |e| Some(e.hint().into()),
        carrick_gateway::GatewayError => |e| Some(e.hint().into()),
        carrick_proxy::control::BindError => |e| Some(e.hint()),
        carrick_runtime::UnixSocketError => |e| Some(e.hint()),
        carrick_proxy::dns::BindError => |e| Some(e.hint().into()),
        crate::app::AddError => |e| Some(e.hint().into()),
        crate::app::TrustError => |e| Some(e.hint()),
    }
    PeerError::find_in(err).map(|e| e.hint().into())
}

/// The code of a problem, the daemon's or our own. A transparent variant is not a link of the chain of its own.
fn problem_code(err: &anyhow::Error) -> Option<ProblemCode> {
    match find::<ClientError>(err) {
        Some(ClientError::Problem(problem)) => Some(problem.code),
        _ => find::<Problem>(err).map(|p| p.code),
    }
}

/// Whether the config cannot be read, be it the file or the environment.
fn faulty_config(err: &anyhow::Error) -> bool {
    find::<LoadError>(err).is_some() || find::<EnvironmentFaults>(err).is_some()
}

fn find<T: Error + 'static>(err: &anyhow::Error) -> Option<&T> {
    err.chain().find_map(|e| e.downcast_ref())
}

#[cfg(test)]
mod tests {
    use anyhow::Context;

    use super::*;
    use crate::state_dir::StateDir;

    fn not_running() -> ClientError {
        ClientError::NotRunning { state_dir: "/run/x".into(), stale: false }
    }

    #[test]
    fn the_chain_is_told_from_the_outside_in_and_the_hint_comes_last() {
        let io = std::io::Error::other("disk on fire");
        let err = anyhow::Error::from(Advice::new("cannot save", "buy a disk").because(io));
        assert_eq!(
            human(&err, Style::default()),
            "error: cannot save\n  because: disk on fire\n  hint: buy a disk\n"
        );
    }

    #[test]
    fn lines_of_one_message_stay_together() {
        let err = anyhow::anyhow!("two\nlines\n");
        assert_eq!(human(&err, Style::default()), "error: two\n       lines\n");
    }

    #[test]
    fn a_hint_is_found_under_context() {
        let err = Err::<(), _>(not_running()).context("status").unwrap_err();
        let text = human(&err, Style::default());
        assert_eq!(
            text,
            "error: status\n  because: no carrick is running with state_dir /run/x\n  \
             hint: start `carrick up -c FILE`, or pass --state-dir\n"
        );
        assert_eq!(exit_of(&err), Exit::NoDaemon);
    }

    #[test]
    fn codes_follow_from_what_failed() {
        let exit = |e: anyhow::Error| exit_of(&e);
        let problem = |code| ClientError::from(Problem::new(code, "m"));
        assert_eq!(exit(problem(ProblemCode::Denied).into()), Exit::Unhealthy);
        assert_eq!(exit(problem(ProblemCode::InvalidConfig).into()), Exit::Usage);
        assert_eq!(exit(problem(ProblemCode::Unavailable).into()), Exit::Failed);
        assert_eq!(exit(Advice::usage("a", "b").into()), Exit::Usage);
        assert_eq!(exit(anyhow::anyhow!("x")), Exit::Failed);
        let denied = std::io::Error::from(std::io::ErrorKind::PermissionDenied);
        let denied = ClientError::Denied { path: StateDir::new("/x").admin_socket(), source: denied };
        assert_eq!(exit(denied.into()), Exit::Unhealthy);
    }

    #[test]
    fn programs_get_the_same_in_json() {
        let problem = Problem::new(ProblemCode::Conflict, "taken").hint("another port");
        let err = anyhow::Error::from(ClientError::from(problem));
        let json = serde_json::to_value(machine(&err)).unwrap();
        assert_eq!(
            json,
            serde_json::json!({"error": {"code": "conflict", "message": "taken", "because": [], "hint": "another port"}})
        );
    }
}
