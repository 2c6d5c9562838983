//! The store on a disk that fills up, turns read-only or fails: what writers and followers are told, and how it comes
//! back.

use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use redb::{Database, StorageBackend};
use std::time::Duration;

use super::*;
use crate::store::{Expect, Key, Kind, StoredRecord};

/// Octets that survive being closed, and a fault that can be switched on.
#[derive(Debug, Default)]
struct Disk {
    octets: Mutex<Vec<u8>>,
    fault: Mutex<Option<Fault>>,
    /// Whether it cannot even be opened.
    gone: AtomicBool,
}

#[derive(Debug, Clone, Copy)]
enum Fault {
    /// No octet more than there are.
    Full,
    /// No write at all.
    Unwritable(io::ErrorKind),
    /// Writes arrive, but the sync after them fails.
    Unsynced,
}

#[derive(Debug)]
struct Handle(Arc<Disk>);

impl StorageBackend for Handle {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.octets.lock().len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let octets = self.0.octets.lock();
        let offset = offset as usize;
        out.copy_from_slice(&octets[offset..offset + out.len()]);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut octets = self.0.octets.lock();
        match *self.0.fault.lock() {
            Some(Fault::Full) if len > octets.len() as u64 => Err(io::ErrorKind::StorageFull.into()),
            Some(Fault::Unwritable(kind)) => Err(kind.into()),
            _ => {
                octets.resize(len as usize, 0);
                Ok(())
            }
        }
    }

    fn sync_data(&self) -> io::Result<()> {
        match *self.0.fault.lock() {
            Some(Fault::Unsynced) => Err(io::Error::other("the device reported a fault")),
            _ => Ok(()),
        }
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        if let Some(Fault::Unwritable(kind)) = *self.0.fault.lock() {
            return Err(kind.into());
        }
        let offset = offset as usize;
        self.0.octets.lock()[offset..offset + data.len()].copy_from_slice(data);
        Ok(())
    }
}

impl Disk {
    fn store(self: &Arc<Self>) -> EmbeddedStore {
        let disk = Arc::clone(self);
        let opener = Opener::new(move || {
            if disk.gone.load(Ordering::Relaxed) {
                return Err(redb::DatabaseError::Storage(redb::StorageError::Io(
                    io::ErrorKind::ReadOnlyFilesystem.into(),
                )));
            }
            Database::builder().create_with_backend(Handle(Arc::clone(&disk)))
        });
        EmbeddedStore::with_opener(Path::new("/state/registry.redb"), opener).unwrap()
    }

    fn set(&self, fault: Option<Fault>) {
        *self.fault.lock() = fault;
    }
}

fn put(name: &str, size: usize) -> Vec<Change> {
    let key = Key { kind: Kind::Endpoint, name: name.into() };
    let record = StoredRecord { object: vec![7; size], owner: None, via: None, expires: None };
    vec![Change::Put { key, record, expect: Expect::Any }]
}

/// The names a new follower is told, and the revision.
async fn names(store: &EmbeddedStore) -> (Vec<String>, u64) {
    let mut events = store.follow();
    let mut names = Vec::new();
    loop {
        match events.next().await.unwrap() {
            StoreEvent::Record { key, .. } => names.push(key.name),
            StoreEvent::Synced(revision) => return (names, revision),
            StoreEvent::Lost(_) => names.clear(),
            other @ StoreEvent::Committed { .. } => panic!("{other:?} before the state"),
        }
    }
}

