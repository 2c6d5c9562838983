//! Who may do something with which services of a registry.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::{
    domain::{self, shorten},
    identity::{SpiffeId, SpiffePattern},
};

/// Services of a registry: one (`postgres`), those that begin alike (`db.*`), or all (`*`).
///
/// A registry keeps names as they were registered, so letters count as they are written.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServicePattern {
    start: String,
    open: bool,
}

/// Why a text is not a pattern of services.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ServicePatternError {
    /// Nothing was given.
    #[error("write a service, for example `postgres`, or `*` for all")]
    Empty,
    /// A `*` stands elsewhere than at the end.
    #[error("`*` stands only at the end, for any rest")]
    Star,
    /// The text holds an `@`.
    #[error("a registry has its services without a domain: leave out the `@` and what follows it")]
    At,
    /// The text holds a space or a control character.
    #[error("`{0}` holds a space or a character that cannot be printed")]
    Space(String),
    /// The text is longer than a name can be.
    #[error("a service name has at most {max} characters, this one has {0}", max = domain::MAX_NAME)]
    TooLong(usize),
}

/// Lets callers do something with services. What no rule lets is refused.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct AccessRule {
    /// The callers.
    pub who: Vec<SpiffePattern>,
    /// The services.
    pub services: Vec<ServicePattern>,
}

impl AccessRule {
    /// Whether this rule lets `caller` do it with `service`, the name without a domain.
    pub fn lets(&self, caller: &SpiffeId, service: &str) -> bool {
        self.speaks_of(caller) && self.services.iter().any(|pattern| pattern.matches(service))
    }

    /// Whether `caller` is one of those this rule is about.
    pub fn speaks_of(&self, caller: &SpiffeId) -> bool {
        self.who.iter().any(|pattern| pattern.matches(caller))
    }
}

impl ServicePattern {
    /// Whether `service`, the name without a domain, is one of those meant.
    pub fn matches(&self, service: &str) -> bool {
        if self.open { service.starts_with(&self.start) } else { service == self.start }
    }
}

impl FromStr for ServicePattern {
    type Err = ServicePatternError;

    fn from_str(text: &str) -> Result<Self, ServicePatternError> {
        let (start, open) = text.strip_suffix('*').map_or((text, false), |start| (start, true));
        if text.is_empty() {
            return Err(ServicePatternError::Empty);
        }
        if text.len() > domain::MAX_NAME {
            return Err(ServicePatternError::TooLong(text.len()));
        }
        if start.contains('*') {
            return Err(ServicePatternError::Star);
        }
        if start.contains('@') {
            return Err(ServicePatternError::At);
        }
        if start.contains(|c: char| c.is_whitespace() || c.is_control()) {
            return Err(ServicePatternError::Space(shorten(text)));
        }
        Ok(Self { start: start.to_owned(), open })
    }
}

impl fmt::Display for ServicePattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.start)?;
        if self.open { f.write_str("*") } else { Ok(()) }
    }
}

impl fmt::Debug for ServicePattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ServicePattern({self})")
    }
}

impl Serialize for ServicePattern {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ServicePattern {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_closing_star_stands_for_any_rest() {
        let matches = |pattern: &str, name: &str| pattern.parse::<ServicePattern>().unwrap().matches(name);
        assert!(matches("postgres", "postgres") && !matches("postgres", "postgres2"));
        assert!(!matches("postgres", "Postgres"));
        assert!(matches("db.*", "db.reporting") && matches("db.*", "db.") && !matches("db.*", "db"));
        assert!(matches("*", "anything") && matches("*", ""));
    }

    #[test]
    fn what_is_no_pattern_says_why() {
        let fault = |text: &str| text.parse::<ServicePattern>().unwrap_err();
        assert_eq!(fault(""), ServicePatternError::Empty);
        assert_eq!(fault("*.db"), ServicePatternError::Star);
        assert_eq!(fault("a**"), ServicePatternError::Star);
        assert_eq!(fault("db@onprem.test"), ServicePatternError::At);
        assert_eq!(fault("d b"), ServicePatternError::Space("d b".into()));
        assert_eq!(fault(&"x".repeat(300)), ServicePatternError::TooLong(300));
    }

    #[test]
    fn a_rule_takes_both_caller_and_service() {
        let rule = AccessRule {
            who: vec!["spiffe://a.test/ns/*".parse().unwrap(), "spiffe://b.test/**".parse().unwrap()],
            services: vec!["vl3".parse().unwrap(), "db.*".parse().unwrap()],
        };
        let lets = |id: &str, service: &str| rule.lets(&SpiffeId::new(id).unwrap(), service);
        assert!(lets("spiffe://a.test/ns/x", "vl3") && lets("spiffe://b.test/any/thing", "db.x"));
        assert!(!lets("spiffe://a.test/other", "vl3") && !lets("spiffe://c.test/ns/x", "vl3"));
        assert!(!lets("spiffe://a.test/ns/x", "web"));
        let empty = AccessRule { who: rule.who.clone(), services: Vec::new() };
        assert!(!empty.lets(&SpiffeId::new("spiffe://b.test/x").unwrap(), "vl3"), "deny by default");
    }

    proptest! {
        #[test]
        fn parsing_never_panics_and_display_parses_back(s in "\\PC{0,40}\\*?") {
            if let Ok(pattern) = s.parse::<ServicePattern>() {
                prop_assert_eq!(pattern.to_string().parse::<ServicePattern>(), Ok(pattern));
            }
        }
    }
}
