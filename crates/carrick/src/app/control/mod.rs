//! What the admin API asks of the daemon.

mod connections;
mod explain;
mod services;
mod status;

use std::{
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant, SystemTime},
};

use carrick_model::{Domain, ListenAddress, ServiceName};
use carrick_proxy::imports::{self, ImportStatus};

use super::{imports::AddError, parts::Daemon, reload, trust::Trusted};
use crate::admin::{
    VERSION,
    api::{
        ConnectReply, ConnectRequest, ConnectionRow, ExplainReport, IdentityRow, ImportState, PassingRow,
        Problem, ProblemCode, ReloadReply, ServiceRow, Status, StepKind, StoreRow, TrustRow, Verdict,
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
            listeners: status::listeners(daemon),
            store: daemon.registry.store_status().map(|store| StoreRow {
                name: store.name,
                revision: store.revision,
                lost: store.lost,
            }),
            imports: daemon
                .imports
                .snapshot()
                .iter()
                .map(|import| status::import_row(daemon, import))
                .collect(),
            exports: status::export_rows(daemon),
            tunnels: status::tunnel_rows(daemon),
            peers: status::peer_rows(daemon).await,
            watches: status::watch_rows(daemon),
            counters: status::counters(daemon),
        }
    }

    async fn services(&self, domain: Option<Domain>) -> Result<Vec<ServiceRow>, Problem> {
        let daemon = &*self.0;
        match domain {
            Some(domain) if domain != self.domain() => services::remote_services(daemon, &domain).await,
            own => Ok(services::own_services(daemon, own.is_none())),
        }
    }

    async fn connections(&self) -> Vec<ConnectionRow> {
        let daemon = &*self.0;
        let mut rows: Vec<ConnectionRow> = daemon
            .imports
            .snapshot()
            .iter()
            .filter_map(|import| connections::outgoing_row(daemon, import))
            .collect();
        rows.extend(connections::incoming_rows(daemon));
        rows.sort_by_key(|row| row.since);
        rows
    }

    async fn passing(&self) -> Vec<PassingRow> {
        self.0.transits.connections().into_iter().map(connections::passing_row).collect()
    }

    async fn explain(&self, name: ServiceName) -> ExplainReport {
        let daemon = &*self.0;
        let began = Instant::now();
        let status = daemon.imports.snapshot().into_iter().find(|import| import.service == name);
        let payload = status.as_ref().and_then(|import| import.payload);
        let walked = daemon.explainer.explain(&name.to_string(), payload).await;
        let stitch = explain::stitch(daemon, &walked).await;
        let keep = explain::keep(status.as_ref());
        let mut steps = explain::steps(walked);
        let failed = steps.iter().any(|step| step.verdict == Verdict::Failed);
        if let Some(find) = steps.iter_mut().find(|step| failed && step.step == StepKind::Find) {
            find.evidence.extend(explain::last_known(daemon, name.domain(), SystemTime::now()));
        }
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
        let authorities = self.0.identity.authorities();
        let mut rows: Vec<TrustRow> = self
            .0
            .trusted
            .lock()
            .iter()
            .map(|Trusted { domain, bundle, origin }| {
                let authorities = (*domain == own).then_some(authorities.as_slice());
                TrustRow::new(domain.clone(), bundle, origin.as_str(), authorities)
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
