//! What an operator reads when a config is wrong.

use carrick_config::{Config, Fault, Faults, LoadError, MAX_BYTES, load, parse};

/// One file with a fault of most kinds.
const BAD: &str = r#"domain: cloud.test
sate_dir: /var/lib/carrick
listen: { control: "0.0.0.0:7443", admin: "0.0.0.0:7443" }
trust:
  - domain: onprem.test
    bundle: "https://onprem.test/bundle"
  - domain: cloud.test
    bundle: own.json
dns: { virtual_ips: "fd00::/64", timeout: 5 }
exports:
  - service: postgres
    to: 10.0.0.5:5432
    alow: ["spiffe://onprem.test/**"]
  - service: web
    to: "tcp://10.0.0.6:80"
    port: 0
    port: 80
    allow: "spiffe://*/x"
  - to: "tcp://10.0.0.7:1"
imports:
  - { service: db@onprem.test, listen: "127.0.0.1:15432" }
  - { service: web@cloud.test, listen: "127.0.0.1:15432" }
  - { service: cache@onprem.test }
log: { format: jsn, lanes: 4 }
tunnel: { lanes: many, keep_alive: 40s }
"#;

const SAID: &str = "\
carrick.yaml:2:1: sate_dir: unknown key, did you mean `state_dir`?
carrick.yaml:3:43: listen.admin: `0.0.0.0:7443` is taken by `listen.control` on line 3, choose another port or address
carrick.yaml:6:13: trust[0].bundle: `https://onprem.test/bundle` is not the place of a bundle: write a path or `file:///path`
carrick.yaml:7:13: trust[1].domain: `cloud.test` is this domain, remove the entry: a domain knows its own roots
carrick.yaml:9:21: dns.virtual_ips: `fd00::/64` is not an IPv4 network: virtual IPs are IPv4, for example `127.80.0.0/16`
carrick.yaml:9:43: dns.timeout: expected a text, found the number 5, give it a unit, for example `10s`
carrick.yaml:12:9: exports[0].to: `10.0.0.5:5432` is not a target: a target needs a scheme: `tcp://host:port`, `udp://host:port` or `unix:///path`
carrick.yaml:13:5: exports[0].alow: unknown key, did you mean `allow`?
carrick.yaml:16:11: exports[1].port: 0 is out of range, from 1 to 65535
carrick.yaml:17:5: exports[1].port: the key is given twice, first on line 16, keep one of them
carrick.yaml:18:12: exports[1].allow: expected a list, found the text `spiffe://*/x`, put it in brackets: `[…]`
carrick.yaml:19:5: exports[2].service: the key is missing, add `service: …`
carrick.yaml:22:16: imports[1].service: `web@cloud.test` is a service of this domain: it is local, use the target of its export directly
carrick.yaml:22:40: imports[1].listen: `127.0.0.1:15432` is taken by `imports[0].listen` on line 21, choose another port or address
carrick.yaml:23:5: imports[2]: no application could reach `cache@onprem.test`, add `listen:` here, or `dns:` under `listen:` at the top
carrick.yaml:24:16: log.format: `jsn` is not one of `human`, `json`, did you mean `json`?
carrick.yaml:24:21: log.lanes: unknown key, `lanes` belongs under `tunnel`
carrick.yaml:25:18: tunnel.lanes: `many` is not a number of lanes: write `auto` or a number from 1 to 16
carrick.yaml:25:36: tunnel.keep_alive: a tunnel would be dead before its first keep-alive, make it less than `tunnel.idle_timeout`, best a third of it
19 faults";

fn faults(text: &str) -> Faults {
    match parse(text) {
        Ok(config) => panic!("accepted: {config:?}"),
        Err(faults) => faults,
    }
}

/// The one fault of `text` below a sound head.
fn fault(text: &str) -> String {
    let faults = faults(&format!("domain: cloud.test\n{text}"));
    let [fault] = faults.as_slice() else { panic!("{faults}") };
    fault.to_string()
}

