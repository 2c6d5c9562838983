//! Why a request was not done.

use serde::{Deserialize, Serialize};

/// Why a request was not done. The HTTP status follows from the code.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub(crate) struct Problem {
    /// For programs.
    pub(crate) code: ProblemCode,
    /// What failed, with the name of the object.
    pub(crate) message: String,
    /// What the operator can do about it.
    pub(crate) hint: Option<String>,
}

/// The kinds of [`Problem`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum ProblemCode {
    /// The request is not one (400). Correct it.
    InvalidRequest,
    /// Policy or trust says no (403). A retry does not help.
    Denied,
    /// There is no such thing (404).
    NotFound,
    /// The path is none of this API (404): an older daemon does not have it.
    UnknownPath,
    /// The path exists, the method does not (405).
    MethodNotAllowed,
    /// It exists already or is in use (409).
    Conflict,
    /// The body is over the limit (413).
    TooLarge,
    /// The new configuration has faults, and the old one stays in force (422).
    InvalidConfig,
    /// The daemon failed (500). Its log says more.
    Internal,
    /// Something it depends on does not answer, or it is draining (503). Try again.
    Unavailable,
    /// It took too long (504). Try again.
    Timeout,
    /// A code of a newer daemon.
    #[serde(other)]
    Unknown,
}

impl ProblemCode {
    /// The HTTP status that carries it.
    pub(crate) fn status(self) -> http::StatusCode {
        use http::StatusCode as S;
        match self {
            Self::InvalidRequest => S::BAD_REQUEST,
            Self::Denied => S::FORBIDDEN,
            Self::NotFound | Self::UnknownPath => S::NOT_FOUND,
            Self::MethodNotAllowed => S::METHOD_NOT_ALLOWED,
            Self::Conflict => S::CONFLICT,
            Self::TooLarge => S::PAYLOAD_TOO_LARGE,
            Self::InvalidConfig => S::UNPROCESSABLE_ENTITY,
            Self::Unavailable => S::SERVICE_UNAVAILABLE,
            Self::Timeout => S::GATEWAY_TIMEOUT,
            Self::Internal | Self::Unknown => S::INTERNAL_SERVER_ERROR,
        }
    }
}

impl Problem {
    /// A problem without a hint.
    pub(crate) fn new(code: ProblemCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), hint: None }
    }

    /// The same with a hint.
    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_of_a_newer_daemon_is_still_one() {
        let json = r#"{"code":"on_fire","message":"m","hint":null,"more":1}"#;
        let problem: Problem = serde_json::from_str(json).unwrap();
        assert_eq!(problem.code, ProblemCode::Unknown);
    }
}
