//! An X.509-SVID: the certificate we speak with, and its key.

use std::{
    fmt,
    sync::Arc,
    time::{Duration, SystemTime},
};

use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair};
use carrick_model::SpiffeId;
use rustls::sign::CertifiedKey;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};

use crate::{
    tls,
    token::{self, Token, TokenError},
};

/// An X.509-SVID with its private key (ECDSA P-256). Neither `Debug` nor anything else prints the key.
pub struct Svid {
    id: SpiffeId,
    not_before: SystemTime,
    not_after: SystemTime,
    renew_at: SystemTime,
    pkcs8: PrivatePkcs8KeyDer<'static>,
    key: Arc<CertifiedKey>,
    /// Signs tokens; `None` when the key is of a kind that cannot.
    signer: Option<EcdsaKeyPair>,
    /// No token lives longer.
    token_lifetime: Duration,
}

/// What an identity source knows of a fresh SVID.
pub(crate) struct Parts {
    pub(crate) id: SpiffeId,
    pub(crate) issued: SystemTime,
    pub(crate) not_before: SystemTime,
    pub(crate) not_after: SystemTime,
    /// Leaf first, without the root.
    pub(crate) chain: Vec<CertificateDer<'static>>,
    pub(crate) pkcs8: PrivatePkcs8KeyDer<'static>,
}

/// Even a leaf that lives for seconds is not renewed more often than this.
const MIN_RENEWAL: Duration = Duration::from_secs(1);

impl Svid {
    /// Fails when the key is not one that the TLS library can sign with, or not the leaf's.
    pub(crate) fn new(parts: Parts) -> Result<Self, rustls::Error> {
        let Parts { id, issued, not_before, not_after, chain, pkcs8 } = parts;
        let key = CertifiedKey::from_der(chain, PrivateKeyDer::Pkcs8(pkcs8.clone_key()), tls::provider())?;
        let left = not_after.duration_since(issued).unwrap_or_default();
        // The backdated part of the validity does not count, or a short-lived leaf would be due at its birth.
        let renew_at = issued + (left / 2).max(MIN_RENEWAL);
        let signer =
            EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, pkcs8.secret_pkcs8_der()).ok();
        let (key, token_lifetime) = (Arc::new(key), Duration::MAX);
        Ok(Self { id, not_before, not_after, renew_at, pkcs8, key, signer, token_lifetime })
    }

    /// The same, with a bound on the life of its tokens.
    pub(crate) fn bound_tokens(self, token_lifetime: Duration) -> Self {
        Self { token_lifetime, ..self }
    }

    /// Who this SVID says we are.
    pub fn id(&self) -> &SpiffeId {
        &self.id
    }

    /// Begin of the validity, a little before the SVID was issued.
    pub fn not_before(&self) -> SystemTime {
        self.not_before
    }

    /// End of the validity.
    pub fn not_after(&self) -> SystemTime {
        self.not_after
    }

    /// When it is time for the next one: at half of the lifetime.
    pub fn renew_at(&self) -> SystemTime {
        self.renew_at
    }

    /// Whether the next SVID should be fetched: half of the life is over, or the clock was set back to before the
    /// validity begins, so that no peer would take this SVID.
    pub fn is_due(&self, now: SystemTime) -> bool {
        now >= self.renew_at || now < self.not_before
    }

    /// The certificates, leaf first, without the root.
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.key.cert
    }

    /// Chain and key as rustls takes them.
    pub fn certified_key(&self) -> Arc<CertifiedKey> {
        Arc::clone(&self.key)
    }

    /// A token of ours for `audience`, good for `max_lifetime` from `now` on and no longer than this SVID. The expiry told
    /// to a peer is also no later than the end of its certificate: see [`Token::capped`].
    pub fn mint_token(
        &self,
        audience: &SpiffeId,
        max_lifetime: Duration,
        now: SystemTime,
    ) -> Result<Token, TokenError> {
        let key = self.signer.as_ref().ok_or_else(|| TokenError::KeyKind(self.id.clone()))?;
        token::mint(key, &self.id, audience, self.token_end(max_lifetime, now))
    }

    /// When a token ends that is minted at `now`.
    pub(crate) fn token_end(&self, max_lifetime: Duration, now: SystemTime) -> SystemTime {
        let max_lifetime = max_lifetime.min(self.token_lifetime);
        now.checked_add(max_lifetime).map_or(self.not_after, |end| end.min(self.not_after))
    }

    /// The private key (PKCS #8), Its `Debug` elides it.
    pub fn private_key(&self) -> &PrivatePkcs8KeyDer<'static> {
        &self.pkcs8
    }
}

impl fmt::Debug for Svid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Svid")
            .field("id", &format_args!("{}", self.id))
            .field("not_before", &self.not_before)
            .field("not_after", &self.not_after)
            .finish_non_exhaustive()
    }
}
