//! A message of a newer program goes through a message of ours and loses nothing.

#![allow(clippy::unwrap_used, reason = "a test may")]

use std::collections::BTreeMap;

use carrick_proto::{connection, networkservice::NetworkServiceRequest, registry};
use proptest::prelude::*;
use prost::Message;

/// A path segment of the future.
#[derive(Clone, PartialEq, Message)]
struct NewSegment {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "15")]
    zone: String,
    #[prost(fixed64, tag = "16")]
    clock: u64,
}

#[derive(Clone, PartialEq, Message)]
struct NewPath {
    #[prost(uint32, tag = "1")]
    index: u32,
    #[prost(message, repeated, tag = "2")]
    path_segments: Vec<NewSegment>,
    #[prost(fixed32, repeated, tag = "2047")]
    colours: Vec<u32>,
}

#[derive(Clone, PartialEq, Message)]
struct NewConnection {
    #[prost(string, tag = "1")]
    id: String,
    #[prost(btree_map = "string, string", tag = "5")]
    labels: BTreeMap<String, String>,
    #[prost(message, optional, tag = "6")]
    path: Option<NewPath>,
    #[prost(sint64, tag = "10")]
    debt: i64,
    /// The greatest number a field can have.
    #[prost(message, optional, tag = "536870911")]
    more: Option<NewSegment>,
    #[prost(group, optional, tag = "12")]
    group: Option<NewSegment>,
}

#[derive(Clone, PartialEq, Message)]
struct NewRequest {
    #[prost(message, optional, tag = "1")]
    connection: Option<NewConnection>,
    #[prost(bytes = "vec", tag = "3")]
    seal: Vec<u8>,
}

#[derive(Clone, PartialEq, Message)]
struct NewLabels {
    #[prost(btree_map = "string, string", tag = "1")]
    labels: BTreeMap<String, String>,
    #[prost(bool, tag = "2")]
    strict: bool,
}

#[derive(Clone, PartialEq, Message)]
struct NewEndpoint {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(btree_map = "string, message", tag = "3")]
    network_service_labels: BTreeMap<String, NewLabels>,
    #[prost(message, repeated, tag = "8")]
    alternatives: Vec<NewEndpoint>,
}

/// What `T` gives back of `new`.
fn through<T: Message + Default, N: Message + Default>(new: &N) -> N {
    let ours = T::decode(new.encode_to_vec().as_slice()).unwrap();
    N::decode(ours.encode_to_vec().as_slice()).unwrap()
}

#[test]
fn a_request_and_an_endpoint_of_the_future_go_through() {
    let segment = |name: &str| NewSegment { name: name.to_owned(), zone: "z".to_owned(), clock: u64::MAX };
    let path = NewPath { index: 1, path_segments: vec![segment("a"), segment("b")], colours: vec![7, 8] };
    let connection = NewConnection {
        id: "c".to_owned(),
        labels: [("app".to_owned(), "web".to_owned())].into(),
        path: Some(path),
        debt: -3,
        more: Some(segment("m")),
        group: Some(segment("g")),
    };
    let request = NewRequest { connection: Some(connection), seal: vec![0; 3000] };
    assert_eq!(through::<NetworkServiceRequest, _>(&request), request);

    let labels = NewLabels { labels: [("v".to_owned(), "1".to_owned())].into(), strict: true };
    let endpoint = |name: &str| NewEndpoint {
        name: name.to_owned(),
        network_service_labels: [("web".to_owned(), labels.clone())].into(),
        alternatives: vec![],
    };
    let whole = NewEndpoint { alternatives: vec![endpoint("two"), endpoint("three")], ..endpoint("one") };
    assert_eq!(through::<registry::NetworkServiceEndpoint, _>(&whole), whole);
}

#[test]
fn what_is_known_is_written_as_prost_writes_it() {
    let timestamp = prost_types::Timestamp { seconds: 5, nanos: 6 };
    let segment = connection::PathSegment {
        name: "a".to_owned(),
        id: "1".to_owned(),
        expires: Some(timestamp),
        metrics: [("rx".to_owned(), "2".to_owned())].into(),
        ..connection::PathSegment::default()
    };
    let octets = b"\x0a\x01a\x12\x011\x22\x04\x08\x05\x10\x06\x2a\x07\x0a\x02rx\x12\x012";
    assert_eq!(segment.encode_to_vec(), octets);
    assert_eq!(connection::PathSegment::decode(&octets[..]).unwrap(), segment);
    // Zeros are not written, and the last of several is valid.
    let mut path = connection::Path::default();
    assert!(path.encode_to_vec().is_empty());
    path.merge(&b"\x08\x05\x08\x07"[..]).unwrap();
    assert_eq!((path.index, path.unknown_fields.is_empty()), (7, true));
    path.clear();
    assert_eq!(path, connection::Path::default());
}

#[test]
fn a_damaged_field_is_a_fault_that_names_where_it_is() {
    let cut = NetworkServiceRequest::decode(&b"\x0a\x03\x52\x05a"[..]).unwrap_err().to_string();
    assert!(cut.contains("NetworkServiceRequest.connection"), "{cut}");
    // A group without an end, one with the end of another, and one that is too deep.
    for damaged in [&b"\x63"[..], b"\x63\x6c", &[0x63; 200]] {
        assert!(connection::Connection::decode(damaged).is_err(), "{damaged:?}");
    }
}

proptest! {
    #[test]
    fn whatever_is_understood_is_understood_again(octets in prop::collection::vec(any::<u8>(), 0..200)) {
        if let Ok(first) = connection::Connection::decode(octets.as_slice()) {
            let again = first.encode_to_vec();
            prop_assert_eq!(again.len(), first.encoded_len());
            prop_assert_eq!(connection::Connection::decode(again.as_slice()).unwrap(), first);
        }
    }

    #[test]
    fn fields_of_any_number_are_kept_in_order(fields in prop::collection::vec((20u32..1 << 29, any::<u64>()), 0..20)) {
        let mut octets = Vec::new();
        for (tag, value) in fields {
            prost::encoding::uint64::encode(tag, &value, &mut octets);
        }
        let ours = registry::NetworkService::decode(octets.as_slice()).unwrap();
        prop_assert_eq!(ours.encode_to_vec(), octets);
    }
}
