//! Whether this host fits a config: directory, ports, bundles, targets.

use std::{
    collections::BTreeSet,
    fs, io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket},
    os::unix::fs::PermissionsExt,
    path::Path,
    time::{Duration, SystemTime},
};

use carrick_config::{BundleSource, Config, Export};
use carrick_identity::Bundle;
use carrick_model::{Domain, ExportTarget, HostPort, ListenAddress, ServeUrl, TrustDomain};
use futures::{StreamExt, stream};
use rustix::fs::{Access, AtFlags, CWD, accessat};
use tokio::net::{TcpStream, UnixStream, lookup_host};

use super::{Finding, Level};
use crate::{
    admin::{
        api::{ListenerRow, Status, Timestamp},
        client::Client,
    },
    cli::quantity::until,
    state_dir::StateDir,
    trust_file::{ImportedTrust, TrustFileError},
};

/// A target on the same network answers in milliseconds; one that takes longer is worth a warning.
const TARGET_TIMEOUT: Duration = Duration::from_secs(2);
/// Targets asked at a time.
const TARGETS_AT_A_TIME: usize = 32;
/// A root that ends sooner is worth a warning: exchanging roots takes people.
const SOON: Duration = Duration::from_secs(30 * 86_400);

/// The key of the sockets for NSM's parts.
const NSM: &str = "compat.nsm.listen";

/// What [`crate::trust_file::read_all`] gives.
pub(super) type ImportedBundles = (Vec<ImportedTrust>, Vec<TrustFileError>);

/// Everything there is to say, in the order of the config's keys.
pub(super) async fn check(config: &Config, state: &StateDir, imported: ImportedBundles) -> Vec<Finding> {
    let mut findings = vec![state_dir(state.path())];
    let running = Client::new(state.clone()).status().await.ok();
    findings.extend(sockets(config, running.as_ref()));
    findings.extend(virtual_ips(config));
    let (trusted, of_trust) = trust(config, imported);
    findings.extend(of_trust);
    findings.extend(untrusted(config, &trusted));
    findings.extend(targets(&config.exports).await);
    findings
}

fn state_dir(path: &Path) -> Finding {
    let shown = path.display();
    let error = |message: String| Finding::new(Level::Error, "state_dir", message);
    let existing = path.ancestors().find(|p| p.exists()).unwrap_or(Path::new("/"));
    if !existing.is_dir() {
        return error(format!("{} is not a directory", existing.display()))
            .hint("choose another `state_dir`");
    }
    if let Err(err) = accessat(CWD, existing, Access::WRITE_OK | Access::EXEC_OK, AtFlags::EACCESS) {
        let what = if existing == path { "cannot be written" } else { "cannot be made" };
        let why = io::Error::from(err);
        return error(format!("{shown} {what}: {} says: {why}", existing.display()))
            .hint(format!("as root: install -d -m 0700 -o USER {shown}, or choose another `state_dir`"));
    }
    let mode = fs::metadata(existing).map(|m| m.permissions().mode() & 0o7777);
    match mode {
        Ok(mode) if existing == path && mode & 0o022 != 0 => {
            error(format!("others may write to {shown} (mode {mode:04o})"))
                .hint(format!("chmod 0700 {shown}"))
        }
        _ if existing == path => Finding::new(Level::Ok, "state_dir", format!("{shown} can be written")),
        _ => Finding::new(Level::Ok, "state_dir", format!("{shown} will be made")),
    }
}

/// Every listener of the config, tried for a moment.
fn sockets(config: &Config, running: Option<&Status>) -> Vec<Finding> {
    let listen = &config.listen;
    let mut wanted = vec![
        ("listen.control".to_owned(), ListenAddress::Tcp(listen.control)),
        ("listen.tunnel".to_owned(), ListenAddress::Udp(listen.tunnel)),
    ];
    wanted.extend(listen.admin.map(|a| ("listen.admin".to_owned(), ListenAddress::Tcp(a))));
    let dns = listen.dns.into_iter().flat_map(|a| [ListenAddress::Udp(a), ListenAddress::Tcp(a)]);
    wanted.extend(dns.map(|a| ("listen.dns".to_owned(), a)));
    wanted.extend(config.compat.nsm.listen.iter().map(|url| (NSM.to_owned(), served(url))));
    let imports =
        config.imports.iter().filter_map(|i| Some((format!("imports.{}", i.service), i.listen.clone()?)));
    wanted.extend(imports);
    wanted.into_iter().map(|(subject, address)| socket(subject, &address, running)).collect()
}

