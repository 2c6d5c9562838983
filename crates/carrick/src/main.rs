//! The binary `carrick`: parses the command line and exits with what came of it.

mod admin;
mod app;
mod cli;
mod demo;
mod logging;
mod state_dir;
mod trust_file;

use std::process::ExitCode;

fn main() -> ExitCode {
    // A library that brings a second provider would otherwise make rustls refuse to choose. Only a second call fails.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    cli::run()
}
