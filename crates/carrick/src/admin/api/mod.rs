//! The messages of the admin API, which are also what `-o json` prints.
//!
//! Keys are `snake_case` and always there; what is unknown or does not apply is `null`. Times are RFC 3339 in UTC,
//! spans are whole numbers with their unit in the key (`uptime_seconds`, `rtt_micros`), sizes are bytes.

mod connections;
mod explain;
mod problem;
mod reload;
mod services;
mod status;
mod time;
mod trust;

pub(crate) use self::{
    connections::{
        ConnectReply, ConnectRequest, ConnectionList, ConnectionRow, Direction, DisconnectRequest, PassingRow,
    },
    explain::{ExplainReport, ExplainStep, StepKind, Verdict},
    problem::{Problem, ProblemCode},
    reload::ReloadReply,
    services::{Origin, ServiceList, ServiceRow},
    status::{
        Counters, ExportRow, IdentityRow, ImportRow, ImportState, ListenerRow, PeerRow, Status, StoreRow,
        TunnelRow, WatchRow,
    },
    time::{Timestamp, micros},
    trust::{TrustList, TrustRow},
};

/// The words that people read for an enum.
macro_rules! words {
    ($($ty:ident { $($variant:ident => $word:literal),* $(,)? })*) => {$(
        impl std::fmt::Display for $ty {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.pad(match self { $(Self::$variant => $word),* })
            }
        }
    )*};
}
use words;
