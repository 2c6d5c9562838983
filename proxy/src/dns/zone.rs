//! What our DNS server knows, and its answer to a question. No IO.

use std::{
    collections::{BTreeSet, HashMap},
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
};

use arc_swap::ArcSwap;
use carrick_model::{Domain, Host, ServiceName};
use hickory_resolver::proto::{
    op::{Query, ResponseCode},
    rr::{
        DNSClass, Name, RData, Record, RecordType,
        rdata::{NS, SOA, SRV},
    },
};

/// Seconds for which others keep the records of our own domain: short enough to follow a gateway that moves.
const OWN_TTL: u32 = 60;
/// Seconds for which applications keep the virtual IP of an import, and that there is none.
const IMPORT_TTL: u32 = 5;

/// Our own domain as others see it in the DNS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnDomain {
    /// Its name.
    pub domain: Domain,
    /// Where its gateways are. Literal addresses become `gw.<domain>`, names become `SRV` targets as they are.
    pub advertise: Vec<Host>,
    /// The TCP port of the control plane.
    pub control_port: u16,
    /// The UDP port of the tunnel.
    pub tunnel_port: u16,
    /// Whether to publish the names of Network Service Mesh too, with the control plane behind them.
    pub nsm: Option<NsmPorts>,
}

/// The TCP ports that the names of Network Service Mesh lead to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NsmPorts {
    /// Of `registry.nsm-system.<domain>`.
    pub registry: u16,
    /// Of `nsmgr-proxy.nsm-system.<domain>`.
    pub proxy: u16,
}

/// An immutable snapshot of everything our DNS server is authoritative for: our own domain, and the imports under the
/// suffix.
#[derive(Debug, Clone)]
pub struct Zone {
    /// Longest apex first, so that a zone inside another is found before it.
    apexes: Vec<Apex>,
    /// Records by lower-case name. A name without records is an empty non-terminal (RFC 8020), and exists.
    nodes: HashMap<Name, Vec<Record>>,
    warnings: Vec<String>,
}

#[derive(Debug, Clone)]
struct Apex {
    name: Name,
    kind: ZoneKind,
    soa: Record,
}

/// Which of our zones a question fell into.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ZoneKind {
    /// Our own domain.
    Own,
    /// The names of imports.
    Imports,
    /// None of ours.
    Foreign,
}

/// The sections of an answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    /// The zone the question fell into.
    pub zone: ZoneKind,
    /// The result.
    pub code: ResponseCode,
    /// Whether we are the authority for it.
    pub authoritative: bool,
    /// What was asked for.
    pub answers: Vec<Record>,
    /// The SOA of a negative answer (RFC 2308).
    pub authorities: Vec<Record>,
    /// Addresses of the targets, so that nobody has to ask for them.
    pub additionals: Vec<Record>,
}

/// Why a zone cannot be built.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ZoneError {
    /// A name does not fit into the DNS.
    #[error("`{0}` is not a DNS name of at most 255 octets")]
    Name(String),
}

/// The zone that is served now. Clones are the same handle; [`set`](Self::set) swaps without a pause.
#[derive(Debug, Clone)]
pub struct ZoneHandle {
    current: Arc<ArcSwap<Zone>>,
}

impl ZoneHandle {
    /// A handle that serves `zone`.
    pub fn new(zone: Zone) -> Self {
        Self { current: Arc::new(ArcSwap::from_pointee(zone)) }
    }

    /// Serves `zone` from the next question on. Its SOA serial follows that of the one before it.
    pub fn set(&self, zone: Zone) {
        let serial = self.current.load().serial().wrapping_add(1);
        self.current.store(Arc::new(zone.with_serial(serial)));
    }

    /// The zone served now.
    pub fn get(&self) -> Arc<Zone> {
        self.current.load_full()
    }
}

impl Default for ZoneHandle {
    fn default() -> Self {
        Self::new(Zone::empty())
    }
}

impl Zone {
    /// Authoritative for nothing: every question is refused.
    pub fn empty() -> Self {
        Self { apexes: Vec::new(), nodes: HashMap::new(), warnings: Vec::new() }
    }

