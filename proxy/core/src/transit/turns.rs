//! What is done with one connection: its calls, one after the other, each step by step.

use std::{collections::VecDeque, mem};

use carrick_proto::connection::State;

use super::{
    Candidate, Carried, EndReason, HopClose, HopFault, HopFaultKind, HopRequest, MAX_CANDIDATES, SelectQuery,
    Step, StepId, Ticket, Transit, TransitEvent, TransitFault, TransitRequest, Verdict, address,
    entry::{Asking, CloseTokens, Doing, Entry, Held, Job, renamed},
    names,
};
use crate::{clock::Now, path::Path};

impl Transit {
    /// Begins what waits, until something runs.
    pub(super) fn proceed(&mut self, entry: &mut Entry, now: Now) {
        while entry.running.is_none() {
            match entry.waiting.pop_front() {
                Some(Job::Request(ticket, request)) => self.begin(entry, ticket, request, now),
                Some(Job::Close(ticket, why, tokens)) => {
                    if ticket.is_none() {
                        entry.ending = false;
                        // A refresh came between.
                        if why == EndReason::Expired && entry.lease_end > now.mono {
                            continue;
                        }
                    }
                    self.close(entry, ticket, why, tokens.as_deref());
                }
                Some(Job::CloseUnknown(ticket, carried)) => {
                    let query = query_of(entry, &carried);
                    let step = self.step(entry, Doing::Locating { ticket, carried });
                    self.steps.push_back(Step::Select(step, query));
                }
                None => {
                    let Some(due) = entry.leftovers.iter().position(|l| l.next <= now.mono) else { return };
                    let leftover = entry.leftovers.swap_remove(due);
                    let close = HopClose { hop: leftover.hop.clone(), carried: leftover.carried.clone() };
                    let step = self.step(entry, Doing::Sweeping(Box::new(leftover)));
                    self.steps.push_back(Step::Close(step, Box::new(close)));
                }
            }
        }
    }

    pub(super) fn begin(
        &mut self,
        entry: &mut Entry,
        ticket: Ticket,
        request: Box<TransitRequest>,
        now: Now,
    ) {
        if request.deadline <= now.mono {
            return self.events.push_back(TransitEvent::Failed(ticket, TransitFault::Late));
        }
        if entry.held.is_none() {
            // So long a hop may remember what we are about to ask of it.
            let caller = (request.carried.path.index as usize).checked_sub(1);
            let end = caller.and_then(|i| request.carried.path.segments.get(i)).and_then(|s| s.expires);
            entry.lease_end = now.mono + self.lease(end, now).unwrap_or_default();
        }
        if request.carried.connection.state() == State::ReselectRequested {
            // Who asks for another endpoint leaves the name out; a hop before us that has chosen one already names it.
            if let Some(held) = entry.held.take() {
                self.events.push_back(TransitEvent::HeldAt { id: entry.id.clone(), hop: None });
                let close = HopClose { hop: held.hop.clone(), carried: held.to_close(None) };
                let held = Box::new(held);
                let step = self.step(entry, Doing::Reselecting { ticket, request, held });
                return self.steps.push_back(Step::Close(step, Box::new(close)));
            }
        }
        self.select(entry, ticket, request);
    }

    pub(super) fn select(&mut self, entry: &mut Entry, ticket: Ticket, request: Box<TransitRequest>) {
        let query = query_of(entry, &request.carried);
        let step = self.step(entry, Doing::Selecting { ticket, request });
        self.steps.push_back(Step::Select(step, query));
    }

    pub(super) fn selected(
        &mut self,
        entry: &mut Entry,
        ticket: Ticket,
        mut request: Box<TransitRequest>,
        result: Result<Vec<Candidate>, HopFault>,
        now: Now,
    ) {
        let same = entry.held.as_ref().filter(|held| held.is_what(&request.carried.connection));
        let mut candidates = match (result, same) {
            (Ok(candidates), _) if !candidates.is_empty() => candidates,
            // The registry may have lost the endpoint, or be lost itself; the connection is alive as long as its endpoint says so.
            (_, Some(held)) => vec![held.candidate()],
            (Ok(_), None) => {
                let service = request.carried.connection.network_service.clone();
                return self.failed(entry, ticket, TransitFault::NoCandidate { service });
            }
            (Err(fault), None) => return self.failed(entry, ticket, TransitFault::Select(fault)),
        };
        candidates.truncate(MAX_CANDIDATES);
        // Sent again because its answer was lost: the hops behind us are known all the same.
        let ours = request.carried.path.index as usize;
        if let Some(held) = &entry.held
            && request.carried.path.segments.len() == ours + 1
        {
            request.carried.path.segments.extend(held.carried.path.segments.iter().skip(ours + 1).cloned());
        }
        self.ask(entry, ticket, request, candidates.into(), Vec::new(), now);
    }

