//! Where the endpoints that we told callers of really are, and which of ours are known elsewhere under our address.
//!
//! A caller is told our own address in place of an endpoint's URL, and its request then names the endpoint with its domain
//! (`nse@b.test`). [`FoundUrls`] remembers the URL behind that name. It follows every answer: a new URL replaces the old one, a
//! deletion and the loss of the domain remove it, and what was not seen for a while is forgotten; who needs it again finds it
//! again. The other way round, an endpoint that registers with a floating domain through us is published there with our address;
//! [`Published`] remembers what it registered, until its registration ends.

use std::{
    collections::{BTreeSet, HashMap},
    time::{Duration, Instant, SystemTime},
};

use carrick_model::Domain;
use carrick_proto::registry::NetworkServiceEndpoint;

/// URLs kept. At some 300 octets each they take 30 MiB; the one seen longest ago gives its place to a new one.
const MAX_FOUND: usize = 100_000;
/// How long a URL is good that no watch keeps fresh: a connection's lease. A request after that finds it again.
const KEPT: Duration = Duration::from_secs(600);
/// Endpoints of ours that are published elsewhere. One endpoint is one local process, so this is several times a large cluster.
const MAX_PUBLISHED: usize = 100_000;

/// An endpoint of another domain, by its plain name there.
type Name = (Domain, String);

/// The URLs behind the names that callers were told.
#[derive(Debug, Default)]
pub(crate) struct FoundUrls {
    urls: HashMap<Name, Found>,
    by_age: BTreeSet<(Instant, Name)>,
}

#[derive(Debug)]
struct Found {
    url: String,
    seen: Instant,
}

impl FoundUrls {
    /// `endpoint` of `domain` is at `url`, as seen at `now`.
    pub(crate) fn put(&mut self, domain: &Domain, endpoint: &str, url: &str, now: Instant) {
        let name: Name = (domain.clone(), endpoint.to_owned());
        self.remove(&name);
        if self.urls.len() >= MAX_FOUND
            && let Some((_, oldest)) = self.by_age.first().cloned()
        {
            self.remove(&oldest);
        }
        self.by_age.insert((now, name.clone()));
        self.urls.insert(name, Found { url: url.to_owned(), seen: now });
    }

    /// `endpoint` of `domain` is gone.
    pub(crate) fn delete(&mut self, domain: &Domain, endpoint: &str) {
        self.remove(&(domain.clone(), endpoint.to_owned()));
    }

    /// Nothing is known of `domain` any more.
    pub(crate) fn lose(&mut self, domain: &Domain) {
        let theirs: Vec<Name> = self.urls.keys().filter(|(d, _)| d == domain).cloned().collect();
        for name in theirs {
            self.remove(&name);
        }
    }

    /// Where `endpoint` of `domain` is, if that was seen not too long before `now`.
    pub(crate) fn get(&self, domain: &Domain, endpoint: &str, now: Instant) -> Option<&str> {
        let found = self.urls.get(&(domain.clone(), endpoint.to_owned()))?;
        (now.saturating_duration_since(found.seen) < KEPT).then_some(found.url.as_str())
    }

    fn remove(&mut self, name: &Name) {
        if let Some(found) = self.urls.remove(name) {
            self.by_age.remove(&(found.seen, name.clone()));
        }
    }
}

/// Our endpoints that other domains know under our address, by full name (`nse@floating.test`).
#[derive(Debug, Default)]
pub(crate) struct Published {
    endpoints: HashMap<String, Entry>,
}

#[derive(Debug)]
struct Entry {
    endpoint: NetworkServiceEndpoint,
    ends: SystemTime,
}

/// There is no room for another endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{MAX_PUBLISHED} endpoints are published in other domains through this one, which is the limit")]
pub struct PublishedFull;

