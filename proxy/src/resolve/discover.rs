//! One search for a domain: what is asked in which order, and what the answers mean together.

use std::{
    collections::{BTreeSet, HashMap},
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use carrick_model::{Domain, Host, HostPort};
use futures::{StreamExt, stream};
use hickory_resolver::proto::rr::{Name, RData, RecordType};

use super::{
    ResolveError, StaticPeer,
    gateways::{Candidate, Source},
    servers::{Answer, Reply, Servers, text},
};

/// Bounds of how long an answer is kept.
const TTL: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(3600));
/// Bounds of how long a `no` is kept.
const NEGATIVE_TTL: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// An answer that lacks the addresses of some host is asked for again soon.
const PARTIAL_TTL: u32 = 30;
/// `SRV` records used of one answer, and addresses used of one host and family: a zone can hold thousands.
const MAX_TARGETS: usize = 32;
const MAX_ADDRESSES: usize = 16;
/// Hosts whose addresses are asked for at once.
const HOSTS_AT_ONCE: usize = 16;

/// A search that found something.
pub(super) struct Found {
    pub(super) source: Source,
    pub(super) control: Vec<Candidate>,
    pub(super) tunnel: Vec<Candidate>,
    pub(super) registry: Vec<Candidate>,
    pub(super) ttl: Duration,
    pub(super) evidence: Vec<String>,
}

/// A search that found nothing, and for how long that holds.
pub(super) struct NotFound {
    pub(super) error: ResolveError,
    pub(super) ttl: Duration,
}

/// What one search learned so far.
struct Notes {
    lines: Vec<String>,
    /// The smallest TTL of what is used, in seconds.
    ttl: u32,
    /// The smallest TTL of what is missing, in seconds.
    negative_ttl: u32,
}

/// The content of one `SRV` lookup.
enum Srv {
    Missing,
    /// The one record has the target `.` (RFC 2782).
    NotOffered,
    Records(Vec<Target>),
}

/// An `SRV` record.
struct Target {
    priority: u16,
    weight: u16,
    port: u16,
    name: Name,
}

/// The addresses of some hosts, and what went wrong with the others.
struct Addresses {
    of: HashMap<Name, Vec<IpAddr>>,
    failure: Option<ResolveError>,
}

/// Looks for `domain` in the DNS: Carrick's records, then those of Network Service Mesh.
pub(super) async fn discover(servers: &Servers, domain: &Domain) -> Result<Found, NotFound> {
    let mut notes = Notes { lines: Vec::new(), ttl: u32::MAX, negative_ttl: u32::MAX };
    let found = match by_srv(servers, domain, &mut notes).await {
        Ok(None) => by_nsm(servers, domain, &mut notes).await,
        other => other,
    };
    match found {
        Ok(Some(found)) => Ok(found),
        Ok(None) => {
            let ttl = notes.negative_ttl();
            Err(NotFound {
                error: ResolveError::NotInDns { domain: domain.clone(), asked: notes.lines },
                ttl,
            })
        }
        Err(error) => Err(NotFound { error, ttl: notes.negative_ttl() }),
    }
}

/// The gateways of a peer of the config. Entries are tried in their order.
pub(super) async fn static_peer(servers: &Servers, peer: &StaticPeer) -> Result<Found, NotFound> {
    let mut notes = Notes { lines: Vec::new(), ttl: u32::MAX, negative_ttl: u32::MAX };
    let absolute = |d: &Domain| fqdn(d.as_str());
    let names: Result<BTreeSet<_>, _> =
        peer.control.iter().chain(&peer.tunnel).filter_map(host_name).map(absolute).collect();
    let addresses = match names {
        Ok(names) => addresses(servers, names, &mut notes).await,
        Err(error) => return Err(NotFound { error, ttl: NEGATIVE_TTL.1 }),
    };
    let candidates = |entries: &[HostPort]| {
        let mut out = Vec::new();
        for (i, entry) in entries.iter().enumerate() {
            let ips = match &entry.host {
                Host::Ip(ip) => vec![*ip],
                Host::Name(d) => {
                    absolute(d).ok().and_then(|n| addresses.of.get(&n).cloned()).unwrap_or_default()
                }
            };
            let priority = u16::try_from(i).unwrap_or(u16::MAX);
            out.extend(ips.into_iter().map(|ip| Candidate {
                addr: SocketAddr::new(ip, entry.port),
                host: entry.host.to_string(),
                priority,
                weight: 0,
            }));
        }
        out
    };
    let (control, tunnel) = (candidates(&peer.control), candidates(&peer.tunnel));
    if control.is_empty() {
        let target = peer.control.iter().map(|e| e.host.to_string()).collect::<Vec<_>>().join(", ");
        let nowhere = ResolveError::PeerPointsNowhere { domain: peer.domain.clone(), target };
        return Err(NotFound { error: addresses.failure.unwrap_or(nowhere), ttl: notes.negative_ttl() });
    }
    notes.lines.insert(0, format!("peers: entry of {} in the config", peer.domain));
    Ok(notes.found(Source::Static, control.clone(), tunnel, control))
}