/// All addresses of both families are tried as the first family that the host has.
fn served(url: &ServeUrl) -> ListenAddress {
    match url {
        ServeUrl::Unix(path) => ListenAddress::Unix(path.clone()),
        ServeUrl::Tcp { ip: Some(ip), port } => ListenAddress::Tcp(SocketAddr::new(*ip, *port)),
        ServeUrl::Tcp { ip: None, port } => {
            let all = SocketAddr::from((Ipv6Addr::UNSPECIFIED, *port));
            let lacking = TcpListener::bind(SocketAddr::new(all.ip(), 0)).is_err();
            ListenAddress::Tcp(if lacking { (Ipv4Addr::UNSPECIFIED, *port).into() } else { all })
        }
    }
}

fn socket(subject: String, address: &ListenAddress, running: Option<&Status>) -> Finding {
    let Err(err) = try_bind(address) else {
        return Finding::new(Level::Ok, subject, format!("{address} is free"));
    };
    if err.kind() == io::ErrorKind::AddrInUse
        && let Some(status) = running.filter(|s| holds(s, &subject, address))
    {
        let message = format!("{address} is held by the carrick that runs (process {})", status.pid);
        return Finding::new(Level::Ok, subject, message);
    }
    let hint = match err.kind() {
        io::ErrorKind::AddrInUse => match port_of(address) {
            Some(port) => format!("choose another port, or see who has it: ss -lntup 'sport = :{port}'"),
            None => "another program serves this socket: choose another path".into(),
        },
        io::ErrorKind::AddrNotAvailable => "this host has no such address: see `ip address`".into(),
        io::ErrorKind::PermissionDenied => {
            "this user may not: choose a port from 1024 up, or give CAP_NET_BIND_SERVICE".into()
        }
        _ => format!("correct `{subject}`"),
    };
    Finding::new(Level::Error, subject, format!("{address}: {err}")).hint(hint)
}

fn try_bind(address: &ListenAddress) -> io::Result<()> {
    match address {
        ListenAddress::Tcp(addr) => TcpListener::bind(addr).map(drop),
        ListenAddress::Udp(addr) => UdpSocket::bind(addr).map(drop),
        // Binding would leave a file; a socket that nobody serves is replaced at the start.
        ListenAddress::Unix(path) if path.exists() => match std::os::unix::net::UnixStream::connect(path) {
            Ok(_) => Err(io::ErrorKind::AddrInUse.into()),
            Err(_) => Ok(()),
        },
        ListenAddress::Unix(path) => {
            let dir = path.parent().unwrap_or(Path::new("/"));
            accessat(CWD, dir, Access::WRITE_OK | Access::EXEC_OK, AtFlags::EACCESS).map_err(Into::into)
        }
    }
}

fn port_of(address: &ListenAddress) -> Option<u16> {
    match address {
        ListenAddress::Tcp(addr) | ListenAddress::Udp(addr) => Some(addr.port()),
        ListenAddress::Unix(_) => None,
    }
}

/// Whether the running daemon is the one that has the address. It has both of the DNS listener's transports or neither,
/// so that one is known by its name and address alone.
fn holds(status: &Status, subject: &str, address: &ListenAddress) -> bool {
    let (text, dns) = (address.to_string(), "listen.dns");
    let bare = |text: &str| text.split_once("://").map(|(_, rest)| rest.to_owned());
    let same = |listener: &str| listener == text || (subject == dns && bare(listener) == bare(&text));
    let nsm = |l: &ListenerRow| l.name == "nsm" && subject == NSM && same_url(&l.address, address);
    status.listeners.iter().any(|l| nsm(l) || format!("listen.{}", l.name) == subject && same(&l.address))
        || status.imports.iter().any(|i| i.listen.contains(address))
}

/// Whether a listener's URL names the address: `tcp://:5002` is all addresses of either family.
fn same_url(url: &str, address: &ListenAddress) -> bool {
    match (url.parse(), address) {
        (Ok(ServeUrl::Tcp { ip, port }), ListenAddress::Tcp(addr)) => {
            port == addr.port() && ip.map_or(addr.ip().is_unspecified(), |ip| ip == addr.ip())
        }
        (Ok(ServeUrl::Unix(path)), ListenAddress::Unix(other)) => path == *other,
        _ => false,
    }
}

