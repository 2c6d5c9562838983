//! Tunnel addresses that mean nothing in another domain: NSM's `src_ip` and `dst_ip`, each with the address it replaced beside it.
//!
//! ```text
//!   source side                    between the domains             destination side
//!   src_ip = inner                 src_ip = outer, orig_src_ip = inner
//!                                                                  dst_ip = "", orig_dst_ip = "" before the endpoint side answers
//!   dst_ip = outer, orig_dst_ip = inner                            dst_ip = inner
//! ```
//!
//! An empty or missing `orig_src_ip` tells that nobody has translated yet: this is the source side. An address that the map does not
//! have stays as it is, because then both domains reach it.

use std::collections::BTreeMap;

use carrick_proto::connection::Mechanism;

const SRC: &str = "src_ip";
const DST: &str = "dst_ip";
const ORIG_SRC: &str = "orig_src_ip";
const ORIG_DST: &str = "orig_dst_ip";

/// Addresses inside of the domain, and what the world calls them.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct AddressMap(BTreeMap<String, String>);

/// What a hop does to the addresses of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    /// It leaves its domain.
    Source,
    /// It has come to its domain.
    Destination,
    /// It stays within one.
    Neither,
}

impl AddressMap {
    /// Inner address to outer address, as texts.
    pub fn new(map: BTreeMap<String, String>) -> Self {
        Self(map)
    }

    /// Before the request goes on.
    pub(super) fn translate_request(&self, side: Side, mechanism: &mut Mechanism) {
        let parameters = &mut mechanism.parameters;
        let Some(src) = parameters.get(SRC).cloned() else { return };
        match side {
            Side::Source => {
                parameters.insert(SRC.to_owned(), self.outer(&src));
                parameters.insert(ORIG_SRC.to_owned(), src);
            }
            Side::Destination => {
                parameters.insert(DST.to_owned(), String::new());
                parameters.insert(ORIG_DST.to_owned(), String::new());
            }
            Side::Neither => {}
        }
    }

    /// Before the answer goes back.
    pub(super) fn translate_reply(&self, side: Side, mechanism: &mut Mechanism) {
        let parameters = &mut mechanism.parameters;
        match side {
            Side::Source => {
                let Some(orig) = parameters.get(ORIG_SRC).cloned().filter(|o| !o.is_empty()) else { return };
                parameters.insert(SRC.to_owned(), orig);
                parameters.insert(ORIG_SRC.to_owned(), String::new());
            }
            Side::Destination => {
                let Some(dst) = parameters.get(DST).cloned().filter(|d| !d.is_empty()) else { return };
                parameters.insert(DST.to_owned(), self.outer(&dst));
                parameters.insert(ORIG_DST.to_owned(), dst);
            }
            Side::Neither => {}
        }
    }

    fn outer(&self, inner: &str) -> String {
        self.0.get(inner).cloned().unwrap_or_else(|| inner.to_owned())
    }
}

/// What a request with these mechanisms is, on its way out of the domain or within it.
pub(super) fn side<'a>(leaves: bool, mut mechanisms: impl Iterator<Item = &'a Mechanism>) -> Side {
    let translated = mechanisms.any(|m| m.parameters.get(ORIG_SRC).is_some_and(|o| !o.is_empty()));
    match (leaves, translated) {
        (true, false) => Side::Source,
        (false, true) => Side::Destination,
        _ => Side::Neither,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mechanism(of: &[(&str, &str)]) -> Mechanism {
        let parameters = of.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        Mechanism { cls: "REMOTE".into(), r#type: "WIREGUARD".into(), parameters, ..Mechanism::default() }
    }

    fn map(of: &[(&str, &str)]) -> AddressMap {
        AddressMap::new(of.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect())
    }

    #[test]
    fn both_sides_end_with_what_each_can_reach() {
        let (source, destination) = (map(&[("10.0.0.1", "192.0.2.1")]), map(&[("10.0.0.9", "198.51.100.9")]));
        let mut m = mechanism(&[("src_ip", "10.0.0.1")]);
        assert_eq!(side(true, [&m].into_iter()), Side::Source);
        source.translate_request(Side::Source, &mut m);
        assert_eq!(m, mechanism(&[("src_ip", "192.0.2.1"), ("orig_src_ip", "10.0.0.1")]));

        assert_eq!(side(false, [&m].into_iter()), Side::Destination);
        destination.translate_request(Side::Destination, &mut m);
        assert_eq!(m.parameters["dst_ip"], "");
        m.parameters.insert("dst_ip".into(), "10.0.0.9".into());
        destination.translate_reply(Side::Destination, &mut m);
        source.translate_reply(Side::Source, &mut m);
        let end = [
            ("src_ip", "10.0.0.1"),
            ("orig_src_ip", ""),
            ("dst_ip", "198.51.100.9"),
            ("orig_dst_ip", "10.0.0.9"),
        ];
        assert_eq!(m, mechanism(&end));

        // The refresh sends back what the reply was, and nothing has to be remembered for it.
        assert_eq!(side(true, [&m].into_iter()), Side::Source);
        source.translate_request(Side::Source, &mut m);
        destination.translate_request(Side::Destination, &mut m);
        assert_eq!((&*m.parameters["src_ip"], &*m.parameters["dst_ip"]), ("192.0.2.1", ""));
    }

    #[test]
    fn an_address_that_is_not_in_the_map_stays() {
        let mut m = mechanism(&[("src_ip", "203.0.113.7")]);
        AddressMap::default().translate_request(Side::Source, &mut m);
        assert_eq!(m.parameters["src_ip"], "203.0.113.7");
        assert_eq!(
            m.parameters["orig_src_ip"], "203.0.113.7",
            "the other side must see that it is not the source"
        );
    }

    #[test]
    fn mechanisms_without_addresses_and_requests_within_the_domain_are_left_alone() {
        let mut quic = mechanism(&[("connection", "x")]);
        AddressMap::default().translate_request(Side::Source, &mut quic);
        assert_eq!(quic, mechanism(&[("connection", "x")]));
        let inside = mechanism(&[("src_ip", "10.0.0.1")]);
        assert_eq!(side(false, [&inside].into_iter()), Side::Neither);
    }
}
