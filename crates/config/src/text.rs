//! Texts of the config that stand for something: how each is read, and what is said when it cannot be.

mod parts;

use std::{borrow::Cow, fmt, marker::PhantomData, net::SocketAddr, path::PathBuf, time::Duration};

use carrick_model::{
    Domain, ExportTarget, Host, HostPort, ListenAddress, PartUrl, ServeUrl, ServiceName, ServicePattern,
    SpiffePattern, Target, TrustDomain, cause::in_one_line,
};
use ipnet::{IpNet, Ipv4Net};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

use crate::{
    config::{BundleSource, Lanes},
    defaults,
    fault::shown,
};

pub(crate) use self::parts::{EtcdEndpoint, FileMode, KeyPrefix, PartName, PublicUrl};

/// A text that stands for a `T` and is not yet read as one, so that all bad texts can be reported together.
#[derive(Deserialize, Serialize)]
#[serde(from = "Loose", into = "String")]
pub(crate) struct Text<T> {
    pub(crate) text: String,
    stands_for: PhantomData<fn() -> T>,
}

/// Where the schema lets a number stand beside a text (`lanes: 4`), it is read as if it were quoted.
#[derive(Deserialize)]
#[serde(untagged)]
enum Loose {
    Text(String),
    Number(serde_json::Number),
}

/// A type that the config writes as a text.
pub(crate) trait Written: Sized {
    /// The form, for the schema's `format` and the reference page: `host:port`.
    const FORM: &'static str;
    /// A text that can be read, for the schema and the reference page.
    const EXAMPLE: &'static str;
    /// What the text should have been, after `is not`: `a domain`.
    const NOUN: &'static str;
    /// Whether an integer may stand for it without quotes.
    const NUMBER_TOO: bool = false;

    /// Reads the text; an error says why it cannot be read, with nothing before it.
    fn read(text: &str) -> Result<Self, String>;
}

impl<T: Written> Text<T> {
    /// The value, or why it is none.
    pub(crate) fn read(&self) -> Result<T, String> {
        T::read(&self.text).map_err(|why| format!("`{}` is not {}: {why}", shown(&self.text), T::NOUN))
    }
}

impl<T> From<Loose> for Text<T> {
    fn from(loose: Loose) -> Self {
        match loose {
            Loose::Text(text) => Self::new(text),
            Loose::Number(number) => Self::new(number.to_string()),
        }
    }
}

impl<T> Text<T> {
    /// The text as it would be written.
    pub(crate) fn new(text: impl Into<String>) -> Self {
        Self { text: text.into(), stands_for: PhantomData }
    }
}

impl<T> Clone for Text<T> {
    fn clone(&self) -> Self {
        Self::new(self.text.as_str())
    }
}

impl<T> From<Text<T>> for String {
    fn from(text: Text<T>) -> Self {
        text.text
    }
}

impl<T> fmt::Debug for Text<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.text.fmt(f)
    }
}

impl<T: Written> JsonSchema for Text<T> {
    fn schema_name() -> Cow<'static, str> {
        T::FORM.into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        if T::NUMBER_TOO {
            json_schema!({ "type": ["string", "integer"], "format": T::FORM, "examples": [T::EXAMPLE] })
        } else {
            json_schema!({ "type": "string", "format": T::FORM, "examples": [T::EXAMPLE] })
        }
    }
}

/// A text, or a list of such.
#[derive(Debug, Deserialize, Serialize)]
#[serde(from = "TextOrList<T>", into = "TextOrList<T>")]
#[serde(bound(serialize = "", deserialize = ""))]
pub(crate) struct OneOrMore<T> {
    pub(crate) texts: Vec<Text<T>>,
    /// Whether they were written as a list.
    pub(crate) list: bool,
}

#[derive(Deserialize, Serialize)]
#[serde(untagged, bound(serialize = "", deserialize = ""))]
enum TextOrList<T> {
    Text(Text<T>),
    List(Vec<Text<T>>),
}

impl<T> From<TextOrList<T>> for OneOrMore<T> {
    fn from(read: TextOrList<T>) -> Self {
        match read {
            TextOrList::Text(text) => Self { texts: vec![text], list: false },
            TextOrList::List(texts) => Self { texts, list: true },
        }
    }
}

impl<T> From<OneOrMore<T>> for TextOrList<T> {
    fn from(written: OneOrMore<T>) -> Self {
        Self::List(written.texts)
    }
}

