//! Tokens and path headers that strangers send: an error or what was meant, and what is read is written the same.

use carrick_identity::token::{self, TokenPath, parse_expires, policy};

/// One input.
pub fn run(octets: &[u8]) {
    if let Ok(mut path) = TokenPath::parse(octets) {
        assert_eq!(TokenPath::parse(path.to_header().as_bytes()).as_ref(), Ok(&path));
        let _ = policy::tokens_chained(path.tokens());
        let before = path.clone();
        match path.advance("peer", "own") {
            Ok(index) => assert_eq!(path.left().len(), index as usize + 2),
            Err(_) => assert_eq!(path, before),
        }
    }
    let Ok(text) = std::str::from_utf8(octets) else { return };
    let _ = parse_expires(text);
    if let Ok(claims) = token::decode(text) {
        assert!(policy::tokens_valid(&[text]).is_ok());
        let _ = policy::tokens_expired(&[text], std::time::SystemTime::UNIX_EPOCH);
        assert!(claims.sub.len() <= text.len());
    }
}
