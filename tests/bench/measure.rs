//! One measurement: what is run, and which figures come of it.

use std::{
    fmt,
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpStream},
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};
use clap::ValueEnum;
use serde_json::Value;

use crate::{
    Args,
    subjects::{Stage, Subject, load},
};

/// What is run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(crate) enum Metric {
    /// Bulk over one TCP connection.
    Tcp1,
    /// Over eight.
    Tcp8,
    /// Over 64.
    Tcp64,
    /// Bulk towards the client over one TCP connection.
    Down1,
    /// 64-byte request and response on one connection.
    Rr,
    /// A new connection for each request, 16 in parallel.
    Crr16,
    /// A new connection for each request, one at a time, beside 64 that carry bulk.
    Crr1Beside64,
    /// From the start of the importing daemon to the first byte.
    Cold,
    /// Memory with many idle flows.
    Idle,
}

/// One figure.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Figure {
    /// Its row in the table.
    pub(crate) name: &'static str,
    /// Its unit.
    pub(crate) unit: &'static str,
    /// Its value.
    pub(crate) value: f64,
}

impl Metric {
    pub(crate) const ALL: &[Self] = &[
        Self::Tcp1,
        Self::Tcp8,
        Self::Tcp64,
        Self::Down1,
        Self::Rr,
        Self::Crr16,
        Self::Crr1Beside64,
        Self::Cold,
        Self::Idle,
    ];

    /// Whether it means something for a subject.
    pub(crate) fn applies_to(self, subject: Subject) -> bool {
        match self {
            Self::Cold => subject == Subject::Carrick,
            Self::Idle => subject != Subject::Direct,
            _ => true,
        }
    }

    /// Whether one round is enough: memory does not vary as time does.
    pub(crate) fn once(self) -> bool {
        self == Self::Idle
    }
}

impl fmt::Display for Metric {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.to_possible_value().as_ref().map_or("", |v| v.get_name()))
    }
}

/// Runs one measurement of one subject.
pub(crate) fn run(
    stage: &mut Stage,
    subject: Subject,
    metric: Metric,
    args: &Args,
) -> anyhow::Result<Vec<Figure>> {
    match metric {
        Metric::Tcp1 => bulk(stage, subject, args, ["1"], None, Some("tcp1 CPU"), "tcp1"),
        Metric::Tcp8 => bulk(stage, subject, args, ["8"], None, None, "tcp8"),
        Metric::Tcp64 => bulk(stage, subject, args, ["64"], Some("tcp64 least"), Some("tcp64 CPU"), "tcp64"),
        Metric::Down1 => bulk(stage, subject, args, ["1", "--down"], None, None, "down1"),
        Metric::Rr => {
            let (report, _) = generate(stage, subject, args, "latency", &[])?;
            Ok(vec![
                figure("rr p50", "µs", number(&report, "p50_us")?),
                figure("rr p99", "µs", number(&report, "p99_us")?),
            ])
        }
        Metric::Crr16 => {
            let (report, cpu) = churn(stage, subject, args, &["--parallel", "16"])?;
            let mut figures = vec![
                figure("crr16", "conns/s", number(&report, "per_second")?),
                figure("crr16 p99", "µs", number(&report, "p99_us")?),
            ];
            let count = number(&report, "count")?;
            figures.extend(cpu.map(|cpu| figure("crr16 CPU", "µs/conn", cpu.as_secs_f64() * 1e6 / count)));
            Ok(figures)
        }
        Metric::Crr1Beside64 => {
            let (report, _) = churn(stage, subject, args, &["--parallel", "1", "--beside", "64"])?;
            Ok(vec![
                figure("beside64 p50", "µs", number(&report, "p50_us")?),
                figure("beside64 p99", "µs", number(&report, "p99_us")?),
            ])
        }
        Metric::Cold => {
            cold_start(stage).map(|time| vec![figure("cold start", "ms", time.as_secs_f64() * 1e3)])
        }
        Metric::Idle => idle(stage, subject, args.idle),
    }
}

fn bulk<const N: usize>(
    stage: &Stage,
    subject: Subject,
    args: &Args,
    flows: [&str; N],
    least_row: Option<&'static str>,
    cpu_row: Option<&'static str>,
    row: &'static str,
) -> anyhow::Result<Vec<Figure>> {
    let mut options = vec!["--flows"];
    options.extend(flows);
    let (report, cpu) = generate(stage, subject, args, "bulk", &options)?;
    let mut figures = vec![figure(row, "Mbit/s", number(&report, "mbit_s")?)];
    if let Some(name) = least_row {
        // 1: every flow got the same.
        figures.push(figure(name, "of mean", number(&report, "fairness")?));
    }
    if let (Some(name), Some(cpu)) = (cpu_row, cpu) {
        figures.push(figure(name, "s/GB", cpu.as_secs_f64() * 1e9 / number(&report, "bytes")?));
    }
    Ok(figures)
}

