//! `carrick explain`

use std::fmt::Write;

use carrick_model::{ServiceName, Target, cause::in_one_line, service::split_name};

use crate::{
    admin::{
        api::{ExplainReport, ExplainStep, StepKind, Verdict},
        client::Client,
    },
    cli::{Exit, Mark, Output, Style, quantity::micros},
};

/// As wide as the longest step's name.
const NAME_WIDTH: usize = 8;
/// As wide as the longest verdict.
const VERDICT_WIDTH: usize = 7;
/// `123.4 ms` is as long as it usually gets.
const TIME_WIDTH: usize = 9;

/// Walks the steps; a failed one makes the exit code bad.
pub(crate) async fn run(client: &Client, name: &str, output: Output) -> anyhow::Result<Exit> {
    let report = client.explain(name).await?;
    output.show(&report, human)?;
    Ok(if report.verdict == Verdict::Failed { Exit::Unhealthy } else { Exit::Ok })
}

/// Checks a name and gives back its normal form; what has no `@` is a service of the daemon's own domain.
pub(crate) fn parse_name(text: &str) -> Result<String, String> {
    match split_name(text) {
        (_, Some(_)) => text.parse::<ServiceName>().map(|n| n.to_string()).map_err(|e| in_one_line(&e)),
        (target, None) => target.parse::<Target>().map(|t| t.to_string()).map_err(|e| in_one_line(&e)),
    }
}

fn human(report: &ExplainReport, style: Style) -> String {
    let mut text = format!("{}\n", style.paint(Mark::Heading, &report.service));
    for (i, step) in report.steps.iter().enumerate() {
        write_step(&mut text, i + 1, step, style);
    }
    let took = micros(report.took_micros);
    let conclusion = match report.verdict {
        Verdict::Ok | Verdict::Skipped => style.paint(Mark::Good, format!("reachable, in {took}")),
        Verdict::Warning => style.paint(Mark::Warning, format!("reachable with warnings, in {took}")),
        Verdict::Failed => {
            let failed = report.steps.iter().find(|s| s.verdict == Verdict::Failed);
            let at = failed.map(|s| format!(" at `{}`", s.step)).unwrap_or_default();
            style.paint(Mark::Bad, format!("not reachable: stopped{at} after {took}"))
        }
    };
    let _ = writeln!(text, "\n{conclusion}");
    text
}

fn write_step(text: &mut String, number: usize, step: &ExplainStep, style: Style) {
    let mark = match step.verdict {
        Verdict::Ok => Mark::Good,
        Verdict::Skipped => Mark::Quiet,
        Verdict::Warning => Mark::Warning,
        Verdict::Failed => Mark::Bad,
    };
    let verdict = style.paint(mark, format!("{:VERDICT_WIDTH$}", step.verdict));
    let time = if step.verdict == Verdict::Skipped { String::new() } else { micros(step.took_micros) };
    let line = format!(
        "{number:2}  {:NAME_WIDTH$}  {verdict}  {time:>TIME_WIDTH$}  {}",
        step.step,
        style.paint(Mark::Quiet, question(step.step)),
    );
    let _ = writeln!(text, "{line}");
    for fact in &step.evidence {
        let _ = writeln!(text, "      {fact}");
    }
    if let Some(problem) = &step.problem {
        let _ = writeln!(text, "      {} {problem}", style.paint(mark, "problem:"));
    }
    if let Some(hint) = &step.hint {
        let _ = writeln!(text, "      {} {hint}", style.paint(Mark::Heading, "hint:"));
    }
}

/// What the step finds out.
fn question(step: StepKind) -> &'static str {
    match step {
        StepKind::Name => "is it a name, and whose?",
        StepKind::Gateways => "where are the domain's gateways?",
        StepKind::Trust => "is the one that answers whom the name means?",
        StepKind::Find => "does its registry know the service?",
        StepKind::Select => "which endpoint?",
        StepKind::Request => "does it let us connect?",
        StepKind::Stitch => "does a flow get through?",
        StepKind::Keep => "does it stay up?",
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn step(step: StepKind, verdict: Verdict, took_micros: u64, evidence: &[&str]) -> ExplainStep {
        let evidence = evidence.iter().map(ToString::to_string).collect();
        ExplainStep { step, verdict, took_micros, evidence, problem: None, hint: None }
    }

    #[test]
    fn a_failure_shows_its_evidence_and_what_to_do() {
        let failed = ExplainStep {
            problem: Some("the peer is of trust domain evil.test, not onprem.test".into()),
            hint: Some("check who answers at 198.51.100.7:7443".into()),
            ..step(StepKind::Trust, Verdict::Failed, 12_345, &["198.51.100.7:7443 answered in 4.0 ms"])
        };
        let steps = vec![
            step(StepKind::Name, Verdict::Ok, 3, &["service postgres of domain onprem.test"]),
            step(
                StepKind::Gateways,
                Verdict::Warning,
                1_200,
                &["SRV _carrick._tcp.onprem.test: 1 record", "stale"],
            ),
            failed,
            step(StepKind::Find, Verdict::Skipped, 0, &[]),
        ];
        let report =
            ExplainReport::new("postgres@onprem.test".parse().unwrap(), steps, Duration::from_micros(13_548));
        assert_eq!(
            human(&report, Style::default()),
            "\
postgres@onprem.test
 1  name      ok            3 µs  is it a name, and whose?
      service postgres of domain onprem.test
 2  gateways  warning     1.2 ms  where are the domain's gateways?
      SRV _carrick._tcp.onprem.test: 1 record
      stale
 3  trust     FAILED     12.3 ms  is the one that answers whom the name means?
      198.51.100.7:7443 answered in 4.0 ms
      problem: the peer is of trust domain evil.test, not onprem.test
      hint: check who answers at 198.51.100.7:7443
 4  find      skipped             does its registry know the service?

not reachable: stopped at `trust` after 13.5 ms
"
        );
    }

    #[test]
    fn a_success_says_so() {
        let steps = vec![step(StepKind::Name, Verdict::Ok, 3, &[])];
        let report = ExplainReport::new("a@b.test".parse().unwrap(), steps, Duration::from_millis(2));
        assert!(human(&report, Style::default()).ends_with("\nreachable, in 2.0 ms\n"));
    }

    #[test]
    fn names_are_checked_before_anybody_is_asked() {
        assert_eq!(parse_name("Postgres@OnPrem.test").unwrap(), "postgres@onprem.test");
        assert_eq!(parse_name("postgres").unwrap(), "postgres");
        let fault = parse_name("postgres@10.0.0.1").unwrap_err();
        assert!(fault.starts_with("not a domain after the `@`: an IP address"), "{fault}");
        assert!(parse_name("a b").is_err());
    }
}
