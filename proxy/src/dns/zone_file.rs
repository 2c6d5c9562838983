//! The records of our own domain in the form that other DNS servers load (RFC 1035 section 5).

use hickory_resolver::proto::rr::{Name, RData, Record, RecordType};

use super::{
    Zone,
    zone::{OwnDomain, ZoneError},
};

/// A zone of one domain, to be served by others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ZoneFile {
    /// The name of the zone, with its closing dot.
    pub origin: String,
    /// Its records: SOA and NS first, then by names, each name after the one above it.
    pub records: Vec<ZoneRecord>,
    /// What the operator should know about these records.
    pub warnings: Vec<String>,
}

/// One record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ZoneRecord {
    /// Its owner, with the closing dot.
    pub name: String,
    /// For how many seconds others may keep it.
    pub ttl: u32,
    /// Its type: `SOA`, `NS`, `SRV`, `A` or `AAAA`.
    pub kind: String,
    /// Its data, in the form of a zone file.
    pub data: String,
}

impl ZoneFile {
    /// The zone of `own`, under the given serial number: a secondary takes it for newer than what has a smaller one.
    pub fn new(own: &OwnDomain, serial: u32) -> Result<Self, ZoneError> {
        // No suffix of ours can be the root, so the zone of imports stays apart.
        let zone = Zone::new(Some(own), "mesh.invalid", [])?.with_serial(serial);
        let origin = Name::from_ascii(format!("{}.", own.domain))
            .map_err(|_| ZoneError::Name(own.domain.to_string()))?
            .to_lowercase();
        let mut records: Vec<&Record> = zone.records().filter(|r| origin.zone_of(&r.name)).collect();
        records
            .sort_by_cached_key(|r| (rank(r, &origin), r.name.clone(), r.record_type(), r.data.to_string()));
        Ok(Self {
            origin: origin.to_string(),
            records: records.into_iter().map(ZoneRecord::of).collect(),
            warnings: zone.warnings().to_vec(),
        })
    }

    /// The text that BIND, Knot DNS and NSD load.
    pub fn text(&self) -> String {
        let width = self.records.iter().map(|r| r.name.len()).max().unwrap_or_default();
        let mut text = format!("$ORIGIN {}\n", self.origin);
        for ZoneRecord { name, ttl, kind, data } in &self.records {
            text.push_str(&format!("{name:width$}  {ttl:<5} IN  {kind:<4}  {data}\n"));
        }
        text
    }

    /// The same without SOA and NS, for a zone that has its own.
    pub fn bare(mut self) -> Self {
        self.records.retain(|record| record.kind != "SOA" && record.kind != "NS");
        self
    }

    /// Whether others could reach the domain by these records.
    pub fn is_of_use(&self) -> bool {
        self.records.iter().any(|record| record.kind == "SRV")
    }
}

/// A zone begins with its SOA (RFC 1035 section 5.2), and readers look for the NS next.
fn rank(record: &Record, origin: &Name) -> u8 {
    match record.record_type() {
        RecordType::SOA => 0,
        RecordType::NS if record.name == *origin => 1,
        _ => 2,
    }
}

impl ZoneRecord {
    fn of(record: &Record) -> Self {
        let data = match &record.data {
            RData::A(ip) => ip.0.to_string(),
            RData::AAAA(ip) => ip.0.to_string(),
            other => other.to_string(),
        };
        Self { name: record.name.to_string(), ttl: record.ttl, kind: record.record_type().to_string(), data }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dns::NsmPorts;

    fn own(advertise: &[&str], nsm: Option<NsmPorts>) -> OwnDomain {
        OwnDomain {
            domain: "cloud.test".parse().unwrap(),
            advertise: advertise.iter().map(|host| host.parse().unwrap()).collect(),
            control_port: 7443,
            tunnel_port: 7444,
            nsm,
        }
    }

    #[test]
    fn a_zone_is_printed_from_its_soa_down() {
        let nsm = Some(NsmPorts { registry: 5002, proxy: 5004 });
        let file = ZoneFile::new(&own(&["192.0.2.10", "2001:db8::10"], nsm), 1_800_000_000).unwrap();
        assert_eq!(
            file.text(),
            "\
$ORIGIN cloud.test.
cloud.test.                         60    IN  SOA   gw.cloud.test. nobody.invalid. 1800000000 3600 600 86400 60
cloud.test.                         60    IN  NS    gw.cloud.test.
_carrick._tcp.cloud.test.           60    IN  SRV   0 0 7443 gw.cloud.test.
_carrick._udp.cloud.test.           60    IN  SRV   0 0 7444 gw.cloud.test.
gw.cloud.test.                      60    IN  A     192.0.2.10
gw.cloud.test.                      60    IN  AAAA  2001:db8::10
nsmgr-proxy.nsm-system.cloud.test.  60    IN  A     192.0.2.10
nsmgr-proxy.nsm-system.cloud.test.  60    IN  AAAA  2001:db8::10
nsmgr-proxy.nsm-system.cloud.test.  60    IN  SRV   0 0 5004 nsmgr-proxy.nsm-system.cloud.test.
registry.nsm-system.cloud.test.     60    IN  A     192.0.2.10
registry.nsm-system.cloud.test.     60    IN  AAAA  2001:db8::10
registry.nsm-system.cloud.test.     60    IN  SRV   0 0 5002 registry.nsm-system.cloud.test.
"
        );
        assert!(file.is_of_use() && file.warnings.is_empty());
        let bare = file.bare();
        assert!(bare.records.iter().all(|r| matches!(r.kind.as_str(), "SRV" | "A" | "AAAA")));
    }

    #[test]
    fn a_domain_without_an_address_has_nothing_to_publish() {
        let file = ZoneFile::new(&own(&[], None), 1).unwrap();
        assert!(!file.is_of_use());
        assert!(file.warnings.iter().any(|w| w.contains("nobody finds cloud.test")), "{:?}", file.warnings);
    }
}
