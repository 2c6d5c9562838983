//! All objects of one kind, what they are found by, and who watches them.

use std::{
    collections::{BTreeMap, BTreeSet, btree_map::Entry},
    ops::Bound,
    sync::Arc,
    time::Instant,
};

use carrick_model::SpiffeId;

use crate::{
    filter::{Audience, Filter, Object, kind::Kind},
    history::{Change, History},
    names::Names,
    ownership::{Holder, Owner},
    pending::Pending,
    record::{Record, Revision},
    term::{Term, Terms},
    url,
    walk::{Along, Step, Update, Walk},
};

/// A watch of one catalogue, never used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WatchId(pub(crate) u64);

/// The objects of one kind. Trees rather than hash maps: the order is the same in every run, and walks need it.
#[derive(Debug)]
pub struct Shelf<T> {
    records: BTreeMap<Arc<str>, Arc<Record<T>>>,
    /// Names by term, except for `Name` and `Any`, which `records` answers.
    postings: BTreeMap<Term, Names>,
    leases: BTreeSet<(Instant, Arc<str>)>,
    /// URLs, among those of the postings, that have to be looked at for every part asked for.
    odd_urls: BTreeSet<Box<str>>,
    /// How many registrations each caller brought.
    brought: BTreeMap<Arc<SpiffeId>, usize>,
    history: History<T>,
    watches: BTreeMap<WatchId, Watch<T>>,
    /// Watches by the one term that each follows.
    watching: BTreeMap<Term, BTreeSet<WatchId>>,
}

#[derive(Debug)]
struct Watch<T> {
    walk: Walk<T>,
    /// Whether the walk has more to find; what it has yet to reach is not pending.
    walking: bool,
    pending: Pending<T>,
    /// Whether the watcher was told that there is nothing, and so waits to be woken.
    idle: bool,
}

impl<T> Default for Shelf<T> {
    fn default() -> Self {
        Self {
            records: BTreeMap::new(),
            postings: BTreeMap::new(),
            leases: BTreeSet::new(),
            odd_urls: BTreeSet::new(),
            brought: BTreeMap::new(),
            history: History::default(),
            watches: BTreeMap::new(),
            watching: BTreeMap::new(),
        }
    }
}

impl<T: Object> Shelf<T> {
    pub(crate) fn get(&self, name: &str) -> Option<&Arc<Record<T>>> {
        self.records.get(name)
    }

    pub(crate) fn len(&self) -> usize {
        self.records.len()
    }

    pub(crate) fn next_lease(&self) -> Option<Instant> {
        self.leases.first().map(|(at, _)| *at)
    }

    /// The first name whose lease has ended at `now`.
    pub(crate) fn lapsed(&self, now: Instant) -> Option<Arc<str>> {
        self.leases.first().filter(|(at, _)| *at <= now).map(|(_, name)| Arc::clone(name))
    }

    /// Adds or replaces a record, whose object is given, and tells the watches; those that were idle go to `woken`.
    pub(crate) fn put(&mut self, mut record: Record<T>, object: &T, woken: &mut BTreeSet<WatchId>) {
        // A manager brings thousands: they share its name.
        if let Holder::Owner(Owner { via: Some(via), .. }) = &mut record.holder
            && let Some((known, _)) = self.brought.get_key_value(via)
        {
            *via = Arc::clone(known);
        }
        let record = Arc::new(record);
        // The key stays the same: what hangs on it shares it.
        let known = self.records.get_key_value(&**record.name()).map(|(name, _)| Arc::clone(name));
        let name = known.unwrap_or_else(|| Arc::clone(record.name()));
        let old = self.records.insert(Arc::clone(&name), Arc::clone(&record));
        let before = old.as_deref().map(Record::object);
        if let (Some(old), Some(before)) = (&old, &before) {
            self.unindex(&name, old, before);
        }
        self.index(&name, &record, object);
        let revision = record.revision;
        let change = Change { name, old, new: Some(record), revision, tell_all: true };
        self.notify(change, before.as_ref(), Some(object), woken);
    }

