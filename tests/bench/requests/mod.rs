//! `carrick-bench requests`: Requests of NSM's wire from a client in one domain to an endpoint in another, through two
//! Carrick daemons and through NSM's own managers, forwarders and proxies, in turns.
//!
//! Client and endpoint are the same for both: the Go program of `tests/interop/nsm`. NSM's parts are in that process, as its
//! sandbox has them, and the daemons are processes of their own in two sites. Every Request is of a new connection, over
//! channels that are open, and every connection is closed: a Close counts for the rate, and not for the time of a Request.
//!
//! NSM's client and endpoint take most of the time of a machine with few cores, so the daemons are measured with a plain client
//! and endpoint, too, which do no more than the wire asks of them.

mod ends;

use anyhow::{Context as _, ensure};
use carrick_tests::lab::{MESH, Mesh, NSM, Namespace, NsmWay, needs, nsm_interop, shows};
use clap::Parser;
use serde_json::Value;

use self::ends::Load;
use crate::beside_nsm::{BesideNsm, Whose};

/// Requests from one domain to another, beside Network Service Mesh's own chain of parts.
#[derive(Parser)]
pub(crate) struct Requests {
    /// Rounds; medians are reported.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Seconds of one measurement.
    #[arg(long, default_value_t = 5)]
    seconds: u64,
    /// Requests under way at once while the rate is measured.
    #[arg(long, default_value_t = 16)]
    workers: usize,
    /// Prints JSON.
    #[arg(long)]
    json: bool,
}

/// What is measured: how it is called, its unit, whether by one client alone, and the program's word for it.
const FIGURES: [(&str, &str, bool, &str); 4] = [
    ("one client, p50", "ms", true, "p50_ms"),
    ("one client, p99", "ms", true, "p99_ms"),
    ("many clients", "Requests/s", false, "rate_per_s"),
    ("many clients, p50", "ms", false, "p50_ms"),
];

/// A figure of a load.
type OfLoad = fn(&Load) -> f64;

/// The same with plain ends.
const PLAIN: [(&str, &str, bool, OfLoad); 4] = [
    ("plain ends, one client, p50", "ms", true, |load| load.p50),
    ("plain ends, one client, p99", "ms", true, |load| load.p99),
    ("plain ends, many clients", "Requests/s", false, |load| load.rate),
    ("plain ends, many clients, p50", "ms", false, |load| load.p50),
];

impl Requests {
    pub(crate) fn run(&self) -> anyhow::Result<()> {
        ensure!(self.rounds > 0 && self.seconds > 0 && self.workers > 0, "there is nothing to measure");
        ensure!(
            needs(&[MESH, NSM].concat()),
            "this needs root, Go and the programs that tests/setup.sh installs"
        );
        let mesh = Mesh::start(|a| a, |b| b.line(&shows("cloud.test")));
        let through_carrick = NsmWay::through(&mesh).flags();

        let rows = FIGURES.map(|(name, unit, ..)| (name, unit));
        let plain = PLAIN.map(|(name, unit, ..)| (name, unit));
        let mut table = BesideNsm::new(rows.into_iter().chain(plain));
        for round in 1..=self.rounds {
            for (whose, way) in [(Whose::Nsm, &[][..]), (Whose::Carrick, &through_carrick)] {
                eprintln!("round {round} of {}: {whose}", self.rounds);
                for alone in [true, false] {
                    let figures = self.load(mesh.a.ns(), way, if alone { 1 } else { self.workers })?;
                    for (row, (.., with, figure)) in FIGURES.iter().enumerate() {
                        if *with == alone {
                            table.add(row, whose, &figures[*figure])?;
                        }
                    }
                }
            }
            eprintln!("round {round} of {}: carrick, with plain ends", self.rounds);
            for alone in [true, false] {
                let load = ends::load(&mesh, if alone { 1 } else { self.workers }, self.seconds)?;
                for (row, (.., with, figure)) in PLAIN.iter().enumerate() {
                    if *with == alone {
                        table.add(FIGURES.len() + row, Whose::Carrick, &figure(&load).into())?;
                    }
                }
            }
        }
        let head =
            format!("{} clients where there are many, medians of {} rounds", self.workers, self.rounds);
        table.show(&head, self.json);
        Ok(())
    }

    /// Runs the load once; without a way, through NSM's own parts.
    fn load(&self, ns: &Namespace, way: &[String], workers: usize) -> anyhow::Result<Value> {
        let (workers, time) = (workers.to_string(), format!("{}s", self.seconds));
        let mut args = vec!["load", "requests", "-workers", &workers, "-for", &time];
        args.extend(way.iter().map(String::as_str));
        let line = nsm_interop(ns, &args).pop().context("the load says nothing")?;
        Ok(line["figures"].clone())
    }
}
