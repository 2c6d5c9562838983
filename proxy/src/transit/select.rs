//! Choosing the endpoints that a request may go to, and in which order.
//!
//! A name of the own domain is looked up in the own registry, as its caller may see it. A name of another domain is looked up
//! in that domain's registry, for callers of our own. An endpoint of ours that is registered with another domain is found under
//! the name that it has there, whoever asks. Callers of other domains are not carried on to third ones.

use std::sync::Arc;

use arc_swap::ArcSwap;
use carrick_model::{Domain, SpiffeId, TrustDomain};
use carrick_proto::registry::{NetworkService, NetworkServiceEndpoint};
use carrick_proxy_core::{
    selection::{
        matching::{self, Labels, picks, within},
        ranking::Ranking,
    },
    transit::{
        Candidate, Hop, HopFault, HopFaultKind, MAX_CANDIDATES, SelectQuery, Verdict,
        names::{Asked, asked},
    },
};
use parking_lot::Mutex;
use tonic::Code;

use super::{hops::Address, remote::RemoteRegistries};
use crate::{
    catalogue::{Beyond, Catalogue, labels_of},
    exports::now,
    peers::Peers,
};

/// Endpoints of one service that are looked at for one request.
const MAX_ENDPOINTS: usize = 10_000;
/// Endpoints that are looked at to know whether there is one behind another hop. The exports of one service are fewer.
const ENDPOINTS_TO_KNOW: usize = 64;
/// Labels that a forwarder needs where a service's matches name none, as in NSM.
const FORWARDER_LABELS: [(&str, &str); 1] = [("p2p", "true")];

/// Which parts of a domain's data plane are asked first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SelectSettings {
    /// Our domain.
    pub domain: Domain,
    /// Its trust domain.
    pub trust_domain: TrustDomain,
    /// The service under which NSM's forwarders register. Where there are any, a manager hands requests for packets and frames to
    /// them first. `None` never does.
    pub forwarder: Option<String>,
}

/// Chooses.
pub(crate) struct Selector {
    settings: SelectSettings,
    catalogue: Arc<dyn Catalogue>,
    peers: Peers,
    remote: RemoteRegistries,
    ranking: Mutex<Ranking>,
    /// Urls that lead back here.
    own_urls: ArcSwap<Vec<Address>>,
}

impl Selector {
    pub(crate) fn new(
        settings: SelectSettings,
        catalogue: Arc<dyn Catalogue>,
        beyond: Option<Arc<dyn Beyond>>,
        peers: Peers,
    ) -> Self {
        let ranking = Mutex::new(Ranking::new());
        let remote = RemoteRegistries::new(peers.clone(), beyond);
        Self { settings, catalogue, peers, remote, ranking, own_urls: ArcSwap::default() }
    }

    /// Urls that lead back here, and are never called.
    pub(crate) fn set_own_urls(&self, urls: &[String]) {
        self.own_urls.store(Arc::new(urls.iter().filter_map(|url| Address::read(url)).collect()));
    }

    /// A candidate was asked.
    pub(crate) fn tried(&self, known_as: &str, verdict: Verdict) {
        match verdict {
            Verdict::Granted => return self.ranking.lock().handle_granted(known_as),
            // It may be gone, or it does not like this one caller: nothing for others to learn but to look again.
            Verdict::Refused => {}
            Verdict::Silent => self.ranking.lock().handle_failed(known_as, now().mono),
        }
        self.remote.forget();
    }

    /// Whether a request of `caller` for these names is for this selection at all: it is for another domain, or the own registry
    /// knows the service or the endpoint.
    pub(crate) fn concerns(&self, caller: &SpiffeId, service: &str, endpoint: &str) -> bool {
        let asked = asked(service, endpoint);
        if self.is_own(caller) && !self.is_local(&asked) {
            return true;
        }
        let viewer = self.viewer(caller);
        if !endpoint.is_empty()
            && (self.is_published(&asked) || self.catalogue.endpoint(asked.endpoint, viewer).is_some())
        {
            return true;
        }
        let some = self.catalogue.endpoints_of(asked.service, viewer, ENDPOINTS_TO_KNOW);
        some.iter().any(|e| self.leads_elsewhere(e))
    }

