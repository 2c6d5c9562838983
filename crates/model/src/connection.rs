//! Connections: their ids, what they carry and how.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// The id a Carrick domain gives its side of a connection: a random UUID (RFC 9562 version 4).
///
/// Ids of other implementations are any text and stay text in the path; this type is only for ids we minted.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ConnectionId(Uuid);

impl ConnectionId {
    /// The id of these 16 octets.
    pub fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(Uuid::from_bytes(bytes))
    }

    /// The 16 octets that go into a flow header.
    pub fn to_bytes(self) -> [u8; 16] {
        self.0.into_bytes()
    }

    /// A fresh random id. Cores do not call this: they are given their ids.
    pub fn random() -> Self {
        Self(Uuid::new_v4())
    }
}

impl FromStr for ConnectionId {
    type Err = UnknownWord;

    fn from_str(text: &str) -> Result<Self, UnknownWord> {
        text.parse().map(Self).map_err(|_| UnknownWord { what: "connection id", known: "a UUID" })
    }
}

impl fmt::Display for ConnectionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for ConnectionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ConnectionId({})", self.0)
    }
}

/// What a connection carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Payload {
    /// Byte streams, one per TCP connection or Unix stream socket.
    Tcp,
    /// UDP datagrams, in associations of one client address each.
    Udp,
    /// IP packets (L3).
    Ip,
    /// Ethernet frames (L2).
    Ethernet,
}

/// How a hop carries a connection: the `type` of NSM's `Mechanism`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Mechanism {
    /// Streams and datagrams over a QUIC tunnel.
    Quic,
    /// A WireGuard tunnel.
    Wireguard,
    /// Streams over TLS over TCP, where UDP is blocked.
    Tls,
    /// A kernel interface on this host.
    Kernel,
}

/// A word that is not one of a closed set.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a {what}: expected {known}")]
pub struct UnknownWord {
    /// What was expected, as a noun.
    pub what: &'static str,
    /// The words that would have been right.
    pub known: &'static str,
}

impl Payload {
    /// The word in NSM's `payload` fields.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
            Self::Ip => "IP",
            Self::Ethernet => "ETHERNET",
        }
    }
}

impl FromStr for Payload {
    type Err = UnknownWord;

    fn from_str(text: &str) -> Result<Self, UnknownWord> {
        match text {
            "TCP" => Ok(Self::Tcp),
            "UDP" => Ok(Self::Udp),
            "IP" => Ok(Self::Ip),
            "ETHERNET" => Ok(Self::Ethernet),
            _ => Err(UnknownWord { what: "payload", known: "TCP, UDP, IP or ETHERNET" }),
        }
    }
}

impl Mechanism {
    /// The word in the `type` field of NSM's `Mechanism`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Quic => "QUIC",
            Self::Wireguard => "WIREGUARD",
            Self::Tls => "TLS",
            Self::Kernel => "KERNEL",
        }
    }

    /// The `cls` field of NSM's `Mechanism`: whether both ends are on one host.
    pub fn class(self) -> &'static str {
        match self {
            Self::Kernel => "LOCAL",
            Self::Quic | Self::Wireguard | Self::Tls => "REMOTE",
        }
    }
}

impl FromStr for Mechanism {
    type Err = UnknownWord;

    fn from_str(text: &str) -> Result<Self, UnknownWord> {
        match text {
            "QUIC" => Ok(Self::Quic),
            "WIREGUARD" => Ok(Self::Wireguard),
            "TLS" => Ok(Self::Tls),
            "KERNEL" => Ok(Self::Kernel),
            _ => Err(UnknownWord { what: "mechanism", known: "QUIC, WIREGUARD, TLS or KERNEL" }),
        }
    }
}

impl fmt::Display for Payload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Display for Mechanism {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_parse_back() {
        for p in [Payload::Tcp, Payload::Udp, Payload::Ip, Payload::Ethernet] {
            assert_eq!(p.as_str().parse(), Ok(p));
        }
        for m in [Mechanism::Quic, Mechanism::Wireguard, Mechanism::Tls, Mechanism::Kernel] {
            assert_eq!(m.as_str().parse(), Ok(m));
        }
        assert!("quic".parse::<Mechanism>().is_err());
    }

    #[test]
    fn an_id_survives_text_and_octets() {
        let id = ConnectionId::random();
        assert_eq!(id.to_string().parse(), Ok(id));
        assert_eq!(ConnectionId::from_bytes(id.to_bytes()), id);
        assert!("nsc-0".parse::<ConnectionId>().is_err());
    }
}
