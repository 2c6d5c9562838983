//! `carrick explain`: the way from a name to a connection, walked afresh and step by step.
//!
//! Nothing is taken from the pool: the walk dials, finds and requests by itself, and closes what it got.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant, SystemTime},
};

use carrick_model::{
    ConnectionId, Domain, Payload, ServiceName, Target, cause::in_one_line, service::split_name,
};
use carrick_proxy_core::{
    Endpoint,
    outbound::{OutboundClose, OutboundReply, OutboundRequest},
    path::Path,
    selection::RoundRobin,
};
use serde::{Serialize, Serializer};

use crate::{
    datapath::Route,
    exports::Exports,
    peers::{Link, PeerFault, Peers, Role, answered, close_on, find, request_on},
    resolve::Gateways,
    wire,
};

/// Lease of a connection that is closed at once: should the close be lost, it is gone soon.
const LEASE: Duration = Duration::from_secs(30);

/// The steps, in their order. The composition root adds `tunnel`.
const STEPS: [&str; 7] = ["name", "domain", "trust", "connect", "find", "select", "request"];

/// How a step ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// It worked.
    Ok,
    /// It did not.
    Failed,
    /// It was not tried: an earlier one failed, or there is no need.
    Skipped,
}

/// One step.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ExplainStep {
    /// Which: `name`, `domain`, `trust`, `connect`, `find`, `select`, `request`, `tunnel`.
    pub step: &'static str,
    /// How long it took; in milliseconds when serialized.
    #[serde(rename = "took_ms", serialize_with = "milliseconds")]
    pub took: Duration,
    /// How it ended.
    pub verdict: Verdict,
    /// What was seen, one line each.
    pub evidence: Vec<String>,
    /// What to do, if it failed.
    pub hint: Option<String>,
}

/// The whole walk.
#[derive(Debug, Clone, Serialize)]
pub struct Explanation {
    /// The name as it was asked.
    pub name: String,
    /// The steps in their order.
    pub steps: Vec<ExplainStep>,
    /// Where flows would go, if every step worked and the service is another domain's.
    #[serde(skip)]
    pub route: Option<Route>,
}

impl Explanation {
    /// Whether no step failed.
    pub fn is_ok(&self) -> bool {
        self.steps.iter().all(|s| s.verdict != Verdict::Failed)
    }
}

/// Walks from names to connections.
#[derive(Clone)]
pub struct Explainer {
    domain: Domain,
    peers: Peers,
    exports: Exports,
}

/// Why a step failed: evidence and hint.
struct Stop(Vec<String>, String);

impl Explainer {
    /// Walks as `domain`, with its peers and its exports.
    pub fn new(peers: Peers, exports: Exports) -> Self {
        Self { domain: exports.domain().clone(), peers, exports }
    }

    /// Walks to `name`, which may be a service of the own domain.
    pub async fn explain(&self, name: &str, payload: Option<Payload>) -> Explanation {
        let mut walk = Walk { steps: Vec::new(), begun: Instant::now() };
        let route = self.walk(name, payload, &mut walk).await;
        for step in STEPS.iter().skip(walk.steps.len()) {
            walk.skip(step);
        }
        Explanation { name: name.to_owned(), steps: walk.steps, route }
    }

    /// `None` as soon as a step fails, and for own services.
    async fn walk(&self, name: &str, payload: Option<Payload>, walk: &mut Walk) -> Option<Route> {
        let parsed = self.name(name);
        let Some(service) = walk.end(parsed)? else {
            let target: Target = split_name(name).0.parse().ok()?;
            walk.skip_all(&["domain", "trust", "connect"]);
            let found = self.own(&target);
            walk.end(found)?;
            return None;
        };
        let domain = service.domain();

        let gateways = self.peers.gateways(domain).await;
        let gateways = walk.end(gateways.map(|g| (gateways_seen(&g), g)).map_err(|e| stop(&e)))?;

        let expected = self.peers.expected(domain).map(|(td, bundle)| {
            let mut seen = vec![format!("{domain} must prove to be of trust domain `{td}`")];
            seen.extend(bundle.fingerprints().into_iter().map(|f| format!("root sha256:{f}")));
            (seen, td)
        });
        let trust_domain = walk.end(expected.map_err(|e| stop(&e)))?;

        let links = self.connect(domain, &gateways).await;
        let (registry, connect) = walk.end(links)?;

        let found = self.find(&service, &registry).await;
        // A registry hides what we may not use; the manager's refusal tells whether that is so.
        let found = match found {
            Err(hidden) => Err(self.refusal(&service, payload, &connect).await.unwrap_or(hidden)),
            found => found,
        };
        let endpoints = walk.end(found)?;

        let chosen = select(&endpoints, payload);
        let chosen = walk.end(chosen)?;

        let begun = Instant::now();
        let asked = self.request(&service, &chosen, payload, &connect).await;
        let answered = begun.elapsed();
        let reply = walk.end(asked)?;

        let mut addresses = gateways.tunnel_order(&mut rand::rng());
        addresses.extend(reply.addresses.iter().filter(|a| !gateways.tunnel.iter().any(|c| c.addr == **a)));
        Some(Route {
            connection: reply.connection?,
            domain: domain.clone(),
            trust_domain,
            payload: reply.payload.or(payload)?,
            gateways: addresses,
            port: chosen.port,
            answered,
        })
    }

