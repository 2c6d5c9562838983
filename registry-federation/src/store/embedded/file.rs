//! The file of the store: its tables, and opening it again after it failed.

use std::{
    fmt, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use redb::{
    Database, DatabaseError, ReadableDatabase as _, ReadableTable as _, TableDefinition, WriteTransaction,
};

use super::OpenError;
use crate::store::{Change, Key, Kind, StoreError, StoredRecord};

/// Records: kind and name to the revision that wrote them (8 octets, big endian) and the record.
const RECORDS: TableDefinition<'_, (u8, &str), &[u8]> = TableDefinition::new("records");

/// Numbers about the whole: [`REVISION`], [`FORM`].
const NUMBERS: TableDefinition<'_, &str, u64> = TableDefinition::new("numbers");
const REVISION: &str = "revision";
const FORM: &str = "form";
/// The form of the tables. Raise it when an older daemon must not use what a newer one wrote.
const FORM_NOW: u64 = 1;

/// Pages kept in memory. The catalogue answers all reads, so this serves the upper levels of the trees in writing.
const CACHE: usize = 64 << 20;

/// Pause between attempts to open a file that failed: reading it back can take a second (0.6 s at 1,000,000 records).
const REOPEN: Duration = Duration::from_secs(1);

/// How to open the database; tests put a disk under it that fails.
pub(super) struct Opener(Box<dyn Fn() -> Result<Database, DatabaseError> + Send + Sync>);

impl Opener {
    pub(super) fn path(path: &Path) -> Self {
        let path = path.to_owned();
        Self(Box::new(move || Database::builder().set_cache_size(CACHE).create(&path)))
    }

    #[cfg(test)]
    pub(super) fn new(open: impl Fn() -> Result<Database, DatabaseError> + Send + Sync + 'static) -> Self {
        Self(Box::new(open))
    }
}

impl fmt::Debug for Opener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Opener")
    }
}

/// The file, open or failed.
#[derive(Debug)]
pub(super) struct File {
    name: String,
    path: PathBuf,
    opener: Opener,
    state: Mutex<State>,
}

#[derive(Debug)]
enum State {
    Open(Arc<Database>),
    Failed { fault: StoreError, at: Instant },
}

/// What became of a transaction.
pub(super) enum Outcome {
    /// It is durable.
    Made,
    /// It is not in the file, for this reason.
    NotMade(StoreError),
    /// The file cannot be read back now.
    Unknown(StoreError),
}

