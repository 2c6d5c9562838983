//! The file of connections that pass through: one [`Kept`] for each, by our id.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use carrick_model::{Domain, SpiffeId, TrustDomain};
use carrick_proto::connection::Connection;
use carrick_proxy_core::transit::{Carried, Held, Hop, Kept};
use carrick_runtime::create_private;
use prost::Message as _;
use redb::{Database, ReadableDatabase as _, ReadableTable as _, TableDefinition, TableError};

use crate::wire;

/// Our id to [`Form`].
const CONNECTIONS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("connections");
/// Pages kept in memory: all is read once, at the start.
const CACHE: usize = 4 << 20;
/// The form of a connection. Raise it when an older daemon must not read what a newer one wrote.
const FORM: u32 = 1;

/// The file. It holds tokens of others, so it is for its owner alone.
#[derive(Debug)]
pub struct ConnectionsFile {
    database: Database,
    path: PathBuf,
}

/// Why the file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FileFault {
    /// The system refuses.
    #[error("{} cannot be opened", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It cannot be read or written.
    #[error("{} cannot be used", path.display())]
    Database {
        /// The file.
        path: PathBuf,
        /// What the database said.
        source: Box<redb::Error>,
    },
}

impl ConnectionsFile {
    /// Opens the file, or begins it. One that is damaged is put aside as `….damaged`: it only saves work.
    ///
    /// # Errors
    /// The system refuses, or another process has the file open.
    pub fn open(path: &Path) -> Result<Self, FileFault> {
        let io = |source| FileFault::Io { path: path.to_owned(), source };
        let fault = |source| FileFault::Database { path: path.to_owned(), source: Box::new(source) };
        let begin = || Database::builder().set_cache_size(CACHE).create(path).map_err(redb::Error::from);
        create_private(path).map_err(io)?;
        let database = match begin() {
            Ok(database) => database,
            // Too short or of another kind: redb says so with an error of the system.
            Err(redb::Error::Io(source)) if source.kind() != io::ErrorKind::InvalidData => {
                return Err(io(source));
            }
            Err(error @ redb::Error::DatabaseAlreadyOpen) => return Err(fault(error)),
            Err(damage) => {
                let aside = path.with_added_extension("damaged");
                tracing::warn!(
                    file = %path.display(), aside = %aside.display(), error = %damage,
                    "connections of before the restart cannot be read: their clients bring them back"
                );
                fs::rename(path, aside).map_err(io)?;
                create_private(path).map_err(io)?;
                begin().map_err(fault)?
            }
        };
        Ok(Self { database, path: path.to_owned() })
    }

    fn fault(&self, source: impl Into<redb::Error>) -> FileFault {
        FileFault::Database { path: self.path.clone(), source: Box::new(source.into()) }
    }

    /// All connections, each with its key; `None` is one that cannot be read.
    pub(super) fn all(&self) -> Result<Vec<(String, Option<Kept>)>, FileFault> {
        let fault = |error: redb::Error| self.fault(error);
        let reading = self.database.begin_read().map_err(|error| fault(error.into()))?;
        let table = match reading.open_table(CONNECTIONS) {
            Ok(table) => table,
            Err(TableError::TableDoesNotExist(_)) => return Ok(Vec::new()),
            Err(error) => return Err(fault(error.into())),
        };
        let rows = table.iter().map_err(|error| fault(error.into()))?;
        rows.map(|row| {
            let (id, octets) = row.map_err(|error| fault(error.into()))?;
            Ok((id.value().to_owned(), decode(octets.value())))
        })
        .collect()
    }

    /// Writes connections, and removes those of which there is nothing to write, all in one synced transaction.
    pub(super) fn write(&self, changes: &[(String, Option<Vec<u8>>)]) -> Result<(), FileFault> {
        let write = || -> Result<(), redb::Error> {
            let writing = self.database.begin_write()?;
            {
                let mut table = writing.open_table(CONNECTIONS)?;
                for (id, octets) in changes {
                    match octets {
                        Some(octets) => drop(table.insert(id.as_str(), octets.as_slice())?),
                        None => drop(table.remove(id.as_str())?),
                    }
                }
            }
            writing.commit()?;
            Ok(())
        };
        write().map_err(|error| self.fault(error))
    }
}

