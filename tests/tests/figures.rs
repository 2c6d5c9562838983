//! The tools that measure: they count what was there, and say so when there was nothing.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "test code")]

use std::{process::Command, time::Duration};

use carrick_tests::lab::{Daemon, Finished, LAN_APP, Lab, TcpApp, binary, needs};
use serde_json::Value;

const LOAD: &str = env!("CARGO_BIN_EXE_carrick-load");

fn serving() -> (Lab, Daemon) {
    let lab = Lab::new();
    let mut command = lab.b.ns.command(LOAD);
    command.args(["serve", "--listen", "0.0.0.0:9000"]);
    let mut server = Daemon::spawn(lab.dir(), "server", command);
    server.wait_for_log("serving", Duration::from_secs(5));
    (lab, server)
}

fn measured(lab: &Lab, args: &[&str]) -> Value {
    let to = lab.b.at(9000).to_string();
    let mut all = vec![args[0], "--to", &to, "--seconds", "0.3"];
    all.extend(&args[1..]);
    serde_json::from_str(&lab.a.ns.run(LOAD, &all).ok()).unwrap()
}

#[test]
fn the_load_generator_counts_what_arrives() {
    if !needs(&["netns"]) {
        return;
    }
    let (lab, _server) = serving();
    for args in [&["bulk"][..], &["bulk", "--flows", "8"], &["bulk", "--down"]] {
        let report = measured(&lab, args);
        let (rate, bytes) = (report["mbit_s"].as_f64().unwrap(), report["bytes"].as_f64().unwrap());
        assert!(rate > 100.0, "{args:?}: {report}");
        assert!((bytes * 8e-6 / report["seconds"].as_f64().unwrap() / rate - 1.0).abs() < 0.01, "{report}");
    }
    let report = measured(&lab, &["latency"]);
    assert!(report["count"].as_u64().unwrap() > 50, "{report}");
    assert!(report["p50_us"].as_f64() <= report["p99_us"].as_f64(), "{report}");
    let report = measured(&lab, &["churn"]);
    assert!(report["per_second"].as_f64().unwrap() > 50.0, "{report}");
    assert_eq!(report["failed"], 0, "{report}");
    let idle = lab.a.ns.run(LOAD, &["idle", "--to", &lab.b.at(9000).to_string(), "--flows", "500"]).ok();
    assert!(idle.contains("\"flows\":500"), "{idle}");
}

#[test]
fn the_load_generator_fails_where_nothing_comes_back() {
    if !needs(&["netns"]) {
        return;
    }
    let lab = Lab::new();
    let _mute = TcpApp::serve(&lab.b.ns, (LAN_APP, 9000).into(), drop);
    for command in ["bulk", "latency", "churn", "idle"] {
        let finished = lab.b.ns.run(LOAD, &[command, "--to", "10.0.0.5:9000", "--seconds", "0.2"]);
        assert!(!matches!(finished.code, 0 | 124), "{command}: {finished}");
    }
}

#[test]
fn the_benchmark_measures_all_three_and_prints_ratios() {
    if !needs(&["netns", "knotd", "kdig", "haproxy", "openssl"]) {
        return;
    }
    let file = std::env::temp_dir().join(format!("carrick-bench-{}.json", std::process::id()));
    let mut bench = Command::new("timeout");
    bench.args([
        "90",
        env!("CARGO_BIN_EXE_carrick-bench"),
        "--rounds",
        "1",
        "--seconds",
        "0.3",
        "--idle",
        "200",
    ]);
    let table = Finished::of(bench.arg("--json").arg(&file).env("CARRICK_BIN", binary())).ok();
    let report: Value = serde_json::from_str(&std::fs::read_to_string(&file).unwrap()).unwrap();
    std::fs::remove_file(&file).unwrap();
    assert_eq!(report["failures"].as_array().unwrap().len(), 0, "{table}");
    let figures = report["figures"].as_array().unwrap();
    for name in ["tcp1", "tcp8", "tcp64", "rr p50", "crr16"] {
        let figure = figures.iter().find(|f| f["name"] == name).unwrap_or_else(|| panic!("{name}: {table}"));
        for subject in ["direct", "haproxy", "carrick"] {
            assert!(
                figure["subjects"][subject]["median"].as_f64().unwrap() > 0.0,
                "{name} {subject}: {table}"
            );
        }
    }
    assert!(table.contains("/haproxy") && table.contains("added by the Carrick pair"), "{table}");
}
