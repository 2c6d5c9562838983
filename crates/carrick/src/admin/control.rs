//! What the admin API asks of the daemon.

use std::future::Future;

use carrick_model::{Domain, ListenAddress, ServiceName};

use crate::admin::api::{
    ConnectReply, ConnectRequest, ConnectionRow, ExplainReport, PassingRow, Problem, ReloadReply, ServiceRow,
    Status, TrustRow,
};

/// The daemon as the admin API sees it; the composition root implements it.
///
/// Calls come concurrently and are dropped when the caller goes away or [`crate::admin::server`]'s deadline passes, so
/// an implementation must leave nothing half done at an await.
pub(crate) trait Control: Send + Sync + 'static {
    /// The own domain: what a name without `@` means.
    fn domain(&self) -> Domain;

    /// The daemon at a glance.
    fn status(&self) -> impl Future<Output = Status> + Send;

    /// Services of `domain`, asked there; without one, what this daemon exports and imports.
    fn services(
        &self,
        domain: Option<Domain>,
    ) -> impl Future<Output = Result<Vec<ServiceRow>, Problem>> + Send;

    /// Connections in both directions.
    fn connections(&self) -> impl Future<Output = Vec<ConnectionRow>> + Send;

    /// Connections that pass through, by service.
    fn passing(&self) -> impl Future<Output = Vec<PassingRow>> + Send;

    /// Walks the steps from `name` to a flow. A step that fails is part of the report, not an error.
    fn explain(&self, name: ServiceName) -> impl Future<Output = ExplainReport> + Send;

    /// Makes an import that is in no config file, and binds its listener before it answers.
    fn connect(&self, request: ConnectRequest) -> impl Future<Output = Result<ConnectReply, Problem>> + Send;

    /// Ends an import that [`Control::connect`] made.
    fn disconnect(
        &self,
        service: ServiceName,
        listen: ListenAddress,
    ) -> impl Future<Output = Result<(), Problem>> + Send;

    /// The bundles in force, the own one first.
    fn trust(&self) -> impl Future<Output = Vec<TrustRow>> + Send;

    /// Reads the config file and the imported bundles again and applies what changed.
    fn reload(&self) -> impl Future<Output = Result<ReloadReply, Problem>> + Send;

    /// The metrics in OpenMetrics text.
    fn metrics(&self) -> String;

    /// Whether every part has started and the daemon is not draining.
    fn ready(&self) -> bool;
}