fn config(text: &str) -> Config {
    parse(text).unwrap_or_else(|faults| panic!("{faults}"))
}

#[test]
fn all_faults_are_reported_at_once() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("carrick.yaml");
    std::fs::write(&path, BAD).unwrap();
    let LoadError::Faults(faults) = load(&path).unwrap_err() else { panic!("the file is there") };
    let said = faults.to_string().replace(&format!("{}/", directory.path().display()), "");
    assert_eq!(said, SAID, "\n{said}\n");
}

#[test]
fn faults_are_objects_for_machines() {
    let faults = faults("domain: a.test\nexprots: []");
    let json = serde_json::to_value(&faults).unwrap();
    let fault = serde_json::json!({
        "line": 2, "column": 1, "path": "exprots", "message": "unknown key", "hint": "did you mean `exports`?"
    });
    assert_eq!(json, serde_json::json!({ "faults": [fault] }));
}

#[test]
fn a_file_that_is_not_there_is_named() {
    let error = load("/nonexistent/carrick.yaml".as_ref()).unwrap_err();
    assert_eq!(error.to_string(), "cannot read the config file /nonexistent/carrick.yaml");
    assert!(error.faults().is_none() && error.hint().contains("-c FILE"));
}

#[test]
fn a_file_that_is_no_text_is_refused() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), [0xff, 0xfe, 0]).unwrap();
    assert!(matches!(load(file.path()).unwrap_err(), LoadError::Read { .. }));
}

#[test]
fn a_huge_file_is_refused_wherever_the_bound_cuts_it() {
    let file = tempfile::NamedTempFile::new().unwrap();
    for head in ["", "x"] {
        std::fs::write(file.path(), head.to_owned() + &"ü".repeat(MAX_BYTES)).unwrap();
        let error = load(file.path()).unwrap_err();
        assert!(error.to_string().contains("longer than 1048576 bytes"), "{error}");
    }
}

#[test]
fn an_empty_file_lacks_its_domain() {
    let said = "1:1: domain: the key is missing, add `domain: …`\n1 fault";
    for text in ["", "# only a comment\n", "---\n", "~"] {
        assert_eq!(
            faults(text).to_string().split_once(": ").map(|(_, rest)| rest),
            said.split_once(": ").map(|(_, rest)| rest)
        );
    }
    assert_eq!(faults("").to_string(), said);
    assert_eq!(faults("domain:").to_string(), said);
    assert_eq!(fault_of("[1, 2]"), "1:1: a config is a map of keys, this is a list");
    assert_eq!(fault_of("domian: a.test"), "1:1: domian: unknown key, did you mean `domain`?");
}

fn fault_of(text: &str) -> String {
    let faults = faults(text);
    let [fault] = faults.as_slice() else { panic!("{faults}") };
    fault.to_string()
}

#[test]
fn yaml_itself_can_be_wrong() {
    assert!(
        fault_of("domain: a.test\nexports: [").starts_with("2:"),
        "{}",
        fault_of("domain: a.test\nexports: [")
    );
    assert!(fault_of("domain: a.test\n\tx: 1").contains("not valid YAML"));
    assert!(fault_of("domain: a.test\n---\ndomain: b.test").contains("second YAML document"));
    assert!(fault_of(&format!("domain: {}", "[".repeat(100))).contains("deeper than 32 levels"));
    assert!(fault("advertise: *unknown").contains("not valid YAML"));
    assert!(fault("log: { level: !x info }").contains("the tag"));
    assert_eq!(fault("? [a]\n: b"), "2:3: a key is a plain word");
}

#[test]
fn an_alias_bomb_is_refused_before_it_grows() {
    let mut bomb = "domain: cloud.test\na: &a [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
    for (name, of) in "bcdefghij".chars().zip("abcdefghi".chars()) {
        bomb += &format!("{name}: &{name} [{}]\n", vec![format!("*{of}"); 10].join(", "));
    }
    assert!(fault_of(&bomb).contains("more than 200000 keys and values"));
    assert!(fault_of("domain: &a [*a]").contains("inside the value"));
}

