//! The query of a request: its keys are those that the document of the API has for the operation.

use std::collections::HashMap;
use std::sync::Arc;

use axum::extract::{MatchedPath, Query, Request, State};
use axum::http::{Method, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use utoipa::openapi::path::{Operation, Parameter, ParameterIn, PathItem};
use utoipa::openapi::{OpenApi, RefOr};

use crate::problem::Problem;

/// The keys that each operation knows, by path and method.
pub(crate) type Keys = Arc<HashMap<String, Vec<(Method, Vec<String>)>>>;

/// What the document says about queries.
pub(crate) fn keys(document: &OpenApi) -> Keys {
    let paths = document.paths.paths.iter();
    Arc::new(paths.map(|(path, item)| (path.clone(), of_path(item))).collect())
}

fn of_path(item: &PathItem) -> Vec<(Method, Vec<String>)> {
    let PathItem { get, put, post, delete, patch, .. } = item;
    let operations = [
        (Method::GET, get),
        (Method::PUT, put),
        (Method::POST, post),
        (Method::DELETE, delete),
        (Method::PATCH, patch),
    ];
    let known = |(method, operation): (Method, &Option<Operation>)| {
        let parameters = operation.as_ref()?.parameters.iter().flatten();
        let name = |parameter: &RefOr<Parameter>| match parameter {
            RefOr::T(one) if one.parameter_in == ParameterIn::Query => Some(one.name.clone()),
            _ => None,
        };
        Some((method, parameters.filter_map(name).collect()))
    };
    operations.into_iter().filter_map(known).collect()
}

/// Refuses a request with a key that its operation does not know. What is not in the document knows none.
pub(crate) async fn check(State(keys): State<Keys>, request: Request, next: Next) -> Response {
    let Some(path) = request.extensions().get::<MatchedPath>() else {
        return next.run(request).await;
    };
    let known: &[String] = match keys.get(path.as_str()) {
        None => &[],
        Some(operations) => {
            // A path that can be read with GET can be read with HEAD.
            let method = match request.method() {
                &Method::HEAD => &Method::GET,
                method => method,
            };
            match operations.iter().find(|(known, _)| known == method) {
                Some((_, known)) => known,
                // The router refuses the method.
                None => return next.run(request).await,
            }
        }
    };
    match unknown(&request, known) {
        Some(what) => Problem::new(StatusCode::BAD_REQUEST, what).into_response(),
        None => next.run(request).await,
    }
}

/// What is wrong with the keys of a query, if anything.
fn unknown(request: &Request, known: &[String]) -> Option<String> {
    let query = Query::<Vec<(String, String)>>::try_from_uri(request.uri()).ok()?;
    let (key, _) = query.0.into_iter().find(|(key, _)| !known.contains(key))?;
    let known: Vec<_> = known.iter().map(|key| format!("`{key}`")).collect();
    Some(if known.is_empty() {
        format!("there is no key `{key}`: this request takes no query")
    } else {
        format!("there is no key `{key}` in the query; the keys are {}", known.join(", "))
    })
}
