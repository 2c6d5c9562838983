//! What was found lately, for how long it holds, and what stands in for it while the DNS is down (RFC 8767).

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::{Duration, Instant},
};

use carrick_model::Domain;

use super::{Gateways, ResolveError};

/// RFC 8767 section 5: while a stale answer is served, the DNS is tried again after this time.
pub(super) const RECHECK: Duration = Duration::from_secs(30);
/// RFC 9520 section 3.2: a failure is kept for at least a second.
const FAILURE_HOLD: Duration = Duration::from_secs(1);
/// An answer younger than this is not asked for again, even if its addresses do not work.
const MIN_AGE: Duration = Duration::from_secs(1);

/// Answers by domain. Bounded: the domain used least lately makes room.
pub(super) struct Cache {
    entries: HashMap<Domain, Entry>,
    by_use: BTreeMap<u64, Domain>,
    clock: u64,
    capacity: usize,
    max_stale: Duration,
}

struct Entry {
    outcome: Result<Arc<Gateways>, ResolveError>,
    learned: Instant,
    until: Instant,
    /// The last answer with addresses; its own `expires` is when it went stale.
    last_good: Option<Arc<Gateways>>,
    used: u64,
}

/// What the cache knows of a domain.
#[derive(Debug, PartialEq)]
pub(super) enum View {
    /// It is to be used as it is.
    Fresh(Result<Arc<Gateways>, ResolveError>),
    /// It has to be asked for; this may stand in if that takes long.
    Expired(Arc<Gateways>),
    /// It has to be asked for.
    Unknown,
}

impl Cache {
    pub(super) fn new(capacity: usize, max_stale: Duration) -> Self {
        Self {
            entries: HashMap::new(),
            by_use: BTreeMap::new(),
            clock: 0,
            capacity: capacity.max(1),
            max_stale,
        }
    }

    pub(super) fn get(&mut self, domain: &Domain, now: Instant) -> View {
        let Some(entry) = self.entries.get_mut(domain) else { return View::Unknown };
        self.clock += 1;
        self.by_use.remove(&entry.used);
        entry.used = self.clock;
        self.by_use.insert(self.clock, domain.clone());
        if now < entry.until {
            return View::Fresh(entry.outcome.clone());
        }
        match &entry.last_good {
            Some(good) if now < good.expires + self.max_stale => View::Expired(stale(good, now, None)),
            _ => View::Unknown,
        }
    }

    /// Takes in the outcome of a search and gives what is to be answered: the outcome, or the last good answer when
    /// the search failed for reasons of the DNS.
    pub(super) fn put(
        &mut self,
        domain: &Domain,
        outcome: Result<Gateways, (ResolveError, Duration)>,
        now: Instant,
    ) -> Result<Arc<Gateways>, ResolveError> {
        let before = self.remove(domain).and_then(|e| e.last_good);
        let (outcome, until, last_good) = match outcome {
            Ok(gateways) => {
                let gateways = Arc::new(gateways);
                (Ok(Arc::clone(&gateways)), gateways.expires, Some(gateways))
            }
            Err((error, ttl)) if !error.is_failure() => (Err(error), now + ttl, None),
            Err((error, _)) => match before.filter(|good| now < good.expires + self.max_stale) {
                Some(good) => (Ok(stale(&good, now, Some(&error))), now + RECHECK, Some(good)),
                None => (Err(error), now + FAILURE_HOLD, None),
            },
        };
        if self.entries.len() >= self.capacity
            && let Some((_, oldest)) = self.by_use.pop_first()
        {
            self.entries.remove(&oldest);
        }
        self.clock += 1;
        self.by_use.insert(self.clock, domain.clone());
        let entry = Entry { outcome: outcome.clone(), learned: now, until, last_good, used: self.clock };
        self.entries.insert(domain.clone(), entry);
        outcome
    }

    /// Has the domain asked for again at its next use, though not more than once a second.
    pub(super) fn expire(&mut self, domain: &Domain) {
        if let Some(entry) = self.entries.get_mut(domain) {
            entry.until = entry.until.min(entry.learned + MIN_AGE);
        }
    }

