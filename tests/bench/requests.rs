//! `carrick-bench requests`: Requests of NSM's wire from a client in one domain to an endpoint in another, through two
//! Carrick daemons and through NSM's own managers, forwarders and proxies, in turns.
//!
//! Client and endpoint are the same for both: the Go program of `tests/interop/nsm`. NSM's parts are in that process, as its
//! sandbox has them, and the daemons are processes of their own in two sites. Every Request is of a new connection, over
//! channels that are open, and every connection is closed: a Close counts for the rate, and not for the time of a Request.

use anyhow::{Context as _, ensure};
use carrick_tests::lab::{MESH, Mesh, NSM, Namespace, PORT, Workload, needs, nsm_interop};
use clap::Parser;
use serde_json::{Value, json};

use crate::report::median;

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

impl Requests {
    pub(crate) fn run(&self) -> anyhow::Result<()> {
        ensure!(self.rounds > 0 && self.seconds > 0 && self.workers > 0, "there is nothing to measure");
        ensure!(
            needs(&[MESH, NSM].concat()),
            "this needs root, Go and the programs that tests/setup.sh installs"
        );
        let shows = "registry: { show: [ { who: [\"spiffe://cloud.test/**\"], services: [\"*\"] } ] }";
        let mesh = Mesh::start(|a| a, |b| b.line(shows));
        let through_carrick = flags(&mesh)?;

        let mut all: [[Vec<f64>; 2]; FIGURES.len()] = Default::default();
        for round in 1..=self.rounds {
            for (column, way) in [&[][..], &through_carrick].into_iter().enumerate() {
                eprintln!("round {round} of {}: {}", self.rounds, ["nsm", "carrick"][column]);
                for alone in [true, false] {
                    let figures = self.load(mesh.a.ns(), way, if alone { 1 } else { self.workers })?;
                    for (row, (.., with, figure)) in FIGURES.iter().enumerate() {
                        if *with == alone {
                            all[row][column].push(figures[*figure].as_f64().context("a figure is missing")?);
                        }
                    }
                }
            }
        }
        self.show(&all);
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

    fn show(&self, all: &[[Vec<f64>; 2]]) {
        let rows = FIGURES.iter().zip(all).map(|((name, unit, ..), [nsm, carrick])| {
            let (nsm, carrick) = (median(nsm), median(carrick));
            json!({ "name": name, "unit": unit, "nsm": nsm, "carrick": carrick, "ratio": carrick / nsm })
        });
        if self.json {
            println!("{:#}", rows.collect::<Value>());
            return;
        }
        println!("{} clients where there are many, medians of {} rounds", self.workers, self.rounds);
        println!("  {:<30} {:>10} {:>10} {:>8}", "", "nsm", "carrick", "ratio");
        for row in rows {
            let text = |key: &str| row[key].as_str().unwrap_or_default().to_owned();
            let number = |key: &str| row[key].as_f64().unwrap_or(f64::NAN);
            let name = format!("{}, {}", text("name"), text("unit"));
            println!(
                "  {name:<30} {:>10.2} {:>10.2} {:>8.2}",
                number("nsm"),
                number("carrick"),
                number("ratio")
            );
        }
    }
}

/// The way from `cloud.test` to `onprem.test`, as the program takes it. The endpoint's process stands in site a, but is
/// `onprem.test`'s by its SVID.
fn flags(mesh: &Mesh) -> anyhow::Result<Vec<String>> {
    let client = Workload::of(&mesh.a, "cloud.test", "nsc");
    let endpoint = Workload::of(&mesh.b, "onprem.test", "nse");
    let dir = |who: &Workload| who.dir().to_str().map(str::to_owned).context("a path that is not UTF-8");
    Ok(vec![
        "-trust".to_owned(),
        format!("cloud.test={}", mesh.a.bundle().display()),
        "-trust".to_owned(),
        format!("onprem.test={}", mesh.b.bundle().display()),
        "-manager".to_owned(),
        format!("tcp://{}", mesh.lab.a.at(PORT)),
        "-registry".to_owned(),
        format!("tcp://{}", mesh.lab.b.at(PORT)),
        "-domain".to_owned(),
        "onprem.test".to_owned(),
        "-endpoint-host".to_owned(),
        mesh.lab.a.addr.to_string(),
        "-client".to_owned(),
        dir(&client)?,
        "-endpoint".to_owned(),
        dir(&endpoint)?,
    ])
}
