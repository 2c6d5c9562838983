//! `carrick-bench registry`: a daemon's registry over mutual TLS on loopback, called as NSM's clients call it.
//!
//! Client and daemon share the cores, so a rate is that of both together, and a time is one of a loaded machine. What is
//! registered is durable when it is answered.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use carrick_proto::registry::{NetworkServiceEndpoint, NetworkServiceLabels};
use carrick_tests::{
    lab::{Daemon, Signal, binary},
    workload::Workload,
};
use clap::Parser;
use futures::{StreamExt as _, stream};
use tokio::sync::mpsc;

use crate::report::{median, ms, print_rows, quantiles};

/// Calls under way at a time while rates are measured: a few dozen managers of hosts.
const IN_FLIGHT: usize = 64;
/// Callers, each with a connection.
pub(crate) const CALLERS: usize = 12;
/// The daemon's domain.
pub(crate) const DOMAIN: &str = "own.test";
/// The daemon's config, in its directory.
pub(crate) const CONFIG: &str = "carrick.yaml";
/// How long a start or a stop may take.
const START: Duration = Duration::from_secs(20);
/// Endpoints that can be registered well within the minute that their leases last.
const MAX_ENDPOINTS: usize = 150_000;
/// Endpoints of one service.
const PER_SERVICE: usize = 10;
/// Watches of one caller (`MAX_WATCHES_PER_CALLER` is 1,000).
const WATCHES_PER_CALLER: usize = 500;

/// Measures the registry of one daemon.
#[derive(Parser)]
pub(crate) struct Registry {
    /// Endpoints that are registered.
    #[arg(long, default_value_t = 100_000)]
    endpoints: usize,
    /// Finds by name in a second, while their times are measured.
    #[arg(long, default_value_t = 2_000)]
    finds: u32,
    /// Watchers that a change has to reach.
    #[arg(long, default_value_t = 1_000)]
    watchers: usize,
    /// Seconds of one measurement.
    #[arg(long, default_value_t = 5.0)]
    seconds: f64,
    /// Rounds, each with a new daemon; medians are reported.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Prints JSON.
    #[arg(long)]
    json: bool,
}

/// A figure of one round: its row, its unit, its value.
type Figure = (&'static str, &'static str, f64);

impl Registry {
    pub(crate) fn run(&self) -> anyhow::Result<()> {
        ensure!(
            self.endpoints >= PER_SERVICE && self.finds > 0 && self.watchers > 0 && self.rounds > 0,
            "there is nothing to measure"
        );
        ensure!(
            self.endpoints <= MAX_ENDPOINTS,
            "more than {MAX_ENDPOINTS} endpoints lapse while they are registered: `carrick-bench stored` measures a full store"
        );
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
        let mut rounds: Vec<Vec<Figure>> = Vec::new();
        for _ in 0..self.rounds {
            rounds.push(runtime.block_on(self.measure())?);
        }
        self.print(&rounds);
        Ok(())
    }

    fn print(&self, rounds: &[Vec<Figure>]) {
        // Every round has the same rows.
        let rows = rounds.iter().take(1).flatten().enumerate().map(|(row, (name, unit, _))| {
            let values: Vec<f64> = rounds.iter().map(|figures| figures[row].2).collect();
            (format!("{name}, {unit}"), median(&values))
        });
        let head = format!(
            "{} endpoints, {} finds/s, {} watchers, medians of {} rounds",
            self.endpoints, self.finds, self.watchers, self.rounds
        );
        print_rows(&head, rows, self.json);
    }

    async fn measure(&self) -> anyhow::Result<Vec<Figure>> {
        let stage = Stage::start()?;
        let empty = stage.daemon.usage().rss;
        let callers = stage.callers().await?;

        let began = Instant::now();
        fill(&callers, 0..self.endpoints).await.context("registering")?;
        let rate = self.endpoints as f64 / began.elapsed().as_secs_f64();
        let full = stage.daemon.usage().rss;
        let renewals = self.renew(&callers).await.context("renewing")?;
        // Leases last a minute: none is to lapse in what follows.
        fill(&callers, 0..self.endpoints).await.context("registering again")?;
        let found = self.find_all(&callers).await.context("finding")?;
        let paced = self.find(&callers).await.context("finding at a rate")?;
        let spread = self.spread(&stage, &callers[0]).await.context("watching")?;
        Ok(vec![
            ("register, new", "/s", rate),
            ("register, renewal", "/s", renewals),
            ("whole daemon", "MiB", full as f64 / f64::from(1 << 20)),
            ("memory of an endpoint", "octets", full.saturating_sub(empty) as f64 / self.endpoints as f64),
            ("find by name", "/s", found),
            ("find by name at a rate, p50", "ms", ms(paced.0)),
            ("find by name at a rate, p99", "ms", ms(paced.1)),
            ("change to all watchers, p50", "ms", ms(spread.0)),
            ("change to all watchers, p99", "ms", ms(spread.1)),
        ])
    }

