//! `carrick-load`: makes TCP traffic and measures it, small enough not to be what is measured.
//!
//! One server does everything: the first 16 bytes of a connection say what the client wants ([`wire`]). Bulk and echo
//! flows get a blocking thread each with a large buffer, which is what moves most bytes per CPU second; short and idle
//! flows share an epoll loop. Every client command prints one line of JSON.
#![allow(
    clippy::disallowed_methods,
    reason = "a load generator, not a daemon: its tasks end with the process, its pauses are the measurement"
)]

mod bulk;
mod churn;
mod idle;
mod latency;
mod serve;
mod wire;

use std::{net::SocketAddr, time::Duration};

use clap::{Parser, Subcommand};

/// Makes TCP traffic and measures it.
#[derive(Parser)]
#[command(version)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serves every other command; prints `serving` when it listens.
    Serve {
        /// Where to listen.
        #[arg(long)]
        listen: SocketAddr,
    },
    /// Sends (or, with --down, receives) as much as it can: Mbit/s as counted by the receiver.
    Bulk {
        #[command(flatten)]
        to: To,
        /// Parallel connections.
        #[arg(long, default_value_t = 1)]
        flows: usize,
        /// From the server to the client.
        #[arg(long)]
        down: bool,
    },
    /// One request and response at a time on one connection.
    Latency {
        #[command(flatten)]
        to: To,
        /// Bytes each way.
        #[arg(long, default_value_t = 64)]
        size: usize,
    },
    /// A new connection for every request: how many per second.
    Churn {
        #[command(flatten)]
        to: To,
        /// Connections in flight.
        #[arg(long, default_value_t = 16)]
        parallel: usize,
        /// Bulk flows that fill the way meanwhile.
        #[arg(long, default_value_t = 0)]
        beside: usize,
    },
    /// Opens connections, checks each end to end, prints, and holds them until standard input ends.
    Idle {
        #[command(flatten)]
        to: To,
        /// How many.
        #[arg(long, default_value_t = 10_000)]
        flows: usize,
    },
}

#[derive(clap::Args)]
struct To {
    /// The server, or what forwards to it.
    #[arg(long)]
    to: SocketAddr,
    /// For how long; a limit where the amount is given.
    #[arg(long, default_value_t = 5.0)]
    seconds: f64,
}

impl To {
    fn time(&self) -> Duration {
        Duration::from_secs_f64(self.seconds)
    }
}

fn main() -> anyhow::Result<()> {
    carrick_tests::lab::raise_file_limit();
    match Args::parse().command {
        Command::Serve { listen } => serve::run(listen),
        Command::Bulk { to, flows, down } => print(&bulk::run(to.to, flows, down, to.time())?),
        Command::Latency { to, size } => print(&latency::run(to.to, size, to.time())?),
        Command::Churn { to, parallel, beside } => {
            print(&bulk::beside(to.to, beside, to.time(), || churn::run(to.to, parallel, to.time()))?)
        }
        Command::Idle { to, flows } => idle::run(to.to, flows, to.time()),
    }
}

fn print(report: &serde_json::Value) -> anyhow::Result<()> {
    use std::io::Write;
    writeln!(std::io::stdout(), "{report}")?;
    Ok(())
}
