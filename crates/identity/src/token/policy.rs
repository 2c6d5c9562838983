//! NSM's default policies over the tokens of a path, as functions.
//!
//! Each gives the verdict that NSM's Rego of the same name gives. A server looks at the tokens from the client's up to
//! its own ([`on_request`]); a client looks at the whole path of the answer ([`on_answer`]). A denial's text ends in
//! `no sufficient privileges`, as NSM's does and as its users search for.
//!
//! | policy | what it wants |
//! |---|---|
//! | `tokens_valid` | every token is a JWT; no signature is looked at |
//! | `tokens_expired` | no token's `exp` is over, without leeway |
//! | `tokens_chained` | the `aud` of each token holds the `sub` of the next |
//! | `prev_token_signed` | the caller's token is signed by the key of the caller's TLS certificate |
//! | `next_token_signed` | the answerer's token is signed by the key of the answerer's TLS certificate |
//! | `client_allowed` | the name registered is new, or its first registrant's |
//! | `token_subject` | ours, not NSM's: a neighbour's token names the neighbour, not somebody else |

use std::{
    fmt,
    time::{Duration, SystemTime},
};

use crate::{
    certificate::PeerCertificate,
    token::{self, Claims, TokenError},
};

/// What a policy is called, in NSM and in logs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Policy {
    /// Every token is a JWT.
    TokensValid,
    /// No token is over.
    TokensExpired,
    /// Each token is meant for the next hop.
    TokensChained,
    /// The caller signed its token.
    PrevTokenSigned,
    /// The answerer signed its token.
    NextTokenSigned,
    /// The neighbour's token names the neighbour.
    TokenSubject,
    /// The name is the registrant's.
    ClientAllowed,
}

/// A policy says no.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("policy {policy}: {reason}: no sufficient privileges")]
pub struct Denial {
    /// Which policy.
    pub policy: Policy,
    /// Why.
    pub reason: Reason,
}

/// Why a policy says no.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Reason {
    /// A token cannot be read or verified. The sender's fault.
    #[error("the token of path segment {segment}: {fault}")]
    Token {
        /// Whose.
        segment: usize,
        /// What is wrong with it.
        fault: TokenError,
    },
    /// A token has ended: its sender was slow, or the clocks of the two hosts differ.
    #[error("the token of path segment {segment} ended {} s ago by our clock: compare the clocks", .ago.as_secs())]
    Expired {
        /// Whose.
        segment: usize,
        /// Since when.
        ago: Duration,
    },
    /// A token says no end, so it has ended.
    #[error("the token of path segment {segment} has no `exp`")]
    NoExpiry {
        /// Whose.
        segment: usize,
    },
    /// Two neighbours' tokens do not belong together: one was replayed from another path.
    #[error("the token of path segment {segment} is not meant for `{next}`, whose token follows")]
    Unchained {
        /// The first of the two.
        segment: usize,
        /// Whose token follows, shortened.
        next: String,
    },
    /// There is no such segment.
    #[error("the path has no segment of the neighbour")]
    NoSegment,
    /// The neighbour showed no certificate.
    #[error("the neighbour showed no certificate that a token could be verified with")]
    NoCertificate,
    /// The token of the neighbour names another one.
    #[error("the token of path segment {segment} is of `{subject}`, but its sender is `{sender}`")]
    Subject {
        /// Whose.
        segment: usize,
        /// Who it says it is, shortened.
        subject: String,
        /// Who sent it, by its certificate.
        sender: String,
    },
    /// The name belongs to another registrant.
    #[error("`{name}` is registered by another identity than `{registrant}`")]
    NotOwner {
        /// The name, shortened.
        name: String,
        /// Who wants it now, shortened.
        registrant: String,
    },
}

/// Every token decodes as a JWT.
pub fn tokens_valid<T: AsRef<str>>(tokens: &[T]) -> Result<(), Denial> {
    read(Policy::TokensValid, tokens).map(drop)
}

/// The `exp` of every token is in the future.
pub fn tokens_expired<T: AsRef<str>>(tokens: &[T], now: SystemTime) -> Result<(), Denial> {
    expired(&read(Policy::TokensExpired, tokens)?, now)
}

/// The `aud` of each token holds the `sub` of the next one. Fewer than two tokens are chained.
pub fn tokens_chained<T: AsRef<str>>(tokens: &[T]) -> Result<(), Denial> {
    if tokens.len() < 2 {
        return Ok(());
    }
    chained(&read(Policy::TokensChained, tokens)?)
}

/// What each token says, on the word of `policy` when one says nothing.
fn read<T: AsRef<str>>(policy: Policy, tokens: &[T]) -> Result<Vec<Claims>, Denial> {
    let read = |(segment, token): (usize, &T)| {
        token::decode(token.as_ref()).map_err(|fault| policy.denies(Reason::Token { segment, fault }))
    };
    tokens.iter().enumerate().map(read).collect()
}