/// Commits until it succeeds, as clients of a registry do.
async fn persist(store: &EmbeddedStore, name: &str) -> u64 {
    let again = async {
        loop {
            match store.commit(put(name, 10)).await {
                Ok(revision) => return revision,
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(20), again).await.unwrap()
}

#[tokio::test]
async fn a_full_disk_refuses_writes_keeps_what_there_is_and_goes_on_when_there_is_room() {
    let disk = Arc::new(Disk::default());
    let store = disk.store();
    assert_eq!(store.commit(put("first", 10)).await, Ok(1));
    let mut follower = store.follow();
    assert!(matches!(follower.next().await, Some(StoreEvent::Record { .. })));
    assert_eq!(follower.next().await, Some(StoreEvent::Synced(1)));

    disk.set(Some(Fault::Full));
    let mut fault = None;
    for n in 0..100 {
        if let Err(refused) = store.commit(put(&format!("bulk-{n}"), 1 << 20)).await {
            fault = Some((n, refused));
            break;
        }
    }
    let (made, fault) = fault.expect("a disk without room takes no 100 MiB");
    assert!(matches!(fault, StoreError::Full { .. }), "{fault:?}");
    assert!(fault.to_string().contains("/state/registry.redb is full"), "{fault}");
    assert!(fault.hint().contains("room"), "{}", fault.hint());
    assert_eq!(names(&store).await.1, 1 + made, "what is there can be read");

    disk.set(None);
    let revision = persist(&store, "last").await;
    assert_eq!(revision, 2 + made, "the refused commit took no revision");
    let (names, _) = names(&store).await;
    assert!(names.contains(&"first".to_owned()) && names.contains(&"last".to_owned()), "{names:?}");
    assert!(!names.contains(&format!("bulk-{made}")), "what was refused is not there");
    for expected in 2..=revision {
        let told = follower.next().await;
        assert!(
            matches!(told, Some(StoreEvent::Committed { revision, .. }) if revision == expected),
            "a follower misses nothing and is not bothered: {told:?}"
        );
    }
}

#[tokio::test]
async fn a_read_only_disk_is_told_as_that() {
    let disk = Arc::new(Disk::default());
    let store = disk.store();
    assert_eq!(store.commit(put("first", 10)).await, Ok(1));
    disk.set(Some(Fault::Unwritable(io::ErrorKind::ReadOnlyFilesystem)));
    disk.gone.store(true, Ordering::Relaxed);
    let mut refused = Vec::new();
    for _ in 0..3 {
        refused.push(store.commit(put("second", 10)).await.unwrap_err());
    }
    assert!(matches!(refused[0], StoreError::Uncertain { .. }), "its last write may be there: {refused:?}");
    assert!(matches!(refused[1], StoreError::ReadOnly { .. }), "{refused:?}");
    assert!(refused[1].hint().contains("remount"), "{}", refused[1].hint());

    disk.set(None);
    disk.gone.store(false, Ordering::Relaxed);
    assert_eq!(persist(&store, "second").await, 2);
    assert_eq!(names(&store).await, (vec!["first".to_owned(), "second".to_owned()], 2));
}

#[tokio::test]
async fn a_commit_whose_sync_failed_gets_the_verdict_of_the_file() {
    let disk = Arc::new(Disk::default());
    let store = disk.store();
    assert_eq!(store.commit(put("first", 10)).await, Ok(1));
    let mut follower = store.follow();
    while !matches!(follower.next().await, Some(StoreEvent::Synced(_))) {}
    disk.set(Some(Fault::Unsynced));
    let verdict = store.commit(put("second", 10)).await;
    disk.set(None);
    let revision = persist(&store, "third").await;
    let (names, at) = names(&store).await;
    assert_eq!(at, revision);
    match verdict {
        Ok(made) => assert!(made == 2 && names.contains(&"second".to_owned()), "{names:?}"),
        Err(StoreError::Uncertain { .. }) => {}
        Err(_) => assert!(!names.contains(&"second".to_owned()), "refused and made: {names:?}"),
    }
    // However it went, the follower ends with what the file holds.
    let mut known: Vec<String> = vec!["first".into()];
    while !known.contains(&"third".to_owned()) {
        match tokio::time::timeout(Duration::from_secs(20), follower.next()).await.unwrap().unwrap() {
            StoreEvent::Lost(_) => known.clear(),
            StoreEvent::Record { key, .. } => known.push(key.name),
            StoreEvent::Committed { changes, .. } => {
                known.extend(changes.into_iter().map(|(key, _)| key.name));
            }
            StoreEvent::Synced(_) => {}
        }
    }
    known.sort();
    let mut names = names;
    names.sort();
    assert_eq!(known, names);
}