    /// The service of another domain, or `None` for one of our own.
    fn name(&self, name: &str) -> Result<(Vec<String>, Option<ServiceName>), Stop> {
        let bad = |detail: String| {
            Stop(vec![detail], "write `service@domain`, for example `postgres@onprem.example.com`".to_owned())
        };
        let (_, domain) = split_name(name);
        let Some(domain) = domain else {
            let target: Target = name.parse().map_err(|e| bad(format!("`{name}`: {e}")))?;
            return Ok((vec![format!("`{target}` names no domain: a service of {}", self.domain)], None));
        };
        let service: ServiceName = name.parse().map_err(|e| bad(format!("`{name}`: {}", in_one_line(&e))))?;
        if service.domain() == &self.domain {
            return Ok((vec![format!("{domain} is this domain: nothing is called over the network")], None));
        }
        let seen = vec![format!("service `{}` of domain {}", service.target(), service.domain())];
        Ok((seen, Some(service)))
    }

    fn own(&self, target: &Target) -> Result<(Vec<String>, ()), Stop> {
        let exports = self.exports.list().into_iter().filter(|e| &e.service == target);
        let seen: Vec<String> = exports
            .map(|e| {
                let allowed: Vec<String> = e.allow.iter().map(ToString::to_string).collect();
                let allowed = if allowed.is_empty() { "nobody".to_owned() } else { allowed.join(", ") };
                format!("endpoint `{}` carries {} to {}; allowed: {allowed}", e.endpoint, e.payload, e.target)
            })
            .collect();
        if seen.is_empty() {
            let hint = "add it under `exports:`; `carrick services` lists what there is".to_owned();
            return Err(Stop(vec![format!("`{target}` is not exported by {}", self.domain)], hint));
        }
        Ok((seen, ()))
    }

    async fn connect(
        &self,
        domain: &Domain,
        gateways: &Gateways,
    ) -> Result<(Vec<String>, (Link, Link)), Stop> {
        let seen =
            |role: Role, link: &Link| format!("{role} at {}: mutual TLS 1.3 with `{}`", link.addr, link.peer);
        let connect = self.peers.dial(domain, Role::Connect, gateways).await.map_err(|e| stop(&e))?;
        let mut evidence = vec![seen(Role::Connect, &connect)];
        let registry = if gateways.registry == gateways.control {
            connect.clone()
        } else {
            let link = self.peers.dial(domain, Role::Registry, gateways).await.map_err(|e| stop(&e))?;
            evidence.push(seen(Role::Registry, &link));
            link
        };
        Ok((evidence, (registry, connect)))
    }

    async fn find(
        &self,
        service: &ServiceName,
        registry: &Link,
    ) -> Result<(Vec<String>, Vec<Endpoint>), Stop> {
        let (domain, target) = (service.domain(), service.target());
        let found = self.peers.call_on(domain, registry, "Find", |c| find(c, target.as_str())).await;
        let endpoints: Vec<Endpoint> =
            found.map_err(|e| stop(&e))?.iter().map(|e| wire::endpoint(e, target)).collect();
        if endpoints.is_empty() {
            let hint = format!("`carrick services @{domain}` lists what there is; check the spelling");
            return Err(Stop(vec![format!("`{target}` has no endpoint in {domain}")], hint));
        }
        let seen = endpoints.iter().map(|e| {
            let payload = e.payload.map_or("an unknown payload", Payload::as_str);
            let port = e.port.map(|p| format!(", port {p}")).unwrap_or_default();
            format!("endpoint `{}` carries {payload}{port}", e.name)
        });
        Ok((seen.collect(), endpoints))
    }

    /// Why the peer's manager does not let us use the service, if it does not.
    async fn refusal(&self, service: &ServiceName, payload: Option<Payload>, link: &Link) -> Option<Stop> {
        let whichever = Endpoint { name: String::new(), payload: None, port: None };
        self.request(service, &whichever, payload, link).await.err()
    }

