//! Who watches which connections, and what each has not heard yet.
//!
//! A watch hears first all connections that it may see and asked for, also when there are none, and then every change. What it has
//! not taken yet is kept as one change for each connection, the last one: a watcher that stops reading costs an entry for
//! each connection it watches, holds up nobody, and hears the truth when it reads again.
//!
//! Call order: any command, then [`Monitors::poll_woken`] until it is empty. [`Monitors::poll_event`] belongs to the watcher, at its own
//! pace: until it is empty, and again when it was woken.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    sync::Arc,
};

use carrick_model::TrustDomain;
use carrick_proto::connection::{
    Connection, ConnectionEvent, ConnectionEventType, MonitorScopeSelector, PathSegment,
};

/// Watches that are open at one time: each NSM client has one.
pub const MAX_WATCHES: usize = 10_000;
/// Segments of one selector: NSM's own selectors have one.
pub const MAX_SELECTOR: usize = 16;
/// Connections of one event: at some 4 KiB each it stays under gRPC's 4 MiB.
const MAX_PER_EVENT: usize = 256;

/// One watch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WatchId(u64);

/// Who watches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Viewer {
    /// The own domain: it sees everything.
    Own,
    /// Another trust domain: it sees the connections that it holds.
    Peer(TrustDomain),
}

/// Why a watch is not begun.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum WatchError {
    /// There are too many.
    #[error("{0} watches are open, which is the limit")]
    Total(usize),
    /// Nobody's selector is so long.
    #[error("the selector has {0} path segments, at most {MAX_SELECTOR} are looked at")]
    Selector(usize),
}

/// The connections there are, and who watches them.
#[derive(Debug, Default)]
pub struct Monitors {
    shown: BTreeMap<String, Shown>,
    /// Connections by the ids of their path segments: what a selector with an id has to look at.
    by_segment: HashMap<String, BTreeSet<String>>,
    watches: HashMap<WatchId, Watch>,
    /// Watches whose selector names an id, by that id; the others are looked at for every change.
    narrow: HashMap<String, BTreeSet<WatchId>>,
    wide: BTreeSet<WatchId>,
    woken: BTreeSet<WatchId>,
    last: u64,
}

#[derive(Debug, Clone)]
struct Shown {
    owner: TrustDomain,
    connection: Arc<Connection>,
}

#[derive(Debug)]
struct Watch {
    selector: MonitorScopeSelector,
    viewer: Viewer,
    /// What the first event holds is still to be told, in parts.
    initial: Option<BTreeSet<String>>,
    /// Whether the first event has been taken: it comes even when it is empty.
    begun: bool,
    changes: BTreeMap<String, Change>,
}

#[derive(Debug)]
enum Change {
    Update,
    Delete(Arc<Connection>),
}

impl Monitors {
    /// Nobody watches nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// A connection is like this now: its id and its path's index are ours.
    pub fn publish(&mut self, owner: &TrustDomain, connection: Connection) {
        let id = connection.id.clone();
        let shown = Shown { owner: owner.clone(), connection: Arc::new(connection) };
        if let Some(old) = self.shown.insert(id.clone(), shown.clone()) {
            self.unindex(&id, &old.connection);
        }
        for segment in segments(&shown.connection) {
            self.by_segment.entry(segment.id.clone()).or_default().insert(id.clone());
        }
        for watch in self.watchers(&shown) {
            if let Some(w) = self.watches.get_mut(&watch) {
                w.changes.insert(id.clone(), Change::Update);
                self.woken.insert(watch);
            }
        }
    }

    /// A connection is gone.
    pub fn remove(&mut self, id: &str) {
        let Some(shown) = self.shown.remove(id) else { return };
        self.unindex(id, &shown.connection);
        for watch in self.watchers(&shown) {
            if let Some(w) = self.watches.get_mut(&watch) {
                let untold = w.initial.as_mut().is_some_and(|initial| initial.remove(id));
                if untold {
                    w.changes.remove(id);
                    continue;
                }
                w.changes.insert(id.to_owned(), Change::Delete(Arc::clone(&shown.connection)));
                self.woken.insert(watch);
            }
        }
    }

