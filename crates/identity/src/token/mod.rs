//! NSM's tokens: who speaks to whom, until when, signed with the key of the speaker's SVID.
//!
//! Every hop of a connection or a registration leaves a token in its path segment: a JWT (RFC 7519) with the header
//! `{"alg":"ES256","typ":"JWT"}` and the claims `sub` (the hop's SPIFFE ID), `aud` (an array with the SPIFFE ID of the
//! peer it is meant for) and `exp` (whole seconds). A receiver can verify only the tokens of its direct neighbours,
//! against the leaf of their TLS connection; the others it can read and chain ([`policy`]).
//!
//! A client sends its token with every call, in the metadata [`TOKEN_KEY`] and [`EXPIRES_KEY`]; calls to a registry
//! carry all tokens so far in the header [`PATH_KEY`] ([`TokenPath`]).
//!
//! Signing and verifying is aws-lc-rs, which is here already: a JWT library would add an algorithm to negotiate, a
//! second model of claims and half a dozen crates, where one algorithm and three claims are all there is.

mod minter;
pub mod policy;
mod presented;
mod token_path;

use std::time::{Duration, SystemTime};

use aws_lc_rs::{
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_FIXED, EcdsaKeyPair, UnparsedPublicKey},
};
use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD as BASE64};
use carrick_model::SpiffeId;
use rustls_pki_types::CertificateDer;
use serde_json::{Map, Value, json};
use x509_parser::{
    certificate::X509Certificate, oid_registry::OID_EC_P256, prelude::FromDer as _, public_key::PublicKey,
};

pub use self::{
    minter::Minter,
    presented::{Presented, PresentedError, format_expires, parse_expires},
    token_path::{MAX_PATH_HEADER, MAX_TOKENS, TokenPath, TokenPathError, update_path_ids},
};

/// Metadata key of a caller's token.
pub const TOKEN_KEY: &str = "nsm-client-token";
/// Metadata key of the expiry beside it, RFC 3339 with nanoseconds.
pub const EXPIRES_KEY: &str = "nsm-client-token-expires";
/// Header key of the path of a registration, in requests and in answers.
pub const PATH_KEY: &str = "path";

/// How long a token is good for: NSM's default.
pub const MAX_LIFETIME: Duration = Duration::from_secs(600);
/// Most octets of a token: `sub` and `aud` are SPIFFE IDs of at most 2048 octets each, in base64.
pub const MAX_TOKEN: usize = 8 * 1024;

/// The header of every token, in base64: `{"alg":"ES256","typ":"JWT"}`.
const HEADER: &str = "eyJhbGciOiJFUzI1NiIsInR5cCI6IkpXVCJ9";
/// Octets of an ES256 signature: r and s (RFC 7518 section 3.4).
const SIGNATURE: usize = 64;

/// A token of ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Token {
    /// The JWT.
    pub jwt: String,
    /// When it ends; what is told beside it, and no later than its `exp`.
    pub expires: SystemTime,
}

/// What a token says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claims {
    /// Whose token it is, a SPIFFE ID; empty when the token does not say.
    pub sub: String,
    /// For whom it is meant. NSM writes an array, and a single text is none.
    pub aud: Vec<String>,
    /// When it ends; a token that does not say has ended.
    pub exp: Option<SystemTime>,
}

/// Why a token cannot be made or is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TokenError {
    /// Our SVID has a key that cannot sign tokens; the identity source has to hand out P-256 keys.
    #[error("the SVID of `{0}` has no ECDSA P-256 key, and NSM's tokens are signed with no other")]
    KeyKind(SpiffeId),
    /// The library could not sign. Not expected; a retry may help.
    #[error("the key of `{0}` could not sign a token")]
    Sign(SpiffeId),
    /// There is no token. The sender's fault.
    #[error("there is no token")]
    Missing,
    /// The token is too large to be one. The sender's fault.
    #[error("the token has {0} octets, at most {MAX_TOKEN} are taken")]
    TooLong(usize),
    /// The text is not a JWT. The sender's fault.
    #[error("the token is not a JWT: {0}")]
    Malformed(&'static str),
    /// The token is signed in another way than NSM's are. The sender's fault.
    #[error("the token is not signed with ES256")]
    Algorithm,
    /// The certificate's key cannot have signed such a token.
    #[error("the certificate has no ECDSA P-256 key")]
    CertificateKey,
    /// The token is somebody else's, or was changed.
    #[error("the signature is not by the key of the certificate")]
    Signature,
}

impl Token {
    /// The token, with its expiry no later than `not_after`: the end of the peer's certificate. The claim stays.
    #[must_use]
    pub fn capped(self, not_after: SystemTime) -> Self {
        Self { expires: self.expires.min(not_after), ..self }
    }
}

/// Signs a token of `sub` for `aud`, with its `exp` rounded down to a second.
pub(crate) fn mint(
    key: &EcdsaKeyPair,
    sub: &SpiffeId,
    aud: &SpiffeId,
    expires: SystemTime,
) -> Result<Token, TokenError> {
    let exp = exp_of(expires);
    let claims = json!({"sub": sub.to_string(), "aud": [aud.to_string()], "exp": exp}).to_string();
    let mut jwt = format!("{HEADER}.{}", BASE64.encode(claims));
    let failed = |_| TokenError::Sign(sub.clone());
    let signature = key.sign(&SystemRandom::new(), jwt.as_bytes()).map_err(failed)?;
    jwt.push('.');
    BASE64.encode_string(signature.as_ref(), &mut jwt);
    Ok(Token { jwt, expires })
}

