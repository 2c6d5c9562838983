//! The catalogue against a model that is a map and a filter.
//!
//! Random registrations, leases, audiences and watches; after each step `find` has to equal a scan of the map, and what
//! a drained watcher was told has to add up to what a scan with its filter finds.

#![allow(clippy::unwrap_used, reason = "a test may")]

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant},
};

use carrick_model::SpiffeId;
use carrick_proto::registry::{NetworkServiceEndpoint as Endpoint, NetworkServiceLabels};
use carrick_registry_core::{
    Audience, Catalogue, ClaimError, Claimant, Event, Filter, Holder, Owner, Registration, Resumed, Revision,
    Step, Update, Viewer, WatchId,
};
use proptest::{collection::vec, prelude::*, sample::Index};

#[derive(Debug, Clone)]
enum Op {
    Register {
        endpoint: Endpoint,
        audience: u8,
        lease: Option<u64>,
        holder: u8,
    },
    Unregister(u8),
    SetAudience(u8, u8),
    Pass(u64),
    Subscribe(Endpoint, u8),
    Unsubscribe(Index),
    /// Leave, and come back with the revision of the last time when there was nothing more.
    Return(Index),
    /// Ask for a name: which, the caller, for whom, as administrator or not.
    Claim(u8, u8, u8, bool),
    /// Take at most so many updates.
    Drain(Index, usize),
    Find(Endpoint, u8),
}

fn name(n: u8) -> String {
    format!("e{n}")
}

/// Few distinct values, so that queries and objects meet. Empty fields are frequent: in a query they mean any.
fn endpoint(names: impl Strategy<Value = String>) -> impl Strategy<Value = Endpoint> {
    let services = vec(0..3u8, 0..3).prop_map(|s| s.into_iter().map(|n| format!("s{n}")).collect::<Vec<_>>());
    let labels = vec((0..3u8, 0..2u8, 0..2u8), 0..3);
    let url = prop_oneof![
        3 => Just(""),
        6 => prop::sample::select(vec!["tcp://a", "tcp://ab", "tcp://b", "tcp", "tcp://", "unix:///a"]),
        2 => prop::sample::select(vec!["a", "/", "b/tcp://a", "tcp://b/tcp://a", "://a"]),
    ];
    let expires = proptest::option::weighted(0.1, 0..2i64);
    (names, services, labels, url, expires).prop_map(|(name, services, labels, url, expires)| {
        let mut by_service: BTreeMap<String, NetworkServiceLabels> = BTreeMap::new();
        for (s, k, v) in labels {
            by_service.entry(format!("s{s}")).or_default().labels.insert(format!("k{k}"), format!("v{v}"));
        }
        Endpoint {
            name,
            network_service_names: services,
            network_service_labels: by_service,
            url: url.into(),
            expiration_time: expires.map(|seconds| prost_types::Timestamp { seconds, nanos: 0 }),
            ..Default::default()
        }
    })
}

fn query() -> impl Strategy<Value = Endpoint> {
    endpoint(prop_oneof![3 => Just(String::new()), 1 => (0..8u8).prop_map(name)])
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        6 => (endpoint((0..8u8).prop_map(name)), 0..4u8, proptest::option::of(0..20u64), 0..7u8)
            .prop_map(|(endpoint, audience, lease, holder)| Op::Register { endpoint, audience, lease, holder }),
        3 => (0..8u8).prop_map(Op::Unregister),
        2 => (0..8u8, 0..4u8).prop_map(|(n, a)| Op::SetAudience(n, a)),
        2 => (0..15u64).prop_map(Op::Pass),
        2 => (query(), 0..3u8).prop_map(|(q, v)| Op::Subscribe(q, v)),
        1 => any::<Index>().prop_map(Op::Unsubscribe),
        2 => any::<Index>().prop_map(Op::Return),
        2 => (0..8u8, 0..4u8, 0..4u8, proptest::bool::weighted(0.1))
            .prop_map(|(n, caller, origin, admin)| Op::Claim(n, caller, origin, admin)),
        6 => (any::<Index>(), prop_oneof![0..4usize, Just(usize::MAX)]).prop_map(|(w, n)| Op::Drain(w, n)),
        2 => (query(), 0..3u8).prop_map(|(q, v)| Op::Find(q, v)),
    ]
}

