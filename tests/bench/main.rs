//! `carrick-bench`: two gateways on this machine, compared with no gateway and with haproxy, in one run.
//!
//! The load generator, the target and both ends share the cores, so a figure is one of a pair of ends on this machine.
//! Subjects take turns within every round and medians are compared: a busy neighbour then disturbs all of them alike.
//! Quote the ratios, never a figure alone.
#![allow(
    clippy::disallowed_methods,
    reason = "a harness that drives programs: its pauses are the measurement"
)]

mod beside_nsm;
mod measure;
mod registries;
mod registry;
mod report;
mod requests;
mod stored;
mod subjects;

use std::{io::IsTerminal, path::PathBuf};

use anyhow::{Context, ensure};
use carrick_tests::lab;
use clap::{Parser, Subcommand};

use crate::{
    measure::Metric,
    report::Report,
    subjects::{Stage, Subject},
};

/// Measures a pair of Carrick daemons beside a direct connection and a haproxy pair with mTLS.
#[derive(Parser)]
#[command(version)]
#[command(args_conflicts_with_subcommands = true)]
struct Args {
    #[command(subcommand)]
    part: Option<Part>,
    /// Rounds; medians are reported.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Seconds of one measurement.
    #[arg(long, default_value_t = 3.0)]
    seconds: f64,
    /// Idle flows to hold for the memory figure.
    #[arg(long, default_value_t = 10_000)]
    idle: usize,
    /// Only these subjects.
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = Subject::ALL)]
    subjects: Vec<Subject>,
    /// Only these metrics.
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = Metric::ALL)]
    metrics: Vec<Metric>,
    /// Writes everything measured as JSON, too.
    #[arg(long)]
    json: Option<PathBuf>,
}

/// Parts of a daemon that are measured alone.
#[derive(Subcommand)]
enum Part {
    /// The registry: registrations, finds, watches, memory.
    Registry(registry::Registry),
    /// A daemon that starts with a million endpoints in its store: memory, time to start.
    Stored(stored::Stored),
    /// The registry beside Network Service Mesh's memory registry, with one client for both; needs Go.
    Registries(registries::Registries),
    /// Requests through two domains, beside Network Service Mesh's own chain of parts; needs Go.
    Requests(requests::Requests),
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    match &args.part {
        Some(Part::Registry(registry)) => return registry.run(),
        Some(Part::Stored(stored)) => return stored.run(),
        Some(Part::Registries(registries)) => return registries.run(),
        Some(Part::Requests(requests)) => return requests.run(),
        None => {}
    }
    let needed = ["netns", "knotd", "kdig", "haproxy", "openssl"];
    ensure!(lab::needs(&needed), "the benchmark needs root and the programs that tests/setup.sh installs");

    let mut stage = Stage::build(&args.subjects)?;
    let progress = std::io::stderr().is_terminal();
    let mut report = Report::new(args.rounds, args.seconds);
    for round in 1..=args.rounds {
        for &metric in &args.metrics {
            for &subject in &args.subjects {
                if !metric.applies_to(subject) || (round > 1 && metric.once()) {
                    continue;
                }
                if progress {
                    eprint!("\rround {round} of {}: {metric} {subject}{:12}", args.rounds, "");
                }
                match measure::run(&mut stage, subject, metric, &args) {
                    Ok(values) => report.add(subject, values),
                    // One figure that cannot be had is a dash in the table, not the end of the run.
                    Err(e) => report.failed(subject, metric, &format!("{e:#}")),
                }
            }
        }
    }
    if progress {
        eprintln!("\r{:60}", "");
    }
    print!("{report}");
    if let Some(path) = &args.json {
        std::fs::write(path, format!("{:#}\n", report.json()))
            .with_context(|| format!("writing {}", path.display()))?;
    }
    ensure!(report.complete(), "not everything could be measured");
    Ok(())
}
