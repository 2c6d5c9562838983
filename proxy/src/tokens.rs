//! NSM's tokens on calls: one goes out with every call that we make, and those of a path that comes in are checked.
//!
//! Outgoing: a [`TokenChannel`] puts a token for the peer into the metadata of each call, signed by the SVID that its
//! connection was made with; a request's own path segment holds the same one. Incoming: [`OwnTokens::admit`] does what
//! NSM's `updatetoken` and `authorize` do, in this order: the caller's token goes into the caller's segment, a fresh one of
//! ours is made for ours, and the policies look at everything up to it.

use std::{
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, SystemTime},
};

use carrick_identity::{
    Caller, Identity, PeerCertificate, Svid,
    token::{
        EXPIRES_KEY, MAX_LIFETIME, Minter, Presented, PresentedError, TOKEN_KEY, Token, TokenError,
        format_expires,
        policy::{self, Denial},
    },
};
use carrick_proto::connection::{Connection, Path as WirePath};
use carrick_proxy_core::path::{Path, PathFault};
use http::HeaderValue;
use tonic::{Request, body::Body, metadata::MetadataMap, transport::Channel};
use tower::Service;

/// gRPC calls on one connection to a peer, each with a token of ours.
#[derive(Clone)]
pub struct TokenChannel {
    channel: Channel,
    shown: Arc<Svid>,
    peer: Arc<PeerCertificate>,
    tokens: Minter,
    made: SystemTime,
}

impl TokenChannel {
    /// `channel` was made with the SVID `shown` to a peer that proved itself with `peer`.
    pub(crate) fn new(channel: Channel, shown: Arc<Svid>, peer: PeerCertificate, made: SystemTime) -> Self {
        let tokens = Minter::new(peer.id().clone());
        Self { channel, shown, peer: Arc::new(peer), tokens, made }
    }

    /// What the peer proved itself with.
    pub fn peer(&self) -> &PeerCertificate {
        &self.peer
    }

    /// Whether tokens made here still last: our SVID is the current one, and the peer's certificate has half of what it had
    /// when the connection was made. A connection that is not fresh is good for what runs on it, and the next call
    /// wants a new one.
    pub(crate) fn is_fresh(&self, identity: &Identity, now: SystemTime) -> bool {
        let left = self.peer.not_after().duration_since(now).unwrap_or_default();
        let whole = self.peer.not_after().duration_since(self.made).unwrap_or_default();
        Arc::ptr_eq(&self.shown, &identity.current()) && left >= whole / 2
    }

    /// A token for the peer.
    fn mint(&self, lifetime: Duration) -> Result<Token, TokenError> {
        let token = self.tokens.mint(&self.shown, lifetime.min(MAX_LIFETIME), SystemTime::now())?;
        Ok(token.capped(self.peer.not_after()))
    }

    /// A message about `connection`, with one token in its metadata and in our segment of the path, as long-lived as the
    /// part of the lease that we ask for there.
    pub(crate) fn sign<T>(
        &self,
        mut message: T,
        path: impl FnOnce(&mut T) -> Option<&mut WirePath>,
    ) -> Result<Request<T>, TokenError> {
        let own = path(&mut message).and_then(|path| {
            let index = usize::try_from(path.index).ok()?;
            path.path_segments.get_mut(index)
        });
        let asked = own.as_ref().and_then(|own| SystemTime::try_from(own.expires?).ok());
        let lifetime = asked.and_then(|end| end.duration_since(SystemTime::now()).ok());
        let token = self.mint(lifetime.unwrap_or(MAX_LIFETIME))?;
        let headers = values(&token);
        if let Some(own) = own {
            own.expires = Some(token.expires.into());
            own.token = token.jwt;
        }
        let mut request = Request::new(message);
        if let Some([jwt, expires]) = headers {
            let metadata = std::mem::take(request.metadata_mut());
            let mut metadata = metadata.into_headers();
            metadata.insert(TOKEN_KEY, jwt);
            metadata.insert(EXPIRES_KEY, expires);
            *request.metadata_mut() = MetadataMap::from_headers(metadata);
        }
        Ok(request)
    }

