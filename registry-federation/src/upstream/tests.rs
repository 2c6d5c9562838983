#![allow(clippy::needless_pass_by_value, clippy::disallowed_methods, reason = "test code: short scenes")]

use parking_lot::Mutex;
use tokio::time::timeout;

use super::*;
use crate::federation::{RemoteBlame, RemoteRegistry};

type Endpoint = NetworkServiceEndpoint;
type Watch = mpsc::UnboundedSender<Result<RemoteAnswer<Endpoint>, RemoteFault>>;

/// A registry of NSM's: a watch says first what there is, and never where that ends.
#[derive(Default)]
struct Fake {
    endpoints: Mutex<Vec<Endpoint>>,
    watches: Mutex<Vec<Watch>>,
    away: Mutex<bool>,
}

impl Fake {
    fn put(&self, endpoint: Endpoint) {
        let mut all = self.endpoints.lock();
        all.retain(|there| there.name != endpoint.name);
        all.push(endpoint.clone());
        self.say(endpoint, false);
    }

    fn say(&self, object: Endpoint, deleted: bool) {
        self.watches
            .lock()
            .retain(|watch| watch.send(Ok(RemoteAnswer { object: object.clone(), deleted })).is_ok());
    }

    fn leave(&self) {
        *self.away.lock() = true;
        self.watches.lock().clear();
        self.endpoints.lock().clear();
    }

    fn fault(&self) -> Result<(), RemoteFault> {
        let fault = || RemoteFault {
            domain: domain(),
            code: tonic::Code::Unavailable,
            blame: RemoteBlame::Us,
            detail: "away".into(),
            hint: "start it".into(),
        };
        if *self.away.lock() { Err(fault()) } else { Ok(()) }
    }
}

#[tonic::async_trait]
impl RemoteRegistry<Endpoint> for Fake {
    async fn find(
        &self,
        _: &Domain,
        _: Endpoint,
        watch: bool,
    ) -> Result<RemoteAnswers<Endpoint>, RemoteFault> {
        self.fault()?;
        let all = self.endpoints.lock().clone();
        let now = stream::iter(all).map(|object| Ok(RemoteAnswer { object, deleted: false }));
        if !watch {
            return Ok(now.boxed());
        }
        let (sender, receiver) = mpsc::unbounded_channel();
        self.watches.lock().push(sender);
        let later = stream::unfold(receiver, |mut r| async move { Some((r.recv().await?, r)) });
        Ok(now.chain(later).boxed())
    }

    async fn register(
        &self,
        _: &Domain,
        object: Endpoint,
        path: TokenPath,
    ) -> Result<(Endpoint, Option<TokenPath>), RemoteFault> {
        Ok((object, Some(path)))
    }

    async fn unregister(&self, _: &Domain, _: Endpoint, _: TokenPath) -> Result<(), RemoteFault> {
        Ok(())
    }
}

#[tonic::async_trait]
impl RemoteRegistry<NetworkService> for Fake {
    async fn find(
        &self,
        _: &Domain,
        _: NetworkService,
        watch: bool,
    ) -> Result<RemoteAnswers<NetworkService>, RemoteFault> {
        self.fault()?;
        Ok(if watch { stream::pending().boxed() } else { stream::empty().boxed() })
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
        self.fault()
    }

    fn lost(&self, _: &Domain) {}
}

fn domain() -> Domain {
    "own.test".parse().unwrap()
}

fn endpoint(name: &str, url: &str) -> Endpoint {
    Endpoint {
        name: name.into(),
        url: url.into(),
        network_service_names: vec!["web".into()],
        path_ids: vec!["spiffe://own.test/nse".into(), "spiffe://own.test/nsmgr".into()],
        ..Default::default()
    }
}

fn mirror(fake: &Arc<Fake>) -> BoxStream<'static, StoreEvent> {
    MirrorStore::new("tcp://registry:5002", domain(), fake.clone()).follow()
}

/// The next event in few words.
async fn next(events: &mut BoxStream<'static, StoreEvent>) -> String {
    let word = |record: Option<StoredRecord>| match record {
        None => "gone".to_owned(),
        Some(record) => <Endpoint as prost::Message>::decode(&*record.object).unwrap().url,
    };
    match timeout(Duration::from_secs(120), events.next()).await.expect("an event").expect("no end") {
        StoreEvent::Record { key, record, .. } => format!("record {} {}", key.name, word(Some(record))),
        StoreEvent::Synced(_) => "synced".to_owned(),
        StoreEvent::Committed { changes, .. } => {
            let words = changes.into_iter().map(|(key, record)| format!("{} {}", key.name, word(record)));
            words.collect::<Vec<_>>().join(", ")
        }
        StoreEvent::Lost(_) => "lost".to_owned(),
    }
}

