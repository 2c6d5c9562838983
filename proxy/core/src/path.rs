//! NSM's path: one segment for each hop of a connection, each with that hop's own id.
//!
//! Everything here takes what a peer sent, so nothing here may panic on it.

use std::{collections::BTreeMap, time::SystemTime};

use carrick_proto::UnknownFields;

/// Most segments we carry. Five NSM clusters in a chain make 36; what is longer is a loop.
pub const MAX_SEGMENTS: usize = 64;
/// Longest segment name or id, in octets: a Kubernetes object name has 253, and we index by it.
pub const MAX_TEXT: usize = 512;

/// One hop.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Segment {
    /// Process name, unique across all domains.
    pub name: String,
    /// The hop's id of the connection.
    pub id: String,
    /// The hop's token (JWT); carried, not read here.
    pub token: String,
    /// When the hop's token, and with it its part of the lease, ends.
    pub expires: Option<SystemTime>,
    /// Measurements of the hop; carried, not read here.
    pub metrics: BTreeMap<String, String>,
    /// What else the hop said; carried.
    pub unknown_fields: UnknownFields,
}

/// All hops, and the one that speaks.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Path {
    /// Which segment is the sender's.
    pub index: u32,
    /// From the client to the last hop known.
    pub segments: Vec<Segment>,
    /// What else was said of the path; carried.
    pub unknown_fields: UnknownFields,
}

/// What the update made of our segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hop {
    /// The path was empty: ours is the first segment.
    First,
    /// The current segment was ours already.
    Own,
    /// The next segment was ours, from an earlier request.
    Reused,
    /// The next segment was another hop's: it is ours now, with a fresh id.
    Renamed,
    /// There was no next segment: ours was appended, with a fresh id.
    Appended,
}

/// Why a path is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PathFault {
    /// A request that reaches a server has at least the segment of its sender.
    #[error("the path is empty: the first segment is the caller's own")]
    Empty,
    /// The path is longer than any real one.
    #[error("the path has {0} segments, at most {MAX_SEGMENTS} are carried")]
    TooLong(usize),
    /// The index points behind the last segment.
    #[error("path index {index} with {length} segments")]
    Index {
        /// What the peer sent.
        index: u32,
        /// How many segments it sent.
        length: usize,
    },
    /// The connection's id is not the id of its sender's segment.
    #[error("the connection id is not the id of path segment {index}")]
    IdMismatch {
        /// Which segment.
        index: u32,
    },
    /// A name or id is empty or too long.
    #[error("path segment {index}: name and id have 1 to {MAX_TEXT} characters")]
    Text {
        /// Which segment.
        index: usize,
    },
}

impl Path {
    /// The path a client begins with: its own segment.
    pub fn begin(name: &str, id: &str, expires: SystemTime) -> Self {
        let own = Segment { expires: Some(expires), ..Segment::new(name, id) };
        Self { index: 0, segments: vec![own], ..Self::default() }
    }

    /// Whether a peer's path can be worked with at all.
    pub fn check(&self) -> Result<(), PathFault> {
        let length = self.segments.len();
        if length > MAX_SEGMENTS {
            return Err(PathFault::TooLong(length));
        }
        if self.current().is_none() && !(self.index == 0 && length == 0) {
            return Err(PathFault::Index { index: self.index, length });
        }
        let fits = |text: &str| (1..=MAX_TEXT).contains(&text.len());
        match self.segments.iter().position(|s| !fits(&s.name) || !fits(&s.id)) {
            Some(index) => Err(PathFault::Text { index }),
            None => Ok(()),
        }
    }

    /// The segment of the sender.
    pub fn current(&self) -> Option<&Segment> {
        self.segments.get(self.position())
    }

    /// The segment after the sender's: the receiver's own, when it has seen the connection before.
    pub fn next(&self) -> Option<&Segment> {
        self.segments.get(self.position().checked_add(1)?)
    }

    /// Moves the path on to the process `own`: NSM's updatepath. `id` is the connection's id as it came, `fresh` the id
    /// our segment gets where it is new. Returns what was done; our segment is the current one then.
    ///
    /// The path is unchanged when a fault is returned.
    pub fn advance(&mut self, own: &str, id: &str, fresh: &str) -> Result<Hop, PathFault> {
        self.check()?;
        let Some(current) = self.current() else {
            let id = if id.is_empty() { fresh } else { id };
            self.segments.push(Segment::new(own, id));
            return Ok(Hop::First);
        };
        if current.name == own {
            return Ok(Hop::Own);
        }
        if current.id != id {
            return Err(PathFault::IdMismatch { index: self.index });
        }
        let next = self.position() + 1;
        let hop = match self.segments.get_mut(next) {
            Some(segment) if segment.name == own => Hop::Reused,
            Some(segment) => {
                own.clone_into(&mut segment.name);
                fresh.clone_into(&mut segment.id);
                Hop::Renamed
            }
            None if next >= MAX_SEGMENTS => return Err(PathFault::TooLong(next + 1)),
            None => {
                self.segments.push(Segment::new(own, fresh));
                Hop::Appended
            }
        };
        self.index += 1;
        Ok(hop)
    }

    /// The way back: the current segment is the caller's again. Returns the caller's id of the connection.
    pub fn restore(&mut self, index: u32) -> Option<&str> {
        self.index = index;
        self.current().map(|s| s.id.as_str())
    }

