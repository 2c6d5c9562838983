//! Who stands behind a call to register: its tokens, checked as NSM's registries check them.
//!
//! The caller's own token comes in the metadata, those of the hops before it in the `path` header. The caller's
//! certificate proves the caller and its token; the tokens before it are read and chained, no more can be done with
//! them. So the first one names the registrant *on the caller's word*, and what that word is good for is for
//! [`Claimant`] to say.

use std::time::SystemTime;

use carrick_identity::{
    Caller, Identity,
    token::{
        self, EXPIRES_KEY, MAX_LIFETIME, PATH_KEY, Presented, PresentedError, TOKEN_KEY, Token, TokenError,
        TokenPath, TokenPathError,
        policy::{self, Denial},
    },
};
use carrick_model::SpiffeId;
use carrick_registry_core::Claimant;
use tonic::{
    codegen::http::HeaderValue,
    metadata::{AsciiMetadataValue, MetadataMap},
};

/// The tokens of a call, checked.
#[derive(Debug)]
pub(crate) struct Chain {
    /// Who asks, and for whom.
    pub(crate) claimant: Claimant,
    /// When the first of the tokens ends that the caller and we made for this call.
    pub(crate) ends: SystemTime,
    path: TokenPath,
    /// Whose each token of the path is, up to ours.
    subjects: Vec<String>,
    callers_index: u32,
    own: SpiffeId,
}

/// Why the tokens of a call are not accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChainError {
    /// The `path` header is not one. The caller's fault.
    #[error(transparent)]
    Path(#[from] TokenPathError),
    /// The call has no token. The caller's fault: NSM's clients send one with each call.
    #[error("{0}: no sufficient privileges")]
    NoToken(#[from] PresentedError),
    /// A policy says no.
    #[error(transparent)]
    Denied(#[from] Denial),
    /// The first token does not name a registrant. The caller's fault, or that of a hop before it.
    #[error("the first token of the path names no SPIFFE ID: no sufficient privileges")]
    NoRegistrant,
    /// The token has ended, says what was sent beside it. The caller's fault.
    #[error("the caller's token has ended: no sufficient privileges")]
    Ended,
    /// We have no token for the caller. Our fault.
    #[error("no token can be made for the caller")]
    Own(#[from] TokenError),
}

impl Chain {
    /// Checks the tokens that came with a call from `caller`.
    pub(crate) fn check(
        identity: &Identity,
        caller: &Caller,
        metadata: &MetadataMap,
        now: SystemTime,
    ) -> Result<Self, ChainError> {
        let headers = metadata.as_ref();
        let all = |key| headers.get_all(key).into_iter().map(HeaderValue::as_bytes);
        let presented = Presented::read(all(TOKEN_KEY), all(EXPIRES_KEY))?;
        // Of several the last one counts, as in NSM.
        let mut path = all(PATH_KEY).next_back().map(TokenPath::parse).transpose()?.unwrap_or_default();
        let Token { jwt, expires } = caller.mint_token(identity, MAX_LIFETIME, now)?;
        let callers_index = path.advance(&presented.jwt, &jwt)?;
        let index = usize::try_from(path.index()).unwrap_or(usize::MAX);
        let claims = policy::on_request(path.left(), index, caller.certificate(), now)?;
        let subjects: Vec<String> = claims.into_iter().map(|claims| claims.sub).collect();
        let registrant = subjects.first().and_then(|first| SpiffeId::new(first).ok());
        let origin = registrant.ok_or(ChainError::NoRegistrant)?;
        let own = identity.id();
        let caller = caller.id().clone();
        let admin = caller == own;
        let ends = expires.min(presented.expires);
        if ends <= now {
            return Err(ChainError::Ended);
        }
        Ok(Self { claimant: Claimant { caller, origin, admin }, ends, path, subjects, callers_index, own })
    }

    /// Writes into the `path_ids` of an object who passed it on: the registrant first.
    pub(crate) fn sign(&self, path_ids: &mut Vec<String>) {
        let (caller, own) = (self.claimant.caller.to_string(), self.own.to_string());
        // A hop that did not write them leaves them to us: each is the subject of the token at its place.
        path_ids.extend(self.subjects.iter().skip(path_ids.len()).cloned());
        token::update_path_ids(path_ids, self.path.index(), &caller, &own);
        // Later registries compare the first one with the first token.
        if let Some(first) = path_ids.first_mut() {
            *first = self.claimant.origin.to_string();
        }
    }

    /// The tokens up to ours, for the next hop; ours is the current one.
    pub(crate) fn path(&self) -> &TokenPath {
        &self.path
    }

    /// Takes the tokens of the hops behind us from the answer of the next one.
    pub(crate) fn take_back(&mut self, path: Option<TokenPath>) {
        let ours = self.path.left().len();
        if let Some(path) = path.filter(|path| path.tokens().len() >= ours) {
            self.path = path;
        }
    }

    /// The `path` header of the answer: the caller's own index, with our token behind its own.
    pub(crate) fn answer(mut self) -> Option<AsciiMetadataValue> {
        self.path.restore(self.callers_index);
        AsciiMetadataValue::try_from(self.path.to_header()).ok()
    }
}
