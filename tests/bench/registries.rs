//! `carrick-bench registries`: a daemon's registry beside Network Service Mesh's memory registry, in turns, with one client
//! for both: the Go program of `tests/interop/nsm`.
//!
//! Both speak mutual TLS with SVIDs of one CA and judge the same tokens. What Carrick answers is durable; NSM's registry
//! keeps nothing. Client and registry share the cores, so a rate is that of both together: quote the ratios. NSM's runs only
//! while it is measured, for it is busy with its endpoints when nobody calls it.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, ensure};
use carrick_tests::lab::{Daemon, Signal, binary, nsm_interop_here, nsm_interop_program};
use clap::Parser;
use serde_json::{Value, json};

use crate::{registry, report::median};

/// The registry of a daemon beside NSM's memory registry.
#[derive(Parser)]
pub(crate) struct Registries {
    /// Rounds; medians are reported.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Endpoints that are registered, and found among. NSM's registry looks at all of them for each registration: ten times as
    /// many take it a hundred times as long.
    #[arg(long, default_value_t = 2_000)]
    endpoints: usize,
    /// Watchers that a change has to reach.
    #[arg(long, default_value_t = 1_000)]
    watchers: usize,
    /// Seconds for which endpoints are found.
    #[arg(long, default_value_t = 5)]
    seconds: u64,
    /// Prints JSON.
    #[arg(long)]
    json: bool,
}

/// What is measured, by the program's word for it, its figure, and the unit.
const FIGURES: [(&str, &str, &str, &str); 5] = [
    ("register", "rate_per_s", "register", "/s"),
    ("find", "rate_per_s", "find by name", "/s"),
    ("find", "p99_ms", "find by name, p99", "ms"),
    ("watch", "p50_ms", "change to all watchers, p50", "ms"),
    ("watch", "p99_ms", "change to all watchers, p99", "ms"),
];

impl Registries {
    pub(crate) fn run(&self) -> anyhow::Result<()> {
        ensure!(self.rounds > 0 && self.endpoints > 0 && self.watchers > 0, "there is nothing to measure");
        let stage = registry::Stage::start()?;
        let issued = Issued::of(&stage)?;
        let own = format!("tcp://{}", stage.registry);
        let mut all: Vec<[Vec<f64>; 2]> = vec![Default::default(); FIGURES.len()];
        for round in 1..=self.rounds {
            eprintln!("round {round} of {}: nsm", self.rounds);
            let nsm = Nsm::start(&stage, &issued, round)?;
            self.measure(&nsm.url, &issued, &mut all, 0)?;
            drop(nsm);
            eprintln!("round {round} of {}: carrick", self.rounds);
            self.measure(&own, &issued, &mut all, 1)?;
        }
        self.show(&all);
        Ok(())
    }

    /// Puts every load on a registry.
    fn measure(
        &self,
        url: &str,
        issued: &Issued,
        all: &mut [[Vec<f64>; 2]],
        column: usize,
    ) -> anyhow::Result<()> {
        for what in ["register", "find", "watch"] {
            let answer = self.load(what, url, issued)?;
            for (row, (load, figure, ..)) in FIGURES.iter().enumerate() {
                if *load == what {
                    all[row][column].push(answer[*figure].as_f64().context("a figure is missing")?);
                }
            }
        }
        Ok(())
    }

    /// Runs one load and returns its figures.
    fn load(&self, what: &str, url: &str, issued: &Issued) -> anyhow::Result<Value> {
        let (endpoints, watchers, time) =
            (self.endpoints.to_string(), self.watchers.to_string(), format!("{}s", self.seconds));
        let mut args: Vec<String> = ["load", what, "-registry", url].map(str::to_owned).into();
        args.extend(["-endpoints", &endpoints, "-watchers", &watchers, "-for", &time].map(str::to_owned));
        args.extend(issued.flags("caller", "manager")?);
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let mut lines = nsm_interop_here(&args);
        let line = lines.pop().context("the load says nothing")?;
        Ok(line["figures"].clone())
    }

    fn show(&self, all: &[[Vec<f64>; 2]]) {
        let rows = FIGURES
            .iter()
            .zip(all)
            .map(|((.., name, unit), [nsm, carrick])| (*name, *unit, median(nsm), median(carrick)));
        if self.json {
            let rows: Vec<Value> = rows
                .map(|(name, unit, nsm, carrick)| {
                    json!({ "name": name, "unit": unit, "nsm": nsm, "carrick": carrick, "ratio": carrick / nsm })
                })
                .collect();
            println!("{:#}", Value::Array(rows));
            return;
        }
        let (endpoints, watchers, rounds) = (self.endpoints, self.watchers, self.rounds);
        println!("{endpoints} endpoints, {watchers} watchers, medians of {rounds} rounds");
        println!("  {:<30} {:>10} {:>10} {:>8}", "", "nsm", "carrick", "ratio");
        for (name, unit, nsm, carrick) in rows {
            let digits = if unit == "ms" { 2 } else { 0 };
            println!(
                "  {:<30} {nsm:>10.digits$} {carrick:>10.digits$} {:>8.2}",
                format!("{name}, {unit}"),
                carrick / nsm
            );
        }
    }
}

/// NSM's memory registry, while it runs.
struct Nsm {
    url: String,
    _serves: Daemon,
}

impl Nsm {
    fn start(stage: &registry::Stage, issued: &Issued, round: usize) -> anyhow::Result<Self> {
        let mut command = Command::new(nsm_interop_program());
        command.arg("serve-registry").args(issued.flags("own", "registry")?);
        let mut serves =
            Daemon::spawn(&stage.directory, &format!("nsm-{round}"), command).stopped_by(Signal::TERM);
        let line = serves.wait_for_log("\"url\"", Duration::from_secs(10));
        let said: Value = serde_json::from_str(&line)?;
        let url = said["url"].as_str().context("NSM's registry does not say where it listens")?.to_owned();
        Ok(Self { url, _serves: serves })
    }
}

/// SVIDs of the daemon's own CA, in the form that the Go program reads.
struct Issued {
    directory: PathBuf,
    trust: String,
}

impl Issued {
    fn of(stage: &registry::Stage) -> anyhow::Result<Self> {
        let bundle = carrick(&stage.directory, &["trust", "export"])?;
        let file = stage.directory.join("own.json");
        fs::write(&file, bundle)?;
        for name in ["registry", "manager"] {
            let out = stage.directory.join(name);
            let id = format!("spiffe://own.test/{name}");
            let path = out.to_str().context("a path that is not UTF-8")?;
            carrick(&stage.directory, &["svid", "issue", "--id", &id, "--out", path])?;
            fs::rename(out.join("svid_key.pem"), out.join("key.pem"))?;
        }
        Ok(Self { directory: stage.directory.clone(), trust: format!("own.test={}", file.display()) })
    }

    /// `-ROLE DIR -trust FILE`.
    fn flags(&self, role: &str, name: &str) -> anyhow::Result<[String; 4]> {
        let dir = self.directory.join(name).into_os_string().into_string();
        let dir = dir.ok().context("a path that is not UTF-8")?;
        Ok([format!("-{role}"), dir, "-trust".to_owned(), self.trust.clone()])
    }
}

/// What `carrick ARGS` prints.
fn carrick(directory: &Path, args: &[&str]) -> anyhow::Result<Vec<u8>> {
    let output = Command::new(binary()).args(args).arg("-c").arg(directory.join("carrick.yaml")).output()?;
    ensure!(output.status.success(), "carrick {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(output.stdout)
}
