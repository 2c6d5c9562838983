//! One import's task: a loop around the machine of the core. It takes the machine's steps to the peers, keeps the watch open, and
//! takes the machine's events to the data path.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    time::Duration,
};

use carrick_model::{ConnectionId, Domain, TrustDomain};
use carrick_proto::{connection::Connection, registry::NetworkServiceEndpoint};
use carrick_proxy_core::{
    Endpoint, Fault, FaultKind, StepKind,
    outbound::{Attempt, Established, Event, LEASE, Outbound, OutboundSettings, Step},
};
use carrick_runtime::Tasks;
use carrick_telemetry::{ActiveGuard, Metrics};
use futures::{FutureExt, Stream, StreamExt, future::BoxFuture, stream::FuturesUnordered};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep_until, timeout},
};

use super::{Import, status::Board};
use crate::{
    datapath::{DataPath, Route},
    exports::now,
    peers::{PeerFault, Peers, WatchItem},
    resolve::Gateways,
    wire,
};

/// How long a peer may take to hear of a close; its lease ends without it too.
const CLOSE_DEADLINE: Duration = Duration::from_secs(3);
/// With nothing to wait for the task looks again after this.
const LOOK: Duration = Duration::from_secs(60);
/// How long a renewal waits for news of the gateways.
const RESOLVE_PATIENCE: Duration = Duration::from_secs(1);
/// Most endpoints of one service that are kept.
const MAX_ENDPOINTS: usize = 10_000;

/// What others tell an import.
#[derive(Debug)]
pub(super) enum Input {
    Demand,
    Lost(Fault),
}

/// How a step ended.
enum Outcome {
    Resolved(Attempt, Result<Arc<Gateways>, PeerFault>),
    Found(Attempt, Result<Vec<NetworkServiceEndpoint>, PeerFault>),
    Replied(Attempt, Result<Box<Connection>, PeerFault>),
    Closed(Attempt, Result<(), PeerFault>),
}

type Watch = Pin<Box<dyn Stream<Item = Result<WatchItem, PeerFault>> + Send>>;

pub(super) struct Worker {
    import: Import,
    peers: Peers,
    datapath: Arc<dyn DataPath>,
    board: Arc<Board>,
    metrics: Metrics,
    machine: Outbound,
    steps: FuturesUnordered<BoxFuture<'static, Outcome>>,
    watch: Option<Watch>,
    /// Why there is none, until find has answered and the machine can be told.
    watch_fault: Option<PeerFault>,
    /// The endpoints as find and watch told them.
    view: View,
    gateways: Option<Arc<Gateways>>,
    /// When the last request went out, and how long the answer took.
    asked: Option<Instant>,
    answered: Duration,
    route: Option<Route>,
    up: Option<ActiveGuard>,
    /// What was last written to the log, so that one outage is one line.
    logged: Option<FaultKind>,
}

/// The endpoints of a service, put together from a list and changes that overtake each other.
#[derive(Default)]
struct View {
    endpoints: BTreeMap<String, Endpoint>,
    gone: BTreeSet<String>,
    complete: bool,
}

impl Worker {
    pub(super) fn new(
        domain: &Domain,
        import: Import,
        peers: Peers,
        datapath: Arc<dyn DataPath>,
        board: Arc<Board>,
        metrics: Metrics,
    ) -> Self {
        let id = ConnectionId::random();
        let settings = OutboundSettings {
            own_name: format!("{domain}/gateway"),
            service: import.service.clone(),
            payload: import.payload,
            id,
            seed: rand::random(),
            lease: LEASE,
        };
        Self {
            machine: Outbound::new(settings, now()),
            import,
            peers,
            datapath,
            board,
            metrics,
            steps: FuturesUnordered::new(),
            watch: None,
            watch_fault: None,
            view: View::default(),
            gateways: None,
            asked: None,
            answered: Duration::ZERO,
            route: None,
            up: None,
            logged: None,
        }
    }

    pub(super) async fn run(mut self, mut inputs: mpsc::Receiver<Input>, tasks: Tasks) {
        let service = &self.import.service.clone();
        self.datapath.unroute(service, "it is being connected");
        let mut closing: Option<Instant> = None;
        loop {
            self.settle();
            self.board.write(&self.machine, self.route.as_ref(), now());
            if closing.is_some() && self.machine.state() == carrick_proxy_core::outbound::State::Closed {
                return;
            }
            let latest = Instant::now() + LOOK;
            let timer = self.machine.poll_timeout().map_or(latest, |(at, _)| Instant::from_std(at));
            let timer = closing.map_or(timer, |end| timer.min(end));
            tokio::select! {
                () = tasks.stopping(), if closing.is_none() => {
                    closing = Some(Instant::now() + CLOSE_DEADLINE);
                    self.route = None;
                    self.up = None;
                    self.watch = None;
                    self.datapath.unroute(service, "the import was removed");
                    self.machine.close(now());
                }
                Some(outcome) = self.steps.next() => self.finish(outcome).await,
                item = next(&mut self.watch) => self.watched(item),
                Some(input) = inputs.recv() => self.told(input),
                () = sleep_until(timer) => {
                    if closing.is_some_and(|end| end <= Instant::now()) {
                        tracing::debug!(%service, "the peer was not told of the close: its lease will end");
                        return;
                    }
                    self.machine.handle_timeout(now());
                }
            }
        }
    }

