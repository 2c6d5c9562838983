//! Registrations over mutual TLS, with tokens: what those who register get, and what those who steal do not.

#![allow(clippy::unwrap_used, reason = "a test may")]

use std::{
    sync::{Arc, Mutex},
    time::{Duration, SystemTime},
};

use carrick_identity::token::{PATH_KEY, TokenPath};
use carrick_model::{AccessRule, Payload};
use carrick_proto::registry::{Match, NetworkService, NetworkServiceEndpoint as Endpoint};
use carrick_registry::{
    Admission, ExportRecord, MAX_LABELS, MAX_LEASE,
    store::{Change, EmbeddedStore, Store, StoreError, StoreEvent},
};
use futures::stream::BoxStream;
use prost::Message as _;
use site::{Site, Workload, World, eventually, next, with_token};
use tokio::time::timeout;
use tonic::{Code, Request};

mod site;

fn endpoint(name: &str, service: &str) -> Endpoint {
    Endpoint {
        name: name.into(),
        network_service_names: vec![service.into()],
        url: "tcp://10.0.0.7:5001".into(),
        ..Default::default()
    }
}

fn service(name: &str, payload: &str) -> NetworkService {
    NetworkService { name: name.into(), payload: payload.into(), ..Default::default() }
}

async fn start(world: &World) -> Site {
    let store = EmbeddedStore::open(&world.path().join("registry.redb")).unwrap();
    Site::new(world, Arc::new(store)).await
}

fn rule(who: &str, services: &str) -> Vec<AccessRule> {
    vec![AccessRule { who: vec![who.parse().unwrap()], services: vec![services.parse().unwrap()] }]
}

#[tokio::test]
async fn an_endpoint_registers_is_found_refreshes_and_leaves() {
    let world = World::new();
    let site = start(&world).await;
    let nse = Workload::connect(&world, "own.test/ns/default/pod/nse", &site).await;
    let other = Workload::connect(&world, "own.test/ns/default/pod/client", &site).await;
    let mut watch = other.watch(endpoint("", "web")).await;

    let before = SystemTime::now();
    let mut response = nse.endpoints().register(nse.call(endpoint("nse-1", "web"))).await.unwrap();
    let path = response.metadata().get(PATH_KEY).unwrap().as_bytes().to_vec();
    let first = std::mem::take(response.get_mut());
    let ends = SystemTime::try_from(first.expiration_time.unwrap()).unwrap();
    assert!(ends > before + MAX_LEASE - Duration::from_secs(1), "a minute, as in NSM");
    assert!(ends <= SystemTime::now() + MAX_LEASE);
    assert!(first.initial_registration_time.is_some());
    assert_eq!(first.path_ids, [nse.id.to_string(), site.identity.id().to_string()]);

    // The path header of the answer: the caller's index, its token, ours for it.
    let path = TokenPath::parse(&path).unwrap();
    assert_eq!((path.index(), path.tokens().len()), (0, 2));
    let ours = carrick_identity::token::decode(&path.tokens()[1]).unwrap();
    assert_eq!((ours.sub, ours.aud), (site.identity.id().to_string(), vec![nse.id.to_string()]));

    assert_eq!(
        other.find(endpoint("", "web")).await,
        std::slice::from_ref(&first),
        "found at once by others"
    );
    assert_eq!(next(&mut watch).await, ("+nse-1".into(), first.clone()));
    let second = nse.register(endpoint("nse-1", "web")).await.unwrap();
    assert_eq!(second.initial_registration_time, first.initial_registration_time, "it is as old as it was");
    assert!(second.expiration_time.unwrap().seconds >= first.expiration_time.unwrap().seconds);
    assert_eq!(next(&mut watch).await, ("+nse-1".into(), second.clone()), "a refresh is told, as in NSM");

    nse.unregister(endpoint("nse-1", "")).await.unwrap();
    assert_eq!(next(&mut watch).await, ("-nse-1".into(), second), "in full");
    assert!(other.names().await.is_empty());
    nse.unregister(endpoint("nse-1", "")).await.unwrap();

    let own = nse.register(endpoint("nse-1@own.test", "web@own.test")).await.unwrap();
    assert_eq!(
        (own.name.as_str(), own.network_service_names[0].as_str()),
        ("nse-1@own.test", "web@own.test")
    );
    assert_eq!(next(&mut watch).await.0, "+nse-1", "the own domain is not part of the name");
    let done = site.metrics.registrations.of2("register", "done").get();
    assert_eq!((done, site.metrics.registry_commits.of("made").get()), (3, 4));
}

