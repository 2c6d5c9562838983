//! Who the peer is, and why it is refused.

use std::{
    error::Error,
    fmt, io,
    time::{Duration, SystemTime},
};

use carrick_model::{SpiffeId, TrustDomain};
use rustls::{CertificateError, OtherError};
use rustls_pki_types::CertificateDer;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use x509_parser::{
    certificate::X509Certificate, extensions::GeneralName, prelude::FromDer as _, time::ASN1Time,
};

/// The SPIFFE ID of a peer's certificate chain, leaf first.
///
/// Applies the leaf rules of X509-SVID section 5.2: not a CA, no right to sign certificates or CRLs, exactly one URI
/// SAN, and that one a SPIFFE ID. It does **not** check the chain: the TLS configurations of this crate have done so
/// before a handler sees the chain.
pub fn peer_id(chain: &[CertificateDer<'_>]) -> Result<SpiffeId, PeerError> {
    leaf_id(chain.first().ok_or(PeerError::NoCertificate)?)
}

pub(crate) fn leaf_id(leaf: &CertificateDer<'_>) -> Result<SpiffeId, PeerError> {
    let (rest, cert) = X509Certificate::from_der(leaf).map_err(|_| PeerError::Malformed)?;
    if !rest.is_empty() {
        return Err(PeerError::Malformed);
    }
    let uri = only_uri(&cert)?;
    let id = SpiffeId::new(uri).map_err(|_| PeerError::NotSpiffe { uri: quotable(uri) })?;
    if is_authority(&cert)? {
        return Err(PeerError::NotALeaf { id });
    }
    Ok(id)
}

fn only_uri<'a>(cert: &'a X509Certificate<'_>) -> Result<&'a str, PeerError> {
    // x509-parser answers "more than one such extension" with an error: RFC 5280 section 4.2 forbids it.
    let names = cert.subject_alternative_name().map_err(|_| PeerError::Malformed)?;
    let names = names.map_or(&[][..], |extension| &extension.value.general_names);
    let mut uris = names.iter().filter_map(|name| match name {
        GeneralName::URI(uri) => Some(*uri),
        _ => None,
    });
    let uri = uris.next().ok_or(PeerError::NoUriSan)?;
    if uris.next().is_some() { Err(PeerError::TwoUriSans) } else { Ok(uri) }
}

fn is_authority(cert: &X509Certificate<'_>) -> Result<bool, PeerError> {
    let constraints = cert.basic_constraints().map_err(|_| PeerError::Malformed)?;
    let usage = cert.key_usage().map_err(|_| PeerError::Malformed)?;
    let signs = usage.is_some_and(|u| u.value.key_cert_sign() || u.value.crl_sign());
    Ok(signs || constraints.is_some_and(|c| c.value.ca))
}

/// At most this much of a text that a stranger chose goes into an error.
const MAX_QUOTE: usize = 80;

fn quotable(text: &str) -> String {
    let mut quote: String = text.chars().take(MAX_QUOTE).collect::<String>().escape_debug().to_string();
    if text.chars().nth(MAX_QUOTE).is_some() {
        quote.push('…');
    }
    quote
}

/// Why a peer's certificate was refused.
///
/// `Debug` prints the sentence of `Display`: QUIC keeps of a refusal nothing but rustls' text, and rustls puts the
/// `Debug` form there.
#[derive(Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum PeerError {
    /// The peer sent no certificate.
    #[error("the peer presented no certificate")]
    NoCertificate,
    /// The certificate cannot be parsed. The peer's fault.
    #[error("the peer's certificate is not valid X.509")]
    Malformed,
    /// There is no URI SAN, so the certificate is no SVID. The peer's fault, or not a Carrick or SPIFFE peer at all.
    #[error("the peer's certificate has no URI SAN, so it names no SPIFFE ID")]
    NoUriSan,
    /// There is more than one URI SAN. The peer's fault.
    #[error("the peer's certificate has more than one URI SAN; an SVID has exactly one")]
    TwoUriSans,
    /// The one URI SAN is not a SPIFFE ID.
    #[error("the URI SAN `{uri}` of the peer's certificate is not a SPIFFE ID")]
    NotSpiffe {
        /// The URI, shortened and escaped.
        uri: String,
    },
    /// The certificate is one that signs others, not one that speaks.
    #[error("the certificate of `{id}` is a signing certificate, not a leaf")]
    NotALeaf {
        /// The ID in it.
        id: SpiffeId,
    },
    /// We hold no bundle of this trust domain.
    #[error("trust domain `{trust_domain}` is unknown: there is no trust bundle for it")]
    UnknownTrustDomain {
        /// The trust domain without a bundle.
        trust_domain: TrustDomain,
    },
    /// A trust domain was called and another one answered. Its SVID may be good: it is the wrong one.
    #[error("trust domain `{expected}` was called, but the peer's SVID is of `{got}`")]
    WrongDomain {
        /// The trust domain that belongs to the name called.
        expected: TrustDomain,
        /// The trust domain of the peer's SVID.
        got: TrustDomain,
    },
    /// The SVID was valid once.
    #[error(
        "the SVID of `{id}` expired at {}, {} before our clock's {}",
        stamp(*.not_after), span(*.not_after, *.now), stamp(*.now)
    )]
    Expired {
        /// Whose SVID.
        id: SpiffeId,
        /// End of its validity.
        not_after: SystemTime,
        /// Our clock.
        now: SystemTime,
    },
    /// The SVID will be valid: the clocks of the two hosts disagree.
    #[error(
        "the SVID of `{id}` is valid from {}, {} after our clock's {}",
        stamp(*.not_before), span(*.now, *.not_before), stamp(*.now)
    )]
    NotYetValid {
        /// Whose SVID.
        id: SpiffeId,
        /// Begin of its validity.
        not_before: SystemTime,
        /// Our clock.
        now: SystemTime,
    },
    /// Every root in our bundle of this trust domain has expired.
    #[error(
        "every root of trust domain `{trust_domain}` that we hold has expired, the last at {}, {} before our clock's {}",
        stamp(*.not_after), span(*.not_after, *.now), stamp(*.now)
    )]
    BundleExpired {
        /// Whose bundle.
        trust_domain: TrustDomain,
        /// End of the last root's validity.
        not_after: SystemTime,
        /// Our clock.
        now: SystemTime,
    },
    /// The SVID is not signed by a root of its own trust domain's bundle.
    #[error("the SVID of `{id}` is not signed by a root in our bundle of `{}`", .id.trust_domain())]
    Untrusted {
        /// The ID claimed.
        id: SpiffeId,
    },
    /// The chain breaks another rule: purpose, name constraints, an algorithm we do not have.
    #[error("the certificate chain of `{id}` cannot be used")]
    Unusable {
        /// The ID claimed.
        id: SpiffeId,
        /// The rule.
        source: Box<rustls::Error>,
    },
}

