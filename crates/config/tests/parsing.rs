//! What a sound config means, and that no text makes the parser panic.

use std::{path::Path, time::Duration};

use carrick_config::{
    BundleSource, Config, Congestion, Faults, Lanes, LogFormat, Store, Strategy, load, parse,
};
use carrick_model::{ListenAddress, SpiffeId};
use proptest::prelude::*;

/// Every key there is, and none at its default.
const FULL: &str = r#"
domain: Cloud.test.
trust_domain: prod.cloud.test
state_dir: state
listen: { control: "[::]:8443", tunnel: "192.0.2.1:8444", admin: off, dns: "127.0.0.1:5353" }
advertise: ["192.0.2.10", "gw.cloud.test", "2001:db8::1"]
identity: { source: embedded, svid_lifetime: 10m }
trust:
  - { domain: onprem.test, trust_domain: corp.test, bundle: "file:///etc/carrick/onprem.json" }
  - { domain: b.test, bundle: b.pem }
dns: { servers: ["192.0.2.53:5353", "2001:db8::53"], suffix: svc.mesh, virtual_ips: 127.9.0.0/24, timeout: 1s, attempts: 3,
       max_stale: 1h, ttl: 5s }
peers: [ { domain: onprem.test, control: ["198.51.100.7:7443", "gw.onprem.test:7443"], tunnel: ["[2001:db8::7]:7443"] } ]
exports:
  - { service: postgres, to: "tcp://10.0.0.5:5432", allow: ["spiffe://corp.test/**"], labels: { app: pg, "on": "no" } }
  - { service: sock, to: "unix:///run/s", port: 99, allow: ["spiffe://b.test/x/*"] }
  - { service: bare, to: "unix:///run/b", allow: ["spiffe://b.test/x"] }
imports:
  - { service: postgres@onprem.test, listen: "127.0.0.1:15432", port: 5433 }
  - { service: log@b.test, listen: "udp://127.0.0.1:514" }
  - { service: web@b.test }
  - { service: [cache@b.test, cache@onprem.test], strategy: weighted, weights: [3, 1] }
registry:
  store: etcd
  etcd: { endpoints: ["https://etcd-1:2379", "192.0.2.9:2379"], tls: { ca: ca.pem, cert: /etc/c.pem, key: /etc/k.pem }, prefix: /mesh }
  admit: [ { who: ["spiffe://corp.test/**"], services: ["vl3", "db.*"] } ]
  show: [ { who: ["spiffe://b.test/ns/*"], services: ["*"] } ]
compat:
  nsm:
    listen: ["unix:///run/nsm.sock", "tcp://:5001", ":5002", "192.0.2.1:5004"]
    socket_mode: "0660"
    name: proxy.cloud.test
    url: "gw.cloud.test:5004"
    max_token_lifetime: 5m
    map_ip_file: map-ip.yaml
    clusterinfo_file: /etc/clusterinfo/config.yaml
    registry_url: registry:5002
    registry_proxy_url: "tcp://registry-proxy:5005"
tunnel: { lanes: 4, idle_timeout: 20s, keep_alive: 6s, max_memory: 64MiB, congestion: bbr }
timeouts: { connect: 1s, request: 2s, flow_open: 3s, udp_idle: 4s }
log: { format: json, level: "warn,carrick_proxy=debug" }
drain_timeout: 0s
limits: { max_flows: 1, max_tunnels: 2, max_half_open: 3 }
"#;

fn accepted(parsed: Result<Config, Faults>) -> Config {
    parsed.unwrap_or_else(|faults| panic!("{faults}"))
}

#[test]
fn a_domain_is_all_a_config_needs() {
    let config = accepted(parse("domain: cloud.test"));
    assert_eq!(
        config,
        Config::new("cloud.test".parse().unwrap()),
        "defaults of the file and of the types agree"
    );
    assert_eq!(config.trust_domain.as_str(), "cloud.test");
    assert_eq!(config.listen.control, "0.0.0.0:7443".parse().unwrap());
    assert_eq!(config.listen.admin, Some("127.0.0.1:9901".parse().unwrap()));
    assert_eq!(config.listen.dns, None);
}

#[test]
fn a_key_without_a_value_is_left_out() {
    let config = accepted(parse("domain: cloud.test\nexports:\nlisten:\n  dns:\nlog: { level: ~ }"));
    assert_eq!(config, Config::new("cloud.test".parse().unwrap()));
}

