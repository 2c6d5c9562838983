//! Questions to the DNS servers: who is asked, for how long, and what counts as an answer.
//!
//! hickory carries each question (random port and id, retransmission, the question echoed, TCP after truncation); the
//! choice of servers, aliases, time limits and TTLs are ours, so its resolver and cache are not used. hickory's own pool
//! would take a failure of the first server for the answer.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use arc_swap::ArcSwap;
use carrick_model::cause::in_one_line;
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
};
use parking_lot::Mutex;
use tokio::{
    sync::Semaphore,
    time::{Instant, timeout},
};

use super::{ResolveError, ResolverSettings, SetupError, system::SystemFiles};

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

/// The DNS servers that are asked, and how.
pub(super) struct Servers {
    known: ArcSwap<Known>,
    /// Where they come from, unless the config says them.
    system: Option<SystemFiles>,
    context: Arc<PoolContext>,
    timeout: Duration,
    attempts: usize,
    preferred: Mutex<Option<(SocketAddr, Instant)>>,
    limit: Semaphore,
    metrics: Metrics,
}

/// Who is asked now.
struct Known {
    pools: Vec<(SocketAddr, NameServerPool<TokioRuntimeProvider>)>,
    hosts: Option<Hosts>,
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
        let system = settings.servers.is_empty().then(SystemFiles::of_the_system);
        Self::with(settings, system, metrics)
    }

    fn with(
        settings: ResolverSettings,
        system: Option<SystemFiles>,
        metrics: Metrics,
    ) -> Result<Self, SetupError> {
        let mut options = ResolverOpts::default();
        options.timeout = settings.timeout;
        options.num_concurrent_reqs = 1;
        options.cache_size = 0;
        let tls = TlsConfig::new().map_err(SetupError::Resolver)?;
        let context = Arc::new(PoolContext::new(options, tls));
        let known = match &system {
            Some(system) => Known::of_the_system(system, &context)?,
            None => Known { pools: pools(settings.servers, &context), hosts: None },
        };
        Ok(Self {
            known: ArcSwap::from_pointee(known),
            system,
            context,
            timeout: settings.timeout,
            attempts: settings.attempts.max(1),
            preferred: Mutex::new(None),
            limit: Semaphore::new(MAX_QUESTIONS),
            metrics,
        })
    }

    /// Who is asked now.
    fn known(&self) -> Arc<Known> {
        if let Some(system) = self.system.as_ref().filter(|system| system.changed()) {
            match Known::of_the_system(system, &self.context) {
                Ok(known) => {
                    let servers: Vec<_> = known.pools.iter().map(|(addr, _)| addr).collect();
                    tracing::info!(?servers, "the DNS settings of this machine changed");
                    self.known.store(Arc::new(known));
                }
                Err(error) => tracing::warn!(
                    error = in_one_line(&error),
                    "the DNS settings of this machine changed and cannot be read: the servers asked before are asked on"
                ),
            }
        }
        self.known.load_full()
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
        let known = self.known();
        if let Some(raw) = known.here(name, kind) {
            return Ok(raw);
        }
        // The semaphore is never closed, and without a permit the question is only unbounded, not wrong.
        let _permit = self.limit.acquire().await.ok();
        let mut faults = Vec::new();
        for _ in 0..self.attempts {
            match race(self.in_turn(&known), STAGGER, |addr| self.ask_server(&known, addr, name, kind)).await
            {
                Ok((addr, raw)) => {
                    self.count(kind, if raw.answers.is_empty() { "nothing" } else { "answered" });
                    self.remember(&known, addr);
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

    /// The servers as listed, the one that answered lately first.
    fn in_turn(&self, known: &Known) -> Vec<SocketAddr> {
        let mut addrs: Vec<_> = known.pools.iter().map(|(addr, _)| *addr).collect();
        let preferred = (*self.preferred.lock()).filter(|(_, until)| Instant::now() < *until);
        if let Some((addr, _)) = preferred {
            addrs.sort_by_key(|a| *a != addr);
        }
        addrs
    }

    fn remember(&self, known: &Known, addr: SocketAddr) {
        let first = known.pools.first().is_some_and(|(a, _)| *a == addr);
        let mut preferred = self.preferred.lock();
        match *preferred {
            _ if first => *preferred = None,
            Some((last, until)) if last == addr && Instant::now() < until => {}
            _ => *preferred = Some((addr, Instant::now() + PREFERENCE)),
        }
    }

    /// One question to one server, within the time limit. Without EDNS if it does not understand that (RFC 6891
    /// section 7).
    async fn ask_server(
        &self,
        known: &Known,
        addr: SocketAddr,
        name: &Name,
        kind: RecordType,
    ) -> Result<Raw, Fault> {
        let Some((_, pool)) = known.pools.iter().find(|(a, _)| *a == addr) else {
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

impl Known {
    fn of_the_system(system: &SystemFiles, context: &Arc<PoolContext>) -> Result<Self, SetupError> {
        Ok(Self { pools: pools(system.servers()?, context), hosts: Some(SystemFiles::hosts()) })
    }

    /// The hosts file, when the system's resolver is used, and `localhost` (RFC 6761 section 6.3).
    fn here(&self, name: &Name, kind: RecordType) -> Option<Raw> {
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

fn pools(
    servers: Vec<SocketAddr>,
    context: &Arc<PoolContext>,
) -> Vec<(SocketAddr, NameServerPool<TokioRuntimeProvider>)> {
    let pool = |addr| {
        let runtime = TokioRuntimeProvider::default();
        (addr, NameServerPool::from_config([server_config(addr)], Arc::clone(context), runtime))
    };
    servers.into_iter().map(pool).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A DHCP client writes a new file in place of the old one.
    fn write(path: &std::path::Path, text: &str) {
        let new = path.with_extension("new");
        std::fs::write(&new, text).unwrap();
        std::fs::rename(new, path).unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn the_settings_of_the_machine_are_followed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("resolv.conf");
        let files = SystemFiles::at(path.clone());
        let servers = Servers::with(ResolverSettings::default(), Some(files), Metrics::new()).unwrap();
        let asked = || servers.in_turn(&servers.known()).iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(asked(), ["127.0.0.1:53"], "no file");

        write(&path, "nameserver 192.0.2.1\nnameserver 2001:db8::53\n");
        assert_eq!(asked(), ["127.0.0.1:53"], "not every question looks");
        tokio::time::advance(Duration::from_secs(2)).await;
        assert_eq!(asked(), ["192.0.2.1:53", "[2001:db8::53]:53"]);

        write(&path, "options edns0\n");
        tokio::time::advance(Duration::from_secs(2)).await;
        assert_eq!(asked(), ["127.0.0.1:53"]);

        // What cannot be read changes nothing.
        write(&path, "nameserver 192.0.2.2\n");
        tokio::time::advance(Duration::from_secs(2)).await;
        assert_eq!(asked(), ["192.0.2.2:53"]);
        std::fs::remove_file(&path).unwrap();
        std::fs::create_dir(&path).unwrap();
        tokio::time::advance(Duration::from_secs(2)).await;
        assert_eq!(asked(), ["192.0.2.2:53"]);
    }
}
