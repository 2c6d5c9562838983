//! Where etcd is and how to call it.

use std::{fmt, net::IpAddr};

use carrick_model::Domain;
use tonic::transport::Uri;

use super::tls::TlsFiles;

/// Members whose addresses are given: a cluster has three to seven.
pub const MAX_ENDPOINTS: usize = 16;
/// The port of etcd's clients, where an endpoint names none.
const PORT: u16 = 2379;

/// Where etcd is and what is ours in it.
#[derive(Debug, Clone)]
pub struct EtcdSettings {
    /// `https://host:port` of each member; `http` on loopback only.
    pub endpoints: Vec<String>,
    /// For `https`.
    pub tls: Option<TlsFiles>,
    /// What all keys begin with.
    pub prefix: String,
    /// The domain whose registrations are kept. Domains that share an etcd do not see each other's.
    pub domain: Domain,
}

/// Why a store cannot be made of these settings; the operator has to change them.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EtcdSettingsFault {
    /// None or too many endpoints.
    #[error("registry.etcd.endpoints has {0} entries: give 1 to {MAX_ENDPOINTS}, one for each member")]
    Endpoints(usize),
    /// An endpoint is not a URL of the right form.
    #[error("registry.etcd.endpoints: `{0}` is not of the form https://host:port")]
    Form(String),
    /// Plain HTTP over a network would show and take registrations to and from anybody.
    #[error("registry.etcd.endpoints: `{0}` is not on loopback, and plain http is for loopback: use https")]
    Plain(String),
    /// There is nothing to check etcd's certificate with.
    #[error("registry.etcd.endpoints: `{0}` needs registry.etcd.tls with a ca")]
    NoTls(String),
}

/// One member, as it is called.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Address {
    pub(super) host: String,
    pub(super) port: u16,
    pub(super) tls: bool,
    /// `scheme://host:port`, for HTTP/2 and for messages.
    pub(super) uri: Uri,
}

impl Address {
    /// The members of the settings.
    pub(super) fn all(settings: &EtcdSettings) -> Result<Vec<Self>, EtcdSettingsFault> {
        if settings.endpoints.is_empty() || settings.endpoints.len() > MAX_ENDPOINTS {
            return Err(EtcdSettingsFault::Endpoints(settings.endpoints.len()));
        }
        settings.endpoints.iter().map(|text| Self::parse(text, settings.tls.is_some())).collect()
    }

    fn parse(text: &str, tls_files: bool) -> Result<Self, EtcdSettingsFault> {
        let form = || EtcdSettingsFault::Form(text.to_owned());
        let uri = Uri::try_from(text).map_err(|_| form())?;
        let tls = match uri.scheme_str() {
            Some("https") => true,
            Some("http") => false,
            _ => return Err(form()),
        };
        let (Some(host), "" | "/", None) = (uri.host(), uri.path(), uri.query()) else { return Err(form()) };
        let port = uri.port_u16().unwrap_or(PORT);
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        let loopback = bare == "localhost" || bare.parse().is_ok_and(|ip: IpAddr| ip.is_loopback());
        if !tls && !loopback {
            return Err(EtcdSettingsFault::Plain(text.to_owned()));
        }
        if tls && !tls_files {
            return Err(EtcdSettingsFault::NoTls(text.to_owned()));
        }
        let host = bare.to_owned();
        let uri = Uri::try_from(format!(
            "{}://{}:{port}",
            if tls { "https" } else { "http" },
            uri.host().unwrap_or_default()
        ))
        .map_err(|_| form())?;
        Ok(Self { host, port, tls, uri })
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.uri.to_string().trim_end_matches('/'))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_urls_with_a_port() {
        let parse = |text| Address::parse(text, true).map(|a| (a.to_string(), a.host, a.port, a.tls));
        let taken = |uri: &str, host: &str, port, tls| Ok((uri.to_owned(), host.to_owned(), port, tls));
        assert_eq!(
            parse("https://etcd-0.test:2379"),
            taken("https://etcd-0.test:2379", "etcd-0.test", 2379, true)
        );
        assert_eq!(parse("https://10.0.0.1/"), taken("https://10.0.0.1:2379", "10.0.0.1", 2379, true));
        assert_eq!(parse("http://[::1]:1234"), taken("http://[::1]:1234", "::1", 1234, false));
        assert_eq!(parse("http://localhost"), taken("http://localhost:2379", "localhost", 2379, false));
        for wrong in ["", "10.0.0.1:2379", "ftp://a", "https://a/b", "https://a?b", "https://"] {
            assert_eq!(parse(wrong), Err(EtcdSettingsFault::Form(wrong.into())), "{wrong}");
        }
        assert_eq!(
            parse("http://10.0.0.1:2379"),
            Err(EtcdSettingsFault::Plain("http://10.0.0.1:2379".into()))
        );
        let without = Address::parse("https://a.test", false);
        assert_eq!(without, Err(EtcdSettingsFault::NoTls("https://a.test".into())));
    }
}
