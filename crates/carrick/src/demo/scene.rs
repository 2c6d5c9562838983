//! The two domains.

use std::{
    net::SocketAddr,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::SystemTime,
};

use anyhow::Context;
use carrick_identity::EmbeddedCa;
use carrick_model::{ListenAddress, TrustDomain};

use super::service;
use crate::app::{self, Daemon};

/// What the client asks the DNS for.
pub(super) const NAME: &str = "web.onprem.demo.mesh";
/// A service that allows nobody.
pub(super) const SECRET: &str = "secret@onprem.demo";

/// Two domains, a service, and the directory they live in.
pub(super) struct Scene {
    /// Where the service is, without any mesh.
    pub(super) service: SocketAddr,
    home: Home,
    serving: Option<tokio::task::AbortHandle>,
    cloud: Option<Arc<Daemon>>,
    onprem: Option<Arc<Daemon>>,
}

/// A private directory that goes away with its owner.
struct Home(PathBuf);

impl Drop for Home {
    fn drop(&mut self) {
        // What cannot be removed is in the system's directory for what may be removed.
        let _removed = std::fs::remove_dir_all(&self.0);
    }
}

impl Scene {
    /// Makes both roots, lets each domain have the other's bundle, and starts the service.
    pub(super) async fn prepare() -> anyhow::Result<Self> {
        let home = Home(std::env::temp_dir().join(format!("carrick-demo-{}", std::process::id())));
        let mut private = std::fs::DirBuilder::new();
        private
            .mode(0o700)
            .create(&home.0)
            .with_context(|| format!("{} cannot be made", home.0.display()))?;
        for domain in ["cloud.demo", "onprem.demo"] {
            let state = home.0.join(domain);
            private.create(&state).with_context(|| format!("{} cannot be made", state.display()))?;
            let ca = EmbeddedCa::open_or_create(&state, &TrustDomain::new(domain)?, SystemTime::now())?;
            std::fs::write(home.0.join(format!("{domain}.json")), ca.bundle().to_spiffe_json())?;
        }
        let (service, serving) = service::start().await?;
        Ok(Self { service, home, serving: Some(serving), cloud: None, onprem: None })
    }

    /// The exporting domain, which serves its own records.
    pub(super) async fn start_onprem(&mut self) -> anyhow::Result<()> {
        let text = format!(
            "domain: onprem.demo\n{}trust: [ {{ domain: cloud.demo, bundle: cloud.demo.json }} ]\n\
             exports:\n  - {{ service: web, to: \"tcp://{}\", allow: [\"spiffe://cloud.demo/**\"] }}\n  \
             - {{ service: secret, to: \"tcp://{}\" }}\n",
            common("onprem.demo"),
            self.service,
            self.service,
        );
        self.onprem = Some(self.start("onprem.demo", &text).await?);
        Ok(())
    }

    /// The importing domain, which asks the other's DNS server.
    pub(super) async fn start_cloud(&mut self) -> anyhow::Result<()> {
        let dns = self.onprem()?.addresses.dns.context("onprem.demo serves no DNS")?;
        let text = format!(
            "domain: cloud.demo\n{}trust: [ {{ domain: onprem.demo, bundle: onprem.demo.json }} ]\n\
             dns: {{ servers: [\"{dns}\"] }}\n\
             imports: [ {{ service: web@onprem.demo, listen: \"127.0.0.1:0\" }}, {{ service: {SECRET}, listen: \"127.0.0.1:0\" }} ]\n",
            common("cloud.demo"),
        );
        self.cloud = Some(self.start("cloud.demo", &text).await?);
        Ok(())
    }

    async fn start(&self, domain: &str, text: &str) -> anyhow::Result<Arc<Daemon>> {
        let path: PathBuf = self.home.0.join(format!("{domain}.yaml"));
        std::fs::write(&path, text)?;
        let config = carrick_config::load(Path::new(&path))?;
        Daemon::start(config, Some(path)).await.with_context(|| format!("{domain} does not start"))
    }

    pub(super) fn cloud(&self) -> anyhow::Result<&Daemon> {
        self.cloud.as_deref().context("cloud.demo is not up")
    }

    pub(super) fn onprem(&self) -> anyhow::Result<&Daemon> {
        self.onprem.as_deref().context("onprem.demo is not up")
    }

    /// The service's own port, at which its name can be reached.
    pub(super) fn port(&self) -> u16 {
        self.service.port()
    }

    /// The import's listener on an ordinary port.
    pub(super) fn listen(&self) -> anyhow::Result<SocketAddr> {
        let listeners = self.cloud()?.gateway.listeners();
        let of_web = listeners.into_iter().filter(|(key, _)| key.service.target().as_str() == "web");
        let mut tcp = of_web.filter_map(|(_, bound)| match bound {
            ListenAddress::Tcp(address) if address.ip() == std::net::Ipv4Addr::LOCALHOST => Some(address),
            _ => None,
        });
        tcp.next().context("the import has no listener")
    }

    /// Stops both domains.
    pub(super) async fn end(self) {
        for daemon in self.cloud.iter().chain(&self.onprem) {
            app::stop(daemon).await;
        }
        if let Some(serving) = &self.serving {
            serving.abort();
        }
        drop(self.home);
    }
}

fn common(domain: &str) -> String {
    format!(
        "state_dir: {domain}\nlisten: {{ control: \"127.0.0.1:0\", tunnel: \"127.0.0.1:0\", admin: off, dns: \"127.0.0.1:0\" }}\n"
    )
}
