use std::{
    fs::{self, Permissions},
    os::unix::fs::PermissionsExt as _,
};

use rustls_pki_types::UnixTime;
use tempfile::TempDir;
use x509_parser::extensions::GeneralName;

use super::*;
use crate::{
    peer::leaf_id,
    trust::{Role, TrustStore},
};

const HOUR: Duration = Duration::from_secs(3_600);

pub(super) fn td(name: &str) -> TrustDomain {
    TrustDomain::new(name).unwrap()
}

pub(super) fn gateway() -> SpiffeId {
    SpiffeId::new("spiffe://a.test/carrick/gateway").unwrap()
}

pub(super) fn now() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000)
}

fn open(dir: &TempDir) -> Result<EmbeddedCa, CaError> {
    EmbeddedCa::open_or_create(dir.path(), &td("a.test"), now())
}

fn root_file(dir: &TempDir) -> PathBuf {
    dir.path().join("ca/root.pem")
}

/// Puts `text` in place of the root file, with the right mode.
fn plant(dir: &TempDir, text: impl AsRef<[u8]>) {
    fs::create_dir_all(dir.path().join("ca")).unwrap();
    fs::write(root_file(dir), text).unwrap();
    fs::set_permissions(root_file(dir), Permissions::from_mode(0o600)).unwrap();
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

pub(super) fn verifies(
    bundle: Bundle,
    svid: &Svid,
    role: Role,
    at: SystemTime,
) -> Result<(), crate::PeerError> {
    let trust = TrustStore::new();
    trust.set(bundle).unwrap();
    let at = UnixTime::since_unix_epoch(at.duration_since(SystemTime::UNIX_EPOCH).unwrap());
    trust.anchors(&td("a.test")).unwrap().verify(svid.id(), &svid.chain()[0], &[], role, at)
}

#[test]
fn the_root_is_made_once_and_only_its_owner_reads_it() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("var/lib/carrick");
    let first = EmbeddedCa::open_or_create(&state, &td("a.test"), now()).unwrap();
    assert_eq!(mode(&state.join("ca")), 0o700);
    assert_eq!(mode(&state.join("ca/root.pem")), 0o600);
    let names: Vec<_> = fs::read_dir(state.join("ca")).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(names, ["root.pem"], "no draft is left behind");

    let later = now() + 1_000 * HOUR;
    let again = EmbeddedCa::open_or_create(&state, &td("a.test"), later).unwrap();
    assert_eq!(again.bundle(), first.bundle());
    let svid = again.issue(&gateway(), HOUR, later).unwrap();
    verifies(first.bundle(), &svid, Role::Server, later).unwrap();
    verifies(first.bundle(), &svid, Role::Client, later).unwrap();
}

#[test]
fn many_starts_at_once_agree_on_one_root() {
    let dir = tempfile::tempdir().unwrap();
    let prints: Vec<_> = std::thread::scope(|s| {
        let starts: Vec<_> =
            (0..8).map(|_| s.spawn(|| open(&dir).unwrap().bundle().fingerprints())).collect();
        starts.into_iter().map(|start| start.join().unwrap()).collect()
    });
    assert!(prints.iter().all(|p| *p == prints[0]), "{prints:?}");
}

#[test]
fn a_crash_while_writing_leaves_nothing_that_matters() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("ca")).unwrap();
    fs::set_permissions(dir.path().join("ca"), Permissions::from_mode(0o700)).unwrap();
    fs::write(dir.path().join("ca/.root.pem.new"), "half of a ro").unwrap();
    open(&dir).unwrap();
    assert!(!dir.path().join("ca/.root.pem.new").exists());
    assert_eq!(mode(&root_file(&dir)), 0o600);
}

#[test]
fn a_key_that_others_can_read_or_replace_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    open(&dir).unwrap();
    fs::set_permissions(root_file(&dir), Permissions::from_mode(0o644)).unwrap();
    let err = open(&dir).unwrap_err();
    assert!(
        matches!(&err, CaError::File(FileError::Exposed { mode: 0o644, path }) if *path == root_file(&dir))
    );
    assert!(
        err.to_string().ends_with("root.pem has mode 644: others than its owner can get at the key"),
        "{err}"
    );
    assert!(err.hint().contains("chmod"));

    fs::set_permissions(root_file(&dir), Permissions::from_mode(0o600)).unwrap();
    fs::set_permissions(dir.path().join("ca"), Permissions::from_mode(0o777)).unwrap();
    assert!(matches!(open(&dir), Err(CaError::File(FileError::Exposed { mode: 0o777, .. }))));
    fs::set_permissions(dir.path().join("ca"), Permissions::from_mode(0o700)).unwrap();
    open(&dir).unwrap();
}

