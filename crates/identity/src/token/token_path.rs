//! The path of a registration: the tokens of all hops, in one header.
//!
//! The header is a JSON object with `Index` and `PathSegments`, an array of `{"token": …}`. Go reads keys in any case
//! and the last of several wins, so both hold here too. The index is the sender's; each server moves it on by one
//! ([`TokenPath::advance`]) and back for its answer ([`TokenPath::restore`]).

use std::fmt;

use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{IgnoredAny, MapAccess, SeqAccess, Visitor},
    ser::SerializeStruct,
};
use serde_json::error::Category;

use super::MAX_TOKEN;

/// Most tokens of one path, as many as a connection's path has segments: what is longer is a loop.
pub const MAX_TOKENS: usize = 64;
/// Most octets of the header. A header list has at most 256 KiB, and a path of 64 real tokens has 30.
pub const MAX_PATH_HEADER: usize = 192 * 1024;

/// The tokens of a registration, from the registrant's on.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TokenPath {
    index: u32,
    tokens: Vec<String>,
}

/// Why a path is refused. The sender's fault.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TokenPathError {
    /// The header is too large to be one.
    #[error("the `path` header has {0} octets, at most {MAX_PATH_HEADER} are taken")]
    HeaderTooLong(usize),
    /// The header is not what NSM sends.
    #[error("the `path` header is not a path: {what} error at column {column}")]
    Json {
        /// `syntax`, `data` or `end of text`.
        what: &'static str,
        /// Where.
        column: usize,
    },
    /// The path is longer than any real one.
    #[error("the `path` header has more than {MAX_TOKENS} segments")]
    TooManyTokens,
    /// A token is too large or not text of a token.
    #[error("the token of segment {0} of the `path` header is no token")]
    Token(usize),
    /// The index points behind the last segment.
    #[error("index {index} of the `path` header with {length} segments")]
    Index {
        /// What the peer sent.
        index: u32,
        /// How many segments it sent.
        length: usize,
    },
}

impl TokenPath {
    /// The path in a header's text.
    pub fn parse(header: &[u8]) -> Result<Self, TokenPathError> {
        if header.len() > MAX_PATH_HEADER {
            return Err(TokenPathError::HeaderTooLong(header.len()));
        }
        let path: Self = serde_json::from_slice(header).map_err(TokenPathError::json)?;
        if path.tokens.len() > MAX_TOKENS {
            return Err(TokenPathError::TooManyTokens);
        }
        // What is ASCII without control characters goes into a header again as it is.
        let fits = |token: &String| token.len() <= MAX_TOKEN && token.bytes().all(|b| b.is_ascii_graphic());
        match path.tokens.iter().position(|token| !fits(token)) {
            Some(at) => Err(TokenPathError::Token(at)),
            None => Ok(path),
        }
    }

    /// The text of the header.
    pub fn to_header(&self) -> String {
        // Numbers and texts into memory: there is nothing that could fail.
        serde_json::to_string(self).unwrap_or_default()
    }

    /// Whose segment is the current one.
    pub fn index(&self) -> u32 {
        self.index
    }

    /// All tokens, from the registrant's on.
    pub fn tokens(&self) -> &[String] {
        &self.tokens
    }

    /// The tokens up to and with the current one: what a server's policies look at.
    pub fn left(&self) -> &[String] {
        let end = usize::try_from(self.index).unwrap_or(usize::MAX).saturating_add(1).min(self.tokens.len());
        &self.tokens[..end]
    }