    /// Renewals per second.
    async fn renew(&self, callers: &[Workload]) -> anyhow::Result<f64> {
        saturate(self.seconds, async |n| {
            let n = n % self.endpoints;
            callers[n % callers.len()].register(endpoint(n)).await?;
            Ok(())
        })
        .await
    }

    /// Finds by name per second.
    async fn find_all(&self, callers: &[Workload]) -> anyhow::Result<f64> {
        saturate(self.seconds, async |n| {
            find_one(&callers[n % callers.len()], name(scattered(n, self.endpoints))).await
        })
        .await
    }

    /// Median and 99th percentile of finds by name, sent at a fixed rate whatever the answers take.
    async fn find(&self, callers: &[Workload]) -> anyhow::Result<(Duration, Duration)> {
        let count = (f64::from(self.finds) * self.seconds) as usize;
        let began = Instant::now() + Duration::from_millis(50);
        let pace = Duration::from_secs(1) / self.finds;
        let calls = stream::iter(0..count).map(|n| {
            let caller = &callers[n % callers.len()];
            async move {
                let due = began + pace * u32::try_from(n).unwrap_or(u32::MAX);
                tokio::time::sleep_until(due.into()).await;
                // A timer of tokio fires up to a millisecond late, which is not the registry's time.
                let sent = Instant::now();
                find_one(caller, name(scattered(n, self.endpoints))).await?;
                Ok(sent.elapsed())
            }
        });
        let times: Vec<anyhow::Result<Duration>> = calls.buffer_unordered(4096).collect().await;
        quantiles(times.into_iter().collect::<anyhow::Result<_>>()?)
    }

    /// Median and 99th percentile of the time from a registration's call to what a watcher is told, over all watchers.
    async fn spread(&self, stage: &Stage, caller: &Workload) -> anyhow::Result<(Duration, Duration)> {
        let change = |round: usize| NetworkServiceEndpoint {
            name: "the-watched-one".into(),
            network_service_names: vec!["watched".into()],
            url: format!("tcp://10.0.0.1:{round}"),
            ..Default::default()
        };
        // NSM's registry answers a watch with its first endpoint, not before there is one.
        caller.register(change(0)).await?;
        let (told, mut news) = mpsc::channel(self.watchers);
        let query =
            NetworkServiceEndpoint { network_service_names: vec!["watched".into()], ..Default::default() };
        let mut watching = tokio::task::JoinSet::new();
        let mut client = caller.clone();
        for n in 0..self.watchers {
            if n % WATCHES_PER_CALLER == 0 {
                client = stage.caller(&format!("watcher-{n}")).await?;
            }
            let told = told.clone();
            let mut answers = client.watch(query.clone()).await?;
            watching.spawn(async move {
                while let Ok(Some(answer)) = answers.message().await {
                    let url = answer.network_service_endpoint.map(|found| found.url);
                    if told.send((Instant::now(), url)).await.is_err() {
                        break;
                    }
                }
            });
        }
        let rounds = (self.seconds * 4.0).ceil() as usize;
        let mut times = Vec::with_capacity(rounds * self.watchers);
        for round in 1..=rounds {
            let (changed, began) = (change(round), Instant::now());
            let url = changed.url.clone();
            caller.register(changed).await?;
            // What else they are told is the state that they began with.
            let mut waiting = self.watchers;
            while waiting > 0 {
                let (at, said) = tokio::time::timeout(Duration::from_secs(30), news.recv())
                    .await
                    .with_context(|| format!("{waiting} watchers are not told"))?
                    .context("a watch ended")?;
                if said.as_ref() == Some(&url) {
                    times.push(at - began);
                    waiting -= 1;
                }
            }
        }
        watching.shutdown().await;
        quantiles(times)
    }
}

/// A daemon without peers, and its directory.
pub(crate) struct Stage {
    pub(crate) daemon: Daemon,
    /// With its config, `carrick.yaml`, and its state.
    pub(crate) directory: PathBuf,
    /// Where it is called.
    pub(crate) registry: SocketAddr,
}

impl Stage {
    pub(crate) fn start() -> anyhow::Result<Self> {
        let directory = std::env::temp_dir().join(format!("carrick-bench-registry-{}", std::process::id()));
        std::fs::create_dir(&directory).with_context(|| format!("making {}", directory.display()))?;
        std::fs::write(
            directory.join(CONFIG),
            format!(
                "domain: {DOMAIN}\nstate_dir: state\n\
                 listen: {{ control: \"127.0.0.1:0\", tunnel: \"127.0.0.1:0\", admin: off }}\nlog: {{ level: \"warn,carrick=info\" }}\n"
            ),
        )?;
        let (daemon, registry) = up(&directory, "carrick")?;
        Ok(Self { daemon, directory, registry })
    }

