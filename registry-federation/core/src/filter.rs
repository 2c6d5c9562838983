//! Which objects somebody gets to see: the query, and the right to see.

use std::{collections::BTreeMap, sync::Arc};

use carrick_model::{SpiffeId, SpiffePattern};
use carrick_proto::registry::{NetworkService, NetworkServiceEndpoint, NetworkServiceLabels};
use prost::Message as _;

use crate::{
    catalogue::Catalogue,
    record::Record,
    shelf::Shelf,
    term::{Term, Terms},
};

/// What NSM stores for a service that does not say what it carries (`setpayload` of its registry).
const DEFAULT_PAYLOAD: &str = "IP";

/// The kinds of objects.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// A `registry.NetworkService`.
    Service,
    /// A `registry.NetworkServiceEndpoint`.
    Endpoint,
}

impl Kind {
    /// The word for it in keys of stores and in messages.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Service => "service",
            Self::Endpoint => "endpoint",
        }
    }
}

/// Who looks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Viewer {
    /// The own domain: it sees everything.
    Own,
    /// A caller of another trust domain.
    Peer(SpiffeId),
}

/// Who may see an object, besides the own domain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Audience(Arc<[SpiffePattern]>);

impl Audience {
    /// Nobody outside the own domain.
    pub fn own_domain() -> Self {
        Self(Arc::new([]))
    }

    /// Whether `viewer` may see the object.
    pub fn admits(&self, viewer: &Viewer) -> bool {
        match viewer {
            Viewer::Own => true,
            Viewer::Peer(id) => self.0.iter().any(|pattern| pattern.matches(id)),
        }
    }
}

impl FromIterator<SpiffePattern> for Audience {
    fn from_iter<I: IntoIterator<Item = SpiffePattern>>(patterns: I) -> Self {
        Self(patterns.into_iter().collect())
    }
}

/// A query and who asks it.
#[derive(Debug, Clone, PartialEq)]
pub struct Filter<T> {
    /// The template: fields that are set have to match.
    pub query: T,
    /// Who asks.
    pub viewer: Viewer,
}

impl<T: Object> Filter<T> {
    /// Everything that matches `query`, as the own domain sees it.
    pub fn own(query: T) -> Self {
        Self { query, viewer: Viewer::Own }
    }

    /// Whether a record is in the view. What is hidden is not read.
    pub(crate) fn admits_record(&self, record: &Record<T>) -> bool {
        record.audience.admits(&self.viewer) && self.query.matches(&record.object())
    }

    /// Whether an object for `audience` is in the view.
    pub fn admits(&self, object: &T, audience: &Audience) -> bool {
        audience.admits(&self.viewer) && self.query.matches(object)
    }
}

/// A kind of object the catalogue holds: [`NetworkService`] or [`NetworkServiceEndpoint`].
pub trait Object: kind::Kind {
    /// The kind.
    const KIND: Kind;

    /// The kind as a noun, for messages.
    const WHAT: &'static str;

    /// The key in the catalogue.
    fn name(&self) -> &str;

    /// Sets what a registration may leave out: a service without a payload carries `IP`, as in NSM.
    fn fill_defaults(&mut self);

    /// Whether `self`, a query, matches `stored`. A field that is empty in the query matches anything.
    ///
    /// Services: name, payload and matches are equal. Endpoints: the name is equal, the service names are a subset,
    /// the labels of each service asked for are a subset, the seconds of the expiration time are equal, and the stored
    /// URL contains the one asked for. Path ids and the time of the first registration are not compared.
    fn matches(&self, stored: &Self) -> bool;
}

pub(crate) mod kind {
    use super::{Catalogue, Shelf, Terms};

    /// What the catalogue needs of a kind; sealed, because there are two kinds.
    pub trait Kind: Clone + PartialEq + 'static {
        /// The facts every match of this query has, and those an object is indexed by but for [`url`](Self::url).
        fn terms(&self) -> Terms;
        /// The URL of the object, or the part of one that the query asks for. Empty for none.
        fn url(&self) -> &str;
        /// The object, encoded.
        fn pack(&self) -> Vec<u8>;
        /// The object that was packed.
        fn unpack(octets: &[u8]) -> Self;
        /// Where the catalogue keeps this kind.
        fn shelf(catalogue: &Catalogue) -> &Shelf<Self>;
        /// Where the catalogue keeps this kind, and its other parts.
        fn shelf_mut(catalogue: &mut Catalogue) -> &mut Shelf<Self>;
    }
}

