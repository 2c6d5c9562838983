//! What objects are indexed by.

use std::collections::BTreeSet;

/// A fact about an object that a query can ask for.
///
/// A query's own facts are those an object needs to match: query ⊆ object, so following any one of them finds every
/// match. The order of the variants is that of how much they narrow down, the most first.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Term {
    /// Its name.
    Name(Box<str>),
    /// A label under a service, see [`Term::label`].
    Label(Box<str>),
    /// Its whole URL. Not among the facts of a query: that asks for a part of one.
    Url(Box<str>),
    /// A service it provides.
    Service(Box<str>),
    /// What it carries.
    Payload(Box<str>),
    /// That it exists.
    Any,
}

impl Term {
    /// A label under a service. Two labels whose parts are cut in different places may be one term: what is found by a
    /// term is compared with the query all the same.
    pub(crate) fn label(service: &str, key: &str, value: &str) -> Self {
        Self::Label(format!("{service}\0{key}\0{value}").into())
    }
}

/// The facts of one object or query, [`Term::Any`] always among them.
pub(crate) type Terms = BTreeSet<Term>;