    /// Carries out what the machine wants done and said.
    fn settle(&mut self) {
        while let Some(event) = self.machine.poll_event() {
            match event {
                Event::Up(established) => self.rise(&established),
                Event::Down(fault) => self.fall(&fault),
                Event::Closed => {}
            }
        }
        while let Some(step) = self.machine.poll_transmit() {
            let future = self.take(step);
            self.steps.push(future);
        }
    }

    fn take(&mut self, step: Step) -> BoxFuture<'static, Outcome> {
        let (peers, domain) = (self.peers.clone(), self.import.service.domain().clone());
        match step {
            Step::Resolve(attempt) => {
                async move { Outcome::Resolved(attempt, peers.gateways(&domain).await) }.boxed()
            }
            Step::Find(attempt) => {
                let target = self.import.service.target().clone();
                self.view = View::default();
                self.watch_fault = None;
                self.watch = Some(Box::pin(peers.watch(&domain, &target)));
                async move { Outcome::Found(attempt, peers.find(&domain, &target).await) }.boxed()
            }
            Step::Request(attempt, request) => {
                let request = wire::network_service_request(&request, &BTreeMap::new());
                self.asked = Some(Instant::now());
                async move {
                    let reply = peers.request(&domain, request).await;
                    Outcome::Replied(attempt, reply.map(Box::new))
                }
                .boxed()
            }
            Step::Close(attempt, close) => {
                let connection = wire::close_request(&close);
                async move { Outcome::Closed(attempt, peers.close(&domain, connection).await) }.boxed()
            }
        }
    }

    async fn finish(&mut self, outcome: Outcome) {
        match outcome {
            Outcome::Resolved(attempt, Ok(gateways)) => {
                self.gateways = Some(gateways);
                self.machine.handle_resolved(attempt, now());
            }
            Outcome::Resolved(attempt, Err(fault)) => self.fail(attempt, &fault, StepKind::Resolve),
            Outcome::Found(attempt, Ok(list)) => {
                let target = self.import.service.target();
                self.view.complete(list.iter().map(|e| wire::endpoint(e, target)));
                self.machine.handle_found(attempt, self.view.list(), now());
                if let Some(fault) = self.watch_fault.take() {
                    self.watch_ended(&fault);
                }
            }
            Outcome::Found(attempt, Err(fault)) => self.fail(attempt, &fault, StepKind::Find),
            Outcome::Replied(attempt, result) => self.replied(attempt, result).await,
            Outcome::Closed(attempt, Ok(())) => self.machine.handle_closed(attempt, now()),
            Outcome::Closed(attempt, Err(fault)) => self.fail(attempt, &fault, StepKind::Close),
        }
    }

    async fn replied(&mut self, attempt: Attempt, result: Result<Box<Connection>, PeerFault>) {
        let domain = self.import.service.domain().clone();
        let result = result.and_then(|connection| {
            wire::outbound_reply(&connection).map_err(|e| PeerFault::BadAnswer {
                domain: domain.clone(),
                call: "Request",
                detail: e.to_string(),
            })
        });
        let outcome = if result.is_ok() { "granted" } else { "failed" };
        self.metrics.requests.of2("import", outcome).inc();
        if result.is_ok() {
            self.answered = self.asked.take().map_or(self.answered, |asked| asked.elapsed());
        }
        let reply = match result {
            Ok(reply) => reply,
            Err(fault) => return self.fail(attempt, &fault, StepKind::Request),
        };
        // A renewal is the moment to notice that the gateways have moved. The resolver answers from its cache as a rule,
        // and what we know is good enough when it does not.
        if let Ok(Ok(gateways)) = timeout(RESOLVE_PATIENCE, self.peers.gateways(&domain)).await {
            self.gateways = Some(gateways);
        }
        if self.addresses(&reply.addresses).is_empty() {
            let detail = "neither its DNS records nor its answer say where its tunnel listens".to_owned();
            let hint = format!("publish _carrick._udp.{domain}, or list `tunnel:` addresses of this peer");
            let fault =
                Fault { step: StepKind::Request, peer: domain, kind: FaultKind::BadAnswer, detail, hint };
            return self.machine.handle_failure(attempt, fault, now());
        }
        self.machine.handle_reply(attempt, reply, now());
        self.settle();
        // The machine is silent when nothing changed for it; the addresses are ours to compare.
        if let Some(established) = self.machine.established().cloned() {
            self.rise(&established);
        }
    }

    fn fail(&mut self, attempt: Attempt, fault: &PeerFault, step: StepKind) {
        let fault = fault.at(step, self.import.service.domain());
        self.machine.handle_failure(attempt, fault, now());
    }

    fn watched(&mut self, item: Result<WatchItem, PeerFault>) {
        match item {
            Ok(item) => {
                self.view.change(item, self.import.service.target());
                if self.view.complete {
                    self.machine.handle_endpoints_changed(self.view.list(), now());
                }
            }
            Err(fault) => {
                self.watch = None;
                if self.view.complete {
                    self.watch_ended(&fault);
                } else {
                    self.watch_fault = Some(fault);
                }
            }
        }
    }

    fn watch_ended(&mut self, fault: &PeerFault) {
        let fault = fault.at(StepKind::Find, self.import.service.domain());
        self.machine.handle_watch_ended(fault, now());
    }

    fn told(&mut self, input: Input) {
        match input {
            Input::Demand => self.machine.handle_demand(now()),
            Input::Lost(fault) => self.machine.handle_lost(fault, now()),
        }
    }

    fn rise(&mut self, established: &Established) {
        let Some(trust_domain) = self.trust_domain() else { return };
        let gateways = self.addresses(&established.addresses);
        let service = &self.import.service;
        let route = Route {
            connection: established.connection,
            domain: service.domain().clone(),
            trust_domain,
            payload: established.payload,
            gateways,
            port: established.port,
            answered: self.answered,
        };
        if self.route.as_ref().is_some_and(|old| same(old, &route)) {
            return;
        }
        let news = self.route.is_none();
        tracing::info!(%service, connection = %route.connection, endpoint = %established.endpoint, gateways = ?route.gateways, news, "connection up");
        self.logged = None;
        self.up.get_or_insert_with(|| ActiveGuard::new(&self.metrics.connections_active.of("import")));
        self.datapath.route(service, route.clone());
        self.route = Some(route);
    }

    fn fall(&mut self, fault: &Fault) {
        self.route = None;
        self.up = None;
        let service = &self.import.service;
        self.datapath.unroute(service, &format!("{fault}; {}", fault.hint));
        if self.logged != Some(fault.kind) {
            tracing::warn!(%service, step = %fault.step, kind = %fault.kind, blame = %fault.blame(), detail = fault.detail, hint = fault.hint, "connection down");
            self.logged = Some(fault.kind);
        }
    }

    fn trust_domain(&self) -> Option<TrustDomain> {
        self.peers.expected(self.import.service.domain()).ok().map(|(td, _)| td)
    }

    /// Where the peer's tunnel listens: what its operator published first, then what its gateway says.
    fn addresses(&self, told: &[SocketAddr]) -> Vec<SocketAddr> {
        let mut all = self.gateways.as_ref().map(|g| g.tunnel_order(&mut rand::rng())).unwrap_or_default();
        for addr in told {
            if !all.contains(addr) {
                all.push(*addr);
            }
        }
        all
    }
}

