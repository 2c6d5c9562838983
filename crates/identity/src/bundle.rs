//! Trust bundles: the X.509 roots of one trust domain.

use std::{
    collections::HashSet,
    fmt::Write as _,
    fs::File,
    io::{self, Read as _},
    path::{Path, PathBuf},
    time::SystemTime,
};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use carrick_model::{SpiffeId, TrustDomain};
use rustls_pki_types::{
    CertificateDer,
    pem::{PemObject as _, SectionKind},
};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use x509_parser::{certificate::X509Certificate, extensions::GeneralName, prelude::FromDer as _};

use crate::{jwk::Jwk, peer::wall_of_asn1};

/// Longest bundle we read, in octets. A root takes some 1.5 KiB of it, so [`MAX_ROOTS`] fit many times over.
pub const MAX_BUNDLE: usize = 1 << 20;

/// Most X.509 roots in one bundle. Two or three are usual (a root and its successor); path building tries them all, so
/// a peer must not be able to make us hold thousands.
pub const MAX_ROOTS: usize = 64;

/// Most JWT keys kept from one bundle.
pub const MAX_JWT_KEYS: usize = 64;

/// The X.509 roots of **one** trust domain, as a SPIFFE bundle carries them.
#[derive(Debug, Clone, PartialEq)]
pub struct Bundle {
    trust_domain: TrustDomain,
    roots: Vec<Root>,
    jwt_keys: Vec<Value>,
    sequence: Option<u64>,
    refresh_hint: Option<u64>,
}

#[derive(Debug, Clone, PartialEq)]
struct Root {
    der: CertificateDer<'static>,
    jwk: Jwk,
    not_after: SystemTime,
}

/// A bundle that cannot be used: whose, from where, and [why](BundleFault).
#[derive(Debug, thiserror::Error)]
#[error("the trust bundle of `{trust_domain}`{} cannot be used", from(.path.as_deref()))]
pub struct BundleError {
    /// The trust domain the bundle was to speak for.
    pub trust_domain: TrustDomain,
    /// The file, when it came from one.
    pub path: Option<PathBuf>,
    /// What is wrong with it.
    #[source]
    pub fault: BundleFault,
}

