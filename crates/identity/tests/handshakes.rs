//! Two domains with separate roots meet over real TLS 1.3: who is let in, who is not, and what the refusal says.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may")]

use std::{
    io,
    sync::{Arc, Mutex},
    time::{Duration, SystemTime},
};

use carrick_identity::{
    Bundle, EmbeddedCa, Identity, PeerError, TrustStore, client_config, peer_id, server_config,
    tls::{client_config_reporting, server_config_reporting},
};
use carrick_model::{SpiffeId, TrustDomain};
use rcgen::{
    BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    SanType, date_time_ymd,
};
use rustls::{
    AlertDescription, CipherSuite, ClientConfig, HandshakeKind, ProtocolVersion, ServerConfig,
    sign::{CertifiedKey, SingleCertAndKey},
};
use rustls_pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};
use tokio_rustls::{TlsAcceptor, TlsConnector, client, server};

const HOUR: Duration = Duration::from_secs(3_600);
const H2: &[&[u8]] = &[b"h2"];

/// A domain: a CA of its own, a gateway with an SVID, and the bundles it holds.
struct Site {
    td: TrustDomain,
    bundle: Bundle,
    gateway: Identity,
    trust: TrustStore,
    _state: TempDir,
}

impl Site {
    fn new(name: &str) -> Self {
        let (td, state, now) = (td(name), tempfile::tempdir().unwrap(), SystemTime::now());
        let ca = EmbeddedCa::open_or_create(state.path(), &td, now).unwrap();
        let (bundle, trust) = (ca.bundle(), TrustStore::new());
        let id = SpiffeId::new(format!("spiffe://{name}/carrick/gateway")).unwrap();
        let gateway = Identity::embedded(ca, id, HOUR, now).unwrap();
        Self { td, bundle, gateway, trust, _state: state }
    }

    /// Takes over `other`'s bundle as an administrator would: as SPIFFE JSON.
    fn trusts(&self, other: &Site) {
        self.trust.set(Bundle::parse(&other.td, other.bundle.to_spiffe_json().as_bytes()).unwrap()).unwrap();
    }

    fn calls(&self, other: &Site) -> ClientConfig {
        client_config(&self.gateway, &self.trust, &other.td, H2)
    }

    fn serves(&self) -> ServerConfig {
        server_config(&self.gateway, &self.trust, H2)
    }
}

fn td(name: &str) -> TrustDomain {
    TrustDomain::new(name).unwrap()
}

/// A and B, each holding the other's bundle.
fn friends() -> (Site, Site) {
    let (a, b) = (Site::new("a.test"), Site::new("b.test"));
    a.trusts(&b);
    b.trusts(&a);
    (a, b)
}

type Ends = (io::Result<client::TlsStream<DuplexStream>>, io::Result<server::TlsStream<DuplexStream>>);

async fn meet(client: &ClientConfig, server: &ServerConfig) -> Ends {
    let (near, far) = duplex(1 << 16);
    let name = "gateway.example".try_into().unwrap();
    let connect = TlsConnector::from(Arc::new(client.clone())).connect(name, near);
    let accept = TlsAcceptor::from(Arc::new(server.clone())).accept(far);
    tokio::time::timeout(Duration::from_secs(20), async { tokio::join!(connect, accept) }).await.unwrap()
}

/// Why an end refused the other. Panics unless it did.
#[track_caller]
fn refusal<T: std::fmt::Debug>(end: io::Result<T>) -> PeerError {
    let err = end.expect_err("the peer was let in");
    let found = PeerError::find_in(&err).unwrap_or_else(|| panic!("no refusal in {err:?}")).clone();
    assert!(!found.hint().is_empty() && err.to_string().contains(&found.to_string()), "{err}");
    found
}

