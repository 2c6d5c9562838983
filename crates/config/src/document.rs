//! YAML text as a tree in which every key and value knows its line and column.
//!
//! The tree comes from parser events and not from a value type of a YAML library: those know no positions, keep one of
//! two equal keys in silence, and expand aliases without a bound. Scalars follow the core schema of YAML 1.2, so `off`
//! and `no` are texts.

use std::collections::HashMap;

use saphyr_parser::{Event, Parser, ScalarStyle, ScanError, Span, StrInput, Tag};

use crate::{
    cursor::join,
    fault::{Fault, Faults, printable, shown},
};

/// Longest config text in bytes: thousands of entries, and still parsed in a blink. What is longer is not a config.
pub const MAX_BYTES: usize = 1 << 20;
/// Deepest nesting. The config itself needs 4; the bound keeps recursion off the end of the stack.
pub const MAX_DEPTH: usize = 32;
/// Most keys and values, those that aliases stand for counted each time: several times what [`MAX_BYTES`] of real
/// entries hold, so that only a text made to explode reaches it.
pub const MAX_NODES: usize = 200_000;

/// A place in the text: line and column from 1, the column in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Position {
    pub(crate) line: usize,
    pub(crate) column: usize,
}

/// A value and where it starts.
#[derive(Debug, Clone)]
pub(crate) struct Node {
    pub(crate) at: Position,
    pub(crate) value: Value,
}

/// What a YAML value is.
#[derive(Debug, Clone)]
pub(crate) enum Value {
    Null,
    Bool(bool),
    Integer(i128),
    Float(f64),
    Text(String),
    List(Vec<Item>),
    Map(Vec<Entry>),
}

/// An element of a list. It keeps its index when elements before it are dropped.
#[derive(Debug, Clone)]
pub(crate) struct Item {
    pub(crate) index: usize,
    pub(crate) node: Node,
}

/// A key of a map, where it stands, and its value.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub(crate) key: String,
    pub(crate) at: Position,
    pub(crate) node: Node,
}

/// A text's tree, and what was dropped on the way to it.
pub(crate) struct Document {
    pub(crate) root: Node,
    pub(crate) faults: Vec<Fault>,
}

/// Reads one YAML document. An error is one after which nothing that follows can be trusted.
pub(crate) fn read(text: &str) -> Result<Document, Faults> {
    let start = Position { line: 1, column: 1 };
    if text.len() > MAX_BYTES {
        let fault = start.fault("", format!("the text is longer than {MAX_BYTES} bytes"));
        return Err(Faults::one(fault.hint("this is probably not a Carrick config")));
    }
    // Some parsers count a last line that is not there.
    let last_line = text.bytes().filter(|b| *b == b'\n').count() + 1;
    let mut builder = Builder {
        parser: Parser::new_from_str(text),
        last_line,
        nodes: 0,
        path: String::new(),
        anchors: HashMap::new(),
        faults: vec![],
    };
    let root = builder.document().map_err(Faults::one)?;
    let root = root.unwrap_or(Node { at: start, value: Value::Null });
    Ok(Document { root, faults: builder.faults })
}

struct Builder<'t> {
    parser: Parser<'t, StrInput<'t>>,
    last_line: usize,
    nodes: usize,
    /// The key path of the map or list that is being read.
    path: String,
    anchors: HashMap<usize, Node>,
    faults: Vec<Fault>,
}

impl<'t> Builder<'t> {
    fn document(&mut self) -> Result<Option<Node>, Fault> {
        let mut root = None;
        loop {
            let (event, span) = self.next()?;
            let at = self.position(span);
            match event {
                Event::StreamEnd => return Ok(root),
                Event::Nothing | Event::StreamStart | Event::DocumentEnd => {}
                Event::DocumentStart(_) if root.is_some() => {
                    return Err(at
                        .fault("", "a second YAML document starts here")
                        .hint("a config is one document: remove the `---`"));
                }
                Event::DocumentStart(_) => {}
                event => root = Some(self.node(event, at, 0)?),
            }
        }
    }

