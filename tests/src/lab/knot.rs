//! The WAN's DNS server: Debian's knot, authoritative for the domains of the sites.

use std::{
    fmt::Write,
    net::{Ipv4Addr, Ipv6Addr},
    path::PathBuf,
    time::Duration,
};

use super::{DNS, DNS6, Daemon, Lab, Signal, within};

/// Seconds an answer may be cached: short, so that a test can watch it expire.
const TTL: u32 = 2;

/// One zone. Names are relative to it unless they end with a dot.
#[derive(Debug, Clone)]
pub struct Zone {
    name: String,
    records: String,
    /// The whole file, where somebody else wrote it.
    printed: Option<String>,
}

impl Zone {
    /// An empty zone: SOA and NS only.
    pub fn new(name: &str) -> Self {
        Self { name: name.to_owned(), records: String::new(), printed: None }
    }

    /// A zone file that another program wrote.
    pub fn printed(name: &str, file: String) -> Self {
        Self { printed: Some(file), ..Self::new(name) }
    }

    /// What a domain with one gateway publishes: both SRV records and the gateway's addresses.
    pub fn gateway(name: &str, port: u16, v4: Ipv4Addr, v6: Ipv6Addr) -> Self {
        Self::new(name).carrick(10, 50, port, "gw").a("gw", v4).aaaa("gw", v6)
    }

    /// `_carrick._tcp` and `_carrick._udp` to one target.
    #[must_use]
    pub fn carrick(self, priority: u16, weight: u16, port: u16, target: &str) -> Self {
        self.srv("_carrick._tcp", priority, weight, port, target).srv(
            "_carrick._udp",
            priority,
            weight,
            port,
            target,
        )
    }

    /// What a domain of Network Service Mesh publishes: an SRV record and an address under one name for its registry, and for
    /// its proxy if there is one.
    pub fn nsm(name: &str, registry: u16, proxy: Option<u16>, addr: Ipv4Addr) -> Self {
        let parts = [("registry.nsm-system", Some(registry)), ("nsmgr-proxy.nsm-system", proxy)];
        let there = parts.into_iter().filter_map(|(part, port)| Some((part, port?)));
        there.fold(Self::new(name), |zone, (part, port)| zone.srv(part, 0, 0, port, part).a(part, addr))
    }

    /// An SRV record (RFC 2782).
    #[must_use]
    pub fn srv(self, owner: &str, priority: u16, weight: u16, port: u16, target: &str) -> Self {
        self.record(owner, "SRV", format_args!("{priority} {weight} {port} {target}"))
    }

    /// An IPv4 address.
    #[must_use]
    pub fn a(self, owner: &str, addr: Ipv4Addr) -> Self {
        self.record(owner, "A", format_args!("{addr}"))
    }

    /// An IPv6 address.
    #[must_use]
    pub fn aaaa(self, owner: &str, addr: Ipv6Addr) -> Self {
        self.record(owner, "AAAA", format_args!("{addr}"))
    }

    /// An alias.
    #[must_use]
    pub fn cname(self, owner: &str, target: &str) -> Self {
        self.record(owner, "CNAME", format_args!("{target}"))
    }

    fn record(mut self, owner: &str, kind: &str, data: std::fmt::Arguments<'_>) -> Self {
        writeln!(self.records, "{owner} {kind} {data}").unwrap();
        self
    }

    fn file(&self, serial: u32) -> String {
        if let Some(file) = &self.printed {
            return file.clone();
        }
        format!(
            "$ORIGIN {name}.\n$TTL {TTL}\n@ SOA ns hostmaster {serial} 60 30 600 {TTL}\n@ NS ns\nns A {DNS}\nns AAAA {DNS6}\n{records}",
            name = self.name,
            records = self.records
        )
    }
}

/// The serial number in the SOA of a zone file whose records are on one line each.
fn serial_of(file: &str) -> Option<u32> {
    let soa = file.lines().find(|line| line.split_whitespace().any(|word| word == "SOA"))?;
    soa.split_whitespace().skip_while(|word| *word != "SOA").nth(3)?.parse().ok()
}

