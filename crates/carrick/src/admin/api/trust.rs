//! The bundles in force: `carrick trust show`.

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
    /// When the roots end.
    pub(crate) not_after: Timestamp,
}
