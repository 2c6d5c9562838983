//! Control messages and datagram framing: what is read is written back the same.

use carrick_gateway_core::{control, datagram};

/// One input.
pub fn run(octets: &[u8]) {
    if let Some((prefix, body)) = octets.split_first_chunk::<{ control::PREFIX }>() {
        let _length = control::Message::body_length(*prefix);
        if let Ok(Some(message)) = control::Message::decode(*prefix, body) {
            let mut out = Vec::new();
            message.encode(&mut out);
            assert_eq!(&out[control::PREFIX..], body);
        }
    }
    if let Some((flow, at)) = datagram::flow_number(octets) {
        let mut out = Vec::new();
        datagram::put_flow_number(flow, &mut out);
        assert!(at <= octets.len() && out.len() <= at);
    }
}
