//! Fields that a message has and we do not know.

use prost::{
    DecodeError,
    bytes::{Buf, BufMut},
    encoding::{DecodeContext, WireType, encode_key, skip_field},
};

/// Fields of numbers that the message's type does not have, as they came: a newer program said them, and another one
/// may understand them. They are encoded after the known fields, as protobuf's own libraries do.
///
/// Fields inside of map entries and of `google.protobuf` messages are not kept.
#[derive(Clone, Default, PartialEq, Eq, Hash)]
pub struct UnknownFields(Vec<u8>);

impl UnknownFields {
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Takes one more field from `buf`. It holds no more than the message did, and is nested no deeper than prost allows.
    pub(crate) fn merge_field(
        &mut self,
        tag: u32,
        wire_type: WireType,
        buf: &mut impl Buf,
        ctx: DecodeContext,
    ) -> Result<(), DecodeError> {
        encode_key(tag, wire_type, &mut self.0);
        skip_field(wire_type, tag, &mut Copying { from: buf, to: &mut self.0 }, ctx)
    }

    pub(crate) fn encode_raw(&self, buf: &mut impl BufMut) {
        buf.put_slice(&self.0);
    }

    pub(crate) fn encoded_len(&self) -> usize {
        self.0.len()
    }
}

impl std::fmt::Debug for UnknownFields {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} octets", self.0.len())
    }
}

/// Copies what is read.
struct Copying<'a, B> {
    from: &'a mut B,
    to: &'a mut Vec<u8>,
}

impl<B: Buf> Buf for Copying<'_, B> {
    fn remaining(&self) -> usize {
        self.from.remaining()
    }

    fn chunk(&self) -> &[u8] {
        self.from.chunk()
    }

    fn advance(&mut self, count: usize) {
        self.to.put((&mut *self.from).take(count));
    }
}
