//! Whose turn it is when the flows of a tunnel wait for its window.
//!
//! A window that frees a little at a time serves whoever tries first, so those who wait for it stand in a line. The window
//! itself tells a flow that it has room again, but in no order that would be fair, and it tells all of them for an
//! octet's room. So who is told may try only when nobody stands before it, and when it has written it calls the next one.
//!
//! A flow that finds no room cannot know which window is full: its own, at a peer that does not read, or the tunnel's. It steps
//! aside until it is told of room, and the next one tries. But one that *was told* of room has it in its own window, so
//! when it fails, the tunnel's is full: nobody else need try before that one is told again. Thus a full window costs one
//! try for each piece of room, however many wait, and a flow whose own window is full holds up nobody.

use std::collections::{BTreeMap, BTreeSet};

/// A flow's place in a [`Line`], in order of arrival.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(u64);

/// What a flow has to write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Length {
    /// Little, as what opens a flow, answers a keystroke, or is a request. It goes before what is long, but two short ones
    /// never in a row while a long one may try.
    Short,
    /// A piece of a bulk transfer.
    Long,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// Tried, and waits to be told of room.
    Aside,
    /// May try when it is first; `told` of room, or not tried yet.
    Ready { told: bool },
}

#[derive(Debug)]
struct Waiting<W> {
    place: Place,
    length: Length,
    who: W,
}

/// What a flow that stands in the line does when it is woken.
#[derive(Debug, PartialEq, Eq)]
pub enum Look<W> {
    /// Try, and report with [`Line::tried`] or [`Line::leave`].
    Try(Attempt),
    /// It is this one's turn: wake it, and wait.
    Wake(W),
    /// Wait to be woken.
    Wait,
}

/// A try that was allowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attempt {
    told: bool,
}

/// The flows of one tunnel that wait for room; `W` wakes one.
///
/// While somebody is ready to try, either one of the line was called and has not looked yet, or one that was told of room
/// failed since and will be told again: nobody waits for ever.
#[derive(Debug)]
pub struct Line<W> {
    next: u64,
    waiting: BTreeMap<Ticket, Waiting<W>>,
    /// Of those waiting, who may try: the short and the long.
    ready: [BTreeSet<Ticket>; 2],
    /// Somebody was called and has not looked yet.
    called: bool,
    /// A short one was the last to leave.
    short_last: bool,
}

impl<W> Default for Line<W> {
    fn default() -> Self {
        Self {
            next: 0,
            waiting: BTreeMap::new(),
            ready: [BTreeSet::new(), BTreeSet::new()],
            called: false,
            short_last: false,
        }
    }
}

impl<W: Clone> Line<W> {
    /// Whether somebody is ready to try, so that who comes now has to stand behind.
    pub fn has_ready(&self) -> bool {
        self.ready.iter().any(|ready| !ready.is_empty())
    }

    /// Whether nobody waits.
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// A flow that came while others were ready to try, or tried and found no room. `who` wakes it. It has to look at once.
    pub fn enter(&mut self, length: Length, who: W) -> Ticket {
        self.called |= !self.has_ready();
        let ticket = Ticket(self.next);
        self.next += 1;
        self.waiting.insert(ticket, Waiting { place: Place::Ready { told: false }, length, who });
        self.ready[length as usize].insert(ticket);
        ticket
    }

    /// The window says that this one has room. Returns who has to be woken.
    pub fn told(&mut self, ticket: Ticket) -> Option<W> {
        let waiting = self.waiting.get_mut(&ticket)?;
        waiting.place = Place::Ready { told: true };
        self.ready[waiting.length as usize].insert(ticket);
        // Of many that are told at once, one is woken, which calls the first of them when all have been told.
        let first = !std::mem::replace(&mut self.called, true);
        first.then(|| waiting.who.clone())
    }

    /// What the flow does now that it was woken, for whatever reason.
    pub fn look(&mut self, ticket: Ticket, who: &W) -> Look<W> {
        let first = self.first();
        let Some(waiting) = self.waiting.get_mut(&ticket) else { return Look::Wait };
        waiting.who.clone_from(who);
        if !self.called {
            return Look::Wait;
        }
        match (first, waiting.place) {
            (Some(first), Place::Ready { told }) if first == ticket => {
                self.called = false;
                self.ready[waiting.length as usize].remove(&ticket);
                // From now on it may be told of room, even before it has reported.
                waiting.place = Place::Aside;
                Look::Try(Attempt { told })
            }
            (Some(first), _) => self.waiting.get(&first).map_or(Look::Wait, |w| Look::Wake(w.who.clone())),
            (None, _) => Look::Wait,
        }
    }

    /// The try ended for want of room, after a part was written or none was. Returns who has to be woken.
    ///
    /// After `progress` the flow may have filled its own window, whatever it was told before.
    pub fn tried(&mut self, attempt: Attempt, progress: bool) -> Option<W> {
        if attempt.told && !progress { None } else { self.call() }
    }

