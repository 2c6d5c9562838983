//! Two daemons of one domain with an etcd of three members: they find each other's registrations, and go on finding while
//! etcd is away.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::disallowed_methods,
    reason = "test code; outages last"
)]

use std::{fs, net::SocketAddr, path::PathBuf, process::Command, time::Duration};

use carrick_proto::registry::NetworkServiceEndpoint;
use carrick_tests::{
    lab::{
        Carrick, ETCD, EtcdCluster, Finished, Lab, Namespace, PORT, Settings, Site, needs, within, within_or,
    },
    workload::Workload,
};
use tonic::{Code, Status};

const DOMAIN: &str = "cloud.test";
/// For everything that has to happen at all.
const SOON: Duration = Duration::from_secs(40);

/// A workload beside a replica.
struct Beside<'a> {
    ns: &'a Namespace,
    state: PathBuf,
    registry: SocketAddr,
    pod: &'static str,
}

impl Beside<'_> {
    /// Connects anew and asks; everything happens on a thread in the namespace.
    fn ask<T: Send>(&self, act: impl AsyncFnOnce(Workload) -> Result<T, Status> + Send) -> Result<T, Status> {
        self.ns.enter(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let workload = Workload::connect(&self.state, DOMAIN, self.pod, self.registry).await;
                act(workload.map_err(|fault| Status::unknown(fault.to_string()))?).await
            })
        })
    }

    fn register(&self, name: &str) -> Result<NetworkServiceEndpoint, Status> {
        let endpoint = NetworkServiceEndpoint {
            name: name.to_owned(),
            network_service_names: vec!["web".to_owned()],
            url: "tcp://10.0.0.7:5001".to_owned(),
            ..Default::default()
        };
        self.ask(async |workload| workload.register(endpoint).await)
    }

    fn names(&self) -> Result<Vec<String>, Status> {
        let found = self.ask(async |workload| workload.find(Default::default()).await)?;
        Ok(found.into_iter().map(|endpoint| endpoint.name).collect())
    }

    #[track_caller]
    fn wait_for(&self, name: &str) {
        within_or(SOON, &format!("{name} to be found at {}", self.registry), || {
            let names = self.names().map_err(|status| status.to_string())?;
            if names.iter().any(|found| found == name) { Ok(()) } else { Err(format!("{names:?}")) }
        });
    }
}

fn settings(site: &Site, carrick: &Carrick, etcd: &EtcdCluster) -> Settings {
    let endpoints: Vec<String> = etcd.endpoints().iter().map(|endpoint| format!("\"{endpoint}\"")).collect();
    let [ca, cert, key] = [&etcd.ca, &etcd.cert, &etcd.key].map(|file| file.display());
    Settings::new(site, carrick).line(&format!("domain: {DOMAIN}")).line(&format!(
        "registry: {{ store: etcd, etcd: {{ endpoints: [{}], tls: {{ ca: {ca}, cert: {cert}, key: {key} }} }} }}",
        endpoints.join(", ")
    ))
}

#[test]
fn replicas_find_each_others_registrations_and_outlive_their_etcd() {
    if !needs(ETCD) {
        return;
    }
    let lab = Lab::new();
    let mut etcd = EtcdCluster::start(&lab);
    let mut one = Carrick::prepare(&lab, &lab.a);
    let mut two = Carrick::prepare_named(&lab, &lab.b, "replica");
    // Replicas of a domain have one root.
    fs::remove_dir_all(two.state_dir()).unwrap();
    Finished::of(Command::new("cp").arg("-a").arg(one.state_dir()).arg(two.state_dir())).ok();
    one.configure(&settings(&lab.a, &one, &etcd));
    two.configure(&settings(&lab.b, &two, &etcd));
    let checked = one.run(&["check", "-c", one.config().to_str().unwrap()]);
    assert!(checked.stdout.matches("is etcd 3.").count() == 3, "{checked}");
    one.up();
    two.up();
    let near = Beside { ns: &lab.a.ns, state: one.state_dir(), registry: lab.a.at(PORT), pod: "nse" };
    let far = Beside { ns: &lab.b.ns, state: two.state_dir(), registry: lab.b.at(PORT), pod: "client" };
    near.register("nse-1").unwrap();
    far.wait_for("nse-1");
    let stolen = far.register("nse-1").unwrap_err();
    assert_eq!(stolen.code(), Code::PermissionDenied, "its owner is known at every replica: {stolen}");

    (0..3).for_each(|member| etcd.kill(member));
    let refused = near.register("nse-2").unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable, "{refused}");
    assert!(refused.message().contains("etcd"), "{refused}");
    within(SOON, "status to tell that etcd is away", || {
        let lost = one.status().ok()?["store"]["lost"].as_str()?.to_owned();
        assert!(lost.contains("https://") && lost.contains("Hint: "), "{lost}");
        Some(())
    });
    for replica in [&near, &far] {
        assert!(replica.names().unwrap().contains(&"nse-1".to_owned()), "what is known is found meanwhile");
    }

    (0..3).rev().for_each(|member| etcd.up(member));
    within_or(SOON, "registrations to be taken again", || near.register("nse-3").map_err(|s| s.to_string()));
    far.wait_for("nse-3");
    far.wait_for("nse-1");
    one.kill();
    far.wait_for("nse-3");
    let registered = far.register("client-1").unwrap();
    assert_eq!(registered.name, "client-1");
}
