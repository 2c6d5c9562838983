//! A config is read or refused with faults that have a place.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    if let Err(faults) = carrick_config::parse(text) {
        assert!(!faults.as_slice().is_empty());
    }
});
