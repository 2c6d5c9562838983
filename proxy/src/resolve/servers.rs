//! Questions to the DNS servers: who is asked, for how long, and what counts as an answer.
//!
//! hickory carries each question (random port and id, retransmission, the question echoed, TCP after truncation); the
//! choice of servers, aliases, time limits and TTLs are ours, so its resolver and cache are not used. hickory's own pool
//! would take a failure of the first server for the answer.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use carrick_runtime::race;
use carrick_telemetry::Metrics;
use hickory_resolver::{
    Hosts, NameServerPool, PoolContext, TlsConfig,
    config::{ConnectionConfig, NameServerConfig, ProtocolConfig, ResolverOpts},
    net::{
        DnsError, NetError, NoRecords,
        runtime::TokioRuntimeProvider,
        xfer::{DnsHandle, FirstAnswer},
    },
    proto::{
        op::{DnsRequestOptions, DnsResponse, Query, ResponseCode},
        rr::{Name, RData, Record, RecordType},
    },
    system_conf::parse_resolv_conf,
};
use parking_lot::Mutex;
use tokio::{
    sync::Semaphore,
    time::{Instant, timeout},
};

use super::{ResolveError, ResolverSettings, SetupError};

/// The next server is asked when the one before it was silent for so long. Well above a usual answer's time, well
/// below the time limit.
const STAGGER: Duration = Duration::from_millis(300);
/// For so long the server that answered is asked first after the one before it failed. Short, because servers are
/// listed in an order for a reason.
const PREFERENCE: Duration = Duration::from_secs(60);
/// Aliases followed for one question; BIND and Unbound stop between 8 and 16.
const MAX_ALIASES: usize = 8;
/// Questions under way at once: each holds a socket.
const MAX_QUESTIONS: usize = 256;
const RESOLV_CONF: &str = "/etc/resolv.conf";

/// The DNS servers that are asked, and how.
pub(super) struct Servers {
    pools: Vec<(SocketAddr, NameServerPool<TokioRuntimeProvider>)>,
    hosts: Option<Hosts>,
    timeout: Duration,
    attempts: usize,
    preferred: Mutex<Option<(SocketAddr, Instant)>>,
    limit: Semaphore,
    metrics: Metrics,
}

/// What the DNS says about one name and type, aliases followed.
pub(super) struct Answer {
    pub(super) reply: Reply,
    /// Question and answer in a line for people.
    pub(super) line: String,
}

/// The content of an [`Answer`].
pub(super) enum Reply {
    /// Records of the type asked for, with the smallest TTL of them and of the aliases on the way, in seconds.
    Records { records: Vec<Record>, ttl: u32 },
    /// There is no such record. `ttl` is the time for which that holds (RFC 2308), if the server gave one.
    Nothing { ttl: Option<u32> },
}

/// One server's answer to one question.
struct Raw {
    answers: Vec<Record>,
    /// The name does not exist, as opposed to having no such record.
    no_such_name: bool,
    negative_ttl: Option<u32>,
    from: Option<SocketAddr>,
}

/// Why one server gave no answer.
#[derive(Debug, Clone, thiserror::Error)]
enum Fault {
    #[error("no answer in {} ms", .0.as_millis())]
    Silent(Duration),
    #[error("{0}")]
    Io(String),
    #[error("it answered {0}")]
    Code(ResponseCode),
    #[error("{0}")]
    Garbage(String),
}

impl Servers {
    pub(super) fn new(settings: ResolverSettings, metrics: Metrics) -> Result<Self, SetupError> {
        let system = settings.servers.is_empty();
        let addrs = if system { system_servers()? } else { settings.servers };
        let mut options = ResolverOpts::default();
        options.timeout = settings.timeout;
        options.num_concurrent_reqs = 1;
        options.cache_size = 0;
        let tls = TlsConfig::new().map_err(SetupError::Resolver)?;
        let context = Arc::new(PoolContext::new(options, tls));
        let pools = addrs
            .into_iter()
            .map(|addr| {
                let pool = NameServerPool::from_config(
                    [server_config(addr)],
                    Arc::clone(&context),
                    TokioRuntimeProvider::default(),
                );
                (addr, pool)
            })
            .collect();
        Ok(Self {
            pools,
            // A host without the file has no names in it.
            hosts: system.then(|| Hosts::from_system().unwrap_or_default()),
            timeout: settings.timeout,
            attempts: settings.attempts.max(1),
            preferred: Mutex::new(None),
            limit: Semaphore::new(MAX_QUESTIONS),
            metrics,
        })
    }

