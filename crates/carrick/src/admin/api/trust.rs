//! The bundles in force: `carrick trust show`.

use carrick_identity::{Authority, Bundle};
use carrick_model::Domain;
use serde::{Deserialize, Serialize};

use super::Timestamp;

/// `carrick trust show`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct TrustList {
    /// The own bundle first, then in order of domains.
    pub(crate) bundles: Vec<TrustRow>,
}

/// The roots one domain's peers are checked against.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct TrustRow {
    /// The domain whose names these roots vouch for.
    pub(crate) domain: Domain,
    /// The trust domain in its SPIFFE IDs.
    pub(crate) trust_domain: String,
    /// Whether it is this daemon's own.
    pub(crate) own: bool,
    /// Where it comes from: `embedded`, `config`, `imported`.
    pub(crate) source: String,
    /// SHA-256 of each root certificate, in hex.
    pub(crate) fingerprints: Vec<String>,
    /// What each of the own roots does, in the order of `fingerprints`: `active` issues, `prepared` is to issue next, `old`
    /// has issued. Empty for the bundles of others.
    pub(crate) states: Vec<String>,
    /// When the roots end.
    pub(crate) not_after: Timestamp,
}

impl TrustRow {
    /// The row of `bundle`, from `source`. The own one comes with what each of its roots does.
    pub(crate) fn new(domain: Domain, bundle: &Bundle, source: &str, own: Option<&[Authority]>) -> Self {
        Self {
            domain,
            trust_domain: bundle.trust_domain().to_string(),
            own: own.is_some(),
            source: source.to_owned(),
            fingerprints: bundle.fingerprints(),
            states: own.unwrap_or_default().iter().map(|state| state.as_str().to_owned()).collect(),
            not_after: bundle.not_after().into(),
        }
    }
}