    /// Replaces the audience only: whoever saw the object before and after is not told.
    pub(crate) fn set_audience(
        &mut self,
        name: &str,
        audience: Audience,
        revision: Revision,
        woken: &mut BTreeSet<WatchId>,
    ) -> bool {
        let Some((name, old)) = self.records.get_key_value(name).map(|(n, r)| (Arc::clone(n), Arc::clone(r)))
        else {
            return false;
        };
        let record = Arc::new(old.with_audience(audience, revision));
        self.records.insert(Arc::clone(&name), Arc::clone(&record));
        let object = old.object();
        let (old, new) = (Some(old), Some(record));
        let change = Change { name, old, new, revision, tell_all: false };
        self.notify(change, Some(&object), Some(&object), woken);
        true
    }

    /// Removes a record and tells the watches.
    pub(crate) fn remove(
        &mut self,
        name: &str,
        revision: Revision,
        woken: &mut BTreeSet<WatchId>,
    ) -> Option<Arc<Record<T>>> {
        let (name, old) = self.records.remove_entry(name)?;
        let object = old.object();
        self.unindex(&name, &old, &object);
        let was = Some(Arc::clone(&old));
        let change = Change { name, old: was, new: None, revision, tell_all: true };
        self.notify(change, Some(&object), None, woken);
        Some(old)
    }

    fn index(&mut self, name: &Arc<str>, record: &Record<T>, object: &T) {
        for term in facts(object) {
            if !matches!(term, Term::Name(_) | Term::Any) {
                if let Term::Url(url) = &term
                    && !url::is_plain(url)
                    && !self.odd_urls.contains(url)
                {
                    self.odd_urls.insert(url.clone());
                }
                match self.postings.entry(term) {
                    Entry::Occupied(mut names) => names.get_mut().insert(name),
                    Entry::Vacant(none) => {
                        none.insert(Names::One(Arc::clone(name)));
                    }
                }
            }
        }
        if let Some(at) = record.expires {
            self.leases.insert((at, Arc::clone(name)));
        }
        if let Some(count) = bringer(record).and_then(|bringer| self.brought.get_mut(bringer)) {
            *count += 1;
        } else if let Holder::Owner(owner) = &record.holder {
            let bringer = owner.via.clone().or_else(|| owner.id.clone().map(Arc::new));
            self.brought.extend(bringer.map(|bringer| (bringer, 1)));
        }
    }

    fn unindex(&mut self, name: &Arc<str>, record: &Record<T>, object: &T) {
        for term in facts(object) {
            let last = self.postings.get_mut(&term).is_some_and(|names| names.remove(name));
            if last {
                self.postings.remove(&term);
                if let Term::Url(url) = &term {
                    self.odd_urls.remove(url);
                }
            }
        }
        if let Some(at) = record.expires {
            self.leases.remove(&(at, Arc::clone(name)));
        }
        if let Some(bringer) = bringer(record)
            && let Some(count) = self.brought.get_mut(bringer)
        {
            *count -= 1;
            if *count == 0 {
                self.brought.remove(bringer);
            }
        }
    }

    /// How many registrations `bringer` brought and still has.
    pub(crate) fn brought_by(&self, bringer: &SpiffeId) -> usize {
        self.brought.get(bringer).copied().unwrap_or_default()
    }

    /// What a find has to look at.
    pub(crate) fn along(&self, query: &T) -> Along {
        let rarest = self.rarest(query);
        let part = query.url();
        if part.is_empty() {
            return Along::Term(rarest);
        }
        let most = self.candidates(&rarest);
        match self.urls_with(part) {
            Some(urls) if urls.iter().map(|url| self.candidates(url)).sum::<usize>() < most => {
                Along::Urls(urls)
            }
            _ => Along::Term(rarest),
        }
    }