async fn echo(
    client: &mut client::TlsStream<DuplexStream>,
    server: &mut server::TlsStream<DuplexStream>,
    word: &[u8],
) {
    let mut heard = vec![0; word.len()];
    client.write_all(word).await.unwrap();
    server.read_exact(&mut heard).await.unwrap();
    server.write_all(&heard).await.unwrap();
    client.read_exact(&mut heard).await.unwrap();
    assert_eq!(heard, word);
}

#[tokio::test]
async fn domains_that_trust_each_other_meet_and_know_each_other() {
    let (a, b) = friends();
    let (client, server) = meet(&a.calls(&b), &b.serves()).await;
    let (mut client, mut server) = (client.unwrap(), server.unwrap());
    let (near, far) = (client.get_ref().1, server.get_ref().1);
    assert_eq!(peer_id(far.peer_certificates().unwrap()).unwrap(), a.gateway.id());
    assert_eq!(peer_id(near.peer_certificates().unwrap()).unwrap(), b.gateway.id());
    assert_eq!(near.protocol_version(), Some(ProtocolVersion::TLSv1_3));
    assert_eq!(near.negotiated_cipher_suite().unwrap().suite(), CipherSuite::TLS13_AES_128_GCM_SHA256);
    assert_eq!((near.alpn_protocol(), far.alpn_protocol()), (Some(&b"h2"[..]), Some(&b"h2"[..])));
    echo(&mut client, &mut server, b"hello").await;
}

#[tokio::test]
async fn an_impostor_with_the_right_name_and_a_wrong_root_is_refused_on_either_end() {
    let (a, b) = friends();
    let impostor = Site::new("b.test");
    impostor.trusts(&a);
    let why = refusal(meet(&a.calls(&b), &impostor.serves()).await.0);
    assert_eq!(why, PeerError::Untrusted { id: impostor.gateway.id() });
    assert_eq!(
        why.to_string(),
        "the SVID of `spiffe://b.test/carrick/gateway` is not signed by a root in our bundle of `b.test`"
    );
    let why = refusal(meet(&impostor.calls(&a), &a.serves()).await.1);
    assert_eq!(why, PeerError::Untrusted { id: impostor.gateway.id() });
}

#[tokio::test]
async fn a_good_svid_of_another_trusted_domain_is_refused() {
    let (a, b) = friends();
    let c = Site::new("c.test");
    a.trusts(&c);
    c.trusts(&a);
    assert!(meet(&a.calls(&c), &c.serves()).await.0.is_ok(), "C itself is trusted");
    let why = refusal(meet(&a.calls(&b), &c.serves()).await.0);
    assert_eq!(why, PeerError::WrongDomain { expected: b.td.clone(), got: c.td.clone() });
    assert_eq!(why.to_string(), "trust domain `b.test` was called, but the peer's SVID is of `c.test`");
}

#[tokio::test]
async fn a_caller_of_an_unknown_trust_domain_is_refused_and_learns_of_it() {
    let (a, b) = (Site::new("a.test"), Site::new("b.test"));
    a.trusts(&b);
    let (client, server) = meet(&a.calls(&b), &b.serves()).await;
    assert_eq!(refusal(server), PeerError::UnknownTrustDomain { trust_domain: a.td.clone() });
    // In TLS 1.3 the client is done before the server has looked at it: the alert comes with the first read.
    let err = client.unwrap().read(&mut [0]).await.unwrap_err();
    let alert = err.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    assert_eq!(alert, Some(&rustls::Error::AlertReceived(AlertDescription::CertificateUnknown)));
    assert_eq!(PeerError::find_in(&err), None, "that is the peer's refusal, not ours");
}

#[tokio::test]
async fn a_called_domain_without_a_bundle_is_unknown() {
    let (a, b) = (Site::new("a.test"), Site::new("b.test"));
    b.trusts(&a);
    let why = refusal(meet(&a.calls(&b), &b.serves()).await.0);
    assert_eq!(why.to_string(), "trust domain `b.test` is unknown: there is no trust bundle for it");
}