impl<T> Clone for OneOrMore<T> {
    fn clone(&self) -> Self {
        Self { texts: self.texts.clone(), list: self.list }
    }
}

impl<T: Written> JsonSchema for OneOrMore<T> {
    fn schema_name() -> Cow<'static, str> {
        format!("{} | list", T::FORM).into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let item = Text::<T>::json_schema(generator);
        json_schema!({ "type": ["string", "array"], "items": item })
    }
}

/// Types whose `FromStr` reads them as the config writes them.
macro_rules! written {
    ($($ty:ty, $form:literal, $example:literal, $noun:literal;)*) => {$(
        impl Written for $ty {
            const FORM: &'static str = $form;
            const EXAMPLE: &'static str = $example;
            const NOUN: &'static str = $noun;

            fn read(text: &str) -> Result<Self, String> {
                text.parse().map_err(|error| in_one_line(&error))
            }
        }
    )*};
}
written! {
    Domain, "domain", "onprem.example.com", "a domain";
    Host, "host", "gw.example.com", "a host";
    HostPort, "host:port", "gw.example.com:7443", "a host and port";
    Target, "service", "postgres", "a service";
    ServiceName, "service@domain", "postgres@onprem.example.com", "a service of a domain";
    ExportTarget, "target", "tcp://10.0.0.5:5432", "a target";
    ListenAddress, "listen address", "udp://127.0.0.1:5514", "a listen address";
    ServeUrl, "listen URL", "tcp://:5002", "a listen URL";
    PartUrl, "host:port | URL", "tcp://registry:5002", "the URL of a part";
    ServicePattern, "service pattern", "db.*", "a pattern of services";
    SpiffePattern, "SPIFFE ID pattern", "spiffe://onprem.example.com/**", "a SPIFFE ID pattern";
}

impl Written for SocketAddr {
    const FORM: &'static str = "ip:port";
    const EXAMPLE: &'static str = "127.0.0.1:9901";
    const NOUN: &'static str = "an address and port";

    fn read(text: &str) -> Result<Self, String> {
        text.parse().map_err(|_| "write `ip:port`, an IPv6 address in brackets".to_owned())
    }
}

/// An address, or the word `off`.
pub(crate) struct Switched(pub(crate) Option<SocketAddr>);

impl Written for Switched {
    const FORM: &'static str = "ip:port | off";
    const EXAMPLE: &'static str = "127.0.0.1:5353";
    const NOUN: &'static str = "an address and port";

    fn read(text: &str) -> Result<Self, String> {
        if text == "off" {
            return Ok(Self(None));
        }
        let addr =
            text.parse().map_err(|_| "write `ip:port`, an IPv6 address in brackets, or `off`".to_owned())?;
        Ok(Self(Some(addr)))
    }
}

/// The address of a DNS server; port 53 may be left out.
pub(crate) struct Server(pub(crate) SocketAddr);

impl Written for Server {
    const FORM: &'static str = "ip[:port]";
    const EXAMPLE: &'static str = "192.0.2.53";
    const NOUN: &'static str = "the address of a DNS server";

    fn read(text: &str) -> Result<Self, String> {
        let bare = text.parse().map(|ip| SocketAddr::new(ip, defaults::DNS_PORT));
        let addr = bare.or_else(|_| text.parse::<SocketAddr>());
        addr.map(Self)
            .map_err(|_| "write `ip` or `ip:port`, an IPv6 address with a port in brackets".to_owned())
    }
}

impl Written for TrustDomain {
    const FORM: &'static str = "trust domain";
    const EXAMPLE: &'static str = "onprem.example.com";
    const NOUN: &'static str = "a trust domain";

    fn read(text: &str) -> Result<Self, String> {
        // The parser of `spiffe` would take a whole SPIFFE ID and drop its path.
        if text.contains(['/', ':']) {
            return Err("write the bare name, without `spiffe://` and without a path".to_owned());
        }
        Self::new(text).map_err(|error| in_one_line(&error))
    }
}

impl Written for Ipv4Net {
    const FORM: &'static str = "IPv4 network";
    const EXAMPLE: &'static str = "127.80.0.0/16";
    const NOUN: &'static str = "an IPv4 network";

    fn read(text: &str) -> Result<Self, String> {
        match text.parse() {
            Ok(IpNet::V4(net)) => Ok(net.trunc()),
            Ok(IpNet::V6(_)) => Err("virtual IPs are IPv4, for example `127.80.0.0/16`".to_owned()),
            Err(_) => Err("write an address and a prefix length, for example `127.80.0.0/16`".to_owned()),
        }
    }
}

