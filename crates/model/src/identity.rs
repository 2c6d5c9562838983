//! SPIFFE ids, trust domains, and the patterns of `allow:` lists.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer};
pub use spiffe::{SpiffeId, TrustDomain};

/// Longest SPIFFE ID we accept (SPIFFE-ID specification section 2.3).
pub const MAX_SPIFFE_ID: usize = 2048;

/// A pattern over SPIFFE IDs: `spiffe://onprem.test/**`.
///
/// The trust domain is literal: an `allow:` list never speaks for all domains at once. In the path `*` stands for one
/// whole segment and a closing `**` for any rest, the empty one included.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct SpiffePattern {
    trust_domain: TrustDomain,
    segments: Vec<Segment>,
    rest: bool,
}

#[derive(Clone, PartialEq, Eq, Hash)]
enum Segment {
    Literal(String),
    Any,
}

/// Why a text is not a pattern.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PatternError {
    /// The scheme is missing.
    #[error("a pattern starts with `spiffe://`, for example `spiffe://onprem.test/**`")]
    Scheme,
    /// The trust domain is a wildcard or not valid.
    #[error("`{0}` is not a trust domain: a pattern names exactly one")]
    TrustDomain(String),
    /// `**` stands elsewhere than at the end.
    #[error("`**` stands only at the end of a pattern")]
    Rest,
    /// A `*` is part of a segment.
    #[error("segment `{0}`: `*` stands for one whole segment")]
    Star(String),
    /// A segment is not valid in a SPIFFE ID.
    #[error("segment `{0}`: letters, digits, `.`, `-` and `_` only, and not `.` or `..`")]
    Segment(String),
    /// The pattern is over 2048 octets.
    #[error("a pattern has at most {MAX_SPIFFE_ID} characters")]
    TooLong,
}

impl SpiffePattern {
    /// The one trust domain this pattern speaks of.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// Whether `id` is one of those meant.
    pub fn matches(&self, id: &SpiffeId) -> bool {
        if id.trust_domain() != &self.trust_domain {
            return false;
        }
        let path = id.path().strip_prefix('/').unwrap_or(id.path());
        let mut given = path.split('/').filter(|s| !s.is_empty());
        for wanted in &self.segments {
            match (wanted, given.next()) {
                (Segment::Any, Some(_)) => {}
                (Segment::Literal(want), Some(have)) if want == have => {}
                _ => return false,
            }
        }
        self.rest || given.next().is_none()
    }
}

impl FromStr for SpiffePattern {
    type Err = PatternError;

    fn from_str(text: &str) -> Result<Self, PatternError> {
        if text.len() > MAX_SPIFFE_ID {
            return Err(PatternError::TooLong);
        }
        let rest_of_text = text.strip_prefix("spiffe://").ok_or(PatternError::Scheme)?;
        let (authority, path) = rest_of_text.split_once('/').unwrap_or((rest_of_text, ""));
        let bad_domain = || PatternError::TrustDomain(crate::domain::shorten(authority));
        let trust_domain = TrustDomain::new(authority).map_err(|_| bad_domain())?;
        let mut pattern = Self { trust_domain, segments: Vec::new(), rest: false };
        for segment in path.split('/').filter(|_| !path.is_empty()) {
            if pattern.rest {
                return Err(PatternError::Rest);
            }
            match segment {
                "**" => pattern.rest = true,
                "*" => pattern.segments.push(Segment::Any),
                s if s.contains('*') => return Err(PatternError::Star(crate::domain::shorten(s))),
                s if valid_segment(s) => pattern.segments.push(Segment::Literal(s.to_owned())),
                s => return Err(PatternError::Segment(crate::domain::shorten(s))),
            }
        }
        Ok(pattern)
    }
}

/// SPIFFE-ID specification section 2.2.
fn valid_segment(s: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_');
    !s.is_empty() && s != "." && s != ".." && s.bytes().all(allowed)
}

impl fmt::Display for SpiffePattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "spiffe://{}", self.trust_domain)?;
        for segment in &self.segments {
            match segment {
                Segment::Any => f.write_str("/*")?,
                Segment::Literal(s) => write!(f, "/{s}")?,
            }
        }
        if self.rest { f.write_str("/**") } else { Ok(()) }
    }
}

impl fmt::Debug for SpiffePattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SpiffePattern({self})")
    }
}

impl Serialize for SpiffePattern {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for SpiffePattern {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn matches(pattern: &str, id: &str) -> bool {
        pattern.parse::<SpiffePattern>().unwrap().matches(&SpiffeId::new(id).unwrap())
    }

    #[test]
    fn stars_stand_for_segments() {
        assert!(matches("spiffe://a.test/**", "spiffe://a.test/ns/x/pod/y"));
        assert!(matches("spiffe://a.test/**", "spiffe://a.test"));
        assert!(matches("spiffe://a.test/ns/*/pod/*", "spiffe://a.test/ns/x/pod/y"));
        assert!(!matches("spiffe://a.test/ns/*/pod/*", "spiffe://a.test/ns/x/pod/y/z"));
        assert!(!matches("spiffe://a.test/ns/*", "spiffe://a.test/ns"));
        assert!(matches("spiffe://a.test/gateway", "spiffe://a.test/gateway"));
        assert!(!matches("spiffe://a.test/gateway", "spiffe://a.test/gateway2"));
        assert!(!matches("spiffe://a.test/gateway", "spiffe://a.test"));
    }

    #[test]
    fn a_pattern_never_crosses_trust_domains() {
        assert!(!matches("spiffe://a.test/**", "spiffe://b.test/x"));
        assert!(!matches("spiffe://a.test/**", "spiffe://a.test.evil/x"));
        let fault = |s: &str| s.parse::<SpiffePattern>().unwrap_err();
        assert_eq!(fault("spiffe://*/x"), PatternError::TrustDomain("*".into()));
        assert_eq!(fault("spiffe:///x"), PatternError::TrustDomain(String::new()));
        assert_eq!(fault("https://a.test/x"), PatternError::Scheme);
        assert_eq!(fault("spiffe://a.test/**/x"), PatternError::Rest);
        assert_eq!(fault("spiffe://a.test/x*"), PatternError::Star("x*".into()));
        assert_eq!(fault("spiffe://a.test/../x"), PatternError::Segment("..".into()));
        assert_eq!(fault("spiffe://a.test//x"), PatternError::Segment(String::new()));
    }

    proptest! {
        #[test]
        fn parsing_never_panics_and_display_parses_back(s in "(spiffe://)?[a-z.*/\\-_A-Z0-9]{0,60}") {
            if let Ok(p) = s.parse::<SpiffePattern>() {
                prop_assert_eq!(p.to_string().parse::<SpiffePattern>(), Ok(p));
            }
        }

        #[test]
        fn a_literal_pattern_matches_itself_only(a in "[a-z]{1,8}(/[a-z]{1,8}){0,4}", b in "[a-z]{1,8}(/[a-z]{1,8}){0,4}") {
            let (ia, ib) = (format!("spiffe://t.test/{a}"), format!("spiffe://t.test/{b}"));
            prop_assert_eq!(matches(&ia, &ib), a == b);
            prop_assert!(matches(&ia, &ia));
        }
    }
}
