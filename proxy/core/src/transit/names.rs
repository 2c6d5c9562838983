//! Names with a domain on the way through: what was asked for, and what the answer is called.
//!
//! The first `@` parts a name. Within the own domain names have no suffix, so one that came with it is cut before the registry and the
//! endpoint see it, and the answer gets it back. A name of a domain whose registry holds endpoints of others (a floating
//! name) keeps its suffix on all hops, up to the endpoint.

use carrick_model::service::split_name;

/// A request's names, parted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Asked<'a> {
    /// The service, without a domain.
    pub service: &'a str,
    /// The endpoint, without a domain; empty is any.
    pub endpoint: &'a str,
    /// The domain: the endpoint's, else the service's.
    pub domain: Option<&'a str>,
}

/// Parts the names of a request.
pub fn asked<'a>(service: &'a str, endpoint: &'a str) -> Asked<'a> {
    let (service, of_service) = split_name(service);
    let (endpoint, of_endpoint) = split_name(endpoint);
    Asked { service, endpoint, domain: of_endpoint.or(of_service) }
}

/// What the endpoint of an answer is called towards a caller who asked for `service` and `endpoint`, when `sent` was the service's
/// name on the next hop and `granted` is the endpoint's there.
pub(super) fn restored(service: &str, endpoint: &str, sent: &str, granted: &str) -> String {
    let cut = split_name(sent).1.is_none();
    if !cut || split_name(granted).1.is_some() {
        return granted.to_owned();
    }
    if split_name(endpoint).0 == granted {
        return endpoint.to_owned();
    }
    match asked(service, endpoint).domain {
        Some(domain) => format!("{granted}@{domain}"),
        None => granted.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_endpoints_domain_goes_before_the_services() {
        assert_eq!(asked("a", "e@f"), Asked { service: "a", endpoint: "e", domain: Some("f") });
        assert_eq!(asked("a@d", "e"), Asked { service: "a", endpoint: "e", domain: Some("d") });
        assert_eq!(asked("a@b@c", "").domain, Some("b@c"));
        assert_eq!(asked("a", "").domain, None);
    }

    #[test]
    fn the_answer_is_called_as_the_question_was() {
        assert_eq!(restored("s@own", "e@own", "s", "e"), "e@own");
        assert_eq!(restored("s@own", "", "s", "e"), "e@own");
        assert_eq!(restored("s", "e@own", "s", "e"), "e@own");
        assert_eq!(restored("s", "", "s", "e"), "e");
        assert_eq!(restored("s@float", "e@float", "s@float", "e@float"), "e@float");
        assert_eq!(restored("s@own", "", "s", "e2@else"), "e2@else", "a name that has a domain keeps it");
    }
}