    /// What NSM's client policies say of a peer's answer.
    pub(crate) fn check(&self, answer: &Connection) -> Result<(), Denial> {
        let Some(path) = &answer.path else { return Ok(()) };
        let tokens: Vec<&str> = path.path_segments.iter().map(|segment| segment.token.as_str()).collect();
        let index = usize::try_from(path.index).unwrap_or(usize::MAX);
        policy::on_answer(&tokens, index, Some(&self.peer), SystemTime::now())
    }
}

impl Service<http::Request<Body>> for TokenChannel {
    type Response = http::Response<Body>;
    type Error = <Channel as Service<http::Request<Body>>>::Error;
    type Future = <Channel as Service<http::Request<Body>>>::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.channel.poll_ready(cx)
    }

    fn call(&mut self, mut request: http::Request<Body>) -> Self::Future {
        if !request.headers().contains_key(TOKEN_KEY) {
            match self.mint(MAX_LIFETIME) {
                Ok(token) => {
                    if let Some([jwt, expires]) = values(&token) {
                        request.headers_mut().insert(TOKEN_KEY, jwt);
                        request.headers_mut().insert(EXPIRES_KEY, expires);
                    }
                }
                // The peer will say that it misses the token; this says why it does.
                Err(fault) => {
                    tracing::error!(%fault, peer = %self.peer.id(), "a call goes out without a token");
                }
            }
        }
        self.channel.call(request)
    }
}

/// Both values of a token's metadata. They are base64 and digits, which always fit.
fn values(token: &Token) -> Option<[HeaderValue; 2]> {
    let expires = format_expires(token.expires);
    Some([HeaderValue::try_from(&token.jwt).ok()?, HeaderValue::try_from(expires).ok()?])
}

/// The token that came with a call.
pub(crate) fn presented(metadata: &MetadataMap) -> Result<Presented, PresentedError> {
    let headers = metadata.as_ref();
    let all = |key| headers.get_all(key).into_iter().map(HeaderValue::as_bytes);
    Presented::read(all(TOKEN_KEY), all(EXPIRES_KEY))
}

/// The tokens of paths that come in.
#[derive(Debug, Clone)]
pub(crate) struct OwnTokens {
    identity: Identity,
}

/// Why a path does not come in.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum AdmitError {
    #[error("bad path")]
    Path(#[from] PathFault),
    #[error(transparent)]
    Denied(#[from] Denial),
    #[error("no token for the caller")]
    Own(#[from] TokenError),
}

impl OwnTokens {
    pub(crate) fn new(identity: Identity) -> Self {
        Self { identity }
    }

    /// Puts the caller's token into the caller's segment, the current one of `path`, and checks all tokens up to it and our
    /// own, which is returned: it goes into our segment.
    ///
    /// Without a token in the metadata the segment stays as it came, and is checked so.
    pub(crate) fn admit(
        &self,
        caller: &Caller,
        presented: Result<Presented, PresentedError>,
        path: &mut Path,
        now: SystemTime,
    ) -> Result<Token, AdmitError> {
        path.check()?;
        let current = path.current_mut().ok_or(PathFault::Empty)?;
        match presented {
            Ok(Presented { jwt, expires }) => {
                current.token = jwt;
                current.expires = Some(expires);
            }
            Err(fault) => tracing::debug!(caller = %caller.id(), %fault, "a call without a token"),
        }
        let own = caller.mint_token(&self.identity, MAX_LIFETIME, now)?;
        let left =
            path.segments.iter().take(usize::try_from(path.index).unwrap_or(usize::MAX).saturating_add(1));
        let tokens: Vec<&str> = left.map(|s| s.token.as_str()).chain([own.jwt.as_str()]).collect();
        policy::on_request(&tokens, tokens.len() - 1, caller.certificate(), now)?;
        Ok(own)
    }
}
