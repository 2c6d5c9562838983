//! What systemd is told: `sd_notify(3)`, one datagram to the socket named by `NOTIFY_SOCKET`.
//!
//! Without that variable, outside systemd, every call does nothing.

use std::{
    env,
    os::{
        linux::net::SocketAddrExt,
        unix::{ffi::OsStrExt, net},
    },
};

/// The service is up.
pub fn ready() {
    send("READY=1");
}

/// The service reloads its configuration; [`ready`] follows. `MONOTONIC_USEC` is required by `Type=notify-reload`.
pub fn reloading() {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    send(&format!("RELOADING=1\nMONOTONIC_USEC={}", now.tv_sec * 1_000_000 + now.tv_nsec / 1_000));
}

/// The service drains.
pub fn stopping() {
    send("STOPPING=1");
}

/// One line for `systemctl status`.
pub fn status(line: &str) {
    send(&format!("STATUS={}", line.replace('\n', " ")));
}

fn send(message: &str) {
    let Some(path) = env::var_os("NOTIFY_SOCKET") else { return };
    let address = match path.as_bytes() {
        [b'@', name @ ..] => net::SocketAddr::from_abstract_name(name),
        _ => net::SocketAddr::from_pathname(&path),
    };
    let sent = address.and_then(|to| {
        let socket = net::UnixDatagram::unbound()?;
        // systemd always reads; a full queue must not hold the daemon up all the same.
        socket.set_nonblocking(true)?;
        socket.send_to_addr(message.as_bytes(), &to)
    });
    if let Err(error) = sent {
        tracing::debug!(%error, "systemd was not notified");
    }
}
