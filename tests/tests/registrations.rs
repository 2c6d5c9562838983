//! What is registered outlives the daemon: stopped or killed, and started again on the same state directory.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "test code")]

use std::{fs, net::SocketAddr, path::PathBuf, process::Command, time::Duration};

use carrick_proto::registry::{NetworkService, NetworkServiceEndpoint};
use carrick_tests::{
    lab::{Daemon, Signal, binary},
    workload::Workload,
};
use tonic::Code;

const READY: Duration = Duration::from_secs(20);

/// A domain with no peers, on loopback.
struct Domain {
    directory: PathBuf,
    runs: usize,
}

impl Domain {
    fn new(name: &str) -> Self {
        let directory = std::env::temp_dir().join(format!("carrick-{name}-{}", std::process::id()));
        fs::create_dir(&directory).unwrap();
        let yaml = "domain: own.test\nstate_dir: state\n\
            listen: { control: \"127.0.0.1:0\", tunnel: \"127.0.0.1:0\", admin: off }\n\
            exports:\n  - { service: web, to: \"tcp://127.0.0.1:9\" }\n";
        fs::write(directory.join("carrick.yaml"), yaml).unwrap();
        Self { directory, runs: 0 }
    }

    /// Starts the daemon and tells where its registry listens.
    fn up(&mut self) -> (Daemon, SocketAddr) {
        self.runs += 1;
        let mut command = Command::new(binary());
        command.arg("up").arg("-c").arg(self.directory.join("carrick.yaml"));
        let mut daemon = Daemon::spawn(&self.directory, &format!("run-{}", self.runs), command);
        let ready = daemon.wait_for_log("carrick is ready", READY);
        let control = ready.split("control=").nth(1).unwrap().split_whitespace().next().unwrap();
        (daemon, control.parse().unwrap())
    }

    async fn workload(&self, pod: &str, registry: SocketAddr) -> Workload {
        Workload::connect(&self.directory.join("state"), "own.test", pod, registry).await.unwrap()
    }
}

impl Drop for Domain {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            let _ = fs::remove_dir_all(&self.directory);
        }
    }
}

fn endpoint(name: &str) -> NetworkServiceEndpoint {
    NetworkServiceEndpoint {
        name: name.into(),
        network_service_names: vec!["web".into()],
        url: "tcp://10.0.0.7:5001".into(),
        ..Default::default()
    }
}

/// Registered endpoints: an export of the same service stands beside them.
async fn find(workload: &Workload) -> Vec<NetworkServiceEndpoint> {
    let mut found = workload.find(Default::default()).await.unwrap();
    assert!(found.iter().any(|endpoint| endpoint.name == "web.own.test"), "exports are found too");
    found.retain(|endpoint| endpoint.name != "web.own.test");
    found
}

#[tokio::test]
async fn registrations_outlive_a_stop_and_a_kill() {
    let mut domain = Domain::new("registrations");
    let (mut daemon, registry) = domain.up();
    let nse = domain.workload("nse", registry).await;
    let mut kept = Vec::new();
    for n in 0..5 {
        kept.push(nse.register(endpoint(&format!("nse-{n}"))).await.unwrap());
    }
    let vpn = NetworkService { name: "vpn".into(), ..Default::default() };
    let vpn = nse.register_service(vpn).await.unwrap();
    assert_eq!(find(&nse).await, kept);

    daemon.signal(Signal::TERM);
    let ended = daemon.wait(READY).expect("it ends");
    assert!(ended.success(), "{ended}");
    let (mut daemon, registry) = domain.up();
    let nse = domain.workload("nse", registry).await;
    assert_eq!(find(&nse).await, kept, "after a stop");

    // Killed in the middle of writing: what was answered is there.
    let calls = (0..200).map(|n| {
        let (nse, late) = (&nse, endpoint(&format!("late-{n:03}")));
        async move { nse.register(late).await }
    });
    let killed = async {
        tokio::time::sleep(Duration::from_millis(30)).await;
        daemon.kill();
    };
    let (answers, ()) = tokio::join!(futures::future::join_all(calls), killed);
    kept.extend(answers.into_iter().filter_map(Result::ok));
    kept.sort_by(|a, b| a.name.cmp(&b.name));
    let (_daemon, registry) = domain.up();
    let thief = domain.workload("thief", registry).await;
    let found = find(&thief).await;
    for endpoint in &kept {
        assert!(found.contains(endpoint), "{} was answered and is lost", endpoint.name);
    }
    let refused = thief.register(endpoint("nse-1")).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied, "names stay their owners': {refused}");
    let found = thief.services().await.unwrap();
    assert!(found.contains(&vpn), "{found:?}");
}