impl PeerError {
    /// What the operator of this side can do next.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::NoCertificate => "the other side must present an X.509-SVID; is it a Carrick gateway?",
            Self::Malformed | Self::NotALeaf { .. } => "the other side's identity source hands out bad SVIDs",
            Self::NoUriSan | Self::TwoUriSans | Self::NotSpiffe { .. } => {
                "the other side needs an X.509-SVID with one spiffe:// URI; is something else listening there?"
            }
            Self::UnknownTrustDomain { .. } => {
                "import that domain's bundle (`carrick trust export` there, `carrick trust import` here), or map the domain to its trust domain under `trust:`"
            }
            Self::WrongDomain { .. } => {
                "DNS or `peers:` leads to another domain's gateway; if the domain really uses that trust domain, say so under `trust:`"
            }
            Self::Expired { .. } => {
                "compare the clocks of both hosts; if they agree, the other side has stopped renewing its SVID: look at its log"
            }
            Self::NotYetValid { .. } => "compare the clocks of both hosts and set the wrong one (NTP)",
            Self::BundleExpired { .. } => "import the domain's current bundle, and check this host's clock",
            Self::Untrusted { .. } => {
                "the domain has new roots, or someone poses as it: compare the fingerprints of `carrick trust show` on both sides, then import its bundle again"
            }
            Self::Unusable { .. } => "look at the chain that the other side's identity source hands out",
        }
    }

    /// A short word for metrics and logs, one per variant.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::NoCertificate => "no_certificate",
            Self::Malformed => "malformed",
            Self::NoUriSan => "no_uri_san",
            Self::TwoUriSans => "two_uri_sans",
            Self::NotSpiffe { .. } => "not_spiffe",
            Self::NotALeaf { .. } => "not_a_leaf",
            Self::UnknownTrustDomain { .. } => "unknown_trust_domain",
            Self::WrongDomain { .. } => "wrong_domain",
            Self::Expired { .. } => "expired",
            Self::NotYetValid { .. } => "not_yet_valid",
            Self::BundleExpired { .. } => "bundle_expired",
            Self::Untrusted { .. } => "untrusted",
            Self::Unusable { .. } => "unusable",
        }
    }

    /// The refusal inside another error: a `rustls::Error`, an `io::Error` of a TLS stream, a gRPC transport error.
    ///
    /// QUIC errors keep only the text; there, ask for refusals when the configuration is made
    /// ([`client_config_reporting`](crate::tls::client_config_reporting)).
    pub fn find_in<'a>(err: &'a (dyn Error + 'static)) -> Option<&'a PeerError> {
        find(err, MAX_CHAIN)
    }

    /// Maps what webpki said about the chain of `id`.
    pub(crate) fn from_chain(id: SpiffeId, err: rustls::Error) -> Self {
        use rustls::Error::InvalidCertificate;
        match err {
            InvalidCertificate(CertificateError::ExpiredContext { time, not_after }) => {
                Self::Expired { id, not_after: wall(not_after), now: wall(time) }
            }
            InvalidCertificate(CertificateError::NotValidYetContext { time, not_before }) => {
                Self::NotYetValid { id, not_before: wall(not_before), now: wall(time) }
            }
            InvalidCertificate(CertificateError::UnknownIssuer | CertificateError::BadSignature) => {
                Self::Untrusted { id }
            }
            err => Self::Unusable { id, source: Box::new(err) },
        }
    }
}

