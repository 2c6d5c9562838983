//! PostgreSQL as the legacy application of site b: on 10.0.0.5, an address that only site b has.

use std::{fs, os::unix::fs::chown, path::PathBuf, time::Duration};

use super::{Daemon, Finished, LAN_APP, Lab, Namespace, Signal, needs::program, within};

/// The database and its role.
const NAME: &str = "postgres";

/// A running server with a fresh cluster.
pub struct Postgres {
    _daemon: Daemon,
    ns: Namespace,
    socket: PathBuf,
}

impl Postgres {
    /// Initialises a cluster and starts it in site b. Needs `initdb`, `postgres`, `psql` and the account `postgres`.
    pub fn start(lab: &Lab) -> Self {
        let ns = lab.b.ns.clone();
        let dir = lab.dir().join("postgres");
        fs::create_dir(&dir).unwrap();
        let (uid, gid) = account();
        chown(&dir, Some(uid), Some(gid)).unwrap();
        let data = dir.join("data");
        let path = data.to_str().unwrap();
        let initdb =
            ["initdb", "-D", path, "-U", NAME, "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync"];
        Finished::of(&mut as_postgres(&ns, &initdb)).ok();
        // The client's address is the exporting daemon's: 10.0.0.x.
        let hba = "local all all trust\nhost all all 10.0.0.0/24 trust\n";
        fs::write(data.join("pg_hba.conf"), hba).unwrap();

        let listen = format!("listen_addresses={LAN_APP}");
        let sockets = format!("unix_socket_directories={}", dir.display());
        let settings = [&listen, &sockets, "fsync=off", "shared_buffers=32MB", "max_connections=60"];
        let mut server = vec!["postgres", "-D", path];
        for setting in settings {
            server.extend(["-c", setting]);
        }
        // SIGQUIT is PostgreSQL's immediate shutdown: children too, no checkpoint.
        let daemon = Daemon::spawn(lab.dir(), "postgres", as_postgres(&ns, &server)).stopped_by(Signal::QUIT);
        let postgres = Self { _daemon: daemon, ns, socket: dir };
        within(Duration::from_secs(20), "PostgreSQL to accept queries", || {
            (postgres.psql("select 1").code == 0).then_some(())
        });
        postgres
    }

    /// Creates pgbench's tables. Needs `pgbench`.
    pub fn init_pgbench(&self) {
        let args = ["-h", self.socket.to_str().unwrap(), "-U", NAME, "-i", "-q", "-s", "1", NAME];
        self.ns.run_for(Duration::from_secs(30), "pgbench", &args).ok();
    }

    /// Runs one statement in site b, over the server's Unix socket.
    pub fn psql(&self, sql: &str) -> Finished {
        self.ns.run("psql", &["-h", self.socket.to_str().unwrap(), "-U", NAME, "-d", NAME, "-tAXc", sql])
    }

    /// Runs one statement from any namespace over TCP, as an application would.
    pub fn psql_over(ns: &Namespace, host: &str, port: u16, sql: &str) -> Finished {
        let to = format!("host={host} port={port} user={NAME} dbname={NAME} connect_timeout=5");
        ns.run("psql", &[&to, "-tAXc", sql])
    }

    /// Runs pgbench's standard transactions from any namespace over TCP.
    pub fn pgbench_over(ns: &Namespace, host: &str, port: u16, clients: u32, seconds: u32) -> Finished {
        let (port, clients) = (port.to_string(), clients.to_string());
        let limit = Duration::from_secs(u64::from(seconds) + 20);
        let seconds = seconds.to_string();
        let args = [
            "-h", host, "-p", &port, "-U", NAME, "-n", "-c", &clients, "-j", "2", "-T", &seconds, "-s", "1",
            NAME,
        ];
        ns.run_for(limit, "pgbench", &args)
    }
}

/// PostgreSQL refuses to run as root.
fn as_postgres(ns: &Namespace, args: &[&str]) -> std::process::Command {
    let mut command = ns.command("setpriv");
    command.args(["--reuid=postgres", "--regid=postgres", "--init-groups"]);
    command.arg(program(args[0]).unwrap_or_else(|| panic!("{} is not installed", args[0]))).args(&args[1..]);
    command.current_dir("/");
    command
}

fn account() -> (u32, u32) {
    let passwd = fs::read_to_string("/etc/passwd").unwrap();
    let line =
        passwd.lines().find(|l| l.starts_with("postgres:")).expect("the postgresql package makes an account");
    let fields: Vec<&str> = line.split(':').collect();
    (fields[2].parse().unwrap(), fields[3].parse().unwrap())
}
