//! Bundles that `carrick trust import` wrote and the daemon reads: `state_dir/trust/<domain>.json`.
//!
//! ```json
//! { "domain": "onprem.test", "trust_domain": "onprem.test", "imported": "2026-11-23T08:27:00Z", "bundle": { "keys": [] } }
//! ```
//!
//! The name of the file is the domain's. A `trust:` entry of the config for the same domain wins.

use std::{
    collections::BTreeSet,
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    time::SystemTime,
};

use carrick_config::{Config, Fault};
use carrick_identity::{Bundle, BundleError};
use carrick_model::{Domain, TrustDomain};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{
    admin::api::Timestamp,
    state_dir::{StateDir, StateDirError},
};

/// Room for a bundle of [`carrick_identity::bundle::MAX_BUNDLE`] and what we wrap around it.
const MAX_FILE: usize = carrick_identity::bundle::MAX_BUNDLE + 4096;
/// Ends every file's name.
const EXTENSION: &str = "json";

/// One domain's roots, imported.
#[derive(Debug, Clone)]
pub(crate) struct ImportedTrust {
    /// Whose names they vouch for.
    pub(crate) domain: Domain,
    /// The roots, and the trust domain they are of.
    pub(crate) bundle: Bundle,
    /// The file.
    pub(crate) path: PathBuf,
}

/// Why an imported bundle cannot be read, written or removed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TrustFileError {
    /// The state directory cannot be used.
    #[error("the bundle cannot be saved")]
    StateDir(#[from] StateDirError),
    /// The system refused.
    #[error("{}: {action} failed", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It is too large to be one of ours.
    #[error("{}: over {MAX_FILE} bytes", .0.display())]
    TooLarge(PathBuf),
    /// It is not one of ours.
    #[error("{}: not an imported bundle", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: serde_json::Error,
    },
    /// Its content is of another domain than its name.
    #[error("{}: it is of {domain}", path.display())]
    OtherName {
        /// The file.
        path: PathBuf,
        /// The domain in it.
        domain: Domain,
    },
    /// Its trust domain is none.
    #[error("{}: `{text}` is not a trust domain", path.display())]
    TrustDomain {
        /// The file.
        path: PathBuf,
        /// What stands there.
        text: String,
    },
    /// Its roots cannot be used.
    #[error("{}: cannot be used", path.display())]
    Bundle {
        /// The file.
        path: PathBuf,
        /// Why.
        source: BundleError,
    },
}

impl TrustFileError {
    /// What the operator can do.
    pub(crate) fn hint(&self) -> String {
        match self {
            Self::StateDir(inner) => inner.hint(),
            Self::Io { .. } => "run this as the user of the daemon, and check the space left".into(),
            Self::OtherName { .. } => {
                "do not rename these files: `carrick trust import FILE --domain D` names them".into()
            }
            Self::TooLarge(path)
            | Self::Json { path, .. }
            | Self::TrustDomain { path, .. }
            | Self::Bundle { path, .. } => {
                format!("remove {} and import the bundle again with `carrick trust import`", path.display())
            }
        }
    }
}

/// The content of a file.
#[derive(Serialize, Deserialize)]
struct Document {
    domain: Domain,
    trust_domain: String,
    imported: Timestamp,
    bundle: Value,
}

/// Every imported bundle in order of domains, and what could not be read: one bad file leaves the others in force.
pub(crate) fn read_all(state: &StateDir) -> (Vec<ImportedTrust>, Vec<TrustFileError>) {
    let dir = state.trust();
    let entries = match fs::read_dir(&dir) {
        Ok(entries) => entries,
        Err(err) if err.kind() == io::ErrorKind::NotFound => return (Vec::new(), Vec::new()),
        Err(source) => return (Vec::new(), vec![failed("reading", &dir)(source)]),
    };
    let mut paths: Vec<PathBuf> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|e| e == EXTENSION) && !is_hidden(path))
        .collect();
    paths.sort();
    let (mut imported, mut faults) = (Vec::new(), Vec::new());
    for path in paths {
        match read(path) {
            Ok(trust) => imported.push(trust),
            Err(fault) => faults.push(fault),
        }
    }
    (imported, faults)
}

