//! The embedded CA: a root of one trust domain, kept in the state directory, and the SVIDs it issues.

mod rotation;

use std::{
    fmt,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use carrick_model::{SpiffeId, TrustDomain};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PublicKeyData as _, SanType,
};
use rustls_pki_types::{
    CertificateDer, PrivatePkcs8KeyDer,
    pem::{PemObject as _, SectionKind},
};
use x509_parser::{certificate::X509Certificate, prelude::FromDer as _};

pub use self::rotation::{Authority, RotationError};
use crate::{
    bundle::{Bundle, BundleFault},
    peer::{stamp, wall_of_asn1},
    private_file::{FileError, PrivateDir},
    svid::{Parts, Svid},
};

/// The CA of one trust domain: an ECDSA P-256 root in `<state_dir>/ca/root.pem`.
///
/// Key and certificate share the file, so that a crash cannot leave one without the other. The file is made once, and
/// replaced by a rotation alone ([`prepare`](Self::prepare)): what is there and cannot be used is an error, because a new
/// root would cut the domain off from every peer that trusts the old one.
pub struct EmbeddedCa {
    trust_domain: TrustDomain,
    issuer: Issuer<'static, KeyPair>,
    root: CertificateDer<'static>,
    /// Further roots of the bundle while a rotation is under way.
    others: Vec<(Authority, CertificateDer<'static>)>,
    bundle: Bundle,
    not_after: SystemTime,
}

/// Why the embedded CA cannot be opened, or cannot issue.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CaError {
    /// The state directory or the root file cannot be used.
    #[error(transparent)]
    File(#[from] FileError),
    /// The root file does not hold a certificate and its key.
    #[error("the CA in {} is damaged: {what}", .path.display())]
    Damaged {
        /// The root file.
        path: PathBuf,
        /// What is wrong, never with any of its content.
        what: &'static str,
    },
    /// The root certificate breaks a rule for roots.
    #[error("the CA in {} cannot be used", .path.display())]
    Root {
        /// The root file.
        path: PathBuf,
        /// The rule.
        source: BundleFault,
    },
    /// The root belongs to another trust domain.
    #[error("the CA in {} is of `{found}`, not of `{expected}`", .path.display())]
    OtherTrustDomain {
        /// The root file.
        path: PathBuf,
        /// The trust domain configured.
        expected: TrustDomain,
        /// The SPIFFE ID in the root.
        found: String,
    },
    /// The root has expired.
    #[error("the root of `{trust_domain}` expired at {}; our clock says {}", stamp(*.not_after), stamp(*.now))]
    RootExpired {
        /// Whose root.
        trust_domain: TrustDomain,
        /// End of its validity.
        not_after: SystemTime,
        /// Our clock.
        now: SystemTime,
    },
    /// The root is from the future, so our clock is wrong.
    #[error("the root of `{trust_domain}` is valid from {}; our clock says {}", stamp(*.not_before), stamp(*.now))]
    RootNotYetValid {
        /// Whose root.
        trust_domain: TrustDomain,
        /// Begin of its validity.
        not_before: SystemTime,
        /// Our clock.
        now: SystemTime,
    },
    /// The clock was never set. A root made now would be expired as soon as it is.
    #[error("our clock says {}, which cannot be: no root is made by it", stamp(*.now))]
    ClockUnset {
        /// Our clock.
        now: SystemTime,
    },
    /// An SVID of another trust domain was asked for.
    #[error("the CA of `{trust_domain}` does not issue for `{id}`")]
    Foreign {
        /// What was asked for.
        id: SpiffeId,
        /// What we issue for.
        trust_domain: TrustDomain,
    },
    /// An SVID for the trust domain itself was asked for: that ID is the CA's own.
    #[error("`{id}` has no path, so it names no workload")]
    NoPath {
        /// What was asked for.
        id: SpiffeId,
    },
    /// The lifetime asked for is under a second.
    #[error("an SVID cannot live for {0:?}: a second is the shortest")]
    Lifetime(Duration),
    /// A certificate or key could not be made.
    #[error("cannot make a certificate for `{subject}`")]
    Certificate {
        /// The SPIFFE ID in it.
        subject: String,
        /// What the certificate library says.
        source: rcgen::Error,
    },
    /// The TLS library does not take the key that was just made.
    #[error("cannot use the key made for `{id}`")]
    Key {
        /// Whose key.
        id: SpiffeId,
        /// What the TLS library says.
        source: rustls::Error,
    },
}

impl CaError {
    /// What the operator can do next.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::File(err) => err.hint(),
            Self::Damaged { .. } | Self::Root { .. } => {
                "restore the file from a backup; if there is none, move it away for a new root, which every peer must then import"
            }
            Self::OtherTrustDomain { .. } => {
                "this `state_dir` belongs to another domain: correct `domain:` or `state_dir:` in the configuration"
            }
            Self::RootExpired { .. } => {
                "if the clock is right, move the file away for a new root and have every peer import its bundle"
            }
            Self::RootNotYetValid { .. } | Self::ClockUnset { .. } => {
                "set this host's clock (NTP) and start again"
            }
            Self::Foreign { .. } | Self::NoPath { .. } => {
                "ask for an ID with a path under our own trust domain"
            }
            Self::Lifetime(_) => "set `identity.svid_lifetime` to minutes or hours",
            Self::Certificate { .. } | Self::Key { .. } => "this is a fault in carrick: please report it",
        }
    }
}

