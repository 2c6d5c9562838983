//! The certificate that a peer proved itself with.

use std::time::SystemTime;

use carrick_model::SpiffeId;
use parking_lot::Mutex;
use rustls_pki_types::CertificateDer;
use x509_parser::{certificate::X509Certificate, prelude::FromDer as _};

use crate::{
    peer::{PeerError, leaf_id, wall_of_asn1},
    token::{self, Claims, TokenError, VerifyingKey},
};

/// The leaf of a peer's chain after a TLS handshake: whose it is, until when, and the key that the peer's tokens are
/// verified with.
#[derive(Debug)]
pub struct PeerCertificate {
    id: SpiffeId,
    not_after: SystemTime,
    der: CertificateDer<'static>,
    key: Option<VerifyingKey>,
    /// The token that was verified last: many clients send the same one until it nears its end.
    verified: Mutex<Option<(String, Claims)>>,
}

impl PeerCertificate {
    /// The leaf of `chain`, leaf first. Like [`peer_id`](crate::peer_id) it does **not** check the chain: the handshake
    /// did.
    pub fn of(chain: &[CertificateDer<'_>]) -> Result<Self, PeerError> {
        let leaf = chain.first().ok_or(PeerError::NoCertificate)?;
        let id = leaf_id(leaf)?;
        let (_, cert) = X509Certificate::from_der(leaf).map_err(|_| PeerError::Malformed)?;
        let not_after = wall_of_asn1(cert.validity().not_after);
        let key = VerifyingKey::of(&cert);
        Ok(Self { id, not_after, key, der: leaf.clone().into_owned(), verified: Mutex::default() })
    }

    /// Whether the peer's key signed `jwt`; then what it says.
    pub(crate) fn verify(&self, jwt: &str) -> Result<Claims, TokenError> {
        let known =
            self.verified.lock().as_ref().filter(|(last, _)| last == jwt).map(|(_, claims)| claims.clone());
        if let Some(claims) = known {
            return Ok(claims);
        }
        let claims = token::verify_by(jwt, self.key.as_ref())?;
        *self.verified.lock() = Some((jwt.to_owned(), claims.clone()));
        Ok(claims)
    }

    /// Who the peer is.
    pub fn id(&self) -> &SpiffeId {
        &self.id
    }

    /// End of the certificate's validity.
    pub fn not_after(&self) -> SystemTime {
        self.not_after
    }

    /// The certificate itself (DER).
    pub fn der(&self) -> &CertificateDer<'static> {
        &self.der
    }
}
