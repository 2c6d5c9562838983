//! How much a caller may ask of the registry.

/// Watch streams of all callers together. The figure to design for is 10,000 watchers (`docs/architecture.md`).
pub const MAX_WATCHES: usize = 10_000;

/// Watch streams of one SPIFFE ID. An NSM domain calls with the one identity of its registry proxy and opens a watch
/// per connection, and a tenth of all lets ten such domains do so.
pub const MAX_WATCHES_PER_CALLER: usize = 1_000;

/// Octets of a query that is watched, since it stays in memory. A name, some services and their labels take hundreds.
pub const MAX_WATCH_QUERY: usize = 16 * 1024;

/// Octets of any message from a caller: the default of gRPC, which NSM does not change.
pub const MAX_MESSAGE: usize = 4 * 1024 * 1024;
