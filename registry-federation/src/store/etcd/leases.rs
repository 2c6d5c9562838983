//! Which lease of etcd a registration is attached to.
//!
//! A registration that nobody renews has to go even when every replica is dead, so its key is attached to a lease. One
//! lease for each registration would double the writes and has to be kept alive or replaced with every renewal. But a
//! renewal writes the record anyway, for its new expiry, and a key can be moved to another lease in that write. So
//! registrations that lapse at about the same time share a lease, a *bucket*, that is granted once and never kept alive.
//!
//! A bucket is a span of wall clock time; its lease ends at its end, so that no record goes early, and a record goes late
//! by at most one width: an eighth of what it had left when it was written, or four seconds. The registry itself removes
//! a record when it lapses; the lease is for when no registry is there. Live buckets of one width are 17 or so, and there
//! are as many widths as there are powers of two, so a replica holds some hundred leases however many records it has.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant, SystemTime},
};

/// The narrowest bucket, in seconds. etcd itself looks at leases every half a second and does not grant less than 2 s.
const NARROWEST: u64 = 4;
/// A bucket is the narrowest power of two that is at least this part of what is left of the record's life.
const PARTS: u64 = 16;
/// Added to a lease, in seconds, for the parts of a second that etcd does not count.
const MARGIN: u64 = 1;
/// What lives longer has no lease at all: etcd refuses lifetimes of 285 years, and clocks lie.
const LONGEST: Duration = Duration::from_secs(10 * 365 * 86_400);

/// A span of wall clock time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Bucket {
    /// Seconds.
    width: u64,
    /// Which span of that width since the epoch.
    number: u64,
}

/// The leases of one replica.
#[derive(Debug, Default)]
pub(super) struct Leases {
    granted: BTreeMap<Bucket, Granted>,
}

#[derive(Debug)]
struct Granted {
    id: i64,
    /// etcd keeps it at least so long, by the clock that cannot be set.
    until: Instant,
}

/// What a record gets.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Lease {
    /// None: it does not lapse.
    None,
    /// This one.
    Held(i64),
    /// One that has to be granted first.
    Wanted {
        /// To be told to [`Leases::insert`].
        bucket: Bucket,
        /// Seconds it has to live.
        ttl: u64,
    },
}

impl Leases {
    /// The lease of a record that lapses at `expires`.
    pub(super) fn find(&self, expires: Option<SystemTime>, wall: SystemTime, now: Instant) -> Lease {
        let Some(expires) = expires else { return Lease::None };
        let left = expires.duration_since(wall).unwrap_or_default();
        if left > LONGEST {
            return Lease::None;
        }
        // What has lapsed already gets the lease of this moment.
        let bucket = Bucket::of(wall + left, left);
        match self.granted.get(&bucket) {
            // A clock that was set back finds buckets whose lease has long ended.
            Some(granted) if granted.until >= now + left => Lease::Held(granted.id),
            _ => {
                let life = bucket.end().duration_since(wall).unwrap_or_default();
                Lease::Wanted { bucket, ttl: life.as_secs() + 1 + MARGIN }
            }
        }
    }

    /// A lease was granted. `asked` is when it was asked for.
    pub(super) fn insert(&mut self, bucket: Bucket, id: i64, ttl: u64, asked: Instant) {
        self.granted.retain(|_, granted| granted.until > asked);
        self.granted.insert(bucket, Granted { id, until: asked + Duration::from_secs(ttl) });
    }

    /// etcd does not know one of them any more, and does not say which.
    pub(super) fn forget(&mut self) {
        self.granted.clear();
    }
}

impl Bucket {
    fn of(expires: SystemTime, left: Duration) -> Self {
        let width = (left.as_secs() / PARTS).max(NARROWEST).next_power_of_two();
        let at = expires.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Self { width, number: at.as_secs() / width }
    }

    /// When it ends, which is after all that it is for.
    fn end(self) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs((self.number + 1) * self.width)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn wall(secs: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_millis(1_700_000_000_123) + Duration::from_secs(secs)
    }

    proptest! {
        #[test]
        fn never_early_and_little_late(at in 0u64..1_000_000, left_ms in 0u64..40_000_000_000) {
            let (wall, now, left) = (wall(at), Instant::now(), Duration::from_millis(left_ms));
            let leases = Leases::default();
            let Lease::Wanted { ttl, .. } = leases.find(Some(wall + left), wall, now) else { panic!("none is held") };
            let life = Duration::from_secs(ttl);
            prop_assert!(life >= left, "{life:?} for {left:?}");
            let late = life - left;
            prop_assert!(late <= (left / 8).max(Duration::from_secs(4)) + Duration::from_secs(2), "{late:?} of {left:?}");
        }

        #[test]
        fn leases_are_few(lifetimes in prop::collection::vec(1u64..1_000_000, 1..400), steps in 1u64..50) {
            let (mut leases, began) = (Leases::default(), Instant::now());
            let mut id = 0;
            for step in 0..steps {
                for &life in &lifetimes {
                    let (wall, now) = (wall(step * 7), began + Duration::from_secs(step * 7));
                    if let Lease::Wanted { bucket, ttl } = leases.find(Some(wall + Duration::from_secs(life)), wall, now) {
                        id += 1;
                        leases.insert(bucket, id, ttl, now);
                    }
                }
            }
            prop_assert!(leases.granted.len() <= 20 * 34, "{}", leases.granted.len());
        }
    }

    #[test]
    fn renewals_of_the_same_moment_share_a_lease() {
        let (mut leases, now) = (Leases::default(), Instant::now());
        let at = |ms| Some(wall(600) + Duration::from_millis(ms));
        let Lease::Wanted { bucket, ttl } = leases.find(at(0), wall(0), now) else { panic!("none is held") };
        leases.insert(bucket, 7, ttl, now);
        assert_eq!(leases.find(at(500), wall(0), now), Lease::Held(7));
        assert_eq!(leases.find(None, wall(0), now), Lease::None);
        leases.forget();
        assert!(matches!(leases.find(at(0), wall(0), now), Lease::Wanted { .. }));
    }

    #[test]
    fn a_clock_set_back_does_not_find_a_lease_that_has_ended() {
        let (mut leases, now) = (Leases::default(), Instant::now());
        let expires = Some(wall(60));
        let Lease::Wanted { bucket, ttl } = leases.find(expires, wall(0), now) else {
            panic!("none is held")
        };
        leases.insert(bucket, 7, ttl, now);
        // An hour later the wall clock says what it said before.
        let later = now + Duration::from_secs(3600);
        assert!(matches!(leases.find(expires, wall(0), later), Lease::Wanted { .. }));
    }

    #[test]
    fn the_far_future_has_no_lease() {
        let far = wall(0) + Duration::from_secs(400 * 365 * 86_400);
        assert_eq!(Leases::default().find(Some(far), wall(0), Instant::now()), Lease::None);
    }
}