    /// The flow has written all of its piece, or is gone. Returns who has to be woken.
    pub fn leave(&mut self, ticket: Ticket) -> Option<W> {
        let left = self.waiting.remove(&ticket)?;
        self.ready[left.length as usize].remove(&ticket);
        self.short_last = left.length == Length::Short;
        self.call()
    }

    fn call(&mut self) -> Option<W> {
        let first = self.first();
        self.called = first.is_some();
        Some(self.waiting.get(&first?)?.who.clone())
    }

    fn first(&self) -> Option<Ticket> {
        let [short, long] = &self.ready;
        let order = if self.short_last { [long, short] } else { [short, long] };
        order.into_iter().find_map(|ready| ready.first().copied())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use proptest::prelude::*;

    use super::*;

    /// A tunnel as QUIC libraries keep it: a window for all, one for each flow, and those told last in, first out.
    #[derive(Default)]
    struct Tunnel {
        line: Line<usize>,
        room: u64,
        flows: Vec<Flow>,
        /// Told of room when the tunnel has some.
        blocked: Vec<usize>,
        /// Woken tasks, in order.
        woken: VecDeque<usize>,
        tries: usize,
    }

    #[derive(Default, Clone)]
    struct Flow {
        room: u64,
        ticket: Option<Ticket>,
        /// What is left of its piece; a flow without one is idle.
        piece: Option<u64>,
        short: bool,
        blocked: bool,
        written: u64,
    }

    impl Tunnel {
        fn new(flows: usize, room: u64) -> Self {
            let flow = Flow { room, ..Flow::default() };
            Self { flows: vec![flow; flows], ..Self::default() }
        }

        fn wake(&mut self, flow: Option<usize>) {
            self.woken.extend(flow);
        }

        /// Whether all of the piece was written, and whether a part was.
        fn write(&mut self, i: usize) -> (bool, bool) {
            self.tries += 1;
            let flow = &mut self.flows[i];
            let mut progress = false;
            loop {
                let Some(left) = flow.piece.filter(|left| *left > 0) else { return (true, progress) };
                if self.room == 0 {
                    if !std::mem::replace(&mut flow.blocked, true) {
                        self.blocked.push(i);
                    }
                    return (false, progress);
                }
                let n = left.min(flow.room).min(self.room);
                if n == 0 {
                    return (false, progress);
                }
                progress = true;
                flow.piece = Some(left - n);
                flow.written += n;
                flow.room -= n;
                self.room -= n;
            }
        }

        /// What the shell does when the flow's task runs.
        fn poll(&mut self, i: usize) {
            if self.flows[i].piece.is_none() {
                return;
            }
            if self.flows[i].ticket.is_none() && !self.line.has_ready() && self.write(i).0 {
                self.flows[i].piece = None;
                return;
            }
            let length = if self.flows[i].short { Length::Short } else { Length::Long };
            let ticket = match self.flows[i].ticket {
                Some(ticket) => ticket,
                None => *self.flows[i].ticket.insert(self.line.enter(length, i)),
            };
            match self.line.look(ticket, &i) {
                Look::Try(attempt) => match self.write(i) {
                    (true, _) => self.leave(i),
                    (false, progress) => {
                        let called = self.line.tried(attempt, progress);
                        self.wake(called);
                    }
                },
                Look::Wake(other) => self.wake(Some(other)),
                Look::Wait => {}
            }
        }

        fn leave(&mut self, i: usize) {
            self.flows[i].piece = None;
            if let Some(ticket) = self.flows[i].ticket.take() {
                let called = self.line.leave(ticket);
                self.wake(called);
            }
        }

        fn told(&mut self, i: usize) {
            let called = self.flows[i].ticket.and_then(|ticket| self.line.told(ticket));
            self.wake(called);
        }

        fn acknowledged(&mut self, octets: u64) {
            self.room += octets;
            while let Some(i) = self.blocked.pop() {
                self.flows[i].blocked = false;
                if self.flows[i].room > 0 {
                    self.told(i);
                }
            }
        }

        fn granted(&mut self, i: usize, octets: u64) {
            let was_full = self.flows[i].room == 0;
            self.flows[i].room += octets;
            if was_full && self.room > 0 {
                self.told(i);
            } else if was_full && !std::mem::replace(&mut self.flows[i].blocked, true) {
                self.blocked.push(i);
            }
        }

        /// Runs what was woken; a flow that `goes_on` has its next piece as soon as one is written.
        fn run(&mut self, goes_on: Option<u64>) {
            while let Some(i) = self.woken.pop_front() {
                self.poll(i);
                if let Some(piece) = goes_on
                    && self.flows[i].piece.is_none()
                {
                    self.flows[i].piece = Some(piece);
                    self.woken.push_back(i);
                }
            }
        }
    }

    #[test]
    fn bulk_flows_share_a_full_window_and_it_costs_few_tries() {
        let (flows, piece, acknowledged) = (64, 96, 20);
        let mut tunnel = Tunnel::new(flows, u64::MAX);
        for i in 0..flows {
            tunnel.flows[i].piece = Some(piece);
            tunnel.woken.push_back(i);
        }
        tunnel.run(Some(piece));
        tunnel.tries = 0;
        let times = 64 * 100;
        for _ in 0..times {
            tunnel.acknowledged(acknowledged);
            tunnel.run(Some(piece));
        }
        let most = tunnel.flows.iter().map(|flow| flow.written).max().unwrap();
        let least = tunnel.flows.iter().map(|flow| flow.written).min().unwrap();
        assert!(most - least <= 2 * piece, "{least}..{most}");
        assert_eq!(tunnel.flows.iter().map(|flow| flow.written).sum::<u64>(), times * acknowledged);
        assert!(tunnel.tries as u64 <= 3 * times, "{} tries for {times} pieces of room", tunnel.tries);
    }

    #[test]
    fn a_flow_whose_own_window_is_full_holds_up_nobody() {
        let mut tunnel = Tunnel::new(3, 1000);
        tunnel.flows[0].room = 10;
        tunnel.room = 15;
        for i in 0..3 {
            tunnel.flows[i].piece = Some(100);
            tunnel.poll(i);
        }
        tunnel.run(None);
        tunnel.acknowledged(500);
        tunnel.run(None);
        assert_eq!(tunnel.flows.iter().map(|flow| flow.written).collect::<Vec<_>>(), [10, 100, 100]);
        tunnel.granted(0, 1000);
        tunnel.run(None);
        assert_eq!(tunnel.flows[0].written, 100);
    }

    #[test]
    fn little_goes_before_much_but_every_other_time_only() {
        let mut tunnel = Tunnel::new(6, u64::MAX);
        for i in 0..6 {
            tunnel.flows[i].short = i >= 3;
            tunnel.flows[i].piece = Some(10);
            tunnel.poll(i);
        }
        tunnel.run(None);
        let mut order = Vec::new();
        for _ in 0..6 {
            tunnel.acknowledged(10);
            tunnel.run(None);
            order.extend((0..6).find(|i| tunnel.flows[*i].written > 0 && !order.contains(i)));
        }
        assert_eq!(order, [3, 0, 4, 1, 5, 2]);
    }

    #[derive(Debug, Clone)]
    enum Step {
        Piece { flow: usize, octets: u64, short: bool },
        Acknowledged(u64),
        Granted { flow: usize, octets: u64 },
        Killed(usize),
        Polled(usize),
        Runs(usize),
    }

    fn step() -> impl Strategy<Value = Step> {
        let flow = 0usize..8;
        prop_oneof![
            3 => (flow.clone(), 1u64..200, any::<bool>()).prop_map(|(flow, octets, short)| Step::Piece { flow, octets, short }),
            3 => (1u64..100).prop_map(Step::Acknowledged),
            2 => (flow.clone(), 1u64..100).prop_map(|(flow, octets)| Step::Granted { flow, octets }),
            1 => flow.clone().prop_map(Step::Killed),
            2 => flow.prop_map(Step::Polled),
            4 => (1usize..6).prop_map(Step::Runs),
        ]
    }

    proptest! {
        /// Whatever happens in whatever order, nobody waits who has room.
        #[test]
        fn nobody_waits_who_has_room(steps in prop::collection::vec(step(), 1..200)) {
            let mut tunnel = Tunnel::new(8, 50);
            for step in steps {
                match step {
                    Step::Piece { flow, octets, short } => {
                        if tunnel.flows[flow].piece.is_none() {
                            tunnel.flows[flow].piece = Some(octets);
                            tunnel.flows[flow].short = short;
                            tunnel.poll(flow);
                        }
                    }
                    Step::Acknowledged(octets) => tunnel.acknowledged(octets),
                    Step::Granted { flow, octets } => tunnel.granted(flow, octets),
                    Step::Killed(flow) => tunnel.leave(flow),
                    Step::Polled(flow) => tunnel.poll(flow),
                    Step::Runs(times) => {
                        for _ in 0..times {
                            if let Some(i) = tunnel.woken.pop_front() {
                                tunnel.poll(i);
                            }
                        }
                    }
                }
            }
            tunnel.run(None);
            for (i, flow) in tunnel.flows.iter().enumerate() {
                prop_assert!(tunnel.room == 0 || flow.room == 0 || flow.piece.is_none(), "flow {i} waits");
            }
            let waiting = tunnel.flows.iter().filter(|flow| flow.piece.is_some()).count();
            prop_assert_eq!(tunnel.line.waiting.len(), waiting);
        }
    }
}
