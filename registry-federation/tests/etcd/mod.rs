//! A real etcd on loopback, and a relay in front of it that can be made to fail.

use std::{
    fs::File,
    net::{Ipv4Addr, SocketAddr, TcpListener as StdListener},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
    time::Duration,
};

use carrick_model::Domain;
use carrick_registry::store::etcd::{EtcdSettings, EtcdStore, TlsFiles, probe};
use carrick_runtime::Tasks;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::watch,
    time::{Instant, sleep},
};

/// How long etcd may take to come up on a busy machine.
const START: Duration = Duration::from_secs(20);

/// One member with data of its own, gone when dropped.
pub struct Etcd {
    dir: tempfile::TempDir,
    child: Option<Child>,
    client: SocketAddr,
    peer: SocketAddr,
    tls: Option<TlsFiles>,
    server_tls: Vec<String>,
}

/// Whether etcd is here. If not, the test is skipped by name, and fails in CI: `tests/setup.sh` installs it.
pub fn is_here() -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    if std::env::split_paths(&path).any(|dir| dir.join("etcd").is_file()) {
        return true;
    }
    let thread = std::thread::current();
    let test = thread.name().unwrap_or("etcd").to_owned();
    assert!(std::env::var("CI").is_err(), "{test} needs etcd, and CI skips nothing: see tests/setup.sh");
    // Not `eprintln!`, which a passing test hides.
    let _ =
        std::io::Write::write_all(&mut std::io::stderr(), format!("skipped {test}: needs etcd\n").as_bytes());
    false
}

impl Etcd {
    /// Starts one and waits until it serves.
    pub async fn start() -> Option<Self> {
        Self::start_with(None, |_| Vec::new()).await
    }

    /// The same with TLS for clients: `server` gives etcd's arguments for a directory, `tls` what we call it with.
    pub async fn start_with(
        tls: Option<fn(&Path) -> TlsFiles>,
        server: impl Fn(&Path) -> Vec<String>,
    ) -> Option<Self> {
        if !is_here() {
            return None;
        }
        let mut dir = tempfile::tempdir().unwrap();
        let mut server_tls = server(dir.path());
        let mut tls = tls.map(|tls| tls(dir.path()));
        // Nobody keeps the ports that are free now; whoever loses the race for them takes others.
        for _ in 0..10 {
            let [client, peer] = [free_port(), free_port()];
            let mut etcd = Self { dir, child: None, client, peer, tls, server_tls };
            if etcd.up().await {
                return Some(etcd);
            }
            let log = etcd.log();
            assert!(log.contains("address already in use"), "etcd does not come up:\n{log}");
            (dir, tls, server_tls) = etcd.take_apart();
        }
        panic!("no free port in ten attempts")
    }

    /// Starts it again with its data.
    pub async fn up(&mut self) -> bool {
        let scheme = if self.server_tls.is_empty() { "http" } else { "https" };
        let (client, peer) = (format!("{scheme}://{}", self.client), format!("http://{}", self.peer));
        let log = File::options().create(true).append(true).open(self.dir.path().join("log")).unwrap();
        let mut command = Command::new("etcd");
        command
            .arg("--data-dir")
            .arg(self.dir.path().join("data"))
            .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", &format!("default={peer}"), "--logger", "zap"])
            .args(&self.server_tls)
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log);
        self.child = Some(command.spawn().unwrap());
        let began = Instant::now();
        loop {
            let settings = self.settings();
            let (_, facts) = probe(&settings).await.unwrap().remove(0);
            match facts {
                Ok(_) => return true,
                Err(_) if self.child.as_mut().unwrap().try_wait().unwrap().is_some() => return false,
                Err(fault) => assert!(began.elapsed() < START, "{fault}\n{}", self.log()),
            }
            sleep(Duration::from_millis(20)).await;
        }
    }

    /// `kill -9`.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    /// How to call it.
    pub fn settings(&self) -> EtcdSettings {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        EtcdSettings {
            endpoints: vec![format!("{scheme}://{}", self.client)],
            tls: self.tls.clone(),
            prefix: "/carrick".into(),
            domain: "own.test".parse::<Domain>().unwrap(),
        }
    }

    /// A replica's store.
    pub fn store(&self, tasks: &Tasks) -> EtcdStore {
        EtcdStore::new(&self.settings(), tasks).unwrap()
    }

    /// A replica's store that calls through a relay.
    pub fn store_through(&self, relay: &Relay, tasks: &Tasks) -> EtcdStore {
        let endpoints = vec![format!("http://{}", relay.address)];
        EtcdStore::new(&EtcdSettings { endpoints, ..self.settings() }, tasks).unwrap()
    }

    /// Where it is for clients.
    pub fn address(&self) -> SocketAddr {
        self.client
    }

    /// Where its files are.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Runs etcdctl and gives what it printed.
    pub fn ctl(&self, args: &[&str]) -> String {
        let output = Command::new("etcdctl")
            .env("ETCDCTL_API", "3")
            .arg(format!("--endpoints=http://{}", self.client))
            .args(args)
            .output()
            .unwrap();
        assert!(output.status.success(), "etcdctl {args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    fn take_apart(mut self) -> (tempfile::TempDir, Option<TlsFiles>, Vec<String>) {
        self.kill();
        let dir = std::mem::replace(&mut self.dir, tempfile::tempdir().unwrap());
        std::fs::remove_file(dir.path().join("log")).unwrap();
        (dir, self.tls.take(), std::mem::take(&mut self.server_tls))
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        self.kill();
    }
}