#[test]
fn every_key_is_read() {
    let config = accepted(parse(FULL));
    assert!(config.warnings.is_empty(), "{:?}", config.warnings);
    assert_eq!(config.domain.as_str(), "cloud.test");
    assert_eq!(config.trust_domain.as_str(), "prod.cloud.test");
    assert_eq!(config.listen.admin, None);
    assert_eq!(config.listen.dns, Some("127.0.0.1:5353".parse().unwrap()));
    assert_eq!(config.advertise.len(), 3);
    assert_eq!(config.identity.svid_lifetime, Duration::from_secs(600));
    assert_eq!(config.trust[0].trust_domain.as_str(), "corp.test");
    assert_eq!(config.trust[1].trust_domain.as_str(), "b.test");
    assert_eq!(config.dns.servers[1], "[2001:db8::53]:53".parse().unwrap());
    assert_eq!(config.dns.suffix, "svc.mesh");
    assert_eq!(config.dns.attempts, 3);
    assert_eq!(config.peers[0].control[1].to_string(), "gw.onprem.test:7443");
    let ports: Vec<_> = config.exports.iter().map(|export| export.port).collect();
    assert_eq!(ports, [Some(5432), Some(99), None]);
    assert_eq!(config.exports[0].labels["on"], "no");
    assert_eq!(config.imports[0].port, Some(5433));
    assert!(matches!(config.imports[1].listen, Some(ListenAddress::Udp(_))));
    assert_eq!(config.imports[2].listen, None);
    assert_eq!(config.imports[2].strategy, Strategy::Priority);
    let several = &config.imports[3];
    let named: Vec<String> = several.services().map(ToString::to_string).collect();
    assert_eq!(named, ["cache@b.test", "cache@onprem.test"]);
    assert_eq!(several.strategy, Strategy::Weighted(vec![3, 1]));
    assert_eq!((config.tunnel.lanes, config.tunnel.congestion), (Lanes::Count(4), Congestion::Bbr));
    assert_eq!(config.tunnel.max_memory, 64 << 20);
    assert_eq!(config.timeouts.udp_idle, Duration::from_secs(4));
    assert_eq!((config.log.format, config.log.level.as_str()), (LogFormat::Json, "warn,carrick_proxy=debug"));
    assert_eq!(config.drain_timeout, Duration::ZERO);
    assert_eq!(config.limits.max_half_open, 3);

    let Store::Etcd(etcd) = &config.registry.store else { panic!("{:?}", config.registry.store) };
    let members: Vec<String> = etcd.endpoints.iter().map(ToString::to_string).collect();
    assert_eq!(members, ["etcd-1:2379", "192.0.2.9:2379"]);
    assert_eq!(etcd.prefix, "/mesh/");
    let tls = etcd.tls.as_ref().unwrap();
    assert_eq!(tls.ca, Path::new("ca.pem"));
    assert_eq!(tls.client.as_ref().unwrap().key, Path::new("/etc/k.pem"));
    let corp = SpiffeId::new("spiffe://corp.test/nse").unwrap();
    assert!(config.registry.admit[0].lets(&corp, "db.x") && !config.registry.show[0].lets(&corp, "db.x"));

    let nsm = &config.compat.nsm;
    assert!(nsm.on);
    let listen: Vec<String> = nsm.listen.iter().map(ToString::to_string).collect();
    assert_eq!(listen, ["unix:///run/nsm.sock", "tcp://:5001", "tcp://:5002", "tcp://192.0.2.1:5004"]);
    assert_eq!((nsm.socket_mode, nsm.name.as_str()), (0o660, "proxy.cloud.test"));
    assert_eq!(nsm.url.as_ref().unwrap().to_string(), "gw.cloud.test:5004");
    assert_eq!(nsm.max_token_lifetime, Duration::from_secs(300));
    assert_eq!(nsm.registry_url.as_ref().unwrap().to_string(), "tcp://registry:5002");
    assert_eq!(nsm.registry_proxy_url.as_ref().unwrap().to_string(), "tcp://registry-proxy:5005");

    let fresh = Config::new("elsewhere.test".parse().unwrap());
    let changed = fresh.difference(&config).restart_needed;
    assert_eq!(
        changed.len(),
        42,
        "every key but what is applied live has a value of its own here: {changed:?}"
    );
}

