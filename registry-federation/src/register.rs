//! Register and Unregister: from a call to a change in the store, and its answer.
//!
//! ```text
//!   tokens ─▶ names ─▶ limits ─▶ admission ─▶ ┌ claim: may this caller have the name?        ┐
//!                                             │ commit, on condition that nobody was quicker │ again on a conflict
//!                                             └ until the catalogue has it ─▶ answer         ┘
//! ```
//!
//! The condition of the commit is what makes a claim hold among replicas: it names the record on which the claim was
//! decided.

use std::{
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use carrick_identity::{Caller, Identity, token::PATH_KEY};
use carrick_model::{Domain, SpiffeId};
use carrick_proto::registry::{NetworkService, NetworkServiceEndpoint};
use carrick_registry_core::{ClaimError, Holder, Kind, Owner, Record};
use tonic::{Code, Request, Response, Status};

use crate::{
    chain::{Chain, ChainError},
    federation::{Federated, FederationError},
    find::Wire,
    limits::{
        MAX_LABELS, MAX_LEASE, MAX_NAME, MAX_OBJECT, MAX_PATH_IDS, MAX_REGISTRATIONS,
        MAX_REGISTRATIONS_PER_CALLER, MAX_SERVICES, MAX_URL,
    },
    names::{self, Addressed, NameError},
    registry::{Registry, State},
    store::{Change, Expect, Key, Store, StoreError, StoredRecord},
};

/// How often a registration is decided anew after a conflict. Each time somebody else has registered the same name.
const ATTEMPTS: u32 = 16;

/// Pause before a decision is repeated, times the number of attempts, when the store did not say what to wait for.
const PAUSE: Duration = Duration::from_millis(5);

/// How long an answer waits for the own catalogue once the change is durable. The store tells its followers at once; when it
/// goes away in between, the answer is true all the same.
const APPLY: Duration = Duration::from_secs(5);

/// A kind of object as it is registered.
pub(crate) trait Registered: Wire {
    /// The services it provides, or is.
    fn services(&self) -> impl Iterator<Item = &str>;
    fn path_ids(&mut self) -> &mut Vec<String>;
    /// Whether it says the same as `other`, whoever says it.
    fn says_the_same(&self, other: &Self) -> bool;
    /// What is checked beyond what every object is checked for.
    fn check(&self) -> Result<(), LimitError>;
    /// Lets a registration that another registry keeps end with its `lease` at the latest: that registry knows our tokens only.
    fn limit(&mut self, now: SystemTime, lease: SystemTime);
    /// Sets the times of a registration at `now` that ends with its `lease` at the latest, given what it replaces, and
    /// tells when it ends.
    fn stamp(&mut self, before: Option<&Self>, now: SystemTime, lease: SystemTime) -> Option<SystemTime>;
}

/// What an object exceeds. The caller has to make it smaller.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LimitError {
    /// There is no name.
    #[error("a {0} needs a name to be registered")]
    NoName(&'static str),
    /// The name is no name.
    #[error("a name has at most {MAX_NAME} octets and no control characters")]
    Name,
    /// It provides too many services.
    #[error("an endpoint provides at most {MAX_SERVICES} services, this one {0}")]
    Services(usize),
    /// A name of a service is no name.
    #[error("a service of an endpoint has a name of 1 to {MAX_NAME} octets without control characters")]
    ServiceName,
    /// It has too many labels.
    #[error("an endpoint has at most {MAX_LABELS} labels, this one {0}")]
    Labels(usize),
    /// The URL is too long.
    #[error("a URL has at most {MAX_URL} octets, this one {0}")]
    Url(usize),
    /// Too many have passed it on.
    #[error("an object has at most {MAX_PATH_IDS} path ids, this one {0}")]
    PathIds(usize),
    /// It is too large as a whole.
    #[error("an object has at most {MAX_OBJECT} octets, this one {0}")]
    Object(usize),
}

/// Why a call to register or unregister is refused.
#[derive(Debug, thiserror::Error)]
pub enum RegisterError {
    /// The connection carries no identity; a retry does not help.
    #[error("the caller has no SPIFFE ID")]
    NoCaller,
    /// The tokens are not accepted.
    #[error(transparent)]
    Chain(#[from] ChainError),
    /// The names are not understood; the caller has to change them.
    #[error(transparent)]
    Name(#[from] NameError),
    /// The object is for another domain, and came to nothing there.
    #[error(transparent)]
    Federation(#[from] FederationError),
    /// The object is too large; the caller has to make it smaller.
    #[error(transparent)]
    Limit(#[from] LimitError),
    /// The caller is of another trust domain, and no rule lets it register this; an operator has to add one.
    #[error(
        "{caller} is of another trust domain, and no rule under `registry.admit` of {domain} lets it register this: no sufficient privileges"
    )]
    NotAdmitted {
        /// Who called.
        caller: SpiffeId,
        /// Whose registry this is.
        domain: Domain,
    },
    /// The name is somebody else's.
    #[error("the {what} `{name}` of {domain} cannot be taken: {fault}: no sufficient privileges")]
    Claim {
        /// What kind of object.
        what: &'static str,
        /// Its name.
        name: String,
        /// Whose registry this is.
        domain: Domain,
        /// Why.
        fault: Box<ClaimError>,
    },
    /// The caller has too many registrations; it has to end some.
    #[error("{0} has {MAX_REGISTRATIONS_PER_CALLER} registrations, no more are taken: unregister some first")]
    CallersRegistrations(SpiffeId),
    /// There are too many registrations of all callers; a retry may help later.
    #[error("the registry has {MAX_REGISTRATIONS} registrations, no more are taken")]
    Registrations,
    /// Others keep registering the same name; a retry may help.
    #[error("the {what} `{name}` is being registered by others all the time: try again")]
    Contended {
        /// What kind of object.
        what: &'static str,
        /// Its name.
        name: String,
    },
    /// The store did not take it.
    #[error("the registry of {domain} cannot store this: {fault} ({})", fault.hint())]
    Store {
        /// Whose registry this is.
        domain: Domain,
        /// Why.
        fault: StoreError,
    },
    /// The registry has no store; an operator has to give it one.
    #[error("the registry of {0} has no store and takes no registrations")]
    NoStore(Domain),
}

impl RegisterError {
    /// The word for it in metrics.
    pub(crate) fn outcome(&self) -> &'static str {
        match self {
            Self::NoCaller | Self::Chain(_) | Self::NotAdmitted { .. } | Self::Claim { .. } => "denied",
            Self::Federation(FederationError::Foreign { .. }) => "denied",
            Self::Name(_) | Self::Limit(_) => "malformed",
            Self::Federation(_) => "remote",
            Self::CallersRegistrations(_) | Self::Registrations => "limit",
            Self::Contended { .. } => "contended",
            Self::Store { .. } | Self::NoStore(_) => "store",
        }
    }
}

impl From<RegisterError> for Status {
    fn from(fault: RegisterError) -> Self {
        use RegisterError as E;
        let fault = match fault {
            E::Federation(fault) => return fault.into(),
            fault => fault,
        };
        let code = match &fault {
            E::NoCaller => Code::Unauthenticated,
            E::Chain(ChainError::Path(_)) | E::Name(_) | E::Limit(_) => Code::InvalidArgument,
            E::Chain(ChainError::Own(_)) => Code::Internal,
            E::Chain(_) | E::NotAdmitted { .. } => Code::PermissionDenied,
            E::Claim { fault, .. } => match **fault {
                ClaimError::Exported => Code::AlreadyExists,
                ClaimError::Held { .. } | ClaimError::SpeaksForOthers { .. } => Code::PermissionDenied,
            },
            E::Federation(_) => Code::Unknown,
            E::CallersRegistrations(_) | E::Registrations => Code::ResourceExhausted,
            E::Contended { .. } => Code::Aborted,
            E::NoStore(_) => Code::FailedPrecondition,
            E::Store { fault, .. } => match fault {
                StoreError::Full { .. } | StoreError::TooLarge { .. } => Code::ResourceExhausted,
                StoreError::Malformed(_) => Code::Internal,
                StoreError::Conflict { .. } => Code::Aborted,
                StoreError::ReadOnly { .. }
                | StoreError::Unavailable { .. }
                | StoreError::Uncertain { .. }
                | StoreError::Closed { .. } => Code::Unavailable,
            },
        };
        Self::new(code, fault.to_string())
    }
}

/// A call, checked as far as that needs no look at the catalogue.
struct Call<T> {
    object: T,
    /// The domain as the caller wrote it behind its names.
    suffix: Option<String>,
    /// That domain, if it is another one.
    elsewhere: Option<Domain>,
    chain: Chain,
    store: Arc<dyn Store>,
}

/// What a look at the catalogue came to.
enum Plan<T> {
    /// Write this on this condition.
    Write(Box<T>, StoredRecord, Expect),
    /// It is there already.
    Nothing(Box<T>),
}

/// Registers the object of a call, or replaces it.
pub(crate) async fn register<T: Registered + Federated>(
    registry: &Registry,
    request: Request<T>,
) -> Result<Response<T>, RegisterError> {
    let Call { mut object, suffix, elsewhere, mut chain, store } = check(registry, request)?;
    if elsewhere.is_none() {
        object.fill_defaults();
    }
    chain.sign(object.path_ids());
    object.check()?;
    let size = object.encoded_len();
    if size > MAX_OBJECT {
        return Err(LimitError::Object(size).into());
    }
    if elsewhere.is_some() || registry.upstream().is_some() {
        object.limit(SystemTime::now(), chain.ends);
    }
    if let (Some(domain), Some(suffix)) = (elsewhere, &suffix) {
        let federation = registry.federation_for(&chain.claimant.caller, &domain)?;
        let (object, path) = federation.register(&domain, suffix, object, chain.path().clone()).await?;
        chain.take_back(path);
        return Ok(with_path(Response::new(object), chain));
    }
    if let Some(upstream) = registry.upstream() {
        admit(registry, &registry.shared().state.lock(), &chain, &object)?;
        let passed = upstream.register(object, chain.path().clone()).await;
        let (object, path) = passed.map_err(FederationError::from)?;
        chain.take_back(path);
        return Ok(answer(object, suffix.as_deref(), chain));
    }
    let key = Key { kind: T::KIND, name: object.name().to_owned() };
    // What the store said is there, and the catalogue does not have.
    let mut hidden = None;
    for attempt in 1..=ATTEMPTS {
        let (object, record, expect) = match plan(registry, &chain, &object, &key, hidden)? {
            Plan::Write(object, record, expect) => (object, record, expect),
            Plan::Nothing(object) => return Ok(answer(*object, suffix.as_deref(), chain)),
        };
        match registry.commit(&store, vec![Change::Put { key: key.clone(), record, expect }]).await {
            Ok(revision) => {
                let _late = tokio::time::timeout(APPLY, registry.applied(revision)).await;
                return Ok(answer(*object, suffix.as_deref(), chain));
            }
            Err(StoreError::Conflict { found, .. }) => hidden = catch_up(registry, found, attempt).await,
            Err(fault) => return Err(refused(registry, fault)),
        }
    }
    Err(RegisterError::Contended { what: T::WHAT, name: key.name })
}

/// Removes the object of a call. What is not there is removed already.
pub(crate) async fn unregister<T: Registered + Federated>(
    registry: &Registry,
    request: Request<T>,
) -> Result<Response<()>, RegisterError> {
    let Call { object, suffix, elsewhere, chain, store } = check(registry, request)?;
    if let (Some(domain), Some(suffix)) = (elsewhere, suffix) {
        let federation = registry.federation_for(&chain.claimant.caller, &domain)?;
        federation.unregister(&domain, &suffix, object, chain.path().clone()).await?;
        return Ok(with_path(Response::new(()), chain));
    }
    if let Some(upstream) = registry.upstream() {
        admit(registry, &registry.shared().state.lock(), &chain, &object)?;
        let passed = upstream.unregister(object, chain.path().clone()).await;
        passed.map_err(FederationError::from)?;
        return Ok(with_path(Response::new(()), chain));
    }
    let key = Key { kind: T::KIND, name: object.name().to_owned() };
    for attempt in 1..=ATTEMPTS {
        let Some(expect) = removal::<T>(registry, &chain, &key)? else {
            return Ok(with_path(Response::new(()), chain));
        };
        match registry.commit(&store, vec![Change::Delete { key: key.clone(), expect }]).await {
            Ok(revision) => {
                let _late = tokio::time::timeout(APPLY, registry.applied(revision)).await;
                return Ok(with_path(Response::new(()), chain));
            }
            Err(StoreError::Conflict { found, .. }) => {
                catch_up(registry, found, attempt).await;
            }
            Err(fault) => return Err(refused(registry, fault)),
        }
    }
    Err(RegisterError::Contended { what: T::WHAT, name: key.name })
}

fn check<T: Registered>(registry: &Registry, request: Request<T>) -> Result<Call<T>, RegisterError> {
    let (metadata, extensions, mut object) = request.into_parts();
    let caller = extensions.get::<Caller>().ok_or(RegisterError::NoCaller)?;
    let (store, identity): (Arc<dyn Store>, &Identity) =
        registry.keeping().ok_or_else(|| RegisterError::NoStore(registry.domain().clone()))?;
    let chain = Chain::check(identity, caller, &metadata, SystemTime::now())?;
    let (suffix, elsewhere) = match names::cut_domain(&mut object)? {
        Addressed::Plain => (None, None),
        Addressed::To(domain, text) => (Some(text), (domain != *registry.domain()).then_some(domain)),
    };
    if object.name().is_empty() {
        return Err(LimitError::NoName(T::WHAT).into());
    }
    if !is_name(object.name()) {
        return Err(LimitError::Name.into());
    }
    Ok(Call { object, suffix, elsewhere, chain, store })
}

/// Whether the caller may register this here at all.
fn admit<T: Registered>(
    registry: &Registry,
    state: &State,
    chain: &Chain,
    asked: &T,
) -> Result<(), RegisterError> {
    let caller = &chain.claimant.caller;
    if registry.is_own(caller) || state.admission.admits(caller, asked.services()) {
        return Ok(());
    }
    let (caller, domain) = (caller.clone(), registry.domain().clone());
    Err(RegisterError::NotAdmitted { caller, domain })
}

/// Decides on what is known now.
fn plan<T: Registered>(
    registry: &Registry,
    chain: &Chain,
    asked: &T,
    key: &Key,
    hidden: Option<u64>,
) -> Result<Plan<T>, RegisterError> {
    let state = registry.shared().state.lock();
    let claimant = &chain.claimant;
    admit(registry, &state, chain, asked)?;
    let before = state.catalogue.get::<T>(&key.name);
    let claim = match state.catalogue.claim::<T>(&key.name, claimant) {
        Err(ClaimError::Held { .. }) if before.is_some_and(|there| is_left(&state, there)) => Ok(()),
        claim => claim,
    };
    if let Err(fault) = claim {
        // Whoever says what is there already takes nothing from its owner. NSM's endpoints all register their service,
        // each with its own identity.
        let there = before.filter(|_| T::KIND == Kind::Service).map(|there| there.object());
        return match there {
            Some(there) if there.says_the_same(asked) => Ok(Plan::Nothing(Box::new(there))),
            _ => Err(claim_error::<T>(registry, key, fault)),
        };
    }
    let expect = match before.map(|record| &record.holder) {
        Some(Holder::Owner(owner)) => Expect::Revision(owner.written),
        // Exports are claimed by nobody.
        Some(Holder::Domain) => Expect::Absent,
        None => match state.kept.leftovers.get(key).copied().or(hidden) {
            Some(written) => Expect::Revision(written),
            None => Expect::Absent,
        },
    };
    if before.is_none() {
        let (all, callers) =
            (state.catalogue.count::<T>(), state.catalogue.brought_by::<T>(&claimant.caller));
        if all >= MAX_REGISTRATIONS {
            return Err(RegisterError::Registrations);
        }
        if callers >= MAX_REGISTRATIONS_PER_CALLER {
            return Err(RegisterError::CallersRegistrations(claimant.caller.clone()));
        }
    }
    let before = before.map(|before| before.object());
    drop(state);
    let mut object = asked.clone();
    let now = SystemTime::now();
    let expires = object.stamp(before.as_ref(), now, chain.ends);
    let (owner, via) = claimant.owner();
    let record = StoredRecord { object: object.encode_to_vec(), owner: Some(owner), via, expires };
    Ok(Plan::Write(Box::new(object), record, expect))
}

/// Whether it is a service that its owner has left, so that its name is free.
fn is_left<T: Registered>(state: &State, record: &Record<T>) -> bool {
    match &record.holder {
        Holder::Owner(Owner { id: Some(owner), .. }) if T::KIND == Kind::Service => {
            state.is_abandoned(record.name(), owner, Instant::now())
        }
        _ => false,
    }
}

/// The condition on which the object can be removed; `None` when there is none.
fn removal<T: Registered>(
    registry: &Registry,
    chain: &Chain,
    key: &Key,
) -> Result<Option<Expect>, RegisterError> {
    let state = registry.shared().state.lock();
    let Some(before) = state.catalogue.get::<T>(&key.name) else { return Ok(None) };
    // To those who must not know of it, it does not exist.
    if !before.audience.admits(&registry.viewer(&chain.claimant.caller))
        && !matches!(&before.holder, Holder::Owner(owner) if owner.id.as_ref() == Some(&chain.claimant.origin))
    {
        return Ok(None);
    }
    state
        .catalogue
        .claim::<T>(&key.name, &chain.claimant)
        .map_err(|fault| claim_error::<T>(registry, key, fault))?;
    match &before.holder {
        Holder::Owner(owner) => Ok(Some(Expect::Revision(owner.written))),
        Holder::Domain => Ok(None),
    }
}

/// Waits until the catalogue knows of what was quicker. Returns what the store has, in case the catalogue does not show
/// it.
async fn catch_up(registry: &Registry, found: Option<u64>, attempt: u32) -> Option<u64> {
    match found {
        Some(revision) => drop(tokio::time::timeout(APPLY, registry.applied(revision)).await),
        // Who removed it is not said.
        None => tokio::time::sleep(PAUSE * attempt).await,
    }
    found
}

fn claim_error<T: Registered>(registry: &Registry, key: &Key, fault: ClaimError) -> RegisterError {
    let (name, domain) = (key.name.clone(), registry.domain().clone());
    RegisterError::Claim { what: T::WHAT, name, domain, fault: Box::new(fault) }
}

fn refused(registry: &Registry, fault: StoreError) -> RegisterError {
    RegisterError::Store { domain: registry.domain().clone(), fault }
}

fn answer<T: Registered>(mut object: T, suffix: Option<&str>, chain: Chain) -> Response<T> {
    if let Some(suffix) = suffix {
        names::add_domain(&mut object, suffix);
    }
    with_path(Response::new(object), chain)
}

fn with_path<T>(mut response: Response<T>, chain: Chain) -> Response<T> {
    if let Some(path) = chain.answer() {
        response.metadata_mut().insert(PATH_KEY, path);
    }
    response
}

fn is_name(text: &str) -> bool {
    !text.is_empty() && text.len() <= MAX_NAME && !text.chars().any(char::is_control)
}

fn check_path_ids(path_ids: &[String]) -> Result<(), LimitError> {
    if path_ids.len() > MAX_PATH_IDS { Err(LimitError::PathIds(path_ids.len())) } else { Ok(()) }
}

/// When a registration ends: after [`MAX_LEASE`], with the tokens it came with, or when it asks to end, whichever is
/// first. An end that has passed is one of an earlier registration, which clients send along, and asks for nothing.
fn lease_end(asked: Option<SystemTime>, tokens: SystemTime, now: SystemTime) -> SystemTime {
    let asked = asked.filter(|asked| *asked > now);
    let end = (now + MAX_LEASE).min(tokens);
    let end = asked.map_or(end, |asked| end.min(asked));
    // Stores keep microseconds, and what is announced is what is kept.
    let micros = end.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_micros();
    SystemTime::UNIX_EPOCH + Duration::from_micros(u64::try_from(micros).unwrap_or(u64::MAX))
}

impl Registered for NetworkService {
    fn services(&self) -> impl Iterator<Item = &str> {
        [self.name.as_str()].into_iter()
    }

    fn path_ids(&mut self) -> &mut Vec<String> {
        &mut self.path_ids
    }

    fn says_the_same(&self, other: &Self) -> bool {
        self.payload == other.payload && self.matches == other.matches
    }

    fn check(&self) -> Result<(), LimitError> {
        check_path_ids(&self.path_ids)
    }

    fn limit(&mut self, _: SystemTime, _: SystemTime) {}

    /// Services stay until they are unregistered, as in NSM.
    fn stamp(&mut self, _: Option<&Self>, _: SystemTime, _: SystemTime) -> Option<SystemTime> {
        None
    }
}

impl Registered for NetworkServiceEndpoint {
    fn services(&self) -> impl Iterator<Item = &str> {
        self.network_service_names.iter().map(String::as_str)
    }

    fn path_ids(&mut self) -> &mut Vec<String> {
        &mut self.path_ids
    }

    fn says_the_same(&self, other: &Self) -> bool {
        self == other
    }

    fn check(&self) -> Result<(), LimitError> {
        let services = self.network_service_names.len();
        if services > MAX_SERVICES {
            return Err(LimitError::Services(services));
        }
        if !self.network_service_names.iter().all(|name| is_name(name)) {
            return Err(LimitError::ServiceName);
        }
        let labels = self.network_service_labels.values().map(|under| under.labels.len()).sum();
        if labels > MAX_LABELS {
            return Err(LimitError::Labels(labels));
        }
        if self.url.len() > MAX_URL {
            return Err(LimitError::Url(self.url.len()));
        }
        check_path_ids(&self.path_ids)
    }

    fn limit(&mut self, now: SystemTime, lease: SystemTime) {
        let asked = self.expiration_time.and_then(|asked| SystemTime::try_from(asked).ok());
        self.expiration_time = Some(lease_end(asked, lease, now).into());
    }

    fn stamp(&mut self, before: Option<&Self>, now: SystemTime, lease: SystemTime) -> Option<SystemTime> {
        let first = before.and_then(|before| before.initial_registration_time);
        // NSM's vL3 endpoints order themselves by it, so it stays, over a restart of the registry too.
        let first = first.or(self.initial_registration_time).unwrap_or_else(|| now.into());
        self.initial_registration_time = Some(first);
        self.limit(now, lease);
        self.ends()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    #[test]
    fn a_lease_ends_with_the_first_of_its_reasons() {
        let now = at(1000);
        assert_eq!(lease_end(None, at(1600), now), at(1060), "a minute at most");
        assert_eq!(lease_end(None, at(1030), now), at(1030), "the caller's token");
        assert_eq!(lease_end(Some(at(1010)), at(1600), now), at(1010), "what the caller asks");
        assert_eq!(lease_end(Some(at(5000)), at(1600), now), at(1060), "but no more than there is");
        assert_eq!(lease_end(Some(at(999)), at(1600), now), at(1060), "the end of an earlier registration");
        let fine = lease_end(Some(at(1010) + Duration::from_nanos(1_234_567)), at(1600), now);
        assert_eq!(fine, at(1010) + Duration::from_micros(1_234));
    }

    #[test]
    fn the_first_registration_stays_what_it_was() {
        let mut first = NetworkServiceEndpoint { name: "nse".into(), ..Default::default() };
        first.stamp(None, at(1000), at(1600));
        assert_eq!(first.initial_registration_time, Some(at(1000).into()));
        let mut refresh = NetworkServiceEndpoint { name: "nse".into(), ..Default::default() };
        refresh.stamp(Some(&first), at(1040), at(1600));
        assert_eq!(refresh.initial_registration_time, Some(at(1000).into()));
        assert_eq!(refresh.expiration_time, Some(at(1100).into()));
        let mut again = refresh.clone();
        again.stamp(None, at(2000), at(2600));
        assert_eq!(again.initial_registration_time, Some(at(1000).into()), "an endpoint knows its own age");
    }

    #[test]
    fn what_is_too_large_is_named() {
        let with = |change: fn(&mut NetworkServiceEndpoint)| {
            let mut endpoint = NetworkServiceEndpoint { name: "nse".into(), ..Default::default() };
            change(&mut endpoint);
            endpoint.check()
        };
        assert_eq!(with(|_| {}), Ok(()));
        assert_eq!(
            with(|e| e.network_service_names = vec!["s".into(); MAX_SERVICES + 1]),
            Err(LimitError::Services(MAX_SERVICES + 1))
        );
        assert_eq!(with(|e| e.network_service_names = vec![String::new()]), Err(LimitError::ServiceName));
        assert_eq!(with(|e| e.network_service_names = vec!["a\nb".into()]), Err(LimitError::ServiceName));
        assert_eq!(with(|e| e.url = "x".repeat(MAX_URL + 1)), Err(LimitError::Url(MAX_URL + 1)));
        assert_eq!(with(|e| e.path_ids = vec![String::new(); 65]), Err(LimitError::PathIds(65)));
        assert!(is_name("nse-1.x_y:z") && !is_name("") && !is_name("a\u{7f}") && !is_name(&"x".repeat(257)));
    }
}
