//! Who sent a request.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use carrick_model::SpiffeId;

use crate::{
    certificate::PeerCertificate,
    source::Identity,
    svid::Svid,
    token::{Minter, Token, TokenError},
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
    tokens: Minter,
}

impl Caller {
    /// A peer that proved itself with `certificate`, on a connection on which we proved ourselves with `shown`.
    pub fn new(certificate: PeerCertificate, shown: Arc<Svid>) -> Self {
        let (id, certificate) = (certificate.id().clone(), Some(Arc::new(certificate)));
        Self { tokens: Minter::new(id.clone()), id, certificate, shown: Some(shown) }
    }

    /// A caller inside this process, which shows no certificate. Policies that need one refuse it.
    pub fn in_process(id: SpiffeId) -> Self {
        Self { tokens: Minter::new(id.clone()), id, certificate: None, shown: None }
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
        let token = self.tokens.mint(&shown.unwrap_or_else(|| identity.current()), max_lifetime, now)?;
        Ok(match &self.certificate {
            Some(certificate) => token.capped(certificate.not_after()),
            None => token,
        })
    }
}