    fn next(&mut self) -> Result<(Event<'t>, Span), Fault> {
        match self.parser.next_event() {
            Some(Ok(event)) => Ok(event),
            Some(Err(error)) => Err(self.syntax(&error)),
            None => Err(Position { line: self.last_line, column: 1 }.fault("", "the text ends too early")),
        }
    }

    fn position(&self, span: Span) -> Position {
        Position { line: span.start.line().clamp(1, self.last_line), column: span.start.col() + 1 }
    }

    fn syntax(&self, error: &ScanError) -> Fault {
        let at = self.position(Span::empty(*error.marker()));
        at.fault("", format!("not valid YAML: {}", shown(error.info())))
    }

    fn node(&mut self, event: Event<'t>, at: Position, depth: usize) -> Result<Node, Fault> {
        self.count(1, depth, at)?;
        let (value, anchor) = match event {
            Event::Scalar(text, style, anchor, tag) => {
                (self.scalar(&text, style, tag.as_deref(), at), anchor)
            }
            Event::SequenceStart(anchor, tag) => {
                self.refuse_tag(tag.as_deref(), at);
                (Value::List(self.list(depth)?), anchor)
            }
            Event::MappingStart(anchor, tag) => {
                self.refuse_tag(tag.as_deref(), at);
                (Value::Map(self.map(depth)?), anchor)
            }
            Event::Alias(anchor) => return self.alias(anchor, at, depth),
            _ => return Err(at.fault("", "a value is missing here")),
        };
        let node = Node { at, value };
        if anchor != 0 {
            self.anchors.insert(anchor, node.clone());
        }
        Ok(node)
    }

    fn list(&mut self, depth: usize) -> Result<Vec<Item>, Fault> {
        let mut items = Vec::new();
        loop {
            let (event, span) = self.next()?;
            if event == Event::SequenceEnd {
                return Ok(items);
            }
            let above = self.enter(format!("{}[{}]", self.path, items.len()));
            let node = self.node(event, self.position(span), depth + 1)?;
            self.path = above;
            items.push(Item { index: items.len(), node });
        }
    }

    fn map(&mut self, depth: usize) -> Result<Vec<Entry>, Fault> {
        let mut entries: Vec<Entry> = Vec::new();
        let mut seen: HashMap<String, usize> = HashMap::new();
        loop {
            let (event, span) = self.next()?;
            if event == Event::MappingEnd {
                return Ok(entries);
            }
            let at = self.position(span);
            let key = match &event {
                Event::Scalar(text, ..) => Some(text.clone().into_owned()),
                _ => None,
            };
            self.node(event, at, depth + 1)?;
            let path = key.as_ref().map_or_else(|| self.path.clone(), |key| join(&self.path, key));
            let above = self.enter(path.clone());
            let (event, span) = self.next()?;
            let node = self.node(event, self.position(span), depth + 1)?;
            self.path = above;
            let Some(key) = key else {
                self.faults.push(at.fault(&path, "a key is a plain word"));
                continue;
            };
            if let Some(first) = seen.get(&key) {
                let fault = at.fault(&path, format!("the key is given twice, first on line {first}"));
                self.faults.push(fault.hint("keep one of them"));
                continue;
            }
            seen.insert(key.clone(), at.line);
            entries.push(Entry { key, at, node });
        }
    }

    /// Makes `path` the current one; the one before it is returned, to be put back.
    fn enter(&mut self, path: String) -> String {
        std::mem::replace(&mut self.path, path)
    }

    /// The value an alias stands for, at the place of the anchor: that is where a fault in it has to be mended.
    fn alias(&mut self, anchor: usize, at: Position, depth: usize) -> Result<Node, Fault> {
        let Some(node) = self.anchors.get(&anchor) else {
            return Err(at.fault("", "the alias stands inside the value it stands for"));
        };
        let (nodes, height) = node.size();
        let node = node.clone();
        self.count(nodes, depth + height, at)?;
        Ok(node)
    }

