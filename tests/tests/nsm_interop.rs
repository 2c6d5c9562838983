//! Network Service Mesh's own clients, endpoints and registries meet Carrick. What the cases are and which of NSM's tests
//! they stand for: tests/interop/nsm/README.md.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "test code")]

use carrick_tests::lab::{
    Carrick, Lab, MESH, Mesh, NSM, PORT, Settings, Workload, needs, nsm_interop, nsm_interop_here,
};
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

/// NSM sdk: registry/chains/memory, registry/common/refresh and expire, tools/matchutils, the client_allowed policy. The
/// registrants are of the domain itself; NSM's default policies judge what the registry answers.
#[test]
fn nsms_registry_clients_register_watch_refresh_expire_and_unregister() {
    if !needs(&[&["netns"], NSM].concat()) {
        return;
    }
    let lab = Lab::new();
    let mut carrick = Carrick::prepare(&lab, &lab.a);
    carrick.configure(&Settings::new(&lab.a, &carrick));
    carrick.up();
    let [owner, thief] = ["owner", "thief"].map(|name| Workload::of(&carrick, "cloud.test", name));
    let trust = format!("cloud.test={}", carrick.bundle().display());
    let registry = format!("tcp://{}", lab.a.at(PORT));
    let passed = nsm_interop(
        carrick.ns(),
        &[
            &["registry", "all", "-trust", &trust, "-registry", &registry],
            &["-owner", owner.dir().to_str().unwrap(), "-thief", thief.dir().to_str().unwrap()][..],
        ]
        .concat(),
    );
    let names: Vec<&str> = passed.iter().map(|line| line["case"].as_str().unwrap()).collect();
    assert_eq!(names, ["expire", "match", "refresh", "register", "stolen", "unregister", "watch"]);
}

/// NSM sdk: TestNSMGR_InterdomainUseCase, networkservice/common/refresh and monitor; NSM deployments: heal after the death of
/// an endpoint. NSM's client chain asks the daemon of its domain, NSM's endpoint chain is registered with the other's.
#[test]
fn nsms_client_reaches_nsms_endpoint_through_two_domains() {
    if !needs(&[MESH, NSM].concat()) {
        return;
    }
    let shows = "registry: { show: [ { who: [\"spiffe://cloud.test/**\"], services: [\"*\"] } ] }";
    let mesh = Mesh::start(|a| a, |b| b.line(shows));
    let client = Workload::of(&mesh.a, "cloud.test", "nsc");
    let endpoint = Workload::of(&mesh.b, "onprem.test", "nse");
    let near = format!("cloud.test={}", mesh.a.bundle().display());
    let far = format!("onprem.test={}", mesh.b.bundle().display());
    let manager = format!("tcp://{}", mesh.lab.a.at(PORT));
    let registry = format!("tcp://{}", mesh.lab.b.at(PORT));
    // Client, two gateways, endpoint. The endpoint's process stands in site a, but is onprem.test's by its SVID.
    let host = mesh.lab.a.addr.to_string();
    let passed = nsm_interop(
        mesh.a.ns(),
        &[
            &["connection", "all", "-trust", &near, "-trust", &far, "-manager", &manager][..],
            &["-registry", &registry, "-domain", "onprem.test", "-segments", "4", "-endpoint-host", &host],
            &["-client", client.dir().to_str().unwrap(), "-endpoint", endpoint.dir().to_str().unwrap()],
        ]
        .concat(),
    );
    let names: Vec<&str> = passed.iter().map(|line| line["case"].as_str().unwrap()).collect();
    assert_eq!(names, ["auto-refresh", "heal", "monitor", "request"]);
}