    /// The URLs that contain `part`; `None` when finding them would take too long, or there are too many.
    fn urls_with(&self, part: &str) -> Option<Box<[Term]>> {
        let first = Term::Url(if url::is_plain(part) { part.into() } else { "".into() });
        let all = self.postings.range(&first..).map(|(term, _)| term);
        let begin = all.map_while(|term| match term {
            Term::Url(url) if !url::is_plain(part) || url.starts_with(part) => Some(url),
            _ => None,
        });
        let odd = self.odd_urls.iter().filter(|odd| url::is_plain(part) && !odd.starts_with(part));
        let mut found = Vec::new();
        for (looked_at, url) in begin.chain(odd).enumerate() {
            if looked_at == url::MOST_LOOKED_AT {
                return None;
            }
            if url.contains(part) {
                if found.len() == url::MOST_FOLLOWED {
                    return None;
                }
                found.push(Term::Url(url.clone()));
            }
        }
        Some(found.into())
    }

    /// The term of `query` that the fewest objects have; among equals the one that narrows most by its kind.
    pub(crate) fn rarest(&self, query: &T) -> Term {
        query.terms().into_iter().min_by_key(|term| self.candidates(term)).unwrap_or(Term::Any)
    }

    /// How many objects have `term`.
    pub(crate) fn candidates(&self, term: &Term) -> usize {
        match term {
            Term::Any => self.records.len(),
            Term::Name(name) => usize::from(self.records.contains_key(&**name)),
            indexed => self.postings.get(indexed).map_or(0, Names::len),
        }
    }

    /// The first object in name order that lies along `along` and comes after `after`.
    pub(crate) fn next_along(
        &self,
        along: &Along,
        after: Option<&str>,
    ) -> Option<(&Arc<str>, &Arc<Record<T>>)> {
        match along {
            Along::Term(term) => self.next_with(term, after),
            Along::Urls(urls) => {
                urls.iter().filter_map(|url| self.next_with(url, after)).min_by_key(|(name, _)| *name)
            }
        }
    }

    fn next_with(&self, term: &Term, after: Option<&str>) -> Option<(&Arc<str>, &Arc<Record<T>>)> {
        let rest = (after.map_or(Bound::Unbounded, Bound::Excluded), Bound::Unbounded);
        match term {
            Term::Any => self.records.range::<str, _>(rest).next(),
            Term::Name(name) => {
                self.records.get_key_value(&**name).filter(|_| after.is_none_or(|after| after < &**name))
            }
            indexed => {
                let name = self.postings.get(indexed)?.next(after)?;
                self.records.get_key_value(name)
            }
        }
    }

    pub(crate) fn subscribe(&mut self, id: WatchId, filter: Filter<T>) {
        let term = self.rarest(&filter.query);
        let walk = Walk::new(filter, Along::Term(term.clone()));
        self.add_watch(id, term, Watch { walk, walking: true, pending: Pending::default(), idle: false });
    }

    /// A watch that begins with what changed after `revision`; false, and none, when that is no longer known.
    pub(crate) fn resume(&mut self, id: WatchId, filter: Filter<T>, revision: Revision) -> bool {
        let term = self.rarest(&filter.query);
        let walk = Walk::new(filter, Along::Term(term.clone()));
        let mut watch = Watch { walk, walking: false, pending: Pending::default(), idle: false };
        let Some(changes) = self.history.since(revision) else {
            return false;
        };
        for change in changes {
            let [before, after] =
                [&change.old, &change.new].map(|record| record.as_deref().map(Record::object));
            watch.note(change, before.as_ref(), after.as_ref());
        }
        self.add_watch(id, term, watch);
        true
    }

    fn add_watch(&mut self, id: WatchId, term: Term, watch: Watch<T>) {
        self.watching.entry(term).or_default().insert(id);
        self.watches.insert(id, watch);
    }

