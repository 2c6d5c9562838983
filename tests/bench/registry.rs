//! `carrick-bench registry`: a daemon's registry over mutual TLS on loopback, called as NSM's clients call it.
//!
//! Client and daemon share the cores, so a rate is that of both together, and a time is one of a loaded machine. What is
//! registered is durable when it is answered.

use std::{
    net::SocketAddr,
    path::PathBuf,
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
use serde_json::json;
use tokio::sync::mpsc;

/// Calls under way at a time while rates are measured: a few dozen managers of hosts.
const IN_FLIGHT: usize = 64;
/// Callers, each with a connection: as many as it takes for 1,000,000 registrations at 100,000 from each.
const CALLERS: usize = 12;
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
    /// Finds by name in a second.
    #[arg(long, default_value_t = 2_000)]
    finds: u32,
    /// Watchers that a change has to reach.
    #[arg(long, default_value_t = 1_000)]
    watchers: usize,
    /// Seconds of one measurement.
    #[arg(long, default_value_t = 5.0)]
    seconds: f64,
    /// Prints JSON.
    #[arg(long)]
    json: bool,
}

impl Registry {
    pub(crate) fn run(&self) -> anyhow::Result<()> {
        ensure!(
            self.endpoints >= PER_SERVICE && self.finds > 0 && self.watchers > 0,
            "there is nothing to measure"
        );
        tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(self.measure())
    }

    async fn measure(&self) -> anyhow::Result<()> {
        let stage = Stage::start()?;
        let empty = stage.daemon.usage().rss;
        let callers = stage.callers().await?;

        let began = Instant::now();
        fill(&callers, 0..self.endpoints).await?;
        let rate = self.endpoints as f64 / began.elapsed().as_secs_f64();
        let memory = stage.daemon.usage().rss.saturating_sub(empty) / self.endpoints as u64;
        let renewals = self.renew(&callers).await?;
        // Leases last a minute; what lapsed while a large registry was filled is registered again.
        fill(&callers, 0..self.endpoints.min(100_000)).await?;
        let finds = self.find(&callers).await?;
        let spread = self.spread(&stage, &callers[0]).await?;

        let figures = [
            ("register, new", format!("{rate:.0} /s"), json!(rate)),
            ("register, renewal", format!("{renewals:.0} /s"), json!(renewals)),
            ("memory of an endpoint", format!("{memory} octets"), json!(memory)),
            ("find by name, p50", show(finds.0), json!(finds.0.as_secs_f64())),
            ("find by name, p99", show(finds.1), json!(finds.1.as_secs_f64())),
            ("change to all watchers, p50", show(spread.0), json!(spread.0.as_secs_f64())),
            ("change to all watchers, p99", show(spread.1), json!(spread.1.as_secs_f64())),
        ];
        if self.json {
            let object: serde_json::Map<_, _> =
                figures.into_iter().map(|(name, _, value)| (name.to_owned(), value)).collect();
            println!("{:#}", serde_json::Value::Object(object));
        } else {
            let (endpoints, finds, watchers) = (self.endpoints, self.finds, self.watchers);
            println!("{endpoints} endpoints, {finds} finds/s, {watchers} watchers");
            for (name, shown, _) in figures {
                println!("  {name:<28} {shown:>14}");
            }
        }
        Ok(())
    }

    /// Renewals per second.
    async fn renew(&self, callers: &[Workload]) -> anyhow::Result<f64> {
        let (began, done) = (Instant::now(), AtomicUsize::new(0));
        let end = began + Duration::from_secs_f64(self.seconds);
        let clients = (0..IN_FLIGHT).map(|client| {
            let done = &done;
            async move {
                for n in (client..self.endpoints).step_by(IN_FLIGHT).cycle() {
                    if Instant::now() >= end {
                        break;
                    }
                    callers[n % callers.len()].register(endpoint(n)).await?;
                    done.fetch_add(1, Ordering::Relaxed);
                }
                anyhow::Ok(())
            }
        });
        futures::future::try_join_all(clients).await?;
        Ok(done.into_inner() as f64 / began.elapsed().as_secs_f64())
    }

