//! A tree against the schema: unknown and missing keys, wrong types, unknown words.

use std::{
    collections::{BTreeSet, HashSet},
    sync::LazyLock,
};

use serde_json::Value as Json;

use crate::{
    cursor::join,
    document::{Document, Entry, Item, Node, Position, Value},
    fault::{Fault, shown},
    reference,
};

/// A tree that fits the raw types, with what had to be dropped for it.
pub(crate) struct Checked {
    pub(crate) root: Node,
    pub(crate) faults: Vec<Fault>,
    /// Keys at the top with a fault in or on them: what is missing there may only have been dropped or misspelt.
    pub(crate) doubtful: BTreeSet<String>,
}

/// Stands for `domain` where none was given, so that the rest can be read. The faults keep it from ever being used.
const NO_DOMAIN: &str = "missing.invalid";

static SCHEMA: LazyLock<Json> = LazyLock::new(reference::schema);

/// Drops from the tree what does not fit the schema, and says of each what is wrong.
pub(crate) fn check(document: Document) -> Checked {
    let Document { mut root, faults } = document;
    let at = root.at;
    let mut walk = Walk { faults, doubtful: BTreeSet::new() };
    if matches!(root.value, Value::Null) {
        root.value = Value::Map(Vec::new());
    }
    let mut entries = match root.value {
        Value::Map(entries) => walk.object(entries, at, &SCHEMA, "").unwrap_or_else(|entries| entries),
        other => {
            let found = found(&other);
            walk.report(at.fault("", format!("a config is a map of keys, this is {found}")), "domain");
            Vec::new()
        }
    };
    if entries.iter().all(|entry| entry.key != "domain") {
        walk.doubtful.insert("domain".to_owned());
        let node = Node { at, value: Value::Text(NO_DOMAIN.to_owned()) };
        entries.push(Entry { key: "domain".to_owned(), at, node });
    }
    Checked { root: Node { at, value: Value::Map(entries) }, faults: walk.faults, doubtful: walk.doubtful }
}

struct Walk {
    faults: Vec<Fault>,
    doubtful: BTreeSet<String>,
}

impl Walk {
    fn report(&mut self, fault: Fault, path: &str) {
        let top = path.split(['.', '[']).next().unwrap_or_default();
        self.doubtful.insert(top.to_owned());
        self.faults.push(fault);
    }

    /// The node as far as it fits, or nothing when it does not.
    fn node(&mut self, node: Node, schema: &Json, path: &str) -> Option<Node> {
        let schema = resolve(schema);
        let at = node.at;
        if let Some(words) = words(schema) {
            return self.word(node, &words, path);
        }
        let kinds = kinds(schema);
        let value = match node.value {
            Value::Map(entries) if kinds.contains(&"object") => {
                Value::Map(self.object(entries, at, schema, path).ok()?)
            }
            Value::List(items) if kinds.contains(&"array") => {
                Value::List(self.list(items, &schema["items"], path))
            }
            Value::Integer(number) if kinds.contains(&"integer") => {
                self.integer(number, at, schema, path)?;
                node.value
            }
            Value::Text(_) if kinds.contains(&"string") => node.value,
            other => {
                let message = format!("expected {}, found {}", expected(&kinds), found(&other));
                let fault = at.fault(path, message);
                self.report(Fault { hint: retype(&kinds, schema, &other), ..fault }, path);
                return None;
            }
        };
        Some(Node { at, value })
    }

    fn word(&mut self, node: Node, words: &[&str], path: &str) -> Option<Node> {
        match &node.value {
            Value::Text(text) if words.contains(&text.as_str()) => return Some(node),
            Value::Text(text) => {
                let message = format!("`{}` is not one of {}", shown(text), quoted(words));
                let hint = nearest(text, words).map(|word| format!("did you mean `{word}`?"));
                self.report(Fault { hint, ..node.at.fault(path, message) }, path);
            }
            other => {
                let message = format!("expected one of {}, found {}", quoted(words), found(other));
                self.report(node.at.fault(path, message), path);
            }
        }
        None
    }

