//! NSM's messages and the cores' types, each turned into the other.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    time::{Duration, SystemTime},
};

use carrick_model::{ConnectionId, Domain, Mechanism, Payload, Target, service::split_name};
use carrick_proto::{
    connection::{Connection, Mechanism as WireMechanism, Path as WirePath, PathSegment, State},
    networkservice::NetworkServiceRequest,
    registry::NetworkServiceEndpoint,
};
use carrick_proxy_core::{
    Endpoint,
    inbound::{InboundRequest, Reply},
    outbound::{OutboundClose, OutboundReply, OutboundRequest},
    path::{Path, Segment},
    transit::Carried,
};
use prost_types::Timestamp;

/// Parameter of the QUIC mechanism: the id in flow headers.
pub(crate) const PARAMETER_CONNECTION: &str = "connection";
/// Parameter of the QUIC mechanism: where the tunnel listens, `ip:port` separated by commas.
pub(crate) const PARAMETER_ADDRESSES: &str = "dst_addresses";
/// Label of an endpoint: the service's own port.
pub(crate) const LABEL_PORT: &str = "carrick.port";
/// Label of an endpoint: what it carries.
pub(crate) const LABEL_PAYLOAD: &str = "carrick.payload";
/// Most tunnel addresses we take from a peer: each may cost a dial.
const MAX_ADDRESSES: usize = 16;

/// A message breaks a rule that its types do not express.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum WireFault {
    #[error("the request holds no connection")]
    NoConnection,
    #[error("the connection holds no path")]
    NoPath,
    #[error("path segment {0}: `expires` is not a time")]
    Expires(usize),
}

