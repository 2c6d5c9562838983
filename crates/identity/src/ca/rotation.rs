//! The change of a domain's root, in three steps between which peers have all the time they need.
//!
//! ```text
//!             files in <state_dir>/ca          the bundle holds        SVIDs are issued by
//!   prepare   root.pem  next.pem               active, prepared        active
//!   activate  root.pem (was next)  old.pem     active, old             active, which was prepared
//!   revoke    root.pem                         active                  active
//! ```
//!
//! Peers import the bundle after `prepare`; once all have it, `activate` cuts nobody off, because each of them trusts both
//! roots. `revoke` ends the trust in the other one. The words are SPIRE's (`localauthority x509`).
//!
//! The key of a root goes with `activate`: `old.pem` is its certificate alone. Every step replaces one file by a rename, so a
//! crash leaves the state before it or after it.

use std::{path::Path, time::SystemTime};

use carrick_model::TrustDomain;
use rustls_pki_types::{CertificateDer, pem::PemObject as _};

use super::{CaError, DIR, EmbeddedCa, FILE, new_root};
use crate::{bundle::Bundle, pem, private_file::PrivateDir};

/// The root that is to issue next, with its key.
const NEXT: &str = "next.pem";
/// The certificate of the root that issued before.
const OLD: &str = "old.pem";

/// What a root of the own bundle does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Authority {
    /// It issues.
    Active,
    /// It is to issue next: peers learn of it.
    Prepared,
    /// It has issued: what it signed may still be about.
    Old,
}

impl Authority {
    /// The word for people and for JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Prepared => "prepared",
            Self::Old => "old",
        }
    }
}

/// Why a step of a rotation cannot be done.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RotationError {
    /// What is in the state directory cannot be used.
    #[error(transparent)]
    Ca(#[from] CaError),
    /// There is no root to rotate.
    #[error("`{0}` has no root here yet")]
    NoRoot(TrustDomain),
    /// Another root is in the bundle already.
    #[error("a rotation is under way: `{0}` has a root that is {state}", state = .1.as_str())]
    UnderWay(TrustDomain, Authority),
    /// Nothing was prepared.
    #[error("no root of `{0}` is prepared")]
    NotPrepared(TrustDomain),
    /// The bundle holds the root that issues and no other.
    #[error("`{0}` has one root: there is none to revoke")]
    OnlyOne(TrustDomain),
}

impl RotationError {
    /// What the operator can do next.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Ca(error) => error.hint(),
            Self::NoRoot(_) => "start `carrick up`, or make the root now with `carrick trust export -c FILE`",
            Self::UnderWay(_, Authority::Prepared) => {
                "have it issue with `carrick trust rotate activate`, or drop it with `carrick trust rotate revoke`"
            }
            Self::UnderWay(..) => {
                "once nothing that it signed is about any more, end it with `carrick trust rotate revoke`"
            }
            Self::NotPrepared(_) => {
                "begin with `carrick trust rotate prepare`, then have every peer import the bundle"
            }
            Self::OnlyOne(_) => "a rotation begins with `carrick trust rotate prepare`",
        }
    }
}

impl EmbeddedCa {
    /// Makes a second root and puts it into the bundle; it does not issue yet.
    pub fn prepare(dir: &Path, td: &TrustDomain, now: SystemTime) -> Result<Self, RotationError> {
        let (files, ca) = lock(dir, td, now)?;
        if let Some(&(state, _)) = ca.others.first() {
            return Err(RotationError::UnderWay(td.clone(), state));
        }
        let text = new_root(td, now)?;
        Self::open(&files.path(NEXT), td, text.as_bytes(), now)?;
        files.write(NEXT, text.as_bytes()).map_err(CaError::from)?;
        existing(&files, td, now)
    }

    /// Has the prepared root issue. The one before stays in the bundle, without its key.
    pub fn activate(dir: &Path, td: &TrustDomain, now: SystemTime) -> Result<Self, RotationError> {
        let (files, ca) = lock(dir, td, now)?;
        if !ca.others.iter().any(|(state, _)| *state == Authority::Prepared) {
            return Err(RotationError::NotPrepared(td.clone()));
        }
        let certificate = pem::block("CERTIFICATE", &ca.root);
        files.write(OLD, certificate.as_bytes()).map_err(CaError::from)?;
        // A crash here leaves the active root named as the old one too, which `others` passes over.
        files.rename(NEXT, FILE).map_err(CaError::from)?;
        existing(&files, td, now)
    }