/// Imports listen on addresses of the pool; outside of 127.0.0.0/8 somebody has to have added them to the host.
fn virtual_ips(config: &Config) -> Option<Finding> {
    config.listen.dns?;
    let pool = config.dns.virtual_ips;
    let first = pool.hosts().next()?;
    UdpSocket::bind(SocketAddr::from((first, 0))).err().map(|err| {
        Finding::new(Level::Error, "dns.virtual_ips", format!("{first} of {pool}: {err}"))
            .hint(format!("ip route add local {pool} dev lo, or choose a pool inside of 127.0.0.0/8"))
    })
}

/// The bundles of the config and the imported ones, and which domains they cover.
fn trust(config: &Config, imported: ImportedBundles) -> (BTreeSet<Domain>, Vec<Finding>) {
    let mut findings = Vec::new();
    let mut trusted = BTreeSet::from([config.domain.clone()]);
    for entry in &config.trust {
        let BundleSource::File(path) = &entry.bundle;
        trusted.insert(entry.domain.clone());
        findings.push(bundle_file(&entry.domain, &entry.trust_domain, path));
    }
    let (imported, faults) = imported;
    for fault in faults {
        let hint = fault.hint();
        let message = format!("{:#}", anyhow::Error::from(fault));
        findings.push(Finding::new(Level::Warning, "trust", message).hint(hint));
    }
    for entry in imported {
        let subject = format!("trust.{}", entry.domain);
        if config.trust.iter().any(|t| t.domain == entry.domain) {
            let message =
                format!("imported to {} and in the config: the config's is taken", entry.path.display());
            findings.push(Finding::new(Level::Warning, subject, message).hint("remove one of them"));
        } else {
            findings.push(bundle(subject, &entry.bundle, &entry.path));
        }
        trusted.insert(entry.domain);
    }
    (trusted, findings)
}

fn bundle_file(domain: &Domain, trust_domain: &TrustDomain, path: &Path) -> Finding {
    let subject = format!("trust.{domain}");
    match Bundle::read(trust_domain, path) {
        Ok(read) => bundle(subject, &read, path),
        Err(err) => {
            let hint = err.hint();
            Finding::new(Level::Error, subject, format!("{:#}", anyhow::Error::from(err))).hint(hint)
        }
    }
}

fn bundle(subject: String, bundle: &Bundle, path: &Path) -> Finding {
    let (now, end) = (SystemTime::now(), bundle.not_after());
    let roots = crate::cli::quantity::count(bundle.roots().len(), "root");
    let message = format!("{}: {roots}, ends {}", path.display(), until(Timestamp(end), now));
    match end.duration_since(now) {
        Err(_) => Finding::new(Level::Warning, subject, message)
            .hint("nobody can be verified with it: ask that domain's operator for a new one"),
        Ok(left) if left < SOON => Finding::new(Level::Warning, subject, message)
            .hint("ask that domain's operator for the bundle with its next root"),
        Ok(_) => Finding::new(Level::Ok, subject, message),
    }
}

/// Peers that are named but not trusted. For imports and exports the config's own warnings say it, with their lines.
fn untrusted(config: &Config, trusted: &BTreeSet<Domain>) -> Vec<Finding> {
    let finding = |domain: &Domain| {
        let message = format!("no trust bundle of {domain}: its gateways will be refused");
        Finding::new(Level::Warning, format!("peers.{domain}"), message).hint(format!(
            "get its bundle (`carrick trust export` there), then: carrick trust import FILE --domain {domain}"
        ))
    };
    config.peers.iter().map(|p| &p.domain).filter(|domain| !trusted.contains(domain)).map(finding).collect()
}

async fn targets(exports: &[Export]) -> Vec<Finding> {
    stream::iter(exports).map(target).buffered(TARGETS_AT_A_TIME).collect().await
}

async fn target(export: &Export) -> Finding {
    let subject = format!("exports.{}", export.service);
    let outcome = match tokio::time::timeout(TARGET_TIMEOUT, reach(&export.to)).await {
        Ok(outcome) => outcome,
        Err(_) => Err(io::Error::from(io::ErrorKind::TimedOut)),
    };
    match (outcome, &export.to) {
        (Ok(()), ExportTarget::Udp(_)) => {
            Finding::new(Level::Ok, subject, format!("{} (UDP: not tried)", export.to))
        }
        (Ok(()), _) => Finding::new(Level::Ok, subject, format!("{} answers", export.to)),
        (Err(err), _) => {
            Finding::new(Level::Warning, subject, format!("{} does not answer: {err}", export.to))
                .hint("start it, or correct `to:`; until then its callers are refused")
        }
    }
}