    /// Begins a watch.
    pub fn watch(&mut self, selector: MonitorScopeSelector, viewer: Viewer) -> Result<WatchId, WatchError> {
        if self.watches.len() >= MAX_WATCHES {
            return Err(WatchError::Total(self.watches.len()));
        }
        if selector.path_segments.len() > MAX_SELECTOR {
            return Err(WatchError::Selector(selector.path_segments.len()));
        }
        self.last += 1;
        let id = WatchId(self.last);
        let wanted = |s: &&Shown| sees(&viewer, &s.owner) && selects(&selector, &s.connection);
        let initial: BTreeSet<String> = match key(&selector) {
            Some(segment) => {
                let candidates = self.by_segment.get(segment).into_iter().flatten();
                let found = candidates.filter(|id| self.shown.get(*id).as_ref().is_some_and(wanted));
                found.cloned().collect()
            }
            None => self.shown.iter().filter(|(_, s)| wanted(s)).map(|(id, _)| id.clone()).collect(),
        };
        match key(&selector) {
            Some(segment) => self.narrow.entry(segment.to_owned()).or_default().insert(id),
            None => self.wide.insert(id),
        };
        let watch =
            Watch { selector, viewer, initial: Some(initial), begun: false, changes: BTreeMap::new() };
        self.watches.insert(id, watch);
        self.woken.insert(id);
        Ok(id)
    }

    /// Ends a watch.
    pub fn unwatch(&mut self, id: WatchId) {
        self.woken.remove(&id);
        let Some(watch) = self.watches.remove(&id) else { return };
        self.wide.remove(&id);
        if let Some(segment) = key(&watch.selector)
            && let Some(all) = self.narrow.get_mut(segment)
        {
            all.remove(&id);
            if all.is_empty() {
                self.narrow.remove(segment);
            }
        }
    }

    /// The next watch that has something to hear.
    pub fn poll_woken(&mut self) -> Option<WatchId> {
        self.woken.pop_first()
    }

    /// The next event of a watch.
    pub fn poll_event(&mut self, id: WatchId) -> Option<ConnectionEvent> {
        let watch = self.watches.get_mut(&id)?;
        if let Some(initial) = &mut watch.initial {
            let mut connections = BTreeMap::new();
            while connections.len() < MAX_PER_EVENT
                && let Some(id) = initial.pop_first()
            {
                if let Some(shown) = self.shown.get(&id) {
                    // What has changed since is in here already.
                    watch.changes.remove(&id);
                    connections.insert(id, Connection::clone(&shown.connection));
                }
            }
            if initial.is_empty() {
                watch.initial = None;
            }
            if !watch.begun || !connections.is_empty() {
                watch.begun = true;
                return Some(event(ConnectionEventType::InitialStateTransfer, connections));
            }
        }
        let mut connections = BTreeMap::new();
        let mut kind = ConnectionEventType::Update;
        while connections.len() < MAX_PER_EVENT
            && let Some(first) = watch.changes.first_entry()
        {
            let of = match first.get() {
                Change::Update => ConnectionEventType::Update,
                Change::Delete(_) => ConnectionEventType::Delete,
            };
            if connections.is_empty() {
                kind = of;
            } else if kind != of {
                break;
            }
            let (id, change) = first.remove_entry();
            let connection = match change {
                Change::Delete(last) => Some(last),
                Change::Update => self.shown.get(&id).map(|s| Arc::clone(&s.connection)),
            };
            connections.extend(connection.map(|c| (id, Connection::clone(&c))));
        }
        (!connections.is_empty()).then(|| event(kind, connections))
    }

    /// How many watches are open.
    pub fn watch_count(&self) -> usize {
        self.watches.len()
    }

    /// The watches that a change of this connection is for.
    fn watchers(&self, shown: &Shown) -> Vec<WatchId> {
        let narrow = segments(&shown.connection).iter().filter_map(|s| self.narrow.get(&s.id)).flatten();
        let all: HashSet<WatchId> = narrow.chain(&self.wide).copied().collect();
        let wants = |id: &WatchId| {
            self.watches
                .get(id)
                .is_some_and(|w| sees(&w.viewer, &shown.owner) && selects(&w.selector, &shown.connection))
        };
        all.into_iter().filter(wants).collect()
    }

    fn unindex(&mut self, id: &str, connection: &Connection) {
        for segment in segments(connection) {
            if let Some(all) = self.by_segment.get_mut(&segment.id) {
                all.remove(id);
                if all.is_empty() {
                    self.by_segment.remove(&segment.id);
                }
            }
        }
    }
}

