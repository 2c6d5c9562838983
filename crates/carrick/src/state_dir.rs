//! The state directory: which file is where, and who may look.
//!
//! ```text
//! state_dir/            0700 when we make it
//!   admin.sock          the admin API, while a daemon runs
//!   admin.lock          held by the running daemon, holds its process id
//!   ca/root.pem         the embedded CA (crate carrick-identity)
//!   registry.redb       what is registered (crate carrick-registry)
//!   connections.redb    connections that pass through (crate carrick-proxy)
//!   trust/D.json        bundles that `carrick trust import` wrote (trust_file.rs)
//! ```

use std::{
    fs, io,
    os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, lchown},
    path::{Path, PathBuf},
};

/// Where state is kept unless somebody says otherwise (FHS 3.0 section 5.8).
pub(crate) const DEFAULT: &str = "/var/lib/carrick";
/// Names it for every command; the flag wins.
pub(crate) const ENV: &str = "CARRICK_STATE_DIR";

/// A daemon's state directory. Naming it touches nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct StateDir(PathBuf);

/// Why a state directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StateDirError {
    /// It cannot be made or looked at.
    #[error("state_dir {}: cannot be created or read", path.display())]
    Io {
        /// The directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Something else has its name.
    #[error("state_dir {}: not a directory", .0.display())]
    NotADirectory(PathBuf),
    /// Others may write to it, so they could replace keys and sockets.
    #[error("state_dir {}: others may write to it (mode {mode:04o})", path.display())]
    Open {
        /// The directory.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
}

impl StateDirError {
    /// What the operator can do.
    pub(crate) fn hint(&self) -> String {
        match self {
            Self::Io { path, .. } | Self::NotADirectory(path) => format!(
                "let `state_dir` name a directory that this user may write to, or make it: install -d -m 0700 {}",
                path.display()
            ),
            Self::Open { path, .. } => {
                format!(
                    "it holds private keys: chmod 0700 {}, or name a directory of its own",
                    path.display()
                )
            }
        }
    }
}

impl StateDir {
    /// The directory at `path`.
    pub(crate) fn new(path: impl Into<PathBuf>) -> Self {
        Self(path.into())
    }

    /// Its path.
    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    /// The admin API's socket.
    pub(crate) fn admin_socket(&self) -> PathBuf {
        self.0.join("admin.sock")
    }

    /// The file whose lock says that a daemon runs.
    pub(crate) fn lock_file(&self) -> PathBuf {
        self.0.join("admin.lock")
    }

    /// The embedded CA's root: certificate and key.
    pub(crate) fn ca_root(&self) -> PathBuf {
        self.0.join("ca/root.pem")
    }

    /// The directory of the embedded CA and what is in it.
    pub(crate) fn ca_files(&self) -> io::Result<Vec<PathBuf>> {
        let dir = self.0.join("ca");
        let mut files = fs::read_dir(&dir)?.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<_>>>()?;
        files.push(dir);
        Ok(files)
    }

    /// Where imported bundles are.
    pub(crate) fn trust(&self) -> PathBuf {
        self.0.join("trust")
    }

    /// Makes the directory, readable by its owner only, or checks that the one there is safe to use.
    ///
    /// One that exists keeps its mode: it may be a mount point that somebody else made and set up. Secrets inside have
    /// modes of their own.
    pub(crate) fn create(&self) -> Result<(), StateDirError> {
        let path = || self.0.clone();
        let failed = |source| StateDirError::Io { path: path(), source };
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.0).map_err(|source| {
            if source.kind() == io::ErrorKind::AlreadyExists {
                return StateDirError::NotADirectory(path());
            }
            failed(source)
        })?;
        let mode = fs::metadata(&self.0).map_err(failed)?.permissions().mode() & 0o7777;
        if mode & 0o022 != 0 {
            return Err(StateDirError::Open { path: path(), mode });
        }
        Ok(())
    }

    /// What root makes in it belongs to whom the directory belongs to, so that the daemon's user can read and replace it.
    pub(crate) fn adopt(&self, path: &Path) -> io::Result<()> {
        let (owner, here) = (fs::metadata(&self.0)?, fs::symlink_metadata(path)?);
        if (here.uid(), here.gid()) == (owner.uid(), owner.gid()) || !rustix::process::geteuid().is_root() {
            return Ok(());
        }
        lchown(path, Some(owner.uid()), Some(owner.gid()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_one_is_for_its_owner_only() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::new(dir.path().join("a/b"));
        state.create().unwrap();
        state.create().unwrap();
        assert_eq!(fs::metadata(state.path()).unwrap().permissions().mode() & 0o7777, 0o700);
    }

    #[test]
    fn one_that_others_may_write_to_is_refused_and_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o1777)).unwrap();
        let err = StateDir::new(dir.path()).create().unwrap_err();
        assert!(matches!(err, StateDirError::Open { mode: 0o1777, .. }), "{err:?}");
        assert!(err.hint().contains("chmod 0700"));
        assert_eq!(fs::metadata(dir.path()).unwrap().permissions().mode() & 0o7777, 0o1777);
    }

    #[test]
    fn a_file_in_its_place_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("state");
        fs::write(&file, "").unwrap();
        assert!(matches!(StateDir::new(&file).create(), Err(StateDirError::NotADirectory(p)) if p == file));
    }
}
