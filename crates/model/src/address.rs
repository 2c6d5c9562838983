//! Where things listen and where exports point.

use std::{
    fmt,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    path::PathBuf,
    str::FromStr,
};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::{connection::Payload, domain::Domain};

/// A host: an address, or a DNS name that is resolved when it is used.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Host {
    /// A literal address.
    Ip(IpAddr),
    /// A DNS name.
    Name(Domain),
}

/// A host and a port: `10.0.0.5:5432`, `[2001:db8::1]:5432`, `db.internal:5432`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HostPort {
    /// The host.
    pub host: Host,
    /// The port, never 0.
    pub port: u16,
}

/// What an export forwards to: `tcp://host:port`, `udp://host:port`, `unix:///path`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum ExportTarget {
    /// A TCP server.
    Tcp(HostPort),
    /// A UDP server.
    Udp(HostPort),
    /// A Unix stream socket.
    Unix(PathBuf),
}

/// Where an import listens: `127.0.0.1:15432`, `tcp://…`, `udp://…`, `unix:///path`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum ListenAddress {
    /// TCP; port 0 lets the system choose.
    Tcp(SocketAddr),
    /// UDP; port 0 lets the system choose.
    Udp(SocketAddr),
    /// A Unix stream socket.
    Unix(PathBuf),
}

/// Why a text is not an address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// There is no port.
    #[error("a port is missing: write `host:port`, an IPv6 address in brackets")]
    NoPort,
    /// The port is not a number from 1 to 65535.
    #[error("the port is a number from 1 to 65535")]
    Port,
    /// The host is neither an address nor a DNS name.
    #[error("the host is neither an IP address nor a DNS name")]
    Host,
    /// A listen address has a name where an address is needed.
    #[error("a listen address is an IP address and a port, for example `127.0.0.1:15432`")]
    NotLiteral,
    /// The scheme is not one we know.
    #[error("scheme `{0}`: expected tcp, udp or unix")]
    Scheme(String),
    /// The scheme is not one of those of NSM's parts.
    #[error("scheme `{0}`: expected tcp or unix")]
    UrlScheme(String),
    /// A part's listen URL has a name where an address is needed.
    #[error("write `tcp://ip:port`, `tcp://:port` for all addresses, or `unix:///path`")]
    NotServable,
    /// A target needs a scheme.
    #[error("a target needs a scheme: `tcp://host:port`, `udp://host:port` or `unix:///path`")]
    NoScheme,
    /// A Unix socket path is relative, or too long for the system.
    #[error("a Unix socket path is absolute and has at most {MAX_UNIX_PATH} characters")]
    UnixPath,
}

/// `sun_path` of `sockaddr_un` less its closing NUL (unix(7)).
pub const MAX_UNIX_PATH: usize = 107;

impl HostPort {
    /// The literal socket address, when no name has to be resolved.
    pub fn literal(&self) -> Option<SocketAddr> {
        match self.host {
            Host::Ip(ip) => Some(SocketAddr::new(ip, self.port)),
            Host::Name(_) => None,
        }
    }
}

impl From<SocketAddr> for HostPort {
    fn from(addr: SocketAddr) -> Self {
        Self { host: Host::Ip(addr.ip()), port: addr.port() }
    }
}

impl FromStr for Host {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let bare = text.strip_prefix('[').and_then(|t| t.strip_suffix(']'));
        if let Some(v6) = bare {
            return v6.parse::<Ipv6Addr>().map(|ip| Self::Ip(ip.into())).map_err(|_| AddressError::Host);
        }
        if let Ok(ip) = text.parse() {
            return Ok(Self::Ip(ip));
        }
        text.parse().map(Self::Name).map_err(|_| AddressError::Host)
    }
}

impl FromStr for HostPort {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let (host, port) = text.rsplit_once(':').ok_or(AddressError::NoPort)?;
        // `2001:db8::1` without brackets would lose its last group to the port.
        if host.contains(':') && !host.ends_with(']') {
            return Err(AddressError::NoPort);
        }
        let port = parse_port(port)?;
        Ok(Self { host: host.parse()?, port })
    }
}

fn parse_port(text: &str) -> Result<u16, AddressError> {
    match text.parse() {
        Ok(port) if port > 0 && text.bytes().all(|b| b.is_ascii_digit()) => Ok(port),
        _ => Err(AddressError::Port),
    }
}

impl ExportTarget {
    /// What a connection to this target carries.
    pub fn payload(&self) -> Payload {
        match self {
            Self::Tcp(_) | Self::Unix(_) => Payload::Tcp,
            Self::Udp(_) => Payload::Udp,
        }
    }

    /// The port of the service, where the target has one.
    pub fn port(&self) -> Option<u16> {
        match self {
            Self::Tcp(hp) | Self::Udp(hp) => Some(hp.port),
            Self::Unix(_) => None,
        }
    }
}

