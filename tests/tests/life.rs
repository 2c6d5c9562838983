//! Start, reload, drain, end; and the configs that must be refused.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::disallowed_methods,
    reason = "test code; a slow flow sleeps"
)]

use std::{
    io::{Read, Write},
    net::Shutdown,
    time::Duration,
};

use carrick_tests::lab::{
    Carrick, LAN_APP, Lab, MESH, Mesh, Settings, Signal, TcpApp, echoes, needs, within,
};

const UP: Duration = Duration::from_secs(15);
const SERVICE: &str = "app@onprem.test";
const IMPORT: u16 = 17000;

fn exports(settings: Settings) -> Settings {
    settings.export("app", "tcp://10.0.0.5:7000", "spiffe://cloud.test/**")
}

fn imports(settings: Settings) -> Settings {
    settings.import(SERVICE, &format!("127.0.0.1:{IMPORT}"))
}

fn mesh() -> Mesh {
    let mesh = Mesh::start(imports, exports);
    mesh.a.wait_import(SERVICE, "up", UP);
    mesh
}

/// Twenty blocks, a tenth of a second apart.
fn slow_download(mesh: &Mesh) -> TcpApp {
    TcpApp::serve(&mesh.lab.b.ns, (LAN_APP, 7000).into(), |mut stream| {
        for i in 0..20 {
            if stream.write_all(&vec![i; 100_000]).is_err() {
                return;
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        let _ = stream.shutdown(Shutdown::Write);
        let _ = stream.read(&mut [0]);
    })
}

#[test]
fn a_daemon_told_to_stop_lets_running_flows_finish() {
    if !needs(MESH) {
        return;
    }
    // The exporting one, and the importing one.
    for stop_exporter in [true, false] {
        let mut mesh = mesh();
        let _app = slow_download(&mesh);
        let mut flow = mesh.a.connect(IMPORT).unwrap();
        flow.read_exact(&mut [0; 100_000]).unwrap();
        let stopping = if stop_exporter { &mut mesh.b } else { &mut mesh.a };
        stopping.daemon().signal(Signal::TERM);
        // No new flows meanwhile, whichever end drains.
        within(Duration::from_secs(2), "new flows to be refused", || {
            let read = mesh.a.connect(IMPORT).and_then(|mut flow| {
                flow.set_read_timeout(Some(Duration::from_millis(300)))?;
                flow.read(&mut [0])
            });
            read.is_err().then_some(())
        });
        let mut rest = Vec::new();
        flow.read_to_end(&mut rest).unwrap();
        assert_eq!(rest.len(), 1_900_000, "exporter: {stop_exporter}");
        drop(flow);
        let stopping = if stop_exporter { &mut mesh.b } else { &mut mesh.a };
        let status =
            stopping.daemon_mut().wait(Duration::from_secs(10)).expect("it ends when the last flow has");
        assert!(status.success(), "{status}");
    }
}

#[test]
fn a_reload_adds_and_removes_imports_without_touching_others() {
    if !needs(MESH) {
        return;
    }
    let mesh = Mesh::start(imports, |b| {
        exports(b).export("app-too", "tcp://10.0.0.5:7000", "spiffe://cloud.test/**")
    });
    mesh.a.wait_import(SERVICE, "up", UP);
    let _app = TcpApp::echo(&mesh.lab.b.ns, (LAN_APP, 7000).into());
    let mut flow = mesh.a.connect(IMPORT).unwrap();
    echoes(&mut flow, b"before");

    let base = || Settings::new(&mesh.lab.a, &mesh.a).trust(&mesh.b);
    mesh.a.configure(&imports(base()).import("app-too@onprem.test", "127.0.0.1:17001"));
    mesh.a.reload();
    within(UP, "the second listener", || {
        let mut second = mesh.a.connect(17001).ok()?;
        carrick_tests::lab::try_echo(&mut second, b"a second door").ok()
    });
    echoes(&mut flow, b"after the first reload");

    mesh.a.configure(&imports(base()));
    mesh.a.run(&["reload"]).ok();
    within(UP, "the second listener to go", || mesh.a.connect(17001).is_err().then_some(()));
    echoes(&mut flow, b"after the second");

    // A faulty file changes nothing and says so.
    std::fs::write(mesh.a.config(), "domain: cloud.test\nimport: []\n").unwrap();
    let refused = mesh.a.run(&["reload"]).failed();
    assert!(refused.contains("imports"), "it names the key that was meant: {refused}");
    echoes(&mut flow, b"after a faulty file");
    echoes(&mut mesh.a.connect(IMPORT).unwrap(), b"and for new flows");
}

#[test]
fn every_flow_is_logged_and_counted() {
    if !needs(MESH) {
        return;
    }
    let mut mesh = mesh();
    let _app = TcpApp::echo(&mesh.lab.b.ns, (LAN_APP, 7000).into());
    let mut flow = mesh.a.connect(IMPORT).unwrap();
    echoes(&mut flow, &[0; 4321]);
    flow.shutdown(Shutdown::Write).unwrap();
    assert_eq!(flow.read(&mut [0]).unwrap(), 0);
    drop(flow);
    for daemon in [&mut mesh.a, &mut mesh.b] {
        let line = daemon.daemon_mut().wait_for_log("4321", Duration::from_secs(5));
        for field in ["app", "onprem.test", "cloud.test"] {
            assert!(line.contains(field), "`{field}` is missing: {line}");
        }
        let metrics = daemon.metrics();
        assert!(metrics.lines().any(|l| l.starts_with("carrick_") && l.contains("flows")), "{metrics}");
        assert!(metrics.trim_end().ends_with("# EOF"), "OpenMetrics ends so");
    }
}

#[test]
fn live_and_ready_are_two_things() {
    if !needs(&[MESH, &["curl"]].concat()) {
        return;
    }
    let mesh = mesh();
    for path in ["livez", "readyz"] {
        let url = format!("http://127.0.0.1:9901/{path}");
        mesh.a.ns().run("curl", &["-sf", "--max-time", "5", &url]).ok();
    }
}

#[test]
fn a_config_that_cannot_work_is_refused_with_the_next_step() {
    if !needs(MESH) {
        return;
    }
    let lab = Lab::new();
    let carrick = Carrick::prepare(&lab, &lab.a);
    let base = || Settings::new(&lab.a, &carrick);
    let refused = |what: &str, settings: Settings, code: i32, words: &[&str]| {
        carrick.configure(&settings);
        let finished = carrick.run(&["up", "-c", carrick.config().to_str().unwrap()]);
        assert_eq!(finished.code, code, "{what}: {finished}");
        for word in words {
            assert!(finished.stderr.contains(word), "{what}: `{word}` is missing: {finished}");
        }
    };
    refused("a misspelt key", base().raw("export: []"), 2, &["carrick.yaml:", "export", "exports"]);
    refused("a bad value", base().raw("drain_timeout: soon"), 2, &["drain_timeout", "soon"]);
    refused("a bad service", base().import("post gres@onprem.test", "127.0.0.1:1"), 2, &["post gres"]);
    let two = base().raw("export: []").raw("import: []");
    refused("two faults at once", two, 2, &["exports", "imports"]);
    let missing = base().trust_bundle("onprem.test", std::path::Path::new("/nonexistent/onprem.json"));
    refused("a bundle that is not there", missing, 1, &["/nonexistent/onprem.json", "onprem.test"]);
    let empty = lab.dir().join("empty.json");
    std::fs::write(&empty, "{}").unwrap();
    refused(
        "a bundle that is none",
        base().trust_bundle("onprem.test", &empty),
        1,
        &["empty.json", "onprem.test"],
    );
    let _taken = lab.a.ns.listen(([0, 0, 0, 0], 7443).into());
    let v4 = "listen: { control: \"0.0.0.0:7443\", tunnel: \"0.0.0.0:7443\" }";
    refused("a port that is taken", base().line(v4), 1, &["7443", "control"]);
    let state = "state_dir: /proc/carrick";
    refused("a state directory that cannot be", base().line(state), 1, &["/proc/carrick"]);
}

#[test]
fn two_daemons_do_not_share_a_state_directory() {
    if !needs(MESH) {
        return;
    }
    let lab = Lab::new();
    let mut carrick = Carrick::prepare(&lab, &lab.a);
    carrick.configure(&Settings::new(&lab.a, &carrick));
    carrick.up();
    let second = carrick.run(&["up", "-c", carrick.config().to_str().unwrap()]).failed();
    assert!(second.contains(&carrick.daemon().pid().to_string()), "it names the process: {second}");
    carrick.run(&["status"]).ok();
}
