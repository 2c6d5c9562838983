//! `carrick demo`: two domains on loopback, a real service in one, a client in the other.
//!
//! Nothing is shown that is not done: two daemons as `carrick up` makes them, with roots of their own, bundles exchanged
//! through files, records served by the embedded DNS server of the one and asked by the other, and a client that knows
//! only the service's name. It needs no root, no network and no config, and leaves nothing behind.
//!
//! | module | is for |
//! |---|---|
//! | [`scene`] | the two domains |
//! | [`service`] | the HTTP service behind the export |
//! | [`client`] | the client: asks the DNS, connects, checks what comes |

mod client;
mod scene;
mod service;

use std::{
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};

use self::{client::Client, scene::Scene};
use crate::{
    app::{self, Signals},
    cli::{output, quantity},
};

/// The unattended run ends by then, one way or the other.
const LIMIT: Duration = Duration::from_secs(55);
/// Octets of the transfer that is verified, in each direction.
pub(crate) const TRANSFER: usize = 64 << 20;
/// Short flows that are verified, each on a TCP connection of its own.
const SHORT_FLOWS: usize = 1_000;
/// How many of them at once.
const AT_ONCE: usize = 16;
/// Requests behind the latency figure.
const REQUESTS: usize = 500;

/// Runs the demo; with `check` unattended, to a verdict.
pub(crate) fn run(check: bool) -> anyhow::Result<ExitCode> {
    let runtime = app::runtime()?;
    let result = runtime.block_on(async {
        let mut signals = Signals::new();
        let mut story = Story::new();
        tokio::select! {
            result = tokio::time::timeout(LIMIT, tell(&mut story)) => {
                let scene = result.with_context(|| format!("the demo hangs after `{}`", story.last))??;
                if !check {
                    invite(&scene)?;
                    signals.stop().await;
                }
                scene.end().await;
                if check { output::print("all checks passed\n") } else { Ok(()) }
            }
            () = signals.stop() => Ok(()),
        }
    });
    runtime.shutdown_timeout(Duration::from_secs(1));
    result.map(|()| ExitCode::SUCCESS)
}

/// Prints each step with the time it took.
struct Story {
    begun: Instant,
    last: String,
}

impl Story {
    fn new() -> Self {
        Self { begun: Instant::now(), last: "the start".to_owned() }
    }

    fn step(&mut self, text: impl Into<String>) -> anyhow::Result<()> {
        self.last = text.into();
        let took = u64::try_from(self.begun.elapsed().as_micros()).unwrap_or(u64::MAX);
        output::print(&format!("{:>9}  {}\n", quantity::micros(took), self.last))?;
        self.begun = Instant::now();
        Ok(())
    }
}

async fn tell(story: &mut Story) -> anyhow::Result<Scene> {
    let mut scene = Scene::prepare().await?;
    story.step(
        "two domains, cloud.demo and onprem.demo, each with a root of its own; they exchanged bundles",
    )?;
    scene.start_onprem().await?;
    story.step(format!(
        "onprem.demo is up: it exports `web`, which is {}, to cloud.demo alone",
        scene.service
    ))?;
    scene.start_cloud().await?;
    story.step("cloud.demo is up: it imports `web@onprem.demo` and knows nothing else of it")?;

    let dns = scene.cloud()?.addresses.dns.context("cloud.demo serves no DNS")?;
    let address = client::lookup(dns, scene::NAME, scene.port()).await?;
    story.step(format!("the client asks the DNS for {}: {}", scene::NAME, address.ip()))?;
    let client = Client::new(address);
    let greeting = client.get("/").await.context("the first request")?;
    ensure!(greeting == service::GREETING.as_bytes(), "the service greets with something else");
    story.step(format!(
        "first answer through the tunnel: {:?}",
        String::from_utf8_lossy(&greeting).trim_end()
    ))?;
    let refused = client::import_refusal(scene.cloud()?, scene::SECRET).await?;
    story.step(format!("`secret@onprem.demo` allows nobody, and says so: {refused}"))?;
    output::print(&topology(&scene, address)?)?;

    measure(story, &client, scene.service).await?;
    Ok(scene)
}