fn free_port() -> SocketAddr {
    StdListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap()
}

/// A TCP relay that can be cut, or made to keep answers back.
pub struct Relay {
    pub address: SocketAddr,
    mode: Arc<AtomicU8>,
    cut: watch::Sender<u64>,
    tasks: Tasks,
}

/// Passes everything.
const OPEN: u8 = 0;
/// Passes what the client says, and nothing back.
const MUTE: u8 = 1;
/// Passes nothing and takes no connection.
const CLOSED: u8 = 2;

impl Relay {
    pub async fn to(target: SocketAddr) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (mode, cut, tasks) = (Arc::new(AtomicU8::new(OPEN)), watch::Sender::new(0), Tasks::new());
        let relay = Self { address, mode: mode.clone(), cut: cut.clone(), tasks: tasks.clone() };
        let accepting = tasks.clone();
        tasks.spawn("relay", async move {
            loop {
                let accepted = tokio::select! {
                    accepted = listener.accept() => accepted.unwrap().0,
                    () = accepting.stopping() => return,
                };
                if mode.load(Ordering::SeqCst) == CLOSED {
                    continue;
                }
                let (mode, mut cut) = (mode.clone(), cut.subscribe());
                accepting.spawn("relayed", async move {
                    let Ok(onward) = TcpStream::connect(target).await else { return };
                    let (mut from_client, mut to_client) = accepted.into_split();
                    let (mut from_server, mut to_server) = onward.into_split();
                    let there = async { drop(tokio::io::copy(&mut from_client, &mut to_server).await) };
                    let back = async {
                        let (mut buffer, mut gap) = (vec![0; 64 * 1024], false);
                        while let Ok(n @ 1..) = from_server.read(&mut buffer).await {
                            // A stream with a hole in it must never go on: that is no network's way.
                            gap |= mode.load(Ordering::SeqCst) != OPEN;
                            if !gap && to_client.write_all(&buffer[..n]).await.is_err() {
                                return;
                            }
                        }
                    };
                    tokio::select! {
                        () = there => {}
                        () = back => {}
                        _ = cut.changed() => {}
                    }
                });
            }
        });
        relay
    }

    /// From now on requests arrive and their answers get lost, on every connection there is.
    pub fn mute(&self) {
        self.mode.store(MUTE, Ordering::SeqCst);
    }

    /// Passes everything again. Connections that were muted are cut.
    pub fn open(&self) {
        self.cut.send_modify(|cuts| *cuts += 1);
        self.mode.store(OPEN, Ordering::SeqCst);
    }

    /// Cuts every connection and takes no new one.
    pub fn close(&self) {
        self.mode.store(CLOSED, Ordering::SeqCst);
        self.cut.send_modify(|cuts| *cuts += 1);
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.tasks.stop();
    }
}

/// A CA with a certificate for etcd on 127.0.0.1 and one for us, as files in a directory.
pub fn certificates(dir: &Path) -> (Vec<String>, TlsFiles) {
    let write = |name: &str, text: String| -> PathBuf {
        let file = dir.join(name);
        std::fs::write(&file, text).unwrap();
        file
    };
    let key = || rcgen::KeyPair::generate().unwrap();
    let ca_key = key();
    let mut ca = rcgen::CertificateParams::new(Vec::new()).unwrap();
    ca.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let root = ca.self_signed(&ca_key).unwrap();
    let issuer = rcgen::Issuer::new(ca, ca_key);
    let leaf = |name: &str, usage| {
        let own = key();
        let mut params = rcgen::CertificateParams::new(vec![name.to_owned()]).unwrap();
        params.extended_key_usages = vec![usage];
        (params.signed_by(&own, &issuer).unwrap().pem(), own.serialize_pem())
    };
    let ca = write("ca.pem", root.pem());
    let (cert, private) = leaf("127.0.0.1", rcgen::ExtendedKeyUsagePurpose::ServerAuth);
    let (server_cert, server_key) = (write("server.pem", cert), write("server-key.pem", private));
    let (cert, private) = leaf("carrick", rcgen::ExtendedKeyUsagePurpose::ClientAuth);
    let client = Some((write("client.pem", cert), write("client-key.pem", private)));
    let server = [("--cert-file", &server_cert), ("--key-file", &server_key), ("--trusted-ca-file", &ca)];
    let mut args: Vec<String> =
        server.iter().flat_map(|(flag, file)| [(*flag).to_owned(), file.display().to_string()]).collect();
    args.push("--client-cert-auth".into());
    (args, TlsFiles { ca, client })
}
