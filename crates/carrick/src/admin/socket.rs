//! The admin socket: one daemon per state directory, and nobody but its user may connect.

use std::{
    fs,
    io::{self, Read, Seek, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use carrick_runtime::{UnixSocket, UnixSocketError};
use rustix::fs::{FlockOperation, flock};
use tokio::net::UnixListener;

use crate::state_dir::{StateDir, StateDirError};

/// Nobody but the daemon's user may connect: the socket asks for no identity.
const MODE: u32 = 0o600;

/// The bound socket. Dropping it removes the file, unless another daemon has put its own there since.
#[derive(Debug)]
pub(crate) struct AdminSocket {
    socket: UnixSocket,
    /// Held until the process ends; the kernel lets go of it even after a kill.
    _lock: fs::File,
}

/// Why the admin socket cannot be had.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SocketError {
    /// The directory it goes into cannot be used.
    #[error("the admin socket cannot be made")]
    StateDir(#[from] StateDirError),
    /// Another daemon uses this state directory.
    #[error("another carrick{} is running with state_dir {}", pid_suffix(*pid), state_dir.display())]
    Running {
        /// The directory both want.
        state_dir: PathBuf,
        /// The other's process id, when it could be read.
        pid: Option<u32>,
    },
    /// The socket cannot be bound.
    #[error("the admin socket cannot be bound")]
    Unix(#[from] UnixSocketError),
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
}

impl SocketError {
    /// What the operator can do.
    pub(crate) fn hint(&self) -> String {
        match self {
            Self::StateDir(inner) => inner.hint(),
            Self::Running { state_dir, .. } => format!(
                "look at it with `carrick status --state-dir {}`, or give this one a state_dir of its own",
                state_dir.display()
            ),
            Self::Unix(UnixSocketError::TooLong(_)) => "choose a shorter `state_dir`".into(),
            Self::Unix(error) => error.hint(),
            Self::Io { .. } => "the daemon's user must own `state_dir`".into(),
        }
    }
}

fn pid_suffix(pid: Option<u32>) -> String {
    pid.map(|p| format!(" (process {p})")).unwrap_or_default()
}

impl AdminSocket {
    /// Makes the state directory if need be, takes its lock, clears away a dead daemon's socket, and binds with mode 0600.
    pub(crate) async fn bind(dir: &StateDir) -> Result<Self, SocketError> {
        dir.create()?;
        let lock = take_lock(dir)?;
        let bound = UnixSocket::bind(&dir.admin_socket(), MODE).await;
        let socket = bound.map_err(|error| match error {
            // Whoever answers has this directory, lock or not.
            UnixSocketError::Live(_) => SocketError::Running { state_dir: dir.path().to_owned(), pid: None },
            error => error.into(),
        })?;
        Ok(Self { socket, _lock: lock })
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        self.socket.path()
    }

    /// The socket, for `accept`.
    pub(super) fn listener(&mut self) -> &mut UnixListener {
        self.socket.listener()
    }
}

/// Two daemons that start at the same moment both find a stale socket; the lock lets one of them through.
fn take_lock(dir: &StateDir) -> Result<fs::File, SocketError> {
    let path = dir.lock_file();
    let mut file = fs::OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .map_err(failed("opening", &path))?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(rustix::io::Errno::WOULDBLOCK) => {
            let mut text = String::new();
            let pid = file.read_to_string(&mut text).ok().and_then(|_| text.trim().parse().ok());
            return Err(SocketError::Running { state_dir: dir.path().to_owned(), pid });
        }
        Err(err) => return Err(failed("locking", &path)(err.into())),
    }
    let written =
        file.set_len(0).and_then(|()| file.rewind()).and_then(|()| writeln!(file, "{}", std::process::id()));
    written.map_err(failed("writing", &path))?;
    Ok(file)
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> SocketError {
    let path = path.to_owned();
    move |source| SocketError::Io { action, path, source }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use tokio::net::UnixStream;

    use super::*;

    fn state() -> (tempfile::TempDir, StateDir) {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::new(dir.path().join("state"));
        (dir, state)
    }

    fn mode(path: &Path) -> u32 {
        fs::symlink_metadata(path).unwrap().permissions().mode() & 0o7777
    }

    #[tokio::test]
    async fn only_the_owner_may_connect() {
        let (_dir, state) = state();
        let socket = AdminSocket::bind(&state).await.unwrap();
        assert_eq!(mode(socket.path()), 0o600);
        assert_eq!(mode(state.path()), 0o700);
        assert_eq!(mode(&state.lock_file()), 0o600);
    }

    #[tokio::test]
    async fn a_second_daemon_is_told_about_the_first() {
        let (_dir, state) = state();
        let first = AdminSocket::bind(&state).await.unwrap();
        let err = AdminSocket::bind(&state).await.unwrap_err();
        let pid = std::process::id();
        let dir = state.path().display();
        assert_eq!(
            err.to_string(),
            format!("another carrick (process {pid}) is running with state_dir {dir}")
        );
        assert!(err.hint().contains("carrick status"));
        UnixStream::connect(first.path()).await.expect("the first one is unharmed");
    }

    #[tokio::test]
    async fn one_that_answers_without_the_lock_is_left_alone() {
        let (_dir, state) = state();
        state.create().unwrap();
        let _other = UnixListener::bind(state.admin_socket()).unwrap();
        let err = AdminSocket::bind(&state).await.unwrap_err();
        assert!(matches!(err, SocketError::Running { pid: None, .. }), "{err:?}");
        UnixStream::connect(state.admin_socket()).await.unwrap();
    }

    #[tokio::test]
    async fn a_path_that_does_not_fit_says_so() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::new(dir.path().join("x".repeat(110)));
        let err = AdminSocket::bind(&state).await.unwrap_err();
        assert!(matches!(err, SocketError::Unix(UnixSocketError::TooLong(_))), "{err:?}");
        assert!(err.hint().contains("shorter"));
    }
}
