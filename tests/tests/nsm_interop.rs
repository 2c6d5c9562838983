//! Network Service Mesh's own clients, endpoints and registries meet Carrick. What the cases are and which of NSM's tests
//! they stand for: tests/interop/nsm/README.md.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "test code")]

use carrick_tests::lab::{
    Carrick, Knot, Lab, MESH, Mesh, NSM, NSM_REGISTRY, NsmDomain, NsmWay, PORT, Settings, Site, Workload,
    Zone, needs, nsm_interop, nsm_interop_here, nsm_registry, shows,
};
use serde_json::Value;

/// The ports of NSM's parts.
const MANAGER: u16 = 5001;
const PROXY: u16 = 5004;
const REGISTRY_PROXY: u16 = 5005;

/// The cases themselves are right: NSM's own registry, managers and proxies pass every one.
#[test]
fn nsms_own_parts_pass_the_cases() {
    if !needs(NSM) {
        return;
    }
    let passed = nsm_interop_here(&["self-check"]);
    assert!(passed.len() >= 16, "{passed:?}");
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

/// Runs cases on a way and returns the names of those that passed, which are all that were run.
#[track_caller]
fn passed(way: &NsmWay<'_>, cases: &str) -> Vec<String> {
    let flags = way.flags();
    let args: Vec<&str> = ["connection", cases].into_iter().chain(flags.iter().map(String::as_str)).collect();
    let passed = nsm_interop(&way.site.ns, &args);
    passed.iter().map(|line| line["case"].as_str().unwrap().to_owned()).collect()
}

/// NSM sdk: TestNSMGR_InterdomainUseCase, networkservice/common/refresh and monitor; NSM deployments: heal after the death of
/// an endpoint. NSM's client chain asks the daemon of its domain, NSM's endpoint chain is registered with the other's.
#[test]
fn nsms_client_reaches_nsms_endpoint_through_two_domains() {
    if !needs(&[MESH, NSM].concat()) {
        return;
    }
    let mesh = Mesh::start(|a| a, |b| b.line(&shows("cloud.test")));
    assert_eq!(passed(&NsmWay::through(&mesh), "all"), ["auto-refresh", "heal", "monitor", "request"]);
}

/// NSM sdk: TestNSMGR_InterdomainUseCase, with the second domain run by NSM's parts alone: its memory registry, nsmgr-proxy, manager
/// and forwarder answer the daemon, found by their names in the DNS.
#[test]
fn a_domain_of_nsms_parts_answers_carrick() {
    if !needs(&[MESH, NSM].concat()) {
        return;
    }
    let lab = Lab::new();
    let zone = Zone::nsm("onprem.test", NSM_REGISTRY, Some(PROXY), lab.b.addr);
    let _knot = Knot::start(&lab, [zone]);
    // Of the second domain there is the root alone.
    let (mut near, far) = (Carrick::prepare(&lab, &lab.a), Carrick::prepare(&lab, &lab.b));
    near.configure(&Settings::new(&lab.a, &near).trust(&far));
    near.up();
    let _parts = NsmDomain::start(&lab.b, &far, &[&near], &[]);
    let way = NsmWay {
        site: &lab.a,
        client: (&near, "cloud.test"),
        endpoint: (&far, "onprem.test"),
        manager: format!("tcp://{}", lab.a.at(PORT)),
        // The manager: it passes registrations on to the registry.
        registry: format!("tcp://{}", lab.b.at(MANAGER)),
        domain: "onprem.test",
        // Client, the daemon, nsmgr-proxy, manager, forwarder, endpoint.
        segments: 6,
        more: &[],
    };
    assert_eq!(passed(&way, "all"), ["auto-refresh", "heal", "monitor", "request"]);
}

/// Two domains of NSM's, cloud.test and onprem.test, in which daemons may take the place of some parts.
struct Pair {
    near: Carrick,
    far: Carrick,
    lab: Lab,
    _knot: Knot,
}

impl Pair {
    /// No part and no daemon runs yet. The DNS has NSM's names, with NSM's ports or those given.
    fn new(near: (u16, u16), far: (u16, u16)) -> Self {
        let lab = Lab::new();
        let zone = |site: &Site, (registry, proxy)| Zone::nsm(site.domain, registry, Some(proxy), site.addr);
        let knot = Knot::start(&lab, [zone(&lab.a, near), zone(&lab.b, far)]);
        let (near, far) = (Carrick::prepare(&lab, &lab.a), Carrick::prepare(&lab, &lab.b));
        Self { near, far, lab, _knot: knot }
    }

    fn near_settings(&self) -> Settings {
        Settings::new(&self.lab.a, &self.near).trust(&self.far)
    }

    fn far_settings(&self) -> Settings {
        Settings::new(&self.lab.b, &self.far).trust(&self.near).line(&shows("cloud.test"))
    }

    fn near_parts(&self, instead: &[&str]) -> NsmDomain {
        NsmDomain::start(&self.lab.a, &self.near, &[&self.far], instead)
    }

    fn far_parts(&self, instead: &[&str]) -> NsmDomain {
        NsmDomain::start(&self.lab.b, &self.far, &[&self.near], instead)
    }

    /// From a client at the manager of the first domain to an endpoint at the manager of the second.
    fn way(&self) -> NsmWay<'_> {
        NsmWay {
            site: &self.lab.a,
            client: (&self.near, "cloud.test"),
            endpoint: (&self.far, "onprem.test"),
            manager: format!("tcp://{}", self.lab.a.at(MANAGER)),
            registry: format!("tcp://{}", self.lab.b.at(MANAGER)),
            domain: "onprem.test",
            // Client, manager, forwarder, proxy; proxy, manager, forwarder, endpoint.
            segments: 8,
            more: &[],
        }
    }
}