    fn count(&mut self, nodes: usize, depth: usize, at: Position) -> Result<(), Fault> {
        self.nodes += nodes;
        if depth > MAX_DEPTH {
            return Err(at.fault("", format!("nested deeper than {MAX_DEPTH} levels")));
        }
        if self.nodes > MAX_NODES {
            return Err(at.fault("", format!("more than {MAX_NODES} keys and values")));
        }
        Ok(())
    }

    fn scalar(&mut self, text: &str, style: ScalarStyle, tag: Option<&Tag>, at: Position) -> Value {
        if tag.is_some_and(|tag| tag.is_yaml_core_schema() && tag.suffix == "str") {
            return Value::Text(text.to_owned());
        }
        self.refuse_tag(tag, at);
        if style == ScalarStyle::Plain { plain(text) } else { Value::Text(text.to_owned()) }
    }

    fn refuse_tag(&mut self, tag: Option<&Tag>, at: Position) {
        if let Some(tag) = tag {
            let fault =
                at.fault(&self.path, format!("the tag `{}` means nothing here", shown(&tag.to_string())));
            self.faults.push(fault.hint("remove it"));
        }
    }
}

/// A plain scalar after the core schema (YAML 1.2.2 section 10.3.2).
fn plain(text: &str) -> Value {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Value::Null,
        "true" | "True" | "TRUE" => return Value::Bool(true),
        "false" | "False" | "FALSE" => return Value::Bool(false),
        _ => {}
    }
    let radix = |prefix, radix| text.strip_prefix(prefix).and_then(|t| i128::from_str_radix(t, radix).ok());
    let decimal = || text.parse::<i128>().ok();
    if let Some(integer) = radix("0x", 16).or_else(|| radix("0o", 8)).or_else(decimal) {
        return Value::Integer(integer);
    }
    // Rust reads `inf`, `nan` and `infinity` as numbers too; YAML does not.
    let numeric = text.bytes().all(|b| b.is_ascii_digit() || matches!(b, b'.' | b'e' | b'E' | b'+' | b'-'));
    match text.parse::<f64>() {
        Ok(float) if numeric => Value::Float(float),
        _ => Value::Text(text.to_owned()),
    }
}

impl Node {
    /// Nodes in this tree, and the levels below its root.
    fn size(&self) -> (usize, usize) {
        let below = |nodes: &mut dyn Iterator<Item = &Self>| {
            nodes.fold((1, 0), |(sum, height), node| {
                let (nodes, below) = node.size();
                (sum + nodes, height.max(below + 1))
            })
        };
        match &self.value {
            Value::List(items) => below(&mut items.iter().map(|item| &item.node)),
            // A key counts as a node, as it does when it is read.
            Value::Map(entries) => {
                let (nodes, height) = below(&mut entries.iter().map(|entry| &entry.node));
                (nodes + entries.len(), height)
            }
            _ => (1, 0),
        }
    }

    /// The tree as JSON, positions and dropped elements left out.
    pub(crate) fn to_json(&self) -> serde_json::Value {
        use serde_json::Value as Json;
        match &self.value {
            Value::Null => Json::Null,
            Value::Bool(b) => Json::Bool(*b),
            Value::Integer(i) => match (u64::try_from(*i), i64::try_from(*i)) {
                (Ok(u), _) => u.into(),
                (_, Ok(i)) => i.into(),
                _ => Json::String(i.to_string()),
            },
            Value::Float(f) => (*f).into(),
            Value::Text(t) => t.as_str().into(),
            Value::List(items) => items.iter().map(|item| item.node.to_json()).collect(),
            Value::Map(entries) => {
                Json::Object(entries.iter().map(|entry| (entry.key.clone(), entry.node.to_json())).collect())
            }
        }
    }
}

impl Position {
    /// A fault here. `path` is a key path, or empty.
    pub(crate) fn fault(self, path: &str, message: impl Into<String>) -> Fault {
        // Types that were handed a bad text quote it as it is.
        let message = printable(&message.into());
        Fault { line: self.line, column: self.column, path: path.to_owned(), message, hint: None }
    }
}
