//! What the domain offers: the exports of its configuration as services and endpoints.

use std::collections::BTreeMap;

use carrick_model::{Payload, SpiffePattern, Target};
use carrick_proto::registry::{NetworkService, NetworkServiceEndpoint, NetworkServiceLabels};
use carrick_registry_core::Audience;

/// Label of an endpoint, under its service: what it carries (`TCP`, `UDP`).
pub const PAYLOAD_LABEL: &str = "carrick.payload";

/// Label of an endpoint, under its service: the port on which clients expect it.
pub const PORT_LABEL: &str = "carrick.port";

/// One export.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExportRecord {
    /// The service it provides. Several exports may provide one service.
    pub service: Target,
    /// The name of the endpoint, unique in the domain.
    pub endpoint: String,
    /// What it carries.
    pub payload: Payload,
    /// Where requests for it go: `tcp://<advertised control address>`.
    pub url: String,
    /// Labels under its service; [`PAYLOAD_LABEL`] is set from `payload`.
    pub labels: BTreeMap<String, String>,
    /// Who outside the domain may see and use it; nobody if empty.
    pub allow: Vec<SpiffePattern>,
}

/// Why a set of exports is not taken. The set before stays in force.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ExportError {
    /// Two exports have one endpoint name. The caller has to make names unique.
    #[error("two exports have the endpoint name `{0}`")]
    SameEndpoint(String),
    /// An export has no endpoint name. The caller has to give one.
    #[error("an export of `{0}` has no endpoint name")]
    NoEndpoint(Target),
}

/// What a new set of exports changed, in endpoints.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ExportChanges {
    /// Endpoints that are new.
    pub added: usize,
    /// Endpoints that differ in what they offer or to whom.
    pub changed: usize,
    /// Endpoints that are gone.
    pub removed: usize,
}

/// The objects of a set of exports, each with who may see it, by name.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Offer {
    pub(crate) services: BTreeMap<String, (NetworkService, Audience)>,
    pub(crate) endpoints: BTreeMap<String, (NetworkServiceEndpoint, Audience)>,
}

impl Offer {
    /// A service carries what its first export carries, and is seen by whoever may see one of its endpoints.
    pub(crate) fn of(exports: Vec<ExportRecord>) -> Result<Self, ExportError> {
        let mut offer = Self::default();
        let mut allowed: BTreeMap<String, Vec<SpiffePattern>> = BTreeMap::new();
        for export in exports {
            if export.endpoint.is_empty() {
                return Err(ExportError::NoEndpoint(export.service));
            }
            if offer.endpoints.contains_key(&export.endpoint) {
                return Err(ExportError::SameEndpoint(export.endpoint));
            }
            let service = export.service.as_str().to_owned();
            allowed.entry(service.clone()).or_default().extend(export.allow.iter().cloned());
            offer.services.entry(service.clone()).or_insert_with(|| {
                let payload = export.payload.as_str().into();
                (NetworkService { name: service, payload, ..Default::default() }, Audience::own_domain())
            });
            let audience = export.allow.iter().cloned().collect();
            offer.endpoints.insert(export.endpoint.clone(), (export.into_endpoint(), audience));
        }
        for (service, patterns) in allowed {
            if let Some((_, audience)) = offer.services.get_mut(&service) {
                *audience = patterns.into_iter().collect();
            }
        }
        Ok(offer)
    }
}

impl ExportRecord {
    fn into_endpoint(self) -> NetworkServiceEndpoint {
        let mut labels = self.labels;
        labels.insert(PAYLOAD_LABEL.into(), self.payload.as_str().into());
        NetworkServiceEndpoint {
            name: self.endpoint,
            network_service_names: vec![self.service.as_str().into()],
            network_service_labels: [(
                self.service.as_str().into(),
                NetworkServiceLabels { labels, ..NetworkServiceLabels::default() },
            )]
            .into(),
            url: self.url,
            ..Default::default()
        }
    }
}
