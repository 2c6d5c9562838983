//! A registry of Network Service Mesh that stays in charge of this domain's own names.
//!
//! What is registered there is mirrored here: [`MirrorStore`] is a store whose records are the objects of that registry, so
//! that everything else — Find, watches, admission, selection — is as with a store of our own. Nothing is written to it:
//! who registers with us is passed on ([`Upstream`]), tokens and all, and the registry decides.
//!
//! ```text
//!   Register ──▶ Upstream ──▶ NSM's registry ──▶ its watch ──▶ MirrorStore ──▶ catalogue ──▶ Find
//! ```
//!
//! - NSM's watch does not say where the initial state ends, and says nothing at all while there is nothing. So a full Find says what
//!   there is at the start, and another one every [`COMPARE`] what has gone without a word.
//! - While the registry is away, what it said last counts until leases end. NSM's registry forgets all when it restarts, and so
//!   does the mirror then: its clients register again.

use std::{
    collections::{
        HashMap,
        hash_map::{DefaultHasher, Entry},
    },
    hash::{Hash, Hasher},
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use carrick_identity::token::TokenPath;
use carrick_model::{Domain, SpiffeId};
use carrick_proto::registry::{NetworkService, NetworkServiceEndpoint};
use futures::{
    StreamExt as _,
    stream::{self, BoxStream},
};
use tokio::sync::mpsc;

use crate::{
    federation::{
        CALL_DEADLINE, Federated, RemoteAnswer, RemoteAnswers, RemoteFault, RemoteRegistries, answered,
    },
    limits::{MAX_NAME, MAX_OBJECT, MAX_REGISTRATIONS},
    register::Registered,
    store::{Change, Key, Store, StoreError, StoreEvent, StoredRecord},
};

/// How long a Find of everything may take: a million endpoints at NSM's rate.
const ALL: Duration = Duration::from_secs(60);
/// How long after the start the first comparison is made: what left between the first Find and the watch is found then.
const SETTLE: Duration = Duration::from_secs(1);
/// How often the mirror is compared with the registry. A change is told by the watch at once; this finds what the watch left out.
const COMPARE: Duration = Duration::from_secs(30);
/// Pause before a registry that is away is called again.
const AGAIN: Duration = Duration::from_secs(1);
/// Events that wait for the registry to take them in. The watch waits then, not the memory.
const WAITING: usize = 256;

/// The registry in charge, for those who register with us.
pub(crate) struct Upstream {
    pub(crate) domain: Domain,
    pub(crate) registry: Arc<dyn RemoteRegistries>,
}

impl Upstream {
    /// Passes a registration on. Returns what the registry made of it, and the tokens of the hops behind us.
    pub(crate) async fn register<T: Federated>(
        &self,
        object: T,
        path: TokenPath,
    ) -> Result<(T, Option<TokenPath>), RemoteFault> {
        let registered = T::remote(&*self.registry).register(&self.domain, object, path);
        answered(&self.domain, CALL_DEADLINE, registered).await
    }

    /// Passes the end of a registration on.
    pub(crate) async fn unregister<T: Federated>(
        &self,
        object: T,
        path: TokenPath,
    ) -> Result<(), RemoteFault> {
        let unregistered = T::remote(&*self.registry).unregister(&self.domain, object, path);
        answered(&self.domain, CALL_DEADLINE, unregistered).await
    }
}

/// A store that is what another registry has.
pub struct MirrorStore {
    name: String,
    domain: Domain,
    registry: Arc<dyn RemoteRegistries>,
}

impl MirrorStore {
    /// The objects that `registry` has when it is asked about `domain`, our own. `place` is where it is, for messages.
    pub fn new(place: &str, domain: Domain, registry: Arc<dyn RemoteRegistries>) -> Self {
        Self { name: format!("the registry at {place}"), domain, registry }
    }
}

#[tonic::async_trait]
impl Store for MirrorStore {
    fn name(&self) -> String {
        self.name.clone()
    }

    async fn commit(&self, _: Vec<Change>) -> Result<u64, StoreError> {
        let reason = "it takes registrations itself, and they are passed on to it".to_owned();
        Err(StoreError::ReadOnly { store: self.name.clone(), reason })
    }

    /// Leases end there, by its clock.
    fn is_shared(&self) -> bool {
        true
    }

    fn follow(&self) -> BoxStream<'static, StoreEvent> {
        let (events, told) = mpsc::channel(WAITING);
        let mirror = Mirror {
            domain: self.domain.clone(),
            registry: Arc::clone(&self.registry),
            events,
            known: Known::default(),
        };
        // The mirror runs where it is listened to: it ends with the stream.
        let run = stream::once(mirror.run()).filter_map(|never| async move { never });
        let told = stream::unfold(told, |mut told| async move { Some((told.recv().await?, told)) });
        stream::select(run, told).boxed()
    }
}

