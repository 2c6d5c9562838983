//! Medians as a table and as JSON.

use std::{collections::BTreeMap, fmt, time::Duration};

use anyhow::ensure;
use serde_json::{Value, json};

use crate::{
    measure::{Figure, Metric},
    subjects::Subject,
};

/// Everything measured.
pub(crate) struct Report {
    rounds: usize,
    seconds: f64,
    /// In the order in which they came.
    rows: Vec<Row>,
    failures: Vec<String>,
}

struct Row {
    name: &'static str,
    unit: &'static str,
    values: BTreeMap<Subject, Vec<f64>>,
}

impl Report {
    pub(crate) fn new(rounds: usize, seconds: f64) -> Self {
        Self { rounds, seconds, rows: Vec::new(), failures: Vec::new() }
    }

    /// Takes the figures of one measurement.
    pub(crate) fn add(&mut self, subject: Subject, figures: Vec<Figure>) {
        for Figure { name, unit, value } in figures {
            let index = self.rows.iter().position(|row| row.name == name).unwrap_or_else(|| {
                self.rows.push(Row { name, unit, values: BTreeMap::new() });
                self.rows.len() - 1
            });
            self.rows[index].values.entry(subject).or_default().push(value);
        }
    }

    /// Takes a measurement that did not work.
    pub(crate) fn failed(&mut self, subject: Subject, metric: Metric, why: &str) {
        self.failures.push(format!("{metric} {subject}: {why}"));
    }

    /// Whether every measurement worked.
    pub(crate) fn complete(&self) -> bool {
        self.failures.is_empty()
    }

    /// All values, not only medians.
    pub(crate) fn json(&self) -> Value {
        let rows: Vec<Value> = self
            .rows
            .iter()
            .map(|row| {
                let subjects: serde_json::Map<String, Value> = row
                    .values
                    .iter()
                    .map(|(subject, all)| (subject.to_string(), json!({ "median": median(all), "all": all })))
                    .collect();
                json!({ "name": row.name, "unit": row.unit, "subjects": subjects })
            })
            .collect();
        json!({
            "rounds": self.rounds,
            "seconds": self.seconds,
            "cores": std::thread::available_parallelism().map_or(0, usize::from),
            "figures": rows,
            "failures": self.failures,
        })
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let cores = std::thread::available_parallelism().map_or(0, usize::from);
        writeln!(
            f,
            "medians of {} rounds of {} s; load, target and both ends on {cores} cores\n",
            self.rounds, self.seconds
        )?;
        let [direct, haproxy, carrick] = Subject::ALL;
        writeln!(
            f,
            "{:14} {:8} {direct:>10} {haproxy:>10} {carrick:>10} {:>10} {:>10}",
            "", "", "/direct", "/haproxy"
        )?;
        for row in &self.rows {
            let median = |subject| row.values.get(&subject).map(|values| median(values));
            write!(f, "{:14} {:8}", row.name, row.unit)?;
            for subject in Subject::ALL {
                write!(f, " {:>10}", median(subject).map_or("-".into(), short))?;
            }
            for base in [direct, haproxy] {
                let ratio =
                    median(carrick).zip(median(base)).map(|(ours, theirs)| format!("{:.2}", ours / theirs));
                write!(f, " {:>10}", ratio.unwrap_or("-".into()))?;
            }
            writeln!(f)?;
        }
        if let Some(added) = self.added_latency() {
            writeln!(f, "\nadded by the Carrick pair to one round trip, p50: {} µs", short(added))?;
        }
        for failure in &self.failures {
            writeln!(f, "not measured: {failure}")?;
        }
        Ok(())
    }
}

impl Report {
    fn added_latency(&self) -> Option<f64> {
        let row = self.rows.iter().find(|row| row.name == "rr p50")?;
        Some(median(row.values.get(&Subject::Carrick)?) - median(row.values.get(&Subject::Direct)?))
    }
}

pub(crate) fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    match sorted.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => sorted[n / 2],
        n => f64::midpoint(sorted[n / 2 - 1], sorted[n / 2]),
    }
}

/// Median and 99th percentile.
pub(crate) fn quantiles(mut times: Vec<Duration>) -> anyhow::Result<(Duration, Duration)> {
    ensure!(!times.is_empty(), "nothing was measured");
    times.sort_unstable();
    let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize];
    Ok((at(0.5), at(0.99)))
}

pub(crate) fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// Prints a value a row below `head`, or JSON.
pub(crate) fn print_rows(head: &str, rows: impl Iterator<Item = (String, f64)>, as_json: bool) {
    if as_json {
        let all: serde_json::Map<_, _> = rows.map(|(name, value)| (name, json!(value))).collect();
        println!("{:#}", Value::Object(all));
        return;
    }
    println!("{head}");
    for (name, value) in rows {
        let digits = if value < 100.0 { 3 } else { 0 };
        println!("  {name:<34} {value:>12.digits$}");
    }
}

/// Three digits are more than the noise leaves.
fn short(value: f64) -> String {
    match value.abs() {
        v if v >= 100.0 => format!("{value:.0}"),
        v if v >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}
