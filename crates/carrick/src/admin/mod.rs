//! The admin API: how an operator's command line asks the daemon, and how a scraper reads its metrics.
//!
//! Two listeners, one router each:
//!
//! | where | who may | what |
//! |---|---|---|
//! | `state_dir/admin.sock`, mode 0600 | the daemon's own user and root | everything below |
//! | `listen.admin`, TCP | whoever reaches it | `/`, `/metrics`, `/livez`, `/readyz`: it only reads |
//!
//! | method and path | request | reply |
//! |---|---|---|
//! | `GET /v1/status` | | [`Status`](api::Status) |
//! | `GET /v1/services?domain=D` | | [`ServiceList`](api::ServiceList) |
//! | `GET /v1/connections` | | [`ConnectionList`](api::ConnectionList) |
//! | `GET /v1/explain?name=S@D` | | [`ExplainReport`](api::ExplainReport) |
//! | `POST /v1/connect` | [`ConnectRequest`](api::ConnectRequest) | [`ConnectReply`](api::ConnectReply) |
//! | `POST /v1/disconnect` | [`DisconnectRequest`](api::DisconnectRequest) | nothing (204) |
//! | `GET /v1/trust` | | [`TrustList`](api::TrustList) |
//! | `POST /v1/reload` | | [`ReloadReply`](api::ReloadReply) |
//! | `GET /metrics`, `/livez`, `/readyz` | | text |
//!
//! What goes wrong is a [`Problem`](api::Problem) with the status of its code. Every answer names its versions in
//! `carrick-version` and `carrick-api`. The API only grows: fields and codes are added, never renamed; a reader skips
//! fields it does not know.

pub(crate) mod api;
pub(crate) mod client;
pub(crate) mod control;
#[cfg(test)]
mod reference;
pub(crate) mod server;
pub(crate) mod socket;

/// Counts up when an old reader could misread a new answer. Adding a field does not.
pub(crate) const API_VERSION: u32 = 1;
/// Response header with [`API_VERSION`].
pub(crate) const API_HEADER: &str = "carrick-api";
/// Response header with the version of the daemon's binary.
pub(crate) const VERSION_HEADER: &str = "carrick-version";
/// The version of this binary.
pub(crate) const VERSION: &str = env!("CARGO_PKG_VERSION");
