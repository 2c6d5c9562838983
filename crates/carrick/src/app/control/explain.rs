//! The steps from a name to a flow, in the words of the API.

use std::time::{Instant, SystemTime};

use carrick_model::Domain;
use carrick_proxy::{
    explain::{self, Explanation},
    imports::ImportStatus,
};
use carrick_registry::federation::RemoteView;

use super::{Daemon, why};
use crate::admin::api::{ExplainStep, StepKind, Verdict, micros};

/// The proxy's walk in the words of the API: trust and the handshake that proves it are one step there.
pub(super) fn steps(walked: Explanation) -> Vec<ExplainStep> {
    let mut steps: Vec<ExplainStep> = Vec::new();
    for step in walked.steps {
        let kind = match step.step {
            "name" => StepKind::Name,
            "domain" => StepKind::Gateways,
            "trust" | "connect" => StepKind::Trust,
            "find" => StepKind::Find,
            "select" => StepKind::Select,
            _ => StepKind::Request,
        };
        let verdict = match step.verdict {
            explain::Verdict::Ok => Verdict::Ok,
            explain::Verdict::Failed => Verdict::Failed,
            explain::Verdict::Skipped => Verdict::Skipped,
        };
        let failed = verdict == Verdict::Failed;
        let (problem, evidence) =
            if failed { (Some(step.evidence.join("; ")), Vec::new()) } else { (None, step.evidence) };
        match steps.last_mut().filter(|last| last.step == kind) {
            Some(last) if verdict != Verdict::Skipped => {
                last.verdict = last.verdict.max(verdict);
                last.took_micros += micros(step.took);
                last.evidence.extend(evidence);
                last.problem = last.problem.take().or(problem);
                last.hint = last.hint.take().or(step.hint);
            }
            Some(_) => {}
            None => steps.push(ExplainStep {
                step: kind,
                verdict,
                took_micros: micros(step.took),
                evidence,
                problem,
                hint: step.hint,
            }),
        }
    }
    steps
}

/// Joins a tunnel as a flow would.
pub(super) async fn stitch(daemon: &Daemon, walked: &Explanation) -> ExplainStep {
    let mut step = ExplainStep {
        step: StepKind::Stitch,
        verdict: Verdict::Skipped,
        took_micros: 0,
        evidence: Vec::new(),
        problem: None,
        hint: None,
    };
    let Some(route) = &walked.route else { return step };
    let began = Instant::now();
    let route = carrick_gateway::Route {
        connection: route.connection,
        domain: route.domain.clone(),
        trust_domain: route.trust_domain.clone(),
        payload: route.payload,
        gateways: route.gateways.clone(),
    };
    match daemon.gateway.probe(&route).await {
        Ok(tunnel) => {
            step.verdict = Verdict::Ok;
            step.evidence = vec![
                format!("QUIC tunnel to {} at {}, {}", tunnel.peer, tunnel.address, tunnel.role),
                format!(
                    "round trip {:.1?}, packets of {} bytes, {} flows",
                    tunnel.rtt, tunnel.mtu, tunnel.flows
                ),
            ];
        }
        Err(why) => {
            step.verdict = Verdict::Failed;
            step.problem = Some(format!("no tunnel: {why}"));
            step.hint = Some(
                "check that UDP reaches the tunnel port (`listen.tunnel`) of the other gateway, and that it trusts this domain"
                    .to_owned(),
            );
        }
    }
    step.took_micros = micros(began.elapsed());
    step
}

/// How the import of that name stands, if there is one.
pub(super) fn keep(import: Option<&ImportStatus>) -> ExplainStep {
    let mut step = ExplainStep {
        step: StepKind::Keep,
        verdict: Verdict::Skipped,
        took_micros: 0,
        evidence: Vec::new(),
        problem: None,
        hint: None,
    };
    let Some(import) = import else {
        step.evidence.push(
            "not imported here: `carrick connect` or an entry under `imports:` makes it usable".to_owned(),
        );
        return step;
    };
    if let Some(connection) = import.connection {
        step.evidence.push(format!("connection {connection}"));
    }
    if let Some(left) = import.lease_end.and_then(|end| end.duration_since(SystemTime::now()).ok()) {
        step.evidence.push(format!("lease ends in {} s, renewed before", left.as_secs()));
    }
    match why(import) {
        None => step.verdict = Verdict::Ok,
        Some(problem) => {
            step.verdict = Verdict::Failed;
            step.problem = Some(problem);
            step.hint = import.last_fault.as_ref().map(|fault| fault.hint.clone());
        }
    }
    step
}

/// What the registry of a domain that does not answer said last, as evidence for the step that asks it.
pub(super) fn last_known(daemon: &Daemon, domain: &Domain, now: SystemTime) -> Vec<String> {
    let stale = daemon.federation.snapshot().into_iter().filter(|view| &view.domain == domain);
    let words = |view: RemoteView| {
        let (since, why) = view.stale?;
        let ago = now.duration_since(since).unwrap_or_default().as_secs();
        let query = if view.query.is_empty() { String::new() } else { format!(" for {}", view.query) };
        let names = if view.names.is_empty() { "none".to_owned() } else { view.names.join(", ") };
        Some(format!("last known of each {}{query}: {names}; lost {ago} s ago: {why}", view.what))
    };
    stale.filter_map(words).collect()
}
