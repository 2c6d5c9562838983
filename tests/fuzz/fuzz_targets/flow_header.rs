//! See `../targets/flow_header.rs`.
#![no_main]

#[path = "../targets/flow_header.rs"]
mod target;

libfuzzer_sys::fuzz_target!(|octets: &[u8]| target::run(octets));