    /// Asks for the records of `kind` at `name` and follows aliases.
    pub(super) async fn ask(&self, name: &Name, kind: RecordType) -> Result<Answer, ResolveError> {
        let began = Instant::now();
        let (mut target, mut ttl, mut aliases) = (name.clone(), u32::MAX, 0);
        loop {
            let raw = self.ask_once(&target, kind).await?;
            let asked = target.clone();
            while let Some((next, alias_ttl)) = alias_of(&raw.answers, &target) {
                aliases += 1;
                if aliases > MAX_ALIASES {
                    return Err(ResolveError::AliasLoop { name: text(name) });
                }
                ttl = ttl.min(alias_ttl);
                target = next;
            }
            let records: Vec<_> =
                raw.answers.into_iter().filter(|r| r.record_type() == kind && r.name == target).collect();
            let moved = target != asked;
            let reply = if !records.is_empty() {
                let ttl = records.iter().map(|r| r.ttl).fold(ttl, u32::min);
                Reply::Records { records, ttl }
            } else if moved && !raw.no_such_name && raw.negative_ttl.is_none() {
                // The alias leads out of what this server answered for.
                continue;
            } else {
                Reply::Nothing { ttl: raw.negative_ttl }
            };
            let what = match &reply {
                Reply::Records { records, ttl } => {
                    let n = records.len();
                    format!("{n} record{}, TTL {ttl} s", if n == 1 { "" } else { "s" })
                }
                Reply::Nothing { .. } if raw.no_such_name => "no such name".to_owned(),
                Reply::Nothing { .. } => "no such record".to_owned(),
            };
            let via =
                if aliases > 0 { format!(" at {} ({aliases} CNAME)", text(&target)) } else { String::new() };
            let from = raw.from.map_or_else(|| "hosts file".to_owned(), |a| a.to_string());
            let took = began.elapsed().as_secs_f64() * 1e3;
            let line = format!("{kind} {}: {what}{via} (from {from} in {took:.1} ms)", text(name));
            return Ok(Answer { reply, line });
        }
    }

    /// One question to the servers in turn, without following aliases.
    async fn ask_once(&self, name: &Name, kind: RecordType) -> Result<Raw, ResolveError> {
        if let Some(raw) = self.known_here(name, kind) {
            return Ok(raw);
        }
        // The semaphore is never closed, and without a permit the question is only unbounded, not wrong.
        let _permit = self.limit.acquire().await.ok();
        let mut faults = Vec::new();
        for _ in 0..self.attempts {
            match race(self.in_turn(), STAGGER, |addr| self.ask_server(addr, name, kind)).await {
                Ok((addr, raw)) => {
                    self.count(kind, if raw.answers.is_empty() { "nothing" } else { "answered" });
                    self.remember(addr);
                    return Ok(Raw { from: Some(addr), ..raw });
                }
                Err(lost) => faults = lost.attempts,
            }
            // Who refuses us now does so a moment later too.
            if faults.iter().all(|(_, f)| matches!(f, Fault::Code(ResponseCode::Refused))) {
                break;
            }
        }
        self.count(kind, "failed");
        Err(verdict(name, &faults))
    }

    fn count(&self, kind: RecordType, outcome: &'static str) {
        let kind = match kind {
            RecordType::SRV => "srv",
            RecordType::A => "a",
            _ => "aaaa",
        };
        self.metrics.dns_questions.of2(kind, outcome).inc();
    }

    /// The hosts file, when the system's resolver is used, and `localhost` (RFC 6761 section 6.3).
    fn known_here(&self, name: &Name, kind: RecordType) -> Option<Raw> {
        let loopback = match kind {
            RecordType::A => Some(IpAddr::from(Ipv4Addr::LOCALHOST)),
            RecordType::AAAA => Some(IpAddr::from(Ipv6Addr::LOCALHOST)),
            _ => None,
        };
        let answers = if name.is_localhost() {
            loopback.map(|ip| Record::from_rdata(name.clone(), 3600, ip.into())).into_iter().collect()
        } else {
            let found = self.hosts.as_ref()?.lookup_static_host(&Query::query(name.clone(), kind))?;
            // hickory gives these a TTL of a day, but the file is a line in an editor away from changing.
            found
                .answers()
                .iter()
                .cloned()
                .map(|mut r| {
                    r.ttl = 60;
                    r
                })
                .collect()
        };
        Some(Raw { answers, no_such_name: false, negative_ttl: Some(3600), from: None })
    }

    /// The servers as listed, the one that answered lately first.
    fn in_turn(&self) -> Vec<SocketAddr> {
        let mut addrs: Vec<_> = self.pools.iter().map(|(addr, _)| *addr).collect();
        let preferred = (*self.preferred.lock()).filter(|(_, until)| Instant::now() < *until);
        if let Some((addr, _)) = preferred {
            addrs.sort_by_key(|a| *a != addr);
        }
        addrs
    }

    fn remember(&self, addr: SocketAddr) {
        let first = self.pools.first().is_some_and(|(a, _)| *a == addr);
        let mut preferred = self.preferred.lock();
        match *preferred {
            _ if first => *preferred = None,
            Some((known, until)) if known == addr && Instant::now() < until => {}
            _ => *preferred = Some((addr, Instant::now() + PREFERENCE)),
        }
    }

