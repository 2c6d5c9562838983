//! Connection attempts raced in the Happy Eyeballs way (RFC 8305 section 5).

use std::{
    error::Error,
    fmt::{self, Debug, Display},
    future::Future,
    net::SocketAddr,
    time::Duration,
};

use futures::{FutureExt, StreamExt, stream::FuturesUnordered};
use tokio::time::sleep;

/// Every attempt of a [`race`] failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RaceError<E> {
    /// Each candidate with its error, in the order in which they failed. Empty when there was no candidate at all.
    pub attempts: Vec<(SocketAddr, E)>,
}

/// Tries `candidates` in their order and returns the first that `connect` succeeds for.
///
/// The next attempt starts when one failed, or when `stagger` (RFC 8305 recommends 250 ms) has passed. The first
/// success wins and the attempts still running are dropped, so `connect` must clean up on drop. There is no time limit
/// in here: a `connect` that hangs keeps the race running once the candidates are used up.
pub async fn race<T, E, F, Fut>(
    candidates: impl IntoIterator<Item = SocketAddr>,
    stagger: Duration,
    mut connect: F,
) -> Result<(SocketAddr, T), RaceError<E>>
where
    F: FnMut(SocketAddr) -> Fut,
    Fut: Future<Output = Result<T, E>>,
{
    let mut waiting = candidates.into_iter();
    let mut running = FuturesUnordered::new();
    let mut attempts = Vec::new();
    loop {
        let mut more = false;
        if let Some(addr) = waiting.next() {
            running.push(connect(addr).map(move |result| (addr, result)));
            more = true;
        }
        if running.is_empty() {
            return Err(RaceError { attempts });
        }
        tokio::select! {
            // An answer that is there beats the clock.
            biased;
            Some((addr, result)) = running.next() => match result {
                Ok(value) => return Ok((addr, value)),
                Err(error) => attempts.push((addr, error)),
            },
            () = sleep(stagger), if more => {}
        }
    }
}

impl<E: Display> Display for RaceError<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.attempts.is_empty() {
            return f.write_str("there is no address to try");
        }
        f.write_str("no address answered: ")?;
        for (i, (addr, error)) in self.attempts.iter().enumerate() {
            write!(f, "{}{addr}: {error}", if i > 0 { "; " } else { "" })?;
        }
        Ok(())
    }
}

impl<E: Debug + Display> Error for RaceError<E> {}

#[cfg(test)]
mod tests {
    use std::{
        cell::RefCell,
        rc::Rc,
        sync::atomic::{AtomicUsize, Ordering::Relaxed},
    };

    use tokio::time::Instant;

    use super::*;

    const STAGGER: Duration = Duration::from_millis(100);

    fn addr(last: u8) -> SocketAddr {
        SocketAddr::from(([192, 0, 2, last], 1))
    }

    fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    /// A network where address `n` answers `plan[n - 1]`: after how long, and with success or failure.
    async fn run(plan: &[(u64, bool)]) -> (Result<(SocketAddr, u8), RaceError<u8>>, Duration, Vec<Duration>) {
        let began = Instant::now();
        let starts = Rc::new(RefCell::new(Vec::new()));
        let result = race((1..=plan.len() as u8).map(addr), STAGGER, |a| {
            starts.borrow_mut().push(began.elapsed());
            let std::net::IpAddr::V4(ip) = a.ip() else { unreachable!("the test uses IPv4") };
            let n = ip.octets()[3];
            let (delay, succeeds) = plan[usize::from(n) - 1];
            async move {
                sleep(ms(delay)).await;
                if succeeds { Ok(n) } else { Err(n) }
            }
        })
        .await;
        (result, began.elapsed(), Rc::try_unwrap(starts).unwrap().into_inner())
    }

    #[tokio::test(start_paused = true)]
    async fn the_first_candidate_alone_when_it_answers_in_time() {
        let (result, took, starts) = run(&[(40, true), (1, true)]).await;
        assert_eq!(result, Ok((addr(1), 1)));
        assert_eq!((took, starts), (ms(40), vec![ms(0)]));
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_candidate_costs_one_stagger() {
        let (result, took, starts) = run(&[(3_600_000, true), (10, true), (10, true)]).await;
        assert_eq!(result, Ok((addr(2), 2)));
        assert_eq!((took, starts), (ms(110), vec![ms(0), ms(100)]));
    }

    #[tokio::test(start_paused = true)]
    async fn a_failure_starts_the_next_at_once() {
        let (result, took, starts) = run(&[(5, false), (5, false), (5, true)]).await;
        assert_eq!(result, Ok((addr(3), 3)));
        assert_eq!((took, starts), (ms(15), vec![ms(0), ms(5), ms(10)]));
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_early_candidate_still_wins_over_slower_later_ones() {
        let (result, took, starts) = run(&[(250, true), (300, true), (300, true), (300, true)]).await;
        assert_eq!(result, Ok((addr(1), 1)));
        assert_eq!((took, starts), (ms(250), vec![ms(0), ms(100), ms(200)]));
    }

    #[tokio::test(start_paused = true)]
    async fn the_last_ones_are_waited_for() {
        let (result, took, _) = run(&[(500, false), (900, true)]).await;
        assert_eq!(result, Ok((addr(2), 2)));
        assert_eq!(took, ms(1000));
    }

    #[tokio::test(start_paused = true)]
    async fn when_all_fail_every_error_is_told() {
        let (result, took, _) = run(&[(150, false), (20, false), (20, false)]).await;
        let error = result.unwrap_err();
        assert_eq!(error.attempts, vec![(addr(2), 2), (addr(3), 3), (addr(1), 1)]);
        assert_eq!(took, ms(150));
        assert_eq!(error.to_string(), "no address answered: 192.0.2.2:1: 2; 192.0.2.3:1: 3; 192.0.2.1:1: 1");
    }

    #[tokio::test(start_paused = true)]
    async fn no_candidate_is_an_error_of_its_own() {
        let (result, took, _) = run(&[]).await;
        let error = result.unwrap_err();
        assert!(error.attempts.is_empty());
        assert_eq!(error.to_string(), "there is no address to try");
        assert_eq!(took, Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn losers_are_dropped_before_the_race_returns() {
        struct Counted<'a>(&'a AtomicUsize);
        impl Drop for Counted<'_> {
            fn drop(&mut self) {
                self.0.fetch_sub(1, Relaxed);
            }
        }
        let live = AtomicUsize::new(0);
        let (winner, ()) = race([addr(1), addr(2)], STAGGER, |a| {
            live.fetch_add(1, Relaxed);
            let guard = Counted(&live);
            async move {
                let _guard = guard;
                sleep(if a == addr(1) { ms(10_000) } else { ms(1) }).await;
                Ok::<_, ()>(())
            }
        })
        .await
        .unwrap();
        assert_eq!(winner, addr(2));
        assert_eq!(live.load(Relaxed), 0);
    }
}
