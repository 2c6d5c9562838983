//! Which endpoint is asked.
//!
//! An import asks for the endpoints of a peer's service that carry what it carries, in turn ([`RoundRobin`]): the peer's own
//! selection has the last word. A connection that passes through is decided here: [`matching`] says which endpoints the service
//! picks, [`ranking`] in which order they are tried.

pub mod matching;
pub mod ranking;
mod template;

use carrick_model::Payload;

/// One endpoint of a service, as a peer's registry told it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// Its name in the peer's registry, without a domain.
    pub name: String,
    /// What it carries; unknown when the peer does not say.
    pub payload: Option<Payload>,
    /// The service's own port, where the peer says it.
    pub port: Option<u16>,
}

/// Round robin over a list that changes.
#[derive(Debug, Clone)]
pub struct RoundRobin {
    turn: usize,
}

impl RoundRobin {
    /// Starts anywhere, by `seed`: clients that start together do not all ask the first endpoint.
    pub fn new(seed: u64) -> Self {
        Self { turn: usize::try_from(seed % 65_536).unwrap_or_default() }
    }

    /// The next endpoint that carries `wanted`; `None` when there is none.
    pub fn next<'a>(&mut self, endpoints: &'a [Endpoint], wanted: Option<Payload>) -> Option<&'a Endpoint> {
        let fitting = endpoints.iter().filter(|e| carries(e, wanted)).count();
        if fitting == 0 {
            return None;
        }
        let turn = self.turn % fitting;
        self.turn = turn + 1;
        endpoints.iter().filter(|e| carries(e, wanted)).nth(turn)
    }
}

/// Whether `endpoint` carries `wanted`, as far as is known.
pub fn carries(endpoint: &Endpoint, wanted: Option<Payload>) -> bool {
    match (endpoint.payload, wanted) {
        (Some(has), Some(wants)) => has == wants,
        // Without tunnels for packets and frames, an import that takes anything still means flows.
        (Some(has), None) => matches!(has, Payload::Tcp | Payload::Udp),
        (None, _) => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint(name: &str, payload: Option<Payload>) -> Endpoint {
        Endpoint { name: name.into(), payload, port: None }
    }

    #[test]
    fn every_fitting_endpoint_has_its_turn_and_no_other() {
        let all = [
            endpoint("a", Some(Payload::Tcp)),
            endpoint("b", Some(Payload::Udp)),
            endpoint("c", None),
            endpoint("d", Some(Payload::Ip)),
        ];
        let mut turn = RoundRobin::new(7);
        let mut seen: Vec<&str> =
            (0..4).map(|_| turn.next(&all, Some(Payload::Tcp)).unwrap().name.as_str()).collect();
        assert_ne!(seen[0], seen[1]);
        assert_eq!(seen[..2], seen[2..]);
        seen.sort_unstable();
        assert_eq!(seen, ["a", "a", "c", "c"]);
        assert!(turn.next(&all[3..], None).is_none());
        assert!(turn.next(&[], Some(Payload::Tcp)).is_none());
    }
}