impl Written for Duration {
    const FORM: &'static str = "duration";
    const EXAMPLE: &'static str = "1m 30s";
    const NOUN: &'static str = "a duration";

    fn read(text: &str) -> Result<Self, String> {
        humantime::parse_duration(text)
            .map_err(|error| format!("{error} (write for example `10s`, `5m` or `1h 30m`)"))
    }
}

impl From<Duration> for Text<Duration> {
    fn from(duration: Duration) -> Self {
        Self::new(humantime::format_duration(duration).to_string())
    }
}

/// A number of bytes with a unit.
pub(crate) struct Bytes(pub(crate) u64);

impl Bytes {
    const UNITS: [(&'static str, u64); 8] = [
        ("KiB", 1 << 10),
        ("MiB", 1 << 20),
        ("GiB", 1 << 30),
        ("TiB", 1 << 40),
        ("kB", 1_000),
        ("MB", 1_000_000),
        ("GB", 1_000_000_000),
        ("B", 1), // last: the others end in it
    ];

    /// The text of a number of bytes, in the largest binary unit that loses nothing.
    pub(crate) fn text(bytes: u64) -> Text<Self> {
        let binary = Self::UNITS[..4].iter().rev();
        let unit = binary.copied().find(|(_, size)| bytes >= *size && bytes.is_multiple_of(*size));
        let (unit, size) = unit.unwrap_or(("B", 1));
        Text::new(format!("{}{unit}", bytes / size))
    }
}

impl Written for Bytes {
    const FORM: &'static str = "bytes";
    const EXAMPLE: &'static str = "512MiB";
    const NOUN: &'static str = "a number of bytes";

    fn read(text: &str) -> Result<Self, String> {
        let unreadable = || "write a whole number and a unit, for example `512MiB` or `1GiB`".to_owned();
        let split =
            Self::UNITS.iter().find_map(|(unit, size)| text.strip_suffix(unit).map(|n| (n.trim_end(), size)));
        let (number, size) = split.ok_or_else(unreadable)?;
        let number: u64 = number.parse().map_err(|_| unreadable())?;
        number.checked_mul(*size).map(Self).ok_or_else(|| "the number is too large".to_owned())
    }
}

impl Written for Lanes {
    const FORM: &'static str = "auto | 1-16";
    const EXAMPLE: &'static str = "auto";
    const NOUN: &'static str = "a number of lanes";
    const NUMBER_TOO: bool = true;

    fn read(text: &str) -> Result<Self, String> {
        match (text, text.parse()) {
            ("auto", _) => Ok(Self::Auto),
            (_, Ok(count @ 1..=16)) => Ok(Self::Count(count)),
            _ => Err("write `auto` or a number from 1 to 16".to_owned()),
        }
    }
}

impl Written for PathBuf {
    const FORM: &'static str = "path";
    const EXAMPLE: &'static str = "/var/lib/carrick";
    const NOUN: &'static str = "a path";

    fn read(text: &str) -> Result<Self, String> {
        match text {
            "" => Err("it is empty".to_owned()),
            _ if text.contains('\0') => Err("it holds a NUL character".to_owned()),
            _ => Ok(text.into()),
        }
    }
}

impl Written for BundleSource {
    const FORM: &'static str = "path | file:///path";
    const EXAMPLE: &'static str = "file:///etc/carrick/onprem.json";
    const NOUN: &'static str = "the place of a bundle";

    fn read(text: &str) -> Result<Self, String> {
        let path = match text.strip_prefix("file://") {
            Some(path) if path.starts_with('/') => path,
            Some(_) => {
                return Err(
                    "a file URL has an absolute path and no host: `file:///etc/carrick/peer.json`".into()
                );
            }
            None if text.contains("://") || text.starts_with("file:") => {
                return Err("write a path or `file:///path`".to_owned());
            }
            None => text,
        };
        PathBuf::read(path).map(Self::File)
    }
}

/// What follows `<service>.<domain>.` in the name of an import.
pub(crate) struct Suffix(pub(crate) String);

impl Written for Suffix {
    const FORM: &'static str = "DNS name";
    const EXAMPLE: &'static str = "mesh";
    const NOUN: &'static str = "a DNS name";

