//! The header that opens a flow.
//!
//! ```text
//!  octet  0        1        2 .. 3           4 .. 19              20 ..
//!       +--------+--------+----------------+--------------------+---------------------------+
//!       | version| kind   | length of rest | connection id      | fields: type, length, ... |
//!       +--------+--------+----------------+--------------------+---------------------------+
//! ```
//!
//! Integers are big endian. `length of rest` counts the connection id and the fields. A field is one octet of type, two
//! of length, and the value. An unknown field whose type has its high bit set must be understood and makes the header
//! [unusable](HeaderError::UnknownCritical); any other unknown field is skipped.

use carrick_model::{ConnectionId, SpiffeId};

/// The version of the header this gateway writes, and the only one it reads.
pub const VERSION: u8 = 1;
/// Octets before the part counted by the length.
pub const PREFIX: usize = 4;
/// The connection id, the least that follows the prefix.
const ID: usize = 16;
/// Most octets of a whole header: a SPIFFE ID at its limit of 2,048, a trace context, and as much again to grow.
pub const MAX_HEADER: usize = 4096;

const FIELD_CALLER: u8 = 0x01;
const FIELD_TRACE: u8 = 0x02;
const CRITICAL: u8 = 0x80;
/// Trace id, span id and flags.
const TRACE: usize = 25;

/// What a flow carries: decides how the rest of the stream is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum HeaderKind {
    /// Bytes of a TCP connection or Unix stream.
    Stream,
    /// A UDP association: messages on the stream, and DATAGRAM frames under the stream's number.
    Datagrams,
}

/// Who traces this flow: the parts of W3C `traceparent` version 00 in binary.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct TraceContext {
    /// The trace, not all zero.
    pub trace_id: [u8; 16],
    /// The span that opened the flow.
    pub span_id: [u8; 8],
    /// Trace flags; bit 0 is `sampled`.
    pub flags: u8,
}

impl TraceContext {
    /// The trace id in hex, as logs show it.
    pub fn trace_hex(&self) -> String {
        self.trace_id.iter().map(|b| format!("{b:02x}")).collect()
    }
}

/// The header of one flow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FlowHeader {
    /// What the stream carries.
    pub kind: HeaderKind,
    /// The connection the flow rides on: the id that the exporting side gave it.
    pub connection: ConnectionId,
    /// The workload that asked, where it is another than the gateway itself.
    pub caller: Option<SpiffeId>,
    /// The trace this flow belongs to.
    pub trace: Option<TraceContext>,
}

/// Why octets are not a header. The flow is refused; the tunnel lives on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// A version other than [`VERSION`].
    #[error("flow header version {0}, this gateway speaks {VERSION}")]
    Version(u8),
    /// A kind this gateway does not carry.
    #[error("flow header of unknown kind {0:#04x}")]
    Kind(u8),
    /// A length below the connection id's or above [`MAX_HEADER`].
    #[error("flow header length {0} is outside {ID}..={max}", max = MAX_HEADER - PREFIX)]
    Length(usize),
    /// A field reaches beyond the header.
    #[error("field {0:#04x} of the flow header is cut off")]
    Truncated(u8),
    /// A field stands twice.
    #[error("field {0:#04x} of the flow header stands twice")]
    Duplicate(u8),
    /// A field's value breaks its rules.
    #[error("field {0:#04x} of the flow header has a bad value")]
    Value(u8),
    /// A field that must be understood is not.
    #[error("field {0:#04x} of the flow header must be understood, and is not")]
    UnknownCritical(u8),
}