async fn nothing(events: &mut BoxStream<'static, StoreEvent>) {
    assert!(timeout(SETTLE / 2, events.next()).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn what_there_is_then_what_changes_and_nothing_twice() {
    let fake = Arc::new(Fake::default());
    fake.put(endpoint("a", "tcp://1"));
    let mut events = mirror(&fake);
    assert_eq!(next(&mut events).await, "record a tcp://1");
    assert_eq!(next(&mut events).await, "synced");
    // The watch says the same once more.
    nothing(&mut events).await;
    fake.put(endpoint("b", "tcp://2"));
    assert_eq!(next(&mut events).await, "b tcp://2");
    fake.put(endpoint("b", "tcp://2"));
    fake.put(endpoint("a", "tcp://3"));
    assert_eq!(next(&mut events).await, "a tcp://3");
    fake.endpoints.lock().retain(|there| there.name != "b");
    fake.say(endpoint("b", "tcp://2"), true);
    assert_eq!(next(&mut events).await, "b gone");
    fake.say(endpoint("b", "tcp://2"), true);
    nothing(&mut events).await;
}

#[tokio::test(start_paused = true)]
async fn what_left_without_a_word_is_found_out() {
    let fake = Arc::new(Fake::default());
    fake.put(endpoint("a", "tcp://1"));
    let mut events = mirror(&fake);
    assert_eq!(next(&mut events).await, "record a tcp://1");
    // Between the first Find and the watch: nobody is told.
    fake.endpoints.lock().clear();
    assert_eq!(next(&mut events).await, "synced");
    let began = tokio::time::Instant::now();
    assert_eq!(next(&mut events).await, "a gone");
    assert!(began.elapsed() <= SETTLE, "{:?}", began.elapsed());
    // And what came without a word.
    fake.endpoints.lock().push(endpoint("c", "tcp://4"));
    assert_eq!(next(&mut events).await, "c tcp://4");
}

#[tokio::test(start_paused = true)]
async fn a_registry_that_restarts_has_what_it_has_then() {
    let fake = Arc::new(Fake::default());
    fake.put(endpoint("a", "tcp://1"));
    let mut events = mirror(&fake);
    assert_eq!(next(&mut events).await, "record a tcp://1");
    assert_eq!(next(&mut events).await, "synced");
    nothing(&mut events).await;
    fake.leave();
    assert_eq!(next(&mut events).await, "lost");
    assert_eq!(next(&mut events).await, "lost", "it is called again and again");
    *fake.away.lock() = false;
    fake.put(endpoint("b", "tcp://2"));
    loop {
        let word = next(&mut events).await;
        match word.as_str() {
            "lost" => {}
            "record b tcp://2" => break,
            other => panic!("{other}"),
        }
    }
    assert_eq!(next(&mut events).await, "synced");
}

#[tokio::test(start_paused = true)]
async fn owners_are_kept_and_what_we_would_not_take_is_left_out() {
    let fake = Arc::new(Fake::default());
    let mut bad = endpoint("x@other.test", "tcp://1");
    fake.put(bad.clone());
    bad.name = String::new();
    fake.put(bad.clone());
    bad.name = "long".into();
    bad.url = "u".repeat(crate::MAX_URL + 1);
    fake.put(bad);
    fake.put(endpoint("good", "tcp://1"));
    let mut events = mirror(&fake);
    let Some(StoreEvent::Record { key, record, .. }) = events.next().await else { panic!("no record") };
    assert_eq!(key.name, "good");
    let ids = [record.owner.unwrap().to_string(), record.via.unwrap().to_string()];
    assert_eq!(ids, ["spiffe://own.test/nse", "spiffe://own.test/nsmgr"]);
    assert_eq!(next(&mut events).await, "synced");
    let store = MirrorStore::new("tcp://registry:5002", domain(), fake);
    let key = Key { kind: carrick_registry_core::Kind::Endpoint, name: "good".into() };
    let change = Change::Delete { key, expect: crate::store::Expect::Any };
    assert!(matches!(store.commit(vec![change]).await, Err(StoreError::ReadOnly { .. })));
}