/// What is wrong with a bundle. Certificates and keys are counted from 1 in the order of the file.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BundleFault {
    /// The file cannot be read.
    #[error("the file cannot be read")]
    Read(#[source] io::Error),
    /// There are more than [`MAX_BUNDLE`] octets.
    #[error("it is larger than {MAX_BUNDLE} bytes")]
    TooLarge,
    /// It is neither JSON nor PEM.
    #[error("it is neither a SPIFFE bundle (JSON) nor PEM certificates")]
    Unrecognised,
    /// It begins as JSON and is not a SPIFFE bundle.
    #[error("it is not a SPIFFE bundle")]
    Json(#[source] serde_json::Error),
    /// It has PEM markers that do not fit, or no base64 between them.
    #[error("its PEM is broken after {0} whole sections")]
    Pem(usize),
    /// It has a private key in it. Nobody's private key belongs in a bundle.
    #[error("it contains a private key, which belongs in no bundle")]
    PrivateKey,
    /// It has no X.509 root.
    #[error("it contains no X.509 root certificate")]
    NoRoots,
    /// It has more than [`MAX_ROOTS`] roots or [`MAX_JWT_KEYS`] JWT keys.
    #[error("it has more than {MAX_ROOTS} roots or {MAX_JWT_KEYS} JWT keys")]
    TooMany,
    /// A key of use `x509-svid` has not exactly one certificate in base64.
    #[error("key {0} has no single base64 certificate in `x5c`")]
    X5c(usize),
    /// A certificate does not parse.
    #[error("certificate {0} is not valid X.509")]
    Certificate(usize),
    /// A certificate cannot sign others.
    #[error("certificate {0} is not a CA certificate")]
    NotCa(usize),
    /// A certificate has a key of a kind that we cannot verify with.
    #[error("certificate {0} has a key that is neither ECDSA P-256/P-384/P-521, RSA nor Ed25519")]
    KeyKind(usize),
    /// A certificate names another trust domain.
    #[error("certificate {number} belongs to `{named}`")]
    OtherTrustDomain {
        /// Which certificate.
        number: usize,
        /// The SPIFFE ID it carries.
        named: String,
    },
}

impl Bundle {
    /// Parses a bundle of `td`: SPIFFE bundle JSON (a JWKS with `use` = `x509-svid` and `x5c`), or PEM certificates.
    ///
    /// Keys of use `jwt-svid` are kept for [`to_spiffe_json`](Self::to_spiffe_json); keys of other uses are ignored, as
    /// the specification asks (SPIFFE Trust Domain and Bundle, section 4).
    pub fn parse(td: &TrustDomain, bytes: &[u8]) -> Result<Self, BundleError> {
        Self::parse_inner(td, bytes).map_err(|fault| BundleError {
            trust_domain: td.clone(),
            path: None,
            fault,
        })
    }

    /// Reads and parses the bundle file at `path`. Blocks for one read of at most [`MAX_BUNDLE`] octets.
    pub fn read(td: &TrustDomain, path: &Path) -> Result<Self, BundleError> {
        let fail = |fault| BundleError { trust_domain: td.clone(), path: Some(path.to_owned()), fault };
        let mut bytes = Vec::new();
        // One octet more than allowed tells a file that is too long from one that just fits.
        let read = File::open(path).and_then(|f| f.take(MAX_BUNDLE as u64 + 1).read_to_end(&mut bytes));
        read.map_err(|err| fail(BundleFault::Read(err)))?;
        Self::parse_inner(td, &bytes).map_err(fail)
    }

    fn parse_inner(td: &TrustDomain, bytes: &[u8]) -> Result<Self, BundleFault> {
        if bytes.len() > MAX_BUNDLE {
            return Err(BundleFault::TooLarge);
        }
        let text = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes).trim_ascii();
        if text.starts_with(b"{") {
            return Self::parse_json(td, text);
        }
        if text.windows(PEM_BEGIN.len()).any(|w| w == PEM_BEGIN) {
            let roots = roots_of(td, pem_certificates(text)?)?;
            return Ok(Self::of(td, roots));
        }
        Err(BundleFault::Unrecognised)
    }

    fn parse_json(td: &TrustDomain, text: &[u8]) -> Result<Self, BundleFault> {
        let document: Document = serde_json::from_slice(text).map_err(BundleFault::Json)?;
        let mut certificates = Vec::new();
        let mut jwt_keys = Vec::new();
        for (index, key) in document.keys.into_iter().enumerate() {
            let number = index + 1;
            match key.get("use").and_then(Value::as_str) {
                Some(USE_X509) => certificates.push((number, x5c(&key).ok_or(BundleFault::X5c(number))?)),
                Some(USE_JWT) => jwt_keys.push(key),
                _ => {}
            }
        }
        if jwt_keys.len() > MAX_JWT_KEYS {
            return Err(BundleFault::TooMany);
        }
        let roots = roots_of(td, certificates)?;
        let (sequence, refresh_hint) = (document.spiffe_sequence, document.spiffe_refresh_hint);
        Ok(Self { jwt_keys, sequence, refresh_hint, ..Self::of(td, roots) })
    }

    /// The bundle of roots that we made ourselves.
    pub(crate) fn of_roots(
        td: &TrustDomain,
        roots: impl IntoIterator<Item = CertificateDer<'static>>,
    ) -> Result<Self, BundleFault> {
        Ok(Self::of(td, roots_of(td, (1..).zip(roots).collect())?))
    }

    fn of(td: &TrustDomain, roots: Vec<Root>) -> Self {
        Self { trust_domain: td.clone(), roots, jwt_keys: Vec::new(), sequence: None, refresh_hint: None }
    }

    /// This bundle as SPIFFE bundle JSON, for another domain to import.
    pub fn to_spiffe_json(&self) -> String {
        let x509 =
            self.roots.iter().map(|root| root.jwk.to_value(USE_X509, &BASE64_STANDARD.encode(&root.der)));
        let document = Document {
            keys: x509.chain(self.jwt_keys.iter().cloned()).collect(),
            spiffe_sequence: self.sequence,
            spiffe_refresh_hint: self.refresh_hint,
        };
        #[expect(clippy::expect_used, reason = "string keys and finite numbers always serialise")]
        serde_json::to_string_pretty(&document).expect("a bundle serialises")
    }

    /// The trust domain whose roots these are.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// The root certificates, DER.
    pub fn roots(&self) -> impl ExactSizeIterator<Item = &CertificateDer<'static>> {
        self.roots.iter().map(|root| &root.der)
    }

    /// SHA-256 of each root's DER, in lower-case hex: what two administrators compare.
    pub fn fingerprints(&self) -> Vec<String> {
        self.roots().map(|root| hex_sha256(root)).collect()
    }

    /// When the last of the roots expires: after this the bundle verifies nothing.
    pub fn not_after(&self) -> SystemTime {
        self.roots.iter().map(|root| root.not_after).max().unwrap_or(SystemTime::UNIX_EPOCH)
    }

    /// How often the publisher wants the bundle fetched again, in seconds (`spiffe_refresh_hint`).
    pub fn refresh_hint(&self) -> Option<u64> {
        self.refresh_hint
    }
}

const PEM_BEGIN: &[u8] = b"-----BEGIN ";
const USE_X509: &str = "x509-svid";
const USE_JWT: &str = "jwt-svid";

