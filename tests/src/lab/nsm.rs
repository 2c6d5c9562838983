//! Network Service Mesh's own code, in Go: `tests/interop/nsm`, built once for a test run, and SVIDs for it.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
    time::Duration,
};

use serde_json::Value;

use super::{Carrick, DNS, Daemon, Finished, Mesh, Namespace, PORT, Signal, Site};

/// The programs that tests with NSM's code need, for [`needs`](super::needs).
pub const NSM: &[&str] = &["go", "openssl"];

/// A domain of NSM's parts may take this long to be there, with its forwarder registered.
const SERVES: Duration = Duration::from_secs(20);

/// The port of NSM's registry.
pub const NSM_REGISTRY: u16 = 5002;
/// The parts of a domain of NSM's.
const PARTS: [&str; 5] = ["nsmgr", "registry", "forwarder", "nsmgr-proxy", "registry-proxy"];

/// The processes of a case may take this long altogether. Cases have a shorter limit of their own.
const CASE: Duration = Duration::from_secs(240);

/// A workload of a domain, with an SVID from the domain's embedded CA: `svid.pem` and `key.pem` in a directory.
pub struct Workload {
    dir: PathBuf,
}

impl Workload {
    /// Issues `spiffe://<domain>/<name>`, anew where there is one.
    pub fn of(carrick: &Carrick, domain: &str, name: &str) -> Self {
        let dir = carrick.config().with_file_name(name);
        fs::create_dir_all(&dir).unwrap_or_else(|e| panic!("creating {}: {e}", dir.display()));
        let file = |name: &str| dir.join(name).to_str().unwrap().to_owned();
        let root = carrick.state_dir().join("ca/root.pem").to_str().unwrap().to_owned();
        fs::write(
            file("profile"),
            format!(
                "basicConstraints=critical,CA:FALSE\nkeyUsage=critical,digitalSignature\n\
                 extendedKeyUsage=serverAuth,clientAuth\nsubjectAltName=critical,URI:spiffe://{domain}/{name}\n"
            ),
        )
        .unwrap();
        let openssl = |args: &[&str]| {
            Finished::of(Command::new("openssl").args(args)).ok();
        };
        let (key, request, svid) = (file("key.pem"), file("request"), file("svid.pem"));
        let curve = "ec_paramgen_curve:P-256";
        openssl(&["genpkey", "-algorithm", "EC", "-pkeyopt", curve, "-out", &key]);
        openssl(&["req", "-new", "-key", &key, "-subj", "/", "-out", &request]);
        let sign = ["x509", "-req", "-in", &request, "-CA", &root, "-CAkey", &root, "-days", "1", "-extfile"];
        openssl(&[&sign[..], &[&file("profile"), "-out", &svid]].concat());
        Self { dir }
    }

    /// Where its files are.
    pub fn dir(&self) -> &Path {
        &self.dir
    }
}

/// A domain that is run by NSM's parts: registry, registry-proxy, nsmgr-proxy, and a node's manager and forwarder, on NSM's ports of
/// a site's address. Something else may take the place of some.
pub struct NsmDomain {
    _parts: Daemon,
}

impl NsmDomain {
    /// Starts it in `site`, with SVIDs of `ca`'s root, and waits until it serves. Members of the domains in `trusted` may call its
    /// parts. `instead` are flags of `nsm-interop serve-domain` that say what else there is in place of a part.
    pub fn start(site: &Site, ca: &Carrick, trusted: &[&Carrick], instead: &[&str]) -> Self {
        for part in PARTS {
            Workload::of(ca, site.domain, part);
        }
        let ids = ca.config().with_file_name("");
        let (host, dns) = (site.addr.to_string(), format!("{DNS}:53"));
        let mut command = site.ns.command(nsm_interop_program().to_str().unwrap());
        command.args(["serve-domain", "-name", site.domain, "-host", &host, "-dns", &dns]);
        command.arg("-ids").arg(&ids).args(instead);
        for domain in trusted.iter().chain([&ca]) {
            command.args(["-trust", &domain.trust_flag()]);
        }
        let mut parts = Daemon::spawn(&ids, "nsm", command).stopped_by(Signal::TERM);
        parts.wait_for_log("\"serves\":\"domain\"", SERVES);
        Self { _parts: parts }
    }
}

