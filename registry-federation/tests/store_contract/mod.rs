//! What every store has to do, whichever it is.
//!
//! A store's test file makes a [`Place`], `mod store_contract;`, and calls [`store_contract!`] with how to make a new
//! one; each case becomes a test.

#![allow(unreachable_pub, reason = "test files use it as their own")]

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, SystemTime},
};

use carrick_model::SpiffeId;
use carrick_registry::store::{
    Change, Expect, Key, Kind, MAX_CHANGES, Store, StoreError, StoreEvent, StoredRecord,
};
use futures::stream::{BoxStream, StreamExt as _};
use tokio::time::timeout;

/// Longer than anything here takes, so that a fault is a failure and not a hang.
const PATIENCE: Duration = Duration::from_secs(60);

/// Where one test keeps its records. Empty at first.
#[tonic::async_trait]
pub trait Place: Send + Sync {
    /// Opens the store there. All stores of one place that are open hold the same records; a place that takes one at a
    /// time may expect that the store before was dropped.
    async fn open(&self) -> Arc<dyn Store>;
}

/// A test for each case, in places that the expression makes.
#[macro_export]
macro_rules! store_contract {
    ($place:expr) => {
        store_contract!(@ $place;
            a_new_store_is_empty
            what_is_put_is_told_to_those_who_follow_and_those_who_come
            an_expectation_that_does_not_hold_changes_nothing
            the_changes_of_a_commit_come_together_or_not_at_all
            a_malformed_commit_is_refused
            concurrent_commits_are_told_in_order_without_gaps
            a_name_has_one_winner
            compare_and_set_loses_no_update
            what_was_committed_is_there_when_the_store_is_opened_again
            a_follower_that_does_not_read_holds_up_nobody
        );
    };
    (@ $place:expr; $($case:ident)*) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $case() {
                store_contract::$case(&$place).await;
            }
        )*
    };
}

pub fn key(name: &str) -> Key {
    Key { kind: Kind::Endpoint, name: name.into() }
}

pub fn record(text: &str) -> StoredRecord {
    StoredRecord { object: text.into(), owner: None, via: None, expires: None }
}

pub fn put(name: &str, text: &str, expect: Expect) -> Change {
    Change::Put { key: key(name), record: record(text), expect }
}

pub fn delete(name: &str, expect: Expect) -> Change {
    Change::Delete { key: key(name), expect }
}

/// A follower and what it knows.
pub struct Follower {
    events: BoxStream<'static, StoreEvent>,
    pub known: BTreeMap<Key, StoredRecord>,
    pub revision: u64,
    /// The commits it was told one by one.
    pub commits: Vec<u64>,
    /// The revision of the last full state.
    pub synced: u64,
}

impl Follower {
    /// Follows `store` up to its present state.
    pub async fn new(store: &dyn Store) -> Self {
        let mut follower = Self {
            events: store.follow(),
            known: BTreeMap::new(),
            revision: 0,
            commits: Vec::new(),
            synced: 0,
        };
        follower.sync().await;
        follower
    }

    /// Takes a full state.
    async fn sync(&mut self) {
        let mut round = BTreeMap::new();
        loop {
            match self.event().await {
                StoreEvent::Record { key, record, revision } => {
                    assert!(revision > 0, "{key} was never written");
                    assert_eq!(round.insert(key.clone(), record), None, "{key} is told twice");
                }
                StoreEvent::Synced(revision) => {
                    assert!(revision >= self.revision, "the state of {revision} after {}", self.revision);
                    (self.known, self.revision, self.synced) = (round, revision, revision);
                    return;
                }
                StoreEvent::Lost(_) => round.clear(),
                commit @ StoreEvent::Committed { .. } => panic!("{commit:?} amid a full state"),
            }
        }
    }

    /// Follows until it knows of `revision`.
    pub async fn reach(&mut self, revision: u64) {
        while self.revision < revision {
            match self.event().await {
                StoreEvent::Committed { revision, changes } => {
                    assert!(revision > self.revision, "{revision} after {}", self.revision);
                    self.revision = revision;
                    // A store may tell of a commit that changed nothing.
                    if !changes.is_empty() {
                        self.commits.push(revision);
                    }
                    for (key, record) in changes {
                        match record {
                            Some(record) => self.known.insert(key, record),
                            None => self.known.remove(&key),
                        };
                    }
                }
                StoreEvent::Lost(_) => self.sync().await,
                other => panic!("{other:?} without a loss"),
            }
        }
    }

