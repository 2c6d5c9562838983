//! A header that is read is written back as one that reads the same.

use carrick_gateway_core::{FlowHeader, header::PREFIX};

/// One input.
pub fn run(octets: &[u8]) {
    let Some((prefix, rest)) = octets.split_first_chunk::<PREFIX>() else { return };
    let Ok(header) = FlowHeader::decode(*prefix, rest) else { return };
    let mut out = Vec::new();
    header.encode(&mut out);
    let (prefix, rest) = out.split_first_chunk::<PREFIX>().expect("a header has a prefix");
    assert_eq!(FlowHeader::decode(*prefix, rest), Ok(header));
}
