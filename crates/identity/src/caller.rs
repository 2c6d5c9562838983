//! Who sent a request.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use carrick_model::SpiffeId;
use parking_lot::Mutex;

use crate::{
    certificate::PeerCertificate,
    source::Identity,
    svid::Svid,
    token::{self, Token, TokenError},
};

/// The peer a request came from, as its TLS certificate proved it.
///
/// The control listener puts it into the extensions of every request of a connection; a handler that finds none
/// answers `Unauthenticated`. Clones share the certificate.
#[derive(Debug, Clone)]
pub struct Caller {
    id: SpiffeId,
    certificate: Option<Arc<PeerCertificate>>,
    shown: Option<Arc<Svid>>,
    minted: Arc<Mutex<Option<Minted>>>,
}

/// The token that was minted last. Those of one second say the same: `exp` counts seconds.
#[derive(Debug)]
struct Minted {
    by: Arc<Svid>,
    exp: u64,
    jwt: String,
}

impl Caller {
    /// A peer that proved itself with `certificate`, on a connection on which we proved ourselves with `shown`.
    pub fn new(certificate: PeerCertificate, shown: Arc<Svid>) -> Self {
        let (id, certificate) = (certificate.id().clone(), Some(Arc::new(certificate)));
        Self { id, certificate, shown: Some(shown), minted: Arc::default() }
    }

    /// A caller inside this process, which shows no certificate. Policies that need one refuse it.
    pub fn in_process(id: SpiffeId) -> Self {
        Self { id, certificate: None, shown: None, minted: Arc::default() }
    }

    /// Who calls.
    pub fn id(&self) -> &SpiffeId {
        &self.id
    }

    /// What the caller proved itself with; nothing for a caller inside this process.
    pub fn certificate(&self) -> Option<&PeerCertificate> {
        self.certificate.as_deref()
    }

    /// A token of ours for this caller, signed by the key that our side of its connection was made with, as the caller
    /// checks it against that certificate. When that SVID is over, by the current one.
    pub fn mint_token(
        &self,
        identity: &Identity,
        max_lifetime: Duration,
        now: SystemTime,
    ) -> Result<Token, TokenError> {
        let shown = self.shown.as_ref().filter(|svid| svid.not_after() > now).cloned();
        let token = self.mint_by(shown.unwrap_or_else(|| identity.current()), max_lifetime, now)?;
        Ok(match &self.certificate {
            Some(certificate) => token.capped(certificate.not_after()),
            None => token,
        })
    }

    fn mint_by(&self, by: Arc<Svid>, max_lifetime: Duration, now: SystemTime) -> Result<Token, TokenError> {
        let expires = by.token_end(max_lifetime, now);
        let exp = token::exp_of(expires);
        let same = |last: &&Minted| last.exp == exp && Arc::ptr_eq(&last.by, &by);
        let known = self.minted.lock().as_ref().filter(same).map(|last| last.jwt.clone());
        if let Some(jwt) = known {
            return Ok(Token { jwt, expires });
        }
        let token = by.mint_token(&self.id, max_lifetime, now)?;
        *self.minted.lock() = Some(Minted { by, exp, jwt: token.jwt.clone() });
        Ok(token)
    }
}