    /// Moves the path on to this server: `peer` is the caller's token of this call, `own` ours for the caller. Returns
    /// the caller's index, for [`restore`](Self::restore). The path is unchanged when an error is returned.
    pub fn advance(&mut self, peer: &str, own: &str) -> Result<u32, TokenPathError> {
        if self.tokens.is_empty() {
            self.tokens = vec![peer.to_owned(), own.to_owned()];
            self.index = 1;
            return Ok(0);
        }
        let length = self.tokens.len();
        let bad = TokenPathError::Index { index: self.index, length };
        let caller = usize::try_from(self.index).map_err(|_| bad.clone())?;
        let current = self.tokens.get_mut(caller).ok_or(bad)?;
        if caller + 1 >= MAX_TOKENS {
            return Err(TokenPathError::TooManyTokens);
        }
        peer.clone_into(current);
        match self.tokens.get_mut(caller + 1) {
            Some(ours) => own.clone_into(ours),
            None => self.tokens.push(own.to_owned()),
        }
        self.index += 1;
        Ok(self.index - 1)
    }

    /// The way back: the current segment is the caller's again.
    pub fn restore(&mut self, index: u32) {
        self.index = index;
    }
}

impl TokenPathError {
    /// Without the parser's own words, which quote the sender's.
    #[expect(clippy::needless_pass_by_value, reason = "for `map_err`")]
    fn json(fault: serde_json::Error) -> Self {
        let what = match fault.classify() {
            Category::Io | Category::Eof => "end of text",
            Category::Syntax => "syntax",
            Category::Data => "data",
        };
        Self::Json { what, column: fault.column() }
    }
}

/// Writes who passed a registration on into its `path_ids`: the caller before `index`, us at it. What was beyond the end is
/// appended.
pub fn update_path_ids(path_ids: &mut Vec<String>, index: u32, caller: &str, own: &str) {
    let index = usize::try_from(index).unwrap_or(usize::MAX);
    for (at, id) in [(index.saturating_sub(1), caller), (index, own)] {
        match path_ids.get_mut(at) {
            Some(there) => id.clone_into(there),
            None => path_ids.push(id.to_owned()),
        }
    }
}

impl Serialize for TokenPath {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Segment<'a> {
            token: &'a str,
        }
        let segments: Vec<_> = self.tokens.iter().map(|token| Segment { token }).collect();
        let mut object = serializer.serialize_struct("Path", 2)?;
        object.serialize_field("Index", &self.index)?;
        object.serialize_field("PathSegments", &segments)?;
        object.end()
    }
}

impl<'de> Deserialize<'de> for TokenPath {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(Object)
    }
}

struct Object;

impl<'de> Visitor<'de> for Object {
    type Value = TokenPath;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object with `Index` and `PathSegments`")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<TokenPath, A::Error> {
        let mut path = TokenPath::default();
        while let Some(key) = map.next_key::<String>()? {
            if key.eq_ignore_ascii_case("Index") {
                path.index = map.next_value::<Option<u32>>()?.unwrap_or_default();
            } else if key.eq_ignore_ascii_case("PathSegments") {
                path.tokens = map.next_value::<Option<Segments>>()?.map(|s| s.0).unwrap_or_default();
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(path)
    }
}

/// The array, read no further than one beyond the bound.
struct Segments(Vec<String>);

impl<'de> Deserialize<'de> for Segments {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Array;
        impl<'de> Visitor<'de> for Array {
            type Value = Segments;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an array of segments")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Segments, A::Error> {
                let mut tokens = Vec::new();
                while let Some(Segment(token)) = seq.next_element()? {
                    tokens.push(token);
                    if tokens.len() > MAX_TOKENS {
                        while seq.next_element::<IgnoredAny>()?.is_some() {}
                        break;
                    }
                }
                Ok(Segments(tokens))
            }
        }
        deserializer.deserialize_seq(Array)
    }
}

struct Segment(String);

impl<'de> Deserialize<'de> for Segment {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct One;
        impl<'de> Visitor<'de> for One {
            type Value = Segment;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a segment with a `token`")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Segment, A::Error> {
                let mut token = String::new();
                while let Some(key) = map.next_key::<String>()? {
                    if key.eq_ignore_ascii_case("token") {
                        token = map.next_value::<Option<String>>()?.unwrap_or_default();
                    } else {
                        map.next_value::<IgnoredAny>()?;
                    }
                }
                Ok(Segment(token))
            }
        }
        deserializer.deserialize_map(One)
    }
}
