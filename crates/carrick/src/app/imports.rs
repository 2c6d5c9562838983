//! Imports with their listeners and virtual addresses.

use std::{
    collections::BTreeMap,
    io::{self, Write},
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    sync::Arc,
};

use carrick_config::Import;
use carrick_gateway::{Gateway, GatewayError, ListenerKey};
use carrick_model::{ListenAddress, Payload, ServiceName};
use carrick_proxy::{
    dns::{OwnDomain, VirtualIps, Zone, ZoneHandle},
    imports::{Import as Connection, ImportError, Imports, Strategy},
};
use parking_lot::Mutex;

/// The listeners of imports, and the names under which the DNS server gives them out.
pub(crate) struct Listeners {
    gateway: Gateway,
    names: Option<Names>,
    known: Mutex<BTreeMap<ServiceName, Known>>,
}

/// What the DNS server needs. There only when the daemon serves DNS.
pub(crate) struct Names {
    pub(crate) zone: ZoneHandle,
    pub(crate) own: OwnDomain,
    pub(crate) suffix: String,
    pub(crate) addresses: Mutex<VirtualIps>,
    /// Where addresses are kept, so that an import has the same one after a restart.
    pub(crate) file: PathBuf,
}

#[derive(Default)]
struct Known {
    /// From the config, or from `carrick connect`.
    wanted: Vec<Wanted>,
    /// Listener on the virtual address.
    named: Option<ListenAddress>,
    /// The config's port for it, before the service's own.
    port: Option<u16>,
}

struct Wanted {
    asked: ListenAddress,
    bound: ListenAddress,
    ad_hoc: bool,
}

