use proptest::prelude::*;
use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair, KeyUsagePurpose, SanType};

use super::*;

fn td(name: &str) -> TrustDomain {
    TrustDomain::new(name).unwrap()
}

fn root_with(
    alg: &'static rcgen::SignatureAlgorithm,
    change: impl FnOnce(&mut CertificateParams),
) -> rcgen::Certificate {
    let mut params = CertificateParams::default();
    params.subject_alt_names = vec![SanType::URI("spiffe://a.test".try_into().unwrap())];
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params.not_after = rcgen::date_time_ymd(2036, 1, 1);
    change(&mut params);
    params.self_signed(&KeyPair::generate_for(alg).unwrap()).unwrap()
}

fn root() -> rcgen::Certificate {
    root_with(&rcgen::PKCS_ECDSA_P256_SHA256, |_| {})
}

fn fault(bytes: &[u8]) -> BundleFault {
    let err = Bundle::parse(&td("a.test"), bytes).unwrap_err();
    assert_eq!(err.to_string(), "the trust bundle of `a.test` cannot be used");
    assert!(!err.hint().is_empty());
    err.fault
}

fn json(keys: &str) -> Vec<u8> {
    format!("{{\"keys\":[{keys}]}}").into_bytes()
}

#[test]
fn pem_becomes_a_spiffe_bundle_that_parses_back() {
    let (one, two) = (root(), root());
    let text = format!("a comment\n{}{}{}", one.pem(), two.pem(), one.pem());
    let bundle = Bundle::parse(&td("a.test"), text.as_bytes()).unwrap();
    assert_eq!(bundle.roots().collect::<Vec<_>>(), [one.der(), two.der()], "a root given twice counts once");
    assert_eq!(stamped(&bundle), "2036-01-01T00:00:00Z");
    let print = bundle.fingerprints();
    assert!(
        print.len() == 2 && print.iter().all(|p| p.len() == 64 && p.bytes().all(|b| b.is_ascii_hexdigit()))
    );
    let again = Bundle::parse(&td("a.test"), bundle.to_spiffe_json().as_bytes()).unwrap();
    assert_eq!(again, bundle);
}

fn stamped(bundle: &Bundle) -> String {
    crate::peer::stamp(bundle.not_after())
}

#[test]
fn every_kind_of_root_key_is_stated_as_a_jwk() {
    for (alg, kty, crv, members) in [
        (&rcgen::PKCS_ECDSA_P256_SHA256, "EC", Some("P-256"), &[("x", 43), ("y", 43)][..]),
        (&rcgen::PKCS_ECDSA_P384_SHA384, "EC", Some("P-384"), &[("x", 64), ("y", 64)]),
        (&rcgen::PKCS_ECDSA_P521_SHA512, "EC", Some("P-521"), &[("x", 88), ("y", 88)]),
        (&rcgen::PKCS_ED25519, "OKP", Some("Ed25519"), &[("x", 43)]),
        (&rcgen::PKCS_RSA_SHA256, "RSA", None, &[("n", 342), ("e", 4)]),
    ] {
        let cert = root_with(alg, |_| {});
        let bundle = Bundle::parse(&td("a.test"), cert.pem().as_bytes()).unwrap();
        let document: Value = serde_json::from_str(&bundle.to_spiffe_json()).unwrap();
        let key = &document["keys"][0];
        assert_eq!((key["kty"].as_str(), key["crv"].as_str()), (Some(kty), crv));
        for (member, characters) in members {
            assert_eq!(key[member].as_str().unwrap().len(), *characters, "{kty} {member}");
        }
        assert_eq!(key["use"], "x509-svid");
        assert_eq!(key["x5c"][0].as_str().unwrap(), BASE64_STANDARD.encode(cert.der()));
    }
}

#[test]
fn other_keys_of_a_spiffe_bundle_are_kept_or_ignored_by_their_use() {
    let x5c = BASE64_STANDARD.encode(root().der());
    let text = format!(
        r#"{{"spiffe_sequence": 7, "spiffe_refresh_hint": 300, "unknown": {{}}, "keys": [
            {{"use": "jwt-svid", "kid": "k1", "kty": "EC", "crv": "P-256", "x": "AA", "y": "AA"}},
            {{"use": "x509-svid", "kty": "EC", "x5c": ["{x5c}"]}},
            {{"use": "wit-svid", "kty": "EC"}}, {{"kty": "EC"}}]}}"#
    );
    let bundle = Bundle::parse(&td("a.test"), text.as_bytes()).unwrap();
    assert_eq!((bundle.roots().len(), bundle.refresh_hint()), (1, Some(300)));
    let out: Value = serde_json::from_str(&bundle.to_spiffe_json()).unwrap();
    assert_eq!(out["spiffe_sequence"], 7);
    let uses: Vec<_> = out["keys"].as_array().unwrap().iter().map(|k| k["use"].as_str().unwrap()).collect();
    assert_eq!(uses, ["x509-svid", "jwt-svid"]);
    assert_eq!(out["keys"][1]["kid"], "k1");
}

