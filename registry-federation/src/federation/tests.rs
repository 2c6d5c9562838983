#![allow(clippy::needless_pass_by_value, clippy::disallowed_methods, reason = "test code: short scenes")]

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};

use carrick_model::TrustDomain;
use carrick_proto::registry::NetworkServiceLabels;
use carrick_telemetry::Metrics;
use tokio::{sync::mpsc, time::Instant as Clock};

use super::*;
use crate::Registry;

type Endpoint = NetworkServiceEndpoint;
type Sender = mpsc::UnboundedSender<Result<RemoteAnswer<Endpoint>, RemoteFault>>;

const OURS: &str = "tcp://192.0.2.1:5004";

/// What the registries of other domains do in a test.
#[derive(Default)]
struct Fake {
    endpoints: Mutex<HashMap<Domain, Vec<Endpoint>>>,
    watches: Mutex<Vec<(Endpoint, Sender)>>,
    finds: AtomicUsize,
    registered: Mutex<Vec<Endpoint>>,
    refuses: Mutex<Option<RemoteFault>>,
    silent: AtomicBool,
    losses: AtomicUsize,
}

impl Fake {
    fn holds(&self, domain: &str, endpoints: &[Endpoint]) {
        self.endpoints.lock().insert(domain.parse().unwrap(), endpoints.to_vec());
    }

    fn tell(&self, endpoint: Endpoint, deleted: bool) {
        for (_, watch) in &*self.watches.lock() {
            let _gone = watch.send(Ok(RemoteAnswer { object: endpoint.clone(), deleted }));
        }
    }

    async fn speak(&self) -> Result<(), RemoteFault> {
        if self.silent.load(SeqCst) {
            std::future::pending::<()>().await;
        }
        self.refuses.lock().clone().map_or(Ok(()), Err)
    }
}

#[tonic::async_trait]
impl RemoteRegistry<Endpoint> for Fake {
    async fn find(
        &self,
        domain: &Domain,
        query: Endpoint,
        watch: bool,
    ) -> Result<RemoteAnswers<Endpoint>, RemoteFault> {
        self.finds.fetch_add(1, SeqCst);
        self.speak().await?;
        // Not filtered by the query: a registry may answer whatever it likes.
        let all = self.endpoints.lock().get(domain).cloned().unwrap_or_default();
        let now = stream::iter(all).map(|object| Ok(RemoteAnswer { object, deleted: false }));
        if !watch {
            return Ok(now.boxed());
        }
        let (sender, receiver) = mpsc::unbounded_channel();
        self.watches.lock().push((query, sender));
        let later = stream::unfold(receiver, |mut r| async move { Some((r.recv().await?, r)) });
        Ok(now.chain(later).boxed())
    }

    async fn register(
        &self,
        _: &Domain,
        object: Endpoint,
        mut path: TokenPath,
    ) -> Result<(Endpoint, Option<TokenPath>), RemoteFault> {
        self.speak().await?;
        self.registered.lock().push(object.clone());
        let index = path.advance("us", "remote").unwrap();
        path.restore(index);
        Ok((object, Some(path)))
    }

    async fn unregister(&self, _: &Domain, object: Endpoint, _: TokenPath) -> Result<(), RemoteFault> {
        self.speak().await?;
        self.registered.lock().retain(|there| there.name != object.name);
        Ok(())
    }
}

#[tonic::async_trait]
impl RemoteRegistry<NetworkService> for Fake {
    async fn find(
        &self,
        _: &Domain,
        query: NetworkService,
        _: bool,
    ) -> Result<RemoteAnswers<NetworkService>, RemoteFault> {
        self.speak().await?;
        Ok(stream::iter([Ok(RemoteAnswer { object: query, deleted: false })]).boxed())
    }

    async fn register(
        &self,
        _: &Domain,
        object: NetworkService,
        path: TokenPath,
    ) -> Result<(NetworkService, Option<TokenPath>), RemoteFault> {
        Ok((object, Some(path)))
    }