/// Why an import could not be made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AddError {
    #[error(transparent)]
    Gateway(#[from] GatewayError),
    #[error(transparent)]
    Import(#[from] ImportError),
    #[error("the import `{0}` gets no virtual address")]
    Addresses(ServiceName, #[source] carrick_proxy::dns::PoolExhausted),
}

impl AddError {
    pub(crate) fn hint(&self) -> &'static str {
        match self {
            Self::Gateway(error) => error.hint(),
            Self::Import(error) => error.hint(),
            Self::Addresses(_, error) => error.hint(),
        }
    }
}

/// An import as `status` shows it.
pub(crate) struct View {
    pub(crate) listen: Vec<ListenAddress>,
    pub(crate) virtual_ip: Option<Ipv4Addr>,
    pub(crate) dns_name: Option<String>,
    pub(crate) ad_hoc: bool,
}

impl Listeners {
    pub(crate) fn new(gateway: Gateway, names: Option<Names>) -> Arc<Self> {
        Arc::new(Self { gateway, names, known: Mutex::default() })
    }

    /// Adds an import of the config: its listener first, so that a taken port leaves nothing behind.
    pub(crate) fn add(&self, imports: &Imports, import: &Import) -> Result<(), AddError> {
        if let Some(asked) = &import.listen {
            self.open(&import.service, asked, false)?;
        }
        self.known.lock().entry(import.service.clone()).or_default().port = import.port;
        let connected = self.name(&import.service).and_then(|()| {
            let payload = import.listen.as_ref().map(ListenAddress::payload);
            match imports.add(connection(import, payload)) {
                // `carrick connect` was there before.
                Err(ImportError::Exists(_)) => Ok(()),
                added => Ok(added?),
            }
        });
        if connected.is_err() {
            self.close_all(&import.service);
        }
        connected
    }

    /// Adds a listener that is in no config.
    pub(crate) fn add_ad_hoc(
        &self,
        imports: &Imports,
        service: &ServiceName,
        asked: &ListenAddress,
    ) -> Result<ListenAddress, AddError> {
        let bound = self.open(service, asked, true)?;
        match imports.add(Connection::new(service.clone(), Some(asked.payload()))) {
            Ok(()) | Err(ImportError::Exists(_)) => Ok(bound),
            Err(error) => {
                self.close(service, asked);
                Err(error.into())
            }
        }
    }

    /// Takes away what [`add_ad_hoc`](Self::add_ad_hoc) made, named by where it is bound or by what was asked.
    pub(crate) async fn remove_ad_hoc(
        &self,
        imports: &Imports,
        service: &ServiceName,
        at: &ListenAddress,
    ) -> bool {
        let asked = {
            let known = self.known.lock();
            let wanted = known.get(service).into_iter().flat_map(|known| &known.wanted);
            wanted.filter(|w| w.ad_hoc).find(|w| &w.bound == at || &w.asked == at).map(|w| w.asked.clone())
        };
        let Some(asked) = asked else { return false };
        self.close(service, &asked);
        if !self.is_needed(service) {
            self.forget(imports, service).await;
        }
        true
    }

    /// Takes an import of the config away; listeners of `carrick connect` keep it alive.
    pub(crate) async fn remove(&self, imports: &Imports, service: &ServiceName) {
        let configured: Vec<ListenAddress> = {
            let known = self.known.lock();
            let wanted = known.get(service).into_iter().flat_map(|known| &known.wanted);
            wanted.filter(|w| !w.ad_hoc).map(|w| w.asked.clone()).collect()
        };
        for asked in &configured {
            self.close(service, asked);
        }
        self.unname(service);
        if !self.is_needed(service) {
            self.forget(imports, service).await;
        }
    }

    /// A route told what the service carries and its port: the listener on the virtual address can open.
    pub(crate) fn learned(&self, service: &ServiceName, payload: Payload, port: Option<u16>) {
        let Some(names) = &self.names else { return };
        let Some(ip) = names.addresses.lock().get(service) else { return };
        let mut known = self.known.lock();
        let Some(known) = known.get_mut(service) else { return };
        let Some(port) = known.port.or(port) else {
            tracing::warn!(%service, hint = "set `port:` on the import", "the service tells no port, so its name leads to no listener");
            return;
        };
        let address = SocketAddr::new(IpAddr::V4(ip), port);
        let wanted = match payload {
            Payload::Tcp => ListenAddress::Tcp(address),
            Payload::Udp => ListenAddress::Udp(address),
            Payload::Ip | Payload::Ethernet => return,
        };
        if known.named.as_ref() == Some(&wanted) {
            return;
        }
        if let Some(old) = known.named.take() {
            self.gateway.unlisten(&ListenerKey { service: service.clone(), address: old });
        }
        match self.gateway.listen(ListenerKey { service: service.clone(), address: wanted.clone() }) {
            Ok(_) => known.named = Some(wanted),
            Err(error) => {
                tracing::warn!(%service, hint = error.hint(), error = format!("{:#}", anyhow::Error::from(error)), "the import's virtual address has no listener");
            }
        }
    }

    /// Where an import can be reached.
    pub(crate) fn view(&self, service: &ServiceName) -> View {
        let known = self.known.lock();
        let entry = known.get(service);
        let mut listen: Vec<ListenAddress> =
            entry.into_iter().flat_map(|known| known.wanted.iter().map(|w| w.bound.clone())).collect();
        listen.extend(entry.and_then(|known| known.named.clone()));
        let virtual_ip = self.names.as_ref().and_then(|names| names.addresses.lock().get(service));
        View {
            listen,
            virtual_ip,
            dns_name: self
                .names
                .as_ref()
                .filter(|_| virtual_ip.is_some())
                .map(|names| service.dns_name(&names.suffix)),
            ad_hoc: entry
                .is_some_and(|known| !known.wanted.is_empty() && known.wanted.iter().all(|w| w.ad_hoc)),
        }
    }

    /// Makes the zone anew after all imports of a config were added or removed.
    pub(crate) fn publish(&self) {
        let Some(names) = &self.names else { return };
        let zone = {
            let addresses = names.addresses.lock();
            let saved = addresses.saved().clone();
            if let Err(error) = save(&names.file, &saved) {
                tracing::warn!(file = %names.file.display(), %error, "virtual addresses are not kept over a restart");
            }
            Zone::new(Some(&names.own), &names.suffix, saved.iter().map(|(service, ip)| (service, *ip)))
        };
        let zone = match zone {
            Ok(zone) => zone,
            Err(error) => {
                tracing::error!(
                    error = format!("{:#}", anyhow::Error::from(error)),
                    "the zone cannot be made; the old one stays in force"
                );
                return;
            }
        };
        for warning in zone.warnings() {
            tracing::warn!(warning, "the zone of the own domain is not complete");
        }
        names.zone.set(zone);
    }

    fn open(
        &self,
        service: &ServiceName,
        asked: &ListenAddress,
        ad_hoc: bool,
    ) -> Result<ListenAddress, AddError> {
        let key = ListenerKey { service: service.clone(), address: asked.clone() };
        let bound = self.gateway.listen(key)?;
        let wanted = Wanted { asked: asked.clone(), bound: bound.clone(), ad_hoc };
        self.known.lock().entry(service.clone()).or_default().wanted.push(wanted);
        Ok(bound)
    }

    fn close(&self, service: &ServiceName, asked: &ListenAddress) {
        self.gateway.unlisten(&ListenerKey { service: service.clone(), address: asked.clone() });
        if let Some(known) = self.known.lock().get_mut(service) {
            known.wanted.retain(|w| &w.asked != asked);
        }
    }

    fn close_all(&self, service: &ServiceName) {
        self.unname(service);
        self.known.lock().remove(service);
        self.gateway.forget(service);
    }

    fn is_needed(&self, service: &ServiceName) -> bool {
        let named = self.names.as_ref().is_some_and(|names| names.addresses.lock().get(service).is_some());
        named || self.known.lock().get(service).is_some_and(|known| !known.wanted.is_empty())
    }

    async fn forget(&self, imports: &Imports, service: &ServiceName) {
        self.known.lock().remove(service);
        imports.remove(service).await;
        self.gateway.forget(service);
    }

    fn name(&self, service: &ServiceName) -> Result<(), AddError> {
        let Some(names) = &self.names else { return Ok(()) };
        let assigned = names.addresses.lock().assign(service);
        assigned.map(drop).map_err(|error| AddError::Addresses(service.clone(), error))
    }

    fn unname(&self, service: &ServiceName) {
        let Some(names) = &self.names else { return };
        names.addresses.lock().release(service);
        if let Some(old) = self.known.lock().get_mut(service).and_then(|known| known.named.take()) {
            self.gateway.unlisten(&ListenerKey { service: service.clone(), address: old });
        }
    }
}

/// An import of the config as the proxy takes it.
fn connection(import: &Import, payload: Option<Payload>) -> Connection {
    let strategy = match &import.strategy {
        carrick_config::Strategy::Priority => Strategy::Priority,
        carrick_config::Strategy::Weighted(shares) => Strategy::Weighted(shares.clone()),
        carrick_config::Strategy::Nearest => Strategy::Nearest,
    };
    Connection { others: import.others.clone(), strategy, ..Connection::new(import.service.clone(), payload) }
}

/// The virtual addresses of the last run; a file that cannot be read costs only that.
pub(crate) fn saved(file: &Path) -> BTreeMap<ServiceName, Ipv4Addr> {
    let Ok(text) = std::fs::read_to_string(file) else { return BTreeMap::new() };
    serde_json::from_str(&text).unwrap_or_else(|error| {
        tracing::warn!(file = %file.display(), %error, "virtual addresses of the last run are not read");
        BTreeMap::new()
    })
}

fn save(file: &Path, addresses: &BTreeMap<ServiceName, Ipv4Addr>) -> io::Result<()> {
    let draft = file.with_extension("new");
    let mut out = std::fs::File::create(&draft)?;
    out.write_all(serde_json::to_string_pretty(addresses)?.as_bytes())?;
    out.sync_all()?;
    std::fs::rename(&draft, file)
}