impl Object for NetworkService {
    const KIND: Kind = Kind::Service;
    const WHAT: &'static str = "network service";

    fn name(&self) -> &str {
        &self.name
    }

    fn fill_defaults(&mut self) {
        if self.payload.is_empty() {
            DEFAULT_PAYLOAD.clone_into(&mut self.payload);
        }
    }

    fn matches(&self, stored: &Self) -> bool {
        empty_or_equal(&self.name, &stored.name)
            && empty_or_equal(&self.payload, &stored.payload)
            && (self.matches.is_empty() || self.matches == stored.matches)
    }
}

impl kind::Kind for NetworkService {
    fn terms(&self) -> Terms {
        let mut terms = Terms::from([Term::Any]);
        if !self.name.is_empty() {
            terms.insert(Term::Name(self.name.as_str().into()));
        }
        if !self.payload.is_empty() {
            terms.insert(Term::Payload(self.payload.as_str().into()));
        }
        terms
    }

    fn url(&self) -> &str {
        ""
    }

    fn pack(&self) -> Vec<u8> {
        self.encode_to_vec()
    }

    fn unpack(octets: &[u8]) -> Self {
        // Only what `pack` made is unpacked, which decodes.
        Self::decode(octets).unwrap_or_default()
    }

    fn shelf(catalogue: &Catalogue) -> &Shelf<Self> {
        &catalogue.services
    }

    fn shelf_mut(catalogue: &mut Catalogue) -> &mut Shelf<Self> {
        &mut catalogue.services
    }
}

impl Object for NetworkServiceEndpoint {
    const KIND: Kind = Kind::Endpoint;
    const WHAT: &'static str = "network service endpoint";

    fn name(&self) -> &str {
        &self.name
    }

    fn fill_defaults(&mut self) {}

    fn matches(&self, stored: &Self) -> bool {
        let provides = |service| stored.network_service_names.contains(service);
        let seconds = |endpoint: &Self| endpoint.expiration_time.as_ref().map(|t| t.seconds);
        empty_or_equal(&self.name, &stored.name)
            && self.network_service_names.iter().all(provides)
            && labels_within(&self.network_service_labels, &stored.network_service_labels)
            && (self.expiration_time.is_none() || seconds(self) == seconds(stored))
            && stored.url.contains(&self.url)
    }
}

impl kind::Kind for NetworkServiceEndpoint {
    fn terms(&self) -> Terms {
        let mut terms = Terms::from([Term::Any]);
        if !self.name.is_empty() {
            terms.insert(Term::Name(self.name.as_str().into()));
        }
        terms.extend(self.network_service_names.iter().map(|s| Term::Service(s.as_str().into())));
        for (service, under) in &self.network_service_labels {
            let label = |(key, value): (&String, &String)| Term::label(service, key, value);
            terms.extend(under.labels.iter().map(label));
        }
        terms
    }

    fn url(&self) -> &str {
        &self.url
    }

    fn pack(&self) -> Vec<u8> {
        self.encode_to_vec()
    }

    fn unpack(octets: &[u8]) -> Self {
        // Only what `pack` made is unpacked, which decodes.
        Self::decode(octets).unwrap_or_default()
    }

    fn shelf(catalogue: &Catalogue) -> &Shelf<Self> {
        &catalogue.endpoints
    }

    fn shelf_mut(catalogue: &mut Catalogue) -> &mut Shelf<Self> {
        &mut catalogue.endpoints
    }
}

fn empty_or_equal(asked: &str, stored: &str) -> bool {
    asked.is_empty() || asked == stored
}

fn labels_within(
    asked: &BTreeMap<String, NetworkServiceLabels>,
    stored: &BTreeMap<String, NetworkServiceLabels>,
) -> bool {
    asked.iter().all(|(service, wanted)| {
        let carries =
            |has: &NetworkServiceLabels| wanted.labels.iter().all(|(k, v)| has.labels.get(k) == Some(v));
        stored.get(service).is_some_and(carries)
    })
}