    async fn unregister(&self, _: &Domain, _: NetworkService, _: TokenPath) -> Result<(), RemoteFault> {
        Ok(())
    }
}

#[tonic::async_trait]
impl RemoteRegistries for Fake {
    async fn probe(&self, _: &Domain) -> Result<(), RemoteFault> {
        self.speak().await
    }

    fn lost(&self, _: &Domain) {
        self.losses.fetch_add(1, SeqCst);
    }
}

struct Scene {
    fake: Arc<Fake>,
    federation: Federation,
    registry: Registry,
    caller: SpiffeId,
    tasks: Tasks,
}

impl Scene {
    fn new() -> Self {
        let (fake, tasks, metrics) = (Arc::new(Fake::default()), Tasks::new(), Metrics::new());
        let federation = Federation::new(fake.clone(), OURS.into(), &tasks, &metrics);
        let own = TrustDomain::new("own.test").unwrap();
        let registry = Registry::new("own.test".parse().unwrap(), own, &tasks, &metrics);
        registry.set_federation(federation.clone());
        let caller = SpiffeId::new("spiffe://own.test/nsmgr").unwrap();
        Self { fake, federation, registry, caller, tasks }
    }

    async fn ask(&self, query: Endpoint, watch: bool) -> Result<Stream, Status> {
        let answers = crate::find::find_for(&self.registry, &self.caller, query, watch).await?;
        Ok(Stream(answers))
    }

    async fn all(&self, query: Endpoint) -> Result<Vec<Endpoint>, Status> {
        let answers = self.ask(query, false).await?.0;
        answers
            .map(|a| a.map(|a| a.network_service_endpoint.unwrap()))
            .collect::<Vec<_>>()
            .await
            .into_iter()
            .collect()
    }

    async fn located(&self, name: &str) -> Option<String> {
        self.federation.locate(&"b.test".parse().unwrap(), name).await.unwrap()
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        self.tasks.stop();
    }
}

struct Stream(Answers<carrick_proto::registry::NetworkServiceEndpointResponse>);

impl Stream {
    async fn next(&mut self) -> (String, bool) {
        let answer = self.0.next().await.expect("the stream goes on").unwrap();
        (answer.network_service_endpoint.unwrap().name, answer.deleted)
    }

    async fn end(mut self) -> Option<Status> {
        self.0.next().await.map(|answer| answer.expect_err("nothing more is told"))
    }
}

fn endpoint(name: &str, service: &str, url: &str) -> Endpoint {
    let labels = NetworkServiceLabels {
        labels: [("app".to_owned(), "x".to_owned())].into(),
        ..NetworkServiceLabels::default()
    };
    Endpoint {
        name: name.into(),
        network_service_names: vec![service.into()],
        network_service_labels: [(service.to_owned(), labels)].into(),
        url: url.into(),
        ..Default::default()
    }
}

fn by_service(service: &str) -> Endpoint {
    Endpoint { network_service_names: vec![service.into()], ..Default::default() }
}

fn fault(code: Code, blame: RemoteBlame) -> RemoteFault {
    let (domain, detail, hint) = ("b.test".parse().unwrap(), "it says no".into(), "ask its operator".into());
    RemoteFault { domain, code, blame, detail, hint }
}

#[tokio::test(start_paused = true)]
async fn names_are_cut_and_put_back_and_the_url_is_ours() {
    let scene = Scene::new();
    scene.fake.holds("b.test", &[endpoint("nse", "web", "tcp://198.51.100.7:5004")]);
    let found = scene.all(by_service("web@B.test")).await.unwrap();
    assert_eq!(
        found,
        [endpoint("nse@B.test", "web@B.test", OURS)],
        "the suffix as the caller wrote it, label keys too"
    );
    assert_eq!(scene.located("nse").await.unwrap(), "tcp://198.51.100.7:5004");
    let plain = scene.federation.find_endpoints(&"b.test".parse().unwrap(), by_service("web")).await.unwrap();
    assert_eq!(plain, [endpoint("nse", "web", "tcp://198.51.100.7:5004")]);
    assert!(scene.all(by_service("web@own.test")).await.unwrap().is_empty(), "the own domain is not called");
    assert_eq!(scene.fake.finds.load(SeqCst), 2);
}