#[test]
fn what_is_no_bundle_says_why() {
    use BundleFault as F;
    assert!(matches!(fault(b""), F::Unrecognised));
    assert!(matches!(fault(b"\x30\x82DER"), F::Unrecognised));
    assert!(matches!(fault(b"{\"keys\": 3}"), F::Json(_)));
    assert!(matches!(fault(b"{}"), F::Json(_)));
    assert!(matches!(fault(&json("")), F::NoRoots));
    assert!(matches!(fault(&json(r#"{"use":"x509-svid"}"#)), F::X5c(1)));
    assert!(matches!(fault(&json(r#"{"use":"x509-svid","x5c":["!"]}"#)), F::X5c(1)));
    assert!(matches!(fault(&json(r#"{"use":"x509-svid","x5c":["AAAA"]}"#)), F::Certificate(1)));
    assert!(matches!(fault(&vec![b' '; MAX_BUNDLE + 1]), F::TooLarge));
    let pem = root().pem();
    assert!(matches!(fault(&pem.as_bytes()[..pem.len() / 2]), F::Pem(0)));
    let (key, many) = (KeyPair::generate().unwrap().serialize_pem(), pem.repeat(MAX_ROOTS + 1));
    assert!(matches!(fault(format!("{pem}{key}").as_bytes()), F::PrivateKey));
    assert!(matches!(fault(many.as_bytes()), F::TooMany));
}

#[test]
fn what_is_no_root_of_this_trust_domain_is_refused() {
    let p256 = &rcgen::PKCS_ECDSA_P256_SHA256;
    let leaf = root_with(p256, |p| p.is_ca = IsCa::ExplicitNoCa);
    assert!(matches!(fault(leaf.pem().as_bytes()), BundleFault::NotCa(1)));
    let mute = root_with(p256, |p| p.key_usages = vec![KeyUsagePurpose::DigitalSignature]);
    let text = format!("{}{}", root().pem(), mute.pem());
    assert!(matches!(fault(text.as_bytes()), BundleFault::NotCa(2)));
    let other = root_with(p256, |p| {
        p.subject_alt_names = vec![SanType::URI("spiffe://b.test".try_into().unwrap())];
    });
    let BundleFault::OtherTrustDomain { number: 1, named } = fault(other.pem().as_bytes()) else {
        panic!("another domain's root was taken");
    };
    assert_eq!(named, "spiffe://b.test");
    let nameless = root_with(p256, |p| p.subject_alt_names.clear());
    assert!(
        Bundle::parse(&td("a.test"), nameless.pem().as_bytes()).is_ok(),
        "an upstream CA names no trust domain"
    );
}

#[test]
fn a_bundle_file_that_is_missing_names_the_file_and_the_next_step() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("onprem.json");
    let err = Bundle::read(&td("onprem.test"), &path).unwrap_err();
    let expected = format!("the trust bundle of `onprem.test` from {} cannot be used", path.display());
    assert_eq!(err.to_string(), expected);
    assert!(matches!(&err.fault, BundleFault::Read(e) if e.kind() == io::ErrorKind::NotFound));
    assert!(err.hint().contains("carrick trust export"), "{}", err.hint());

    std::fs::write(&path, vec![b' '; MAX_BUNDLE + 1]).unwrap();
    assert!(matches!(Bundle::read(&td("onprem.test"), &path).unwrap_err().fault, BundleFault::TooLarge));
    std::fs::write(&path, root().pem()).unwrap();
    assert!(matches!(
        Bundle::read(&td("onprem.test"), &path).unwrap_err().fault,
        BundleFault::OtherTrustDomain { .. }
    ));
    assert!(Bundle::read(&td("a.test"), &path).is_ok());
}

proptest! {
    #[test]
    fn parsing_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..600), pem in any::<bool>()) {
        let head: &[u8] = if pem { b"-----BEGIN CERTIFICATE-----\n" } else { b"{" };
        let _ = Bundle::parse(&td("a.test"), &[head, &bytes].concat());
        let _ = Bundle::parse(&td("a.test"), &bytes);
    }

    #[test]
    fn a_damaged_bundle_never_panics_and_a_whole_one_round_trips(at in any::<prop::sample::Index>(), octet: u8, cut: bool) {
        let bundle = Bundle::parse(&td("a.test"), root().pem().as_bytes()).unwrap();
        let mut text = bundle.to_spiffe_json().into_bytes();
        prop_assert_eq!(Bundle::parse(&td("a.test"), &text).unwrap(), bundle);
        let at = at.index(text.len());
        text[at] = octet;
        if cut {
            text.truncate(at);
            prop_assert!(Bundle::parse(&td("a.test"), &text).is_err());
        }
        // What still parses is still a bundle: it can be written and read again.
        if let Ok(b) = Bundle::parse(&td("a.test"), &text) {
            prop_assert_eq!(&Bundle::parse(&td("a.test"), b.to_spiffe_json().as_bytes()).unwrap(), &b);
        }
    }
}
