//! What the admin API asks of the daemon.

use std::{
    collections::BTreeMap,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant, SystemTime},
};

use carrick_gateway::TunnelSnapshot;
use carrick_model::{Domain, ListenAddress, Mechanism, Payload, ServiceName};
use carrick_proxy::{
    explain::{self, Explanation},
    imports::{self, ImportStatus},
};

use super::{imports::AddError, parts::Daemon, reload};
use crate::admin::{
    VERSION,
    api::{
        ConnectReply, ConnectRequest, ConnectionRow, Counters, Direction, ExplainReport, ExplainStep,
        ExportRow, IdentityRow, ImportRow, ImportState, ListenerRow, Origin, PassingRow, PeerRow, Problem,
        ProblemCode, ReloadReply, ServiceRow, Status, StepKind, StoreRow, TrustRow, TunnelRow, Verdict,
        micros,
    },
    control::Control,
};

/// How long `connect` waits for the new import to come up before it answers how it stands.
const CONNECT: Duration = Duration::from_secs(3);
/// How often it looks.
const LOOK: Duration = Duration::from_millis(20);

/// The daemon behind the admin API.
pub(crate) struct Admin(pub(crate) Arc<Daemon>);

impl Control for Admin {
    fn domain(&self) -> Domain {
        self.0.config.load().domain.clone()
    }

    async fn status(&self) -> Status {
        let daemon = &*self.0;
        let config = daemon.config.load_full();
        let svid = daemon.identity.current();
        Status {
            domain: config.domain.clone(),
            trust_domain: config.trust_domain.to_string(),
            version: VERSION.to_owned(),
            pid: std::process::id(),
            started: daemon.started.into(),
            uptime_seconds: daemon.began.elapsed().as_secs(),
            state_dir: config.state_dir.clone(),
            config: daemon.config_path.clone(),
            ready: self.ready(),
            waiting_for: daemon.readiness.waiting_for().into_iter().map(str::to_owned).collect(),
            draining: daemon.draining.load(Ordering::Relaxed),
            identity: IdentityRow {
                spiffe_id: svid.id().to_string(),
                source: "embedded".to_owned(),
                not_before: svid.not_before().into(),
                not_after: svid.not_after().into(),
            },
            listeners: listeners(daemon),
            store: daemon.registry.store_status().map(|store| StoreRow {
                name: store.name,
                revision: store.revision,
                lost: store.lost,
            }),
            imports: daemon.imports.snapshot().iter().map(|import| import_row(daemon, import)).collect(),
            exports: export_rows(daemon),
            tunnels: tunnel_rows(daemon),
            peers: peer_rows(daemon).await,
            counters: counters(daemon),
        }
    }

    async fn services(&self, domain: Option<Domain>) -> Result<Vec<ServiceRow>, Problem> {
        let daemon = &*self.0;
        match domain {
            Some(domain) if domain != self.domain() => remote_services(daemon, &domain).await,
            own => Ok(own_services(daemon, own.is_none())),
        }
    }

    async fn connections(&self) -> Vec<ConnectionRow> {
        let daemon = &*self.0;
        let mut rows: Vec<ConnectionRow> =
            daemon.imports.snapshot().iter().filter_map(|import| outgoing_row(daemon, import)).collect();
        rows.extend(incoming_rows(daemon));
        rows.sort_by_key(|row| row.since);
        rows
    }

    async fn passing(&self) -> Vec<PassingRow> {
        let row = |c: carrick_proxy::transit::TransitStatus| PassingRow {
            id: c.id,
            service: c.service,
            owner: c.owner,
            endpoint: c.endpoint,
            next: c.next,
            state: if c.down { "down" } else { "up" }.to_owned(),
            since: c.since.into(),
            expires: c.lease_end.into(),
        };
        self.0.transits.connections().into_iter().map(row).collect()
    }

    async fn explain(&self, name: ServiceName) -> ExplainReport {
        let daemon = &*self.0;
        let began = Instant::now();
        let status = daemon.imports.snapshot().into_iter().find(|import| import.service == name);
        let payload = status.as_ref().and_then(|import| import.payload);
        let walked = daemon.explainer.explain(&name.to_string(), payload).await;
        let stitch = stitch(daemon, &walked).await;
        let keep = keep(status.as_ref());
        let mut steps = steps(walked);
        steps.extend([stitch, keep]);
        ExplainReport::new(name, steps, began.elapsed())
    }

