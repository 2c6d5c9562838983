//! The connections that others hold to our exports.
//!
//! Each request is checked in this order, and each check has a refusal of its own: path, name, endpoint, payload,
//! mechanism, policy, bounds. Nobody is allowed whom no `allow:` list names. An entry belongs to the trust domain that asked for it,
//! has a lease, and is found again by the caller's own segment of the path: so a request whose reply was lost, and is
//! sent again, never makes a second entry.
//!
//! Call order: any input, then [`Inbound::poll_event`] until it is empty, then [`Inbound::poll_timeout`].

mod words;

use std::{
    collections::{BTreeSet, HashMap, VecDeque},
    time::{Duration, Instant, SystemTime},
};

use carrick_model::{ConnectionId, Domain, Mechanism, SpiffeId, Target, TrustDomain, service::split_name};

pub use self::words::{
    Admitted, InboundConnection, InboundEvent, InboundRequest, InboundSettings, LocalExport, Refusal, Reply,
    RevokeReason,
};
use crate::{
    clock::Now,
    path::{Hop, Path, PathFault},
    policy::{self, Decision},
};

/// Longest lease we grant: NSM's default token lifetime.
pub const MAX_LEASE: Duration = Duration::from_secs(600);
/// Connections of one trust domain: one per import, so this is four times the largest site we know of.
pub const MAX_PER_PEER: usize = 4096;
/// Connections in all: at about 1 KiB each the table stays under 64 MiB.
pub const MAX_TOTAL: usize = 65_536;

/// The table. The module says in which order to call it.
#[derive(Debug)]
pub struct Inbound {
    settings: InboundSettings,
    exports: HashMap<Target, Vec<LocalExport>>,
    turn: usize,
    by_id: HashMap<ConnectionId, Entry>,
    by_origin: HashMap<Origin, ConnectionId>,
    per_peer: HashMap<TrustDomain, usize>,
    by_end: BTreeSet<(Instant, ConnectionId)>,
    events: VecDeque<InboundEvent>,
}

/// The caller's own segment: what stays the same over all its requests for one connection.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Origin {
    trust_domain: TrustDomain,
    name: String,
    id: String,
}

#[derive(Debug)]
struct Entry {
    admitted: Admitted,
    origin: Origin,
    since: SystemTime,
    lease_end: Instant,
}

impl Inbound {
    /// An empty table without exports.
    pub fn new(settings: InboundSettings) -> Self {
        Self {
            settings,
            exports: HashMap::new(),
            turn: 0,
            by_id: HashMap::new(),
            by_origin: HashMap::new(),
            per_peer: HashMap::new(),
            by_end: BTreeSet::new(),
            events: VecDeque::new(),
        }
    }

    /// Decides on a request of `peer`; `fresh` becomes the connection's id if it is a new one.
    pub fn handle_request(
        &mut self,
        peer: &SpiffeId,
        request: InboundRequest,
        fresh: ConnectionId,
        now: Now,
    ) -> Result<Reply, Refusal> {
        let known = self.known(peer, &request.path);
        let granted = self.grant(peer, request, known, fresh, now);
        // A renewal that policy refuses ends what it would have renewed.
        if let (Err(Refusal::Denied { .. }), Some(id)) = (&granted, known) {
            self.remove(id, RevokeReason::Denied);
        }
        granted
    }

    /// Closes a connection for `peer`. One that is not known is closed already.
    pub fn handle_close(&mut self, peer: &SpiffeId, path: &Path) -> Result<Option<ConnectionId>, Refusal> {
        path.check()?;
        let Some(current) = path.current() else { return Err(PathFault::Empty.into()) };
        if let Some(id) = self.known(peer, path) {
            self.remove(id, RevokeReason::Closed);
            return Ok(Some(id));
        }
        let named = [Some(current), path.next()].into_iter().flatten().filter_map(|s| s.id.parse().ok());
        let foreign = named.into_iter().any(|id| self.by_id.contains_key(&id));
        if foreign { Err(Refusal::NotYours(peer.trust_domain().clone())) } else { Ok(None) }
    }