    fn leads_elsewhere(&self, to: &NetworkServiceEndpoint) -> bool {
        Address::read(&to.url).is_some_and(|to| !self.own_urls.load().contains(&to))
    }

    /// Whom to ask, the best first.
    pub(crate) async fn candidates(&self, query: &SelectQuery) -> Result<Vec<Candidate>, HopFault> {
        let asked = asked(&query.service, &query.endpoint);
        let own = self.is_own(&query.caller);
        let local = self.is_local(&asked);
        if query.reselect {
            // The endpoint that was lost may be among what was found a moment ago.
            self.remote.forget();
        }
        if let Some(forwarders) = self.forwarders(query, &asked, own || local) {
            return Ok(forwarders);
        }
        if !local && !asked.endpoint.is_empty() {
            let full = format!("{}@{}", asked.endpoint, asked.domain.unwrap_or_default());
            if let Some(endpoint) = self.catalogue.published(&full) {
                // Everybody knows it by the name that it has there, up to the endpoint itself.
                return Ok(self
                    .candidate(&endpoint, query.service.clone(), query.endpoint.clone(), "")
                    .into_iter()
                    .collect());
            }
        }
        match asked.domain.filter(|_| !local && own) {
            Some(domain) => self.remote(query, &asked, domain).await,
            None => self.local(query, &asked),
        }
    }

    /// Whether `endpoint` is still what `service` picks for a request with `labels`.
    pub(crate) fn still_picks(&self, service: &NetworkService, endpoint: &str, labels: &Labels) -> bool {
        match self.catalogue.endpoint(endpoint, None) {
            Some(endpoint) => matching::picks_endpoint(labels, service, &endpoint),
            // Whether it lives is for its monitor to say.
            None => true,
        }
    }

    fn local(&self, query: &SelectQuery, asked: &Asked<'_>) -> Result<Vec<Candidate>, HopFault> {
        let viewer = self.viewer(&query.caller);
        let service = self.catalogue.service(asked.service, viewer);
        let payload = self.payload(service.as_ref(), query)?;
        let offers = |e: &NetworkServiceEndpoint| e.network_service_names.iter().any(|n| n == asked.service);
        let named = (!asked.endpoint.is_empty()).then(|| self.catalogue.endpoint(asked.endpoint, viewer));
        let endpoints: Vec<NetworkServiceEndpoint> = match named {
            // NSM asks for an endpoint by its name alone; others than our own have to mean what they may see.
            Some(found) => found.into_iter().filter(|e| viewer.is_none() || offers(e)).collect(),
            None => {
                let service = service.unwrap_or_else(|| named_only(asked.service));
                let all = self.catalogue.endpoints_of(asked.service, viewer, MAX_ENDPOINTS);
                self.ordered(asked.service, &query.labels, &service, &all)
            }
        };
        if endpoints.is_empty() && asked.domain.is_some() && !self.is_local(asked) {
            let text = format!(
                "`{}` is not of this domain, which is {}, and callers of other domains are not carried on",
                query.service, self.settings.domain
            );
            return Err(fault(Code::NotFound, text));
        }
        let all = endpoints.iter();
        Ok(all
            .filter_map(|e| {
                if self.is_foreign(e) {
                    // Another domain's endpoint, registered here: it knows itself by its full name.
                    let full = |name: &str| format!("{name}@{}", self.settings.domain);
                    self.candidate(e, full(asked.service), full(&e.name), &payload)
                } else {
                    self.candidate(e, asked.service.to_owned(), e.name.clone(), &payload)
                }
            })
            .collect())
    }

