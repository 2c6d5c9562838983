//! Who is let in and who is believed: DNS may say anything.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "test code")]

use std::{
    io::{Read, Write},
    time::Duration,
};

use carrick_tests::lab::{
    Carrick, LAN_APP, MESH, Mesh, PORT, Settings, TcpApp, Zone, echoes, needs, try_echo, within_or,
};
use serde_json::Value;

const UP: Duration = Duration::from_secs(15);
const SERVICE: &str = "echo@onprem.test";
const IMPORT: u16 = 17000;

/// What site a wants everywhere here.
fn imports(settings: Settings) -> Settings {
    settings.import(SERVICE, &format!("127.0.0.1:{IMPORT}"))
}

fn exports(settings: Settings) -> Settings {
    settings.export("echo", "tcp://10.0.0.5:7000", "spiffe://cloud.test/**")
}

/// Both sites, the service, and the import up.
fn running() -> (Mesh, TcpApp) {
    let mesh = Mesh::start(imports, exports);
    let app = TcpApp::echo(&mesh.lab.b.ns, (LAN_APP, 7000).into());
    mesh.a.wait_import(SERVICE, "up", UP);
    (mesh, app)
}

/// The failed step of `carrick explain`, with what it says for people.
#[track_caller]
fn explained(carrick: &Carrick, service: &str) -> (Value, String) {
    let json = carrick.run(&["explain", service, "-o", "json"]);
    assert_eq!(json.code, 4, "{json}");
    let report: Value = serde_json::from_str(&json.stdout).unwrap();
    let step =
        report["steps"].as_array().unwrap().iter().find(|s| s["verdict"] == "failed").cloned().unwrap();
    assert!(
        step["hint"].as_str().is_some_and(|hint| !hint.is_empty()),
        "a failed step says what to do: {step}"
    );
    (step, carrick.run(&["explain", service]).failed())
}

#[track_caller]
fn says(text: &str, what: &[&str]) {
    for word in what {
        assert!(text.contains(word), "`{word}` is missing:\n{text}");
    }
}

/// A flow through the import is reset before it carries anything.
#[track_caller]
fn refuses(carrick: &Carrick) {
    let read = carrick.connect(IMPORT).and_then(|mut flow| flow.read(&mut [0]));
    read.expect_err("no byte and no clean end comes through");
}

#[test]
fn a_peer_with_another_root_is_not_believed() {
    if !needs(MESH) {
        return;
    }
    let mut mesh = Mesh::prepare(imports, exports);
    let impostor = Carrick::prepare_named(&mesh.lab, &mesh.lab.b, "another-root-of-onprem");
    let settings = Settings::new(&mesh.lab.a, &mesh.a).trust_bundle("onprem.test", &impostor.bundle());
    mesh.a.configure(&imports(settings));
    mesh.b.up();
    mesh.a.up();
    let row = mesh.a.wait_import(SERVICE, "down", UP);
    says(&row.to_string(), &["onprem.test"]);
    refuses(&mesh.a);
    let (step, text) = explained(&mesh.a, SERVICE);
    assert_eq!(step["step"], "trust", "{step}");
    says(&text, &["203.0.113.2:7443", "onprem.test"]);

    // The operator mends it while the daemon runs.
    let settings = Settings::new(&mesh.lab.a, &mesh.a).trust(&mesh.b);
    mesh.a.configure(&imports(settings));
    mesh.a.reload();
    let _app = TcpApp::echo(&mesh.lab.b.ns, (LAN_APP, 7000).into());
    mesh.a.wait_import(SERVICE, "up", UP);
    echoes(&mut mesh.a.connect(IMPORT).unwrap(), b"trusted now");
}