struct Mirror {
    domain: Domain,
    registry: Arc<dyn RemoteRegistries>,
    events: mpsc::Sender<StoreEvent>,
    known: Known,
}

/// What the registry has said so far: enough to tell whether it says something new.
#[derive(Debug, Default)]
struct Known {
    objects: HashMap<Key, Seen>,
    revision: u64,
}

#[derive(Debug)]
struct Seen {
    /// Of the object as it was encoded.
    hash: u64,
    /// Under which revision we told it.
    revision: u64,
    /// When it was last said to be there.
    at: Instant,
}

/// The follower has gone: nobody wants to hear anything.
struct Unheard;

impl Mirror {
    async fn run(mut self) -> Option<StoreEvent> {
        loop {
            let ended = match self.follow_once().await {
                Ok(never) => match never {},
                Err(End::Unheard) => return None,
                Err(End::Lost(fault)) => self.tell(StoreEvent::Lost(fault.to_string())).await,
            };
            if ended.is_err() {
                return None;
            }
            tokio::time::sleep(AGAIN).await;
        }
    }

    async fn follow_once(&mut self) -> Result<std::convert::Infallible, End> {
        let mut services = self.open::<NetworkService>().await?;
        let mut endpoints = self.open::<NetworkServiceEndpoint>().await?;
        // Both watches begin when they are first listened to, after this, and say once more what there is.
        for (key, record, revision) in self.first().await? {
            self.tell(StoreEvent::Record { key, record, revision }).await?;
        }
        self.tell(StoreEvent::Synced(self.known.revision)).await?;
        let mut compare = Box::pin(tokio::time::sleep(SETTLE));
        loop {
            tokio::select! {
                answer = services.next() => self.take(self.item(answer)?).await?,
                answer = endpoints.next() => self.take(self.item(answer)?).await?,
                () = &mut compare => {
                    self.compare().await?;
                    compare.set(tokio::time::sleep(COMPARE));
                }
            }
        }
    }

    async fn open<T: Federated>(&self) -> Result<RemoteAnswers<T>, End> {
        let registry = T::remote(&*self.registry);
        Ok(registry.find(&self.domain, T::default(), true).await?)
    }

    fn item<T>(&self, answer: Option<Result<RemoteAnswer<T>, RemoteFault>>) -> Result<RemoteAnswer<T>, End> {
        Ok(answer.unwrap_or_else(|| Err(RemoteFault::ended(&self.domain)))?)
    }

    /// Everything there is, as a store tells it first.
    async fn first(&mut self) -> Result<Vec<(Key, StoredRecord, u64)>, End> {
        let began = Instant::now();
        let all = self.everything().await?;
        let mut told = Vec::with_capacity(all.len());
        for (key, record) in all {
            self.known.is_news(&key, &record, began);
            let revision = self.known.objects.get(&key).map_or(0, |seen| seen.revision);
            told.push((key, record, revision));
        }
        self.known.forget_older(began);
        Ok(told)
    }

    /// Finds out what has changed without a word.
    async fn compare(&mut self) -> Result<(), End> {
        let began = Instant::now();
        for (key, record) in self.everything().await? {
            if self.known.is_news(&key, &record, began) {
                self.tell_change(key, Some(record)).await?;
            }
        }
        for key in self.known.forget_older(began) {
            self.known.revision += 1;
            self.tell_change(key, None).await?;
        }
        Ok(())
    }

    async fn everything(&self) -> Result<Vec<(Key, StoredRecord)>, End> {
        let mut all = self.all::<NetworkService>().await?;
        all.extend(self.all::<NetworkServiceEndpoint>().await?);
        Ok(all)
    }

