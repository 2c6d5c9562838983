//! `carrick-bench registries`: a daemon's registry beside Network Service Mesh's memory registry, in turns, with one client
//! for both: the Go program of `tests/interop/nsm`. It takes more of the cores than either registry for a find, so the
//! client of `carrick-bench registry` finds from both, too.
//!
//! Both speak mutual TLS with SVIDs of one CA and judge the same tokens. What Carrick answers is durable; NSM's registry
//! keeps nothing. Client and registry share the cores, so a rate is that of both together: quote the ratios. NSM's runs only
//! while it is measured, for it is busy with its endpoints when nobody calls it.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, ensure};
use carrick_tests::lab::{Daemon, Signal, binary, nsm_interop_here, nsm_interop_program};
use clap::Parser;
use serde_json::{Value, json};

use crate::{
    beside_nsm::{BesideNsm, Whose},
    registry::{self, CONFIG, DOMAIN},
};

/// The registry of a daemon beside NSM's memory registry.
#[derive(Parser)]
pub(crate) struct Registries {
    /// Rounds; medians are reported.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Endpoints that are registered. NSM's registry looks at all of them for each registration: ten times as many take it a
    /// hundred times as long, and they last a minute.
    #[arg(long, default_value_t = 1_000)]
    endpoints: usize,
    /// Endpoints that one is found among. NSM's registry takes them without judging them, and keeps them for an hour.
    #[arg(long, default_value_t = 10_000)]
    among: usize,
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
const FIGURES: [(&str, &str, &str, &str); 6] = [
    ("register", "rate_per_s", "register", "/s"),
    ("find", "rate_per_s", "find by name", "/s"),
    ("find", "p99_ms", "find by name, p99", "ms"),
    (PLAIN, "rate_per_s", "plain client, find by name", "/s"),
    ("watch", "p50_ms", "change to all watchers, p50", "ms"),
    ("watch", "p99_ms", "change to all watchers, p99", "ms"),
];

/// A load of our own client.
const PLAIN: &str = "plain";

impl Registries {
    pub(crate) fn run(&self) -> anyhow::Result<()> {
        ensure!(self.rounds > 0 && self.endpoints > 0 && self.watchers > 0, "there is nothing to measure");
        let stage = registry::Stage::start()?;
        let issued = Issued::of(&stage)?;
        let own = format!("tcp://{}", stage.registry);
        let mut table = BesideNsm::new(FIGURES.map(|(.., name, unit)| (name, unit)));
        for round in 1..=self.rounds {
            eprintln!("round {round} of {}: {}", self.rounds, Whose::Nsm);
            for filled in [false, true] {
                let nsm = Nsm::start(&stage, &issued, &format!("nsm-{round}-{filled}"), filled)?;
                self.measure(&stage, &nsm.url, &issued, &mut table, Whose::Nsm, filled)?;
            }
            eprintln!("round {round} of {}: {}", self.rounds, Whose::Carrick);
            for filled in [false, true] {
                self.measure(&stage, &own, &issued, &mut table, Whose::Carrick, filled)?;
            }
        }
        let head = format!(
            "{} endpoints registered, found among {}, {} watchers, medians of {} rounds",
            self.endpoints, self.among, self.watchers, self.rounds
        );
        table.show(&head, self.json);
        Ok(())
    }

    /// Puts a registry under load: registrations and watches, or, filled before, finds.
    fn measure(
        &self,
        stage: &registry::Stage,
        url: &str,
        issued: &Issued,
        table: &mut BesideNsm,
        whose: Whose,
        filled: bool,
    ) -> anyhow::Result<()> {
        let loads: &[&str] = if filled { &["find", PLAIN] } else { &["register", "watch"] };
        if filled {
            self.load("register", url, issued, self.among)?;
        }
        for what in loads {
            let endpoints = if filled { self.among } else { self.endpoints };
            let answer = match *what {
                PLAIN => json!({ "rate_per_s": self.find_plainly(stage, url)? }),
                what => self.load(what, url, issued, endpoints)?,
            };
            for (row, (load, figure, ..)) in FIGURES.iter().enumerate() {
                if load == what {
                    table.add(row, whose, &answer[*figure])?;
                }
            }
        }
        Ok(())
    }

    /// Finds by name per second, of our own client.
    fn find_plainly(&self, stage: &registry::Stage, url: &str) -> anyhow::Result<f64> {
        let registry: SocketAddr = url.strip_prefix("tcp://").unwrap_or(url).parse()?;
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
        runtime.block_on(async {
            let callers = stage.callers_of(registry).await?;
            registry::saturate(self.seconds as f64, async |n| {
                // As the Go program calls them.
                let name = format!("load-{:07}", registry::scattered(n, self.among));
                registry::find_one(&callers[n % callers.len()], name).await
            })
            .await
        })
    }

    /// Runs one load and returns its figures.
    fn load(&self, what: &str, url: &str, issued: &Issued, endpoints: usize) -> anyhow::Result<Value> {
        let (endpoints, watchers, time) =
            (endpoints.to_string(), self.watchers.to_string(), format!("{}s", self.seconds));
        let mut args: Vec<String> = ["load", what, "-registry", url].map(str::to_owned).into();
        args.extend(["-endpoints", &endpoints, "-watchers", &watchers, "-for", &time].map(str::to_owned));
        args.extend(issued.flags("caller", "manager")?);
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let mut lines = nsm_interop_here(&args);
        let line = lines.pop().context("the load says nothing")?;
        Ok(line["figures"].clone())
    }
}

/// NSM's memory registry, while it runs.
struct Nsm {
    url: String,
    _serves: Daemon,
}

impl Nsm {
    /// One that is to be filled is an open one.
    fn start(stage: &registry::Stage, issued: &Issued, log: &str, open: bool) -> anyhow::Result<Self> {
        let mut command = Command::new(nsm_interop_program());
        command.arg("serve-registry").args(issued.flags("own", "registry")?);
        if open {
            command.arg("-open");
        }
        let mut serves = Daemon::spawn(&stage.directory, log, command).stopped_by(Signal::TERM);
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
            let id = format!("spiffe://{DOMAIN}/{name}");
            let path = out.to_str().context("a path that is not UTF-8")?;
            carrick(&stage.directory, &["svid", "issue", "--id", &id, "--out", path])?;
            fs::rename(out.join("svid_key.pem"), out.join("key.pem"))?;
        }
        Ok(Self { directory: stage.directory.clone(), trust: format!("{DOMAIN}={}", file.display()) })
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
    let output = Command::new(binary()).args(args).arg("-c").arg(directory.join(CONFIG)).output()?;
    ensure!(output.status.success(), "carrick {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(output.stdout)
}
