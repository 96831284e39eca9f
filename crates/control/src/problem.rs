//! Refusals, for programs and people: problem details (RFC 9457) with the errno.

use axum::Json;
use axum::extract::path::ErrorKind;
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use utoipa::{ToResponse, ToSchema};
use vfiod_core::Errno;

use crate::words::{in_own_words, kind};

/// A refusal.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema, ToResponse)]
#[response(description = "refused", content_type = "application/problem+json")]
pub(crate) struct Problem {
    /// The HTTP status.
    pub(crate) status: u16,
    /// The status in words.
    pub(crate) title: String,
    /// What went wrong, where, and what would be right.
    pub(crate) detail: String,
    /// The kernel's name for it, e.g. `EBUSY`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) errno: Option<String>,
}

impl Problem {
    pub(crate) fn new(status: StatusCode, detail: impl Into<String>) -> Self {
        let title = status.canonical_reason().unwrap_or("failed").to_owned();
        Self { status: status.as_u16(), title, detail: detail.into(), errno: None }
    }
}

/// The HTTP status that is nearest to an errno.
fn status_of(errno: Errno) -> StatusCode {
    match errno {
        Errno::NOENT | Errno::NODEV => StatusCode::NOT_FOUND,
        Errno::EXIST | Errno::BUSY | Errno::USERS | Errno::ADDRINUSE => StatusCode::CONFLICT,
        Errno::INVAL | Errno::NAMETOOLONG => StatusCode::UNPROCESSABLE_ENTITY,
        Errno::ACCESS | Errno::PERM => StatusCode::FORBIDDEN,
        Errno::AGAIN => StatusCode::SERVICE_UNAVAILABLE,
        Errno::TIMEDOUT => StatusCode::GATEWAY_TIMEOUT,
        Errno::OPNOTSUPP => StatusCode::NOT_IMPLEMENTED,
        Errno::NOSPC | Errno::DQUOT | Errno::MFILE | Errno::NFILE | Errno::NOMEM => {
            StatusCode::INSUFFICIENT_STORAGE
        }
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

/// `EBUSY` for 16.
pub(crate) fn errno_name(errno: Errno) -> String {
    format!("{:?}", nix::errno::Errno::from_raw(errno.raw_os_error()))
}

impl From<vfiod_core::Error> for Problem {
    fn from(error: vfiod_core::Error) -> Self {
        let errno = error.errno();
        let mut detail = error.message().to_owned();
        let mut cause = std::error::Error::source(&error);
        while let Some(error) = cause {
            detail = format!("{detail}: {error}");
            cause = error.source();
        }
        Self { errno: Some(errno_name(errno)), ..Self::new(status_of(errno), detail) }
    }
}

impl From<PathRejection> for Problem {
    fn from(rejection: PathRejection) -> Self {
        let wrong = |what: String| Self::new(rejection.status(), what);
        let PathRejection::FailedToDeserializePathParams(failed) = &rejection else {
            return wrong("the path of the request cannot be read".to_owned());
        };
        match failed.kind() {
            ErrorKind::InvalidUtf8InPathParam { key } => {
                wrong(format!("the path of the request: what stands for `{key}` is not UTF-8 text"))
            }
            ErrorKind::ParseError { value, expected_type }
            | ErrorKind::ParseErrorAtKey { value, expected_type, .. }
            | ErrorKind::ParseErrorAtIndex { value, expected_type, .. } => {
                let right = kind(expected_type);
                wrong(format!("the path of the request: `{value}` stands where {right} must be"))
            }
            ErrorKind::DeserializeError { value, message, .. } => {
                wrong(format!("the path of the request: {}", in_own_words("", value, message)))
            }
            ErrorKind::Message(message) => {
                wrong(in_own_words("the path of the request", "", message))
            }
            _ => wrong("the path of the request is not that of a resource".to_owned()),
        }
    }
}

impl From<QueryRejection> for Problem {
    fn from(rejection: QueryRejection) -> Self {
        let text = rejection.body_text();
        let text = text.strip_prefix("Failed to deserialize query string: ").unwrap_or(&text);
        let (key, text) = match text.split_once(": ") {
            Some((key, rest)) if !key.contains(' ') => (key, rest),
            _ => ("", text),
        };
        Self::new(rejection.status(), in_own_words("the query", key, text))
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = (status, Json(self)).into_response();
        let kind = HeaderValue::from_static("application/problem+json");
        response.headers_mut().insert(header::CONTENT_TYPE, kind);
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_errno_has_its_name_and_status() {
        let error = vfiod_core::Error::new(Errno::USERS, "none left")
            .because(std::io::Error::other("the shelf is empty"));
        let problem = Problem::from(error);
        assert_eq!((problem.status, &*problem.title), (409, "Conflict"));
        assert_eq!(problem.errno.as_deref(), Some("EUSERS"));
        assert_eq!(problem.detail, "none left: the shelf is empty");
    }
}
