//! The connections that other domains hold to our exports: the table of the core, its clock, and its effect on the data path.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use arc_swap::ArcSwap;
use carrick_identity::{
    Caller, Identity, TrustStore,
    token::{Presented, PresentedError},
};
use carrick_model::{ConnectionId, Domain, Target, TrustDomain};
use carrick_proto::{connection::Connection, networkservice::NetworkServiceRequest};
use carrick_proxy_core::{
    Now,
    inbound::{Inbound, InboundEvent, InboundSettings, Refusal, RevokeReason},
};
use carrick_runtime::Tasks;
use carrick_telemetry::Metrics;
use parking_lot::Mutex;
use serde::Serialize;
use tokio::sync::Notify;

use crate::{
    catalogue::{LocalExport, LocalExports},
    datapath::{Admission, DataPath},
    monitor::Monitors,
    tokens::{AdmitError, OwnTokens},
    wire::{self, WireFault},
};

/// A timer that sleeps no longer than this sees a host that was suspended, or whose table was empty.
const LOOK: Duration = Duration::from_secs(30);

/// The current exports and who is connected to them. Clones share the table.
#[derive(Clone)]
pub struct Exports {
    inner: Arc<Inner>,
}

struct Inner {
    domain: Domain,
    tokens: OwnTokens,
    /// Held while the data path is told, so that it hears of an admission before its revocation.
    table: Mutex<Inbound>,
    tunnel: ArcSwap<Vec<SocketAddr>>,
    datapath: Arc<dyn DataPath>,
    monitors: Monitors,
    changed: Notify,
    metrics: Metrics,
}

/// A connection that another domain holds, for people.
#[derive(Debug, Clone, Serialize)]
pub struct ExportConnection {
    /// Our id.
    pub id: ConnectionId,
    /// Who holds it.
    pub peer: String,
    /// The service.
    pub service: Target,
    /// Which of our endpoints.
    pub endpoint: String,
    /// Where its flows go.
    pub target: String,
    /// What it carries.
    pub payload: carrick_model::Payload,
    /// Since when.
    pub since: SystemTime,
    /// When it ends if it is not renewed.
    pub lease_end: SystemTime,
}

