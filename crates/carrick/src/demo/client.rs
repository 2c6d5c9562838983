//! The client: asks the DNS, connects, checks what comes.

use std::{
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};
use aws_lc_rs::digest;
use axum::body::Body;
use futures::{StreamExt, stream};
use http::Request;
use http_body_util::BodyExt;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpStream, UdpSocket};

use super::service;
use crate::app::Daemon;

/// How long the import may take to come up.
const PATIENCE: Duration = Duration::from_secs(10);
const LOOK: Duration = Duration::from_millis(10);

/// Knows one address.
pub(super) struct Client {
    address: SocketAddr,
}

/// Of many requests.
pub(super) struct Latency {
    pub(super) median: Duration,
    pub(super) p99: Duration,
}

impl Client {
    pub(super) fn new(address: SocketAddr) -> Self {
        Self { address }
    }

    #[expect(
        clippy::disallowed_methods,
        reason = "it plays an application: the daemons' tasks are not its own"
    )]
    async fn connect(&self) -> anyhow::Result<SendRequest<Body>> {
        let stream = TcpStream::connect(self.address).await?;
        stream.set_nodelay(true)?;
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        Ok(sender)
    }

    /// The whole answer to a GET, on a connection of its own.
    pub(super) async fn get(&self, path: &str) -> anyhow::Result<Vec<u8>> {
        ask(&mut self.connect().await?, path).await
    }

    /// Downloads, checks the hash, and tells the time.
    pub(super) async fn download(&self, total: usize) -> anyhow::Result<Duration> {
        let want = service::expected(total);
        let mut sender = self.connect().await?;
        let begun = Instant::now();
        let answer = sender.send_request(request("GET", &format!("/octets/{total}"), Body::empty())?).await?;
        let mut digest = digest::Context::new(&digest::SHA256);
        let mut pieces = answer.into_body().into_data_stream();
        while let Some(piece) = pieces.next().await {
            digest.update(&piece?);
        }
        let took = begun.elapsed();
        let got = service::hex(digest);
        ensure!(got == want, "SHA-256 {got}, expected {want}");
        Ok(took)
    }

    /// Uploads, checks the hash that the service saw, and tells the time.
    pub(super) async fn upload(&self, total: usize) -> anyhow::Result<Duration> {
        let want = service::expected(total);
        let mut sender = self.connect().await?;
        let begun = Instant::now();
        let body = Body::from_stream(service::octets(total));
        let answer = sender.send_request(request("POST", "/hash", body)?).await?;
        let got = String::from_utf8(answer.into_body().collect().await?.to_bytes().to_vec())?;
        ensure!(got == want, "SHA-256 {got}, expected {want}");
        Ok(begun.elapsed())
    }

    /// Many flows of one request each; every answer has to be its own.
    pub(super) async fn short_flows(&self, count: usize, at_once: usize) -> anyhow::Result<()> {
        let mut flows = stream::iter(0..count)
            .map(|n| async move {
                let answer = self.get(&format!("/echo/{n}")).await.with_context(|| format!("flow {n}"))?;
                ensure!(answer == format!("{n}\n").as_bytes(), "flow {n} has the answer of another");
                Ok(())
            })
            .buffer_unordered(at_once);
        while let Some(flow) = flows.next().await {
            flow?;
        }
        Ok(())
    }

    /// Requests one after the other on one connection.
    pub(super) async fn latency(&self, requests: usize) -> anyhow::Result<Latency> {
        let mut sender = self.connect().await?;
        let mut all = Vec::with_capacity(requests);
        for _ in 0..requests {
            let begun = Instant::now();
            ask(&mut sender, "/").await?;
            all.push(begun.elapsed());
        }
        all.sort();
        let at = |percent: usize| all.get(all.len() * percent / 100).copied().unwrap_or_default();
        Ok(Latency { median: at(50), p99: at(99) })
    }
}

async fn ask(sender: &mut SendRequest<Body>, path: &str) -> anyhow::Result<Vec<u8>> {
    sender.ready().await?;
    let answer = sender.send_request(request("GET", path, Body::empty())?).await?;
    ensure!(answer.status().is_success(), "{path}: {}", answer.status());
    Ok(answer.into_body().collect().await?.to_bytes().to_vec())
}

fn request(method: &str, path: &str, body: Body) -> anyhow::Result<Request<Body>> {
    Ok(Request::builder().method(method).uri(path).header("host", super::scene::NAME).body(body)?)
}

/// Asks the DNS server for a name, as any application would, until the address answers on the port.
pub(super) async fn lookup(server: SocketAddr, name: &str, port: u16) -> anyhow::Result<SocketAddr> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let tried = async {
            let address = SocketAddr::new(
                carrick_proxy::dns::ask_a(&question_socket().await?, server, name).await?.into(),
                port,
            );
            TcpStream::connect(address).await.with_context(|| format!("{address} does not listen"))?;
            anyhow::Ok(address)
        };
        match tried.await {
            Ok(address) => return Ok(address),
            Err(error) if Instant::now() > deadline => return Err(error),
            Err(_not_yet) => tokio::time::sleep(LOOK).await,
        }
    }
}

async fn question_socket() -> anyhow::Result<UdpSocket> {
    Ok(UdpSocket::bind((IpAddr::from([127, 0, 0, 1]), 0)).await?)
}

/// Waits until an import is refused, and tells why.
pub(super) async fn import_refusal(daemon: &Daemon, service: &str) -> anyhow::Result<String> {
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        let import =
            daemon.imports.snapshot().into_iter().find(|import| import.service.to_string() == service);
        match import {
            Some(import) if import.state.is_up() => bail!("{service} is up, and nobody is allowed to use it"),
            Some(carrick_proxy::imports::ImportStatus { last_fault: Some(fault), .. }) => {
                return Ok(fault.detail);
            }
            _ => tokio::time::sleep(LOOK).await,
        }
    }
    bail!("{service} was not refused within {PATIENCE:?}")
}
