//! The registry's gRPC services: Register, Unregister and Find with watch, for NSM clients and peers.
//!
//! A [`Registry`] is the catalogue of one domain. It holds what the domain [exports](Registry::set_exports) and what
//! others register, which a [`Store`](store::Store) keeps, and answers `registry.NetworkServiceRegistry` and
//! `registry.NetworkServiceEndpointRegistry` on NSM's wire:
//!
//! - `Find` without `watch` streams what matches and ends; with `watch` it goes on with every change and ends when the
//!   registry stops. No mark separates the two, as in NSM.
//! - A caller of another trust domain sees only what an `allow:` list names it for. What it must not see does not exist.
//! - `Register` and `Unregister` are answered once the change is durable and can be found. A name belongs to whoever
//!   registered it, by its tokens and its certificate, until it unregisters or its lease of at most a minute ends.
//! - A caller of another trust domain registers only what a rule of the [`Admission`] lets it.
//! - A name may carry the suffix of the own domain (`postgres@own.test`); the answer then carries it too.
//! - A name with the suffix of another domain is answered by that domain's registry: [`federation`].
//! - Where a registry of NSM's stays in charge of the own names, they are mirrored from it and registrations passed on to it:
//!   [`MirrorStore`].
//!
//! All rules of matching, watching, hiding and owning live in `carrick-registry-core`. This crate adds the store, a lock
//! that is never held across an await, wakes watchers, and sets the limits.

mod admission;
mod chain;
mod changes;
mod exports;
pub mod federation;
mod find;
mod keeper;
mod limits;
mod names;
mod register;
mod registry;
mod service;
pub mod store;
mod upstream;

pub use admission::Admission;
pub use carrick_registry_core::{Audience, Filter, Object, Record, Revision, Update, Viewer};
pub use chain::ChainError;
pub use changes::Changes;
pub use exports::{ExportChanges, ExportError, ExportRecord, PAYLOAD_LABEL, PORT_LABEL};
pub use find::FindError;
pub use keeper::StoreStatus;
pub use limits::{
    MAX_LABELS, MAX_LEASE, MAX_MESSAGE, MAX_NAME, MAX_OBJECT, MAX_PATH_IDS, MAX_REGISTRATIONS,
    MAX_REGISTRATIONS_PER_CALLER, MAX_SERVICES, MAX_URL, MAX_WATCH_QUERY, MAX_WATCHES,
    MAX_WATCHES_PER_CALLER,
};
pub use names::NameError;
pub use register::{LimitError, RegisterError};
pub use registry::Registry;
pub use service::{EndpointRegistry, ServiceRegistry};
pub use upstream::MirrorStore;
