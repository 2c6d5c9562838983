//! Who holds a name, and who may take it.

use std::sync::Arc;

use carrick_model::SpiffeId;

/// Who put an object into the catalogue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Holder {
    /// The domain itself, by its configuration.
    Domain,
    /// A registration.
    Owner(Owner),
}

/// Who holds a registration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owner {
    /// Whose it is. `None` for what the domain's administrator registered.
    pub id: Option<SpiffeId>,
    /// Who brought it for the owner; `None` when the owner came itself and its certificate proved who it is.
    pub via: Option<Arc<SpiffeId>>,
    /// The revision at which the store wrote it.
    pub written: u64,
}

/// Who asks for a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claimant {
    /// The peer of the connection, as its certificate proved it.
    pub caller: SpiffeId,
    /// For whom it speaks: the first of the chain of tokens, or the caller itself.
    pub origin: SpiffeId,
    /// Whether the caller administers the domain.
    pub admin: bool,
}

/// Why a name is not given.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ClaimError {
    /// The domain offers the name itself. Its configuration has to change first.
    #[error("the name is an export of the domain")]
    Exported,
    /// Somebody else holds it, until it unregisters or its lease ends.
    #[error("the name is held by {holder}, and {claimant} is not that")]
    Held {
        /// Who holds it.
        holder: String,
        /// Who asked.
        claimant: SpiffeId,
    },
    /// The caller speaks for somebody of another trust domain. It has to speak for its own.
    #[error("{caller} cannot speak for {origin}, which is of another trust domain")]
    SpeaksForOthers {
        /// Who called.
        caller: SpiffeId,
        /// For whom it claimed to speak.
        origin: SpiffeId,
    },
}

impl Claimant {
    /// Whoever calls for itself.
    pub fn direct(caller: SpiffeId) -> Self {
        Self { origin: caller.clone(), caller, admin: false }
    }

    /// Whether the caller speaks for itself.
    pub fn is_direct(&self) -> bool {
        self.caller == self.origin
    }

    /// Who the owner is once the claim is granted, and by whom it was brought.
    pub fn owner(&self) -> (SpiffeId, Option<SpiffeId>) {
        (self.origin.clone(), (!self.is_direct()).then(|| self.caller.clone()))
    }

    /// Whether the claimant may replace or remove what `holder` holds; `None` for a free name.
    ///
    /// What an owner registered itself only that owner replaces: nobody's word about it counts more than its own
    /// certificate did. What came through a manager (as all of NSM's endpoints do) may come through another manager of
    /// the same trust domain, or from the owner itself: managers are replaced while endpoints live on.
    ///
    /// # Errors
    /// The name is held by somebody else, or the claim speaks for somebody it must not speak for.
    pub fn may_take(&self, holder: Option<&Holder>) -> Result<(), ClaimError> {
        if self.origin.trust_domain() != self.caller.trust_domain() {
            let (caller, origin) = (self.caller.clone(), self.origin.clone());
            return Err(ClaimError::SpeaksForOthers { caller, origin });
        }
        let owner = match holder {
            None => return Ok(()),
            Some(Holder::Domain) => return Err(ClaimError::Exported),
            Some(Holder::Owner(owner)) => owner,
        };
        let same = owner.id.as_ref() == Some(&self.origin);
        // Caller and origin are of one trust domain, so a manager of the same one is all that is left to ask for.
        if self.admin || same && (self.is_direct() || owner.via.is_some()) {
            return Ok(());
        }
        let holder = owner.id.as_ref().map_or("the domain's administrator".to_owned(), ToString::to_string);
        let claimant = if same { self.caller.clone() } else { self.origin.clone() };
        Err(ClaimError::Held { holder, claimant })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(text: &str) -> SpiffeId {
        SpiffeId::new(format!("spiffe://{text}")).unwrap()
    }

    fn held(owner: &str, via: Option<&str>) -> Holder {
        Holder::Owner(Owner { id: Some(id(owner)), via: via.map(id).map(Arc::new), written: 1 })
    }

    fn through(caller: &str, origin: &str) -> Claimant {
        Claimant { caller: id(caller), origin: id(origin), admin: false }
    }

    #[test]
    fn an_owner_alone_replaces_what_it_registered_itself() {
        let holder = held("a.test/nse", None);
        assert_eq!(Claimant::direct(id("a.test/nse")).may_take(Some(&holder)), Ok(()));
        let thief = Claimant::direct(id("a.test/thief")).may_take(Some(&holder));
        assert!(matches!(thief, Err(ClaimError::Held { .. })), "{thief:?}");
        let liar = through("a.test/thief", "a.test/nse").may_take(Some(&holder));
        assert!(
            matches!(liar, Err(ClaimError::Held { .. })),
            "its word does not outdo a certificate: {liar:?}"
        );
    }

    #[test]
    fn what_came_through_a_manager_may_come_through_the_next() {
        let holder = held("a.test/nse", Some("a.test/nsmgr-1"));
        assert_eq!(through("a.test/nsmgr-2", "a.test/nse").may_take(Some(&holder)), Ok(()));
        assert_eq!(Claimant::direct(id("a.test/nse")).may_take(Some(&holder)), Ok(()));
        let other = through("a.test/nsmgr-1", "a.test/other").may_take(Some(&holder));
        assert!(matches!(other, Err(ClaimError::Held { .. })), "the manager does not own it: {other:?}");
        let itself = Claimant::direct(id("a.test/nsmgr-1")).may_take(Some(&holder));
        assert!(matches!(itself, Err(ClaimError::Held { .. })), "{itself:?}");
    }

    #[test]
    fn nobody_speaks_for_another_trust_domain() {
        for holder in [None, Some(held("a.test/nse", Some("a.test/nsmgr")))] {
            let fault = through("b.test/nsmgr", "a.test/nse").may_take(holder.as_ref());
            assert!(matches!(fault, Err(ClaimError::SpeaksForOthers { .. })), "{fault:?}");
        }
    }

    #[test]
    fn the_administrator_takes_all_but_exports() {
        let admin = Claimant { admin: true, ..Claimant::direct(id("a.test/carrick/gateway")) };
        assert_eq!(admin.may_take(Some(&held("a.test/nse", None))), Ok(()));
        assert_eq!(admin.may_take(Some(&Holder::Domain)), Err(ClaimError::Exported));
        let domains = Holder::Owner(Owner { id: None, via: None, written: 1 });
        assert!(Claimant::direct(id("a.test/nse")).may_take(Some(&domains)).is_err());
        assert_eq!(admin.may_take(Some(&domains)), Ok(()));
    }
}
