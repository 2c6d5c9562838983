//! The DNS settings of this machine: `/etc/resolv.conf` and `/etc/hosts`, read again when they change.
//!
//! A network that comes up later, or a DHCP lease, changes them under a daemon that runs for months. As in glibc, a question
//! looks whether they are still the same files, at most once in [`LOOK`].

use std::{
    fs, io,
    net::{Ipv4Addr, SocketAddr},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use hickory_resolver::{Hosts, system_conf::parse_resolv_conf};
use parking_lot::Mutex;
use tokio::time::Instant;

use super::SetupError;

/// How often the files are looked at, at most.
const LOOK: Duration = Duration::from_secs(1);

/// Where hickory reads it.
const HOSTS: &str = "/etc/hosts";

/// The two files.
pub(super) struct SystemFiles {
    resolv_conf: PathBuf,
    seen: Mutex<Seen>,
}

struct Seen {
    stamps: [Option<Stamp>; 2],
    looked: Instant,
}

/// Two of the same file are equal as long as nobody wrote to it.
#[derive(Debug, PartialEq, Eq)]
struct Stamp {
    inode: u64,
    octets: u64,
    /// Of the last change, in seconds and nanoseconds.
    changed: (i64, i64),
}

impl SystemFiles {
    /// Those of the system.
    pub(super) fn of_the_system() -> Self {
        Self::at("/etc/resolv.conf".into())
    }

    /// With another file in place of `/etc/resolv.conf`.
    pub(super) fn at(resolv_conf: PathBuf) -> Self {
        let stamps = [stamp(&resolv_conf), stamp(Path::new(HOSTS))];
        Self { resolv_conf, seen: Mutex::new(Seen { stamps, looked: Instant::now() }) }
    }

    /// Whether a file is not as it was the last time this said yes.
    pub(super) fn changed(&self) -> bool {
        let mut seen = self.seen.lock();
        if seen.looked.elapsed() < LOOK {
            return false;
        }
        seen.looked = Instant::now();
        let stamps = [stamp(&self.resolv_conf), stamp(Path::new(HOSTS))];
        let changed = stamps != seen.stamps;
        seen.stamps = stamps;
        changed
    }

    /// The DNS servers; this machine, if there are none (resolv.conf(5)).
    ///
    /// # Errors
    /// The file is there and cannot be read.
    pub(super) fn servers(&self) -> Result<Vec<SocketAddr>, SetupError> {
        let local = vec![SocketAddr::from((Ipv4Addr::LOCALHOST, 53))];
        let text = match fs::read(&self.resolv_conf) {
            Ok(text) => text,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(local),
            Err(source) => return Err(SetupError::ResolvConf(source)),
        };
        // hickory's parser takes a file without a server for an error.
        let Ok((config, _)) = parse_resolv_conf(text) else { return Ok(local) };
        Ok(config.name_servers().iter().map(|s| SocketAddr::new(s.ip, 53)).collect())
    }

    /// The names of the hosts file. A host without the file has no names in it.
    pub(super) fn hosts() -> Hosts {
        Hosts::from_system().unwrap_or_default()
    }
}

fn stamp(path: &Path) -> Option<Stamp> {
    let file = fs::metadata(path).ok()?;
    Some(Stamp { inode: file.ino(), octets: file.len(), changed: (file.mtime(), file.mtime_nsec()) })
}
