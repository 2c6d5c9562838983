//! NSM's tokens between two domains: which go out, which come back, and which are refused with which words.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::disallowed_methods, reason = "test code")]

mod site;

use std::time::{Duration, SystemTime};

use carrick_identity::token::{self, EXPIRES_KEY, MAX_LIFETIME, TOKEN_KEY, format_expires};
use carrick_model::SpiffeId;
use carrick_proto::{
    connection::{Connection, Path, PathSegment},
    networkservice::{NetworkServiceRequest, network_service_client::NetworkServiceClient},
};
use carrick_proxy::{TokenChannel, peers::Role};
use tonic::{Code, Request, Status};

use self::site::Site;

const ALLOW: &[&str] = &["spiffe://cloud.test/**"];

async fn two() -> (Site, Site) {
    let (cloud, onprem) = (Site::new("cloud.test").await, Site::new("onprem.test").await);
    cloud.knows(&onprem);
    onprem.trusts(&cloud);
    onprem.offers("postgres", &["pg-1"], ALLOW);
    (cloud, onprem)
}

async fn client(from: &Site, to: &Site) -> NetworkServiceClient<TokenChannel> {
    let gateways = from.peers.gateways(&to.domain).await.unwrap();
    let link = from.peers.dial(&to.domain, Role::Connect, &gateways).await.unwrap();
    NetworkServiceClient::new(link.channel)
}

fn connection(segments: &[&str], tokens: &[&str]) -> Connection {
    let segment = |(name, token): (&&str, &&str)| PathSegment {
        name: (*name).to_owned(),
        id: format!("id-of-{name}"),
        token: (*token).to_owned(),
        ..PathSegment::default()
    };
    let path_segments: Vec<PathSegment> = segments.iter().zip(tokens).map(segment).collect();
    let last = path_segments.last().unwrap();
    Connection {
        id: last.id.clone(),
        network_service: "postgres".to_owned(),
        path: Some(Path { index: path_segments.len() as u32 - 1, path_segments, ..Path::default() }),
        ..Connection::default()
    }
}

fn request(connection: Connection, tokens: &[&str]) -> Request<NetworkServiceRequest> {
    let message = NetworkServiceRequest { connection: Some(connection), ..NetworkServiceRequest::default() };
    with(message, tokens)
}

/// `message` with these values of the token's key in place of the one that the channel would put there.
fn with<T>(message: T, tokens: &[&str]) -> Request<T> {
    let mut request = Request::new(message);
    for token in tokens {
        request.metadata_mut().append(TOKEN_KEY, token.parse().unwrap());
        let expires = format_expires(SystemTime::now() + MAX_LIFETIME);
        request.metadata_mut().append(EXPIRES_KEY, expires.parse().unwrap());
    }
    request
}

