//! PEM (RFC 7468) for programs that take identities from files.

use base64::{Engine as _, prelude::BASE64_STANDARD};

use crate::{bundle::Bundle, svid::Svid};

/// Characters in a line (RFC 7468 section 2).
const LINE: usize = 64;

impl Svid {
    /// The certificates in PEM, leaf first, without the root.
    pub fn chain_pem(&self) -> String {
        self.chain().iter().map(|certificate| block("CERTIFICATE", certificate)).collect()
    }

    /// The private key in PEM (PKCS #8). For a file that only its user can read, and for nothing else.
    pub fn key_pem(&self) -> String {
        block("PRIVATE KEY", self.private_key().secret_pkcs8_der())
    }
}

impl Bundle {
    /// The roots in PEM.
    pub fn to_pem(&self) -> String {
        self.roots().map(|certificate| block("CERTIFICATE", certificate)).collect()
    }
}

/// One block under `label`.
pub(crate) fn block(label: &str, der: &[u8]) -> String {
    let base64 = BASE64_STANDARD.encode(der);
    let mut text = format!("-----BEGIN {label}-----\n");
    for (index, character) in base64.chars().enumerate() {
        if index > 0 && index % LINE == 0 {
            text.push('\n');
        }
        text.push(character);
    }
    text.push_str(&format!("\n-----END {label}-----\n"));
    text
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use carrick_model::{SpiffeId, TrustDomain};
    use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};

    use crate::{Bundle, EmbeddedCa};

    #[test]
    fn what_is_written_is_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let td = TrustDomain::new("a.test").unwrap();
        let now = SystemTime::now();
        let ca = EmbeddedCa::open_or_create(dir.path(), &td, now).unwrap();
        let id = SpiffeId::new("spiffe://a.test/nse").unwrap();
        let svid = ca.issue(&id, Duration::from_secs(60), now).unwrap();

        let text = svid.chain_pem();
        assert!(text.lines().all(|line| line.len() <= 64 && !line.is_empty()), "{text}");
        let chain: Vec<_> =
            CertificateDer::pem_slice_iter(text.as_bytes()).collect::<Result<_, _>>().unwrap();
        assert_eq!(chain, svid.chain());
        let PrivateKeyDer::Pkcs8(key) = PrivateKeyDer::from_pem_slice(svid.key_pem().as_bytes()).unwrap()
        else {
            panic!("not PKCS #8");
        };
        assert_eq!(&key, svid.private_key());
        let read = Bundle::parse(&td, ca.bundle().to_pem().as_bytes()).unwrap();
        assert_eq!(read.fingerprints(), ca.bundle().fingerprints());
    }
}
