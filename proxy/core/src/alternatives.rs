//! One import, several domains that offer it: which of them its flows go to.
//!
//! Each alternative connects by itself, so that the others are warm when one is lost; this only says which are in use.

use std::time::{Duration, Instant};

/// How long a better alternative has to be there before flows move back to it: one that comes and goes would move them to and fro.
pub const HOLD: Duration = Duration::from_secs(10);
/// How much faster another alternative has to be: less is noise.
const FASTER: f64 = 0.8;

/// Which of several equal services is used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Strategy {
    /// The first that is up.
    Priority,
    /// All that are up, flows in these shares; one for each alternative.
    Weighted(Vec<u32>),
    /// The one that answers fastest.
    Nearest,
}

/// Chooses among alternatives, which are numbered from 0.
#[derive(Debug)]
pub struct Alternatives {
    strategy: Strategy,
    all: Vec<Option<Up>>,
    used: Option<usize>,
}

#[derive(Debug, Clone, Copy)]
struct Up {
    since: Instant,
    answered: Duration,
}

impl Alternatives {
    /// `count` alternatives, none of them up.
    pub fn new(strategy: Strategy, count: usize) -> Self {
        Self { strategy, all: vec![None; count], used: None }
    }

    /// An alternative is up, and its peer took so long to answer.
    pub fn handle_up(&mut self, index: usize, answered: Duration, now: Instant) {
        if let Some(slot) = self.all.get_mut(index) {
            let since = slot.map_or(now, |up| up.since);
            *slot = Some(Up { since, answered });
        }
    }

    /// It is down.
    pub fn handle_down(&mut self, index: usize) {
        if let Some(slot) = self.all.get_mut(index) {
            *slot = None;
        }
    }

    /// Those that flows go to now, each with its share; empty when all are down.
    pub fn choose(&mut self, now: Instant) -> Vec<(usize, u32)> {
        if let Strategy::Weighted(shares) = &self.strategy {
            let up = self.all.iter().enumerate().filter(|(_, up)| up.is_some());
            return up.map(|(i, _)| (i, shares.get(i).copied().unwrap_or(1).max(1))).collect();
        }
        let held = self.used.filter(|i| self.all.get(*i).is_some_and(Option::is_some));
        let best = self.best();
        self.used = match (held, best) {
            (Some(held), Some(best)) if held != best && !self.may_move(held, best, now) => Some(held),
            (_, best) => best,
        };
        self.used.map(|i| (i, 1)).into_iter().collect()
    }

    /// When to choose again without anything having happened.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let (held, best) = (self.used?, self.best()?);
        let since = self.all.get(best)?.as_ref()?.since;
        (held != best && self.is_better(held, best)).then(|| since + HOLD)
    }

    fn best(&self) -> Option<usize> {
        let up = self.all.iter().enumerate().filter_map(|(i, up)| up.map(|up| (i, up)));
        match self.strategy {
            Strategy::Nearest => up.min_by_key(|(_, up)| up.answered).map(|(i, _)| i),
            _ => up.map(|(i, _)| i).next(),
        }
    }

    fn may_move(&self, held: usize, best: usize, now: Instant) -> bool {
        let long = self.all[best].is_some_and(|up| now >= up.since + HOLD);
        long && self.is_better(held, best)
    }

    fn is_better(&self, held: usize, best: usize) -> bool {
        match (&self.strategy, self.all[held], self.all[best]) {
            (Strategy::Nearest, Some(held), Some(best)) => {
                best.answered.as_secs_f64() < held.answered.as_secs_f64() * FASTER
            }
            _ => best < held,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn priority_takes_the_first_that_is_up_and_goes_back_to_a_better_one_that_stays() {
        let (mut a, t) = (Alternatives::new(Strategy::Priority, 3), Instant::now());
        assert_eq!(a.choose(t), []);
        a.handle_up(2, MS, t);
        assert_eq!(a.choose(t), [(2, 1)]);
        a.handle_up(1, MS, t + HOLD);
        assert_eq!(a.choose(t + HOLD), [(2, 1)]);
        assert_eq!(a.poll_timeout(), Some(t + HOLD * 2));
        assert_eq!(a.choose(t + HOLD * 2), [(1, 1)]);
        assert_eq!(a.poll_timeout(), None);
        a.handle_down(1);
        assert_eq!(a.choose(t + HOLD * 2), [(2, 1)], "what is lost is left at once");
        a.handle_down(2);
        assert_eq!(a.choose(t + HOLD * 2), []);
    }

    #[test]
    fn nearest_moves_only_for_a_clear_gain() {
        let (mut a, t) = (Alternatives::new(Strategy::Nearest, 2), Instant::now());
        a.handle_up(0, 100 * MS, t);
        assert_eq!(a.choose(t), [(0, 1)]);
        a.handle_up(1, 90 * MS, t);
        assert_eq!(a.choose(t + HOLD), [(0, 1)]);
        assert_eq!(a.poll_timeout(), None);
        a.handle_up(1, 20 * MS, t);
        assert_eq!(a.choose(t + HOLD), [(1, 1)]);
    }

    #[test]
    fn weighted_uses_all_that_are_up_in_their_shares() {
        let (mut a, t) = (Alternatives::new(Strategy::Weighted(vec![3, 1]), 2), Instant::now());
        a.handle_up(1, MS, t);
        assert_eq!(a.choose(t), [(1, 1)]);
        a.handle_up(0, MS, t);
        assert_eq!(a.choose(t), [(0, 3), (1, 1)]);
    }
}
