//! One question to one DNS server, as an application's stub resolver asks it.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use hickory_resolver::proto::{
    op::{Message, Query, ResponseCode},
    rr::{Name, RData, RecordType},
};
use tokio::{net::UdpSocket, time::timeout};

/// A stub resolver's usual patience for one try (resolv.conf(5): 5 s).
const PATIENCE: Duration = Duration::from_secs(5);
/// Largest answer without EDNS is 512 octets (RFC 1035 section 4.2.1); room for servers that send more.
const ANSWER: usize = 4096;

/// Why there is no address.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// The name cannot stand in a question.
    #[error("`{0}` is not a DNS name")]
    Name(String),
    /// The server cannot be asked, or does not answer.
    #[error("the DNS server {server} does not answer")]
    Silent {
        /// Who was asked.
        server: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// The answer is no DNS message.
    #[error("the DNS server {0} answers with garbage")]
    Garbage(SocketAddr),
    /// The server says no, or has no such record.
    #[error("`{name}` has no A record: {code}")]
    NoAddress {
        /// What was asked for.
        name: String,
        /// What the server said.
        code: ResponseCode,
    },
}

/// The first A record of `name`.
///
/// # Errors
/// See [`AskError`]; a retry helps while the name is being made.
pub async fn ask_a(socket: &UdpSocket, server: SocketAddr, name: &str) -> Result<Ipv4Addr, AskError> {
    let asked = Name::from_ascii(format!("{name}.")).map_err(|_| AskError::Name(name.to_owned()))?;
    let mut message = Message::query();
    message.add_query(Query::query(asked, RecordType::A));
    let octets = message.to_vec().map_err(|_| AskError::Name(name.to_owned()))?;
    let silent = |source| AskError::Silent { server, source };
    socket.send_to(&octets, server).await.map_err(silent)?;
    let mut buffer = [0; ANSWER];
    let length = loop {
        let received = timeout(PATIENCE, socket.recv_from(&mut buffer)).await;
        let (length, from) = received.map_err(|_| silent(io::ErrorKind::TimedOut.into()))?.map_err(silent)?;
        // Two octets of id: an answer of somebody else, or to something else, is none.
        if from == server && buffer[..2] == octets[..2] {
            break length;
        }
    };
    let reply = Message::from_vec(&buffer[..length]).map_err(|_| AskError::Garbage(server))?;
    let address = reply.answers.iter().find_map(|record| match &record.data {
        RData::A(a) => Some(a.0),
        _ => None,
    });
    address.ok_or_else(|| AskError::NoAddress { name: name.to_owned(), code: reply.metadata.response_code })
}
