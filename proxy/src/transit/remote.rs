//! What other domains' registries said a moment ago.
//!
//! Many clients that ask for one service at a time cost its registry one question. An answer counts for [`FRESH`], which is less than a
//! domain has to notice that an endpoint is gone, and for no longer than the next request that fails.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use carrick_model::{Domain, cause::in_one_line};
use carrick_proto::registry::{NetworkService, NetworkServiceEndpoint};
use carrick_proxy_core::transit::{HopFault, HopFaultKind};
use parking_lot::Mutex;
use tonic::{Code, Status};

use crate::{
    catalogue::Beyond,
    peers::{PeerFault, Peers},
};

/// How long an answer counts: endpoints that leave have to be out of new selections within 3 s.
const FRESH: Duration = Duration::from_secs(2);
/// Answers that are kept; all old ones go when there are more.
const MAX_ANSWERS: usize = 4096;

/// A service of another domain, and its endpoints.
#[derive(Debug)]
pub(super) struct Offer {
    /// The service's own entry, if there is one.
    pub(super) service: Option<NetworkService>,
    pub(super) endpoints: Vec<NetworkServiceEndpoint>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Question {
    Service(Domain, String),
    Endpoint(Domain, String),
}

/// Questions to other registries, with the answers of the last moment.
pub(super) struct RemoteRegistries {
    peers: Peers,
    beyond: Option<Arc<dyn Beyond>>,
    answers: Mutex<HashMap<Question, (Instant, Arc<Offer>)>>,
}

impl RemoteRegistries {
    /// Asks `beyond`, or where there is none the registries themselves.
    pub(super) fn new(peers: Peers, beyond: Option<Arc<dyn Beyond>>) -> Self {
        Self { peers, beyond, answers: Mutex::default() }
    }

    /// Whether somebody else says whom to call: that may be a proxy of any domain.
    pub(super) fn is_led(&self) -> bool {
        self.beyond.is_some()
    }

    /// Whether the domain is asked itself, so that its gateway is called and not the urls that were found.
    pub(super) async fn has_gateway(&self, domain: &Domain) -> bool {
        // Without a gateway it is a floating domain: its registry says whom to call.
        self.beyond.is_none() && self.peers.gateways(domain).await.is_ok_and(|g| !g.control.is_empty())
    }

    /// A service and its endpoints.
    pub(super) async fn service(&self, domain: &Domain, name: &str) -> Result<Arc<Offer>, HopFault> {
        let question = Question::Service(domain.clone(), name.to_owned());
        if let Some(offer) = self.recent(&question) {
            return Ok(offer);
        }
        // Endpoints without a service's own entry are used all the same: then it has no matches.
        let offer = match &self.beyond {
            Some(beyond) => {
                let (service, endpoints) =
                    futures::join!(beyond.service(domain, name), beyond.endpoints(domain, name));
                Offer { service: service.ok().flatten(), endpoints: endpoints.map_err(|e| said(&e))? }
            }
            None => {
                let (service, endpoints) = futures::join!(
                    self.peers.find_service(domain, name),
                    self.peers.find_endpoints(domain, name)
                );
                Offer { service: service.ok().flatten(), endpoints: endpoints.map_err(|e| unfound(&e))? }
            }
        };
        Ok(self.keep(question, offer))
    }

    /// One endpoint.
    pub(super) async fn endpoint(
        &self,
        domain: &Domain,
        name: &str,
    ) -> Result<Option<NetworkServiceEndpoint>, HopFault> {
        let question = Question::Endpoint(domain.clone(), name.to_owned());
        if let Some(offer) = self.recent(&question) {
            return Ok(offer.endpoints.first().cloned());
        }
        let found = match &self.beyond {
            Some(beyond) => beyond.endpoint(domain, name).await.map_err(|e| said(&e))?,
            None => self.peers.find_endpoint(domain, name).await.map_err(|e| unfound(&e))?,
        };
        let offer = Offer { service: None, endpoints: found.into_iter().collect() };
        Ok(self.keep(question, offer).endpoints.first().cloned())
    }

    /// Something that was said is not true any more.
    pub(super) fn forget(&self) {
        self.answers.lock().clear();
    }

    fn recent(&self, question: &Question) -> Option<Arc<Offer>> {
        let answers = self.answers.lock();
        answers.get(question).filter(|(at, _)| at.elapsed() < FRESH).map(|(_, offer)| Arc::clone(offer))
    }

    fn keep(&self, question: Question, offer: Offer) -> Arc<Offer> {
        let offer = Arc::new(offer);
        // That there is nothing may change at any moment.
        if offer.endpoints.is_empty() {
            return offer;
        }
        let mut answers = self.answers.lock();
        if answers.len() >= MAX_ANSWERS {
            answers.retain(|_, (at, _)| at.elapsed() < FRESH);
        }
        if answers.len() < MAX_ANSWERS {
            answers.insert(question, (Instant::now(), Arc::clone(&offer)));
        }
        offer
    }
}

fn unfound(error: &PeerFault) -> HopFault {
    let code = match error {
        PeerFault::Refused { code, .. } => *code,
        PeerFault::NoTrust { .. } | PeerFault::NotAccepted { .. } => Code::PermissionDenied,
        _ => Code::Unavailable,
    };
    HopFault { kind: HopFaultKind::Refused, code: code.into(), message: in_one_line(error) }
}

fn said(status: &Status) -> HopFault {
    let message = status.message().to_owned();
    HopFault { kind: HopFaultKind::Refused, code: status.code().into(), message }
}