    fn read(text: &str) -> Result<Self, String> {
        Domain::read(text.strip_prefix('.').unwrap_or(text)).map(|name| Self(name.as_str().to_owned()))
    }
}

/// A log level, or `target=level` pairs.
pub(crate) struct Level(pub(crate) String);

impl Level {
    const WORDS: [&'static str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
}

impl Written for Level {
    const FORM: &'static str = "level | target=level,…";
    const EXAMPLE: &'static str = "info,carrick_proxy=debug";
    const NOUN: &'static str = "a log level";

    fn read(text: &str) -> Result<Self, String> {
        let lower = text.to_ascii_lowercase();
        for part in lower.split(',').map(str::trim) {
            let (target, word) =
                part.split_once('=').map_or((None, part), |(target, word)| (Some(target), word));
            let target_ok = target.is_none_or(|t| {
                !t.is_empty()
                    && t.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b':' | b'-'))
            });
            if !target_ok || !Self::WORDS.contains(&word) {
                return Err(format!("write one of {}, or `target=level` pairs", Self::WORDS.join(", ")));
            }
        }
        Ok(Self(lower))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_example_can_be_read() {
        fn check<T: Written>() {
            if let Err(why) = Text::<T>::new(T::EXAMPLE).read() {
                panic!("{}: {why}", T::FORM);
            }
        }
        check::<Domain>();
        check::<Host>();
        check::<HostPort>();
        check::<Target>();
        check::<ServiceName>();
        check::<ExportTarget>();
        check::<ListenAddress>();
        check::<SpiffePattern>();
        check::<SocketAddr>();
        check::<Switched>();
        check::<Server>();
        check::<TrustDomain>();
        check::<Ipv4Net>();
        check::<Duration>();
        check::<Bytes>();
        check::<Lanes>();
        check::<PathBuf>();
        check::<BundleSource>();
        check::<Suffix>();
        check::<Level>();
        check::<ServeUrl>();
        check::<PartUrl>();
        check::<ServicePattern>();
        check::<EtcdEndpoint>();
        check::<KeyPrefix>();
        check::<FileMode>();
        check::<PartName>();
        check::<PublicUrl>();
    }

    #[test]
    fn bytes_have_units() {
        let read = |text| Bytes::read(text).map(|bytes| bytes.0);
        assert_eq!(read("1GiB"), Ok(1 << 30));
        assert_eq!(read("64 MB"), Ok(64_000_000));
        assert_eq!(read("7B"), Ok(7));
        for bad in ["1", "", "GiB", "-1GiB", "1.5GiB", "1GIB", "99999999999TiB"] {
            assert!(read(bad).is_err(), "{bad}");
        }
        assert_eq!(Bytes::text(1 << 30).text, "1GiB");
        assert_eq!(Bytes::text(1500).text, "1500B");
    }

    #[test]
    fn a_bundle_is_a_path_or_a_file_url() {
        let path = |text| BundleSource::read(text).map(|BundleSource::File(path)| path);
        assert_eq!(path("file:///etc/a.json"), Ok("/etc/a.json".into()));
        assert_eq!(path("/etc/a.json"), Ok("/etc/a.json".into()));
        assert_eq!(path("keys/a.json"), Ok("keys/a.json".into()));
        for bad in ["", "file://", "file://host/a", "file:a.json", "https://a.test/bundle"] {
            assert!(path(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn small_texts_are_read_or_refused() {
        assert_eq!(Server::read("192.0.2.53").unwrap().0, "192.0.2.53:53".parse().unwrap());
        assert_eq!(Server::read("[2001:db8::1]:5353").unwrap().0, "[2001:db8::1]:5353".parse().unwrap());
        assert_eq!(Lanes::read("auto"), Ok(Lanes::Auto));
        assert_eq!(Lanes::read("16"), Ok(Lanes::Count(16)));
        assert!(Lanes::read("17").is_err() && Lanes::read("0").is_err());
        assert_eq!(Level::read("warn,carrick_proxy=DEBUG").unwrap().0, "warn,carrick_proxy=debug");
        assert!(Level::read("loud").is_err() && Level::read("=info").is_err());
        assert_eq!(Suffix::read(".Mesh.").unwrap().0, "mesh");
        assert!(TrustDomain::read("spiffe://a.test/x").is_err());
        assert_eq!(Switched::read("off").unwrap().0, None);
        assert!(Ipv4Net::read("fd00::/64").unwrap_err().contains("IPv4"));
        assert_eq!(Ipv4Net::read("127.80.1.2/16").unwrap().to_string(), "127.80.0.0/16");
    }
}