#[tokio::test]
async fn a_caller_without_a_certificate_is_refused() {
    #[derive(Debug)]
    struct Nobody;
    impl rustls::client::ResolvesClientCert for Nobody {
        fn resolve(&self, _: &[&[u8]], _: &[rustls::SignatureScheme]) -> Option<Arc<CertifiedKey>> {
            None
        }
        fn has_certs(&self) -> bool {
            false
        }
    }
    let (a, b) = friends();
    let mut client = a.calls(&b);
    client.client_auth_cert_resolver = Arc::new(Nobody);
    let err = meet(&client, &b.serves()).await.1.unwrap_err();
    assert_eq!(PeerError::find_in(&err), Some(&PeerError::NoCertificate));
}

#[tokio::test]
async fn rotation_leaves_open_streams_alone_and_new_handshakes_take_the_new_svid() {
    let (a, b) = friends();
    let (calls, serves) = (a.calls(&b), b.serves());
    let (client, server) = meet(&calls, &serves).await;
    let (mut client, mut server) = (client.unwrap(), server.unwrap());
    let old = (a.gateway.current(), b.gateway.current());
    echo(&mut client, &mut server, b"before").await;

    a.gateway.rotate(SystemTime::now()).unwrap();
    b.gateway.rotate(SystemTime::now()).unwrap();
    echo(&mut client, &mut server, b"after").await;

    let (next, far) = meet(&calls, &serves).await;
    let (next, far) = (next.unwrap(), far.unwrap());
    assert_eq!(far.get_ref().1.peer_certificates().unwrap(), a.gateway.current().chain());
    assert_eq!(next.get_ref().1.peer_certificates().unwrap(), b.gateway.current().chain());
    assert_ne!(a.gateway.current().chain(), old.0.chain());
    assert_ne!(b.gateway.current().chain(), old.1.chain());
    echo(&mut client, &mut server, b"still").await;
}

#[tokio::test]
async fn trust_that_is_taken_away_counts_from_the_next_handshake_on() {
    let (a, b) = friends();
    let (calls, serves) = (a.calls(&b), b.serves());
    let mut changes = b.trust.changed();
    let (mut client, mut server) = {
        let (client, server) = meet(&calls, &serves).await;
        (client.unwrap(), server.unwrap())
    };
    // Whatever tickets there might be are read here.
    echo(&mut client, &mut server, b"hello").await;
    let (client, _server) = meet(&calls, &serves).await;
    assert_eq!(client.unwrap().get_ref().1.handshake_kind(), Some(HandshakeKind::Full), "nothing is resumed");

    changes.borrow_and_update();
    assert!(b.trust.remove(&a.td));
    assert!(changes.has_changed().unwrap(), "whoever holds live connections is told");
    assert!(!b.trust.remove(&a.td) && b.trust.get(&a.td).is_none());
    let why = refusal(meet(&calls, &serves).await.1);
    assert_eq!(why, PeerError::UnknownTrustDomain { trust_domain: a.td.clone() });
    b.trusts(&a);
    assert!(meet(&calls, &serves).await.1.is_ok(), "and back again");

    assert!(a.trust.remove(&b.td));
    let why = refusal(meet(&calls, &serves).await.0);
    assert_eq!(why, PeerError::UnknownTrustDomain { trust_domain: b.td.clone() });
}

#[tokio::test]
async fn a_bundle_with_the_next_root_bridges_a_change_of_roots() {
    let (a, b) = friends();
    let next = Site::new("b.test");
    next.trusts(&a);
    let calls = a.calls(&b);
    refusal(meet(&calls, &next.serves()).await.0);
    let key = |site: &Site| {
        let document: serde_json::Value = serde_json::from_str(&site.bundle.to_spiffe_json()).unwrap();
        document["keys"][0].clone()
    };
    let both = serde_json::json!({"keys": [key(&b), key(&next)]}).to_string();
    a.trust.set(Bundle::parse(&b.td, both.as_bytes()).unwrap()).unwrap();
    assert!(meet(&calls, &b.serves()).await.0.is_ok() && meet(&calls, &next.serves()).await.0.is_ok());
    assert_eq!(a.trust.trust_domains(), std::slice::from_ref(&b.td), "still one bundle for one trust domain");
}

