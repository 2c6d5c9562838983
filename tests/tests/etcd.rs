//! A registry in an etcd of three members: whatever happens to a member, no acknowledged registration is lost and no
//! follower misses a change.
//!
//! Three replicas of one domain, one beside each member, write and follow all the time while members die, stop and are cut
//! off. Then every replica's account is compared with what etcd holds and with the others' accounts, by revision.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::disallowed_methods,
    reason = "test code; outages last"
)]

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread::{self, JoinHandle, sleep},
    time::{Duration, Instant},
};

use carrick_registry::store::{
    Change, Expect, Key, Kind, Store, StoreError, StoreEvent, StoredRecord,
    etcd::{EtcdSettings, EtcdStore, TlsFiles},
};
use carrick_runtime::Tasks;
use carrick_tests::lab::{ETCD, EtcdCluster, Lab, Namespace, needs, within, within_or};
use futures::StreamExt as _;

/// After an outage: until every replica writes again. An election is a second or two, a commit tries for eight.
const HEALED: Duration = Duration::from_secs(40);

/// A replica: a store of its own in the namespace of its site, one that writes and one that follows.
struct Replica {
    progress: Arc<Progress>,
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Account>,
}

/// How far a replica is, seen from outside.
#[derive(Default)]
struct Progress {
    acknowledged: AtomicUsize,
    refused: AtomicUsize,
    followed: AtomicUsize,
}

/// A commit as a follower was told of it: its revision and the keys it changed.
type Told = (u64, Vec<Key>);

/// What a replica has to say in the end.
#[derive(Default)]
struct Account {
    /// Names of registrations that were acknowledged, and at which revision.
    acknowledged: BTreeMap<String, u64>,
    /// Of those that were refused, for certain.
    refused: BTreeSet<String>,
    /// Of those that nobody can tell of.
    uncertain: BTreeSet<String>,
    /// One for each time a full state was told: its revision, and the commits told one by one after it.
    rounds: Vec<(u64, Vec<Told>)>,
    /// Why states were lost.
    losses: Vec<String>,
    /// What the follower knows in the end.
    known: BTreeMap<Key, StoredRecord>,
}

impl Replica {
    fn start(ns: &Namespace, number: usize, cluster: &EtcdCluster) -> Self {
        let settings = EtcdSettings {
            endpoints: cluster.endpoints(),
            tls: Some(TlsFiles {
                ca: cluster.ca.clone(),
                client: Some((cluster.cert.clone(), cluster.key.clone())),
            }),
            prefix: "/carrick".into(),
            domain: "cloud.test".parse().unwrap(),
        };
        let (progress, stop) = (Arc::new(Progress::default()), Arc::new(AtomicBool::new(false)));
        let (ns, seen, stopped) = (ns.clone(), progress.clone(), stop.clone());
        let thread = thread::spawn(move || {
            ns.enter(|| {
                // Its sockets are made on this thread, so they are of this namespace.
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                runtime.block_on(run(number, &settings, &seen, &stopped))
            })
        });
        Self { progress, stop, thread }
    }

    fn acknowledged(&self) -> usize {
        self.progress.acknowledged.load(Ordering::SeqCst)
    }

    fn finish(self) -> Account {
        self.thread.join().unwrap()
    }
}

