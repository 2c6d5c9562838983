//! What an error says, with what it came from.

use std::error::Error;

/// More causes than this tell nobody anything.
const MAX_CAUSES: usize = 16;

/// The error and its causes in one line: `cannot connect: connection refused`. A cause that is said already is not said again.
pub fn in_one_line(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    for _ in 0..MAX_CAUSES {
        let Some(error) = cause else { break };
        let next = error.to_string();
        if !text.ends_with(&next) {
            text.push_str(": ");
            text.push_str(&next);
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("{says}")]
    struct Fault {
        says: &'static str,
        source: Option<Box<Fault>>,
    }

    fn fault(says: &'static str, source: Option<Fault>) -> Fault {
        Fault { says, source: source.map(Box::new) }
    }

    #[test]
    fn every_cause_is_said_once() {
        assert_eq!(in_one_line(&fault("a", None)), "a");
        let refused = || fault("refused", None);
        assert_eq!(in_one_line(&fault("cannot dial", Some(refused()))), "cannot dial: refused");
        assert_eq!(in_one_line(&fault("cannot dial: refused", Some(refused()))), "cannot dial: refused");
    }

    #[test]
    fn an_endless_chain_ends() {
        let deep = (0..1000)
            .fold(fault("x", None), |inner, n| fault(if n % 2 == 0 { "y" } else { "z" }, Some(inner)));
        assert!(in_one_line(&deep).len() < 100);
    }
}