    async fn connect(&self, request: ConnectRequest) -> Result<ConnectReply, Problem> {
        let daemon = &*self.0;
        let ConnectRequest { service, listen, hold: _ } = request;
        if daemon.draining.load(Ordering::Relaxed) {
            return Err(Problem::new(ProblemCode::Unavailable, "the daemon is about to stop"));
        }
        let bound = daemon
            .listeners
            .add_ad_hoc(&daemon.imports, &service, &listen)
            .map_err(|e| add_problem(e, &service))?;
        let settled = wait_until_settled(daemon, &service).await;
        let (state, why) =
            settled.map_or((ImportState::Connecting, None), |import| (state_of(import.state), why(&import)));
        Ok(ConnectReply { service, listen: bound, state, why })
    }

    async fn disconnect(&self, service: ServiceName, listen: ListenAddress) -> Result<(), Problem> {
        let daemon = &*self.0;
        if daemon.listeners.remove_ad_hoc(&daemon.imports, &service, &listen).await {
            return Ok(());
        }
        let message = format!("`carrick connect` made no listener for {service} on {listen}");
        Err(Problem::new(ProblemCode::NotFound, message).hint("`carrick status` shows what listens where"))
    }

    async fn trust(&self) -> Vec<TrustRow> {
        let own = self.domain();
        let mut rows: Vec<TrustRow> = self
            .0
            .trusted
            .lock()
            .iter()
            .map(|trusted| TrustRow {
                domain: trusted.domain.clone(),
                trust_domain: trusted.bundle.trust_domain().to_string(),
                own: trusted.domain == own,
                source: trusted.origin.as_str().to_owned(),
                fingerprints: trusted.bundle.fingerprints(),
                not_after: trusted.bundle.not_after().into(),
            })
            .collect();
        rows.sort_by(|a, b| (!a.own, &a.domain).cmp(&(!b.own, &b.domain)));
        rows
    }

    async fn reload(&self) -> Result<ReloadReply, Problem> {
        // In a task of its own: a caller that goes away must not leave a reload half done.
        let daemon = self.0.clone();
        let reloading = self.0.tasks.spawn("reload", async move { reload::reload(&daemon).await });
        reloading
            .await
            .unwrap_or_else(|_| Err(Problem::new(ProblemCode::Internal, "the reload did not finish")))
    }

    fn metrics(&self) -> String {
        self.0.metrics.encode()
    }

    fn ready(&self) -> bool {
        self.0.readiness.is_ready() && !self.0.draining.load(Ordering::Relaxed)
    }
}

fn add_problem(error: AddError, service: &ServiceName) -> Problem {
    let hint = error.hint();
    let code = match &error {
        AddError::Import(imports::ImportError::OwnDomain(_)) => ProblemCode::InvalidRequest,
        _ => ProblemCode::Conflict,
    };
    let why = format!("{:#}", anyhow::Error::from(error));
    Problem::new(code, format!("{service} cannot be connected: {why}")).hint(hint)
}

async fn wait_until_settled(daemon: &Daemon, service: &ServiceName) -> Option<ImportStatus> {
    let deadline = Instant::now() + CONNECT;
    loop {
        let import = daemon.imports.snapshot().into_iter().find(|import| &import.service == service)?;
        if state_of(import.state) != ImportState::Connecting || Instant::now() > deadline {
            return Some(import);
        }
        tokio::time::sleep(LOOK).await;
    }
}

fn state_of(state: imports::ImportState) -> ImportState {
    use imports::ImportState as S;
    match state {
        S::Up | S::Refreshing => ImportState::Up,
        S::Resolving | S::Finding | S::Requesting => ImportState::Connecting,
        S::Down | S::Closing | S::Closed => ImportState::Down,
    }
}

fn why(import: &ImportStatus) -> Option<String> {
    let fault = import.last_fault.as_ref().filter(|_| !import.state.is_up())?;
    Some(format!("{}: {}", fault.step, fault.detail))
}

fn listeners(daemon: &Daemon) -> Vec<ListenerRow> {
    let row = |name: &str, address: String| ListenerRow { name: name.to_owned(), address };
    let at = &daemon.addresses;
    let mut rows = vec![
        row("control", format!("tcp://{}", at.control)),
        row("tunnel", format!("udp://{}", at.tunnel)),
        row("admin", format!("unix://{}", at.socket.display())),
    ];
    rows.extend(at.nsm.iter().map(|url| row("nsm", url.to_string())));
    rows.extend(at.admin.map(|address| row("admin", format!("tcp://{address}"))));
    rows.extend(
        at.dns
            .into_iter()
            .flat_map(|address| ["udp", "tcp"].map(|over| row("dns", format!("{over}://{address}")))),
    );
    rows
}

