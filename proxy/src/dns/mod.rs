//! The DNS server for applications and for other domains.
//!
//! It is authoritative for two zones and refuses everything else; it never asks anybody (no open resolver):
//!
//! - our own domain: `_carrick._tcp` and `_carrick._udp` SRV records with the addresses of our gateways, so that a small
//!   site needs no other DNS server,
//! - the imports: `<service>.<domain>.<suffix>` has the virtual IP on which the import listens.
//!
//! A [`Zone`] is an immutable snapshot that [`ZoneHandle::set`] swaps; [`Zone::answer`] is the whole protocol and does no
//! IO. [`Server`] moves bytes. hickory's codec is used, its server loops are not: they take any number of TCP
//! connections, spin when file descriptors run out, and log every name that is asked at INFO.

mod ask;
mod message;
mod server;
#[cfg(test)]
mod tests;
mod virtual_ips;
mod zone;
mod zone_file;

pub use self::{
    ask::{AskError, ask_a},
    server::{BindError, Server},
    virtual_ips::{PoolExhausted, VirtualIps},
    zone::{Answer, NsmPorts, OwnDomain, Zone, ZoneError, ZoneHandle, ZoneKind},
    zone_file::{ZoneFile, ZoneRecord},
};