impl From<PeerError> for rustls::Error {
    fn from(err: PeerError) -> Self {
        CertificateError::Other(OtherError(std::sync::Arc::new(err))).into()
    }
}

impl fmt::Debug for PeerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Error chains are a handful deep; a bound keeps one that loops from holding us.
const MAX_CHAIN: usize = 16;

fn find<'a>(err: &'a (dyn Error + 'static), depth: usize) -> Option<&'a PeerError> {
    let depth = depth.checked_sub(1)?;
    if let Some(found) = err.downcast_ref() {
        return Some(found);
    }
    if let Some(rustls::Error::NoCertificatesPresented) = err.downcast_ref() {
        return Some(&PeerError::NoCertificate);
    }
    // Neither rustls nor std name what they carry as their source, so both are opened by hand.
    let carried: Option<&'a (dyn Error + 'static)> = match err.downcast_ref() {
        Some(
            rustls::Error::InvalidCertificate(CertificateError::Other(other)) | rustls::Error::Other(other),
        ) => Some(other),
        Some(_) => None,
        None => err.downcast_ref::<io::Error>().and_then(io::Error::get_ref).map(|inner| inner as _),
    };
    carried.and_then(|inner| find(inner, depth)).or_else(|| find(err.source()?, depth))
}

pub(crate) fn wall(time: rustls_pki_types::UnixTime) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(time.as_secs())
}

/// A certificate's time as ours. What lies before 1970 becomes 1970.
pub(crate) fn wall_of_asn1(time: ASN1Time) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(u64::try_from(time.timestamp()).unwrap_or(0))
}

/// RFC 3339 to the second, as logs have it.
pub(crate) fn stamp(time: SystemTime) -> String {
    let time = OffsetDateTime::from(time);
    let whole = time.replace_nanosecond(0).unwrap_or(time);
    whole.format(&Rfc3339).unwrap_or_else(|_| format!("Unix second {}", time.unix_timestamp()))
}

