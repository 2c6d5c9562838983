//! A directory for secrets: files in it are written whole or not at all, and read only while nobody else can.

use std::{
    fs::{DirBuilder, File, OpenOptions, rename},
    io::{self, Read as _, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use rustix::fs::{FlockOperation, OFlags, flock};

/// Longest file we read, in octets: a root certificate and its key take less than 2 KiB.
const MAX_FILE: u64 = 64 * 1024;

/// Why a private file or its directory cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FileError {
    /// The system refused. A retry helps once the operator has changed something.
    #[error("cannot {doing} {}", .path.display())]
    Io {
        /// What was tried, as a verb.
        doing: &'static str,
        /// On what.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// Others than the owner may read or replace it.
    #[error("{} has mode {mode:03o}: others than its owner can get at the key", .path.display())]
    Exposed {
        /// The file or directory.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// It is a directory, a device or a pipe, or far too long for what it should be.
    #[error("{} is not a regular file of at most {MAX_FILE} bytes", .path.display())]
    NotPlain {
        /// The file.
        path: PathBuf,
    },
}

impl FileError {
    /// What the operator can do next.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Io { .. } => {
                "let the user that runs carrick own and write `state_dir`, and check the space left on it"
            }
            Self::Exposed { .. } => {
                "chmod 700 the directory and 600 the file; if others could read the key, make a new root and have peers import it"
            }
            Self::NotPlain { .. } => {
                "move it out of the way; see that `state_dir` is a directory of carrick's own"
            }
        }
    }
}

/// A directory of mode 0700, locked against other processes and other handles of this one until dropped.
pub(crate) struct PrivateDir {
    path: PathBuf,
    /// The open directory: its `flock` is the lock, and its `fsync` makes a rename last.
    handle: File,
}

impl PrivateDir {
    /// Opens `path`, making it and its parents if need be, and waits for the lock.
    pub(crate) fn lock(path: &Path) -> Result<Self, FileError> {
        DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(at("create", path))?;
        let handle = File::open(path).map_err(at("open", path))?;
        let mode = handle.metadata().map_err(at("inspect", path))?.permissions().mode() & 0o777;
        // Who can write here can put another root in place.
        if mode & 0o022 != 0 {
            return Err(FileError::Exposed { path: path.to_owned(), mode });
        }
        flock(&handle, FlockOperation::LockExclusive).map_err(|err| at("lock", path)(err.into()))?;
        Ok(Self { path: path.to_owned(), handle })
    }

    /// Where a file of this name is.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// The whole file, or `None` when there is none.
    pub(crate) fn read(&self, name: &str) -> Result<Option<Vec<u8>>, FileError> {
        let path = self.path(name);
        // NONBLOCK: a FIFO in its place must not hold us; it is refused below.
        let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let opened = OpenOptions::new().read(true).custom_flags(flags.bits().cast_signed()).open(&path);
        let file = match opened {
            Err(err) if err.kind() == io::ErrorKind::NotFound => return Ok(None),
            opened => opened.map_err(at("open", &path))?,
        };
        let facts = file.metadata().map_err(at("inspect", &path))?;
        if !facts.is_file() || facts.len() > MAX_FILE {
            return Err(FileError::NotPlain { path });
        }
        let mode = facts.permissions().mode() & 0o777;
        if mode & 0o077 != 0 {
            return Err(FileError::Exposed { path, mode });
        }
        let mut bytes = Vec::new();
        file.take(MAX_FILE).read_to_end(&mut bytes).map_err(at("read", &path))?;
        Ok(Some(bytes))
    }

    /// Writes a file of mode 0600, in place of one of that name. After a crash it is either wholly there or as it was.
    pub(crate) fn write(&self, name: &str, bytes: &[u8]) -> Result<(), FileError> {
        let (path, draft) = (self.path(name), self.path(&format!(".{name}.new")));
        // What an earlier crash left is never half of a file in use.
        unlink(&draft)?;
        let opened = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&draft);
        let mut file = opened.map_err(at("create", &draft))?;
        file.write_all(bytes).and_then(|()| file.sync_all()).map_err(at("write", &draft))?;
        rename(&draft, &path).map_err(at("rename to", &path))?;
        self.sync()?;
        // The directory itself may be new. Not by its path: that of a single name has no parent that could be opened.
        let parent = self.path("..");
        File::open(&parent).and_then(|p| p.sync_all()).map_err(at("sync", &parent))
    }

    /// Puts a file in the place of another, at once.
    pub(crate) fn rename(&self, from: &str, to: &str) -> Result<(), FileError> {
        let to = self.path(to);
        rename(self.path(from), &to).map_err(at("rename to", &to))?;
        self.sync()
    }

    /// Removes a file; one that is not there is as good as removed.
    pub(crate) fn remove(&self, name: &str) -> Result<(), FileError> {
        unlink(&self.path(name))?;
        self.sync()
    }

    fn sync(&self) -> Result<(), FileError> {
        self.handle.sync_all().map_err(at("sync", &self.path))
    }
}

/// Length of a [`secret`], in octets: the block of SHA-256, so that HMAC takes all of it as it is (RFC 2104 section 3).
pub const SECRET: usize = 64;

/// The random secret `name` of this installation under the state directory `dir`, made when there is none yet. What is not
/// [`SECRET`] octets long is replaced: nobody else knows these secrets, so a new one costs less than a start that fails.
pub fn secret(dir: &Path, name: &str) -> Result<[u8; SECRET], FileError> {
    let files = PrivateDir::lock(dir)?;
    if let Some(found) = files.read(name)?.and_then(|bytes| bytes.try_into().ok()) {
        return Ok(found);
    }
    let mut made = [0; SECRET];
    aws_lc_rs::rand::fill(&mut made)
        .map_err(|_| at("draw random octets for", &files.path(name))(io::ErrorKind::Other.into()))?;
    files.write(name, &made)?;
    Ok(made)
}

fn unlink(path: &Path) -> Result<(), FileError> {
    match std::fs::remove_file(path) {
        Err(err) if err.kind() != io::ErrorKind::NotFound => Err(at("remove", path)(err)),
        _ => Ok(()),
    }
}

fn at(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> FileError {
    move |source| FileError::Io { doing, path: path.to_owned(), source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_made_once_and_mended_when_it_is_cut() {
        let dir = tempfile::tempdir().unwrap();
        let made = secret(dir.path(), "tunnel.key").unwrap();
        assert_ne!(made, [0; SECRET]);
        assert_eq!(secret(dir.path(), "tunnel.key").unwrap(), made);
        let path = dir.path().join("tunnel.key");
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        std::fs::write(&path, &made[..10]).unwrap();
        let mended = secret(dir.path(), "tunnel.key").unwrap();
        assert!(mended != made && secret(dir.path(), "tunnel.key").unwrap() == mended);
    }
}
