//! How much a caller may ask of the registry, and how much it may put into it.

use std::time::Duration;

/// Watch streams of all callers together. The figure to design for is 10,000 watchers (`docs/architecture.md`).
pub const MAX_WATCHES: usize = 10_000;

/// Watch streams of one SPIFFE ID. An NSM domain calls with the one identity of its registry proxy and opens a watch
/// per connection, and a tenth of all lets ten such domains do so.
pub const MAX_WATCHES_PER_CALLER: usize = 1_000;

/// Octets of a query that is watched, since it stays in memory. A name, some services and their labels take hundreds.
pub const MAX_WATCH_QUERY: usize = 16 * 1024;

/// Octets of any message from a caller: the default of gRPC, which NSM does not change.
pub const MAX_MESSAGE: usize = 4 * 1024 * 1024;

/// Longest life of an endpoint's registration without a refresh: NSM's, whose clients refresh at two thirds of it.
pub const MAX_LEASE: Duration = Duration::from_secs(60);

/// Registrations of each kind (design: 1,000,000 endpoints in a registry).
pub const MAX_REGISTRATIONS: usize = 1_000_000;

/// Registrations of each kind that came with one certificate. An NSM manager brings those of its host, a registry proxy
/// those of its domain, and a tenth of all lets ten such domains do so.
pub const MAX_REGISTRATIONS_PER_CALLER: usize = 100_000;

/// Octets of a name: a DNS name, which an NSM name usually is in part, has at most 253.
pub const MAX_NAME: usize = 256;

/// Services of one endpoint. Each is an entry of the index; real endpoints have one or two.
pub const MAX_SERVICES: usize = 64;

/// Labels of one endpoint, over all its services. Each is an entry of the index, which takes ten times the label's own octets.
pub const MAX_LABELS: usize = 128;

/// Octets of a URL, which has a host and a port.
pub const MAX_URL: usize = 1024;

/// Those who passed an object on, as many as a path has segments.
pub const MAX_PATH_IDS: usize = 64;

/// Octets of a registered object: all of it is sent to each watcher. Labels and matches take hundreds.
pub const MAX_OBJECT: usize = 16 * 1024;
