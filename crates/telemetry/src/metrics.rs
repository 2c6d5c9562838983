//! The handles behind the names.

use std::{
    collections::BTreeSet,
    fmt::{self, Write as _},
    ops::Deref,
    sync::Arc,
};

use parking_lot::Mutex;
use prometheus_client::{
    encoding::{EncodeLabelSet, LabelSetEncoder, text},
    metrics::{
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
    },
    registry::{Metric as Registrable, Registry},
};

use crate::names::Metric;

/// Which side of a flow we are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Direction {
    /// A client here reaches a service of another domain.
    Import,
    /// A client of another domain reaches a service here.
    Export,
}

impl Direction {
    /// The label value.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Import => "import",
            Self::Export => "export",
        }
    }
}

/// Label values of one series: words of closed sets, so that no outside text becomes a label.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Labels {
    names: &'static str,
    values: [&'static str; 2],
}

impl EncodeLabelSet for Labels {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> fmt::Result {
        use prometheus_client::encoding::EncodeLabel;
        for (name, value) in self.names.split(',').zip(self.values) {
            (name, value).encode(encoder.encode_label())?;
        }
        Ok(())
    }
}

/// A counter with labels.
#[derive(Debug, Clone)]
pub struct Counters {
    names: &'static str,
    family: Family<Labels, Counter>,
    /// The series there are: a family cannot be walked.
    known: Arc<Mutex<BTreeSet<[&'static str; 2]>>>,
}

/// A gauge with labels.
#[derive(Debug, Clone)]
pub struct Gauges {
    names: &'static str,
    family: Family<Labels, Gauge>,
}

impl Counters {
    /// The series of one label value. Keep it where it counts often: finding it costs a lock.
    pub fn of(&self, value: &'static str) -> Counter {
        self.of2(value, "")
    }

    /// The series of two label values.
    pub fn of2(&self, first: &'static str, second: &'static str) -> Counter {
        self.known.lock().insert([first, second]);
        self.family.get_or_create_owned(&Labels { names: self.names, values: [first, second] })
    }
}

impl Counters {
    /// The sum over all series with this value of the first label.
    pub fn sum(&self, first: &'static str) -> u64 {
        let seconds: Vec<_> =
            self.known.lock().iter().filter(|known| known[0] == first).map(|known| known[1]).collect();
        seconds.into_iter().map(|second| self.of2(first, second).get()).sum()
    }
}

impl Gauges {
    /// The series of one label value.
    pub fn of(&self, value: &'static str) -> Gauge {
        self.family.get_or_create_owned(&Labels { names: self.names, values: [value, ""] })
    }
}

/// Adds one to a gauge until dropped.
#[derive(Debug)]
pub struct ActiveGuard(Gauge);

impl ActiveGuard {
    /// Counts one more.
    pub fn new(gauge: &Gauge) -> Self {
        gauge.inc();
        Self(gauge.clone())
    }
}

impl Drop for ActiveGuard {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// All metrics of a daemon. Clones are the same ones, and cost one reference count.
#[derive(Debug, Clone)]
pub struct Metrics(Arc<Handles>);

impl Deref for Metrics {
    type Target = Handles;