    /// The current segment, to fill in.
    pub fn current_mut(&mut self) -> Option<&mut Segment> {
        let position = self.position();
        self.segments.get_mut(position)
    }

    /// Puts the token of the hop behind the current one, which answers, into its segment; that part of the lease lasts no
    /// longer than the token.
    pub fn set_next_token(&mut self, token: String, expires: SystemTime) {
        let next = self.position().checked_add(1);
        if let Some(segment) = next.and_then(|next| self.segments.get_mut(next)) {
            segment.token = token;
            segment.expires = Some(segment.expires.map_or(expires, |end| end.min(expires)));
        }
    }

    /// When the first of all hops' parts of the lease ends.
    pub fn expires(&self) -> Option<SystemTime> {
        self.segments.iter().filter_map(|s| s.expires).min()
    }

    fn position(&self) -> usize {
        usize::try_from(self.index).unwrap_or(usize::MAX)
    }
}

impl Segment {
    fn new(name: &str, id: &str) -> Self {
        Self { name: name.to_owned(), id: id.to_owned(), ..Self::default() }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn path(index: u32, segments: &[(&str, &str)]) -> Path {
        let segments = segments.iter().map(|(n, i)| Segment::new(n, i)).collect();
        Path { index, segments, ..Path::default() }
    }

    #[test]
    fn a_hop_appends_itself_and_is_found_again_on_refresh() {
        let mut p = path(0, &[("client", "c")]);
        assert_eq!(p.advance("gw", "c", "1"), Ok(Hop::Appended));
        assert_eq!(p, path(1, &[("client", "c"), ("gw", "1")]));
        assert_eq!(p.restore(0), Some("c"));
        assert_eq!(p.advance("gw", "c", "2"), Ok(Hop::Reused));
        assert_eq!(p, path(1, &[("client", "c"), ("gw", "1")]));
    }

    #[test]
    fn another_hops_segment_is_renamed_and_what_follows_stays() {
        let mut p = path(0, &[("client", "c"), ("old", "o"), ("last", "l")]);
        assert_eq!(p.advance("gw", "c", "1"), Ok(Hop::Renamed));
        assert_eq!(p, path(1, &[("client", "c"), ("gw", "1"), ("last", "l")]));
    }

    #[test]
    fn an_empty_path_begins_with_us_and_our_own_segment_stays() {
        let mut p = Path::default();
        assert_eq!(p.advance("gw", "", "1"), Ok(Hop::First));
        assert_eq!(p, path(0, &[("gw", "1")]));
        assert_eq!(p.advance("gw", "whatever", "2"), Ok(Hop::Own));
        assert_eq!(p, path(0, &[("gw", "1")]));
    }

    #[test]
    fn bad_paths_have_a_name() {
        assert_eq!(path(0, &[("a", "x")]).advance("gw", "y", "1"), Err(PathFault::IdMismatch { index: 0 }));
        let behind = path(1, &[("a", "x")]).advance("gw", "x", "1");
        assert_eq!(behind, Err(PathFault::Index { index: 1, length: 1 }));
        let far = path(u32::MAX, &[]).advance("gw", "x", "1");
        assert_eq!(far, Err(PathFault::Index { index: u32::MAX, length: 0 }));
        assert_eq!(path(0, &[("", "x")]).advance("gw", "x", "1"), Err(PathFault::Text { index: 0 }));
        let long = path(0, &[("a", "x"); MAX_SEGMENTS + 1]).advance("gw", "x", "1");
        assert_eq!(long, Err(PathFault::TooLong(65)));
        let full = path(63, &[("a", "x"); MAX_SEGMENTS]).advance("gw", "x", "1");
        assert_eq!(full, Err(PathFault::TooLong(65)));
    }

    prop_compose! {
        fn any_path()(
            index in prop_oneof![0u32..6, Just(u32::MAX)],
            segments in prop::collection::vec(("[ab]{0,1}|gw", "[xy]{0,1}"), 0..5),
        ) -> Path {
            let segments = segments.iter().map(|(n, i)| Segment::new(n, i)).collect();
            Path { index, segments, ..Path::default() }
        }
    }

    proptest! {
        /// Whatever a peer sends: no panic, no other hop's segment lost, moved or changed but the one we take over, and a second
        /// pass changes nothing more (a refresh keeps every id).
        #[test]
        fn advancing_touches_our_segment_only_and_is_idempotent(before in any_path(), id in "[xy]{0,1}") {
            let mut after = before.clone();
            let Ok(hop) = after.advance("gw", &id, "fresh") else {
                prop_assert_eq!(after, before);
                return Ok(());
            };
            let at = after.index as usize;
            prop_assert_eq!(after.current().map(|s| s.name.as_str()), Some("gw"));
            prop_assert!(after.segments.len() >= before.segments.len());
            for (i, segment) in before.segments.iter().enumerate() {
                prop_assert!(i == at || &after.segments[i] == segment);
            }
            if matches!(hop, Hop::Own | Hop::Reused) {
                prop_assert_eq!(&after.segments, &before.segments);
            }
            let mut again = after.clone();
            let caller = again.restore(before.index).map(str::to_owned).unwrap_or_default();
            let second = again.advance("gw", &caller, "other");
            prop_assert!(matches!(second, Ok(Hop::Own | Hop::Reused)), "{:?}", second);
            prop_assert_eq!(again, after);
        }
    }
}
