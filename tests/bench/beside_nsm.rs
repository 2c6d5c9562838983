//! What is measured of Network Service Mesh's parts and of Carrick, in turns: medians side by side, and their ratio.

use std::fmt;

use anyhow::Context as _;
use serde_json::{Value, json};

use crate::report::median;

/// Whose figure it is.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Whose {
    /// Of NSM's parts.
    Nsm,
    /// Carrick's.
    Carrick,
}

impl fmt::Display for Whose {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Nsm => "nsm",
            Self::Carrick => "carrick",
        })
    }
}

/// The table. A row may be Carrick's alone.
pub(crate) struct BesideNsm(Vec<Row>);

struct Row {
    name: &'static str,
    unit: &'static str,
    nsm: Vec<f64>,
    carrick: Vec<f64>,
}

impl BesideNsm {
    /// A table without values, with a row for each name and unit.
    pub(crate) fn new(rows: impl IntoIterator<Item = (&'static str, &'static str)>) -> Self {
        let row = |(name, unit)| Row { name, unit, nsm: Vec::new(), carrick: Vec::new() };
        Self(rows.into_iter().map(row).collect())
    }

    /// Takes a figure of one round.
    pub(crate) fn add(&mut self, row: usize, whose: Whose, value: &Value) -> anyhow::Result<()> {
        let value = value.as_f64().context("a figure is missing")?;
        let row = self.0.get_mut(row).context("there is no such row")?;
        match whose {
            Whose::Nsm => row.nsm.push(value),
            Whose::Carrick => row.carrick.push(value),
        }
        Ok(())
    }

    /// Prints the table below `head`, or JSON.
    pub(crate) fn show(&self, head: &str, as_json: bool) {
        let rows = self.0.iter().map(|row| (row.name, row.unit, median(&row.nsm), median(&row.carrick)));
        if as_json {
            let object = |(name, unit, nsm, carrick)| json!({ "name": name, "unit": unit, "nsm": nsm, "carrick": carrick, "ratio": carrick / nsm });
            println!("{:#}", rows.map(object).collect::<Value>());
            return;
        }
        println!("{head}");
        println!("  {:<40} {:>10} {:>10} {:>8}", "", "nsm", "carrick", "ratio");
        for (name, unit, nsm, carrick) in rows {
            let digits = if unit == "/s" { 0 } else { 2 };
            let name = format!("{name}, {unit}");
            if nsm.is_nan() {
                println!("  {name:<40} {:>10} {carrick:>10.digits$}", "-");
                continue;
            }
            let ratio = carrick / nsm;
            println!("  {name:<40} {nsm:>10.digits$} {carrick:>10.digits$} {ratio:>8.2}");
        }
    }
}