impl FlowHeader {
    /// Appends the header's octets.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let start = out.len();
        out.extend([VERSION, kind_octet(self.kind), 0, 0]);
        out.extend(self.connection.to_bytes());
        if let Some(caller) = &self.caller {
            put_field(out, FIELD_CALLER, caller.to_string().as_bytes());
        }
        if let Some(trace) = &self.trace {
            let mut value = [0; TRACE];
            value[..16].copy_from_slice(&trace.trace_id);
            value[16..24].copy_from_slice(&trace.span_id);
            value[24] = trace.flags;
            put_field(out, FIELD_TRACE, &value);
        }
        let rest = (out.len() - start - PREFIX) as u16; // a SPIFFE ID has at most 2,048 octets: far below 65,536
        out[start + 2..start + 4].copy_from_slice(&rest.to_be_bytes());
    }

    /// How many octets follow the prefix.
    ///
    /// # Errors
    /// The prefix is of another version or kind, or its length is out of bounds: nothing more should be read.
    pub fn rest_length(prefix: [u8; PREFIX]) -> Result<usize, HeaderError> {
        if prefix[0] != VERSION {
            return Err(HeaderError::Version(prefix[0]));
        }
        parse_kind(prefix[1])?;
        let rest = usize::from(u16::from_be_bytes([prefix[2], prefix[3]]));
        if (ID..=MAX_HEADER - PREFIX).contains(&rest) { Ok(rest) } else { Err(HeaderError::Length(rest)) }
    }

    /// The header of a prefix and the [`rest_length`](Self::rest_length) octets behind it.
    ///
    /// # Errors
    /// See [`HeaderError`]; a `rest` of another length than announced is [`HeaderError::Length`].
    pub fn decode(prefix: [u8; PREFIX], rest: &[u8]) -> Result<Self, HeaderError> {
        if Self::rest_length(prefix)? != rest.len() {
            return Err(HeaderError::Length(rest.len()));
        }
        let (id, mut fields) = rest.split_first_chunk::<ID>().ok_or(HeaderError::Length(rest.len()))?;
        let mut header = Self {
            kind: parse_kind(prefix[1])?,
            connection: ConnectionId::from_bytes(*id),
            caller: None,
            trace: None,
        };
        while let Some((&[kind, high, low], behind)) = fields.split_first_chunk::<3>() {
            let length = usize::from(u16::from_be_bytes([high, low]));
            let (value, behind) = behind.split_at_checked(length).ok_or(HeaderError::Truncated(kind))?;
            header.read_field(kind, value)?;
            fields = behind;
        }
        match fields.first() {
            None => Ok(header),
            Some(kind) => Err(HeaderError::Truncated(*kind)),
        }
    }

    fn read_field(&mut self, kind: u8, value: &[u8]) -> Result<(), HeaderError> {
        match kind {
            FIELD_CALLER => {
                let text = std::str::from_utf8(value)
                    .ok()
                    .filter(|t| t.len() <= carrick_model::identity::MAX_SPIFFE_ID);
                // One identity has one form on the wire: a scheme in capitals is none.
                let id = text.and_then(|t| SpiffeId::new(t).ok().filter(|id| id.to_string() == t));
                let id = id.ok_or(HeaderError::Value(kind))?;
                set_once(&mut self.caller, id, kind)
            }
            FIELD_TRACE => {
                let value: &[u8; TRACE] = value.try_into().map_err(|_| HeaderError::Value(kind))?;
                let mut trace = TraceContext { trace_id: [0; 16], span_id: [0; 8], flags: value[24] };
                trace.trace_id.copy_from_slice(&value[..16]);
                trace.span_id.copy_from_slice(&value[16..24]);
                if trace.trace_id == [0; 16] || trace.span_id == [0; 8] {
                    return Err(HeaderError::Value(kind));
                }
                set_once(&mut self.trace, trace, kind)
            }
            _ if kind & CRITICAL != 0 => Err(HeaderError::UnknownCritical(kind)),
            _ => Ok(()),
        }
    }
}

fn set_once<T>(slot: &mut Option<T>, value: T, kind: u8) -> Result<(), HeaderError> {
    match slot.replace(value) {
        None => Ok(()),
        Some(_) => Err(HeaderError::Duplicate(kind)),
    }
}

fn put_field(out: &mut Vec<u8>, kind: u8, value: &[u8]) {
    out.push(kind);
    out.extend((value.len() as u16).to_be_bytes()); // callers pass at most 2,048 octets
    out.extend(value);
}

fn kind_octet(kind: HeaderKind) -> u8 {
    match kind {
        HeaderKind::Stream => 0x01,
        HeaderKind::Datagrams => 0x02,
    }
}

