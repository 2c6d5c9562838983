//! How a name becomes a connection, step by step: `carrick explain`.

use std::time::Duration;

use carrick_model::ServiceName;
use serde::{Deserialize, Serialize};

use super::{micros, words};

/// How a name becomes a connection, step by step: `carrick explain`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct ExplainReport {
    /// What was asked for.
    pub(crate) service: ServiceName,
    /// The worst verdict of the steps.
    pub(crate) verdict: Verdict,
    /// How long it took.
    pub(crate) took_micros: u64,
    /// In the order of design; after a failed step the others are skipped.
    pub(crate) steps: Vec<ExplainStep>,
}

/// One step of an [`ExplainReport`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct ExplainStep {
    /// Which one.
    pub(crate) step: StepKind,
    /// How it ended.
    pub(crate) verdict: Verdict,
    /// How long it took.
    pub(crate) took_micros: u64,
    /// What was seen, one fact a line.
    pub(crate) evidence: Vec<String>,
    /// What is wrong, when the verdict is `warning` or `failed`.
    pub(crate) problem: Option<String>,
    /// What the operator can do about it.
    pub(crate) hint: Option<String>,
}

/// The steps from a name to a flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum StepKind {
    /// Reading the name.
    Name,
    /// From the domain to its gateways.
    Gateways,
    /// Reaching a gateway and checking that it is whom the name means.
    Trust,
    /// Asking the peer's registry for endpoints.
    Find,
    /// Choosing one.
    Select,
    /// Asking the peer for the connection.
    Request,
    /// Joining the local side to the tunnel.
    Stitch,
    /// Staying up: lease, refresh, live flows.
    Keep,
}

/// How a step ended. Ordered from good to bad.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Verdict {
    /// As it should be.
    Ok,
    /// Not tried, because an earlier step failed or because it does not apply.
    Skipped,
    /// Works, with something to look at.
    Warning,
    /// Does not work.
    Failed,
}

impl ExplainReport {
    /// Judges the whole by its worst step; a skipped step alone makes nothing bad.
    pub(crate) fn new(service: ServiceName, steps: Vec<ExplainStep>, took: Duration) -> Self {
        let worst = steps.iter().map(|s| s.verdict).filter(|v| *v != Verdict::Skipped).max();
        Self { service, verdict: worst.unwrap_or(Verdict::Ok), took_micros: micros(took), steps }
    }
}

words! {
    Verdict { Ok => "ok", Skipped => "skipped", Warning => "warning", Failed => "FAILED" }
    StepKind {
        Name => "name", Gateways => "gateways", Trust => "trust", Find => "find",
        Select => "select", Request => "request", Stitch => "stitch", Keep => "keep",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_as_bad_as_its_worst_step() {
        let step = |verdict| ExplainStep {
            step: StepKind::Name,
            verdict,
            took_micros: 1,
            evidence: vec![],
            problem: None,
            hint: None,
        };
        let verdict = |vs: &[Verdict]| {
            let steps = vs.iter().map(|v| step(*v)).collect();
            ExplainReport::new("a@b.test".parse().unwrap(), steps, Duration::ZERO).verdict
        };
        assert_eq!(verdict(&[Verdict::Ok, Verdict::Skipped]), Verdict::Ok);
        assert_eq!(verdict(&[Verdict::Warning, Verdict::Ok]), Verdict::Warning);
        assert_eq!(verdict(&[Verdict::Ok, Verdict::Failed, Verdict::Skipped]), Verdict::Failed);
    }
}