/// SPIFFE Trust Domain and Bundle, section 4.1: a JWK Set with two parameters of its own.
#[derive(Serialize, Deserialize)]
struct Document {
    keys: Vec<Value>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    spiffe_sequence: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    spiffe_refresh_hint: Option<u64>,
}

/// The one certificate of an `x509-svid` key (section 4.2.2: exactly one, DER in standard base64).
fn x5c(key: &Value) -> Option<CertificateDer<'static>> {
    match key.get("x5c")?.as_array()?.as_slice() {
        [Value::String(text)] => BASE64_STANDARD.decode(text).ok().map(CertificateDer::from),
        _ => None,
    }
}

fn pem_certificates(text: &[u8]) -> Result<Vec<(usize, CertificateDer<'static>)>, BundleFault> {
    let mut found = Vec::new();
    for (index, section) in <(SectionKind, Vec<u8>)>::pem_slice_iter(text).enumerate() {
        // What the parser says may quote the line, and the line may be a key: only the place is told.
        let (kind, der) = section.map_err(|_| BundleFault::Pem(index))?;
        match kind {
            SectionKind::Certificate => found.push((found.len() + 1, der.into())),
            SectionKind::PrivateKey | SectionKind::RsaPrivateKey | SectionKind::EcPrivateKey => {
                return Err(BundleFault::PrivateKey);
            }
            _ => {}
        }
    }
    Ok(found)
}

fn roots_of(
    td: &TrustDomain,
    certificates: Vec<(usize, CertificateDer<'static>)>,
) -> Result<Vec<Root>, BundleFault> {
    if certificates.is_empty() {
        return Err(BundleFault::NoRoots);
    }
    if certificates.len() > MAX_ROOTS {
        return Err(BundleFault::TooMany);
    }
    let mut seen = HashSet::new();
    let distinct = certificates.into_iter().filter(|(_, der)| seen.insert(der.clone()));
    distinct.map(|(number, der)| root(td, number, der)).collect()
}

fn root(td: &TrustDomain, number: usize, der: CertificateDer<'static>) -> Result<Root, BundleFault> {
    let broken = || BundleFault::Certificate(number);
    let (rest, cert) = X509Certificate::from_der(&der).map_err(|_| broken())?;
    if !rest.is_empty() {
        return Err(broken());
    }
    let constraints = cert.basic_constraints().map_err(|_| broken())?;
    let usage = cert.key_usage().map_err(|_| broken())?;
    let signs = usage.is_none_or(|u| u.value.key_cert_sign());
    if !signs || !constraints.is_some_and(|c| c.value.ca) {
        return Err(BundleFault::NotCa(number));
    }
    let names = cert.subject_alternative_name().map_err(|_| broken())?;
    for name in names.iter().flat_map(|n| &n.value.general_names) {
        // A root need not name its trust domain (an upstream CA does not), but one that names another is a mix-up.
        if let GeneralName::URI(uri) = name
            && let Ok(id) = SpiffeId::new(uri)
            && id.trust_domain() != td
        {
            return Err(BundleFault::OtherTrustDomain { number, named: id.to_string() });
        }
    }
    let jwk = Jwk::of(cert.public_key()).ok_or(BundleFault::KeyKind(number))?;
    let not_after = wall_of_asn1(cert.validity().not_after);
    Ok(Root { jwk, not_after, der })
}

fn hex_sha256(bytes: &[u8]) -> String {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes);
    digest.as_ref().iter().fold(String::with_capacity(64), |mut hex, octet| {
        let _ = write!(hex, "{octet:02x}");
        hex
    })
}

fn from(path: Option<&Path>) -> String {
    path.map_or_else(String::new, |p| format!(" from {}", p.display()))
}

impl BundleError {
    /// What the operator can do next.
    pub fn hint(&self) -> &'static str {
        match self.fault {
            BundleFault::Read(ref err) if err.kind() == io::ErrorKind::NotFound => {
                "copy the output of `carrick trust export` of that domain to this path, or correct `bundle:`"
            }
            BundleFault::Read(_) => "let the user that runs carrick read the file",
            BundleFault::PrivateKey => {
                "treat that key as exposed; give out only what `carrick trust export` prints"
            }
            BundleFault::OtherTrustDomain { .. } => {
                "the bundle is of another domain: check which file belongs to which entry under `trust:`"
            }
            BundleFault::NotCa(_) => {
                "a bundle holds the CA's root certificates, not a gateway's own certificate"
            }
            _ => "export the bundle again with `carrick trust export` (SPIRE: `bundle show -format spiffe`)",
        }
    }
}

#[cfg(test)]
#[path = "bundle_tests.rs"]
mod tests;
