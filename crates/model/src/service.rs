//! Network services: bare, and with the domain that offers them.

use std::{fmt, str::FromStr, sync::Arc};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::domain::{self, Domain, DomainError};

/// A network service inside one domain: `postgres`, `db.reporting`.
///
/// One or more DNS labels, lower case, so that `<service>.<domain>` is a DNS name too.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Target(Arc<str>);

/// Why a text is not a bare service name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TargetError {
    /// Nothing stands before the `@`.
    #[error("a service needs a name, for example `postgres`")]
    Empty,
    /// The name is over 253 octets.
    #[error("a service name has at most {max} characters, this one has {0}", max = domain::MAX_NAME)]
    TooLong(usize),
    /// A label breaks the rules of RFC 1123 section 2.1.
    #[error(
        "label `{0}`: a service is made of DNS labels: letters, digits and inner hyphens, joined by dots"
    )]
    Label(String),
}

impl Target {
    /// The name in lower case.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// This service as offered by `domain`.
    pub fn at(&self, domain: &Domain) -> ServiceName {
        ServiceName { target: self.clone(), domain: domain.clone() }
    }
}

impl FromStr for Target {
    type Err = TargetError;

    fn from_str(text: &str) -> Result<Self, TargetError> {
        if text.is_empty() {
            return Err(TargetError::Empty);
        }
        if text.len() > domain::MAX_NAME {
            return Err(TargetError::TooLong(text.len()));
        }
        let lower = text.to_ascii_lowercase();
        for label in lower.split('.') {
            domain::check_label(label).map_err(|()| TargetError::Label(domain::shorten(label)))?;
        }
        Ok(Self(lower.into()))
    }
}

/// A network service of a domain: `postgres@onprem.example.com`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServiceName {
    target: Target,
    domain: Domain,
}

/// Why a text is not `service@domain`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ServiceNameError {
    /// There is no `@`.
    #[error("`{0}` names no domain: write `service@domain`")]
    NoDomain(String),
    /// What stands before the first `@` is not a service.
    #[error("not a service before the `@`")]
    Target(#[from] TargetError),
    /// What stands after the first `@` is not a domain.
    #[error("not a domain after the `@`")]
    Domain(#[from] DomainError),
}

impl ServiceName {
    /// The service inside its domain.
    pub fn target(&self) -> &Target {
        &self.target
    }

    /// The domain that offers the service.
    pub fn domain(&self) -> &Domain {
        &self.domain
    }

    /// The name an application asks the DNS for: `<service>.<domain>.<suffix>`.
    pub fn dns_name(&self, suffix: &str) -> String {
        format!("{}.{}.{suffix}", self.target, self.domain)
    }
}

/// Splits at the first `@`, as NSM does: what stands before it, and what stands after it if there is one.
pub fn split_name(text: &str) -> (&str, Option<&str>) {
    match text.split_once('@') {
        Some((target, domain)) => (target, Some(domain)),
        None => (text, None),
    }
}

impl FromStr for ServiceName {
    type Err = ServiceNameError;

    fn from_str(text: &str) -> Result<Self, ServiceNameError> {
        let (target, Some(domain)) = split_name(text) else {
            return Err(ServiceNameError::NoDomain(domain::shorten(text)));
        };
        Ok(Self { target: target.parse()?, domain: domain.parse()? })
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Target({})", self.0)
    }
}

impl fmt::Display for ServiceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.target, self.domain)
    }
}

impl fmt::Debug for ServiceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ServiceName({self})")
    }
}

impl Serialize for Target {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Target {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
    }
}

impl Serialize for ServiceName {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ServiceName {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_first_at_splits() {
        let name: ServiceName = "Postgres@OnPrem.test".parse().unwrap();
        assert_eq!(name.target().as_str(), "postgres");
        assert_eq!(name.domain().as_str(), "onprem.test");
        assert_eq!(name.dns_name("mesh"), "postgres.onprem.test.mesh");
        assert_eq!(split_name("a@b@c"), ("a", Some("b@c")));
        assert_eq!("a@b@c".parse::<ServiceName>(), Err(ServiceNameError::Domain(DomainError::At)));
    }

    #[test]
    fn what_is_not_a_service_says_why() {
        let fault = |s: &str| s.parse::<ServiceName>().unwrap_err();
        assert_eq!(fault("postgres"), ServiceNameError::NoDomain("postgres".into()));
        assert_eq!(fault("@onprem.test"), ServiceNameError::Target(TargetError::Empty));
        assert_eq!(fault("postgres@"), ServiceNameError::Domain(DomainError::Empty));
        assert_eq!(fault("@"), ServiceNameError::Target(TargetError::Empty));
        assert_eq!(fault("a b@c.test"), ServiceNameError::Target(TargetError::Label("a b".into())));
    }

    proptest! {
        #[test]
        fn parsing_never_panics_and_display_parses_back(s in "\\PC{0,300}") {
            if let Ok(n) = s.parse::<ServiceName>() {
                prop_assert_eq!(n.to_string().parse::<ServiceName>(), Ok(n));
            }
        }

        #[test]
        fn every_pair_of_valid_halves_is_valid(t in "[a-z][a-z0-9]{0,30}", d in "[a-z][a-z0-9]{0,30}\\.test") {
            let n: ServiceName = format!("{t}@{d}").parse().unwrap();
            prop_assert_eq!(n.target().as_str(), t);
            prop_assert_eq!(n.domain().as_str(), d);
        }
    }
}
