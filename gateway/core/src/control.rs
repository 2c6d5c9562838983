//! Words about the whole tunnel.
//!
//! Each side may open one unidirectional stream for them; its first octet is [`STREAM_TYPE`]. Then messages: one octet of
//! type, two of length (big endian), the body. Unknown types are skipped.

use carrick_model::ConnectionId;

/// First octet of a control stream.
pub const STREAM_TYPE: u8 = 0x01;
/// Octets before a message's body.
pub const PREFIX: usize = 3;
/// Most octets of a body: the known ones need 16.
pub const MAX_BODY: usize = 256;

const TYPE_DRAIN: u8 = 0x01;
const TYPE_REVOKE: u8 = 0x02;

/// One message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Message {
    /// The sender takes no new flows; those that run may finish. Open new ones on another tunnel.
    Drain,
    /// The sender no longer carries this connection.
    Revoke(ConnectionId),
}

/// Why octets are not a control message: the tunnel is closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ControlError {
    /// The body is over [`MAX_BODY`].
    #[error("control message of {0} octets, at most {MAX_BODY} are allowed")]
    TooLong(usize),
    /// The body of a known type has the wrong length.
    #[error("control message {0:#04x} has a body of the wrong length")]
    Body(u8),
}

impl Message {
    /// Appends the message.
    pub fn encode(self, out: &mut Vec<u8>) {
        match self {
            Self::Drain => out.extend([TYPE_DRAIN, 0, 0]),
            Self::Revoke(id) => {
                out.extend([TYPE_REVOKE, 0, 16]);
                out.extend(id.to_bytes());
            }
        }
    }

    /// Length of the body behind a prefix.
    ///
    /// # Errors
    /// The length is over [`MAX_BODY`].
    pub fn body_length(prefix: [u8; PREFIX]) -> Result<usize, ControlError> {
        let length = usize::from(u16::from_be_bytes([prefix[1], prefix[2]]));
        if length <= MAX_BODY { Ok(length) } else { Err(ControlError::TooLong(length)) }
    }

    /// The message of a prefix and its body; none for a type this version does not know.
    ///
    /// # Errors
    /// The body does not fit its type.
    pub fn decode(prefix: [u8; PREFIX], body: &[u8]) -> Result<Option<Self>, ControlError> {
        match prefix[0] {
            TYPE_DRAIN if body.is_empty() => Ok(Some(Self::Drain)),
            TYPE_REVOKE => {
                let id = body.try_into().map_err(|_| ControlError::Body(TYPE_REVOKE))?;
                Ok(Some(Self::Revoke(ConnectionId::from_bytes(id))))
            }
            TYPE_DRAIN => Err(ControlError::Body(TYPE_DRAIN)),
            _ => Ok(None),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn decode(octets: &[u8]) -> Result<Option<Message>, ControlError> {
        let (prefix, body) = octets.split_first_chunk::<PREFIX>().unwrap();
        assert_eq!(Message::body_length(*prefix)?, body.len());
        Message::decode(*prefix, body)
    }

    #[test]
    fn messages_survive_the_wire() {
        for message in [Message::Drain, Message::Revoke(ConnectionId::from_bytes([9; 16]))] {
            let mut out = Vec::new();
            message.encode(&mut out);
            assert_eq!(decode(&out), Ok(Some(message)));
        }
        assert_eq!(decode(&[0x55, 0, 1, 0]), Ok(None));
        assert_eq!(decode(&[1, 0, 1, 0]), Err(ControlError::Body(1)));
        assert_eq!(decode(&[2, 0, 1, 0]), Err(ControlError::Body(2)));
        assert_eq!(Message::body_length([2, 255, 0]), Err(ControlError::TooLong(65280)));
    }

    proptest! {
        #[test]
        fn arbitrary_octets_never_panic(prefix in any::<[u8; PREFIX]>(), body in proptest::collection::vec(any::<u8>(), 0..40)) {
            let _length = Message::body_length(prefix);
            let _message = Message::decode(prefix, &body);
        }
    }
}
