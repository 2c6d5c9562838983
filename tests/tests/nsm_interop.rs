//! Network Service Mesh's own clients, endpoints and registries meet Carrick. What the cases are and which of NSM's tests
//! they stand for: tests/interop/nsm/README.md.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "test code")]

use carrick_tests::lab::{MESH, Mesh, NSM, PORT, Workload, needs, nsm_interop, nsm_interop_here};
use serde_json::Value;

/// The cases themselves are right: NSM's own registry, managers and proxies pass every one.
#[test]
fn nsms_own_parts_pass_the_cases() {
    if !needs(NSM) {
        return;
    }
    let passed = nsm_interop_here(&["self-check"]);
    assert!(passed.len() >= 11, "{passed:?}");
    assert!(passed.iter().all(|line| line["ok"] == true), "{passed:?}");
}

/// NSM sdk: registry/chains/memory, Find of services and endpoints.
#[test]
fn nsms_registry_clients_find_what_a_domain_exports() {
    if !needs(&[MESH, NSM].concat()) {
        return;
    }
    let mesh = Mesh::start(
        |a| a,
        |b| {
            b.export("postgres", "tcp://10.0.0.5:5432", "spiffe://cloud.test/**").export(
                "other",
                "tcp://10.0.0.5:7000",
                "spiffe://cloud.test/**",
            )
        },
    );
    let caller = Workload::of(&mesh.a, "cloud.test", "nsc");
    let trust = format!("onprem.test={}", mesh.b.bundle().display());
    let registry = format!("tcp://{}", mesh.lab.b.at(PORT));
    let find = |service: &str| -> Value {
        let flags = ["-caller", caller.dir().to_str().unwrap(), "-trust", &trust, "-registry", &registry];
        let mut answers = nsm_interop(mesh.a.ns(), &[&["find", "-service", service], &flags[..]].concat());
        assert_eq!(answers.len(), 1, "{answers:?}");
        answers.remove(0)
    };

    let found = find("postgres");
    assert_eq!(found["services"][0]["name"], "postgres", "{found}");
    assert_eq!(found["services"].as_array().unwrap().len(), 1, "{found}");
    let endpoints = found["endpoints"].as_array().unwrap();
    assert_eq!(endpoints.len(), 1, "{found}");
    assert_eq!(endpoints[0]["network_service_names"][0], "postgres", "{found}");
    assert!(!endpoints[0]["name"].as_str().unwrap().is_empty(), "{found}");

    let none = find("no-such-service");
    assert!(none["services"].is_null() && none["endpoints"].is_null(), "{none}");
}