/// A running knotd on [`DNS`] and [`DNS6`], port 53, in the WAN.
pub struct Knot {
    daemon: Option<Daemon>,
    lab_dir: PathBuf,
    start: Box<dyn Fn() -> Daemon>,
    ask: super::Namespace,
    serial: u32,
    zones: Vec<Zone>,
}

impl Knot {
    /// Starts it and waits until it answers. Needs `knotd` and `kdig`.
    pub fn start(lab: &Lab, zones: impl IntoIterator<Item = Zone>) -> Self {
        let dir = lab.dir().join("knot");
        std::fs::create_dir_all(dir.join("db")).unwrap();
        let (wan, logs, conf) = (lab.wan.clone(), lab.dir().to_owned(), dir.join("knot.conf"));
        let start = move || {
            let mut command = wan.command("knotd");
            command.arg("--config").arg(&conf);
            Daemon::spawn(&logs, "knot", command).stopped_by(Signal::TERM)
        };
        let mut knot = Self {
            daemon: None,
            lab_dir: dir,
            start: Box::new(start),
            ask: lab.a.ns.clone(),
            serial: 0,
            zones: zones.into_iter().collect(),
        };
        knot.write();
        knot.up();
        knot
    }

    /// Replaces the zone of the same name, or adds one, and waits until the answer is the new one.
    pub fn publish(&mut self, zone: Zone) {
        self.zones.retain(|z| z.name != zone.name);
        let name = zone.name.clone();
        let printed = zone.printed.as_deref().and_then(serial_of);
        self.zones.push(zone);
        self.write();
        let serial = printed.unwrap_or(self.serial);
        if let Some(daemon) = &self.daemon {
            daemon.signal(Signal::HUP);
            within(Duration::from_secs(5), &format!("{name} with serial {serial}"), || {
                self.dig(&[&name, "SOA"])
                    .split_whitespace()
                    .nth(2)?
                    .parse()
                    .ok()
                    .filter(|s: &u32| *s == serial)
            });
        }
    }

    /// Stops answering, as a server that crashed.
    pub fn down(&mut self) {
        if let Some(mut daemon) = self.daemon.take() {
            daemon.kill();
        }
    }

    /// Answers again.
    pub fn up(&mut self) {
        self.daemon = Some((self.start)());
        let Some(zone) = self.zones.first().map(|z| z.name.clone()) else { return };
        within(Duration::from_secs(5), "an answer from knot", || {
            (!self.dig(&[&zone, "SOA"]).is_empty()).then_some(())
        });
    }

    /// `kdig +short` from site a.
    pub fn dig(&self, args: &[&str]) -> String {
        let server = format!("@{DNS}");
        let mut all = vec![server.as_str(), "+short", "+timeout=1", "+retry=0"];
        all.extend(args);
        self.ask.run("kdig", &all).stdout.trim().to_owned()
    }

    fn write(&mut self) {
        self.serial += 1;
        let dir = self.lab_dir.display().to_string();
        let mut conf = format!(
            "server:\n    rundir: \"{dir}\"\n    user: root:root\n    listen: [ {DNS}@53, \"{DNS6}@53\" ]\n    \
             udp-workers: 1\n    tcp-workers: 1\n    background-workers: 1\n\
             log:\n  - target: stderr\n    any: info\n\
             database:\n    storage: \"{dir}/db\"\n\
             template:\n  - id: default\n    storage: \"{dir}\"\n    journal-content: none\n    zonefile-load: whole\n    \
             zonefile-sync: -1\n\
             zone:\n"
        );
        for zone in &self.zones {
            writeln!(conf, "  - domain: {name}\n    file: \"{name}.zone\"", name = zone.name).unwrap();
            std::fs::write(self.lab_dir.join(format!("{}.zone", zone.name)), zone.file(self.serial)).unwrap();
        }
        std::fs::write(self.lab_dir.join("knot.conf"), conf).unwrap();
    }
}