#[tokio::test(start_paused = true)]
async fn we_relay_for_our_own_only() {
    let mut scene = Scene::new();
    scene.caller = SpiffeId::new("spiffe://peer.test/gateway").unwrap();
    let status = scene.all(by_service("web@b.test")).await.unwrap_err();
    assert_eq!(status.code(), Code::PermissionDenied);
    assert!(status.message().ends_with("no sufficient privileges"), "{status}");
    assert_eq!(scene.fake.finds.load(SeqCst), 0);
}

#[tokio::test(start_paused = true)]
async fn a_fault_is_a_status_and_says_whose_it_is() {
    let scene = Scene::new();
    *scene.fake.refuses.lock() = Some(fault(Code::PermissionDenied, RemoteBlame::Peer));
    for watch in [false, true] {
        let status = match scene.ask(by_service("web@b.test"), watch).await {
            Err(status) => status,
            Ok(stream) => stream.end().await.expect("a status, not an empty answer"),
        };
        assert_eq!(status.code(), Code::PermissionDenied);
        for words in ["registry of b.test", "it says no", "to be mended there", "ask its operator"] {
            assert!(status.message().contains(words), "{status}");
        }
    }
    *scene.fake.refuses.lock() = None;
    scene.fake.silent.store(true, SeqCst);
    let began = Clock::now();
    let status = scene.all(by_service("web@b.test")).await.unwrap_err();
    assert_eq!((status.code(), began.elapsed().as_secs()), (Code::DeadlineExceeded, CALL_DEADLINE.as_secs()));
}