fn audience(n: u8) -> Audience {
    let all = ["spiffe://b.test/**", "spiffe://c.test/gw"];
    let chosen = (0..2).filter(|bit| n & (1 << bit) != 0);
    chosen.map(|bit| all[bit].parse().unwrap()).collect()
}

fn viewer(n: u8) -> Viewer {
    match n {
        0 => Viewer::Own,
        1 => Viewer::Peer(SpiffeId::new("spiffe://b.test/gw").unwrap()),
        _ => Viewer::Peer(SpiffeId::new("spiffe://c.test/gw").unwrap()),
    }
}

/// Two workloads and a manager of one trust domain, and a manager of another.
fn id(n: u8) -> SpiffeId {
    let all = ["own.test/a", "own.test/b", "own.test/nsmgr", "b.test/nsmgr"];
    SpiffeId::new(format!("spiffe://{}", all[usize::from(n)])).unwrap()
}

/// 0 is the domain; the others are who owns a registration and who brought it.
fn holder(n: u8, written: u64) -> Holder {
    let (owner, via) = match n {
        0 => return Holder::Domain,
        1 => (Some(0), None),
        2 => (Some(1), None),
        3 => (Some(0), Some(2)),
        4 => (Some(1), Some(2)),
        5 => (Some(3), None),
        _ => (None, None),
    };
    Holder::Owner(Owner { id: owner.map(id), via: via.map(id).map(Arc::new), written })
}

/// The rules of ownership once more, case by case.
fn naive_claim(held_by: Option<u8>, caller: u8, origin: u8, admin: bool) -> bool {
    let foreign = |n| n == 3;
    if foreign(caller) != foreign(origin) {
        return false;
    }
    match held_by {
        None => true,
        Some(0) => false,
        Some(_) if admin => true,
        Some(1) => caller == 0 && origin == 0,
        Some(2) => caller == 1 && origin == 1,
        Some(3) => origin == 0,
        Some(4) => origin == 1,
        Some(5) => caller == 3,
        Some(_) => false,
    }
}

/// The rules of matching once more, written down as they stand in NSM's description rather than as the catalogue has them.
fn naive_match(query: &Endpoint, stored: &Endpoint) -> bool {
    let asked: BTreeSet<_> = query.network_service_names.iter().collect();
    let offered: BTreeSet<_> = stored.network_service_names.iter().collect();
    let flat = |e: &Endpoint| -> BTreeSet<_> {
        let by_service = e.network_service_labels.clone().into_iter();
        by_service.flat_map(|(s, l)| l.labels.into_iter().map(move |(k, v)| (s.clone(), k, v))).collect()
    };
    let labelled = |e: &Endpoint| e.network_service_labels.keys().cloned().collect::<BTreeSet<_>>();
    (query.name.is_empty() || query.name == stored.name)
        && asked.is_subset(&offered)
        && labelled(query).is_subset(&labelled(stored))
        && flat(query).is_subset(&flat(stored))
        && (query.expiration_time.is_none()
            || query.expiration_time.map(|t| t.seconds) == stored.expiration_time.map(|t| t.seconds))
        && stored.url.contains(&query.url)
}

struct Stored {
    endpoint: Endpoint,
    audience: u8,
    expires: Option<Instant>,
    holder: u8,
    written: u64,
}

#[derive(Clone)]
struct Watcher {
    id: WatchId,
    filter: Filter<Endpoint>,
    /// What it was told, put together.
    view: BTreeMap<String, Endpoint>,
    /// Whether it was told that there is nothing more, and not woken since.
    asleep: bool,
    /// The revision of the last time when it was told so, and its view then.
    rested: Option<(Revision, BTreeMap<String, Endpoint>)>,
}

