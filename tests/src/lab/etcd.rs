//! An etcd of three members, one in each site, that speaks TLS to its clients.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use super::{Daemon, Finished, Lab, Namespace, Signal, Site, within_or};

/// Where clients call.
const CLIENTS: u16 = 2379;
/// Where members call each other.
const PEERS: u16 = 2380;
/// How long an election and a start may take on a busy machine.
const UP: Duration = Duration::from_secs(30);

/// The members, and the certificates that they and their clients show.
pub struct EtcdCluster {
    members: Vec<EtcdMember>,
    /// What clients check members with.
    pub ca: PathBuf,
    /// What clients show.
    pub cert: PathBuf,
    /// Its key.
    pub key: PathBuf,
    logs: PathBuf,
}

struct EtcdMember {
    name: String,
    ns: Namespace,
    addr: Ipv4Addr,
    args: Vec<String>,
    daemon: Option<Daemon>,
}

/// What a test with an [`EtcdCluster`] needs.
pub const ETCD: &[&str] = &["netns", "etcd", "etcdctl"];

impl EtcdCluster {
    /// A member in each of the sites a, b and c of the lab, none of them running yet.
    pub fn prepare(lab: &Lab) -> Self {
        let dir = lab.dir().join("etcd");
        fs::create_dir(&dir).unwrap();
        let sites = [&lab.a, &lab.b, &lab.c];
        let certificates = Certificates::new(&dir);
        let (cert, key) = certificates.issue("client", None);
        let name = |at: usize| format!("etcd-{at}");
        let cluster: Vec<String> = sites
            .iter()
            .enumerate()
            .map(|(at, s)| format!("{}=http://{}:{PEERS}", name(at), s.addr))
            .collect();
        let member = |(at, site): (usize, &&Site)| {
            let (cert, key) = certificates.issue(&name(at), Some(site.addr.into()));
            let (clients, peers) =
                (format!("https://{}:{CLIENTS}", site.addr), format!("http://{}:{PEERS}", site.addr));
            let data = dir.join(format!("data-{at}"));
            let args = [
                ("--name", name(at)),
                ("--data-dir", data.display().to_string()),
                ("--listen-client-urls", clients.clone()),
                ("--advertise-client-urls", clients),
                ("--listen-peer-urls", peers.clone()),
                ("--initial-advertise-peer-urls", peers),
                ("--initial-cluster", cluster.join(",")),
                ("--cert-file", cert.display().to_string()),
                ("--key-file", key.display().to_string()),
                ("--trusted-ca-file", certificates.ca.display().to_string()),
                ("--logger", "zap".to_owned()),
            ];
            let mut args: Vec<String> =
                args.into_iter().flat_map(|(key, value)| [key.to_owned(), value]).collect();
            args.push("--client-cert-auth".to_owned());
            EtcdMember { name: name(at), ns: site.ns.clone(), addr: site.addr, args, daemon: None }
        };
        let members = sites.iter().enumerate().map(member).collect();
        Self { members, ca: certificates.ca.clone(), cert, key, logs: lab.dir().to_owned() }
    }

    /// The same, running and with a leader.
    pub fn start(lab: &Lab) -> Self {
        let mut cluster = Self::prepare(lab);
        (0..cluster.members.len()).for_each(|at| cluster.up(at));
        cluster.leader();
        cluster
    }

    /// `https://host:port` of each member.
    pub fn endpoints(&self) -> Vec<String> {
        self.members.iter().map(|member| format!("https://{}:{CLIENTS}", member.addr)).collect()
    }

    /// Starts a member; it may wait for others.
    pub fn up(&mut self, at: usize) {
        let member = &mut self.members[at];
        let mut command = member.ns.command("etcd");
        command.args(&member.args);
        member.daemon = Some(Daemon::spawn(&self.logs, &member.name, command));
    }

    /// `kill -9`.
    pub fn kill(&mut self, at: usize) {
        if let Some(mut daemon) = self.members[at].daemon.take() {
            daemon.kill();
        }
    }

    /// Stops a member where it is: connections stay open, nothing is answered.
    pub fn pause(&self, at: usize) {
        self.signal(at, Signal::STOP);
    }

    /// Ends [`pause`](Self::pause).
    pub fn resume(&self, at: usize) {
        self.signal(at, Signal::CONT);
    }

