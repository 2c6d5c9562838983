//! `carrick-bench stored`: a daemon whose store holds a million endpoints when it starts.
//!
//! They are written into the store beforehand, with leases of an hour: those that a client registers last a minute, and so many
//! take longer than that to register.

use std::{
    path::Path,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context as _, ensure};
use carrick_model::SpiffeId;
use carrick_proto::registry::NetworkServiceEndpoint;
use carrick_registry::store::{
    Change, EmbeddedStore, Expect, Key, Kind, MAX_CHANGES, Store as _, StoredRecord,
};
use carrick_tests::workload;
use clap::Parser;
use futures::{TryStreamExt as _, stream};
use prost::Message as _;

use crate::{
    registry::{CALLERS, DOMAIN, Stage, endpoint, find_one, name, scattered},
    report::{ms, print_rows, quantiles},
};

/// Commits under way at a time: they share the syncing of the disk.
const IN_FLIGHT: usize = 256;
/// How long the endpoints last.
const LEASE: Duration = Duration::from_secs(3600);
/// Finds by name that are timed, one after the other.
const FINDS: usize = 5_000;
/// How long a start may take.
const PATIENCE: Duration = Duration::from_secs(180);

/// Measures a daemon that starts with a full store.
#[derive(Parser)]
pub(crate) struct Stored {
    /// Endpoints in the store.
    #[arg(long, default_value_t = 1_000_000)]
    endpoints: usize,
    /// Prints JSON.
    #[arg(long)]
    json: bool,
}

impl Stored {
    pub(crate) fn run(&self) -> anyhow::Result<()> {
        ensure!(self.endpoints > 0, "there is nothing to measure");
        tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(self.measure())
    }

    async fn measure(&self) -> anyhow::Result<()> {
        // Its CA, its state directory, and what it takes without endpoints.
        let mut stage = Stage::start()?;
        let empty = stage.daemon.usage().rss;
        let mut began = Instant::now();
        let full_store = async |directory: &Path| {
            eprintln!("writing {} endpoints into the store", self.endpoints);
            fill(&directory.join("state/registry.redb"), self.endpoints).await?;
            began = Instant::now();
            Ok(())
        };
        stage.restart_after(full_store).await?;
        let caller = stage.caller("nsmgr-0").await?;
        while find_one(&caller, name(self.endpoints - 1)).await.is_err() {
            ensure!(began.elapsed() < PATIENCE, "the daemon does not find what its store holds");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let start = began.elapsed();
        let full = stage.daemon.usage();
        let mut times = Vec::with_capacity(FINDS);
        for n in 0..FINDS {
            let sent = Instant::now();
            find_one(&caller, name(scattered(n, self.endpoints))).await?;
            times.push(sent.elapsed());
        }
        let (p50, p99) = quantiles(times)?;
        let mib = |octets: u64| octets as f64 / f64::from(1 << 20);
        let each = full.rss.saturating_sub(empty) as f64 / self.endpoints as f64;
        let rows = [
            ("whole daemon", "MiB", mib(full.rss)),
            ("whole daemon at its most", "MiB", mib(full.peak)),
            ("daemon without endpoints", "MiB", mib(empty)),
            ("memory of an endpoint", "octets", each),
            ("start to the first answer", "s", start.as_secs_f64()),
            ("find by name, p50", "ms", ms(p50)),
            ("find by name, p99", "ms", ms(p99)),
        ];
        let rows = rows.into_iter().map(|(name, unit, value)| (format!("{name}, {unit}"), value));
        print_rows(&format!("{} endpoints in the store", self.endpoints), rows, self.json);
        Ok(())
    }
}

/// Writes endpoints as a daemon does that they were registered with by managers.
async fn fill(file: &Path, endpoints: usize) -> anyhow::Result<()> {
    let store = Arc::new(EmbeddedStore::open(file)?);
    let (now, gateway) = (SystemTime::now(), workload::gateway(DOMAIN)?);
    let managers: Vec<SpiffeId> =
        (0..CALLERS).map(|n| workload::pod(DOMAIN, &format!("nsmgr-{n}"))).collect::<anyhow::Result<_>>()?;
    let put = |n: usize| {
        let owner = &managers[n % managers.len()];
        let object = NetworkServiceEndpoint {
            path_ids: vec![owner.to_string(), gateway.to_string()],
            initial_registration_time: Some(now.into()),
            expiration_time: Some((now + LEASE).into()),
            ..endpoint(n)
        };
        let key = Key { kind: Kind::Endpoint, name: object.name.clone() };
        let (owner, expires) = (Some(owner.clone()), Some(now + LEASE));
        let record = StoredRecord { object: object.encode_to_vec(), owner, via: None, expires };
        Change::Put { key, record, expect: Expect::Any }
    };
    let commits = (0..endpoints).step_by(MAX_CHANGES).map(|from| {
        let changes: Vec<Change> = (from..endpoints.min(from + MAX_CHANGES)).map(put).collect();
        let store = Arc::clone(&store);
        anyhow::Ok(async move { store.commit(changes).await.map(drop).context("filling the store") })
    });
    stream::iter(commits).try_buffer_unordered(IN_FLIGHT).try_for_each(|()| async { Ok(()) }).await
}