    async fn event(&mut self) -> StoreEvent {
        timeout(PATIENCE, self.events.next()).await.expect("the store says nothing").expect("the store ended")
    }

    /// Names and texts.
    pub fn texts(&self) -> Vec<(&str, &str)> {
        self.known
            .iter()
            .map(|(key, record)| (key.name.as_str(), std::str::from_utf8(&record.object).unwrap()))
            .collect()
    }
}

pub async fn a_new_store_is_empty(place: &dyn Place) {
    let store = place.open().await;
    let follower = Follower::new(&*store).await;
    assert!(follower.known.is_empty());
    assert!(!store.name().is_empty());
}

pub async fn what_is_put_is_told_to_those_who_follow_and_those_who_come(place: &dyn Place) {
    let store = place.open().await;
    let mut early = Follower::new(&*store).await;
    // Whole milliseconds, which every store keeps.
    let expires = SystemTime::UNIX_EPOCH + Duration::from_millis(now_ms() + 3_600_000);
    let full = StoredRecord {
        object: (0..=255).collect(),
        owner: Some(SpiffeId::new("spiffe://own.test/ns/x/pod/nse").unwrap()),
        via: Some(SpiffeId::new("spiffe://own.test/ns/x/pod/nsmgr").unwrap()),
        expires: Some(expires),
    };
    let odd = Key { kind: Kind::Service, name: "a name/with: ünusual \u{1}chars".into() };
    let first = store
        .commit(vec![Change::Put { key: odd.clone(), record: full.clone(), expect: Expect::Any }])
        .await
        .unwrap();
    let same_name = Key { kind: Kind::Endpoint, name: odd.name.clone() };
    let second = store
        .commit(vec![Change::Put { key: same_name.clone(), record: record("other"), expect: Expect::Absent }])
        .await
        .unwrap();
    assert!(second > first);
    early.reach(second).await;
    assert_eq!(early.commits, [first, second]);
    let expected: BTreeMap<_, _> = [(odd.clone(), full), (same_name.clone(), record("other"))].into();
    assert_eq!(early.known, expected);
    let late = Follower::new(&*store).await;
    assert_eq!((&late.known, late.commits.len()), (&expected, 0));
    assert!(late.synced >= second);

    let third = store.commit(vec![Change::Delete { key: odd.clone(), expect: Expect::Any }]).await.unwrap();
    early.reach(third).await;
    assert_eq!(early.known.keys().collect::<Vec<_>>(), [&same_name]);
    let fourth = store.commit(vec![put("back", "1", Expect::Any)]).await.unwrap();
    assert!(fourth > third);
}

fn now_ms() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_millis() as u64
}

pub async fn an_expectation_that_does_not_hold_changes_nothing(place: &dyn Place) {
    let store = place.open().await;
    let first = store.commit(vec![put("a", "1", Expect::Absent)]).await.unwrap();
    let conflict = |found| Err(StoreError::Conflict { key: key("a"), found });
    assert_eq!(store.commit(vec![put("a", "2", Expect::Absent)]).await, conflict(Some(first)));
    assert_eq!(
        store.commit(vec![put("a", "2", Expect::Revision(first + 1000))]).await,
        conflict(Some(first))
    );
    assert_eq!(store.commit(vec![delete("a", Expect::Absent)]).await, conflict(Some(first)));
    assert_eq!(store.commit(vec![delete("a", Expect::Revision(first + 1000))]).await, conflict(Some(first)));
    assert_eq!(Follower::new(&*store).await.texts(), [("a", "1")]);

    let second = store.commit(vec![put("a", "2", Expect::Revision(first))]).await.unwrap();
    assert_eq!(store.commit(vec![put("a", "3", Expect::Revision(first))]).await, conflict(Some(second)));
    let third = store.commit(vec![delete("a", Expect::Revision(second))]).await.unwrap();
    assert_eq!(store.commit(vec![put("a", "3", Expect::Revision(second))]).await, conflict(None));
    assert_eq!(store.commit(vec![delete("a", Expect::Revision(second))]).await, conflict(None));
    store.commit(vec![delete("a", Expect::Absent)]).await.unwrap();
    store.commit(vec![delete("a", Expect::Any)]).await.unwrap();
    let fourth = store.commit(vec![put("a", "4", Expect::Absent)]).await.unwrap();
    assert!(first < second && second < third && third < fourth);
    assert_eq!(Follower::new(&*store).await.texts(), [("a", "4")]);
}