    /// Drops the root that does not issue from the bundle: the old one, or a prepared one that is not wanted any more.
    pub fn revoke(dir: &Path, td: &TrustDomain, now: SystemTime) -> Result<Self, RotationError> {
        let (files, ca) = lock(dir, td, now)?;
        if ca.others.is_empty() {
            return Err(RotationError::OnlyOne(td.clone()));
        }
        for name in [NEXT, OLD] {
            files.remove(name).map_err(CaError::from)?;
        }
        existing(&files, td, now)
    }

    /// Whether the same root issues in both.
    pub(crate) fn has_root_of(&self, other: &Self) -> bool {
        self.root == other.root
    }

    /// What each root of the [bundle](Self::bundle) does, in its order: the active one first.
    pub fn authorities(&self) -> Vec<Authority> {
        std::iter::once(Authority::Active).chain(self.others.iter().map(|(state, _)| *state)).collect()
    }
}

fn lock(dir: &Path, td: &TrustDomain, now: SystemTime) -> Result<(PrivateDir, EmbeddedCa), RotationError> {
    let files = PrivateDir::lock(&dir.join(DIR)).map_err(CaError::from)?;
    let ca = existing(&files, td, now)?;
    Ok((files, ca))
}

fn existing(files: &PrivateDir, td: &TrustDomain, now: SystemTime) -> Result<EmbeddedCa, RotationError> {
    EmbeddedCa::read(files, td, now)?.ok_or_else(|| RotationError::NoRoot(td.clone()))
}

/// The roots beside `active` that a rotation has left in the directory.
pub(super) fn others(
    files: &PrivateDir,
    td: &TrustDomain,
    active: &CertificateDer<'_>,
    now: SystemTime,
) -> Result<Vec<(Authority, CertificateDer<'static>)>, CaError> {
    let mut found = Vec::new();
    if let Some(text) = files.read(NEXT)? {
        let next = EmbeddedCa::open(&files.path(NEXT), td, &text, now)?;
        found.push((Authority::Prepared, next.root));
    }
    if let Some(text) = files.read(OLD)? {
        let path = files.path(OLD);
        let damaged = |what| CaError::Damaged { path: path.clone(), what };
        let der = CertificateDer::from_pem_slice(&text).map_err(|_| damaged("it holds no certificate"))?;
        Bundle::of_roots(td, [der.clone()]).map_err(|source| CaError::Root { path: path.clone(), source })?;
        found.push((Authority::Old, der));
    }
    found.retain(|(_, der)| der != active);
    Ok(found)
}

#[cfg(test)]
mod tests {
    use std::{fs, time::Duration};

    use carrick_model::SpiffeId;

    use super::*;
    use crate::ca::tests::{gateway, now, td, verifies};
    use crate::trust::Role;

    const HOUR: Duration = Duration::from_secs(3_600);

    fn open(dir: &tempfile::TempDir) -> EmbeddedCa {
        EmbeddedCa::open_or_create(dir.path(), &td("a.test"), now()).unwrap()
    }

    fn files(dir: &tempfile::TempDir) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(dir.path().join("ca"))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    fn svid_of(ca: &EmbeddedCa, id: &SpiffeId) -> crate::Svid {
        ca.issue(id, HOUR, now()).unwrap()
    }

    #[test]
    fn nobody_who_follows_the_steps_ever_loses_trust() {
        use Authority::{Active, Old, Prepared};
        let dir = tempfile::tempdir().unwrap();
        let (td, id) = (td("a.test"), gateway());
        let first = open(&dir);
        let before = svid_of(&first, &id);

        let prepared = EmbeddedCa::prepare(dir.path(), &td, now()).unwrap();
        assert_eq!(prepared.authorities(), [Active, Prepared]);
        assert_eq!(prepared.bundle().fingerprints()[0], first.bundle().fingerprints()[0]);
        // A peer that has not heard of it yet takes what is issued now.
        verifies(first.bundle(), &svid_of(&prepared, &id), Role::Server, now()).unwrap();
        assert_eq!(open(&dir).authorities(), [Active, Prepared], "a restart changes nothing");

        let active = EmbeddedCa::activate(dir.path(), &td, now()).unwrap();
        assert_eq!(active.authorities(), [Active, Old]);
        assert_eq!(files(&dir), ["old.pem", "root.pem"]);
        let after = svid_of(&active, &id);
        // Peers have imported at `prepare`: both generations are believed, by them and by us.
        for bundle in [prepared.bundle(), active.bundle()] {
            verifies(bundle.clone(), &before, Role::Client, now()).unwrap();
            verifies(bundle, &after, Role::Client, now()).unwrap();
        }
        verifies(first.bundle(), &after, Role::Client, now()).expect_err("a peer that did not import");

        let revoked = EmbeddedCa::revoke(dir.path(), &td, now()).unwrap();
        assert_eq!((revoked.authorities(), files(&dir)), (vec![Active], vec!["root.pem".to_owned()]));
        verifies(revoked.bundle(), &after, Role::Client, now()).unwrap();
        verifies(revoked.bundle(), &before, Role::Client, now()).expect_err("the old root is gone");
        assert_eq!(open(&dir).bundle(), revoked.bundle());
    }