#[test]
fn a_state_directory_that_cannot_hold_a_ca_is_named() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("state"), "a file").unwrap();
    let err = EmbeddedCa::open_or_create(&dir.path().join("state"), &td("a.test"), now()).unwrap_err();
    assert!(matches!(&err, CaError::File(FileError::Io { doing: "create", .. })), "{err}");
    assert!(err.to_string().contains("state/ca") && err.hint().contains("state_dir"));

    // Neither a link to elsewhere nor a pipe that never answers takes the place of the file.
    fs::create_dir(dir.path().join("ca")).unwrap();
    std::os::unix::fs::symlink(dir.path().join("state"), root_file(&dir)).unwrap();
    assert!(matches!(open(&dir), Err(CaError::File(FileError::Io { doing: "open", .. }))));
    fs::remove_file(root_file(&dir)).unwrap();
    fs::create_dir(root_file(&dir)).unwrap();
    assert!(matches!(open(&dir), Err(CaError::File(FileError::NotPlain { .. }))));
}

#[test]
fn another_domains_ca_is_refused_and_kept() {
    let dir = tempfile::tempdir().unwrap();
    open(&dir).unwrap();
    let before = fs::read(root_file(&dir)).unwrap();
    let err = EmbeddedCa::open_or_create(dir.path(), &td("b.test"), now()).unwrap_err();
    let expected =
        format!("the CA in {} is of `spiffe://a.test`, not of `b.test`", root_file(&dir).display());
    assert_eq!(err.to_string(), expected);
    assert_eq!(fs::read(root_file(&dir)).unwrap(), before);
}