    pub(super) fn forget(&mut self, domain: &Domain) {
        self.remove(domain);
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    fn remove(&mut self, domain: &Domain) -> Option<Entry> {
        let entry = self.entries.remove(domain)?;
        self.by_use.remove(&entry.used);
        Some(entry)
    }
}

fn stale(good: &Gateways, now: Instant, why: Option<&ResolveError>) -> Arc<Gateways> {
    let mut copy = Gateways { stale: true, expires: now + RECHECK, ..good.clone() };
    let age = now.saturating_duration_since(good.expires).as_secs();
    let why = why.map_or_else(|| "no answer yet".to_owned(), ToString::to_string);
    copy.evidence.push(format!("the last good answer, out of date for {age} s, is used: {why}"));
    Arc::new(copy)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resolve::Source;

    const HOUR: Duration = Duration::from_secs(3600);

    fn domain(n: usize) -> Domain {
        format!("d{n}.test").parse().unwrap()
    }

    fn good(n: usize, expires: Instant) -> Gateways {
        Gateways {
            domain: domain(n),
            source: Source::Srv,
            control: Vec::new(),
            tunnel: Vec::new(),
            registry: Vec::new(),
            stale: false,
            expires,
            evidence: Vec::new(),
        }
    }

    fn silence() -> (ResolveError, Duration) {
        let error =
            ResolveError::Unreachable { name: "x".into(), servers: Vec::new(), detail: String::new() };
        (error, Duration::from_secs(60))
    }

    fn gone(n: usize) -> (ResolveError, Duration) {
        (ResolveError::NotInDns { domain: domain(n), asked: Vec::new() }, Duration::from_secs(60))
    }

    #[test]
    fn an_answer_lasts_its_ttl_and_then_stands_in_while_the_dns_is_down() {
        let t0 = Instant::now();
        let mut cache = Cache::new(10, 24 * HOUR);
        assert_eq!(cache.get(&domain(1), t0), View::Unknown);
        cache.put(&domain(1), Ok(good(1, t0 + HOUR)), t0).unwrap();
        assert!(matches!(cache.get(&domain(1), t0 + HOUR - MIN_AGE), View::Fresh(Ok(g)) if !g.stale));
        assert!(matches!(cache.get(&domain(1), t0 + HOUR), View::Expired(g) if g.stale));

        let now = t0 + 2 * HOUR;
        let answer = cache.put(&domain(1), Err(silence()), now).unwrap();
        assert!(answer.stale && answer.expires == now + RECHECK);
        assert!(answer.evidence[0].contains("out of date for 3600 s"), "{:?}", answer.evidence);
        assert!(matches!(cache.get(&domain(1), now + RECHECK / 2), View::Fresh(Ok(g)) if g.stale));
        assert!(matches!(cache.get(&domain(1), now + RECHECK), View::Expired(_)));
    }

    #[test]
    fn nothing_stands_in_longer_than_allowed() {
        let t0 = Instant::now();
        let mut cache = Cache::new(10, 24 * HOUR);
        cache.put(&domain(1), Ok(good(1, t0)), t0).unwrap();
        assert_eq!(cache.get(&domain(1), t0 + 24 * HOUR), View::Unknown);
        let late = t0 + 24 * HOUR;
        assert!(cache.put(&domain(1), Err(silence()), late).unwrap_err().is_failure());
        assert!(matches!(cache.get(&domain(1), late), View::Fresh(Err(_))));
        assert_eq!(cache.get(&domain(1), late + FAILURE_HOLD), View::Unknown);
    }

    #[test]
    fn a_no_is_an_answer_and_replaces_the_last_good_one() {
        let t0 = Instant::now();
        let mut cache = Cache::new(10, 24 * HOUR);
        cache.put(&domain(1), Ok(good(1, t0)), t0).unwrap();
        assert!(cache.put(&domain(1), Err(gone(1)), t0).is_err());
        assert!(matches!(cache.get(&domain(1), t0 + Duration::from_secs(59)), View::Fresh(Err(_))));
        assert_eq!(cache.get(&domain(1), t0 + Duration::from_secs(60)), View::Unknown);
        assert!(cache.put(&domain(1), Err(silence()), t0).is_err());
    }

    #[test]
    fn the_least_used_makes_room() {
        let t0 = Instant::now();
        let mut cache = Cache::new(3, HOUR);
        for n in 1..=3 {
            cache.put(&domain(n), Ok(good(n, t0 + HOUR)), t0).unwrap();
        }
        cache.get(&domain(1), t0);
        cache.put(&domain(4), Ok(good(4, t0 + HOUR)), t0).unwrap();
        cache.put(&domain(4), Ok(good(4, t0 + HOUR)), t0).unwrap();
        assert_eq!(cache.len(), 3);
        assert_eq!(cache.get(&domain(2), t0), View::Unknown);
        for n in [1, 3, 4] {
            assert!(matches!(cache.get(&domain(n), t0), View::Fresh(Ok(_))), "{n}");
        }
        cache.forget(&domain(3));
        assert_eq!((cache.len(), cache.by_use.len()), (2, 2));
    }

    #[test]
    fn expiring_takes_effect_after_a_second_and_keeps_the_stand_in() {
        let t0 = Instant::now();
        let mut cache = Cache::new(3, HOUR);
        cache.put(&domain(1), Ok(good(1, t0 + HOUR)), t0).unwrap();
        cache.expire(&domain(1));
        assert!(matches!(cache.get(&domain(1), t0), View::Fresh(_)));
        assert!(matches!(cache.get(&domain(1), t0 + MIN_AGE), View::Expired(_)));
    }
}