/// Where the root lives under the state directory.
const DIR: &str = "ca";
const FILE: &str = "root.pem";

/// Peers hold our root, so replacing it is work for all of them: it outlives the host it is on.
const ROOT_LIFETIME: Duration = Duration::from_secs(10 * 365 * 86_400);

/// From when on each start warns: getting a bundle to every peer is done by people, and takes weeks.
const ROOT_WARNING: Duration = Duration::from_secs(180 * 86_400);

/// How far the root's validity begins before it is made. Some verifiers check roots' times too, and a day covers even
/// a host whose clock runs in the wrong time zone.
const ROOT_BACKDATE: Duration = Duration::from_secs(86_400);

/// How far an SVID's validity begins before it is issued, so that a peer whose clock is this far behind takes it.
const SVID_BACKDATE: Duration = Duration::from_secs(60);

/// 2025-01-01, before the first Carrick: a clock that is earlier has not been set.
const EARLIEST: Duration = Duration::from_secs(1_735_689_600);

impl EmbeddedCa {
    /// Opens the CA of `td` under the state directory `dir`, or makes it: root key, root certificate, directories.
    ///
    /// Several processes may do this at once; all get the same root. Blocks for a few file operations.
    pub fn open_or_create(dir: &Path, td: &TrustDomain, now: SystemTime) -> Result<Self, CaError> {
        let dir = PrivateDir::lock(&dir.join(DIR))?;
        if let Some(ca) = Self::read(&dir, td, now)? {
            if ca.not_after.duration_since(now).unwrap_or_default() < ROOT_WARNING {
                tracing::warn!(trust_domain = %td, until = stamp(ca.not_after),
                    "the root expires soon: every peer has to import a new one; `carrick trust rotate prepare` makes it");
            }
            return Ok(ca);
        }
        let text = new_root(td, now)?;
        // Opened before it is written: what could not be opened again must not stay on disk.
        let ca = Self::open(&dir.path(FILE), td, text.as_bytes(), now)?;
        dir.write(FILE, text.as_bytes())?;
        tracing::info!(trust_domain = %td, fingerprint = ca.bundle.fingerprints().concat(), until = stamp(ca.not_after),
            "new root made");
        Ok(ca)
    }

    /// Reads the CA of `td` again, as other processes may have changed it: `None` when it is not there any more.
    pub fn reopen(dir: &Path, td: &TrustDomain, now: SystemTime) -> Result<Option<Self>, CaError> {
        Self::read(&PrivateDir::lock(&dir.join(DIR))?, td, now)
    }

    fn read(dir: &PrivateDir, td: &TrustDomain, now: SystemTime) -> Result<Option<Self>, CaError> {
        let Some(text) = dir.read(FILE)? else { return Ok(None) };
        let mut ca = Self::open(&dir.path(FILE), td, &text, now)?;
        ca.others = rotation::others(dir, td, &ca.root, now)?;
        let roots = std::iter::once(&ca.root).chain(ca.others.iter().map(|(_, root)| root)).cloned();
        ca.bundle =
            Bundle::of_roots(td, roots).map_err(|source| CaError::Root { path: dir.path(FILE), source })?;
        Ok(Some(ca))
    }

    fn open(path: &Path, td: &TrustDomain, text: &[u8], now: SystemTime) -> Result<Self, CaError> {
        let damaged = |what| CaError::Damaged { path: path.to_owned(), what };
        let (certificate, key) = sections(text).map_err(damaged)?;
        let key = KeyPair::from_pkcs8_der_and_sign_algo(&key, &PKCS_ECDSA_P256_SHA256)
            .map_err(|_| damaged("its private key is not an ECDSA P-256 key"))?;
        let bundle = Bundle::of_roots(td, [certificate.clone()]).map_err(|fault| match fault {
            BundleFault::OtherTrustDomain { named: found, .. } => {
                CaError::OtherTrustDomain { path: path.to_owned(), expected: td.clone(), found }
            }
            source => CaError::Root { path: path.to_owned(), source },
        })?;
        let (_, x509) = X509Certificate::from_der(&certificate)
            .map_err(|_| damaged("its certificate is not valid X.509"))?;
        if x509.public_key().raw != key.subject_public_key_info() {
            return Err(damaged("its private key is not that of its certificate"));
        }
        let validity = x509.validity();
        let (not_before, not_after) = (wall_of_asn1(validity.not_before), wall_of_asn1(validity.not_after));
        let trust_domain = td.clone();
        if now < not_before {
            return Err(CaError::RootNotYetValid { trust_domain, not_before, now });
        }
        if now >= not_after {
            return Err(CaError::RootExpired { trust_domain, not_after, now });
        }
        let issuer = Issuer::from_ca_cert_der(&certificate, key)
            .map_err(|_| damaged("its certificate's subject cannot be read"))?;
        Ok(Self { trust_domain, issuer, root: certificate, others: Vec::new(), bundle, not_after })
    }