#[test]
fn an_alias_stands_for_its_value() {
    let config = config(
        "domain: a.test\ntrust: [{ domain: b.test, bundle: b }]\nexports:\n\
         - { service: x, to: 'tcp://h:1', allow: &who ['spiffe://b.test/**'] }\n\
         - { service: y, to: 'tcp://h:2', allow: *who }",
    );
    assert_eq!(config.exports[0].allow, config.exports[1].allow);
    assert_eq!(config.exports[1].allow.len(), 1);
}

#[test]
fn a_key_in_the_wrong_place_is_sent_home() {
    assert_eq!(fault("lanes: 4"), "2:1: lanes: unknown key, `lanes` belongs under `tunnel`");
    assert_eq!(
        fault("log: { exports: [] }"),
        "2:8: log.exports: unknown key, `exports` belongs at the top of the file"
    );
    assert_eq!(fault("log: { zzz: 1 }"), "2:8: log.zzz: unknown key, the keys here are `format`, `level`");
    assert_eq!(fault("Listen: {}"), "2:1: Listen: unknown key, did you mean `listen`?");
    assert_eq!(fault("drain-timeout: 5s"), "2:1: drain-timeout: unknown key, did you mean `drain_timeout`?");
    assert!(fault("<<: {}").contains("merge keys are not supported"));
}

#[test]
fn a_wrong_type_says_how_to_write_it() {
    assert!(
        fault("drain_timeout: 5")
            .ends_with("expected a text, found the number 5, give it a unit, for example `10s`")
    );
    assert!(fault("trust_domain: true").ends_with("expected a text, found `true`, put it in quotes"));
    assert!(
        fault("advertise: 192.0.2.1")
            .ends_with("expected a list, found the text `192.0.2.1`, put it in brackets: `[…]`")
    );
    assert!(fault("listen: 7443").ends_with("expected a map of keys, found the number 7443"));
    assert!(
        fault("limits: { max_flows: '7' }")
            .ends_with("expected a whole number, found the text `7`, write it without quotes and units")
    );
    assert!(fault("limits: { max_flows: 0 }").ends_with("0 is out of range, from 1 to 10000000"));
    assert!(fault("dns: { attempts: 1e30 }").contains("expected a whole number"));
    assert!(
        fault("dns: { attempts: 99999999999999999999999999999999999999999 }")
            .contains("expected a whole number")
    );
    assert!(fault("dns: { attempts: -18446744073709551616 }").contains("out of range"));
    assert!(fault("tunnel: { max_memory: 1024 }").ends_with("give it a unit, for example `1GiB`"));
    assert!(fault("tunnel: { lanes: -1 }").contains("is not a number of lanes"));
}

#[test]
fn durations_have_bounds() {
    assert!(fault("identity: { svid_lifetime: 1s }").ends_with("1s is out of range, from `5s` to `30days`"));
    assert!(fault("drain_timeout: forever").contains("is not a duration"));
    assert!(fault("dns: { ttl: 1500ms }").ends_with("a TTL has whole seconds"));
    assert!(fault("tunnel: { max_memory: 1MiB }").ends_with("at least `16MiB`"));
}

