//! Files that hold what others must not read.

use std::{fs, io, os::unix::fs::OpenOptionsExt as _, path::Path};

/// Creates the file for its owner alone, unless it is there, and makes its name durable.
///
/// # Errors
/// The system refuses.
pub fn create_private(path: &Path) -> io::Result<()> {
    match fs::OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(path) {
        Ok(_) => {}
        Err(fault) if fault.kind() == io::ErrorKind::AlreadyExists => return Ok(()),
        Err(fault) => return Err(fault),
    }
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    fs::File::open(directory.unwrap_or(Path::new(".")))?.sync_all()
}