    async fn remote(
        &self,
        query: &SelectQuery,
        asked: &Asked<'_>,
        domain: &str,
    ) -> Result<Vec<Candidate>, HopFault> {
        let text = domain;
        let domain: Domain =
            text.parse().map_err(|e| fault(Code::InvalidArgument, format!("`{}`: {e}", query.service)))?;
        let gateway = self.remote.has_gateway(&domain).await;
        if !asked.endpoint.is_empty() {
            let found = self.remote.endpoint(&domain, asked.endpoint).await;
            let hop = match (&found, gateway) {
                (Ok(Some(endpoint)), _) => self.hop_of(endpoint, &domain, gateway),
                // The gateway knows its own endpoints better than its registry told us.
                (_, true) => Hop::Domain(domain.clone()),
                (Ok(None), false) => return Ok(Vec::new()),
                (Err(error), false) => return Err(error.clone()),
            };
            return Ok(vec![Candidate {
                service: query.service.clone(),
                endpoint: query.endpoint.clone(),
                payload: String::new(),
                hop,
                leaves: true,
                known_as: query.endpoint.clone(),
            }]);
        }
        let offer = self.remote.service(&domain, asked.service).await?;
        let payload = self.payload(offer.service.as_ref(), query)?;
        let service = offer.service.clone().unwrap_or_else(|| named_only(asked.service));
        let turn = format!("{}@{domain}", asked.service);
        let ordered = self.ordered(&turn, &query.labels, &service, &offer.endpoints);
        let candidate = |e: &NetworkServiceEndpoint| Candidate {
            service: format!("{}@{text}", asked.service),
            endpoint: format!("{}@{text}", e.name),
            payload: payload.clone(),
            hop: self.hop_of(e, &domain, gateway),
            leaves: true,
            known_as: e.name.clone(),
        };
        Ok(ordered.iter().map(candidate).collect())
    }

    /// The forwarders to hand a request to; `None` when it goes on without.
    fn forwarders(&self, query: &SelectQuery, asked: &Asked<'_>, ours: bool) -> Option<Vec<Candidate>> {
        let name = self.settings.forwarder.as_deref().filter(|_| ours && !is_flows(&query.payload))?;
        let all = self.catalogue.endpoints_of(name, None, MAX_ENDPOINTS);
        if all.is_empty() || all.iter().any(|f| f.name == query.previous) {
            return None;
        }
        let local = self.is_local(asked);
        let service = local.then(|| self.catalogue.service(asked.service, None)).flatten();
        let wanted = match &service {
            Some(service) if !service.matches.is_empty() => {
                matching::metadata(&query.labels, service).cloned().unwrap_or_else(forwarder_labels)
            }
            _ => Labels::new(),
        };
        let none = Labels::new();
        let fits =
            |f: &NetworkServiceEndpoint| within(&wanted, labels_of(f, name).unwrap_or(&none), &query.labels);
        let fitting: Vec<_> = all.into_iter().filter(fits).collect();
        let mut ordered = self.ordered(name, &query.labels, &named_only(name), &fitting);
        // A connection stays with its forwarder.
        ordered.sort_by_key(|f| f.name != query.next);
        let own = self.is_own(&query.caller);
        let cut = |full: &str, bare: &str| if own && !local { full.to_owned() } else { bare.to_owned() };
        let candidates = ordered.iter().filter_map(|f| {
            let payload = service.as_ref().map_or("", |s| s.payload.as_str());
            let mut candidate = self.candidate(
                f,
                cut(&query.service, asked.service),
                cut(&query.endpoint, asked.endpoint),
                if query.payload.is_empty() { payload } else { "" },
            )?;
            candidate.known_as.clone_from(&f.name);
            Some(candidate)
        });
        Some(candidates.collect())
    }