fn host_name(entry: &HostPort) -> Option<&Domain> {
    match &entry.host {
        Host::Ip(_) => None,
        Host::Name(name) => Some(name),
    }
}

async fn by_srv(
    servers: &Servers,
    domain: &Domain,
    notes: &mut Notes,
) -> Result<Option<Found>, ResolveError> {
    let tcp_name = fqdn(&format!("_carrick._tcp.{domain}"))?;
    let udp_name = fqdn(&format!("_carrick._udp.{domain}"))?;
    let (tcp, udp) =
        tokio::join!(servers.ask(&tcp_name, RecordType::SRV), servers.ask(&udp_name, RecordType::SRV));
    let (tcp, udp) = (notes.srv(tcp?), notes.srv(udp?));
    let control = match tcp {
        Srv::Missing => return Ok(None),
        Srv::NotOffered => {
            return Err(ResolveError::NotOffered { domain: domain.clone(), name: text(&tcp_name) });
        }
        Srv::Records(targets) => targets,
    };
    let tunnel = match udp {
        Srv::Records(targets) => targets,
        Srv::NotOffered => {
            notes.lines.push(format!("{}: QUIC is decidedly not offered (target `.`)", text(&udp_name)));
            Vec::new()
        }
        Srv::Missing => {
            // The record may be made soon, and without it there is no QUIC.
            notes.ttl = notes.ttl.min(NEGATIVE_TTL.1.as_secs() as u32);
            Vec::new()
        }
    };
    let hosts = control.iter().chain(&tunnel).map(|t| t.name.clone()).collect();
    let addresses = addresses(servers, hosts, notes).await;
    let candidates = |targets: &[Target]| {
        targets.iter().flat_map(|t| addresses.candidates(t, &t.name)).collect::<Vec<_>>()
    };
    let (control_at, tunnel_at) = (candidates(&control), candidates(&tunnel));
    if control_at.is_empty() {
        let target = control.iter().map(|t| text(&t.name)).collect::<BTreeSet<_>>();
        let target = target.into_iter().collect::<Vec<_>>().join(", ");
        let nowhere = ResolveError::SrvPointsNowhere { domain: domain.clone(), target };
        return Err(addresses.failure.unwrap_or(nowhere));
    }
    Ok(Some(notes.found(Source::Srv, control_at.clone(), tunnel_at, control_at)))
}

/// NSM's rule (its `dnsresolve`): the port of the `SRV` record and the address of the same name. Its target is honoured
/// too, so that the first record's result is among the candidates whichever rule the domain's operator had in mind.
async fn by_nsm(
    servers: &Servers,
    domain: &Domain,
    notes: &mut Notes,
) -> Result<Option<Found>, ResolveError> {
    let registry_name = fqdn(&format!("registry.nsm-system.{domain}"))?;
    let proxy_name = fqdn(&format!("nsmgr-proxy.nsm-system.{domain}"))?;
    let (registry, proxy) =
        tokio::join!(servers.ask(&registry_name, RecordType::SRV), servers.ask(&proxy_name, RecordType::SRV));
    let Srv::Records(registry) = notes.srv(registry?) else { return Ok(None) };
    // The registry of a floating domain stands alone.
    let proxy = match notes.srv(proxy?) {
        Srv::Records(targets) => targets,
        Srv::Missing | Srv::NotOffered => Vec::new(),
    };
    let mut hosts: BTreeSet<_> = registry.iter().chain(&proxy).map(|t| t.name.clone()).collect();
    hosts.insert(registry_name.clone());
    if !proxy.is_empty() {
        hosts.insert(proxy_name.clone());
    }
    let addresses = addresses(servers, hosts, notes).await;
    let candidates = |targets: &[Target], own: &Name| {
        let mut seen = BTreeSet::new();
        let both = |t: &Target| [addresses.candidates(t, own), addresses.candidates(t, &t.name)].concat();
        targets.iter().flat_map(both).filter(|c| seen.insert(c.addr)).collect::<Vec<_>>()
    };
    let (registry_at, proxy_at) = (candidates(&registry, &registry_name), candidates(&proxy, &proxy_name));
    if registry_at.is_empty() {
        let target = text(&registry_name);
        let nowhere = ResolveError::SrvPointsNowhere { domain: domain.clone(), target };
        return Err(addresses.failure.unwrap_or(nowhere));
    }
    Ok(Some(notes.found(Source::Nsm, proxy_at, Vec::new(), registry_at)))
}