fn import_row(daemon: &Daemon, import: &ImportStatus) -> ImportRow {
    let view = daemon.listeners.view(&import.service);
    let up = import.state.is_up();
    let failing = daemon.gateway.failing(import.service.domain()).filter(|_| up);
    let state = if failing.is_some() { ImportState::Down } else { state_of(import.state) };
    ImportRow {
        service: import.service.clone(),
        state,
        why: failing.or_else(|| why(import)),
        hint: import.last_fault.as_ref().filter(|_| !up).map(|fault| fault.hint.clone()),
        since: import.since.into(),
        payload: import.payload,
        listen: view.listen,
        virtual_ip: view.virtual_ip.map(Into::into),
        dns_name: view.dns_name,
        ad_hoc: view.ad_hoc,
        connection: import.connection,
        flows: daemon.gateway.import_flows(&import.service) as u64,
    }
}

fn export_rows(daemon: &Daemon) -> Vec<ExportRow> {
    let mut connections: BTreeMap<String, (u64, u64)> = BTreeMap::new();
    for connection in daemon.exports.connections() {
        let count = connections.entry(connection.endpoint).or_default();
        count.0 += 1;
        count.1 += daemon.gateway.connection_flows(connection.id) as u64;
    }
    let config = daemon.config.load();
    let port = |service: &carrick_model::Target| {
        config.exports.iter().find(|export| &export.service == service).and_then(|export| export.port)
    };
    let row = |export: carrick_proxy::catalogue::LocalExport| {
        let (connections, flows) = connections.get(&export.endpoint).copied().unwrap_or_default();
        ExportRow {
            port: port(&export.service),
            service: export.service,
            target: export.target,
            payload: export.payload,
            allow: export.allow,
            connections,
            flows,
        }
    };
    daemon.exports.list().into_iter().map(row).collect()
}

/// The lanes to one gateway are one row.
fn tunnel_rows(daemon: &Daemon) -> Vec<TunnelRow> {
    let trusted = daemon.trusted.lock();
    let domain_of = |tunnel: &TunnelSnapshot| {
        trusted
            .iter()
            .find(|t| t.bundle.trust_domain() == tunnel.peer.trust_domain())
            .map(|t| t.domain.clone())
    };
    let mut rows: Vec<TunnelRow> = Vec::new();
    for tunnel in daemon.gateway.tunnels() {
        let direction = if tunnel.role == "dialled" { Direction::Outgoing } else { Direction::Incoming };
        let peer = tunnel.peer.to_string();
        let rtt = micros(tunnel.rtt);
        let same = |row: &&mut TunnelRow| {
            row.peer == peer && row.address == tunnel.address && row.direction == direction
        };
        if let Some(row) = rows.iter_mut().find(same) {
            row.lanes += 1;
            row.flows += tunnel.flows as u64;
            row.bytes_sent += tunnel.sent_bytes;
            row.bytes_received += tunnel.received_bytes;
            row.lost_packets += tunnel.lost_packets;
            row.rtt_micros = row.rtt_micros.max(Some(rtt));
            row.mtu = row.mtu.min(Some(tunnel.mtu));
            row.since = row.since.min(tunnel.since.into());
            continue;
        }
        rows.push(TunnelRow {
            domain: domain_of(&tunnel),
            peer,
            address: tunnel.address,
            direction,
            mechanism: Mechanism::Quic,
            since: tunnel.since.into(),
            rtt_micros: Some(rtt),
            lanes: 1,
            flows: tunnel.flows as u64,
            bytes_sent: tunnel.sent_bytes,
            bytes_received: tunnel.received_bytes,
            mtu: Some(tunnel.mtu),
            lost_packets: tunnel.lost_packets,
        });
    }
    rows
}

/// The domains that imports need. The resolver answers from its cache as a rule.
async fn peer_rows(daemon: &Daemon) -> Vec<PeerRow> {
    let mut domains: Vec<Domain> =
        daemon.imports.list().into_iter().map(|service| service.domain().clone()).collect();
    domains.dedup();
    let rows = domains.into_iter().map(|domain| async move {
        let trust_domain =
            daemon.trust_map.trust_domain(&domain).map_or_else(String::new, |td| td.to_string());
        let mut row = PeerRow {
            domain,
            trust_domain,
            source: None,
            control: Vec::new(),
            tunnel: Vec::new(),
            stale: false,
            why: None,
        };
        match tokio::time::timeout(PEER, daemon.resolver.resolve(&row.domain)).await {
            Ok(Ok(found)) => {
                row.source = Some(found.source.to_string());
                row.control = found.control.iter().map(|candidate| candidate.addr).collect();
                row.tunnel = found.tunnel.iter().map(|candidate| candidate.addr).collect();
                row.stale = found.stale;
            }
            Ok(Err(error)) => row.why = Some(error.to_string()),
            Err(_late) => row.why = Some("the DNS has not answered yet".to_owned()),
        }
        row
    });
    futures::future::join_all(rows).await
}