    /// Stops the daemon, does something with its directory, and starts it again.
    pub(crate) async fn restart_after(
        &mut self,
        meanwhile: impl AsyncFnOnce(&Path) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        self.daemon.signal(Signal::TERM);
        self.daemon.wait(START).context("the daemon does not stop")?;
        meanwhile(&self.directory).await?;
        (self.daemon, self.registry) = up(&self.directory, "again")?;
        Ok(())
    }

    pub(crate) async fn caller(&self, pod: &str) -> anyhow::Result<Workload> {
        Workload::connect(&self.state(), DOMAIN, pod, self.registry).await
    }

    async fn callers(&self) -> anyhow::Result<Vec<Workload>> {
        self.callers_of(self.registry).await
    }

    /// Of a registry with an SVID of this domain.
    pub(crate) async fn callers_of(&self, registry: SocketAddr) -> anyhow::Result<Vec<Workload>> {
        let mut callers = Vec::new();
        for n in 0..CALLERS {
            callers.push(Workload::connect(&self.state(), DOMAIN, &format!("nsmgr-{n}"), registry).await?);
        }
        Ok(callers)
    }

    fn state(&self) -> PathBuf {
        self.directory.join("state")
    }
}

/// Starts the daemon of a directory, with a log of its own; where it is called.
fn up(directory: &Path, log: &str) -> anyhow::Result<(Daemon, SocketAddr)> {
    let mut command = Command::new(binary());
    command.arg("up").arg("-c").arg(directory.join(CONFIG));
    let mut daemon = Daemon::spawn(directory, log, command).stopped_by(Signal::TERM);
    let ready = daemon.wait_for_log("carrick is ready", START);
    let registry = ready.split("control=").nth(1).and_then(|rest| rest.split_whitespace().next());
    let registry = registry.context("the daemon does not say where it listens")?.parse()?;
    Ok((daemon, registry))
}

impl Drop for Stage {
    fn drop(&mut self) {
        let _left_behind = std::fs::remove_dir_all(&self.directory);
    }
}

/// Calls per second for so many seconds, when each client calls again as soon as it has its answer.
pub(crate) async fn saturate(
    seconds: f64,
    call: impl AsyncFn(usize) -> anyhow::Result<()>,
) -> anyhow::Result<f64> {
    let (began, next, done) = (Instant::now(), AtomicUsize::new(0), AtomicUsize::new(0));
    let end = began + Duration::from_secs_f64(seconds);
    let clients = (0..IN_FLIGHT).map(async |_| {
        while Instant::now() < end {
            call(next.fetch_add(1, Ordering::Relaxed)).await?;
            done.fetch_add(1, Ordering::Relaxed);
        }
        anyhow::Ok(())
    });
    futures::future::try_join_all(clients).await?;
    Ok(done.load(Ordering::Relaxed) as f64 / began.elapsed().as_secs_f64())
}

/// Registers endpoints; each always by the same caller.
async fn fill(callers: &[Workload], range: std::ops::Range<usize>) -> anyhow::Result<()> {
    let owners = Arc::new(callers.to_vec());
    let calls = stream::iter(range).map(|n| {
        let owners = Arc::clone(&owners);
        async move { owners[n % owners.len()].register(endpoint(n)).await.map(drop) }
    });
    let mut calls = calls.buffer_unordered(IN_FLIGHT);
    while let Some(answer) = calls.next().await {
        answer?;
    }
    Ok(())
}

pub(crate) async fn find_one(caller: &Workload, name: String) -> anyhow::Result<()> {
    let found = caller.find(NetworkServiceEndpoint { name: name.clone(), ..Default::default() }).await?;
    ensure!(found.len() == 1, "{} endpoints are called {name}", found.len());
    Ok(())
}

/// Number `n` of an order that visits all of `among` far apart.
pub(crate) fn scattered(n: usize, among: usize) -> usize {
    n.wrapping_mul(7919) % among
}

/// What [`endpoint`] is called.
pub(crate) fn name(n: usize) -> String {
    format!("endpoint-{n}")
}

/// As NSM registers them: a service, some labels, the manager's URL.
pub(crate) fn endpoint(n: usize) -> NetworkServiceEndpoint {
    let service = format!("service-{}", n / PER_SERVICE);
    let labels = [("app", "nse"), ("nodeName", ["node-a", "node-b", "node-c"][n % 3])];
    let labels = labels.into_iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect();
    NetworkServiceEndpoint {
        name: name(n),
        network_service_names: vec![service.clone()],
        network_service_labels: [(
            service,
            NetworkServiceLabels { labels, ..NetworkServiceLabels::default() },
        )]
        .into(),
        url: format!("tcp://10.0.{}.{}:5001", n % 1000 / 250, n % 250),
        ..Default::default()
    }
}
