//! What the control listener does with callers that break the rules: each gets a status that names what is wrong, and everyone
//! else is served.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::disallowed_methods, reason = "test code")]

mod site;

use std::time::Duration;

use carrick_proto::{
    connection::{Connection, Path, PathSegment},
    networkservice::{NetworkServiceRequest, network_service_client::NetworkServiceClient},
};
use carrick_proxy::{TokenChannel, peers::Role};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use tonic::{Code, Status};

use self::site::{Site, eventually};

const ALLOW: &[&str] = &["spiffe://cloud.test/**"];

async fn two() -> (Site, Site) {
    let (cloud, onprem) = (Site::new("cloud.test").await, Site::new("onprem.test").await);
    cloud.knows(&onprem);
    onprem.trusts(&cloud);
    onprem.offers("postgres", &["pg-1"], ALLOW);
    (cloud, onprem)
}

/// A connection of `from` to `to` with nothing of ours in between but TLS.
async fn client(from: &Site, to: &Site) -> NetworkServiceClient<TokenChannel> {
    let gateways = from.peers.gateways(&to.domain).await.unwrap();
    let link = from.peers.dial(&to.domain, Role::Connect, &gateways).await.unwrap();
    NetworkServiceClient::new(link.channel)
}

fn connection(id: &str, service: &str, segments: &[(&str, &str)]) -> Connection {
    let segment = |(name, id): &(&str, &str)| PathSegment {
        name: (*name).to_owned(),
        id: (*id).to_owned(),
        ..PathSegment::default()
    };
    Connection {
        id: id.to_owned(),
        network_service: service.to_owned(),
        path: Some(Path {
            index: 0,
            path_segments: segments.iter().map(segment).collect(),
            ..Path::default()
        }),
        ..Connection::default()
    }
}