fn expired(all: &[Claims], now: SystemTime) -> Result<(), Denial> {
    for (segment, claims) in all.iter().enumerate() {
        let Some(exp) = claims.exp else {
            return Err(Policy::TokensExpired.denies(Reason::NoExpiry { segment }));
        };
        if let Ok(ago) = now.duration_since(exp) {
            return Err(Policy::TokensExpired.denies(Reason::Expired { segment, ago }));
        }
    }
    Ok(())
}

fn chained(all: &[Claims]) -> Result<(), Denial> {
    for (segment, pair) in all.windows(2).enumerate() {
        let [before, this] = pair else { continue };
        if this.sub.is_empty() || !before.aud.contains(&this.sub) {
            let reason = Reason::Unchained { segment, next: shorten(&this.sub) };
            return Err(Policy::TokensChained.denies(reason));
        }
    }
    Ok(())
}

/// The token before the one at `index` is signed by the caller.
pub fn prev_token_signed<T: AsRef<str>>(
    tokens: &[T],
    index: usize,
    caller: Option<&PeerCertificate>,
) -> Result<(), Denial> {
    signed(Policy::PrevTokenSigned, tokens, index.checked_sub(1), caller).map(drop)
}

/// The token after the one at `index` is signed by the answerer.
pub fn next_token_signed<T: AsRef<str>>(
    tokens: &[T],
    index: usize,
    answerer: Option<&PeerCertificate>,
) -> Result<(), Denial> {
    signed(Policy::NextTokenSigned, tokens, index.checked_add(1), answerer).map(drop)
}

/// The name `name` is new (`registered` is nothing), or the first of the identities it was registered under is
/// `registrant`: the subject of the first token of the path.
pub fn client_allowed(name: &str, registered: Option<&[String]>, registrant: &str) -> Result<(), Denial> {
    match registered {
        None => Ok(()),
        Some([first, ..]) if first == registrant => Ok(()),
        Some(_) => {
            let (name, registrant) = (shorten(name), shorten(registrant));
            Err(Policy::ClientAllowed.denies(Reason::NotOwner { name, registrant }))
        }
    }
}

/// What a server checks of the left part of a path: `tokens` from the client's to its own at `index`, the last. Tells what
/// each of them says.
pub fn on_request<T: AsRef<str>>(
    tokens: &[T],
    index: usize,
    caller: Option<&PeerCertificate>,
    now: SystemTime,
) -> Result<Vec<Claims>, Denial> {
    let all = common(tokens, now)?;
    let claims = signed(Policy::PrevTokenSigned, tokens, index.checked_sub(1), caller)?;
    subject(index.saturating_sub(1), &claims, caller)?;
    Ok(all)
}

/// What a client checks of the path of an answer, itself at `index`.
pub fn on_answer<T: AsRef<str>>(
    tokens: &[T],
    index: usize,
    answerer: Option<&PeerCertificate>,
    now: SystemTime,
) -> Result<(), Denial> {
    common(tokens, now)?;
    let claims = signed(Policy::NextTokenSigned, tokens, index.checked_add(1), answerer)?;
    subject(index.saturating_add(1), &claims, answerer)
}

fn common<T: AsRef<str>>(tokens: &[T], now: SystemTime) -> Result<Vec<Claims>, Denial> {
    let all = read(Policy::TokensValid, tokens)?;
    expired(&all, now)?;
    chained(&all)?;
    Ok(all)
}

fn signed<T: AsRef<str>>(
    policy: Policy,
    tokens: &[T],
    segment: Option<usize>,
    neighbour: Option<&PeerCertificate>,
) -> Result<Claims, Denial> {
    let at = segment.and_then(|segment| Some((segment, tokens.get(segment)?)));
    let (segment, token) = at.ok_or_else(|| policy.denies(Reason::NoSegment))?;
    let certificate = neighbour.ok_or_else(|| policy.denies(Reason::NoCertificate))?;
    certificate.verify(token.as_ref()).map_err(|fault| policy.denies(Reason::Token { segment, fault }))
}

/// NSM takes a token that its sender signed under any name; whoever reads that name later would take it for proven.
fn subject(segment: usize, claims: &Claims, neighbour: Option<&PeerCertificate>) -> Result<(), Denial> {
    let sender = neighbour.map(|certificate| certificate.id().to_string()).unwrap_or_default();
    if claims.sub == sender {
        return Ok(());
    }
    Err(Policy::TokenSubject.denies(Reason::Subject { segment, subject: shorten(&claims.sub), sender }))
}

/// Enough of a stranger's text to recognise it, escaped.
fn shorten(text: &str) -> String {
    const SHOWN: usize = 80;
    text.chars().take(SHOWN).collect::<String>().escape_debug().to_string()
}

impl Policy {
    fn denies(self, reason: Reason) -> Denial {
        Denial { policy: self, reason }
    }

    /// The name, as NSM's file of the policy has it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::TokensValid => "tokens_valid",
            Self::TokensExpired => "tokens_expired",
            Self::TokensChained => "tokens_chained",
            Self::PrevTokenSigned => "prev_token_signed",
            Self::NextTokenSigned => "next_token_signed",
            Self::TokenSubject => "token_subject",
            Self::ClientAllowed => "client_allowed",
        }
    }
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