#[track_caller]
fn denied(answer: Result<tonic::Response<impl std::fmt::Debug>, Status>, policy: &str, why: &str) {
    let status = answer.unwrap_err();
    assert_eq!(status.code(), Code::PermissionDenied, "{status}");
    let text = status.message();
    assert!(text.starts_with(&format!("policy {policy}: ")) && text.contains(why), "{text}");
    assert!(text.ends_with("no sufficient privileges"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn each_side_leaves_a_token_for_the_other_in_its_segment() {
    let (cloud, onprem) = two().await;
    let mut client = client(&cloud, &onprem).await;
    let reply = client.request(request(connection(&["nsc"], &[""]), &[])).await.unwrap().into_inner();
    let path = reply.path.clone().unwrap();
    let own = cloud.identity.current().chain()[0].clone();
    let claims = token::verify(&path.path_segments[0].token, &own).expect("the caller's token, by its key");
    assert_eq!(claims.sub, "spiffe://cloud.test/carrick/gateway");
    assert_eq!(claims.aud, ["spiffe://onprem.test/carrick/gateway"]);
    let theirs = onprem.identity.current().chain()[0].clone();
    let claims =
        token::verify(&path.path_segments[1].token, &theirs).expect("the answerer's token, by its key");
    assert_eq!(claims.sub, "spiffe://onprem.test/carrick/gateway");
    assert_eq!(claims.aud, ["spiffe://cloud.test/carrick/gateway"]);
    for segment in &path.path_segments {
        let expires = SystemTime::try_from(segment.expires.unwrap()).unwrap();
        let left = expires.duration_since(SystemTime::now()).unwrap();
        assert!(left <= MAX_LIFETIME && left > MAX_LIFETIME - Duration::from_secs(30), "{left:?}");
    }
    // What was answered is good for a renewal and for a close.
    let renewed = client.request(request(reply, &[])).await.unwrap().into_inner();
    assert_eq!(onprem.exports.connections().len(), 1);
    client.close(renewed).await.unwrap();
    assert!(onprem.exports.connections().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn forged_stale_and_strayed_tokens_are_refused_by_name() {
    let (cloud, onprem) = two().await;
    let mut client = client(&cloud, &onprem).await;
    let (svid, to) = (cloud.identity.current(), onprem.identity.id());
    let now = SystemTime::now();
    let token = |audience: &SpiffeId, at| svid.mint_token(audience, MAX_LIFETIME, at).unwrap().jwt;
    let nsc = || connection(&["nsc"], &[""]);

    // The same name, another key: somebody else's CA.
    let forger = Site::new("cloud.test").await;
    let forged = forger.identity.mint_token(&to, MAX_LIFETIME).unwrap().jwt;
    denied(client.request(request(nsc(), &[&forged])).await, "prev_token_signed", "signature");
    let answer = client.request(request(nsc(), &[&token(&to, now - Duration::from_secs(660))])).await;
    denied(answer, "tokens_expired", "ended 6");
    let answer = client.request(request(nsc(), &[&token(&cloud.identity.id(), now)])).await;
    denied(answer, "tokens_chained", "not meant for `spiffe://onprem.test/carrick/gateway`");
    denied(client.request(request(nsc(), &["x.y.z"])).await, "tokens_valid", "segment 0");
    let twice = [token(&to, now), token(&to, now)];
    let answer = client.request(request(nsc(), &[&twice[0], &twice[1]])).await;
    denied(answer, "tokens_valid", "there is no token");
    let two_hops = connection(&["nsc", "mgr"], &["", ""]);
    denied(client.request(request(two_hops, &[])).await, "tokens_valid", "segment 0");
    // A hop before the caller may be of any domain, but has to name the caller.
    let strayed = onprem.identity.mint_token(&to, MAX_LIFETIME).unwrap().jwt;
    let answer = client.request(request(connection(&["nsc", "mgr"], &[&strayed, ""]), &[])).await;
    denied(answer, "tokens_chained", "segment 0");
    denied(client.close(with(nsc(), &[&forged])).await, "prev_token_signed", "signature");
    assert!(onprem.datapath.admitted.lock().is_empty());

    let good = onprem.identity.mint_token(&cloud.identity.id(), MAX_LIFETIME).unwrap().jwt;
    client.request(request(connection(&["nsc", "mgr"], &[&good, ""]), &[])).await.expect("two hops, chained");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rotation_on_either_side_disturbs_no_request() {
    let (cloud, onprem) = two().await;
    let mut old = client(&cloud, &onprem).await;
    let asked = || NetworkServiceRequest {
        connection: Some(connection(&["nsc"], &[""])),
        ..NetworkServiceRequest::default()
    };
    cloud.peers.request(&onprem.domain, asked()).await.expect("the pool has a connection now");
    let [cloud_leaf, onprem_leaf] = [&cloud, &onprem].map(|site| site.identity.current().chain()[0].clone());

    onprem.identity.rotate(SystemTime::now()).unwrap();
    let reply = old.request(asked()).await.unwrap().into_inner();
    let answer = &reply.path.unwrap().path_segments[1].token;
    token::verify(answer, &onprem_leaf)
        .expect("signed by the key of the certificate that this connection saw");
    cloud.peers.request(&onprem.domain, asked()).await.expect("and the policies of a client agree");

    cloud.identity.rotate(SystemTime::now()).unwrap();
    let reply = old.request(asked()).await.expect("the connection keeps its key").into_inner();
    token::verify(&reply.path.unwrap().path_segments[0].token, &cloud_leaf).unwrap();
    let reply = cloud.peers.request(&onprem.domain, asked()).await.unwrap();
    let new_leaf = cloud.identity.current().chain()[0].clone();
    token::verify(&reply.path.unwrap().path_segments[0].token, &new_leaf)
        .expect("the pool made a connection with the new key");
}