/// The time between two moments in words, to one unit: `12 minutes`.
fn span(from: SystemTime, to: SystemTime) -> String {
    let seconds = to.duration_since(from).unwrap_or_default().as_secs();
    let (count, unit) = match seconds {
        0..120 => (seconds, "second"),
        120..7_200 => (seconds / 60, "minute"),
        7_200..172_800 => (seconds / 3_600, "hour"),
        _ => (seconds / 86_400, "day"),
    };
    format!("{count} {unit}{}", if count == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rcgen::{CertificateParams, KeyPair, SanType};

    use super::*;

    fn moment(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    fn id() -> SpiffeId {
        SpiffeId::new("spiffe://b.test/gateway").unwrap()
    }

    #[test]
    fn a_time_error_states_both_times_and_the_skew_in_words() {
        let late =
            PeerError::Expired { id: id(), not_after: moment(1_800_000_000), now: moment(1_800_000_900) };
        assert_eq!(
            late.to_string(),
            "the SVID of `spiffe://b.test/gateway` expired at 2027-01-15T08:00:00Z, 15 minutes before our clock's 2027-01-15T08:15:00Z"
        );
        let early = PeerError::NotYetValid {
            id: id(),
            not_before: moment(1_800_000_000),
            now: moment(1_799_999_999),
        };
        assert_eq!(
            early.to_string(),
            "the SVID of `spiffe://b.test/gateway` is valid from 2027-01-15T08:00:00Z, 1 second after our clock's 2027-01-15T07:59:59Z"
        );
        assert!(late.hint().contains("clock") && early.hint().contains("clock"));
    }

    #[test]
    fn spans_have_one_unit() {
        for (seconds, words) in [
            (0, "0 seconds"),
            (119, "119 seconds"),
            (120, "2 minutes"),
            (7_200, "2 hours"),
            (172_800, "2 days"),
        ] {
            assert_eq!(span(moment(0), moment(seconds)), words);
        }
        assert_eq!(span(moment(5), moment(0)), "0 seconds");
    }

    #[test]
    fn a_refusal_is_found_through_what_wraps_it() {
        let refusal = PeerError::Untrusted { id: id() };
        let tls = rustls::Error::from(refusal.clone());
        assert_eq!(PeerError::find_in(&tls), Some(&refusal));
        let stream = io::Error::new(io::ErrorKind::InvalidData, tls);
        assert_eq!(PeerError::find_in(&stream), Some(&refusal));
        let twice = io::Error::other(stream);
        assert_eq!(PeerError::find_in(&twice), Some(&refusal));

        #[derive(Debug, thiserror::Error)]
        #[error("dialling failed")]
        struct Dial(#[source] io::Error);
        assert_eq!(PeerError::find_in(&Dial(twice)), Some(&refusal));

        assert_eq!(
            PeerError::find_in(&rustls::Error::NoCertificatesPresented),
            Some(&PeerError::NoCertificate)
        );
        assert_eq!(PeerError::find_in(&rustls::Error::DecryptError), None);
        assert_eq!(PeerError::find_in(&io::Error::from(io::ErrorKind::ConnectionReset)), None);
    }

    #[test]
    fn what_quic_keeps_of_a_refusal_is_a_sentence() {
        let text = rustls::Error::from(PeerError::Untrusted { id: id() }).to_string();
        assert!(
            text.contains("the SVID of `spiffe://b.test/gateway` is not signed by a root in our bundle"),
            "{text}"
        );
    }

    #[test]
    fn a_strangers_text_is_short_and_escaped_in_errors() {
        assert_eq!(quotable("a\n\u{1b}[31mb"), "a\\n\\u{1b}[31mb");
        assert_eq!(quotable(&"x".repeat(500)).chars().count(), MAX_QUOTE + 1);
    }

    fn leaf(uris: &[String]) -> CertificateDer<'static> {
        let mut params = CertificateParams::default();
        params.subject_alt_names =
            uris.iter().map(|u| SanType::URI(u.as_str().try_into().unwrap())).collect();
        params.self_signed(&KeyPair::generate().unwrap()).unwrap().into()
    }

    #[test]
    fn an_empty_chain_names_nobody() {
        assert_eq!(peer_id(&[]), Err(PeerError::NoCertificate));
        assert_eq!(peer_id(&[CertificateDer::from(vec![1, 2, 3])]), Err(PeerError::Malformed));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn the_id_is_read_only_from_a_single_spiffe_uri(paths in prop::collection::vec("[a-z]{1,9}", 0..4), spiffe: bool) {
            let scheme = if spiffe { "spiffe" } else { "https" };
            let uris: Vec<_> = paths.iter().map(|p| format!("{scheme}://a.test/{p}")).collect();
            let got = peer_id(&[leaf(&uris)]);
            match uris.as_slice() {
                [] => prop_assert_eq!(got, Err(PeerError::NoUriSan)),
                [uri] if spiffe => prop_assert_eq!(got.unwrap().to_string(), uri.as_str()),
                [uri] => prop_assert_eq!(got, Err(PeerError::NotSpiffe { uri: uri.clone() })),
                _ => prop_assert_eq!(got, Err(PeerError::TwoUriSans)),
            }
        }

        #[test]
        fn no_octets_make_it_panic(at in any::<prop::sample::Index>(), octet: u8, noise in prop::collection::vec(any::<u8>(), 0..300)) {
            let mut der = leaf(&["spiffe://a.test/x".to_owned()]).to_vec();
            let at = at.index(der.len());
            der[at] = octet;
            let _ = peer_id(&[der.into()]);
            let _ = peer_id(&[noise.into()]);
        }
    }
}
