//! The per-domain proxy manager: DNS in both directions, peers, NetworkService, imports.
//!
//! ```text
//!   importing side                                              exporting side
//!   imports ──▶ peers ──▶ resolve                 control ──▶ server ──▶ exports
//!      │  (core: Outbound)  │                        │            (core: Inbound) │
//!      ▼                    └──── gRPC over mTLS ────┘                            ▼
//!   DataPath::route/unroute                                    DataPath::admit/revoke
//! ```
//!
//! | module | room |
//! |---|---|
//! | [`imports`] | the services of other domains that we use |
//! | [`exports`] | the connections of other domains to what we offer |
//! | [`peers`] | calls to other domains |
//! | [`part`] | calls to a registry that stays in charge beside us |
//! | [`control`] | the listener for calls of other domains |
//! | [`server`] | `networkservice.NetworkService` |
//! | [`transit`] | the connections that pass through, to endpoints behind other hops |
//! | [`monitor`] | `connection.MonitorConnection` |
//! | [`explain`] | the way from a name to a connection, step by step |
//! | [`resolve`] | where a domain is |
//! | [`dns`] | the daemon's own DNS server |
//! | `tokens` | NSM's tokens on the calls that we make and take |
//! | [`datapath`], [`catalogue`] | what the proxy asks of the gateway and of the registry |

pub mod catalogue;
pub mod control;
pub mod datapath;
pub mod dns;
pub mod explain;
pub mod exports;
pub mod imports;
mod io;
pub mod monitor;
pub mod part;
pub mod peers;
pub mod resolve;
pub mod server;
mod tokens;
pub mod transit;
mod wire;

pub use carrick_proxy_core::inbound::InboundSettings;
pub use tokens::TokenChannel;