/// The figures, each of them verified: octets by their SHA-256, short flows by their answers.
async fn measure(story: &mut Story, client: &Client, service: std::net::SocketAddr) -> anyhow::Result<()> {
    let size = TRANSFER >> 20;
    let rate = |took: Duration| format!("{:.0} Mbit/s", TRANSFER as f64 * 8.0 / took.as_secs_f64() / 1e6);
    let direct = Client::new(service).download(TRANSFER).await.context("the download without the tunnel")?;
    let down = client.download(TRANSFER).await.context("the download")?;
    story.step(format!(
        "{size} MiB from the service, SHA-256 verified: {} (without the tunnel {})",
        rate(down),
        rate(direct)
    ))?;
    let up = client.upload(TRANSFER).await.context("the upload")?;
    story.step(format!("{size} MiB to the service, SHA-256 verified: {}", rate(up)))?;

    let begun = Instant::now();
    client.short_flows(SHORT_FLOWS, AT_ONCE).await.context("the short flows")?;
    let per_second = SHORT_FLOWS as f64 / begun.elapsed().as_secs_f64();
    story.step(format!(
        "{SHORT_FLOWS} short flows, each a new TCP connection, every answer right: {per_second:.0} flows/s"
    ))?;
    let latency = client.latency(REQUESTS).await.context("the latency")?;
    let without = Client::new(service).latency(REQUESTS).await.context("the latency without the tunnel")?;
    let shown = |d: Duration| quantity::micros(u64::try_from(d.as_micros()).unwrap_or(u64::MAX));
    story.step(format!(
        "a request and its answer: median {}, 99% within {} (without the tunnel {})",
        shown(latency.median),
        shown(latency.p99),
        shown(without.median),
    ))?;
    if cfg!(debug_assertions) {
        output::print(
            "           (a development build; `cargo run --release -- demo` shows what it can do)\n",
        )?;
    }
    Ok(())
}

fn topology(scene: &Scene, virtual_ip: std::net::SocketAddr) -> anyhow::Result<String> {
    let (cloud, onprem) = (scene.cloud()?, scene.onprem()?);
    Ok(format!(
        "\n  cloud.demo                                     onprem.demo\n  \
         client ──▶ {:<21}                    web {}\n                │                                   ▲\n  \
         gateway {:<22} ════ QUIC ════▶ gateway {}\n  \
         proxy   {:<22} ──── gRPC ────▶ proxy   {}\n  \
         DNS     {:<22} ────────────▶ DNS     {}\n\n",
        virtual_ip.to_string(),
        scene.service,
        cloud.addresses.tunnel.to_string(),
        onprem.addresses.tunnel,
        cloud.addresses.control.to_string(),
        onprem.addresses.control,
        cloud.addresses.dns.map(|a| a.to_string()).unwrap_or_default(),
        onprem.addresses.dns.map(|a| a.to_string()).unwrap_or_default(),
    ))
}

/// What to try while it runs.
fn invite(scene: &Scene) -> anyhow::Result<()> {
    let cloud = scene.cloud()?;
    let state = cloud.config.load().state_dir.display().to_string();
    let dns = cloud.addresses.dns.context("cloud.demo serves no DNS")?;
    let program =
        std::env::current_exe().map_or_else(|_| "carrick".into(), |path| path.display().to_string());
    output::print(&format!(
        "\nIt keeps running. Try, in another terminal:\n\n  \
         {program} --state-dir {state} status\n  \
         {program} --state-dir {state} explain web@onprem.demo\n  \
         {program} --state-dir {state} explain secret@onprem.demo\n  \
         {program} --state-dir {state} services @onprem.demo\n  \
         dig +short -p {} @{} {}\n  \
         curl http://{}/\n\nCtrl-C ends it and removes everything.\n",
        dns.port(),
        dns.ip(),
        scene::NAME,
        scene.listen()?,
    ))?;
    Ok(())
}