struct Bench {
    catalogue: Catalogue,
    model: BTreeMap<String, Stored>,
    watchers: Vec<Watcher>,
    now: Instant,
    revision: u64,
    /// Names whose leases ended and that no event told of yet, with their holders.
    lapsed: Vec<(String, Holder)>,
}

impl Bench {
    fn new() -> Self {
        let catalogue = Catalogue::new();
        let (model, watchers, lapsed) = (BTreeMap::new(), Vec::new(), Vec::new());
        Self { catalogue, model, watchers, now: Instant::now(), revision: 0, lapsed }
    }

    fn scan(&self, filter: &Filter<Endpoint>) -> BTreeMap<String, Endpoint> {
        let visible = |s: &&Stored| audience(s.audience).admits(&filter.viewer);
        let found = self.model.values().filter(visible).filter(|s| naive_match(&filter.query, &s.endpoint));
        found.map(|s| (s.endpoint.name.clone(), s.endpoint.clone())).collect()
    }

    fn apply(&mut self, op: Op) {
        match op {
            Op::Register { endpoint, audience: who, lease, holder: by } => {
                let expires = lease.map(|seconds| self.now + Duration::from_secs(seconds));
                let written = self.revision;
                let (audience, holder) = (audience(who), holder(by, written));
                let registration = Registration { object: endpoint.clone(), audience, expires, holder };
                let revision = self.catalogue.register(registration).unwrap();
                assert!(revision.get() > self.revision, "revisions go up");
                let stored = Stored { endpoint, audience: who, expires, holder: by, written };
                self.model.insert(stored.endpoint.name.clone(), stored);
            }
            Op::Claim(n, caller, origin, admin) => {
                let held_by = self.model.get(&name(n)).map(|stored| stored.holder);
                let claimant = Claimant { caller: id(caller), origin: id(origin), admin };
                let verdict = self.catalogue.claim::<Endpoint>(&name(n), &claimant);
                assert_eq!(verdict.is_ok(), naive_claim(held_by, caller, origin, admin), "{verdict:?}");
                assert_eq!(
                    matches!(verdict, Err(ClaimError::Exported)),
                    held_by == Some(0) && claimant.caller.trust_domain() == claimant.origin.trust_domain()
                );
            }
            Op::Unregister(n) => {
                let removed = self.catalogue.unregister::<Endpoint>(&name(n)).map(|r| r.object());
                assert_eq!(removed, self.model.remove(&name(n)).map(|s| s.endpoint));
            }
            Op::SetAudience(n, who) => {
                let there = self.catalogue.set_audience::<Endpoint>(&name(n), audience(who));
                let stored = self.model.get_mut(&name(n));
                assert_eq!(there, stored.is_some());
                if let Some(stored) = stored {
                    stored.audience = who;
                }
            }
            Op::Pass(seconds) => {
                self.now += Duration::from_secs(seconds);
                let now = self.now;
                self.catalogue.handle_timeout(now);
                let ended = self.model.extract_if(.., |_, s| s.expires.is_some_and(|at| at <= now));
                self.lapsed.extend(ended.map(|(name, s)| (name, holder(s.holder, s.written))));
            }
            Op::Subscribe(query, who) => {
                let filter = Filter { query, viewer: viewer(who) };
                let id = self.catalogue.subscribe(filter.clone());
                self.watchers.push(Watcher {
                    id,
                    filter,
                    view: BTreeMap::new(),
                    asleep: false,
                    rested: None,
                });
            }
            Op::Return(which) if !self.watchers.is_empty() => {
                let which = which.index(self.watchers.len());
                let watcher = &mut self.watchers[which];
                let Some((revision, view)) = watcher.rested.clone() else { return };
                assert!(self.catalogue.unsubscribe::<Endpoint>(watcher.id));
                let Resumed::Changes(id) = self.catalogue.resume(watcher.filter.clone(), revision) else {
                    panic!("so few changes are remembered")
                };
                *watcher = Watcher { id, view, asleep: false, ..watcher.clone() };
            }
            Op::Unsubscribe(which) if !self.watchers.is_empty() => {
                let watcher = self.watchers.swap_remove(which.index(self.watchers.len()));
                assert!(self.catalogue.unsubscribe::<Endpoint>(watcher.id));
            }
            Op::Drain(which, most) if !self.watchers.is_empty() => {
                self.drain(which.index(self.watchers.len()), most);
            }
            Op::Unsubscribe(_) | Op::Drain(..) | Op::Return(_) => {}
            Op::Find(query, who) => {
                let filter = Filter { query, viewer: viewer(who) };
                let found = self.catalogue.find(&filter);
                let sorted = found.windows(2).all(|pair| pair[0].name() < pair[1].name());
                assert!(sorted, "each object once, in name order");
                let found: BTreeMap<_, _> =
                    found.iter().map(|r| (r.name().to_string(), r.object())).collect();
                assert_eq!(found, self.scan(&filter));
            }
        }
    }

