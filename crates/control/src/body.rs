//! The bodies of requests: JSON of the right shape, or none. What is wrong is said in the words of the
//! API, with the place in the body.

use std::time::Duration;

use axum::body::Bytes;
use axum::extract::{FromRequest, FromRequestParts, Request};
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode, header};
use serde::de::DeserializeOwned;
use serde_json::error::Category;

use crate::problem::Problem;
use crate::words::in_own_words;

/// How long a body may take to arrive.
const TIMEOUT: Duration = Duration::from_secs(10);

/// The request's body.
pub(crate) struct Given<T>(pub(crate) T);

/// The request has no body: a client that sends one expects it to be read.
pub(crate) struct NoBody;

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Given<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        if !says_json(request.headers()) {
            let what = "the body must be JSON, with `Content-Type: application/json`";
            return Err(Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, what));
        }
        let bytes = tokio::time::timeout(TIMEOUT, Bytes::from_request(request, state));
        let bytes = bytes
            .await
            .map_err(|_| {
                let what = format!("the body has not arrived within {} s", TIMEOUT.as_secs());
                Problem::new(StatusCode::REQUEST_TIMEOUT, what)
            })?
            .map_err(|rejection| Problem::new(rejection.status(), rejection.body_text()))?;
        read(&bytes).map(Self)
    }
}

impl<S: Send + Sync> FromRequestParts<S> for NoBody {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, Problem> {
        let length = parts.headers.get(header::CONTENT_LENGTH);
        let is_empty = length.is_none_or(|length| length.as_bytes() == b"0");
        if is_empty && !parts.headers.contains_key(header::TRANSFER_ENCODING) {
            return Ok(Self);
        }
        let what = "this request takes no body; what it can be told is in its query (`?key=value`)";
        Err(Problem::new(StatusCode::BAD_REQUEST, what))
    }
}

fn says_json(headers: &HeaderMap) -> bool {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
    let kind = kind.and_then(|kind| kind.split(';').next()).unwrap_or_default().trim();
    kind.eq_ignore_ascii_case("application/json")
}

/// Reads a body.
fn read<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Problem> {
    let mut json = serde_json::Deserializer::from_slice(bytes);
    let value = serde_path_to_error::deserialize(&mut json).map_err(|error| {
        let path = error.path().to_string();
        refusal(if path == "." { "" } else { &path }, error.inner())
    })?;
    json.end().map_err(|error| refusal("", &error)).map(|()| value)
}

/// What is wrong with the value at `path`.
fn refusal(path: &str, error: &serde_json::Error) -> Problem {
    let place = format!(" at line {} column {}", error.line(), error.column());
    let text = error.to_string();
    let text = text.strip_suffix(&place).unwrap_or(&text);
    if error.classify() == Category::Data {
        return Problem::new(
            StatusCode::UNPROCESSABLE_ENTITY,
            in_own_words("the body", path, text),
        );
    }
    let (line, column) = (error.line(), error.column());
    let what = format!("the body is not JSON, from line {line}, column {column} on: {text}");
    Problem::new(StatusCode::BAD_REQUEST, what)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::{AddDevice, Create};

    fn refused<T: DeserializeOwned>(body: &str) -> (u16, String) {
        let Err(problem) = read::<T>(body.as_bytes()) else { panic!("accepted: {body}") };
        (problem.status, problem.detail)
    }

    #[test]
    fn what_is_wrong_with_a_body_is_said_with_its_place() {
        let rows = [
            (r#"{"parent": "p"}"#, 422, "the body has no `type`, which it needs"),
            (
                r#"{"parent": 5, "type": "t"}"#,
                422,
                "`parent` is the number `5`; it must be a string",
            ),
            (
                r#"{"parent": "p", "type": "t", "attributes": {}}"#,
                422,
                "`attributes` is an object; it must be a list",
            ),
            (r#"{"parent": "p", "parent": "p"}"#, 422, "the body has `parent` twice"),
            (
                r#"{"parent": "p", "typ": "t"}"#,
                422,
                "there is no key `typ`; the keys are `parent`, `type`, `uuid`, `attributes`",
            ),
            (
                r#"{"parent": "p", "type": "t", "attributes": [{"nam": "x"}]}"#,
                422,
                "there is no key `nam` in `attributes[0]`; the keys are `name` or `value`",
            ),
            (r#"[1]"#, 422, "`[0]` is the number `1`; it must be a string"),
            ("\"x\"", 422, "the body is the text \"x\"; it must be an object"),
            (
                "{\"parent\":\n x}",
                400,
                "the body is not JSON, from line 2, column 2 on: expected value",
            ),
            ("", 400, "the body is not JSON, from line 1, column 0 on: EOF while parsing a value"),
            (
                r#"{"parent": "p", "type": "t"} x"#,
                400,
                "the body is not JSON, from line 1, column 30 on: trailing characters",
            ),
        ];
        for (body, status, detail) in rows {
            assert_eq!(refused::<Create>(body), (status, detail.to_owned()), "{body}");
        }
        let (status, detail) = refused::<Create>(r#"{"parent": "p", "type": "t", "uuid": "1"}"#);
        assert_eq!(status, 422);
        assert!(detail.starts_with("`uuid`: UUID"), "{detail}");
        let socket = r#"{"name": "n", "model": "m", "socket": 7}"#;
        assert_eq!(
            refused::<AddDevice>(socket).1,
            "`socket`: a path, or an object of `path`, `mode`, `owner` and `group`"
        );
    }
}
