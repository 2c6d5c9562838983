//! Network Service Mesh's own code, in Go: `tests/interop/nsm`, built once for a test run, and SVIDs for it.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
    time::Duration,
};

use serde_json::Value;

use super::{Carrick, Finished, Namespace};

/// The programs that tests with NSM's code need, for [`needs`](super::needs).
pub const NSM: &[&str] = &["go", "openssl"];

/// The processes of a case may take this long altogether. Cases have a shorter limit of their own.
const CASE: Duration = Duration::from_secs(240);

/// A workload of a domain, with an SVID from the domain's embedded CA: `svid.pem` and `key.pem` in a directory.
pub struct Workload {
    dir: PathBuf,
}

impl Workload {
    /// Issues `spiffe://<domain>/<name>`.
    pub fn of(carrick: &Carrick, domain: &str, name: &str) -> Self {
        let dir = carrick.config().with_file_name(name);
        fs::create_dir(&dir).unwrap_or_else(|e| panic!("creating {}: {e}", dir.display()));
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