/// A and AAAA of every host. A host without addresses costs nothing but a line in the notes.
async fn addresses(servers: &Servers, hosts: BTreeSet<Name>, notes: &mut Notes) -> Addresses {
    let ask = |host: Name| async move {
        let answers = tokio::join!(servers.ask(&host, RecordType::AAAA), servers.ask(&host, RecordType::A));
        (host, [answers.0, answers.1])
    };
    let mut all: Vec<_> = stream::iter(hosts).map(ask).buffer_unordered(HOSTS_AT_ONCE).collect().await;
    all.sort_by(|a, b| a.0.cmp(&b.0));
    let mut addresses = Addresses { of: HashMap::new(), failure: None };
    for (host, answers) in all {
        let mut ips = Vec::new();
        for answer in answers {
            match answer {
                Ok(answer) => ips.extend(notes.ips(answer)),
                Err(error) => {
                    notes.lines.push(error.to_string());
                    notes.ttl = notes.ttl.min(PARTIAL_TTL);
                    addresses.failure = Some(error);
                }
            }
        }
        addresses.of.insert(host, ips);
    }
    addresses
}

impl Addresses {
    /// The candidates of an `SRV` record whose addresses are those of `host`.
    fn candidates(&self, target: &Target, host: &Name) -> Vec<Candidate> {
        let ips = self.of.get(host).map_or(&[][..], Vec::as_slice);
        // Port 0 cannot be dialled.
        ips.iter()
            .filter(|_| target.port != 0)
            .map(|ip| Candidate {
                addr: SocketAddr::new(*ip, target.port),
                host: text(host),
                priority: target.priority,
                weight: target.weight,
            })
            .collect()
    }
}

impl Notes {
    fn srv(&mut self, answer: Answer) -> Srv {
        let Answer { reply, line } = answer;
        self.lines.push(line);
        let records = match reply {
            Reply::Nothing { ttl } => {
                self.missing(ttl);
                return Srv::Missing;
            }
            Reply::Records { records, ttl } => {
                self.ttl = self.ttl.min(ttl);
                records
            }
        };
        let mut targets: Vec<_> = records
            .into_iter()
            .filter_map(|r| match r.data {
                RData::SRV(s) => {
                    Some(Target { priority: s.priority, weight: s.weight, port: s.port, name: s.target })
                }
                _ => None,
            })
            .collect();
        if let [only] = &targets[..]
            && only.name.is_root()
        {
            return Srv::NotOffered;
        }
        targets.retain(|t| !t.name.is_root());
        targets.sort_by_key(|t| t.priority);
        if targets.len() > MAX_TARGETS {
            self.lines.push(format!("only the first {MAX_TARGETS} of {} records are used", targets.len()));
            targets.truncate(MAX_TARGETS);
        }
        Srv::Records(targets)
    }

    fn ips(&mut self, answer: Answer) -> Vec<IpAddr> {
        self.lines.push(answer.line);
        match answer.reply {
            Reply::Nothing { ttl } => {
                self.missing(ttl);
                Vec::new()
            }
            Reply::Records { records, ttl } => {
                self.ttl = self.ttl.min(ttl);
                let ips = records.iter().filter_map(|r| r.data.ip_addr()).map(|ip| ip.to_canonical());
                // Nobody can be dialled at 0.0.0.0 or at a group.
                ips.filter(|ip| !ip.is_unspecified() && !ip.is_multicast()).take(MAX_ADDRESSES).collect()
            }
        }
    }

    /// RFC 2308 section 5: a `no` without an SOA must not be kept, so it gets the lower bound.
    fn missing(&mut self, ttl: Option<u32>) {
        self.negative_ttl = self.negative_ttl.min(ttl.unwrap_or(0));
    }

    fn negative_ttl(&self) -> Duration {
        Duration::from_secs(self.negative_ttl.into()).clamp(NEGATIVE_TTL.0, NEGATIVE_TTL.1)
    }

    fn found(
        &mut self,
        source: Source,
        control: Vec<Candidate>,
        tunnel: Vec<Candidate>,
        registry: Vec<Candidate>,
    ) -> Found {
        let ttl = Duration::from_secs(self.ttl.into()).clamp(TTL.0, TTL.1);
        Found { source, control, tunnel, registry, ttl, evidence: std::mem::take(&mut self.lines) }
    }
}

fn fqdn(text: &str) -> Result<Name, ResolveError> {
    let too_long = |_| ResolveError::TooLong { name: text.to_owned() };
    Name::from_ascii(format!("{text}.")).map_err(too_long)
}