    /// Asks the next candidate. With others behind it, it gets half of the time that is left.
    pub(super) fn ask(
        &mut self,
        entry: &mut Entry,
        ticket: Ticket,
        request: Box<TransitRequest>,
        mut rest: VecDeque<Candidate>,
        faults: Vec<(String, HopFault)>,
        now: Now,
    ) {
        let Some(current) = rest.pop_front() else {
            return self.failed(entry, ticket, TransitFault::Hops(faults));
        };
        let left = request.deadline.saturating_duration_since(now.mono);
        if left.is_zero() {
            let fault = if faults.is_empty() { TransitFault::Late } else { TransitFault::Hops(faults) };
            return self.failed(entry, ticket, fault);
        }
        let deadline = if rest.is_empty() { request.deadline } else { now.mono + left / 2 };
        let mut connection = renamed(&request.carried.connection, &entry.id, &current);
        if !current.payload.is_empty() {
            connection.payload.clone_from(&current.payload);
        }
        connection.labels.extend(self.cluster.iter().map(|(k, v)| (k.clone(), v.clone())));
        let mut preferences = request.preferences.clone();
        let side = address::side(current.leaves, connection.mechanism.iter().chain(&preferences));
        for mechanism in connection.mechanism.iter_mut().chain(&mut preferences) {
            self.addresses.translate_request(side, mechanism);
        }
        let sent = Carried { connection, path: request.carried.path.clone() };
        let hop_request = HopRequest {
            hop: current.hop.clone(),
            carried: sent.clone(),
            preferences,
            unknown_fields: request.unknown_fields.clone(),
            deadline,
        };
        let asking = Asking { ticket, request, current, side, sent, rest, faults };
        let step = self.step(entry, Doing::Asking(Box::new(asking)));
        self.steps.push_back(Step::Request(step, Box::new(hop_request)));
    }

    pub(super) fn granted(&mut self, entry: &mut Entry, asking: Asking, reply: Carried, now: Now) {
        let Asking { ticket, request, current, side, .. } = asking;
        let asked = &request.carried.connection;
        let mut shown = reply.clone();
        let connection = &mut shown.connection;
        entry.id.clone_into(&mut connection.id);
        connection.network_service_endpoint_name = names::restored(
            &asked.network_service,
            &asked.network_service_endpoint_name,
            &current.service,
            &reply.connection.network_service_endpoint_name,
        );
        connection.network_service.clone_from(&asked.network_service);
        if let Some(mechanism) = &mut connection.mechanism {
            self.addresses.translate_reply(side, mechanism);
        }
        connection.set_state(State::Up);

        let mut answer = shown.clone();
        let caller = request.carried.path.index.saturating_sub(1);
        answer.path.restore(caller).unwrap_or_default().clone_into(&mut answer.connection.id);

        let caller_end = reply.path.segments.get(caller as usize).and_then(|s| s.expires);
        entry.lease_end = now.mono + self.lease(caller_end, now).unwrap_or_default();
        entry.leftovers.retain(|l| l.hop != current.hop);
        let moved = entry.held.as_ref().is_none_or(|h| h.hop != current.hop);
        let endpoint = reply.connection.network_service_endpoint_name.clone();
        self.events
            .push_back(TransitEvent::Tried { known_as: current.known_as.clone(), verdict: Verdict::Granted });
        entry.held = Some(Held {
            hop: current.hop.clone(),
            asked_service: asked.network_service.clone(),
            service: current.service,
            endpoint,
            leaves: current.leaves,
            known_as: current.known_as,
            labels: asked.labels.clone(),
            carried: reply,
            shown: shown.clone(),
        });
        entry.published = true;
        let (id, owner) = (entry.id.clone(), entry.owner.clone());
        if moved {
            self.events.push_back(TransitEvent::HeldAt { id: id.clone(), hop: Some(current.hop) });
        }
        self.events.push_back(TransitEvent::Published { id, owner, carried: Box::new(shown) });
        self.events.push_back(TransitEvent::Granted(ticket, Box::new(answer)));
    }

    pub(super) fn not_granted(&mut self, entry: &mut Entry, asking: Asking, fault: HopFault, now: Now) {
        let Asking { ticket, request, current, sent, mut rest, mut faults, .. } = asking;
        let held_there = entry.held.as_ref().is_some_and(|h| h.hop == current.hop);
        if fault.kind == HopFaultKind::Unknown && !held_there {
            entry.suspect(&current.hop, sent, now.mono);
        }
        if fault.kind == HopFaultKind::NotSent {
            // Others behind the same hop are not reached either.
            rest.retain(|c| c.hop != current.hop);
        }
        let refused = fault.kind == HopFaultKind::Refused;
        let verdict = if refused { Verdict::Refused } else { Verdict::Silent };
        self.events.push_back(TransitEvent::Tried { known_as: current.known_as, verdict });
        faults.push((current.hop.to_string(), fault));
        self.ask(entry, ticket, request, rest, faults, now);
    }

