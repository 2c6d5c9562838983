//! What the proxy asks of the local registry.

use carrick_model::Target;
pub use carrick_proxy_core::inbound::LocalExport;

/// The services that this domain offers itself.
pub trait LocalExports: Send + Sync + 'static {
    /// The exports of one service; empty when it is not offered.
    fn export(&self, service: &Target) -> Vec<LocalExport>;
}
