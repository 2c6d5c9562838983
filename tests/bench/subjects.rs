//! What is compared, each ready to carry flows from site a to the same server in site b.

use std::{fmt, net::SocketAddr, path::PathBuf, time::Duration};

use anyhow::Context;
use carrick_tests::lab::{Carrick, Daemon, HaproxyPair, LAN_APP, Lab, Mesh, Settings, Usage};
use clap::ValueEnum;

/// The load server's port in site b.
const SERVER: u16 = 9000;
const HAPROXY: u16 = 19_000;
const CARRICK: u16 = 19_001;
/// The import of the Carrick pair.
pub(crate) const SERVICE: &str = "load@onprem.test";

/// One way from a client in site a to the server in site b.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, ValueEnum)]
pub(crate) enum Subject {
    /// Over the WAN, no gateway, no encryption.
    Direct,
    /// haproxy on both sites, mTLS between them.
    Haproxy,
    /// Carrick on both sites.
    Carrick,
}

impl Subject {
    pub(crate) const ALL: [Self; 3] = [Self::Direct, Self::Haproxy, Self::Carrick];
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Direct => "direct",
            Self::Haproxy => "haproxy",
            Self::Carrick => "carrick",
        })
    }
}

/// Everything that runs during a benchmark. Fields are dropped in this order: the lab last.
pub(crate) struct Stage {
    haproxy: Option<HaproxyPair>,
    mesh: Option<Mesh>,
    _server: Daemon,
    lab: Option<Lab>,
}

impl Stage {
    /// Starts the server and the subjects.
    pub(crate) fn build(subjects: &[Subject]) -> anyhow::Result<Self> {
        let target = SocketAddr::from((LAN_APP, SERVER));
        let (mesh, lab) = if subjects.contains(&Subject::Carrick) {
            let import = |s: Settings| s.import(SERVICE, &format!("127.0.0.1:{CARRICK}"));
            let export = |s: Settings| s.export("load", &format!("tcp://{target}"), "spiffe://cloud.test/**");
            (Some(Mesh::start(import, export)), None)
        } else {
            (None, Some(Lab::new()))
        };
        let place = mesh.as_ref().map(|m| &m.lab).or(lab.as_ref()).context("no lab")?;

        let mut command =
            place.b.ns.command(load()?.to_str().context("the path of carrick-load is not UTF-8")?);
        command.args(["serve", "--listen", &format!("0.0.0.0:{SERVER}")]);
        let mut server = Daemon::spawn(place.dir(), "server", command);
        server.wait_for_log("serving", Duration::from_secs(5));

        let haproxy = subjects
            .contains(&Subject::Haproxy)
            .then(|| HaproxyPair::start(place, ([127, 0, 0, 1], HAPROXY).into(), target));
        if let Some(mesh) = &mesh {
            mesh.a.wait_import(SERVICE, "up", Duration::from_secs(20));
        }
        Ok(Self { haproxy, mesh, _server: server, lab })
    }

    /// The address a client in site a connects to.
    pub(crate) fn address(&self, subject: Subject) -> SocketAddr {
        match subject {
            Subject::Direct => self.lab().b.at(SERVER),
            Subject::Haproxy => ([127, 0, 0, 1], HAPROXY).into(),
            Subject::Carrick => ([127, 0, 0, 1], CARRICK).into(),
        }
    }

    /// The two ends' processes: near, far.
    pub(crate) fn usage(&self, subject: Subject) -> Option<[Usage; 2]> {
        match subject {
            Subject::Direct => None,
            Subject::Haproxy => self.haproxy.as_ref().map(|pair| [pair.near.usage(), pair.far.usage()]),
            Subject::Carrick => {
                self.mesh.as_ref().map(|mesh| [mesh.a.daemon().usage(), mesh.b.daemon().usage()])
            }
        }
    }

    /// The sites.
    pub(crate) fn lab(&self) -> &Lab {
        match (&self.mesh, &self.lab) {
            (Some(mesh), _) => &mesh.lab,
            (None, Some(lab)) => lab,
            (None, None) => unreachable!("build made one of them"),
        }
    }

    /// Carrick's importing daemon.
    pub(crate) fn importer(&mut self) -> Option<&mut Carrick> {
        self.mesh.as_mut().map(|mesh| &mut mesh.a)
    }
}

/// The load generator, beside this program.
pub(crate) fn load() -> anyhow::Result<PathBuf> {
    let path = std::env::current_exe()?.with_file_name("carrick-load");
    anyhow::ensure!(
        path.exists(),
        "{} is not there: build both with `cargo build -p carrick-tests --bins`",
        path.display()
    );
    Ok(path)
}