#[test]
fn relative_paths_start_at_the_file() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("carrick.yaml");
    std::fs::write(&path, FULL).unwrap();
    let config = load(&path).unwrap();
    let bundles: Vec<_> = config.trust.iter().map(|trust| &trust.bundle).collect();
    assert_eq!(config.state_dir, directory.path().join("state"));
    let Store::Etcd(etcd) = &config.registry.store else { panic!("{:?}", config.registry.store) };
    let tls = etcd.tls.as_ref().unwrap();
    assert_eq!(tls.ca, directory.path().join("ca.pem"));
    assert_eq!(tls.client.as_ref().unwrap().cert, Path::new("/etc/c.pem"));
    let nsm = &config.compat.nsm;
    assert_eq!(nsm.map_ip_file, Some(directory.path().join("map-ip.yaml")));
    assert_eq!(nsm.clusterinfo_file, Some("/etc/clusterinfo/config.yaml".into()));
    assert_eq!(*bundles[0], BundleSource::File("/etc/carrick/onprem.json".into()));
    assert_eq!(*bundles[1], BundleSource::File(directory.path().join("b.pem")));
    assert_eq!(accepted(parse(FULL)).state_dir, Path::new("state"));
}

#[test]
fn a_byte_order_mark_and_crlf_change_nothing() {
    let plain = accepted(parse(FULL));
    assert_eq!(accepted(parse(&FULL.replace('\n', "\r\n"))), plain);
    assert_eq!(accepted(parse(&format!("\u{feff}{}", FULL.trim_start()))), plain);
}

/// Pieces of which texts come that are nearly a config.
const PIECES: &[&str] = &[
    "domain",
    "exports",
    "imports",
    "listen",
    "dns",
    "service",
    "allow",
    "trust",
    "labels",
    ":",
    ": ",
    "- ",
    "  ",
    "\n",
    "[",
    "]",
    "{",
    "}",
    ",",
    ", ",
    "'",
    "\"",
    "a.test",
    "a@b.test",
    "tcp://h:1",
    "127.0.0.1:1",
    "10s",
    "~",
    "&a ",
    "*a",
    "!!str ",
    "!x ",
    "# ",
    "---\n",
    "<<",
    "0x",
    "-1",
    "1e9",
    "|\n",
    ">\n",
    "? ",
    "%YAML 1.2\n",
    "\t",
    "\r",
    "ü",
    "\u{feff}",
    "\u{2028}",
    "\0",
];

fn check(text: &str) -> Result<(), TestCaseError> {
    let lines = text.matches('\n').count() + 1;
    match parse(text) {
        Ok(config) => prop_assert!(config.warnings.iter().all(|fault| (1..=lines).contains(&fault.line))),
        Err(faults) => {
            prop_assert!(!faults.as_slice().is_empty());
            for fault in faults.as_slice() {
                prop_assert!((1..=lines).contains(&fault.line), "{fault}");
                prop_assert!(fault.column >= 1 && !fault.message.is_empty(), "{fault}");
                prop_assert!(!fault.message.contains("does not fit the schema"), "{fault}");
                prop_assert!(!fault.message.contains("a value cannot be read"), "{fault}");
                prop_assert!(!fault.to_string().contains(char::is_control), "{fault}");
            }
            let sorted = faults.as_slice().is_sorted_by_key(|fault| (fault.line, fault.column));
            prop_assert!(sorted, "{faults}");
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn no_text_makes_the_parser_panic(text in "\\PC{0,200}") {
        check(&text)?;
    }

    #[test]
    fn no_bytes_make_the_parser_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        check(&String::from_utf8_lossy(&bytes))?;
    }

    #[test]
    fn no_heap_of_pieces_makes_the_parser_panic(pieces in proptest::collection::vec(proptest::sample::select(PIECES), 0..60)) {
        check(&pieces.concat())?;
    }

    /// A sound config of which one piece was cut out and another put in.
    #[test]
    fn no_slip_makes_the_parser_panic(
        at in any::<prop::sample::Index>(), cut in 0_usize..20, pieces in proptest::collection::vec(proptest::sample::select(PIECES), 0..3),
    ) {
        let mut chars: Vec<char> = FULL.chars().collect();
        let at = at.index(chars.len());
        let end = (at + cut).min(chars.len());
        chars.splice(at..end, pieces.concat().chars());
        check(&chars.into_iter().collect::<String>())?;
    }

    /// One value of a sound config replaced by one of any type.
    #[test]
    fn no_type_makes_the_parser_panic(
        at in any::<prop::sample::Index>(),
        value in "(7|-1|1\\.5|99999999999999999999|true|~|\\[\\]|\\{\\}|\\[1, \\{a: 2\\}\\]|x|'')",
    ) {
        let colons: Vec<usize> = FULL.match_indices(": ").map(|(index, _)| index + 2).collect();
        let start = colons[at.index(colons.len())];
        let end = FULL[start..].find([',', '}', '\n']).map_or(FULL.len(), |length| start + length);
        check(&format!("{}{value}{}", &FULL[..start], &FULL[end..]))?;
    }
}