    pub(crate) fn unsubscribe(&mut self, id: WatchId) -> bool {
        let Some(watch) = self.watches.remove(&id) else {
            return false;
        };
        if let Along::Term(term) = watch.walk.along() {
            remove_from(&mut self.watching, term, &id);
        }
        true
    }

    pub(crate) fn watch_count(&self) -> usize {
        self.watches.len()
    }

    pub(crate) fn pending_len(&self, id: WatchId) -> usize {
        self.watches.get(&id).map_or(0, |watch| watch.pending.len())
    }

    /// The next update of a watch: the walk first, then what changed behind it.
    pub(crate) fn poll_update(&mut self, id: WatchId) -> Step<Update<T>> {
        // Taken out so that the walk can read the shelf.
        let Some(mut watch) = self.watches.remove(&id) else {
            return Step::Idle;
        };
        let step = watch.poll(self);
        self.watches.insert(id, watch);
        step
    }

    /// Tells the watches of a change, whose objects before and after are given.
    fn notify(
        &mut self,
        change: Change<T>,
        before: Option<&T>,
        after: Option<&T>,
        woken: &mut BTreeSet<WatchId>,
    ) {
        if !self.watches.is_empty() {
            // Each watch follows one term, so none is met twice.
            let terms: Terms = before.into_iter().chain(after).flat_map(Kind::terms).collect();
            for id in terms.iter().filter_map(|term| self.watching.get(term)).flatten() {
                if self.watches.get_mut(id).is_some_and(|watch| watch.note(&change, before, after)) {
                    woken.insert(*id);
                }
            }
        }
        self.history.note(change);
    }
}

/// What an object is indexed by.
fn facts<T: Object>(object: &T) -> Terms {
    let mut facts = object.terms();
    if !object.url().is_empty() {
        facts.insert(Term::Url(object.url().into()));
    }
    facts
}

/// Whose certificate a registration came with.
fn bringer<T>(record: &Record<T>) -> Option<&SpiffeId> {
    match &record.holder {
        Holder::Domain => None,
        Holder::Owner(owner) => owner.via.as_deref().or(owner.id.as_ref()),
    }
}

fn remove_from<K: Ord, V: Ord>(sets: &mut BTreeMap<K, BTreeSet<V>>, key: &K, value: &V) {
    if let Some(set) = sets.get_mut(key) {
        set.remove(value);
        if set.is_empty() {
            sets.remove(key);
        }
    }
}

impl<T: Object> Watch<T> {
    fn poll(&mut self, shelf: &Shelf<T>) -> Step<Update<T>> {
        if self.walking {
            match self.walk.step(shelf) {
                Step::Item(record) => return Step::Item(Update::Present(record)),
                Step::Busy => return Step::Busy,
                Step::Idle => self.walking = false,
            }
        }
        let update = self.pending.pop();
        self.idle = update.is_none();
        update.map_or(Step::Idle, Step::Item)
    }

    /// Takes a change in, whose objects before and after are given; true when the watcher has to be woken for it.
    fn note(&mut self, change: &Change<T>, before: Option<&T>, after: Option<&T>) -> bool {
        if self.walking && !self.walk.is_past(&change.name) {
            return false;
        }
        let filter = self.walk.filter();
        let in_view = |record: &'_ Option<Arc<Record<T>>>, object: Option<&T>| {
            let seen = record
                .as_ref()
                .zip(object)
                .filter(|(record, object)| filter.admits(object, &record.audience));
            seen.map(|(record, _)| Arc::clone(record))
        };
        let was = in_view(&change.old, before);
        let known = was.is_some();
        let update = match (was, in_view(&change.new, after)) {
            (None, None) => return false,
            (Some(_), Some(_)) if !change.tell_all => return false,
            (_, Some(is)) => Update::Present(is),
            (Some(last), None) => Update::Gone { last, revision: change.revision },
        };
        self.pending.note(&change.name, known, update);
        std::mem::take(&mut self.idle)
    }
}
