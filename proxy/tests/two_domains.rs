//! Two domains in one process, over real TCP and real TLS on loopback: what an import sees, what an export sees, and what
//! either data path is told.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::disallowed_methods, reason = "test code")]

mod site;

use std::time::{Duration, Instant};

use carrick_proxy::{explain::Verdict, imports::ImportState};

use self::site::{PATIENCE, Site, eventually};

const ALLOW: &[&str] = &["spiffe://cloud.test/**"];

/// `cloud.test` imports, `onprem.test` exports; each trusts the other.
async fn two() -> (Site, Site) {
    let (cloud, onprem) = (Site::new("cloud.test").await, Site::new("onprem.test").await);
    cloud.knows(&onprem);
    onprem.trusts(&cloud);
    (cloud, onprem)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_import_comes_up_and_both_data_paths_know_the_same_connection() {
    let (cloud, onprem) = two().await;
    onprem.offers("postgres", &["pg-1"], ALLOW);
    let begun = Instant::now();
    let service = cloud.import("postgres@onprem.test");
    let route = cloud.up(&service).await;
    println!("cold start to route: {:?}", begun.elapsed());

    let admitted = onprem.datapath.admitted.lock();
    let admission = &admitted[&route.connection];
    assert_eq!(admission.peer.to_string(), "spiffe://cloud.test/carrick/gateway");
    assert_eq!(admission.target.to_string(), "tcp://10.0.0.5:5432");
    assert_eq!(route.gateways, ["127.0.0.1:9".parse().unwrap()]);
    assert_eq!((route.port, route.trust_domain.as_str()), (Some(5432), "onprem.test"));
    let status = cloud.status(&service);
    assert_eq!((status.state, status.endpoint.as_deref()), (ImportState::Up, Some("pg-1")));
    assert!(status.lease_end.is_some() && status.last_fault.is_none());
    assert_eq!(onprem.exports.connections().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_denied_caller_is_told_why_and_comes_up_once_it_is_allowed() {
    let (cloud, onprem) = two().await;
    onprem.offers("postgres", &["pg-1"], &["spiffe://other.test/**"]);
    let service = cloud.import("postgres@onprem.test");
    let status = cloud.down_with(&service, "denied").await;
    let fault = status.last_fault.unwrap();
    assert!(fault.detail.ends_with("no sufficient privileges"), "{}", fault.detail);
    assert!(fault.hint.contains("allow"), "{}", fault.hint);
    assert_eq!((fault.step, fault.blame.as_str()), ("request", "peer"));
    assert!(cloud.datapath.unrouted.lock().last().unwrap().contains("no sufficient privileges"));
    assert!(onprem.datapath.admitted.lock().is_empty());

    onprem.offers("postgres", &["pg-1"], ALLOW);
    cloud.imports.demand(&service);
    cloud.up(&service).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_change_ends_a_live_connection_at_once() {
    let (cloud, onprem) = two().await;
    onprem.offers("postgres", &["pg-1"], ALLOW);
    let service = cloud.import("postgres@onprem.test");
    let route = cloud.up(&service).await;
    onprem.offers("postgres", &["pg-1"], &[]);
    let (id, why) = onprem.datapath.revoked.lock().last().cloned().unwrap();
    assert_eq!((id, why.as_str()), (route.connection, "the allow list does not name the caller any more"));
    // The importing side learns it from the refusal of its next flow.
    cloud.imports.lost(&service, route.connection, "the flow was refused: unknown connection");
    cloud.down_with(&service, "denied").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_service_names_the_service_and_the_domain() {
    let (cloud, onprem) = two().await;
    onprem.offers("postgres", &["pg-1"], ALLOW);
    let service = cloud.import("mysql@onprem.test");
    let fault = cloud.down_with(&service, "no service").await.last_fault.unwrap();
    assert_eq!(
        fault.detail,
        "onprem.test refused Request: not found: network service `mysql` is not offered by onprem.test"
    );
    assert!(fault.hint.contains("carrick services @onprem.test"), "{}", fault.hint);
    // It is offered later: the watch tells, nobody has to ask.
    onprem.offers("mysql", &["my-1"], ALLOW);
    cloud.up(&service).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_domain_without_an_address_and_one_where_nothing_listens() {
    let (cloud, mut onprem) = two().await;
    let nowhere = cloud.import("postgres@nowhere.test");
    let fault = cloud.down_with(&nowhere, "unresolved").await.last_fault.unwrap();
    assert!(fault.detail.contains("nowhere.test"), "{}", fault.detail);
    assert!(!fault.hint.is_empty());

    onprem.stop_server().await;
    let service = cloud.import("postgres@onprem.test");
    let fault = cloud.down_with(&service, "unreachable").await.last_fault.unwrap();
    assert!(fault.detail.contains("connection refused"), "{}", fault.detail);
    assert!(fault.hint.contains("nothing listens"), "{}", fault.hint);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_with_the_wrong_root_is_refused() {
    let (cloud, onprem) = two().await;
    onprem.offers("postgres", &["pg-1"], ALLOW);
    // Another CA for the same name: what we hold is the bundle of the real one.
    let impostor = Site::new("onprem.test").await;
    impostor.trusts(&cloud);
    impostor.offers("postgres", &["pg-1"], ALLOW);
    cloud.finds(&onprem.domain, impostor.control);
    let service = cloud.import("postgres@onprem.test");
    let fault = cloud.down_with(&service, "untrusted").await.last_fault.unwrap();
    assert!(fault.detail.contains("not signed by a root in our bundle"), "{}", fault.detail);
    assert!(fault.hint.contains("fingerprints"), "{}", fault.hint);
    assert!(impostor.datapath.admitted.lock().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_good_svid_of_another_trusted_domain_is_refused() {
    let (cloud, onprem) = two().await;
    let other = Site::new("other.test").await;
    other.trusts(&cloud);
    other.offers("postgres", &["pg-1"], ALLOW);
    cloud.trusts(&other);
    // Whoever controls the DNS leads us to a domain that we trust, for its own name.
    cloud.finds(&onprem.domain, other.control);
    let service = cloud.import("postgres@onprem.test");
    let fault = cloud.down_with(&service, "untrusted").await.last_fault.unwrap();
    assert!(fault.detail.contains("`onprem.test` was called"), "{}", fault.detail);
    assert!(fault.detail.contains("`other.test`"), "{}", fault.detail);
    assert!(other.datapath.admitted.lock().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_domain_without_a_bundle_is_not_even_called() {
    let (cloud, onprem) = (Site::new("cloud.test").await, Site::new("onprem.test").await);
    cloud.finds(&onprem.domain, onprem.control);
    let service = cloud.import("postgres@onprem.test");
    let fault = cloud.down_with(&service, "untrusted").await.last_fault.unwrap();
    assert!(fault.detail.contains("no trust bundle for onprem.test"), "{}", fault.detail);
    assert!(fault.hint.contains("carrick trust export"), "{}", fault.hint);
    assert_eq!(onprem.handshakes_refused(), 0);
    // Trust is imported: it goes on by itself.
    onprem.trusts(&cloud);
    onprem.offers("postgres", &["pg-1"], ALLOW);
    cloud.trusts(&onprem);
    cloud.imports.retry();
    cloud.up(&service).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_does_not_trust_us_says_so_and_is_not_stormed() {
    let (cloud, onprem) = (Site::new("cloud.test").await, Site::new("onprem.test").await);
    onprem.offers("postgres", &["pg-1"], ALLOW);
    cloud.knows(&onprem);
    let begun = Instant::now();
    let service = cloud.import("postgres@onprem.test");
    let fault = cloud.down_with(&service, "not accepted").await.last_fault.unwrap();
    assert_eq!(fault.blame, "peer");
    assert!(fault.hint.contains("does not trust this domain"), "{}", fault.hint);
    tokio::time::sleep(Duration::from_secs(2)).await;
    let refused = onprem.handshakes_refused();
    let most = 4 + 2 * begun.elapsed().as_secs();
    assert!(refused >= 1 && refused <= most, "{refused} handshakes in {:?}", begun.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_restarts_is_found_again_without_anybody_asking() {
    let (cloud, mut onprem) = two().await;
    onprem.offers("postgres", &["pg-1"], ALLOW);
    let service = cloud.import("postgres@onprem.test");
    cloud.up(&service).await;
    onprem.restart_server().await;
    assert!(onprem.exports.connections().is_empty());
    eventually("the restarted peer has the connection", || {
        let route = cloud.datapath.routes.lock().get(&service).cloned()?;
        onprem.datapath.admitted.lock().contains_key(&route.connection).then_some(())
    })
    .await;
    let lines = cloud.datapath.unrouted.lock().clone();
    assert_eq!(lines, ["it is being connected"], "the connection was kept over the restart");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_is_renewed_in_time_and_ends_without_its_owner() {
    let lease = Duration::from_millis(1500);
    let (cloud, onprem) = (Site::new("cloud.test").await, Site::with_lease("onprem.test", lease).await);
    cloud.knows(&onprem);
    onprem.trusts(&cloud);
    onprem.offers("postgres", &["pg-1"], ALLOW);
    let service = cloud.import("postgres@onprem.test");
    let route = cloud.up(&service).await;
    let first_end = onprem.exports.connections()[0].lease_end;
    eventually("three leases pass", || {
        let end = onprem.exports.connections().first()?.lease_end;
        (end > first_end + lease * 3).then_some(())
    })
    .await;
    assert!(onprem.datapath.revoked.lock().is_empty());
    assert_eq!(cloud.datapath.routes.lock()[&service], route, "same connection all the time");

    // The owner dies without a word.
    cloud.finds(&onprem.domain, "127.0.0.1:1".parse().unwrap());
    cloud.peers.forget(&onprem.domain);
    let why = eventually("the lease ends", || onprem.datapath.revoked.lock().first().cloned()).await.1;
    assert_eq!(why, "the lease ended without a renewal");
    cloud.down_with(&service, "unreachable").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn removing_an_import_frees_the_exporting_side() {
    let (cloud, onprem) = two().await;
    onprem.offers("postgres", &["pg-1"], ALLOW);
    let service = cloud.import("postgres@onprem.test");
    cloud.up(&service).await;
    assert!(cloud.imports.remove(&service).await);
    assert!(onprem.exports.connections().is_empty());
    assert_eq!(onprem.datapath.revoked.lock()[0].1, "closed by its owner");
    assert!(cloud.datapath.routes.lock().is_empty() && cloud.imports.list().is_empty());
    assert!(!cloud.imports.remove(&service).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endpoint_that_moves_takes_the_connection_along() {
    let (cloud, onprem) = two().await;
    onprem.offers("postgres", &["pg-1"], ALLOW);
    let service = cloud.import("postgres@onprem.test");
    cloud.up(&service).await;
    onprem.offers("postgres", &["pg-2"], ALLOW);
    eventually("the other endpoint is used", || {
        (cloud.status(&service).endpoint.as_deref() == Some("pg-2")).then_some(())
    })
    .await;
    assert_eq!(onprem.exports.connections().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn trust_that_is_withdrawn_ends_connections_and_calls() {
    let (cloud, onprem) = two().await;
    onprem.offers("postgres", &["pg-1"], ALLOW);
    let service = cloud.import("postgres@onprem.test");
    let route = cloud.up(&service).await;
    assert!(onprem.trust.remove(&carrick_model::TrustDomain::new("cloud.test").unwrap()));
    let revoked = eventually("revoked", || onprem.datapath.revoked.lock().first().cloned()).await;
    assert_eq!(revoked.0, route.connection);
    assert!(revoked.1.contains("not trusted any more"), "{}", revoked.1);
    // The control connection is cut as well: the watch ends, and the next call is refused.
    let fault = cloud.down_with(&service, "not accepted").await.last_fault.unwrap();
    assert!(fault.detail.contains("refused our identity"), "{}", fault.detail);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_removed_from_the_own_trust_is_down_at_once() {
    let (cloud, onprem) = two().await;
    onprem.offers("postgres", &["pg-1"], ALLOW);
    let service = cloud.import("postgres@onprem.test");
    cloud.up(&service).await;
    cloud.trust.remove(&carrick_model::TrustDomain::new("onprem.test").unwrap());
    cloud.down_with(&service, "untrusted").await;
    assert!(cloud.datapath.routes.lock().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn explain_walks_every_step_and_leaves_nothing_behind() {
    let (cloud, onprem) = two().await;
    onprem.offers("postgres", &["pg-1"], ALLOW);
    let walk = cloud.explainer().explain("postgres@onprem.test", None).await;
    let steps: Vec<&str> = walk.steps.iter().map(|s| s.step).collect();
    assert_eq!(steps, ["name", "domain", "trust", "connect", "find", "select", "request"]);
    assert!(walk.is_ok(), "{walk:#?}");
    assert!(walk.steps.iter().all(|s| s.verdict == Verdict::Ok && !s.evidence.is_empty()), "{walk:#?}");
    let connect = &walk.steps[3].evidence[0];
    assert!(connect.contains("spiffe://onprem.test/carrick/gateway"), "{connect}");
    assert_eq!(walk.route.unwrap().gateways, ["127.0.0.1:9".parse().unwrap()]);
    assert!(onprem.exports.connections().is_empty(), "its own request is closed again");
}

#[tokio::test(flavor = "multi_thread")]
async fn explain_stops_where_it_fails_and_says_what_to_do() {
    let (cloud, onprem) = two().await;
    onprem.offers("postgres", &["pg-1"], &[]);
    let explainer = cloud.explainer();
    for (name, failed, hint) in [
        ("not a name", "name", "service@domain"),
        ("postgres@nowhere.test", "domain", "dns.servers"),
        ("mysql@onprem.test", "find", "carrick services"),
        ("postgres@onprem.test", "request", "allow"),
        ("mysql@cloud.test", "find", "exports"),
    ] {
        let walk = explainer.explain(name, None).await;
        let bad =
            walk.steps.iter().find(|s| s.verdict == Verdict::Failed).unwrap_or_else(|| panic!("{walk:#?}"));
        assert_eq!(bad.step, failed, "{walk:#?}");
        assert!(bad.hint.as_ref().unwrap().contains(hint), "{bad:?}");
        let after = walk.steps.iter().skip_while(|s| s.step != failed).skip(1);
        assert!(after.clone().all(|s| s.verdict == Verdict::Skipped), "{walk:#?}");
        assert_eq!(walk.steps.len(), 7);
    }
    cloud.trust.remove(&carrick_model::TrustDomain::new("onprem.test").unwrap());
    let walk = explainer.explain("postgres@onprem.test", None).await;
    let bad = walk.steps.iter().find(|s| s.verdict == Verdict::Failed).unwrap();
    assert_eq!(bad.step, "trust");
}

#[tokio::test(flavor = "multi_thread")]
async fn imports_of_the_own_domain_and_doubles_are_refused() {
    let cloud = Site::new("cloud.test").await;
    let import = |s: &str| carrick_proxy::imports::Import::new(s.parse().unwrap(), None);
    let own = cloud.imports.add(import("postgres@cloud.test")).unwrap_err();
    assert_eq!(own.to_string(), "`postgres@cloud.test` is a service of this domain");
    cloud.imports.add(import("postgres@onprem.test")).unwrap();
    let double = cloud.imports.add(import("postgres@onprem.test")).unwrap_err();
    assert_eq!(double.to_string(), "`postgres@onprem.test` is imported already");
}

#[tokio::test(flavor = "multi_thread")]
async fn stopping_closes_everything_in_time() {
    let (cloud, onprem) = two().await;
    onprem.offers("postgres", &["pg-1"], ALLOW);
    let service = cloud.import("postgres@onprem.test");
    cloud.up(&service).await;
    let begun = Instant::now();
    cloud.imports.close_all().await;
    assert!(onprem.exports.connections().is_empty());
    onprem.tasks.stop();
    assert!(onprem.tasks.wait(PATIENCE).await);
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
}