#[test]
fn names_that_clash_are_reported() {
    let dns = "listen: { dns: '127.0.0.1:5353' }\n";
    let twice = fault(&format!("{dns}imports: [{{ service: a.b@c.test }}, {{ service: a@b.c.test }}]"));
    assert!(
        twice.contains("`a@b.c.test` has the DNS name of `a.b@c.test` on line 3: `a.b.c.test.mesh`"),
        "{twice}"
    );
    let same = fault(&format!("{dns}imports:\n- service: a@c.test\n- service: a@c.test"));
    assert_eq!(
        same,
        "5:12: imports[1].service: `a@c.test` is imported twice, first on line 4, keep one of the entries"
    );
    let payload = fault(
        "imports:\n- { service: a@c.test, listen: 'udp://127.0.0.1:1' }\n- { service: a@c.test, listen: '127.0.0.1:1' }",
    );
    assert!(
        payload.contains("is imported as TCP, and as UDP on line 3, a service has one payload"),
        "{payload}"
    );
    let exports = fault("exports:\n- { service: a, to: 'tcp://h:1' }\n- { service: A, to: 'udp://h:1' }");
    assert!(exports.contains("`a` is exported as UDP, and as TCP on line 3"), "{exports}");
    let long = format!("{}.test", "abcdefghij.".repeat(20).trim_end_matches('.'));
    assert!(
        fault(&format!("{dns}imports: [{{ service: {}@{long} }}]", "s".repeat(60)))
            .contains("choose a shorter")
    );
}

#[test]
fn pools_have_to_hold_the_imports() {
    let imports = "imports: [{ service: a@c.test }, { service: b@c.test }, { service: d@c.test }]";
    let text = |prefix: u8| {
        format!("listen: {{ dns: '127.0.0.1:5353' }}\ndns: {{ virtual_ips: 127.80.0.0/{prefix} }}\n{imports}")
    };
    assert!(
        fault(&text(30))
            .contains("127.80.0.0/30 has room for 2 imports, there are 3, choose a larger network")
    );
    assert!(fault(&text(32)).contains("room for 0 imports"));
    assert_eq!(config(&format!("domain: cloud.test\n{}", text(29))).imports.len(), 3);
    config(&format!("domain: cloud.test\n{}", text(0)));
}

#[test]
fn an_import_needs_a_way_in() {
    let none = fault("imports: [{ service: a@c.test }]");
    assert!(none.ends_with(
        "no application could reach `a@c.test`, add `listen:` here, or `dns:` under `listen:` at the top"
    ));
    // A DNS listener that cannot be read is still one that was meant.
    assert!(
        fault("listen: { dns: 5353 }\nimports: [{ service: a@c.test }]")
            .contains("listen.dns: expected a text")
    );
    assert!(
        fault("lisen: { dns: '127.0.0.1:1' }\nimports: [{ service: a@c.test }]")
            .contains("did you mean `listen`?")
    );
}

#[test]
fn sockets_are_taken_once() {
    assert!(
        fault("listen: { dns: '127.0.0.1:7443' }")
            .contains("`127.0.0.1:7443` is taken as part of `0.0.0.0:7443` by `listen.tunnel`")
    );
    let wide = fault(
        "imports: [{ service: a@c.test, listen: '127.0.0.1:1' }, { service: b@c.test, listen: '0.0.0.0:1' }]",
    );
    assert!(wide.contains("`0.0.0.0:1` is taken as part of `127.0.0.1:1` by `imports[0].listen`"), "{wide}");
    let unix = fault(
        "imports: [{ service: a@c.test, listen: 'unix:///x' }, { service: b@c.test, listen: 'unix:///x' }]",
    );
    assert!(unix.contains("/x is taken by `imports[0].listen`"), "{unix}");
    // Other protocols, other families, other addresses and port 0 are other sockets.
    config(
        "domain: cloud.test\nimports:\n- { service: a@c.test, listen: '127.0.0.1:1' }\n\
         - { service: b@c.test, listen: 'udp://127.0.0.1:1' }\n- { service: c@c.test, listen: '127.0.0.2:1' }\n\
         - { service: d@c.test, listen: '[::]:1' }\n- { service: e@c.test, listen: '127.0.0.1:0' }\n\
         - { service: f@c.test, listen: '127.0.0.1:0' }\n",
    );
}

