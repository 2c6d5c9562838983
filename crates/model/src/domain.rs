//! A domain's DNS name.

use std::{fmt, str::FromStr, sync::Arc};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Longest DNS name in text form without the trailing dot (RFC 1035 section 2.3.4: 255 octets on the wire).
pub const MAX_NAME: usize = 253;
/// Longest DNS label (RFC 1035 section 2.3.4).
pub const MAX_LABEL: usize = 63;

/// An administrative unit, named by a DNS name: lower case, A-labels (IDNA applied), no trailing dot.
///
/// Cheap to clone. Two spellings of one domain (`Köln.example.`, `xn--kln-sna.example`) are equal.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Domain(Arc<str>);

/// Why a text is not a domain. The text is the caller's to quote.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DomainError {
    /// Nothing was given.
    #[error("a domain needs at least one label, for example `onprem.example.com`")]
    Empty,
    /// The text holds an `@`: NSM has no multi-hop names.
    #[error("a domain has no `@`: `service@domain` names one domain only")]
    At,
    /// An IP address is not a domain: it has no trust domain and no records.
    #[error("an IP address is not a domain: give the peer a name and list its address under `peers:`")]
    IpAddress,
    /// The name is over 253 octets.
    #[error("a domain has at most {MAX_NAME} characters, this one has {0}")]
    TooLong(usize),
    /// A label breaks the rules of RFC 1123 section 2.1.
    #[error(
        "label `{0}`: a label has 1 to {MAX_LABEL} letters, digits and inner hyphens (RFC 1123 section 2.1)"
    )]
    Label(String),
    /// The name is not valid internationalised text (UTS 46).
    #[error("not a valid internationalised name (UTS 46)")]
    Idna,
}

impl Domain {
    /// The name in A-label form, lower case, without a trailing dot.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Domain {
    type Err = DomainError;

    fn from_str(text: &str) -> Result<Self, DomainError> {
        let text = text.strip_suffix('.').unwrap_or(text);
        if text.is_empty() {
            return Err(DomainError::Empty);
        }
        // Four octets a character at most: what is longer cannot become a valid name, so it is not worth the IDNA work.
        if text.len() > MAX_NAME * 4 {
            return Err(DomainError::TooLong(text.len()));
        }
        if text.contains('@') {
            return Err(DomainError::At);
        }
        if text.trim_start_matches('[').trim_end_matches(']').parse::<std::net::IpAddr>().is_ok() {
            return Err(DomainError::IpAddress);
        }
        let ascii = if text.is_ascii() {
            text.to_ascii_lowercase()
        } else {
            idna::domain_to_ascii(text).map_err(|_| DomainError::Idna)?
        };
        if ascii.len() > MAX_NAME {
            return Err(DomainError::TooLong(ascii.len()));
        }
        for label in ascii.split('.') {
            check_label(label).map_err(|()| DomainError::Label(shorten(label)))?;
        }
        // A name whose last label is all digits would be read as an IPv4 address by many programs (RFC 3696 section 2).
        if ascii.rsplit('.').next().is_some_and(|last| last.bytes().all(|b| b.is_ascii_digit())) {
            return Err(DomainError::IpAddress);
        }
        if ascii.split('.').any(|l| l.starts_with("xn--")) && idna::domain_to_unicode(&ascii).1.is_err() {
            return Err(DomainError::Idna);
        }
        Ok(Self(ascii.into()))
    }
}

/// One label after RFC 1123 section 2.1: letters, digits, inner hyphens.
pub(crate) fn check_label(label: &str) -> Result<(), ()> {
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    let ok = !label.is_empty()
        && label.len() <= MAX_LABEL
        && label.bytes().all(inner)
        && !label.starts_with('-')
        && !label.ends_with('-');
    ok.then_some(()).ok_or(())
}

/// Enough of a bad label to recognise it in a message.
pub(crate) fn shorten(text: &str) -> String {
    const SHOWN: usize = 40;
    if text.chars().count() <= SHOWN {
        return text.to_owned();
    }
    text.chars().take(SHOWN).chain("…".chars()).collect()
}

impl fmt::Display for Domain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Domain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Domain({})", self.0)
    }
}

impl Serialize for Domain {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Domain {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn spellings_of_one_domain_are_equal() {
        let a: Domain = "OnPrem.Example.com.".parse().unwrap();
        assert_eq!(a.as_str(), "onprem.example.com");
        let idn: Domain = "Köln.example".parse().unwrap();
        assert_eq!(idn.as_str(), "xn--kln-sna.example");
        assert_eq!(idn, "xn--kln-sna.example".parse().unwrap());
    }

    #[test]
    fn what_is_not_a_domain_says_why() {
        let fault = |s: &str| s.parse::<Domain>().unwrap_err();
        assert_eq!(fault(""), DomainError::Empty);
        assert_eq!(fault("."), DomainError::Empty);
        assert_eq!(fault("b@c"), DomainError::At);
        assert_eq!(fault("10.0.0.1"), DomainError::IpAddress);
        assert_eq!(fault("[2001:db8::1]"), DomainError::IpAddress);
        assert_eq!(fault("a.b.300"), DomainError::IpAddress);
        assert_eq!(fault("-a.example"), DomainError::Label("-a".into()));
        assert_eq!(fault("a..example"), DomainError::Label(String::new()));
        assert_eq!(
            fault(&format!("{}.example", "a".repeat(64))),
            DomainError::Label(format!("{}…", "a".repeat(40)))
        );
        assert_eq!(fault(&"a.".repeat(200)), DomainError::TooLong(399));
        assert_eq!(fault("a\u{ffff}b.example"), DomainError::Idna);
        assert_eq!(fault("under_score.example"), DomainError::Label("under_score".into()));
    }

    proptest! {
        #[test]
        fn parsing_never_panics_and_display_parses_back(s in "\\PC{0,300}") {
            if let Ok(d) = s.parse::<Domain>() {
                prop_assert!(d.as_str().len() <= MAX_NAME);
                prop_assert_eq!(d.as_str().parse::<Domain>(), Ok(d.clone()));
            }
        }

        #[test]
        fn valid_names_are_accepted(s in "[a-z0-9]([a-z0-9-]{0,20}[a-z0-9])?(\\.[a-z][a-z0-9]{0,20}){1,5}") {
            prop_assume!(!s.split('.').any(|l| l.get(2..4) == Some("--")));
            prop_assert!(s.parse::<Domain>().is_ok(), "{}", s);
        }
    }
}