/// A proxy of a domain whose registry is NSM's: nsmgr-proxy and registry-proxy in one.
fn proxy_of(site: &Site, more: &str) -> String {
    format!(
        "compat: {{ nsm: {{ listen: [\"tcp://:5004\"], registry_url: \"{}\"{more} }} }}",
        site.at(NSM_REGISTRY)
    )
}

/// NSM sdk: TestNSMGR_InterdomainUseCase, with a daemon in the place of each domain's nsmgr-proxy and registry-proxy.
#[test]
fn carrick_is_the_proxy_between_two_domains_of_nsm() {
    if !needs(&[MESH, NSM].concat()) {
        return;
    }
    let mut pair = Pair::new((PROXY, PROXY), (PROXY, PROXY));
    let at = |site: &Site| format!("tcp://{}", site.at(PROXY));
    let _near = pair.near_parts(&["-proxy", &at(&pair.lab.a)]);
    let _far = pair.far_parts(&["-proxy", &at(&pair.lab.b)]);
    pair.near.configure(&pair.near_settings().line(&proxy_of(&pair.lab.a, "")));
    pair.far.configure(&pair.far_settings().line(&proxy_of(&pair.lab.b, "")));
    pair.near.up();
    pair.far.up();
    assert_eq!(passed(&pair.way(), "all"), ["auto-refresh", "heal", "monitor", "request"]);
}

/// The same with NSM's own proxies on the client's side: they find and call the daemon as they would call NSM's proxy.
#[test]
fn nsms_proxies_call_carrick_in_front_of_nsms_registry() {
    if !needs(&[MESH, NSM].concat()) {
        return;
    }
    let mut pair = Pair::new((NSM_REGISTRY, PROXY), (PROXY, PROXY));
    let _near = pair.near_parts(&[]);
    let _far = pair.far_parts(&["-proxy", &format!("tcp://{}", pair.lab.b.at(PROXY))]);
    pair.far.configure(&pair.far_settings().line(&proxy_of(&pair.lab.b, "")));
    pair.far.up();
    assert_eq!(passed(&pair.way(), "all"), ["auto-refresh", "heal", "monitor", "request"]);
}

/// The daemon in the place of nsmgr-proxy alone: NSM's registry-proxy stays in charge of names with an `@`.
#[test]
fn nsms_registry_proxy_stays_behind_carrick() {
    if !needs(&[MESH, NSM].concat()) {
        return;
    }
    let mut pair = Pair::new((NSM_REGISTRY, PROXY), (NSM_REGISTRY, PROXY));
    let _near = pair.near_parts(&["-registry-proxy", "-proxy", &format!("tcp://{}", pair.lab.a.at(PROXY))]);
    let _far = pair.far_parts(&[]);
    let behind = format!(", registry_proxy_url: \"{}\"", pair.lab.a.at(REGISTRY_PROXY));
    pair.near.configure(&pair.near_settings().line(&proxy_of(&pair.lab.a, &behind)));
    pair.near.up();
    assert_eq!(passed(&pair.way(), "all"), ["auto-refresh", "heal", "monitor", "request"]);
}

/// The daemon in the place of the registry alone: NSM's nsmgr-proxy stays in charge of names with an `@`, and connections do not
/// pass the daemon.
#[test]
fn nsms_proxies_stay_behind_carrick_s_registry() {
    if !needs(&[MESH, NSM].concat()) {
        return;
    }
    let mut pair = Pair::new((NSM_REGISTRY, PROXY), (NSM_REGISTRY, PROXY));
    let behind = pair.lab.a.at(PROXY);
    let compat =
        format!("compat: {{ nsm: {{ listen: [\"tcp://:5002\"], proxy_registry_url: \"{behind}\" }} }}");
    pair.near.configure(&pair.near_settings().line(&compat));
    pair.near.up();
    let _near = pair.near_parts(&["-registry", &format!("tcp://{}", pair.lab.a.at(NSM_REGISTRY))]);
    let _far = pair.far_parts(&[]);
    assert_eq!(passed(&pair.way(), "all"), ["auto-refresh", "heal", "monitor", "request"]);
}

