//! TLS 1.3 configurations, for TLS over TCP and for QUIC alike.
//!
//! # No resumption
//!
//! A resumed TLS 1.3 session skips the certificates: the server would take a caller back on the strength of a ticket
//! whose trust domain has since been removed, or whose SVID has expired. So tickets are neither sent nor used, and
//! early data (0-RTT) is off with them. The price is one full handshake, some 0.4 ms of CPU, per tunnel or control
//! connection; flows ride on warm tunnels and do not pay it.

use std::sync::{Arc, LazyLock};

use carrick_model::{SpiffeId, TrustDomain};
use rustls::{
    ClientConfig, DigitallySignedStruct, DistinguishedName, Error, ServerConfig, SignatureScheme,
    client::{
        ResolvesClientCert, Resumption,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{
        CryptoProvider,
        aws_lc_rs::{self, cipher_suite},
        verify_tls12_signature, verify_tls13_signature,
    },
    server::{
        ClientHello, NoServerSessionStorage, ResolvesServerCert,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
    sign::CertifiedKey,
    version::TLS13,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use crate::{
    peer::{PeerError, leaf_id},
    source::Identity,
    svid::Svid,
    trust::{Role, TrustStore},
};

/// Is told of each peer that a configuration refuses, before the handshake fails. Called inside the handshake: it must
/// not block.
///
/// For counters and access logs, and for QUIC, whose connection errors keep only a text.
pub type OnRefusal = Arc<dyn Fn(&PeerError) + Send + Sync>;

/// What a client needs to call trust domain `expected`: TLS 1.3, our current SVID, and a server whose SVID chains to
/// the bundle of `expected`. The server name given to rustls goes into SNI and is not checked.
pub fn client_config(
    identity: &Identity,
    trust: &TrustStore,
    expected: &TrustDomain,
    alpn: &[&[u8]],
) -> ClientConfig {
    client_config_reporting(identity, trust, expected, alpn, Arc::new(|_| {}))
}

/// [`client_config`] that reports each server it refuses.
pub fn client_config_reporting(
    identity: &Identity,
    trust: &TrustStore,
    expected: &TrustDomain,
    alpn: &[&[u8]],
    refused: OnRefusal,
) -> ClientConfig {
    client(Arc::new(Current(identity.clone())), trust, Some(expected), alpn, refused)
}

/// [`client_config`] that speaks with `svid` and no other, for who must know which one a connection was made with.
pub fn client_config_with(
    svid: &Arc<Svid>,
    trust: &TrustStore,
    expected: &TrustDomain,
    alpn: &[&[u8]],
) -> ClientConfig {
    client(Arc::new(Fixed(svid.certified_key())), trust, Some(expected), alpn, Arc::new(|_| {}))
}

/// [`client_config_with`] for a server of any trusted trust domain: where only the server's address is known, as for the url of
/// an endpoint in a registry, and not whose it is.
pub fn client_config_any_with(svid: &Arc<Svid>, trust: &TrustStore, alpn: &[&[u8]]) -> ClientConfig {
    client(Arc::new(Fixed(svid.certified_key())), trust, None, alpn, Arc::new(|_| {}))
}

fn client(
    own: Arc<dyn ResolvesClientCert>,
    trust: &TrustStore,
    expected: Option<&TrustDomain>,
    alpn: &[&[u8]],
    refused: OnRefusal,
) -> ClientConfig {
    let verifier = ServerCheck { trust: trust.clone(), expected: expected.cloned(), refused };
    #[expect(clippy::expect_used, reason = "every suite of the provider is a TLS 1.3 one")]
    let builder = ClientConfig::builder_with_provider(Arc::clone(provider()))
        .with_protocol_versions(&[&TLS13])
        .expect("the provider speaks TLS 1.3");
    let mut config = builder
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_client_cert_resolver(own);
    config.resumption = Resumption::disabled();
    config.enable_early_data = false;
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    config
}

/// What a server needs: TLS 1.3, our current SVID, and a client with an SVID of any trusted trust domain, each checked
/// against the bundle of its own. [`peer_id`](crate::peer_id) of the presented chain then says who called.
pub fn server_config(identity: &Identity, trust: &TrustStore, alpn: &[&[u8]]) -> ServerConfig {
    server_config_reporting(identity, trust, alpn, Arc::new(|_| {}))
}

/// [`server_config`] that reports each client it refuses.
pub fn server_config_reporting(
    identity: &Identity,
    trust: &TrustStore,
    alpn: &[&[u8]],
    refused: OnRefusal,
) -> ServerConfig {
    server(Arc::new(Current(identity.clone())), trust, alpn, refused)
}

/// [`server_config`] that speaks with `svid` and no other, for who must know which one a connection was made with.
pub fn server_config_with(svid: &Arc<Svid>, trust: &TrustStore, alpn: &[&[u8]]) -> ServerConfig {
    server(Arc::new(Fixed(svid.certified_key())), trust, alpn, Arc::new(|_| {}))
}

fn server(
    own: Arc<dyn ResolvesServerCert>,
    trust: &TrustStore,
    alpn: &[&[u8]],
    refused: OnRefusal,
) -> ServerConfig {
    let verifier = ClientCheck { trust: trust.clone(), refused };
    #[expect(clippy::expect_used, reason = "every suite of the provider is a TLS 1.3 one")]
    let builder = ServerConfig::builder_with_provider(Arc::clone(provider()))
        .with_protocol_versions(&[&TLS13])
        .expect("the provider speaks TLS 1.3");
    let mut config = builder.with_client_cert_verifier(Arc::new(verifier)).with_cert_resolver(own);
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.max_tls13_tickets = 0;
    config.max_early_data_size = 0;
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    config
}

/// aws-lc-rs with AES-128-GCM first: on processors with AES instructions it seals three times what ChaCha20 does. A
/// client without them may still put ChaCha20 first, for servers keep to the client's order.
pub(crate) fn provider() -> &'static Arc<CryptoProvider> {
    static PROVIDER: LazyLock<Arc<CryptoProvider>> = LazyLock::new(|| {
        Arc::new(CryptoProvider {
            cipher_suites: vec![
                cipher_suite::TLS13_AES_128_GCM_SHA256,
                cipher_suite::TLS13_AES_256_GCM_SHA384,
                cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
            ],
            ..aws_lc_rs::default_provider()
        })
    });
    &PROVIDER
}

/// Gives each handshake the SVID of its moment.
#[derive(Debug)]
struct Current(Identity);

impl ResolvesServerCert for Current {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.current().certified_key())
    }
}