/// A status answers soon, whatever the DNS does.
const PEER: Duration = Duration::from_millis(500);

fn counters(daemon: &Daemon) -> Counters {
    let metrics = &daemon.metrics;
    let both = |of: &dyn Fn(&'static str) -> u64| of("import") + of("export");
    let bytes = |direction, way| metrics.flow_bytes.of2(direction, way).get();
    Counters {
        flows_active: daemon.gateway.flows() as u64,
        flows_total: both(&|direction| metrics.flows_opened.of(direction).get()),
        flows_refused: both(&|direction| metrics.flows_refused.sum(direction)),
        bytes_sent: bytes("import", "to_service") + bytes("export", "to_client"),
        bytes_received: bytes("import", "to_client") + bytes("export", "to_service"),
    }
}

fn own_services(daemon: &Daemon, imports_too: bool) -> Vec<ServiceRow> {
    let config = daemon.config.load();
    let mut rows: Vec<ServiceRow> = daemon
        .exports
        .list()
        .into_iter()
        .map(|export| ServiceRow {
            service: export.service.at(&config.domain),
            origin: Origin::Export,
            payload: Some(export.payload),
            port: config.exports.iter().find(|e| e.service == export.service).and_then(|e| e.port),
            endpoints: vec![export.endpoint],
            reach: vec![export.target.to_string()],
            state: None,
        })
        .collect();
    if imports_too {
        rows.extend(daemon.imports.snapshot().into_iter().map(|import| {
            let (reach, state) = reach(daemon, &import);
            ServiceRow {
                origin: Origin::Import,
                payload: import.payload,
                port: import.port,
                endpoints: import.endpoint.into_iter().collect(),
                reach,
                state: Some(state),
                service: import.service,
            }
        }));
    }
    rows.sort_by(|a, b| a.service.cmp(&b.service));
    rows
}

fn reach(daemon: &Daemon, import: &ImportStatus) -> (Vec<String>, ImportState) {
    let view = daemon.listeners.view(&import.service);
    let mut reach: Vec<String> = view.listen.iter().map(ToString::to_string).collect();
    reach.extend(view.dns_name);
    (reach, state_of(import.state))
}

async fn remote_services(daemon: &Daemon, domain: &Domain) -> Result<Vec<ServiceRow>, Problem> {
    let found = daemon.peers.services(domain).await.map_err(|fault| {
        let hint = fault.hint();
        let why = format!("{:#}", anyhow::Error::from(fault));
        Problem::new(ProblemCode::Unavailable, format!("{domain} does not tell its services: {why}"))
            .hint(hint)
    })?;
    let imported = daemon.imports.snapshot();
    let rows = found.into_iter().filter_map(|service| {
        let name = service.name.parse::<carrick_model::Target>().ok()?.at(domain);
        let import = imported.iter().find(|import| import.service == name);
        let (reach, state) = import.map_or((Vec::new(), None), |import| {
            let (reach, state) = reach(daemon, import);
            (reach, Some(state))
        });
        Some(ServiceRow {
            origin: if import.is_some() { Origin::Import } else { Origin::Remote },
            payload: service.payload.parse::<Payload>().ok(),
            port: import.and_then(|import| import.port),
            endpoints: service.endpoints,
            reach,
            state,
            service: name,
        })
    });
    Ok(rows.collect())
}

fn outgoing_row(daemon: &Daemon, import: &ImportStatus) -> Option<ConnectionRow> {
    let domain = import.service.domain();
    Some(ConnectionRow {
        id: import.connection?.to_string(),
        direction: Direction::Outgoing,
        service: import.service.clone(),
        peer: daemon.trust_map.trust_domain(domain).map_or_else(String::new, |td| format!("spiffe://{td}")),
        endpoint: import.endpoint.clone(),
        mechanism: Mechanism::Quic,
        payload: import.payload?,
        state: format!("{:?}", import.state).to_lowercase(),
        since: import.since.into(),
        expires: import.lease_end.map(Into::into),
        flows: daemon.gateway.import_flows(&import.service) as u64,
    })
}

fn incoming_rows(daemon: &Daemon) -> Vec<ConnectionRow> {
    let domain = daemon.config.load().domain.clone();
    let row = |connection: carrick_proxy::exports::ExportConnection| ConnectionRow {
        id: connection.id.to_string(),
        direction: Direction::Incoming,
        service: connection.service.at(&domain),
        peer: connection.peer,
        endpoint: Some(connection.endpoint),
        mechanism: Mechanism::Quic,
        payload: connection.payload,
        state: "up".to_owned(),
        since: connection.since.into(),
        expires: Some(connection.lease_end.into()),
        flows: daemon.gateway.connection_flows(connection.id) as u64,
    };
    daemon.exports.connections().into_iter().map(row).collect()
}

/// The proxy's walk in the words of the API: trust and the handshake that proves it are one step there.
fn steps(walked: Explanation) -> Vec<ExplainStep> {
    let mut steps: Vec<ExplainStep> = Vec::new();
    for step in walked.steps {
        let kind = match step.step {
            "name" => StepKind::Name,
            "domain" => StepKind::Gateways,
            "trust" | "connect" => StepKind::Trust,
            "find" => StepKind::Find,
            "select" => StepKind::Select,
            _ => StepKind::Request,
        };
        let verdict = match step.verdict {
            explain::Verdict::Ok => Verdict::Ok,
            explain::Verdict::Failed => Verdict::Failed,
            explain::Verdict::Skipped => Verdict::Skipped,
        };
        let failed = verdict == Verdict::Failed;
        let (problem, evidence) =
            if failed { (Some(step.evidence.join("; ")), Vec::new()) } else { (None, step.evidence) };
        match steps.last_mut().filter(|last| last.step == kind) {
            Some(last) if verdict != Verdict::Skipped => {
                last.verdict = last.verdict.max(verdict);
                last.took_micros += micros(step.took);
                last.evidence.extend(evidence);
                last.problem = last.problem.take().or(problem);
                last.hint = last.hint.take().or(step.hint);
            }
            Some(_) => {}
            None => steps.push(ExplainStep {
                step: kind,
                verdict,
                took_micros: micros(step.took),
                evidence,
                problem,
                hint: step.hint,
            }),
        }
    }
    steps
}

/// Joins a tunnel as a flow would.
async fn stitch(daemon: &Daemon, walked: &Explanation) -> ExplainStep {
    let mut step = ExplainStep {
        step: StepKind::Stitch,
        verdict: Verdict::Skipped,
        took_micros: 0,
        evidence: Vec::new(),
        problem: None,
        hint: None,
    };
    let Some(route) = &walked.route else { return step };
    let began = Instant::now();
    let route = carrick_gateway::Route {
        connection: route.connection,
        domain: route.domain.clone(),
        trust_domain: route.trust_domain.clone(),
        payload: route.payload,
        gateways: route.gateways.clone(),
    };
    match daemon.gateway.probe(&route).await {
        Ok(tunnel) => {
            step.verdict = Verdict::Ok;
            step.evidence = vec![
                format!("QUIC tunnel to {} at {}, {}", tunnel.peer, tunnel.address, tunnel.role),
                format!(
                    "round trip {:.1?}, packets of {} bytes, {} flows",
                    tunnel.rtt, tunnel.mtu, tunnel.flows
                ),
            ];
        }
        Err(why) => {
            step.verdict = Verdict::Failed;
            step.problem = Some(format!("no tunnel: {why}"));
            step.hint = Some(
                "check that UDP reaches the tunnel port (`listen.tunnel`) of the other gateway, and that it trusts this domain"
                    .to_owned(),
            );
        }
    }
    step.took_micros = micros(began.elapsed());
    step
}

/// How the import of that name stands, if there is one.
fn keep(import: Option<&ImportStatus>) -> ExplainStep {
    let mut step = ExplainStep {
        step: StepKind::Keep,
        verdict: Verdict::Skipped,
        took_micros: 0,
        evidence: Vec::new(),
        problem: None,
        hint: None,
    };
    let Some(import) = import else {
        step.evidence.push(
            "not imported here: `carrick connect` or an entry under `imports:` makes it usable".to_owned(),
        );
        return step;
    };
    if let Some(connection) = import.connection {
        step.evidence.push(format!("connection {connection}"));
    }
    if let Some(left) = import.lease_end.and_then(|end| end.duration_since(SystemTime::now()).ok()) {
        step.evidence.push(format!("lease ends in {} s, renewed before", left.as_secs()));
    }
    match why(import) {
        None => step.verdict = Verdict::Ok,
        Some(problem) => {
            step.verdict = Verdict::Failed;
            step.problem = Some(problem);
            step.hint = import.last_fault.as_ref().map(|fault| fault.hint.clone());
        }
    }
    step
}