/// A connection on disk: a protobuf message of its own, in which fields can be added.
#[derive(Clone, PartialEq, prost::Message)]
struct Form {
    #[prost(uint32, tag = "1")]
    form: u32,
    #[prost(string, tag = "2")]
    owner: String,
    #[prost(string, tag = "3")]
    origin_name: String,
    #[prost(string, tag = "4")]
    origin_id: String,
    /// Microseconds since the epoch.
    #[prost(uint64, tag = "5")]
    since: u64,
    #[prost(uint64, tag = "6")]
    lease_end: u64,
    /// The next hop: a domain, or a url and, if known, whose it is.
    #[prost(string, tag = "7")]
    hop_domain: String,
    #[prost(string, tag = "8")]
    hop_url: String,
    #[prost(string, tag = "9")]
    hop_trust_domain: String,
    #[prost(string, tag = "10")]
    asked_service: String,
    #[prost(string, tag = "11")]
    service: String,
    #[prost(string, tag = "12")]
    endpoint: String,
    #[prost(bool, tag = "13")]
    leaves: bool,
    #[prost(string, tag = "14")]
    known_as: String,
    #[prost(btree_map = "string, string", tag = "15")]
    labels: BTreeMap<String, String>,
    #[prost(message, optional, tag = "16")]
    carried: Option<Connection>,
    /// Without a path where it is that of `carried`.
    #[prost(message, optional, tag = "17")]
    shown: Option<Connection>,
}

pub(super) fn encode(kept: Kept) -> Vec<u8> {
    let held = kept.held;
    let (mut hop_domain, mut hop_url, mut hop_trust_domain) = Default::default();
    match held.hop {
        Hop::Domain(domain) => hop_domain = domain.to_string(),
        Hop::Url { url, trust_domain } => {
            hop_url = url;
            hop_trust_domain = trust_domain.map(|td| td.to_string()).unwrap_or_default();
        }
    }
    let same_path = held.carried.path == held.shown.path;
    let mut shown = wire::message(held.shown);
    if same_path {
        shown.path = None;
    }
    let form = Form {
        form: FORM,
        owner: kept.owner.to_string(),
        origin_name: kept.origin.0,
        origin_id: kept.origin.1,
        since: micros(kept.since),
        lease_end: micros(kept.lease_end),
        hop_domain,
        hop_url,
        hop_trust_domain,
        asked_service: held.asked_service,
        service: held.service,
        endpoint: held.endpoint,
        leaves: held.leaves,
        known_as: held.known_as,
        labels: held.labels,
        carried: Some(wire::message(held.carried)),
        shown: Some(shown),
    };
    form.encode_to_vec()
}

/// Reads what [`encode`] wrote, except for the id, which is in the path.
fn decode(octets: &[u8]) -> Option<Kept> {
    let form = Form::decode(octets).ok().filter(|form| form.form == FORM)?;
    let hop = match (form.hop_domain.as_str(), form.hop_trust_domain.as_str()) {
        ("", "") => Hop::Url { url: form.hop_url, trust_domain: None },
        ("", td) => Hop::Url { url: form.hop_url, trust_domain: Some(TrustDomain::new(td).ok()?) },
        (domain, _) => Hop::Domain(domain.parse::<Domain>().ok()?),
    };
    let carried = carried(form.carried?)?;
    let shown = match form.shown? {
        connection if connection.path.is_none() => Carried { connection, path: carried.path.clone() },
        connection => self::carried(connection)?,
    };
    Some(Kept {
        id: carried.path.current()?.id.clone(),
        owner: SpiffeId::new(&form.owner).ok()?,
        origin: (form.origin_name, form.origin_id),
        since: time(form.since)?,
        lease_end: time(form.lease_end)?,
        held: Held {
            hop,
            asked_service: form.asked_service,
            service: form.service,
            endpoint: form.endpoint,
            leaves: form.leaves,
            known_as: form.known_as,
            labels: form.labels,
            carried,
            shown,
        },
    })
}