impl FromStr for ExportTarget {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        match text.split_once("://").ok_or(AddressError::NoScheme)? {
            ("tcp", rest) => Ok(Self::Tcp(rest.parse()?)),
            ("udp", rest) => Ok(Self::Udp(rest.parse()?)),
            ("unix", rest) => unix_path(rest).map(Self::Unix),
            (scheme, _) => Err(AddressError::Scheme(crate::domain::shorten(scheme))),
        }
    }
}

impl ListenAddress {
    /// What a connection behind this listener carries.
    pub fn payload(&self) -> Payload {
        match self {
            Self::Tcp(_) | Self::Unix(_) => Payload::Tcp,
            Self::Udp(_) => Payload::Udp,
        }
    }
}

impl FromStr for ListenAddress {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let literal = |t: &str| t.parse::<SocketAddr>().map_err(|_| AddressError::NotLiteral);
        match text.split_once("://") {
            None => literal(text).map(Self::Tcp),
            Some(("tcp", rest)) => literal(rest).map(Self::Tcp),
            Some(("udp", rest)) => literal(rest).map(Self::Udp),
            Some(("unix", rest)) => unix_path(rest).map(Self::Unix),
            Some((scheme, _)) => Err(AddressError::Scheme(crate::domain::shorten(scheme))),
        }
    }
}

pub(crate) fn unix_path(text: &str) -> Result<PathBuf, AddressError> {
    let fits = text.starts_with('/') && text.len() <= MAX_UNIX_PATH && !text.contains('\0');
    fits.then(|| PathBuf::from(text)).ok_or(AddressError::UnixPath)
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(ip) => ip.fmt(f),
            Self::Name(name) => name.fmt(f),
        }
    }
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host {
            Host::Ip(ip) => SocketAddr::new(ip, self.port).fmt(f),
            Host::Name(ref name) => write!(f, "{name}:{}", self.port),
        }
    }
}

impl fmt::Display for ExportTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(hp) => write!(f, "tcp://{hp}"),
            Self::Udp(hp) => write!(f, "udp://{hp}"),
            Self::Unix(path) => write!(f, "unix://{}", path.display()),
        }
    }
}

impl fmt::Display for ListenAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(addr) => write!(f, "tcp://{addr}"),
            Self::Udp(addr) => write!(f, "udp://{addr}"),
            Self::Unix(path) => write!(f, "unix://{}", path.display()),
        }
    }
}

macro_rules! text_serde {
    ($($ty:ty),*) => {$(
        impl Serialize for $ty {
            fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                s.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $ty {
            fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
            }
        }
    )*};
}
text_serde!(Host, HostPort, ExportTarget, ListenAddress);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn targets_parse_and_print() {
        for text in [
            "tcp://10.0.0.5:5432",
            "udp://[2001:db8::1]:53",
            "tcp://db.internal:5432",
            "unix:///run/app.sock",
        ] {
            assert_eq!(text.parse::<ExportTarget>().unwrap().to_string(), text);
        }
        let fault = |s: &str| s.parse::<ExportTarget>().unwrap_err();
        assert_eq!(fault("10.0.0.5:5432"), AddressError::NoScheme);
        assert_eq!(fault("http://a:1"), AddressError::Scheme("http".into()));
        assert_eq!(fault("tcp://a"), AddressError::NoPort);
        assert_eq!(fault("tcp://a:0"), AddressError::Port);
        assert_eq!(fault("tcp://a:+1"), AddressError::Port);
        assert_eq!(fault("tcp://2001:db8::1:80"), AddressError::NoPort);
        assert_eq!(fault("unix://relative"), AddressError::UnixPath);
    }

    #[test]
    fn a_listen_address_is_tcp_unless_it_says_otherwise() {
        let a: ListenAddress = "127.0.0.1:15432".parse().unwrap();
        assert_eq!(a, ListenAddress::Tcp(([127, 0, 0, 1], 15432).into()));
        assert_eq!("udp://[::1]:53".parse::<ListenAddress>().unwrap().payload(), Payload::Udp);
        assert_eq!("localhost:80".parse::<ListenAddress>(), Err(AddressError::NotLiteral));
    }

    proptest! {
        #[test]
        fn parsing_never_panics_and_display_parses_back(s in "\\PC{0,120}") {
            if let Ok(t) = s.parse::<ExportTarget>() {
                prop_assert_eq!(t.to_string().parse::<ExportTarget>(), Ok(t));
            }
            if let Ok(t) = s.parse::<HostPort>() {
                prop_assert_eq!(t.to_string().parse::<HostPort>(), Ok(t));
            }
            if let Ok(t) = s.parse::<ListenAddress>() {
                prop_assert_eq!(t.to_string().parse::<ListenAddress>(), Ok(t));
            }
        }
    }
}