    fn integer(&mut self, number: i128, at: Position, schema: &Json, path: &str) -> Option<()> {
        let bound = |key: &str| schema.get(key).and_then(Json::as_i64).map(i128::from);
        let (min, max) = (bound("minimum").unwrap_or(i128::MIN), bound("maximum").unwrap_or(i128::MAX));
        if (min..=max).contains(&number) {
            return Some(());
        }
        self.report(
            at.fault(path, format!("{number} is out of range")).hint(format!("from {min} to {max}")),
            path,
        );
        None
    }

    fn list(&mut self, items: Vec<Item>, schema: &Json, path: &str) -> Vec<Item> {
        let fit = |Item { index, node }| {
            let node = self.node(node, schema, &format!("{path}[{index}]"))?;
            Some(Item { index, node })
        };
        items.into_iter().filter_map(fit).collect()
    }

    /// What fits of a map. It is an error when a key is missing without which the map means nothing.
    fn object(
        &mut self,
        entries: Vec<Entry>,
        at: Position,
        schema: &Json,
        path: &str,
    ) -> Result<Vec<Entry>, Vec<Entry>> {
        let given: HashSet<String> = entries.iter().map(|entry| entry.key.clone()).collect();
        let mut meant = BTreeSet::new();
        let mut kept = Vec::new();
        let mut spoilt = HashSet::new();
        for Entry { key, at, node } in entries {
            let known = schema["properties"].get(&key).or_else(|| schema.get("additionalProperties"));
            let path = join(path, &key);
            match known {
                None | Some(Json::Bool(false)) => {
                    if let Some(suggestion) = self.unknown(&key, at, schema, &given, &path) {
                        meant.insert(suggestion);
                    }
                }
                // A key without a value is as good as left out.
                Some(_) if matches!(node.value, Value::Null) => {}
                Some(known) => match self.node(node, known, &path) {
                    Some(node) => kept.push(Entry { key, at, node }),
                    None => {
                        spoilt.insert(key);
                    }
                },
            }
        }
        let mut whole = true;
        for key in schema["required"].as_array().into_iter().flatten().filter_map(Json::as_str) {
            if kept.iter().any(|entry| entry.key == key) {
                continue;
            }
            whole = false;
            // Who has misspelt a key does not need to hear that it is missing too.
            if !spoilt.contains(key) && !meant.contains(key) {
                let path = join(path, key);
                self.report(at.fault(&path, "the key is missing").hint(format!("add `{key}: …`")), &path);
            }
        }
        if whole { Ok(kept) } else { Err(kept) }
    }

    /// Reports a key that is not in the schema. Returns the key that was probably meant.
    fn unknown(
        &mut self,
        key: &str,
        at: Position,
        schema: &Json,
        given: &HashSet<String>,
        path: &str,
    ) -> Option<String> {
        let mut keys: Vec<&str> = properties(schema).collect();
        keys.sort_unstable();
        let free: Vec<&str> = keys.iter().copied().filter(|key| !given.contains(*key)).collect();
        let suggestion = nearest(key, &free);
        let hint = match (suggestion, home(key)) {
            (Some(suggestion), _) => format!("did you mean `{suggestion}`?"),
            (None, Some(home)) => home,
            (None, None) if key == "<<" => "merge keys are not supported: write the keys out".to_owned(),
            (None, None) => format!("the keys here are {}", quoted(&keys)),
        };
        self.report(at.fault(path, "unknown key").hint(hint), path);
        // A misspelt key at the top makes the section it was meant to be doubtful.
        if let Some(suggestion) = suggestion
            && path == join("", key)
        {
            self.doubtful.insert(suggestion.to_owned());
        }
        suggestion.map(str::to_owned)
    }
}

/// The schema behind a reference, or behind "or null": a key without a value never gets here.
pub(crate) fn resolve(schema: &Json) -> &Json {
    if let Some(name) = schema.get("$ref").and_then(Json::as_str) {
        return name.strip_prefix('#').and_then(|pointer| SCHEMA.pointer(pointer)).map_or(schema, resolve);
    }
    let not_null = |schema: &&Json| schema["type"] != "null";
    match schema.get("anyOf").and_then(Json::as_array) {
        Some(choices) => choices.iter().find(not_null).map_or(schema, resolve),
        None => schema,
    }
}