    /// A request is not granted: what was held stays held, and is down.
    pub(super) fn failed(&mut self, entry: &mut Entry, ticket: Ticket, fault: TransitFault) {
        if let Some(held) = entry.held.as_mut().filter(|h| !h.is_down()) {
            held.set_state(State::Down);
            let (id, owner) = (entry.id.clone(), entry.owner.clone());
            let carried = Box::new(held.shown.clone());
            self.events.push_back(TransitEvent::Published { id, owner, carried });
        }
        if entry.held.is_none() && mem::take(&mut entry.published) {
            self.events.push_back(TransitEvent::Gone { id: entry.id.clone(), why: EndReason::Closed });
        }
        self.events.push_back(TransitEvent::Failed(ticket, fault));
    }

    pub(super) fn close(
        &mut self,
        entry: &mut Entry,
        ticket: Option<Ticket>,
        why: EndReason,
        tokens: Option<&CloseTokens>,
    ) {
        let Some(held) = entry.held.take() else {
            if let Some(ticket) = ticket {
                self.events.push_back(TransitEvent::Closed(ticket, Ok(())));
            }
            return;
        };
        self.events.push_back(TransitEvent::HeldAt { id: entry.id.clone(), hop: None });
        let close = HopClose { hop: held.hop.clone(), carried: held.to_close(tokens) };
        let step = self.step(entry, Doing::Closing { ticket, held: Box::new(held), why });
        self.steps.push_back(Step::Close(step, Box::new(close)));
    }

    /// A close was answered, or was not.
    pub(super) fn told(
        &mut self,
        entry: &mut Entry,
        step: StepId,
        doing: Doing,
        result: Result<(), HopFault>,
        now: Now,
    ) {
        let unheard = matches!(&result, Err(f) if f.kind != HopFaultKind::Refused);
        let over = entry.lease_end <= now.mono;
        match doing {
            Doing::Closing { ticket, held, why } => {
                // With the lease over, so is the next hop's: what could not be told now ends by itself.
                if unheard && !over {
                    entry.suspect(&held.hop, held.carried.clone(), now.mono);
                }
                entry.published = false;
                self.events.push_back(TransitEvent::Gone { id: entry.id.clone(), why });
                if let Some(ticket) = ticket {
                    self.events.push_back(TransitEvent::Closed(ticket, result));
                }
            }
            Doing::Reselecting { ticket, request, held } => {
                if unheard {
                    entry.suspect(&held.hop, held.carried.clone(), now.mono);
                }
                self.select(entry, ticket, request);
            }
            Doing::Sweeping(leftover) => {
                if unheard && !over {
                    entry.leftovers.push(leftover.postponed(now.mono));
                }
                entry.leftovers.retain(|_| !over);
            }
            // The answer for what is not known is always yes.
            Doing::Forwarding { ticket } => self.events.push_back(TransitEvent::Closed(ticket, Ok(()))),
            other => other.put_back(entry, step),
        }
    }

    pub(super) fn located(
        &mut self,
        entry: &mut Entry,
        ticket: Ticket,
        carried: &Carried,
        result: Result<Vec<Candidate>, HopFault>,
    ) {
        let Some(candidate) = result.ok().and_then(|c| c.into_iter().next()) else {
            return self.events.push_back(TransitEvent::Closed(ticket, Ok(())));
        };
        let connection = renamed(&carried.connection, &entry.id, &candidate);
        let close =
            HopClose { hop: candidate.hop, carried: Carried { connection, path: carried.path.clone() } };
        let step = self.step(entry, Doing::Forwarding { ticket });
        self.steps.push_back(Step::Close(step, Box::new(close)));
    }
}

fn query_of(entry: &Entry, carried: &Carried) -> Box<SelectQuery> {
    let connection = &carried.connection;
    let reselect = connection.state() == State::ReselectRequested;
    Box::new(SelectQuery {
        caller: entry.owner.clone(),
        service: connection.network_service.clone(),
        endpoint: connection.network_service_endpoint_name.clone(),
        reselect,
        labels: connection.labels.clone(),
        payload: connection.payload.clone(),
        previous: entry.origin.name.clone(),
        next: if reselect {
            String::new()
        } else {
            carried.path.next().map(|s| s.name.clone()).unwrap_or_default()
        },
    })
}

/// The next hop's answer, if it is about our connection and leaves the hops before us alone.
pub(super) fn checked(sent: &Path, id: &str, mut reply: Carried) -> Result<Carried, String> {
    reply.path.check().map_err(|fault| format!("the answer's path is bad: {fault}"))?;
    if reply.path.index != sent.index || reply.connection.id != id {
        return Err("the answer is not about the connection that was asked for".to_owned());
    }
    let ours = sent.index as usize;
    let same = sent.segments.len() > ours
        && reply.path.segments.len() > ours
        && sent
            .segments
            .iter()
            .zip(&reply.path.segments)
            .take(ours + 1)
            .all(|(a, b)| a.name == b.name && a.id == b.id);
    if !same {
        return Err("the answer's path is another one than was sent".to_owned());
    }
    // Tokens and measurements of the hops before us are theirs; our own token is the one that the next hop was shown.
    for (segment, known) in reply.path.segments.iter_mut().zip(&sent.segments).take(ours) {
        segment.clone_from(known);
    }
    reply.connection.path = None;
    Ok(reply)
}