    /// The exports are these now: what is gone or not allowed any more is revoked, what points elsewhere is admitted anew.
    pub fn handle_exports_changed(&mut self, exports: Vec<LocalExport>) {
        self.exports.clear();
        for export in exports {
            self.exports.entry(export.service.clone()).or_default().push(export);
        }
        let mut over = Vec::new();
        for entry in self.by_id.values_mut() {
            let held = &mut entry.admitted;
            let same = |e: &&LocalExport| e.endpoint == held.endpoint && e.payload == held.payload;
            let export = self.exports.get(&held.service).and_then(|list| list.iter().find(same));
            match export {
                None => over.push((held.id, RevokeReason::ExportRemoved)),
                Some(e) if !policy::decide(&e.allow, &held.peer).is_allowed() => {
                    over.push((held.id, RevokeReason::Denied));
                }
                Some(e) if e.target != held.target => {
                    held.target = e.target.clone();
                    self.events.push_back(InboundEvent::Admit(held.clone()));
                }
                Some(_) => {}
            }
        }
        for (id, why) in over {
            self.remove(id, why);
        }
    }

    /// `trust_domain` is not trusted any more: all it holds is revoked.
    pub fn handle_trust_removed(&mut self, trust_domain: &TrustDomain) {
        let theirs = |e: &&Entry| &e.origin.trust_domain == trust_domain;
        let over: Vec<ConnectionId> = self.by_id.values().filter(theirs).map(|e| e.admitted.id).collect();
        for id in over {
            self.remove(id, RevokeReason::TrustRemoved);
        }
    }

    /// Time has passed: ends what is over.
    pub fn handle_timeout(&mut self, now: Now) {
        while let Some(&(end, id)) = self.by_end.first() {
            if end > now.mono {
                return;
            }
            self.remove(id, RevokeReason::Expired);
        }
    }

    /// The next thing the data path has to know.
    pub fn poll_event(&mut self) -> Option<InboundEvent> {
        self.events.pop_front()
    }

