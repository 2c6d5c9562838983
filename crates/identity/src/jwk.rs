//! Public keys as JSON Web Keys (RFC 7517, RFC 7518 section 6, RFC 8037), as a SPIFFE bundle must state them.

use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use serde_json::{Value, json};
use x509_parser::{oid_registry as oid, public_key::PublicKey, x509::SubjectPublicKeyInfo};

/// The public key of a root, of one of the kinds that we can verify with. Coordinates are big-endian octets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Jwk {
    Ec { curve: &'static str, x: Vec<u8>, y: Vec<u8> },
    Rsa { n: Vec<u8>, e: Vec<u8> },
    Ed25519 { x: Vec<u8> },
}

/// Curves, the octets of one coordinate, and their names (RFC 7518 section 6.2.1.1).
const CURVES: [(oid::Oid<'_>, usize, &str); 3] = [
    (oid::OID_EC_P256, 32, "P-256"),
    (oid::OID_NIST_EC_P384, 48, "P-384"),
    (oid::OID_NIST_EC_P521, 66, "P-521"),
];

impl Jwk {
    /// `None` for a key of another kind, or one that is not well formed.
    pub(crate) fn of(key: &SubjectPublicKeyInfo<'_>) -> Option<Self> {
        if key.algorithm.algorithm == oid::OID_SIG_ED25519 {
            let x = key.subject_public_key.data.to_vec();
            return (x.len() == 32).then_some(Self::Ed25519 { x });
        }
        match key.parsed().ok()? {
            PublicKey::EC(point) => {
                let curve = key.algorithm.parameters.as_ref()?.as_oid().ok()?;
                let (_, octets, name) = CURVES.into_iter().find(|(oid, ..)| *oid == curve)?;
                // Uncompressed points only (SEC 1 section 2.3.3), as RFC 5480 section 2.2 has them in certificates.
                let (x, y) = point.data().strip_prefix(&[4])?.split_at_checked(octets)?;
                (y.len() == octets).then(|| Self::Ec { curve: name, x: x.to_vec(), y: y.to_vec() })
            }
            PublicKey::RSA(rsa) => Some(Self::Rsa { n: unsigned(rsa.modulus), e: unsigned(rsa.exponent) }),
            _ => None,
        }
    }

    pub(crate) fn to_value(&self, usage: &str, x5c: &str) -> Value {
        let b64 = |octets: &[u8]| BASE64_URL_SAFE_NO_PAD.encode(octets);
        match self {
            Self::Ec { curve, x, y } => {
                json!({"use": usage, "kty": "EC", "crv": curve, "x": b64(x), "y": b64(y), "x5c": [x5c]})
            }
            Self::Rsa { n, e } => json!({"use": usage, "kty": "RSA", "n": b64(n), "e": b64(e), "x5c": [x5c]}),
            Self::Ed25519 { x } => {
                json!({"use": usage, "kty": "OKP", "crv": "Ed25519", "x": b64(x), "x5c": [x5c]})
            }
        }
    }
}

/// A DER INTEGER without the zero octet that marks it as positive.
fn unsigned(integer: &[u8]) -> Vec<u8> {
    let zeros = integer.iter().take_while(|octet| **octet == 0).count();
    integer[zeros..].to_vec()
}
