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
    /// A label under a service: service, key, value.
    Label(Box<str>, Box<str>, Box<str>),
    /// Its whole URL. Not among the facts of a query: that asks for a part of one.
    Url(Box<str>),
    /// A service it provides.
    Service(Box<str>),
    /// What it carries.
    Payload(Box<str>),
    /// That it exists.
    Any,
}

/// The facts of one object or query, [`Term::Any`] always among them.
pub(crate) type Terms = BTreeSet<Term>;