impl File {
    pub(super) fn open(name: String, path: &Path, opener: Opener) -> Result<Self, OpenError> {
        let path = path.to_owned();
        let damaged =
            |fault: &redb::Error| OpenError::Damaged { path: path.clone(), reason: fault.to_string() };
        let database = (opener.0)().map_err(|fault| match fault {
            DatabaseError::DatabaseAlreadyOpen => OpenError::InUse { path: path.clone() },
            other => match redb::Error::from(other) {
                // Too short or of another kind: redb says so with an error of the system.
                redb::Error::Io(source) if source.kind() != io::ErrorKind::InvalidData => {
                    OpenError::Io { path: path.clone(), source }
                }
                other => damaged(&other),
            },
        })?;
        let form = prepare(&database).map_err(|fault| match fault {
            redb::Error::Io(source) => OpenError::Io { path: path.clone(), source },
            other => damaged(&other),
        })?;
        if form != FORM_NOW {
            return Err(OpenError::Newer { path, form });
        }
        Ok(Self { name, path, opener, state: Mutex::new(State::Open(Arc::new(database))) })
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// The database, opened again if it failed and some time has passed.
    pub(super) fn database(&self) -> Result<Arc<Database>, StoreError> {
        let mut state = self.state.lock();
        match &*state {
            State::Open(database) => Ok(Arc::clone(database)),
            State::Failed { fault, at } if at.elapsed() < REOPEN => Err(fault.clone()),
            State::Failed { .. } => self.reopen(&mut state),
        }
    }

    /// Takes note that `transaction` failed on `database`, which is closed for it, and finds out what the file says:
    /// whether the revision it was to have is in it.
    pub(super) fn failed(&self, database: Arc<Database>, fault: &redb::Error, revision: u64) -> Outcome {
        let fault = self.fault(fault);
        let mut state = self.state.lock();
        *state = State::Failed { fault: fault.clone(), at: Instant::now() };
        drop(database);
        let read = self
            .reopen(&mut state)
            .and_then(|database| revision_of(&database).map_err(|fault| self.fault(&fault)));
        match read {
            Ok(found) if found >= revision => Outcome::Made,
            Ok(_) => Outcome::NotMade(fault),
            Err(_) => Outcome::Unknown(fault),
        }
    }

    fn reopen(&self, state: &mut State) -> Result<Arc<Database>, StoreError> {
        match (self.opener.0)() {
            Ok(database) => {
                let database = Arc::new(database);
                *state = State::Open(Arc::clone(&database));
                tracing::info!(path = %self.path.display(), "the registry's store is open again");
                Ok(database)
            }
            Err(fault) => {
                let fault = self.fault(&fault.into());
                *state = State::Failed { fault: fault.clone(), at: Instant::now() };
                Err(fault)
            }
        }
    }

    /// The error that callers get for a fault of the file.
    pub(super) fn fault(&self, fault: &redb::Error) -> StoreError {
        use io::ErrorKind::{FileTooLarge, PermissionDenied, QuotaExceeded, ReadOnlyFilesystem, StorageFull};
        let (store, reason) = (self.name.clone(), fault.to_string());
        let redb::Error::Io(source) = fault else {
            return StoreError::Unavailable { store, reason };
        };
        match source.kind() {
            StorageFull | QuotaExceeded | FileTooLarge => StoreError::Full { store },
            ReadOnlyFilesystem | PermissionDenied => StoreError::ReadOnly { store, reason },
            _ => StoreError::Unavailable { store, reason },
        }
    }
}

/// Makes the tables if they are missing, and tells the form of the file.
fn prepare(database: &Database) -> Result<u64, redb::Error> {
    let transaction = database.begin_write()?;
    let form = {
        transaction.open_table(RECORDS)?;
        let mut numbers = transaction.open_table(NUMBERS)?;
        let form = numbers.get(FORM)?.map(|form| form.value());
        match form {
            Some(form) => form,
            None => {
                numbers.insert(FORM, FORM_NOW)?;
                FORM_NOW
            }
        }
    };
    transaction.commit()?;
    Ok(form)
}

/// The last revision in the file.
pub(super) fn revision_of(database: &Database) -> Result<u64, redb::Error> {
    let numbers = database.begin_read()?.open_table(NUMBERS)?;
    Ok(numbers.get(REVISION)?.map_or(0, |revision| revision.value()))
}

/// Puts the changes of a commit into a transaction, or says which key is not as expected.
pub(super) fn apply(
    transaction: &WriteTransaction,
    changes: &[Change],
    revision: u64,
) -> Result<Result<(), StoreError>, redb::Error> {
    let mut records = transaction.open_table(RECORDS)?;
    for change in changes {
        let key = change.key();
        let found = records.get(slot(key))?.map(|stored| split(stored.value()).0);
        if !change.expect().holds(found) {
            return Ok(Err(StoreError::Conflict { key: key.clone(), found }));
        }
    }
    for change in changes {
        match change {
            Change::Put { key, record, .. } => {
                let mut value = revision.to_be_bytes().to_vec();
                value.extend(record.encode());
                records.insert(slot(key), value.as_slice())?;
            }
            Change::Delete { key, .. } => {
                records.remove(slot(key))?;
            }
        }
    }
    Ok(Ok(()))
}

/// Sets the last revision.
pub(super) fn set_revision(transaction: &WriteTransaction, revision: u64) -> Result<(), redb::Error> {
    transaction.open_table(NUMBERS)?.insert(REVISION, revision)?;
    Ok(())
}

/// Gives every record of one moment to `tell`, until that says no, and tells the revision of that moment.
pub(super) fn snapshot(
    database: &Database,
    mut tell: impl FnMut(Key, StoredRecord, u64) -> bool,
) -> Result<u64, redb::Error> {
    let transaction = database.begin_read()?;
    for entry in transaction.open_table(RECORDS)?.iter()? {
        let (slot, value) = entry?;
        let (kind, name) = slot.value();
        let (revision, octets) = split(value.value());
        let record = StoredRecord::decode(octets);
        let (kind, record) = match (kind_of(kind), record) {
            (Some(kind), Ok(record)) => (kind, record),
            (_, record) => {
                // What cannot be read is not offered; the endpoint registers anew, which replaces it.
                let fault = record.err().map(|fault| fault.to_string());
                tracing::error!(kind, name, fault, "a stored registration is left out");
                continue;
            }
        };
        if !tell(Key { kind, name: name.to_owned() }, record, revision) {
            break;
        }
    }
    let numbers = transaction.open_table(NUMBERS)?;
    Ok(numbers.get(REVISION)?.map_or(0, |revision| revision.value()))
}

fn slot(key: &Key) -> (u8, &str) {
    let kind = match key.kind {
        Kind::Service => 1,
        Kind::Endpoint => 2,
    };
    (kind, &key.name)
}

fn kind_of(number: u8) -> Option<Kind> {
    match number {
        1 => Some(Kind::Service),
        2 => Some(Kind::Endpoint),
        _ => None,
    }
}

/// A value as revision and record; what is too short has revision 0 and no record.
fn split(value: &[u8]) -> (u64, &[u8]) {
    value.split_first_chunk().map_or((0, &[]), |(revision, record)| (u64::from_be_bytes(*revision), record))
}