#[tokio::test]
async fn refusals_are_reported_where_the_error_will_not_carry_them() {
    let (a, b) = (Site::new("a.test"), Site::new("b.test"));
    let seen = Arc::new(Mutex::new(Vec::new()));
    let report = || {
        let seen = Arc::clone(&seen);
        Arc::new(move |err: &PeerError| seen.lock().unwrap().push(err.reason()))
    };
    let calls = client_config_reporting(&a.gateway, &a.trust, &b.td, H2, report());
    let serves = server_config_reporting(&b.gateway, &b.trust, H2, report());
    let _ = meet(&calls, &serves).await;
    a.trusts(&b);
    let _ = meet(&calls, &serves).await;
    b.trusts(&a);
    let _ = meet(&calls, &serves).await;
    assert_eq!(*seen.lock().unwrap(), ["unknown_trust_domain", "unknown_trust_domain"]);
}

/// A CA that signs whatever it is told to.
struct Mint {
    issuer: Issuer<'static, KeyPair>,
    root: rcgen::Certificate,
}

impl Mint {
    fn new(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        params.subject_alt_names = vec![uri(&format!("spiffe://{name}"))];
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let key = KeyPair::generate().unwrap();
        let root = params.self_signed(&key).unwrap();
        Self { issuer: Issuer::new(params, key), root }
    }

    fn bundle(&self, name: &str) -> Bundle {
        Bundle::parse(&td(name), self.root.pem().as_bytes()).unwrap()
    }

    fn leaf(&self, change: impl FnOnce(&mut CertificateParams)) -> Arc<SingleCertAndKey> {
        let key = KeyPair::generate().unwrap();
        let leaf = leaf(change).signed_by(&key, &self.issuer).unwrap();
        presented(vec![leaf.into()], &key)
    }

    /// A leaf under an intermediate, as SPIRE with an upstream CA hands them out.
    fn leaf_by_intermediate(&self) -> Arc<SingleCertAndKey> {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(rcgen::DnType::CommonName, "intermediate");
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let key = KeyPair::generate().unwrap();
        let intermediate = params.signed_by(&key, &self.issuer).unwrap();
        let (issuer, key) = (Issuer::new(params, key), KeyPair::generate().unwrap());
        let leaf = leaf(|_| {}).signed_by(&key, &issuer).unwrap();
        presented(vec![leaf.into(), intermediate.into()], &key)
    }
}

fn leaf(change: impl FnOnce(&mut CertificateParams)) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.subject_alt_names = vec![uri("spiffe://b.test/gateway")];
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    change(&mut params);
    params
}

fn presented(chain: Vec<CertificateDer<'static>>, key: &KeyPair) -> Arc<SingleCertAndKey> {
    let key = PrivatePkcs8KeyDer::from(key.serialize_der()).into();
    let provider = rustls::crypto::aws_lc_rs::default_provider();
    Arc::new(CertifiedKey::from_der(chain, key, &provider).unwrap().into())
}

fn uri(text: &str) -> SanType {
    SanType::URI(text.try_into().unwrap())
}

/// Has `svid` presented by a server and by a client of B, and gives what A says to each.
async fn offer(svid: Arc<SingleCertAndKey>, a: &Site, b: &Site) -> (io::Result<()>, io::Result<()>) {
    let mut serves = b.serves();
    serves.cert_resolver = svid.clone();
    let mut calls = b.calls(a);
    calls.client_auth_cert_resolver = svid;
    (meet(&a.calls(b), &serves).await.0.map(drop), meet(&calls, &a.serves()).await.1.map(drop))
}