#[tokio::test]
async fn a_name_is_its_owners() {
    let world = World::new();
    let site = start(&world).await;
    let nse = Workload::connect(&world, "own.test/ns/default/pod/nse", &site).await;
    let thief = Workload::connect(&world, "own.test/ns/default/pod/thief", &site).await;
    let admin = Workload::connect(&world, "own.test/carrick/gateway", &site).await;
    nse.register(endpoint("nse-1", "web")).await.unwrap();

    let mut elsewhere = endpoint("nse-1", "web");
    elsewhere.url = "tcp://10.66.66.66:1".into();
    let refused = thief.register(elsewhere.clone()).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    assert!(refused.message().ends_with("no sufficient privileges"), "{refused}");
    assert!(refused.message().contains("nse-1") && refused.message().contains("/pod/nse"), "{refused}");
    let refused = thief.unregister(endpoint("nse-1", "web")).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    // It says it passes on what the owner sent, with a token that the owner never signed.
    let forged = {
        let claims = thief.token(&thief.id);
        let forger = Workload {
            id: nse.id.clone(),
            channel: thief.channel.clone(),
            server: thief.server.clone(),
            svid: thief.svid.clone(),
        };
        let mut path = TokenPath::default();
        path.advance(&forge(&nse.id.to_string(), &thief.id.to_string()), &claims.jwt).unwrap();
        let mut request = forger.call(elsewhere.clone());
        request.metadata_mut().insert(PATH_KEY, path.to_header().parse().unwrap());
        request
    };
    let refused = thief.endpoints().register(forged).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied, "{refused}");
    let named = Endpoint { name: "nse-1".into(), ..Default::default() };
    assert_eq!(nse.find(named).await[0].url, "tcp://10.0.0.7:5001", "nothing was stolen");

    nse.unregister(endpoint("nse-1", "")).await.unwrap();
    thief.register(elsewhere).await.unwrap();
    let refused = nse.register(endpoint("nse-1", "web")).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied, "who unregisters gives the name away");
    admin.unregister(endpoint("nse-1", "")).await.unwrap();
    nse.register(endpoint("nse-1", "web")).await.unwrap();
}