#[test]
fn a_domain_that_dns_points_at_another_trusted_domain_is_not_believed() {
    if !needs(MESH) {
        return;
    }
    let mut mesh = Mesh::prepare(imports, exports);
    let mut partner = Carrick::prepare(&mesh.lab, &mesh.lab.c);
    let settings = Settings::new(&mesh.lab.c, &partner).trust(&mesh.a);
    // It would even serve: the same name, and site a may use it.
    partner.configure(&settings.export("echo", "tcp://10.0.0.5:7000", "spiffe://cloud.test/**"));
    let _theirs = TcpApp::echo(&mesh.lab.c.ns, (LAN_APP, 7000).into());
    let settings = Settings::new(&mesh.lab.a, &mesh.a).trust(&mesh.b).trust(&partner);
    mesh.a.configure(&imports(settings));
    let (addr, addr6) = (mesh.lab.c.addr, mesh.lab.c.addr6);
    mesh.knot.publish(Zone::gateway("onprem.test", PORT, addr, addr6));

    mesh.b.up();
    partner.up();
    mesh.a.up();
    let row = mesh.a.wait_import(SERVICE, "down", UP);
    says(&row.to_string(), &["onprem.test", "partner.test"]);
    refuses(&mesh.a);
    let (step, text) = explained(&mesh.a, SERVICE);
    assert_eq!(step["step"], "trust", "{step}");
    says(&text, &["`onprem.test` was called", "is of `partner.test`", "198.18.3.2:7443"]);
    mesh.a.run(&["explain", "echo@partner.test"]).ok();
}

#[test]
fn a_caller_that_is_not_on_the_list_is_denied() {
    if !needs(MESH) {
        return;
    }
    let export = |s: Settings| {
        s.export("echo", "tcp://10.0.0.5:7000", "spiffe://partner.test/**").export(
            "open",
            "tcp://10.0.0.5:7000",
            "spiffe://cloud.test/**",
        )
    };
    let mesh = Mesh::start(|a| imports(a).import("open@onprem.test", "127.0.0.1:17001"), export);
    let _app = TcpApp::echo(&mesh.lab.b.ns, (LAN_APP, 7000).into());
    mesh.a.wait_import("open@onprem.test", "up", UP);
    let row = mesh.a.wait_import(SERVICE, "down", UP);
    says(row["why"].as_str().unwrap(), &["echo"]);
    refuses(&mesh.a);
    // Whether the registry shows it or not is the exporting domain's business; the way out is the same.
    let (step, text) = explained(&mesh.a, SERVICE);
    assert!(step["step"] == "find" || step["step"] == "request", "{step}");
    says(&text, &["echo", "onprem.test", "allow"]);
    echoes(&mut mesh.a.connect(17001).unwrap(), b"the other service is not touched");
}

#[test]
fn a_service_or_a_domain_that_does_not_exist_is_named() {
    if !needs(MESH) {
        return;
    }
    let mesh = Mesh::start(|a| a.import("nosuch@onprem.test", &format!("127.0.0.1:{IMPORT}")), exports);
    let row = mesh.a.wait_import("nosuch@onprem.test", "down", UP);
    says(row["why"].as_str().unwrap(), &["nosuch"]);
    refuses(&mesh.a);
    let (step, text) = explained(&mesh.a, "nosuch@onprem.test");
    assert_eq!(step["step"], "find", "{step}");
    says(&text, &["nosuch", "onprem.test"]);

    let (step, text) = explained(&mesh.a, "echo@partner.test");
    assert!(step["step"] == "trust", "nobody trusts partner.test here: {step}");
    says(&text, &["partner.test", "carrick trust export"]);
    let (_, text) = explained(&mesh.a, "echo@nowhere.onprem.test");
    says(&text, &["nowhere.onprem.test"]);
}

