//! Who we are and whom we trust: embedded CA, SVID rotation, trust bundles, TLS configurations.
//!
//! # The trust model
//!
//! Every domain is a SPIFFE trust domain with roots of its own. Four rules hold wherever two domains meet:
//!
//! 1. **Roots are never pooled.** [`TrustStore`] keeps one [`Bundle`] per trust domain, and a certificate is checked
//!    against the bundle of the trust domain that its own SPIFFE ID names. So the CA of `a.test` can mint
//!    `spiffe://a.test/…` and nothing else: an SVID of `b.test` under A's root is refused.
//! 2. **A caller says whom it calls.** [`client_config`] is made for one expected trust domain. A peer with a valid
//!    SVID of another trusted domain is refused ([`PeerError::WrongDomain`]), so whoever controls the DNS answer or the
//!    route gains nothing. Host names are not looked at: the SPIFFE ID is the name.
//! 3. **A server learns who calls.** [`server_config`] demands a client SVID of any trusted trust domain. What that
//!    caller may do is for policy to say; [`peer_id`] gives policy the ID.
//! 4. **Trust and identity are read per handshake.** Configurations are built once. A rotated SVID, a new bundle and a
//!    removed one count from the next handshake on. No session is resumed (see [`tls`]), so every handshake is a full one.
//!
//! What is already connected is not cut by any of this: who wants to end the tunnels of a domain that lost its trust
//! listens to [`TrustStore::changed`].
//!
//! ```text
//!   EmbeddedCa ── issues ──▶ Svid ── held by ──▶ Identity ──┐
//!                                                           ├──▶ client_config / server_config ──▶ rustls, QUIC
//!   Bundle ──── one per trust domain ──▶ TrustStore ────────┘              │
//!                                                                 PeerError: why a peer was refused
//! ```
//!
//! A caller is known by its certificate ([`Caller`], [`PeerCertificate`]); what a hop says of itself to hops that it does
//! not speak to are NSM's tokens ([`token`]), signed with the key of its SVID.
//!
//! Specifications: SPIFFE-ID, X509-SVID, SPIFFE Trust Domain and Bundle (github.com/spiffe/spiffe, `standards/`).

pub mod bundle;
pub mod ca;
mod caller;
mod certificate;
mod jwk;
pub mod peer;
mod pem;
mod private_file;
pub mod source;
pub mod svid;
pub mod tls;
pub mod token;
pub mod trust;

pub use bundle::{Bundle, BundleError, BundleFault};
pub use ca::{Authority, CaError, EmbeddedCa, RotationError};
pub use caller::Caller;
pub use certificate::PeerCertificate;
pub use peer::{PeerError, peer_id};
pub use private_file::{FileError, SECRET, secret};
pub use source::Identity;
pub use svid::Svid;
pub use tls::{client_config, client_config_any_with, client_config_with, server_config, server_config_with};
pub use trust::TrustStore;
