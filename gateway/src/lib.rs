//! The data path: QUIC tunnels, flows, import listeners, export targets.
//!
//! ```text
//!  client ──▶ listener ──▶ outbound ─┐                              ┌─▶ inbound ──▶ target
//!             (TCP, Unix,            ├─▶ tunnel ═▶ lane ══ QUIC ══▶ │
//!              UDP)      relay ◀─────┘   (dials)   (connection)     └─▶ relay
//! ```
//!
//! | module | is for |
//! |---|---|
//! | [`gateway`] | the public face: admit and revoke, route and unroute, listen, drain, snapshots |
//! | `listener` | import listeners: accept, or take datagrams, and hand them on |
//! | `outbound` | one flow from here: route, tunnel, header, verdict, relay |
//! | `inbound` | one flow to here: header, admission, target, verdict, relay |
//! | `relay` | bytes between a local stream and a QUIC stream, half-close and reset mapped both ways |
//! | `coalesce` | lets the octets of a busy flow gather before they are written |
//! | `association` | datagrams between a local UDP socket and a tunnel |
//! | `routes` | the routes of one import, and the shares in which flows take them |
//! | `tunnel` | dials a peer's gateway and keeps it dialled |
//! | `lane` | one QUIC connection: its flows, its control stream, its datagrams |
//! | `turns` | lets the flows of a lane that wait for its window write in turn |
//! | `backlog` | flows whose local reader is slower than the tunnel |
//! | `windows` | receive windows of all tunnels within one bound |
//! | `endpoint` | the one QUIC endpoint: configuration, accept loop |
//! | `socket` | the one UDP socket: buffers, and batches of datagrams per system call |
//! | `flow` | what is counted and logged of every flow |
//!
//! Decisions that need no IO live in `carrick-gateway-core`, whose module doc is the protocol.

mod association;
mod backlog;
mod coalesce;
mod endpoint;
mod flow;
pub mod gateway;
mod inbound;
mod lane;
mod listener;
mod local;
mod outbound;
mod relay;
mod routes;
mod settings;
mod socket;
mod source;
mod threads;
mod tunnel;
mod turns;
mod windows;

pub use gateway::{Admission, ControlPlane, Gateway, GatewayError, ListenerKey, Route, TunnelSnapshot};
pub use settings::{Congestion, ResetKey, Settings};
