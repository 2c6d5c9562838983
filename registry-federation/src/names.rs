//! Names with a domain: `postgres@onprem.test` and back.

use std::collections::BTreeMap;

use carrick_model::{Domain, DomainError, service::split_name};
use carrick_proto::registry::{NetworkService, NetworkServiceEndpoint};

/// An object whose names can carry a domain.
pub(crate) trait Named {
    /// The names that decide which domain is meant, in the order in which NSM looks at them.
    fn names(&self) -> impl Iterator<Item = &str>;

    /// Replaces every name, and the label keys that are names of a service the object lists.
    fn rename(&mut self, new: impl Fn(&str) -> String);
}

/// Which domain a query is for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Addressed {
    /// Ours, without saying so.
    Plain,
    /// One that is named; the text is as the caller wrote it.
    To(Domain, String),
}

/// Why the names of a query or a registration are not understood.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// What follows the first `@` is not a domain.
    #[error("`{name}` names no valid domain: {fault}")]
    Domain {
        /// The name in question.
        name: String,
        /// What is wrong with its domain.
        fault: DomainError,
    },
    /// Two names of one object are of different domains. An object is asked for, or registered, in one: of the others nothing would
    /// be left but a service's plain name in the wrong domain.
    #[error("the names are of two domains, {first} and {second}: make one call for each domain")]
    TwoDomains {
        /// The domain named first.
        first: Domain,
        /// Another one.
        second: Domain,
    },
}

/// Finds the domain that the names of `object` are of, and cuts it off them.
pub(crate) fn cut_domain<T: Named>(object: &mut T) -> Result<Addressed, NameError> {
    let mut addressed = Addressed::Plain;
    for name in object.names() {
        let (_, Some(text)) = split_name(name) else { continue };
        let fault = |fault| NameError::Domain { name: shorten(name), fault };
        let domain: Domain = text.parse().map_err(fault)?;
        match &addressed {
            Addressed::Plain => addressed = Addressed::To(domain, text.to_owned()),
            Addressed::To(first, _) if *first == domain => {}
            Addressed::To(first, _) => {
                return Err(NameError::TwoDomains { first: first.clone(), second: domain });
            }
        }
    }
    if addressed != Addressed::Plain {
        make_plain(object);
    }
    Ok(addressed)
}

/// Cuts every domain off the names.
pub(crate) fn make_plain<T: Named>(object: &mut T) {
    object.rename(|name| split_name(name).0.to_owned());
}

/// Puts a domain behind every name there is. A query may have none: it asks for all of a service.
pub(crate) fn add_domain<T: Named>(object: &mut T, domain: &str) {
    object.rename(|name| if name.is_empty() { String::new() } else { format!("{name}@{domain}") });
}

/// Enough of a caller's text to recognise it in a message.
fn shorten(text: &str) -> String {
    const SHOWN: usize = 80;
    text.chars().take(SHOWN).collect()
}

impl Named for NetworkService {
    fn names(&self) -> impl Iterator<Item = &str> {
        [self.name.as_str()].into_iter()
    }

    fn rename(&mut self, new: impl Fn(&str) -> String) {
        self.name = new(&self.name);
    }
}

impl Named for NetworkServiceEndpoint {
    fn names(&self) -> impl Iterator<Item = &str> {
        [&self.name].into_iter().chain(&self.network_service_names).map(String::as_str)
    }

    fn rename(&mut self, new: impl Fn(&str) -> String) {
        self.name = new(&self.name);
        let labels = std::mem::take(&mut self.network_service_labels);
        let listed = |service: &String| self.network_service_names.contains(service);
        let renamed: BTreeMap<_, _> = labels
            .into_iter()
            .map(|(service, labels)| (if listed(&service) { new(&service) } else { service }, labels))
            .collect();
        self.network_service_labels = renamed;
        for service in &mut self.network_service_names {
            *service = new(service);
        }
    }
}

#[cfg(test)]
mod tests {
    use carrick_proto::registry::NetworkServiceLabels;

    use super::*;

    fn endpoint(name: &str, services: &[&str], labels: &[&str]) -> NetworkServiceEndpoint {
        NetworkServiceEndpoint {
            name: name.into(),
            network_service_names: services.iter().map(|s| (*s).into()).collect(),
            network_service_labels: labels
                .iter()
                .map(|s| ((*s).into(), NetworkServiceLabels::default()))
                .collect(),
            ..Default::default()
        }
    }

    #[test]
    fn names_get_the_domain_and_lose_it_again() {
        let domain = "b.test";
        let plain = NetworkServiceEndpoint {
            network_service_names: vec!["web".into()],
            network_service_labels: [("web".to_owned(), Default::default())].into(),
            ..Default::default()
        };
        let mut query = plain.clone();
        add_domain(&mut query, domain);
        assert_eq!((query.name.as_str(), query.network_service_names[0].as_str()), ("", "web@b.test"));
        assert!(query.network_service_labels.contains_key("web@b.test"), "{query:?}");
        make_plain(&mut query);
        assert_eq!(query, plain);
        let mut service = NetworkService { name: "web".into(), ..Default::default() };
        add_domain(&mut service, domain);
        assert_eq!(service.name, "web@b.test");
    }

    #[test]
    fn a_domain_is_cut_off_names_and_keys_and_put_back() {
        let mut e = endpoint("", &["web@Own.test", "db"], &["web@Own.test", "other@Own.test"]);
        let domain = "own.test".parse().unwrap();
        assert_eq!(
            cut_domain(&mut e),
            Ok(Addressed::To(domain, "Own.test".into())),
            "the text stays as it came"
        );
        assert_eq!(
            e,
            endpoint("", &["web", "db"], &["web", "other@Own.test"]),
            "a key is renamed with its service"
        );

        let mut found = endpoint("nse", &["web", "db"], &["web", "loose"]);
        add_domain(&mut found, "Own.test");
        assert_eq!(
            found,
            endpoint("nse@Own.test", &["web@Own.test", "db@Own.test"], &["web@Own.test", "loose"])
        );
    }

    #[test]
    fn plain_names_stay_as_they_are() {
        let mut e = endpoint("nse", &["web"], &["web@own.test"]);
        assert_eq!(cut_domain(&mut e), Ok(Addressed::Plain));
        assert_eq!(e, endpoint("nse", &["web"], &["web@own.test"]));
    }

    #[test]
    fn a_query_is_for_one_valid_domain() {
        let fault =
            |name: &str, services: &[&str]| cut_domain(&mut endpoint(name, services, &[])).unwrap_err();
        let [first, second] = ["a.test", "b.test"].map(|d| d.parse().unwrap());
        assert_eq!(fault("x@a.test", &["y@b.test"]), NameError::TwoDomains { first, second });
        assert_eq!(fault("", &["x@a@b"]), NameError::Domain { name: "x@a@b".into(), fault: DomainError::At });
        assert_eq!(fault("x@", &[]), NameError::Domain { name: "x@".into(), fault: DomainError::Empty });
    }
}
