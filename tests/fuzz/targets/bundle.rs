//! A bundle that is read is written back as one that reads the same.

use carrick_identity::Bundle;
use carrick_model::TrustDomain;

/// One input.
pub fn run(octets: &[u8]) {
    let trust_domain = TrustDomain::new("a.test").expect("it is one");
    if let Ok(bundle) = Bundle::parse(&trust_domain, octets) {
        let again = Bundle::parse(&trust_domain, bundle.to_spiffe_json().as_bytes()).expect("our own text");
        assert_eq!(again.fingerprints(), bundle.fingerprints());
    }
}