#[tokio::test]
async fn a_certificate_that_is_no_good_svid_is_refused_for_its_own_reason_on_either_end() {
    let (a, b) = friends();
    let mint = Mint::new("b.test");
    a.trust.set(mint.bundle("b.test")).unwrap();

    let (server, client) = offer(mint.leaf(|_| {}), &a, &b).await;
    assert!(server.is_ok() && client.is_ok(), "the unchanged leaf is good: {server:?} {client:?}");
    let (server, client) = offer(mint.leaf_by_intermediate(), &a, &b).await;
    assert!(server.is_ok() && client.is_ok(), "intermediates are followed: {server:?} {client:?}");

    type Change = fn(&mut CertificateParams);
    let cases: [(&str, Change); 9] = [
        ("no_uri_san", |p| p.subject_alt_names.clear()),
        ("no_uri_san", |p| p.subject_alt_names = vec![SanType::DnsName("b.test".try_into().unwrap())]),
        ("two_uri_sans", |p| p.subject_alt_names.push(uri("spiffe://b.test/other"))),
        ("two_uri_sans", |p| p.subject_alt_names.push(uri("https://b.test/"))),
        ("not_spiffe", |p| p.subject_alt_names = vec![uri("https://b.test/gateway")]),
        ("not_a_leaf", |p| p.is_ca = IsCa::Ca(BasicConstraints::Unconstrained)),
        ("not_a_leaf", |p| p.key_usages.push(KeyUsagePurpose::KeyCertSign)),
        ("expired", |p| p.not_after = date_time_ymd(2020, 1, 1)),
        ("not_yet_valid", |p| p.not_before = date_time_ymd(2100, 1, 1)),
    ];
    for (reason, change) in cases {
        let (server, client) = offer(mint.leaf(change), &a, &b).await;
        assert_eq!((refusal(server).reason(), refusal(client).reason()), (reason, reason));
    }
}

#[tokio::test]
async fn wrong_times_are_told_with_both_clocks() {
    let (a, b) = friends();
    let mint = Mint::new("b.test");
    a.trust.set(mint.bundle("b.test")).unwrap();
    let old =
        refusal(offer(mint.leaf(|p| p.not_after = date_time_ymd(2020, 1, 1)), &a, &b).await.0).to_string();
    assert!(
        old.starts_with("the SVID of `spiffe://b.test/gateway` expired at 2020-01-01T00:00:00Z, ")
            && old.contains(" days before our clock's 20"),
        "{old}"
    );
    let ahead =
        refusal(offer(mint.leaf(|p| p.not_before = date_time_ymd(2100, 1, 1)), &a, &b).await.1).to_string();
    assert!(
        ahead.starts_with("the SVID of `spiffe://b.test/gateway` is valid from 2100-01-01T00:00:00Z, ")
            && ahead.contains(" days after our clock's 20"),
        "{ahead}"
    );
}

#[tokio::test]
async fn a_trusted_root_speaks_for_no_domain_but_its_own() {
    let (a, b) = friends();
    let evil = Mint::new("evil.test");
    a.trust.set(evil.bundle("evil.test")).unwrap();
    // Signed by a root that A holds, for another domain: B's name in an SVID by evil.test's CA.
    let (server, client) = offer(evil.leaf(|_| {}), &a, &b).await;
    assert_eq!((refusal(server).reason(), refusal(client).reason()), ("untrusted", "untrusted"));
}

#[tokio::test]
async fn an_svid_serves_only_the_purposes_it_is_for() {
    let (a, b) = friends();
    let mint = Mint::new("b.test");
    a.trust.set(mint.bundle("b.test")).unwrap();
    let only = |purpose| mint.leaf(|p| p.extended_key_usages = vec![purpose]);
    let (server, client) = offer(only(ExtendedKeyUsagePurpose::ServerAuth), &a, &b).await;
    assert!(server.is_ok() && refusal(client).reason() == "unusable");
    let (server, client) = offer(only(ExtendedKeyUsagePurpose::ClientAuth), &a, &b).await;
    assert!(refusal(server).reason() == "unusable" && client.is_ok());
}
