//! How UDP payloads are framed.
//!
//! In a DATAGRAM frame (RFC 9221): the *flow number*, a variable-length integer (RFC 9000 section 16), then the payload.
//! The flow number is the quarter of the stream id of the association's stream, as RFC 9297 does it for HTTP.
//!
//! On the stream, behind header or verdict: messages of a two-octet length, big endian, and the payload. They carry what is
//! too large for a DATAGRAM frame, and what is sent before the verdict has come.

/// Largest UDP payload over IPv4 (65,535 less 20 octets of IP and 8 of UDP header); IPv6 without jumbograms allows 20 more.
pub const MAX_PAYLOAD: usize = 65_527;
/// Octets of a message's length.
pub const MESSAGE_PREFIX: usize = 2;

/// Octets that the flow number takes in front of a payload.
pub fn flow_number_length(flow: u64) -> usize {
    match flow {
        0..=0x3f => 1,
        0x40..=0x3fff => 2,
        0x4000..=0x3fff_ffff => 4,
        _ => 8,
    }
}

/// Appends the flow number. Numbers above 2^62 - 1 do not exist in QUIC and are cut.
pub fn put_flow_number(flow: u64, out: &mut Vec<u8>) {
    match flow_number_length(flow) {
        1 => out.push(flow as u8),
        2 => out.extend((flow as u16 | 0x4000).to_be_bytes()),
        4 => out.extend((flow as u32 | 0x8000_0000).to_be_bytes()),
        _ => out.extend((flow & 0x3fff_ffff_ffff_ffff | 0xc000_0000_0000_0000).to_be_bytes()),
    }
}

/// The flow number in front of a DATAGRAM frame's payload, and how many octets it takes; none when it is cut off.
pub fn flow_number(frame: &[u8]) -> Option<(u64, usize)> {
    let first = *frame.first()?;
    let length = 1usize << (first >> 6);
    let octets = frame.get(..length)?;
    let value = octets[1..].iter().fold(u64::from(first & 0x3f), |v, b| v << 8 | u64::from(*b));
    Some((value, length))
}

/// Appends a message; false, and nothing appended, when the payload is over [`MAX_PAYLOAD`].
pub fn put_message(payload: &[u8], out: &mut Vec<u8>) -> bool {
    let Ok(length) = u16::try_from(payload.len()) else { return false };
    if payload.len() > MAX_PAYLOAD {
        return false;
    }
    out.extend(length.to_be_bytes());
    out.extend(payload);
    true
}

/// The payload length that a message's prefix announces; none when it is over [`MAX_PAYLOAD`].
pub fn message_length(prefix: [u8; MESSAGE_PREFIX]) -> Option<usize> {
    let length = usize::from(u16::from_be_bytes(prefix));
    (length <= MAX_PAYLOAD).then_some(length)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_examples_of_rfc_9000_appendix_a() {
        assert_eq!(
            flow_number(&[0xc2, 0x19, 0x7c, 0x5e, 0xff, 0x14, 0xe8, 0x8c]),
            Some((151_288_809_941_952_652, 8))
        );
        assert_eq!(flow_number(&[0x9d, 0x7f, 0x3e, 0x7d]), Some((494_878_333, 4)));
        assert_eq!(flow_number(&[0x7b, 0xbd]), Some((15_293, 2)));
        assert_eq!(flow_number(&[0x25]), Some((37, 1)));
        assert_eq!(flow_number(&[0x40, 0x25]), Some((37, 2)));
        assert_eq!(flow_number(&[0x9d, 0x7f, 0x3e]), None);
        assert_eq!(flow_number(&[]), None);
    }

    #[test]
    fn messages_are_bounded() {
        let mut out = Vec::new();
        assert!(!put_message(&vec![0; MAX_PAYLOAD + 1], &mut out) && out.is_empty());
        assert!(put_message(&vec![1; MAX_PAYLOAD], &mut out));
        assert_eq!(message_length([out[0], out[1]]), Some(MAX_PAYLOAD));
        assert_eq!(message_length([0xff, 0xff]), None);
    }

    proptest! {
        #[test]
        fn flow_numbers_survive(flow in 0u64..1 << 62, payload in proptest::collection::vec(any::<u8>(), 0..20)) {
            let mut out = Vec::new();
            put_flow_number(flow, &mut out);
            prop_assert_eq!(out.len(), flow_number_length(flow));
            out.extend(&payload);
            let (read, at) = flow_number(&out).unwrap();
            prop_assert_eq!(read, flow);
            prop_assert_eq!(&out[at..], &payload);
        }

        #[test]
        fn arbitrary_octets_never_panic(octets in proptest::collection::vec(any::<u8>(), 0..20)) {
            if let Some((_, at)) = flow_number(&octets) {
                prop_assert!(at <= octets.len());
            }
        }
    }
}