/// Short connections, of which none may fail.
fn churn(
    stage: &Stage,
    subject: Subject,
    args: &Args,
    options: &[&str],
) -> anyhow::Result<(Value, Option<Duration>)> {
    let (report, cpu) = generate(stage, subject, args, "churn", options)?;
    let (count, failed) = (number(&report, "count")?, number(&report, "failed")?);
    ensure!(failed == 0.0, "{failed} connections failed, {count} did not");
    Ok((report, cpu))
}

/// Runs the load generator in site a; its report, and the CPU time that both ends of the subject spent meanwhile.
fn generate(
    stage: &Stage,
    subject: Subject,
    args: &Args,
    command: &str,
    options: &[&str],
) -> anyhow::Result<(Value, Option<Duration>)> {
    let (to, seconds) = (stage.address(subject).to_string(), args.seconds.to_string());
    let mut all = vec![command, "--to", &to, "--seconds", &seconds];
    all.extend(options);
    let load = load()?;
    let before = stage.usage(subject);
    let limit = Duration::from_secs_f64(args.seconds + 30.0);
    let finished = stage.lab().a.ns.run_for(limit, load.to_str().unwrap_or_default(), &all);
    if finished.code != 0 {
        bail!("{}", finished.stderr.trim().lines().next_back().unwrap_or("the load generator hung"));
    }
    let report = serde_json::from_str(&finished.stdout).context("the load generator's report")?;
    let cpu = before.zip(stage.usage(subject)).map(|(before, after)| {
        before.iter().zip(after).map(|(before, after)| after.cpu.saturating_sub(before.cpu)).sum()
    });
    Ok((report, cpu))
}

/// Kills the importing daemon, starts it, and waits for the first byte from the other domain.
fn cold_start(stage: &mut Stage) -> anyhow::Result<Duration> {
    const LIMIT: Duration = Duration::from_secs(20);
    let to = stage.address(Subject::Carrick);
    let ns = stage.lab().a.ns.clone();
    let importer = stage.importer().context("no Carrick pair")?;
    importer.kill();
    let begin = Instant::now();
    importer.start();
    let took = ns.enter(|| {
        while begin.elapsed() < LIMIT {
            if first_byte(to).is_ok() {
                return Some(begin.elapsed());
            }
            std::thread::sleep(Duration::from_micros(500));
        }
        None
    });
    took.with_context(|| format!("no byte within {LIMIT:?}"))
}

/// The load server's short flow, written out: a program of its own would cost more than what is measured.
fn first_byte(to: SocketAddr) -> std::io::Result<()> {
    let mut stream = TcpStream::connect_timeout(&to, Duration::from_secs(2))?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    stream.write_all(b"carrick-load/1 \x03")?;
    stream.write_all(&[0; 64])?;
    stream.read_exact(&mut [0])
}

/// Resident memory of both ends while `flows` idle flows are open.
fn idle(stage: &Stage, subject: Subject, flows: usize) -> anyhow::Result<Vec<Figure>> {
    // haproxy needs two descriptors a flow, and may not have 20,000.
    let flows = match subject {
        Subject::Haproxy => flows.min(usize::try_from(carrick_tests::lab::raise_file_limit())? / 2 - 200),
        _ => flows,
    };
    let before = stage.usage(subject).context("nothing to measure")?;
    let mut command = stage.lab().a.ns.command(load()?.to_str().unwrap_or_default());
    command.args(["idle", "--to", &stage.address(subject).to_string()]);
    command.args(["--flows", &flows.to_string(), "--seconds", "60"]);
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("carrick-load")?;
    let mut line = String::new();
    BufReader::new(child.stdout.take().context("no output")?).read_line(&mut line)?;
    let held = stage.usage(subject).context("nothing to measure")?;
    drop(child.stdin.take());
    let output = child.wait_with_output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr).trim());

    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    let grown: u64 = before.iter().zip(held).map(|(b, h)| h.rss.saturating_sub(b.rss)).sum();
    Ok(vec![
        figure("idle RSS near", "MiB", mib(held[0].rss)),
        figure("idle RSS far", "MiB", mib(held[1].rss)),
        figure("idle per flow", "KiB", grown as f64 / 2.0 / 1024.0 / flows as f64),
    ])
}

fn figure(name: &'static str, unit: &'static str, value: f64) -> Figure {
    Figure { name, unit, value }
}

fn number(report: &Value, key: &str) -> anyhow::Result<f64> {
    report[key].as_f64().with_context(|| format!("the load generator reported no {key}: {report}"))
}
