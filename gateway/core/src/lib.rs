//! The data path's decisions, without IO.
//!
//! Two gateways share a QUIC connection, the *tunnel* (ALPN `carrick/1`). Either side may open flows on it:
//!
//! ```text
//! importing gateway                         exporting gateway
//!   open bidirectional stream ───────────▶
//!   flow header, then bytes   ───────────▶  parse (header), find the connection, check the peer, dial the target
//!                             ◀───────────  one verdict byte, then bytes
//!   FIN / RESET_STREAM        ◀──────────▶  FIN / RESET_STREAM          (half-close and reset, both ways)
//! ```
//!
//! A UDP association is a stream too: it carries what does not fit a DATAGRAM frame, and its life is the
//! association's. Datagrams that fit travel in DATAGRAM frames behind the stream's number. A unidirectional stream per
//! side carries the rare words that concern the whole tunnel (drain, revoke). `docs/protocol.md` is the specification.
//!
//! | module | decides |
//! |---|---|
//! | [`header`] | what opens a flow, on the wire |
//! | [`verdict`] | what answers it, and the codes that end streams and tunnels |
//! | [`datagram`] | how UDP payloads are framed, in DATAGRAM frames and on streams |
//! | [`control`] | the words about the whole tunnel |
//! | [`drop_reason`] | why a flow or datagram was not carried |
//! | [`turns`] | whose turn it is when the flows of a tunnel wait for its window |
//! | [`window`] | how much each tunnel may have in flight, within a bound for all |

pub mod control;
pub mod datagram;
pub mod drop_reason;
pub mod header;
pub mod turns;
pub mod verdict;
pub mod window;

pub use drop_reason::DropReason;
pub use header::{FlowHeader, HeaderError, HeaderKind, TraceContext};
pub use verdict::{CloseCode, ResetCode, Verdict};

/// The TLS application protocol of a tunnel (RFC 7301).
pub const ALPN: &[u8] = b"carrick/1";
