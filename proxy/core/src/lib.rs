//! What becomes of a connection between two domains, without IO: no socket, no task, no clock, no global randomness.
//!
//! A connection has two ends, and each end is a machine of its own that survives the loss of the other:
//!
//! ```text
//!   importing side: Outbound, one per import            exporting side: Inbound, one table per domain
//!
//!   Resolve ──▶ Find ──▶ Request ─────────Request(path)────────▶ path, name, policy, bounds ──▶ Admit
//!      ▲          ▲         │                                                 │
//!      │          │         ▼                                                 ▼
//!      │          │        Up ◀────────────Reply(id, lease)──────── entry with a lease
//!      │          │         │  ├─ 1/3 of the lease ──Request──▶   the same entry, a new lease
//!      │          │         │  ├─ endpoint vanished ─Request──▶   the same entry, another endpoint
//!      └── Down ◀─┴─────────┘  └─ close ───────────── Close ───▶   Revoke
//!       (back-off)                       lease over, policy or trust changed ──▶ Revoke
//! ```
//!
//! Invariants, checked in `tests/both_sides.rs` with messages lost, doubled and delayed:
//!
//! 1. One import has one id for all its life, and a request under that id never makes a second entry at the peer, even if
//!    the reply to the first was lost.
//! 2. Every entry ends: by a close of its owner, by its lease, or by a change of policy or trust. So after a close and one lease
//!    neither side remembers anything.
//! 3. An import with a dead peer keeps its connection to the end of the lease, then it is down and says why.
//!
//! | module | room |
//! |---|---|
//! | [`outbound`] | one import's connection |
//! | [`alternatives`] | which of several domains an import uses |
//! | [`inbound`] | the connections that others hold to our exports |
//! | [`monitor`] | who watches which connections |
//! | [`path`] | NSM's path rules |
//! | [`policy`] | whether a caller may use an export, and why |
//! | [`selection`] | which endpoint is asked, and which comes next |
//! | [`transit`] | the connections that pass through, from one hop to the next |
//! | [`fault`] | what went wrong, whose fault it is, what to do |
//! | [`clock`] | the time as a caller hands it in |
//! | [`retry`] | how long to wait before the next attempt |

pub mod alternatives;
pub mod clock;
pub mod fault;
pub mod inbound;
pub mod monitor;
pub mod outbound;
pub mod path;
pub mod policy;
pub mod retry;
pub mod selection;
pub mod transit;

pub use clock::Now;
pub use fault::{Blame, Fault, FaultKind, StepKind};
pub use selection::Endpoint;
