//! The certificate that a peer proved itself with.

use std::time::SystemTime;

use carrick_model::SpiffeId;
use rustls_pki_types::CertificateDer;
use x509_parser::{certificate::X509Certificate, prelude::FromDer as _};

use crate::peer::{PeerError, leaf_id, wall_of_asn1};

/// The leaf of a peer's chain after a TLS handshake: whose it is, until when, and the key that the peer's tokens are
/// verified with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerCertificate {
    id: SpiffeId,
    not_after: SystemTime,
    der: CertificateDer<'static>,
}

impl PeerCertificate {
    /// The leaf of `chain`, leaf first. Like [`peer_id`](crate::peer_id) it does **not** check the chain: the handshake
    /// did.
    pub fn of(chain: &[CertificateDer<'_>]) -> Result<Self, PeerError> {
        let leaf = chain.first().ok_or(PeerError::NoCertificate)?;
        let id = leaf_id(leaf)?;
        let (_, cert) = X509Certificate::from_der(leaf).map_err(|_| PeerError::Malformed)?;
        let not_after = wall_of_asn1(cert.validity().not_after);
        Ok(Self { id, not_after, der: leaf.clone().into_owned() })
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