    /// The bundle of this CA, for our own trust store and for others to import: the root that issues, and another while a
    /// rotation is under way.
    pub fn bundle(&self) -> Bundle {
        self.bundle.clone()
    }

    /// The trust domain this CA speaks for.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// Issues an SVID of `id` with a fresh P-256 key: valid from a minute before `now` for `lifetime` after it, though
    /// never longer than the root is.
    pub fn issue(&self, id: &SpiffeId, lifetime: Duration, now: SystemTime) -> Result<Svid, CaError> {
        if id.trust_domain() != &self.trust_domain {
            return Err(CaError::Foreign { id: id.clone(), trust_domain: self.trust_domain.clone() });
        }
        if id.path().is_empty() {
            return Err(CaError::NoPath { id: id.clone() });
        }
        if lifetime < Duration::from_secs(1) {
            return Err(CaError::Lifetime(lifetime));
        }
        if now >= self.not_after {
            let (trust_domain, not_after) = (self.trust_domain.clone(), self.not_after);
            return Err(CaError::RootExpired { trust_domain, not_after, now });
        }
        let not_before = now.checked_sub(SVID_BACKDATE).unwrap_or(SystemTime::UNIX_EPOCH);
        let not_after = now.checked_add(lifetime).map_or(self.not_after, |end| end.min(self.not_after));
        let failed = |source| CaError::Certificate { subject: id.to_string(), source };
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(failed)?;
        let params = leaf(id, not_before, not_after).map_err(failed)?;
        let certificate = params.signed_by(&key, &self.issuer).map_err(failed)?;
        Svid::new(Parts {
            id: id.clone(),
            issued: now,
            not_before,
            not_after,
            chain: vec![certificate.into()],
            pkcs8: PrivatePkcs8KeyDer::from(key.serialize_der()),
        })
        .map_err(|source| CaError::Key { id: id.clone(), source })
    }
}

/// The one certificate and the one key of the root file.
fn sections(text: &[u8]) -> Result<(CertificateDer<'static>, PrivatePkcs8KeyDer<'static>), &'static str> {
    let (mut certificate, mut key) = (None, None);
    for section in <(SectionKind, Vec<u8>)>::pem_slice_iter(text) {
        let again = match section.map_err(|_| "it is not valid PEM")? {
            (SectionKind::Certificate, der) => certificate.replace(der.into()).is_some(),
            (SectionKind::PrivateKey, der) => key.replace(der.into()).is_some(),
            _ => return Err("it holds something else than a certificate and a PKCS #8 key"),
        };
        if again {
            return Err("it holds more than one certificate and one key");
        }
    }
    Ok((certificate.ok_or("it holds no certificate")?, key.ok_or("it holds no private key")?))
}

/// A fresh root certificate and its key, as the text of the root file.
fn new_root(td: &TrustDomain, now: SystemTime) -> Result<String, CaError> {
    if now < SystemTime::UNIX_EPOCH + EARLIEST {
        return Err(CaError::ClockUnset { now });
    }
    let failed = |source| CaError::Certificate { subject: td.id_string(), source };
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(failed)?;
    let params = root(td, now).map_err(failed)?;
    let certificate = params.self_signed(&key).map_err(failed)?;
    Ok(format!("{}{}", certificate.pem(), key.serialize_pem()))
}

/// X509-SVID section 4: a signing certificate may sign certificates, and its SPIFFE ID is the trust domain's.
fn root(td: &TrustDomain, now: SystemTime) -> Result<CertificateParams, rcgen::Error> {
    let mut params = CertificateParams::default();
    params.distinguished_name = subject("root");
    // Two roots of different domains get different names, for the sake of those who list them.
    let name: String = td.as_str().chars().take(MAX_COMMON_NAME).collect();
    params.distinguished_name.push(DnType::CommonName, name);
    params.subject_alt_names = vec![SanType::URI(td.id_string().try_into()?)];
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params.not_before = (now - ROOT_BACKDATE).into();
    params.not_after = (now + ROOT_LIFETIME).into();
    Ok(params)
}

/// X509-SVID section 4 and appendix A: one URI SAN, not a CA, digital signatures for TLS on either end.
fn leaf(id: &SpiffeId, from: SystemTime, to: SystemTime) -> Result<CertificateParams, rcgen::Error> {
    let mut params = CertificateParams::default();
    params.distinguished_name = subject("workload");
    params.subject_alt_names = vec![SanType::URI(id.to_string().try_into()?)];
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.use_authority_key_identifier_extension = true;
    params.not_before = from.into();
    params.not_after = to.into();
    Ok(params)
}

/// RFC 5280 appendix A.1, `ub-common-name`.
const MAX_COMMON_NAME: usize = 64;

fn subject(unit: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::OrganizationName, "Carrick");
    name.push(DnType::OrganizationalUnitName, unit);
    name
}

impl fmt::Debug for EmbeddedCa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EmbeddedCa")
            .field("trust_domain", &self.trust_domain.as_str())
            .field("not_after", &self.not_after)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
#[path = "ca_tests.rs"]
mod tests;
