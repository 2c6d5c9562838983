//! `carrick.yaml`: from text to final types, with all that is wrong reported at once.
//!
//! | step | module | what it reports |
//! |---|---|---|
//! | text to a tree in which every key knows its line and column | `document` | YAML errors, double keys, bounds |
//! | the tree against the schema | `structure` | unknown keys, missing keys, wrong types, unknown words |
//! | what is left into the raw serde types (`raw`), each text into its type (`text`) | `convert` | bad names, addresses, durations |
//! | the types against each other | `checks` | what is right by itself and wrong together |
//!
//! A step drops what it reports, and the next works on the rest: one run shows the faults of all four. The JSON schema
//! is derived from the raw types, and so are `docs/reference/config.md` and the keys an error message proposes.

mod checks;
mod config;
mod convert;
mod cursor;
pub mod defaults;
mod difference;
mod document;
mod environment;
mod fault;
mod raw;
mod reference;
mod structure;
mod text;

use std::{
    io::{self, Read},
    path::Path,
};

pub use config::{
    BundleSource, Compat, Config, Congestion, Dns, Etcd, EtcdClient, EtcdTls, Export, Identity,
    IdentitySource, Import, Lanes, Limits, Listen, Log, LogFormat, Nsm, Peer, Registry, Store, Strategy,
    Timeouts, Trust, Tunnel,
};
pub use difference::{Changes, Difference};
pub use document::{MAX_BYTES, MAX_DEPTH, MAX_NODES};
pub use environment::{Environment, EnvironmentFault, EnvironmentFaults, Ignored};
pub use fault::{Fault, Faults, LoadError};
pub use reference::{reference_markdown, schema};

/// Reads the config file at `path`. Relative paths in it are relative to its directory.
pub fn load(path: &Path) -> Result<Config, LoadError> {
    let unread = |source| LoadError::Read { path: path.to_owned(), source };
    let file = std::fs::File::open(path).map_err(unread)?;
    let mut bytes = Vec::new();
    // One byte over the bound is enough to be refused for it.
    file.take(MAX_BYTES as u64 + 1).read_to_end(&mut bytes).map_err(unread)?;
    let text = String::from_utf8(bytes).or_else(|error| match error.utf8_error().error_len() {
        // The bound may have cut a character in two; the parser refuses the size.
        None if error.as_bytes().len() > MAX_BYTES => {
            Ok(String::from_utf8_lossy(error.as_bytes()).into_owned())
        }
        _ => Err(unread(io::Error::new(io::ErrorKind::InvalidData, "not UTF-8 text"))),
    })?;
    parse_in(&text, path.parent().unwrap_or(Path::new("")))
        .map_err(|faults| LoadError::Faults(faults.in_file(path)))
}

/// Parses the text of a config. Relative paths in it stay relative.
pub fn parse(text: &str) -> Result<Config, Faults> {
    parse_in(text, Path::new(""))
}

/// Parses the text of a config whose relative paths are relative to `directory`.
pub fn parse_in(text: &str, directory: &Path) -> Result<Config, Faults> {
    let document = document::read(text)?;
    let checked = structure::check(document);
    convert::convert(&checked, directory)
}
