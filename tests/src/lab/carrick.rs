//! The daemon under test, driven as an operator would: config files, `carrick …`, signals.

use std::{
    fmt::Write,
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
    time::Duration,
};

use serde_json::Value;

use super::{DNS, Daemon, Finished, Lab, Namespace, Signal, Site, within_or};

/// Control and tunnel of every daemon in the lab: namespaces make fixed ports safe.
pub const PORT: u16 = 7443;
/// How long a daemon may take until it is ready. Generous: the machine may be busy with another test.
const READY: Duration = Duration::from_secs(15);

/// One `carrick.yaml`.
#[derive(Debug, Clone)]
pub struct Settings {
    head: String,
    trust: Vec<String>,
    peers: Vec<String>,
    exports: Vec<String>,
    imports: Vec<String>,
}

/// One domain's daemon, running or not.
pub struct Carrick {
    ns: Namespace,
    name: String,
    logs: PathBuf,
    dir: PathBuf,
    daemon: Option<Daemon>,
    domain: &'static str,
}

impl Settings {
    /// A daemon for `site` that resolves through the WAN's DNS server and trusts nobody.
    pub fn new(site: &Site, carrick: &Carrick) -> Self {
        let (addr, addr6) = (site.addr, site.addr6);
        let head = format!(
            "domain: {domain}\nstate_dir: {state}\n\
             listen: {{ control: \"[::]:{PORT}\", tunnel: \"[::]:{PORT}\", admin: \"127.0.0.1:9901\" }}\n\
             advertise: [\"{addr}\", \"{addr6}\"]\n",
            domain = site.domain,
            state = carrick.state_dir().display(),
        );
        let none = Vec::new;
        Self { head, trust: none(), peers: none(), exports: none(), imports: none() }
            .line(&format!("dns: {{ servers: [\"{DNS}:53\"] }}"))
    }

    /// Adds a top-level line, or replaces the one with the same key.
    #[must_use]
    pub fn line(mut self, line: &str) -> Self {
        let key = line.split(':').next().unwrap();
        let kept: Vec<&str> = self.head.lines().filter(|l| l.split(':').next() != Some(key)).collect();
        self.head = kept.join("\n");
        writeln!(self.head, "\n{line}").unwrap();
        self
    }

    /// Adds a line as it is, whatever it says: for configs that must be refused.
    #[must_use]
    pub fn raw(mut self, line: &str) -> Self {
        writeln!(self.head, "{line}").unwrap();
        self
    }

    /// Trusts `other`'s bundle for `other`'s domain.
    #[must_use]
    pub fn trust(self, other: &Carrick) -> Self {
        self.trust_bundle(other.domain, &other.bundle())
    }

    /// Trusts the bundle in a file for a domain.
    #[must_use]
    pub fn trust_bundle(mut self, domain: &str, bundle: &Path) -> Self {
        self.trust.push(format!(
            "{{ domain: {domain}, trust_domain: {domain}, bundle: \"file://{}\" }}",
            bundle.display()
        ));
        self
    }

    /// A static peer: DNS is not asked for this domain.
    #[must_use]
    pub fn peer(mut self, site: &Site) -> Self {
        let at = site.at(PORT);
        self.peers.push(format!("{{ domain: {}, control: [\"{at}\"], tunnel: [\"{at}\"] }}", site.domain));
        self
    }

    /// Offers a service to the SPIFFE IDs that match `allow`.
    #[must_use]
    pub fn export(mut self, service: &str, to: &str, allow: &str) -> Self {
        self.exports.push(format!("{{ service: {service}, to: \"{to}\", allow: [\"{allow}\"] }}"));
        self
    }

    /// Makes a service of another domain reachable on `listen`.
    #[must_use]
    pub fn import(mut self, service: &str, listen: &str) -> Self {
        self.imports.push(format!("{{ service: {service}, listen: \"{listen}\" }}"));
        self
    }

    /// Makes a service of another domain reachable by name only.
    #[must_use]
    pub fn import_by_name(mut self, service: &str) -> Self {
        self.imports.push(format!("{{ service: {service} }}"));
        self
    }

    /// The file's text.
    pub fn yaml(&self) -> String {
        let mut text = self.head.clone();
        for (key, items) in [
            ("trust", &self.trust),
            ("peers", &self.peers),
            ("exports", &self.exports),
            ("imports", &self.imports),
        ] {
            if items.is_empty() {
                continue;
            }
            writeln!(text, "{key}:").unwrap();
            for item in items {
                writeln!(text, "  - {item}").unwrap();
            }
        }
        text
    }
}

impl Carrick {
    /// A daemon for a site, not started: its state directory and its root exist.
    pub fn prepare(lab: &Lab, site: &Site) -> Self {
        Self::prepare_named(lab, site, site.domain)
    }

    /// The same under another name, for a second daemon or a second root of one domain.
    pub fn prepare_named(lab: &Lab, site: &Site, name: &str) -> Self {
        let dir = lab.dir().join(name);
        fs::create_dir(&dir).unwrap();
        let carrick = Self {
            ns: site.ns.clone(),
            name: name.to_owned(),
            logs: lab.dir().to_owned(),
            dir,
            daemon: None,
            domain: site.domain,
        };
        let seed = carrick.dir.join("seed.yaml");
        let state = carrick.state_dir();
        fs::write(&seed, format!("domain: {}\nstate_dir: {}\n", site.domain, state.display())).unwrap();
        let bundle = carrick.run(&["trust", "export", "-c", seed.to_str().unwrap()]).ok();
        fs::write(carrick.bundle(), bundle).unwrap();
        carrick
    }