/// A token with these claims and no signature worth the name.
fn forge(sub: &str, aud: &str) -> String {
    use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD as BASE64};
    let exp = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs() + 600;
    let header = BASE64.encode(r#"{"alg":"ES256","typ":"JWT"}"#);
    let claims = BASE64.encode(format!(r#"{{"sub":"{sub}","aud":["{aud}"],"exp":{exp}}}"#));
    format!("{header}.{claims}.{}", BASE64.encode([7; 64]))
}

#[tokio::test]
async fn an_endpoint_behind_managers_keeps_its_name_when_the_manager_changes() {
    let world = World::new();
    let site = start(&world).await;
    let [nse, other, first, second] =
        ["nse", "other", "nsmgr-1", "nsmgr-2"].map(|pod| format!("own.test/ns/nsm/pod/{pod}"));
    let nse = Workload::connect(&world, &nse, &site).await;
    let other = Workload::connect(&world, &other, &site).await;
    let first = Workload::connect(&world, &first, &site).await;
    let second = Workload::connect(&world, &second, &site).await;

    let registered = first.endpoints().register(first.relay(&nse, endpoint("nse-1", "web"))).await.unwrap();
    let path = TokenPath::parse(registered.metadata().get(PATH_KEY).unwrap().as_bytes()).unwrap();
    assert_eq!((path.index(), path.tokens().len()), (1, 3), "the caller's place, and all tokens");
    let ids = [&nse.id, &first.id, &site.identity.id()].map(ToString::to_string);
    assert_eq!(registered.get_ref().path_ids, ids, "the registrant, who passed it on, and we");

    let moved = second.endpoints().register(second.relay(&nse, endpoint("nse-1", "web"))).await.unwrap();
    assert_eq!(moved.get_ref().path_ids[1], second.id.to_string());
    let refused =
        second.endpoints().register(second.relay(&other, endpoint("nse-1", "web"))).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    let refused = first.register(endpoint("nse-1", "web")).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied, "a manager does not own what it passes on");
    first.endpoints().unregister(first.relay(&nse, endpoint("nse-1", "web"))).await.unwrap();
    assert!(nse.names().await.is_empty());
}

#[tokio::test]
async fn calls_whose_tokens_do_not_hold_are_denied_in_nsms_words() {
    let world = World::new();
    let site = start(&world).await;
    let nse = Workload::connect(&world, "own.test/nse", &site).await;
    let other = Workload::connect(&world, "own.test/other", &site).await;
    let mut cases: Vec<(&str, Request<Endpoint>, Code)> = Vec::new();
    let plain = || Request::new(endpoint("nse-1", "web"));
    cases.push(("no token", plain(), Code::PermissionDenied));
    cases.push((
        "a token of another",
        with_token(plain(), &other.token(&nse.server)),
        Code::PermissionDenied,
    ));
    cases.push(("a token for another", with_token(plain(), &nse.token(&other.id)), Code::PermissionDenied));
    let mut garbage = nse.token(&nse.server);
    garbage.jwt = "garbage".into();
    cases.push(("no JWT", with_token(plain(), &garbage), Code::PermissionDenied));
    let over = nse.svid.mint_token(
        &nse.server,
        Duration::from_secs(60),
        SystemTime::now() - Duration::from_secs(120),
    );
    cases.push(("a token that is over", with_token(plain(), &over.unwrap()), Code::PermissionDenied));
    for (what, header) in [
        ("no JSON", "{".to_owned()),
        ("an index behind the end", r#"{"Index":7,"PathSegments":[{"token":"x"}]}"#.to_owned()),
        ("a negative index", r#"{"Index":-1,"PathSegments":[{"token":"x"}]}"#.to_owned()),
        ("a path bomb", format!(r#"{{"Index":0,"PathSegments":[{}{{}}]}}"#, "{},".repeat(5000))),
    ] {
        let mut request = nse.call(endpoint("nse-1", "web"));
        request.metadata_mut().insert(PATH_KEY, header.parse().unwrap());
        cases.push((what, request, Code::InvalidArgument));
    }
    let mut unchained = nse.call(endpoint("nse-1", "web"));
    let mut path = TokenPath::default();
    path.advance(&other.token(&other.id).jwt, &nse.token(&other.id).jwt).unwrap();
    unchained.metadata_mut().insert(PATH_KEY, path.to_header().parse().unwrap());
    cases.push(("tokens that do not belong together", unchained, Code::PermissionDenied));
    for (what, request, code) in cases {
        let refused = timeout(site::PATIENCE, nse.endpoints().register(request)).await.unwrap().unwrap_err();
        assert_eq!(refused.code(), code, "{what}: {refused}");
        if code == Code::PermissionDenied {
            assert!(refused.message().ends_with("no sufficient privileges"), "{what}: {refused}");
        }
    }
    assert!(nse.names().await.is_empty());
    nse.register(endpoint("nse-1", "web")).await.unwrap();
}

#[tokio::test]
async fn objects_that_are_no_objects_are_refused_in_words() {
    let world = World::new();
    let site = start(&world).await;
    let nse = Workload::connect(&world, "own.test/nse", &site).await;
    let labels = |n: usize| {
        let labels = (0..n).map(|n| (format!("key-{n}"), "x".repeat(150))).collect();
        let labels = carrick_proto::registry::NetworkServiceLabels { labels, ..Default::default() };
        Endpoint { network_service_labels: [("web".into(), labels)].into(), ..endpoint("nse-1", "web") }
    };
    for (wrong, word, code) in [
        (endpoint("", "web"), "needs a name", Code::InvalidArgument),
        (endpoint("@own.test", "web"), "needs a name", Code::InvalidArgument),
        (endpoint("nse@", "web"), "no valid domain", Code::InvalidArgument),
        (endpoint("nse@a@b", "web"), "no valid domain", Code::InvalidArgument),
        (endpoint("nse@a.test", "web@b.test"), "two domains", Code::InvalidArgument),
        (endpoint("nse@b.test", "web"), "another domain", Code::Unimplemented),
        (endpoint(&"x".repeat(300), "web"), "at most 256", Code::InvalidArgument),
        (endpoint("nse\n1", "web"), "control characters", Code::InvalidArgument),
        (endpoint("nse-1", ""), "a service of an endpoint", Code::InvalidArgument),
        (
            Endpoint { network_service_names: vec!["s".into(); 65], ..endpoint("nse-1", "web") },
            "at most 64",
            Code::InvalidArgument,
        ),
        (labels(MAX_LABELS + 1), "at most 128 labels", Code::InvalidArgument),
        (labels(MAX_LABELS), "octets", Code::InvalidArgument),
    ] {
        let refused = nse.register(wrong).await.unwrap_err();
        assert_eq!(refused.code(), code, "{refused}");
        assert!(refused.message().contains(word), "{word}: {refused}");
    }
    // 5 MiB do not even come in.
    let refused = nse.register(labels(50_000)).await.unwrap_err();
    assert!(matches!(refused.code(), Code::OutOfRange | Code::ResourceExhausted), "{refused}");
    assert!(nse.names().await.is_empty());
    nse.register(labels(10)).await.unwrap();
}

#[tokio::test]
async fn a_lease_ends_when_it_was_announced_and_frees_the_name() {
    let world = World::new();
    let site = start(&world).await;
    let nse = Workload::connect(&world, "own.test/nse", &site).await;
    let heir = Workload::connect(&world, "own.test/heir", &site).await;
    let mut watch = heir.watch(Endpoint::default()).await;
    // The caller's token ends first.
    let token = nse.token_for(&nse.server, Duration::from_secs(2));
    let call = with_token(Request::new(endpoint("nse-1", "web")), &token);
    let first = nse.endpoints().register(call).await.unwrap().into_inner();
    let ends = SystemTime::try_from(first.expiration_time.unwrap()).unwrap();
    assert!(ends <= token.expires, "not after the token");
    // The caller asks for less than it could have.
    let soon = SystemTime::now() + Duration::from_millis(2500);
    let asked = Endpoint { expiration_time: Some(soon.into()), ..endpoint("nse-2", "web") };
    let second = nse.register(asked).await.unwrap();
    assert!(SystemTime::try_from(second.expiration_time.unwrap()).unwrap() <= soon);
    assert_eq!((next(&mut watch).await.0, next(&mut watch).await.0), ("+nse-1".into(), "+nse-2".into()));
    assert!(heir.register(endpoint("nse-1", "web")).await.is_err(), "it is held until then");

    assert_eq!(next(&mut watch).await, ("-nse-1".into(), first), "what lapsed is told in full");
    assert!(SystemTime::now() >= ends, "not before it was announced");
    assert_eq!(next(&mut watch).await.0, "-nse-2");
    assert!(SystemTime::now() < soon + Duration::from_secs(2), "and not long after");
    heir.register(endpoint("nse-1", "web")).await.unwrap();
    assert_eq!(site.metrics.registry_expirations.get(), 2);
    assert!(nse.register(endpoint("nse-1", "web")).await.is_err(), "the name has a new owner");
}

#[tokio::test]
async fn registrations_outlive_the_registry() {
    let world = World::new();
    let site = start(&world).await;
    let nse = Workload::connect(&world, "own.test/nse", &site).await;
    // Both say something that only programs of the future understand: field 127, the text `new`.
    let newer = b"\xfa\x07\x03new";
    let (mut kept, mut web) = (endpoint("kept", "web"), service("web", ""));
    kept.merge(&newer[..]).unwrap();
    web.merge(&newer[..]).unwrap();
    let said = kept.unknown_fields.clone();
    let (kept, web) = (nse.register(kept).await.unwrap(), nse.register_service(web).await.unwrap());
    assert_eq!((&kept.unknown_fields, &web.unknown_fields), (&said, &said));
    assert_eq!(web.payload, "IP", "what a service carries that does not say");
    let short = SystemTime::now() + Duration::from_millis(300);
    nse.register(Endpoint { expiration_time: Some(short.into()), ..endpoint("lapsing", "web") })
        .await
        .unwrap();
    site.tasks.stop();
    drop(nse);
    assert!(site.tasks.wait(site::PATIENCE).await, "a task does not stop");
    drop(site);
    while SystemTime::now() < short {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }

    // The file is free once the last connection let go of the registry before.
    let mut store = EmbeddedStore::open(&world.path().join("registry.redb"));
    eventually("the store is closed", async || {
        if store.is_err() {
            store = EmbeddedStore::open(&world.path().join("registry.redb"));
        }
        store.is_ok()
    })
    .await;
    let site = Site::new(&world, Arc::new(store.unwrap())).await;
    let client = Workload::connect(&world, "own.test/client", &site).await;
    assert_eq!(
        client.find(Endpoint::default()).await,
        std::slice::from_ref(&kept),
        "as it was, and nothing that lapsed"
    );
    assert_eq!(client.find_services().await, [web]);
    let refused = client.register(endpoint("kept", "web")).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied, "and it is still its owner's");
    let nse = Workload::connect(&world, "own.test/nse", &site).await;
    let again = nse.register(endpoint("kept", "web")).await.unwrap();
    assert_eq!(again.initial_registration_time, kept.initial_registration_time);
    client.register(endpoint("lapsing", "web")).await.unwrap();
}

/// A store that can be told to refuse commits.
struct Refusing {
    inner: EmbeddedStore,
    fault: Mutex<Option<StoreError>>,
}

#[tonic::async_trait]
impl Store for Refusing {
    fn name(&self) -> String {
        self.inner.name()
    }

    async fn commit(&self, changes: Vec<Change>) -> Result<u64, StoreError> {
        let fault = self.fault.lock().unwrap().clone();
        match fault {
            Some(fault) => Err(fault),
            None => self.inner.commit(changes).await,
        }
    }

    fn follow(&self) -> BoxStream<'static, StoreEvent> {
        self.inner.follow()
    }
}

#[tokio::test]
async fn a_store_that_takes_nothing_keeps_nobody_from_finding() {
    let world = World::new();
    let inner = EmbeddedStore::open(&world.path().join("registry.redb")).unwrap();
    let store = Arc::new(Refusing { inner, fault: Mutex::default() });
    let site = Site::new(&world, Arc::clone(&store) as Arc<dyn Store>).await;
    let nse = Workload::connect(&world, "own.test/nse", &site).await;
    let heir = Workload::connect(&world, "own.test/heir", &site).await;
    let soon = SystemTime::now() + Duration::from_millis(1500);
    nse.register(Endpoint { expiration_time: Some(soon.into()), ..endpoint("lapsing", "web") })
        .await
        .unwrap();
    nse.register(endpoint("stays", "web")).await.unwrap();
    let mut watch = heir.watch(Endpoint::default()).await;
    assert_eq!((next(&mut watch).await.0, next(&mut watch).await.0), ("+lapsing".into(), "+stays".into()));

    let full = StoreError::Full { store: "the embedded store x".into() };
    let read_only = StoreError::ReadOnly { store: "the embedded store x".into(), reason: "EROFS".into() };
    for (fault, code, words) in [
        (full, Code::ResourceExhausted, ["is full", "make room"]),
        (read_only, Code::Unavailable, ["is read-only", "remount"]),
    ] {
        *store.fault.lock().unwrap() = Some(fault);
        let refused = nse.register(endpoint("new", "web")).await.unwrap_err();
        assert_eq!(refused.code(), code, "{refused}");
        assert!(words.iter().all(|word| refused.message().contains(word)), "{refused}");
        let refused = nse.unregister(endpoint("stays", "web")).await.unwrap_err();
        assert_eq!(refused.code(), code, "{refused}");
        assert!(heir.names().await.contains(&"stays".to_owned()), "what there is is found");
    }
    assert_eq!(next(&mut watch).await.0, "-lapsing", "leases end all the same");
    assert_eq!(heir.names().await, ["stays"]);

    *store.fault.lock().unwrap() = None;
    heir.register(endpoint("lapsing", "web")).await.unwrap();
    nse.register(endpoint("new", "web")).await.unwrap();
    assert_eq!(heir.names().await, ["lapsing", "new", "stays"], "and all goes on");
    assert!(
        site.metrics.registry_commits.of("full").get() >= 2
            && site.metrics.registrations.sum("register") >= 6
    );
}

#[tokio::test]
async fn the_domains_exports_win_a_name() {
    let world = World::new();
    let site = start(&world).await;
    let nse = Workload::connect(&world, "own.test/nse", &site).await;
    let export = ExportRecord {
        service: "web".parse().unwrap(),
        endpoint: "web-1".into(),
        payload: Payload::Tcp,
        url: "tcp://192.0.2.1:7443".into(),
        labels: [].into(),
        allow: vec![],
    };
    nse.register(endpoint("web-1", "web")).await.unwrap();
    nse.register(endpoint("web-2", "web")).await.unwrap();
    let mut watch = nse.watch(Endpoint::default()).await;
    assert_eq!((next(&mut watch).await.0, next(&mut watch).await.0), ("+web-1".into(), "+web-2".into()));

    site.registry.set_exports(vec![export]).unwrap();
    let (told, now) = next(&mut watch).await;
    assert_eq!((told.as_str(), now.url.as_str()), ("+web-1", "tcp://192.0.2.1:7443"));
    assert_eq!(nse.names().await, ["web-1", "web-2"], "one catalogue");
    let refused = nse.register(endpoint("web-1", "web")).await.unwrap_err();
    assert_eq!(refused.code(), Code::AlreadyExists);
    assert!(refused.message().contains("export"), "{refused}");

    site.registry.set_exports(vec![]).unwrap();
    let (told, back) = next(&mut watch).await;
    assert_eq!(
        (told.as_str(), back.url.as_str()),
        ("+web-1", "tcp://10.0.0.7:5001"),
        "what was there comes back"
    );
    nse.register(endpoint("web-1", "web")).await.unwrap();
}

#[tokio::test]
async fn a_service_is_registered_by_all_its_endpoints() {
    let world = World::new();
    let site = start(&world).await;
    let one = Workload::connect(&world, "own.test/ns/default/pod/nse-1", &site).await;
    let two = Workload::connect(&world, "own.test/ns/default/pod/nse-2", &site).await;
    let first = one.register_service(service("web", "IP")).await.unwrap();
    let same = two.register_service(service("web", "")).await.unwrap();
    assert_eq!(same, first, "whoever says what is there takes nothing");
    let changed = NetworkService { matches: vec![Match::default()], ..service("web", "IP") };
    let refused = two.register_service(changed.clone()).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    one.register_service(changed.clone()).await.unwrap();
    assert_eq!(two.find_services().await[0].matches, changed.matches);
    let refused = two.services().unregister(two.call(service("web", ""))).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    one.services().unregister(one.call(service("web", ""))).await.unwrap();
    assert!(one.find_services().await.is_empty());
    let refused = one.register_service(service("", "IP")).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
}

#[tokio::test]
async fn strangers_register_and_see_what_a_rule_lets_them() {
    let world = World::new();
    let site = start(&world).await;
    let peer = Workload::connect(&world, "b.test/ns/nsm/pod/proxy", &site).await;
    let stranger = Workload::connect(&world, "c.test/ns/nsm/pod/proxy", &site).await;
    let own = Workload::connect(&world, "own.test/nse", &site).await;
    own.register(endpoint("local", "vl3")).await.unwrap();
    let refused = peer.register(endpoint("floating", "vl3")).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied, "deny by default");
    assert!(refused.message().contains("registry.admit"), "what an operator can do: {refused}");
    assert!(peer.names().await.is_empty(), "nor is anything seen");

    let admit = rule("spiffe://b.test/**", "vl3");
    site.registry.set_admission(Admission { admit: admit.clone(), show: Vec::new() }).await;
    peer.register(endpoint("floating", "vl3")).await.unwrap();
    assert_eq!(peer.register(endpoint("other", "web")).await.unwrap_err().code(), Code::PermissionDenied);
    assert_eq!(
        stranger.register(endpoint("theirs", "vl3")).await.unwrap_err().code(),
        Code::PermissionDenied
    );
    assert_eq!(own.names().await, ["floating", "local"]);
    let spoof =
        stranger.endpoints().register(stranger.relay(&own, endpoint("local", "vl3"))).await.unwrap_err();
    assert_eq!(spoof.code(), Code::PermissionDenied);
    let spoof = peer.endpoints().register(peer.relay(&own, endpoint("local", "vl3"))).await.unwrap_err();
    assert_eq!(spoof.code(), Code::PermissionDenied, "nobody speaks for another trust domain: {spoof}");
    assert!(spoof.message().contains("cannot speak for"), "{spoof}");

    let mut watch = peer.watch(Endpoint::default()).await;
    site.registry
        .set_admission(Admission { admit: admit.clone(), show: rule("spiffe://b.test/**", "vl3") })
        .await;
    let told = [next(&mut watch).await.0, next(&mut watch).await.0];
    assert_eq!(told, ["+floating", "+local"], "a rule opens what is there already");
    assert!(stranger.names().await.is_empty());
    site.registry.set_admission(Admission { admit, show: Vec::new() }).await;
    assert_eq!([next(&mut watch).await.0, next(&mut watch).await.0], ["-floating", "-local"]);
    peer.unregister(endpoint("local", "")).await.unwrap();
    assert_eq!(own.names().await, ["floating", "local"], "what a peer must not see does not exist for it");
    peer.unregister(endpoint("floating", "")).await.unwrap();
    assert_eq!(own.names().await, ["local"]);
}

#[tokio::test]
async fn many_register_one_name_and_many_names_at_once() {
    let world = World::new();
    let site = start(&world).await;
    let nse = Workload::connect(&world, "own.test/nse", &site).await;
    let calls = (0..200).map(|n| nse.register(endpoint(&format!("nse-{n}"), "web")));
    let all = timeout(site::PATIENCE, futures::future::join_all(calls)).await.unwrap();
    assert!(all.iter().all(Result::is_ok));
    assert_eq!(nse.names().await.len(), 200);
    // The same name from many refreshes of one owner: the last writer wins, nobody fails.
    let calls = (0..8).map(|n| {
        let mut again = endpoint("nse-0", "web");
        again.url = format!("tcp://10.0.0.{n}:5001");
        nse.register(again)
    });
    let all = timeout(site::PATIENCE, futures::future::join_all(calls)).await.unwrap();
    assert!(all.iter().all(Result::is_ok), "{all:?}");
    assert_eq!(nse.names().await.len(), 200);
}
