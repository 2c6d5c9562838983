//! URLs by which NSM's parts listen and call each other.

use std::{
    fmt,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    path::PathBuf,
    str::FromStr,
};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::{
    address::{AddressError, HostPort, unix_path},
    domain::shorten,
};

/// Where a part listens: `tcp://:5001` (all addresses), `tcp://192.0.2.1:5001`, `unix:///path`. TCP needs no scheme.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ServeUrl {
    /// TCP.
    Tcp {
        /// The address; `None` is all addresses of both families.
        ip: Option<IpAddr>,
        /// The port; 0 lets the system choose.
        port: u16,
    },
    /// A Unix stream socket.
    Unix(PathBuf),
}

/// Where a part is called: `tcp://registry:5002`, `registry:5002`, `unix:///path`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum PartUrl {
    /// TCP.
    Tcp(HostPort),
    /// A Unix stream socket.
    Unix(PathBuf),
}

impl FromStr for ServeUrl {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let rest = match text.split_once("://") {
            Some(("unix", path)) => return unix_path(path).map(Self::Unix),
            Some(("tcp", rest)) => rest,
            Some((scheme, _)) => return Err(AddressError::UrlScheme(shorten(scheme))),
            None => text,
        };
        if let Some(port) = rest.strip_prefix(':') {
            let digits = !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit());
            return match port.parse() {
                Ok(port) if digits => Ok(Self::Tcp { ip: None, port }),
                _ => Err(AddressError::Port),
            };
        }
        let address: SocketAddr = rest.parse().map_err(|_| AddressError::NotServable)?;
        Ok(Self::Tcp { ip: Some(address.ip()), port: address.port() })
    }
}

impl FromStr for PartUrl {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        match text.split_once("://") {
            None => Ok(Self::Tcp(text.parse()?)),
            Some(("tcp", rest)) => Ok(Self::Tcp(rest.parse()?)),
            Some(("unix", rest)) => unix_path(rest).map(Self::Unix),
            Some((scheme, _)) => Err(AddressError::UrlScheme(shorten(scheme))),
        }
    }
}

impl ServeUrl {
    /// The socket address to bind; `None` for a Unix socket. All addresses of both families are `[::]`.
    pub fn socket_addr(&self) -> Option<SocketAddr> {
        match self {
            Self::Tcp { ip, port } => {
                Some(SocketAddr::new(ip.unwrap_or(Ipv6Addr::UNSPECIFIED.into()), *port))
            }
            Self::Unix(_) => None,
        }
    }
}

impl From<SocketAddr> for ServeUrl {
    fn from(addr: SocketAddr) -> Self {
        Self::Tcp { ip: Some(addr.ip()), port: addr.port() }
    }
}

impl fmt::Display for ServeUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { ip: None, port } => write!(f, "tcp://:{port}"),
            Self::Tcp { ip: Some(ip), port } => write!(f, "tcp://{}", SocketAddr::new(*ip, *port)),
            Self::Unix(path) => write!(f, "unix://{}", path.display()),
        }
    }
}

impl fmt::Display for PartUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(at) => write!(f, "tcp://{at}"),
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
text_serde!(ServeUrl, PartUrl);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_part_listens_on_all_addresses_or_on_one() {
        let read = |text: &str| text.parse::<ServeUrl>();
        assert_eq!(read("tcp://:5001"), Ok(ServeUrl::Tcp { ip: None, port: 5001 }));
        assert_eq!(read(":5001"), read("tcp://:5001"));
        assert_eq!(read("127.0.0.1:0").unwrap().to_string(), "tcp://127.0.0.1:0");
        assert_eq!(read("tcp://[::1]:5").unwrap().socket_addr(), Some("[::1]:5".parse().unwrap()));
        assert_eq!(read("tcp://:5").unwrap().socket_addr(), Some("[::]:5".parse().unwrap()));
        assert_eq!(read("unix:///run/nsm.sock"), Ok(ServeUrl::Unix("/run/nsm.sock".into())));
        assert_eq!(read("unix://nsm.sock"), Err(AddressError::UnixPath));
        assert_eq!(read("https://:5001"), Err(AddressError::UrlScheme("https".into())));
        for bad in ["", "5001", "tcp://", "registry:5002", "tcp://registry:5002"] {
            assert_eq!(read(bad), Err(AddressError::NotServable), "{bad}");
        }
        for bad in [":", ":+1", ":65536", "tcp://:x"] {
            assert_eq!(read(bad), Err(AddressError::Port), "{bad}");
        }
    }

    #[test]
    fn a_part_is_called_with_or_without_a_scheme() {
        let read = |text: &str| text.parse::<PartUrl>();
        assert_eq!(read("registry:5002"), read("tcp://registry:5002"));
        assert_eq!(read("registry:5002").unwrap().to_string(), "tcp://registry:5002");
        assert_eq!(read("tcp://[2001:db8::1]:5002").unwrap().to_string(), "tcp://[2001:db8::1]:5002");
        assert_eq!(read("unix:///run/nsm.sock").unwrap().to_string(), "unix:///run/nsm.sock");
        assert_eq!(read("registry"), Err(AddressError::NoPort));
        assert_eq!(read(":5002"), Err(AddressError::Host));
        assert_eq!(read("udp://registry:5002"), Err(AddressError::UrlScheme("udp".into())));
    }

    proptest! {
        #[test]
        fn parsing_never_panics_and_display_parses_back(s in "(tcp://|unix://|)\\PC{0,60}") {
            if let Ok(url) = s.parse::<ServeUrl>() {
                prop_assert_eq!(url.to_string().parse::<ServeUrl>(), Ok(url));
            }
            if let Ok(url) = s.parse::<PartUrl>() {
                prop_assert_eq!(url.to_string().parse::<PartUrl>(), Ok(url));
            }
        }
    }
}
