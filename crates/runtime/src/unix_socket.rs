//! A Unix socket with a file: bound with its mode, in place of a dead one, never of a live one.

use std::{
    fs, io,
    os::{linux::fs::MetadataExt, unix::fs::FileTypeExt},
    path::{Path, PathBuf},
    time::Duration,
};

use rustix::{
    fs::{Mode, fchmod},
    net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, listen, socket_with},
};
use tokio::net::{UnixListener, UnixStream};

/// Connections the kernel holds while the accept loop is busy; the system's own default bound is 4096.
const BACKLOG: i32 = 128;
/// Who has not accepted by then is not going to.
const PROBE: Duration = Duration::from_secs(2);
/// `sun_path` of `sockaddr_un` less its closing NUL (unix(7)).
const MAX_PATH: usize = 107;

/// A listening socket and its file. Dropping it removes the file, unless another process has put its own there since.
#[derive(Debug)]
pub struct UnixSocket {
    listener: UnixListener,
    file: SocketFile,
}

/// The file of a socket; removed when dropped.
#[derive(Debug)]
struct SocketFile {
    path: PathBuf,
    inode: (u64, u64),
}

/// Why a Unix socket cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum UnixSocketError {
    /// Another process listens there: stop it, or choose another path.
    #[error("another process listens on {}", .0.display())]
    Live(PathBuf),
    /// A file that is not a socket has its name: move it away.
    #[error("{} is in the way: it is not a socket", .0.display())]
    InTheWay(PathBuf),
    /// The path does not fit into a socket address: choose a shorter one.
    #[error("{}: over {MAX_PATH} characters, too long for a Unix socket", .0.display())]
    TooLong(PathBuf),
    /// The system refused: the directory has to be there, and this user has to be able to write to it.
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

impl UnixSocketError {
    /// What the operator can do.
    pub fn hint(&self) -> String {
        match self {
            Self::Live(path) => {
                format!("`ss -lxp` shows which; stop it, or choose another path than {}", path.display())
            }
            Self::InTheWay(path) => format!("remove it: rm {}", path.display()),
            Self::TooLong(_) => "choose a shorter path".into(),
            Self::Io { path, source, .. } => {
                let directory = path.parent().unwrap_or(path).display();
                match source.kind() {
                    io::ErrorKind::NotFound => format!("make the directory first: mkdir -p {directory}"),
                    _ => format!("this user must be able to write to {directory}"),
                }
            }
        }
    }
}

impl UnixSocket {
    /// Binds `path` with the given mode of its file. The socket of a process that is gone is replaced.
    pub async fn bind(path: &Path, mode: u32) -> Result<Self, UnixSocketError> {
        if path.as_os_str().len() > MAX_PATH {
            return Err(UnixSocketError::TooLong(path.to_owned()));
        }
        clear_stale(path).await?;
        let listener = match listen_with_mode(path, mode) {
            // Somebody was faster.
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                return Err(UnixSocketError::Live(path.to_owned()));
            }
            bound => bound.map_err(failed("binding", path))?,
        };
        let meta = fs::symlink_metadata(path).map_err(failed("looking at it", path))?;
        let file = SocketFile { path: path.to_owned(), inode: (meta.st_dev(), meta.st_ino()) };
        Ok(Self { listener, file })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.file.path
    }

    /// The socket, for `accept`.
    pub fn listener(&mut self) -> &mut UnixListener {
        &mut self.listener
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let ours = fs::symlink_metadata(&self.path).is_ok_and(|m| (m.st_dev(), m.st_ino()) == self.inode);
        if ours && let Err(error) = fs::remove_file(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "a Unix socket could not be removed");
        }
    }
}