/// Why a request was not granted.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum RequestError {
    #[error(transparent)]
    Wire(#[from] WireFault),
    #[error(transparent)]
    Tokens(#[from] AdmitError),
    #[error(transparent)]
    Refused(#[from] Refusal),
}

impl Exports {
    /// An empty table. `identity` signs the tokens in our path segments. Leases and trust are looked after by tasks of `tasks`; `tunnel` is
    /// where peers are told to dial; `monitors` hear of the connections.
    #[expect(
        clippy::too_many_arguments,
        reason = "each is a part of its own, made once, in the composition root"
    )]
    pub fn new(
        settings: InboundSettings,
        tunnel: Vec<SocketAddr>,
        datapath: Arc<dyn DataPath>,
        identity: &Identity,
        trust: &TrustStore,
        monitors: Monitors,
        tasks: &Tasks,
        metrics: Metrics,
    ) -> Self {
        let exports = Self {
            inner: Arc::new(Inner {
                domain: settings.domain.clone(),
                tokens: OwnTokens::new(identity.clone()),
                table: Mutex::new(Inbound::new(settings)),
                tunnel: ArcSwap::from_pointee(tunnel),
                datapath,
                monitors,
                changed: Notify::new(),
                metrics,
            }),
        };
        tasks.spawn("leases of exports", exports.clone().expire(tasks.clone()));
        tasks.spawn("trust of exports", exports.clone().follow_trust(trust.clone(), tasks.clone()));
        exports
    }

    /// The exports are these from now on. Connections that policy no longer allows are revoked before this returns.
    pub fn set(&self, exports: Vec<LocalExport>) {
        self.change(|table, _| table.handle_exports_changed(exports));
    }

    /// Where peers are told to dial the tunnel; empty leaves it to the DNS.
    pub fn set_tunnel_addresses(&self, tunnel: Vec<SocketAddr>) {
        self.inner.tunnel.store(Arc::new(tunnel));
    }

    /// All exports, by service and endpoint.
    pub fn list(&self) -> Vec<LocalExport> {
        let mut all: Vec<LocalExport> = self.inner.table.lock().exports().cloned().collect();
        all.sort_by(|a, b| (&a.service, &a.endpoint).cmp(&(&b.service, &b.endpoint)));
        all
    }

    /// All connections of others, by service and peer.
    pub fn connections(&self) -> Vec<ExportConnection> {
        let now = now();
        let table = self.inner.table.lock();
        let mut all: Vec<ExportConnection> = table
            .connections()
            .map(|c| ExportConnection {
                id: c.admitted.id,
                peer: c.admitted.peer.to_string(),
                service: c.admitted.service,
                endpoint: c.admitted.endpoint,
                target: c.admitted.target.to_string(),
                payload: c.admitted.payload,
                since: c.since,
                lease_end: now.wall_of(c.lease_end),
            })
            .collect();
        all.sort_by(|a, b| (&a.service, &a.peer, a.id).cmp(&(&b.service, &b.peer, b.id)));
        all
    }

    /// Our domain.
    pub fn domain(&self) -> &Domain {
        &self.inner.domain
    }

    /// Grants or refuses a request that came with the token `presented`. When it returns the data path knows.
    pub(crate) fn request(
        &self,
        caller: &Caller,
        presented: Result<Presented, PresentedError>,
        request: NetworkServiceRequest,
    ) -> Result<Connection, RequestError> {
        let mut asked = wire::inbound_request(&request)?;
        let token = self.inner.tokens.admit(caller, presented, &mut asked.path, now().wall)?;
        let fresh = ConnectionId::random();
        let connection = request.connection.ok_or(WireFault::NoConnection)?;
        self.change(|table, now| {
            let mut granted = table.handle_request(caller.id(), asked, fresh, now)?;
            granted.path.set_next_token(token.jwt, token.expires);
            let id = granted.connection;
            let reply = wire::reply(connection, granted, &self.inner.domain, &self.inner.tunnel.load());
            // Under the lock of the table, so that nobody hears of its end before.
            self.inner.monitors.publish(caller.id().trust_domain(), wire::as_ours(&reply, id));
            Ok(reply)
        })
    }

    /// Whether this domain itself offers the service, under this endpoint if one is named.
    pub(crate) fn offers(&self, service: &str, endpoint: &str) -> bool {
        let Ok(service) = service.parse::<Target>() else { return false };
        self.inner
            .table
            .lock()
            .exports_of(&service)
            .iter()
            .any(|e| endpoint.is_empty() || e.endpoint == endpoint)
    }

    /// Closes a connection of `caller`; one that is not known is closed already, and `false`.
    pub(crate) fn close(
        &self,
        caller: &Caller,
        presented: Result<Presented, PresentedError>,
        connection: &Connection,
    ) -> Result<bool, RequestError> {
        let mut path = wire::path_of(connection)?;
        self.inner.tokens.admit(caller, presented, &mut path, now().wall)?;
        let closed = self.change(|table, _| table.handle_close(caller.id(), &path))?;
        Ok(closed.is_some())
    }

    /// Changes the table and tells the data path what came of it.
    fn change<T>(&self, f: impl FnOnce(&mut Inbound, Now) -> T) -> T {
        let inner = &*self.inner;
        let mut table = inner.table.lock();
        let before = table.poll_timeout();
        let result = f(&mut table, now());
        while let Some(event) = table.poll_event() {
            inner.tell(event);
        }
        inner.metrics.connections_active.of("export").set(i64::try_from(table.len()).unwrap_or(i64::MAX));
        let earlier = table.poll_timeout().is_some_and(|at| before.is_none_or(|b| at < b));
        drop(table);
        if earlier {
            inner.changed.notify_one();
        }
        result
    }

    /// Ends leases when they are over.
    async fn expire(self, tasks: Tasks) {
        let stopping = tasks.stopping();
        tokio::pin!(stopping);
        loop {
            let latest = Instant::now() + LOOK;
            let next = self.inner.table.lock().poll_timeout().map_or(latest, |at| at.min(latest));
            tokio::select! {
                () = &mut stopping => return,
                () = self.inner.changed.notified() => {}
                () = tokio::time::sleep_until(next.into()) => self.change(Inbound::handle_timeout),
            }
        }
    }

    /// Revokes what a trust domain holds when it is trusted no more.
    async fn follow_trust(self, trust: TrustStore, tasks: Tasks) {
        let mut changed = trust.changed();
        let mut before = trust.trust_domains();
        let stopping = tasks.stopping();
        tokio::pin!(stopping);
        loop {
            tokio::select! {
                () = &mut stopping => return,
                result = changed.changed() => if result.is_err() { return },
            }
            let after = trust.trust_domains();
            let gone: Vec<TrustDomain> = before.into_iter().filter(|td| !after.contains(td)).collect();
            for td in &gone {
                self.change(|table, _| table.handle_trust_removed(td));
            }
            before = after;
        }
    }
}

impl LocalExports for Exports {
    fn export(&self, service: &Target) -> Vec<LocalExport> {
        self.inner.table.lock().exports_of(service).to_vec()
    }
}

impl Inner {
    fn tell(&self, event: InboundEvent) {
        match event {
            InboundEvent::Admit(a) => {
                tracing::info!(connection = %a.id, peer = %a.peer, service = %a.service, endpoint = %a.endpoint, "connection admitted");
                let (id, peer) = (a.id, a.peer);
                let (service, endpoint, target) = (a.service, a.endpoint, a.target);
                self.datapath.admit(Admission { id, peer, service, endpoint, target });
            }
            InboundEvent::Revoke(id, why) => {
                tracing::info!(connection = %id, %why, "connection revoked");
                self.datapath.revoke(id, &why.to_string());
                // One that is given up for another choice goes on under its id.
                if why != RevokeReason::Reselected {
                    self.monitors.remove(&id.to_string());
                }
            }
        }
    }
}

/// Both clocks, read once per input.
pub(crate) fn now() -> Now {
    Now { mono: Instant::now(), wall: SystemTime::now() }
}