/// NSM's memory registry in `site`, at its port there, with an SVID of `ca`'s root. Members of the domains in `trusted` may call it.
pub fn nsm_registry(site: &Site, ca: &Carrick, trusted: &[&Carrick]) -> Daemon {
    let own = Workload::of(ca, site.domain, "registry");
    let mut command = site.ns.command(nsm_interop_program().to_str().unwrap());
    command.args(["serve-registry", "-listen", &site.at(NSM_REGISTRY).to_string(), "-own"]).arg(own.dir());
    for domain in trusted.iter().chain([&ca]) {
        command.args(["-trust", &domain.trust_flag()]);
    }
    let mut registry = Daemon::spawn(own.dir(), "nsm", command).stopped_by(Signal::TERM);
    registry.wait_for_log("\"serves\":\"registry\"", SERVES);
    registry
}

/// What a domain lets callers of another one see of what is registered with it.
pub fn shows(domain: &str) -> String {
    format!("registry: {{ show: [ {{ who: [\"spiffe://{domain}/**\"], services: [\"*\"] }} ] }}")
}

/// From a client of NSM's in one domain to endpoints of NSM's in another, with NSM's client and endpoint chains.
pub struct NsmWay<'a> {
    /// Where the client's process is, and the endpoints'.
    pub site: &'a Site,
    /// The root of the client's SVID, and its domain.
    pub client: (&'a Carrick, &'static str),
    /// The same of the endpoints.
    pub endpoint: (&'a Carrick, &'static str),
    /// What the client asks.
    pub manager: String,
    /// Where endpoints register.
    pub registry: String,
    /// The endpoints' domain as the client calls it.
    pub domain: &'static str,
    /// Processes from client to endpoint.
    pub segments: usize,
    /// More flags.
    pub more: &'a [&'a str],
}

impl<'a> NsmWay<'a> {
    /// From a client at the first daemon of a mesh to an endpoint at the second. The endpoint's process stands in site a, but is
    /// onprem.test's by its SVID.
    pub fn through(mesh: &'a Mesh) -> Self {
        Self {
            site: &mesh.lab.a,
            client: (&mesh.a, "cloud.test"),
            endpoint: (&mesh.b, "onprem.test"),
            manager: format!("tcp://{}", mesh.lab.a.at(PORT)),
            registry: format!("tcp://{}", mesh.lab.b.at(PORT)),
            domain: "onprem.test",
            // Client, two gateways, endpoint.
            segments: 4,
            more: &[],
        }
    }

    /// The way as `nsm-interop` takes it, with new SVIDs.
    pub fn flags(&self) -> Vec<String> {
        let client = Workload::of(self.client.0, self.client.1, "nsc");
        let endpoint = Workload::of(self.endpoint.0, self.endpoint.1, "nse");
        let (near, far) = (self.client.0.trust_flag(), self.endpoint.0.trust_flag());
        let (segments, host) = (self.segments.to_string(), self.site.addr.to_string());
        [
            &["-trust", &near, "-trust", &far, "-manager", &self.manager][..],
            &["-registry", &self.registry, "-domain", self.domain, "-segments", &segments],
            &["-client", client.dir().to_str().unwrap(), "-endpoint", endpoint.dir().to_str().unwrap()],
            &["-endpoint-host", &host],
            self.more,
        ]
        .concat()
        .into_iter()
        .map(str::to_owned)
        .collect()
    }
}

/// Runs `nsm-interop` in a namespace and returns its lines of JSON. Panics with what it complains when a case fails.
#[track_caller]
pub fn nsm_interop(ns: &Namespace, args: &[&str]) -> Vec<Value> {
    lines(&ns.run_for(CASE, nsm_interop_program().to_str().unwrap(), args).ok())
}

/// Runs `nsm-interop` where this process is.
#[track_caller]
pub fn nsm_interop_here(args: &[&str]) -> Vec<Value> {
    lines(&Finished::of(Command::new(nsm_interop_program()).args(args)).ok())
}

fn lines(stdout: &str) -> Vec<Value> {
    stdout.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"))).collect()
}

/// The program, built from this tree. Go fetches the modules that its cache lacks; `go.sum` says what they must be.
pub fn nsm_interop_program() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        let this = std::env::current_exe().unwrap();
        // A test is in `deps`, a program beside it.
        let target = this.parent().unwrap();
        let target = if target.ends_with("deps") { target.parent().unwrap() } else { target };
        let program = target.join("nsm-interop");
        let mut go = Command::new("go");
        go.args(["build", "-mod=readonly", "-o"]).arg(&program).arg(".");
        Finished::of(go.current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/interop/nsm"))).ok();
        program
    })
}
