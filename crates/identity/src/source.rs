//! The identity a process speaks with, renewed while it runs.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use arc_swap::ArcSwap;
use carrick_model::{SpiffeId, TrustDomain, cause::in_one_line};
use carrick_runtime::Backoff;
use parking_lot::Mutex;
use tokio::sync::watch;

use crate::{
    ca::{Authority, CaError, EmbeddedCa},
    peer::stamp,
    svid::Svid,
    token::{Token, TokenError},
};

/// The SVID a process speaks with, behind one pointer that rotation swaps.
///
/// Clones share it. A handshake takes whatever is current; connections that stand keep what they were made with, so
/// rotation cuts nothing.
#[derive(Clone, Debug)]
pub struct Identity {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    /// Held while an SVID is issued and put in place, so that the last root to come is the one that issues.
    ca: Mutex<EmbeddedCa>,
    id: SpiffeId,
    lifetime: Duration,
    token_lifetime: Duration,
    current: ArcSwap<Svid>,
    rotations: watch::Sender<u64>,
}

/// How long the renewal task may sleep without looking at the wall clock: timers stand still while a host is suspended
/// and do not see the clock being set.
const LOOK: Duration = Duration::from_secs(30);

/// First and longest pause after a failed renewal. Half of the lifetime is left when the first attempt is made.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

impl Identity {
    /// An identity whose SVIDs the embedded CA issues, each for `lifetime`. The first one is issued here.
    pub fn embedded(
        ca: EmbeddedCa,
        id: SpiffeId,
        lifetime: Duration,
        now: SystemTime,
    ) -> Result<Self, CaError> {
        Self::embedded_with_tokens(ca, id, lifetime, Duration::MAX, now)
    }

    /// The same, with a bound on the life of every token that its SVIDs sign.
    pub fn embedded_with_tokens(
        ca: EmbeddedCa,
        id: SpiffeId,
        lifetime: Duration,
        token_lifetime: Duration,
        now: SystemTime,
    ) -> Result<Self, CaError> {
        let current = ArcSwap::from_pointee(ca.issue(&id, lifetime, now)?.bound_tokens(token_lifetime));
        let rotations = watch::Sender::new(0);
        let ca = Mutex::new(ca);
        Ok(Self { inner: Arc::new(Inner { ca, id, lifetime, token_lifetime, current, rotations }) })
    }

    /// Who we are.
    pub fn id(&self) -> SpiffeId {
        self.inner.id.clone()
    }

    /// The trust domain we belong to.
    pub fn trust_domain(&self) -> TrustDomain {
        self.inner.id.trust_domain().clone()
    }

    /// The SVID of this moment.
    pub fn current(&self) -> Arc<Svid> {
        self.inner.current.load_full()
    }

    /// A token of ours for `audience`, good for `max_lifetime` from now on and no longer than the current SVID. Where a
    /// connection was made with an earlier SVID, its peer verifies tokens against that one:
    /// [`Caller::mint_token`](crate::Caller::mint_token), [`Svid::mint_token`].
    pub fn mint_token(&self, audience: &SpiffeId, max_lifetime: Duration) -> Result<Token, TokenError> {
        self.current().mint_token(audience, max_lifetime, SystemTime::now())
    }

    /// Counts the rotations; for gauges of the SVID's age, and for tests.
    pub fn rotations(&self) -> watch::Receiver<u64> {
        self.inner.rotations.subscribe()
    }

    /// Takes a fresh SVID with a fresh key. On an error the current one stays.
    pub fn rotate(&self, now: SystemTime) -> Result<(), CaError> {
        self.inner.renew(&self.inner.ca.lock(), now)
    }

    /// Goes on with `ca`, the same CA as it is on disk now. When another of its roots issues than before, a fresh SVID is
    /// taken at once, and true returned. On an error nothing changes.
    pub fn adopt(&self, ca: EmbeddedCa, now: SystemTime) -> Result<bool, CaError> {
        let mut current = self.inner.ca.lock();
        let another = !current.has_root_of(&ca);
        if another {
            self.inner.renew(&ca, now)?;
        }
        *current = ca;
        Ok(another)
    }

    /// What each root of the own bundle does, in its order.
    pub fn authorities(&self) -> Vec<Authority> {
        self.inner.ca.lock().authorities()
    }

    /// Renews at half of each SVID's lifetime and retries with back-off. Never returns: `select!` it against the end
    /// of the process.
    pub async fn rotate_forever(&self) {
        let mut backoff = Backoff::new(RETRY.0, RETRY.1);
        loop {
            let now = SystemTime::now();
            let svid = self.current();
            if !svid.is_due(now) {
                let left = svid.renew_at().duration_since(now).unwrap_or_default();
                tokio::time::sleep(left.min(LOOK)).await;
                continue;
            }
            match self.rotate(now) {
                Ok(()) => {
                    backoff.reset();
                    let until = stamp(self.current().not_after());
                    tracing::info!(id = %self.inner.id, until, "SVID renewed");
                }
                Err(err) => {
                    let pause = backoff.next_delay();
                    let until = stamp(svid.not_after());
                    tracing::warn!(id = %self.inner.id, until, ?pause, hint = %err.hint(),
                        error = %in_one_line(&err), "SVID not renewed, the current one stays in use");
                    tokio::time::sleep(pause).await;
                }
            }
        }
    }
}

