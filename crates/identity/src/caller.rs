//! Who sent a request.

use carrick_model::SpiffeId;

/// The SPIFFE ID of the peer a request came from, as its TLS certificate proved it.
///
/// The control listener puts it into the extensions of every request of a connection; a handler that finds none
/// answers `Unauthenticated`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller(pub SpiffeId);
