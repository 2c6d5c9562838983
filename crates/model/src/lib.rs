//! The words of Carrick as types.
//!
//! A string from outside becomes one of these at the border, and no inner code sees a raw string that should have
//! been a [`Domain`], a [`ServiceName`] or a [`ConnectionId`]. Nothing here does IO or knows a clock.
//!
//! | module | words |
//! |---|---|
//! | [`domain`] | a domain's DNS name |
//! | [`service`] | a network service: bare ([`Target`]) and with its domain ([`ServiceName`]) |
//! | [`connection`] | connection ids, payloads, mechanisms |
//! | [`address`] | host and port pairs, listen addresses, export targets |
//! | [`url`] | URLs by which NSM's parts listen and call each other |
//! | [`identity`] | SPIFFE ids, trust domains, the patterns of `allow:` lists |
//! | [`cause`] | what an error says, with what it came from |
//! | [`access`] | who may do something with which services of a registry |

pub mod access;
pub mod address;
pub mod cause;
pub mod connection;
pub mod domain;
pub mod identity;
pub mod service;
pub mod url;

pub use access::{AccessRule, ServicePattern, ServicePatternError};
pub use address::{AddressError, ExportTarget, Host, HostPort, ListenAddress};
pub use connection::{ConnectionId, Mechanism, Payload, UnknownWord};
pub use domain::{Domain, DomainError};
pub use identity::{PatternError, SpiffeId, SpiffePattern, TrustDomain};
pub use service::{ServiceName, ServiceNameError, Target, TargetError};
pub use url::{PartUrl, ServeUrl};