impl ResolvesClientCert for Current {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.0.current().certified_key())
    }

    fn has_certs(&self) -> bool {
        true
    }
}

/// Gives each handshake one and the same SVID.
#[derive(Debug)]
struct Fixed(Arc<CertifiedKey>);

impl ResolvesServerCert for Fixed {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0))
    }
}

impl ResolvesClientCert for Fixed {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0))
    }

    fn has_certs(&self) -> bool {
        true
    }
}

/// Checks servers on behalf of a client that called `expected`, or anybody.
struct ServerCheck {
    trust: TrustStore,
    expected: Option<TrustDomain>,
    refused: OnRefusal,
}

/// Checks clients on behalf of a server.
struct ClientCheck {
    trust: TrustStore,
    refused: OnRefusal,
}

impl ServerCheck {
    fn check(
        &self,
        leaf: &CertificateDer<'_>,
        rest: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), PeerError> {
        let id = leaf_id(leaf)?;
        if let Some(expected) = self.expected.as_ref().filter(|td| *td != id.trust_domain()) {
            let got = id.trust_domain().clone();
            return Err(PeerError::WrongDomain { expected: expected.clone(), got });
        }
        check_chain(&self.trust, &id, leaf, rest, Role::Server, now)
    }
}

impl ClientCheck {
    fn check(
        &self,
        leaf: &CertificateDer<'_>,
        rest: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), PeerError> {
        check_chain(&self.trust, &leaf_id(leaf)?, leaf, rest, Role::Client, now)
    }
}

fn check_chain(
    trust: &TrustStore,
    id: &SpiffeId,
    leaf: &CertificateDer<'_>,
    rest: &[CertificateDer<'_>],
    role: Role,
    now: UnixTime,
) -> Result<(), PeerError> {
    let unknown = || PeerError::UnknownTrustDomain { trust_domain: id.trust_domain().clone() };
    trust.anchors(id.trust_domain()).ok_or_else(unknown)?.verify(id, leaf, rest, role, now)
}

/// Tells of a refusal and makes it rustls' error.
fn report<T>(verdict: Result<T, PeerError>, refused: &OnRefusal) -> Result<T, Error> {
    verdict.map_err(|err| {
        refused(&err);
        err.into()
    })
}

impl ServerCertVerifier for ServerCheck {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        rest: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        report(self.check(leaf, rest, now), &self.refused).map(|()| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, dss, &provider().signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &provider().signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}

impl ClientCertVerifier for ClientCheck {
    /// No hints: they would tell every caller which domains we trust.
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        rest: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        report(self.check(leaf, rest, now), &self.refused).map(|()| ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, dss, &provider().signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &provider().signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}

impl std::fmt::Debug for ServerCheck {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ServerCheck").field("expected", &self.expected).finish_non_exhaustive()
    }
}

impl std::fmt::Debug for ClientCheck {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ClientCheck").field("trust", &self.trust).finish_non_exhaustive()
    }
}
