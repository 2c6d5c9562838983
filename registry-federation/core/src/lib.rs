//! The catalogue without IO: services, endpoints, matching, leases, watches.
//!
//! A [`Catalogue`] holds two kinds of objects, network services and endpoints, each under its name. Whoever looks into
//! it brings a [`Filter`]: a query (a template in NSM's own messages) and a [`Viewer`]. An object is *in the view* of a
//! filter when the query matches it and its [`Audience`] admits the viewer.
//!
//! # Invariants
//!
//! 1. **A view is a view.** A watcher that has been drained has been told exactly what a `find` with its filter would
//!    return. An object that leaves the view, because it is gone, expired, changed or hidden, is reported as gone with
//!    the last state the watcher could have seen; NSM itself leaves a watcher with a stale object when a change makes
//!    it stop matching.
//! 2. **Nobody waits for anybody.** An event costs a watcher at most one entry of its pending set, which is keyed by
//!    object: the latest state wins, and what appeared and vanished between two drains is not mentioned. So the set
//!    never outgrows what the watcher was told plus what is in its view, however slow it is.
//! 3. **The initial state is not copied.** A watch starts as a [`Walk`] over the objects in name order; a change ahead of
//!    the walk is left to the walk, a change behind it becomes pending.
//! 4. **Only candidates are looked at.** Objects are indexed by their terms; a filter follows its rarest term, a
//!    change reaches only watches that follow one of the object's terms. A part of a URL is looked for among the URLs
//!    there are, as long as that is quicker; else it goes by the other terms, in bounded steps.
//! 5. **Every change has a revision**, higher than all before it. A watcher that was drained at a revision and comes back
//!    with it is told what changed since, or gets the whole state when too much has ([`Catalogue::resume`]).
//! 6. **A name belongs to whoever registered it** until it unregisters or its lease ends ([`Claimant::may_take`]). The
//!    catalogue answers claims; that two replicas do not grant one name twice is for their common store.
//!
//! ```text
//!   register / unregister / set_audience ─┐                            ┌─▶ poll_event   which watches have news
//!                                         ├─▶ Catalogue (two shelves) ─┼─▶ poll_update  the news of one watch
//!   handle_timeout(now) ── leases ────────┘                            └─▶ poll_timeout when the next lease ends
//! ```
//!
//! The matching rules are NSM's (`tools/matchutils` of its SDK): see [`Object::matches`].

mod catalogue;
mod filter;
mod history;
mod names;
mod ownership;
mod pending;
mod record;
mod shelf;
mod term;
mod url;
mod walk;

pub use catalogue::{Catalogue, Event, Lapse, Resumed, Timeout};
pub use filter::{Audience, Filter, Kind, Object, Viewer};
pub use ownership::{ClaimError, Claimant, Holder, Owner};
pub use record::{Record, RegisterError, Registration, Revision};
pub use shelf::WatchId;
pub use walk::{Step, Update, Walk};
