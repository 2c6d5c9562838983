//! The embedded store: the contract of all stores, and what is its own: it survives being killed.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may")]

use std::{
    collections::BTreeMap,
    env,
    io::{BufRead as _, BufReader, Write as _},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{Arc, RwLock},
    time::Duration,
};

use carrick_registry::store::{EmbeddedStore, Expect, OpenError, Store};
use store_contract::{Follower, Place, key, put, record};

mod store_contract;

/// Held while a child is made. Between fork and exec it has copies of all our descriptors, and the lock on a file goes with the last
/// of them: a store that was closed meanwhile would be found in use.
static SPAWNING: RwLock<()> = RwLock::new(());

struct Directory(tempfile::TempDir);

impl Directory {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn file(&self) -> PathBuf {
        self.0.path().join("registry.redb")
    }
}

#[tonic::async_trait]
impl Place for Directory {
    async fn open(&self) -> Arc<dyn Store> {
        let _no_copies = SPAWNING.read().unwrap();
        Arc::new(EmbeddedStore::open(&self.file()).unwrap())
    }
}

store_contract!(Directory::new());

#[tokio::test]
async fn a_store_that_cannot_be_used_says_why() {
    let directory = Directory::new();
    let open = EmbeddedStore::open(&directory.file()).unwrap();
    let second = EmbeddedStore::open(&directory.file()).unwrap_err();
    assert!(matches!(second, OpenError::InUse { .. }), "{second:?}");
    assert!(second.hint().contains("state_dir"), "{}", second.hint());
    drop(open);

    let nowhere = EmbeddedStore::open(&directory.0.path().join("missing/registry.redb")).unwrap_err();
    assert!(matches!(nowhere, OpenError::Io { .. }), "{nowhere:?}");
    assert!(nowhere.to_string().contains("missing/registry.redb"), "{nowhere}");

    let other = directory.0.path().join("other");
    std::fs::write(&other, vec![b'x'; 100_000]).unwrap();
    let damaged = EmbeddedStore::open(&other).unwrap_err();
    assert!(matches!(damaged, OpenError::Damaged { .. }), "{damaged:?}");
    assert!(damaged.hint().contains("move the file away"), "{}", damaged.hint());
    assert_eq!(std::fs::read(&other).unwrap(), vec![b'x'; 100_000], "what is not ours is left alone");
}

#[test]
fn the_file_is_for_its_owner_alone() {
    use std::os::unix::fs::PermissionsExt as _;
    let directory = Directory::new();
    drop(EmbeddedStore::open(&directory.file()).unwrap());
    let mode = std::fs::metadata(directory.file()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

/// Where the child finds its file; the child is this test program, run once more.
const FILE_OF_CHILD: &str = "CARRICK_STORE_OF_CHILD";
const WRITERS: usize = 8;

/// Writes until it is killed and says what was acknowledged. Without the variable it is no child and does nothing.
#[test]
fn the_child_that_is_killed() {
    let Some(file) = env::var_os(FILE_OF_CHILD) else { return };
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let store = Arc::new(EmbeddedStore::open(Path::new(&file)).unwrap());
        let start = Follower::new(&*store).await.revision;
        let writers = (0..WRITERS).map(|w| {
            let store = Arc::clone(&store);
            async move {
                for n in start.. {
                    let text = n.to_string();
                    let changes = vec![
                        put(&format!("w{w}/{n}"), "x", Expect::Any),
                        put(&format!("left{w}"), &text, Expect::Any),
                        put(&format!("right{w}"), &text, Expect::Any),
                    ];
                    let revision = store.commit(changes).await.unwrap();
                    let mut out = std::io::stdout().lock();
                    writeln!(out, "ack {w} {n} {revision}").unwrap();
                    out.flush().unwrap();
                }
            }
        });
        futures::future::join_all(writers).await;
    });
}

#[test]
fn a_kill_at_any_moment_loses_nothing_that_was_acknowledged() {
    let directory = Directory::new();
    // By name and number: what was acknowledged over all lives.
    let mut acknowledged: BTreeMap<String, u64> = BTreeMap::new();
    let mut highest = 0;
    for life in 0..12_u64 {
        let mut command = Command::new(env::current_exe().unwrap());
        command
            .args(["--exact", "the_child_that_is_killed", "--nocapture", "--test-threads=1"])
            .env(FILE_OF_CHILD, directory.file())
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        let mut child = {
            let _alone = SPAWNING.write().unwrap();
            command.spawn().unwrap()
        };
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        // A different moment in each life: from the first commits on, then further and further in.
        let enough = 1 + life * life * 23 % 977;
        let mut seen = 0;
        let mut note = |line: String| {
            let Some(ack) = line.find("ack ") else { return false };
            let fields: Vec<u64> = line[ack + 4..].split(' ').map_while(|f| f.parse().ok()).collect();
            let [w, n, revision] = fields[..] else { return false };
            acknowledged.insert(format!("w{w}/{n}"), revision);
            highest = highest.max(revision);
            true
        };
        while seen < enough {
            let line = lines.next().expect("the child ended by itself").unwrap();
            seen += u64::from(note(line));
        }
        child.kill().unwrap();
        child.wait().unwrap();
        // A line that the kill cut in two is no acknowledgement: it lacks its end.
        let rest: Vec<String> = lines.map_while(Result::ok).collect();
        let whole = rest.len().saturating_sub(1);
        rest.into_iter().take(whole).for_each(|line| {
            note(line);
        });

        let runtime = tokio::runtime::Runtime::new().unwrap();
        let follower = runtime.block_on(async {
            let store = EmbeddedStore::open(&directory.file()).unwrap();
            tokio::time::timeout(Duration::from_secs(60), Follower::new(&store)).await.unwrap()
        });
        assert!(follower.synced >= highest, "life {life}: {} after {highest}", follower.synced);
        for name in acknowledged.keys() {
            assert_eq!(follower.known.get(&key(name)), Some(&record("x")), "life {life} lost {name}");
        }
        for w in 0..WRITERS {
            let [left, right] = ["left", "right"].map(|side| follower.known.get(&key(&format!("{side}{w}"))));
            assert_eq!(left, right, "life {life} tore a commit of writer {w}");
        }
    }
    assert!(acknowledged.len() > 1000, "only {} commits were acknowledged", acknowledged.len());
}