    async fn all<T: Federated + Registered>(&self) -> Result<Vec<(Key, StoredRecord)>, End> {
        let asked = async {
            let mut answers = T::remote(&*self.registry).find(&self.domain, T::default(), false).await?;
            let mut all = Vec::new();
            while let Some(answer) = answers.next().await {
                let RemoteAnswer { object, deleted } = answer?;
                all.extend(stored(object).filter(|_| !deleted));
                if all.len() > MAX_REGISTRATIONS {
                    return Err(RemoteFault::too_much(
                        &self.domain,
                        MAX_REGISTRATIONS,
                        MAX_REGISTRATIONS * MAX_OBJECT,
                    ));
                }
            }
            Ok(all)
        };
        Ok(answered(&self.domain, ALL, asked).await?)
    }

    /// One thing that a watch said.
    async fn take<T: Federated + Registered>(&mut self, answer: RemoteAnswer<T>) -> Result<(), End> {
        let RemoteAnswer { object, deleted } = answer;
        if deleted {
            let key = Key { kind: T::KIND, name: object.name().to_owned() };
            if self.known.objects.remove(&key).is_none() {
                return Ok(());
            }
            self.known.revision += 1;
            return Ok(self.tell_change(key, None).await?);
        }
        let Some((key, record)) = stored(object) else { return Ok(()) };
        if self.known.is_news(&key, &record, Instant::now()) {
            self.tell_change(key, Some(record)).await?;
        }
        Ok(())
    }

    async fn tell_change(&self, key: Key, record: Option<StoredRecord>) -> Result<(), Unheard> {
        let revision = self.known.revision;
        self.tell(StoreEvent::Committed { revision, changes: vec![(key, record)] }).await
    }

    async fn tell(&self, event: StoreEvent) -> Result<(), Unheard> {
        self.events.send(event).await.map_err(|_| Unheard)
    }
}

impl Known {
    /// Takes in that an object is there at `at`. Says whether it is new or not as it was.
    fn is_news(&mut self, key: &Key, record: &StoredRecord, at: Instant) -> bool {
        let mut hasher = DefaultHasher::new();
        record.object.hash(&mut hasher);
        let hash = hasher.finish();
        match self.objects.entry(key.clone()) {
            Entry::Occupied(mut seen) if seen.get().hash == hash => {
                let seen = seen.get_mut();
                seen.at = seen.at.max(at);
                false
            }
            entry => {
                self.revision += 1;
                entry.insert_entry(Seen { hash, revision: self.revision, at });
                true
            }
        }
    }

    /// What was not said to be there at `at` or later is gone.
    fn forget_older(&mut self, at: Instant) -> Vec<Key> {
        let gone: Vec<Key> =
            self.objects.iter().filter(|(_, seen)| seen.at < at).map(|(key, _)| key.clone()).collect();
        for key in &gone {
            self.objects.remove(key);
        }
        gone
    }
}

/// An object as a store keeps it; `None` for what we would not have taken ourselves.
fn stored<T: Federated + Registered>(mut object: T) -> Option<(Key, StoredRecord)> {
    let name = object.name().to_owned();
    let plain = |name: &str| !name.is_empty() && !name.contains('@') && name.len() <= MAX_NAME;
    if !object.services().chain([name.as_str()]).all(plain)
        || object.check().is_err()
        || object.encoded_len() > MAX_OBJECT
    {
        tracing::debug!(
            name,
            kind = T::WHAT,
            "an object of NSM's registry is not mirrored: its names or its size"
        );
        return None;
    }
    let octets = object.encode_to_vec();
    let expires: Option<SystemTime> = object.ends();
    let mut ids = object.path_ids().iter().map(|id| SpiffeId::new(id).ok());
    let (owner, via) = (ids.next().flatten(), ids.next().flatten());
    Some((Key { kind: T::KIND, name }, StoredRecord { object: octets, owner, via, expires }))
}

/// Why following ended.
enum End {
    Lost(RemoteFault),
    Unheard,
}

impl From<RemoteFault> for End {
    fn from(fault: RemoteFault) -> Self {
        Self::Lost(fault)
    }
}

impl From<Unheard> for End {
    fn from(_: Unheard) -> Self {
        Self::Unheard
    }
}

#[cfg(test)]
mod tests;