#[test]
fn a_damaged_root_file_says_what_is_wrong_and_is_not_overwritten() {
    let key = || KeyPair::generate().unwrap();
    let (own, other) = (key(), key());
    let certificate = root(&td("a.test"), now()).unwrap().self_signed(&own).unwrap().pem();
    let whole = format!("{certificate}{}", own.serialize_pem());
    let ed25519 = KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap().serialize_pem();
    for (text, why) in [
        (String::new(), "it holds no certificate"),
        ("\0\0\0\0".to_owned(), "it holds no certificate"),
        (certificate.clone(), "it holds no private key"),
        (own.serialize_pem(), "it holds no certificate"),
        (whole[..certificate.len() - 40].to_owned(), "it is not valid PEM"),
        (whole[..whole.len() - 40].to_owned(), "it is not valid PEM"),
        (format!("{certificate}{}", other.serialize_pem()), "its private key is not that of its certificate"),
        (format!("{certificate}{ed25519}"), "its private key is not an ECDSA P-256 key"),
        (whole.repeat(2), "it holds more than one certificate and one key"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        plant(&dir, &text);
        let err = open(&dir).unwrap_err();
        assert!(matches!(err, CaError::Damaged { what, .. } if what == why), "{err} instead of {why}");
        assert!(err.hint().contains("backup"));
        assert_eq!(fs::read(root_file(&dir)).unwrap(), text.as_bytes());
    }
    let dir = tempfile::tempdir().unwrap();
    plant(&dir, &whole);
    open(&dir).expect("the same pieces, undamaged, are a CA");
}

#[test]
fn a_leaf_is_no_root() {
    let dir = tempfile::tempdir().unwrap();
    let key = KeyPair::generate().unwrap();
    let cert = leaf(&gateway(), now() - HOUR, now() + HOUR).unwrap().self_signed(&key).unwrap();
    plant(&dir, format!("{}{}", cert.pem(), key.serialize_pem()));
    assert!(matches!(open(&dir), Err(CaError::Root { source: BundleFault::NotCa(1), .. })));
}

#[test]
fn a_wrong_clock_is_told_from_an_old_root() {
    let dir = tempfile::tempdir().unwrap();
    let at = |now| EmbeddedCa::open_or_create(dir.path(), &td("a.test"), now);
    let unset = at(SystemTime::UNIX_EPOCH + HOUR).unwrap_err();
    assert_eq!(
        unset.to_string(),
        "our clock says 1970-01-01T01:00:00Z, which cannot be: no root is made by it"
    );
    assert!(!root_file(&dir).exists());

    at(now()).unwrap();
    let back = at(now() - 48 * HOUR).unwrap_err();
    assert!(matches!(back, CaError::RootNotYetValid { .. }) && back.hint().contains("clock"));
    at(now() - 23 * HOUR).expect("a time zone's worth of error is forgiven");
    assert!(matches!(at(now() + ROOT_LIFETIME), Err(CaError::RootExpired { .. })));
}

#[test]
fn an_svid_follows_the_x509_svid_rules() {
    let dir = tempfile::tempdir().unwrap();
    let ca = open(&dir).unwrap();
    let svid = ca.issue(&gateway(), HOUR, now()).unwrap();
    assert_eq!(svid.id(), &gateway());
    assert_eq!((svid.not_before(), svid.not_after()), (now() - SVID_BACKDATE, now() + HOUR));
    assert_eq!(leaf_id(&svid.chain()[0]).unwrap(), gateway());

    let (_, cert) = X509Certificate::from_der(&svid.chain()[0]).unwrap();
    assert_eq!(wall_of_asn1(cert.validity().not_before), svid.not_before());
    assert_eq!(wall_of_asn1(cert.validity().not_after), svid.not_after());
    let names = &cert.subject_alternative_name().unwrap().unwrap().value.general_names;
    assert_eq!(names, &[GeneralName::URI("spiffe://a.test/carrick/gateway")]);
    assert!(!cert.basic_constraints().unwrap().unwrap().value.ca);
    let usage = cert.key_usage().unwrap().unwrap();
    assert!(usage.critical && usage.value.digital_signature() && !usage.value.key_cert_sign());
    let purpose = cert.extended_key_usage().unwrap().unwrap().value;
    assert!(purpose.server_auth && purpose.client_auth);

    let bundle = ca.bundle();
    let (_, root) = X509Certificate::from_der(bundle.roots().next().unwrap()).unwrap();
    let names = &root.subject_alternative_name().unwrap().unwrap().value.general_names;
    assert_eq!(names, &[GeneralName::URI("spiffe://a.test")]);
    assert!(root.basic_constraints().unwrap().unwrap().value.ca);
    assert!(root.key_usage().unwrap().unwrap().value.key_cert_sign());
    let years = root.validity().not_after.timestamp() - root.validity().not_before.timestamp();
    assert_eq!(years / (365 * 86_400), 10);
}

#[test]
fn what_the_ca_must_not_issue_it_does_not() {
    let dir = tempfile::tempdir().unwrap();
    let ca = open(&dir).unwrap();
    let issue = |id: &str, life| ca.issue(&SpiffeId::new(id).unwrap(), life, now());
    assert!(matches!(issue("spiffe://b.test/x", HOUR), Err(CaError::Foreign { .. })));
    assert!(matches!(issue("spiffe://a.test", HOUR), Err(CaError::NoPath { .. })));
    assert!(matches!(issue("spiffe://a.test/x", Duration::ZERO), Err(CaError::Lifetime(_))));
    let long = issue("spiffe://a.test/x", Duration::MAX).unwrap();
    assert_eq!(long.not_after(), now() + ROOT_LIFETIME, "no SVID outlives its root");
    assert!(matches!(ca.issue(&gateway(), HOUR, now() + ROOT_LIFETIME), Err(CaError::RootExpired { .. })));
}

#[test]
fn an_svid_is_due_at_half_of_its_life_or_when_the_clock_is_set_back() {
    let dir = tempfile::tempdir().unwrap();
    let svid = open(&dir).unwrap().issue(&gateway(), HOUR, now()).unwrap();
    let second = Duration::from_secs(1);
    assert_eq!(svid.renew_at(), now() + HOUR / 2);
    assert!(!svid.is_due(now()) && !svid.is_due(now() + HOUR / 2 - second));
    assert!(svid.is_due(now() + HOUR / 2) && svid.is_due(now() + HOUR));
    assert!(!svid.is_due(now() - SVID_BACKDATE) && svid.is_due(now() - SVID_BACKDATE - second));
}

#[test]
fn keys_are_not_printed() {
    let dir = tempfile::tempdir().unwrap();
    let ca = open(&dir).unwrap();
    let svid = ca.issue(&gateway(), HOUR, now()).unwrap();
    // The shapes in which Debug would show octets: a decimal list, with or without line breaks.
    let key = svid.private_key().secret_pkcs8_der();
    let some = format!("{:?}", &key[40..48]);
    let some = some.trim_matches(['[', ']']);
    for text in [format!("{svid:?}"), format!("{ca:?}"), format!("{:?}", svid.private_key())] {
        assert!(!text.contains(some), "{text}");
        assert!(text.len() < 400, "{text}");
    }
}

#[test]
fn a_bundle_whose_roots_have_all_expired_verifies_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let ca = open(&dir).unwrap();
    let svid = ca.issue(&gateway(), Duration::MAX, now()).unwrap();
    verifies(ca.bundle(), &svid, Role::Client, now() + ROOT_LIFETIME - HOUR).unwrap();
    let err = verifies(ca.bundle(), &svid, Role::Client, now() + ROOT_LIFETIME + HOUR).unwrap_err();
    assert_eq!(err.reason(), "bundle_expired");
}