impl Inner {
    fn renew(&self, ca: &EmbeddedCa, now: SystemTime) -> Result<(), CaError> {
        let svid = ca.issue(&self.id, self.lifetime, now)?.bound_tokens(self.token_lifetime);
        self.current.store(Arc::new(svid));
        self.rotations.send_modify(|count| *count += 1);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(lifetime: Duration, now: SystemTime) -> (tempfile::TempDir, Identity) {
        let dir = tempfile::tempdir().unwrap();
        let td = TrustDomain::new("a.test").unwrap();
        let ca = EmbeddedCa::open_or_create(dir.path(), &td, now).unwrap();
        let id = SpiffeId::new("spiffe://a.test/carrick/gateway").unwrap();
        (dir, Identity::embedded(ca, id, lifetime, now).unwrap())
    }

    #[test]
    fn rotation_swaps_the_svid_for_all_clones() {
        let now = SystemTime::now();
        let (_dir, identity) = identity(Duration::from_secs(3_600), now);
        let (clone, before) = (identity.clone(), identity.current());
        clone.rotate(now + Duration::from_secs(60)).unwrap();
        let after = identity.current();
        assert_ne!(before.chain(), after.chain());
        assert_ne!(before.private_key(), after.private_key(), "each SVID has a key of its own");
        assert_eq!(after.not_after(), before.not_after() + Duration::from_secs(60));
        assert_eq!(*identity.rotations().borrow(), 1);
    }

    #[test]
    fn tokens_live_no_longer_than_their_bound_before_and_after_a_rotation() {
        let now = SystemTime::now();
        let dir = tempfile::tempdir().unwrap();
        let td = TrustDomain::new("a.test").unwrap();
        let ca = EmbeddedCa::open_or_create(dir.path(), &td, now).unwrap();
        let id = SpiffeId::new("spiffe://a.test/carrick/gateway").unwrap();
        let (hour, minute) = (Duration::from_secs(3_600), Duration::from_secs(60));
        let identity = Identity::embedded_with_tokens(ca, id.clone(), hour, minute, now).unwrap();
        for _ in 0..2 {
            let svid = identity.current();
            assert_eq!(svid.mint_token(&id, 10 * minute, now).unwrap().expires, now + minute);
            assert_eq!(svid.mint_token(&id, minute / 2, now).unwrap().expires, now + minute / 2);
            identity.rotate(now).unwrap();
        }
    }

    #[test]
    fn a_rotation_that_fails_leaves_the_current_svid() {
        let now = SystemTime::now();
        let (_dir, identity) = identity(Duration::from_secs(3_600), now);
        let before = identity.current();
        let err = identity.rotate(now + Duration::from_secs(20 * 365 * 86_400)).unwrap_err();
        assert!(matches!(err, CaError::RootExpired { .. }));
        assert!(Arc::ptr_eq(&before, &identity.current()));
    }

    #[test]
    fn a_root_that_was_rotated_issues_at_once() {
        let now = SystemTime::now();
        let (dir, identity) = identity(Duration::from_secs(3_600), now);
        let td = identity.trust_domain();
        let before = identity.current();
        let prepared = EmbeddedCa::prepare(dir.path(), &td, now).unwrap();
        assert!(!identity.adopt(prepared, now).unwrap(), "the same root issues");
        assert!(Arc::ptr_eq(&before, &identity.current()));
        assert_eq!(identity.authorities(), [Authority::Active, Authority::Prepared]);

        let active = EmbeddedCa::activate(dir.path(), &td, now).unwrap();
        assert!(identity.adopt(active, now).unwrap());
        assert_ne!(before.chain(), identity.current().chain());
        assert_eq!(identity.authorities(), [Authority::Active, Authority::Old]);
    }

    #[tokio::test]
    async fn the_renewal_task_renews_at_half_of_the_lifetime() {
        let (_dir, identity) = identity(Duration::from_secs(2), SystemTime::now());
        let (first, mut rotations) = (identity.current(), identity.rotations());
        let renewed = async {
            rotations.changed().await.unwrap();
            SystemTime::now()
        };
        let at = tokio::select! {
            () = identity.rotate_forever() => unreachable!("it never returns"),
            at = tokio::time::timeout(Duration::from_secs(30), renewed) => at.unwrap(),
        };
        assert!(at >= first.renew_at(), "not before half of the life is over");
        assert_ne!(identity.current().chain(), first.chain());
    }
}