    fn candidate(
        &self,
        to: &NetworkServiceEndpoint,
        service: String,
        endpoint: String,
        payload: &str,
    ) -> Option<Candidate> {
        if !self.leads_elsewhere(to) {
            tracing::debug!(
                endpoint = to.name,
                url = to.url,
                "an endpoint without a url that leads elsewhere"
            );
            return None;
        }
        let trust_domain = owner(to);
        let leaves = trust_domain.as_ref().is_some_and(|td| td != &self.settings.trust_domain);
        let hop = Hop::Url { url: to.url.clone(), trust_domain };
        Some(Candidate {
            service,
            endpoint,
            payload: payload.to_owned(),
            hop,
            leaves,
            known_as: to.name.clone(),
        })
    }

    /// Whom to call for an endpoint that the registry of `domain` told us of.
    fn hop_of(&self, endpoint: &NetworkServiceEndpoint, domain: &Domain, gateway: bool) -> Hop {
        let expected = self.peers.expected(domain).ok().map(|(td, _)| td);
        let owner = owner(endpoint);
        let floats = owner.is_some() && owner != expected;
        if gateway && !floats {
            return Hop::Domain(domain.clone());
        }
        Hop::Url {
            url: endpoint.url.clone(),
            trust_domain: owner.filter(|_| floats && !self.remote.is_led()),
        }
    }

    fn ordered(
        &self,
        turn: &str,
        labels: &Labels,
        service: &NetworkService,
        all: &[NetworkServiceEndpoint],
    ) -> Vec<NetworkServiceEndpoint> {
        let picked = picks(labels, service, all);
        let order = self.ranking.lock().order(turn, &service.name, labels, all, &picked, now().mono);
        order.into_iter().take(MAX_CANDIDATES).map(|i| all[i].clone()).collect()
    }

    /// What the service carries, if that is what the caller wants.
    fn payload(&self, service: Option<&NetworkService>, query: &SelectQuery) -> Result<String, HopFault> {
        let offered = service.map_or("", |s| s.payload.as_str());
        if offered.is_empty() || query.payload.is_empty() || offered == query.payload {
            return Ok(offered.to_owned());
        }
        let text = format!("network service `{}` carries {offered}, not `{}`", query.service, query.payload);
        Err(fault(Code::NotFound, text))
    }

    fn is_own(&self, caller: &SpiffeId) -> bool {
        caller.trust_domain() == &self.settings.trust_domain
    }

    fn is_local(&self, asked: &Asked<'_>) -> bool {
        asked.domain.is_none_or(|d| d.parse::<Domain>().is_ok_and(|d| d == self.settings.domain))
    }

    fn is_published(&self, asked: &Asked<'_>) -> bool {
        let full = asked.domain.map(|d| format!("{}@{d}", asked.endpoint));
        full.is_some_and(|full| self.catalogue.published(&full).is_some())
    }

    fn is_foreign(&self, endpoint: &NetworkServiceEndpoint) -> bool {
        owner(endpoint).is_some_and(|td| td != self.settings.trust_domain)
    }

    fn viewer<'a>(&self, caller: &'a SpiffeId) -> Option<&'a SpiffeId> {
        (!self.is_own(caller)).then_some(caller)
    }
}

/// Whose endpoint it is: the trust domain of whoever registered it first.
fn owner(endpoint: &NetworkServiceEndpoint) -> Option<TrustDomain> {
    let first = endpoint.path_ids.first()?;
    SpiffeId::new(first).ok().map(|id| id.trust_domain().clone())
}

/// Flows do not pass NSM's forwarders: those carry packets and frames.
fn is_flows(payload: &str) -> bool {
    matches!(payload, "TCP" | "UDP")
}

fn forwarder_labels() -> Labels {
    FORWARDER_LABELS.map(|(k, v)| (k.to_owned(), v.to_owned())).into()
}

/// A service of which nothing but the name is known: it picks all of its endpoints.
fn named_only(name: &str) -> NetworkService {
    NetworkService { name: name.to_owned(), ..NetworkService::default() }
}

fn fault(code: Code, message: impl Into<String>) -> HopFault {
    HopFault { kind: HopFaultKind::Refused, code: code.into(), message: message.into() }
}