/// Removes the socket of a process that is gone. One that answers is not gone.
async fn clear_stale(path: &Path) -> Result<(), UnixSocketError> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed("looking at it", path)(error)),
        Ok(meta) if !meta.file_type().is_socket() => return Err(UnixSocketError::InTheWay(path.to_owned())),
        Ok(_) => {}
    }
    match tokio::time::timeout(PROBE, UnixStream::connect(path)).await {
        Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused => {
            tracing::debug!(path = %path.display(), "removing the socket of a process that is gone");
            fs::remove_file(path).map_err(failed("removing", path))
        }
        Ok(Err(error)) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Ok(Err(error)) if error.kind() != io::ErrorKind::WouldBlock => {
            Err(failed("connecting to", path)(error))
        }
        // It answers, or it lives and is too busy to.
        Ok(_) | Err(_) => Err(UnixSocketError::Live(path.to_owned())),
    }
}

/// Linux gives a bound socket's file the mode its descriptor had (unix(7)) less the process's umask, so nobody can connect
/// who should not, not even for a moment; what the umask took is given back at once.
fn listen_with_mode(path: &Path, mode: u32) -> io::Result<UnixListener> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let fd = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    let mode = Mode::from_bits_truncate(mode);
    fchmod(&fd, mode)?;
    bind(&fd, &SocketAddrUnix::new(path)?)?;
    rustix::fs::chmod(path, mode)?;
    listen(&fd, BACKLOG)?;
    UnixListener::from_std(fd.into())
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> UnixSocketError {
    let path = path.to_owned();
    move |source| UnixSocketError::Io { action, path, source }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::symlink_metadata(path).unwrap().permissions().mode() & 0o7777
    }

    #[tokio::test]
    async fn the_file_has_the_mode_asked_for() {
        let directory = tempfile::tempdir().unwrap();
        for wanted in [0o600, 0o660, 0o666, 0o777] {
            let path = directory.path().join(format!("{wanted:o}"));
            let _socket = UnixSocket::bind(&path, wanted).await.unwrap();
            assert_eq!(mode(&path), wanted);
            UnixStream::connect(&path).await.unwrap();
        }
    }

    #[tokio::test]
    async fn a_dead_socket_is_replaced_and_a_live_one_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s");
        // A listener that is closed without removing its file is what a killed process leaves.
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        let first = UnixSocket::bind(&path, 0o600).await.unwrap();
        let error = UnixSocket::bind(&path, 0o600).await.unwrap_err();
        assert_eq!(error.to_string(), format!("another process listens on {}", path.display()));
        assert!(error.hint().contains("ss -lxp"), "{}", error.hint());
        UnixStream::connect(first.path()).await.expect("the first one is unharmed");
    }

    #[tokio::test]
    async fn what_is_not_a_socket_is_never_removed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s");
        fs::write(&path, "precious").unwrap();
        assert!(matches!(UnixSocket::bind(&path, 0o600).await, Err(UnixSocketError::InTheWay(_))));
        assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
        let link = directory.path().join("link");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        assert!(matches!(UnixSocket::bind(&link, 0o600).await, Err(UnixSocketError::InTheWay(_))));
        assert_eq!(fs::read_to_string(&link).unwrap(), "precious");
    }

    #[tokio::test]
    async fn the_file_goes_with_its_socket_but_not_with_its_predecessor() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s");
        drop(UnixSocket::bind(&path, 0o600).await.unwrap());
        assert!(!path.exists());

        let socket = UnixSocket::bind(&path, 0o600).await.unwrap();
        fs::remove_file(&path).unwrap();
        let _newer = UnixListener::bind(&path).unwrap();
        drop(socket);
        assert!(path.exists());
    }

    #[tokio::test]
    async fn a_directory_that_is_not_there_is_named() {
        let error = UnixSocket::bind(Path::new("/nonexistent/dir/s"), 0o600).await.unwrap_err();
        assert!(error.hint().contains("mkdir -p /nonexistent/dir"), "{}", error.hint());
        let long = Path::new("/tmp").join("x".repeat(110));
        assert!(matches!(UnixSocket::bind(&long, 0o600).await, Err(UnixSocketError::TooLong(_))));
    }
}
