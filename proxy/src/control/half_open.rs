//! Places for TLS handshakes that are not finished.
//!
//! There are so many places in all and so many for one source address. Who comes when its places are taken gets the oldest
//! one: a real handshake is over in a few round trips, while one that floods the port leaves its connections lying. So a flood
//! pushes out itself.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::{IpAddr, Ipv6Addr},
    sync::Arc,
};

use parking_lot::Mutex;
use tokio::sync::oneshot;

/// Handshakes at a time: each has a task, a socket and about 40 KiB of TLS buffers, so 40 MiB at the worst.
pub(crate) const MAX_HALF_OPEN: usize = 1024;
/// Handshakes of one source address at a time; a site behind one address restarts with fewer peers than this.
pub(crate) const MAX_PER_SOURCE: usize = 64;

/// What has a share of the places: one network, or one user of a Unix socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Source {
    /// Made from an address: one IPv6 host commonly has a whole /64 (RFC 6177).
    Network(IpAddr),
    User(u32),
}

pub(super) struct HalfOpen {
    places: Arc<Mutex<Places>>,
}

#[derive(Default)]
struct Places {
    next: u64,
    taken: BTreeMap<u64, (Source, oneshot::Sender<()>)>,
    by_source: HashMap<Source, BTreeSet<u64>>,
}

/// One place; given back when dropped.
pub(super) struct Place {
    number: u64,
    places: Arc<Mutex<Places>>,
    evicted: oneshot::Receiver<()>,
}

impl HalfOpen {
    pub(super) fn new() -> Self {
        Self { places: Arc::default() }
    }

    /// A place for a connection from `source`, if need be at the cost of the oldest one.
    pub(super) fn enter(&self, source: Source) -> Place {
        let (notify, evicted) = oneshot::channel();
        let mut places = self.places.lock();
        let of_source = places.by_source.get(&source);
        let crowded = of_source.filter(|s| s.len() >= MAX_PER_SOURCE).and_then(|s| s.first().copied());
        let full = (places.taken.len() >= MAX_HALF_OPEN).then(|| places.oldest_of_the_busiest()).flatten();
        if let Some(number) = crowded.or(full) {
            places.remove(number);
        }
        let number = places.next;
        places.next += 1;
        places.taken.insert(number, (source, notify));
        places.by_source.entry(source).or_default().insert(number);
        drop(places);
        Place { number, places: Arc::clone(&self.places), evicted }
    }

    #[cfg(test)]
    fn len(&self) -> usize {
        self.places.lock().taken.len()
    }
}

impl Places {
    /// The source with the most places pays, not the one that happens to be old. The scan is over at most
    /// [`MAX_HALF_OPEN`] sources, and only when all places are taken.
    fn oldest_of_the_busiest(&self) -> Option<u64> {
        self.by_source.values().max_by_key(|s| s.len()).and_then(|s| s.first().copied())
    }

    /// Dropping the sender tells the holder.
    fn remove(&mut self, number: u64) {
        let Some((source, _tell)) = self.taken.remove(&number) else { return };
        if let Some(numbers) = self.by_source.get_mut(&source) {
            numbers.remove(&number);
            if numbers.is_empty() {
                self.by_source.remove(&source);
            }
        }
    }
}

impl Place {
    /// Completes when somebody else got this place.
    pub(super) async fn evicted(&mut self) {
        // Nothing is ever sent: the sender is dropped.
        let _gone = (&mut self.evicted).await;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.places.lock().remove(self.number);
    }
}

impl From<IpAddr> for Source {
    fn from(ip: IpAddr) -> Self {
        Self::Network(match ip.to_canonical() {
            IpAddr::V6(v6) => {
                let [a, b, c, d, ..] = v6.segments();
                Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0).into()
            }
            v4 => v4,
        })
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    fn ip(last: u8) -> Source {
        IpAddr::from([192, 0, 2, last]).into()
    }

    #[test]
    fn a_crowded_source_pushes_out_its_own_oldest() {
        let half_open = HalfOpen::new();
        let mut other = half_open.enter(ip(1));
        let mut crowd: Vec<Place> = (0..=MAX_PER_SOURCE).map(|_| half_open.enter(ip(2))).collect();
        assert!(crowd[0].evicted().now_or_never().is_some());
        assert!(crowd[1].evicted().now_or_never().is_none());
        assert!(other.evicted().now_or_never().is_none());
        assert_eq!(half_open.len(), MAX_PER_SOURCE + 1);
    }

    #[test]
    fn when_all_places_are_taken_the_busiest_source_pays() {
        let half_open = HalfOpen::new();
        let mut early = half_open.enter(ip(1));
        let mut flood: Vec<Place> =
            (0..MAX_HALF_OPEN - 1).map(|i| half_open.enter(ip(2 + (i % 100) as u8))).collect();
        let mut late = half_open.enter(ip(200));
        assert_eq!(half_open.len(), MAX_HALF_OPEN);
        assert!(early.evicted().now_or_never().is_none());
        assert!(late.evicted().now_or_never().is_none());
        assert_eq!(flood.iter_mut().filter_map(|p| p.evicted().now_or_never()).count(), 1);
        drop((flood, early, late));
        assert_eq!(half_open.len(), 0);
        assert!(half_open.places.lock().by_source.is_empty());
    }

    #[test]
    fn a_user_of_a_unix_socket_pushes_out_nobody_else() {
        let half_open = HalfOpen::new();
        let mut other = half_open.enter(ip(1));
        let mut user = half_open.enter(Source::User(1000));
        let mut crowd: Vec<Place> = (0..=MAX_PER_SOURCE).map(|_| half_open.enter(Source::User(0))).collect();
        assert!(crowd[0].evicted().now_or_never().is_some());
        assert!(user.evicted().now_or_never().is_none() && other.evicted().now_or_never().is_none());
    }

    #[test]
    fn an_ipv6_network_is_one_source_and_mapped_ipv4_is_ipv4() {
        let a: IpAddr = "2001:db8::1".parse().unwrap();
        let b: IpAddr = "2001:db8::ffff:1".parse().unwrap();
        let c: IpAddr = "2001:db8:0:1::1".parse().unwrap();
        assert_eq!(Source::from(a), Source::from(b));
        assert_ne!(Source::from(a), Source::from(c));
        assert_eq!(Source::from("::ffff:192.0.2.1".parse::<IpAddr>().unwrap()), ip(1));
    }
}
