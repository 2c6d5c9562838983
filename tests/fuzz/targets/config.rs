//! A config is read, or refused with faults.

/// One input.
pub fn run(octets: &[u8]) {
    let Ok(text) = std::str::from_utf8(octets) else { return };
    if let Err(faults) = carrick_config::parse(text) {
        assert!(!faults.as_slice().is_empty());
    }
}
