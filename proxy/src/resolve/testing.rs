//! DNS servers for tests, on loopback, on ports that the system chooses.
#![allow(clippy::disallowed_methods, reason = "tests spawn as they like")]

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use hickory_server::{
    Server,
    proto::{
        op::{Message, MessageType, OpCode, ResponseCode},
        rr::{Name, RData, Record, RecordType},
        serialize::txt::Parser,
    },
    store::in_memory::InMemoryZoneHandler,
    zone_handler::{AxfrPolicy, Catalog, ZoneType},
};
use parking_lot::Mutex;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, UdpSocket},
};

/// What every zone of these tests begins with. Negative answers hold for 20 s.
const HEAD: &str = "@ 3600 IN SOA ns admin 1 3600 600 86400 20\n@ 3600 IN NS ns\nns 3600 IN A 192.0.2.53\n";

/// A DNS server that is not ours, serving zone files.
pub(crate) struct ZoneServer {
    pub(crate) addr: SocketAddr,
    _server: Server<Catalog>,
}

impl ZoneServer {
    /// Serves `(origin, records in zone file form)`.
    pub(crate) async fn start(zones: &[(&str, &str)]) -> Self {
        let mut catalog = Catalog::new();
        for (origin, records) in zones {
            let origin = Name::from_ascii(format!("{origin}.")).unwrap();
            let text = format!("{HEAD}{records}\n");
            let (_, records) = Parser::new(text, None, Some(origin.clone())).parse().unwrap();
            let zone: InMemoryZoneHandler =
                InMemoryZoneHandler::new(origin.clone(), records, ZoneType::Primary, AxfrPolicy::Deny)
                    .unwrap();
            catalog.upsert(origin.into(), vec![Arc::new(zone)]);
        }
        let (udp, tcp, addr) = bind().await;
        let mut server = Server::new(catalog);
        server.register_socket(udp);
        server.register_listener(tcp, Duration::from_secs(5), 1024);
        Self { addr, _server: server }
    }
}

/// What a scripted server does with a question.
pub(crate) enum Act {
    Reply(Message),
    Bytes(Vec<u8>),
    Silence,
}

/// A question as a scripted server saw it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Asked {
    pub(crate) name: String,
    pub(crate) kind: RecordType,
    pub(crate) tcp: bool,
}

/// A DNS server that does what the test says.
#[derive(Clone)]
pub(crate) struct ScriptServer {
    pub(crate) addr: SocketAddr,
    log: Arc<Mutex<Vec<Asked>>>,
}

impl ScriptServer {
    /// Does `script` for each question; `Asked::tcp` tells how it came.
    pub(crate) async fn start(script: impl Fn(&Message, &Asked) -> Act + Send + Sync + 'static) -> Self {
        let (udp, tcp, addr) = bind().await;
        let log = Arc::new(Mutex::new(Vec::new()));
        let this = Self { addr, log: Arc::clone(&log) };
        let act = Arc::new(move |bytes: &[u8], tcp: bool| {
            let message = Message::from_vec(bytes).unwrap();
            let query = &message.queries[0];
            let asked = Asked { name: query.name().to_ascii(), kind: query.query_type(), tcp };
            log.lock().push(asked.clone());
            match script(&message, &asked) {
                Act::Reply(reply) => Some(reply.to_vec().unwrap()),
                Act::Bytes(bytes) => Some(bytes),
                Act::Silence => None,
            }
        });
        let over_udp = Arc::clone(&act);
        tokio::spawn(async move {
            let mut buffer = [0; 4096];
            loop {
                let (len, from) = udp.recv_from(&mut buffer).await.unwrap();
                if let Some(bytes) = over_udp(&buffer[..len], false) {
                    udp.send_to(&bytes, from).await.unwrap();
                }
            }
        });
        tokio::spawn(async move {
            loop {
                let (mut stream, _) = tcp.accept().await.unwrap();
                let act = Arc::clone(&act);
                tokio::spawn(async move {
                    while let Ok(len) = stream.read_u16().await {
                        let mut question = vec![0; len.into()];
                        stream.read_exact(&mut question).await.unwrap();
                        if let Some(bytes) = act(&question, true) {
                            stream.write_u16(bytes.len() as u16).await.unwrap();
                            stream.write_all(&bytes).await.unwrap();
                        }
                    }
                });
            }
        });
        this
    }

    /// Everything that was asked, in order.
    pub(crate) fn asked(&self) -> Vec<Asked> {
        self.log.lock().clone()
    }
}

async fn bind() -> (UdpSocket, TcpListener, SocketAddr) {
    loop {
        let tcp = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let addr = tcp.local_addr().unwrap();
        // Somebody else may have the port for UDP: then it is another port's turn.
        if let Ok(udp) = UdpSocket::bind(addr).await {
            return (udp, tcp, addr);
        }
    }
}

/// The beginning of an answer to `question`.
pub(crate) fn reply_to(question: &Message, code: ResponseCode) -> Message {
    let mut reply = Message::new(question.id, MessageType::Response, OpCode::Query);
    reply.metadata.recursion_available = true;
    reply.metadata.response_code = code;
    reply.add_query(question.queries[0].clone());
    reply
}

/// An answer with `data` at the name that was asked for.
pub(crate) fn answer_to(question: &Message, ttl: u32, data: impl IntoIterator<Item = RData>) -> Message {
    let mut reply = reply_to(question, ResponseCode::NoError);
    for each in data {
        reply.add_answer(Record::from_rdata(question.queries[0].name().clone(), ttl, each));
    }
    reply
}