    /// When to call [`Inbound::handle_timeout`]: when the first lease ends.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.by_end.first().map(|(end, _)| *end)
    }

    /// The exports of one service.
    pub fn exports_of(&self, service: &Target) -> &[LocalExport] {
        self.exports.get(service).map_or(&[], Vec::as_slice)
    }

    /// All exports.
    pub fn exports(&self) -> impl Iterator<Item = &LocalExport> {
        self.exports.values().flatten()
    }

    /// All connections.
    pub fn connections(&self) -> impl Iterator<Item = InboundConnection> + '_ {
        self.by_id.values().map(|e| InboundConnection {
            admitted: e.admitted.clone(),
            since: e.since,
            lease_end: e.lease_end,
        })
    }

    /// How many connections there are.
    pub fn len(&self) -> usize {
        self.by_id.len()
    }

    /// Whether there is no connection.
    pub fn is_empty(&self) -> bool {
        self.by_id.is_empty()
    }

    /// The entry of `peer` that a path speaks of: by the caller's segment, else by ours behind it. Another trust domain's is never found.
    fn known(&self, peer: &SpiffeId, path: &Path) -> Option<ConnectionId> {
        let current = path.current()?;
        if let Some(id) = self.by_origin.get(&Origin::new(peer, &current.name, &current.id)) {
            return Some(*id);
        }
        let ours = path.next().filter(|s| s.name == self.settings.own_name)?;
        let id: ConnectionId = ours.id.parse().ok()?;
        let entry = self.by_id.get(&id)?;
        (&entry.origin.trust_domain == peer.trust_domain()).then_some(id)
    }

    fn grant(
        &mut self,
        peer: &SpiffeId,
        request: InboundRequest,
        known: Option<ConnectionId>,
        fresh: ConnectionId,
        now: Now,
    ) -> Result<Reply, Refusal> {
        let mut path = request.path;
        let origin = origin_of(peer, &path)?;
        let index = path.index;
        let caller_end = path.current().and_then(|s| s.expires);
        let hop = path.advance(&self.settings.own_name, &request.id, &fresh.to_string())?;
        if matches!(hop, Hop::Own | Hop::First) {
            return Err(Refusal::OwnName(self.settings.own_name.clone()));
        }
        let service = self.service_of(&request.service)?;
        let candidates = self.candidates(&service, &request.endpoint, &request.payload)?;
        let quic = (Mechanism::Quic.class(), Mechanism::Quic.as_str());
        if !request.mechanisms.is_empty()
            && !request.mechanisms.iter().any(|(class, kind)| (class.as_str(), kind.as_str()) == quic)
        {
            return Err(Refusal::Mechanism);
        }
        let (allowed, decision) = allowed(candidates, peer).map_err(|decision| Refusal::Denied {
            caller: peer.clone(),
            service: service.clone(),
            decision,
        })?;
        let lease = self.lease(caller_end, now)?;

        // A renewal stays where it is if it may; all else takes its turn.
        let held = known.filter(|_| !request.reselect).and_then(|id| self.by_id.get(&id));
        let stays = held.and_then(|h| allowed.iter().find(|e| e.endpoint == h.admitted.endpoint));
        let export = stays.unwrap_or(&allowed[self.turn % allowed.len()]);
        let export = (*export).clone();
        self.turn = self.turn.wrapping_add(1);

        let id = known.unwrap_or_else(|| self.id_for(&path, hop, fresh));
        if known.is_none() {
            self.check_bounds(peer)?;
        } else if request.reselect {
            self.remove(id, RevokeReason::Reselected);
        }
        let admitted = Admitted {
            id,
            peer: peer.clone(),
            service,
            endpoint: export.endpoint,
            target: export.target,
            payload: export.payload,
        };
        let reply_endpoint = admitted.endpoint.clone();
        let payload = admitted.payload;
        self.insert(admitted, origin, now.mono + lease, now);

        let expires = now.wall + lease;
        if let Some(own) = path.current_mut() {
            own.id = id.to_string();
            own.expires = Some(expires);
        }
        let id_of_caller = path.restore(index).unwrap_or_default().to_owned();
        Ok(Reply {
            id: id_of_caller,
            connection: id,
            endpoint: reply_endpoint,
            payload,
            path,
            expires,
            decision,
        })
    }

    /// The service meant, in our domain.
    fn service_of(&self, given: &str) -> Result<Target, Refusal> {
        let bare = self.strip_domain(given)?;
        bare.parse().map_err(|source| Refusal::Name { given: shorten(given), source })
    }

    /// `name` or `name@our.domain`, without the domain.
    fn strip_domain<'a>(&self, given: &'a str) -> Result<&'a str, Refusal> {
        match split_name(given) {
            (bare, None) => Ok(bare),
            (bare, Some(d)) if d.parse::<Domain>().is_ok_and(|d| d == self.settings.domain) => Ok(bare),
            _ => Err(Refusal::OtherDomain { given: shorten(given), domain: self.settings.domain.clone() }),
        }
    }

    /// The exports that a request may mean, never none.
    fn candidates(
        &self,
        service: &Target,
        endpoint: &str,
        payload: &str,
    ) -> Result<Vec<&LocalExport>, Refusal> {
        let domain = || self.settings.domain.clone();
        let all = self.exports_of(service);
        let Some(first) = all.first() else {
            return Err(Refusal::NoService { service: service.clone(), domain: domain() });
        };
        let wanted = self.strip_domain(endpoint)?;
        let named: Vec<&LocalExport> =
            all.iter().filter(|e| wanted.is_empty() || e.endpoint == wanted).collect();
        if named.is_empty() {
            let endpoint = shorten(wanted);
            return Err(Refusal::NoEndpoint { service: service.clone(), domain: domain(), endpoint });
        }
        let fitting: Vec<&LocalExport> =
            named.into_iter().filter(|e| payload.is_empty() || e.payload.as_str() == payload).collect();
        if fitting.is_empty() {
            let (service, offered, wanted) = (service.clone(), first.payload, shorten(payload));
            return Err(Refusal::Payload { service, offered, wanted });
        }
        Ok(fitting)
    }

    fn lease(&self, caller_end: Option<SystemTime>, now: Now) -> Result<Duration, Refusal> {
        let Some(end) = caller_end else { return Ok(self.settings.max_lease) };
        match end.duration_since(now.wall) {
            Ok(left) if !left.is_zero() => Ok(left.min(self.settings.max_lease)),
            Ok(_) => Err(Refusal::LeaseOver(Duration::ZERO)),
            Err(past) => Err(Refusal::LeaseOver(past.duration())),
        }
    }

    /// The id of a new entry: the one that our segment of the path already has, if it can be (the caller kept it over our
    /// restart), else the fresh one.
    fn id_for(&self, path: &Path, hop: Hop, fresh: ConnectionId) -> ConnectionId {
        let remembered = path.current().filter(|_| hop == Hop::Reused).and_then(|s| s.id.parse().ok());
        remembered.filter(|id| !self.by_id.contains_key(id)).unwrap_or(fresh)
    }

    fn check_bounds(&self, peer: &SpiffeId) -> Result<(), Refusal> {
        let theirs = self.per_peer.get(peer.trust_domain()).copied().unwrap_or_default();
        if theirs >= self.settings.max_per_peer {
            return Err(Refusal::PeerLimit(peer.trust_domain().clone(), theirs));
        }
        if self.by_id.len() >= self.settings.max_total {
            return Err(Refusal::TotalLimit(self.by_id.len()));
        }
        Ok(())
    }

    fn insert(&mut self, admitted: Admitted, origin: Origin, lease_end: Instant, now: Now) {
        let id = admitted.id;
        let old = self.by_id.remove(&id);
        match &old {
            Some(old) => {
                self.by_end.remove(&(old.lease_end, id));
                self.by_origin.remove(&old.origin);
            }
            None => *self.per_peer.entry(origin.trust_domain.clone()).or_default() += 1,
        }
        if old.as_ref().is_none_or(|o| o.admitted != admitted) {
            self.events.push_back(InboundEvent::Admit(admitted.clone()));
        }
        let since = old.map_or(now.wall, |o| o.since);
        self.by_end.insert((lease_end, id));
        self.by_origin.insert(origin.clone(), id);
        self.by_id.insert(id, Entry { admitted, origin, since, lease_end });
    }

    fn remove(&mut self, id: ConnectionId, why: RevokeReason) {
        let Some(entry) = self.by_id.remove(&id) else { return };
        self.by_end.remove(&(entry.lease_end, id));
        self.by_origin.remove(&entry.origin);
        if let Some(count) = self.per_peer.get_mut(&entry.origin.trust_domain) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                self.per_peer.remove(&entry.origin.trust_domain);
            }
        }
        self.events.push_back(InboundEvent::Revoke(id, why));
    }
}