#[test]
fn trust_is_given_once_and_not_to_oneself() {
    let twice = fault("trust: [{ domain: b.test, bundle: b }, { domain: B.test., bundle: c }]");
    assert!(twice.contains("`b.test` is listed twice, first on line 2"), "{twice}");
    let pooled =
        fault("trust: [{ domain: b.test, bundle: b }, { domain: c.test, trust_domain: b.test, bundle: c }]");
    assert!(pooled.contains("trust domain `b.test` has another bundle already, by `b.test`"), "{pooled}");
    let own = fault("trust: [{ domain: b.test, trust_domain: cloud.test, bundle: b }]");
    assert!(own.contains("trust[0].trust_domain: `cloud.test` is this domain's own trust domain"), "{own}");
    assert!(
        fault("trust: [{ domain: b.test, trust_domain: 'spiffe://b.test/x', bundle: b }]")
            .contains("bare name")
    );
    assert!(fault("trust_domain: 'spiffe://b.test'").contains("bare name"));
}

#[test]
fn peers_have_addresses() {
    assert!(
        fault("peers: [{ domain: b.test }]").contains("peers[0]: the entry gives no address of `b.test`")
    );
    assert!(
        fault("peers: [{ domain: b.test, control: [b.test] }]")
            .contains("peers[0].control[0]: `b.test` is not a host and port")
    );
    assert!(fault("peers: [{ domain: cloud.test, control: ['b.test:1'] }]").contains("is this domain"));
    assert!(
        fault("peers: [{ domain: b.test, control: ['b:1'] }, { domain: b.test, tunnel: ['b:1'] }]")
            .contains("listed twice")
    );
}

#[test]
fn labels_of_the_daemon_cannot_be_set() {
    let own = fault("exports: [{ service: a, to: 'tcp://h:1', labels: { carrick.port: '1' } }]");
    assert_eq!(
        own,
        "2:52: exports[0].labels.carrick.port: labels that start with `carrick.` are set by the daemon, choose another name"
    );
    assert!(
        fault("exports: [{ service: a, to: 'tcp://h:1', labels: { v: 1 } }]")
            .ends_with("found the number 1, put it in quotes")
    );
}

#[test]
fn a_fault_keeps_the_index_it_was_written_at() {
    let text =
        "exports:\n- { service: a, to: 'tcp://h:1' }\n- { to: 'tcp://h:1' }\n- { service: c, to: 'tcp://h' }";
    let faults = faults(&format!("domain: cloud.test\n{text}"));
    let paths: Vec<&str> = faults.as_slice().iter().map(|fault| fault.path.as_str()).collect();
    assert_eq!(paths, ["exports[1].service", "exports[2].to"]);
}

#[test]
fn what_is_odd_is_a_warning() {
    let config = config(
        "domain: cloud.test\nexports:\n- { service: a, to: 'tcp://h:1' }\n\
         - { service: b, to: 'tcp://h:1', allow: ['spiffe://cloud.test/x', 'spiffe://b.test/**'] }\n\
         imports:\n- { service: c@c.test, listen: '127.0.0.1:1', port: 5 }",
    );
    let said: Vec<String> = config.warnings.iter().map(Fault::to_string).collect();
    assert_eq!(
        said,
        [
            "3:3: exports[0].allow: nobody may use this service, add `allow: [\"spiffe://their.trust.domain/**\"]`",
            "4:67: exports[1].allow[1]: no `trust:` entry is for trust domain `b.test`, add one, or run `carrick trust import`",
            "6:14: imports[0].service: no `trust:` entry is for domain `c.test`, add one, or run `carrick trust import`",
            "6:53: imports[0].port: the port is that of a virtual IP, and there are none, set `listen.dns`, or remove it",
        ]
    );
}

#[test]
fn a_message_cannot_move_the_cursor() {
    let said = fault("\"\\e[2J\\r\": 1");
    assert!(!said.contains(char::is_control), "{said:?}");
    let inner = fault("advertise: [\"a\\e[2Jb\"]");
    assert!(!inner.contains(char::is_control), "{inner:?}");
    let long = fault(&format!("{}: 1", "k".repeat(900)));
    assert!(long.len() < 500, "{long}");
}

