//! The store in etcd: the contract of all stores, and what is its own: leases, lost answers, lost members.

#![allow(clippy::unwrap_used, clippy::expect_used, unreachable_pub, reason = "a test may")]

use std::{
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use carrick_registry::store::{
    Change, Expect, Store, StoreError, StoreEvent, StoredRecord,
    etcd::{EtcdSettings, EtcdStore, TlsFiles},
};
use carrick_runtime::Tasks;
use etcd::{Etcd, Relay};
use futures::StreamExt as _;
use store_contract::{Follower, Place, delete, key, put, record};
use tokio::time::timeout;

mod etcd;
mod store_contract;

/// Longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(60);

#[tonic::async_trait]
impl Place for Etcd {
    async fn open(&self) -> Arc<dyn Store> {
        Arc::new(self.store(&Tasks::new()))
    }
}

/// A place, or the end of the test where there is no etcd.
macro_rules! etcd {
    () => {
        match Etcd::start().await {
            Some(etcd) => etcd,
            None => return,
        }
    };
}

store_contract!(etcd!());

/// The next event; panics when there is none for long.
async fn next(events: &mut (impl futures::Stream<Item = StoreEvent> + Unpin)) -> StoreEvent {
    timeout(PATIENCE, events.next()).await.expect("the store says nothing").expect("the store ended")
}

fn lapsing(name: &str, after: Duration) -> Change {
    let expires = Some(SystemTime::now() + after);
    Change::Put { key: key(name), record: StoredRecord { expires, ..record("x") }, expect: Expect::Any }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_lapses_goes_although_its_replica_is_dead() {
    let etcd = etcd!();
    let tasks = Tasks::new();
    let (began, dead) = (Instant::now(), etcd.store(&tasks));
    let short = Duration::from_secs(3);
    dead.commit(vec![lapsing("short", short), lapsing("long", Duration::from_secs(600))]).await.unwrap();
    // Renewed: it has another lease now.
    dead.commit(vec![lapsing("renewed", short)]).await.unwrap();
    dead.commit(vec![lapsing("renewed", Duration::from_secs(600)), put("for ever", "x", Expect::Any)])
        .await
        .unwrap();
    tasks.stop();
    assert!(tasks.wait(PATIENCE).await);
    drop(dead);

    let store = etcd.store(&Tasks::new());
    let mut follower = Follower::new(&store).await;
    while follower.known.contains_key(&key("short")) {
        follower.reach(follower.revision + 1).await;
    }
    let after = began.elapsed();
    assert!(after >= short && after < Duration::from_secs(15), "it went after {after:?}");
    let left: Vec<_> = follower.texts().into_iter().map(|(name, _)| name).collect();
    assert_eq!(left, ["for ever", "long", "renewed"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_see_each_other_and_agree_on_names() {
    let etcd = etcd!();
    let tasks = Tasks::new();
    let (one, two) = (etcd.store(&tasks), etcd.store(&tasks));
    let (mut at_one, mut at_two) = (Follower::new(&one).await, Follower::new(&two).await);
    let mut last = 0;
    for round in 0..20 {
        let name = format!("contested-{round}");
        let verdicts = tokio::join!(
            one.commit(vec![put(&name, "one", Expect::Absent)]),
            two.commit(vec![put(&name, "two", Expect::Absent)]),
        );
        let won = match verdicts {
            (Ok(won), Err(StoreError::Conflict { found, .. }))
            | (Err(StoreError::Conflict { found, .. }), Ok(won)) => {
                assert_eq!(found, Some(won));
                won
            }
            other => panic!("{other:?}"),
        };
        assert!(won > last);
        last = won;
    }
    at_one.reach(last).await;
    at_two.reach(last).await;
    assert_eq!(at_one.known, at_two.known);
    assert_eq!(at_one.known.len(), 20);

    let other = EtcdSettings { domain: "other.test".parse().unwrap(), ..etcd.settings() };
    let other = EtcdStore::new(&other, &tasks).unwrap();
    assert!(Follower::new(&other).await.known.is_empty(), "another domain has keys of its own");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_whose_answer_is_lost_is_made_once() {
    let etcd = etcd!();
    let (tasks, relay) = (Tasks::new(), Relay::to(etcd.address()).await);
    let (store, watcher) = (etcd.store_through(&relay, &tasks), etcd.store(&tasks));
    let mut follower = Follower::new(&watcher).await;
    let first = store
        .commit(vec![
            put("a", "1", Expect::Absent),
            put("old", "1", Expect::Any),
            put("kept", "1", Expect::Any),
        ])
        .await
        .unwrap();
    follower.reach(first).await;

    relay.mute();
    let commits = async {
        tokio::join!(
            store.commit(vec![put("a", "2", Expect::Revision(first))]),
            store.commit(vec![put("b", "1", Expect::Absent), delete("old", Expect::Any)]),
            store.commit(vec![put("kept", "2", Expect::Absent)]),
            store.commit(vec![delete("none", Expect::Any)]),
        )
    };
    let reopen = async {
        // It is made, which the other replica sees; only nobody tells the one that made it.
        while follower.known[&key("a")] != record("2") {
            follower.reach(follower.revision + 1).await;
        }
        relay.open();
    };
    let ((a, b, c, none), ()) = tokio::join!(commits, reopen);
    let (a, b) = (a.unwrap(), b.unwrap());
    assert_eq!(
        c,
        Err(StoreError::Conflict { key: key("kept"), found: Some(first) }),
        "a commit of the same batch may fail"
    );
    none.unwrap();
    let last = store.commit(vec![put("last", "1", Expect::Absent)]).await.unwrap();
    follower.reach(last).await;
    assert_eq!(follower.texts(), [("a", "2"), ("b", "1"), ("kept", "1"), ("last", "1")]);
    let told: Vec<u64> = follower.commits.iter().copied().filter(|at| *at > first).collect();
    let mut made = vec![a, b, last];
    made.dedup();
    assert_eq!(told, made, "each was made once, at the revision that its caller was told");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_that_missed_a_compaction_begins_anew() {
    let etcd = etcd!();
    let (tasks, relay) = (Tasks::new(), Relay::to(etcd.address()).await);
    let (far, near) = (etcd.store_through(&relay, &tasks), etcd.store(&tasks));
    let mut events = far.follow();
    near.commit(vec![put("before", "1", Expect::Any)]).await.unwrap();
    while !matches!(next(&mut events).await, StoreEvent::Synced(_)) {}
    let seen = near.commit(vec![put("seen", "1", Expect::Any)]).await.unwrap();
    while !matches!(next(&mut events).await, StoreEvent::Committed { revision, .. } if revision >= seen) {}

    relay.close();
    let mut last = 0;
    for n in 0..5 {
        last = near
            .commit(vec![put("before", &n.to_string(), Expect::Any), delete("seen", Expect::Any)])
            .await
            .unwrap();
    }
    etcd.ctl(&["compact", &last.to_string()]);
    relay.open();
    let StoreEvent::Lost(reason) = next(&mut events).await else { panic!("no loss is told") };
    assert!(reason.contains("compacted"), "{reason}");
    let mut known = Vec::new();
    let synced = loop {
        match next(&mut events).await {
            StoreEvent::Record { key, record, .. } => known.push((key.name, record)),
            StoreEvent::Synced(revision) => break revision,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!((known, synced), (vec![("before".to_owned(), record("4"))], last));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_that_breaks_goes_on_where_it_was() {
    let etcd = etcd!();
    let (tasks, relay) = (Tasks::new(), Relay::to(etcd.address()).await);
    let (far, near) = (etcd.store_through(&relay, &tasks), etcd.store(&tasks));
    let mut follower = Follower::new(&far).await;
    let began = follower.synced;
    let mut made = Vec::new();
    for round in 0..6 {
        // By turns: a connection that ends, and one that falls silent and is found out by asking.
        if round % 2 == 0 {
            relay.close();
        } else {
            relay.mute();
        }
        for n in 0..20 {
            made.push(near.commit(vec![put(&format!("{round}-{n}"), "x", Expect::Absent)]).await.unwrap());
        }
        relay.open();
        follower.reach(*made.last().unwrap()).await;
    }
    assert_eq!(follower.commits, made, "every commit once, in order");
    assert_eq!(follower.synced, began, "without reading everything again");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_etcd_that_is_away_is_told_and_comes_back() {
    let mut etcd = etcd!();
    let tasks = Tasks::new();
    let store = etcd.store(&tasks);
    let mut events = store.follow();
    while !matches!(next(&mut events).await, StoreEvent::Synced(_)) {}
    let kept = store.commit(vec![put("kept", "1", Expect::Any)]).await.unwrap();
    while !matches!(next(&mut events).await, StoreEvent::Committed { revision, .. } if revision >= kept) {}
    etcd.kill();

    let began = Instant::now();
    let failed = store.commit(vec![put("failed", "1", Expect::Any)]);
    let (failed, lost) = tokio::join!(failed, next(&mut events));
    let Err(StoreError::Unavailable { reason, .. } | StoreError::Uncertain { reason, .. }) = failed else {
        panic!("{failed:?}")
    };
    assert!(reason.contains(&etcd.address().to_string()) && reason.contains("Hint: "), "{reason}");
    let took = began.elapsed();
    assert!(took < Duration::from_secs(15), "a caller waits for {took:?}");
    assert!(matches!(lost, StoreEvent::Lost(_)), "{lost:?}");
    let began = Instant::now();
    store.commit(vec![put("failed", "2", Expect::Any)]).await.unwrap_err();
    assert!(began.elapsed() < Duration::from_secs(4), "known to be away: {:?}", began.elapsed());
    assert_eq!(store.health()[0].up, Some(false));

    assert!(etcd.up().await);
    let StoreEvent::Record { key: told, .. } = next(&mut events).await else { panic!("no new state") };
    assert_eq!(told, key("kept"));
    assert!(matches!(next(&mut events).await, StoreEvent::Synced(_)));
    store.commit(vec![put("again", "1", Expect::Absent)]).await.unwrap();
    assert_eq!(store.health()[0].up, Some(true));
    tasks.stop();
    assert!(events.next().await.is_none(), "the end of the store ends the stream");
    let closed = store.commit(vec![put("late", "1", Expect::Any)]).await;
    assert!(matches!(closed, Err(StoreError::Closed { .. })), "{closed:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_state_of_many_pages_is_told_whole() {
    let etcd = etcd!();
    let store = etcd.store(&Tasks::new());
    let mut commits = Vec::new();
    for n in 0..40 {
        let changes =
            (0..64).map(|m| put(&format!("{n:02}/{m:02}"), &"x".repeat(n * 100), Expect::Absent)).collect();
        commits.push(store.commit(changes));
    }
    for made in futures::future::join_all(commits).await {
        made.unwrap();
    }
    // Larger than the largest answer that is taken, so pages get smaller.
    let large = "y".repeat(900_000);
    for n in 0..12 {
        store.commit(vec![put(&format!("large/{n}"), &large, Expect::Absent)]).await.unwrap();
    }
    let too_large = store.commit(vec![put("too large", &"z".repeat(2_000_000), Expect::Any)]).await;
    assert!(matches!(too_large, Err(StoreError::TooLarge { .. })), "{too_large:?}");
    let follower = Follower::new(&store).await;
    assert_eq!(follower.known.len(), 40 * 64 + 12);
    assert_eq!(follower.known[&key("large/7")], record(&large));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tls_proves_both_sides() {
    let tls: fn(&std::path::Path) -> TlsFiles = |dir| TlsFiles {
        ca: dir.join("ca.pem"),
        client: Some((dir.join("client.pem"), dir.join("client-key.pem"))),
    };
    let Some(etcd) = Etcd::start_with(Some(tls), |dir| etcd::certificates(dir).0).await else { return };
    let tasks = Tasks::new();
    etcd.store(&tasks).commit(vec![put("a", "1", Expect::Absent)]).await.unwrap();

    let with = |files: TlsFiles| {
        EtcdStore::new(&EtcdSettings { tls: Some(files), ..etcd.settings() }, &tasks).unwrap()
    };
    let refused = async |files: TlsFiles, word: &str| {
        let verdict = with(files).commit(vec![put("a", "2", Expect::Any)]).await;
        let Err(StoreError::Unavailable { reason, .. } | StoreError::Uncertain { reason, .. }) = verdict
        else {
            panic!("{verdict:?}")
        };
        assert!(reason.contains(word) && reason.contains("Hint: "), "{word}: {reason}");
    };
    let other = tempfile::tempdir().unwrap();
    let (_, strangers) = etcd::certificates(other.path());
    let own = tls(etcd.dir());
    refused(TlsFiles { ca: strangers.ca.clone(), ..own.clone() }, "invalid peer certificate").await;
    refused(TlsFiles { client: strangers.client, ..own.clone() }, "certificate").await;
    refused(TlsFiles { ca: "/nowhere/ca.pem".into(), ..own.clone() }, "/nowhere/ca.pem").await;
    refused(TlsFiles { ca: own.client.clone().unwrap().1, ..own }, "has no certificate").await;
    assert_eq!(Follower::new(&etcd.store(&tasks)).await.texts(), [("a", "1")]);
}
