//! Which key of etcd is for what.
//!
//! | key | value |
//! |---|---|
//! | `<prefix>/<domain>/1/service/<name>` | a record of a network service |
//! | `<prefix>/<domain>/1/endpoint/<name>` | a record of an endpoint |
//! | `<prefix>/<domain>/1/writer/<id>` | the number of the last batch of one replica, see [`batch`](super::batch) |
//!
//! The 1 is the version of this table. A record is followed by the [mark](Mark) of the commit that wrote it.

use bytes::Bytes;
use carrick_model::Domain;
use prost::Message as _;
use uuid::Uuid;

use super::super::{Key, Kind, RecordFault, StoredRecord};

/// The keys of one domain in one etcd.
#[derive(Debug, Clone)]
pub(super) struct Keyspace {
    root: String,
}

/// What a key is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Entry {
    /// A record.
    Record(Key),
    /// How far a replica has written.
    Writer,
}

/// Which commit wrote a record: the replica and a number of its own. It follows the octets of the record as one more
/// protobuf field, which those who read the record alone skip.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(super) struct Mark {
    #[prost(bytes = "vec", tag = "15")]
    pub(super) commit: Vec<u8>,
}

impl Keyspace {
    /// The keys of `domain` under `prefix`.
    pub(super) fn new(prefix: &str, domain: &Domain) -> Self {
        Self { root: format!("{}/{domain}/1/", prefix.trim_end_matches('/')) }
    }

    /// All keys: from the first to the one after the last.
    pub(super) fn range(&self) -> (Bytes, Bytes) {
        // `0` is the octet after `/`.
        let end = format!("{}0", self.root.trim_end_matches('/'));
        (Bytes::copy_from_slice(self.root.as_bytes()), end.into())
    }

    /// The key of a record.
    pub(super) fn record(&self, key: &Key) -> Bytes {
        format!("{}{}/{}", self.root, key.kind.as_str(), key.name).into()
    }

    /// The key of a writer.
    pub(super) fn writer(&self, id: Uuid) -> Bytes {
        format!("{}writer/{id}", self.root).into()
    }

    /// What a key is for; `None` when we did not write it.
    pub(super) fn parse(&self, key: &[u8]) -> Option<Entry> {
        let rest = std::str::from_utf8(key).ok()?.strip_prefix(&self.root)?;
        let (kind, name) = rest.split_once('/')?;
        let kind = match kind {
            "service" => Kind::Service,
            "endpoint" => Kind::Endpoint,
            "writer" => return Some(Entry::Writer),
            _ => return None,
        };
        (!name.is_empty()).then(|| Entry::Record(Key { kind, name: name.to_owned() }))
    }
}

impl Mark {
    /// The mark of commit `number` of a writer.
    pub(super) fn new(writer: Uuid, number: u64) -> Self {
        Self { commit: [writer.as_bytes().as_slice(), &number.to_be_bytes()].concat() }
    }

    /// The value of a key: the record, then the mark.
    pub(super) fn value(&self, record: &StoredRecord) -> Bytes {
        let mut value = record.encode();
        value.extend(self.encode_to_vec());
        value.into()
    }

    /// Whether this commit wrote the value.
    pub(super) fn wrote(&self, value: &[u8]) -> bool {
        Self::decode(value).is_ok_and(|mark| mark == *self)
    }
}

/// The record of a value.
pub(super) fn record(value: &[u8]) -> Result<StoredRecord, RecordFault> {
    StoredRecord::decode(value)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn keyspace() -> Keyspace {
        Keyspace::new("/carrick/", &"own.test".parse().unwrap())
    }

    proptest! {
        #[test]
        fn a_key_comes_back_and_lies_in_the_range(name in "\\PC{1,40}", service: bool) {
            let kind = if service { Kind::Service } else { Kind::Endpoint };
            let (key, keyspace) = (Key { kind, name }, keyspace());
            let octets = keyspace.record(&key);
            let (from, to) = keyspace.range();
            prop_assert!(from <= octets && octets < to);
            prop_assert_eq!(keyspace.parse(&octets), Some(Entry::Record(key)));
        }

        #[test]
        fn any_octets_are_looked_at_safely(octets: Vec<u8>) {
            let _ = keyspace().parse(&octets);
            let _ = Mark::new(Uuid::nil(), 1).wrote(&octets);
        }
    }

    #[test]
    fn domains_and_prefixes_keep_apart() {
        let key = Key { kind: Kind::Endpoint, name: "nse".into() };
        let other = Keyspace::new("/carrick", &"other.test".parse().unwrap());
        assert_eq!(keyspace().parse(&other.record(&key)), None);
        let (from, to) = keyspace().range();
        assert!(!(from..to).contains(&other.record(&key)));
        assert_eq!(keyspace().parse(&keyspace().writer(Uuid::nil())), Some(Entry::Writer));
        assert_eq!(keyspace().parse(b"/carrick/own.test/1/junk/x"), None);
    }

    #[test]
    fn a_value_tells_its_record_and_its_commit() {
        let kept = StoredRecord { object: vec![1, 2], owner: None, via: None, expires: None };
        let (mark, later) = (Mark::new(Uuid::from_u128(7), 1), Mark::new(Uuid::from_u128(7), 2));
        let value = mark.value(&kept);
        assert_eq!(record(&value), Ok(kept.clone()));
        assert!(mark.wrote(&value) && !later.wrote(&value) && !mark.wrote(&kept.encode()));
    }
}