/// The `exp` of a token that ends then.
pub(crate) fn exp_of(expires: SystemTime) -> u64 {
    expires.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// Reads a token **without** looking at its signature: what it says is what its sender wrote.
pub fn decode(jwt: &str) -> Result<Claims, TokenError> {
    let parts = Parts::of(jwt)?;
    parts.header()?;
    parts.claims()
}

/// Whether `jwt` was signed with ES256 by the key of `leaf`; then what it says.
pub fn verify(jwt: &str, leaf: &CertificateDer<'_>) -> Result<Claims, TokenError> {
    let (_, cert) = X509Certificate::from_der(leaf).map_err(|_| TokenError::CertificateKey)?;
    verify_by(jwt, VerifyingKey::of(&cert).as_ref())
}

/// The same by a key that was read before.
pub(crate) fn verify_by(jwt: &str, key: Option<&VerifyingKey>) -> Result<Claims, TokenError> {
    let parts = Parts::of(jwt)?;
    if parts.header()?.get("alg").and_then(Value::as_str) != Some("ES256") {
        return Err(TokenError::Algorithm);
    }
    let claims = parts.claims()?;
    let key = key.ok_or(TokenError::CertificateKey)?;
    if parts.signature.len() != SIGNATURE {
        return Err(TokenError::Signature);
    }
    UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, &key.0)
        .verify(parts.signed.as_bytes(), &parts.signature)
        .map_err(|_| TokenError::Signature)?;
    Ok(claims)
}

/// The P-256 key of a certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct VerifyingKey(Vec<u8>);

impl VerifyingKey {
    /// Nothing where the key is of another kind.
    pub(crate) fn of(cert: &X509Certificate<'_>) -> Option<Self> {
        let spki = cert.public_key();
        let curve = spki.algorithm.parameters.as_ref().and_then(|any| any.as_oid().ok())?;
        match spki.parsed() {
            Ok(PublicKey::EC(point)) if curve == OID_EC_P256 => Some(Self(point.data().to_vec())),
            _ => None,
        }
    }
}

/// The three parts of a JWS in compact form (RFC 7515 section 7.1).
struct Parts<'a> {
    signed: &'a str,
    header: &'a str,
    claims: &'a str,
    signature: Vec<u8>,
}

impl<'a> Parts<'a> {
    fn of(jwt: &'a str) -> Result<Self, TokenError> {
        if jwt.is_empty() {
            return Err(TokenError::Missing);
        }
        if jwt.len() > MAX_TOKEN {
            return Err(TokenError::TooLong(jwt.len()));
        }
        let three = TokenError::Malformed("it has not three parts");
        let (signed, signature) = jwt.rsplit_once('.').ok_or(three.clone())?;
        let (header, claims) = signed.split_once('.').ok_or(three.clone())?;
        if claims.contains('.') {
            return Err(three);
        }
        let signature =
            BASE64.decode(signature).map_err(|_| TokenError::Malformed("its signature is not base64url"))?;
        Ok(Self { signed, header, claims, signature })
    }

    fn header(&self) -> Result<Map<String, Value>, TokenError> {
        object(self.header).ok_or(TokenError::Malformed("its header is not a JSON object in base64url"))
    }

    fn claims(&self) -> Result<Claims, TokenError> {
        let mut claims = object(self.claims)
            .ok_or(TokenError::Malformed("its claims are not a JSON object in base64url"))?;
        let sub = match claims.remove("sub") {
            None => String::new(),
            Some(Value::String(sub)) => sub,
            Some(_) => return Err(TokenError::Malformed("`sub` is not a text")),
        };
        let aud = match claims.remove("aud") {
            Some(Value::Array(all)) => all.into_iter().filter_map(into_text).collect(),
            _ => Vec::new(),
        };
        let exp = match claims.remove("exp") {
            None => None,
            Some(Value::Number(number)) => {
                Some(moment(&number).ok_or(TokenError::Malformed("`exp` is not a time"))?)
            }
            Some(_) => return Err(TokenError::Malformed("`exp` is not a number")),
        };
        Ok(Claims { sub, aud, exp })
    }
}

fn object(part: &str) -> Option<Map<String, Value>> {
    serde_json::from_slice(&BASE64.decode(part).ok()?).ok()
}

fn into_text(value: Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text),
        _ => None,
    }
}

/// Seconds since 1970, also with a fraction (RFC 7519 section 2, NumericDate). What lies before is 1970: long over.
fn moment(number: &serde_json::Number) -> Option<SystemTime> {
    let since = match number.as_u64() {
        Some(seconds) => Duration::from_secs(seconds),
        None => Duration::try_from_secs_f64(number.as_f64()?.max(0.0)).ok()?,
    };
    SystemTime::UNIX_EPOCH.checked_add(since)
}

#[cfg(test)]
mod tests;