    /// Median and 99th percentile of finds by name, sent at a fixed rate whatever the answers take.
    async fn find(&self, callers: &[Workload]) -> anyhow::Result<(Duration, Duration)> {
        let count = (f64::from(self.finds) * self.seconds) as usize;
        let began = Instant::now() + Duration::from_millis(50);
        let pace = Duration::from_secs(1) / self.finds;
        let known = self.endpoints.min(100_000);
        let calls = stream::iter(0..count).map(|n| {
            let caller = &callers[n % callers.len()];
            async move {
                let due = began + pace * u32::try_from(n).unwrap_or(u32::MAX);
                tokio::time::sleep_until(due.into()).await;
                // A timer of tokio fires up to a millisecond late, which is not the registry's time.
                let sent = Instant::now();
                let name = format!("endpoint-{}", n.wrapping_mul(7919) % known);
                let found = caller.find(NetworkServiceEndpoint { name, ..Default::default() }).await?;
                ensure!(found.len() == 1, "{} endpoints of one name", found.len());
                Ok(sent.elapsed())
            }
        });
        let times: Vec<anyhow::Result<Duration>> = calls.buffer_unordered(4096).collect().await;
        quantiles(times.into_iter().collect::<anyhow::Result<_>>()?)
    }

    /// Median and 99th percentile of the time from a registration's call to what a watcher is told, over all watchers.
    async fn spread(&self, stage: &Stage, caller: &Workload) -> anyhow::Result<(Duration, Duration)> {
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
                while let Ok(Some(_)) = answers.message().await {
                    if told.send(Instant::now()).await.is_err() {
                        break;
                    }
                }
            });
        }
        let rounds = (self.seconds * 4.0).ceil() as usize;
        let mut times = Vec::with_capacity(rounds * self.watchers);
        for _ in 0..rounds {
            let mut changed = endpoint(0);
            changed.name = "the-watched-one".into();
            changed.network_service_names = vec!["watched".into()];
            let began = Instant::now();
            caller.register(changed).await?;
            for _ in 0..self.watchers {
                let at = tokio::time::timeout(Duration::from_secs(30), news.recv())
                    .await?
                    .context("a watch ended")?;
                times.push(at - began);
            }
        }
        watching.shutdown().await;
        quantiles(times)
    }
}

/// A daemon without peers, and its directory.
pub(crate) struct Stage {
    daemon: Daemon,
    /// With its config, `carrick.yaml`, and its state.
    pub(crate) directory: PathBuf,
    /// Where it is called.
    pub(crate) registry: SocketAddr,
}

impl Stage {
    pub(crate) fn start() -> anyhow::Result<Self> {
        let directory = std::env::temp_dir().join(format!("carrick-bench-registry-{}", std::process::id()));
        std::fs::create_dir(&directory).with_context(|| format!("making {}", directory.display()))?;
        let config = directory.join("carrick.yaml");
        std::fs::write(
            &config,
            "domain: own.test\nstate_dir: state\n\
             listen: { control: \"127.0.0.1:0\", tunnel: \"127.0.0.1:0\", admin: off }\nlog: { level: \"warn,carrick=info\" }\n",
        )?;
        let mut command = Command::new(binary());
        command.arg("up").arg("-c").arg(&config);
        let mut daemon = Daemon::spawn(&directory, "carrick", command).stopped_by(Signal::TERM);
        let ready = daemon.wait_for_log("carrick is ready", Duration::from_secs(20));
        let registry = ready.split("control=").nth(1).and_then(|rest| rest.split_whitespace().next());
        let registry = registry.context("the daemon does not say where it listens")?.parse()?;
        Ok(Self { daemon, directory, registry })
    }

    async fn caller(&self, pod: &str) -> anyhow::Result<Workload> {
        Workload::connect(&self.state(), "own.test", pod, self.registry).await
    }

    async fn callers(&self) -> anyhow::Result<Vec<Workload>> {
        let mut callers = Vec::new();
        for n in 0..CALLERS {
            callers.push(self.caller(&format!("nsmgr-{n}")).await?);
        }
        Ok(callers)
    }

    fn state(&self) -> PathBuf {
        self.directory.join("state")
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        let _left_behind = std::fs::remove_dir_all(&self.directory);
    }
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

/// As NSM registers them: a service, some labels, the manager's URL.
fn endpoint(n: usize) -> NetworkServiceEndpoint {
    let service = format!("service-{}", n / PER_SERVICE);
    let labels = [("app", "nse"), ("nodeName", ["node-a", "node-b", "node-c"][n % 3])];
    let labels = labels.into_iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect();
    NetworkServiceEndpoint {
        name: format!("endpoint-{n}"),
        network_service_names: vec![service.clone()],
        network_service_labels: [(service, NetworkServiceLabels { labels })].into(),
        url: format!("tcp://10.0.{}.{}:5001", n % 1000 / 250, n % 250),
        ..Default::default()
    }
}

fn quantiles(mut times: Vec<Duration>) -> anyhow::Result<(Duration, Duration)> {
    ensure!(!times.is_empty(), "nothing was measured");
    times.sort_unstable();
    let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize];
    Ok((at(0.5), at(0.99)))
}

fn show(time: Duration) -> String {
    format!("{:.3} ms", time.as_secs_f64() * 1e3)
}