/// Whether `selector` picks `connection`: its services hold the connection's, and its segments match a contiguous run of the path.
/// An empty list picks all; of a segment only what is not empty is compared.
pub fn selects(selector: &MonitorScopeSelector, connection: &Connection) -> bool {
    let services = &selector.network_services;
    if !services.is_empty() && !services.contains(&connection.network_service) {
        return false;
    }
    let run = &selector.path_segments;
    let fits = |wanted: &str, is: &str| wanted.is_empty() || wanted == is;
    run.is_empty()
        || segments(connection).windows(run.len()).any(|window| {
            let pairs = run.iter().zip(window);
            pairs
                .into_iter()
                .all(|(w, s)| fits(&w.name, &s.name) && fits(&w.id, &s.id) && fits(&w.token, &s.token))
        })
}

fn sees(viewer: &Viewer, owner: &TrustDomain) -> bool {
    match viewer {
        Viewer::Own => true,
        Viewer::Peer(trust_domain) => trust_domain == owner,
    }
}

/// The id that whatever the selector picks has in its path.
fn key(selector: &MonitorScopeSelector) -> Option<&str> {
    selector.path_segments.iter().map(|s| s.id.as_str()).find(|id| !id.is_empty())
}

fn segments(connection: &Connection) -> &[PathSegment] {
    connection.path.as_ref().map_or(&[], |p| p.path_segments.as_slice())
}

fn event(kind: ConnectionEventType, connections: BTreeMap<String, Connection>) -> ConnectionEvent {
    let mut event = ConnectionEvent { connections, ..ConnectionEvent::default() };
    event.set_type(kind);
    event
}

#[cfg(test)]
mod tests {
    use carrick_proto::connection::{Path, State};
    use proptest::prelude::*;

    use super::*;

    fn td(name: &str) -> TrustDomain {
        TrustDomain::new(name).unwrap()
    }

    fn connection(id: &str, path: &[(&str, &str)]) -> Connection {
        let segment = |(name, id): &(&str, &str)| PathSegment {
            name: (*name).to_owned(),
            id: (*id).to_owned(),
            ..PathSegment::default()
        };
        Connection {
            id: id.to_owned(),
            network_service: "web".to_owned(),
            path: Some(Path {
                index: 1,
                path_segments: path.iter().map(segment).collect(),
                ..Path::default()
            }),
            ..Connection::default()
        }
    }

    fn selector(path: &[(&str, &str)]) -> MonitorScopeSelector {
        let path_segments = connection("", path).path.unwrap().path_segments;
        MonitorScopeSelector { path_segments, ..MonitorScopeSelector::default() }
    }