/// The imported bundle of `domain`, if there is one.
pub(crate) fn read_one(state: &StateDir, domain: &Domain) -> Result<Option<ImportedTrust>, TrustFileError> {
    match read(path_of(state, domain)) {
        Err(TrustFileError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(None),
        read => read.map(Some),
    }
}

fn read(path: PathBuf) -> Result<ImportedTrust, TrustFileError> {
    let mut bytes = Vec::new();
    let limit = u64::try_from(MAX_FILE).unwrap_or(u64::MAX).saturating_add(1);
    let file = File::open(&path).map_err(failed("opening", &path))?;
    file.take(limit).read_to_end(&mut bytes).map_err(failed("reading", &path))?;
    if bytes.len() > MAX_FILE {
        return Err(TrustFileError::TooLarge(path));
    }
    let json = |source| TrustFileError::Json { path: path.clone(), source };
    let Document { domain, trust_domain, bundle, imported: _ } =
        serde_json::from_slice(&bytes).map_err(json)?;
    if path.file_stem().is_none_or(|stem| stem != domain.as_str()) {
        return Err(TrustFileError::OtherName { path, domain });
    }
    let Ok(trust_domain) = TrustDomain::new(&trust_domain) else {
        return Err(TrustFileError::TrustDomain { path, text: trust_domain });
    };
    let parsed = Bundle::parse(&trust_domain, bundle.to_string().as_bytes());
    match parsed {
        Ok(bundle) => Ok(ImportedTrust { domain, bundle, path }),
        Err(source) => Err(TrustFileError::Bundle { path, source }),
    }
}

/// The config's warnings less those that imported bundles settle: the config is read without knowing of them.
pub(crate) fn unsettled<'a>(config: &'a Config, imported: &[ImportedTrust]) -> Vec<&'a Fault> {
    let mut settled = BTreeSet::new();
    for (i, export) in config.exports.iter().enumerate() {
        for (j, pattern) in export.allow.iter().enumerate() {
            if imported.iter().any(|t| t.bundle.trust_domain() == pattern.trust_domain()) {
                settled.insert(format!("exports[{i}].allow[{j}]"));
            }
        }
    }
    for (i, import) in config.imports.iter().enumerate() {
        if imported.iter().any(|t| t.domain == *import.service.domain()) {
            settled.insert(format!("imports[{i}].service"));
        }
    }
    config.warnings.iter().filter(|warning| !settled.contains(&warning.path)).collect()
}

/// Saves the bundle of `domain`, in place of an earlier one. After a crash the file is the old one or the new one.
pub(crate) fn write(
    state: &StateDir,
    domain: &Domain,
    bundle: &Bundle,
    now: SystemTime,
) -> Result<PathBuf, TrustFileError> {
    state.create()?;
    let (dir, path) = (state.trust(), path_of(state, domain));
    // The roots are public, and the daemon may run as another user than the operator.
    fs::DirBuilder::new().recursive(true).mode(0o755).create(&dir).map_err(failed("creating", &dir))?;
    state.adopt(&dir).map_err(failed("giving away", &dir))?;

    let json = |source| TrustFileError::Json { path: path.clone(), source };
    let document = Document {
        domain: domain.clone(),
        trust_domain: bundle.trust_domain().to_string(),
        imported: now.into(),
        bundle: serde_json::from_str(&bundle.to_spiffe_json()).map_err(json)?,
    };
    let text = serde_json::to_string_pretty(&document).map_err(json)? + "\n";

    let draft = dir.join(format!(".{domain}.{}.new", std::process::id()));
    let written = write_draft(&draft, &text).and_then(|()| {
        state.adopt(&draft).map_err(failed("giving away", &draft))?;
        fs::rename(&draft, &path).map_err(failed("renaming to", &path))
    });
    if written.is_err() {
        // The reason is worth more than the rest of the draft.
        let _ = fs::remove_file(&draft);
    }
    written?;
    sync_dir(&dir)?;
    Ok(path)
}

/// Removes the bundle of `domain`; false when there is none.
pub(crate) fn remove(state: &StateDir, domain: &Domain) -> Result<bool, TrustFileError> {
    let path = path_of(state, domain);
    match fs::remove_file(&path) {
        Ok(()) => sync_dir(&state.trust()).map(|()| true),
        Err(err) if err.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(source) => Err(failed("removing", &path)(source)),
    }
}

/// A domain is letters, digits, hyphens and inner dots, so it cannot leave the directory.
fn path_of(state: &StateDir, domain: &Domain) -> PathBuf {
    state.trust().join(format!("{domain}.{EXTENSION}"))
}

fn is_hidden(path: &Path) -> bool {
    path.file_name().is_none_or(|name| name.as_encoded_bytes().starts_with(b"."))
}

fn write_draft(draft: &Path, text: &str) -> Result<(), TrustFileError> {
    let mut options = OpenOptions::new();
    let mut file = options
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o644)
        .open(draft)
        .map_err(failed("creating", draft))?;
    file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(failed("writing", draft))
}

