//! What an operator of Network Service Mesh sees of the binary: sockets, SVIDs, variables, zones.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "test code")]

use std::{path::Path, time::Duration};

use carrick_tests::lab::{
    Carrick, LAN_APP, Lab, MESH, Mesh, Settings, Signal, TcpApp, Zone, echoes, needs, within,
};

const UP: Duration = Duration::from_secs(15);
const SERVICE: &str = "echo@onprem.test";
const IMPORT: u16 = 17000;

/// The ports and the socket of NSM's parts, for site b.
fn nsm(socket: &Path) -> String {
    format!(
        "compat: {{ nsm: {{ listen: [\"unix://{}\", \"tcp://:5001\", \"tcp://:5002\", \":5004\"], \
         name: nsmgr-proxy.onprem.test }} }}",
        socket.display()
    )
}

/// Site b alone, with the sockets of NSM's parts.
fn alone(lab: &Lab) -> (Carrick, std::path::PathBuf) {
    let carrick = Carrick::prepare(lab, &lab.b);
    let socket = lab.dir().join("nsm.sock");
    carrick.configure(&Settings::new(&lab.b, &carrick).line(&nsm(&socket)));
    (carrick, socket)
}

/// Issues an SVID with the CLI and returns its directory.
fn svid(carrick: &Carrick, dir: &Path, path: &str) -> String {
    let out = dir.join("svid").display().to_string();
    let id = format!("spiffe://onprem.test{path}");
    let said = carrick.run(&["svid", "issue", "--id", &id, "--out", &out, "-o", "json"]).ok();
    let said: serde_json::Value = serde_json::from_str(&said).unwrap();
    assert_eq!(said["id"], id);
    out
}

/// What OpenSSL says of a TLS connection to `target` with the roots in `svid`, as the holder of the SVID there or as nobody.
fn shake(carrick: &Carrick, target: &[&str], svid: &str, shown: bool) -> String {
    let mut command =
        format!("exec openssl s_client -tls1_3 -alpn h2 -verify_return_error -CAfile {svid}/bundle.pem");
    if shown {
        command.push_str(&format!(" -cert {svid}/svid.pem -key {svid}/svid_key.pem"));
    }
    for word in target {
        command.push_str(&format!(" {word}"));
    }
    // With its input closed it leaves after the handshake; who is refused reads so before that.
    let script = format!("(sleep 0.5) | {command} 2>&1");
    carrick.ns().run("sh", &["-c", &script]).stdout
}

#[test]
fn every_socket_of_nsm_takes_a_process_of_the_domain() {
    if !needs(&["netns", "openssl"]) {
        return;
    }
    let lab = Lab::new();
    let (mut carrick, socket) = alone(&lab);
    carrick.up();
    let svid = svid(&carrick, lab.dir(), "/ns/nsm-system/pod/nsmgr-0");
    let unix = socket.display().to_string();
    let mut targets: Vec<Vec<&str>> = vec![vec!["-unix", &unix]];
    for at in ["127.0.0.1:5001", "127.0.0.1:5002", "127.0.0.1:5004", "[::1]:5002", "127.0.0.1:7443"] {
        targets.push(vec!["-connect", at]);
    }
    for target in targets {
        let said = shake(&carrick, &target, &svid, true);
        assert!(said.contains("Verify return code: 0 (ok)"), "{target:?}:\n{said}");
        assert!(said.contains("ALPN protocol: h2"), "{target:?}:\n{said}");
        assert!(!said.contains("alert"), "{target:?}:\n{said}");
    }
    // Who shows nothing is refused, on the Unix socket as well.
    let said = shake(&carrick, &["-unix", &unix], &svid, false);
    assert!(said.contains("alert certificate required"), "{said}");

    let status = carrick.status().unwrap();
    let of_nsm: Vec<&str> = status["listeners"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|row| row["name"] == "nsm")
        .map(|row| row["address"].as_str().unwrap())
        .collect();
    assert_eq!(of_nsm, [format!("unix://{unix}").as_str(), "tcp://:5001", "tcp://:5002", "tcp://:5004"]);
    let check = carrick.run(&["check", "-c", carrick.config().to_str().unwrap()]).ok();
    let held = check.lines().filter(|l| l.contains("compat.nsm.listen") && l.contains("is held by")).count();
    assert_eq!(held, 4, "{check}");
}

#[test]
fn a_socket_is_cleaned_up_replaced_and_never_stolen() {
    if !needs(&["netns", "openssl"]) {
        return;
    }
    let lab = Lab::new();
    let (mut carrick, socket) = alone(&lab);
    carrick.up();
    // Killed, it leaves the file; the next start takes it.
    carrick.kill();
    assert!(socket.exists());
    carrick.up();

    // A second daemon that wants the same socket is told why not.
    let mut other = Carrick::prepare_named(&lab, &lab.c, "other");
    let listen = format!("compat: {{ nsm: {{ listen: [\"unix://{}\"] }} }}", socket.display());
    other.configure(&Settings::new(&lab.c, &other).line(&listen));
    other.start();
    assert!(!other.daemon_mut().wait(UP).expect("it ends").success());
    let log = other.daemon().log();
    assert!(log.contains("another process listens on") && log.contains("hint:"), "{log}");
    let svid = svid(&carrick, lab.dir(), "/nsc");
    let said = shake(&carrick, &["-unix", socket.to_str().unwrap()], &svid, true);
    assert!(said.contains("ALPN protocol: h2"), "the first one is unharmed:\n{said}");

    carrick.daemon().signal(Signal::TERM);
    assert!(carrick.daemon_mut().wait(UP).expect("it ends").success());
    assert!(!socket.exists(), "the file goes with the daemon");
}