async fn run(number: usize, settings: &EtcdSettings, progress: &Progress, stop: &AtomicBool) -> Account {
    let tasks = Tasks::new();
    let store = EtcdStore::new(settings, &tasks).unwrap();
    let (mut account, mut writes) = (Account::default(), Account::default());
    let done = tokio::sync::Notify::new();
    let last = std::cell::Cell::new(u64::MAX);
    let writing = async {
        // Two at a time, so that batches of several commits are under way when something breaks.
        for n in 0.. {
            if stop.load(Ordering::SeqCst) {
                break;
            }
            let names = [format!("r{number}/{n}/left"), format!("r{number}/{n}/right")];
            let commits = names.each_ref().map(|name| {
                let record =
                    StoredRecord { object: name.clone().into(), owner: None, via: None, expires: None };
                let key = Key { kind: Kind::Endpoint, name: name.clone() };
                store.commit(vec![Change::Put { key, record, expect: Expect::Absent }])
            });
            for (name, verdict) in names.into_iter().zip(futures::future::join_all(commits).await) {
                match verdict {
                    Ok(revision) => {
                        progress.acknowledged.fetch_add(1, Ordering::SeqCst);
                        writes.acknowledged.insert(name, revision);
                    }
                    Err(StoreError::Unavailable { reason, .. }) => {
                        assert!(reason.contains("Hint: "), "{reason}");
                        progress.refused.fetch_add(1, Ordering::SeqCst);
                        writes.refused.insert(name);
                    }
                    Err(StoreError::Uncertain { .. }) => {
                        progress.refused.fetch_add(1, Ordering::SeqCst);
                        writes.uncertain.insert(name);
                    }
                    Err(other) => panic!("{name}: {other}"),
                }
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        // The follower has to see everything up to this one.
        last.set(loop {
            let record = StoredRecord { object: Vec::new(), owner: None, via: None, expires: None };
            let key = Key { kind: Kind::Service, name: format!("end of {number}") };
            if let Ok(revision) = store.commit(vec![Change::Put { key, record, expect: Expect::Any }]).await {
                break revision;
            }
        });
        done.notify_one();
    };
    let following = async {
        let mut events = store.follow();
        let (mut round, mut syncing) = (BTreeMap::new(), true);
        let mut at = 0;
        while at < last.get() {
            let event = tokio::select! {
                event = events.next() => event.unwrap(),
                () = done.notified() => continue,
            };
            match event {
                StoreEvent::Record { key, record, .. } => {
                    assert!(syncing, "{key} without a loss");
                    round.insert(key, record);
                }
                StoreEvent::Synced(revision) => {
                    assert!(revision >= at, "the state of {revision} after {at}");
                    (account.known, at, syncing) = (std::mem::take(&mut round), revision, false);
                    account.rounds.push((revision, Vec::new()));
                }
                StoreEvent::Committed { revision, changes } => {
                    assert!(!syncing && revision > at, "{revision} after {at}");
                    at = revision;
                    let keys = changes.iter().map(|(key, _)| key.clone()).collect();
                    account.rounds.last_mut().unwrap().1.push((revision, keys));
                    for (key, record) in changes {
                        match record {
                            Some(record) => account.known.insert(key, record),
                            None => account.known.remove(&key),
                        };
                    }
                }
                StoreEvent::Lost(reason) => {
                    account.losses.push(reason);
                    (syncing, round) = (true, BTreeMap::new());
                }
            }
            progress.followed.store(at as usize, Ordering::SeqCst);
        }
    };
    tokio::join!(writing, following);
    tasks.stop();
    Account {
        acknowledged: writes.acknowledged,
        refused: writes.refused,
        uncertain: writes.uncertain,
        ..account
    }
}

impl Account {
    /// The last revision it was told of.
    fn end(&self) -> u64 {
        let (synced, commits) = self.rounds.last().expect("a full state was told");
        commits.last().map_or(*synced, |(revision, _)| *revision)
    }
}

/// Three replicas in three sites, writing.
struct Scene {
    replicas: Vec<Replica>,
    cluster: EtcdCluster,
    lab: Lab,
}

impl Scene {
    fn start() -> Self {
        let lab = Lab::new();
        let cluster = EtcdCluster::start(&lab);
        let sites = [&lab.a, &lab.b, &lab.c];
        let replicas =
            sites.iter().enumerate().map(|(n, site)| Replica::start(&site.ns, n, &cluster)).collect();
        let scene = Self { replicas, cluster, lab };
        scene.all_write();
        scene
    }

    /// Waits until each replica has written and followed some more.
    #[track_caller]
    fn all_write(&self) {
        let everyone: Vec<usize> = (0..self.replicas.len()).collect();
        self.write(&everyone);
    }

    #[track_caller]
    fn write(&self, who: &[usize]) {
        let progress = |n: usize| {
            let progress = &self.replicas[n].progress;
            (progress.acknowledged.load(Ordering::SeqCst), progress.followed.load(Ordering::SeqCst))
        };
        let before: Vec<_> = who.iter().map(|n| progress(*n)).collect();
        within_or(HEALED, "the replicas to write and to follow", || {
            let stuck: Vec<_> = who
                .iter()
                .zip(&before)
                .filter(|(n, before)| {
                    let now = progress(**n);
                    now.0 < before.0 + 20 || now.1 < before.1 + 20
                })
                .collect();
            if stuck.is_empty() { Ok(()) } else { Err(format!("{stuck:?}")) }
        });
    }

    /// Ends the writing and checks every account.
    fn check(self) -> Vec<Account> {
        self.replicas.iter().for_each(|replica| replica.stop.store(true, Ordering::SeqCst));
        let accounts: Vec<Account> = self.replicas.into_iter().map(Replica::finish).collect();
        // Each follows up to its own last write, so the one that went furthest has seen everything.
        let known = &accounts.iter().max_by_key(|account| account.end()).unwrap().known;
        // Revisions with what they changed, as far as any follower was told of them one by one.
        let mut history: BTreeMap<u64, BTreeSet<Key>> = BTreeMap::new();
        for account in &accounts {
            for (revision, keys) in account.rounds.iter().flat_map(|(_, commits)| commits) {
                let keys: BTreeSet<Key> = keys.iter().cloned().collect();
                let same = history.entry(*revision).or_insert_with(|| keys.clone());
                assert_eq!(*same, keys, "two followers were told different things of revision {revision}");
            }
        }
        let mut acknowledged = 0;
        for (n, account) in accounts.iter().enumerate() {
            acknowledged += account.acknowledged.len();
            for (name, revision) in &account.acknowledged {
                let key = Key { kind: Kind::Endpoint, name: name.clone() };
                assert!(known.contains_key(&key), "{name}, acknowledged at {revision}, is lost");
                if let Some(keys) = history.get(revision) {
                    assert!(
                        keys.contains(&key),
                        "{name} was not written at {revision}, as its writer was told"
                    );
                }
            }
            for name in &account.refused {
                let key = Key { kind: Kind::Endpoint, name: name.clone() };
                assert!(!known.contains_key(&key), "{name} was refused for certain, and is there");
            }
            for (synced, commits) in &account.rounds {
                let Some((last, _)) = commits.last() else { continue };
                let told: Vec<u64> = commits.iter().map(|(revision, _)| *revision).collect();
                let due: Vec<u64> =
                    history.range(synced + 1..=*last).map(|(revision, _)| *revision).collect();
                assert_eq!(told, due, "replica {n} missed something between {synced} and {last}");
            }
        }
        assert!(acknowledged > 200, "only {acknowledged} registrations were acknowledged");
        let ends = |account: &Account| -> BTreeMap<Key, StoredRecord> {
            // The followers stop at moments of their own, after the last of their own writes.
            account
                .known
                .iter()
                .filter(|(key, _)| key.kind == Kind::Endpoint)
                .map(|(k, r)| (k.clone(), r.clone()))
                .collect()
        };
        for account in &accounts {
            let (own, first) = (ends(account), ends(&accounts[0]));
            for key in accounts.iter().flat_map(|a| a.acknowledged.keys()) {
                let key = Key { kind: Kind::Endpoint, name: key.clone() };
                if let (Some(a), Some(b)) = (own.get(&key), first.get(&key)) {
                    assert_eq!(a, b, "replicas disagree about {key}");
                }
            }
        }
        accounts
    }
}

/// Nobody lost sight of the registrations: they went on from where they were.
fn nobody_lost_anything(accounts: &[Account]) {
    for (n, account) in accounts.iter().enumerate() {
        assert_eq!(
            (account.rounds.len(), &account.losses),
            (1, &Vec::new()),
            "replica {n} read everything again"
        );
    }
}

#[test]
fn the_leader_is_killed_and_comes_back() {
    if !needs(ETCD) {
        return;
    }
    let mut scene = Scene::start();
    for _ in 0..2 {
        let leader = scene.cluster.leader();
        scene.cluster.kill(leader);
        scene.all_write();
        scene.cluster.up(leader);
        scene.cluster.leader();
        scene.all_write();
    }
    nobody_lost_anything(&scene.check());
}

#[test]
fn a_member_that_stops_or_stutters_holds_up_nobody() {
    if !needs(ETCD) {
        return;
    }
    let scene = Scene::start();
    let leader = scene.cluster.leader();
    scene.cluster.pause(leader);
    scene.all_write();
    scene.cluster.resume(leader);
    scene.all_write();
    // A member that works for a moment now and then.
    let slow = scene.cluster.leader();
    let until = Instant::now() + Duration::from_secs(8);
    while Instant::now() < until {
        scene.cluster.pause(slow);
        sleep(Duration::from_millis(350));
        scene.cluster.resume(slow);
        sleep(Duration::from_millis(50));
    }
    scene.all_write();
    scene.check();
}

#[test]
fn a_member_with_a_slow_disk_holds_up_nobody() {
    if !needs(&[ETCD, &["strace"]].concat()) {
        return;
    }
    let scene = Scene::start();
    let leader = scene.cluster.leader();
    // Elections come when the disk keeps the leader from its heartbeats. The last one follows, or leads by then.
    for (member, delay) in [(leader, 200), (leader, 700), ((leader + 1) % 3, 2000)] {
        let slow = scene.cluster.slow_disk(member, Duration::from_millis(delay));
        within(HEALED, "a sync to be held up", || (slow.held_up() > 0).then_some(()));
        scene.all_write();
    }
    scene.all_write();
    scene.check();
}

#[test]
fn a_minority_is_refused_and_the_majority_goes_on() {
    if !needs(ETCD) {
        return;
    }
    let scene = Scene::start();
    let sites = [&scene.lab.a, &scene.lab.b, &scene.lab.c];
    // The worst one: the leader with its replica.
    let alone = scene.cluster.leader();
    sites[alone].lose_packets();
    let others: Vec<usize> = (0..3).filter(|n| *n != alone).collect();
    scene.write(&others);
    // The one in the minority is told so, whatever its member still believes.
    let refused = || scene.replicas[alone].progress.refused.load(Ordering::SeqCst);
    within(HEALED, "the replica in the minority to be refused", || (refused() > 0).then_some(()));
    let (before, written) = (refused(), scene.replicas[alone].acknowledged());
    within(HEALED, "it to be refused again", || (refused() > before).then_some(()));
    assert_eq!(scene.replicas[alone].acknowledged(), written, "nothing is acknowledged without a quorum");
    scene.write(&others);
    sites[alone].stop_losing_packets();
    scene.all_write();
    let accounts = scene.check();
    assert!(!accounts[alone].losses.is_empty(), "the replica in the minority knows that it saw nothing new");
    for other in others {
        assert_eq!(
            accounts[other].rounds.len(),
            1,
            "the others read everything once: {:?}",
            accounts[other].losses
        );
    }
}

#[test]
fn all_of_etcd_away_and_started_in_the_wrong_order() {
    if !needs(ETCD) {
        return;
    }
    let mut scene = Scene::start();
    let leader = scene.cluster.leader();
    (0..3).for_each(|at| scene.cluster.kill(at));
    let refused = |scene: &Scene, n: usize| scene.replicas[n].progress.refused.load(Ordering::SeqCst);
    for n in 0..3 {
        within(HEALED, "a replica to be refused", || (refused(&scene, n) > 0).then_some(()));
    }
    // A follower first, alone and so without a quorum; the old leader last.
    let first = (leader + 1) % 3;
    scene.cluster.up(first);
    let before = refused(&scene, first);
    within(HEALED, "one member alone to serve nobody", || {
        (refused(&scene, first) > before + 2).then_some(())
    });
    scene.cluster.up((leader + 2) % 3);
    scene.all_write();
    scene.cluster.up(leader);
    scene.all_write();
    let accounts = scene.check();
    assert!(accounts.iter().all(|account| !account.losses.is_empty()), "an outage of all is told");
}
