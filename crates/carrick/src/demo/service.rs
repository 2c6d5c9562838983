//! The HTTP service behind the export.

use std::net::SocketAddr;

use aws_lc_rs::digest::{Context, SHA256};
use axum::{
    Router,
    body::{Body, Bytes},
    extract::{DefaultBodyLimit, Path},
    response::IntoResponse,
    routing::{get, post},
};
use futures::{StreamExt, stream};
use tokio::{net::TcpListener, task::AbortHandle};

/// What `GET /` answers.
pub(super) const GREETING: &str = "Hello from onprem.demo\n";
/// Piece of a stream.
const PIECE: usize = 64 << 10;

/// Starts it on a port of the system's choice.
#[expect(clippy::disallowed_methods, reason = "it plays an application: the daemons' tasks are not its own")]
pub(super) async fn start() -> anyhow::Result<(SocketAddr, AbortHandle)> {
    let router = Router::new()
        .route("/", get(|| async { GREETING }))
        .route("/echo/{n}", get(|Path(n): Path<usize>| async move { format!("{n}\n") }))
        .route("/octets/{n}", get(|Path(n): Path<usize>| async move { Body::from_stream(octets(n)) }))
        .route("/hash", post(hash).layer(DefaultBodyLimit::disable()));
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let serving = tokio::spawn(async move { axum::serve(listener, router).await });
    Ok((address, serving.abort_handle()))
}

/// Octets that no piece of another place equals: a swapped or repeated piece shows in the hash.
pub(super) fn octets(
    total: usize,
) -> impl futures::Stream<Item = Result<Bytes, std::io::Error>> + Send + 'static {
    stream::iter((0..total).step_by(PIECE).map(move |at| Ok(piece(at, total))))
}

fn piece(at: usize, total: usize) -> Bytes {
    let end = total.min(at + PIECE);
    let words =
        (at..end).step_by(8).flat_map(|n| (n as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes());
    words.take(end - at).collect::<Vec<u8>>().into()
}

/// The SHA-256 of [`octets`].
pub(super) fn expected(total: usize) -> String {
    let mut digest = Context::new(&SHA256);
    for at in (0..total).step_by(PIECE) {
        digest.update(&piece(at, total));
    }
    hex(digest)
}

/// A finished digest in hex.
pub(super) fn hex(digest: Context) -> String {
    digest.finish().as_ref().iter().map(|octet| format!("{octet:02x}")).collect()
}

async fn hash(body: Body) -> impl IntoResponse {
    let mut digest = Context::new(&SHA256);
    let mut pieces = body.into_data_stream();
    while let Some(piece) = pieces.next().await {
        match piece {
            Ok(piece) => digest.update(&piece),
            Err(error) => return error.to_string(),
        }
    }
    hex(digest)
}