    fn told(monitors: &mut Monitors, watch: WatchId) -> Option<(ConnectionEventType, Vec<String>)> {
        let event = monitors.poll_event(watch)?;
        Some((event.r#type(), event.connections.keys().cloned().collect()))
    }

    use ConnectionEventType::{Delete, InitialStateTransfer as Initial, Update};

    #[test]
    fn the_first_event_comes_always_and_changes_follow() {
        let mut m = Monitors::new();
        let watch = m.watch(selector(&[("gw", "1")]), Viewer::Own).unwrap();
        assert_eq!(told(&mut m, watch), Some((Initial, vec![])));
        m.publish(&td("a.test"), connection("1", &[("nsc", "c"), ("gw", "1")]));
        m.publish(&td("a.test"), connection("2", &[("nsc", "d"), ("gw", "2")]));
        assert_eq!(told(&mut m, watch), Some((Update, vec!["1".into()])));
        m.remove("1");
        m.remove("2");
        assert_eq!(told(&mut m, watch), Some((Delete, vec!["1".into()])));
        assert_eq!(told(&mut m, watch), None);
        m.publish(&td("a.test"), connection("1", &[("nsc", "c"), ("gw", "1")]));
        let second = m.watch(selector(&[("", "1")]), Viewer::Own).unwrap();
        assert_eq!(told(&mut m, second), Some((Initial, vec!["1".into()])));
    }

    #[test]
    fn a_selector_matches_a_contiguous_run_and_only_what_it_says() {
        let c = connection("1", &[("nsc", "c"), ("gw", "1"), ("nse", "n")]);
        for run in [vec![], vec![("gw", "1")], vec![("", "c"), ("gw", "")], vec![("", "1"), ("nse", "")]] {
            assert!(selects(&selector(&run), &c), "{run:?}");
        }
        for run in [vec![("gw", "2")], vec![("nsc", ""), ("nse", "")], vec![("nse", ""), ("", "")]] {
            assert!(!selects(&selector(&run), &c), "{run:?}");
        }
        let of = |service: &str| MonitorScopeSelector {
            network_services: vec![service.to_owned()],
            ..MonitorScopeSelector::default()
        };
        assert!(selects(&of("web"), &c) && !selects(&of("db"), &c));
    }

    #[test]
    fn a_peer_sees_what_it_holds_and_the_own_domain_all() {
        let mut m = Monitors::new();
        let peer = m.watch(MonitorScopeSelector::default(), Viewer::Peer(td("a.test"))).unwrap();
        let own = m.watch(MonitorScopeSelector::default(), Viewer::Own).unwrap();
        m.publish(&td("a.test"), connection("1", &[("nsc", "c"), ("gw", "1")]));
        m.publish(&td("b.test"), connection("2", &[("nsc", "d"), ("gw", "2")]));
        assert_eq!(told(&mut m, peer), Some((Initial, vec![])));
        assert_eq!(told(&mut m, peer), Some((Update, vec!["1".into()])));
        assert_eq!(told(&mut m, peer), None);
        assert_eq!(told(&mut m, own), Some((Initial, vec![])));
        assert_eq!(told(&mut m, own), Some((Update, vec!["1".into(), "2".into()])));
    }

    #[test]
    fn a_slow_watcher_hears_the_last_change_of_each_connection() {
        let mut m = Monitors::new();
        let watch = m.watch(MonitorScopeSelector::default(), Viewer::Own).unwrap();
        told(&mut m, watch);
        for i in 0..1000 {
            let mut c = connection("1", &[("nsc", "c"), ("gw", "1")]);
            c.set_state(if i % 2 == 0 { State::Down } else { State::Up });
            m.publish(&td("a.test"), c);
        }
        let event = m.poll_event(watch).unwrap();
        assert_eq!(event.connections["1"].state(), State::Up);
        assert_eq!(told(&mut m, watch), None);
        for i in 0..1000 {
            m.publish(&td("a.test"), connection(&i.to_string(), &[("nsc", "c"), ("gw", "1")]));
        }
        let sizes: Vec<usize> =
            std::iter::from_fn(|| told(&mut m, watch)).map(|(_, ids)| ids.len()).collect();
        assert_eq!(sizes, [256, 256, 256, 232]);
    }

    #[test]
    fn watches_and_selectors_are_bounded() {
        let mut m = Monitors::new();
        let long = selector(&[("gw", "1"); MAX_SELECTOR + 1]);
        assert_eq!(m.watch(long, Viewer::Own), Err(WatchError::Selector(MAX_SELECTOR + 1)));
        let all: Vec<WatchId> = (0..MAX_WATCHES)
            .map(|_| m.watch(MonitorScopeSelector::default(), Viewer::Own).unwrap())
            .collect();
        assert_eq!(m.watch(selector(&[]), Viewer::Own), Err(WatchError::Total(MAX_WATCHES)));
        for id in all {
            m.unwatch(id);
        }
        assert_eq!((m.watch_count(), m.wide.len(), m.poll_woken()), (0, 0, None));
    }

    proptest! {
        /// Whoever reads, whenever, ends with what there is.
        #[test]
        fn a_watcher_that_follows_the_events_knows_the_truth(
            acts in prop::collection::vec((0u8..4, "[1-4]", any::<bool>()), 0..60),
        ) {
            let mut m = Monitors::new();
            let mut watch = None;
            let mut known: BTreeSet<String> = BTreeSet::new();
            let read = |m: &mut Monitors, watch: Option<WatchId>, known: &mut BTreeSet<String>| {
                while let Some((kind, ids)) = watch.and_then(|w| told(m, w)) {
                    for id in ids {
                        if kind == Delete { known.remove(&id); } else { known.insert(id); }
                    }
                }
            };
            for (act, id, reads) in acts {
                match act {
                    0 => m.remove(&id),
                    1 if watch.is_none() => watch = m.watch(MonitorScopeSelector::default(), Viewer::Own).ok(),
                    _ => m.publish(&td("a.test"), connection(&id, &[("nsc", "c"), ("gw", &id)])),
                }
                if reads {
                    read(&mut m, watch, &mut known);
                }
            }
            read(&mut m, watch, &mut known);
            if watch.is_some() {
                prop_assert_eq!(known, m.shown.keys().cloned().collect::<BTreeSet<_>>());
            }
        }
    }
}