    /// The records of our own domain, if any, and of `imports` under `suffix`.
    pub fn new<'a>(
        own: Option<&OwnDomain>,
        suffix: &str,
        imports: impl IntoIterator<Item = (&'a ServiceName, Ipv4Addr)>,
    ) -> Result<Self, ZoneError> {
        let mut zone = Self::empty();
        if let Some(own) = own {
            zone.add_own(own)?;
        }
        // As the built-in zones of other servers have it: a zone that exists on this machine only.
        let suffix_name = name(suffix)?;
        if zone.apexes.iter().all(|a| a.name != suffix_name) {
            zone.add_apex(suffix_name, ZoneKind::Imports, name("localhost")?, IMPORT_TTL)?;
        }
        for (service, ip) in imports {
            match name(&service.dns_name(suffix)) {
                Ok(name) => zone.add(name, IMPORT_TTL, RData::A(ip.into())),
                Err(error) => zone.warnings.push(format!("import {service} has no DNS name: {error}")),
            }
        }
        zone.apexes.sort_by_key(|a| std::cmp::Reverse(a.name.num_labels()));
        zone.close_gaps();
        Ok(zone)
    }

    /// What the operator should know about these records.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// All records.
    pub(super) fn records(&self) -> impl Iterator<Item = &Record> {
        self.nodes.values().flatten()
    }

    /// The serial number of the SOA records.
    pub fn serial(&self) -> u32 {
        match self.apexes.first().map(|a| &a.soa.data) {
            Some(RData::SOA(soa)) => soa.serial,
            _ => 0,
        }
    }

    /// Our answer to `query`.
    pub fn answer(&self, query: &Query) -> Answer {
        let asked = query.name().to_lowercase();
        let apex = self.apexes.iter().find(|a| a.name.zone_of(&asked));
        let Some(apex) = apex.filter(|_| query.query_class() == DNSClass::IN) else {
            return Answer::empty(ZoneKind::Foreign, ResponseCode::Refused);
        };
        let mut answer = Answer::empty(apex.kind, ResponseCode::NoError);
        if matches!(query.query_type(), RecordType::AXFR | RecordType::IXFR) {
            answer.code = ResponseCode::Refused;
            return answer;
        }
        answer.authoritative = true;
        match self.nodes.get(&asked) {
            None => answer.code = ResponseCode::NXDomain,
            Some(records) => answer.answers = matching(records, query.query_type()),
        }
        if answer.answers.is_empty() {
            answer.authorities.push(apex.soa.clone());
            return answer;
        }
        answer.additionals = self.glue(&answer.answers);
        for record in &mut answer.answers {
            // As it was spelt: some clients compare the case to tell forged answers (draft-vixie-dnsext-dns0x20).
            record.name = query.name().clone();
        }
        answer
    }

    /// The addresses of what `answers` point to, as far as they are ours to tell.
    fn glue(&self, answers: &[Record]) -> Vec<Record> {
        let targets: BTreeSet<&Name> = answers
            .iter()
            .filter_map(|r| match &r.data {
                RData::SRV(srv) => Some(&srv.target),
                RData::NS(ns) => Some(&ns.0),
                _ => None,
            })
            .collect();
        let addresses = |r: &&Record| matches!(r.record_type(), RecordType::A | RecordType::AAAA);
        targets.iter().filter_map(|t| self.nodes.get(*t)).flatten().filter(addresses).cloned().collect()
    }