    #[test]
    fn the_key_of_the_old_root_is_gone_with_the_activation() {
        let dir = tempfile::tempdir().unwrap();
        open(&dir);
        let key = fs::read_to_string(dir.path().join("ca/root.pem")).unwrap();
        let key = key.split_once("-----BEGIN PRIVATE KEY-----").unwrap().1.to_owned();
        EmbeddedCa::prepare(dir.path(), &td("a.test"), now()).unwrap();
        EmbeddedCa::activate(dir.path(), &td("a.test"), now()).unwrap();
        for name in files(&dir) {
            assert!(!fs::read_to_string(dir.path().join("ca").join(&name)).unwrap().contains(&key), "{name}");
        }
    }

    #[test]
    fn steps_out_of_order_are_refused_and_change_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let td = td("a.test");
        let refused = |result: Result<EmbeddedCa, RotationError>| {
            let error = result.unwrap_err();
            assert!(!error.hint().is_empty());
            error.to_string()
        };
        assert_eq!(refused(EmbeddedCa::prepare(dir.path(), &td, now())), "`a.test` has no root here yet");
        let first = open(&dir);
        assert_eq!(refused(EmbeddedCa::activate(dir.path(), &td, now())), "no root of `a.test` is prepared");
        assert_eq!(
            refused(EmbeddedCa::revoke(dir.path(), &td, now())),
            "`a.test` has one root: there is none to revoke"
        );
        EmbeddedCa::prepare(dir.path(), &td, now()).unwrap();
        assert_eq!(
            refused(EmbeddedCa::prepare(dir.path(), &td, now())),
            "a rotation is under way: `a.test` has a root that is prepared"
        );
        EmbeddedCa::revoke(dir.path(), &td, now()).unwrap();
        assert_eq!(open(&dir).bundle(), first.bundle(), "a prepared root can be dropped again");
        EmbeddedCa::prepare(dir.path(), &td, now()).unwrap();
        EmbeddedCa::activate(dir.path(), &td, now()).unwrap();
        assert_eq!(
            refused(EmbeddedCa::prepare(dir.path(), &td, now())),
            "a rotation is under way: `a.test` has a root that is old"
        );
    }

    #[test]
    fn a_crash_between_the_two_files_of_an_activation_is_made_good_by_the_next() {
        use Authority::{Active, Old, Prepared};
        let dir = tempfile::tempdir().unwrap();
        let td = td("a.test");
        let first = open(&dir);
        let prepared = EmbeddedCa::prepare(dir.path(), &td, now()).unwrap();
        // What it leaves: the certificate of the active root is written, the new root not in its place yet.
        let files = PrivateDir::lock(&dir.path().join(DIR)).unwrap();
        files.write(OLD, pem::block("CERTIFICATE", &first.root).as_bytes()).unwrap();
        drop(files);
        assert_eq!(open(&dir).authorities(), [Active, Prepared]);
        assert_eq!(open(&dir).bundle(), prepared.bundle());
        let active = EmbeddedCa::activate(dir.path(), &td, now()).unwrap();
        assert_eq!(active.authorities(), [Active, Old]);
    }

    #[test]
    fn a_file_of_a_rotation_that_is_damaged_is_named() {
        let dir = tempfile::tempdir().unwrap();
        open(&dir);
        for name in [NEXT, OLD] {
            let files = PrivateDir::lock(&dir.path().join(DIR)).unwrap();
            files.write(name, b"nonsense").unwrap();
            drop(files);
            let error = EmbeddedCa::open_or_create(dir.path(), &td("a.test"), now()).unwrap_err();
            assert!(error.to_string().contains(name), "{error}");
            fs::remove_file(dir.path().join("ca").join(name)).unwrap();
        }
    }
}
