//! Who is connected to what, and connections on demand: `carrick connections`, `carrick connect`.

use carrick_model::{ListenAddress, Mechanism, Payload, ServiceName};
use serde::{Deserialize, Serialize};

use super::{ImportState, Timestamp, words};

/// Which side began.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Direction {
    /// This daemon began.
    Outgoing,
    /// The peer began.
    Incoming,
}

/// `carrick connections`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct ConnectionList {
    /// Those that end here, in order of their start.
    pub(crate) connections: Vec<ConnectionRow>,
    /// Those that pass through to another hop, by service.
    pub(crate) passing: Vec<PassingRow>,
}

/// A connection that passes through.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct PassingRow {
    /// The id this daemon knows it by.
    pub(crate) id: String,
    /// The service, as its owner wrote it.
    pub(crate) service: String,
    /// SPIFFE ID of the hop before.
    pub(crate) owner: String,
    /// Name of the endpoint, as it is called on the next hop.
    pub(crate) endpoint: String,
    /// The next hop.
    pub(crate) next: String,
    /// `up`, or `down`: the next hop says so, or says nothing.
    pub(crate) state: String,
    /// Since when it passes.
    pub(crate) since: Timestamp,
    /// When it ends unless it is refreshed.
    pub(crate) expires: Timestamp,
}

/// An established client-endpoint relation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct ConnectionRow {
    /// The id this daemon knows it by.
    pub(crate) id: String,
    /// Who asked for it.
    pub(crate) direction: Direction,
    /// The service.
    pub(crate) service: ServiceName,
    /// SPIFFE ID of the other side.
    pub(crate) peer: String,
    /// Name of the endpoint that serves it.
    pub(crate) endpoint: Option<String>,
    /// How it is carried.
    pub(crate) mechanism: Mechanism,
    /// What it carries.
    pub(crate) payload: Payload,
    /// Where it stands: `up`, `refreshing`, `closing` …
    pub(crate) state: String,
    /// Since when it is established.
    pub(crate) since: Timestamp,
    /// When it ends unless it is refreshed.
    pub(crate) expires: Option<Timestamp>,
    /// Flows open now.
    pub(crate) flows: u64,
}

/// Asks for an import that is in no config file: `carrick connect`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct ConnectRequest {
    /// What to import.
    pub(crate) service: ServiceName,
    /// Where to listen.
    pub(crate) listen: ListenAddress,
    /// The import ends with the request's connection: the reply's body stays open after its first line, and when the
    /// caller goes away, however it ends, the daemon disconnects.
    #[serde(default)]
    pub(crate) hold: bool,
}

/// The import that was made.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct ConnectReply {
    /// What is imported.
    pub(crate) service: ServiceName,
    /// Where it listens, as bound.
    pub(crate) listen: ListenAddress,
    /// Whether it can be used.
    pub(crate) state: ImportState,
    /// Why it is not up.
    pub(crate) why: Option<String>,
}

/// Ends an import that `carrick connect` made.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct DisconnectRequest {
    /// What is imported.
    pub(crate) service: ServiceName,
    /// Where it listens, as the reply to connect said.
    pub(crate) listen: ListenAddress,
}

words! {
    Direction { Outgoing => "out", Incoming => "in" }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connect_request_is_not_held_unless_it_says_so() {
        let json = r#"{"service":"pg@b.test","listen":"127.0.0.1:1"}"#;
        assert!(!serde_json::from_str::<ConnectRequest>(json).unwrap().hold);
    }
}