#[test]
fn an_etcd_is_given_whole() {
    assert_eq!(
        fault("registry: { store: etcd }"),
        "2:20: registry.store: nothing says where the etcd is, add `etcd: { endpoints: [\"host:2379\"] }` beside it"
    );
    assert!(fault("registry: { store: etcd, etcd: { endpoints: [] } }").contains("no member is given"));
    assert!(
        fault("registry: { store: etcd, etcd: { endpoint: ['a:1'] } }")
            .ends_with("registry.etcd.endpoint: unknown key, did you mean `endpoints`?")
    );
    assert!(
        fault("registry: { store: etcd, etcd: { endpoints: ['https://a:1'] } }")
            .ends_with("`https` needs the roots of its certificate, add `tls: { ca: FILE }`")
    );
    assert!(
        fault("registry: { store: etcd, etcd: { endpoints: ['http://a:1'], tls: { ca: x } } }")
            .contains("registry.etcd.endpoints[0]: `tls` is given, and this endpoint is `http`")
    );
    assert!(
        fault("registry: { store: etcd, etcd: { endpoints: ['a:1'], tls: { ca: x, key: y } } }")
            .ends_with("registry.etcd.tls.key: `key` is given without `cert`, give both, or none")
    );
    assert!(
        fault("registry: { store: etcd, etcd: { endpoints: ['a'] } }").contains("endpoints[0]: `a` is not")
    );
    assert!(fault("registry: { store: etdc }").ends_with("did you mean `etcd`?"));
    assert!(fault("endpoints: []").ends_with("`endpoints` belongs under `registry.etcd`"));
    let config = config("domain: a.test\nregistry: { etcd: { endpoints: ['a:1'] } }");
    assert_eq!(config.registry.store, carrick_config::Store::Embedded);
    assert!(config.warnings[0].to_string().contains("the records are kept in a file"));
}

#[test]
fn rules_of_the_registry_name_callers_and_services() {
    let missing = fault("registry: { admit: [{ who: ['spiffe://b.test/**'] }] }");
    assert!(missing.contains("registry.admit[0].services: the key is missing"), "{missing}");
    assert!(
        fault("registry: { show: [{ who: ['spiffe://b.test/**'], services: ['x@b.test'] }] }")
            .contains("registry.show[0].services[0]: `x@b.test` is not a pattern of services")
    );
    assert!(fault("registry: { show: [{ who: ['b.test'], services: ['*'] }] }").contains("show[0].who[0]"));
    let odd = config(
        "domain: a.test\ntrust: [{ domain: b.test, bundle: b }]\nregistry:\n  admit:\n\
         \x20 - { who: ['spiffe://b.test/**'], services: [] }\n\
         \x20 - { who: ['spiffe://a.test/x', 'spiffe://c.test/x'], services: ['*'] }",
    );
    let said: Vec<String> = odd.warnings.iter().map(Fault::to_string).collect();
    assert_eq!(said.len(), 3, "{said:?}");
    assert!(said[0].contains("admit[0].services: the list is empty"), "{said:?}");
    assert!(said[1].contains("callers of the own trust domain need no rule"), "{said:?}");
    assert!(said[2].contains("no `trust:` entry is for trust domain `c.test`"), "{said:?}");
}

