//! How much each tunnel may have in flight, within a bound for all of them.
//!
//! A tunnel's receive window has to cover its bandwidth-delay product, or it is slow. It also is the memory that the peer
//! can make us hold when local readers do not keep up. A reader that is slow, or has stopped (a pager, a dead laptop), fills
//! its stream's window and keeps that part of the tunnel's window for itself, so the tunnel is granted as much again for each
//! such flow; when the bound for all tunnels is reached, the caller sheds the flow that has stood still longest.

/// Receive window of one stream: 100 ms at 1 Gbit/s is 12.5 MB.
pub const STREAM: u64 = 16 << 20;
/// Receive window of a tunnel whose flows all move: several streams at full rate.
pub const TUNNEL: u64 = 64 << 20;
/// Least window of a tunnel, however many there are: 20 ms at 1 Gbit/s, or one flow at 100 ms and 200 Mbit/s.
pub const LEAST: u64 = 5 << 19;

/// The grant of each tunnel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Grants {
    /// Window of a tunnel in which every flow moves, in octets.
    pub base: u64,
    /// How many flows whose reader is behind can be compensated for with [`STREAM`] octets each.
    pub behind: u64,
}

/// Shares `budget` octets among `tunnels` tunnels, and says how many of the flows that are `behind` it can carry besides.
pub fn share(budget: u64, tunnels: u64, behind: u64) -> Grants {
    let tunnels = tunnels.max(1);
    let base = (budget / 2 / tunnels).clamp(LEAST, TUNNEL);
    let left = budget.saturating_sub(base.saturating_mul(tunnels));
    Grants { base, behind: behind.min(left / STREAM) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn few_tunnels_have_full_windows() {
        assert_eq!(share(1 << 30, 1, 0), Grants { base: TUNNEL, behind: 0 });
        assert_eq!(share(1 << 30, 8, 3), Grants { base: TUNNEL, behind: 3 });
        assert_eq!(share(1 << 30, 1, 1000).behind, 60);
        assert_eq!(share(1 << 30, 1000, 0).base, LEAST);
    }

    proptest! {
        #[test]
        fn the_budget_holds_unless_the_least_alone_exceeds_it(budget in 0u64..1 << 40, tunnels in 0u64..5000, behind in 0u64..100_000) {
            let grants = share(budget, tunnels, behind);
            let granted = grants.base * tunnels.max(1) + grants.behind * STREAM;
            prop_assert!(granted <= budget.max(LEAST * tunnels.max(1)));
            prop_assert!(grants.behind <= behind);
        }
    }
}