    async fn request(
        &self,
        service: &ServiceName,
        endpoint: &Endpoint,
        payload: Option<Payload>,
        link: &Link,
    ) -> Result<(Vec<String>, OutboundReply), Stop> {
        let (domain, id) = (service.domain(), ConnectionId::random());
        let own_name = format!("{}/explain", self.domain);
        let request = OutboundRequest {
            id,
            service: service.clone(),
            endpoint: endpoint.name.clone(),
            payload: payload.or(endpoint.payload),
            path: Path::begin(&own_name, &id.to_string(), SystemTime::now() + LEASE),
        };
        let message = wire::network_service_request(&request, &BTreeMap::new());
        let granted = self.peers.call_on(domain, link, "Request", |c| request_on(c, message.clone())).await;
        let granted = granted.and_then(|answer| answered(domain, answer));
        let reply = wire::outbound_reply(&granted.map_err(|e| stop(&e))?);
        let reply = reply.map_err(|e| {
            stop(&PeerFault::BadAnswer { domain: domain.clone(), call: "Request", detail: e.to_string() })
        })?;
        let Some(connection) = reply.connection else {
            let detail = "the answer names no connection for the mechanism QUIC".to_owned();
            return Err(stop(&PeerFault::BadAnswer { domain: domain.clone(), call: "Request", detail }));
        };
        let mut seen = vec![format!("granted: connection {connection} to endpoint `{}`", reply.endpoint)];
        if let Some(lease) = reply.path.expires().and_then(|at| at.duration_since(SystemTime::now()).ok()) {
            seen.push(format!("lease of {} s (asked for {} s)", lease.as_secs(), LEASE.as_secs()));
        }
        if !reply.addresses.is_empty() {
            let all: Vec<String> = reply.addresses.iter().map(ToString::to_string).collect();
            seen.push(format!("its tunnel listens on {}", all.join(", ")));
        }
        let close = OutboundClose {
            id,
            service: service.clone(),
            endpoint: reply.endpoint.clone(),
            path: reply.path.clone(),
        };
        let message = wire::close_request(&close);
        match self.peers.call_on(domain, link, "Close", |c| close_on(c, message.clone())).await {
            Ok(()) => seen.push("closed again".to_owned()),
            Err(fault) => seen.push(format!("could not be closed: {fault}")),
        }
        Ok((seen, reply))
    }
}

/// The steps so far, and when the current one began.
struct Walk {
    steps: Vec<ExplainStep>,
    begun: Instant,
}

impl Walk {
    /// Writes the current step down. `None` when it failed.
    fn end<T>(&mut self, result: Result<(Vec<String>, T), Stop>) -> Option<T> {
        let (verdict, evidence, hint, value) = match result {
            Ok((evidence, value)) => (Verdict::Ok, evidence, None, Some(value)),
            Err(Stop(evidence, hint)) => (Verdict::Failed, evidence, Some(hint), None),
        };
        let step = STEPS.get(self.steps.len()).copied().unwrap_or("end");
        self.steps.push(ExplainStep { step, took: self.begun.elapsed(), verdict, evidence, hint });
        self.begun = Instant::now();
        value
    }

    fn skip(&mut self, step: &'static str) {
        let (took, verdict) = (Duration::ZERO, Verdict::Skipped);
        self.steps.push(ExplainStep { step, took, verdict, evidence: Vec::new(), hint: None });
    }

    fn skip_all(&mut self, steps: &[&'static str]) {
        for step in steps {
            self.skip(step);
        }
    }
}

fn stop(fault: &PeerFault) -> Stop {
    Stop(vec![in_one_line(fault)], fault.hint())
}

fn gateways_seen(gateways: &Gateways) -> Vec<String> {
    let mut seen = vec![format!(
        "found by {}{}",
        gateways.source,
        if gateways.stale { ", stale: the DNS does not answer" } else { "" }
    )];
    seen.extend(gateways.evidence.iter().cloned());
    seen.extend(gateways.control.iter().map(|c| format!("control {c}")));
    seen.extend(gateways.tunnel.iter().map(|c| format!("tunnel {c}")));
    seen
}

fn select(endpoints: &[Endpoint], payload: Option<Payload>) -> Result<(Vec<String>, Endpoint), Stop> {
    let chosen = RoundRobin::new(rand::random()).next(endpoints, payload).cloned();
    let Some(chosen) = chosen else {
        let wanted = payload.map_or("TCP or UDP", Payload::as_str);
        let seen = vec![format!("none of {} endpoints carries {wanted}", endpoints.len())];
        return Err(Stop(seen, "make the import's `listen:` of the service's kind".to_owned()));
    };
    Ok((vec![format!("`{}`, one of {} (round robin)", chosen.name, endpoints.len())], chosen))
}

fn milliseconds<S: Serializer>(took: &Duration, s: S) -> Result<S::Ok, S::Error> {
    s.serialize_f64(took.as_secs_f64() * 1000.0)
}
