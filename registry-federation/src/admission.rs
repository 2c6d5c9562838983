//! What callers of other trust domains may do with registrations: nothing, unless a rule lets them.

use carrick_model::{AccessRule, SpiffeId, SpiffePattern};
use carrick_registry_core::Audience;

/// Who of another trust domain may register here, and who may see what is registered.
///
/// Callers of the own trust domain may do both with any service. Exports are not concerned: each has its own list.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Admission {
    /// Who may register which services.
    pub admit: Vec<AccessRule>,
    /// Who may see which registered services.
    pub show: Vec<AccessRule>,
}

impl Admission {
    /// Whether `caller`, who is of another trust domain, may register something that provides `services`.
    pub(crate) fn admits<'a>(&self, caller: &SpiffeId, services: impl IntoIterator<Item = &'a str>) -> bool {
        let mut services = services.into_iter().peekable();
        services.peek().is_some()
            && services.all(|service| self.admit.iter().any(|rule| rule.lets(caller, service)))
    }

    /// Who of other trust domains may see an object that provides `services`: whoever may see all of them, for the
    /// object names them all.
    pub(crate) fn audience<'a>(&self, services: impl IntoIterator<Item = &'a str>) -> Audience {
        let services: Vec<&str> = services.into_iter().collect();
        let shows_all = |rule: &&AccessRule| {
            let shown = |name: &&str| rule.services.iter().any(|pattern| pattern.matches(name));
            !services.is_empty() && services.iter().all(shown)
        };
        let mut patterns: Vec<SpiffePattern> = Vec::new();
        for pattern in self.show.iter().filter(shows_all).flat_map(|rule| &rule.who) {
            if !patterns.contains(pattern) {
                patterns.push(pattern.clone());
            }
        }
        patterns.into_iter().collect()
    }
}

#[cfg(test)]
mod tests {
    use carrick_registry_core::Viewer;

    use super::*;

    fn rule(who: &str, services: &[&str]) -> AccessRule {
        AccessRule {
            who: vec![who.parse().unwrap()],
            services: services.iter().map(|service| service.parse().unwrap()).collect(),
        }
    }

    fn id(text: &str) -> SpiffeId {
        SpiffeId::new(text).unwrap()
    }

    #[test]
    fn a_stranger_registers_what_is_listed_and_nothing_beside_it() {
        let admission = Admission {
            admit: vec![rule("spiffe://b.test/**", &["vl3", "db.*"]), rule("spiffe://b.test/gw", &["web"])],
            show: Vec::new(),
        };
        let admits = |who: &str, services: &[&str]| admission.admits(&id(who), services.iter().copied());
        assert!(admits("spiffe://b.test/x", &["vl3"]) && admits("spiffe://b.test/x", &["vl3", "db.a"]));
        assert!(admits("spiffe://b.test/gw", &["vl3", "web"]), "each by some rule");
        assert!(!admits("spiffe://b.test/x", &["vl3", "web"]), "one that is not listed is one too many");
        assert!(!admits("spiffe://c.test/x", &["vl3"]));
        assert!(!admits("spiffe://b.test/x", &[]), "what provides nothing is not listed either");
        assert!(!Admission::default().admits(&id("spiffe://b.test/x"), ["vl3"]), "deny by default");
    }

    #[test]
    fn a_stranger_sees_an_object_if_it_may_see_all_its_services() {
        let admission = Admission {
            admit: Vec::new(),
            show: vec![rule("spiffe://b.test/**", &["vl3", "web"]), rule("spiffe://c.test/gw", &["*"])],
        };
        let sees = |who: &str, services: &[&str]| {
            admission.audience(services.iter().copied()).admits(&Viewer::Peer(id(who)))
        };
        assert!(sees("spiffe://b.test/x", &["vl3"]) && sees("spiffe://b.test/x", &["vl3", "web"]));
        assert!(!sees("spiffe://b.test/x", &["vl3", "secret"]));
        assert!(sees("spiffe://c.test/gw", &["vl3", "secret"]) && !sees("spiffe://c.test/gw", &[]));
        assert!(!sees("spiffe://d.test/gw", &["vl3"]));
        assert!(
            Admission::default().audience(["vl3"]).admits(&Viewer::Own),
            "the own domain sees everything"
        );
    }
}
