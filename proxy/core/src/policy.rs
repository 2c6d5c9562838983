//! Whether a caller may use an export, and why: deny by default.

use std::fmt;

use carrick_model::{SpiffeId, SpiffePattern};

/// The decision on one caller, with its reason.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// Allowed by this entry of the list.
    Allowed(SpiffePattern),
    /// The list is empty: nobody was ever allowed.
    NobodyAllowed,
    /// The list speaks of the caller's trust domain, but not of the caller.
    NotListed,
    /// The list does not speak of the caller's trust domain at all.
    OtherTrustDomain,
}

/// Decides on `caller` by an export's allow list. The first entry that matches is the reason.
pub fn decide(allow: &[SpiffePattern], caller: &SpiffeId) -> Decision {
    if allow.is_empty() {
        return Decision::NobodyAllowed;
    }
    if let Some(pattern) = allow.iter().find(|p| p.matches(caller)) {
        return Decision::Allowed(pattern.clone());
    }
    if allow.iter().any(|p| p.trust_domain() == caller.trust_domain()) {
        Decision::NotListed
    } else {
        Decision::OtherTrustDomain
    }
}

impl Decision {
    /// Whether the caller may.
    pub fn is_allowed(&self) -> bool {
        matches!(self, Self::Allowed(_))
    }
}

impl fmt::Display for Decision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Allowed(pattern) => write!(f, "allowed by `{pattern}`"),
            Self::NobodyAllowed => f.write_str("the allow list is empty"),
            Self::NotListed => f.write_str("no entry of the allow list matches this identity"),
            Self::OtherTrustDomain => f.write_str("no entry of the allow list is of this trust domain"),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn list(patterns: &[&str]) -> Vec<SpiffePattern> {
        patterns.iter().map(|p| p.parse().unwrap()).collect()
    }

    #[test]
    fn nobody_is_allowed_unless_listed_and_the_reason_says_which_way() {
        let caller = SpiffeId::new("spiffe://a.test/carrick/gateway").unwrap();
        assert_eq!(decide(&[], &caller), Decision::NobodyAllowed);
        assert_eq!(decide(&list(&["spiffe://b.test/**"]), &caller), Decision::OtherTrustDomain);
        assert_eq!(decide(&list(&["spiffe://a.test/other"]), &caller), Decision::NotListed);
        let decision = decide(&list(&["spiffe://b.test/**", "spiffe://a.test/**"]), &caller);
        assert_eq!(decision.to_string(), "allowed by `spiffe://a.test/**`");
    }

    proptest! {
        #[test]
        fn a_list_of_other_trust_domains_never_allows(
            own in "[a-c]{1,3}",
            others in prop::collection::vec("[a-c]{1,3}", 0..6),
        ) {
            let caller = SpiffeId::new(format!("spiffe://{own}/x")).unwrap();
            let allow: Vec<SpiffePattern> =
                others.iter().map(|o| format!("spiffe://{o}/**").parse().unwrap()).collect();
            prop_assert_eq!(decide(&allow, &caller).is_allowed(), others.contains(&own));
        }
    }
}