    /// One question to one server, within the time limit. Without EDNS if it does not understand that (RFC 6891
    /// section 7).
    async fn ask_server(&self, addr: SocketAddr, name: &Name, kind: RecordType) -> Result<Raw, Fault> {
        let Some((_, pool)) = self.pools.iter().find(|(a, _)| *a == addr) else {
            return Err(Fault::Io("not a configured server".to_owned()));
        };
        let ask = |edns: bool| {
            let mut options = DnsRequestOptions::default();
            options.use_edns = edns;
            options.recursion_desired = true;
            pool.lookup(Query::query(name.clone(), kind), options).first_answer()
        };
        let both = async {
            match read(ask(true).await, self.timeout) {
                Err(Fault::Code(ResponseCode::FormErr | ResponseCode::NotImp | ResponseCode::BADVERS)) => {
                    read(ask(false).await, self.timeout)
                }
                other => other,
            }
        };
        timeout(self.timeout, both).await.unwrap_or(Err(Fault::Silent(self.timeout)))
    }
}

/// What a name leads to in `answers` by an alias.
fn alias_of(answers: &[Record], name: &Name) -> Option<(Name, u32)> {
    answers.iter().filter(|r| r.name == *name).find_map(|r| match &r.data {
        RData::CNAME(target) => Some((target.0.clone(), r.ttl)),
        _ => None,
    })
}

/// hickory's result in our terms: an answer, also a negative one, or a fault of the server.
fn read(result: Result<DnsResponse, NetError>, limit: Duration) -> Result<Raw, Fault> {
    match result {
        Ok(response) => match response.response_code {
            code @ (ResponseCode::NoError | ResponseCode::NXDomain) => Ok(Raw {
                no_such_name: code == ResponseCode::NXDomain,
                negative_ttl: response.negative_ttl(),
                answers: response.into_message().answers,
                from: None,
            }),
            code => Err(Fault::Code(code)),
        },
        Err(NetError::Dns(DnsError::NoRecordsFound(none))) => read_nothing(&none),
        Err(NetError::Dns(DnsError::ResponseCode(code))) => Err(Fault::Code(code)),
        Err(NetError::Timeout) => Err(Fault::Silent(limit)),
        Err(error @ (NetError::Io(_) | NetError::NoConnections | NetError::Busy)) => {
            Err(Fault::Io(error.to_string()))
        }
        Err(error) => Err(Fault::Garbage(error.to_string())),
    }
}

fn read_nothing(none: &NoRecords) -> Result<Raw, Fault> {
    match none.response_code {
        // Name servers without an SOA point elsewhere: this server does not recurse, and does not know.
        ResponseCode::NoError if none.soa.is_none() && none.ns.is_some() => {
            Err(Fault::Garbage("it only refers to other servers: it is not a recursive server".to_owned()))
        }
        code @ (ResponseCode::NoError | ResponseCode::NXDomain) => Ok(Raw {
            answers: Vec::new(),
            no_such_name: code == ResponseCode::NXDomain,
            negative_ttl: none.negative_ttl,
            from: None,
        }),
        code => Err(Fault::Code(code)),
    }
}

/// What the faults of all servers amount to. The one closest to an answer names the error.
fn verdict(name: &Name, faults: &[(SocketAddr, Fault)]) -> ResolveError {
    let name = text(name);
    let detail = faults.iter().map(|(a, f)| format!("{a}: {f}")).collect::<Vec<_>>().join("; ");
    let any = |test: fn(&Fault) -> bool| faults.iter().any(|(_, f)| test(f));
    if any(|f| matches!(f, Fault::Code(ResponseCode::ServFail))) {
        ResolveError::ServFail { name, detail }
    } else if any(|f| matches!(f, Fault::Code(ResponseCode::Refused))) {
        ResolveError::Refused { name, detail }
    } else if any(|f| matches!(f, Fault::Garbage(_) | Fault::Code(_))) {
        ResolveError::Garbage { name, detail }
    } else {
        ResolveError::Unreachable { name, servers: faults.iter().map(|(a, _)| *a).collect(), detail }
    }
}

/// A name without the closing dot, as people write it.
pub(super) fn text(name: &Name) -> String {
    let full = name.to_ascii();
    full.strip_suffix('.').filter(|t| !t.is_empty()).unwrap_or(&full).to_owned()
}

fn server_config(addr: SocketAddr) -> NameServerConfig {
    let connections = [ProtocolConfig::Udp, ProtocolConfig::Tcp].map(|protocol| {
        let mut connection = ConnectionConfig::new(protocol);
        connection.port = addr.port();
        connection
    });
    NameServerConfig::new(addr.ip(), true, connections.into())
}

/// The servers of `/etc/resolv.conf`; this machine, if there are none (resolv.conf(5)).
fn system_servers() -> Result<Vec<SocketAddr>, SetupError> {
    let local = vec![SocketAddr::from((Ipv4Addr::LOCALHOST, 53))];
    let text = match std::fs::read(RESOLV_CONF) {
        Ok(text) => text,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(local),
        Err(source) => return Err(SetupError::ResolvConf(source)),
    };
    // hickory's parser takes a file without a server for an error.
    let Ok((config, _)) = parse_resolv_conf(text) else { return Ok(local) };
    Ok(config.name_servers().iter().map(|s| SocketAddr::new(s.ip, 53)).collect())
}
