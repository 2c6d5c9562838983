//! NSM's flat files, read again when they change: inner addresses and what the world calls them, and the labels of the cluster.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use super::{life::mark, parts::Daemon};

/// How often the files are looked at. Looking also sees the symbolic links that Kubernetes swaps.
const LOOK: Duration = Duration::from_secs(1);
/// Largest file that is read: a line for each address of 10,000 nodes.
const MAX_FILE: u64 = 1 << 20;

/// Why a file is not taken; what was read before stays in force.
#[derive(Debug, thiserror::Error)]
enum FlatFileError {
    #[error("it cannot be read")]
    Io(#[from] std::io::Error),
    #[error("it has {0} octets, at most {MAX_FILE} are read")]
    Large(u64),
    #[error("it is no flat YAML map of texts")]
    Yaml(#[from] serde_yaml::Error),
}

/// Reads both files and follows them.
pub(crate) fn keep(daemon: &Arc<Daemon>) {
    let config = daemon.config.load();
    let nsm = &config.compat.nsm;
    if let Some(path) = nsm.map_ip_file.clone() {
        let transits = daemon.transits.clone();
        follow(daemon, path, move |map| transits.set_addresses(map));
    }
    if let Some(path) = nsm.clusterinfo_file.clone() {
        let transits = daemon.transits.clone();
        follow(daemon, path, move |labels| transits.set_cluster_labels(labels));
    }
}

fn follow(daemon: &Arc<Daemon>, path: PathBuf, apply: impl Fn(BTreeMap<String, String>) + Send + 'static) {
    let mut before = mark(&path);
    take(&path, &apply);
    let stopping = daemon.tasks.stopping();
    let _runs = daemon.tasks.spawn("flat file", async move {
        tokio::pin!(stopping);
        loop {
            tokio::select! {
                () = &mut stopping => return,
                () = tokio::time::sleep(LOOK) => {}
            }
            let now = mark(&path);
            if now != before {
                before = now;
                take(&path, &apply);
            }
        }
    });
}

fn take(path: &Path, apply: &impl Fn(BTreeMap<String, String>)) {
    match read(path) {
        Ok(map) => {
            tracing::info!(file = %path.display(), entries = map.len(), "read");
            apply(map);
        }
        Err(error) => {
            let why = format!("{:#}", anyhow::Error::from(error));
            tracing::warn!(file = %path.display(), why, "the file is not taken: what was read before stays in force");
        }
    }
}

fn read(path: &Path) -> Result<BTreeMap<String, String>, FlatFileError> {
    let size = std::fs::metadata(path)?.len();
    if size > MAX_FILE {
        return Err(FlatFileError::Large(size));
    }
    parse(&std::fs::read_to_string(path)?)
}

fn parse(text: &str) -> Result<BTreeMap<String, String>, FlatFileError> {
    if text.trim().is_empty() {
        return Ok(BTreeMap::new());
    }
    Ok(serde_yaml::from_str(text)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flat_map_is_read_and_anything_else_is_not() {
        let map = parse("10.0.0.1: 192.0.2.1\nclusterName: c1\n").unwrap();
        assert_eq!(map["10.0.0.1"], "192.0.2.1");
        assert!(parse("").unwrap().is_empty());
        for bad in ["- a\n", "a: {b: c}\n", "a: b: c\n"] {
            assert!(matches!(parse(bad), Err(FlatFileError::Yaml(_))), "{bad}");
        }
    }
}