/// The words of a closed set.
pub(crate) fn words(schema: &Json) -> Option<Vec<&str>> {
    if let Some(words) = schema.get("enum").and_then(Json::as_array) {
        return Some(words.iter().filter_map(Json::as_str).collect());
    }
    let choices = schema.get("oneOf").and_then(Json::as_array)?;
    Some(choices.iter().filter_map(|choice| choice["const"].as_str()).collect())
}

pub(crate) fn kinds(schema: &Json) -> Vec<&str> {
    match &schema["type"] {
        Json::Array(kinds) => kinds.iter().filter_map(Json::as_str).filter(|kind| *kind != "null").collect(),
        Json::String(kind) => vec![kind],
        _ => Vec::new(),
    }
}

fn properties(schema: &Json) -> impl Iterator<Item = &str> {
    schema["properties"].as_object().into_iter().flat_map(|properties| properties.keys().map(String::as_str))
}

/// Where a key that stands in the wrong place belongs.
fn home(key: &str) -> Option<String> {
    let top = SCHEMA["properties"].as_object()?;
    if top.contains_key(key) {
        return Some(format!("`{key}` belongs at the top of the file"));
    }
    let section = top.iter().find_map(|(name, schema)| holder(key, schema, name))?;
    Some(format!("`{key}` belongs under `{section}`"))
}

/// The path of the first map at or below `schema` that has `key`.
fn holder(key: &str, schema: &Json, path: &str) -> Option<String> {
    let schema = resolve(schema);
    [schema, resolve(&schema["items"])].into_iter().find_map(|map| {
        if properties(map).any(|known| known == key) {
            return Some(path.to_owned());
        }
        let below = map["properties"].as_object()?;
        below.iter().find_map(|(name, schema)| holder(key, schema, &join(path, name)))
    })
}

/// The word that was probably meant.
pub(crate) fn nearest<'w>(given: &str, words: &[&'w str]) -> Option<&'w str> {
    /// The longest word that is compared: the comparison takes the product of both lengths.
    const COMPARED: usize = 40;
    if given.len() > COMPARED {
        return None;
    }
    let given = given.to_lowercase().replace('-', "_");
    // One slip in three letters still leaves a word recognisable.
    let allowed = (given.chars().count() / 3).max(1);
    let distance = |word: &&str| strsim::damerau_levenshtein(&given, word);
    let near = words.iter().copied().map(|word| (distance(&word), word));
    near.filter(|(distance, word)| *distance <= allowed && *distance < word.len()).min().map(|(_, word)| word)
}

fn quoted(words: &[&str]) -> String {
    words.iter().map(|word| format!("`{word}`")).collect::<Vec<_>>().join(", ")
}

fn expected(kinds: &[&str]) -> String {
    let name = |kind: &&str| match *kind {
        "string" => "a text",
        "integer" => "a whole number",
        "array" => "a list",
        "object" => "a map of keys",
        _ => "another type",
    };
    kinds.iter().map(name).collect::<Vec<_>>().join(" or ")
}

fn found(value: &Value) -> String {
    match value {
        Value::Null => "nothing".to_owned(),
        Value::Bool(b) => format!("`{b}`"),
        Value::Integer(i) => format!("the number {i}"),
        Value::Float(f) => format!("the number {f}"),
        Value::Text(t) => format!("the text `{}`", shown(t)),
        Value::List(_) => "a list".to_owned(),
        Value::Map(_) => "a map of keys".to_owned(),
    }
}

/// How to write a value of the wrong type.
fn retype(kinds: &[&str], schema: &Json, given: &Value) -> Option<String> {
    let number = matches!(given, Value::Integer(_) | Value::Float(_));
    let hint = match (schema["format"].as_str(), given) {
        (Some("duration"), _) if number => "give it a unit, for example `10s`",
        (Some("bytes"), _) if number => "give it a unit, for example `1GiB`",
        (_, Value::Integer(_) | Value::Float(_) | Value::Bool(_)) if kinds.contains(&"string") => {
            "put it in quotes"
        }
        (_, Value::Text(_) | Value::Map(_)) if kinds.contains(&"array") => "put it in brackets: `[…]`",
        (_, Value::Text(_)) if kinds == ["integer"] => "write it without quotes and units",
        _ => return None,
    };
    Some(hint.to_owned())
}
