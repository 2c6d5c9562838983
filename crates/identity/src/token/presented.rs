//! The token that a caller sends with a call.

use std::time::SystemTime;

use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use super::{EXPIRES_KEY, MAX_TOKEN, TOKEN_KEY};

/// Most octets of an expiry: RFC 3339 with nanoseconds and an offset has 35.
const MAX_EXPIRES: usize = 64;

/// A caller's token and the expiry beside it; neither is checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Presented {
    /// The JWT.
    pub jwt: String,
    /// When the caller says that it ends.
    pub expires: SystemTime,
}

/// Why a call carries no token that could be used. The caller's fault.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PresentedError {
    /// A key is missing or comes again.
    #[error("the call has {count} values of `{key}`, one is expected")]
    Count {
        /// Which key.
        key: &'static str,
        /// How often it is there.
        count: usize,
    },
    /// The token is not text of a token's size.
    #[error("the value of `{TOKEN_KEY}` is not a token")]
    Token,
    /// The expiry is not a time.
    #[error("the value of `{EXPIRES_KEY}` is not an RFC 3339 time")]
    Expires,
}

impl Presented {
    /// Reads all values of [`TOKEN_KEY`] and of [`EXPIRES_KEY`] of a call: one of each.
    pub fn read<'a>(
        tokens: impl IntoIterator<Item = &'a [u8]>,
        expires: impl IntoIterator<Item = &'a [u8]>,
    ) -> Result<Self, PresentedError> {
        let token = only(TOKEN_KEY, tokens)?;
        let expires = only(EXPIRES_KEY, expires)?;
        let text = |value: &'a [u8]| std::str::from_utf8(value).ok().filter(|text| text.is_ascii());
        let jwt = text(token).filter(|jwt| jwt.len() <= MAX_TOKEN).ok_or(PresentedError::Token)?.to_owned();
        let expires = text(expires).and_then(parse_expires).ok_or(PresentedError::Expires)?;
        Ok(Self { jwt, expires })
    }
}

fn only<'a>(
    key: &'static str,
    values: impl IntoIterator<Item = &'a [u8]>,
) -> Result<&'a [u8], PresentedError> {
    let mut values = values.into_iter();
    match (values.next(), values.next()) {
        (Some(value), None) => Ok(value),
        (first, second) => {
            let count = usize::from(first.is_some()) + usize::from(second.is_some()) + values.count();
            Err(PresentedError::Count { key, count })
        }
    }
}

/// A time as [`EXPIRES_KEY`] has it: RFC 3339 in UTC, with nanoseconds where there are any.
pub fn format_expires(at: SystemTime) -> String {
    let at = OffsetDateTime::from(at);
    // Only years after 9999 cannot be written, and no certificate lives so long.
    at.format(&Rfc3339).unwrap_or_else(|_| "9999-12-31T23:59:59Z".to_owned())
}

/// The time of an RFC 3339 text, with any offset. What lies before 1970 is no expiry.
pub fn parse_expires(text: &str) -> Option<SystemTime> {
    if text.len() > MAX_EXPIRES {
        return None;
    }
    let at = OffsetDateTime::parse(text, &Rfc3339).ok()?;
    (at >= OffsetDateTime::UNIX_EPOCH).then(|| SystemTime::from(at))
}
