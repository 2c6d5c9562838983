//! What is offered, and where it is reached: `carrick services`.

use carrick_model::{Domain, Payload, ServiceName};
use serde::{Deserialize, Serialize};

use super::{ImportState, words};

/// `carrick services`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct ServiceList {
    /// The domain that was asked, or `null` for what this daemon exports and imports.
    pub(crate) domain: Option<Domain>,
    /// In order of their names.
    pub(crate) services: Vec<ServiceRow>,
}

/// One network service.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct ServiceRow {
    /// Its name with its domain.
    pub(crate) service: ServiceName,
    /// How this daemon knows it.
    pub(crate) origin: Origin,
    /// What it carries.
    pub(crate) payload: Option<Payload>,
    /// The service's own port.
    pub(crate) port: Option<u16>,
    /// Names of its endpoints.
    pub(crate) endpoints: Vec<String>,
    /// Where a local application reaches it: listen addresses and DNS names. Empty when it is not imported.
    pub(crate) reach: Vec<String>,
    /// State of the import, when it is imported.
    pub(crate) state: Option<ImportState>,
}

/// How a service is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Origin {
    /// An export of this daemon.
    Export,
    /// An import of this daemon.
    Import,
    /// Offered by another domain, not imported here.
    Remote,
}

words! {
    Origin { Export => "export", Import => "import", Remote => "remote" }
}
