//! The admin socket: one daemon per state directory, and nobody but its user may connect.

use std::{
    fs,
    io::{self, Read, Seek, Write},
    os::{
        linux::fs::MetadataExt,
        unix::fs::{FileTypeExt, OpenOptionsExt},
    },
    path::{Path, PathBuf},
    time::Duration,
};

use carrick_model::address::MAX_UNIX_PATH;
use rustix::{
    fs::{FlockOperation, Mode, fchmod, flock},
    net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, listen, socket_with},
};
use tokio::net::{UnixListener, UnixStream};

use crate::state_dir::{StateDir, StateDirError};

/// Connections the kernel holds while we are busy; operators are few.
const BACKLOG: i32 = 64;
/// A daemon that has not accepted by then is not going to.
const PROBE: Duration = Duration::from_secs(2);

/// The bound socket. Dropping it removes the file, unless another daemon has put its own there since.
#[derive(Debug)]
pub(crate) struct AdminSocket {
    pub(super) listener: UnixListener,
    path: PathBuf,
    inode: (u64, u64),
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
    /// A file that is not a socket has its name.
    #[error("{} is in the way: it is not a socket", .0.display())]
    InTheWay(PathBuf),
    /// The path does not fit into a socket address.
    #[error("{}: over {MAX_UNIX_PATH} characters, too long for a Unix socket", .0.display())]
    TooLong(PathBuf),
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
            Self::InTheWay(path) => format!("remove it: rm {}", path.display()),
            Self::TooLong(_) => "choose a shorter `state_dir`".into(),
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
        let path = dir.admin_socket();
        if path.as_os_str().len() > MAX_UNIX_PATH {
            return Err(SocketError::TooLong(path));
        }
        let lock = take_lock(dir)?;
        clear_stale(dir, &path).await?;
        let listener = listen_private(&path).map_err(failed("binding", &path))?;
        let meta = fs::symlink_metadata(&path).map_err(failed("looking at it", &path))?;
        Ok(Self { listener, inode: (meta.st_dev(), meta.st_ino()), path, _lock: lock })
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for AdminSocket {
    fn drop(&mut self) {
        let ours = fs::symlink_metadata(&self.path).is_ok_and(|m| (m.st_dev(), m.st_ino()) == self.inode);
        if ours && let Err(err) = fs::remove_file(&self.path) {
            tracing::warn!(path = %self.path.display(), %err, "the admin socket could not be removed");
        }
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

/// Removes the socket of a daemon that is gone. One that answers is not gone, whoever holds the lock.
async fn clear_stale(dir: &StateDir, path: &Path) -> Result<(), SocketError> {
    match fs::symlink_metadata(path) {
        Err(err) if err.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(err) => return Err(failed("looking at it", path)(err)),
        Ok(meta) if !meta.file_type().is_socket() => return Err(SocketError::InTheWay(path.to_owned())),
        Ok(_) => {}
    }
    match tokio::time::timeout(PROBE, UnixStream::connect(path)).await {
        Ok(Err(err)) if err.kind() == io::ErrorKind::ConnectionRefused => {
            tracing::debug!(path = %path.display(), "removing the socket of a daemon that is gone");
            fs::remove_file(path).map_err(failed("removing", path))
        }
        Ok(Err(err)) if err.kind() == io::ErrorKind::NotFound => Ok(()),
        Ok(Err(err)) if err.kind() != io::ErrorKind::WouldBlock => Err(failed("connecting to", path)(err)),
        // It answers, or it lives and is too busy to.
        Ok(_) | Err(_) => Err(SocketError::Running { state_dir: dir.path().to_owned(), pid: None }),
    }
}

/// Linux gives a bound socket's file the mode its descriptor had (unix(7)), so there is no moment at which others could
/// connect, and the process's umask is left alone.
fn listen_private(path: &Path) -> io::Result<UnixListener> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let fd = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    fchmod(&fd, Mode::RUSR | Mode::WUSR)?;
    bind(&fd, &SocketAddrUnix::new(path)?)?;
    listen(&fd, BACKLOG)?;
    UnixListener::from_std(fd.into())
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> SocketError {
    let path = path.to_owned();
    move |source| SocketError::Io { action, path, source }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

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
    async fn a_dead_daemons_socket_is_replaced() {
        let (_dir, state) = state();
        state.create().unwrap();
        // A listener that is closed without removing its file is what a killed daemon leaves.
        drop(std::os::unix::net::UnixListener::bind(state.admin_socket()).unwrap());
        assert!(state.admin_socket().exists());
        let socket = AdminSocket::bind(&state).await.unwrap();
        UnixStream::connect(socket.path()).await.unwrap();
    }

    #[tokio::test]
    async fn what_is_not_a_socket_is_never_removed() {
        let (_dir, state) = state();
        state.create().unwrap();
        fs::write(state.admin_socket(), "precious").unwrap();
        assert!(matches!(AdminSocket::bind(&state).await, Err(SocketError::InTheWay(_))));
        assert_eq!(fs::read_to_string(state.admin_socket()).unwrap(), "precious");
    }

    #[tokio::test]
    async fn the_file_goes_with_the_daemon_but_not_with_its_predecessor() {
        let (_dir, state) = state();
        let socket = AdminSocket::bind(&state).await.unwrap();
        drop(socket);
        assert!(!state.admin_socket().exists());

        let socket = AdminSocket::bind(&state).await.unwrap();
        fs::remove_file(state.admin_socket()).unwrap();
        let _newer = UnixListener::bind(state.admin_socket()).unwrap();
        drop(socket);
        assert!(state.admin_socket().exists());
    }

    #[tokio::test]
    async fn a_path_that_does_not_fit_says_so() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::new(dir.path().join("x".repeat(110)));
        let err = AdminSocket::bind(&state).await.unwrap_err();
        assert!(matches!(err, SocketError::TooLong(_)), "{err:?}");
        assert!(err.hint().contains("shorter"));
    }
}