impl Origin {
    fn new(peer: &SpiffeId, name: &str, id: &str) -> Self {
        Self { trust_domain: peer.trust_domain().clone(), name: name.to_owned(), id: id.to_owned() }
    }
}

fn origin_of(peer: &SpiffeId, path: &Path) -> Result<Origin, Refusal> {
    path.check()?;
    let current = path.current().ok_or(PathFault::Empty)?;
    Ok(Origin::new(peer, &current.name, &current.id))
}

/// Those of `candidates` that `peer` may use, never none, or the best reason why not.
fn allowed<'a>(
    candidates: Vec<&'a LocalExport>,
    peer: &SpiffeId,
) -> Result<(Vec<&'a LocalExport>, Decision), Decision> {
    let mut may = Vec::new();
    let mut yes = None;
    let mut no = Decision::NobodyAllowed;
    for export in candidates {
        match policy::decide(&export.allow, peer) {
            decision @ Decision::Allowed(_) => {
                may.push(export);
                yes.get_or_insert(decision);
            }
            // "Not listed" tells the operator more than "empty".
            decision if no == Decision::NobodyAllowed => no = decision,
            _ => {}
        }
    }
    match yes {
        Some(decision) => Ok((may, decision)),
        None => Err(no),
    }
}

/// A peer's text in an error: enough to recognise it, not enough to fill a log.
fn shorten(text: &str) -> String {
    const MAX: usize = 80;
    if text.chars().count() <= MAX {
        text.to_owned()
    } else {
        text.chars().take(MAX).chain(['…']).collect()
    }
}

#[cfg(test)]
mod tests;