/// The registry cases with NSM's memory registry in charge behind the daemon: what is registered with the daemon is registered there,
/// with all tokens, and what is there is found here.
#[test]
fn registrations_pass_carrick_to_nsms_registry() {
    if !needs(&[&["netns"], NSM].concat()) {
        return;
    }
    let lab = Lab::new();
    let mut carrick = Carrick::prepare(&lab, &lab.a);
    let [owner, thief] = ["owner", "thief"].map(|name| Workload::of(&carrick, "cloud.test", name));
    let trust = carrick.trust_flag();
    let _registry = nsm_registry(&lab.a, &carrick, &[]);
    carrick.configure(&Settings::new(&lab.a, &carrick).line(&proxy_of(&lab.a, "")));
    carrick.up();
    let at = format!("tcp://{}", lab.a.at(PORT));
    let passed = nsm_interop(
        carrick.ns(),
        &[
            &["registry", "all", "-trust", &trust, "-registry", &at],
            &["-owner", owner.dir().to_str().unwrap(), "-thief", thief.dir().to_str().unwrap()][..],
        ]
        .concat(),
    );
    let names: Vec<&str> = passed.iter().map(|line| line["case"].as_str().unwrap()).collect();
    assert_eq!(names, ["expire", "match", "refresh", "register", "stolen", "unregister", "watch"]);
}

/// The names of a floating domain, partner.test: a registry of NSM's in site c, with which endpoints of others register. It has no
/// proxy.
fn floating(lab: &Lab) -> Zone {
    Zone::nsm("partner.test", NSM_REGISTRY, None, lab.c.addr)
}

/// NSM sdk: TestNSMGR_FloatingInterdomainUseCase and TestNSMGR_FloatingInterdomainUseCase_FloatingNetworkServiceNameRegistration. An
/// endpoint of one Carrick domain registers with a floating one, which runs NSM's registry; a client of another finds it there.
#[test]
fn an_endpoint_registered_with_a_floating_domain_is_reached() {
    if !needs(&[MESH, NSM].concat()) {
        return;
    }
    let lab = Lab::new();
    let gateway = |site: &Site| Zone::gateway(site.domain, PORT, site.addr, site.addr6);
    let _knot = Knot::start(&lab, [gateway(&lab.a), gateway(&lab.b), floating(&lab)]);
    let [mut near, mut far, third] = [&lab.a, &lab.b, &lab.c].map(|site| Carrick::prepare(&lab, site));
    near.configure(&Settings::new(&lab.a, &near).trust(&far).trust(&third));
    far.configure(&Settings::new(&lab.b, &far).trust(&near).trust(&third));
    near.up();
    far.up();
    let _floating = nsm_registry(&lab.c, &third, &[&near, &far]);
    let way = |more| NsmWay {
        site: &lab.a,
        client: (&near, "cloud.test"),
        endpoint: (&far, "onprem.test"),
        manager: format!("tcp://{}", lab.a.at(PORT)),
        registry: format!("tcp://{}", lab.b.at(PORT)),
        domain: "partner.test",
        segments: 4,
        more,
    };
    let all = ["auto-refresh", "heal", "monitor", "request"];
    assert_eq!(passed(&way(&["-floats", "partner.test"]), "all"), all);
    let plain = way(&["-floats", "partner.test", "-plain-services"]);
    assert_eq!(passed(&plain, "request"), ["request"]);
}

/// The same between two domains of NSM's with daemons for their proxies.
#[test]
fn carrick_registers_endpoints_of_nsms_domains_with_a_floating_one() {
    if !needs(&[MESH, NSM].concat()) {
        return;
    }
    let lab = Lab::new();
    let zone = |site: &Site| Zone::nsm(site.domain, PROXY, Some(PROXY), site.addr);
    let _knot = Knot::start(&lab, [zone(&lab.a), zone(&lab.b), floating(&lab)]);
    let [mut near, mut far, third] = [&lab.a, &lab.b, &lab.c].map(|site| Carrick::prepare(&lab, site));
    let at = |site: &Site| format!("tcp://{}", site.at(PROXY));
    let _near = NsmDomain::start(&lab.a, &near, &[&far], &["-proxy", &at(&lab.a)]);
    let _far = NsmDomain::start(&lab.b, &far, &[&near], &["-proxy", &at(&lab.b)]);
    near.configure(&Settings::new(&lab.a, &near).trust(&far).trust(&third).line(&proxy_of(&lab.a, "")));
    far.configure(&Settings::new(&lab.b, &far).trust(&near).trust(&third).line(&proxy_of(&lab.b, "")));
    near.up();
    far.up();
    let _floating = nsm_registry(&lab.c, &third, &[&near, &far]);
    let way = NsmWay {
        site: &lab.a,
        client: (&near, "cloud.test"),
        endpoint: (&far, "onprem.test"),
        manager: format!("tcp://{}", lab.a.at(MANAGER)),
        registry: format!("tcp://{}", lab.b.at(MANAGER)),
        domain: "partner.test",
        segments: 8,
        more: &["-floats", "partner.test"],
    };
    assert_eq!(passed(&way, "all"), ["auto-refresh", "heal", "monitor", "request"]);
}