pub async fn the_changes_of_a_commit_come_together_or_not_at_all(place: &dyn Place) {
    let store = place.open().await;
    let mut follower = Follower::new(&*store).await;
    let many: Vec<_> = (0..MAX_CHANGES).map(|n| put(&format!("k{n:02}"), "1", Expect::Absent)).collect();
    let first = store.commit(many).await.unwrap();
    follower.reach(first).await;
    assert_eq!(follower.commits, [first], "one commit is one event");
    assert_eq!(follower.known.len(), MAX_CHANGES);

    let fault = store
        .commit(vec![
            put("new", "1", Expect::Any),
            delete("k00", Expect::Any),
            put("k01", "2", Expect::Absent),
        ])
        .await;
    assert_eq!(fault, Err(StoreError::Conflict { key: key("k01"), found: Some(first) }));
    let second = store
        .commit(vec![
            put("k02", "2", Expect::Revision(first)),
            delete("k03", Expect::Any),
            put("new", "2", Expect::Absent),
        ])
        .await
        .unwrap();
    follower.reach(second).await;
    assert_eq!(follower.commits, [first, second], "what was refused is not told");
    let texts: BTreeMap<_, _> = follower.texts().into_iter().collect();
    assert_eq!(texts.get("k00"), Some(&"1"));
    assert_eq!((texts["k02"], texts.get("k03"), texts["new"]), ("2", None, "2"));
}

pub async fn a_malformed_commit_is_refused(place: &dyn Place) {
    let store = place.open().await;
    let refused = async |changes| {
        let verdict = store.commit(changes).await;
        assert!(matches!(verdict, Err(StoreError::Malformed(_))), "{verdict:?}");
    };
    refused(Vec::new()).await;
    refused(vec![put("a", "1", Expect::Any), delete("a", Expect::Any)]).await;
    refused(vec![put("", "1", Expect::Any)]).await;
    refused((0..=MAX_CHANGES).map(|n| put(&n.to_string(), "1", Expect::Any)).collect()).await;
    assert!(Follower::new(&*store).await.known.is_empty());
}

pub async fn concurrent_commits_are_told_in_order_without_gaps(place: &dyn Place) {
    const WRITERS: usize = 16;
    const EACH: usize = 40;
    let store = place.open().await;
    let mut early = Follower::new(&*store).await;
    let writers: Vec<_> = (0..WRITERS)
        .map(|w| {
            let store = Arc::clone(&store);
            async move {
                let mut made = Vec::new();
                for n in 0..EACH {
                    let changes = vec![
                        put(&format!("w{w}"), &n.to_string(), Expect::Any),
                        put(&format!("w{w}-{n}"), "x", Expect::Absent),
                    ];
                    made.push(store.commit(changes).await.unwrap());
                }
                assert!(made.is_sorted_by(|a, b| a < b), "a writer's commits are in its order");
                made
            }
        })
        .collect();
    let writing = futures::future::join_all(writers);
    let joining = async {
        // One that comes in the middle.
        tokio::task::yield_now().await;
        Follower::new(&*store).await
    };
    let (made, mut middle) = tokio::join!(writing, joining);
    let made: BTreeSet<u64> = made.into_iter().flatten().collect();
    assert!(made.len() >= EACH, "commits made together may share a revision, those of one writer cannot");
    let last = *made.last().unwrap();
    for follower in [&mut early, &mut middle] {
        follower.reach(last).await;
        let told: BTreeSet<u64> = follower.commits.iter().copied().collect();
        let due: BTreeSet<u64> = made.range(follower.synced + 1..).copied().collect();
        assert_eq!(told, due, "every commit after the full state, and no other");
    }
    assert_eq!(early.known.len(), WRITERS * (EACH + 1));
    assert_eq!(early.known, middle.known);
    for w in 0..WRITERS {
        assert_eq!(early.known[&key(&format!("w{w}"))], record(&(EACH - 1).to_string()));
    }
}