    /// Writes the config file.
    pub fn configure(&self, settings: &Settings) {
        fs::write(self.config(), settings.yaml()).unwrap();
    }

    /// Starts it and waits until it says that it is ready.
    #[track_caller]
    pub fn up(&mut self) {
        self.start();
        self.wait_ready();
    }

    /// Starts it and returns at once.
    pub fn start(&mut self) {
        self.start_with(&[]);
    }

    /// Starts it with variables in its environment and returns at once.
    pub fn start_with(&mut self, variables: &[(&str, &str)]) {
        let mut command = self.ns.command(binary().to_str().unwrap());
        command.args(["up", "-c"]).arg(self.config()).envs(variables.iter().copied());
        self.daemon = Some(Daemon::spawn(&self.logs, &self.name, command).stopped_by(Signal::TERM));
    }

    /// Waits until it says that it is ready.
    #[track_caller]
    pub fn wait_ready(&mut self) {
        let name = self.name.clone();
        within_or(READY, &format!("{name} to be ready"), || {
            let ended = self.daemon_mut().wait(Duration::ZERO);
            assert!(ended.is_none(), "{name} ended at once: {ended:?}");
            match self.status() {
                Ok(status) if status["ready"] == true => Ok(()),
                Ok(status) => Err(status["waiting_for"].to_string()),
                Err(why) => Err(why),
            }
        });
    }

    /// Waits until an import is in a state (`up`, `down`) and returns its row of `carrick status`.
    #[track_caller]
    pub fn wait_import(&self, service: &str, state: &str, limit: Duration) -> Value {
        within_or(limit, &format!("import {service} of {} to be {state}", self.name), || {
            let row = self.import(service).ok_or_else(|| "no such import".to_owned())?;
            if row["state"] == state { Ok(row) } else { Err(row.to_string()) }
        })
    }

    /// The row of an import in `carrick status`.
    pub fn import(&self, service: &str) -> Option<Value> {
        let status = self.status().ok()?;
        status["imports"].as_array()?.iter().find(|row| row["service"] == service).cloned()
    }

    /// `carrick status -o json`.
    pub fn status(&self) -> Result<Value, String> {
        let finished = self.run(&["status", "-o", "json"]);
        // 4: it runs, but it is not ready.
        if !matches!(finished.code, 0 | 4) {
            return Err(finished.to_string());
        }
        serde_json::from_str(&finished.stdout).map_err(|e| format!("{e}: {}", finished.stdout))
    }

    /// Runs a command of the CLI beside the daemon.
    pub fn run(&self, args: &[&str]) -> Finished {
        let state = format!("CARRICK_STATE_DIR={}", self.state_dir().display());
        let binary = binary();
        let mut all = vec![state.as_str(), binary.to_str().unwrap()];
        all.extend(args);
        self.ns.run_for(Duration::from_secs(15), "env", &all)
    }

    /// The page of metrics, from the admin listener.
    pub fn metrics(&self) -> String {
        self.ns.run("curl", &["-sf", "--max-time", "5", "http://127.0.0.1:9901/metrics"]).ok()
    }

    /// `kill -9`.
    pub fn kill(&mut self) {
        self.daemon_mut().kill();
        self.daemon = None;
    }

    /// Tells it to read its config again.
    pub fn reload(&self) {
        self.daemon().signal(Signal::HUP);
    }

    /// The running daemon.
    pub fn daemon(&self) -> &Daemon {
        self.daemon.as_ref().unwrap_or_else(|| panic!("{} does not run", self.name))
    }

    /// The running daemon, to wait on.
    pub fn daemon_mut(&mut self) -> &mut Daemon {
        self.daemon.as_mut().unwrap_or_else(|| panic!("{} does not run", self.name))
    }

    /// Its namespace.
    pub fn ns(&self) -> &Namespace {
        &self.ns
    }

    /// Connects to one of its listeners from its own site.
    pub fn connect(&self, port: u16) -> std::io::Result<std::net::TcpStream> {
        self.ns.connect(SocketAddr::from(([127, 0, 0, 1], port)), Duration::from_secs(10))
    }

    /// The own roots, as `carrick trust export` wrote them.
    pub fn bundle(&self) -> PathBuf {
        self.dir.join("bundle.json")
    }

    /// The own roots as `nsm-interop -trust` takes them.
    pub fn trust_flag(&self) -> String {
        format!("{}={}", self.domain, self.bundle().display())
    }

    /// The config file.
    pub fn config(&self) -> PathBuf {
        self.dir.join("carrick.yaml")
    }

    /// The state directory.
    pub fn state_dir(&self) -> PathBuf {
        self.dir.join("state")
    }
}

/// The binary under test: `CARRICK_BIN`, or the one cargo makes of this tree in this profile, made now if it is not
/// there or stale.
pub fn binary() -> PathBuf {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY
        .get_or_init(|| {
            if let Some(given) = std::env::var_os("CARRICK_BIN") {
                return fs::canonicalize(&given).unwrap_or_else(|e| panic!("CARRICK_BIN {given:?}: {e}"));
            }
            let own = std::env::current_exe().unwrap();
            let profile_dir =
                own.ancestors().find(|d| !d.ends_with("deps") && d.is_dir()).unwrap().to_owned();
            let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
            let mut build = Command::new(cargo);
            build.args(["build", "--package", "carrick", "--bin", "carrick", "--quiet"]);
            if profile_dir.ends_with("release") {
                build.arg("--release");
            }
            Finished::of(build.current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))).ok();
            profile_dir.join("carrick")
        })
        .clone()
}