#[test]
fn a_right_that_is_taken_away_ends_what_it_allowed() {
    if !needs(MESH) {
        return;
    }
    let (mesh, _app) = running();
    let mut flow = mesh.a.connect(IMPORT).unwrap();
    echoes(&mut flow, b"allowed");
    let settings = Settings::new(&mesh.lab.b, &mesh.b).trust(&mesh.a);
    mesh.b.configure(&settings.export("echo", "tcp://10.0.0.5:7000", "spiffe://partner.test/**"));
    mesh.b.reload();
    flow.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let ended = flow.read(&mut [0]).expect_err("a flow does not outlive the right to it");
    assert_eq!(ended.kind(), std::io::ErrorKind::ConnectionReset);
    mesh.a.wait_import(SERVICE, "down", UP);
    refuses(&mesh.a);
}

/// Site b's bundle as it is now, imported at site a.
fn import_again(mesh: &Mesh) {
    std::fs::write(mesh.b.bundle(), mesh.b.run(&["trust", "export"]).ok()).unwrap();
    mesh.a.reload();
}

/// One step of a rotation at site b; what each of its roots does then.
fn rotate(mesh: &Mesh, step: &str) -> Vec<String> {
    let done: Value =
        serde_json::from_str(&mesh.b.run(&["trust", "rotate", step, "-o", "json"]).ok()).unwrap();
    assert_eq!(done["in_force"], true, "the daemon was told: {done}");
    let shown: Value = serde_json::from_str(&mesh.b.run(&["trust", "show", "-o", "json"]).ok()).unwrap();
    let states = shown["bundles"][0]["states"].as_array().unwrap();
    assert_eq!(states.len(), done["roots"].as_array().unwrap().len(), "{shown}");
    states.iter().map(|state| state.as_str().unwrap().to_owned()).collect()
}

#[test]
fn a_domain_takes_another_root_and_nothing_is_cut() {
    if !needs(MESH) {
        return;
    }
    let (mut mesh, _app) = running();
    let mut flow = mesh.a.connect(IMPORT).unwrap();
    echoes(&mut flow, b"the first root");

    assert_eq!(rotate(&mesh, "prepare"), ["active", "prepared"]);
    import_again(&mesh);
    assert_eq!(rotate(&mesh, "activate"), ["active", "old"]);
    echoes(&mut flow, b"the flow of before");
    // All that is new is under the new root now: the control connection and the tunnel of a daemon that starts.
    mesh.b.kill();
    mesh.b.up();
    let ended = flow.write_all(b"into the tunnel of before").and_then(|()| flow.read(&mut [0]));
    ended.expect_err("the flow ends with the daemon that carried it");
    // It has no connection of before either: site a hears that from the first flow, if not earlier, and asks again.
    within_or(UP, "the second root", || try_echo(&mut mesh.a.connect(IMPORT)?, b"the second root"));
    let mut flow = mesh.a.connect(IMPORT).unwrap();

    assert_eq!(rotate(&mesh, "revoke"), ["active"]);
    echoes(&mut flow, b"a flow under the root that stays");
    import_again(&mesh);
    mesh.a.kill();
    mesh.a.up();
    mesh.a.wait_import(SERVICE, "up", UP);
    echoes(&mut mesh.a.connect(IMPORT).unwrap(), b"and a daemon that knows the second root only");
}

#[test]
fn a_peer_that_has_not_imported_the_new_root_refuses_it_until_it_has() {
    if !needs(MESH) {
        return;
    }
    let (mut mesh, _app) = running();
    mesh.b.run(&["trust", "rotate", "activate"]).failed();
    rotate(&mesh, "prepare");
    let refused = mesh.b.run(&["trust", "rotate", "prepare"]).failed();
    says(&refused, &["prepared", "carrick trust rotate activate"]);
    rotate(&mesh, "activate");
    mesh.b.kill();
    mesh.b.up();
    mesh.a.wait_import(SERVICE, "down", UP);
    refuses(&mesh.a);
    let (step, _) = explained(&mesh.a, SERVICE);
    assert_eq!(step["step"], "trust", "{step}");
    import_again(&mesh);
    mesh.a.wait_import(SERVICE, "up", UP);
    within_or(UP, "a flow", || try_echo(&mut mesh.a.connect(IMPORT)?, b"imported"));
}