impl View {
    /// Takes the whole list as of one moment. Changes may have been told before it.
    fn complete(&mut self, list: impl Iterator<Item = Endpoint>) {
        for endpoint in list.take(MAX_ENDPOINTS) {
            if !self.gone.contains(&endpoint.name) {
                self.endpoints.entry(endpoint.name.clone()).or_insert(endpoint);
            }
        }
        self.gone.clear();
        self.complete = true;
    }

    fn change(&mut self, item: WatchItem, service: &carrick_model::Target) {
        let Some(told) = item.network_service_endpoint else { return };
        let endpoint = wire::endpoint(&told, service);
        if item.deleted {
            self.endpoints.remove(&endpoint.name);
            if !self.complete && self.gone.len() < MAX_ENDPOINTS {
                self.gone.insert(endpoint.name);
            }
        } else if self.endpoints.len() < MAX_ENDPOINTS || self.endpoints.contains_key(&endpoint.name) {
            self.gone.remove(&endpoint.name);
            self.endpoints.insert(endpoint.name.clone(), endpoint);
        }
    }

    fn list(&self) -> Vec<Endpoint> {
        self.endpoints.values().cloned().collect()
    }
}

/// Whether two routes lead the same way: the order of addresses is drawn anew each time, and no two answers take the same time.
fn same(a: &Route, b: &Route) -> bool {
    let set = |r: &Route| r.gateways.iter().copied().collect::<BTreeSet<_>>();
    let rest = |r: &Route| Route { gateways: Vec::new(), answered: Duration::ZERO, ..r.clone() };
    rest(a) == rest(b) && set(a) == set(b)
}

/// The next change; never, without a watch.
async fn next(watch: &mut Option<Watch>) -> Result<WatchItem, PeerFault> {
    match watch {
        Some(changes) => match changes.next().await {
            Some(item) => item,
            // The stream says why it ends before it ends.
            None => std::future::pending().await,
        },
        None => std::future::pending().await,
    }
}
