//! The pair to compare with: haproxy in site a and in site b with TLS and certificates on both ends between them.

use std::{fs, net::SocketAddr, path::Path, process::Command, time::Duration};

use super::{Daemon, Finished, Lab, within};

/// Where haproxy in site b awaits the one in site a.
const TUNNEL_PORT: u16 = 9443;

/// What our own gateways negotiate, so that the comparison is not one of ciphers.
const SUITE: &str = "TLS_AES_128_GCM_SHA256";

/// Two running haproxies.
pub struct HaproxyPair {
    /// The one in site a.
    pub near: Daemon,
    /// The one in site b.
    pub far: Daemon,
}

impl HaproxyPair {
    /// Joins `listen` in site a to `target` in site b. Needs `haproxy` and `openssl`.
    pub fn start(lab: &Lab, listen: SocketAddr, target: SocketAddr) -> Self {
        let dir = lab.dir().join("haproxy");
        fs::create_dir_all(&dir).unwrap();
        for name in ["near", "far"] {
            certificate(&dir, name);
        }
        let at = |name: &str| dir.join(format!("{name}.pem")).display().to_string();
        let far = config(&format!(
            "bind :{TUNNEL_PORT} ssl crt {own} ca-file {peer} verify required\n  server app {target}",
            own = at("far-key"),
            peer = at("near"),
        ));
        let near = config(&format!(
            "bind {listen}\n  server far {to} ssl crt {own} ca-file {peer} verify required",
            to = lab.b.at(TUNNEL_PORT),
            own = at("near-key"),
            peer = at("far"),
        ));
        let start = |name: &str, ns: &super::Namespace, text: String| {
            let file = dir.join(format!("{name}.cfg"));
            fs::write(&file, text).unwrap();
            let mut command = ns.command("haproxy");
            command.args(["-db", "-f"]).arg(&file);
            Daemon::spawn(lab.dir(), &format!("haproxy-{name}"), command)
        };
        let pair = Self { far: start("far", &lab.b.ns, far), near: start("near", &lab.a.ns, near) };
        let (a, tunnel) = (&lab.a.ns, lab.b.at(TUNNEL_PORT));
        for addr in [listen, tunnel] {
            within(Duration::from_secs(5), "haproxy to listen", || {
                a.connect(addr, Duration::from_secs(1)).ok()
            });
        }
        pair
    }
}

fn config(proxy: &str) -> String {
    // Two descriptors a flow, and haproxy refuses to start when its limit is lower than that.
    let flows = super::raise_file_limit() / 2 - 100;
    format!(
        "global\n  maxconn {flows}\n  ssl-default-bind-options ssl-min-ver TLSv1.3\n  \
         ssl-default-server-options ssl-min-ver TLSv1.3\n  \
         ssl-default-bind-ciphersuites {SUITE}\n  ssl-default-server-ciphersuites {SUITE}\n\
         defaults\n  mode tcp\n  timeout connect 5s\n  timeout client 1h\n  timeout server 1h\n\
         listen pair\n  {proxy}\n"
    )
}

/// A self-signed P-256 certificate, as our own gateways have: `<name>.pem`, and with its key `<name>-key.pem`.
fn certificate(dir: &Path, name: &str) {
    let (key, cert) = (dir.join(format!("{name}.key")), dir.join(format!("{name}.pem")));
    let mut openssl = Command::new("openssl");
    openssl
        .args([
            "req",
            "-x509",
            "-nodes",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-days",
            "2",
        ])
        .args(["-subj", &format!("/CN={name}"), "-keyout"])
        .arg(&key)
        .arg("-out")
        .arg(&cert);
    Finished::of(&mut openssl).ok();
    let both = fs::read_to_string(&cert).unwrap() + &fs::read_to_string(&key).unwrap();
    fs::write(dir.join(format!("{name}-key.pem")), both).unwrap();
}
