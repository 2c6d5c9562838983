//! What other domains' registries said a moment ago.
//!
//! Many clients that ask for one service at a time cost its registry one question. An answer counts for [`FRESH`], which is less than a
//! domain has to notice that an endpoint is gone, and for no longer than the next request that fails.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use carrick_model::Domain;
use carrick_proto::registry::{NetworkService, NetworkServiceEndpoint};
use parking_lot::Mutex;

use crate::peers::{PeerFault, Peers};

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
    answers: Mutex<HashMap<Question, (Instant, Arc<Offer>)>>,
}

impl RemoteRegistries {
    pub(super) fn new(peers: Peers) -> Self {
        Self { peers, answers: Mutex::default() }
    }

    /// A service and its endpoints.
    pub(super) async fn service(&self, domain: &Domain, name: &str) -> Result<Arc<Offer>, PeerFault> {
        let question = Question::Service(domain.clone(), name.to_owned());
        if let Some(offer) = self.recent(&question) {
            return Ok(offer);
        }
        let (service, endpoints) =
            futures::join!(self.peers.find_service(domain, name), self.peers.find_endpoints(domain, name));
        // Endpoints without a service's own entry are used all the same: then it has no matches.
        let offer = Offer { service: service.ok().flatten(), endpoints: endpoints? };
        Ok(self.keep(question, offer))
    }

    /// One endpoint.
    pub(super) async fn endpoint(
        &self,
        domain: &Domain,
        name: &str,
    ) -> Result<Option<NetworkServiceEndpoint>, PeerFault> {
        let question = Question::Endpoint(domain.clone(), name.to_owned());
        if let Some(offer) = self.recent(&question) {
            return Ok(offer.endpoints.first().cloned());
        }
        let found = self.peers.find_endpoint(domain, name).await?;
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
