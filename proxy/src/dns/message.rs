//! From the bytes of a question to the bytes of its answer. No IO.

use hickory_resolver::proto::{
    op::{Edns, Header, Message, MessageType, Metadata, OpCode, ResponseCode},
    serialize::binary::{BinDecodable, BinDecoder},
};

use super::zone::{Zone, ZoneKind};

/// Largest UDP answer, whatever a client says it can take: it fits into an unfragmented packet on every path (DNS flag
/// day 2020).
const MAX_UDP: u16 = 1232;
/// RFC 1035 section 4.2.1: what a client without EDNS takes.
const MIN_UDP: u16 = 512;
/// A question has one OPT record and perhaps a signature beside it. More is made up to cost us work.
const MAX_ADDITIONALS: u16 = 4;

/// How a question came in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Transport {
    Udp,
    Tcp,
}

/// An answer ready to be sent, and what to count it as.
pub(super) struct Reply {
    pub(super) bytes: Vec<u8>,
    pub(super) zone: ZoneKind,
    pub(super) code: ResponseCode,
    /// The name exists and has no such record.
    pub(super) no_data: bool,
}

/// The answer of `zone` to the message in `bytes`; none to what is no question at all, so that two servers never talk
/// to each other.
pub(super) fn respond(zone: &Zone, bytes: &[u8], transport: Transport) -> Option<Reply> {
    let header = Header::read(&mut BinDecoder::new(bytes)).ok()?;
    if header.metadata.message_type == MessageType::Response {
        return None;
    }
    let counts = header.counts;
    // Before anything is parsed, because room for as many as announced would be made.
    if counts.queries != 1
        || counts.answers != 0
        || counts.authorities != 0
        || counts.additionals > MAX_ADDITIONALS
    {
        let code = match header.metadata.op_code {
            OpCode::Query => ResponseCode::FormErr,
            _ => ResponseCode::NotImp,
        };
        return fault(&header.metadata, code);
    }
    let Ok(request) = Message::from_vec(bytes) else {
        return fault(&header.metadata, ResponseCode::FormErr);
    };
    answer(zone, &request, transport)
}

fn answer(zone: &Zone, request: &Message, transport: Transport) -> Option<Reply> {
    let query = request.queries.first()?;
    let mut response = Message::new(request.id, MessageType::Response, request.op_code);
    response.metadata = Metadata::response_from_request(&request.metadata);
    response.add_query(query.clone());
    let mut limit = MIN_UDP;
    if let Some(asked) = &request.edns {
        let mut edns = Edns::new();
        edns.set_max_payload(MAX_UDP);
        edns.set_dnssec_ok(asked.flags().dnssec_ok);
        response.set_edns(edns);
        limit = asked.max_payload().clamp(MIN_UDP, MAX_UDP);
    }
    let mut reply =
        Reply { bytes: Vec::new(), zone: ZoneKind::Foreign, code: ResponseCode::NoError, no_data: false };
    if request.op_code != OpCode::Query {
        response.metadata.response_code = ResponseCode::NotImp;
    } else if request.edns.as_ref().is_some_and(|e| e.version() > 0) {
        response.metadata.response_code = ResponseCode::BADVERS;
    } else {
        let answer = zone.answer(query);
        response.metadata.response_code = answer.code;
        response.metadata.authoritative = answer.authoritative;
        reply.zone = answer.zone;
        reply.no_data = answer.code == ResponseCode::NoError && answer.answers.is_empty();
        response.add_answers(answer.answers);
        response.add_authorities(answer.authorities);
        response.add_additionals(answer.additionals);
    }
    reply.code = response.metadata.response_code;
    let limit = if transport == Transport::Udp { limit.into() } else { usize::from(u16::MAX) };
    reply.bytes = encode(response, limit)?;
    Some(reply)
}

/// The message in at most `limit` octets: without the glue if need be (RFC 2181 section 9), else truncated.
fn encode(mut message: Message, limit: usize) -> Option<Vec<u8>> {
    let whole = message.to_vec().ok();
    if whole.as_ref().is_some_and(|b| b.len() <= limit) {
        return whole;
    }
    message.additionals.clear();
    let bare = message.to_vec().ok();
    if bare.as_ref().is_some_and(|b| b.len() <= limit) {
        return bare;
    }
    message.answers.clear();
    message.authorities.clear();
    message.metadata.truncation = true;
    message.to_vec().ok()
}

/// An answer to a message that could not be read beyond its header.
fn fault(request: &Metadata, code: ResponseCode) -> Option<Reply> {
    let mut response = Message::new(request.id, MessageType::Response, request.op_code);
    response.metadata = Metadata::response_from_request(request);
    response.metadata.response_code = code;
    let bytes = response.to_vec().ok()?;
    Some(Reply { bytes, zone: ZoneKind::Foreign, code, no_data: false })
}
