//! Life of a process: tasks that end, readiness, drain, back-off, racing, Unix sockets, private files, systemd notification.
//!
//! A part binds early, holds a [`ReadyGuard`] until it serves, and runs its tasks on a [`Tasks`]. To stop is to
//! [`Tasks::stop`] (nothing new begins), [`Tasks::wait`] up to a deadline, and leave.

mod backoff;
pub mod notify;
mod private_file;
mod race;
mod readiness;
mod tasks;
mod unix_socket;

pub use backoff::Backoff;
pub use private_file::create_private;
pub use race::{RaceError, race};
pub use readiness::{Readiness, ReadyGuard};
pub use tasks::Tasks;
pub use unix_socket::{UnixSocket, UnixSocketError};