/// A peer's request, its texts still unread.
pub(crate) fn inbound_request(request: &NetworkServiceRequest) -> Result<InboundRequest, WireFault> {
    let connection = request.connection.as_ref().ok_or(WireFault::NoConnection)?;
    let mechanisms = request.mechanism_preferences.iter().chain(&connection.mechanism);
    Ok(InboundRequest {
        id: connection.id.clone(),
        service: connection.network_service.clone(),
        endpoint: connection.network_service_endpoint_name.clone(),
        payload: connection.payload.clone(),
        mechanisms: mechanisms.map(|m| (m.cls.clone(), m.r#type.clone())).collect(),
        reselect: connection.state() == State::ReselectRequested,
        path: path_of(connection)?,
    })
}

/// The path of a connection.
pub(crate) fn path_of(connection: &Connection) -> Result<Path, WireFault> {
    let path = connection.path.as_ref().ok_or(WireFault::NoPath)?;
    let segment = |(index, s): (usize, &PathSegment)| {
        let expires = match s.expires {
            None => None,
            Some(t) => Some(time_of(t).ok_or(WireFault::Expires(index))?),
        };
        Ok(Segment {
            name: s.name.clone(),
            id: s.id.clone(),
            token: s.token.clone(),
            expires,
            metrics: s.metrics.clone(),
            unknown_fields: s.unknown_fields.clone(),
        })
    };
    let segments = path.path_segments.iter().enumerate().map(segment).collect::<Result<_, _>>()?;
    Ok(Path { index: path.index, segments, unknown_fields: path.unknown_fields.clone() })
}

/// Times from 1970 to the year 9999, which is where protobuf's own range ends (timestamp.proto).
fn time_of(t: Timestamp) -> Option<SystemTime> {
    const LAST_SECOND: u64 = 253_402_300_799;
    let seconds = u64::try_from(t.seconds).ok().filter(|s| *s <= LAST_SECOND)?;
    let nanos = u32::try_from(t.nanos).ok().filter(|n| *n < 1_000_000_000)?;
    SystemTime::UNIX_EPOCH.checked_add(Duration::new(seconds, nanos))
}

/// A connection that passes through, as one message.
pub(crate) fn message(carried: Carried) -> Connection {
    Connection { path: Some(wire_path(carried.path)), ..carried.connection }
}

/// The answer to a request as those see it who watch us: with our id, and our place in its path.
pub(crate) fn as_ours(reply: &Connection, id: ConnectionId) -> Connection {
    let mut connection = Connection { id: id.to_string(), ..reply.clone() };
    if let Some(path) = &mut connection.path {
        path.index = path.index.saturating_add(1);
    }
    connection
}

fn wire_path(path: Path) -> WirePath {
    let segment = |s: Segment| PathSegment {
        name: s.name,
        id: s.id,
        token: s.token,
        expires: s.expires.map(Timestamp::from),
        metrics: s.metrics,
        unknown_fields: s.unknown_fields,
    };
    WirePath {
        index: path.index,
        path_segments: path.segments.into_iter().map(segment).collect(),
        unknown_fields: path.unknown_fields,
    }
}

/// Our answer: the caller's connection with what we decided. Context and labels stay as they came.
pub(crate) fn reply(
    mut connection: Connection,
    granted: Reply,
    domain: &Domain,
    tunnel: &[SocketAddr],
) -> Connection {
    let suffixed = split_name(&connection.network_service).1.is_some();
    connection.network_service_endpoint_name =
        if suffixed { format!("{}@{domain}", granted.endpoint) } else { granted.endpoint };
    connection.id = granted.id;
    granted.payload.as_str().clone_into(&mut connection.payload);
    connection.path = Some(wire_path(granted.path));
    connection.set_state(State::Up);
    let mut parameters = connection.mechanism.take().map(|m| m.parameters).unwrap_or_default();
    parameters.insert(PARAMETER_CONNECTION.to_owned(), granted.connection.to_string());
    if !tunnel.is_empty() {
        let list: Vec<String> = tunnel.iter().map(SocketAddr::to_string).collect();
        parameters.insert(PARAMETER_ADDRESSES.to_owned(), list.join(","));
    }
    connection.mechanism = Some(quic(parameters));
    connection
}

/// A request as it goes out: names with the domain, as NSM's own clients write them.
pub(crate) fn network_service_request(
    request: &OutboundRequest,
    labels: &BTreeMap<String, String>,
) -> NetworkServiceRequest {
    let mut connection = Connection {
        id: request.id.to_string(),
        network_service: request.service.to_string(),
        network_service_endpoint_name: format!("{}@{}", request.endpoint, request.service.domain()),
        payload: request.payload.map(Payload::as_str).unwrap_or_default().to_owned(),
        labels: labels.clone(),
        path: Some(wire_path(request.path.clone())),
        ..Connection::default()
    };
    connection.set_state(State::Up);
    NetworkServiceRequest {
        connection: Some(connection),
        mechanism_preferences: vec![quic(BTreeMap::new())],
        ..NetworkServiceRequest::default()
    }
}

/// A close as it goes out.
pub(crate) fn close_request(close: &OutboundClose) -> Connection {
    let endpoint = match close.endpoint.as_str() {
        "" => String::new(),
        name => format!("{name}@{}", close.service.domain()),
    };
    Connection {
        id: close.id.to_string(),
        network_service: close.service.to_string(),
        network_service_endpoint_name: endpoint,
        path: Some(wire_path(close.path.clone())),
        ..Connection::default()
    }
}

/// A peer's answer to our request.
pub(crate) fn outbound_reply(connection: &Connection) -> Result<OutboundReply, WireFault> {
    let ours = connection.mechanism.as_ref().filter(|m| m.r#type == Mechanism::Quic.as_str());
    let parameter = |name: &str| ours.and_then(|m| m.parameters.get(name));
    let addresses = parameter(PARAMETER_ADDRESSES).map(String::as_str).unwrap_or_default();
    Ok(OutboundReply {
        id: connection.id.clone(),
        path: path_of(connection)?,
        endpoint: split_name(&connection.network_service_endpoint_name).0.to_owned(),
        payload: connection.payload.parse().ok(),
        connection: parameter(PARAMETER_CONNECTION).and_then(|id| id.parse::<ConnectionId>().ok()),
        addresses: addresses.split(',').filter_map(|a| a.trim().parse().ok()).take(MAX_ADDRESSES).collect(),
    })
}

/// An endpoint of `service`, from a peer's registry.
pub(crate) fn endpoint(endpoint: &NetworkServiceEndpoint, service: &Target) -> Endpoint {
    let labels = endpoint
        .network_service_labels
        .iter()
        .find(|(key, _)| split_name(key).0.eq_ignore_ascii_case(service.as_str()))
        .map(|(_, value)| &value.labels);
    let label = |name: &str| labels.and_then(|l| l.get(name));
    Endpoint {
        name: split_name(&endpoint.name).0.to_owned(),
        payload: label(LABEL_PAYLOAD).and_then(|p| p.parse().ok()),
        port: label(LABEL_PORT).and_then(|p| p.parse().ok()).filter(|p| *p != 0),
    }
}

fn quic(parameters: BTreeMap<String, String>) -> WireMechanism {
    WireMechanism {
        cls: Mechanism::Quic.class().to_owned(),
        r#type: Mechanism::Quic.as_str().to_owned(),
        parameters,
        ..WireMechanism::default()
    }
}