fn carried(mut connection: Connection) -> Option<Carried> {
    let path = wire::path_of(&connection).ok()?;
    connection.path = None;
    Some(Carried { connection, path })
}

fn micros(at: SystemTime) -> u64 {
    let since = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}

fn time(micros: u64) -> Option<SystemTime> {
    SystemTime::UNIX_EPOCH.checked_add(Duration::from_micros(micros))
}

#[cfg(test)]
mod tests {
    use carrick_proxy_core::path::{Path as Hops, Segment};

    use super::*;

    fn kept(id: &str, hop: Hop) -> Kept {
        let at = |s| SystemTime::UNIX_EPOCH + Duration::from_secs(s);
        let segment = |name: &str, id: &str| Segment {
            name: name.to_owned(),
            id: id.to_owned(),
            token: "t".to_owned(),
            expires: Some(at(7)),
            ..Segment::default()
        };
        let segments = vec![segment("nsc", "c"), segment("own", id), segment("nse", "n")];
        let path = Hops { index: 1, segments, ..Hops::default() };
        let connection =
            Connection { id: id.to_owned(), network_service: "web".to_owned(), ..Connection::default() };
        Kept {
            id: id.to_owned(),
            owner: SpiffeId::new("spiffe://cloud.test/nsc").unwrap(),
            origin: ("nsc".to_owned(), "c".to_owned()),
            since: at(5),
            lease_end: at(6),
            held: Held {
                hop,
                asked_service: "web@onprem.test".to_owned(),
                service: "web".to_owned(),
                endpoint: "nse".to_owned(),
                leaves: true,
                known_as: "nse@onprem.test".to_owned(),
                labels: [("app".to_owned(), "a".to_owned())].into(),
                carried: Carried { connection: connection.clone(), path: path.clone() },
                shown: Carried { connection, path },
            },
        }
    }

    #[test]
    fn what_was_written_is_read_again() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("connections.redb");
        let url = |trust_domain| Hop::Url { url: "tcp://10.0.0.1:5001".to_owned(), trust_domain };
        let mut other_path = kept("d", url(None));
        other_path.held.shown.path.segments.pop();
        let all = [
            kept("a", url(None)),
            kept("b", url(Some(TrustDomain::new("onprem.test").unwrap()))),
            kept("c", Hop::Domain("onprem.test".parse().unwrap())),
            other_path,
        ];
        let written: Vec<_> = all.iter().map(|k| (k.id.clone(), Some(encode(k.clone())))).collect();
        {
            let file = ConnectionsFile::open(&path).unwrap();
            assert!(file.all().unwrap().is_empty());
            file.write(&written).unwrap();
            file.write(&[("c".to_owned(), None), ("e".to_owned(), Some(b"\x08\x63".to_vec()))]).unwrap();
            assert!(ConnectionsFile::open(&path).is_err(), "one process at a time");
        }
        let file = ConnectionsFile::open(&path).unwrap();
        let read = file.all().unwrap();
        let [a, b, _, d] = all;
        let expected = [("a", Some(a)), ("b", Some(b)), ("d", Some(d)), ("e", None)];
        assert_eq!(read, expected.map(|(id, kept)| (id.to_owned(), kept)));
        use std::os::unix::fs::PermissionsExt as _;
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn a_damaged_file_is_put_aside() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("connections.redb");
        fs::write(&path, vec![7; 100_000]).unwrap();
        assert!(ConnectionsFile::open(&path).unwrap().all().unwrap().is_empty());
        assert_eq!(fs::read(directory.path().join("connections.redb.damaged")).unwrap().len(), 100_000);
        assert!(matches!(ConnectionsFile::open(directory.path()), Err(FileFault::Io { .. })));
    }
}