    fn add_own(&mut self, own: &OwnDomain) -> Result<(), ZoneError> {
        let apex = name(own.domain.as_str())?;
        let gateway = name(&format!("gw.{}", own.domain))?;
        let mut ips: Vec<IpAddr> = Vec::new();
        let mut targets: Vec<Name> = Vec::new();
        for host in &own.advertise {
            let target = match host {
                Host::Ip(ip) if ip.is_unspecified() => {
                    self.warnings.push(format!("{ip} is no address to be reached at: set `advertise:`"));
                    continue;
                }
                Host::Ip(ip) => {
                    ips.push(*ip);
                    gateway.clone()
                }
                Host::Name(host) => name(host.as_str())?,
            };
            if !targets.contains(&target) {
                targets.push(target);
            }
        }
        if targets.is_empty() {
            self.warnings
                .push(format!("no address is advertised: nobody finds {} through this server", own.domain));
        }
        let server = targets.first().cloned().map_or_else(|| name("localhost"), Ok)?;
        self.add_apex(apex.clone(), ZoneKind::Own, server, OWN_TTL)?;
        for target in targets.iter().filter(|t| apex.zone_of(t)) {
            if ips.is_empty() {
                self.warnings.push(format!(
                    "{target} lies in the zone served here, which has no address for it: advertise the address too"
                ));
            }
            self.add_addresses(target, &ips);
        }
        for (label, port) in [("_carrick._tcp", own.control_port), ("_carrick._udp", own.tunnel_port)] {
            for target in &targets {
                // RFC 2782: weight 0 where there is nothing to choose.
                let srv = SRV::new(0, 0, port, target.clone());
                self.add(name(&format!("{label}.{}", own.domain))?, OWN_TTL, RData::SRV(srv));
            }
        }
        let Some(ports) = own.nsm else { return Ok(()) };
        if ips.is_empty() {
            self.warnings.push("NSM's names need an address, and only names are advertised".to_owned());
            return Ok(());
        }
        for (service, port) in [("registry", ports.registry), ("nsmgr-proxy", ports.proxy)] {
            // NSM asks for the SRV record and the address under one name.
            let host = name(&format!("{service}.nsm-system.{}", own.domain))?;
            self.add(host.clone(), OWN_TTL, RData::SRV(SRV::new(0, 0, port, host.clone())));
            self.add_addresses(&host, &ips);
        }
        Ok(())
    }

    fn add_apex(&mut self, apex: Name, kind: ZoneKind, server: Name, ttl: u32) -> Result<(), ZoneError> {
        let mailbox = name("nobody.invalid")?;
        // Refresh, retry and expire are for secondaries, which there are none of; the minimum is the negative TTL.
        let soa = SOA::new(server.clone(), mailbox, 1, 3600, 600, 86_400, ttl);
        let soa = Record::from_rdata(apex.clone(), ttl, RData::SOA(soa));
        self.nodes.entry(apex.clone()).or_default().push(soa.clone());
        self.add(apex.clone(), ttl, RData::NS(NS(server)));
        self.apexes.push(Apex { name: apex, kind, soa });
        Ok(())
    }

    fn add_addresses(&mut self, host: &Name, ips: &[IpAddr]) {
        for ip in ips {
            self.add(host.clone(), OWN_TTL, RData::from(*ip));
        }
    }

    fn add(&mut self, name: Name, ttl: u32, data: RData) {
        let records = self.nodes.entry(name.clone()).or_default();
        if records.iter().all(|r| r.data != data) {
            records.push(Record::from_rdata(name, ttl, data));
        }
    }

    /// Makes the names between a record and its apex exist.
    fn close_gaps(&mut self) {
        let names: Vec<_> = self.nodes.keys().cloned().collect();
        for name in names {
            let Some(apex) = self.apexes.iter().find(|a| a.name.zone_of(&name)) else { continue };
            let mut parent = name.base_name();
            while apex.name.zone_of(&parent) {
                self.nodes.entry(parent.clone()).or_default();
                if parent == apex.name {
                    break;
                }
                parent = parent.base_name();
            }
        }
    }

    pub(super) fn with_serial(mut self, serial: u32) -> Self {
        let own_records = self.nodes.values_mut().flatten();
        for record in self.apexes.iter_mut().map(|a| &mut a.soa).chain(own_records) {
            if let RData::SOA(soa) = &mut record.data {
                soa.serial = serial;
            }
        }
        self
    }
}

impl Answer {
    fn empty(zone: ZoneKind, code: ResponseCode) -> Self {
        Self {
            zone,
            code,
            authoritative: false,
            answers: Vec::new(),
            authorities: Vec::new(),
            additionals: Vec::new(),
        }
    }
}

/// The records of the type asked for. ANY gets one type only (RFC 8482 section 4.1): it is asked by those who want a
/// large answer sent to somebody else.
fn matching(records: &[Record], kind: RecordType) -> Vec<Record> {
    let kind = match kind {
        RecordType::ANY => records.first().map_or(kind, Record::record_type),
        kind => kind,
    };
    records.iter().filter(|r| r.record_type() == kind).cloned().collect()
}

fn name(text: &str) -> Result<Name, ZoneError> {
    let bad = |_| ZoneError::Name(text.to_owned());
    let text = text.trim_matches('.');
    Name::from_ascii(format!("{text}.")).map(|n| n.to_lowercase()).map_err(bad)
}
