//! TLS to etcd: an ordinary web of certificates, not SPIFFE.
//!
//! etcd's certificates come from whoever runs it. The server's has to chain to the given CA and to be for the host in the
//! endpoint's URL; ours, where there is one, is what etcd knows this daemon by.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    version::TLS13,
};

/// Longest file that is read: hundreds of certificates.
const MAX_FILE: u64 = 1024 * 1024;

/// The files for TLS to etcd. They are read at each dial, so that renewed ones are used without a restart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    /// Certificates that etcd's have to chain to, PEM.
    pub ca: PathBuf,
    /// Our certificate chain and its key, PEM; `None` where etcd asks for none.
    pub client: Option<(PathBuf, PathBuf)>,
}

/// Why the files cannot be used. The operator has to put them right; a retry helps then.
#[derive(Debug, Clone, thiserror::Error)]
pub enum TlsFault {
    /// A file cannot be read.
    #[error("cannot read {}", .file.display())]
    Read {
        /// Which.
        file: PathBuf,
        /// Why.
        source: Arc<io::Error>,
    },
    /// A file has nothing in it that it is for. Its content is not told: it may be a key.
    #[error("{} has no {what} in PEM form", .file.display())]
    Empty {
        /// Which.
        file: PathBuf,
        /// What should be in it.
        what: &'static str,
    },
    /// The certificate and the key do not go together, or the CA is none.
    #[error("{} cannot be used", .file.display())]
    Unusable {
        /// Which.
        file: PathBuf,
        /// Why.
        source: Arc<rustls::Error>,
    },
}

impl TlsFiles {
    /// Reads them.
    pub(super) async fn read(&self) -> Result<ClientConfig, TlsFault> {
        let unusable = |file: &Path, source: rustls::Error| TlsFault::Unusable {
            file: file.to_owned(),
            source: Arc::new(source),
        };
        let mut roots = RootCertStore::empty();
        for root in certificates(&self.ca).await? {
            roots.add(root).map_err(|fault| unusable(&self.ca, fault))?;
        }
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&TLS13])
            .map_err(|fault| unusable(&self.ca, fault))?
            .with_root_certificates(roots);
        let mut config = match &self.client {
            Some((cert, key)) => {
                let chain = certificates(cert).await?;
                let octets = octets(key).await?;
                let private = PrivateKeyDer::from_pem_slice(&octets)
                    .map_err(|_| TlsFault::Empty { file: key.clone(), what: "private key" })?;
                builder.with_client_auth_cert(chain, private).map_err(|fault| unusable(cert, fault))?
            }
            None => builder.with_no_client_auth(),
        };
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(config)
    }
}

async fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, TlsFault> {
    let empty = || TlsFault::Empty { file: file.to_owned(), what: "certificate" };
    let octets = octets(file).await?;
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&octets).collect();
    all.ok().filter(|all| !all.is_empty()).ok_or_else(empty)
}

async fn octets(file: &Path) -> Result<Vec<u8>, TlsFault> {
    let fault = |source| TlsFault::Read { file: file.to_owned(), source: Arc::new(source) };
    let size = tokio::fs::metadata(file).await.map_err(fault)?.len();
    if size > MAX_FILE {
        return Err(fault(io::Error::new(io::ErrorKind::FileTooLarge, format!("it has {size} octets"))));
    }
    tokio::fs::read(file).await.map_err(fault)
}
