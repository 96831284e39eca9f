//! The bodies of requests: JSON of the right shape, or none. What is wrong is said in the words of the
//! API, with the place in the body.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::{FromRequest, FromRequestParts, Request};
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode, header};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde::de::DeserializeOwned;
use serde_json::error::Category;
use serde_json::{Map, Value};

use crate::caller;
use crate::handler::Api;
use crate::problem::Problem;
use crate::words::in_own_words;

/// How long a body may take to arrive.
const TIMEOUT: Duration = Duration::from_secs(10);

/// How many bytes a body may have: so few that every client may send one.
const LARGEST: usize = 64 << 10;
/// How many bytes the saved state of a device may have. A few at a time may be sent ([`Api::states`]).
const LARGEST_STATE: usize = 1 << 20;

/// The request's body.
pub(crate) struct Given<T>(pub(crate) T);

/// The request has no body: a client that sends one expects it to be read.
pub(crate) struct NoBody;

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Given<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, _state: &S) -> Result<Self, Problem> {
        read(&bytes(request, LARGEST).await?).map(Self)
    }
}

/// The saved state of a device: a JSON object, of whatever content.
pub(crate) struct GivenState(pub(crate) Map<String, Value>);

impl FromRequest<Arc<Api>> for GivenState {
    type Rejection = Problem;

    async fn from_request(request: Request, api: &Arc<Api>) -> Result<Self, Problem> {
        let Ok(_share) = tokio::time::timeout(TIMEOUT, api.states().take(caller::peer())).await
        else {
            let what = "other states are being restored; try again when one of them has arrived";
            return Err(vfiod_core::Error::new(vfiod_core::Errno::AGAIN, what).into());
        };
        read(&bytes(request, LARGEST_STATE).await?).map(Self)
    }
}

/// The bytes of a body that is JSON.
async fn bytes(request: Request, largest: usize) -> Result<Bytes, Problem> {
    if !says_json(request.headers()) {
        let what = "the body must be JSON, with `Content-Type: application/json`";
        return Err(Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, what));
    }
    let body = Limited::new(request.into_body(), largest).collect();
    let body = tokio::time::timeout(TIMEOUT, body).await.map_err(|_| {
        let what = format!("the body has not arrived within {} s", TIMEOUT.as_secs());
        Problem::new(StatusCode::REQUEST_TIMEOUT, what)
    })?;
    body.map(|body| body.to_bytes()).map_err(|error| {
        if error.is::<LengthLimitError>() {
            let what = format!("the body has more than {} KiB", largest >> 10);
            return Problem::new(StatusCode::PAYLOAD_TOO_LARGE, what);
        }
        Problem::new(StatusCode::BAD_REQUEST, "the body did not arrive as a whole")
    })
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
    let wrong = |what: String| Problem::new(StatusCode::BAD_REQUEST, what);
    let text = std::str::from_utf8(bytes).map_err(|error| {
        let place = error.valid_up_to();
        wrong(format!(
            "the body is not UTF-8 text: byte {place}, counted from 0, is no part of a character"
        ))
    })?;
    if text.trim().is_empty() {
        return Err(wrong("the body is empty; this request needs a JSON object".to_owned()));
    }
    let mut json = serde_json::Deserializer::from_str(text);
    let value = serde_path_to_error::deserialize(&mut json).map_err(|error| {
        let path = error.path().to_string();
        refusal(if path == "." { "" } else { &path }, error.inner())
    })?;
    json.end().map(|()| value).map_err(|error| {
        let place = place(&error);
        wrong(format!("something follows the JSON object in the body, from {place} on"))
    })
}

fn place(error: &serde_json::Error) -> String {
    format!("line {}, column {}", error.line(), error.column())
}

/// What is wrong with the value at `path`.
fn refusal(path: &str, error: &serde_json::Error) -> Problem {
    let end = format!(" at line {} column {}", error.line(), error.column());
    let text = error.to_string();
    let text = text.strip_suffix(&end).unwrap_or(&text);
    let place = place(error);
    let what = match (error.classify(), text) {
        (Category::Data, _) => {
            let what = in_own_words("the body", path, text);
            return Problem::new(StatusCode::UNPROCESSABLE_ENTITY, what);
        }
        (Category::Eof, _) => format!("the body is not whole: its JSON ends too early, at {place}"),
        (_, "recursion limit exceeded") => format!("the body is nested too deeply at {place}"),
        (_, "number out of range") => format!("the body has a number that is too large at {place}"),
        _ => format!("the body is not JSON, from {place} on"),
    };
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
            ("{\"parent\":\n x}", 400, "the body is not JSON, from line 2, column 2 on"),
            ("", 400, "the body is empty; this request needs a JSON object"),
            (" \n", 400, "the body is empty; this request needs a JSON object"),
            (
                r#"{"parent": "p""#,
                400,
                "the body is not whole: its JSON ends too early, at line 1, column 14",
            ),
            ("[]", 422, "the body is a list; it must be an object"),
            (
                r#"{"parent": 1e999}"#,
                400,
                "the body has a number that is too large at line 1, column 16",
            ),
            (
                r#"{"parent": "p", "type": "t"} x"#,
                400,
                "something follows the JSON object in the body, from line 1, column 30 on",
            ),
        ];
        for (body, status, detail) in rows {
            assert_eq!(refused::<Create>(body), (status, detail.to_owned()), "{body}");
        }
        let uuid = r#"{"parent": "p", "type": "t", "uuid": "1"}"#;
        assert_eq!(
            refused::<Create>(uuid),
            (
                422,
                "`uuid` is no UUID, which is written like 83b8f4f2-509f-382f-3c1e-e6bfe0fa1001"
                    .into()
            )
        );
        let port = r#"{"name": "n", "model": "m", "socket": "s", "function": -1}"#;
        assert_eq!(
            refused::<AddDevice>(port),
            (422, "`function` is the number `-1`; it must be a number from 0 to 65535".into())
        );
        let deep = format!(r#"{{"name": "n", "options": {{"a": {}"#, "[".repeat(1000));
        let (status, detail) = refused::<AddDevice>(&deep);
        assert_eq!(status, 400);
        assert!(detail.starts_with("the body is nested too deeply at line 1"), "{detail}");
        let Err(bytes) = read::<Create>(b"{\xff}") else { panic!("accepted") };
        let said = "the body is not UTF-8 text: byte 1, counted from 0, is no part of a character";
        assert_eq!((bytes.status, &*bytes.detail), (400, said));
        let socket = r#"{"name": "n", "model": "m", "socket": 7}"#;
        assert_eq!(
            refused::<AddDevice>(socket).1,
            "`socket`: a path, or an object of `path`, `mode`, `owner` and `group`"
        );
    }
}