    fn deref(&self) -> &Handles {
        &self.0
    }
}

macro_rules! handles {
    ($($field:ident: $ty:ident = $metric:ident;)*) => {
        /// A handle for every [`Metric`], behind [`Metrics`].
        #[derive(Debug)]
        pub struct Handles {
            registry: Registry,
            $(#[doc = concat!("See [`Metric::", stringify!($metric), "`].")] pub $field: $ty,)*
        }

        impl Metrics {
            /// All series at zero.
            pub fn new() -> Self {
                let mut registry = Registry::with_prefix("carrick");
                $(let $field = <$ty as Handle>::register(&mut registry, Metric::$metric);)*
                Self(Arc::new(Handles { registry, $($field),* }))
            }
        }
    };
}

handles! {
    flows_opened: Counters = FlowsOpened;
    flows_active: Gauges = FlowsActive;
    flows_refused: Counters = FlowsRefused;
    flow_bytes: Counters = FlowBytes;
    datagrams_dropped: Counters = DatagramsDropped;
    datagrams_relayed: Counters = DatagramsRelayed;
    flow_open_seconds: Histograms = FlowOpenSeconds;
    tunnels_active: Gauge = TunnelsActive;
    tunnels_opened: Counters = TunnelsOpened;
    tunnel_dial_failures: Counter = TunnelDialFailures;
    tunnel_handshakes_refused: Counters = TunnelHandshakesRefused;
    tunnel_window_bytes: Gauge = TunnelWindowBytes;
    connections_active: Gauges = ConnectionsActive;
    requests: Counters = Requests;
    control_handshakes_refused: Counters = ControlHandshakesRefused;
    domain_lookups: Counters = DomainLookups;
    dns_questions: Counters = DnsQuestions;
    dns_queries: Counters = DnsQueries;
    registry_watches: Gauge = RegistryWatches;
    registrations: Counters = Registrations;
    registry_expirations: Counter = RegistryExpirations;
    registry_commits: Counters = RegistryCommits;
    svid_rotations: Counters = SvidRotations;
    svid_expiry: Gauge = SvidExpiry;
    reloads: Counters = Reloads;
    start_time: Gauge = StartTime;
}

impl Metrics {
    /// The exposition in OpenMetrics text format.
    pub fn encode(&self) -> String {
        let mut out = String::new();
        if text::encode(&mut out, &self.registry).is_err() {
            // Writing to a String does not fail; should it ever, a scrape says so instead of lying by omission.
            let _ = writeln!(out, "# encoding failed");
        }
        out
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

/// A histogram with labels, in seconds.
#[derive(Debug, Clone)]
pub struct Histograms {
    names: &'static str,
    family: Family<Labels, Histogram, fn() -> Histogram>,
}

impl Histograms {
    /// The series of one label value.
    pub fn of(&self, value: &'static str) -> Histogram {
        self.family.get_or_create_owned(&Labels { names: self.names, values: [value, ""] })
    }
}

/// 100 µs to 26 s in factors of four: a flow on a warm tunnel is at the low end, one that waits for a dial at the high.
fn seconds() -> Histogram {
    Histogram::new(exponential_buckets(1e-4, 4.0, 10))
}

trait Handle: Sized {
    fn register(registry: &mut Registry, metric: Metric) -> Self;
}

fn add<M: Registrable + Clone>(registry: &mut Registry, metric: Metric, handle: &M) {
    registry.register(metric.name(), metric.help().trim_end_matches('.'), handle.clone());
}

impl Handle for Counter {
    fn register(registry: &mut Registry, metric: Metric) -> Self {
        let handle = Self::default();
        add(registry, metric, &handle);
        handle
    }
}

impl Handle for Gauge {
    fn register(registry: &mut Registry, metric: Metric) -> Self {
        let handle = Self::default();
        add(registry, metric, &handle);
        handle
    }
}

impl Handle for Counters {
    fn register(registry: &mut Registry, metric: Metric) -> Self {
        let family = Family::default();
        add(registry, metric, &family);
        Self { names: metric.labels(), family, known: Arc::default() }
    }
}

impl Handle for Gauges {
    fn register(registry: &mut Registry, metric: Metric) -> Self {
        let family = Family::default();
        add(registry, metric, &family);
        Self { names: metric.labels(), family }
    }
}

impl Handle for Histograms {
    fn register(registry: &mut Registry, metric: Metric) -> Self {
        let family = Family::new_with_constructor(seconds as fn() -> Histogram);
        add(registry, metric, &family);
        Self { names: metric.labels(), family }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn series_are_exposed_with_their_help() {
        let metrics = Metrics::new();
        metrics.flows_refused.of2("import", "denied").inc();
        metrics.flow_open_seconds.of("import").observe(0.001);
        let _two = ActiveGuard::new(&metrics.flows_active.of("export"));
        drop(ActiveGuard::new(&metrics.flows_active.of("export")));
        let text = metrics.encode();
        // A family without series is not exposed: there is nothing to tell yet.
        for metric in Metric::ALL.iter().filter(|metric| metric.labels().is_empty()) {
            assert!(text.contains(&format!("# HELP carrick_{} ", metric.name())), "{metric:?}\n{text}");
        }
        assert!(
            text.contains(r#"carrick_flows_refused_total{direction="import",reason="denied"} 1"#),
            "{text}"
        );
        assert!(text.contains(r#"carrick_flows_active{direction="export"} 1"#), "{text}");
        assert!(text.ends_with("# EOF\n"));
        metrics.flows_refused.of2("import", "no_tunnel").inc_by(2);
        metrics.flows_refused.of2("export", "revoked").inc();
        assert_eq!(metrics.flows_refused.sum("import"), 3);
    }
}