fn sync_dir(dir: &Path) -> Result<(), TrustFileError> {
    File::open(dir).and_then(|d| d.sync_all()).map_err(failed("syncing", dir))
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> TrustFileError {
    let path = path.to_owned();
    move |source| TrustFileError::Io { action, path, source }
}

#[cfg(test)]
mod tests {
    use carrick_identity::EmbeddedCa;

    use super::*;

    fn bundle(td: &str) -> Bundle {
        let dir = tempfile::tempdir().unwrap();
        let td = TrustDomain::new(td).unwrap();
        EmbeddedCa::open_or_create(dir.path(), &td, SystemTime::now()).unwrap().bundle()
    }

    fn state() -> (tempfile::TempDir, StateDir) {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::new(dir.path().join("state"));
        (dir, state)
    }

    fn domain(text: &str) -> Domain {
        text.parse().unwrap()
    }

    #[test]
    fn what_was_written_is_read() {
        let (_dir, state) = state();
        assert!(read_all(&state).0.is_empty(), "nothing imported yet is no fault");
        let theirs = bundle("their.trust");
        let path = write(&state, &domain("b.test"), &theirs, SystemTime::now()).unwrap();
        assert_eq!(path, state.trust().join("b.test.json"));
        write(&state, &domain("a.test"), &bundle("a.test"), SystemTime::now()).unwrap();

        let (imported, faults) = read_all(&state);
        assert!(faults.is_empty(), "{faults:?}");
        let domains: Vec<_> = imported.iter().map(|t| t.domain.as_str()).collect();
        assert_eq!(domains, ["a.test", "b.test"]);
        assert_eq!(imported[1].bundle.trust_domain().to_string(), "their.trust");
        assert_eq!(imported[1].bundle.fingerprints(), theirs.fingerprints());
    }

    #[test]
    fn a_later_import_replaces_the_earlier_and_leaves_no_draft() {
        let (_dir, state) = state();
        let (old, new) = (bundle("b.test"), bundle("b.test"));
        for b in [&old, &new] {
            write(&state, &domain("b.test"), b, SystemTime::now()).unwrap();
        }
        let read = read_one(&state, &domain("b.test")).unwrap().unwrap();
        assert_eq!(read.bundle.fingerprints(), new.fingerprints());
        assert_eq!(fs::read_dir(state.trust()).unwrap().count(), 1);
        assert!(remove(&state, &domain("b.test")).unwrap());
        assert!(!remove(&state, &domain("b.test")).unwrap());
        assert!(read_one(&state, &domain("b.test")).unwrap().is_none());
    }

    #[test]
    fn an_imported_bundle_settles_the_warnings_about_its_domain_alone() {
        let (_dir, state) = state();
        let config = carrick_config::parse(
            "domain: a.test\n\
             exports: [ { service: web, to: 'tcp://127.0.0.1:80', allow: ['spiffe://b.test/**', 'spiffe://c.test/**'] } ]\n\
             imports:\n  - { service: x@b.test, listen: '127.0.0.1:1' }\n  - { service: x@c.test, listen: '127.0.0.1:2' }\n",
        )
        .unwrap();
        assert_eq!(unsettled(&config, &[]).len(), 4, "{:?}", config.warnings);
        write(&state, &domain("b.test"), &bundle("b.test"), SystemTime::now()).unwrap();
        let left: Vec<_> = unsettled(&config, &read_all(&state).0).iter().map(|w| w.path.as_str()).collect();
        assert_eq!(left, ["exports[0].allow[1]", "imports[1].service"]);
    }

    #[test]
    fn one_bad_file_leaves_the_others_in_force() {
        let (_dir, state) = state();
        write(&state, &domain("good.test"), &bundle("good.test"), SystemTime::now()).unwrap();
        fs::write(state.trust().join("bad.test.json"), "{").unwrap();
        fs::write(state.trust().join("readme.txt"), "not ours").unwrap();
        fs::copy(state.trust().join("good.test.json"), state.trust().join("evil.test.json")).unwrap();
        let (imported, faults) = read_all(&state);
        assert_eq!(imported.len(), 1);
        assert_eq!(faults.len(), 2, "{faults:?}");
        assert!(matches!(&faults[0], TrustFileError::Json { path, .. } if path.ends_with("bad.test.json")));
        assert!(
            matches!(&faults[1], TrustFileError::OtherName { domain, .. } if domain.as_str() == "good.test")
        );
        assert!(faults[0].hint().contains("import"));
    }

    #[test]
    fn a_file_that_is_too_large_is_not_read_into_memory() {
        let (_dir, state) = state();
        fs::create_dir_all(state.trust()).unwrap();
        let path = state.trust().join("big.test.json");
        File::create(&path).unwrap().set_len(u64::try_from(MAX_FILE).unwrap() * 1000).unwrap();
        assert!(matches!(&read_all(&state).1[..], [TrustFileError::TooLarge(p)] if *p == path));
    }
}
