//! What is registered outlives the daemon: stopped or killed, and started again on the same state directory. And with NSM's
//! registry in charge, the daemon outlives that one.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "test code")]

use std::{
    fs,
    net::SocketAddr,
    path::PathBuf,
    process::Command,
    time::{Duration, Instant},
};

use carrick_proto::registry::{NetworkService, NetworkServiceEndpoint};
use carrick_tests::{
    lab::{Daemon, Finished, NSM, Signal, binary, needs, nsm_interop_program},
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
        Self::with(name, "")
    }

    /// With more lines in the config.
    fn with(name: &str, more: &str) -> Self {
        let directory = std::env::temp_dir().join(format!("carrick-{name}-{}", std::process::id()));
        fs::create_dir(&directory).unwrap();
        let yaml = "domain: own.test\nstate_dir: state\n\
            listen: { control: \"127.0.0.1:0\", tunnel: \"127.0.0.1:0\", admin: off }\n\
            exports:\n  - { service: web, to: \"tcp://127.0.0.1:9\" }\n";
        fs::write(directory.join("carrick.yaml"), format!("{yaml}{more}\n")).unwrap();
        Self { directory, runs: 0 }
    }

    /// Starts the daemon and tells where its registry listens.
    fn up(&mut self) -> (Daemon, SocketAddr) {
        self.runs += 1;
        let mut command = self.carrick();
        command.arg("up");
        let mut daemon = Daemon::spawn(&self.directory, &format!("run-{}", self.runs), command);
        let ready = daemon.wait_for_log("carrick is ready", READY);
        let control = ready.split("control=").nth(1).unwrap().split_whitespace().next().unwrap();
        (daemon, control.parse().unwrap())
    }

    fn carrick(&self) -> Command {
        let mut command = Command::new(binary());
        command.arg("-c").arg(self.directory.join("carrick.yaml"));
        command
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

/// Checks until it is so; what was not so is told in the end.
async fn eventually(mut check: impl AsyncFnMut() -> Result<(), String>) {
    let end = Instant::now() + READY;
    while let Err(fault) = check().await {
        assert!(Instant::now() < end, "{fault}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
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

/// NSM deployments: heal_interdomain-registry-death. NSM's memory registry forgets everything when it ends; the daemon in front of
/// it starts before it, and stays while it comes and goes.
#[tokio::test]
async fn nsms_registry_may_come_late_end_and_come_back_behind_the_daemon() {
    if !needs(NSM) {
        return;
    }
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let mut domain =
        Domain::with("behind", &format!("compat: {{ nsm: {{ registry_url: \"tcp://127.0.0.1:{port}\" }} }}"));
    let (daemon, control) = domain.up();
    let nse = domain.workload("nse", control).await;
    let refused = nse.register(endpoint("nse-1")).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable, "{refused}");
    assert!(refused.message().contains(&format!("127.0.0.1:{port}")), "it says who is away: {refused}");

    let ids = domain.directory.join("ids");
    let issue = ["svid", "issue", "--id", "spiffe://own.test/registry", "--out", ids.to_str().unwrap()];
    Finished::of(domain.carrick().args(issue)).ok();
    fs::rename(ids.join("svid_key.pem"), ids.join("key.pem")).unwrap();
    let bundle = domain.directory.join("bundle.json");
    fs::write(&bundle, Finished::of(domain.carrick().args(["trust", "export"])).ok()).unwrap();
    let serve = |n: usize| {
        let mut command = Command::new(nsm_interop_program());
        command.args(["serve-registry", "-listen", &format!("127.0.0.1:{port}"), "-own"]).arg(&ids);
        command.args(["-trust", &format!("own.test={}", bundle.display())]);
        let mut registry = Daemon::spawn(&domain.directory, &format!("nsm-{n}"), command);
        registry.wait_for_log("\"serves\":\"registry\"", READY);
        registry
    };
    // What an endpoint does: it registers until it is told yes.
    let registers = async || {
        eventually(async || nse.register(endpoint("nse-1")).await.map(drop).map_err(|s| s.to_string())).await;
    };
    let until = async |names: &[&str]| {
        eventually(async || {
            let found = find(&nse).await;
            let there = found.iter().map(|e| e.name.as_str()).eq(names.iter().copied());
            if there { Ok(()) } else { Err(format!("{found:?}")) }
        })
        .await;
    };
    let mut registry = serve(1);
    registers().await;
    until(&["nse-1"]).await;

    registry.kill();
    let refused = nse.register(endpoint("nse-2")).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable, "{refused}");
    assert_eq!(find(&nse).await.len(), 1, "what it said last counts");

    let _registry = serve(2);
    until(&[]).await;
    registers().await;
    until(&["nse-1"]).await;
    drop(daemon);
}