fn parse_kind(octet: u8) -> Result<HeaderKind, HeaderError> {
    match octet {
        0x01 => Ok(HeaderKind::Stream),
        0x02 => Ok(HeaderKind::Datagrams),
        other => Err(HeaderError::Kind(other)),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn decode(octets: &[u8]) -> Result<FlowHeader, HeaderError> {
        let (prefix, rest) = octets.split_first_chunk::<PREFIX>().unwrap();
        FlowHeader::decode(*prefix, rest)
    }

    fn any_header() -> impl Strategy<Value = FlowHeader> {
        let caller = proptest::option::of("[a-z]{1,10}/[a-z0-9]{1,20}");
        let trace = proptest::option::of((1u128.., 1u64.., any::<u8>()));
        (any::<bool>(), any::<[u8; 16]>(), caller, trace).prop_map(|(stream, id, caller, trace)| FlowHeader {
            kind: if stream { HeaderKind::Stream } else { HeaderKind::Datagrams },
            connection: ConnectionId::from_bytes(id),
            caller: caller.map(|p| SpiffeId::new(format!("spiffe://cloud.test/{p}")).unwrap()),
            trace: trace.map(|(t, s, flags)| TraceContext {
                trace_id: t.to_be_bytes(),
                span_id: s.to_be_bytes(),
                flags,
            }),
        })
    }

    #[test]
    fn the_octets_are_those_of_the_specification() {
        let mut out = Vec::new();
        let id: ConnectionId = "00010203-0405-0607-0809-0a0b0c0d0e0f".parse().unwrap();
        let caller = Some(SpiffeId::new("spiffe://a.test/x").unwrap());
        FlowHeader { kind: HeaderKind::Stream, connection: id, caller, trace: None }.encode(&mut out);
        let mut want = vec![1, 1, 0, 36];
        want.extend(0..16);
        want.extend([1, 0, 17]);
        want.extend(b"spiffe://a.test/x");
        assert_eq!(out, want);
    }

    #[test]
    fn bad_headers_say_what_is_bad() {
        let id = [7; 16];
        let with = |fields: &[u8]| {
            let rest = (id.len() + fields.len()) as u16;
            decode(&[&[1, 1], &rest.to_be_bytes()[..], &id, fields].concat())
        };
        assert_eq!(FlowHeader::rest_length([2, 1, 0, 16]), Err(HeaderError::Version(2)));
        assert_eq!(FlowHeader::rest_length([1, 9, 0, 16]), Err(HeaderError::Kind(9)));
        assert_eq!(FlowHeader::rest_length([1, 1, 0, 15]), Err(HeaderError::Length(15)));
        assert_eq!(FlowHeader::rest_length([1, 1, 255, 255]), Err(HeaderError::Length(65535)));
        assert_eq!(with(&[1, 0, 9, b's']), Err(HeaderError::Truncated(1)));
        assert_eq!(with(&[1, 0]), Err(HeaderError::Truncated(1)));
        assert_eq!(with(&[1, 0, 1, b's']), Err(HeaderError::Value(1)));
        assert_eq!(with(&[[1, 0, 17].as_slice(), b"Spiffe://a.test/x"].concat()), Err(HeaderError::Value(1)));
        assert_eq!(with(&[2, 0, 1, 0]), Err(HeaderError::Value(2)));
        assert_eq!(with(&[[2, 0, 25].as_slice(), &[0; 25]].concat()), Err(HeaderError::Value(2)));
        assert_eq!(with(&[0x81, 0, 0]), Err(HeaderError::UnknownCritical(0x81)));
        assert!(with(&[0x7f, 0, 2, 1, 2]).is_ok(), "an unknown field that need not be understood is skipped");
        let caller = [[1, 0, 17].as_slice(), b"spiffe://a.test/x"].concat();
        assert_eq!(with(&[caller.clone(), caller].concat()), Err(HeaderError::Duplicate(1)));
    }

    proptest! {
        #[test]
        fn a_header_survives_the_wire(header in any_header()) {
            let mut out = Vec::new();
            header.encode(&mut out);
            prop_assert!(out.len() <= MAX_HEADER);
            prop_assert_eq!(decode(&out), Ok(header));
        }

        #[test]
        fn arbitrary_octets_never_panic(octets in proptest::collection::vec(any::<u8>(), PREFIX..200)) {
            let _verdict = decode(&octets);
        }

        #[test]
        fn a_damaged_header_is_refused_or_read_as_another(header in any_header(), at in 0usize..60, flip in 1u8..) {
            let mut out = Vec::new();
            header.encode(&mut out);
            let at = at % out.len();
            out[at] ^= flip;
            prop_assert_ne!(decode(&out), Ok(header));
        }
    }
}
