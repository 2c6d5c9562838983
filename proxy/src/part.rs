//! A registry at a fixed url: a part of Network Service Mesh that stays in charge where the daemon stands in for others.
//!
//! The calls are those of a domain's registry, without the search for where the domain is. One connection serves them all; a call that
//! breaks on it is made once more on a new one.

use std::{
    fmt,
    time::{Duration, Instant},
};

use carrick_identity::{
    Identity, TrustStore,
    token::{PATH_KEY, TokenPath},
};
use carrick_model::{PartUrl, TrustDomain, cause::in_one_line};
use carrick_proxy_core::transit::{Hop, HopFault, HopFaultKind};
use carrick_runtime::Tasks;
use futures::{StreamExt, TryStreamExt, stream, stream::BoxStream};
use tonic::{Code, Response, Status, metadata::AsciiMetadataValue};

use crate::{
    peers::{Peers, RegistryObject, check, with_path},
    transit::hops::Hops,
};

/// How long the registry may take to answer one call, the dial included.
const CALL_DEADLINE: Duration = Duration::from_secs(5);

/// The registry at a url. Clones share the connection.
#[derive(Clone)]
pub struct PartRegistry {
    hops: Hops,
    url: String,
    hop: Hop,
}

/// The answers of a registry: each an object, and whether it is gone. They end with the first fault.
pub type PartAnswers<T> = BoxStream<'static, Result<(T, bool), PartFault>>;

/// Why the registry could not be asked, or said no.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{url}: {detail}")]
pub struct PartFault {
    /// Where it is.
    pub url: String,
    /// Its own code where it said no.
    pub code: Code,
    /// Whether it was there and said no.
    pub refused: bool,
    /// What was seen.
    pub detail: String,
}

impl fmt::Display for PartRegistry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.url)
    }
}

impl PartRegistry {
    /// No connection yet. The registry has to prove that it is of `trust_domain`.
    pub fn new(
        url: &PartUrl,
        trust_domain: TrustDomain,
        identity: Identity,
        trust: TrustStore,
        peers: Peers,
        tasks: &Tasks,
    ) -> Self {
        let url = url.to_string();
        let hop = Hop::Url { url: url.clone(), trust_domain: Some(trust_domain) };
        Self { hops: Hops::new(identity, trust, peers, tasks), url, hop }
    }

    /// What it has that matches `query`, and with `watch` how it changes. Returns when the registry can be asked; a watched query
    /// waits for the first answer in the stream, because NSM's registries say nothing before.
    ///
    /// # Errors
    /// It cannot be reached, or says no.
    pub async fn ask<T: RegistryObject>(&self, query: T, watch: bool) -> Result<PartAnswers<T>, PartFault> {
        let this = self.clone();
        if watch {
            let (number, link) = self.hops.link(&self.hop).await.map_err(|unreached| {
                self.fault(HopFault {
                    kind: HopFaultKind::NotSent,
                    code: Code::Unavailable.into(),
                    message: unreached.to_string(),
                })
            })?;
            let opened = async move { T::find(link.channel, query, true).await };
            let answers = stream::once(opened).try_flatten();
            return Ok(answers.map_err(move |status| this.lost(number, &status)).boxed());
        }
        let rpc = |channel| T::find(channel, query.clone(), false);
        let answers = self.call(rpc).await?;
        Ok(answers.map_err(move |status| this.said(&status)).boxed())
    }

    /// Registers `object`; `path` has the tokens of the hops up to us. Returns what became of both.
    ///
    /// # Errors
    /// It cannot be reached, or says no.
    pub async fn register<T: RegistryObject>(
        &self,
        object: T,
        path: &TokenPath,
    ) -> Result<(T, Option<TokenPath>), PartFault> {
        let header = self.header(path)?;
        let rpc = |channel| T::register(channel, with_path(object.clone(), &header));
        let answer = self.call(rpc).await?;
        let path = answer.metadata().get(PATH_KEY).map(|value| TokenPath::parse(value.as_bytes()));
        let path = path.transpose().map_err(|fault| self.internal(fault.to_string()))?;
        Ok((answer.into_inner(), path))
    }

    /// Unregisters `object`; `path` has the tokens of the hops up to us.
    ///
    /// # Errors
    /// It cannot be reached, or says no.
    pub async fn unregister<T: RegistryObject>(&self, object: T, path: &TokenPath) -> Result<(), PartFault> {
        let header = self.header(path)?;
        self.call(|channel| T::unregister(channel, with_path(object.clone(), &header)))
            .await
            .map(Response::into_inner)
    }

    /// Completes when it has answered something; a status that says no is an answer.
    ///
    /// # Errors
    /// It cannot be reached.
    pub async fn probe(&self) -> Result<(), PartFault> {
        match self.call(check).await {
            Ok(()) => Ok(()),
            Err(fault) if fault.refused => Ok(()),
            Err(fault) => Err(fault),
        }
    }

    async fn call<T, F, Fut>(&self, rpc: F) -> Result<T, PartFault>
    where
        F: Fn(crate::TokenChannel) -> Fut,
        Fut: Future<Output = Result<T, Status>>,
    {
        let deadline = Instant::now() + CALL_DEADLINE;
        self.hops.call(&self.hop, deadline, rpc).await.map_err(|fault| self.fault(fault))
    }

    fn header(&self, path: &TokenPath) -> Result<AsciiMetadataValue, PartFault> {
        AsciiMetadataValue::try_from(path.to_header())
            .map_err(|_| self.internal("the path has a token that fits no header".to_owned()))
    }

    fn internal(&self, detail: String) -> PartFault {
        PartFault { url: self.url.clone(), code: Code::Internal, refused: false, detail }
    }

    fn fault(&self, fault: HopFault) -> PartFault {
        let refused = fault.kind == HopFaultKind::Refused;
        PartFault { url: self.url.clone(), code: Code::from(fault.code), refused, detail: fault.message }
    }

    fn said(&self, status: &Status) -> PartFault {
        let refused = std::error::Error::source(status).is_none();
        let code = if refused { status.code() } else { Code::Unavailable };
        PartFault { url: self.url.clone(), code, refused, detail: in_one_line(status) }
    }

    /// A stream broke: if the connection did, the next call makes a new one.
    fn lost(&self, number: u64, status: &Status) -> PartFault {
        let fault = self.said(status);
        if !fault.refused {
            self.hops.forget(&self.hop, number);
        }
        fault
    }
}
