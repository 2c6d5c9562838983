//! Tokens for one peer.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use carrick_model::SpiffeId;
use parking_lot::Mutex;

use super::{Token, TokenError, exp_of};
use crate::svid::Svid;

/// Makes our tokens for one peer. Those of one second say the same, for `exp` counts seconds, so the last one is kept: it costs
/// the peer no second look either. Clones share it.
#[derive(Debug, Clone)]
pub struct Minter {
    audience: SpiffeId,
    last: Arc<Mutex<Option<Minted>>>,
}

#[derive(Debug)]
struct Minted {
    by: Arc<Svid>,
    exp: u64,
    jwt: String,
}

impl Minter {
    /// Makes tokens for `audience`.
    pub fn new(audience: SpiffeId) -> Self {
        Self { audience, last: Arc::default() }
    }

    /// A token signed by the key of `by`, good for `max_lifetime` from `now` on and no longer than that SVID.
    pub fn mint(&self, by: &Arc<Svid>, max_lifetime: Duration, now: SystemTime) -> Result<Token, TokenError> {
        let expires = by.token_end(max_lifetime, now);
        let exp = exp_of(expires);
        let same = |last: &&Minted| last.exp == exp && Arc::ptr_eq(&last.by, by);
        let known = self.last.lock().as_ref().filter(same).map(|last| last.jwt.clone());
        if let Some(jwt) = known {
            return Ok(Token { jwt, expires });
        }
        let token = by.mint_token(&self.audience, max_lifetime, now)?;
        *self.last.lock() = Some(Minted { by: Arc::clone(by), exp, jwt: token.jwt.clone() });
        Ok(token)
    }
}