#[tokio::test(start_paused = true)]
async fn one_watch_serves_all_who_ask_the_same_and_ends_after_the_last() {
    let scene = Scene::new();
    scene.fake.holds("b.test", &[endpoint("a", "web", "tcp://198.51.100.7:1")]);
    let mut one = scene.ask(by_service("web@b.test"), true).await.unwrap();
    assert_eq!(one.next().await, ("a@b.test".into(), false));
    let mut two = scene.ask(by_service("web@B.TEST"), true).await.unwrap();
    assert_eq!(two.next().await, ("a@B.TEST".into(), false), "who comes later begins with what is there");
    scene.fake.tell(endpoint("b", "web", "tcp://198.51.100.8:1"), false);
    scene.fake.tell(endpoint("a", "web", "tcp://198.51.100.7:1"), true);
    for (stream, suffix) in [(&mut one, "b.test"), (&mut two, "B.TEST")] {
        assert_eq!(stream.next().await, (format!("b@{suffix}"), false));
        assert_eq!(stream.next().await, (format!("a@{suffix}"), true));
    }
    assert_eq!(scene.fake.finds.load(SeqCst), 1, "one watch at the remote registry");
    let view = &scene.federation.snapshot()[0];
    assert_eq!((view.objects, view.watchers, view.stale.is_none()), (1, 2, true));
    let mut other = scene.ask(by_service("db@b.test"), true).await.unwrap();
    while scene.fake.watches.lock().len() < 2 {
        tokio::task::yield_now().await; // the watch is opened by a task of its own
    }
    scene.fake.tell(endpoint("c", "db", "tcp://198.51.100.9:1"), false);
    assert_eq!(other.next().await, ("c@b.test".into(), false), "another query is another watch");

    drop((one, two));
    tokio::time::sleep(shared_watch::LINGER / 2).await;
    let again = scene.ask(by_service("web@b.test"), true).await.unwrap();
    assert_eq!(scene.fake.finds.load(SeqCst), 2, "who comes back in a moment finds it standing");
    drop(again);
    tokio::time::sleep(shared_watch::LINGER * 2).await;
    assert!(scene.fake.watches.lock()[0].1.is_closed(), "nobody watches, so we do not either");
    assert_eq!(scene.federation.snapshot().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_registry_that_falls_silent_is_lost_within_three_seconds_and_its_last_state_is_kept() {
    let scene = Scene::new();
    scene.fake.holds("b.test", &[endpoint("a", "web", "tcp://198.51.100.7:1")]);
    let mut watch = scene.ask(by_service("web@b.test"), true).await.unwrap();
    watch.next().await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert!(scene.federation.snapshot()[0].stale.is_none(), "quiet is not silent");

    scene.fake.silent.store(true, SeqCst);
    let began = Clock::now();
    assert!(watch.end().await.is_none(), "the end of the stream, as NSM has it");
    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
    assert_eq!(scene.fake.losses.load(SeqCst), 1);
    let domain = "b.test".parse().unwrap();
    assert!(scene.federation.inner.found.lock().get(&domain, "a", Instant::now()).is_none());
    let view = scene.federation.snapshot().remove(0);
    assert_eq!((view.names, view.watchers), (vec!["a".to_owned()], 0));
    assert!(view.stale.unwrap().1.contains("no answer within 2.5 s"));
    assert!(scene.federation.fault_of(&domain).is_some());

    // It comes back: who watches anew gets what is there, and nothing is stale.
    scene.fake.silent.store(false, SeqCst);
    let mut watch = scene.ask(by_service("web@b.test"), true).await.unwrap();
    assert_eq!(watch.next().await.0, "a@b.test");
    let views = scene.federation.snapshot();
    assert!(views.len() == 1 && views[0].stale.is_none());
    assert!(scene.federation.fault_of(&domain).is_none());
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_breaks_ends_those_who_watch() {
    let scene = Scene::new();
    let quiet = scene.ask(by_service("db@b.test"), true).await.unwrap();
    let mut heard = scene.ask(by_service("web@b.test"), true).await.unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    scene.fake.tell(endpoint("a", "web", "tcp://198.51.100.7:1"), false);
    heard.next().await;
    for (_, watch) in scene.fake.watches.lock().drain(..) {
        watch.send(Err(fault(Code::Unavailable, RemoteBlame::Network))).unwrap();
    }
    assert!(heard.end().await.is_none());
    assert_eq!(quiet.end().await.expect("who was told nothing is told why").code(), Code::Unavailable);
}

#[tokio::test(start_paused = true)]
async fn garbage_is_left_out_and_a_flood_is_refused() {
    let scene = Scene::new();
    let good = endpoint("a", "web", "tcp://198.51.100.7:1");
    let garbage = [
        endpoint("", "web", "x"),
        endpoint("a@c.test", "web", "x"),
        endpoint("b", "web@c.test", "x"),
        endpoint("c", "other", "x"),
        endpoint(&"n".repeat(MAX_NAME + 1), "web", "x"),
    ];
    scene.fake.holds("b.test", &[garbage.as_slice(), std::slice::from_ref(&good)].concat());
    assert_eq!(scene.all(by_service("web@b.test")).await.unwrap().len(), 1);
    let mut watch = scene.ask(by_service("web@b.test"), true).await.unwrap();
    assert_eq!(watch.next().await.0, "a@b.test");
    for object in garbage {
        scene.fake.tell(object, true);
    }
    scene.fake.tell(good, true);
    assert_eq!(watch.next().await, ("a@b.test".into(), true));

    let flood: Vec<_> = (0..=MAX_OBJECTS).map(|i| endpoint(&i.to_string(), "web", "x")).collect();
    scene.fake.holds("c.test", &flood);
    let status = scene.all(by_service("web@c.test")).await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted);
    let mut watch = scene.ask(by_service("web@c.test"), true).await.unwrap();
    let mut told = 0;
    while let Some(Ok(_)) = watch.0.next().await {
        told += 1;
    }
    assert!(told <= MAX_OBJECTS + 1);
    let views = scene.federation.snapshot();
    let stale = views.iter().find(|v| v.domain.as_str() == "c.test").and_then(|v| v.stale.clone());
    assert!(stale.unwrap().1.contains("more than 10000 objects"));
}

#[tokio::test(start_paused = true)]
async fn a_slow_domain_holds_no_more_than_its_share() {
    let scene = Arc::new(Scene::new());
    scene.fake.silent.store(true, SeqCst);
    let calls: Vec<_> = (0..64)
        .map(|_| {
            let scene = scene.clone();
            scene.tasks.clone().spawn("ask", async move { scene.all(by_service("web@b.test")).await })
        })
        .collect();
    tokio::time::sleep(Duration::from_secs(1)).await;
    let status = scene.all(by_service("web@b.test")).await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted);
    assert!(status.message().contains("64 calls to the registry of b.test"), "{status}");
    scene.fake.silent.store(false, SeqCst);
    scene.all(by_service("web@c.test")).await.expect("others are served");
    for call in calls {
        assert_eq!(call.await.unwrap().unwrap_err().code(), Code::DeadlineExceeded);
    }
    scene.all(by_service("web@b.test")).await.expect("and it again, when it answers");
    assert!(scene.federation.inner.domains.is_empty(), "nothing is kept of calls that are over");
}

#[tokio::test(start_paused = true)]
async fn an_endpoint_that_moved_is_found_where_it_is() {
    let scene = Scene::new();
    scene.fake.holds("b.test", &[endpoint("a", "web", "tcp://198.51.100.7:1")]);
    let mut watch = scene.ask(by_service("web@b.test"), true).await.unwrap();
    watch.next().await;
    assert_eq!(scene.located("a").await.unwrap(), "tcp://198.51.100.7:1");
    scene.fake.tell(endpoint("a", "web", "tcp://198.51.100.8:1"), false);
    watch.next().await;
    assert_eq!(scene.located("a").await.unwrap(), "tcp://198.51.100.8:1");
    assert_eq!(scene.fake.finds.load(SeqCst), 1, "known without asking");
    scene.fake.holds("b.test", &[]);
    scene.fake.tell(endpoint("a", "web", "tcp://198.51.100.8:1"), true);
    watch.next().await;
    assert_eq!(scene.located("a").await, None);
    assert_eq!(scene.fake.finds.load(SeqCst), 2);
}

#[tokio::test(start_paused = true)]
async fn an_endpoint_of_ours_is_published_under_our_url_for_as_long_as_it_is_registered() {
    let scene = Scene::new();
    let floating = "f.test".parse().unwrap();
    let own = endpoint("nse", "web", "tcp://10.0.0.5:5001");
    let register = || scene.federation.register(&floating, "f.test", own.clone(), TokenPath::default());
    let (answer, path) = register().await.unwrap();
    assert_eq!(
        answer,
        endpoint("nse@f.test", "web@f.test", "tcp://10.0.0.5:5001"),
        "the caller gets its own url back"
    );
    assert_eq!(path.unwrap().tokens().len(), 2);
    assert_eq!(
        *scene.fake.registered.lock(),
        [endpoint("nse", "web", OURS)],
        "the domain gets ours, and plain names"
    );
    assert_eq!(scene.federation.published("nse@f.test").unwrap().url, "tcp://10.0.0.5:5001");
    assert!(scene.federation.published("nse").is_none());

    *scene.fake.refuses.lock() = Some(fault(Code::Unavailable, RemoteBlame::Network));
    assert!(register().await.is_err());
    assert!(scene.federation.published("nse@f.test").is_some(), "a refresh that fails ends nothing");
    *scene.fake.refuses.lock() = None;
    let gone = scene.federation.unregister(&floating, "f.test", own.clone(), TokenPath::default()).await;
    gone.unwrap();
    assert!(scene.federation.published("nse@f.test").is_none() && scene.fake.registered.lock().is_empty());
}
