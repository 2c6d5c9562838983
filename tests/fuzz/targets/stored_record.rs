//! A record that is read from a store is written back as one that reads the same.

use carrick_registry::store::StoredRecord;

/// One input.
pub fn run(octets: &[u8]) {
    if let Ok(record) = StoredRecord::decode(octets) {
        assert_eq!(StoredRecord::decode(&record.encode()), Ok(record));
    }
}