/// Runs a case with a client of cloud.test in site a and endpoints of several domains, each behind its own daemon.
#[track_caller]
fn linked(lab: &Lab, case: &str, client: &Carrick, links: &[(&Carrick, &Site)], more: &[&str]) {
    let nsc = Workload::of(client, "cloud.test", "nsc");
    let endpoints: Vec<_> = links.iter().map(|(ca, site)| Workload::of(ca, site.domain, "nse")).collect();
    let mut args: Vec<String> =
        ["links", case, "-client", nsc.dir().to_str().unwrap()].map(str::to_owned).into();
    args.extend(["-manager".to_owned(), format!("tcp://{}", lab.a.at(PORT))]);
    args.extend(["-endpoint-host".to_owned(), lab.a.addr.to_string()]);
    args.extend(["-trust".to_owned(), client.trust_flag()]);
    for ((ca, site), endpoint) in links.iter().zip(&endpoints) {
        let dir = endpoint.dir().display();
        args.extend(["-link".to_owned(), format!("{}=tcp://{}={dir}", site.domain, site.at(PORT))]);
        args.extend(["-trust".to_owned(), ca.trust_flag()]);
    }
    args.extend(more.iter().map(|&flag| flag.to_owned()));
    let passed = nsm_interop(&lab.a.ns, &args.iter().map(String::as_str).collect::<Vec<_>>());
    assert_eq!(passed.len(), 1, "{passed:?}");
    assert_eq!(passed[0]["case"], case, "{passed:?}");
}

/// NSM sdk: TestNSMGR_FloatingInterdomain_FourClusters. Two domains' endpoints are registered with one floating domain.
#[test]
fn two_domains_offer_one_service_in_a_floating_one() {
    if !needs(&[MESH, NSM].concat()) {
        return;
    }
    let lab = Lab::new();
    let d = lab.c.also("fourth.test");
    let gateway = |site: &Site| Zone::gateway(site.domain, PORT, site.addr, site.addr6);
    let _knot = Knot::start(&lab, [gateway(&lab.a), gateway(&lab.b), gateway(&d), floating(&lab)]);
    let [mut near, mut far, third, mut fourth] =
        [&lab.a, &lab.b, &lab.c, &d].map(|site| Carrick::prepare(&lab, site));
    near.configure(&Settings::new(&lab.a, &near).trust(&far).trust(&third).trust(&fourth));
    far.configure(&Settings::new(&lab.b, &far).trust(&near).trust(&third));
    fourth.configure(&Settings::new(&d, &fourth).trust(&near).trust(&third));
    near.up();
    far.up();
    fourth.up();
    let _floating = nsm_registry(&lab.c, &third, &[&near, &far, &fourth]);
    // Client, its daemon, the endpoint's daemon, endpoint.
    let more = ["-floats", "partner.test", "-segments", "4"];
    linked(&lab, "shared", &near, &[(&far, &lab.b), (&fourth, &d)], &more);
}

/// NSM sdk: Test_Interdomain_PassThroughUsecase: the endpoint in each domain passes on to one in the next.
#[test]
fn endpoints_pass_on_through_domains() {
    if !needs(&[MESH, NSM].concat()) {
        return;
    }
    let lab = Lab::new();
    let sites = [&lab.a, &lab.b, &lab.c];
    let _knot = Knot::start(&lab, sites.map(|site| Zone::gateway(site.domain, PORT, site.addr, site.addr6)));
    let mut all = sites.map(|site| Carrick::prepare(&lab, site));
    for (at, site) in sites.iter().enumerate() {
        let before = &all[(at + 2) % 3];
        let after = &all[(at + 1) % 3];
        let shows = shows(sites[(at + 2) % 3].domain);
        all[at].configure(&Settings::new(site, &all[at]).trust(before).trust(after).line(&shows));
    }
    all.iter_mut().for_each(Carrick::up);
    let [a, b, c] = &all;
    // Client, a, b; endpoint, b, c; endpoint, c, a; endpoint.
    linked(&lab, "chain", a, &[(b, &lab.b), (c, &lab.c), (a, &lab.a)], &["-segments", "10"]);
}
