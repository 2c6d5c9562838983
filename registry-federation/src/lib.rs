//! The registry's gRPC services: Find with watch, for NSM clients and peers.
//!
//! A [`Registry`] is the catalogue of one domain. It holds what the domain [exports](Registry::set_exports) and answers
//! `registry.NetworkServiceRegistry` and `registry.NetworkServiceEndpointRegistry` on NSM's wire:
//!
//! - `Find` without `watch` streams what matches and ends; with `watch` it goes on with every change and ends when the
//!   registry stops. No mark separates the two, as in NSM.
//! - A caller of another trust domain sees only what an `allow:` list names it for. What it must not see does not exist.
//! - A name may carry the suffix of the own domain (`postgres@own.test`); the answer then carries it too.
//!
//! All rules of matching, watching and hiding live in `carrick-registry-core`. This crate adds a lock that is never held
//! across an await, wakes watchers, and sets the limits.

mod exports;
mod find;
mod limits;
mod names;
mod registry;
mod service;
pub mod store;

pub use carrick_registry_core::{Audience, Filter, Object, Record, Revision, Viewer};
pub use exports::{ExportChanges, ExportError, ExportRecord, PAYLOAD_LABEL, PORT_LABEL};
pub use find::FindError;
pub use limits::{MAX_MESSAGE, MAX_WATCH_QUERY, MAX_WATCHES, MAX_WATCHES_PER_CALLER};
pub use names::NameError;
pub use registry::Registry;
pub use service::{EndpointRegistry, ServiceRegistry};