    fn drain(&mut self, which: usize, most: usize) {
        let watcher = &mut self.watchers[which];
        for _ in 0..most {
            let step = self.catalogue.poll_update::<Endpoint>(watcher.id);
            assert!(!watcher.asleep || step == Step::Idle, "news without a word: {step:?}");
            match step {
                Step::Item(Update::Present(record)) => {
                    assert!(naive_match(&watcher.filter.query, &record.object()));
                    watcher.view.insert(record.name().to_string(), record.object());
                }
                Step::Item(Update::Gone { last, revision }) => {
                    assert!(revision > last.revision);
                    assert!(
                        naive_match(&watcher.filter.query, &last.object()),
                        "told of something out of its view"
                    );
                    let known = watcher.view.remove(&**last.name());
                    assert!(known.is_some(), "told of the end of something it never heard of");
                }
                Step::Busy => {}
                Step::Idle => {
                    watcher.asleep = true;
                    let view = watcher.view.clone();
                    watcher.rested = Some((self.catalogue.revision(), view.clone()));
                    let filter = watcher.filter.clone();
                    assert_eq!(view, self.scan(&filter), "drained, and the view differs");
                    return;
                }
            }
        }
    }

    fn check(&mut self) {
        self.revision = self.catalogue.revision().get();
        let mut lapsed = Vec::new();
        while let Some(event) = self.catalogue.poll_event() {
            match event {
                Event::News(id) => {
                    let woken = self.watchers.iter_mut().find(|w| w.id == id).unwrap();
                    assert!(woken.asleep, "woken twice");
                    woken.asleep = false;
                }
                Event::Lapsed(lapse) => lapsed.push((lapse.name.to_string(), lapse.holder)),
            }
        }
        lapsed.sort_by(|a, b| a.0.cmp(&b.0));
        assert_eq!(lapsed, std::mem::take(&mut self.lapsed), "each lease that ended is told once");
        for n in 0..4 {
            let brought = self.model.values().filter(|s| match holder(s.holder, 0) {
                Holder::Domain => false,
                Holder::Owner(owner) => owner.via.as_deref().or(owner.id.as_ref()) == Some(&id(n)),
            });
            assert_eq!(self.catalogue.brought_by::<Endpoint>(&id(n)), brought.count());
        }
        for watcher in &self.watchers {
            let mut bound: BTreeSet<_> = self.scan(&watcher.filter).into_keys().collect();
            bound.extend(watcher.view.keys().cloned());
            let pending = self.catalogue.pending_count::<Endpoint>(watcher.id);
            assert!(pending <= bound.len(), "{pending} pending for a view of {}", bound.len());
        }
        let next = self.model.values().filter_map(|s| s.expires).min();
        assert_eq!(self.catalogue.poll_timeout().map(|(at, _)| at), next);
        assert_eq!(self.catalogue.count::<Endpoint>(), self.model.len());
        assert_eq!(self.catalogue.watch_count(), self.watchers.len());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]
    #[test]
    fn the_catalogue_equals_the_model(ops in vec(op(), 1..80)) {
        let mut bench = Bench::new();
        for op in ops {
            bench.apply(op);
            bench.check();
        }
        for which in 0..bench.watchers.len() {
            bench.drain(which, usize::MAX);
        }
    }
}
