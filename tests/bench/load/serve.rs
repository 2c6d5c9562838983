//! The server: one accept loop, a thread for each flow that moves much, a task for each that does not.

use std::{
    io::{self, Read, Write},
    net::SocketAddr,
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::wire::{BULK, HEADER, SHORT, Wish};

/// More than the flows of any run, so that no SYN waits for a retransmission.
const BACKLOG: i32 = 16_384;
/// Threads of echo and bulk flows need little stack.
const STACK: usize = 128 * 1024;

/// Serves for ever.
pub(crate) fn run(listen: SocketAddr) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let socket = socket2::Socket::new(socket2::Domain::for_address(listen), socket2::Type::STREAM, None)?;
        socket.set_reuse_address(true)?;
        socket.set_nonblocking(true)?;
        socket.bind(&listen.into())?;
        socket.listen(BACKLOG)?;
        let listener = tokio::net::TcpListener::from_std(socket.into())?;
        writeln!(io::stdout(), "serving")?;
        loop {
            match listener.accept().await {
                Ok((stream, _)) => drop(tokio::spawn(serve(stream))),
                // Out of descriptors: the flows that hold them will end.
                Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        }
    })
}

/// A flow that breaks is the client's to report.
async fn serve(mut stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut header = [0; HEADER];
    stream.read_exact(&mut header).await?;
    match Wish::parse(&header) {
        Some(Wish::Short) => {
            let mut request = [0; SHORT];
            stream.read_exact(&mut request).await?;
            stream.write_all(&request).await
        }
        Some(Wish::Idle) => {
            stream.write_all(&[1]).await?;
            stream.read(&mut header).await.map(drop)
        }
        Some(wish) => {
            let stream = stream.into_std()?;
            stream.set_nonblocking(false)?;
            std::thread::Builder::new().stack_size(STACK).spawn(move || blocking(stream, wish)).map(drop)
        }
        None => Ok(()),
    }
}

fn blocking(mut stream: std::net::TcpStream, wish: Wish) -> io::Result<()> {
    let mut buffer = vec![0; BULK];
    match wish {
        Wish::Source => loop {
            stream.write_all(&buffer)?;
        },
        Wish::Sink => {
            let mut total = 0_u64;
            loop {
                match stream.read(&mut buffer)? {
                    0 => return stream.write_all(&total.to_le_bytes()),
                    read => total += read as u64,
                }
            }
        }
        _ => loop {
            match stream.read(&mut buffer)? {
                0 => return Ok(()),
                read => stream.write_all(&buffer[..read])?,
            }
        },
    }
}
