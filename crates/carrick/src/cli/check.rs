//! `carrick check`: the config's faults, then the host it is for. Starts nothing and changes nothing.

mod host;
mod store;

use std::path::{Path, PathBuf};

use carrick_config::{Config, EnvironmentFault, Fault, LoadError};
use serde::Serialize;

use crate::{
    app,
    cli::{
        Exit, Mark, Output, Style,
        quantity::count,
        table::{Cell, Table},
    },
    state_dir::StateDir,
    trust_file,
};

/// What a check found.
#[derive(Debug, Serialize)]
struct Report {
    config: PathBuf,
    /// Whether `carrick up` would start with it.
    ok: bool,
    findings: Vec<Finding>,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Finding {
    level: Level,
    /// A key of the config: `listen.control`, `exports.postgres`.
    subject: String,
    message: String,
    hint: Option<String>,
    line: Option<usize>,
    column: Option<usize>,
}

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Level {
    Ok,
    /// It starts, and something will not work until this is seen to.
    Warning,
    /// It does not start.
    Error,
}

/// Checks the file at `path`.
pub(crate) async fn run(path: &Path, output: Output) -> anyhow::Result<Exit> {
    let (findings, when_bad) = match carrick_config::load(path) {
        Ok(mut config) => {
            let of_environment = environment(&mut config);
            let state = StateDir::new(&config.state_dir);
            let imported = trust_file::read_all(&state);
            let warnings = trust_file::unsettled(&config, &imported.0);
            let mut findings: Vec<Finding> =
                warnings.into_iter().map(|w| Finding::of_fault(Level::Warning, w)).collect();
            findings.extend(of_environment);
            findings.extend(host::check(&config, &state, imported).await);
            findings.extend(store::check(&config).await);
            (findings, Exit::Failed)
        }
        Err(LoadError::Faults(faults)) => {
            let findings = faults.as_slice().iter().map(|f| Finding::of_fault(Level::Error, f)).collect();
            (findings, Exit::Usage)
        }
        Err(unreadable) => return Err(unreadable.into()),
    };
    let ok = findings.iter().all(|f| f.level != Level::Error);
    output.show(&Report { config: path.to_owned(), ok, findings }, human)?;
    Ok(if ok { Exit::Ok } else { when_bad })
}

/// What the variables of this process do to the config, and which cannot be read.
fn environment(config: &mut Config) -> Vec<Finding> {
    let of = |level, name: &str, message: String| Finding::new(level, name, message);
    match app::overlay(config) {
        Ok(environment) => {
            let applied = environment.applied.iter();
            let applied = applied.map(|(name, key)| of(Level::Ok, name, format!("is in force for `{key}`")));
            let ignored = environment.ignored.iter().map(|i| of(Level::Warning, &i.name, i.why.clone()));
            applied.chain(ignored).collect()
        }
        Err(faults) => {
            let fault =
                |f: &EnvironmentFault| of(Level::Error, f.name, f.message.clone()).hint(faults.hint());
            faults.as_slice().iter().map(fault).collect()
        }
    }
}

impl Finding {
    fn of_fault(level: Level, fault: &Fault) -> Self {
        Self {
            level,
            subject: fault.path.clone(),
            message: fault.message.clone(),
            hint: fault.hint.clone(),
            line: Some(fault.line),
            column: Some(fault.column),
        }
    }

    fn new(level: Level, subject: impl Into<String>, message: impl Into<String>) -> Self {
        let (subject, message) = (subject.into(), message.into());
        Self { level, subject, message, hint: None, line: None, column: None }
    }

    fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

fn human(report: &Report, style: Style) -> String {
    let mut text = String::new();
    let file = report.config.display();
    let mut seen = Table::new(&["", "", ""]);
    for finding in &report.findings {
        let (mark, word) = match finding.level {
            Level::Ok => (Mark::Good, "ok"),
            Level::Warning => (Mark::Warning, "warning"),
            Level::Error => (Mark::Bad, "error"),
        };
        // A fault of the text is shown as compilers do, so that editors can jump to it.
        if let (Some(line), Some(column)) = (finding.line, finding.column) {
            let subject =
                if finding.subject.is_empty() { String::new() } else { format!("{}: ", finding.subject) };
            text.push_str(&format!(
                "{file}:{line}:{column}: {}: {subject}{}\n",
                style.paint(mark, word),
                finding.message
            ));
            if let Some(hint) = &finding.hint {
                text.push_str(&format!("    {} {hint}\n", style.paint(Mark::Heading, "hint:")));
            }
        } else {
            seen.row([
                Cell::marked(mark, word),
                finding.subject.as_str().into(),
                finding.message.as_str().into(),
            ]);
            if let Some(hint) = &finding.hint {
                seen.row([" ".into(), " ".into(), format!("hint: {hint}").into()]);
            }
        }
    }
    text.push_str(&seen.render(style));
    let number = |level| report.findings.iter().filter(|f| f.level == level).count();
    let (errors, warnings) = (number(Level::Error), number(Level::Warning));
    let verdict = match (errors, warnings) {
        (0, 0) => style.paint(Mark::Good, "ready to start"),
        (0, _) => style.paint(Mark::Warning, format!("would start, with {}", count(warnings, "warning"))),
        (_, 0) => style.paint(Mark::Bad, count(errors, "error")),
        _ => style.paint(Mark::Bad, format!("{}, {}", count(errors, "error"), count(warnings, "warning"))),
    };
    text.push_str(&format!("{file}: {verdict}\n"));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(findings: Vec<Finding>) -> String {
        human(&Report { config: "carrick.yaml".into(), ok: false, findings }, Style::default())
    }

    #[test]
    fn faults_of_the_text_can_be_jumped_to() {
        let fault = Fault {
            line: 3,
            column: 5,
            path: "exports[0].servce".into(),
            message: "unknown key".into(),
            hint: Some("did you mean `service`?".into()),
        };
        assert_eq!(
            report(vec![Finding::of_fault(Level::Error, &fault)]),
            "carrick.yaml:3:5: error: exports[0].servce: unknown key\n    hint: did you mean `service`?\ncarrick.yaml: 1 error\n"
        );
    }

    #[test]
    fn findings_about_the_host_are_a_table() {
        let text = report(vec![
            Finding::new(Level::Ok, "state_dir", "/var/lib/carrick can be written"),
            Finding::new(Level::Error, "listen.control", "tcp 0.0.0.0:7443 is in use").hint("choose another"),
            Finding::new(Level::Warning, "exports.web", "tcp://10.0.0.5:80 does not answer"),
        ]);
        assert_eq!(
            text,
            "\
ok       state_dir       /var/lib/carrick can be written
error    listen.control  tcp 0.0.0.0:7443 is in use
                         hint: choose another
warning  exports.web     tcp://10.0.0.5:80 does not answer
carrick.yaml: 1 error, 1 warning
"
        );
        assert!(report(vec![]).ends_with("ready to start\n"));
    }
}