async fn reach(target: &ExportTarget) -> io::Result<()> {
    match target {
        ExportTarget::Tcp(HostPort { host, port }) => {
            TcpStream::connect((host.to_string().as_str(), *port)).await.map(drop)
        }
        ExportTarget::Udp(HostPort { host, port }) => {
            let host = host.to_string();
            let mut found = lookup_host((host.as_str(), *port)).await?;
            found.next().map(drop).ok_or_else(|| io::Error::other("the name has no address"))
        }
        ExportTarget::Unix(path) => UnixStream::connect(path).await.map(drop),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(text: &str) -> Config {
        carrick_config::parse(text).unwrap()
    }

    async fn check_text(text: &str) -> Vec<Finding> {
        let config = config(text);
        let state = StateDir::new(&config.state_dir);
        let imported = crate::trust_file::read_all(&state);
        check(&config, &state, imported).await
    }

    fn levels(findings: &[Finding], subject: &str) -> Vec<Level> {
        findings.iter().filter(|f| f.subject == subject).map(|f| f.level).collect()
    }

    #[tokio::test]
    async fn a_host_that_fits_is_ok() {
        let target = TcpListener::bind("127.0.0.1:0").unwrap();
        let dir = tempfile::tempdir().unwrap();
        let text = format!(
            "domain: a.test\nstate_dir: {}/new/state\n\
             listen: {{ control: '127.0.0.1:0', tunnel: '127.0.0.1:0', admin: '127.0.0.1:0' }}\n\
             exports: [ {{ service: web, to: 'tcp://{}', allow: ['spiffe://b.test/**'] }} ]\n",
            dir.path().display(),
            target.local_addr().unwrap(),
        );
        let findings = check_text(&text).await;
        assert!(findings.iter().all(|f| f.level == Level::Ok), "{findings:?}");
        assert_eq!(levels(&findings, "exports.web"), [Level::Ok]);
        assert!(!dir.path().join("new").exists(), "a check makes nothing");
    }

    #[tokio::test]
    async fn what_does_not_fit_is_found_all_at_once() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o777)).unwrap();
        let text = format!(
            "domain: a.test\nstate_dir: {dir}\n\
             listen: {{ control: '{taken}', tunnel: '192.0.2.77:7443', admin: '127.0.0.1:0' }}\n\
             trust: [ {{ domain: b.test, bundle: 'file://{dir}/missing.json' }} ]\n\
             exports: [ {{ service: web, to: 'unix://{dir}/nobody.sock', allow: ['spiffe://b.test/**'] }} ]\n\
             peers: [ {{ domain: c.test, control: ['192.0.2.1:7443'] }} ]\n\
             imports: [ {{ service: db@c.test, listen: '127.0.0.1:0' }} ]\n",
            dir = dir.path().display(),
            taken = taken.local_addr().unwrap(),
        );
        let findings = check_text(&text).await;
        for subject in ["state_dir", "listen.control", "listen.tunnel", "trust.b.test"] {
            assert_eq!(levels(&findings, subject), [Level::Error], "{subject}: {findings:?}");
        }
        assert_eq!(levels(&findings, "exports.web"), [Level::Warning]);
        assert_eq!(levels(&findings, "imports.db@c.test"), [Level::Ok]);
        assert_eq!(levels(&findings, "peers.c.test"), [Level::Warning]);
        assert_eq!(levels(&findings, "listen.admin"), [Level::Ok]);
        for finding in findings.iter().filter(|f| f.level != Level::Ok) {
            assert!(finding.hint.is_some(), "{finding:?}");
        }
    }

    #[test]
    fn an_address_of_the_running_daemon_is_not_taken() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = ListenAddress::Tcp(taken.local_addr().unwrap());
        let mut status = crate::cli::status::tests::sample();
        let level = |status: &Status| socket("listen.control".into(), &address, Some(status)).level;
        assert_eq!(level(&status), Level::Error);
        status.listeners[0].address = address.to_string();
        assert_eq!(level(&status), Level::Ok);

        let dns = |status: &Status| socket("listen.dns".into(), &address, Some(status)).level;
        assert_eq!(dns(&status), Level::Error, "the daemon has it for something else");
        status.listeners[0].name = "dns".into();
        status.listeners[0].address = address.to_string().replace("tcp://", "udp://");
        assert_eq!(dns(&status), Level::Ok);
    }
}