pub async fn a_name_has_one_winner(place: &dyn Place) {
    let store = place.open().await;
    for round in 0..10 {
        let name = format!("contested-{round}");
        let claims = (0..20).map(|n| {
            let (store, name) = (Arc::clone(&store), name.clone());
            async move { (n, store.commit(vec![put(&name, &n.to_string(), Expect::Absent)]).await) }
        });
        let verdicts = futures::future::join_all(claims).await;
        let winners: Vec<_> = verdicts.iter().filter(|(_, verdict)| verdict.is_ok()).collect();
        let [(winner, Ok(revision))] = winners[..] else { panic!("{} winners", winners.len()) };
        for (_, verdict) in verdicts.iter().filter(|(n, _)| n != winner) {
            assert_eq!(verdict, &Err(StoreError::Conflict { key: key(&name), found: Some(*revision) }));
        }
        assert_eq!(Follower::new(&*store).await.known[&key(&name)], record(&winner.to_string()));
    }
}

pub async fn compare_and_set_loses_no_update(place: &dyn Place) {
    const WRITERS: usize = 8;
    const EACH: usize = 20;
    let store = place.open().await;
    let first = store.commit(vec![put("count", "0", Expect::Absent)]).await.unwrap();
    let writers = (0..WRITERS).map(|_| {
        let store = Arc::clone(&store);
        async move {
            let mut follower = Follower::new(&*store).await;
            let (mut at, mut added) = (first, 0);
            while added < EACH {
                follower.reach(at).await;
                // Only this key is written, so its last revision is that of the store.
                let count: usize = follower.texts()[0].1.parse().unwrap();
                let next = put("count", &(count + 1).to_string(), Expect::Revision(follower.revision));
                match store.commit(vec![next]).await {
                    Ok(revision) => (at, added) = (revision, added + 1),
                    Err(StoreError::Conflict { found: Some(found), .. }) => at = found,
                    Err(fault) => panic!("{fault}"),
                }
            }
        }
    });
    timeout(PATIENCE, futures::future::join_all(writers)).await.unwrap();
    assert_eq!(Follower::new(&*store).await.texts(), [("count", (WRITERS * EACH).to_string().as_str())]);
}

pub async fn what_was_committed_is_there_when_the_store_is_opened_again(place: &dyn Place) {
    let store = place.open().await;
    let kept =
        store.commit(vec![put("kept", "1", Expect::Any), put("gone", "1", Expect::Any)]).await.unwrap();
    let last = store.commit(vec![delete("gone", Expect::Any)]).await.unwrap();
    let before = Follower::new(&*store).await;
    let known = before.known.clone();
    drop((before, store));

    let store = place.open().await;
    let again = Follower::new(&*store).await;
    assert_eq!(again.known, known);
    assert!(again.synced >= last, "revisions go on from {last}: {}", again.synced);
    let next = store.commit(vec![put("kept", "2", Expect::Revision(kept))]).await.unwrap();
    assert!(next > last, "{next} after {last}");
}

pub async fn a_follower_that_does_not_read_holds_up_nobody(place: &dyn Place) {
    let store = place.open().await;
    let mut stuck = Follower::new(&*store).await;
    let mut reader = Follower::new(&*store).await;
    let mut last = 0;
    for round in 0..40 {
        let commits =
            (0..50).map(|n| store.commit(vec![put(&format!("k{n}"), &round.to_string(), Expect::Any)]));
        let made = timeout(PATIENCE, futures::future::join_all(commits)).await.unwrap();
        last = made.into_iter().map(Result::unwrap).max().unwrap().max(last);
        reader.reach(last).await;
    }
    stuck.reach(last).await;
    assert_eq!(stuck.known, reader.known, "it catches up all the same");
}