#[test]
fn a_manifest_s_variables_win_over_the_file() {
    if !needs(&["netns"]) {
        return;
    }
    let lab = Lab::new();
    let mut carrick = Carrick::prepare(&lab, &lab.b);
    let settings = Settings::new(&lab.b, &carrick);
    carrick.configure(&settings.line("compat: { nsm: { listen: [\"tcp://:6001\"] } }"));
    carrick.start_with(&[
        ("NSM_LISTEN_ON", "tcp://:5004"),
        ("NSM_NAME", "nsmgr-proxy-7c9"),
        ("NSM_EXPIRE_PERIOD", "1s"),
        ("NSM_LOGLEVEL", "s3cret"),
    ]);
    carrick.wait_ready();
    let status = carrick.status().unwrap().to_string();
    assert!(status.contains("tcp://:5004") && !status.contains("tcp://:6001"), "{status}");
    let log = carrick.daemon().log();
    assert!(log.contains("NSM_EXPIRE_PERIOD") && log.contains("changes nothing here"), "{log}");
    assert!(log.contains("did you mean NSM_LOG_LEVEL?") && !log.contains("s3cret"), "{log}");
    // They still win when the file is read again: nothing has changed.
    let reload = carrick.run(&["reload"]).ok();
    assert_eq!(reload, "nothing changed");

    carrick.kill();
    carrick.start_with(&[("NSM_MAX_TOKEN_LIFETIME", "ten minutes")]);
    assert_eq!(carrick.daemon_mut().wait(UP).expect("it ends").code(), Some(2));
    let log = carrick.daemon().log();
    assert!(log.contains("NSM_MAX_TOKEN_LIFETIME") && log.contains("as Go writes it"), "{log}");
}

#[test]
fn the_printed_zone_loads_elsewhere_and_leads_to_the_domain() {
    if !needs(MESH) {
        return;
    }
    let mut mesh = Mesh::prepare(
        |a| a.import(SERVICE, &format!("127.0.0.1:{IMPORT}")),
        |b| b.export("echo", "tcp://10.0.0.5:7000", "spiffe://cloud.test/**"),
    );
    let _app = TcpApp::echo(&mesh.lab.b.ns, (LAN_APP, 7000).into());
    let config = mesh.b.config().display().to_string();
    let zone = mesh.b.run(&["dns", "zone", "-c", &config, "--nsm"]).ok();
    mesh.knot.publish(Zone::printed("onprem.test", zone + "\n"));
    mesh.b.up();
    mesh.a.up();
    mesh.a.wait_import(SERVICE, "up", UP);
    echoes(&mut mesh.a.connect(IMPORT).unwrap(), b"found");

    // As NSM asks: SRV of the bare name, then the address of the same name.
    for part in ["registry", "nsmgr-proxy"] {
        let name = format!("{part}.nsm-system.onprem.test");
        let srv = mesh.knot.dig(&[&name, "SRV"]);
        assert_eq!(srv, format!("0 0 7443 {name}."));
        assert_eq!(mesh.knot.dig(&[&name, "A"]), "203.0.113.2");
        assert_eq!(mesh.knot.dig(&[&name, "AAAA"]), "fd00:b::2");
    }
    let json = mesh.b.run(&["dns", "zone", "-c", &config, "--bare", "-o", "json"]).ok();
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    let kinds: Vec<&str> =
        json["records"].as_array().unwrap().iter().map(|r| r["type"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["SRV", "SRV", "A", "AAAA"]);
}

#[test]
fn the_own_dns_server_has_nsm_s_names_where_nsm_is_on() {
    if !needs(&["netns", "kdig"]) {
        return;
    }
    let lab = Lab::new();
    let mut carrick = Carrick::prepare(&lab, &lab.b);
    let listen = "listen: { control: \"[::]:7443\", tunnel: \"[::]:7443\", dns: \"127.0.0.1:53\" }";
    let settings = Settings::new(&lab.b, &carrick).line(listen);
    let ask = |carrick: &Carrick, part: &str| {
        let name = format!("{part}.nsm-system.onprem.test");
        carrick.ns().run("kdig", &["@127.0.0.1", "+short", &name, "SRV"]).ok()
    };
    carrick.configure(&settings);
    carrick.up();
    assert_eq!(ask(&carrick, "registry"), "");
    carrick.kill();
    carrick.configure(&settings.line("compat: { nsm: { listen: [\"tcp://:5002\", \"tcp://:5004\"] } }"));
    carrick.up();
    within(UP, "the names to be served", || (!ask(&carrick, "registry").is_empty()).then_some(()));
    assert_eq!(ask(&carrick, "registry"), "0 0 5002 registry.nsm-system.onprem.test.");
    assert_eq!(ask(&carrick, "nsmgr-proxy"), "0 0 5004 nsmgr-proxy.nsm-system.onprem.test.");
}
