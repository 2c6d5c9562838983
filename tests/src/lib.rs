//! End-to-end tests of Carrick, from outside: programs, sockets, namespaces, logs and exit codes.
//!
//! [`lab`] builds the world a test runs in; `tests/*.rs` are the scenarios; `bench/` measures the same world.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::disallowed_methods,
    reason = "all of this is test code: trouble in the lab is a failed test, and real programs are waited for"
)]

pub mod lab;
pub mod workload;
