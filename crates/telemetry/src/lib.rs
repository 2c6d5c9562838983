//! Telemetry is an interface: metric names, the handles that count, and the access log.
//!
//! Names, units and help texts stand in one enum, [`Metric`]; [`Metrics`] holds a typed handle for each, so that the hot
//! path counts without a lookup. What ends a flow becomes one [`access_log::FlowRecord`].

pub mod access_log;
mod metrics;
mod names;

pub use metrics::{ActiveGuard, Counters, Direction, Gauges, Handles, Histograms, Labels, Metrics};
pub use names::{Kind, Metric};
pub use prometheus_client::metrics::{counter::Counter, gauge::Gauge, histogram::Histogram};