    fn signal(&self, at: usize, signal: Signal) {
        self.daemon(at).signal(signal);
    }

    fn daemon(&self, at: usize) -> &Daemon {
        self.members[at].daemon.as_ref().expect("the member runs")
    }

    /// Lets each sync of a member's disk take `delay` longer, until what is returned is dropped.
    pub fn slow_disk(&self, at: usize, delay: Duration) -> SlowDisk {
        let mut strace = Command::new("strace");
        strace.args(["--follow-forks", "--quiet=attach", "--trace=fdatasync,fsync", "--attach"]);
        strace.arg(self.daemon(at).pid().to_string());
        strace.arg(format!("--inject=fdatasync,fsync:delay_exit={}", delay.as_micros()));
        let name = format!("{}-disk-{}", self.members[at].name, delay.as_millis());
        SlowDisk(Daemon::spawn(&self.logs, &name, strace).stopped_by(Signal::INT))
    }

    /// The member that leads, once one does.
    #[track_caller]
    pub fn leader(&self) -> usize {
        within_or(UP, "etcd to have a leader", || {
            let mut said = String::new();
            for at in 0..self.members.len() {
                let status = self.status(at);
                match status.map(|status| (status["header"]["member_id"].clone(), status["leader"].clone())) {
                    Ok((own, leader)) if own == leader => return Ok(at),
                    other => said = format!("{said}; {at}: {other:?}"),
                }
            }
            Err(said)
        })
    }

    /// What a member says of itself.
    fn status(&self, at: usize) -> Result<serde_json::Value, String> {
        let finished = self.ctl(at, &["endpoint", "status", "-w", "json"]);
        let statuses: serde_json::Value =
            serde_json::from_str(&finished.stdout).map_err(|e| format!("{e}: {finished}"))?;
        Ok(statuses[0]["Status"].clone())
    }

    /// Runs etcdctl against one member, in its own site.
    pub fn ctl(&self, at: usize, args: &[&str]) -> Finished {
        let member = &self.members[at];
        let endpoint = format!("--endpoints=https://{}:{CLIENTS}", member.addr);
        let [ca, cert, key] = [&self.ca, &self.cert, &self.key].map(|file| file.display());
        let (ca, cert, key) = (format!("--cacert={ca}"), format!("--cert={cert}"), format!("--key={key}"));
        let mut all = vec!["ETCDCTL_API=3", "etcdctl", "--dial-timeout=1s", "--command-timeout=2s"];
        all.extend([endpoint.as_str(), &ca, &cert, &key]);
        all.extend(args);
        member.ns.run("env", &all)
    }
}

/// A member's disk that is slow: an strace of the member, which holds up its syncs.
pub struct SlowDisk(Daemon);

impl SlowDisk {
    /// How many syncs it has held up.
    pub fn held_up(&self) -> usize {
        self.0.log().matches("(DELAYED)").count()
    }
}

/// A CA for etcd and its clients.
struct Certificates {
    dir: PathBuf,
    ca: PathBuf,
    issuer: rcgen::Issuer<'static, rcgen::KeyPair>,
}

impl Certificates {
    fn new(dir: &Path) -> Self {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let ca = dir.join("ca.pem");
        fs::write(&ca, params.self_signed(&key).unwrap().pem()).unwrap();
        Self { dir: dir.to_owned(), ca, issuer: rcgen::Issuer::new(params, key) }
    }

    /// A certificate for an address, or for a client.
    fn issue(&self, name: &str, addr: Option<IpAddr>) -> (PathBuf, PathBuf) {
        let key = rcgen::KeyPair::generate().unwrap();
        let subject = addr.map_or(name.to_owned(), |addr| addr.to_string());
        let mut params = rcgen::CertificateParams::new(vec![subject]).unwrap();
        // etcd's gateway calls its own server, with the server's certificate.
        params.extended_key_usages =
            vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth, rcgen::ExtendedKeyUsagePurpose::ClientAuth];
        let (cert_file, key_file) =
            (self.dir.join(format!("{name}.pem")), self.dir.join(format!("{name}-key.pem")));
        fs::write(&cert_file, params.signed_by(&key, &self.issuer).unwrap().pem()).unwrap();
        fs::write(&key_file, key.serialize_pem()).unwrap();
        (cert_file, key_file)
    }
}