fn request(connection: Connection) -> NetworkServiceRequest {
    NetworkServiceRequest { connection: Some(connection), ..NetworkServiceRequest::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn malformed_requests_get_a_status_that_names_the_fault() {
    let (cloud, onprem) = two().await;
    let mut client = client(&cloud, &onprem).await;
    let good = || connection("c", "postgres", &[("nsc", "c")]);
    let cases: Vec<(&str, Code, Connection)> = vec![
        ("path is empty", Code::InvalidArgument, connection("c", "postgres", &[])),
        ("no path", Code::InvalidArgument, Connection { path: None, ..good() }),
        ("path index 9", Code::InvalidArgument, {
            let mut c = good();
            c.path.as_mut().unwrap().index = 9;
            c
        }),
        ("connection id", Code::InvalidArgument, connection("d", "postgres", &[("nsc", "c")])),
        ("65 segments", Code::InvalidArgument, connection("c", "postgres", &[("nsc", "c"); 65])),
        ("`expires` is not a time", Code::InvalidArgument, {
            let mut c = good();
            let far = prost_types::Timestamp { seconds: i64::MAX, nanos: 0 };
            c.path.as_mut().unwrap().path_segments[0].expires = Some(far);
            c
        }),
        ("not a service name", Code::InvalidArgument, connection("c", "no such!", &[("nsc", "c")])),
        ("carries TCP", Code::InvalidArgument, Connection { payload: "IP".into(), ..good() }),
        ("`mysql` is not offered by onprem.test", Code::NotFound, connection("c", "mysql", &[("nsc", "c")])),
        (
            "not of this domain, which is onprem.test",
            Code::NotFound,
            connection("c", "a@b.test", &[("nsc", "c")]),
        ),
    ];
    for (words, code, connection) in cases {
        let status: Status = client.request(request(connection)).await.unwrap_err();
        assert_eq!(status.code(), code, "{words}: {status}");
        assert!(status.message().contains(words), "{words}: {}", status.message());
    }
    let none = client.request(NetworkServiceRequest::default()).await.unwrap_err();
    assert_eq!(none.code(), Code::InvalidArgument);
    let close = client.close(Connection::default()).await.unwrap_err();
    assert_eq!(close.code(), Code::InvalidArgument);
    assert!(onprem.datapath.admitted.lock().is_empty());

    // The same connection still serves, and the reply is as NSM has it.
    let mut asked = connection("c", "postgres@onprem.test", &[("nsc", "c")]);
    asked.labels.insert("app".into(), "x".into());
    let reply = client.request(request(asked)).await.unwrap().into_inner();
    assert_eq!((reply.id.as_str(), reply.network_service.as_str()), ("c", "postgres@onprem.test"));
    assert_eq!(reply.network_service_endpoint_name, "pg-1@onprem.test");
    assert_eq!((reply.payload.as_str(), reply.labels["app"].as_str()), ("TCP", "x"));
    let mechanism = reply.mechanism.as_ref().unwrap();
    assert_eq!((mechanism.cls.as_str(), mechanism.r#type.as_str()), ("REMOTE", "QUIC"));
    assert_eq!(mechanism.parameters["dst_addresses"], "127.0.0.1:9");
    let path = reply.path.clone().unwrap();
    assert_eq!((path.index, path.path_segments.len()), (0, 2));
    assert_eq!(path.path_segments[1].id, mechanism.parameters["connection"]);
    client.close(reply).await.unwrap();
    assert!(onprem.exports.connections().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_closes_or_takes_what_is_anothers() {
    let (cloud, onprem) = two().await;
    let evil = Site::new("evil.test").await;
    evil.knows(&onprem);
    onprem.trusts(&evil);
    let reply = client(&cloud, &onprem)
        .await
        .request(request(connection("c", "postgres", &[("nsc", "c")])))
        .await
        .unwrap()
        .into_inner();
    let mut thief = client(&evil, &onprem).await;
    let status = thief.close(reply.clone()).await.unwrap_err();
    assert_eq!(status.code(), Code::PermissionDenied);
    let status = thief.request(request(reply)).await.unwrap_err();
    assert_eq!(status.code(), Code::PermissionDenied);
    assert!(status.message().ends_with("no sufficient privileges"), "{}", status.message());
    assert_eq!(onprem.exports.connections().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_oversized_message_is_refused_while_others_are_served() {
    let (cloud, onprem) = two().await;
    let mut big = client(&cloud, &onprem).await;
    let mut huge = connection("c", "postgres", &[("nsc", "c")]);
    huge.labels.insert("x".into(), "x".repeat(5 << 20));
    let service = cloud.import("postgres@onprem.test");
    let status = big.request(request(huge)).await.unwrap_err();
    assert!(matches!(status.code(), Code::OutOfRange | Code::ResourceExhausted), "{status}");
    assert!(status.message().contains("too large"), "{}", status.message());
    cloud.up(&service).await;
    big.request(request(connection("c", "postgres", &[("nsc", "c")]))).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_half_open_connections_leaves_others_served() {
    let (cloud, onprem) = two().await;
    let mut flood = Vec::new();
    for _ in 0..1500 {
        flood.push(TcpStream::connect(onprem.control).await.unwrap());
    }
    let service = cloud.import("postgres@onprem.test");
    cloud.up(&service).await;
    // The flood is cut down to what one source may have.
    eventually("the rest is refused", || (onprem.handshakes_refused() >= 1400).then_some(())).await;
    let mut first = flood.remove(0);
    let read = tokio::time::timeout(Duration::from_secs(5), first.read(&mut [0; 16])).await.unwrap();
    assert!(matches!(read, Ok(0) | Err(_)), "the oldest is closed");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_tls_is_refused_and_closed() {
    let (cloud, onprem) = two().await;
    let mut plain = TcpStream::connect(onprem.control).await.unwrap();
    plain.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    let read = plain.read_to_end(&mut answer);
    let _either_way_closed = tokio::time::timeout(Duration::from_secs(5), read).await.unwrap();
    assert!(!answer.starts_with(b"HTTP"));
    assert_eq!(onprem.handshakes_refused(), 1);
    let service = cloud.import("postgres@onprem.test");
    cloud.up(&service).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_taken_port_says_which_and_what_to_do() {
    let site = Site::new("cloud.test").await;
    let error = carrick_proxy::control::ControlListener::bind(site.control).await.unwrap_err();
    assert!(error.to_string().contains(&site.control.to_string()));
    assert!(error.hint().contains("another process has the port"), "{}", error.hint());
}