#[test]
fn sockets_for_nsm_are_taken_once_too() {
    let nsm = |listen: &str| fault(&format!("compat: {{ nsm: {{ listen: [{listen}] }} }}"));
    assert!(
        nsm("'tcp://:7443'").contains("compat.nsm.listen[0]: `0.0.0.0:7443` is taken by `listen.control`")
    );
    assert!(nsm("':5001', '[::1]:5001'").contains("listen[1]: `[::1]:5001` is taken as part of `[::]:5001`"));
    assert!(nsm("'unix:///run/x', 'unix:///run/x'").contains("/run/x is taken by `compat.nsm.listen[0]`"));
    assert!(nsm("'registry:5002'").contains("for all addresses"));
    let many: Vec<String> = (6000..6017).map(|port| format!("':{port}'")).collect();
    assert!(nsm(&many.join(", ")).contains("at most 16 sockets"));
    config("domain: a.test\ncompat: { nsm: { listen: [':0', ':0', 'unix:///run/x', 'unix:///run/y'] } }");
    let import = fault(
        "compat: { nsm: { listen: ['unix:///x'] } }\nimports: [{ service: a@c.test, listen: 'unix:///x' }]",
    );
    assert!(import.contains("/x is taken by `compat.nsm.listen[0]` on line 2"), "{import}");
}

#[test]
fn keys_of_nsm_are_checked() {
    let nsm = |keys: &str| fault(&format!("compat: {{ nsm: {{ {keys} }} }}"));
    assert!(nsm("max_token_lifetime: 1s").ends_with("from `10s` to `10m`"));
    assert!(nsm("socket_mode: '999'").contains("write it in octal"));
    assert!(nsm("name: 'a b'").contains("is not a name for paths"));
    assert!(nsm("url: 'unix:///x'").contains("others call over TCP"));
    assert!(nsm("registry_url: registry").contains("a port is missing"));
    assert!(nsm("registry_ulr: 'r:1'").ends_with("did you mean `registry_url`?"));
    let both = nsm("registry_proxy_url: 'a:1', proxy_registry_url: 'b:1'");
    assert!(both.contains("`registry_proxy_url` says where these names go, keep one of the two"), "{both}");
    assert!(fault("nsm: {}").ends_with("`nsm` belongs under `compat`"));
    let on = |text: &str| config(&format!("domain: a.test\n{text}")).compat.nsm;
    assert!(on("compat: { nsm: { } }").on && !on("compat: {}").on && !on("compat: { nsm: }").on);
    assert_eq!(on("").name, "a.test/gateway");
}

#[test]
fn an_import_can_have_several_services() {
    let import = |rest: &str| fault(&format!("listen: {{ dns: '127.0.0.1:5353' }}\nimports: [{{ {rest} }}]"));
    assert!(
        import("service: [a@b.test, a@c.test, a@b.test]")
            .contains("3:43: imports[0].service[2]: `a@b.test` is in the list twice")
    );
    assert!(import("service: []").contains("imports[0].service: the list is empty"));
    assert!(
        import("service: [a@b.test, a@cloud.test]")
            .contains("service[1]: `a@cloud.test` is a service of this")
    );
    assert!(import("service: [a@b.test, a]").contains("service[1]: `a` is not a service of a domain"));
    assert!(
        import("service: [a@b.test, a@c.test], strategy: weighted, weights: [1]")
            .contains("there are 1 weights for 2 services, give one for each")
    );
    assert!(import("service: [a@b.test, a@c.test], weights: [1, 2]").contains("add `strategy: weighted`"));
    assert!(
        import("service: [a@b.test, a@c.test], strategy: weighted, weights: [0, 1]")
            .contains("imports[0].weights[0]: 0 is out of range, from 1 to 1000")
    );
    assert!(import("service: [a@b.test, a@c.test], strategy: fastest").contains("is not one of `priority`"));
    assert!(import("service: 7").contains("service: expected a text or a list, found the number 7"));
    let many: Vec<String> = (0..17).map(|n| format!("a@d{n}.test")).collect();
    assert!(import(&format!("service: [{}]", many.join(", "))).contains("at most 16 services"));
    let alone = config(
        "domain: a.test\nimports: [{ service: [x@b.test], strategy: nearest, listen: '127.0.0.1:1' }]",
    );
    assert!(alone.warnings.iter().any(|w| w.message == "there is one service to choose from"));
    assert!(alone.imports[0].others.is_empty());
}
