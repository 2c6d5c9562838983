//! `carrick dns`: this domain's records for the DNS servers of others.

use std::{path::Path, time::SystemTime};

use carrick_config::Config;
use carrick_proxy::dns::ZoneFile;
use clap::Subcommand;
use serde::Serialize;

use super::{Advice, Exit, Output, output::note};
use crate::app::own_domain;

pub(crate) const EXAMPLES: &str = "\
EXAMPLES
  carrick dns zone -c carrick.yaml > cloud.example.com.zone";

/// The subcommands.
#[derive(Debug, Subcommand)]
pub(crate) enum Dns {
    /// Print the records by which others find this domain, as a zone file for BIND, Knot DNS or NSD
    ///
    /// SRV records of the control plane and the tunnel, and the addresses of `advertise:` in the config. Needs no daemon.
    /// The serial number is the time, so a zone that is printed later replaces this one. Not needed where this daemon's
    /// own DNS server (`listen.dns`) answers for the domain.
    #[command(after_help = "\
EXAMPLES
  carrick dns zone -c carrick.yaml > cloud.example.com.zone
  carrick dns zone -c carrick.yaml --nsm --bare >> example.com.zone   into a zone with an SOA of its own
  carrick dns zone -c carrick.yaml -o json | jq -r '.records[] | select(.type == \"SRV\") | .data'

EXIT CODES
  0 when there is a zone, 2 when the config has faults or gives no address and port to publish")]
    Zone {
        /// With the names by which Network Service Mesh finds a domain: registry.nsm-system.DOMAIN and
        /// nsmgr-proxy.nsm-system.DOMAIN. They are printed without it where the config has `compat.nsm`
        #[arg(long)]
        nsm: bool,
        /// Without SOA and NS, for a zone that has its own
        #[arg(long)]
        bare: bool,
    },
}

/// A zone for programs.
#[derive(Debug, Serialize)]
struct Printed {
    origin: String,
    records: Vec<Record>,
}

#[derive(Debug, Serialize)]
struct Record {
    name: String,
    ttl: u32,
    #[serde(rename = "type")]
    kind: String,
    data: String,
}

/// Does what the subcommand says.
pub(super) fn run(command: &Dns, config: &Path, output: Output) -> anyhow::Result<Exit> {
    let Dns::Zone { nsm, bare } = command;
    let (mut config, _) = crate::app::load_config(config)?;
    config.compat.nsm.on |= nsm;
    let zone = zone(&config, SystemTime::now())?;
    for warning in &zone.warnings {
        note(format!("warning: {warning}"));
    }
    let zone = if *bare { zone.bare() } else { zone };
    let text = zone.text();
    output.show(&printed(zone), |_, _| text)?;
    Ok(Exit::Ok)
}

fn zone(config: &Config, now: SystemTime) -> anyhow::Result<ZoneFile> {
    for (key, address) in [("listen.control", config.listen.control), ("listen.tunnel", config.listen.tunnel)]
    {
        if address.port() == 0 {
            let message = format!("`{key}` lets the system choose the port: no record can name it");
            return Err(Advice::usage(message, format!("give `{key}` a port")).into());
        }
    }
    // Seconds since 1970 fit until 2106, and then wrap as RFC 1982 has it.
    let seconds = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
    #[expect(clippy::cast_possible_truncation, reason = "serial numbers wrap (RFC 1982)")]
    let zone = ZoneFile::new(&own_domain(config), seconds as u32)?;
    if !zone.is_of_use() {
        let message = format!("no address of {} is known: others could not reach it", config.domain);
        return Err(Advice::usage(message, "say in `advertise:` where peers reach this domain").into());
    }
    Ok(zone)
}

fn printed(zone: ZoneFile) -> Printed {
    let record = |record: carrick_proxy::dns::ZoneRecord| Record {
        name: record.name,
        ttl: record.ttl,
        kind: record.kind,
        data: record.data,
    };
    Printed { origin: zone.origin, records: zone.records.into_iter().map(record).collect() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(text: &str) -> Config {
        carrick_config::parse(text).unwrap_or_else(|faults| panic!("{faults}"))
    }

    #[test]
    fn a_config_becomes_a_zone() {
        let text = "domain: a.test\nadvertise: [192.0.2.7]\ncompat: { nsm: { listen: [':5002'] } }";
        let zone = zone(&config(text), SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(7)).unwrap();
        let text = zone.text();
        assert!(text.contains("_carrick._udp.a.test."), "{text}");
        assert!(text.contains("0 0 5002 nsmgr-proxy.nsm-system.a.test."), "the one port there is: {text}");
        let json = serde_json::to_value(printed(zone)).unwrap();
        assert_eq!(json["origin"], "a.test.");
        assert_eq!(json["records"][0]["type"], "SOA");
        assert!(json["records"][0]["data"].as_str().unwrap().contains(" 7 3600 "));
    }

    #[test]
    fn what_cannot_be_published_says_what_to_write() {
        let hint = |text: &str| {
            let err = zone(&config(text), SystemTime::now()).unwrap_err();
            crate::cli::report::human(&err, crate::cli::Style::default())
        };
        let port = hint("domain: a.test\nadvertise: [192.0.2.7]\nlisten: { control: '127.0.0.1:0' }");
        assert!(port.contains("`listen.control` lets the system choose the port"), "{port}");
        assert!(hint("domain: a.test\nadvertise: ['0.0.0.0']").contains("say in `advertise:`"));
    }
}