impl Published {
    /// Whether `full_name` can be published; makes room from what has ended at `now`.
    pub(crate) fn reserve(&mut self, full_name: &str, now: SystemTime) -> Result<(), PublishedFull> {
        if self.endpoints.len() >= MAX_PUBLISHED && !self.endpoints.contains_key(full_name) {
            self.endpoints.retain(|_, entry| entry.ends > now);
        }
        let room = self.endpoints.len() < MAX_PUBLISHED || self.endpoints.contains_key(full_name);
        room.then_some(()).ok_or(PublishedFull)
    }

    /// `endpoint`, with its own URL, is published as `full_name` until `ends`.
    pub(crate) fn put(&mut self, full_name: &str, endpoint: &NetworkServiceEndpoint, ends: SystemTime) {
        self.endpoints.insert(full_name.to_owned(), Entry { endpoint: endpoint.clone(), ends });
    }

    /// It is not any more.
    pub(crate) fn remove(&mut self, full_name: &str) {
        self.endpoints.remove(full_name);
    }

    /// What was registered under `full_name`, if that has not ended at `now`.
    pub(crate) fn get(&self, full_name: &str, now: SystemTime) -> Option<&NetworkServiceEndpoint> {
        self.endpoints.get(full_name).filter(|entry| entry.ends > now).map(|entry| &entry.endpoint)
    }

    pub(crate) fn len(&self) -> usize {
        self.endpoints.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn domain(name: &str) -> Domain {
        name.parse().unwrap()
    }

    #[test]
    fn the_last_url_counts_and_what_is_gone_is_gone() {
        let (mut urls, now) = (FoundUrls::default(), Instant::now());
        let (b, c) = (domain("b.test"), domain("c.test"));
        urls.put(&b, "nse", "tcp://192.0.2.1:1", now);
        urls.put(&b, "nse", "tcp://192.0.2.2:1", now);
        urls.put(&c, "nse", "tcp://192.0.2.3:1", now);
        assert_eq!(
            urls.get(&b, "nse", now),
            Some("tcp://192.0.2.2:1"),
            "an endpoint that moved is found where it is"
        );
        urls.delete(&b, "nse");
        assert_eq!(urls.get(&b, "nse", now), None);
        assert_eq!(urls.get(&c, "nse", now), Some("tcp://192.0.2.3:1"));
        assert_eq!(urls.get(&c, "nse", now + KEPT), None, "nobody has said so for a long time");
        urls.put(&c, "nse", "tcp://192.0.2.3:1", now + KEPT);
        urls.lose(&c);
        assert_eq!(urls.get(&c, "nse", now + KEPT), None);
        assert!(urls.urls.is_empty() && urls.by_age.is_empty());
    }

    #[test]
    fn the_oldest_gives_its_place() {
        let (mut urls, now) = (FoundUrls::default(), Instant::now());
        let b = domain("b.test");
        for i in 0..=MAX_FOUND {
            urls.put(&b, &i.to_string(), "tcp://192.0.2.1:1", now + Duration::from_nanos(i as u64));
        }
        assert_eq!((urls.urls.len(), urls.by_age.len()), (MAX_FOUND, MAX_FOUND));
        assert!(urls.get(&b, "0", now).is_none() && urls.get(&b, "1", now).is_some());
    }

    #[test]
    fn a_publication_lasts_as_long_as_the_registration() {
        let (mut published, now) = (Published::default(), SystemTime::now());
        let endpoint = NetworkServiceEndpoint { name: "nse@f.test".into(), ..Default::default() };
        let minute = Duration::from_secs(60);
        published.reserve("nse@f.test", now).unwrap();
        published.put("nse@f.test", &endpoint, now + minute);
        assert_eq!(published.get("nse@f.test", now), Some(&endpoint));
        assert_eq!(published.get("nse@f.test", now + minute), None);
        published.put("nse@f.test", &endpoint, now + minute * 2);
        assert_eq!(published.get("nse@f.test", now + minute), Some(&endpoint), "refreshed");
        published.remove("nse@f.test");
        assert_eq!((published.get("nse@f.test", now), published.len()), (None, 0));
    }
}
