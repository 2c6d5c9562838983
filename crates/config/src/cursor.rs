//! A place in the tree and its key path.

use crate::{
    document::{Node, Position, Value},
    fault::{Fault, shown},
};

/// Points at a value, or at the place where it would stand.
#[derive(Debug, Clone)]
pub(crate) struct Cursor<'n> {
    node: Option<&'n Node>,
    at: Position,
    path: String,
}

impl<'n> Cursor<'n> {
    pub(crate) fn root(node: &'n Node) -> Self {
        Self { node: Some(node), at: node.at, path: String::new() }
    }

    /// The value of `key`. Where there is none, the place stays that of the map.
    pub(crate) fn key(&self, key: &str) -> Self {
        let entries = match self.node.map(|node| &node.value) {
            Some(Value::Map(entries)) => entries.as_slice(),
            _ => &[],
        };
        let entry = entries.iter().find(|entry| entry.key == key);
        Self {
            node: entry.map(|entry| &entry.node),
            at: entry.map_or(self.at, |entry| entry.node.at),
            path: join(&self.path, key),
        }
    }

    /// The elements of a list that are still there, each under the index it was written at.
    pub(crate) fn items(&self) -> impl Iterator<Item = Self> + use<'n> {
        let items = match self.node.map(|node| &node.value) {
            Some(Value::List(items)) => items.as_slice(),
            _ => &[],
        };
        let path = self.path.clone();
        items.iter().map(move |item| Self {
            node: Some(&item.node),
            at: item.node.at,
            path: format!("{path}[{}]", item.index),
        })
    }

    /// The keys of a map that are still there, each with the place of the key itself.
    pub(crate) fn keys(&self) -> impl Iterator<Item = (&'n str, Self)> + use<'n> {
        let entries = match self.node.map(|node| &node.value) {
            Some(Value::Map(entries)) => entries.as_slice(),
            _ => &[],
        };
        let path = self.path.clone();
        entries.iter().map(move |entry| {
            let path = join(&path, &entry.key);
            (entry.key.as_str(), Self { node: Some(&entry.node), at: entry.at, path })
        })
    }

    /// The line this points at.
    pub(crate) fn line(&self) -> usize {
        self.at.line
    }

    /// The key path this points at.
    pub(crate) fn path(&self) -> &str {
        &self.path
    }

    /// A fault at this place.
    pub(crate) fn fault(&self, message: impl Into<String>) -> Fault {
        self.at.fault(&self.path, message)
    }
}

/// The path of `key` in the map at `path`.
pub(crate) fn join(path: &str, key: &str) -> String {
    if path.is_empty() { shown(key) } else { format!("{path}.{}", shown(key)) }
}
