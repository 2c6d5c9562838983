//! See `../targets/tunnel_messages.rs`.
#![no_main]

#[path = "../targets/tunnel_messages.rs"]
mod target;

libfuzzer_sys::fuzz_target!(|octets: &[u8]| target::run(octets));
