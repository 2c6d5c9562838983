//! Every metric of the daemon: name, kind, unit, help.

/// What a metric does over time (OpenMetrics 1.0 section 5).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Only goes up; `_total` is appended to the name.
    Counter,
    /// Goes up and down.
    Gauge,
    /// A distribution in buckets.
    Histogram,
}

macro_rules! metrics {
    ($($variant:ident = $name:literal, $kind:ident, $labels:literal, $help:literal;)*) => {
        /// A metric of the daemon. The name shown here lacks the prefix `carrick_` and a counter's `_total`.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Metric {
            $(#[doc = concat!("`", $name, "`: ", $help)] $variant,)*
        }

        impl Metric {
            /// All of them, in the order of the reference page.
            pub const ALL: &[Self] = &[$(Self::$variant),*];

            /// The name without the prefix `carrick_`.
            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }

            /// What it does over time.
            pub fn kind(self) -> Kind {
                match self { $(Self::$variant => Kind::$kind,)* }
            }

            /// The label names, comma separated; each label has a small closed set of values.
            pub fn labels(self) -> &'static str {
                match self { $(Self::$variant => $labels,)* }
            }

            /// One sentence for the operator.
            pub fn help(self) -> &'static str {
                match self { $(Self::$variant => $help,)* }
            }
        }
    };
}

metrics! {
    FlowsOpened = "flows_opened", Counter, "direction", "Flows that were accepted, by direction.";
    FlowsActive = "flows_active", Gauge, "direction", "Flows open now, by direction.";
    FlowsRefused = "flows_refused", Counter, "direction,reason", "Flows that were refused or could not be carried, by reason.";
    FlowBytes = "flow_bytes", Counter, "direction,way", "Payload bytes relayed, by direction of the flow and way of the bytes.";
    DatagramsDropped = "datagrams_dropped", Counter, "reason", "UDP datagrams that were not delivered, by reason.";
    DatagramsRelayed = "datagrams_relayed", Counter, "direction,way", "UDP datagrams relayed.";
    FlowOpenSeconds = "flow_open_seconds", Histogram, "direction", "Time from accepting a flow to the first sign of its other end, in seconds.";
    TunnelsActive = "tunnels_active", Gauge, "", "QUIC connections to other gateways that are up now.";
    TunnelsOpened = "tunnels_opened", Counter, "role", "QUIC connections that came up, by who dialled.";
    TunnelDialFailures = "tunnel_dial_failures", Counter, "", "Attempts to dial a gateway that failed at every address.";
    TunnelHandshakesRefused = "tunnel_handshakes_refused", Counter, "reason", "Handshakes of others that were refused.";
    TunnelWindowBytes = "tunnel_window_bytes", Gauge, "", "Receive windows granted to all tunnels together, in bytes.";
    ConnectionsActive = "connections_active", Gauge, "role", "Connections that are up, by our role in them.";
    Requests = "requests", Counter, "role,outcome", "NetworkService requests sent or answered, by outcome.";
    ControlHandshakesRefused = "control_handshakes_refused", Counter, "reason", "TLS handshakes on the control listener that were refused.";
    DomainLookups = "domain_lookups", Counter, "outcome", "Answers to the question where a domain is, by outcome.";
    DnsQuestions = "dns_questions", Counter, "type,outcome", "Questions sent to DNS servers, by record type and outcome.";
    DnsQueries = "dns_queries", Counter, "zone,outcome", "Queries answered by the daemon's own DNS server.";
    RegistryWatches = "registry_watches", Gauge, "", "Watch streams open now.";
    Registrations = "registrations", Counter, "verb,outcome", "Calls to register and unregister, by outcome.";
    RegistryExpirations = "registry_expirations", Counter, "", "Registrations whose lease ended without a refresh.";
    RegistryCommits = "registry_commits", Counter, "outcome", "Commits to the registry's store, by outcome.";
    SvidRotations = "svid_rotations", Counter, "outcome", "Renewals of our own SVID.";
    SvidExpiry = "svid_expiry_timestamp_seconds", Gauge, "", "When our SVID ends, in seconds since the epoch.";
    Reloads = "config_reloads", Counter, "outcome", "Reloads of the configuration, by outcome.";
    StartTime = "start_timestamp_seconds", Gauge, "", "When the daemon started, in seconds since the epoch.";
}
